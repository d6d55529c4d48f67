# SPDX-License-Identifier: EUPL-1.2
"""Sockets that systemd opened: a reflector really started with them, and what is refused with which sentence."""

import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from probe.reflector.listen import CannotListen, Handed, handed_over, listen


def tcp(host="127.0.0.1", *, listening=True, port=0):
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.bind((host, port))
    if listening:
        sock.listen(16)
    return sock


def udp(port=0):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", port))
    return sock


def both():
    """A TCP and a UDP socket of one port."""
    for _ in range(20):
        stream = tcp()
        try:
            return stream, udp(stream.getsockname()[1])
        except OSError:
            stream.close()
    raise AssertionError("no port is free for TCP and UDP")


@pytest.fixture
def taking(tmp_path):
    """Asks a child, whose descriptors from 3 on are the sockets, what it would take over."""
    code = (
        "import json, os, sys\n"
        "from probe.reflector.listen import CannotListen, handed_over\n"
        "environ = dict(os.environ)\n"
        "try:\n"
        "    found = handed_over(environ, os.getpid())\n"
        "except CannotListen as error:\n"
        "    print(json.dumps(str(error)))\n"
        "else:\n"
        "    kinds = {name: [s.getsockname()[1] for s in getattr(found, name)]\n"
        "             for name in ('control', 'data', 'data_udp', 'portal')}\n"
        "    print(json.dumps([kinds, sorted(n for n in environ if n.startswith('LISTEN')),\n"
        "                      [os.get_inheritable(n) for n in range(3, 3 + int(sys.argv[1]))]]))\n"
    )

    def ask(sockets, **environ):
        done = start([sys.executable, "-c", code, str(len(sockets))], sockets, environ, stdout=subprocess.PIPE)
        out, _ = done.communicate(timeout=60)
        return json.loads(out)

    return ask


def start(argv, sockets, environ, **options):
    """As systemd does: descriptors from 3 on, and the id of the very process in LISTEN_PID."""
    # Above all that the child takes, and never in the place of a descriptor that this process uses.
    high = [fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, 100) for sock in sockets]

    def place():
        for at, number in enumerate(high):
            os.dup2(number, 3 + at)

    try:
        return subprocess.Popen(
            ["sh", "-c", 'LISTEN_PID=${LISTEN_PID-$$}; export LISTEN_PID; exec "$@"', "sh", *argv],
            env=os.environ | {"LISTEN_FDS": str(len(sockets))} | environ,
            pass_fds=tuple(range(3, 3 + len(sockets))),
            preexec_fn=place,  # noqa: PLW1509 - a test without threads of its own
            text=True,
            **options,
        )
    finally:
        for number in high:
            os.close(number)


def test_sockets_are_taken_by_name_and_no_child_believes_the_variables(taking):
    stream, datagrams = both()
    control, portal = tcp(), tcp()
    sockets = [portal, stream, datagrams, control]
    kinds, left, inheritable = taking(sockets, LISTEN_FDNAMES="portal:data:data-udp:control")
    assert kinds == {
        "control": [control.getsockname()[1]],
        "data": [stream.getsockname()[1]],
        "data_udp": [stream.getsockname()[1]],
        "portal": [portal.getsockname()[1]],
    }
    assert left == []
    assert inheritable == [False] * 4
    for sock in sockets:
        sock.close()


def test_what_is_for_another_process_is_not_ours(taking):
    with tcp() as sock:
        kinds, left, _ = taking([sock], LISTEN_PID="1", LISTEN_FDNAMES="data")
        assert kinds == {"control": [], "data": [], "data_udp": [], "portal": []}
        assert left == []


@pytest.mark.parametrize(
    ("names", "make", "sentence"),
    [
        ("http", tcp, "FileDescriptorName= is one of control, data, data-udp, portal"),
        ("", tcp, "1 sockets were handed over with 0 names"),
        ("data:data", tcp, "1 sockets were handed over with 2 names"),
        ("data", udp, "must say ListenStream="),
        ("data-udp", tcp, "must say ListenDatagram="),
        ("data", lambda: tcp(listening=False), "must say ListenStream="),
        ("data", lambda: socket.socketpair()[0], "is of another kind"),
        ("data", lambda: open(os.devnull), "descriptor 3 was handed over as data, and is no socket"),  # noqa: SIM115
    ],
)
def test_what_is_not_as_named_is_refused_with_a_sentence(taking, names, make, sentence):
    made = make()
    answer = taking([made], LISTEN_FDNAMES=names)
    made.close()
    assert isinstance(answer, str), answer
    assert sentence in answer


@pytest.mark.parametrize("count", ["-1", "65", "99999999999", "eins", "٣", ""])
def test_a_count_that_is_none_is_refused(count):
    environ = {"LISTEN_PID": "7", "LISTEN_FDS": count, "LISTEN_FDNAMES": ""}
    with pytest.raises(CannotListen, match="is not a number of sockets up to 64"):
        handed_over(environ, 7)
    assert environ == {}


def test_other_addresses_than_host_names_are_refused():
    with tcp() as sock, pytest.raises(CannotListen, match=r"start the reflector with --host 127\.0\.0\.1$"):
        listen(["127.0.0.2"], 0, 0, Handed(data=[sock]))


def test_datagrams_on_another_port_than_the_data_port_are_refused():
    with tcp() as stream, udp() as datagrams:
        assert stream.getsockname()[1] != datagrams.getsockname()[1] or pytest.skip("by chance the same port")
        with pytest.raises(CannotListen, match="must have the data port"):
            listen(["127.0.0.1"], 0, 0, Handed(data=[stream], data_udp=[datagrams]))


def test_a_reflector_measures_on_sockets_that_were_handed_over(tmp_path):
    data, datagrams = both()
    control = tcp()
    ports = control.getsockname()[1], data.getsockname()[1]
    argv = [
        sys.executable,
        "-m",
        "evenlane.cli",
        "reflector",
        "--host",
        "127.0.0.1",
        "--state",
        str(tmp_path / "state"),
    ]
    with (tmp_path / "log").open("w") as log:
        server = start(
            [*argv, "--control-port", "1", "--data-port", "1", "--json"],  # ports that it could not open
            [control, data, datagrams],
            {"LISTEN_FDNAMES": "control:data:data-udp"},
            stdout=subprocess.PIPE,
            stderr=log,
        )
        for sock in (control, data, datagrams):
            sock.close()  # as systemd's copies are not the reflector's: it serves from its own
        try:
            told = json.loads(server.stdout.readline() or (tmp_path / "log").read_text())
            assert (told["control_port"], told["data_port"]) == ports
            for app in ("youtube", "rtp"):  # over TCP and over UDP
                done = subprocess.run(
                    [
                        sys.executable,
                        "-m",
                        "evenlane.cli",
                        "probe",
                        "run",
                        "differential",
                        "--json",
                        "--reflector",
                        f"{told['url']}#sha256={told['pin']}",
                        "--state",
                        str(tmp_path / "probe"),
                        "--app",
                        app,
                        "--pairs",
                        "1",
                        "--segment-s",
                        "0.5",
                        "--pace-mbps",
                        "2",
                    ],
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
                assert done.returncode == 0, done.stderr
        finally:
            server.terminate()
            server.wait(30)
            server.stdout.close()
    assert "Traceback" not in (tmp_path / "log").read_text()

# SPDX-License-Identifier: EUPL-1.2
"""A reflector at work: a pool of both families, full lines, new keys, equal handshakes, many neighbours."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import resource
import selectors
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from probe.protocol.accounts import Limits
from probe.reflector.config import default_limits
from probe.reflector.keys import load_or_make_certificate, prepare_key, use_next_key
from probe.reflector.server import Announcement
from probe.wire.envelope import from_line, open_record
from probe.wire.signing import SeedSigner

_spec = importlib.util.spec_from_file_location("reflector_client", Path(__file__).with_name("reflector_client.py"))
assert _spec is not None
assert _spec.loader is not None
c: Any = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("reflector_client", c)
_spec.loader.exec_module(c)

WISH = {"v": 1, "probe": c.KEY, "nettest": "differential", "pairs": 9, "segment_s": 4, "pace_mbps": 12}


@contextmanager
def program(
    state: Path, *options: str, before: tuple[str, ...] = ()
) -> Iterator[tuple[subprocess.Popen[str], Announcement]]:
    """`evenlane reflector` as its own process, stopped at the end."""
    argv = [sys.executable, "-m", "evenlane.cli", "reflector", "--control-port", "0", "--data-port", "0", "--json"]
    with (state.parent / "log").open("ab") as log:
        process = subprocess.Popen(
            [*before, *argv, "--state", str(state), *options], stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, (state.parent / "log").read_text()
    try:
        yield process, Announcement(**json.loads(line))
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def log_of(state: Path) -> str:
    return (state.parent / "log").read_text()


def needs_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")


# -- pool ---------------------------------------------------------------------------------------------------------


def test_a_pool_of_both_families_gives_each_probe_its_own(tmp_path: Path) -> None:
    needs_ipv6()
    with c.running(tmp_path, hosts=("127.0.0.1", "::1", "127.0.0.2")) as there:
        for host, expected in (("127.0.0.1", ["127.0.0.1", "127.0.0.2"]), ("::1", ["::1"])):
            control = c.Control(there.control_port, host)
            granted = control.post("/v1/sessions", WISH).body
            assert [endpoint["host"] for endpoint in granted["endpoints"]] == expected
            for found in expected:
                family = socket.AF_INET6 if ":" in found else socket.AF_INET
                with socket.socket(family) as sock:
                    sock.connect((found, there.data_port))
            control.close()


def test_both_segments_of_a_pair_are_told_one_endpoint_and_every_endpoint_serves(tmp_path: Path) -> None:
    hosts = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    with c.running(tmp_path, hosts=hosts) as there:
        session, seen = c.Session(there, pairs=40), set()
        for pair in range(1, 41):  # drawn: one of the three is missing after 40 once in four million runs
            endpoint = session.commit(pair, segment_s=0.2).body["endpoint"]
            order = session.post(f"/pairs/{pair}/reveal", {"nonce": session.nonce.hex()}).body
            assert "endpoint" not in order, "one for the pair, told before the coin"
            for ticket, arm in zip(order["tickets"], order["arms"], strict=True):
                name = {"app": c.APP, "neutral": c.NEUTRAL}[arm]
                with c.tls(c.connect(there.data_port, hosts[endpoint]), name) as data:
                    data.sendall(c.hello(ticket))
                    assert c.take(data).bytes
            assert session.finish(pair)["outcome"] == "both"
            seen.add(endpoint)
            if pair >= 4 and len(seen) == 3:
                break
        receipt = session.close()
        assert {pair.endpoint for pair in receipt.pairs} == seen == {0, 1, 2}


# -- the line -----------------------------------------------------------------------------------------------------


def test_a_full_line_says_so_and_offers_what_is_left(tmp_path: Path) -> None:
    limits = Limits(capacity_mbps=60.0, newcomers=0.0)
    with c.running(tmp_path, limits=limits) as there:
        first, second = c.Session(there, pace_mbps=20), c.Session(there, pace_mbps=20)
        assert first.granted.body["most_pace_mbps"] == 20
        assert second.granted.body["most_pace_mbps"] == pytest.approx(60 * 0.6 / 1.06 - 20, abs=0.01)
        found = c.Control(there.control_port).post("/v1/sessions", {**WISH, "pace_mbps": 20})
        assert (found.status, found.body["error"], found.headers["retry-after"]) == (503, "busy", "30")
        assert c.metric(there, "capacity_mbps") == 60
        assert c.metric(there, "booked_mbps") == pytest.approx(60, abs=0.1)
        (ticket, name), _ = first.begin(segment_s=1.0, pace_mbps=20)
        with first.open(ticket, name) as data:
            assert data.recv(1)
            assert c.metric(there, "used_mbps", direction="down") == pytest.approx(21.2)
            assert c.metric(there, "used_mbps", direction="up") == 0
            assert c.take(data).end == "reset"
        assert c.metric(there, "used_mbps") == 0
        assert c.metric(there, "booked_mbps") == pytest.approx(60 - 20 * 1.06 * (1 / 0.6 - 1), abs=0.1)
        first.close()
        second.close()
        assert c.metric(there, "booked_mbps") == 0


def test_who_listens_for_strangers_has_bounds() -> None:
    for hosts in (("0.0.0.0",), ("::",), ("127.0.0.1", "10.1.2.3"), ("reflector.example",), ("9.9.9.9",)):
        limits = default_limits(hosts)
        assert (limits.capacity_mbps, limits.most_pace_mbps, limits.session_bytes) == (500, 50, 2_000_000_000)
    for hosts in (("127.0.0.1", "::1"), ("192.0.2.10", "192.0.2.11"), ("2001:db8::1",), ("localhost",)):
        assert default_limits(hosts) == Limits()


def test_there_are_files_for_every_session(tmp_path: Path) -> None:
    """Under the usual limit of 1024 open files, five hundred sessions would meet refused connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = ("prlimit", f"--nofile=256:{hard}")
    if shutil.which(low[0]) is None:
        pytest.skip("prlimit is not on this machine (Debian package util-linux)")
    with program(tmp_path / "state", before=low) as (process, _):
        lines = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
        soft = next(line.split()[3] for line in lines if line.startswith("Max open files"))
        assert int(soft) == min(hard, 16_384)


def test_too_many_records_close_the_door_and_delivery_opens_it(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with program(state, "--journal-mb", "0.002") as (_, there):
        session = c.Session(there)
        for pair in (1, 2, 3):
            assert session.commit(pair).status == 200
            session.post(f"/pairs/{pair}/reveal", {"nonce": session.nonce.hex()})
            session.finish(pair)

        def refused() -> bool:
            found = c.Control(there.control_port).post("/v1/sessions", WISH)
            return bool(found.status == 503 and "records" in found.body["detail"])

        assert c.wait_for(refused)
        assert session.commit(4).status == 200, "a session that is open goes on"
        assert len(session.close().pairs) == 4
        assert c.metric(there, "journal_bytes") > 2000
    assert log_of(state).count("no more sessions") == 1
    with program(state) as (_, there):
        c.Session(there).close()


# -- keys and certificates ----------------------------------------------------------------------------------------


def test_a_new_key_leaves_open_sessions_theirs(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with program(state) as (process, there):
        old = c.Session(there)
        old.begin()
        before = prepare_key(state)
        assert prepare_key(state) == before, "asking twice makes one key"
        assert use_next_key(state) == before
        assert not (state / "key.next").exists()
        process.send_signal(signal.SIGHUP)
        assert c.wait_for(lambda: before in log_of(state))
        new = c.Session(there)
        assert (old.granted.body["reflector"], new.granted.body["reflector"]) == (there.key, before)
        assert c.Control(there.control_port).ask("GET", "/healthz").body["key"] == before
        new.begin()
        old.finish()
        old.begin(2)
        for session, key in ((old, there.key), (new, before)):
            body = session.post("/close", {"reason": "done"}).body
            assert body["key"] == key
            assert from_line(json.dumps(body).encode()).is_valid()
    lines = (state / "started.jsonl").read_bytes().splitlines()
    signed = {(open_record(from_line(line)).session, from_line(line).key_id) for line in lines}  # type: ignore[union-attr]
    assert signed == {(old.id, there.key), (new.id, before)}
    with program(state) as (_, again):
        assert again.key == before


def test_both_keys_are_delivered_to_a_collector_that_trusts_both(tmp_path: Path) -> None:
    state, config = tmp_path / "state", tmp_path / "collector.toml"
    with program(state) as (_, there):
        c.Session(there).one_pair(segment_s=0.2)
    new = use_next_key(state)
    config.write_text(f"reflectors = {json.dumps([there.key, new])}\n")
    argv = [sys.executable, "-m", "evenlane.cli", "collector", "--config", str(config), "--port", "0", "--json"]
    collector = subprocess.Popen([*argv, "--data", str(tmp_path / "data")], stdout=subprocess.PIPE, text=True)
    assert collector.stdout is not None
    try:
        url = json.loads(collector.stdout.readline())["url"]
        with program(state, "--collector", url) as (_, there):
            assert there.key == new
            c.Session(there).one_pair(segment_s=0.2)
            assert c.wait_for(lambda: c.metric(there, "delivered_total", status="accepted") == 4, 15)
    finally:
        collector.terminate()
        collector.wait(20)
        collector.stdout.close()


def rotate(state: Path, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "evenlane.cli", "reflector", "--state", str(state), *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30)


def test_the_command_that_rotates_the_key(tmp_path: Path) -> None:
    found = rotate(tmp_path / "nothing", "--rotate-key", "now")
    assert (found.returncode, found.stdout) == (3, "")
    assert "start one there first" in found.stderr
    first = json.loads(rotate(tmp_path, "--rotate-key", "prepare", "--json").stdout)
    second = json.loads(rotate(tmp_path, "--rotate-key", "now", "--json").stdout)
    assert first == {"key": second["key"], "state": "prepare"}
    text = rotate(tmp_path, "--rotate-key", "prepare")
    assert (text.returncode, text.stdout.split()[0]) == (0, prepare_key(tmp_path))
    assert "collector's configuration" in text.stdout
    (tmp_path / "key.next").write_text("torn")
    found = rotate(tmp_path, "--rotate-key", "now")
    assert found.returncode == 3
    assert "move it away" in found.stderr
    assert SeedSigner(bytes.fromhex((tmp_path / "key").read_text())).key_id == first["key"], "the key in use stays"


@pytest.mark.parametrize("name", ["key", "control.pem", "data.pem", "network.key"])
@pytest.mark.parametrize("content", [b"", b"abcd", b"\xff\xfe\x00"])
def test_torn_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    found = rotate(tmp_path, "--control-port", "0", "--data-port", "0")
    assert found.returncode == 3
    assert found.stderr.count("\n") == 1
    assert str(tmp_path / name) in found.stderr
    assert "move it away" in found.stderr


def test_a_new_data_certificate_waits_until_nobody_is_in_the_way(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with program(state) as (process, there):
        session = c.Session(there)
        told = session.granted.body["data_certificate"]
        tickets = session.begin(segment_s=0.3)
        seen = [session.down(*tickets[0])]
        (state / "data.pem").unlink()
        process.send_signal(signal.SIGHUP)
        time.sleep(1.3)
        for alpn in (("h2",), ("http/1.1",), ("never/asked",), ()):
            assert served(there, alpn) == told, "also a context that is made only now"
        seen.append(session.down(*tickets[1]))
        assert all(got.bytes and got.end == "reset" for got in seen)
        other = c.Session(there)
        assert other.granted.body["data_certificate"] == told
        session.finish()
        assert {segment.end for segment in session.close().pairs[0].segments} == {"complete"}
        other.close()
        assert c.wait_for(lambda: "new certificate" in log_of(state))
        fresh = c.Session(there)
        assert fresh.granted.body["data_certificate"] == served(there, ("h2",)) == served(there, ()) != told
        _, segments = fresh.one_pair(segment_s=0.2)
        assert [segment.end for segment in segments] == ["complete", "complete"]


def served(there: Announcement, alpn: tuple[str, ...]) -> str:
    with c.tls(c.connect(there.data_port), c.APP, alpn) as sock:
        return hashlib.sha256(sock.getpeercert(binary_form=True)).hexdigest()


def test_a_new_control_certificate_and_one_that_is_torn(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with program(state) as (process, there):
        session = c.Session(there)
        (state / "control.pem").write_text("torn")
        process.send_signal(signal.SIGHUP)
        assert c.wait_for(lambda: "the old one stays in use" in log_of(state))
        assert pin_of(there) == there.pin
        (state / "control.pem").unlink()
        fresh = load_or_make_certificate(state / "control.pem", "reflector.invalid")
        process.send_signal(signal.SIGHUP)
        assert c.wait_for(lambda: pin_of(there) == fresh.digest)
        session.begin()
        session.close()


def pin_of(there: Announcement) -> str:
    with c.tls(c.connect(there.control_port), None, ()) as sock:
        return hashlib.sha256(sock.getpeercert(binary_form=True)).hexdigest()


# -- equal handshakes ---------------------------------------------------------------------------------------------


def flight_bytes(port: int, name: str, alpn: tuple[str, ...]) -> tuple[int, int]:
    """Bytes of the ClientHello and of everything that the server sends in its handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    said = received = 0
    with c.connect(port) as sock:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                if waiting := outgoing.read():
                    said = said or len(waiting)
                    sock.sendall(waiting)
                piece = sock.recv(65536)
                assert piece
                received += len(piece)
                incoming.write(piece)
        sock.sendall(outgoing.read())
        sock.settimeout(0.02)
        with suppress(TimeoutError):
            received += len(sock.recv(65536))  # a session ticket would come here
    return said, received


def test_the_servers_handshake_has_one_length_for_every_name(tmp_path: Path) -> None:
    """Both arms of a pair: names of equal length, one list of protocols. No name, and no signature, shows in bytes."""
    names = ["video.example.net", "meadow.example.or", "a.bc", "x" * 60 + "." + "y" * 60 + ".example"]
    with c.running(tmp_path) as there:
        for alpn in (("h2", "http/1.1"), ("http/1.1",)):
            flights = {name: {flight_bytes(there.data_port, name, alpn) for _ in range(25)} for name in names}
            assert flights[names[0]] == flights[names[1]]
            assert len(flights[names[0]]) == 1, "an elliptic signature would vary by a byte or two"
            assert len({received for found in flights.values() for _, received in found}) == 1


# -- neighbours ---------------------------------------------------------------------------------------------------


@pytest.mark.serial
def test_two_hundred_neighbours_come_at_once(tmp_path: Path) -> None:
    """One address, real sockets: every session is granted, and no handshake of theirs is refused."""
    count = 200
    with c.running(tmp_path) as there:
        sessions = [c.Session(there) for _ in range(count)]
        begun = [session.begin(segment_s=0.5, pace_mbps=0.5)[0] for session in sessions]
        selector, waiting = selectors.DefaultSelector(), {}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        for ticket, name in begun:
            sock = c.connect(there.data_port)  # all of them first, then all hellos: 200 handshakes in progress
            data = context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
            waiting[data] = ticket
        for data, ticket in waiting.items():
            data.do_handshake()
            data.sendall(c.hello(ticket))
            data.setblocking(False)
            selector.register(data, selectors.EVENT_READ)
        end = time.monotonic() + 10
        while selector.get_map() and time.monotonic() < end:
            for key, _ in selector.select(0.1):
                try:
                    if not socket.socket.recv_into(key.fileobj, bytearray(65536)):  # type: ignore[arg-type]
                        selector.unregister(key.fileobj)
                except ConnectionResetError:
                    selector.unregister(key.fileobj)
        for session, data in zip(sessions, waiting, strict=True):
            data.close()
            segment = session.finish()["segments"][0]
            assert segment["end"] == "complete"
            assert segment["bytes"] > 10_000
            session.close()
        assert len(c.receipts_in(tmp_path)) == len(c.started_in(tmp_path)) == count


# -- short of CPU -------------------------------------------------------------------------------------------------


@pytest.mark.lab
def test_a_loop_that_is_short_of_cpu_says_so_in_the_receipt(tmp_path: Path) -> None:
    """Same core as programs that never sleep, at the lowest priority: what saturation is for."""
    ours = os.sched_getaffinity(0)
    one = {min(ours)}
    os.sched_setaffinity(0, one)  # what is started now inherits it
    try:
        running = program(tmp_path / "state", before=("nice", "-n", "19"))
        _, there = running.__enter__()
    finally:
        os.sched_setaffinity(0, ours)
    hogs: list[subprocess.Popen[bytes]] = []
    try:
        session = c.Session(there)
        calm = [session.down(*found) for found in session.begin(1, segment_s=1.0, pace_mbps=20)]
        session.finish(1)
        for _ in range(3):
            hogs.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            os.sched_setaffinity(hogs[-1].pid, one)
        time.sleep(0.3)
        pressed = [session.down(*found) for found in session.begin(2, segment_s=2.0, pace_mbps=20)]
        for hog in hogs:
            hog.kill()
        session.finish(2)
        receipt = session.close()
        assert [pair.saturated for pair in receipt.pairs] == [False, True], (calm, pressed)
        assert c.metric(there, "segments_saturated_total") >= 1
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait(10)
        running.__exit__(None, None, None)

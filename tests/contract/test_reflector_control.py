# SPDX-License-Identifier: EUPL-1.2
"""The control port, the records and the program itself, over real sockets and real processes."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe.protocol.accounts import Limits
from probe.reflector.data import DataPlane
from probe.reflector.server import Announcement, Config, Reflector, ReflectorError
from probe.wire.envelope import from_line, open_record
from probe.wire.scrub import find_address

_spec = importlib.util.spec_from_file_location("reflector_client", Path(__file__).with_name("reflector_client.py"))
assert _spec is not None
assert _spec.loader is not None
c: Any = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("reflector_client", c)
_spec.loader.exec_module(c)

TABLE = (
    "prefix,asn,country,operator,access\n127.0.0.0/8,64500,nl,Meadow Mobile,mobile\n127.0.0.1/32,64501,BE,Lane,fixed\n"
)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def there(state: Path) -> Any:
    table = state.parent / "table.csv"
    table.write_text(TABLE)
    with c.running(state, asn_tables=(table,)) as announcement:
        yield announcement


# -- sessions -----------------------------------------------------------------------------------------------------


def test_a_session_leaves_records_that_verify_and_name_no_address(there: Announcement, state: Path) -> None:
    session = c.Session(there)
    for pair in (1, 2):
        for ticket, name in session.begin(pair, segment_s=0.2):
            session.down(ticket, name, address="127.0.0.1")
        assert session.finish(pair)["outcome"] == "both"
    receipt = session.close()
    assert receipt == c.receipts_in(state)[-1]
    assert (receipt.session, receipt.end, receipt.probe) == (session.id, "closed", c.KEY)
    origin = receipt.origin
    assert (origin.asn, origin.operator, origin.country, origin.access) == (64501, "Lane", "BE", "fixed")
    assert (origin.family, origin.edge) == (4, True)
    assert re.fullmatch(r"[0-9a-f]{32}", origin.network)
    started = [record for record in c.started_in(state) if record.session == session.id]
    assert [record.pair for record in started] == [1, 2]
    assert [record.origin.edge for record in started] == [None, True]
    for path in state.iterdir():
        if path.suffix == ".jsonl":
            for line in path.read_bytes().splitlines():
                assert find_address(from_line(line).payload.decode()) is None


def test_the_origin_is_that_of_the_data_connection(there: Announcement) -> None:
    session = c.Session(there)
    (ticket, name), _ = session.begin(segment_s=0.2)
    sock = socket.socket()
    sock.bind(("127.0.0.9", 0))
    sock.connect(("127.0.0.1", there.data_port))
    with c.tls(sock, name) as data:
        data.sendall(c.hello(ticket, address="192.168.1.7"))
        c.take(data)
    session.finish()
    origin = session.close().origin
    assert (origin.asn, origin.operator, origin.country, origin.access) == (64500, "Meadow Mobile", "NL", "mobile")
    assert origin.edge is False


def test_a_lost_answer_can_be_asked_for_again(there: Announcement, state: Path) -> None:
    session = c.Session(there)
    before = len(c.started_in(state))
    session.nonce = bytes(32)
    body = {
        "pair": 1,
        "commit": "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925",
        "kind": "test",
        "app": "video",
        "profile": "p",
        "direction": "down",
        "pace_mbps": 1,
        "segment_s": 0.2,
        "app_name": c.APP,
        "neutral_name": c.NEUTRAL,
    }
    answers = [session.post("/pairs", body).body for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert len(c.started_in(state)) == before + 1
    orders = [session.post("/pairs/1/reveal", {"nonce": "00" * 32}).body for _ in range(2)]
    assert orders[0] == orders[1]
    assert session.finish() == session.finish()
    first = session.post("/close", {"reason": "done"}).body
    again = c.Control(there.control_port).post(f"/v1/sessions/{session.id}/close", {"reason": "done"}, session.token)
    assert again.body == first


def test_endpoints_are_the_hosts_only_for_whoever_came_straight(there: Announcement) -> None:
    def endpoints(headers: dict[str, str]) -> list[dict[str, Any]]:
        control = c.Control(there.control_port)
        body = {"v": 1, "probe": c.KEY, "nettest": "x", "pairs": 1, "segment_s": 1, "pace_mbps": 1}
        found = control.ask("POST", "/v1/sessions", json.dumps(body).encode(), headers)
        control.close()
        return list(found.body["endpoints"])

    port = there.data_port
    assert endpoints({}) == [{"host": "127.0.0.1", "port": port}]
    for host in ("relay.example", "127.0.0.9:1", "127.0.0.1", f"127.0.0.1:{there.control_port + 1}", "]["):
        assert endpoints({"Host": host}) == [{"host": None, "port": port}]


def test_a_pool_of_hosts(tmp_path: Path) -> None:
    with c.running(tmp_path, hosts=("127.0.0.1", "127.0.0.2", "127.0.0.3")) as there:
        session = c.Session(there, pairs=40)
        hosts = [endpoint["host"] for endpoint in session.granted.body["endpoints"]]
        assert hosts == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
        chosen = set()
        for pair in range(1, 31):
            chosen.add(session.commit(pair).body["endpoint"])
            session.post(f"/pairs/{pair}/reveal", {"nonce": session.nonce.hex()})
            session.finish(pair)
        assert chosen == {0, 1, 2}
        for host in hosts:
            assert c.Control(there.control_port, host).ask("GET", "/v1/ping").status == 204
            with c.tls(c.connect(there.data_port, host), "x.example") as sock:
                assert sock.version() == "TLSv1.3"


def test_wildcards_are_told_as_the_host_of_the_url(tmp_path: Path) -> None:
    with c.running(tmp_path, hosts=("0.0.0.0",)) as there:
        assert there.url.startswith("https://127.0.0.1:")
        session = c.Session(there)
        assert session.granted.body["endpoints"] == [{"host": None, "port": there.data_port}]
        seen, _ = session.one_pair(segment_s=0.2)
        assert all(got.bytes for got in seen)


def test_ipv6(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with c.running(tmp_path, hosts=("::1",)) as there:
        assert there.url.startswith("https://[::1]:")
        control = c.Control(there.control_port, "::1")
        body = {"v": 1, "probe": c.KEY, "nettest": "x", "pairs": 1, "segment_s": 1, "pace_mbps": 1}
        granted = control.post("/v1/sessions", body)
        assert granted.body["endpoints"] == [{"host": "::1", "port": there.data_port}]
        closed = control.post(
            f"/v1/sessions/{granted.body['session']}/close", {"reason": "done"}, granted.body["token"]
        )
        record = open_record(from_line(json.dumps(closed.body).encode()))
        assert record.origin.family == 6  # type: ignore[union-attr]


def test_silence_ends_a_session_with_a_receipt(tmp_path: Path) -> None:
    with c.running(tmp_path, limits=Limits(idle_timeout_s=1.0)) as there:
        session = c.Session(there)
        session.begin()
        assert c.wait_for(lambda: c.receipts_in(tmp_path), 5)
        (receipt,) = c.receipts_in(tmp_path)
        assert (receipt.end, receipt.pairs[0].outcome) == ("timed_out", "unfinished")
        answer = session.post("/pairs/1/finish", {"segments": []})
        assert (answer.status, answer.body["error"]) == (409, "session_closed")
        again = session.post("/close", {"reason": "failed"})
        assert open_record(from_line(json.dumps(again.body).encode())) == receipt


def test_stopping_ends_open_sessions_with_a_receipt(tmp_path: Path) -> None:
    with c.running(tmp_path) as there:
        session = c.Session(there)
        (ticket, name), _ = session.begin(segment_s=4)
        data = session.open(ticket, name)
        data.recv(10)
    (receipt,) = c.receipts_in(tmp_path)
    assert (receipt.end, receipt.pairs[0].outcome) == ("stopped", "unfinished")
    assert receipt.pairs[0].segments[0].end == "control_lost"
    assert c.take(data).end == "reset"
    data.close()


def test_quota_and_room(tmp_path: Path) -> None:
    with c.running(tmp_path, limits=Limits(sessions=3, sessions_per_prefix=2)) as there:
        first = c.Session(there)
        c.Session(there)
        body = {"v": 1, "probe": c.KEY, "nettest": "x", "pairs": 1, "segment_s": 1, "pace_mbps": 1}
        found = c.Control(there.control_port).post("/v1/sessions", body)
        assert (found.status, found.body["error"], found.headers["retry-after"]) == (429, "quota", "30")
        first.close()
        assert c.Control(there.control_port).post("/v1/sessions", body).status == 201


def test_metrics_add_up(tmp_path: Path) -> None:
    with c.running(tmp_path) as there:
        c.Session(there).one_pair(segment_s=0.2)
        session = c.Session(there)
        session.begin()
        with c.connect(there.data_port) as sock:
            sock.sendall(b"nonsense")
            c.is_closed_by_peer(sock, 2)

        def add_up() -> bool:
            m = lambda name: c.metric(there, name)  # noqa: E731
            return bool(
                m("sessions_started_total") == m("sessions_ended_total") + m("sessions_open") == 2
                and m("pairs_started_total") == m("pairs_ended_total") + m("pairs_open") == 2
                and m("data_connections_accepted_total")
                == m("data_connections_ended_total") + m("data_connections_open")
                == 3
                and m("data_bytes_total") > 100_000
            )

        assert c.wait_for(add_up)
        text = c.Control(there.control_port).ask("GET", "/metrics").body.decode()
        assert find_address(text) is None
        assert session.id not in text
        assert c.KEY not in text
        health = c.Control(there.control_port).ask("GET", "/healthz").body
        assert (health["status"], health["sessions_open"], health["key"]) == ("ok", 1, there.key)


# -- hostile input ------------------------------------------------------------------------------------------------


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    path=st.sampled_from(["/v1/sessions", "/pairs", "/pairs/1/reveal", "/pairs/1/finish", "/close", "/nothing"]),
    body=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    ).map(lambda value: json.dumps(value).encode()),
    encoding=st.sampled_from([None, "gzip", "deflate", "nonsense"]),
)
def test_malformed_bodies_get_a_reason(there: Announcement, path: str, body: bytes, encoding: str | None) -> None:
    session = _shared_session(there)
    full = path if path.startswith("/v1") else f"/v1/sessions/{session.id}{path}"
    headers = {"Authorization": f"Bearer {session.token}", **({"Content-Encoding": encoding} if encoding else {})}
    answer = session.control.ask("POST", full, body, headers)
    assert answer.status == (404 if path == "/nothing" else 400)
    assert re.fullmatch(r"[a-z0-9_]+", answer.body["error"])


_SHARED: dict[str, Any] = {}


def _shared_session(there: Announcement) -> Any:
    if there.url not in _SHARED:
        _SHARED[there.url] = c.Session(there)
    return _SHARED[there.url]


@pytest.mark.parametrize("declared", [True, False])
def test_large_bodies_are_refused_early(there: Announcement, declared: bool) -> None:
    control = c.Control(there.control_port)
    body = b"[" + b" " * 70_000 + b"]"
    if declared:
        answer = control.ask("POST", "/v1/sessions", body)
    else:
        control.http.request("POST", "/v1/sessions", body=iter([body]), encode_chunked=True)
        response = control.http.getresponse()
        answer = c.Answer(response.status, json.loads(response.read()), {})
    assert (answer.status, answer.body["error"]) == (413, "too_large")


def test_a_body_that_does_not_come_is_waited_for_five_seconds(there: Announcement) -> None:
    with c.tls(c.connect(there.control_port), None, ()) as sock:
        sock.sendall(b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        start = time.monotonic()
        first = sock.recv(4096)
        assert b" 408 " in first.split(b"\r\n")[0]
        assert 4 < time.monotonic() - start < 7


def test_silent_control_connections_are_dropped(there: Announcement, monkeypatch: pytest.MonkeyPatch) -> None:
    from probe.reflector import control

    monkeypatch.setattr(control, "FIRST_REQUEST_S", 0.5)
    with c.tls(c.connect(there.control_port), None, ()) as sock:
        start = time.monotonic()
        sock.sendall(b"GET /v1/ping HTTP/1.1\r\nX-Slow:")
        assert c.take(sock, 5).bytes == 0
        assert time.monotonic() - start < 3
    with c.tls(c.connect(there.control_port), None, ()) as sock:
        sock.sendall(b"GET /v1/ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 204 " in sock.recv(8192)
        time.sleep(0.8)
        sock.sendall(b"GET /v1/ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 204 " in sock.recv(8192)


def test_control_speaks_tls_1_2_and_later_and_http_1_1(there: Announcement) -> None:
    with c.tls(c.connect(there.control_port), None, ("h2", "http/1.1")) as sock:
        assert sock.selected_alpn_protocol() == "http/1.1"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with context.wrap_socket(c.connect(there.control_port)) as sock:
        assert sock.version() == "TLSv1.2"
        import hashlib

        assert hashlib.sha256(sock.getpeercert(binary_form=True)).hexdigest() == there.pin


# -- the program --------------------------------------------------------------------------------------------------

_RUN = """
import argparse, sys
from evenlane.commands import reflector
parser = argparse.ArgumentParser()
reflector.register(parser.add_subparsers(required=True))
args = parser.parse_args(["reflector", *sys.argv[1:]])
try:
    sys.exit(args.func(args))
except Exception as error:
    if type(error).__name__ != "CannotRun":
        raise
    print(error, file=sys.stderr)
    sys.exit(3)
"""


def program(*args: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def start(state: Path, *args: str) -> tuple[subprocess.Popen[str], Announcement]:
    process = program("--json", "--control-port", "0", "--data-port", "0", "--state", str(state), *args)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()
    return process, Announcement(**json.loads(line))


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str]:
    process.send_signal(number)
    _, errors = process.communicate(timeout=15)
    return process.returncode, errors


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_defect_in_the_data_port_stops_the_program_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reflector that answers on its control port and measures nothing would look like blocking."""

    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    def knock(there: Announcement) -> None:
        monkeypatch.setattr(DataPlane, "_accept", broken)
        with contextlib.suppress(ConnectionResetError):  # the port that breaks may reset whoever broke it
            c.connect(there.data_port).close()

    config = Config(control_port=0, data_port=0, state=tmp_path)
    with pytest.raises(ReflectorError, match="data port stopped"):
        await Reflector(config).run(knock)


def test_nonsense_gets_a_reason_and_leaves_no_log(tmp_path: Path) -> None:
    process, there = start(tmp_path, "--verbose")
    head = b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\n"
    for raw in (
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        head + b"A: b\r\n" * 100 + b"\r\n",
        head + b"Content-Length: -5\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):
        with c.tls(c.connect(there.control_port), None, ()) as sock:
            sock.sendall(raw)
            answer = sock.recv(4096)
            assert b" 400 " in answer.split(b"\r\n")[0]
            assert b'"bad_http"' in answer
            assert b"aiohttp" not in answer
    for raw in (head + b"Content-Length: 50\r\n\r\n{", head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n"):
        for leave in (c.reset, lambda sock: sock.close()):
            sock = c.tls(c.connect(there.control_port), None, ())
            sock.sendall(raw)
            time.sleep(0.05)
            leave(sock)
    for port in (there.control_port, there.data_port):
        for raw in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"):
            sock = c.connect(port)
            sock.sendall(raw)
            c.reset(sock)
    time.sleep(0.3)
    assert c.Control(there.control_port).ask("GET", "/v1/ping").status == 204
    assert end(process) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_gracefully(tmp_path: Path, number: int) -> None:
    process, there = start(tmp_path, "--verbose")
    session = c.Session(there)
    session.begin()
    code, errors = end(process, number)
    assert code == 0
    assert errors == ""
    assert [receipt.end for receipt in c.receipts_in(tmp_path)] == ["stopped"]


def test_the_start_line_is_a_url_with_a_pin(tmp_path: Path) -> None:
    process = program("--control-port", "0", "--data-port", "0", "--state", str(tmp_path))
    assert process.stdout is not None
    line = process.stdout.readline()
    assert end(process)[0] == 0
    assert re.fullmatch(r"https://127\.0\.0\.1:\d+#sha256=[0-9a-f]{64}\n", line)


def test_started_is_on_disk_before_the_nonce_leaves(tmp_path: Path) -> None:
    """Killed at once when the nonce arrives, six times: not one pair is unknown."""
    known = []
    process, there = start(tmp_path)
    for round_ in range(6):
        session = c.Session(there)
        nonce = session.commit().body["nonce"]
        process.kill()
        process.wait()
        known.append(nonce)
        assert [record.reflector_nonce for record in c.started_in(tmp_path)] == known
        if round_ % 2:  # a line torn in the middle of a write
            with (tmp_path / "started.jsonl").open("ab") as file:
                file.write(b'{"evenlane":1,"key":"torn')
        process, there = start(tmp_path)
    session = c.Session(there)
    session.commit()
    assert end(process)[0] == 0
    assert len(c.started_in(tmp_path)) == 7
    assert len(c.receipts_in(tmp_path)) == 1


def test_a_restart_keeps_key_and_pin(tmp_path: Path) -> None:
    process, first = start(tmp_path)
    assert end(process)[0] == 0
    process, second = start(tmp_path)
    assert end(process)[0] == 0
    assert (first.key, first.pin) == (second.key, second.pin)
    for path in tmp_path.iterdir():
        if path.name != "lock":
            assert path.stat().st_mode & 0o077 == 0, path


def refused(*args: str, **more: Any) -> str:
    process = program(*args, **more)
    out, errors = process.communicate(timeout=20)
    assert process.returncode == 3, (out, errors)
    assert out == ""
    assert errors.count("\n") == 1, errors
    return errors


def test_bad_tables_are_one_sentence(tmp_path: Path) -> None:
    free = ("--control-port", "0", "--data-port", "0", "--state", str(tmp_path / "state"))
    table = tmp_path / "table.csv"
    for content, words in (
        ("10.0.0.0/8,notanumber,NL,x,fixed\n", "line 1"),
        ("prefix,asn,country,operator,access\n10.0.0.1/8,1,NL,x,fixed\n", "line 2"),
        ("10.0.0.0/8,1,NLD,x,fixed\n", "country"),
        ("10.0.0.0/8,1,NL,x,wired\n", "access"),
        ("# nothing\n", "no prefix"),
        ("\xff\xfe", "neither"),
    ):
        table.write_bytes(content.encode("latin-1"))
        assert words in refused(*free, "--asn-db", str(table))
    assert "cannot be read" in refused(*free, "--asn-db", str(tmp_path / "missing.csv"))
    broken = tmp_path / "broken.mmdb"
    broken.write_bytes(b"\x00" * 100)
    assert "not a MaxMind file" in refused(*free, "--asn-db", str(broken))


def test_taken_ports_foreign_hosts_and_bad_state_are_one_sentence(tmp_path: Path) -> None:
    free = ("--control-port", "0", "--data-port", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "taken" in refused("--control-port", port, "--data-port", "0", "--state", str(tmp_path / "a"))
        assert "taken" in refused("--control-port", "0", "--data-port", port, "--state", str(tmp_path / "a"))
    assert "192.0.2.1" in refused(*free, "--host", "192.0.2.1", "--state", str(tmp_path / "a"))
    assert "not an address" in refused(*free, "--host", "no.such.host.invalid", "--state", str(tmp_path / "a"))
    (tmp_path / "file").write_text("")
    assert "--state" in refused(*free, "--state", str(tmp_path / "file"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "key").write_text("nonsense")
    assert "key file" in refused(*free, "--state", str(tmp_path / "b"))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "data.pem").write_text("nonsense")
    assert "certificate" in refused(*free, "--state", str(tmp_path / "d"))
    process, _ = start(tmp_path / "c")
    assert "another reflector" in refused(*free, "--state", str(tmp_path / "c"))
    end(process)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every port")
def test_privileged_ports_are_one_sentence(tmp_path: Path) -> None:
    limit = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if not limit.exists() or int(limit.read_text()) <= 443:
        pytest.skip("this machine lets everybody use port 443")
    assert "rights" in refused("--control-port", "443", "--data-port", "0", "--state", str(tmp_path / "a"))

# SPDX-License-Identifier: EUPL-1.2
"""The data port over real sockets: pacing, bins, ends, TLS, and what strangers get."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from probe.protocol.accounts import Limits
from probe.reflector.data import DataLimits
from probe.reflector.server import Announcement
from probe.wire.rate import rate_mbps

_spec = importlib.util.spec_from_file_location("reflector_client", Path(__file__).with_name("reflector_client.py"))
assert _spec is not None
assert _spec.loader is not None
c: Any = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("reflector_client", c)
_spec.loader.exec_module(c)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with c.running(tmp_path_factory.mktemp("state")) as announcement:
        yield announcement


# -- a fair segment -----------------------------------------------------------------------------------------------


@c.undisturbed
def test_down_is_paced_counted_and_ends_with_a_reset(there: Announcement) -> None:
    pace, seconds = 8.0, 1.0
    seen, segments = c.Session(there).one_pair(pace_mbps=pace, segment_s=seconds)
    for got, segment in zip(seen, segments, strict=True):
        assert got.end == "reset"
        assert got.seconds == pytest.approx(seconds, abs=0.2)
        assert (segment.end, segment.paced, segment.congestion) == ("complete", True, segment.congestion)
        assert segment.congestion in {"cubic", "reno"}
        assert rate_mbps(segment, seconds) == pytest.approx(pace, rel=0.05)
        # The kernel's count has TLS in it, and what was on its way at the reset is missing from one or the other.
        assert segment.bytes == pytest.approx(got.bytes, rel=0.03)
        assert segment.duration_ms == pytest.approx(1000, abs=60)
        assert sum(segment.bins_bytes) == segment.bytes
        assert len(segment.bins_ms) == pytest.approx(10, abs=1)
        assert all(a < b for a, b in zip(segment.bins_ms, segment.bins_ms[1:], strict=False))
        assert segment.bins_ms[-1] == segment.duration_ms
        assert segment.rtt_ms is not None
        assert segment.rtt_min_ms is not None
        assert (segment.retransmits, segment.rwnd_limited_ms) == (0, 0)
    assert {segment.name_seen for segment in segments} == {c.APP, c.NEUTRAL}


@c.undisturbed
def test_up_is_counted_by_the_reflector_and_ended_by_its_clock(there: Announcement) -> None:
    session = c.Session(there)
    seen = [session.up(ticket, name, 6.0, 3.0) for ticket, name in session.begin(direction="up", segment_s=1.0)]
    session.finish()
    for got, segment in zip(seen, session.close().pairs[0].segments, strict=True):
        assert got.end == "reset"
        assert 0.99 <= got.seconds < 1.4
        assert segment.end == "complete"
        assert rate_mbps(segment, 1.0) == pytest.approx(6.0, rel=0.06)
        assert segment.bytes == pytest.approx(got.bytes, rel=0.06)
        assert (segment.paced, segment.congestion, segment.retransmits) == (None, None, None)


@c.undisturbed
def test_up_waits_with_its_clock_for_the_first_byte(there: Announcement) -> None:
    session = c.Session(there)
    (ticket, name), _ = session.begin(direction="up", segment_s=0.5)
    with session.open(ticket, name, "up") as sock:
        time.sleep(0.3)
        start = time.monotonic()
        got = c.give(sock, 4.0, 3.0)
        assert time.monotonic() - start == pytest.approx(0.5, abs=0.15)
    assert got.end == "reset"
    segment = session.finish()["segments"][0]
    assert segment["end"] == "complete"
    assert segment["duration_ms"] == pytest.approx(500, abs=60)
    assert segment["bytes"] == pytest.approx(got.bytes, rel=0.08)
    session.control.close()


def test_payload_in_the_hellos_own_record_counts(there: Announcement) -> None:
    session = c.Session(there)
    (ticket, name), _ = session.begin(direction="up", segment_s=0.3)
    with c.tls(c.connect(there.data_port), name) as sock:
        sock.sendall(c.hello(ticket, "up") + b"x" * 15_000)  # one TLS record
        assert c.take(sock).end == "reset"
    segment = session.finish()["segments"][0]
    assert segment["end"] == "complete"
    assert 15_000 <= segment["bytes"] < 15_100


def test_a_silent_sender_is_complete_with_nothing(there: Announcement) -> None:
    session = c.Session(there)
    (ticket, name), _ = session.begin(direction="up", segment_s=0.3)
    with session.open(ticket, name, "up") as sock:
        assert c.take(sock).end == "reset"
    segment = session.finish()["segments"][0]
    assert (segment["end"], segment["bytes"]) == ("complete", 0)


def test_a_reader_that_does_not_read_is_seen(there: Announcement) -> None:
    session = c.Session(there)
    (ticket, name), _ = session.begin(segment_s=1.0, pace_mbps=100)
    sock = c.tls(_small_buffer(there.data_port), name)
    sock.sendall(c.hello(ticket))
    time.sleep(1.2)
    segment = session.finish()["segments"][0]
    sock.close()
    assert segment["end"] == "complete"
    assert segment["rwnd_limited_ms"] > 500
    assert rate_mbps_of(segment, 1.0) < 1.0


def _small_buffer(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.settimeout(10)
    sock.connect(("127.0.0.1", port))
    return sock


def rate_mbps_of(segment: dict[str, Any], seconds: float) -> float:
    from probe.wire.codec import from_dict
    from probe.wire.records import Segment

    found = rate_mbps(from_dict(Segment, segment), seconds)
    assert found is not None
    return found


def test_the_reset_leaves_nothing_behind(there: Announcement) -> None:
    """What a policed or slow path has not taken by the clock's end is thrown away, not drained into the next arm."""
    session = c.Session(there)
    (ticket, name), _ = session.begin(segment_s=0.5, pace_mbps=100)
    sock = c.tls(_small_buffer(there.data_port), name)
    sock.sendall(c.hello(ticket))
    time.sleep(0.8)  # it ended meanwhile, with our buffer full
    got = c.take(sock)
    assert got.end == "reset"
    assert got.bytes < 64 * 1024
    assert session.finish()["segments"][0]["end"] == "complete"


@c.undisturbed
def test_unlimited_pace_is_fast(there: Announcement) -> None:
    session = c.Session(there, pace_mbps=0)
    assert session.granted.body["most_pace_mbps"] == 0
    _, segments = session.one_pair(pace_mbps=0, segment_s=0.5)
    for segment in segments:
        assert segment.paced is False
        rate = rate_mbps(segment, 0.5)
        assert rate is not None
        assert rate > 300


# -- other ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize(("how", "end"), [("reset", "reset"), ("fin", "aborted"), ("half", "aborted")])
def test_a_peer_that_ends_early(there: Announcement, direction: str, how: str, end: str) -> None:
    session = c.Session(there)
    (ticket, name), second = session.begin(direction=direction, segment_s=1.0)
    sock = session.open(ticket, name, direction)
    if direction == "down":
        sock.recv(100)
    else:
        sock.sendall(b"x" * 100)
    time.sleep(0.2)
    if how == "reset":
        c.reset(sock)
    elif how == "fin":
        with contextlib.suppress(OSError):
            sock.unwrap()
        sock.close()
    else:
        socket.socket.shutdown(sock, socket.SHUT_WR)
    time.sleep(0.3)
    got = session.up(*second, 4.0, 3.0) if direction == "up" else session.down(*second)
    assert got.end == "reset"
    result = session.finish()
    assert [segment["end"] for segment in result["segments"]] == [end, "complete"]
    assert result["outcome"] == "one_failed"
    assert 100 <= result["segments"][0]["duration_ms"] < 700
    sock.close()


def test_absent_and_mismatch(there: Announcement) -> None:
    session = c.Session(there)
    (_, _), (ticket, _) = session.begin()
    with c.tls(c.connect(there.data_port), "quite.another.example") as sock:
        sock.sendall(c.hello(ticket))
        assert c.take(sock) == c.Got(0, pytest.approx(0, abs=1), "reset", [])
    result = session.finish()
    assert [segment["end"] for segment in result["segments"]] == ["absent", "mismatch"]
    assert result["segments"][1]["name_seen"] == "quite.another.example"
    assert result["outcome"] == "both_failed"


def test_finishing_early_ends_the_running_segment(there: Announcement) -> None:
    session = c.Session(there)
    (ticket, name), _ = session.begin(segment_s=4.0)
    with session.open(ticket, name) as sock:
        sock.recv(100)
        start = time.monotonic()
        result = session.finish()
        assert 0.9 < time.monotonic() - start < 2.0
        assert c.take(sock).end == "reset"
    assert [segment["end"] for segment in result["segments"]] == ["aborted", "absent"]
    assert result["segments"][0]["bytes"] > 0


@c.undisturbed
def test_calibration(there: Announcement) -> None:
    session = c.Session(there, pace_mbps=12)
    for direction in ("down", "up"):
        more = {"purpose": "calibration", "token": session.token, "duration_s": 0.5}
        with session.open(session.id, c.NEUTRAL, direction, **more) as sock:
            got = c.take(sock) if direction == "down" else c.give(sock, 30.0, 2.0)
        assert got.end == "reset"
        assert got.seconds == pytest.approx(0.5, abs=0.2)
        if direction == "down":
            assert got.bytes * 8 / 1e6 / got.seconds == pytest.approx(20, rel=0.1)  # the highest pace ÷ 0.6
    session.begin()
    with session.open(session.id, c.NEUTRAL, "down", **more) as sock:
        assert c.take(sock).bytes == 0  # not once a pair has begun


# -- TLS ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "offered", [("h2",), ("http/1.1",), ("h2", "http/1.1"), ("http/1.1", "h2"), ("spdy/3", "h2"), ()]
)
def test_the_first_protocol_offered_is_selected(there: Announcement, offered: tuple[str, ...]) -> None:
    with c.tls(c.connect(there.data_port), c.APP, offered) as sock:
        assert sock.selected_alpn_protocol() == (offered[0] if offered else None)
        assert sock.version() == "TLSv1.3"


def test_one_certificate_for_every_name_and_no_session_to_resume(there: Announcement) -> None:
    session = c.Session(there)
    for name in (c.APP, c.NEUTRAL, None, "x.example"):
        with c.tls(c.connect(there.data_port), name) as sock:
            import hashlib

            der = sock.getpeercert(binary_form=True)
            assert hashlib.sha256(der).hexdigest() == session.granted.body["data_certificate"]
    (ticket, name), _ = session.begin(segment_s=0.2)
    sock = session.open(ticket, name)
    c.take(sock)
    assert sock.session is None or not sock.session.has_ticket
    sock.close()


def test_older_tls_is_refused(there: Announcement) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionResetError)), c.connect(there.data_port) as sock:
        context.wrap_socket(sock, server_hostname=c.APP)


class _Splitter:
    """A ClientHello in pieces, as some paths and clients send it."""

    def __init__(self, name: str, alpn: list[str]) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(alpn)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        self.hello = self.outgoing.read()


@pytest.mark.parametrize("pieces", ["bytes", "halves", "records"])
def test_a_client_hello_in_pieces(there: Announcement, pieces: str) -> None:
    split = _Splitter(c.APP, ["http/1.1", "h2"])
    sock = c.connect(there.data_port)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    whole = split.hello
    if pieces == "bytes":
        parts = [whole[i : i + 1] for i in range(40)] + [whole[40:]]
    elif pieces == "halves":
        parts = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    else:  # TLS records of 50 bytes each
        inner = whole[5:]
        chunks = [inner[i : i + 50] for i in range(0, len(inner), 50)]
        parts = [whole[:3] + len(chunk).to_bytes(2, "big") + chunk for chunk in chunks]
    for part in parts:
        sock.sendall(part)
        time.sleep(0.002)
    while True:
        try:
            split.tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            split.incoming.write(sock.recv(65536))
    assert split.tls.selected_alpn_protocol() == "http/1.1"
    sock.close()


# -- strangers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 600, b"\x16\x03\x01\xff\xff" + b"x" * 100, b"\x16\x03\x01\x00\x00", b"\x80"],
)
def test_what_is_no_tls_gets_no_byte(there: Announcement, first: bytes) -> None:
    with c.connect(there.data_port) as sock:
        sock.sendall(first)
        assert c.is_closed_by_peer(sock, 4.0) is not None


def test_slow_handshakes_are_dropped_after_three_seconds(there: Announcement) -> None:
    silent = c.connect(there.data_port)
    partial = c.connect(there.data_port)
    partial.sendall(b"\x16\x03\x01\x02\x00\x01")
    no_hello = c.tls(c.connect(there.data_port), c.APP)
    half_hello = c.tls(c.connect(there.data_port), c.APP)
    half_hello.sendall(b"{" * 300)
    start = time.monotonic()
    for sock in (silent, partial, no_hello, half_hello):
        assert c.is_closed_by_peer(sock, 5.0) is not None
        assert 2.0 < time.monotonic() - start < 3.6
        sock.close()


@pytest.mark.parametrize("raw", [b"x" * 512, b"{}\n".ljust(512), c.hello("0" * 32), c.hello("0" * 32)[:-1] + b"x"])
def test_no_payload_without_a_valid_hello(there: Announcement, raw: bytes) -> None:
    """No amplification: all that a stranger gets is a handshake of a few times what he sent."""
    sock = c.tls(c.connect(there.data_port), c.APP)
    before = c.received(sock)
    sock.sendall(raw)
    assert c.is_closed_by_peer(sock, 2.0) is not None
    assert before < 3000
    sock.close()


def test_tickets_are_good_once_over_sockets_too(there: Announcement) -> None:
    session = c.Session(there)
    (first, name), (second, other) = session.begin(segment_s=0.5)
    with session.open(first, name) as running:
        running.recv(10)
        for ticket, at in ((first, name), (second, other)):  # used; not yet its turn
            with session.open(ticket, at) as sock:
                assert c.take(sock).bytes == 0
        assert c.take(running).end == "reset"
    assert session.down(second, other).bytes > 100_000
    assert session.finish()["outcome"] == "both"


def test_handshakes_in_progress_are_bounded(tmp_path: Path) -> None:
    limits = DataLimits(connections=50, handshakes=8, handshakes_per_prefix=4)
    with c.running(tmp_path, data_limits=limits) as there:
        waiting = [c.connect(there.data_port) for _ in range(4)]
        c.wait_for(lambda: c.metric(there, "data_connections_open") == 4)
        start = time.monotonic()
        with pytest.raises(ConnectionResetError):  # at connect or at the first read, whichever is sooner
            c.connect(there.data_port).recv(1)
        assert time.monotonic() - start < 1
        waiting.pop().close()
        c.wait_for(lambda: c.metric(there, "data_connections_open") == 3)
        with c.tls(c.connect(there.data_port), c.APP) as sock:
            assert sock.version() == "TLSv1.3"
        for sock in waiting:
            sock.close()


@c.undisturbed
def test_the_grants_pace_binds_the_reflector(tmp_path: Path) -> None:
    with c.running(tmp_path, limits=Limits(most_pace_mbps=5.0)) as there:
        session = c.Session(there, pace_mbps=0)
        assert session.granted.body["most_pace_mbps"] == 5.0
        assert session.commit(pace_mbps=6).body["error"] == "not_granted"
        _, segments = session.one_pair(pace_mbps=5, segment_s=1.0)
        for segment in segments:
            assert rate_mbps(segment, 1.0) == pytest.approx(5.0, rel=0.05)


@c.undisturbed
def test_without_the_kernels_help_the_pace_is_kept_roughly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is neither SO_MAX_PACING_RATE nor TCP_INFO."""
    from probe.netio import dial
    from probe.reflector import tcpinfo

    real = dial._try_option

    def without(sock: socket.socket, level: int, option: int, value: bytes) -> bool:
        return False if option == dial.SO_MAX_PACING_RATE else real(sock, level, option, value)

    monkeypatch.setattr(dial, "_try_option", without)
    monkeypatch.setattr(tcpinfo, "read", lambda sock: None)
    with c.running(tmp_path) as there:
        session = c.Session(there)
        seen, segments = session.one_pair(pace_mbps=8, segment_s=1.0)
        for got, segment in zip(seen, segments, strict=True):
            assert segment.paced is False
            assert rate_mbps(segment, 1.0) == pytest.approx(8.0, rel=0.1)
            assert got.bytes * 8 / 1e6 == pytest.approx(8.0 + 0.5, rel=0.1)
            assert segment.rtt_ms is None
        session = c.Session(there)
        seen = [session.up(ticket, name, 6.0, 3.0) for ticket, name in session.begin(direction="up", segment_s=1.0)]
        session.finish()
        for segment in session.close().pairs[0].segments:
            assert rate_mbps(segment, 1.0) == pytest.approx(6.0, rel=0.06)

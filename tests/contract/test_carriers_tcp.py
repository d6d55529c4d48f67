# SPDX-License-Identifier: EUPL-1.2
"""The carriers `hello` and `stream` over real sockets: another client, the probe's own, and all that goes wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import secrets
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from probe.netio.dial import Dialer
from probe.netio.transfer import Transfers
from probe.protocol.probe_role import ProbeSession
from probe.protocol.steps import Finished, Guard, PlannedPair, RunSegment, SegmentFacts, Send, WireBytes
from probe.reflector.opening import HelloOpening
from probe.reflector.server import Announcement
from probe.wire.envelope import open_record
from probe.wire.messages import SessionRequest
from probe.wire.rate import rate_mbps
from probe.wire.records import CONTROL_ARMS, Receipt, ReceiptPair

_spec = importlib.util.spec_from_file_location("reflector_client", Path(__file__).with_name("reflector_client.py"))
assert _spec is not None
assert _spec.loader is not None
c: Any = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("reflector_client", c)
_spec.loader.exec_module(c)

HELLO: Final = {"carrier": "hello"}
TWIN: Final = "cloud.example.org"
"""As long as the app's name."""
CARRIERS: Final = {"hello": HELLO, "stream": c.STREAM}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Announcement]:
    with c.running(tmp_path_factory.mktemp("state")) as announcement:
        yield announcement


def opened(session: Any, carrier: str, ticket: str, name: str, direction: str = "down") -> socket.socket:
    way = session.open_hello if carrier == "hello" else session.open_stream
    return way(ticket, name, direction)  # type: ignore[no-any-return]


# -- a fair segment -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", CARRIERS)
@c.undisturbed
def test_down_is_paced_counted_and_ends_with_a_reset(there: Announcement, carrier: str) -> None:
    pace, seconds = 8.0, 1.0
    session = c.Session(there)
    assert {"tls", "hello", "stream"} <= set(session.granted.body["carriers"])
    seen = []
    for ticket, name in session.begin(pace_mbps=pace, segment_s=seconds, **CARRIERS[carrier]):
        with opened(session, carrier, ticket, name) as sock:
            seen.append(c.take(sock))
    session.finish()
    pair = session.close().pairs[0]
    assert (pair.carrier, pair.outcome) == (carrier, "both")
    for got, segment in zip(seen, pair.segments, strict=True):
        assert got.end == "reset"
        assert got.seconds == pytest.approx(seconds, abs=0.2)
        assert (segment.end, segment.paced) == ("complete", True)
        assert rate_mbps(segment, seconds) == pytest.approx(pace, rel=0.05)
        assert segment.bytes == pytest.approx(got.bytes, rel=0.03)
        assert sum(segment.bins_bytes) == segment.bytes
        assert len(segment.bins_ms) == pytest.approx(10, abs=1)
        assert segment.rtt_ms is not None
    _is_as_announced(pair, carrier, c.NEUTRAL)


@pytest.mark.parametrize("carrier", CARRIERS)
@c.undisturbed
def test_up_is_counted_by_the_reflector_and_ended_by_its_clock(there: Announcement, carrier: str) -> None:
    session = c.Session(there)
    seen = []
    for ticket, name in session.begin(direction="up", segment_s=1.0, **CARRIERS[carrier]):
        with opened(session, carrier, ticket, name, "up") as sock:
            seen.append(c.give(sock, 6.0, 3.0))
    session.finish()
    pair = session.close().pairs[0]
    for got, segment in zip(seen, pair.segments, strict=True):
        assert got.end == "reset"
        assert 0.99 <= got.seconds < 1.4
        assert segment.end == "complete"
        assert rate_mbps(segment, 1.0) == pytest.approx(6.0, rel=0.06)
        assert segment.bytes == pytest.approx(got.bytes, rel=0.06)
    _is_as_announced(pair, carrier, c.NEUTRAL)


def _is_as_announced(pair: ReceiptPair, carrier: str, neutral: str) -> None:
    by_arm = {segment.arm: segment for segment in pair.segments}
    if carrier == "hello":
        assert {arm: segment.name_seen for arm, segment in by_arm.items()} == {"app": c.APP, "neutral": neutral}
        assert {segment.flight_seen for segment in pair.segments} == {None}
        return
    digests = {arm: hashlib.sha256(c.FLIGHTS[arm]).hexdigest() for arm in ("app", "opaque")}
    assert {arm: segment.flight_seen for arm, segment in by_arm.items()} == digests
    assert (pair.app_flight, pair.neutral_flight) == (digests["app"], digests["opaque"])
    assert {segment.name_seen for segment in pair.segments} == {None}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_only_payload_is_counted_up(there: Announcement, carrier: str) -> None:
    """Payload that reached the kernel together with the hello counts, the hello does not."""
    session = c.Session(there)
    (ticket, name), _ = session.begin(direction="up", segment_s=0.3, **CARRIERS[carrier])
    with c.connect(there.data_port) as sock:
        if carrier == "hello":
            sock.sendall(c.client_hello(name, bytes.fromhex(ticket) + bytes(16)))
            c.exactly(sock, c.SERVER_FLIGHT)
            sock.sendall(c.finish_of(c.hello(ticket, "up")) + c.record(bytes(14_995)))
        else:
            flight = c.FLIGHTS["opaque" if name == "opaque" else "app"]
            sock.sendall(flight + bytes(1200 - len(flight)) + c.sealed(c.hello(ticket, "up")) + bytes(15_000))
            c.exactly(sock, 68)
        assert c.take(sock).end == "reset"
    segment = session.finish()["segments"][0]
    assert (segment["end"], segment["bytes"]) == ("complete", 15_000)


def test_down_of_a_hello_is_nothing_but_full_tls_records(there: Announcement) -> None:
    session = c.Session(there)
    (ticket, name), _ = session.begin(segment_s=0.5, pace_mbps=50, **HELLO)
    raw = bytearray()
    with session.open_hello(ticket, name) as sock, contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65_536):
            raw += piece
    assert len(raw) > 1_200_000  # beyond the end of what the reflector sends over and over
    for start in range(0, len(raw) - 5, 5 + 16_401):
        assert raw[start : start + 5] == b"\x17\x03\x03\x40\x11"
    session.finish()


def test_two_streams_do_not_begin_with_the_same_payload(there: Announcement) -> None:
    begins = set()
    for _ in range(3):
        session = c.Session(there)
        for ticket, name in session.begin(segment_s=0.2, **c.STREAM):
            with session.open_stream(ticket, name) as sock:
                begins.add(c.exactly(sock, 64))
                c.take(sock)
        session.finish()
        session.close()
    assert len(begins) > 1


# -- what goes wrong ----------------------------------------------------------------------------------------------


def test_another_flight_is_a_mismatch_and_the_receipt_says_what_came(there: Announcement) -> None:
    session = c.Session(there)
    (_, _), (ticket, _) = session.begin(**c.STREAM)
    other = b"\x14" + secrets.token_bytes(67)
    with c.connect(there.data_port) as sock:
        sock.sendall(other + bytes(1132) + c.sealed(c.hello(ticket)))
        assert c.take(sock) == c.Got(0, pytest.approx(0, abs=1), "reset", [])
    result = session.finish()
    assert [segment["end"] for segment in result["segments"]] == ["absent", "mismatch"]
    assert result["segments"][1]["flight_seen"] == hashlib.sha256(other).hexdigest()


def test_another_name_is_a_mismatch(there: Announcement) -> None:
    session = c.Session(there)
    (ticket, _), _ = session.begin(**HELLO)
    with session.open_hello(ticket, "quite.another.example") as sock:
        assert c.take(sock).bytes == 0
    segment = session.finish()["segments"][0]
    assert (segment["end"], segment["name_seen"]) == ("mismatch", "quite.another.example")


def raw_hello(port: int, shown: str, said: str, name: str = c.APP, **more: Any) -> int:
    """How many bytes somebody gets who shows one ticket and says another."""
    with c.connect(port) as sock:
        sock.sendall(c.client_hello(name, bytes.fromhex(shown) + bytes(16)))
        got = len(c.exactly(sock, c.SERVER_FLIGHT))
        if got:
            sock.sendall(c.finish_of(c.hello(said, **more)))
            got += c.take(sock).bytes
        return got


def raw_stream(port: int, ticket: str, arm: str = "app", **more: Any) -> int:
    with c.connect(port) as sock:
        flight = c.FLIGHTS[arm]
        sock.sendall(flight + bytes(1200 - len(flight)) + c.sealed(c.hello(ticket, **more)))
        return int(c.take(sock).bytes)


def raw_tls(port: int, ticket: str, name: str = c.APP) -> int:
    with c.tls(c.connect(port), name) as sock:
        sock.sendall(c.hello(ticket))
        return int(c.take(sock).bytes)


def test_a_ticket_of_another_carrier_gets_nothing_and_is_not_used_up(there: Announcement) -> None:
    ways: dict[str, Callable[[str], int]] = {
        "tls": lambda ticket: raw_tls(there.data_port, ticket),
        "hello": lambda ticket: raw_hello(there.data_port, ticket, ticket),
        "stream": lambda ticket: raw_stream(there.data_port, ticket),
    }
    for right, commitment in {"tls": {}, **CARRIERS}.items():
        session = c.Session(there)
        (ticket, name), _ = session.begin(segment_s=0.2, **commitment)
        assert {way: call(ticket) for way, call in ways.items() if way != right} == dict.fromkeys(
            {"tls", "hello", "stream"} - {right}, 0
        )
        if right == "tls":
            assert session.down(ticket, name).bytes > 10_000
        else:
            with opened(session, right, ticket, name) as sock:
                assert c.take(sock).bytes > 10_000
        assert session.finish()["segments"][0]["end"] == "complete"


def test_an_unknown_ticket_gets_what_a_stranger_gets(there: Announcement) -> None:
    unknown = secrets.token_hex(16)
    assert raw_stream(there.data_port, unknown) == 0
    # A session id that shows nothing is a stranger's TLS: a real handshake, and no byte for a hello with no ticket.
    assert raw_tls(there.data_port, unknown) == 0


def test_hello_tickets_are_good_once_and_in_their_turn(there: Announcement) -> None:
    session = c.Session(there)
    (first, name), (second, other) = session.begin(segment_s=0.5, **HELLO)
    with session.open_hello(first, name) as running:
        running.recv(10)
        assert raw_hello(there.data_port, first, first, name) == 0  # used: not even a handshake
        assert raw_hello(there.data_port, second, second, other) == c.SERVER_FLIGHT  # not its turn yet: no payload
        assert c.take(running).end == "reset"
    with session.open_hello(second, other) as sock:
        assert c.take(sock).bytes > 10_000
    assert session.finish()["outcome"] == "both"


def test_the_hello_must_say_what_it_showed_and_be_of_a_segment(there: Announcement) -> None:
    session = c.Session(there)
    (first, name), (second, _) = session.begin(segment_s=0.2, **HELLO)
    assert raw_hello(there.data_port, first, second, name) == c.SERVER_FLIGHT
    calibration = {"purpose": "calibration", "token": session.token, "duration_s": 0.5}
    assert raw_hello(there.data_port, first, first, name, **calibration) == c.SERVER_FLIGHT
    with session.open_hello(first, name) as sock:
        assert c.take(sock).bytes > 10_000
    session.finish()


def test_no_calibration_goes_over_a_stream(there: Announcement) -> None:
    session = c.Session(there)
    more = {"purpose": "calibration", "token": session.token, "duration_s": 0.5}
    assert raw_stream(there.data_port, session.id, **more) == 0


@pytest.mark.parametrize("spoiled", ["garbage between", "garbage inside", "one byte missing", "other records"])
def test_garbage_gets_a_reset_and_no_payload(there: Announcement, spoiled: str) -> None:
    session = c.Session(there)
    (ticket, name), _ = session.begin(segment_s=0.2, **c.STREAM)
    arm = "opaque" if name == "opaque" else "app"
    opening = c.FLIGHTS[arm] + bytes(1132) + c.sealed(c.hello(ticket))
    other = c.Session(there)
    (shown, there_name), _ = other.begin(segment_s=0.2, **HELLO)
    finish = c.finish_of(c.hello(shown))
    spoil: dict[str, tuple[bytes, bytes]] = {
        "garbage between": (opening[:68] + b"X" + opening[68:], b"X" + finish),
        "garbage inside": (opening[:-300] + b"X" * 9 + opening[-291:], finish[:-300] + b"X" * 9 + finish[-291:]),
        "one byte missing": (opening[:500] + opening[501:] + b"X", finish[:20] + finish[21:] + b"X"),
        "other records": (opening[:-528] + bytes(528), finish.replace(b"\x17\x03\x03", b"\x15\x03\x03")),
    }
    stream, hello = spoil[spoiled]
    with c.connect(there.data_port) as sock:
        sock.sendall(stream)
        assert c.is_closed_by_peer(sock, 1.0) is not None
    with c.connect(there.data_port) as sock:
        sock.sendall(c.client_hello(there_name, bytes.fromhex(shown) + bytes(16)))
        c.exactly(sock, c.SERVER_FLIGHT)
        sock.sendall(hello)
        assert c.is_closed_by_peer(sock, 1.0) is not None
    # A hello that could not be read uses no ticket up: one box that spoils one connection loses no pair.
    with session.open_stream(ticket, name) as sock:
        assert c.take(sock).bytes > 10_000
    assert session.finish()["segments"][0]["end"] == "complete"
    other.finish()


def test_what_is_cut_short_or_slow_ends_within_three_seconds_without_a_byte(there: Announcement) -> None:
    session = c.Session(there)
    (ticket, name), _ = session.begin(**c.STREAM)
    arm = "opaque" if name == "opaque" else "app"
    opening = c.FLIGHTS[arm] + bytes(1132) + c.sealed(c.hello(ticket))
    other = c.Session(there)
    (shown, there_name), _ = other.begin(**HELLO)
    cut = c.connect(there.data_port)
    cut.sendall(opening[:-1])
    start = time.monotonic()
    cut.shutdown(socket.SHUT_WR)
    assert c.is_closed_by_peer(cut, 1.0) is not None
    slow = [c.connect(there.data_port) for _ in range(3)]
    slow[0].sendall(opening[:1])
    slow[1].sendall(opening[:-1])
    slow[2].sendall(c.client_hello(there_name, bytes.fromhex(shown) + bytes(16)))
    c.exactly(slow[2], c.SERVER_FLIGHT)
    slow[2].sendall(c.finish_of(c.hello(shown))[:-1])
    for sock in slow:
        assert c.is_closed_by_peer(sock, 5.0) is not None
        assert 2.0 < time.monotonic() - start < 4.0
        sock.close()
    assert [segment["end"] for segment in session.finish()["segments"]] == ["absent", "absent"]
    other.finish()


@pytest.mark.parametrize("carrier", CARRIERS)
def test_an_opening_that_comes_byte_by_byte_is_taken(there: Announcement, carrier: str) -> None:
    session = c.Session(there)
    (ticket, name), _ = session.begin(segment_s=0.2, **CARRIERS[carrier])
    with c.connect(there.data_port) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if carrier == "hello":
            parts = [c.client_hello(name, bytes.fromhex(ticket) + bytes(16)), c.finish_of(c.hello(ticket))]
        else:
            flight = c.FLIGHTS["opaque" if name == "opaque" else "app"]
            parts = [flight, bytes(1200 - len(flight)) + c.sealed(c.hello(ticket))]
        for part in parts:
            for at in range(40):
                sock.sendall(part[at : at + 1])
                time.sleep(0.001)
            sock.sendall(part[40:])
            if carrier == "hello" and part is parts[0]:
                c.exactly(sock, c.SERVER_FLIGHT)
        assert c.take(sock).bytes > 10_000
    assert session.finish()["segments"][0]["end"] == "complete"


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize(("how", "end"), [("reset", "reset"), ("fin", "aborted")])
def test_a_peer_that_ends_early(there: Announcement, carrier: str, direction: str, how: str, end: str) -> None:
    session = c.Session(there)
    (ticket, name), _ = session.begin(direction=direction, segment_s=1.0, **CARRIERS[carrier])
    sock = opened(session, carrier, ticket, name, direction)
    if direction == "up":
        sock.sendall(b"x" * 100)
    time.sleep(0.2)
    if how == "reset":
        c.reset(sock)
    else:
        sock.shutdown(socket.SHUT_WR)
    time.sleep(0.2)
    assert session.finish()["segments"][0]["end"] == end
    sock.close()


def test_a_server_flight_that_does_not_fit_the_socket_goes_on_later() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        hello = c.client_hello(c.APP, bytes(32))
        theirs.sendall(hello)
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(b"j" * 1000)  # nobody reads: the socket fills up
        found = SimpleNamespace(server_name=b"x", size=len(hello), session_id=bytes(32))
        opening = HelloOpening(ours, found, "00" * 16)  # type: ignore[arg-type]
        with pytest.raises(BlockingIOError):
            opening.advance()
        assert opening.is_writing
        theirs.settimeout(1)
        raw = b""
        while b"\x16\x03\x03\x00\x7a" not in raw or len(raw.partition(b"\x16\x03\x03")[2]) < c.SERVER_FLIGHT - 3:
            raw += theirs.recv(65_536)
            with contextlib.suppress(BlockingIOError):
                opening.advance()
        assert not opening.is_writing


# -- the probe's own side -----------------------------------------------------------------------------------------


Spoil = Callable[[int, bytes], bytes]
"""What becomes of bytes from the probe (0) or the reflector (1)."""


@dataclass
class Tap:
    """A relay in front of the data port that keeps the first bytes of each connection, both ways."""

    port: int = 0
    up: list[bytearray] = field(default_factory=list)
    down: list[bytearray] = field(default_factory=list)


def _relay(socks: tuple[socket.socket, socket.socket], kept: tuple[bytearray, bytearray], spoil: Spoil) -> None:
    """Pass on what comes from either side, until one of them ends."""
    try:
        while True:
            for source in select.select(socks, [], [])[0]:
                side = socks.index(source)
                data = source.recv(65_536)
                if not data:
                    raise ConnectionResetError
                if len(kept[side]) < 60_000:
                    kept[side].extend(data)
                socks[1 - side].sendall(spoil(side, data))
    except OSError:
        for sock in socks:
            c.reset(sock)


@contextlib.contextmanager
def tapped(data_port: int, spoil: Spoil = lambda _, data: data) -> Iterator[Tap]:
    tap, listener = Tap(), socket.create_server(("127.0.0.1", 0))
    tap.port = listener.getsockname()[1]
    threads: list[threading.Thread] = []

    def serve() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = c.connect(data_port)
            for sock in (near, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tap.up.append(bytearray())
            tap.down.append(bytearray())
            kept = (tap.up[-1], tap.down[-1])
            threads.append(threading.Thread(target=_relay, args=((near, far), kept, spoil), daemon=True))
            threads[-1].start()

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    try:
        yield tap
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        server.join(5)
        for thread in threads:
            thread.join(5)


def maker(name: str, session_id: bytes) -> bytes:
    made: bytes = c.client_hello(name, session_id, ("h2", "http/1.1"))
    return made


def planned(carrier: str, direction: str = "down", **other: Any) -> PlannedPair:
    wires = {
        arm: WireBytes(flight=c.FLIGHTS[arm], answer=c.ANSWERS[arm]) if carrier == "stream" else None
        for arm in ("app", "opaque")
    }
    fields = {"pace_mbps": 8.0, "segment_s": 0.5, **other}
    return PlannedPair(
        kind="test",
        app="video",
        profile="video@1:0",
        direction=direction,  # type: ignore[arg-type]
        app_name=c.APP if carrier == "hello" else "video",
        neutral_name=TWIN if carrier == "hello" else "opaque",
        carrier=carrier,  # type: ignore[arg-type]
        app_wire=wires["app"],
        neutral_wire=wires["opaque"],
        **fields,
    )


def measure(
    there: Announcement, pairs: list[PlannedPair], port: int | None = None
) -> tuple[list[RunSegment], list[SegmentFacts], Receipt]:
    """A session of the probe's machine and transfers; its data connections go to `port` where one is given."""
    session = ProbeSession(
        SessionRequest(v=1, probe=c.KEY, nettest="differential", pairs=9, segment_s=4, pace_mbps=0),
        random_bytes=secrets.token_bytes,
    )
    control, transfers = c.Control(there.control_port), Transfers(Dialer(), "127.0.0.1")
    steps: list[RunSegment] = []
    seen: list[SegmentFacts] = []
    while not isinstance(step := session.next(time.time_ns() // 1_000_000), Finished):
        now = time.time_ns() // 1_000_000
        if isinstance(step, Send):
            headers = {"Content-Type": "application/json"}
            if step.token:
                headers["Authorization"] = f"Bearer {step.token}"
            control.http.request(step.method, step.path, body=step.body, headers=headers)
            response = control.http.getresponse()
            session.answered(response.status, response.read(), now)
        elif isinstance(step, RunSegment):
            steps.append(step)
            if port is not None:
                step = replace_port(step, port)
            seen.append(transfers.run_segment(step, ("h2",), maker))
            session.segment_ended(seen[-1], now)
        elif isinstance(step, Guard):
            session.guard_ended(0, now)
        else:
            session.plan(pairs)
    control.close()
    assert session.failure is None, session.complaint
    assert session.receipt is not None
    record = open_record(session.receipt)
    assert isinstance(record, Receipt)
    return steps, seen, record


def replace_port(step: RunSegment, port: int) -> RunSegment:
    return dataclasses.replace(step, endpoint=dataclasses.replace(step.endpoint, port=port))


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("direction", ["down", "up"])
@c.undisturbed
def test_the_probe_measures_pairs_over_each_carrier(there: Announcement, carrier: str, direction: str) -> None:
    seconds = 0.6
    _, seen, receipt = measure(there, [planned(carrier, direction, segment_s=seconds)] * 2)
    assert [(facts.failure, facts.hello_sent) for facts in seen] == [(None, True)] * 4
    assert [facts.tls_ms is not None for facts in seen] == [carrier == "hello"] * 4
    for pair in receipt.pairs:
        assert (pair.outcome, pair.carrier) == ("both", carrier)
        assert {segment.arm for segment in pair.segments} == {"app", CONTROL_ARMS[pair.carrier]}
        for segment in pair.segments:
            assert segment.end == "complete"
            assert rate_mbps(segment, seconds) == pytest.approx(8.0, rel=0.06)
        _is_as_announced(pair, carrier, TWIN)
    counted = [segment.bytes for pair in receipt.pairs for segment in pair.segments]
    for facts, told in zip(seen, counted, strict=True):
        # Up, the probe tells what it gave to the kernel, which keeps up to 64 kB unsent and more on its way.
        assert facts.bytes == pytest.approx(told, abs=30_000 if direction == "down" else 200_000)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("direction", ["down", "up"])
def test_the_arms_are_alike_on_the_wire_but_for_what_is_compared(
    there: Announcement, carrier: str, direction: str
) -> None:
    with tapped(there.data_port) as tap:
        steps, seen, receipt = measure(there, [planned(carrier, direction)], tap.port)
    assert [facts.failure for facts in seen] == [None, None]
    shapes = []
    for number, (step, segment) in enumerate(zip(steps, receipt.pairs[0].segments, strict=True)):
        sent, got = bytes(tap.up[number]), bytes(tap.down[number])
        if carrier == "stream":
            assert step.wire is not None
            assert sent.startswith(step.wire.flight)
            assert got.startswith(step.wire.answer)
            shapes.append((len(step.wire.flight), len(step.wire.answer)))
            if direction == "down":
                assert len(sent) == 1728
        else:
            name = (c.APP if segment.arm == "app" else TWIN).encode()
            assert sent.count(name) == 1
            first = 5 + int.from_bytes(sent[3:5], "big")
            shapes.append((first, [len(name)]))
            assert _records(got)[:6] == [(22, 122), (20, 1), (23, 38), (23, 2838), (23, 97), (23, 53)]
            assert _records(sent)[1:4] == [(20, 1), (23, 53), (23, 528)]
            assert set(_records(got)[6:] + _records(sent)[4:]) == {(23, 16_401)}
        assert b'"ticket"' not in sent
    assert shapes[0] == shapes[1]


def test_the_first_packet_is_the_flight_and_nothing_else(there: Announcement) -> None:
    try:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))  # type: ignore[attr-defined]
    except (AttributeError, PermissionError):
        pytest.skip("packets can only be seen with the right to open a raw socket")
    sent: dict[int, list[bytes]] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                packet = wire.recv(65_536)
                tcp = packet[(packet[0] & 15) * 4 :]
                source, target = int.from_bytes(tcp[:2], "big"), int.from_bytes(tcp[2:4], "big")
                payload = tcp[(tcp[12] >> 4) * 4 :] if packet[9] == 6 else b""
                if payload and target == there.data_port:
                    sent.setdefault(source, []).append(payload)

    with wire:
        # Everything on this machine's loopback comes by: read on while it happens, from a large buffer.
        with contextlib.suppress(OSError):
            wire.setsockopt(socket.SOL_SOCKET, 33, 64 * 1024 * 1024)  # SO_RCVBUFFORCE
        wire.bind(("lo", 0x0800))
        wire.settimeout(0.3)
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        measure(there, [planned("stream", "up", segment_s=0.2, pace_mbps=1.0)])
        time.sleep(0.2)
        over.set()
        watcher.join(10)
    assert len(sent) == 2
    assert {packets[0] for packets in sent.values()} == set(c.FLIGHTS.values())
    sizes = [[len(packet) for packet in packets[:3]] for packets in sent.values()]
    assert sizes[0] == sizes[1]


def _records(raw: bytes) -> list[tuple[int, int]]:
    found, at = [], 0
    while at + 5 <= len(raw):
        assert raw[at + 1] == 3
        found.append((raw[at], int.from_bytes(raw[at + 3 : at + 5], "big")))
        at += 5 + found[-1][1]
    return found


@pytest.mark.parametrize(
    ("carrier", "side", "failures"),
    [
        # A box that rewrites what the probe sends first: the pair goes on, both arms alike.
        ("stream", 0, {"connection_reset"}),
        ("hello", 1, {"tls_failed"}),
    ],
)
def test_a_box_that_rewrites_both_arms_makes_two_failures(
    there: Announcement, carrier: str, side: int, failures: set[str]
) -> None:
    def spoil(whose: int, data: bytes) -> bytes:
        return bytes([data[0] ^ 0x01]) + data[1:] if whose == side else data

    with tapped(there.data_port, spoil) as tap:
        _, seen, receipt = measure(there, [planned(carrier)], tap.port)
    assert {facts.failure for facts in seen} == failures
    assert receipt.pairs[0].outcome == "both_failed"
    ends = {segment.end for segment in receipt.pairs[0].segments}
    assert ends == ({"mismatch"} if carrier == "stream" else {"absent"})


def _capture(talks: list[tuple[int, bytes]], path: Path) -> None:
    """A capture file of one connection to port 443: raw IPv4, segments of 1400 bytes (draft-ietf-opsawg-pcap)."""
    out = bytearray(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 101))
    sequence, ports, hosts = [1000, 5000], (40_000, 443), (bytes([192, 0, 2, 1]), bytes([198, 51, 100, 1]))
    packets = [(0, 0x02, b""), (1, 0x12, b""), (0, 0x10, b"")]
    packets += [(side, 0x18, data[at : at + 1400]) for side, data in talks for at in range(0, len(data), 1400)]
    for number, (side, flags, data) in enumerate(packets):
        other = 1 - side
        acknowledged = sequence[other] if flags != 0x02 else 0
        tcp = struct.pack(
            "!HHIIBBHHH", ports[side], ports[other], sequence[side], acknowledged, 0x50, flags, 64_000, 0, 0
        )
        total = 40 + len(data)
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, total, number, 0x4000, 64, 6, 0, hosts[side], hosts[other])
        out += struct.pack("<IIII", 1_700_000_000, number * 1000, total, total) + ip + tcp + data
        sequence[side] += len(data) + (flags >> 1 & 1)
    path.write_bytes(out)


@pytest.mark.services
def test_a_dissector_reads_the_hello_carrier_as_tls_1_3_without_complaint(
    there: Announcement, program: Callable[[str, str], str], tmp_path: Path
) -> None:
    tshark = program("tshark", "tshark")
    with tapped(there.data_port) as tap:
        measure(there, [planned("hello")], tap.port)
    sent, got = bytes(tap.up[0]), bytes(tap.down[0])
    hello = 5 + int.from_bytes(sent[3:5], "big")
    whole = c.SERVER_FLIGHT + 2 * (5 + 16_401)
    talks = [(0, sent[:hello]), (1, got[: c.SERVER_FLIGHT]), (0, sent[hello:]), (1, got[c.SERVER_FLIGHT : whole])]
    _capture(talks, tmp_path / "hello.pcap")

    def ask(*words: str) -> str:
        argv = [tshark, "-r", str(tmp_path / "hello.pcap"), *words]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    assert ask("-Y", "_ws.malformed or tls.alert_message or _ws.expert.severity >= 6291456") == ""
    protocols = ask("-Y", "tls", "-T", "fields", "-e", "_ws.col.Protocol").split()
    assert set(protocols) <= {"TCP", "TLSv1", "TLSv1.3"}  # TCP: a packet that holds the middle of a record
    assert protocols.count("TLSv1.3") >= 4
    name = ask("-Y", "tls.handshake.type == 1", "-T", "fields", "-e", "tls.handshake.extensions_server_name").strip()
    assert name in {c.APP, TWIN}
    assert ask("-Y", "tls.handshake.type == 2", "-T", "fields", "-e", "tls.handshake.extensions.supported_version")


def test_no_step_says_which_arm_it_is() -> None:
    """What the shell is handed has a name or bytes, and nothing that tells the app's from the control's."""
    fields = set(RunSegment.__dataclass_fields__)
    assert not {"arm", "kind", "is_app", "label", "neutral"} & fields
    assert set(WireBytes.__dataclass_fields__) == {"flight", "answer", "head"}


def test_a_flight_that_would_be_taken_for_tls_is_never_planned(there: Announcement) -> None:
    pair = planned("stream")
    wrong = WireBytes(flight=b"\x16" + bytes(67), answer=c.ANSWERS["app"])
    with pytest.raises(ValueError, match="must not begin with 0x16"):
        measure(there, [pair, dataclasses.replace(pair, neutral_wire=wrong)])

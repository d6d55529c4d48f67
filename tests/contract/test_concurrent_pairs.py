# SPDX-License-Identifier: EUPL-1.2
"""Concurrent pairs over real sockets: whole ones on every carrier, late and lossy ones, and clients that misbehave."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import secrets
import select
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from probe.netio.dial import Dialer
from probe.netio.transfer import Transfers
from probe.profiles.browser import client_hello
from probe.protocol.accounts import Limits
from probe.protocol.concurrent import STALE_S, concurrent_pair_bytes, echo_of
from probe.protocol.concurrent_probe import Frames
from probe.protocol.datagram import ALIVE, CHALLENGE, PING, SIGNAL_BYTES, Codec, Packet, opening
from probe.protocol.datagram_flow import Filler
from probe.protocol.probe_role import ProbeSession
from probe.protocol.session import decode_hello, encode_hello
from probe.protocol.steps import (
    Finished,
    Guard,
    PlannedPair,
    RunSegment,
    RunTogether,
    Send,
    Wait,
    WireBytes,
)
from probe.reflector.server import Announcement
from probe.wire.echo import baseline_ms, delay_ms, loss
from probe.wire.envelope import open_record
from probe.wire.messages import DataHello, SessionRequest, SmallPackets
from probe.wire.records import MeasuredPair, Receipt, ReceiptPair, Segment

_spec = importlib.util.spec_from_file_location("reflector_client", Path(__file__).with_name("reflector_client.py"))
assert _spec is not None
assert _spec.loader is not None
c: Any = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("reflector_client", c)
_spec.loader.exec_module(c)

APP: Final = WireBytes(flight=b"\x80\0" + bytes(170), answer=b"\x80\0" + bytes(90), head=b"\x80\0\1\2")
OPAQUE: Final = WireBytes(flight=b"\x19" + bytes(171), answer=b"\x19" + bytes(91), head=b"\x19\0\1\2")
STREAMS: Final = [replace(wire, head=b"", answer=wire.flight[:20]) for wire in (APP, OPAQUE)]
TWIN: Final = "thicket.example.org"
LOAD: Final = "harbour.example.com"
PACKETS: Final = SmallPackets(bytes=160, interval_ms=20, load_name=LOAD)
POOL: Final = memoryview(secrets.token_bytes(128 * 1024))


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Announcement]:
    with c.running(tmp_path_factory.mktemp("state")) as announcement:
        yield announcement


def planned(carrier: str, direction: str = "down", **other: Any) -> PlannedPair:
    wires: list[WireBytes | None] = {"tls": [None, None], "hello": [None, None], "stream": STREAMS}.get(
        carrier, [APP, OPAQUE]
    )  # type: ignore[assignment]
    fields = {"pace_mbps": 20.0, "segment_s": 1.0, "packets": PACKETS, "design": "concurrent", **other}
    return PlannedPair(
        kind="test", app="rtp+live", profile="rtp+live@1:0", direction=direction, app_name=c.APP, neutral_name=TWIN,  # type: ignore[arg-type]
        carrier=carrier, app_wire=wires[0], neutral_wire=wires[1], **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def maker(name: str, session_id: bytes) -> bytes:
    return client_hello("chrome", name, alpn=("h2",), session_id=session_id, random_bytes=secrets.token_bytes)


def measure(
    there: Announcement, pairs: list[PlannedPair], through: Callable[[RunTogether], RunTogether] = lambda step: step
) -> tuple[Receipt, tuple[MeasuredPair, ...]]:
    """A session of the probe's machine and transfers; `through` may send its slots another way."""
    wish = SessionRequest(v=1, probe=c.KEY, nettest="differential", pairs=9, segment_s=4, pace_mbps=100)
    session = ProbeSession(wish, random_bytes=secrets.token_bytes)
    control, transfers = c.Control(there.control_port), Transfers(Dialer(), "127.0.0.1")
    while not isinstance(step := session.next(time.time_ns() // 1_000_000), Finished):
        now = time.time_ns() // 1_000_000
        if isinstance(step, Send):
            headers = {"Content-Type": "application/json"}
            if step.token:
                headers["Authorization"] = f"Bearer {step.token}"
            control.http.request(step.method, step.path, body=step.body, headers=headers)
            response = control.http.getresponse()
            session.answered(response.status, response.read(), now)
        elif isinstance(step, RunTogether):
            session.together_ended(transfers.run_together(through(step), ("h2",), maker), now)
        elif isinstance(step, Guard):
            session.guard_ended(0, now)
        else:
            assert not isinstance(step, RunSegment | Wait)
            session.plan(pairs)
    control.close()
    assert session.failure is None, session.complaint
    assert session.receipt is not None
    record = open_record(session.receipt)
    assert isinstance(record, Receipt)
    return record, session.measured


# -- whole pairs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("carrier", ["tls", "hello", "stream", "quic", "datagram"])
@c.undisturbed
def test_a_pair_is_witnessed_whole(there: Announcement, carrier: str, direction: str) -> None:
    receipt, measured = measure(there, [planned(carrier, direction)])
    [pair] = receipt.pairs
    assert (pair.design, pair.outcome, pair.carrier, pair.saturated) == ("concurrent", "both", carrier, False)
    for segment, seen in zip(pair.segments, measured[0].segments, strict=True):
        assert segment.end == "complete"
        assert not segment.altered
        assert len(segment.echo_us) == 50
        assert loss(segment) == 0.0
        assert segment.bytes == 50 * 160
        assert segment.duration_ms == pytest.approx(1000, abs=60)
        assert segment.name_seen == ((c.APP if segment.arm == "app" else TWIN) if carrier in {"tls", "hello"} else None)
        delay = delay_ms(segment, 1.0)
        assert delay is not None
        assert 0 < delay < 20
        assert (seen.arm, seen.failure, seen.bytes, seen.altered) == (segment.arm, None, 50 * 160, False)
    assert abs((pair.segments[0].started_ms or 0) - (pair.segments[1].started_ms or 0)) <= 2, "one clock for both"
    # The load: half a second at its pace, and within what was agreed on before the coin.
    assert pair.load_bytes == pytest.approx(20e6 / 8 * 0.5, rel=0.15)
    assert pair.load_bytes < concurrent_pair_bytes(pair.pace_mbps, pair.segment_s, PACKETS)


def test_several_pairs_one_after_the_other(there: Announcement) -> None:
    receipt, _ = measure(there, [planned("datagram"), planned("tls"), planned("stream")])
    assert [(pair.outcome, pair.design) for pair in receipt.pairs] == [("both", "concurrent")] * 3


# -- a line that treats them differently ------------------------------------------------------------------------------


class LateLine:
    """Forwards UDP to the reflector; flows that begin with the app's flight wait, and lose packets."""

    def __init__(self, port: int, *, delay_s: float = 0.0, loses: int = 0) -> None:
        self.front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.front.bind(("127.0.0.1", 0))
        self.port = self.front.getsockname()[1]
        self._target, self._delay_s, self._loses = ("127.0.0.1", port), delay_s, loses
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        backs: dict[Any, tuple[socket.socket, bool]] = {}
        late: list[tuple[float, Callable[[], object]]] = []
        count = 0
        while not self._stop.is_set():
            wait = max(0.0, min([0.05, *(at - time.monotonic() for at, _ in late)]))
            ready, _, _ = select.select([self.front, *(back for back, _ in backs.values())], [], [], wait)
            for one in ready:
                if one is self.front:
                    raw, peer = one.recvfrom(2048)
                    if peer not in backs:
                        backs[peer] = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM), raw == APP.flight)
                        backs[peer][0].connect(self._target)
                    back, is_app = backs[peer]
                    back.send(raw)
                    continue
                peer, is_app = next((peer, is_app) for peer, (back, is_app) in backs.items() if back is one)
                raw = one.recv(2048)
                count += is_app and len(raw) == 160
                if is_app and self._loses and len(raw) == 160 and count % self._loses == 0:
                    continue
                at = time.monotonic() + (self._delay_s if is_app else 0.0)
                late.append((at, functools.partial(self.front.sendto, raw, peer)))
            for at, send in [entry for entry in late if entry[0] <= time.monotonic()]:
                late.remove((at, send))
                send()
        for back, _ in backs.values():
            back.close()

    def __call__(self, step: RunTogether) -> RunTogether:
        first, second = (replace(one, endpoint=replace(one.endpoint, port=self.port)) for one in step.slots)
        return replace(step, slots=(first, second))

    def __enter__(self) -> LateLine:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        self.front.close()


def by_arm(pair: ReceiptPair) -> tuple[Segment, Segment]:
    app, control = sorted(pair.segments, key=lambda segment: segment.arm != "app")
    return app, control


@c.undisturbed
def test_an_app_that_waits_longer_is_seen_to(there: Announcement) -> None:
    with LateLine(there.data_port, delay_s=0.04) as line:
        receipt, _ = measure(there, [planned("datagram")], line)
    app, control = by_arm(receipt.pairs[0])
    late, usual = delay_ms(app, 1.0), delay_ms(control, 1.0)
    assert late is not None
    assert usual is not None
    assert late - usual == pytest.approx(40, abs=8)
    assert baseline_ms(receipt.pairs[0].segments) == pytest.approx(min(control.echo_us) / 1000)
    assert loss(app) == loss(control) == 0.0


@c.undisturbed
def test_an_app_whose_packets_are_lost_is_seen_to(there: Announcement) -> None:
    with LateLine(there.data_port, loses=5) as line:
        receipt, _ = measure(there, [planned("datagram")], line)
    app, control = by_arm(receipt.pairs[0])
    assert loss(app) == pytest.approx(0.2, abs=0.03)
    assert loss(control) == 0.0
    assert receipt.pairs[0].outcome == "both"


# -- one slot fails -----------------------------------------------------------------------------------------------


def without(place: int) -> Callable[[RunTogether], RunTogether]:
    """That slot finds nobody."""

    def through(step: RunTogether) -> RunTogether:
        slots = list(step.slots)
        slots[place] = replace(slots[place], endpoint=replace(slots[place].endpoint, port=9), connect_timeout_s=0.3)
        return replace(step, slots=(slots[0], slots[1]))

    return through


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("carrier", ["tls", "datagram"])
def test_a_failed_slot_is_a_failure_of_that_arm_alone(there: Announcement, carrier: str, place: int) -> None:
    receipt, measured = measure(there, [planned(carrier)], without(place))
    [pair] = receipt.pairs
    assert pair.outcome == "one_failed"
    assert [segment.end for segment in pair.segments] == (
        ["absent", "complete"] if place == 0 else ["complete", "absent"]
    )
    assert loss(pair.segments[1 - place]) == 0.0
    assert measured[0].segments[place].failure is not None
    assert measured[0].segments[1 - place].failure is None


def test_without_its_load_a_pair_is_void(there: Announcement) -> None:
    def through(step: RunTogether) -> RunTogether:
        return replace(step, load=replace(step.load, endpoint=replace(step.load.endpoint, port=9)))

    receipt, measured = measure(there, [planned("tls")], through)
    [pair] = receipt.pairs
    assert (pair.outcome, pair.load_bytes) == ("both_failed", 0)
    assert [segment.end for segment in pair.segments] == ["reset", "reset"], "the probe left"
    assert all(segment.echo_us == () for segment in pair.segments)
    assert {segment.failure for segment in measured[0].segments} == {"connection_refused"}


# -- misbehaving clients --------------------------------------------------------------------------------------------


class Session(c.Session):  # type: ignore[misc]
    """A client of its own, written from the specification."""

    def begin_together(self, carrier: str = "tls", **other: Any) -> None:
        fields: dict[str, Any] = {"design": "concurrent", "segment_s": 1.0, "carrier": carrier, "pace_mbps": 8}
        fields["packets"] = {"bytes": 160, "interval_ms": 20, "load_name": LOAD}
        if carrier == "datagram":
            for arm, wire in (("app", APP), ("neutral", OPAQUE)):
                told = wire.announced()
                fields[f"{arm}_bytes"] = {
                    "flight": told.flight, "flight_bytes": told.flight_bytes, "answer": told.answer, "head": told.head,
                }  # fmt: skip
        self.begin(**{**fields, **other})

    def name(self, place: int) -> str:
        return str(c.APP if self.order["arms"][place] == "app" else c.NEUTRAL)

    def slot(self, place: int) -> Any:
        return self.open(self.order["tickets"][place], self.name(place))

    def load(self, direction: str = "down", name: str = LOAD) -> Any:
        sock = c.tls(c.connect(self.there.data_port), name)
        hello = c.hello(self.order["load_ticket"], direction)
        sock.sendall(hello.replace(b'"segment"', b'"load"').rstrip(b" ").ljust(512, b" "))
        return sock


def everything(sock: socket.socket, for_s: float) -> bytes:
    """What comes in so much time, or until the end."""
    got, until = b"", time.monotonic() + for_s
    with contextlib.suppress(TimeoutError, OSError):
        while (left := until - time.monotonic()) > 0:
            sock.settimeout(left)
            piece = sock.recv(65536)
            if not piece:
                break
            got += piece
    return got


def test_a_grant_names_the_designs(there: Announcement) -> None:
    assert Session(there).granted.body["designs"] == ["sequential", "concurrent"]


@c.undisturbed
def test_a_slot_hears_one_welcome_until_the_load_says_hello(there: Announcement) -> None:
    session = Session(there)
    session.begin_together()
    with session.slot(0) as sock:
        assert len(everything(sock, 0.7)) == 160
        frames = Frames("tls", Codec(session.order["tickets"][0], "probe", b""), 160)
        with session.load() as load:
            [first, *_] = frames.take(everything(sock, 0.1))
            assert (first.kind, first.sequence) == (PING, 1)
            assert everything(load, 0.2) == b"", "half a second without load"


@c.undisturbed
def test_a_slot_that_never_answers_is_not_fed_on(there: Announcement) -> None:
    """Over TCP nothing more is handed to the kernel half a second after the last echo."""
    session = Session(there)
    session.begin_together(segment_s=2.0)
    with session.slot(0) as sock, session.load():
        packets = everything(sock, 1.8)
    assert 160 * 20 <= len(packets) <= 160 * (1 + (STALE_S + 0.1) / 0.02)


def test_a_load_before_any_slot_gets_not_a_byte(there: Announcement) -> None:
    session = Session(there)
    session.begin_together()
    with session.load() as load:
        assert c.take(load, 3.0).bytes == 0


@pytest.mark.parametrize("wrong", ["name", "direction", "ticket"])
def test_a_load_that_is_not_the_agreed_one_gets_not_a_byte(there: Announcement, wrong: str) -> None:
    session = Session(there)
    session.begin_together()
    with session.slot(0):
        if wrong == "ticket":
            session.order["load_ticket"] = session.order["tickets"][1]
        load = session.load(direction="up" if wrong == "direction" else "down", name=c.APP if wrong == "name" else LOAD)
        with load:
            got = c.take(load, 3.0)
    assert got.bytes == 0
    assert got.end in {"reset", "closed"}


@c.undisturbed
def test_the_load_is_stopped_by_the_reflectors_clock(there: Announcement) -> None:
    session = Session(there)
    session.begin_together(segment_s=1.2)
    with session.slot(0), session.load() as load:
        began = time.monotonic()
        got = c.take(load, 5.0)
        assert time.monotonic() - began == pytest.approx(1.2, abs=0.15)
    assert got.end == "reset"
    assert got.bytes == pytest.approx(8e6 / 8 * 0.7, rel=0.3)
    session.finish()
    assert session.close().pairs[0].load_bytes == pytest.approx(got.bytes, rel=0.3)


@c.undisturbed
def test_a_load_up_waits_for_its_byte(there: Announcement) -> None:
    session = Session(there)
    session.begin_together(direction="up")
    slot = session.open(session.order["tickets"][0], session.name(0), "up")
    with slot, session.load("up") as load:
        began = time.monotonic()
        assert load.recv(10) == b"\0"
        assert time.monotonic() - began == pytest.approx(0.5, abs=0.1)
        got = c.give(load, 8.0, 5.0)
    assert got.end == "reset"
    session.finish()
    pair = session.close().pairs[0]
    assert 0.5 * got.bytes < pair.load_bytes <= 1.01 * got.bytes, "TLS included"


def test_echoes_of_nothing_earn_nothing(there: Announcement) -> None:
    """A client that knows its ticket can make frames, but not what each packet will carry."""
    session = Session(there)
    session.begin_together()
    ticket = session.order["tickets"][0]
    frames = Frames("tls", Codec(ticket, "probe", b""), 160)
    with session.slot(0) as sock, session.load():
        for guess in range(1, 51):
            packet = Packet(PING, guess, 0, guess, guess)
            sock.sendall(frames.make(echo_of(packet, 0.0), Filler(POOL)))
        everything(sock, 1.2)
        session.finish()
    segment = next(one for one in session.close().pairs[0].segments if one.end != "absent")
    assert set(segment.echo_us) == {-1}


def test_garbage_in_a_slot_is_read_and_forgotten(there: Announcement) -> None:
    session = Session(there)
    session.begin_together()
    with session.slot(0) as sock, session.load():
        with contextlib.suppress(OSError):
            sock.sendall(secrets.token_bytes(300_000))
        assert len(everything(sock, 0.4)) > 160
    session.finish()
    assert session.close().pairs[0].outcome in {"one_failed", "both_failed"}


def test_a_control_channel_that_dies_loses_the_pair(tmp_path: Path) -> None:
    with c.running(tmp_path, limits=Limits(idle_timeout_s=1.0)) as there:
        session = Session(there)
        session.begin_together()
        slot, load = session.slot(0), session.load()
        with slot, load:
            session.control.close()
            everything(slot, 1.3)
        deadline = time.monotonic() + 10
        while not (tmp_path / "receipts.jsonl").read_bytes() and time.monotonic() < deadline:
            time.sleep(0.1)
    line = (tmp_path / "receipts.jsonl").read_bytes().splitlines()[0]
    receipt = open_record(c.from_line(line))
    assert isinstance(receipt, Receipt)
    assert (receipt.end, receipt.pairs[0].outcome, receipt.pairs[0].design) == ("timed_out", "unfinished", "concurrent")


# -- over UDP ------------------------------------------------------------------------------------------------------


class Knock:
    """A client over UDP that goes as far as it is told to."""

    def __init__(self, session: Session, place: int = 0) -> None:
        self.wire = APP if session.order["arms"][place] == "app" else OPAQUE
        self.ticket = session.order["tickets"][place]
        self.codec = Codec(self.ticket, "probe", self.wire.head)
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.connect(("127.0.0.1", session.there.data_port))
        self.hello = c.hello(self.ticket)
        self.sent = self.got = 0

    def say(self, raw: bytes) -> None:
        self.sent += len(raw)
        self.sock.send(raw)

    def hear(self, for_s: float) -> list[Packet]:
        found, until = [], time.monotonic() + for_s
        while (left := until - time.monotonic()) > 0:
            self.sock.settimeout(left)
            with contextlib.suppress(TimeoutError):
                raw = self.sock.recv(2048)
                self.got += len(raw)
                packet = self.codec.open(raw)
                found += [packet] if packet is not None else []
        return found

    def open(self) -> None:
        self.say(self.wire.flight)
        self.say(opening(self.wire.head, self.hello, secrets.token_bytes))
        [challenge] = [packet for packet in self.hear(0.2) if packet.kind == CHALLENGE]
        assert self.got <= 3 * self.sent
        self.say(opening(self.wire.head, self.hello, secrets.token_bytes, challenge.cookie))


def test_over_udp_nothing_but_the_challenge_leaves_before_the_cookie_is_echoed(there: Announcement) -> None:
    session = Session(there)
    session.begin_together("datagram")
    knock = Knock(session)
    knock.say(knock.wire.flight)
    knock.say(opening(knock.wire.head, knock.hello, secrets.token_bytes))
    assert {packet.kind for packet in knock.hear(0.5)} == {CHALLENGE}
    assert knock.got <= 3 * knock.sent


@c.undisturbed
def test_over_udp_a_welcome_is_repeated_five_times_and_then_no_more(there: Announcement) -> None:
    session = Session(there)
    session.begin_together("datagram")
    knock = Knock(session)
    knock.open()
    welcomes = [packet for packet in knock.hear(1.0) if packet.kind == PING]
    assert [packet.sequence for packet in welcomes] == [0] * 5
    assert knock.hear(0.5) == []


@c.undisturbed
def test_over_udp_a_silent_peer_is_left_within_half_a_second(there: Announcement) -> None:
    session = Session(there)
    session.begin_together("datagram", segment_s=3.0)
    knock = Knock(session)
    knock.open()
    [welcome, *_] = [packet for packet in knock.hear(0.05) if packet.kind == PING]
    knock.say(knock.codec.seal(echo_of(welcome, 0.0), POOL[:160]))
    with session.load():
        heard = [packet for packet in knock.hear(2.0) if packet.kind == PING and packet.sequence]
    assert 20 <= len(heard) <= 28
    session.finish()
    segment = next(one for one in session.close().pairs[0].segments if one.end != "absent")
    assert segment.end == "aborted"


@c.undisturbed
def test_over_udp_keeping_alive_without_an_echo_gets_two_packets_a_second(there: Announcement) -> None:
    session = Session(there)
    session.begin_together("datagram", segment_s=3.0)
    knock = Knock(session)
    knock.open()
    with session.load():
        heard = []
        for count in range(25):
            knock.say(knock.codec.seal(Packet(ALIVE, count + 1), POOL[:SIGNAL_BYTES]))
            heard += [packet.sequence for packet in knock.hear(0.1) if packet.kind == PING and packet.sequence]
    assert 25 <= len(heard) <= 35, heard


@c.undisturbed
def test_over_udp_packets_leave_at_their_interval(there: Announcement) -> None:
    session = Session(there)
    session.begin_together("datagram")
    knock = Knock(session)
    knock.open()
    knock.hear(0.05)
    times = []
    with session.load():
        until = time.monotonic() + 0.45
        while time.monotonic() < until:
            for packet in knock.hear(0.005):
                times.append(packet.time_us)
                knock.say(knock.codec.seal(echo_of(packet, 0.0), POOL[:160]))
    gaps = [(b - a) / 1000 for a, b in itertools.pairwise(times[2:])]
    assert statistics.median(gaps) == pytest.approx(20, abs=2)


def test_a_hello_for_a_load_is_no_hello_over_udp(there: Announcement) -> None:
    session = Session(there)
    session.begin_together("datagram")
    knock = Knock(session)
    knock.hello = (
        knock.hello.replace(b'"segment"', b'"load"')
        .replace(knock.ticket.encode(), session.order["load_ticket"].encode())
        .rstrip(b" ")
        .ljust(512, b" ")
    )
    knock.say(knock.wire.flight)
    knock.say(opening(knock.wire.head, knock.hello, secrets.token_bytes))
    assert [packet for packet in knock.hear(0.4) if packet.kind != CHALLENGE] == []
    assert knock.got <= len(knock.wire.answer)


def test_the_hello_of_a_load_fits_its_place() -> None:
    hello = DataHello(v=1, ticket="f" * 32, purpose="load", direction="down", address="2001:db8::1")
    assert decode_hello(encode_hello(hello)) == hello

# SPDX-License-Identifier: EUPL-1.2
"""The carriers `quic` and `datagram` over real sockets: whole pairs, and everybody who knocks wrongly."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from probe.netio.dial import Dialer
from probe.netio.transfer import Transfers
from probe.protocol.accounts import Limits
from probe.protocol.datagram import DATA, DATAGRAM_BYTES, END, FEEDBACK, SIGNAL_BYTES, Codec, Packet, opening
from probe.protocol.steps import RunSegment, SegmentFacts, WireBytes
from probe.reflector.server import Announcement
from probe.wire.messages import Endpoint
from probe.wire.rate import rate_mbps
from probe.wire.records import ReceiptPair

_spec = importlib.util.spec_from_file_location("reflector_client", Path(__file__).with_name("reflector_client.py"))
assert _spec is not None
assert _spec.loader is not None
c: Any = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("reflector_client", c)
_spec.loader.exec_module(c)

APP: Final = WireBytes(flight=b"\x01\0\0\0" + bytes(144), answer=b"\x02\0\0\0" + bytes(88), head=b"\x04\0\0\0")
OPAQUE: Final = WireBytes(flight=b"\xd9" + bytes(147), answer=b"\xd8" + bytes(91), head=b"\xda\1\2\3")
ARMS: Final = {"app": APP, "neutral": OPAQUE, "opaque": OPAQUE}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Announcement]:
    with c.running(tmp_path_factory.mktemp("state")) as announcement:
        yield announcement


class Session(c.Session):  # type: ignore[misc]
    """A session of one pair over UDP."""

    carrier = "datagram"

    def steps(self, **other: Any) -> list[RunSegment]:
        fields = {"direction": "down", "pace_mbps": 8.0, "segment_s": 0.6, "carrier": self.carrier, **other}
        announced = {
            f"{arm}_bytes": dataclasses.asdict(wire.announced()) for arm, wire in (("app", APP), ("neutral", OPAQUE))
        }
        host = self.granted.body["endpoints"][0]["host"]
        self.begin(**{**announced, **fields})
        return [
            RunSegment(
                pair=1,
                slot=0,
                endpoint=Endpoint(host=host, port=self.granted.body["endpoints"][0]["port"]),
                name="arm",
                ticket=ticket,
                certificate="0" * 64,
                app="video",
                profile="video@1:0",
                direction=fields["direction"],
                pace_mbps=fields["pace_mbps"],
                segment_s=fields["segment_s"],
                carrier=fields["carrier"],
                wire=ARMS[arm],
            )
            for ticket, arm in zip(self.order["tickets"], self.order["arms"], strict=True)
        ]

    def judged(self) -> ReceiptPair:
        self.finish()
        return self.close().pairs[0]  # type: ignore[no-any-return]


def run(one: RunSegment, host: str = "127.0.0.1", bind: str | None = None) -> SegmentFacts:
    return Transfers(Dialer(bind), host).run_segment(one, ())


# -- whole pairs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("carrier", ["quic", "datagram"])
@c.undisturbed
def test_a_pair_runs_at_its_pace_and_both_ends_agree(there: Announcement, carrier: str, direction: str) -> None:
    session = Session(there)
    assert {"quic", "datagram"} <= set(session.granted.body["carriers"])
    steps = session.steps(carrier=carrier, direction=direction, segment_s=1.0)
    facts = [run(one) for one in steps]
    pair = session.judged()
    assert (pair.carrier, pair.outcome, pair.saturated) == (carrier, "both", False)
    assert (pair.app_flight, pair.neutral_flight) == (APP.announced().flight, OPAQUE.announced().flight)
    for one, fact, segment in zip(steps, facts, pair.segments, strict=True):
        assert one.wire is not None
        assert segment.end == "complete"
        assert segment.flight_seen == one.wire.announced().flight
        assert segment.name_seen is None
        assert rate_mbps(segment, 1.0) == pytest.approx(8.0, rel=0.03)
        assert segment.bytes == segment.datagrams_received * DATAGRAM_BYTES
        assert sum(segment.bins_bytes) == segment.bytes
        assert segment.datagrams_sent == pytest.approx(segment.datagrams_received, abs=8)
        assert (segment.rtt_ms is not None) == (direction == "down")
        assert fact.failure is None
        assert fact.hello_sent
        assert fact.connect_ms is not None
        assert fact.bytes == pytest.approx(segment.bytes, rel=0.02)
        assert 980 <= fact.duration_ms < 1300
        assert fact.cpu_limited is False
        counts = (fact.datagrams_sent is not None, fact.datagrams_received is not None)
        assert counts == (direction == "up", direction == "down")


def test_the_bench_knows_what_it_served(there: Announcement) -> None:
    before = c.metric(there, "datagram_segments_ended_total", end="complete")
    moved = c.metric(there, "data_bytes_total", direction="down")
    session = Session(there)
    for one in session.steps(segment_s=0.3):
        run(one)
    pair = session.judged()
    assert c.metric(there, "datagram_segments_ended_total", end="complete") == before + 2
    assert c.metric(there, "data_bytes_total", direction="down") == moved + sum(one.bytes for one in pair.segments)
    assert c.wait_for(lambda: c.metric(there, "datagram_segments_open") == 0)
    assert c.metric(there, "datagram_knocks_total", verdict="opened") >= 2


def test_over_ipv6(tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 on loopback")
    with c.running(tmp_path, hosts=("127.0.0.1", "::1")) as there:
        session = Session(there)
        facts = [run(dataclasses.replace(one, endpoint=_at(one, "::1"))) for one in session.steps(segment_s=0.3)]
        assert [fact.failure for fact in facts] == [None, None]
        assert session.judged().outcome == "both"


@pytest.mark.parametrize(("wildcard", "asked"), [("0.0.0.0", "127.0.0.7"), ("::", "::1"), ("::", "127.0.0.7")])
def test_a_wildcard_answers_from_the_address_that_was_asked(tmp_path: Path, wildcard: str, asked: str) -> None:
    with c.running(tmp_path, hosts=(wildcard,), limits=Limits()) as there:
        session = Session(there)
        steps = session.steps(segment_s=0.3)
        try:
            facts = [run(dataclasses.replace(one, endpoint=_at(one, asked))) for one in steps]
        except OSError:
            pytest.skip("this machine has no IPv6 on loopback")
        assert [fact.failure for fact in facts] == [None, None]
        assert session.judged().outcome == "both"


def _at(one: RunSegment, host: str) -> Endpoint:
    return Endpoint(host=host, port=one.endpoint.port)


def test_where_the_udp_port_is_taken_tcp_is_carried_alone(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with c.running(tmp_path, data_port=taken.getsockname()[1]) as there:
            session = c.Session(there)
            assert set(session.granted.body["carriers"]) == {"tls", "hello", "stream"}
            announced = {f"{arm}_bytes": dataclasses.asdict(ARMS[arm].announced()) for arm in ("app", "neutral")}
            refused = session.commit(carrier="quic", **announced)
            assert (refused.status, refused.body["error"]) == (400, "not_granted")


def test_a_pair_that_could_not_be_paced_is_refused_before_it_begins(tmp_path: Path) -> None:
    with c.running(tmp_path, limits=Limits(datagram_mbps=20.0)) as there:
        first, second, third = Session(there), Session(there), c.Session(there)
        steps = first.steps(pace_mbps=12.0, segment_s=0.3)
        announced = {f"{arm}_bytes": dataclasses.asdict(ARMS[arm].announced()) for arm in ("app", "neutral")}
        busy = second.commit(carrier="datagram", pace_mbps=12.0, **announced)
        assert (busy.status, busy.body["error"]) == (503, "busy")
        assert third.commit(carrier="tls", pace_mbps=12.0).status == 200
        for one in steps:
            run(one)
        assert first.judged().outcome == "both"
        assert second.commit(carrier="datagram", pace_mbps=12.0, **announced).status == 200


# -- who knocks wrongly ---------------------------------------------------------------------------------------------


class Knocker:
    """A UDP socket that says what it is told and counts what comes back."""

    def __init__(self, one: RunSegment, host: str = "127.0.0.1") -> None:
        self.step = one
        assert one.wire is not None
        self.wire = one.wire
        self.codec = Codec(one.ticket, "probe", one.wire.head)
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.connect((host, one.endpoint.port))
        self.sent = self.received = 0

    def say(self, raw: bytes) -> None:
        self.sent += len(raw)
        self.sock.send(raw)

    def hello(self, cookie: bytes = bytes(16), head: bytes | None = None) -> None:
        head = self.wire.head if head is None else head
        self.say(opening(head, self.step.hello("127.0.0.1"), secrets.token_bytes, cookie))

    def hear(self, patience_s: float = 0.2) -> list[bytes]:
        heard, until = [], time.monotonic() + patience_s
        while (left := until - time.monotonic()) > 0:
            self.sock.settimeout(left)
            with contextlib.suppress(TimeoutError):
                heard.append(self.sock.recv(2048))
        self.received += sum(map(len, heard))
        return heard

    def challenged(self) -> bytes:
        """Flight and hello; the cookie that comes back behind the answer."""
        self.say(self.wire.flight)
        self.hello()
        heard = self.hear()
        assert heard[0] == self.wire.answer
        packet = self.codec.open(heard[1])
        assert packet is not None
        assert len(heard) == 2
        assert self.received <= 3 * self.sent
        return packet.cookie

    def feedback(self, number: int) -> None:
        self.say(self.codec.seal(Packet(FEEDBACK, number), memoryview(bytes(SIGNAL_BYTES))))

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def knocking(there: Announcement) -> Iterator[tuple[Session, Knocker, Knocker]]:
    """Two sockets that know the first segment's ticket."""
    session = Session(there)
    one = session.steps(segment_s=2.0)[0]
    knockers = Knocker(one), Knocker(one)
    yield session, *knockers
    for knocker in knockers:
        knocker.close()


def test_nothing_comes_back_before_flight_and_hello_are_there(knocking: tuple[Session, Knocker, Knocker]) -> None:
    _, knocker, _ = knocking
    knocker.hello()
    knocker.say(secrets.token_bytes(1200))
    knocker.say(b"")
    knocker.hello(head=b"\5\5\5\5")
    knocker.say(secrets.token_bytes(len(knocker.wire.head) + 544))
    assert knocker.hear() == []


def test_a_cookie_opens_once_and_only_from_where_it_was_sent(knocking: tuple[Session, Knocker, Knocker]) -> None:
    session, knocker, other = knocking
    cookie = knocker.challenged()
    other.say(other.wire.flight)
    other.hello(cookie)
    knocker.hello(b"\1" * 16)
    assert other.hear() == []
    assert knocker.hear() == []
    knocker.hello(cookie)
    assert {len(raw) for raw in knocker.hear(0.3)} == {DATAGRAM_BYTES}
    other.hello(cookie)
    other.hello()
    assert other.hear(0.3) == []  # the ticket is used
    assert session.post("/pairs/1/finish", {"segments": [{"started": True, "bytes": 0, "duration_ms": 0}] * 2})


def test_without_feedback_nothing_is_sent_after_half_a_second(knocking: tuple[Session, Knocker, Knocker]) -> None:
    session, knocker, _ = knocking
    knocker.hello(knocker.challenged())
    start = time.monotonic()
    times = []
    while time.monotonic() < start + 1.2:
        with contextlib.suppress(TimeoutError):
            knocker.sock.settimeout(0.1)
            packet = knocker.codec.open(knocker.sock.recv(2048))
            assert packet is not None
            times.append((time.monotonic() - start, packet.kind))
    assert max(at for at, kind in times if kind == DATA) < 0.6
    assert [kind for _, kind in times].count(END) == 3
    segment = session.judged().segments[0]
    assert (segment.end, segment.bytes) == ("aborted", 0)


def test_another_flight_is_a_mismatch_and_gets_silence(knocking: tuple[Session, Knocker, Knocker]) -> None:
    session, knocker, _ = knocking
    knocker.wire = dataclasses.replace(knocker.wire, flight=b"\xff" * 148)
    knocker.hello(knocker.challenged())
    assert knocker.hear() == []
    segment = session.judged().segments[0]
    assert segment.end == "mismatch"
    assert segment.flight_seen == knocker.wire.announced().flight


def test_the_probe_names_a_silent_and_a_closed_port(there: Announcement) -> None:
    session = Session(there)
    one = dataclasses.replace(session.steps()[0], connect_timeout_s=0.6)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        port = mute.getsockname()[1]
        silent = run(dataclasses.replace(one, endpoint=Endpoint(host=None, port=port)))
    assert (silent.failure, silent.hello_sent, silent.connect_ms) == ("connect_timeout", True, None)
    closed = run(dataclasses.replace(one, endpoint=Endpoint(host=None, port=port)))
    assert closed.failure == "connection_refused"
    ends = {segment.end for segment in session.judged().segments}
    assert ends == {"absent"}


def test_finishing_a_pair_ends_its_segment(there: Announcement) -> None:
    session = Session(there)
    one = session.steps(segment_s=3.0)[0]
    facts: list[SegmentFacts] = []
    thread = threading.Thread(target=lambda: facts.append(run(one)))
    thread.start()
    assert c.wait_for(lambda: c.metric(there, "datagram_segments_open") >= 1)
    time.sleep(0.3)
    pair = session.judged()
    thread.join(5)
    assert pair.segments[0].end == "aborted"
    assert facts[0].failure == "connection_aborted"
    assert facts[0].duration_ms < 2500


def test_garbage_from_many_ports_leaves_the_reflector_at_work(there: Announcement) -> None:
    session = Session(there)
    one = session.steps(segment_s=0.3)[0]
    for _ in range(300):
        knocker = Knocker(one)
        for size in (1, 40, 548, 548, 1400):
            knocker.say(secrets.token_bytes(size))
        knocker.close()
    assert run(one).failure is None
    assert c.metric(there, "datagram_knocks_total", verdict="first") > 250

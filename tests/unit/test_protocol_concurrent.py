# SPDX-License-Identifier: EUPL-1.2
"""Concurrent pairs without sockets: small packets at their times, echoes that nobody can foresee, and when it ends."""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.protocol import concurrent
from probe.protocol.accounts import EchoPlan, Job
from probe.protocol.concurrent import (
    GRACE_S,
    MOST_WELCOMES,
    STALE_S,
    START_WAIT_S,
    Echoes,
    concurrent_pair_bytes,
    echo_of,
    echo_plan,
    packet_count,
    why_not_concurrent,
)
from probe.protocol.concurrent_probe import AnsweringFlow, Frames
from probe.protocol.concurrent_reflector import EchoFlow
from probe.protocol.datagram import ALIVE, ECHO, END, PING, SIGNAL_BYTES, Codec, Packet, challenge
from probe.protocol.datagram_flow import Filler
from probe.protocol.pacing import FRAMING, load_pace_mbps
from probe.protocol.steps import RunSegment, WireBytes
from probe.wire.echo import BASELINE_S, baseline_ms, delay_ms, echoes_under_load, loss
from probe.wire.limits import MAX_ECHOES
from probe.wire.messages import Endpoint, PairCommit, SmallPackets
from probe.wire.records import Segment

PLAN = EchoPlan(count=50, interval_s=0.02, size=160, offset_s=0.0, secret=b"s" * 16)
PACKETS = SmallPackets(bytes=160, interval_ms=20, load_name="load.example.org")
COMMIT = PairCommit(
    pair=1, commit="0" * 64, kind="test", app="rtp+live", profile="p", direction="down", pace_mbps=8.0, segment_s=1.0,
    app_name="app.example.net", neutral_name="twin.example.org", design="concurrent", packets=PACKETS,
)  # fmt: skip
POOL = memoryview(random.Random(1).randbytes(256 * 1024))
TICKET = "ab" * 16
WIRE = WireBytes(flight=b"\x80" * 172, answer=b"\x81" * 40, head=b"\x80\0\1\2")
STEP = RunSegment(
    pair=1, slot=0, endpoint=Endpoint(host=None, port=443), name="arm", ticket=TICKET, certificate="0" * 64,
    app="rtp+live", profile="p", direction="down", pace_mbps=8.0, segment_s=1.0, carrier="datagram", wire=WIRE,
    packet_bytes=160,
)  # fmt: skip


# -- one slot's packets and echoes -------------------------------------------------------------------------------


def test_packets_leave_at_their_times_and_slot_b_half_an_interval_behind() -> None:
    due: dict[int, list[float]] = {}
    for slot in (0, 1):
        echoes = Echoes(echo_plan(COMMIT, slot, b"x" * 16))
        echoes.begin(10.0)
        times = due.setdefault(slot, [])
        while not echoes.is_all_sent:
            times.append(echoes.wake_at)
            assert len(echoes.due(echoes.wake_at)) == 1
    assert due[0] == pytest.approx([10.0 + 0.02 * k for k in range(50)])
    assert [b - a for a, b in zip(due[0], due[1], strict=True)] == pytest.approx([0.01] * 50)


def test_an_echo_counts_once_and_only_with_what_its_packet_carried() -> None:
    echoes = Echoes(PLAN)
    echoes.begin(0.0)
    [ping] = echoes.due(0.0)
    assert (ping.kind, ping.sequence) == (PING, 1)
    good = echo_of(ping, 0.5)
    assert not echoes.take(good._replace(held_us=good.held_us ^ 1), 0.01)
    assert not echoes.take(good._replace(kind=PING), 0.01)
    assert not echoes.take(good._replace(sequence=2), 0.01)
    assert echoes.take(good, 0.03)
    assert not echoes.take(good, 0.04), "a second time"
    assert echoes.echo_us == (30_000,) + (-1,) * 49
    assert (echoes.answered, echoes.bytes) == (1, 160)


def test_what_was_not_sent_yet_cannot_be_answered() -> None:
    """A probe that could foresee packets could make any delay look like none."""
    echoes, seen = Echoes(PLAN), Echoes(PLAN)
    seen.begin(0.0)
    echoes.begin(0.0)
    first, second = (echo_of(ping, 0.0) for ping in [*seen.due(0.0), *seen.due(0.02)])
    echoes.due(0.0)
    assert not echoes.take(second, 0.001)
    assert echoes.take(first, 0.001)
    other = Echoes(replace(PLAN, secret=b"t" * 16))
    tokens = {(echoes.ping(k, 0.0).echo_us, echoes.ping(k, 0.0).held_us) for k in range(51)}
    assert len(tokens) == 51
    assert tokens.isdisjoint({(other.ping(k, 0.0).echo_us, other.ping(k, 0.0).held_us) for k in range(51)})


def test_it_is_over_with_the_last_echo_or_a_second_after_its_clock() -> None:
    echoes = Echoes(PLAN)
    assert not echoes.is_over(100.0), "it has not begun"
    echoes.begin(0.0)
    pings = [ping for k in range(50) for ping in echoes.due(0.02 * k + 1e-9)]
    for ping in pings[:-1]:
        echoes.take(echo_of(ping, 0.0), 0.99)
    assert not echoes.is_over(0.99)
    assert not echoes.is_over(1.0 + GRACE_S - 0.001)
    assert echoes.is_over(1.0 + GRACE_S)
    assert echoes.take(echo_of(pings[-1], 0.0), 1.2)
    assert echoes.is_over(1.2)


# -- what is fixed before the coin ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({}, ""),
        ({"packets": None}, "needs its small packets"),
        ({"design": "sequential"}, "belong to concurrent pairs"),
        ({"segment_s": 0.9}, "at least 1 s"),
        ({"segment_s": 60.0}, "more than 1200"),
        ({"packets": replace(PACKETS, load_name="APP.example.net")}, "neither arm has"),
        ({"packets": replace(PACKETS, load_name="twin.example.org")}, "neither arm has"),
        ({"packets": replace(PACKETS, load_name="")}, "neither arm has"),
        ({"design": "sequential", "packets": None}, ""),
    ],
)
def test_what_a_commitment_of_either_design_must_say(other: dict[str, object], why: str) -> None:
    found = why_not_concurrent(replace(COMMIT, **other))  # type: ignore[arg-type]
    assert why in found
    assert bool(why) == bool(found)


@given(interval_ms=st.integers(5, 200), segment_s=st.floats(1.0, 60.0))
def test_every_packet_fits_its_segment(interval_ms: int, segment_s: float) -> None:
    count = packet_count(segment_s, interval_ms)
    assert count * interval_ms <= segment_s * 1000 + 1e-3
    assert (count + 1) * interval_ms > segment_s * 1000 - 1e-3
    commit = replace(COMMIT, segment_s=segment_s, packets=replace(PACKETS, interval_ms=interval_ms))
    assert (count > MAX_ECHOES) == ("more than" in why_not_concurrent(commit))


def test_the_bytes_of_a_pair_hold_the_load_and_both_slots_both_ways() -> None:
    assert concurrent_pair_bytes(8.0, 1.0, PACKETS) == round(8e6 / 8 * 0.5 * FRAMING) + 2 * 50 * 2 * (160 + 110)
    assert concurrent_pair_bytes(0.0, 1.0, PACKETS) == 2 * 50 * 2 * 270, "an unlimited load is counted when it ran"


def test_the_load_is_faster_than_the_line_and_never_faster_than_allowed() -> None:
    assert load_pace_mbps(10.0, 20.0) == 15.0
    assert load_pace_mbps(30.0, 20.0) == 20.0
    assert load_pace_mbps(None, 20.0) == 20.0


# -- delay and loss ------------------------------------------------------------------------------------------------


def slot_of(*echo_us: int, end: str = "complete") -> Segment:
    return Segment(arm="app", end=end, echo_us=echo_us)  # type: ignore[arg-type]


def test_delay_is_the_median_under_load_and_loss_the_share_of_all() -> None:
    segment = slot_of(*[20_000] * 25, *[50_000] * 20, -1, -1, -1, -1, -1)
    assert echoes_under_load(segment, 1.0) == (50_000,) * 20 + (-1,) * 5
    assert delay_ms(segment, 1.0) == 50.0
    assert loss(segment) == 0.1
    assert baseline_ms([segment, slot_of(19_500)]) == 19.5
    assert len(echoes_under_load(slot_of(*[1] * 200), 4.0)) == 175
    assert len(echoes_under_load(slot_of(*[1] * 30), 1.0)) == 15


def test_without_echoes_there_is_no_delay() -> None:
    for segment in (slot_of(), slot_of(5, 5, end="aborted"), slot_of(5, -1, -1, -1)):
        assert delay_ms(segment, 1.0) is None
    assert loss(slot_of()) is None
    assert loss(slot_of(-1, -1)) == 1.0
    assert delay_ms(slot_of(5, 5), BASELINE_S) is None
    assert baseline_ms([slot_of(-1)]) is None


# -- over UDP, both ends and a line in between ---------------------------------------------------------------------

Line = Callable[[bytes, float, bool], "float | None"]
"""When a datagram that leaves now arrives (True: downwards); None where it is lost."""


def job_of(step: RunSegment, plan: EchoPlan = PLAN) -> Job:
    head = step.wire.head if step.wire else b""
    return Job(
        session="0" * 32, ticket=step.ticket, direction=step.direction, pace_mbps=8.0, duration_s=step.segment_s,
        carrier=step.carrier, head=head, echo=plan,
    )  # fmt: skip


class World:
    """One slot in virtual time, from the probe's first datagram on."""

    def __init__(self, line: Line, *, begins_at: float | None = 0.3) -> None:
        self.line, self.begins_at = line, begins_at
        self.probe = AnsweringFlow(STEP, STEP.hello(None), Filler(POOL), random.Random(2).randbytes, 0.0)
        self.reflector: EchoFlow | None = None
        self.codec = Codec(TICKET, "reflector", WIRE.head)
        self.under_way: list[tuple[float, int, bool, bytes]] = []
        self.order = itertools.count()
        self.sent_down: list[tuple[float, bytes]] = []
        self.sent_up: list[tuple[float, bytes]] = []

    def send(self, raw: bytes, now: float, down: bool) -> None:
        (self.sent_down if down else self.sent_up).append((now, raw))
        at = self.line(raw, now, down)
        if at is not None:
            heapq.heappush(self.under_way, (at, next(self.order), down, raw))

    def run(self, until: float = 4.0) -> EchoFlow:
        now = 0.0
        has_begun = False
        while now < until:
            while self.under_way and self.under_way[0][0] <= now:
                _, _, down, raw = heapq.heappop(self.under_way)
                self.arrive(raw, now, down)
            if self.begins_at is not None and now >= self.begins_at and not has_begun and self.reflector is not None:
                has_begun = True
                self.probe.begin(now)
                self.reflector.begin(now)
            for raw in self.probe.poll(now):
                self.send(raw, now, down=False)
            if self.reflector is not None:
                for raw in self.reflector.poll(now):
                    self.send(raw, now, down=True)
                if self.reflector.is_over and self.probe.is_over:
                    break
            now += 0.001
        assert self.reflector is not None
        return self.reflector

    def arrive(self, raw: bytes, now: float, down: bool) -> None:
        if down:
            self.probe.receive(raw, now)
        elif self.reflector is not None:
            self.reflector.receive(raw, now)
        elif len(raw) > 500:  # a hello: first without, then with the cookie
            if self.probe.phase == "knocking":
                self.send(self.codec.seal(challenge(b"c" * 16), POOL[:SIGNAL_BYTES]), now, down=True)
            else:
                self.reflector = EchoFlow(job_of(STEP), self.codec, Filler(POOL), now, 1_800_000_000_000)

    def sizes_down(self) -> set[int]:
        return {len(raw) for _, raw in self.sent_down}


def steady(ms: float = 10.0) -> Line:
    return lambda _raw, now, _down: now + ms / 1000


def test_a_whole_slot_over_udp() -> None:
    world = World(steady(10.0))
    found = world.run()
    counted = found.counted
    assert counted is not None
    assert counted.end == "complete"
    assert len(counted.echo_us) == 50
    assert all(20_000 <= us <= 23_000 for us in counted.echo_us), "the line, and the steps of this world"
    assert (counted.datagrams_sent, counted.datagrams_received) == (50, 50)
    assert counted.duration_ms == pytest.approx(1000, abs=25)
    assert counted.bytes == 50 * 160
    assert (world.probe.failure, world.probe.pings) == (None, 50)
    assert world.sizes_down() == {160, SIGNAL_BYTES}, "small packets, and what opens and ends"


def test_a_queue_shows_as_delay_and_a_loss_as_minus_one() -> None:
    lost = itertools.count()

    def line(raw: bytes, now: float, down: bool) -> float | None:
        if down and len(raw) == 160 and now > 0.3 and next(lost) % 10 == 3:
            return None
        return now + (0.06 if down and now >= 0.8 else 0.01)

    counted = World(line).run().counted
    assert counted is not None
    segment = slot_of(*counted.echo_us)
    assert loss(segment) == 0.1
    assert delay_ms(segment, 1.0) == pytest.approx(70, abs=2.5)
    assert baseline_ms([segment]) == pytest.approx(20, abs=2.5)


def test_nothing_but_a_few_welcomes_leaves_before_the_pair_begins() -> None:
    world = World(steady(), begins_at=None)
    found = world.run(until=START_WAIT_S + 2)
    assert found.counted is not None
    assert (found.counted.end, found.counted.echo_us) == ("aborted", ())
    assert sum(len(raw) == 160 for _, raw in world.sent_down) <= 2, "one, and at most one more while its echo comes"


def test_a_peer_that_echoes_its_cookie_and_is_gone_gets_five_welcomes() -> None:
    codec = Codec(TICKET, "reflector", WIRE.head)
    flow = EchoFlow(job_of(STEP), codec, Filler(POOL), 0.0, 0)
    sent = [raw for k in range(30_000) for raw in flow.poll(k / 1000)]
    assert sum(len(raw) == 160 for raw in sent) == MOST_WELCOMES
    assert flow.counted is not None
    assert flow.counted.end == "aborted"


def test_a_slot_stops_within_half_a_second_of_silence() -> None:
    world = World(lambda _raw, now, down: now + 0.01 if down or now < 0.6 else None)
    counted = world.run().counted
    assert counted is not None
    assert counted.end == "aborted"
    last = max(at for at, raw in world.sent_down if len(raw) == 160)
    assert last <= 0.6 + 0.01 + STALE_S + 0.002


def test_without_echoes_it_thins_out_and_comes_back_with_them() -> None:
    """A rule that lets only keep-alives pass must neither be fed on nor be taken for a failure."""

    def line(raw: bytes, now: float, down: bool) -> float | None:
        starves = down and len(raw) == 160 and 0.8 < now < 2.4
        return None if starves else now + 0.01

    step = replace(STEP, segment_s=4.0)
    world = World(line)
    world.probe = AnsweringFlow(step, step.hello(None), Filler(POOL), random.Random(2).randbytes, 0.0)
    world.reflector = None
    plan = replace(PLAN, count=200)
    arrive = world.arrive

    def longer(raw: bytes, now: float, down: bool) -> None:
        arrive(raw, now, down)
        if world.reflector is not None and world.reflector.job.echo != plan:
            world.reflector = EchoFlow(job_of(step, plan), world.codec, Filler(POOL), now, 0)

    world.arrive = longer  # type: ignore[method-assign]
    counted = world.run(until=7.0).counted
    assert counted is not None
    assert counted.end == "complete"
    in_vain = [at for at, raw in world.sent_down if len(raw) == 160 and 0.8 + STALE_S + 0.03 < at < 2.4]
    assert 2 <= len(in_vain) <= 4, "one in half a second"
    assert counted.datagrams_sent is not None
    assert counted.datagrams_sent < 200
    assert counted.echo_us[-20:].count(-1) == 0, "back at its full rate"
    assert {raw_size for at, raw in world.sent_up if 1.5 < at < 2.3 and (raw_size := len(raw))} == {SIGNAL_BYTES}


def test_a_segment_that_never_gets_a_packet_through_is_complete_and_lost_everything() -> None:
    world = World(lambda raw, now, down: None if down and len(raw) == 160 and now > 0.3 else now + 0.01)
    counted = world.run().counted
    assert counted is not None
    assert counted.end == "complete"
    assert loss(slot_of(*counted.echo_us)) == 1.0
    assert (world.probe.failure, world.probe.pings) == (None, 0), "the reflector ended it in time"


def test_the_probe_answers_with_as_many_bytes_as_came() -> None:
    """Over UDP the echo is no amplifier for whoever can make the probe's reflector speak."""
    world = World(steady())
    world.run()
    pings = sum(len(raw) for _, raw in world.sent_down if len(raw) == 160)
    echoes = sum(len(raw) for _, raw in world.sent_up if len(raw) == 160)
    assert echoes <= pings


def test_an_end_before_its_time_is_a_failure_at_the_probe() -> None:
    flow = AnsweringFlow(STEP, STEP.hello(None), Filler(POOL), random.Random(2).randbytes, 0.0)
    codec = Codec(TICKET, "reflector", WIRE.head)
    flow.poll(0.0)
    flow.poll(0.3)
    flow.receive(codec.seal(challenge(b"c" * 16), POOL[:SIGNAL_BYTES]), 0.31)
    flow.poll(0.31)
    flow.receive(codec.seal(Packet(PING, 0, 5, 1, 2), POOL[:160]), 0.33)
    assert flow.is_open
    [echo] = [codec.open(raw) for raw in flow.poll(0.33)]
    assert echo is not None
    assert (echo.kind, echo.sequence, echo.echo_us, echo.held_us) == (ECHO, 0, 1, 2)
    flow.begin(0.4)
    assert [one.kind for raw in flow.poll(0.51) if (one := codec.open(raw)) is not None] == [ALIVE]
    flow.receive(codec.seal(Packet(END, 1), POOL[:SIGNAL_BYTES]), 0.9)
    assert (flow.phase, flow.failure) == ("over", "connection_aborted")


# -- over TCP: frames ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", ["tls", "stream", "hello"])
def test_frames_of_one_length_survive_any_cutting(carrier: str) -> None:
    here = Frames(carrier, Codec(TICKET, "reflector", b""), 160)  # type: ignore[arg-type]
    there = Frames(carrier, Codec(TICKET, "probe", b""), 160)  # type: ignore[arg-type]
    sent = [Packet(PING, k, 1, 2, 3) for k in range(40)]
    stream = b"".join(here.make(one, Filler(POOL)) for one in sent)
    assert len(stream) == 40 * here.wire_bytes == 40 * (165 if carrier == "hello" else 160)
    rng, got = random.Random(3), []
    while stream:
        cut = rng.randrange(1, 400)
        got += there.take(stream[:cut])
        stream = stream[cut:]
    assert got == sent


def test_what_looks_like_tls_over_hello_is_a_record() -> None:
    raw = Frames("hello", Codec(TICKET, "probe", b""), 160).make(Packet(ECHO, 1), Filler(POOL))
    assert raw[:5] == b"\x17\x03\x03\x00\xa0"


def test_a_frame_of_somebody_else_counts_for_nothing() -> None:
    there = Frames("stream", Codec(TICKET, "probe", b""), 160)
    strange = Frames("stream", Codec("cd" * 16, "reflector", b""), 160).make(Packet(PING, 1), Filler(POOL))
    good = Frames("stream", Codec(TICKET, "reflector", b""), 160).make(Packet(PING, 2), Filler(POOL))
    assert [one.sequence for one in there.take(strange + good)] == [2]


def test_the_phases_of_two_slots_never_meet() -> None:
    """Else one slot's packets would always queue behind the other's."""
    for interval_ms in (5, 20, 33, 200):
        commit = replace(COMMIT, packets=replace(PACKETS, interval_ms=interval_ms))
        first, second = (echo_plan(commit, slot, b"") for slot in (0, 1))
        assert second.offset_s - first.offset_s == pytest.approx(interval_ms / 2000)
        assert first.count == second.count
    assert statistics.fmean([concurrent.small_mbps(PACKETS)]) == pytest.approx(0.064)

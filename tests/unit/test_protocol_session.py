# SPDX-License-Identifier: EUPL-1.2
"""Both roles together in memory: whole sessions, lost answers, early stop, records."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from probe.protocol import probe_role
from probe.protocol.accounts import Counted, Limits, NoJob
from probe.protocol.memory import MemoryReflector, VirtualClock, drive, even_transfer, send
from probe.protocol.probe_role import RETRY_WAITS_MS, ProbeSession
from probe.protocol.session import decode_message
from probe.protocol.steps import (
    AwaitPlan,
    Finished,
    Guard,
    PlannedPair,
    RunSegment,
    SegmentFacts,
    Send,
    Wait,
    WireBytes,
)
from probe.wire.codec import from_dict, to_dict
from probe.wire.envelope import open_record, seal
from probe.wire.messages import PairNonce, SessionGrant, SessionRequest
from probe.wire.rate import rate_mbps
from probe.wire.records import Environment, Measurement, Origin, Receipt, Started
from probe.wire.signing import SeedSigner

NOW = 1_800_000_000_000
PROBE = SeedSigner(b"\x01" * 32, "cryptography")
PAIR = PlannedPair(
    kind="test",
    app="youtube",
    profile="youtube@1:0123456789abcdef",
    direction="down",
    pace_mbps=8.0,
    segment_s=1.0,
    app_name="r1.googlevideo.com",
    neutral_name="cdn3.meadowline.net",
)


def request(pairs: int = 12, pace: float = 12.0) -> SessionRequest:
    return SessionRequest(v=1, probe=PROBE.key_id, nettest="differential", pairs=pairs, segment_s=4.0, pace_mbps=pace)


def reflector(seed: int = 1, **more: object) -> MemoryReflector:
    return MemoryReflector(
        signer=SeedSigner(b"\x02" * 32, "cryptography"),
        clock=VirtualClock(NOW),
        random_bytes=random.Random(seed).randbytes,
        **more,  # type: ignore[arg-type]
    )


def probe(seed: int = 2, **more: object) -> ProbeSession:
    return ProbeSession(more.pop("request", request()), random_bytes=random.Random(seed).randbytes, **more)  # type: ignore[arg-type]


def by_name(app: float, neutral: float):  # type: ignore[no-untyped-def]
    return even_transfer(lambda step: app if step.name == PAIR.app_name else neutral)


def receipt_of(session: ProbeSession) -> Receipt:
    assert session.receipt is not None
    record = open_record(session.receipt)
    assert isinstance(record, Receipt)
    return record


def test_a_whole_session_ends_in_two_records_that_agree() -> None:
    there, here = reflector(endpoints=3), probe()
    end = drive(here, there, [PAIR] * 12, by_name(app=1.5, neutral=8.0))
    assert end == Finished(failure=None)
    receipt = receipt_of(here)
    record = here.measurement(record_id="ab" * 16, sequence=3, environment=Environment())
    assert from_dict(Measurement, to_dict(record)) == record
    assert from_dict(Receipt, to_dict(receipt)) == receipt
    assert (receipt.end, receipt.session, receipt.probe) == ("closed", record.session, PROBE.key_id)
    assert [pair.pair for pair in receipt.pairs] == [pair.pair for pair in record.pairs] == list(range(1, 13))
    for seen, told in zip(receipt.pairs, record.pairs, strict=True):
        assert seen.probe_nonce == told.nonce
        assert [segment.arm for segment in seen.segments] == [segment.arm for segment in told.segments]
        assert seen.segments[0].arm == ("neutral" if seen.neutral_first else "app")
        assert seen.outcome == "both"
        for segment in seen.segments:
            expected = 1.5 if segment.arm == "app" else 8.0
            assert rate_mbps(segment, seen.segment_s) == pytest.approx(expected, rel=0.01)
            assert segment.name_seen == (PAIR.app_name if segment.arm == "app" else PAIR.neutral_name)
    assert {pair.neutral_first for pair in receipt.pairs} == {True, False}
    assert {pair.endpoint for pair in receipt.pairs} == {0, 1, 2}
    assert len({pair.reflector_nonce for pair in receipt.pairs}) == 12
    started = [open_record(envelope) for envelope in there.started]
    assert [(s.pair, s.reflector_nonce) for s in started if isinstance(s, Started)] == [
        (pair.pair, pair.reflector_nonce) for pair in receipt.pairs
    ]
    assert there.booking.sessions_open == 0


def test_steps_come_in_the_order_of_the_spec() -> None:
    there, here = reflector(), probe()
    seen: list[str] = []
    original = here.next

    def watched(now_ms: int):  # type: ignore[no-untyped-def]
        step = original(now_ms)
        seen.append(step.path.rsplit("/", 1)[-1] if isinstance(step, Send) else type(step).__name__)
        return step

    here.next = watched  # type: ignore[method-assign]
    drive(here, there, [PAIR], by_name(8, 8))
    pair = ["pairs", "reveal", "RunSegment", "Guard", "RunSegment", "Guard", "finish"]
    assert seen == ["sessions", "AwaitPlan", *pair, "close", "Finished"]


def test_asking_again_gives_the_same_step() -> None:
    there, here = reflector(), probe()
    for _ in range(40):
        step = here.next(there.clock.now_ms)
        assert here.next(there.clock.now_ms) == step
        if isinstance(step, Finished):
            return
        if isinstance(step, Send):
            found = send(step, there)
            here.answered(found.status, found.body, there.clock.now_ms)
        elif isinstance(step, AwaitPlan):
            here.plan([PAIR])
        elif isinstance(step, RunSegment):
            here.segment_ended(by_name(8, 8)(step, there), there.clock.now_ms)
        elif isinstance(step, Guard):
            here.guard_ended(3, there.clock.now_ms)
    pytest.fail("the session never ended")


def test_nothing_but_the_nonce_is_unknown_when_the_commitment_goes_out() -> None:
    there, here = reflector(), probe()
    opening = here.next(NOW)
    assert isinstance(opening, Send)
    here.answered(201, send(opening, there).body, NOW)
    here.plan([PAIR])
    commit = here.next(NOW)
    assert isinstance(commit, Send)
    nonce = here.measured[0].nonce
    assert nonce.encode() not in commit.body
    assert here.next(NOW) == commit


class Lossy:
    """Loses answers (the request arrives) or requests, as told by a function of the count."""

    def __init__(self, lose: dict[int, str]) -> None:
        self.lose, self.count = lose, 0

    def drive(self, session: ProbeSession, there: MemoryReflector, plan: list[PlannedPair]) -> Finished:
        while True:
            step = session.next(there.clock.now_ms)
            if isinstance(step, Finished):
                return step
            if isinstance(step, Wait):
                there.clock.advance(step.ms)
            elif isinstance(step, AwaitPlan):
                session.plan(plan)
            elif isinstance(step, RunSegment):
                session.segment_ended(by_name(8, 8)(step, there), there.clock.now_ms)
            elif isinstance(step, Guard):
                session.guard_ended(5, there.clock.now_ms)
            else:
                self.count += 1
                what = self.lose.get(self.count)
                found = send(step, there) if what != "request" else None
                if what is None and found is not None:
                    session.answered(found.status, found.body, there.clock.now_ms, found.retry_after_s)
                else:
                    session.control_failed("out_of_time", there.clock.now_ms)


@pytest.mark.parametrize("what", ["answer", "request"])
@pytest.mark.parametrize("which", range(2, 9))
def test_one_lost_request_or_answer_loses_no_pair(what: str, which: int) -> None:
    there, here = reflector(), probe()
    assert Lossy({which: what, which + 1: what}).drive(here, there, [PAIR] * 2) == Finished(failure=None)
    receipt = receipt_of(here)
    assert [pair.outcome for pair in receipt.pairs] == ["both", "both"]
    assert len(there.started) == 2  # repeated requests wrote nothing twice
    assert [pair.probe_nonce for pair in receipt.pairs] == [pair.nonce for pair in here.measured]


def test_a_dead_control_channel_ends_the_session_after_two_repeats_and_the_pair_is_lost() -> None:
    there, here = reflector(), probe()
    lossy = Lossy(dict.fromkeys(range(4, 40), "request"))
    assert lossy.drive(here, there, [PAIR] * 2) == Finished(failure="out_of_time")
    assert lossy.count == 4 + len(RETRY_WAITS_MS)
    assert here.receipt is None
    there.clock.advance(28_000)
    there.tick()
    assert not there.receipts
    there.clock.advance(2_000)
    there.tick()
    (envelope,) = there.receipts.values()
    receipt = open_record(envelope)
    assert isinstance(receipt, Receipt)
    assert (receipt.end, [pair.outcome for pair in receipt.pairs]) == ("timed_out", ["unfinished"])
    assert [segment.end for segment in receipt.pairs[0].segments] == ["complete", "complete"]
    record = here.measurement(record_id="ab" * 16, sequence=0, environment=Environment())
    assert record.failure == "out_of_time"
    assert [pair.pair for pair in record.pairs] == [1]


def test_silence_is_allowed_for_as_long_as_a_segment_runs() -> None:
    there = reflector()
    long = replace(PAIR, segment_s=40.0)
    here = ProbeSession(replace(request(), segment_s=40.0), random_bytes=random.Random(2).randbytes)

    def transfer(step: RunSegment, at: MemoryReflector) -> SegmentFacts:
        job = at.connect(step.hello(None), step.name)
        assert not isinstance(job, NoJob)
        for _ in range(40):
            at.clock.advance(1000)
            at.tick()
        at.count(job, Counted(end="complete"))
        return SegmentFacts(hello_sent=True)

    assert drive(here, there, [long], transfer).failure is None
    assert receipt_of(here).end == "closed"


def test_a_reflector_that_is_not_there_is_asked_once() -> None:
    here = probe()
    assert isinstance(here.next(NOW), Send)
    here.control_failed("connection_refused", NOW)
    assert here.next(NOW) == Finished(failure="connection_refused")
    with pytest.raises(ValueError, match="granted"):
        here.measurement(record_id="ab" * 16, sequence=0, environment=Environment())


def test_early_stop_waits_for_the_end_of_the_pair() -> None:
    there, here = reflector(), probe()

    def transfer(step: RunSegment, at: MemoryReflector) -> SegmentFacts:
        if step.pair == 2 and step.slot == 0:
            here.stop("out_of_budget")
        return by_name(8, 8)(step, at)

    end = drive(here, there, [PAIR] * 9, transfer)
    assert end.failure == "out_of_budget"
    assert [pair.outcome for pair in receipt_of(here).pairs] == ["both", "both"]


def test_more_pairs_can_be_planned_between_pairs_and_never_within_one() -> None:
    there, here = reflector(), probe()
    planned_late = []

    def transfer(step: RunSegment, at: MemoryReflector) -> SegmentFacts:
        with pytest.raises(ValueError, match="between pairs"):
            here.plan([PAIR])
        planned_late.append(step.pair)
        return by_name(8, 8)(step, at)

    original = here.answered

    def answered(*args: object) -> None:
        original(*args)  # type: ignore[arg-type]
        if here.is_between_pairs and len(here.results) == 1:
            here.plan([PAIR])

    here.answered = answered  # type: ignore[method-assign,assignment]
    drive(here, there, [PAIR], transfer)
    assert [pair.pair for pair in receipt_of(here).pairs] == [1, 2]


def test_an_empty_plan_closes_the_session() -> None:
    there, here = reflector(), probe()
    assert drive(here, there, [], by_name(8, 8)) == Finished(failure=None)
    assert receipt_of(here).pairs == ()


def test_grants_bind_pairs_and_pace() -> None:
    there = reflector(limits=Limits(pairs=2, most_pace_mbps=5.0))
    here = probe()
    drive(here, there, [PAIR] * 4, by_name(5, 5))
    assert [pair.pace_mbps for pair in receipt_of(here).pairs] == [5.0, 5.0]


def test_abandoning_keeps_the_pair_and_asks_for_the_receipt() -> None:
    there, here = reflector(), probe()
    step = here.next(NOW)
    while not isinstance(step, Finished):
        if isinstance(step, AwaitPlan):
            here.plan([PAIR] * 3)
        elif isinstance(step, RunSegment):
            here.abandon("out_of_time")
        elif isinstance(step, Send):
            found = send(step, there)
            here.answered(found.status, found.body, NOW)
        step = here.next(NOW)
    assert step.failure == "out_of_time"
    assert [pair.outcome for pair in receipt_of(here).pairs] == ["unfinished"]
    assert len(here.measured) == 1


@pytest.mark.parametrize(
    ("ends", "outcome"),
    [
        (("complete", "complete"), "both"),
        (("reset", "complete"), "one_failed"),
        (("complete", "aborted"), "one_failed"),
        (("absent", "reset"), "both_failed"),
    ],
)
def test_outcomes(ends: tuple[str, str], outcome: str) -> None:
    there, here = reflector(), probe()

    def transfer(step: RunSegment, at: MemoryReflector) -> SegmentFacts:
        end = ends[step.slot]
        if end == "absent":
            at.clock.advance(3000)
            return SegmentFacts(hello_sent=False, failure="connect_timeout")
        job = at.connect(step.hello(None), step.name)
        assert not isinstance(job, NoJob)
        at.clock.advance(400)
        at.count(job, Counted(end=end, bytes=1000, duration_ms=400))  # type: ignore[arg-type]
        return SegmentFacts(hello_sent=True, failure=None if end == "complete" else "connection_reset")

    drive(here, there, [PAIR], transfer)
    (pair,) = receipt_of(here).pairs
    assert tuple(segment.end for segment in pair.segments) == ends
    assert pair.outcome == outcome == here.results[0].outcome


def test_a_failed_first_segment_leaves_the_second_time_enough() -> None:
    """Connect and TLS time-outs of both segments together exceed one ticket window."""
    there, here = reflector(), probe()

    def transfer(step: RunSegment, at: MemoryReflector) -> SegmentFacts:
        at.clock.advance(6500)
        if step.slot == 0:
            return SegmentFacts(hello_sent=False, failure="tls_timeout")
        return by_name(8, 8)(step, at)

    drive(here, there, [PAIR], transfer)
    assert [segment.end for segment in receipt_of(here).pairs[0].segments] == ["absent", "complete"]


def test_household_and_cpu_are_told_of_both_segments_together() -> None:
    there, here = reflector(), probe()

    def transfer(step: RunSegment, at: MemoryReflector) -> SegmentFacts:
        facts = by_name(8, 8)(step, at)
        return replace(facts, household_kb=10 + step.slot, cpu_limited=step.slot == 1)

    drive(here, there, [PAIR], transfer)
    (pair,) = here.measured
    assert (pair.household_kb, pair.cpu_limited) == (21, True)


def test_origin_is_that_of_the_first_data_connection() -> None:
    control = Origin(asn=1, network="a" * 16)
    data = Origin(asn=2, network="b" * 16, edge=True)
    other = Origin(asn=3, network="c" * 16, edge=True)
    for later, edge in ((data, True), (other, False), (replace(data, edge=False), False)):
        there, here = reflector(origin=control), probe()
        origins = iter([data, data, later, later])

        def transfer(step: RunSegment, at: MemoryReflector, origins=origins) -> SegmentFacts:  # type: ignore[no-untyped-def]
            job = at.connect(step.hello(None), step.name, next(origins))
            assert not isinstance(job, NoJob)
            at.count(job, Counted(end="complete"))
            return SegmentFacts(hello_sent=True)

        drive(here, there, [PAIR, PAIR], transfer)
        assert receipt_of(here).origin == replace(data, edge=edge)
        first, second = (open_record(envelope) for envelope in there.started)
        assert isinstance(first, Started)
        assert isinstance(second, Started)
        assert (first.origin.asn, second.origin.asn) == (1, 2)


def test_calibration_comes_first_and_twice_at_most() -> None:
    there, here = reflector(), probe()
    opening = here.next(NOW)
    assert isinstance(opening, Send)
    here.answered(201, send(opening, there).body, NOW)
    for direction in ("down", "up"):
        step = here.calibration(name="cdn3.meadowline.net", direction=direction)  # type: ignore[arg-type]
        assert step.most_mbps == pytest.approx(20.0)
        jobs = [there.connect(step.hello(None), step.name) for _ in range(3)]
        assert [isinstance(job, NoJob) for job in jobs] == [False, False, True]
        assert not isinstance(jobs[0], NoJob)
        assert (jobs[0].pace_mbps, jobs[0].duration_s) == (pytest.approx(20.0), 1.0)
    wrong = replace(here.calibration(name="x.net", direction="down"), token="0" * 64)
    assert isinstance(there.connect(wrong.hello(None), "x.net"), NoJob)
    here.calibrated(None)
    here.calibrated(9.0)
    here.calibrated(7.5)
    assert here.calibration_mbps == 7.5
    assert drive(here, there, [PAIR], by_name(5, 5)).failure is None
    with pytest.raises(ValueError, match="before the first pair"):
        here.calibration(name="x.net", direction="down")


def test_clock_offset_is_the_reflectors_clock_minus_ours() -> None:
    there, here = reflector(), probe()
    there.clock.now_ms = NOW + 5000
    opening = here.next(NOW)
    assert isinstance(opening, Send)
    body = send(opening, there).body
    here.answered(201, body, NOW + 100)
    assert here.clock_offset_ms == 4950


@pytest.mark.parametrize("wrong_ms", [-NOW, -86_400_000, 0, 40 * 86_400_000])
def test_a_wrong_clock_loses_no_measurement(wrong_ms: int) -> None:
    """The record is told by the reflector's clock, so that no collector refuses it as too old or from the future."""
    there, here = reflector(), probe()
    while not isinstance(step := here.next(there.clock.now_ms + wrong_ms), Finished):
        if isinstance(step, AwaitPlan):
            here.plan([PAIR])
        elif isinstance(step, RunSegment):
            here.segment_ended(by_name(8, 8)(step, there), there.clock.now_ms + wrong_ms)
        elif isinstance(step, Guard):
            here.guard_ended(20, there.clock.now_ms + wrong_ms)
        elif isinstance(step, Send):
            answer = send(step, there)
            here.answered(answer.status, answer.body, there.clock.now_ms + wrong_ms)
    record = here.measurement(record_id="1e" * 16, sequence=0, environment=Environment())
    assert NOW <= record.started_ms <= record.ended_ms <= there.clock.now_ms
    assert record.environment.clock_offset_ms == -wrong_ms
    assert open_record(seal(record, PROBE)) == record


def test_a_reflector_with_an_absurd_clock_changes_nothing() -> None:
    assert probe_role._correction_ms(-NOW, NOW, NOW + 1000) == 0
    assert probe_role._correction_ms(None, NOW) == 0


def test_refusals_end_the_session_with_a_sentence() -> None:
    there = reflector(limits=Limits(sessions=0))
    here = probe()
    end = drive(here, there, [PAIR], by_name(8, 8))
    assert end.failure == "refused_by_peer"
    assert "busy" in end.complaint
    assert here.retry_after_s == 30


def test_a_refused_commitment_is_no_pair() -> None:
    there = reflector(limits=Limits(session_bytes=5_000_000))
    here = probe()
    end = drive(here, there, [PAIR] * 5, by_name(8, 8))
    assert end.failure == "refused_by_peer"
    assert "quota" in end.complaint
    assert len(here.measured) == len(receipt_of(here).pairs) == 2  # two pairs of 2.12 MB fit


def test_an_unreadable_answer_is_an_http_error() -> None:
    for status, body in ((200, b"<html>"), (502, b"bad gateway"), (201, b"{}")):
        here = probe()
        here.next(NOW)
        here.answered(status, body, NOW)
        assert here.next(NOW).failure == "http_error"  # type: ignore[union-attr]


def test_expected_reflector_key() -> None:
    there, here = reflector(), probe(expected_reflector="A" * 43)
    end = drive(here, there, [PAIR], by_name(8, 8))
    assert end.failure == "refused_by_peer"
    assert "key" in end.complaint


def test_stop_of_the_reflector_leaves_a_receipt() -> None:
    there, here = reflector(), probe()

    def transfer(step: RunSegment, at: MemoryReflector) -> SegmentFacts:
        facts = by_name(8, 8)(step, at)
        if step.pair == 2:
            at.stop()
        return facts

    end = drive(here, there, [PAIR] * 3, transfer)
    assert end.failure == "refused_by_peer"
    receipt = receipt_of(here)
    assert (receipt.end, [pair.outcome for pair in receipt.pairs]) == ("stopped", ["both", "unfinished"])
    here = probe()
    assert "stopping" in drive(here, there, [PAIR], by_name(8, 8)).complaint


def test_the_largest_session_granted_fits_one_receipt() -> None:
    """However long every number is, a granted session's receipt can be sealed."""
    there = reflector()
    for segment_s in (0.2, 60.0):
        wish = replace(request(pairs=512), segment_s=segment_s)
        here = ProbeSession(wish, random_bytes=random.Random(3).randbytes)
        bins = round(segment_s * 10) + 1

        def transfer(step: RunSegment, at: MemoryReflector, bins: int = bins) -> SegmentFacts:
            job = at.connect(step.hello(None), step.name)
            assert not isinstance(job, NoJob)
            worst = Counted(
                end="complete",
                started_ms=NOW,
                duration_ms=120_000,
                bytes=2**52,
                bins_ms=(119_999,) * bins,
                bins_bytes=(2**37,) * bins,
                rtt_min_ms=0.30000000000000004,
                rtt_ms=123456.78900000001,
                retransmits=2**31,
                rwnd_limited_ms=119_999,
                congestion="x" * 16,
                paced=False,
            )
            at.count(job, worst)
            return SegmentFacts(hello_sent=True)

        name = "n" * 249
        pair = replace(PAIR, segment_s=segment_s, profile="p" * 128, app_name=f"{name}.com", neutral_name=f"{name}.net")
        assert drive(here, there, [pair] * 512, transfer).failure is None
        assert here.grant is not None
        assert len(receipt_of(here).pairs) == here.grant.pairs


def test_messages_of_the_happy_path_are_what_the_spec_says() -> None:
    there, here = reflector(), probe()
    opening = here.next(NOW)
    assert isinstance(opening, Send)
    found = send(opening, there)
    assert (opening.path, opening.token, found.status) == ("/v1/sessions", None, 201)
    grant = decode_message(SessionGrant, found.body)
    here.answered(found.status, found.body, NOW)
    here.plan([PAIR])
    commit = here.next(NOW)
    assert isinstance(commit, Send)
    assert (commit.path, commit.token) == (f"/v1/sessions/{grant.session}/pairs", grant.token)
    nonce = decode_message(PairNonce, send(commit, there).body)
    assert nonce.pair == 1
    assert len(there.started) == 1


def test_a_flight_that_one_session_awaits_is_known_and_forgotten_with_it() -> None:
    wires = [WireBytes(flight=bytes([n]) * 40, answer=bytes([n]) * 60, head=bytes([n])) for n in (1, 2)]
    there = reflector()
    pair = replace(PAIR, carrier="datagram", app_wire=wires[0], neutral_wire=wires[1])
    flight = wires[0].announced().flight

    def reveal(seed: int) -> ProbeSession:
        here = probe(seed)
        while not isinstance(step := here.next(NOW), RunSegment):
            if isinstance(step, AwaitPlan):
                here.plan([pair])
            else:
                assert isinstance(step, Send)
                answer = send(step, there)
                here.answered(answer.status, answer.body, NOW)
        return here

    assert there.booking.awaited_flight(flight) is None
    first = reveal(3)
    found = there.booking.awaited_flight(flight)
    assert found is not None
    assert (found.is_waiting, found.answer) == (True, wires[0].answer)
    assert there.booking.awaited_flight("0" * 64) is None
    second = reveal(4)
    assert there.booking.awaited_flight(flight) is None, "whose of the two it is nobody can tell"
    for here in (first, second):
        here.abandon("out_of_time")
        step = here.next(NOW)
        assert isinstance(step, Send)
        send(step, there)
        known = there.booking.awaited_flight(flight)
        assert (known is None) == (here is second)
    assert not there.booking._flights

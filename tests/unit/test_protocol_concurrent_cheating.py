# SPDX-License-Identifier: EUPL-1.2
"""Either side of a concurrent pair tries to bias it, to make it vanish, or to get more than its tickets allow."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from probe.protocol import coin
from probe.protocol.accounts import Counted, Job, Limits, NoJob
from probe.protocol.concurrent import LOAD_WINDOW_S
from probe.protocol.memory import MemoryReflector, VirtualClock, drive, even_together, even_transfer, send
from probe.protocol.probe_role import ProbeSession
from probe.protocol.session import decode_message, encode_hello, encode_message
from probe.protocol.steps import AwaitPlan, PlannedPair, RunTogether, Send
from probe.wire.envelope import open_record
from probe.wire.messages import (
    DataHello,
    PairCommit,
    PairFinish,
    PairNonce,
    PairOrder,
    PairResult,
    PairReveal,
    Problem,
    SegmentReport,
    SessionEnd,
    SessionGrant,
    SessionRequest,
    SmallPackets,
)
from probe.wire.records import Receipt, Started
from probe.wire.signing import SeedSigner

NOW = 1_800_000_000_000
REFLECTOR = SeedSigner(b"\x02" * 32, "cryptography")
PROBE = SeedSigner(b"\x01" * 32, "cryptography")
APP, NEUTRAL, LOAD = "go.teams.example.com", "cdn3.meadowline.net", "static.harbourlight.org"
PACKETS = SmallPackets(bytes=160, interval_ms=20, load_name=LOAD)
ECHOES = (20_000,) * 50


class Cheat:
    """A probe that says whatever it likes."""

    def __init__(self, seed: int = 1, **limits: Any) -> None:
        self.clock = VirtualClock(NOW)
        self.rng = random.Random(seed)
        self.there = MemoryReflector(
            signer=REFLECTOR, clock=self.clock, random_bytes=random.Random(seed + 1000).randbytes,
            limits=Limits(**limits),
        )  # fmt: skip
        wish = SessionRequest(v=1, probe=PROBE.key_id, nettest="differential", pairs=512, segment_s=24.0, pace_mbps=12)
        found = self.there.request("POST", "/v1/sessions", encode_message(wish))
        self.grant = decode_message(SessionGrant, found.body)
        self.nonce = b""

    def post(self, path: str, message: Any, expected: Any = None) -> Any:
        base = f"/v1/sessions/{self.grant.session}"
        found = self.there.request("POST", base + path, encode_message(message), self.grant.token)
        if expected is not None:
            assert found.status == 200, found.body
            return decode_message(expected, found.body)
        return found.status, decode_message(Problem, found.body).error

    def commit(self, pair: int = 1, **other: Any) -> PairCommit:
        self.nonce = self.rng.randbytes(32)
        commit = PairCommit(
            pair=pair, commit=coin.commitment(self.nonce), kind="test", app="teams+live", profile="p", direction="down",
            pace_mbps=8.0, segment_s=1.0, app_name=APP, neutral_name=NEUTRAL, design="concurrent", packets=PACKETS,
        )  # fmt: skip
        return replace(commit, **other)

    def begin(self, pair: int = 1, **other: Any) -> PairOrder:
        self.post("/pairs", self.commit(pair, **other), PairNonce)
        order = self.post(f"/pairs/{pair}/reveal", PairReveal(nonce=self.nonce.hex()), PairOrder)
        assert isinstance(order, PairOrder)
        return order

    def connect(self, ticket: str, name: str, purpose: str = "segment", direction: str = "down") -> Job | NoJob:
        hello = DataHello(v=1, ticket=ticket, purpose=purpose, direction=direction)  # type: ignore[arg-type]
        return self.there.connect(encode_hello(hello), name)

    def slot(self, order: PairOrder, place: int) -> Job | NoJob:
        return self.connect(order.tickets[place], NEUTRAL if order.arms[place] == "neutral" else APP)

    def load(self, order: PairOrder, name: str = LOAD, **other: Any) -> Job | NoJob:
        assert order.load_ticket is not None
        return self.connect(order.load_ticket, name, "load", **other)

    def answered(self, job: Job | NoJob, **other: Any) -> None:
        assert isinstance(job, Job), job
        self.there.count(job, Counted(**{"end": "complete", "duration_ms": 1000, "echo_us": ECHOES, **other}))

    def finish(self, pair: int = 1) -> PairResult:
        report = SegmentReport(started=True, bytes=0, duration_ms=1000)
        result = self.post(f"/pairs/{pair}/finish", PairFinish(segments=(report, report)), PairResult)
        assert isinstance(result, PairResult)
        return result

    def receipt(self) -> Receipt:
        self.there.request(
            "POST", f"/v1/sessions/{self.grant.session}/close", encode_message(SessionEnd(reason="done")),
            self.grant.token,
        )  # fmt: skip
        record = open_record(self.there.receipts[self.grant.session])
        assert isinstance(record, Receipt)
        return record


def reason(job: Job | NoJob) -> str:
    assert isinstance(job, NoJob), job
    return job.reason


def test_a_pair_by_the_book() -> None:
    cheat = Cheat()
    order = cheat.begin()
    jobs = [cheat.slot(order, 0), cheat.slot(order, 1)]
    load = cheat.load(order)
    assert isinstance(load, Job)
    assert load.begins == order.tickets
    assert (load.after_s, load.duration_s, load.pace_mbps) == (0.5, 0.5, 8.0)
    for job in jobs:
        cheat.answered(job)
    cheat.answered(load, echo_us=(), bytes=123_456)
    assert cheat.finish().outcome == "both"
    [pair] = cheat.receipt().pairs
    assert (pair.design, pair.load_bytes, pair.neutral_first) == ("concurrent", 123_456, order.neutral_first)
    assert tuple(segment.arm for segment in pair.segments) == order.arms
    assert all(segment.echo_us == ECHOES for segment in pair.segments)
    [started] = [open_record(one) for one in cheat.there.started]
    assert isinstance(started, Started)
    assert started.design == "concurrent"


def test_the_coin_stays_fair_whoever_begs() -> None:
    """Neither the design nor what is announced moves it: only the two nonces, the session and the number do."""
    falls = [Cheat(seed).begin().neutral_first for seed in range(200)]
    assert 70 < sum(falls) < 130


def test_the_design_is_bound_before_the_nonce() -> None:
    cheat = Cheat()
    commit = cheat.commit()
    cheat.post("/pairs", commit, PairNonce)
    for other in (
        replace(commit, design="sequential", packets=None),
        replace(commit, packets=replace(PACKETS, interval_ms=40)),
        replace(commit, packets=replace(PACKETS, load_name="other.example.org")),
    ):
        assert cheat.post("/pairs", other) == (409, "pair_open")


@pytest.mark.parametrize(
    "other",
    [
        {"packets": None},
        {"design": "sequential"},
        {"segment_s": 0.5},
        {"segment_s": 24.0, "packets": replace(PACKETS, interval_ms=5)},
        {"packets": replace(PACKETS, load_name=APP.upper())},
        {"packets": replace(PACKETS, load_name=NEUTRAL)},
    ],
)
def test_a_commitment_that_is_neither_design_is_refused(other: dict[str, Any]) -> None:
    cheat = Cheat()
    assert cheat.post("/pairs", cheat.commit(**other)) == (400, "not_granted")
    assert cheat.there.started == []


def test_a_load_under_an_address_is_refused() -> None:
    cheat = Cheat()
    packets = replace(PACKETS, load_name="192.0.2.7")
    assert cheat.post("/pairs", cheat.commit(packets=packets)) == (400, "address")


def test_the_load_counts_against_the_sessions_bytes() -> None:
    cheat = Cheat(session_bytes=1_200_000)
    cheat.begin()
    cheat.finish()
    cheat.begin(2)
    cheat.finish(2)
    assert cheat.post("/pairs", cheat.commit(3)) == (429, "quota")


def test_an_unlimited_load_counts_what_it_moved() -> None:
    cheat = Cheat(session_bytes=5_000_000)
    cheat.there.booking._open[cheat.grant.session].grant = replace(cheat.grant, most_pace_mbps=0.0)
    order = cheat.begin(pace_mbps=0.0)
    cheat.slot(order, 0)
    cheat.answered(cheat.load(order), echo_us=(), bytes=5_000_000)
    cheat.finish()
    assert cheat.post("/pairs", cheat.commit(2, pace_mbps=0.0)) == (429, "quota")


def test_a_receipt_that_could_not_be_kept_is_never_begun() -> None:
    """Echoes are many numbers: pairs end before their receipt is longer than a payload may be."""
    cheat = Cheat(pairs=512, session_bytes=10**12)
    number = 0
    while True:
        number += 1
        commit = cheat.commit(number, segment_s=24.0)
        found = cheat.there.request(
            "POST", f"/v1/sessions/{cheat.grant.session}/pairs", encode_message(commit), cheat.grant.token
        )
        if found.status != 200:
            break
        order = cheat.post(f"/pairs/{number}/reveal", PairReveal(nonce=cheat.nonce.hex()), PairOrder)
        jobs = [cheat.slot(order, 0), cheat.slot(order, 1)]
        assert isinstance(cheat.load(order), Job)
        for job in jobs:
            cheat.answered(job, echo_us=(59_999_999,) * 1200)
        cheat.finish(number)
    assert decode_message(Problem, found.body).detail == "this session has used up its receipt"
    assert 50 < number < 70
    assert len(cheat.receipt().pairs) == number - 1
    assert len(cheat.there.receipts[cheat.grant.session].payload) < 1_500_000


# -- tickets -------------------------------------------------------------------------------------------------------


def test_each_ticket_is_good_for_one_thing() -> None:
    cheat = Cheat()
    order = cheat.begin()
    assert order.load_ticket is not None
    assert reason(cheat.connect(order.load_ticket, APP)) == "unknown_ticket"
    assert reason(cheat.connect(order.tickets[0], LOAD, "load")) == "unknown_ticket"
    assert reason(cheat.load(order)) == "no_load", "a load without a slot would be a transfer for nothing"
    cheat.slot(order, 0)
    assert reason(cheat.load(order, direction="up")) == "wrong_direction"
    assert isinstance(cheat.load(order), Job)
    assert reason(cheat.load(order)) == "used_ticket"
    assert reason(cheat.slot(order, 0)) == "used_ticket"


def test_the_load_begins_the_pair_for_the_slots_that_are_open() -> None:
    cheat = Cheat()
    order = cheat.begin()
    job = cheat.slot(order, 0)
    load = cheat.load(order)
    assert isinstance(load, Job)
    assert load.begins == order.tickets[:1]
    assert reason(cheat.slot(order, 1)) == "used_ticket", "its turn has passed"
    cheat.answered(job)
    result = cheat.finish()
    assert result.outcome == "one_failed"
    assert [segment.end for segment in result.segments] == ["complete", "absent"]


def test_slot_b_first_makes_slot_a_absent() -> None:
    cheat = Cheat()
    order = cheat.begin()
    assert isinstance(cheat.slot(order, 1), Job)
    assert reason(cheat.slot(order, 0)) == "used_ticket"


@pytest.mark.parametrize(("place", "good_s"), [(0, 10), (1, 20)])
def test_slots_have_their_time(place: int, good_s: int) -> None:
    for late, expected in ((0, Job), (1, NoJob)):
        cheat = Cheat(idle_timeout_s=60.0)
        order = cheat.begin()
        cheat.clock.advance(good_s * 1000 + late)
        assert isinstance(cheat.slot(order, place), expected)


def test_the_load_has_its_time() -> None:
    for late, expected in ((0, Job), (1, NoJob)):
        cheat = Cheat(idle_timeout_s=60.0)
        order = cheat.begin()
        cheat.slot(order, 0)
        cheat.clock.advance(LOAD_WINDOW_S * 1000 + late)
        assert isinstance(cheat.load(order), expected)


def test_a_load_under_another_name_is_none() -> None:
    """Else the load could be shaped by its name, and the queue be what somebody wants it to be."""
    cheat = Cheat()
    order = cheat.begin()
    cheat.slot(order, 0)
    assert reason(cheat.load(order, name=APP)) == "mismatch"
    assert reason(cheat.load(order)) == "used_ticket"


def test_arms_under_each_others_names_are_mismatches() -> None:
    cheat = Cheat()
    order = cheat.begin()
    swapped = {APP: NEUTRAL, NEUTRAL: APP}
    for ticket, arm in zip(order.tickets, order.arms, strict=True):
        assert reason(cheat.connect(ticket, swapped[NEUTRAL if arm == "neutral" else APP])) == "mismatch"
    assert cheat.finish().outcome == "both_failed"


def test_a_sequential_pair_has_no_load() -> None:
    cheat = Cheat()
    order = cheat.begin(design="sequential", packets=None)
    assert order.load_ticket is None
    assert reason(cheat.connect("0" * 32, LOAD, "load")) == "unknown_ticket"
    job = cheat.slot(order, 0)
    assert isinstance(job, Job)
    assert (job.echo, job.begins, job.after_s) == (None, (), 0.0)


def test_no_two_slots_share_what_makes_their_packets() -> None:
    cheat = Cheat()
    order = cheat.begin()
    plans = [job.echo for job in (cheat.slot(order, 0), cheat.slot(order, 1)) if isinstance(job, Job)]
    assert len({plan.secret for plan in plans if plan is not None}) == 2


# -- making pairs vanish -------------------------------------------------------------------------------------------


def test_a_pair_whose_load_never_comes_is_void_for_both_arms_alike() -> None:
    cheat = Cheat()
    order = cheat.begin()
    cheat.slot(order, 0)
    cheat.slot(order, 1)
    result = cheat.finish()
    assert result.outcome == "both_failed"
    assert {segment.end for segment in result.segments} == {"aborted"}
    assert all(segment.echo_us == () for segment in result.segments)


def test_a_pair_that_is_left_is_lost() -> None:
    cheat = Cheat()
    order = cheat.begin()
    cheat.slot(order, 0)
    cheat.load(order)
    cheat.clock.advance(60_000)
    cheat.there.tick()
    [pair] = cheat.receipt().pairs
    assert (pair.outcome, pair.design) == ("unfinished", "concurrent")
    assert {segment.end for segment in pair.segments} == {"control_lost"}


def test_what_the_probe_reports_changes_no_echo() -> None:
    cheat = Cheat()
    order = cheat.begin()
    jobs = [cheat.slot(order, 0), cheat.slot(order, 1)]
    cheat.load(order)
    cheat.answered(jobs[0])
    cheat.answered(jobs[1], echo_us=(-1,) * 50)
    report = SegmentReport(started=True, bytes=10**9, duration_ms=1)
    result = cheat.post("/pairs/1/finish", PairFinish(segments=(report, report)), PairResult)
    assert [segment.echo_us for segment in result.segments] == [ECHOES, (-1,) * 50]
    cheat.answered(jobs[1])
    assert cheat.receipt().pairs[0].segments[1].echo_us == (-1,) * 50, "an account is closed once"


# -- a reflector that cheats ---------------------------------------------------------------------------------------

PLANNED = PlannedPair(
    kind="test", app="teams+live", profile="p", direction="down", pace_mbps=8.0, segment_s=1.0, app_name=APP,
    neutral_name=NEUTRAL, design="concurrent", packets=PACKETS,
)  # fmt: skip


class Pair:
    """An honest probe and what a reflector answers it."""

    def __init__(self, **grant: Any) -> None:
        self.clock = VirtualClock(NOW)
        self.there = MemoryReflector(signer=REFLECTOR, clock=self.clock, random_bytes=random.Random(5).randbytes)
        wish = SessionRequest(v=1, probe=PROBE.key_id, nettest="differential", pairs=9, segment_s=2.0, pace_mbps=12)
        self.here = ProbeSession(wish, random_bytes=random.Random(6).randbytes)
        self.answer(SessionGrant, grant)
        assert isinstance(self.here.next(NOW), AwaitPlan)

    def answer(self, kind: type, changes: dict[str, Any]) -> None:
        step = self.here.next(NOW)
        assert isinstance(step, Send)
        found = send(step, self.there)
        body = encode_message(replace(decode_message(kind, found.body), **changes))
        self.here.answered(found.status, body, NOW)

    def reach_order(self, **order: Any) -> None:
        self.here.plan([PLANNED])
        self.answer(PairNonce, {})
        self.answer(PairOrder, order)


@pytest.mark.parametrize("lie", ["no_load", "same_ticket", "other_order"])
def test_a_probe_breaks_off_where_the_order_is_not_that_of_such_a_pair(lie: str) -> None:
    pair = Pair()
    tickets = ("1" * 32, "2" * 32)
    lies: dict[str, dict[str, Any]] = {
        "no_load": {"load_ticket": None},
        "same_ticket": {"tickets": tickets, "load_ticket": tickets[1]},
        "other_order": {"arms": ("app", "app")},
    }
    pair.reach_order(**lies[lie])
    assert pair.here.failure == "refused_by_peer"
    assert pair.here.complaint


def test_a_probe_asks_nobody_for_what_he_cannot_witness() -> None:
    pair = Pair(designs=("sequential",))
    with pytest.raises(ValueError, match="no concurrent pairs"):
        pair.here.plan([PLANNED])
    with pytest.raises(ValueError, match="small packets"):
        pair.here.plan([replace(PLANNED, design="sequential")])


def test_the_two_ways_to_run_a_pair_do_not_mix() -> None:
    pair = Pair()
    pair.reach_order()
    step = pair.here.next(NOW)
    assert isinstance(step, RunTogether)
    with pytest.raises(ValueError, match="no segment"):
        pair.here.segment_ended(facts=None, now_ms=NOW)  # type: ignore[arg-type]


def test_both_roles_tell_one_pair() -> None:
    clock = VirtualClock(NOW)
    there = MemoryReflector(signer=REFLECTOR, clock=clock, random_bytes=random.Random(5).randbytes)
    wish = SessionRequest(v=1, probe=PROBE.key_id, nettest="differential", pairs=9, segment_s=2.0, pace_mbps=12)
    here = ProbeSession(wish, random_bytes=random.Random(6).randbytes)
    mixed = [PLANNED, replace(PLANNED, app="teams", design="sequential", packets=None), PLANNED]
    late = even_together(lambda step, place: 20_000 + 30_000 * (step.name == APP) + place)
    finished = drive(here, there, mixed, even_transfer(lambda _: 5.0), together=late)
    assert finished.failure is None
    assert here.receipt is not None
    receipt = open_record(here.receipt)
    assert isinstance(receipt, Receipt)
    assert [pair.design for pair in receipt.pairs] == ["concurrent", "sequential", "concurrent"]
    for pair in receipt.pairs[::2]:
        for segment in pair.segments:
            assert segment.echo_us[0] == (50_000 if segment.arm == "app" else 20_000)
    assert [len(measured.segments) for measured in here.measured] == [2, 2, 2]
    assert [one.guard_ms for one in here.measured[0].segments] == [20, 20]

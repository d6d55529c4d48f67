# SPDX-License-Identifier: EUPL-1.2
"""Nothing that either machine decides may depend on which arm is in which slot.

The same script of network events is played against other coins and with the names swapped; the traces of steps,
waits, time-outs, refusals and outcomes must be equal, label for label.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from probe.protocol.accounts import Counted, Limits, NoJob
from probe.protocol.memory import MemoryReflector, VirtualClock, send
from probe.protocol.probe_role import ProbeSession
from probe.protocol.steps import AwaitPlan, Finished, Guard, PlannedPair, RunSegment, SegmentFacts, Send, Wait
from probe.wire.envelope import open_record
from probe.wire.messages import SessionRequest
from probe.wire.records import Receipt
from probe.wire.signing import SeedSigner

NOW = 1_800_000_000_000
SIGNER = SeedSigner(b"\x02" * 32, "cryptography")
PAIR = PlannedPair(
    kind="test",
    app="youtube",
    profile="p",
    direction="down",
    pace_mbps=8,
    segment_s=1,
    app_name="app.example.net",
    neutral_name="twin.example.org",
)

segment_events = st.fixed_dictionaries(
    {
        "before_ms": st.sampled_from([0, 40, 3000, 6400, 9999, 10_001, 25_000]),
        "connects": st.sampled_from([True, True, True, False]),
        "name": st.sampled_from(["right", "right", "right", "wrong", "none"]),
        "end": st.sampled_from(["complete", "complete", "complete", "reset", "aborted", "never"]),
        "ms": st.integers(0, 1500),
        "bytes": st.integers(0, 2_000_000),
        "failure": st.sampled_from([None, None, "connection_reset", "tls_timeout", "stalled"]),
        "guard_ms": st.integers(0, 500),
        "household_kb": st.one_of(st.none(), st.integers(0, 1000)),
        "cpu_limited": st.one_of(st.none(), st.booleans()),
    }
)
scripts = st.fixed_dictionaries(
    {
        "pairs": st.integers(1, 3),
        "segments": st.lists(segment_events, min_size=6, max_size=6),
        "lost": st.sets(st.integers(2, 14), max_size=5),
        "answers_lost": st.booleans(),
        "stop_after": st.one_of(st.none(), st.integers(0, 2)),
        "session_bytes": st.sampled_from([10**9, 4_000_000]),
    }
)


def play(script: dict[str, Any], seed: int, pair: PlannedPair) -> tuple[list[Any], list[bool | None]]:
    """The trace of one session without names, tickets and nonces, and the coins it had."""
    rng = random.Random(seed)
    clock = VirtualClock(NOW)
    there = MemoryReflector(
        signer=SIGNER,
        clock=clock,
        random_bytes=rng.randbytes,
        limits=Limits(session_bytes=script["session_bytes"]),
    )
    wish = SessionRequest(v=1, probe=SIGNER.key_id, nettest="differential", pairs=9, segment_s=2, pace_mbps=12)
    here = ProbeSession(wish, random_bytes=rng.randbytes)
    trace: list[Any] = []
    events = iter(script["segments"])
    event: dict[str, Any] = {}
    sent = 0
    while True:
        step = here.next(clock.now_ms)
        if isinstance(step, Finished):
            trace.append(step)
            break
        if isinstance(step, AwaitPlan):
            here.plan([pair] * script["pairs"])
        elif isinstance(step, Wait):
            trace.append(step)
            clock.advance(step.ms)
        elif isinstance(step, RunSegment):
            trace.append(replace(step, name="", ticket=""))
            event = next(events)
            here.segment_ended(run(step, event, there, trace), clock.now_ms)
            if script["stop_after"] == step.pair - 1:
                here.stop()
        elif isinstance(step, Guard):
            trace.append(step)
            clock.advance(event["guard_ms"])
            here.guard_ended(event["guard_ms"], clock.now_ms)
        elif isinstance(step, Send):
            sent += 1
            trace.append((step.path.rsplit("/", 1)[-1], step.timeout_s, clock.now_ms))
            lost = sent in script["lost"]
            found = send(step, there) if not lost or script["answers_lost"] else None
            if found is None or lost:
                here.control_failed("out_of_time", clock.now_ms)
            else:
                trace.append((found.status, found.error))
                here.answered(found.status, found.body, clock.now_ms, found.retry_after_s)
        there.tick()
    clock.advance(70_000)
    there.tick()
    told, coins = what_is_told(there, here)
    return trace + told, coins


def what_is_told(there: MemoryReflector, here: ProbeSession) -> tuple[list[Any], list[bool | None]]:
    """Both records by slot, without what names the arm; and the coins."""
    trace: list[Any] = []
    coins = []
    for envelope in there.receipts.values():
        receipt = open_record(envelope)
        assert isinstance(receipt, Receipt)
        trace.append((receipt.end, receipt.ended_ms))
        for one in receipt.pairs:
            coins.append(one.neutral_first)
            blind = [replace(s, arm="opaque", name_seen=None) for s in one.segments]
            trace.append((one.outcome, one.started_ms, blind, one.saturated))
    for measured in here.measured:
        trace.append((measured.household_kb, measured.cpu_limited, len(measured.segments)))
        trace.append([replace(s, arm="opaque", name="") for s in measured.segments])
    return trace, coins


def run(step: RunSegment, event: dict[str, Any], there: MemoryReflector, trace: list[Any]) -> SegmentFacts:
    there.clock.advance(event["before_ms"])
    facts = SegmentFacts(
        hello_sent=event["connects"],
        failure=event["failure"],
        bytes=event["bytes"],
        household_kb=event["household_kb"],
        cpu_limited=event["cpu_limited"],
    )
    if not event["connects"]:
        return facts
    name = {"right": step.name, "wrong": "wrong.example.com", "none": None}[event["name"]]
    job = there.connect(step.hello(None), name)
    if isinstance(job, NoJob):
        trace.append(job)
        return facts
    trace.append(replace(job, session="", ticket=""))
    there.clock.advance(event["ms"])
    if event["end"] != "never":
        there.count(job, Counted(end=event["end"], bytes=event["bytes"], duration_ms=event["ms"]))
    return facts


SWAPPED = replace(PAIR, app_name=PAIR.neutral_name, neutral_name=PAIR.app_name)


@given(script=scripts, seeds=st.lists(st.integers(0, 2**32), min_size=4, max_size=4))
def test_every_decision_is_blind_to_the_arms(script: dict[str, Any], seeds: list[int]) -> None:
    first, _ = play(script, seeds[0], PAIR)
    for seed in seeds[1:]:  # other coins
        other, _ = play(script, seed, PAIR)
        assert other == first
    swapped, _ = play(script, seeds[0], SWAPPED)  # the same coins, the names exchanged
    assert swapped == first


def test_the_property_sees_different_coins() -> None:
    """Else the test above could not fail."""
    good = {
        "before_ms": 0,
        "connects": True,
        "name": "right",
        "end": "complete",
        "ms": 1000,
        "bytes": 5,
        "failure": None,
        "guard_ms": 3,
        "household_kb": 1,
        "cpu_limited": False,
    }
    script = {
        "pairs": 3,
        "segments": [good] * 6,
        "lost": set(),
        "answers_lost": False,
        "stop_after": None,
        "session_bytes": 10**9,
    }
    assert len({tuple(play(script, seed, PAIR)[1]) for seed in range(40)}) == 8

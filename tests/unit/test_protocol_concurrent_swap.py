# SPDX-License-Identifier: EUPL-1.2
"""A session of concurrent pairs once more with the arms' labels swapped: not one step may differ.

The other session has the opposite coin and the names and first bytes exchanged, so that each slot looks as before.
What a shell sees names no arm, and neither role has seen the coin before both nonces are bound.
measurement.md, "Gates"; spec/protocol.md, section "Concurrent pairs".
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.match import Session, pairs_of
from probe.protocol import coin
from probe.protocol.accounts import Counted, EchoPlan, Job, Limits, NoJob
from probe.protocol.memory import MemoryReflector, VirtualClock, send
from probe.protocol.probe_role import ProbeSession
from probe.protocol.steps import (
    AwaitPlan,
    Finished,
    Guard,
    Load,
    PlannedPair,
    RunSegment,
    RunTogether,
    SegmentFacts,
    Send,
    Wait,
    WireBytes,
)
from probe.wire.envelope import open_record
from probe.wire.messages import SessionRequest, SmallPackets
from probe.wire.records import CONTROL_ARMS, Arm, Environment, Receipt, Started
from probe.wire.signing import SeedSigner

NOW = 1_800_000_000_000
SIGNER = SeedSigner(b"\x03" * 32, "cryptography")
NAMES = ("app.example.net", "twin.example.org")
LOAD = "load.example.com"


def plan(carrier: str, direction: str = "down") -> PlannedPair:
    wires: list[WireBytes | None] = [None, None]
    if carrier not in {"tls", "hello"}:
        head = b"\x90" * 12 if carrier != "stream" else b""
        wires = [WireBytes(flight=bytes([n]) * 64, answer=bytes([n]) * 8, head=head) for n in (0x13, 0x9A)]
    return PlannedPair(
        kind="test", app="rtp+live", profile="p", direction=direction, pace_mbps=8, segment_s=1, app_name=NAMES[0],  # type: ignore[arg-type]
        neutral_name=NAMES[1], carrier=carrier, app_wire=wires[0], neutral_wire=wires[1], design="concurrent",  # type: ignore[arg-type]
        packets=SmallPackets(bytes=160, interval_ms=20, load_name=LOAD),
    )  # fmt: skip


def exchanged(pair: PlannedPair) -> PlannedPair:
    return replace(
        pair,
        app_name=pair.neutral_name, neutral_name=pair.app_name, app_wire=pair.neutral_wire, neutral_wire=pair.app_wire,
    )  # fmt: skip


# -- what the network does, by slot ------------------------------------------------------------------------------

slots = st.fixed_dictionaries(
    {
        "before_ms": st.sampled_from([0, 30, 2000, 9_999, 10_001, 19_000]),
        "connects": st.sampled_from([True] * 5 + [False]),
        "shows": st.sampled_from(["right"] * 5 + ["wrong", "none"]),
        "end": st.sampled_from(["complete"] * 5 + ["reset", "aborted", "never"]),
        "echo_us": st.lists(st.integers(-1, 200_000), min_size=50, max_size=50),
        "saturated": st.booleans(),
        "altered": st.booleans(),
        "failure": st.sampled_from([None, None, "connection_reset", "tls_timeout", "stalled", "connect_timeout"]),
        "household_kb": st.one_of(st.none(), st.integers(0, 2000)),
        "cpu_limited": st.one_of(st.none(), st.booleans()),
    }
)
loads = st.fixed_dictionaries(
    {
        "before_ms": st.sampled_from([0, 30, 5_000, 30_001]),
        "connects": st.sampled_from([True] * 5 + [False]),
        "shows": st.sampled_from(["right"] * 5 + ["wrong", "none"]),
        "ends": st.sampled_from([True, True, True, False]),
        "bytes": st.integers(0, 2_000_000),
    }
)
scripts = st.fixed_dictionaries(
    {
        "carrier": st.sampled_from(["tls", "hello", "stream", "quic", "datagram"]),
        "direction": st.sampled_from(["down", "up"]),
        "pairs": st.integers(1, 3),
        "slots": st.lists(slots, min_size=6, max_size=6),
        "loads": st.lists(loads, min_size=3, max_size=3),
        "guards_ms": st.lists(st.integers(0, 500), min_size=3, max_size=3),
        "lost": st.sets(st.integers(2, 12), max_size=4),
        "answers_lost": st.booleans(),
        "stop_after": st.one_of(st.none(), st.integers(0, 2)),
        "session_bytes": st.sampled_from([10**9, 10**9, 1_500_000]),
    }
)
GOOD_SLOT = {
    "before_ms": 0, "connects": True, "shows": "right", "end": "complete", "echo_us": [20_000] * 50, "saturated": False,
    "altered": False, "failure": None, "household_kb": 1, "cpu_limited": False,
}  # fmt: skip
GOOD_LOAD = {"before_ms": 0, "connects": True, "shows": "right", "ends": True, "bytes": 500_000}
GOOD = {
    "carrier": "datagram", "direction": "down", "pairs": 3, "slots": [GOOD_SLOT] * 6, "loads": [GOOD_LOAD] * 3,
    "guards_ms": [3] * 3, "lost": set(), "answers_lost": False, "stop_after": None, "session_bytes": 10**9,
}  # fmt: skip


@dataclass
class Played:
    trace: list[tuple[str, Any]] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)
    """What either shell sees."""
    nonces: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    coins: dict[int, bool] = field(default_factory=dict)
    session: str = ""
    receipt: Receipt | None = None
    measurement: Any = None
    started: tuple[Started, ...] = ()


def play(script: dict[str, Any], seed: int, pair: PlannedPair, draw: Callable[[int, bytes], bytes] | None) -> Played:
    played, clock = Played(), VirtualClock(NOW)
    there = MemoryReflector(
        signer=SIGNER, clock=clock, random_bytes=random.Random(f"{seed}/there").randbytes,
        limits=Limits(session_bytes=script["session_bytes"]),
    )  # fmt: skip
    drawn: list[bytes] = []
    ours = random.Random(f"{seed}/here")

    def nonce(size: int) -> bytes:
        usual = ours.randbytes(size)
        drawn.append(draw(len(drawn) + 1, usual) if draw else usual)
        return drawn[-1]

    wish = SessionRequest(v=1, probe=SIGNER.key_id, nettest="differential", pairs=9, segment_s=2, pace_mbps=12)
    here = ProbeSession(wish, random_bytes=nonce)
    sent = 0
    while True:
        step = here.next(clock.now_ms)
        played.trace.append(("step", plain(step)))
        if isinstance(step, Finished):
            break
        if isinstance(step, AwaitPlan):
            here.plan([pair] * script["pairs"])
        elif isinstance(step, Wait):
            clock.advance(step.ms)
        elif isinstance(step, RunTogether):
            played.seen.append(step)
            here.together_ended(together(step, script, there, played), clock.now_ms)
            if script["stop_after"] == step.pair - 1:
                here.stop()
        elif isinstance(step, Guard):
            clock.advance(script["guards_ms"][step.pair - 1])
            here.guard_ended(script["guards_ms"][step.pair - 1], clock.now_ms)
        else:
            assert isinstance(step, Send)
            sent += 1
            request(step, here, there, played, lost=sent in script["lost"], arrives=script["answers_lost"])
        there.tick()
        played.trace.append(("clock", clock.now_ms))
    clock.advance(70_000)
    there.tick()
    collect(played, here, there, drawn)
    return played


def request(
    step: Send, here: ProbeSession, there: MemoryReflector, played: Played, *, lost: bool, arrives: bool
) -> None:
    answer = send(step, there) if arrives or not lost else None
    if answer is not None:
        body = json.loads(answer.body) if not step.path.endswith("/close") else None
        played.trace.append(("answer", [answer.status, answer.error, answer.retry_after_s, body]))
    if answer is None or lost:
        there.clock.advance(step.timeout_s * 1000)
        here.control_failed("out_of_time", there.clock.now_ms)
    else:
        here.answered(answer.status, answer.body, there.clock.now_ms, answer.retry_after_s)


def together(
    step: RunTogether, script: dict[str, Any], there: MemoryReflector, played: Played
) -> tuple[SegmentFacts, SegmentFacts]:
    events = script["slots"][2 * (step.pair - 1) :][:2]
    load_event = script["loads"][step.pair - 1]
    jobs = [opened(one, event, there, played) for one, event in zip(step.slots, events, strict=True)]
    there.clock.advance(load_event["before_ms"])
    load: Job | NoJob | None = None
    if load_event["connects"]:
        name = {"right": step.load.name, "wrong": "wrong.example.com", "none": None}[load_event["shows"]]
        load = there.connect(step.load.hello(None), name)
        played.trace.append(("load", plain(load)))
        played.seen.append(load)
    there.clock.advance(step.load.segment_s * 1000)
    for job, event in zip(jobs, events, strict=True):
        if isinstance(job, Job) and isinstance(load, Job) and event["end"] != "never":
            there.count(
                job,
                Counted(
                    end=event["end"], duration_ms=1000, saturated=event["saturated"], started_ms=there.clock.now_ms,
                    echo_us=tuple(event["echo_us"]), altered=event["altered"],
                ),
            )  # fmt: skip
    if isinstance(load, Job) and load_event["ends"]:
        there.count(load, Counted(end="complete", bytes=load_event["bytes"]))
    facts = [
        SegmentFacts(
            hello_sent=event["connects"], failure=event["failure"], household_kb=event["household_kb"],
            cpu_limited=event["cpu_limited"],
        )
        for event in events
    ]  # fmt: skip
    played.seen += facts
    return facts[0], facts[1]


def opened(step: RunSegment, event: dict[str, Any], there: MemoryReflector, played: Played) -> Job | NoJob | None:
    there.clock.advance(event["before_ms"])
    if not event["connects"]:
        return None
    shown = {"right": step.name, "wrong": "wrong.example.com", "none": None}[event["shows"]]
    flight = step.wire.announced().flight if step.wire else None
    if event["shows"] != "right" and flight is not None:
        flight = "0" * 64
    name = shown if step.carrier in {"tls", "hello", "quic"} else None
    job = there.connect(step.hello(None), name, carrier=step.carrier, flight=flight)
    played.trace.append(("slot", plain(job)))
    played.seen.append(job)
    return job


def collect(played: Played, here: ProbeSession, there: MemoryReflector, drawn: list[bytes]) -> None:
    records = [open_record(envelope) for envelope in there.started]
    played.started = tuple(one for one in records if isinstance(one, Started))
    for one in played.started:
        assert one.design == "concurrent", "told before the coin"
        played.nonces[one.pair] = (drawn[one.pair - 1], bytes.fromhex(one.reflector_nonce))
        played.session = one.session
    for envelope in there.receipts.values():
        receipt = open_record(envelope)
        assert isinstance(receipt, Receipt)
        played.receipt = receipt
        played.coins = {p.pair: p.neutral_first for p in receipt.pairs if p.neutral_first is not None}
        played.trace.append(("receipt", plain(receipt)))
    if here.grant is not None:
        played.measurement = here.measurement(record_id="0" * 32, sequence=1, environment=Environment())
        played.trace.append(("measurement", plain(played.measurement)))


def plain(value: Any) -> Any:
    if isinstance(value, Send):
        return [value.method, value.path, value.token, value.timeout_s, json.loads(value.body)]
    if isinstance(value, RunTogether):
        slots = [[dataclasses.asdict(one), one.transfer_timeout_s, one.hello("192.0.2.1")] for one in value.slots]
        return [slots, dataclasses.asdict(value.load), value.load.hello(None)]
    return dataclasses.asdict(value)


# -- the mirror --------------------------------------------------------------------------------------------------

_EXCHANGED = {"app_name": "neutral_name", "app_bytes": "neutral_bytes", "app_flight": "neutral_flight"}
_EXCHANGED |= {there: here for here, there in _EXCHANGED.items()}
_DRAWN = {"commit", "nonce", "probe_nonce"}


def mirror(value: Any, control: str) -> Any:
    if isinstance(value, dict):
        return {_EXCHANGED.get(key, key): _mirrored(key, one, control) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [mirror(one, control) for one in value]
    return value


def _mirrored(key: str, value: Any, control: str) -> Any:
    other = {"app": control, control: "app"}
    if key in _DRAWN:
        return "drawn"
    if key == "neutral_first":
        return None if value is None else not value
    if key == "arm":
        return other[value]
    return [other[one] for one in value] if key == "arms" else mirror(value, control)


def same(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: "drawn" if key in _DRAWN else same(one) for key, one in value.items()}
    return [same(one) for one in value] if isinstance(value, list | tuple) else value


def opposite(played: Played) -> Callable[[int, bytes], bytes]:
    """Nonces with which every coin of a session falls the other way."""

    def draw(number: int, usual: bytes) -> bytes:
        if number not in played.nonces:
            return usual
        ours, theirs = played.nonces[number]
        first = coin.neutral_first(ours, theirs, played.session, number)
        for turn in range(256):
            candidate = hashlib.sha256(bytes([turn]) + usual).digest()
            if coin.neutral_first(candidate, theirs, played.session, number) != first:
                return candidate
        raise AssertionError("a fair coin does not fall on one side 256 times")

    return draw


def both(script: dict[str, Any], seed: int) -> tuple[Played, Played]:
    pair = plan(script["carrier"], script["direction"])
    played = play(script, seed, pair, None)
    return played, play(script, seed, exchanged(pair), opposite(played))


@given(script=scripts, seed=st.integers(0, 2**32))
@settings(max_examples=150)
def test_swapped_labels_change_no_step_of_either_role(script: dict[str, Any], seed: int) -> None:
    one, other = both(script, seed)
    control = CONTROL_ARMS[script["carrier"]]
    for number, (here, there) in enumerate(zip(one.trace, other.trace, strict=False)):
        assert (here[0], mirror(here[1], control)) == (there[0], same(there[1])), f"event {number}"
    assert len(one.trace) == len(other.trace)
    assert other.coins == {number: not fell for number, fell in one.coins.items()}


@given(script=scripts, seed=st.integers(0, 2**32))
@settings(max_examples=80)
def test_swapped_labels_change_no_gate(script: dict[str, Any], seed: int) -> None:
    """Lost, void, flags, delay and loss by slot: analysis sees the same pair with another coin."""
    one, other = (
        list(pairs_of(Session(receipt=it.receipt, measurement=it.measurement, started=it.started)))
        for it in both(script, seed)
    )
    assert [pair.swapped() for pair in one] == other
    assert all(pair.design == "concurrent" for pair in one)


def test_the_mirror_has_something_to_mirror() -> None:
    """Else the properties above could not fail: both coins occur, and all three pairs are whole."""
    seen = set()
    for seed in range(12):
        one, other = both(GOOD, seed)
        assert len(one.coins) == len(other.coins) == 3
        assert one.receipt is not None
        assert [(pair.outcome, pair.load_bytes) for pair in one.receipt.pairs] == [("both", 500_000)] * 3
        assert all(len(segment.echo_us) == 50 for pair in one.receipt.pairs for segment in pair.segments)
        kinds = {event[0] for event in one.trace}
        assert kinds == {"step", "clock", "answer", "slot", "load", "receipt", "measurement"}
        seen |= set(one.coins.values())
    assert seen == {True, False}


# -- nothing that a shell sees says which arm it is ----------------------------------------------------------------


@pytest.mark.parametrize("kind", [RunTogether, Load, EchoPlan, Job], ids=lambda kind: kind.__name__)
def test_no_step_has_a_place_for_the_arm(kind: type) -> None:
    hints = get_type_hints(kind, include_extras=False)
    for one in fields(kind):
        assert "arm" not in one.name.split("_")
        assert "neutral" not in one.name
        assert hints[one.name] is not Arm


@given(script=scripts, seed=st.integers(0, 2**32))
@settings(max_examples=50)
def test_the_slots_of_a_pair_differ_in_turn_ticket_and_what_the_carrier_shows(
    script: dict[str, Any], seed: int
) -> None:
    played = play(script, seed, plan(script["carrier"], script["direction"]), None)
    for one in played.seen:
        assert {"app", "neutral", "opaque"}.isdisjoint(texts(dataclasses.asdict(one))), one
        if isinstance(one, RunTogether):
            first, second = one.slots
            assert (first.slot, second.slot) == (0, 1)
            assert replace(second, slot=0, name=first.name, ticket=first.ticket, wire=first.wire) == first
            assert one.load.name == LOAD
            assert len({first.ticket, second.ticket, one.load.ticket}) == 3


def texts(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*(texts(one) for one in value.values())) if value else set()
    if isinstance(value, list | tuple):
        return set().union(*(texts(one) for one in value)) if value else set()
    return {value} if isinstance(value, str) else set()

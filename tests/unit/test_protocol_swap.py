# SPDX-License-Identifier: EUPL-1.2
"""The same session once more with the arms' labels swapped: not one step may differ.

The other session has the opposite coin and the names and first bytes exchanged, so everything that happens on the wire
is the same in each slot: names, delays, losses, failures. Only what is called `app` and what is called the
control arm has changed places. Both roles must then ask, answer, wait, retry, time out and record alike, and the
gates of the analysis must see the same pair. measurement.md, "Gates"; spec/protocol.md.
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
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analysis.match import Session, pairs_of
from probe.protocol import accounts, coin, steps
from probe.protocol.accounts import Counted, Limits, NoJob
from probe.protocol.memory import MemoryReflector, VirtualClock, send
from probe.protocol.probe_role import ProbeSession
from probe.protocol.session import is_line_quiet
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
from probe.wire.envelope import open_record
from probe.wire.messages import SessionRequest
from probe.wire.records import CONTROL_ARMS, Arm, Environment, Receipt, Started
from probe.wire.signing import SeedSigner

NOW = 1_800_000_000_000
SIGNER = SeedSigner(b"\x03" * 32, "cryptography")
NAMES = ("app.example.net", "twin.example.org")
ARMS = {"app", "neutral", "opaque"}


def plan(carrier: str) -> PlannedPair:
    wires = [None, None]
    if carrier not in {"tls", "hello"}:
        head = b"\x90" * 12 if carrier != "stream" else b""
        wires = [WireBytes(flight=bytes([n]) * 64, answer=bytes([n]) * 8, head=head) for n in (0x13, 0x9A)]
    return PlannedPair(
        kind="test", app="youtube", profile="p", direction="down", pace_mbps=8, segment_s=1, app_name=NAMES[0],
        neutral_name=NAMES[1], carrier=carrier, app_wire=wires[0], neutral_wire=wires[1],  # type: ignore[arg-type]
    )  # fmt: skip


def exchanged(pair: PlannedPair) -> PlannedPair:
    """The names and first bytes change places, as the coin does, so that each slot looks as before."""
    return replace(
        pair,
        app_name=pair.neutral_name, neutral_name=pair.app_name, app_wire=pair.neutral_wire, neutral_wire=pair.app_wire,
    )  # fmt: skip


# -- what the network does, by slot ------------------------------------------------------------------------------

slots = st.fixed_dictionaries(
    {
        "before_ms": st.sampled_from([0, 30, 2000, 9_999, 10_001, 19_000, 31_000]),
        "connects": st.sampled_from([True] * 4 + [False]),
        "shows": st.sampled_from(["right"] * 4 + ["wrong", "none"]),
        "end": st.sampled_from(["complete"] * 4 + ["reset", "aborted", "never"]),
        "ms": st.integers(0, 1200),
        "bytes": st.integers(0, 2_000_000),
        "saturated": st.booleans(),
        "failure": st.sampled_from([None, None, "connection_reset", "tls_timeout", "stalled", "connect_timeout"]),
        "pings_ms": st.lists(st.floats(1, 80), min_size=1, max_size=5),
        "household_kb": st.one_of(st.none(), st.integers(0, 2000)),
        "cpu_limited": st.one_of(st.none(), st.booleans()),
    }
)
scripts = st.fixed_dictionaries(
    {
        "carrier": st.sampled_from(["tls", "hello", "stream", "quic", "datagram"]),
        "pairs": st.integers(1, 3),
        "slots": st.lists(slots, min_size=6, max_size=6),
        "lost": st.sets(st.integers(2, 14), max_size=6),
        "answers_lost": st.booleans(),
        "stop_after": st.one_of(st.none(), st.integers(0, 2)),
        "abandon_at": st.one_of(st.none(), st.integers(1, 30)),
        "session_bytes": st.sampled_from([10**9, 10**9, 4_500_000]),
    }
)
GOOD_SLOT = {
    "before_ms": 0, "connects": True, "shows": "right", "end": "complete", "ms": 1000, "bytes": 1_000_000,
    "saturated": False, "failure": None, "pings_ms": [2.0], "household_kb": 1, "cpu_limited": False,
}  # fmt: skip
GOOD = {
    "carrier": "tls", "pairs": 3, "slots": [GOOD_SLOT] * 6, "lost": set(), "answers_lost": False, "stop_after": None,
    "abandon_at": None, "session_bytes": 10**9,
}  # fmt: skip


@dataclass
class Played:
    """One session and everything that either role asked, said, waited for and wrote."""

    trace: list[tuple[str, Any]] = field(default_factory=list)
    steps: list[Any] = field(default_factory=list)
    nonces: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    """Of each pair that the reflector began: the probe's and its own."""
    coins: dict[int, bool] = field(default_factory=dict)
    session: str = ""
    receipt: Receipt | None = None
    measurement: Any = None
    started: tuple[Started, ...] = ()


def play(script: dict[str, Any], seed: int, pair: PlannedPair, draw: Callable[[int, bytes], bytes] | None) -> Played:
    """Play a session; `draw` may exchange the nonce that the probe draws for a pair."""
    played, clock = Played(), VirtualClock(NOW)
    there = MemoryReflector(
        signer=SIGNER, clock=clock, random_bytes=random.Random(f"{seed}/there").randbytes,
        limits=Limits(session_bytes=script["session_bytes"]),
    )  # fmt: skip
    drawn, ours = [], random.Random(f"{seed}/here")

    def nonce(size: int) -> bytes:
        usual = ours.randbytes(size)
        drawn.append(draw(len(drawn) + 1, usual) if draw else usual)
        return drawn[-1]

    wish = SessionRequest(v=1, probe=SIGNER.key_id, nettest="differential", pairs=9, segment_s=2, pace_mbps=12)
    here = ProbeSession(wish, random_bytes=nonce)
    events, event, sent = iter(script["slots"]), GOOD_SLOT, 0
    while True:
        step = here.next(clock.now_ms)
        played.steps.append(step)
        played.trace.append(("step", _plain(step)))
        if script["abandon_at"] == len(played.steps):
            here.abandon("out_of_time")
            continue
        if isinstance(step, Finished):
            break
        if isinstance(step, AwaitPlan):
            here.plan([pair] * script["pairs"])
        elif isinstance(step, Wait):
            clock.advance(step.ms)
        elif isinstance(step, RunSegment):
            event = next(events)
            here.segment_ended(_transfer(step, event, there, played), clock.now_ms)
            if script["stop_after"] == step.pair - 1:
                here.stop()
        elif isinstance(step, Guard):
            here.guard_ended(_guard(step, event, clock), clock.now_ms)
        elif isinstance(step, Send):
            sent += 1
            _request(step, here, there, played, lost=sent in script["lost"], arrives=script["answers_lost"])
        there.tick()
        played.trace.append(("clock", clock.now_ms))
    clock.advance(70_000)
    there.tick()
    _collect(played, here, there, drawn)
    return played


def _request(
    step: Send, here: ProbeSession, there: MemoryReflector, played: Played, *, lost: bool, arrives: bool
) -> None:
    """A control request; of a lost one the request `arrives` or not, its answer never does."""
    answer = send(step, there) if arrives or not lost else None
    if answer is not None:
        body = json.loads(answer.body) if not step.path.endswith("/close") else None
        played.trace.append(("answer", [answer.status, answer.error, answer.retry_after_s, body]))
    if answer is None or lost:
        there.clock.advance(step.timeout_s * 1000)
        here.control_failed("out_of_time", there.clock.now_ms)
    else:
        here.answered(answer.status, answer.body, there.clock.now_ms, answer.retry_after_s)


def _transfer(step: RunSegment, event: dict[str, Any], there: MemoryReflector, played: Played) -> SegmentFacts:
    there.clock.advance(event["before_ms"])
    facts = SegmentFacts(
        hello_sent=event["connects"], failure=event["failure"], bytes=event["bytes"],
        household_kb=event["household_kb"], cpu_limited=event["cpu_limited"],
    )  # fmt: skip
    if event["connects"]:
        shown = {"right": step.name, "wrong": "wrong.example.com", "none": None}[event["shows"]]
        flight = step.wire.announced().flight if step.wire else None
        if event["shows"] != "right" and flight is not None:
            flight = "0" * 64
        name = shown if step.carrier in {"tls", "hello", "quic"} else None
        job = there.connect(step.hello(None), name, carrier=step.carrier, flight=flight)
        played.trace.append(("data plane", _plain(job)))
        played.steps.append(job)
        if not isinstance(job, NoJob):
            there.clock.advance(event["ms"])
            if event["end"] != "never":
                each = event["bytes"] // 10
                there.count(
                    job,
                    Counted(
                        end=event["end"], bytes=each * 10, duration_ms=event["ms"], saturated=event["saturated"],
                        bins_ms=tuple(range(100, 1001, 100)), bins_bytes=(each,) * 10, started_ms=there.clock.now_ms,
                    ),
                )  # fmt: skip
    played.steps.append(facts)
    return facts


def _guard(step: Guard, event: dict[str, Any], clock: VirtualClock) -> int:
    """The shell's guard gap: pings until one is quick enough or the limit is over."""
    waited = 0.0
    for ping in event["pings_ms"]:
        waited = min(step.limit_ms, waited + ping)
        if waited >= step.limit_ms or is_line_quiet(ping, 2.0):
            break
    clock.advance(waited)
    return round(waited)


def _collect(played: Played, here: ProbeSession, there: MemoryReflector, drawn: list[bytes]) -> None:
    records = [open_record(envelope) for envelope in there.started]
    played.started = tuple(one for one in records if isinstance(one, Started))
    for one in played.started:
        played.nonces[one.pair] = (drawn[one.pair - 1], bytes.fromhex(one.reflector_nonce))
        played.session = one.session
    for envelope in there.receipts.values():
        receipt = open_record(envelope)
        assert isinstance(receipt, Receipt)
        played.receipt = receipt
        played.coins = {p.pair: p.neutral_first for p in receipt.pairs if p.neutral_first is not None}
        played.trace.append(("receipt", _plain(receipt)))
    if here.grant is not None:
        played.measurement = here.measurement(record_id="0" * 32, sequence=1, environment=Environment())
        played.trace.append(("measurement", _plain(played.measurement)))


def _plain(value: Any) -> Any:
    """A step, message or record as plain data; a request's body is read."""
    if isinstance(value, Send):
        return [value.method, value.path, value.token, value.timeout_s, json.loads(value.body)]
    if isinstance(value, RunSegment):  # what the shell derives from it, too
        return [dataclasses.asdict(value), value.transfer_timeout_s, value.hello("192.0.2.1")]
    return dataclasses.asdict(value)


# -- the mirror --------------------------------------------------------------------------------------------------

_EXCHANGED = {"app_name": "neutral_name", "app_bytes": "neutral_bytes", "app_flight": "neutral_flight"}
_EXCHANGED |= {there: here for here, there in _EXCHANGED.items()}
_DRAWN = {"commit", "nonce", "probe_nonce"}
"""Must differ, or the coin could not."""


def mirror(value: Any, control: str) -> Any:
    """What the other session must have in this place."""
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
    """The other session's own, with what had to be drawn anew left out."""
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
    """A session, and the same one with its labels swapped."""
    pair = plan(script["carrier"])
    played = play(script, seed, pair, None)
    return played, play(script, seed, exchanged(pair), opposite(played))


@given(script=scripts, seed=st.integers(0, 2**32))
@example(script=GOOD, seed=0)
@settings(max_examples=250)
def test_swapped_labels_change_no_step_of_either_role(script: dict[str, Any], seed: int) -> None:
    one, other = both(script, seed)
    control = CONTROL_ARMS[script["carrier"]]
    for number, (here, there) in enumerate(zip(one.trace, other.trace, strict=False)):
        assert (here[0], mirror(here[1], control)) == (there[0], same(there[1])), f"event {number}"
    assert len(one.trace) == len(other.trace)
    assert other.coins == {number: not fell for number, fell in one.coins.items()}


@given(script=scripts, seed=st.integers(0, 2**32))
@settings(max_examples=100)
def test_swapped_labels_change_no_gate(script: dict[str, Any], seed: int) -> None:
    """Lost, void, flags, rates by slot: what analysis makes of the records is the same pair with another coin."""
    one, other = (
        list(pairs_of(Session(receipt=it.receipt, measurement=it.measurement, started=it.started)))
        for it in both(script, seed)
    )
    assert [pair.swapped() for pair in one] == other


def test_the_mirror_has_something_to_mirror() -> None:
    """Else the properties above could not fail: both coins occur, and all three pairs are whole."""
    seen = set()
    for seed in range(12):
        one, other = both(GOOD, seed)
        assert len(one.coins) == len(other.coins) == 3
        assert one.receipt is not None
        assert {pair.outcome for pair in one.receipt.pairs} == {"both"}
        assert {event[0] for event in one.trace} == {"step", "clock", "answer", "data plane", "receipt", "measurement"}
        seen |= set(one.coins.values())
    assert seen == {True, False}


# -- nothing that a shell sees says which arm it is ----------------------------------------------------------------


def shell_types() -> list[type]:
    """Every step and fact that passes between the machines and their shells."""
    probe_side = [Wait, AwaitPlan, RunSegment, Guard, Finished, SegmentFacts, steps.Calibrate, WireBytes]
    return [*probe_side, accounts.Job, NoJob, Counted, accounts.StillRunning, accounts.Awaited]


@pytest.mark.parametrize("kind", shell_types(), ids=lambda kind: kind.__name__)
def test_no_step_and_no_fact_has_a_place_for_the_arm(kind: type) -> None:
    hints = get_type_hints(kind, include_extras=False)
    for one in fields(kind):
        assert "arm" not in one.name.split("_")
        assert "neutral" not in one.name
        assert hints[one.name] is not Arm


@given(script=scripts, seed=st.integers(0, 2**32))
@settings(max_examples=100)
def test_no_step_and_no_fact_holds_the_arm(script: dict[str, Any], seed: int) -> None:
    played = play(script, seed, plan(script["carrier"]), None)
    seen = [one for one in played.steps if not isinstance(one, Send)]  # a commitment names both arms, before the coin
    for one in seen:
        assert ARMS.isdisjoint(_texts(dataclasses.asdict(one))), one
    # The two segments of a pair differ in their turn, their name or first bytes and their ticket, in nothing else.
    runs = {(one.pair, one.slot): one for one in seen if isinstance(one, RunSegment)}
    for (pair, slot), first in runs.items():
        if slot == 0 and (second := runs.get((pair, 1))):
            assert replace(second, slot=0, name=first.name, ticket=first.ticket, wire=first.wire) == first
            assert (first.transfer_timeout_s, len(first.hello(None))) == (
                second.transfer_timeout_s,
                len(second.hello(None)),
            )


def _texts(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*(_texts(one) for one in value.values())) if value else set()
    if isinstance(value, list | tuple):
        return set().union(*(_texts(one) for one in value)) if value else set()
    return {value} if isinstance(value, str) else set()

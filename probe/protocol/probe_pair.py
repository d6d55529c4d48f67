# SPDX-License-Identifier: EUPL-1.2
"""One pair as the probe's machine keeps it, and the messages and records that are made of it.

Spec: spec/protocol.md, section "One pair".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from probe.protocol import coin, sealed
from probe.protocol.steps import PlannedPair, SegmentFacts, WireBytes
from probe.wire.failure import ALTERING
from probe.wire.messages import PairCommit, PairFinish, PairResult, SegmentReport
from probe.wire.records import Arm, MeasuredPair, MeasuredSegment

QUEUE_LIMITED: Final = 0.1
"""Share of a segment's time: held back by the probe itself for longer, it tells little of the network."""


@dataclass(slots=True)
class ProbePair:
    """A pair from its commitment to its result."""

    number: int
    planned: PlannedPair
    nonce: bytes
    reflector_nonce: bytes = b""
    endpoint: int = 0
    arms: tuple[Arm, ...] = ()
    tickets: tuple[str, ...] = ()
    load_ticket: str | None = None
    facts: list[SegmentFacts] = field(default_factory=list)
    guards_ms: list[int] = field(default_factory=list)
    result: PairResult | None = None

    def name_of(self, arm: Arm) -> str:
        """The server name of an arm."""
        return self.planned.app_name if arm == "app" else self.planned.neutral_name

    def wire_of(self, arm: Arm) -> WireBytes | None:
        """What an arm puts on the wire itself."""
        return self.planned.app_wire if arm == "app" else self.planned.neutral_wire


def begins_like_tls(planned: PlannedPair) -> bool:
    """Whether a stream's flight would be taken for a TLS handshake (spec/carriers.md, section "stream")."""
    wires = [wire for wire in (planned.app_wire, planned.neutral_wire) if wire is not None]
    return planned.carrier == "stream" and any(not sealed.is_stream(wire.flight[0]) for wire in wires if wire.flight)


def commit_message(pair: ProbePair) -> PairCommit:
    """What fixes the pair before its coin."""
    planned = pair.planned
    return PairCommit(
        pair=pair.number,
        commit=coin.commitment(pair.nonce),
        kind=planned.kind,
        app=planned.app,
        profile=planned.profile,
        direction=planned.direction,
        pace_mbps=planned.pace_mbps,
        segment_s=planned.segment_s,
        app_name=planned.app_name,
        neutral_name=planned.neutral_name,
        carrier=planned.carrier,
        app_bytes=planned.app_wire.announced() if planned.app_wire else None,
        neutral_bytes=planned.neutral_wire.announced() if planned.neutral_wire else None,
        design=planned.design,
        packets=planned.packets,
    )


def finish_message(pair: ProbePair) -> PairFinish:
    """What the probe says of the pair at its end."""
    return PairFinish(
        segments=tuple(
            SegmentReport(started=facts.hello_sent, bytes=facts.bytes, duration_ms=facts.duration_ms)
            for facts in pair.facts
        )
    )


def measured(pair: ProbePair) -> MeasuredPair:
    """The pair as the probe's record tells it."""
    household = [facts.household_kb for facts in pair.facts]
    return MeasuredPair(
        pair=pair.number,
        kind=pair.planned.kind,
        app=pair.planned.app,
        direction=pair.planned.direction,
        nonce=pair.nonce.hex(),
        segments=tuple(_measured_segment(pair, slot) for slot in range(len(pair.facts))),
        # Over both segments together, so that nothing can be conditioned on one arm.
        household_kb=sum(kb for kb in household if kb is not None) if None not in household and household else None,
        cpu_limited=_either([facts.cpu_limited for facts in pair.facts]),
        queue_limited=_either([facts.queue_limited for facts in pair.facts] + _window_limited(pair)),
        captive=_either([facts.captive for facts in pair.facts if facts.captive is not None]),
        path_changed=_either([facts.path_changed for facts in pair.facts]),
    )


def _either(told: list[bool | None]) -> bool | None:
    """Said of the pair as a whole: yes where either segment says so, no where both deny it, else unknown."""
    if any(told):
        return True
    return False if told and None not in told else None


def _window_limited(pair: ProbePair) -> list[bool | None]:
    """Whether the reflector as a sender waited for our window; nothing where it does not say, or was not asked."""
    segments = pair.result.segments if pair.result is not None else ()
    told = [(segment.rwnd_limited_ms, segment.duration_ms) for segment in segments]
    return [waited > QUEUE_LIMITED * lasted for waited, lasted in told if waited is not None]


def _measured_segment(pair: ProbePair, slot: int) -> MeasuredSegment:
    facts, arm = pair.facts[slot], pair.arms[slot]
    return MeasuredSegment(
        arm=arm,
        name=pair.name_of(arm),
        failure=facts.failure,
        bytes=facts.bytes,
        duration_ms=facts.duration_ms,
        connect_ms=facts.connect_ms,
        tls_ms=facts.tls_ms,
        guard_ms=pair.guards_ms[slot] if slot < len(pair.guards_ms) else None,
        congestion=facts.congestion,
        paced=facts.paced,
        retransmits=facts.retransmits,
        rtt_min_ms=facts.rtt_min_ms,
        datagrams_sent=facts.datagrams_sent,
        datagrams_received=facts.datagrams_received,
        altered=facts.altered or facts.failure in ALTERING,
    )

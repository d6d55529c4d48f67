# SPDX-License-Identifier: EUPL-1.2
"""One pair and its two segments as the reflector's machine keeps them, and what the receipt says of them.

Spec: spec/protocol.md, section "One pair".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal

from probe.protocol.accounts import Counted
from probe.wire.messages import ArmBytes, PairCommit, PairFinish, PairOrder, PairResult
from probe.wire.records import Arm, Carrier, ReceiptPair, Segment, SegmentEnd
from probe.wire.scrub import scrub

NAMED_CARRIERS: Final[frozenset[Carrier]] = frozenset({"tls", "hello"})
"""Carriers whose name the reflector reads itself; of the others it compares the flight."""
_NAME: Final = re.compile(r"[\x21-\x7e]{1,253}")


@dataclass(slots=True)
class Slot:
    """One of a pair's two segments."""

    ticket: str
    arm: Arm
    name: str
    state: Literal["waiting", "running", "over"] = "waiting"
    bytes: ArmBytes | None = None
    """What the arm announced to put on the wire itself."""
    name_seen: str | None = None
    flight_seen: str | None = None
    counted: Counted | None = None
    ended_ms: int | None = None

    def segment(self, missing: SegmentEnd) -> Segment:
        """The segment as the receipt tells it; `missing` is its end where nothing was counted."""
        counted = self.counted or Counted(end=missing)
        return Segment(
            arm=self.arm,
            end=counted.end,
            name_seen=self.name_seen,
            flight_seen=self.flight_seen,
            started_ms=counted.started_ms,
            duration_ms=counted.duration_ms,
            bytes=counted.bytes,
            bins_ms=counted.bins_ms,
            bins_bytes=counted.bins_bytes,
            rtt_min_ms=counted.rtt_min_ms,
            rtt_ms=counted.rtt_ms,
            retransmits=counted.retransmits,
            rwnd_limited_ms=counted.rwnd_limited_ms,
            congestion=counted.congestion,
            paced=counted.paced,
            datagrams_sent=counted.datagrams_sent,
            datagrams_received=counted.datagrams_received,
            altered=counted.altered,
            echo_us=counted.echo_us,
        )

    def is_as_announced(self, name: str | None, flight: str | None, carrier: Carrier) -> bool:
        """Whether what arrived is what was fixed before the coin."""
        if carrier in NAMED_CARRIERS and (name is None or name.lower() != self.name.lower()):
            return False
        return not self.is_flight_altered(flight)

    def is_flight_altered(self, flight: str | None) -> bool:
        """Whether a first flight arrived that is not the announced one."""
        return self.bytes is not None and flight != self.bytes.flight


@dataclass(slots=True)
class LoadSlot:
    """What fills the queue of a concurrent pair; it belongs to neither arm."""

    ticket: str
    name: str
    state: Literal["waiting", "running", "over"] = "waiting"
    counted: Counted | None = None


@dataclass(slots=True)
class ReflectorPair:
    """A pair from its commitment on."""

    commit: PairCommit
    started_ms: int
    nonce: bytes
    endpoint: int
    is_written: bool = False
    probe_nonce: str | None = None
    order: PairOrder | None = None
    revealed_ms: int = 0
    slots: list[Slot] = field(default_factory=list)
    load: LoadSlot | None = None
    """Of a concurrent pair, once its coin fell."""
    finish: PairFinish | None = None
    result: PairResult | None = None
    path_changed: bool = False
    """A data connection of either segment came from elsewhere than the control connection."""

    @property
    def is_over(self) -> bool:
        """Whether it was finished."""
        return self.result is not None

    @property
    def is_concurrent(self) -> bool:
        """Whether both slots run at once."""
        return self.commit.design == "concurrent"

    @property
    def load_bytes(self) -> int:
        """What the load moved."""
        return self.load.counted.bytes if self.load is not None and self.load.counted is not None else 0

    @property
    def running(self) -> tuple[str, ...]:
        """Tickets of the connections that are open now."""
        load = (self.load,) if self.load is not None else ()
        return tuple(one.ticket for one in (*self.slots, *load) if one.state == "running")


def seen_name(name: str | None) -> str | None:
    """A server name as a receipt may carry it: no address, nothing that a reader would refuse."""
    if name is None:
        return None
    return scrub(name) if _NAME.fullmatch(name) else "(unprintable)"


def receipt_pair(pair: ReflectorPair) -> ReceiptPair:
    """The pair as the receipt tells it, finished or not."""
    result = pair.result
    commit = pair.commit
    load = pair.load.counted if pair.load is not None else None
    counts = [counted for counted in (*(slot.counted for slot in pair.slots), load) if counted is not None]
    return ReceiptPair(
        pair=commit.pair,
        kind=commit.kind,
        app=commit.app,
        profile=commit.profile,
        direction=commit.direction,
        pace_mbps=commit.pace_mbps,
        segment_s=commit.segment_s,
        started_ms=pair.started_ms,
        commit=commit.commit,
        reflector_nonce=pair.nonce.hex(),
        endpoint=pair.endpoint,
        outcome=result.outcome if result else "unfinished",
        probe_nonce=pair.probe_nonce,
        neutral_first=pair.order.neutral_first if pair.order else None,
        segments=result.segments if result else tuple(slot.segment("control_lost") for slot in pair.slots),
        carrier=commit.carrier,
        app_flight=commit.app_bytes.flight if commit.app_bytes else None,
        neutral_flight=commit.neutral_bytes.flight if commit.neutral_bytes else None,
        path_changed=pair.path_changed,
        saturated=any(one.saturated for one in counts),
        design=commit.design,
        load_bytes=pair.load_bytes,
    )

# SPDX-License-Identifier: EUPL-1.2
"""What the reflector's session machine and its data plane tell each other, and how it refuses.

Spec: spec/protocol.md, sections "Control channel" and "Data connection".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from probe.wire.messages import Problem
from probe.wire.records import Carrier, Direction, SegmentEnd

RETRY_AFTER_S: Final = 30
"""How long a probe is asked to stay away when there is no room: as long as a silent session takes to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A request that is not granted: the HTTP status and its body."""

    status: int
    problem: Problem
    retry_after_s: int | None = None


def refuse(status: int, error: str, detail: str, retry_after_s: int | None = None) -> Refusal:
    """A refusal with a stable code and a sentence."""
    return Refusal(status=status, problem=Problem(error=error, detail=detail), retry_after_s=retry_after_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoPlan:
    """What a slot of a concurrent pair sends, from the pair's beginning on."""

    count: int
    interval_s: float
    size: int
    """Bytes of each small packet."""
    offset_s: float
    """How long after the pair's beginning the first one is due: the slot's phase."""
    secret: bytes
    """What makes each packet unforeseeable; known to the reflector alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a data connection with a valid hello is allowed to do."""

    flight: str = ""
    """SHA-256 of the first flight as it arrived, where the carrier announces it."""

    session: str
    ticket: str
    """Empty for a calibration, which has no account."""
    direction: Direction
    pace_mbps: float
    """Of the reflector as sender; 0 means unlimited."""
    duration_s: float
    carrier: Carrier = "tls"
    answer: bytes = b""
    """What the reflector sends first, in either direction of the segment."""
    head: bytes = b""
    """What each datagram begins with."""
    echo: EchoPlan | None = None
    """A slot of a concurrent pair: small packets to be answered, and nothing else."""
    begins: tuple[str, ...] = ()
    """The load of a concurrent pair: the tickets of the slots whose clock starts with this connection's hello."""
    after_s: float = 0.0
    """So long after the hello the transfer begins; `duration_s` counts from there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """What the data plane may know of a ticket before the hello that shows it was read."""

    carrier: Carrier
    is_waiting: bool
    """False where the ticket was used, or its pair is over."""
    flight_bytes: int = 0
    """How long the announced first flight is; 0 where the carrier announces none."""
    answer: bytes = b""
    """What the reflector sends first."""
    head: bytes = b""
    """What each datagram begins with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoJob:
    """A data connection that gets a reset and no byte; `reason` is for the metrics."""

    reason: Literal[
        "unknown_ticket",
        "used_ticket",
        "late_ticket",
        "wrong_direction",
        "wrong_carrier",
        "mismatch",
        "no_calibration",
        "no_load",
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The account of one segment that the data plane ran."""

    end: SegmentEnd
    started_ms: int | None = None
    duration_ms: int = 0
    bytes: int = 0
    bins_ms: tuple[int, ...] = ()
    bins_bytes: tuple[int, ...] = ()
    rtt_min_ms: float | None = None
    rtt_ms: float | None = None
    retransmits: int | None = None
    rwnd_limited_ms: int | None = None
    congestion: str | None = None
    paced: bool | None = None
    saturated: bool = False
    datagrams_sent: int | None = None
    datagrams_received: int | None = None
    altered: bool = False
    """What arrived was not what the probe is bound to send."""
    echo_us: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StillRunning:
    """The pair cannot be finished before these segments' data connections have ended."""

    tickets: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one reflector allows. These are the defaults of a machine of one's own; see `public`."""

    sessions: int = 500
    """Open at once."""
    sessions_per_prefix: int = 256
    """Open at once from one /32 (IPv4) or /48 (IPv6): a carrier's NAT puts hundreds of homes behind one address, and
    none of them may be refused for its neighbours."""
    openings_per_minute: int = 600
    """Sessions that one such network may begin: each leaves a receipt to be kept."""
    pairs: int = 512
    segment_s: float = 60.0
    session_bytes: int = 20_000_000_000
    most_pace_mbps: float = 0.0
    """0 means unlimited."""
    idle_timeout_s: float = 30.0
    capacity_mbps: float = 0.0
    """What the machine's line carries each way; sessions book slots of it. 0: nothing is booked."""
    datagram_mbps: float = 200.0
    """Paces of the open pairs over UDP together: half of what one core sends or receives by itself, the kernel's help
    being for TCP alone. A pair beyond it is refused before it begins."""
    newcomers: float = 0.25
    """This share of the capacity is only for networks that have no session open: a greedy one finds its end there,
    while homes behind one carrier's address are not refused as long as the line has room."""


PUBLIC_PACE_MBPS: Final = 50.0
"""Four times the pace of the usual pairs (12 Mbit/s), so that a plan may ask for more."""
PUBLIC_SESSION_BYTES: Final = 2_000_000_000
"""Some 150 usual pairs of 13 MB, or ten of 60 s."""
PUBLIC_CAPACITY_MBPS: Final = 500.0
"""Half of a line of 1 Gbit/s; one core carries that much paced TLS with ease."""

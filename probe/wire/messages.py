# SPDX-License-Identifier: EUPL-1.2
"""What probe and reflector say to each other on the control channel and at the head of a data connection.

Not signed and not kept. Spec: spec/protocol.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from probe.wire.codec import HEX_16, HEX_32, KEY_ID, SLUG, bounded, items, text
from probe.wire.limits import (
    LEAST_PACKET_BYTES,
    LEAST_PACKET_INTERVAL_MS,
    MAX_ANSWER,
    MAX_ENDPOINTS,
    MAX_FLIGHT,
    MAX_HEAD,
    MAX_INT,
    MAX_NAME,
    MAX_PACE_MBPS,
    MAX_PACKET_BYTES,
    MAX_PACKET_INTERVAL_MS,
    MAX_PAIRS,
    MAX_SEGMENT_S,
    MIN_SEGMENT_S,
)
from probe.wire.records import Arm, Carrier, Design, Direction, PairKind, PairOutcome, Segment, Software

DATA_HELLO_BYTES: Final = 512
"""Both arms say hello with exactly as many bytes."""
ALPN_CONTROL: Final = "http/1.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Body of every refusal: a stable code and a sentence."""

    error: Annotated[str, text(longest=64, pattern=r"[a-z0-9_]+")]
    detail: Annotated[str, text(longest=512)] = ""
    path: Annotated[str, text(longest=256)] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRequest:
    """POST /v1/sessions"""

    v: Literal[1]
    probe: Annotated[str, text(pattern=KEY_ID)]
    nettest: Annotated[str, text(pattern=SLUG)]
    pairs: Annotated[int, bounded(low=1, high=MAX_PAIRS)]
    """How many pairs the probe would like; the reflector may allow fewer."""
    segment_s: Annotated[float, bounded(low=MIN_SEGMENT_S, high=MAX_SEGMENT_S)]
    pace_mbps: Annotated[float, bounded(low=0, high=MAX_PACE_MBPS)]
    """Highest pace the probe will ask for; 0 means unlimited (benchmarks)."""
    software: Software | None = None
    hotspot: bool = False
    """The probe stands on a public hotspot; declared before any coin, and copied into the receipt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One address of the reflector's pool. host None means the host of the control URL."""

    host: Annotated[str | None, text(longest=MAX_NAME)]
    port: Annotated[int, bounded(low=1, high=65535)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionGrant:
    """Answer to SessionRequest (201)."""

    v: Literal[1]
    session: Annotated[str, text(pattern=HEX_16)]
    token: Annotated[str, text(pattern=HEX_32)]
    """Bearer token of every further request of the session, and of its calibration."""
    reflector: Annotated[str, text(pattern=KEY_ID)]
    endpoints: Annotated[tuple[Endpoint, ...], items(most=MAX_ENDPOINTS)]
    data_certificate: Annotated[str, text(pattern=HEX_32)]
    """SHA-256 of the DER certificate of the data port."""
    pairs: Annotated[int, bounded(low=1, high=MAX_PAIRS)]
    most_pace_mbps: Annotated[float, bounded(low=0, high=MAX_PACE_MBPS)]
    idle_timeout_s: Annotated[float, bounded(low=1, high=3600)]
    clock_ms: Annotated[int, bounded(low=0)]
    carriers: Annotated[tuple[Carrier, ...], items(most=8)] = ("tls",)
    """What this reflector can carry."""
    designs: Annotated[tuple[Design, ...], items(most=8)] = ("sequential",)
    """Which pairs it can witness."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmBytes:
    """What one arm puts on the wire itself (carriers stream, quic, datagram). Both arms' lengths are equal."""

    flight: Annotated[str, text(pattern=HEX_32)]
    """SHA-256 of what the probe sends first: bytes of a TCP stream, or one datagram."""
    flight_bytes: Annotated[int, bounded(low=1, high=MAX_FLIGHT)]
    answer: Annotated[str, text(longest=2 * MAX_ANSWER, pattern=r"(?:[0-9a-f]{2})*")] = ""
    """What the reflector sends first, hex."""
    head: Annotated[str, text(longest=2 * MAX_HEAD, pattern=r"(?:[0-9a-f]{2})*")] = ""
    """What each later datagram begins with, hex; empty over TCP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallPackets:
    """What a concurrent pair sends regularly in both of its slots, and under which name its load runs."""

    bytes: Annotated[int, bounded(low=LEAST_PACKET_BYTES, high=MAX_PACKET_BYTES)]
    """Of each, both ways: UDP payload with the head, over TCP what is given to the connection."""
    interval_ms: Annotated[int, bounded(low=LEAST_PACKET_INTERVAL_MS, high=MAX_PACKET_INTERVAL_MS)]
    load_name: Annotated[str, text(longest=MAX_NAME)]
    """Server name of the load's TLS connection: a neutral one that neither arm has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCommit:
    """POST /v1/sessions/{session}/pairs: everything about the pair is fixed before the coin."""

    pair: Annotated[int, bounded(low=1, high=MAX_PAIRS)]
    commit: Annotated[str, text(pattern=HEX_32)]
    """SHA-256 of the probe's 32-byte nonce, hex."""
    kind: PairKind
    app: Annotated[str, text(pattern=SLUG)]
    profile: Annotated[str, text(longest=128)]
    direction: Direction
    pace_mbps: Annotated[float, bounded(low=0, high=MAX_PACE_MBPS)]
    segment_s: Annotated[float, bounded(low=MIN_SEGMENT_S, high=MAX_SEGMENT_S)]
    app_name: Annotated[str, text(longest=MAX_NAME)]
    """Server name of the app arm (of the first neutral twin in a placebo pair)."""
    neutral_name: Annotated[str, text(longest=MAX_NAME)]
    """Of the control arm. Without names in the carrier both are labels of the first bytes."""
    carrier: Carrier = "tls"
    app_bytes: ArmBytes | None = None
    neutral_bytes: ArmBytes | None = None
    design: Design = "sequential"
    """In a concurrent pair the pace is that of the load."""
    packets: SmallPackets | None = None
    """Concurrent design alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairNonce:
    """Answer (200). It is on the reflector's disk as started before it is sent: from here the pair counts."""

    pair: Annotated[int, bounded(low=1, high=MAX_PAIRS)]
    nonce: Annotated[str, text(pattern=HEX_32)]
    endpoint: Annotated[int, bounded(low=0, high=MAX_ENDPOINTS - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairReveal:
    """POST /v1/sessions/{session}/pairs/{pair}/reveal"""

    nonce: Annotated[str, text(pattern=HEX_32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOrder:
    """Answer (200): the coin and one ticket per segment, in the order in which they run."""

    pair: Annotated[int, bounded(low=1, high=MAX_PAIRS)]
    neutral_first: bool
    arms: Annotated[tuple[Arm, ...], items(most=2)]
    tickets: Annotated[tuple[str, ...], items(most=2, pattern=HEX_16)]
    """In a concurrent pair those of slot A and slot B."""
    load_ticket: Annotated[str | None, text(pattern=HEX_16)] = None
    """Concurrent design: of the connection that fills the queue, and whose hello starts the pair's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataHello:
    """First bytes inside a data connection's TLS: this object, a newline, then spaces up to 512 bytes."""

    v: Literal[1]
    ticket: Annotated[str, text(pattern=HEX_16)]
    """The segment's ticket; for calibration the session id."""
    purpose: Literal["segment", "calibration", "load"]
    direction: Direction
    address: Annotated[str | None, text(longest=64)] = None
    """The probe's own socket address, compared for `edge` and dropped."""
    token: Annotated[str | None, text(pattern=HEX_32)] = None
    """Session token, for calibration only."""
    duration_s: Annotated[float | None, bounded(low=0.1, high=2.0)] = None
    """Calibration only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentReport:
    """What the probe says of one segment when it finishes a pair."""

    started: bool
    """Whether it got as far as sending the hello."""
    bytes: Annotated[int, bounded(low=0)]
    duration_ms: Annotated[int, bounded(low=0, high=MAX_SEGMENT_S * 2000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFinish:
    """POST /v1/sessions/{session}/pairs/{pair}/finish: ends both segments' accounts."""

    segments: Annotated[tuple[SegmentReport, ...], items(most=2)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairResult:
    """Answer (200): what the receipt will say of the pair."""

    pair: Annotated[int, bounded(low=1, high=MAX_PAIRS)]
    outcome: PairOutcome
    segments: Annotated[tuple[Segment, ...], items(most=2)]
    load_bytes: Annotated[int, bounded(low=0, high=MAX_INT)] = 0
    """Concurrent design: what the load moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnd:
    """POST /v1/sessions/{session}/close; the answer is the receipt's envelope. Repeatable."""

    reason: Literal["done", "early", "failed"]

# SPDX-License-Identifier: EUPL-1.2
"""What the probe's session machine asks its shell to do, and the facts that the shell brings back.

No step says which arm it is: a shell cannot treat arms differently without looking names up on purpose.
Spec: spec/protocol.md, sections "One pair" and "Data connection".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from probe.protocol.session import (
    CONNECT_TIMEOUT_S,
    GUARD_LIMIT_MS,
    TLS_TIMEOUT_S,
    TRANSFER_GRACE_S,
    encode_hello,
)
from probe.wire.failure import Failure
from probe.wire.messages import ArmBytes, DataHello, Endpoint, SmallPackets
from probe.wire.records import Carrier, Design, Direction, PairKind


@dataclass(frozen=True, slots=True, kw_only=True)
class WireBytes:
    """What one arm puts on the wire itself, where the carrier has no handshake that makes it (spec/carriers.md)."""

    flight: bytes
    """What the probe sends first."""
    answer: bytes = b""
    """What the reflector sends first."""
    head: bytes = b""
    """What each later datagram begins with, both ways; empty over TCP."""

    def announced(self) -> ArmBytes:
        """As the commitment tells it."""
        return ArmBytes(
            flight=hashlib.sha256(self.flight).hexdigest(),
            flight_bytes=len(self.flight),
            answer=self.answer.hex(),
            head=self.head.hex(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPair:
    """A pair to be run; everything about it is fixed before its coin."""

    kind: PairKind
    app: str
    profile: str
    direction: Direction
    pace_mbps: float
    """0 means unlimited."""
    segment_s: float
    app_name: str
    """Server name of the app arm; in a placebo pair of the first neutral twin."""
    neutral_name: str
    carrier: Carrier = "tls"
    app_wire: WireBytes | None = None
    neutral_wire: WireBytes | None = None
    """Both for the carriers stream, quic and datagram; their parts are equally long."""
    design: Design = "sequential"
    packets: SmallPackets | None = None
    """Concurrent design alone; the pace is then the load's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send this request on the control channel, then call `answered` or `control_failed`."""

    method: Literal["GET", "POST"]
    path: str
    body: bytes
    token: str | None
    """For `Authorization: Bearer`; None for the first request."""
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Let so many milliseconds pass, then ask for the next step."""

    ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitPlan:
    """The session is granted and has no pairs yet: calibrate if wanted, then call `plan`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSegment:
    """Open a data connection and run one timed transfer, then call `segment_ended`."""

    pair: int
    slot: Literal[0, 1]
    """First or second segment of the pair."""
    endpoint: Endpoint
    name: str
    """Server name of this segment's TLS handshake."""
    ticket: str
    certificate: str
    """SHA-256 that the data certificate must have (hex)."""
    app: str
    profile: str
    """For the ALPN list, which both segments of a pair share."""
    direction: Direction
    pace_mbps: float
    segment_s: float
    carrier: Carrier = "tls"
    wire: WireBytes | None = None
    packet_bytes: int = 0
    """Of each small packet, where the segment is a slot of a concurrent pair."""
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    tls_timeout_s: float = TLS_TIMEOUT_S

    @property
    def transfer_timeout_s(self) -> float:
        """Counted from the hello."""
        return self.segment_s + TRANSFER_GRACE_S

    def hello(self, address: str | None) -> bytes:
        """The 512 bytes to send first; `address` is the socket's own local address, without its port."""
        return encode_hello(
            DataHello(v=1, ticket=self.ticket, purpose="segment", direction=self.direction, address=address)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrate:
    """A short neutral transfer that finds out what the line carries; then call `calibrated`."""

    endpoint: Endpoint
    name: str
    certificate: str
    session: str
    token: str
    direction: Direction
    duration_s: float
    most_mbps: float
    """Pace of the sender; 0 means unlimited."""
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    tls_timeout_s: float = TLS_TIMEOUT_S

    @property
    def transfer_timeout_s(self) -> float:
        """Counted from the hello."""
        return self.duration_s + TRANSFER_GRACE_S

    def hello(self, address: str | None) -> bytes:
        """The 512 bytes to send first."""
        return encode_hello(
            DataHello(
                v=1,
                ticket=self.session,
                purpose="calibration",
                direction=self.direction,
                address=address,
                token=self.token,
                duration_s=self.duration_s,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What fills the queue of a concurrent pair: TLS under a neutral name. Its hello starts the pair's clock."""

    endpoint: Endpoint
    name: str
    ticket: str
    certificate: str
    direction: Direction
    pace_mbps: float
    segment_s: float
    """Of the whole pair; for the first half second of it nothing is transferred."""
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    tls_timeout_s: float = TLS_TIMEOUT_S

    def hello(self, address: str | None) -> bytes:
        """The 512 bytes to send first."""
        return encode_hello(
            DataHello(v=1, ticket=self.ticket, purpose="load", direction=self.direction, address=address)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTogether:
    """Open slot A, then slot B, then the load; answer small packets until both are over; call `together_ended`."""

    slots: tuple[RunSegment, RunSegment]
    load: Load

    @property
    def pair(self) -> int:
        """The pair's number."""
        return self.slots[0].pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Wait until the line is quiet (`session.is_line_quiet`), at most so long, then call `guard_ended`."""

    pair: int
    slot: Literal[0, 1]
    limit_ms: int = GUARD_LIMIT_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Nothing more to do. `failure` None means that the session ran to its end."""

    failure: Failure | None
    complaint: str = ""
    """A sentence, where the reflector broke the protocol or refused."""


Step = Send | Wait | AwaitPlan | RunSegment | RunTogether | Guard | Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFacts:
    """What the shell saw of one segment."""

    hello_sent: bool
    failure: Failure | None = None
    bytes: int = 0
    """Application bytes received (down) or handed to the kernel (up), without the hello."""
    duration_ms: int = 0
    """From the hello to the end."""
    connect_ms: float | None = None
    tls_ms: float | None = None
    congestion: str | None = None
    paced: bool | None = None
    retransmits: int | None = None
    rtt_min_ms: float | None = None
    datagrams_sent: int | None = None
    datagrams_received: int | None = None
    household_kb: int | None = None
    """Traffic of the rest of the household during this segment (kb = 1000 bytes)."""
    cpu_limited: bool | None = None
    queue_limited: bool | None = None
    """Our own buffers or a window held the transfer back for more than a tenth of its time."""
    captive: bool | None = None
    """Told with the pair's last segment: somebody else answered in the reflector's place under its own name, after
    either segment had failed."""
    path_changed: bool | None = None
    """Address, interface or gateway are others than at the beginning of the pair."""
    altered: bool = False
    """What arrived was not what the reflector is bound to send, though nothing failed by it."""

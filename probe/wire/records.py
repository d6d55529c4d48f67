# SPDX-License-Identifier: EUPL-1.2
"""THE CONTRACT: every record that travels, as frozen dataclasses.

Facts only; conclusions are analysis' affair. Fields are added, never removed or given another meaning; a new
field has a default. Times are Unix milliseconds of the clock of whoever signs. Spec: spec/records.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from probe.wire.codec import HEX_16, HEX_32, KEY_ID, SLUG, bounded, items, text
from probe.wire.failure import Failure
from probe.wire.limits import (
    MAX_BINS,
    MAX_ECHOES,
    MAX_INT,
    MAX_NAME,
    MAX_PACE_MBPS,
    MAX_PAIRS,
    MAX_PROFILE,
    MAX_SEGMENT_S,
    MAX_TIME_MS,
    MIN_SEGMENT_S,
    MIN_TIME_MS,
)

VERSION: Final = 1
"""Version of all records. A reader refuses a higher one."""

Arm = Literal["app", "neutral", "opaque"]
Carrier = Literal["tls", "hello", "stream", "quic", "datagram"]
"""How an arm's bytes are carried, the same for both arms of a pair (spec/carriers.md).

tls: TLS 1.3 under the arm's name. hello: a browser-shaped ClientHello with the arm's name, then TLS-shaped records
of random bytes. stream: the application's own first bytes over TCP. quic: a QUIC version 1 Initial with the arm's
name over UDP, then datagrams shaped like it. datagram: the application's own first bytes over UDP.
"""
CONTROL_ARMS: Final[dict[Carrier, Arm]] = {
    "tls": "neutral",
    "hello": "neutral",
    "stream": "opaque",
    "quic": "neutral",
    "datagram": "opaque",
}
"""What the app is compared with: the same bytes under a neutral name, or bytes that no engine knows."""
Design = Literal["sequential", "concurrent"]
"""How a pair's two segments share the time (spec/protocol.md).

sequential: one after the other; the coin says which arm is first, and rates are compared. concurrent: both at once
through the same queue while a neutral load fills it; the coin says which arm has the first slot, and the echoes of
small regular packets are compared (delay and loss). A profile has one design, so a cell has one too.
"""
Direction = Literal["down", "up"]
PairKind = Literal["test", "placebo"]
Access = Literal["fixed", "mobile", "hotspot"]
Effect = Literal["slowing", "blocking", "prioritising", "tampering"]
Position = Literal["edge", "behind_nat", "wifi", "unknown"]
Portal = Literal["open", "captive", "offline", "intercepted"]
"""What a hotspot's door looks like (spec/probe.md). open: the reflector's signed page came as it was sent. captive: a
portal answered in its place, or announces itself (RFC 8908, RFC 8910). offline: nothing answered. intercepted: no
portal, yet somebody else's bytes, certificate or names."""
SegmentEnd = Literal["complete", "aborted", "reset", "absent", "mismatch", "control_lost"]
"""How a segment ended, as the reflector saw it.

complete: it ran to its clock. aborted: an orderly end or silence before the clock. reset: a TCP reset before the
clock. absent: no data connection with its ticket came while the control channel was alive. mismatch: one came
with another name than the arm's. control_lost: the control channel died first, so nothing can be said.
"""
PairOutcome = Literal["both", "one_failed", "both_failed", "unfinished"]
"""both: two complete segments. one_failed / both_failed: while control was alive. unfinished: counts as lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """What ran: for finding out later that one version was wrong."""

    version: Annotated[str, text(longest=64)]
    python: Annotated[str, text(longest=32)] = ""
    tls: Annotated[str, text(longest=64)] = ""
    kernel: Annotated[str, text(longest=64)] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a data connection came from, looked up by the reflector, which then drops the address."""

    asn: Annotated[int | None, bounded(low=0, high=2**32 - 1)] = None
    operator: Annotated[str | None, text(longest=128)] = None
    country: Annotated[str | None, text(pattern=r"[A-Z]{2}")] = None
    access: Literal["fixed", "mobile"] = "fixed"
    family: Literal[4, 6] = 4
    network: Annotated[str, text(longest=64, pattern=r"[0-9a-f]{16,64}")] = "0" * 16
    """Keyed hash of the /32 (IPv4) or /48 (IPv6), with a key that is destroyed monthly."""
    edge: bool | None = None
    """Whether the probe's own socket address is the one seen here: true means no NAT in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One timed transfer of one arm, as the reflector counted it."""

    arm: Arm
    end: SegmentEnd
    name_seen: Annotated[str | None, text(longest=MAX_NAME)] = None
    """The server name of the ClientHello as it arrived; None where none arrived."""
    started_ms: Annotated[int | None, bounded(low=MIN_TIME_MS, high=MAX_TIME_MS)] = None
    duration_ms: Annotated[int, bounded(low=0, high=MAX_SEGMENT_S * 2000)] = 0
    bytes: Annotated[int, bounded(low=0, high=MAX_INT)] = 0
    """Bytes acknowledged (down) or received (up) between start and end, TLS included."""
    bins_ms: Annotated[tuple[int, ...], items(most=MAX_BINS, low=0, high=MAX_SEGMENT_S * 2000)] = ()
    """Offset from the start at which each bin was read (nominally every 100 ms, the true time is recorded)."""
    bins_bytes: Annotated[tuple[int, ...], items(most=MAX_BINS, low=0, high=MAX_INT)] = ()
    """Bytes moved within each bin."""
    rtt_min_ms: Annotated[float | None, bounded(low=0, high=600_000)] = None
    rtt_ms: Annotated[float | None, bounded(low=0, high=600_000)] = None
    """Median of the smoothed round-trip times read at the bins (down only)."""
    retransmits: Annotated[int | None, bounded(low=0, high=MAX_INT)] = None
    rwnd_limited_ms: Annotated[int | None, bounded(low=0, high=MAX_SEGMENT_S * 2000)] = None
    congestion: Annotated[str | None, text(longest=16)] = None
    paced: bool | None = None
    """Whether the kernel paced the sender (SO_MAX_PACING_RATE); None in the direction up."""
    flight_seen: Annotated[str | None, text(pattern=HEX_32)] = None
    """SHA-256 of the first flight as it arrived (carriers stream, quic, datagram)."""
    datagrams_sent: Annotated[int | None, bounded(low=0, high=MAX_INT)] = None
    """Over UDP: how many the sender sent within the segment's time, as far as the reflector knows."""
    datagrams_received: Annotated[int | None, bounded(low=0, high=MAX_INT)] = None
    """Over UDP: how many of them arrived."""
    echo_us: Annotated[tuple[int, ...], items(most=MAX_ECHOES, low=-1, high=60_000_000)] = ()
    """Concurrent design: round-trip time of each small packet in the order in which they were sent, by the
    reflector's clock, in microseconds; -1 for one that was never answered."""
    altered: bool = False
    """What arrived was not what the arm was bound to send (a rewritten first flight, bytes changed under way), though
    it did arrive: what `tampering` bets on. A foreign name is `end="mismatch"`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptPair:
    """One pair as the reflector witnessed it. It suffices to score the pair."""

    pair: Annotated[int, bounded(low=1, high=MAX_PAIRS)]
    kind: PairKind
    app: Annotated[str, text(pattern=SLUG)]
    profile: Annotated[str, text(longest=128)]
    """Profile id, version and digest: `youtube@1:sha256hex16`."""
    direction: Direction
    pace_mbps: Annotated[float, bounded(low=0, high=MAX_PACE_MBPS)]
    segment_s: Annotated[float, bounded(low=MIN_SEGMENT_S, high=MAX_SEGMENT_S)]
    started_ms: Annotated[int, bounded(low=MIN_TIME_MS, high=MAX_TIME_MS)]
    """The moment of the reflector's reveal: from here on the pair counts."""
    commit: Annotated[str, text(pattern=HEX_32)]
    reflector_nonce: Annotated[str, text(pattern=HEX_32)]
    endpoint: Annotated[int, bounded(low=0, high=63)]
    outcome: PairOutcome
    probe_nonce: Annotated[str | None, text(pattern=HEX_32)] = None
    neutral_first: bool | None = None
    """The coin; None where the probe never revealed."""
    segments: Annotated[tuple[Segment, ...], items(most=2)] = ()
    """In the order in which they ran."""
    saturated: bool = False
    """The reflector itself was short of CPU or bandwidth during the pair (either segment)."""
    carrier: Carrier = "tls"
    app_flight: Annotated[str | None, text(pattern=HEX_32)] = None
    """SHA-256 of the app arm's first flight as committed before the coin (carriers stream, quic, datagram)."""
    neutral_flight: Annotated[str | None, text(pattern=HEX_32)] = None
    """The same of the control arm."""
    design: Design = "sequential"
    """In a concurrent pair the first segment is the one in slot A, and `neutral_first` says that it was neutral."""
    load_bytes: Annotated[int, bounded(low=0, high=MAX_INT)] = 0
    """Concurrent design: bytes that the load moved during the pair."""
    path_changed: bool = False
    """A data connection of either segment came from another network than the session's control connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The reflector's signed record of one session, written however the session ended."""

    type: Literal["receipt"]
    v: Literal[1]
    session: Annotated[str, text(pattern=HEX_16)]
    probe: Annotated[str, text(pattern=KEY_ID)]
    nettest: Annotated[str, text(pattern=SLUG)]
    started_ms: Annotated[int, bounded(low=MIN_TIME_MS, high=MAX_TIME_MS)]
    ended_ms: Annotated[int, bounded(low=MIN_TIME_MS, high=MAX_TIME_MS)]
    end: Literal["closed", "timed_out", "stopped"]
    """closed: by the probe. timed_out: the control channel fell silent. stopped: the reflector shut down."""
    origin: Origin
    pairs: Annotated[tuple[ReceiptPair, ...], items(most=MAX_PAIRS)]
    software: Software | None = None
    hotspot: bool = False
    """Declared when the session was opened, before any coin, so that no pair can be moved between cells later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Written and handed to the collector before the reflector's nonce goes out, so that no pair can vanish."""

    type: Literal["started"]
    v: Literal[1]
    session: Annotated[str, text(pattern=HEX_16)]
    probe: Annotated[str, text(pattern=KEY_ID)]
    nettest: Annotated[str, text(pattern=SLUG)]
    pair: Annotated[int, bounded(low=1, high=MAX_PAIRS)]
    kind: PairKind
    app: Annotated[str, text(pattern=SLUG)]
    direction: Direction
    started_ms: Annotated[int, bounded(low=MIN_TIME_MS, high=MAX_TIME_MS)]
    commit: Annotated[str, text(pattern=HEX_32)]
    reflector_nonce: Annotated[str, text(pattern=HEX_32)]
    origin: Origin
    hotspot: bool = False
    """As declared when the session was opened."""
    carrier: Carrier = "tls"
    design: Design = "sequential"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What else could explain a difference, as far as the probe can see it. None means not known."""

    position: Position = "unknown"
    hotspot: bool = False
    wifi: bool | None = None
    vpn: bool | None = None
    sqm: bool | None = None
    upstream_router: bool | None = None
    brand: Annotated[str | None, text(longest=64)] = None
    tariff: Annotated[str | None, text(longest=64)] = None
    contract_down_mbps: Annotated[float | None, bounded(low=0, high=1_000_000)] = None
    contract_up_mbps: Annotated[float | None, bounded(low=0, high=1_000_000)] = None
    opt_in_filters: bool | None = None
    data_cap_exhausted: bool | None = None
    load: Annotated[float | None, bounded(low=0, high=10_000)] = None
    """One-minute load average per CPU at the start."""
    clock_offset_ms: Annotated[int | None, bounded(low=-MAX_INT, high=MAX_INT)] = None
    """Reflector's clock minus the probe's at the start of the session."""
    family: Literal[4, 6] | None = None
    """Of the control connection."""
    declared_position: Literal["router", "behind_router", "hotspot"] | None = None
    """Where the volunteer said that this device stands."""
    clock_synchronised: bool | None = None
    """Whether the kernel's clock is disciplined (adjtimex); None where it does not tell."""
    metered: bool | None = None
    """A line that is paid by volume, as the system or the volunteer says."""
    portal: Portal | None = None
    """The worst that was seen before, during and after the session; None where nobody looked."""
    household_source: Literal["router", "igd"] | None = None
    """Where `household_kb` was counted: on this device's own interfaces, or asked of the home router (UPnP-IGD)."""
    changed: Annotated[tuple[str, ...], items(most=16, pattern=r"[a-z_]{1,32}")] = ()
    """Names of members that were different when they were looked at again at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSegment:
    """One segment as the probe saw it."""

    arm: Arm
    name: Annotated[str, text(longest=MAX_NAME)]
    failure: Failure | None = None
    bytes: Annotated[int, bounded(low=0, high=MAX_INT)] = 0
    """Application bytes received (down) or handed to the kernel (up)."""
    duration_ms: Annotated[int, bounded(low=0, high=MAX_SEGMENT_S * 2000)] = 0
    connect_ms: Annotated[float | None, bounded(low=0, high=600_000)] = None
    tls_ms: Annotated[float | None, bounded(low=0, high=600_000)] = None
    guard_ms: Annotated[int | None, bounded(low=0, high=60_000)] = None
    """How long the guard gap after this segment lasted."""
    congestion: Annotated[str | None, text(longest=16)] = None
    paced: bool | None = None
    retransmits: Annotated[int | None, bounded(low=0, high=MAX_INT)] = None
    rtt_min_ms: Annotated[float | None, bounded(low=0, high=600_000)] = None
    datagrams_sent: Annotated[int | None, bounded(low=0, high=MAX_INT)] = None
    """Over UDP, direction up."""
    datagrams_received: Annotated[int | None, bounded(low=0, high=MAX_INT)] = None
    """Over UDP, direction down."""
    altered: bool = False
    """What arrived was not what the reflector is bound to send: another certificate, bytes that fail their check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPair:
    """One pair as the probe saw it, with what the label-blind gates need."""

    pair: Annotated[int, bounded(low=1, high=MAX_PAIRS)]
    kind: PairKind
    app: Annotated[str, text(pattern=SLUG)]
    direction: Direction
    nonce: Annotated[str, text(pattern=HEX_32)]
    segments: Annotated[tuple[MeasuredSegment, ...], items(most=2)] = ()
    household_kb: Annotated[int | None, bounded(low=0, high=MAX_INT)] = None
    """Traffic of the rest of the household during both segments together (kb = 1000 bytes)."""
    cpu_limited: bool | None = None
    """The probe was short of CPU in either segment."""
    queue_limited: bool | None = None
    """The probe's own buffers or window held either segment back, not the network."""
    captive: bool | None = None
    """A captive portal answered before, during or after the pair."""
    path_changed: bool | None = None
    """Address, interface or gateway changed during the pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The probe's signed record of one session."""

    type: Literal["measurement"]
    v: Literal[1]
    id: Annotated[str, text(pattern=HEX_16)]
    session: Annotated[str, text(pattern=HEX_16)]
    sequence: Annotated[int, bounded(low=0, high=MAX_INT)]
    """Counts this probe's sessions: a gap shows a lost upload."""
    reflector: Annotated[str, text(pattern=KEY_ID)]
    nettest: Annotated[str, text(pattern=SLUG)]
    started_ms: Annotated[int, bounded(low=MIN_TIME_MS, high=MAX_TIME_MS)]
    ended_ms: Annotated[int, bounded(low=MIN_TIME_MS, high=MAX_TIME_MS)]
    environment: Environment
    pairs: Annotated[tuple[MeasuredPair, ...], items(most=MAX_PAIRS)]
    software: Software | None = None
    plan: Annotated[str | None, text(pattern=HEX_32)] = None
    """SHA-256 of the plan's payload; None for a run by hand."""
    calibration_mbps: Annotated[float | None, bounded(low=0, high=1_000_000)] = None
    failure: Failure | None = None
    """Why the session ended early; None where it ran to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRecord:
    """A pair as published: enough to recompute the verdict, nothing that leads to a person.

    `probe` and `network` are labels drawn per cell, constant over the cell's life, unlinkable between cells.
    """

    v: Literal[1]
    sequence: Annotated[int, bounded(low=1, high=MAX_INT)]
    """Order of the pairs within the cell, by the reflector's start."""
    kind: PairKind
    operator: Annotated[str, text(longest=128)]
    asn: Annotated[int | None, bounded(low=0, high=2**32 - 1)]
    app: Annotated[str, text(pattern=SLUG)]
    direction: Direction
    access: Access
    day: Annotated[str, text(pattern=r"[0-9]{4}-[0-9]{2}-[0-9]{2}")]
    """In the operator's local time."""
    stratum: Literal["peak", "rest"]
    probe: Annotated[str, text(pattern=r"p[0-9]{1,9}")]
    network: Annotated[str, text(pattern=r"n[0-9]{1,9}")]
    neutral_first: bool | None
    lost: bool
    app_mbps: Annotated[float | None, bounded(low=0, high=1_000_000)]
    """Rate over the last half of the segment; None where the segment failed or the pair is lost."""
    neutral_mbps: Annotated[float | None, bounded(low=0, high=1_000_000)]
    app_end: SegmentEnd | None
    neutral_end: SegmentEnd | None
    pace_mbps: Annotated[float, bounded(low=0, high=MAX_PACE_MBPS)]
    segment_s: Annotated[float, bounded(low=MIN_SEGMENT_S, high=MAX_SEGMENT_S)]
    edge: bool | None = None
    design: Design = "sequential"
    app_delay_ms: Annotated[float | None, bounded(low=0, high=60_000)] = None
    """Concurrent design: median round-trip time of the arm's echoes while the load ran."""
    neutral_delay_ms: Annotated[float | None, bounded(low=0, high=60_000)] = None
    app_loss: Annotated[float | None, bounded(low=0, high=1)] = None
    """Concurrent design: share of the arm's small packets that were never answered."""
    neutral_loss: Annotated[float | None, bounded(low=0, high=1)] = None
    queued: bool | None = None
    """Concurrent design: whether either slot waited behind the load; where not, the pair tests nothing."""
    app_altered: bool = False
    neutral_altered: bool = False
    flags: Annotated[tuple[str, ...], items(most=16, pattern=r"[a-z_]{1,32}")] = ()
    """What makes the pair poorer, said of both its segments together (spec/statistics.md, "Flags")."""
    midpoint: Annotated[float | None, bounded(low=-100, high=100)] = None
    """m, by which this pair's log ratio was corrected for its order: with it anyone recomputes the score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """Share of the error budget that the plan gives to one family of hypotheses."""

    app: Annotated[str, text(pattern=SLUG + r"|\*")]
    """`*` stands for all apps that the plan does not name."""
    direction: Direction
    access: Access
    effect: Effect
    weight: Annotated[float, bounded(low=0, high=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedReflector:
    """Where to measure against, and which certificate and key to expect there."""

    url: Annotated[str, text(longest=512, pattern=r"https://\S+")]
    key: Annotated[str, text(pattern=KEY_ID)]
    portal: Annotated[str | None, text(longest=512, pattern=r"http://\S+")] = None
    """Base of its plain-HTTP page, by which a captive portal is noticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedProfile:
    """An app profile as the plan delivers it; it takes the place of the probe's own one of the same id."""

    id: Annotated[str, text(pattern=SLUG)]
    document: Annotated[str, text(longest=MAX_PROFILE)]
    """The profile as canonical JSON (spec/profiles.md); SHA-256 of it is the profile's digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedNettest:
    """One line of work."""

    nettest: Annotated[str, text(pattern=SLUG)]
    apps: Annotated[tuple[str, ...], items(most=64, pattern=SLUG)] = ()
    direction: Literal["down", "up", "both"] = "down"
    pairs: Annotated[int, bounded(low=1, high=MAX_PAIRS)] = 3
    segment_s: Annotated[float, bounded(low=MIN_SEGMENT_S, high=MAX_SEGMENT_S)] = 4.0
    most_pace_mbps: Annotated[float, bounded(low=0.1, high=MAX_PACE_MBPS)] = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The collector's signed instructions."""

    type: Literal["plan"]
    v: Literal[1]
    version: Annotated[int, bounded(low=1, high=MAX_INT)]
    """Rises with every plan; a probe refuses a lower one than it has seen."""
    issued_ms: Annotated[int, bounded(low=MIN_TIME_MS, high=MAX_TIME_MS)]
    expires_ms: Annotated[int, bounded(low=MIN_TIME_MS, high=MAX_TIME_MS)]
    reflectors: Annotated[tuple[PlannedReflector, ...], items(most=64)]
    nettests: Annotated[tuple[PlannedNettest, ...], items(most=64)]
    weights: Annotated[tuple[Weight, ...], items(most=4096)]
    """Their sum is at most 1."""
    interval_s: Annotated[int, bounded(low=600, high=7 * 86_400)] = 21_600
    daily_mb: Annotated[int, bounded(low=0, high=1_000_000)] = 200
    monthly_mb: Annotated[int, bounded(low=0, high=10_000_000)] = 5000
    profiles: Annotated[tuple[PlannedProfile, ...], items(most=128)] = ()
    """Profiles that are newer than what the probes were installed with."""
    hotspot_daily_mb: Annotated[int, bounded(low=0, high=1_000_000)] = 30
    hotspot_monthly_mb: Annotated[int, bounded(low=0, high=10_000_000)] = 500
    """Budgets of probes on public hotspots, whose line belongs to somebody else's guests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """A probe's wish to take part, with what its volunteer agreed to and chose to tell."""

    type: Literal["enrolment"]
    v: Literal[1]
    collector: Annotated[str, text(pattern=KEY_ID)]
    """Whom it is meant for: at another collector it is worth nothing."""
    at_ms: Annotated[int, bounded(low=MIN_TIME_MS, high=MAX_TIME_MS)]
    consent: Annotated[str, text(longest=32, pattern=r"[0-9]{4}-[0-9]{2}-[0-9]{2}")]
    """Version of the text that was agreed to."""
    language: Literal["nl", "fr", "de", "en"] = "en"
    """In which it was read."""
    token: Annotated[str | None, text(longest=128, pattern=r"[A-Za-z0-9_-]+")] = None
    """From an organiser who knows the volunteer; without one the probe counts as unknown to anybody."""
    hotspot: bool = False
    declared_position: Literal["router", "behind_router", "hotspot"] | None = None
    brand: Annotated[str | None, text(longest=64)] = None
    tariff: Annotated[str | None, text(longest=64)] = None
    contract_down_mbps: Annotated[float | None, bounded(low=0, high=1_000_000)] = None
    contract_up_mbps: Annotated[float | None, bounded(low=0, high=1_000_000)] = None
    opt_in_filters: bool | None = None
    software: Software | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """A probe's wish that the collector forget it."""

    type: Literal["leave"]
    v: Literal[1]
    collector: Annotated[str, text(pattern=KEY_ID)]
    at_ms: Annotated[int, bounded(low=MIN_TIME_MS, high=MAX_TIME_MS)]


RECORD_TYPES: Final = {
    "measurement": Measurement,
    "receipt": Receipt,
    "started": Started,
    "plan": Plan,
    "enrolment": Enrolment,
    "leave": Leave,
}
"""What may stand in an envelope, by its `type`."""

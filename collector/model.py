# SPDX-License-Identifier: EUPL-1.2
"""What the collector shows: the read model that the API, the pages and the boards share.

Built from analysis' verdicts by the judge, stored by the store, read by everyone else. Public by
construction: nothing here leads to a probe or a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from probe.wire.records import Access, Direction, Effect, PairRecord

State = Literal[
    "insufficient", "no_indication", "indication", "replicated", "corroborated", "inconclusive", "not_testable"
]
CaseStatus = Literal["open", "ended", "withdrawn", "corrected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its confidence sequence (95 %)."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CellKey:
    """Operator × app × direction × access, and the effect asked about."""

    operator: str
    asn: int | None
    app: str
    direction: Direction
    access: Access
    effect: Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class CoinCounts:
    """What became of the test pairs on which the coin fell one way; lost ones are not among them.

    Under a fair coin that nobody could act on, both ways look alike. Who lets both transfers of a pair fail when he
    dislikes the coin bets nothing with it, and shows here.
    """

    pairs: int = 0
    void: int = 0
    """Both transfers failed: the pair bets on nothing."""
    failed_app: int = 0
    """The app's alone failed."""
    failed_neutral: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CellView:
    """One cell and effect as of `updated_ms` (Unix ms). Rates are medians in Mbit/s over pairs."""

    key: CellKey
    country: str | None
    state: State
    e_value: float
    log10_e: float
    slowdown: Interval | None
    """Fraction: 0.3 is 30 % slower; negative is faster."""
    app_mbps: Interval | None
    """Median and quartiles over pairs, for the picture of two lanes."""
    neutral_mbps: Interval | None
    pairs: int
    lost_pairs: int
    placebo_pairs: int
    failed_app: int
    """Pairs in which the app arm alone failed; `failed_neutral` the reverse (blocking)."""
    failed_neutral: int
    probes: int
    slowed: int
    clear: int
    undecided: int
    detectable_rate_mbps: float | None
    detectable_burst_kb: float | None
    reasons: tuple[str, ...]
    case: str | None
    """Identifier of the cell's case, where there is or was one."""
    updated_ms: int
    log10_e_without_one: float | None = None
    """The strength without the strongest network, which cases are opened on; None where it is withheld or unknown."""
    app_delay_ms: Interval | None = None
    """Round-trip time behind a full queue: median and quartiles over concurrent pairs."""
    neutral_delay_ms: Interval | None = None
    app_loss: Interval | None = None
    """Share of small packets that were never answered: median and quartiles over concurrent pairs."""
    neutral_loss: Interval | None = None
    delay_ms: Interval | None = None
    """By how many ms the app waits longer; negative: less long."""
    loss: Interval | None = None
    """By how much more of its packets the app loses: 0.02 = 2 percentage points."""
    share: Interval | None = None
    """Blocking and tampering: in what share of the pairs it was the app alone."""
    detectable_delay_ms: float | None = None
    """The smallest differences in delay and loss that concurrent pairs could see."""
    detectable_loss: float | None = None
    altered_app: int = 0
    """Pairs in which what the app arm alone sent was changed under way; `altered_neutral` the reverse (tampering)."""
    altered_neutral: int = 0
    since_day: str | None = None
    """Where an earlier case was closed: the first day whose pairs count since."""
    log10_e_without_two: float | None = None
    """The strength without the two strongest networks; None where it is withheld or unknown."""
    rule: str = ""
    """Id, version and digest of the rule that judged; empty in views that an older version wrote."""
    altered_both: int = 0
    """Pairs in which what either arm sent was changed under way."""
    neutral_first: CoinCounts | None = None
    """Pairs whose coin put the neutral name first (concurrent ones: in slot A); None where withheld or unknown."""
    app_first: CoinCounts | None = None

    @property
    def void_pairs(self) -> int:
        """Pairs in which both transfers failed, as far as they were counted."""
        return sum(coin.void for coin in (self.neutral_first, self.app_first) if coin is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidencePoint:
    """The cell at the end of one hour: what the outbox sends and the evidence picture draws."""

    bucket_ms: int
    """Start of the hour, Unix ms."""
    pairs: int
    log10_e: float
    state: State
    slowdown: Interval | None
    log10_e_without_one: float | None = None
    """The strength without the strongest network; None in hours that an older version wrote."""
    delay_ms: Interval | None = None
    loss: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairEvidence:
    """Cumulative evidence after the pair with this sequence number, for the picture over pairs."""

    sequence: int
    log10_e: float
    log10_e_without_one: float | None = None
    """The strength without the strongest network, which cases are opened on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseEvent:
    """One line of a case's append-only history."""

    at_ms: int
    what: Literal[
        "opened", "alerted", "changed", "no_longer_supported", "supported_again", "ended", "withdrawn", "corrected"
    ]
    state: State
    log10_e: float
    rule: str
    """Rule id and version that decided."""
    inputs: str
    """SHA-256 over the digests of what was judged, hex."""
    reason: str = ""
    log10_e_without_one: float | None = None
    """The strength without the strongest network; None in events that an older version wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseView:
    """One case with everything its page shows except the pairs."""

    id: str
    """Permanent: a hash of the cell, the effect and the opening, as lower-case hexadecimal digits."""
    cell: CellView
    status: CaseStatus
    supported: bool = True
    """False: it has fallen off the list of open cases ("no longer supported"), though nothing says that it ended."""
    opened_ms: int
    onset_day: str
    ended_ms: int | None
    smallest_coalition: int
    hypotheses: int
    threshold_log10_e: float
    history: tuple[CaseEvent, ...]
    episode: int = 1
    """Which case of its cell and effect it is: a closed one stays as it was, what comes later is another."""
    retrospective: bool = False
    """It was opened by data that are older than the rule which judged them."""

    @property
    def alerted(self) -> bool:
        """Whether people were told of it."""
        return any(event.what == "alerted" for event in self.history)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleVerdict:
    """What an earlier edition of the rule had said of a cell and effect, when the next one took over."""

    rule: str
    until_ms: int
    cell: CellView


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseDetail:
    """A case with its pictures' data: the pairs of its own days."""

    case: CaseView
    pairs: tuple[PairRecord, ...]
    evidence_by_pair: tuple[PairEvidence, ...]
    evidence_by_hour: tuple[EvidencePoint, ...]
    verdicts_by_rule: tuple[RuleVerdict, ...] = ()
    """The oldest first."""
    rule: str = ""
    """The rule that is in force; empty before anything was judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellDetail:
    """A cell and effect without (or beside) a case: what a page about it draws, and what its CSV holds.

    Below three distinct probes `pairs`, `evidence_by_pair` and `evidence_by_hour` are empty.
    """

    cell: CellView
    pairs: tuple[PairRecord, ...]
    evidence_by_pair: tuple[PairEvidence, ...]
    evidence_by_hour: tuple[EvidencePoint, ...]
    verdicts_by_rule: tuple[RuleVerdict, ...] = ()
    """The oldest first."""
    rule: str = ""
    """The rule that is in force; empty before anything was judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorView:
    """One entry of the operators register. `place` (1, 2, …) decides its share of the error budget, for good."""

    id: str
    place: int
    brand: str
    asns: tuple[int, ...]
    country: str | None
    timezone: str
    """IANA name; days and hours of the evidence are in it."""
    configured: bool
    """False: met in receipts, not (yet) in the register that people keep."""
    cgnat: bool = False
    """Subscribers share addresses, so addresses tell no homes apart: its probes count as one network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxPoint:
    """One cell and effect at the end of one hour, for a time-series store. Only cells with three probes."""

    cell: CellView
    point: EvidencePoint


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxCase:
    """One event of a case's life, for annotations."""

    case: CaseView
    event: CaseEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """Something to tell another system, written in the same transaction as the judging that caused it.

    Delivered at least once, in the order of `id`; a later point of the same cell and hour replaces an earlier one.
    """

    id: int
    kind: Literal["point", "case"]
    body: OutboxPoint | OutboxCase

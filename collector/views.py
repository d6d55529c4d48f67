# SPDX-License-Identifier: EUPL-1.2
"""From an assessment to what is shown: the one place where a verdict becomes public.

Pure. A cell with fewer than three distinct probes shows how much was measured and nothing that was found.
Spec: spec/api.md, sections "Cells" and "Privacy".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, Final, Literal

from analysis.cells import Assessment
from analysis.effect import Interval as AnalysisInterval
from analysis.effect import Share
from analysis.logs import e_value
from analysis.pairs import Pair, Scored
from analysis.rules import State
from collector.model import CaseEvent, CaseView, CellKey, CellView, CoinCounts, EvidencePoint, Interval
from collector.store.base import CaseRow, PairRow

LEAST_PROBES: Final = 3
_RESOLUTION: Final = 500
"""Rates are kept in steps of 1/500 of their logarithm (0.2 %), so that quartiles cost no list of all rates."""
_STILL: Final = "0"


@dataclass(slots=True)
class Extras:
    """A cell's counts for its pictures, over all probes. Integers: a pair is added and taken back exactly."""

    app: Counter[str] = field(default_factory=Counter)
    """Rates, Mbit/s."""
    neutral: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    """placebo, failed_app, failed_neutral, altered_app, altered_neutral, altered_both, and by coin (`_by_coin`)."""
    app_delay: Counter[str] = field(default_factory=Counter)
    """Delays behind a full queue, ms; losses as shares of a thousand."""
    neutral_delay: Counter[str] = field(default_factory=Counter)
    app_loss: Counter[str] = field(default_factory=Counter)
    neutral_loss: Counter[str] = field(default_factory=Counter)

    def add(self, row: PairRow, by: int = 1) -> None:
        """Count a scored pair; `by=-1` takes it back."""
        pair, scored = row.pair, row.scored
        if scored is None:
            raise ValueError("a pair that was never scored cannot be counted")
        if pair.kind == "placebo":
            _bump(self.counts, "placebo", by)
            return
        if scored.failure:
            _bump(self.counts, "failed_app" if scored.failure > 0 else "failed_neutral", by)
        if scored.altered:
            _bump(self.counts, "altered_app" if scored.altered > 0 else "altered_neutral", by)
        if scored.lost:
            return
        if pair.first_altered and pair.second_altered:
            _bump(self.counts, "altered_both", by)
        for name in _by_coin(pair, scored):
            _bump(self.counts, name, by)
        self._compare(pair, (self.app, self.neutral), (pair.first_mbps, pair.second_mbps), by)
        if pair.queued:
            delays = (pair.first_delay_ms, pair.second_delay_ms)
            losses = (pair.first_loss, pair.second_loss)
            self._compare(pair, (self.app_delay, self.neutral_delay), delays, by)
            self._compare(pair, (self.app_loss, self.neutral_loss), losses, by, _share_step)

    @staticmethod
    def _compare(
        pair: Pair,
        into: tuple[Counter[str], Counter[str]],
        both: tuple[float | None, float | None],
        by: int,
        step: Callable[[float], str] | None = None,
    ) -> None:
        """Count both arms of a pair where both have a figure; `both` in the order in which they ran."""
        first, second = both
        if first is None or second is None:
            return
        app, neutral = (second, first) if pair.neutral_first else (first, second)
        for counter, value in zip(into, (app, neutral), strict=True):
            _bump(counter, (step or _step)(value), by)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for storage."""
        return {name: dict(getattr(self, name)) for name in _EXTRAS}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Extras:
        """Inverse of `to_dict`; nothing at all is an empty cell."""
        return cls(**{name: Counter(stored.get(name, {})) for name in _EXTRAS})


_EXTRAS: Final = ("app", "neutral", "counts", "app_delay", "neutral_delay", "app_loss", "neutral_loss")


def _by_coin(pair: Pair, scored: Scored) -> tuple[str, ...]:
    """The counts of the pair's coin that it enters."""
    coin = "neutral_first" if pair.neutral_first else "app_first"
    if scored.void:
        return f"{coin}_pairs", f"{coin}_void"
    # Which transfer failed, whatever the pair bets on: an altered one bets on tampering alone.
    failed = (pair.first_failed, pair.second_failed) if pair.neutral_first else (pair.second_failed, pair.first_failed)
    names = zip((f"{coin}_failed_neutral", f"{coin}_failed_app"), failed, strict=True)
    return f"{coin}_pairs", *(name for name, so in names if so)


def coin_counts(counts: Counter[str], coin: Literal["neutral_first", "app_first"]) -> CoinCounts:
    """What became of the pairs on which the coin fell this way."""
    return CoinCounts(
        pairs=counts[f"{coin}_pairs"],
        void=counts[f"{coin}_void"],
        failed_app=counts[f"{coin}_failed_app"],
        failed_neutral=counts[f"{coin}_failed_neutral"],
    )


def _bump(counter: Counter[str], name: str, by: int) -> None:
    counter[name] += by
    if counter[name] == 0:
        del counter[name]


def _step(mbps: float) -> str:
    return _STILL if mbps <= 0 else f"{round(math.log(mbps) * _RESOLUTION):+d}"


def _mbps(step: str) -> float:
    return 0.0 if step == _STILL else float(f"{math.exp(int(step) / _RESOLUTION):.4g}")


def _share_step(share: float) -> str:
    return str(round(share * 1000))


def _share(step: str) -> float:
    return int(step) / 1000


def quartiles(counts: Counter[str], read: Callable[[str], float] = _mbps) -> Interval | None:
    """Median and quartiles of rates (Mbit/s) or delays (ms); None without any."""
    total = counts.total()
    if not total:
        return None
    ranked = sorted(counts, key=read)

    def at(share: float) -> float:
        seen = 0
        for step in ranked:
            seen += counts[step]
            if seen >= share * total:
                return read(step)
        return read(ranked[-1])

    return Interval(estimate=at(0.5), low=at(0.25), high=at(0.75))


def slowdown(found: Assessment) -> Interval | None:
    """The size with its interval; None while the interval is unbounded."""
    estimate, low, high = found.interval.slowdown()
    if estimate is None or low is None or high is None:
        return None
    # + 0.0: nobody is slower by minus nothing.
    return Interval(estimate=round(estimate, 4) + 0.0, low=round(low, 4) + 0.0, high=round(high, 4) + 0.0)


def measured(found: AnalysisInterval | Share, digits: int) -> Interval | None:
    """A difference in delay (ms) or loss (share), or a share of pairs, with its interval; None while it has none."""
    if found.estimate is None or math.isinf(found.low) or math.isinf(found.high):
        return None
    estimate, low, high = (round(end, digits) + 0.0 for end in (found.estimate, found.low, found.high))
    return Interval(estimate=estimate, low=low, high=high)


def log10(log_e: float) -> float:
    """Natural to decimal logarithm, rounded to what two programs agree on."""
    return round(log_e / math.log(10), 6)


def reasons_of(found: Assessment, *, listed: bool, ended: bool) -> tuple[str, ...]:
    """Why no more is claimed, then the notes. Of a case that has ended the case itself tells."""
    held_back: tuple[str, ...] = ()
    if not listed and not ended and found.base in {"indication", "replicated"}:
        held_back = found.gates or ("below_case_threshold",)
    return (*held_back, *found.reasons)


def cell_view(
    found: Assessment,
    extras: Extras,
    *,
    country: str | None,
    listed: bool,
    ended: bool = False,
    case: str | None,
    now_ms: int,
    since: int | None = None,
    rule: str = "",
) -> CellView:
    """One cell and effect as the public sees it; `since` is the first day that counts, where not all do.

    `rule` is the name of the edition that judged.
    """
    since_day = None if since is None else date.fromordinal(since).isoformat()
    if found.probes < LEAST_PROBES:
        hidden = _withheld(found, extras, country=country, case=case, now_ms=now_ms, since_day=since_day)
        return replace(hidden, rule=rule)
    state: State = "corroborated" if listed else found.base
    return CellView(
        key=cell_key(found),
        country=country,
        state=state,
        e_value=float(f"{e_value(found.strength.whole):.6g}"),
        log10_e=log10(found.strength.whole),
        slowdown=slowdown(found),
        app_mbps=quartiles(extras.app),
        neutral_mbps=quartiles(extras.neutral),
        pairs=found.pairs,
        lost_pairs=found.lost or 0,
        placebo_pairs=extras.counts["placebo"],
        failed_app=extras.counts["failed_app"],
        failed_neutral=extras.counts["failed_neutral"],
        probes=found.probes,
        slowed=found.prevalence.slowed,
        clear=found.prevalence.clear,
        undecided=found.prevalence.undecided,
        detectable_rate_mbps=found.detectable.rate_mbps,
        detectable_burst_kb=found.detectable.burst_kb,
        reasons=reasons_of(found, listed=listed, ended=ended),
        case=case,
        updated_ms=now_ms,
        log10_e_without_one=log10(found.strength.without_one),
        app_delay_ms=quartiles(extras.app_delay),
        neutral_delay_ms=quartiles(extras.neutral_delay),
        app_loss=quartiles(extras.app_loss, _share),
        neutral_loss=quartiles(extras.neutral_loss, _share),
        delay_ms=measured(found.delay, 1),
        loss=measured(found.loss, 4),
        share=None if found.share is None else measured(found.share, 4),
        detectable_delay_ms=found.detectable.delay_ms,
        detectable_loss=found.detectable.loss,
        altered_app=extras.counts["altered_app"],
        altered_neutral=extras.counts["altered_neutral"],
        since_day=since_day,
        log10_e_without_two=log10(found.strength.without_two),
        rule=rule,
        altered_both=extras.counts["altered_both"],
        neutral_first=coin_counts(extras.counts, "neutral_first"),
        app_first=coin_counts(extras.counts, "app_first"),
    )


def cell_key(found: Assessment) -> CellKey:
    """The model's key of an assessed cell and effect."""
    cell, effect = found.cell, found.effect
    return CellKey(
        operator=cell.operator,
        asn=cell.asn,
        app=cell.app,
        direction=cell.direction,
        access=cell.access,
        effect=effect,
    )


def _withheld(
    found: Assessment, extras: Extras, *, country: str | None, case: str | None, now_ms: int, since_day: str | None
) -> CellView:
    return CellView(
        key=cell_key(found),
        country=country,
        state="insufficient",
        e_value=1.0,
        log10_e=0.0,
        slowdown=None,
        app_mbps=None,
        neutral_mbps=None,
        pairs=found.pairs,
        lost_pairs=found.lost or 0,
        placebo_pairs=extras.counts["placebo"],
        failed_app=0,
        failed_neutral=0,
        probes=found.probes,
        slowed=0,
        clear=0,
        undecided=0,
        detectable_rate_mbps=None,
        detectable_burst_kb=None,
        reasons=("fewer_than_3_probes",),
        case=case,
        updated_ms=now_ms,
        since_day=since_day,
    )


def evidence_point(found: Assessment, bucket_ms: int, *, listed: bool) -> EvidencePoint:
    """The cell at the end of one hour."""
    return EvidencePoint(
        bucket_ms=bucket_ms,
        pairs=found.pairs,
        log10_e=log10(found.strength.whole),
        state="corroborated" if listed else found.base,
        slowdown=slowdown(found),
        log10_e_without_one=log10(found.strength.without_one),
        delay_ms=measured(found.delay, 1),
        loss=measured(found.loss, 4),
    )


def shown_case(row: CaseRow, cell: CellView, history: tuple[CaseEvent, ...]) -> CaseView:
    """A case as the public sees it: without its witnesses. A closed one keeps its cell as it was then."""
    case = row.case
    if case.status != "open" and row.numbers.closed is not None:
        cell = replace(row.numbers.closed, case=case.id)
    return CaseView(
        id=case.id,
        cell=cell,
        status=case.status,
        supported=case.supported,
        opened_ms=case.history[0].at_ms,
        onset_day=date.fromordinal(case.onset_day).isoformat(),
        ended_ms=next((event.at_ms for event in case.history if event.kind == "ended"), None),
        smallest_coalition=row.numbers.smallest_coalition,
        hypotheses=row.numbers.hypotheses,
        threshold_log10_e=row.numbers.threshold_log10_e,
        history=history,
        episode=case.episode,
        retrospective=case.retrospective,
    )

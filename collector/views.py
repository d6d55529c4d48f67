# SPDX-License-Identifier: EUPL-1.2
"""From an assessment to what is shown: the one place where a verdict becomes public.

Pure. A cell with fewer than three distinct probes shows how much was measured and nothing that was found.
Spec: spec/api.md, sections "Cells" and "Privacy".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

from analysis.cells import Assessment
from analysis.logs import e_value
from analysis.rules import State
from collector.model import CaseEvent, CaseView, CellKey, CellView, EvidencePoint, Interval
from collector.store.base import CaseRow, PairRow

LEAST_PROBES: Final = 3
_RESOLUTION: Final = 500
"""Rates are kept in steps of 1/500 of their logarithm (0.2 %), so that quartiles cost no list of all rates."""
_STILL: Final = "0"


@dataclass(slots=True)
class Extras:
    """A cell's counts for its pictures, over all probes. Integers: a pair is added and taken back exactly."""

    app: Counter[str] = field(default_factory=Counter)
    neutral: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    """placebo, failed_app, failed_neutral."""

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
        if scored.lost or pair.first_mbps is None or pair.second_mbps is None:
            return
        app, neutral = pair.first_mbps, pair.second_mbps
        if pair.neutral_first:
            app, neutral = neutral, app
        _bump(self.app, _step(app), by)
        _bump(self.neutral, _step(neutral), by)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for storage."""
        return {"app": dict(self.app), "neutral": dict(self.neutral), "counts": dict(self.counts)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Extras:
        """Inverse of `to_dict`; nothing at all is an empty cell."""
        return cls(*(Counter(stored.get(name, {})) for name in ("app", "neutral", "counts")))


def _bump(counter: Counter[str], name: str, by: int) -> None:
    counter[name] += by
    if counter[name] == 0:
        del counter[name]


def _step(mbps: float) -> str:
    return _STILL if mbps <= 0 else f"{round(math.log(mbps) * _RESOLUTION):+d}"


def _mbps(step: str) -> float:
    return 0.0 if step == _STILL else float(f"{math.exp(int(step) / _RESOLUTION):.4g}")


def quartiles(counts: Counter[str]) -> Interval | None:
    """Median and quartiles of rates, Mbit/s; None without any."""
    total = counts.total()
    if not total:
        return None
    ranked = sorted(counts, key=_mbps)

    def at(share: float) -> float:
        seen = 0
        for step in ranked:
            seen += counts[step]
            if seen >= share * total:
                return _mbps(step)
        return _mbps(ranked[-1])

    return Interval(estimate=at(0.5), low=at(0.25), high=at(0.75))


def slowdown(found: Assessment) -> Interval | None:
    """The size with its interval; None while the interval is unbounded."""
    estimate, low, high = found.interval.slowdown()
    if estimate is None or low is None or high is None:
        return None
    # + 0.0: nobody is slower by minus nothing.
    return Interval(estimate=round(estimate, 4) + 0.0, low=round(low, 4) + 0.0, high=round(high, 4) + 0.0)


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
    ended: bool,
    case: str | None,
    now_ms: int,
) -> CellView:
    """One cell and effect as the public sees it."""
    if found.probes < LEAST_PROBES:
        return _withheld(found, extras, country=country, case=case, now_ms=now_ms)
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


def _withheld(found: Assessment, extras: Extras, *, country: str | None, case: str | None, now_ms: int) -> CellView:
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
    )


def shown_case(row: CaseRow, cell: CellView, history: tuple[CaseEvent, ...]) -> CaseView:
    """A case as the public sees it: without its witnesses."""
    case = row.case
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
    )

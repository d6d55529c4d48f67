# SPDX-License-Identifier: EUPL-1.2
"""From assessments to verdicts: the selection of cases, one row per cell and effect, and the same in words.

A verdict says what is treated differently by name or first bytes, how much and how surely. It never says who
does it or whether it is lawful. Spec: spec/statistics.md, section "Verdict".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from analysis.cases import needed, select
from analysis.cells import Assessment, Detectable
from analysis.effect import Interval, Share
from analysis.gates import Reason
from analysis.logs import e_value
from analysis.pairs import CellKey
from analysis.plan import HypothesisPlan, place_weight
from analysis.rules import RULES, Rules, State

Place = Callable[[CellKey], int]
"""A place counted from 1: the operator's in the register, or the cell's in the order of first pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellVerdict:
    """What is claimed of one effect in one cell."""

    assessment: Assessment
    state: State
    reasons: tuple[Reason, ...]
    log_weight: float
    """log γ: the hypothesis' share of the error budget."""
    log_needed: float
    """log e at which it would have joined the open list; infinite where it has no share."""

    @property
    def is_case(self) -> bool:
        """Whether it is on the list of open cases."""
        return self.state == "corroborated"

    def row(self) -> dict[str, Any]:
        """Plain values, as `evenlane analysis verdict --json` prints them for each cell and effect."""
        a = self.assessment
        estimate, low, high = a.interval.slowdown()
        return {
            "operator": a.cell.operator,
            "asn": a.cell.asn,
            "app": a.cell.app,
            "direction": a.cell.direction,
            "access": a.cell.access,
            "effect": a.effect,
            "state": self.state,
            "e_value": _digits(e_value(a.strength.whole)),
            "slowdown": {"estimate": _share(estimate), "low": _share(low), "high": _share(high)},
            "delay_ms": _interval(a.delay, 1),
            "loss": _interval(a.loss, 4),
            "share": None if a.share is None else _interval(a.share, 4),
            "pairs": a.pairs,
            "lost_pairs": a.lost,
            "probes": a.probes,
            "prevalence": {
                "slowed": a.prevalence.slowed,
                "clear": a.prevalence.clear,
                "undecided": a.prevalence.undecided,
            },
            "detectable": {
                "rate_mbps": a.detectable.rate_mbps,
                "burst_kb": a.detectable.burst_kb,
                "delay_ms": a.detectable.delay_ms,
                "loss": a.detectable.loss,
            },
            "reasons": list(self.reasons),
        }


def _digits(value: float) -> float:
    return float(f"{value:.6g}")


def _share(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _interval(found: Interval | Share, digits: int) -> dict[str, float | None]:
    ends = (found.estimate, found.low, found.high)
    estimate, low, high = (None if end is None or math.isinf(end) else round(end, digits) for end in ends)
    return {"estimate": estimate, "low": low, "high": high}


def decide(
    assessments: Sequence[Assessment],
    plan: HypothesisPlan,
    place: Place,
    *,
    order: Place | None = None,
    rules: Rules = RULES,
) -> list[CellVerdict]:
    """Select the open cases among all hypotheses and give each its final state, in a fixed sequence.

    `place` and `order` as in `HypothesisPlan.log_weight`.
    """
    ordered = sorted(assessments, key=lambda a: (*a.cell.order, a.effect))
    shares = _unnamed_shares(ordered, plan, order)
    weights = [
        plan.log_weight(
            a.cell, a.effect, place(a.cell), 1 / shares.get(a.cell.app, 1.0), order=order(a.cell) if order else None
        )
        for a in ordered
    ]
    cases = select([(a.log_case_e, w) for a, w in zip(ordered, weights, strict=True)], rules.alpha)
    return [
        _verdict(a, w, index in cases, len(cases), rules)
        for index, (a, w) in enumerate(zip(ordered, weights, strict=True))
    ]


def _unnamed_shares(assessments: Sequence[Assessment], plan: HypothesisPlan, order: Place | None) -> dict[str, float]:
    """Each unplanned app's share of the remainder, by its first pair (by name where that is not known).

    An equal share would shrink with every new app, long after the data that it weighs.
    """
    first: dict[str, int] = {}
    for a in assessments:
        if a.cell.app not in plan.named:
            place = order(a.cell) if order else 0
            first[a.cell.app] = min(first.get(a.cell.app, place), place)
    ranked = sorted(first, key=lambda app: (first[app], app))
    return {app: place_weight(place) for place, app in enumerate(ranked, start=1)}


def _verdict(a: Assessment, log_weight: float, is_case: bool, cases: int, rules: Rules) -> CellVerdict:
    state: State = a.base
    held_back: tuple[Reason, ...] = ()
    if is_case:
        state = "corroborated"
    elif a.base in {"indication", "replicated"}:
        held_back = a.gates or ("below_case_threshold",)
    return CellVerdict(
        assessment=a,
        state=state,
        reasons=(*held_back, *a.reasons),
        log_weight=log_weight,
        log_needed=needed(log_weight, cases - is_case, rules.alpha),
    )


_EXPLAINED: Final[Mapping[Reason, str]] = {
    "fewer_than_3_probes": "fewer than three probes took part",
    "few_pairs": "too few pairs so far",
    "no_rates": "in no pair did both segments get through, so rates cannot be compared",
    "not_queued": "in no pair did a queue build up, so delay and loss under load cannot be compared",
    "both_segments_fail": "both segments failed in every pair",
    "nothing_arrived": "in no pair did both segments get through, so nobody can tell whether they were changed",
    "busy_lines": "the line, the probe or the reflector was busy in most pairs",
    "reflector_saturated": "the reflector itself was short of bandwidth or processor in most pairs",
    "path_changed": "at most probes the data took another network than the session, so whose it is cannot be told",
    "captive_portal": "most pairs were measured behind a captive portal, which answers for others",
    "leave_two_out": "without the two strongest networks too little evidence remains",
    "no_receipts": "receipts are missing",
    "no_edge_probe": "no probe that sees it stands at the network's edge, so a home router could explain it",
    "shaped_at_home": "a tunnel, a filter, a shaper or an exhausted data cap of the household's own could explain it",
    "placebo_alarm": "two neutral names were not treated alike either",
    "lost_pairs": "more than a tenth of the started pairs are lost",
    "hotspot": "measured at public hotspots",
    "could_be_few_probes": "less than a third of the probes show it, so a few could have made it",
    "below_case_threshold": "the evidence is below the threshold of a case",
    "lost_unknown": "without a list of started pairs nobody can tell whether any were withheld",
    "time_zone_unknown": "days and peak hours are in UTC, because the country is not known",
    "effect_among_slowed": "the size is that at the probes which see it",
    "retrospective": "some of the pairs are older than the rule that judges them",
}
_STATE_WORDS: Final[Mapping[State, str]] = {
    "insufficient": "not enough data",
    "no_indication": "no indication",
    "inconclusive": "inconclusive",
    "not_testable": "not testable",
    "indication": "an indication",
    "replicated": "replicated",
    "corroborated": "corroborated",
}
_CLAIM: Final = {
    "slowing": "slower than the same traffic under a neutral name",
    "blocking": "failing where the same traffic under a neutral name gets through",
    "prioritising": "faster than the same traffic under a neutral name",
    "tampering": "changed under way where the same traffic under a neutral name is not",
}


def paragraphs(verdicts: Iterable[CellVerdict]) -> list[str]:
    """One short paragraph per cell, in plain words."""
    cells: dict[CellKey, list[CellVerdict]] = {}
    for verdict in verdicts:
        cells.setdefault(verdict.assessment.cell, []).append(verdict)
    return [_paragraph(cell, found) for cell, found in cells.items()]


def _paragraph(cell: CellKey, verdicts: Sequence[CellVerdict]) -> str:
    first = verdicts[0].assessment
    where = cell.operator if cell.asn is None else f"{cell.operator} (AS{cell.asn})"
    lost = "lost pairs unknown" if first.lost is None else f"{first.lost} lost"
    parts = [
        f"{where}, {cell.app}, {cell.direction}, {cell.access}: {first.pairs} pairs at {first.probes} "
        f"{'probe' if first.probes == 1 else 'probes'}, {lost}."
    ]
    strong = [v for v in verdicts if v.state in {"indication", "replicated", "corroborated"}]
    parts += [_claim(v) for v in strong]
    others = [f"{v.assessment.effect} {_STATE_WORDS[v.state]}" for v in verdicts if v not in strong]
    if others:
        parts.append(f"{'Otherwise: ' if strong else ''}{'; '.join(others)}.".capitalize())
    parts += _detectable(first.detectable)
    why = dict.fromkeys(_EXPLAINED[r] for v in verdicts for r in v.reasons)
    if why:
        parts.append(f"Note: {'; '.join(why)}.")
    return " ".join(parts)


def _detectable(d: Detectable) -> list[str]:
    found = []
    if d.rate_mbps is not None:
        found.append(f"throttling to {d.rate_mbps:g} Mbit/s or less behind a burst of {d.burst_kb:g} kB")
    if d.delay_ms is not None and d.loss is not None:
        found.append(f"{d.delay_ms:g} ms more delay or {100 * d.loss:g} points more loss behind a full queue")
    return [f"Detectable here: {'; '.join(found)}."] if found else []


def _claim(verdict: CellVerdict) -> str:
    a = verdict.assessment
    seen = f"at {a.prevalence.slowed} of {a.probes} probes by their own evidence"
    e = "beyond 1e300" if a.strength.whole > math.log(1e300) else f"{e_value(a.strength.whole):.3g}"
    word = _STATE_WORDS[verdict.state].capitalize()
    return f"{word}: {_CLAIM[a.effect]}{_sizes(a)}, {seen}; evidence {e} to 1."


def _sizes(a: Assessment) -> str:
    """How large, in the measures that have a figure."""
    if a.share is not None:
        return "" if a.share.estimate is None else f", in about {_span(a.share, 100, '%')} of the pairs"
    sign, longer, more = (-1, "shorter", "less") if a.effect == "prioritising" else (1, "longer", "more")
    text = ""
    if a.interval.estimate is not None:
        estimate, low, high = a.interval.slowdown()
        ends = (-math.inf if low is None else low, math.inf if high is None else high)
        text = f" by about {_span(Interval(estimate, *ends), sign * 100, '%')}"
    queue = []
    if a.delay.estimate is not None:
        queue.append(f"waits about {_span(a.delay, sign, 'ms')} {longer}")
    if a.loss.estimate is not None:
        queue.append(f"loses about {_span(a.loss, sign * 100, 'points', 1)} {more}")
    return text + (f": under load it {' and '.join(queue)}" if queue else "")


def _span(found: Interval | Share, unit: float, name: str, digits: int = 0) -> str:
    """Estimate and interval in words; without bounds the estimate alone."""
    ends = sorted((found.low * unit, found.high * unit))
    about = f"{(found.estimate or 0.0) * unit:.{digits}f} {name}"
    if any(math.isinf(end) for end in ends):
        return about
    return f"{about} (between {ends[0]:.{digits}f} and {ends[1]:.{digits}f} {name})"

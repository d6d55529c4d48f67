# SPDX-License-Identifier: EUPL-1.2
"""One cell and effect, judged as far as it can be without looking at other cells.

The ladder short of a case, and what is told beside it: size, prevalence, what could have been seen.
Spec: spec/statistics.md, sections "Cell" and "Ladder".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from analysis.effect import Interval, Share, interval, pooled, share_interval
from analysis.evidence import END_TEST
from analysis.gates import Prevalence, Reason, Setting, Strength, View, failed_gates, strength, unfit
from analysis.networks import grouped
from analysis.pairs import CellKey
from analysis.probes import DELAY_UNIT_MS, POOR, QUEUED, ProbeState, ProbeSummary, summarise
from analysis.rules import RULES, Rules, State
from probe.wire.records import Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Detectable:
    """The largest throttle that the pairs could see: its rate, and the burst that is empty before the last half.

    Of concurrent pairs that met a queue: the smallest differences in delay and loss.
    """

    rate_mbps: float | None
    burst_kb: float | None
    """kb = 1000 bytes."""
    delay_ms: float | None = None
    loss: float | None = None
    """A share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """One cell and effect, judged as far as it can be without looking at other cells."""

    cell: CellKey
    effect: Effect
    strength: Strength
    gates: tuple[Reason, ...]
    """Gates that fail; any of them keeps the cell from being a case."""
    base: State
    """The state without a case."""
    reasons: tuple[Reason, ...]
    interval: Interval
    """Of y of rates."""
    delay: Interval
    """By how many ms the app waits longer behind a full queue (concurrent pairs)."""
    loss: Interval
    """By how much more of its packets the app loses, as a share."""
    share: Share | None
    """Blocking and tampering: in what share of the pairs it was the app alone."""
    pairs: int
    lost: int | None
    probes: int
    networks: int
    prevalence: Prevalence
    detectable: Detectable

    @property
    def log_case_e(self) -> float:
        """log e for the selection of cases: E without the strongest network, nothing where a gate fails."""
        return -math.inf if self.gates else self.strength.without_one


def assess(
    cell: CellKey,
    effect: Effect,
    probes: Sequence[ProbeSummary],
    setting: Setting | None = None,
    *,
    rules: Rules = RULES,
) -> Assessment:
    """Judge one effect in one cell. O(probes), given their summaries."""
    setting = setting or Setting()
    # The order of arguments must not change the last digit of a sum.
    ordered = tuple(sorted(probes, key=lambda p: p.probe))
    groups = tuple(tuple(group) for group in grouped(ordered))
    view = View(
        cell=cell,
        effect=effect,
        probes=ordered,
        groups=groups,
        setting=setting,
        strength=strength([p.log_e[effect] for p in ordered], groups, rules),
    )
    base, why = _base_state(view, rules)
    present = view.present
    witnesses = view.slowed(rules) if view.strength.whole >= math.log(rules.indication) else []
    notes: tuple[tuple[bool, Reason], ...] = (
        (not setting.lost_known, "lost_unknown"),
        (not setting.zone_known, "time_zone_unknown"),
        (0 < len(witnesses) < len(present), "effect_among_slowed"),
        (_older_than(rules, ordered), "retrospective"),
    )
    shown = witnesses or present
    return Assessment(
        cell=cell,
        effect=effect,
        strength=view.strength,
        gates=failed_gates(view, rules),
        base=base,
        reasons=(*why, *(reason for holds, reason in notes if holds)),
        interval=interval(pooled(p.state.sample for p in shown), rules),
        delay=interval(pooled(p.state.delays for p in shown), rules).times(DELAY_UNIT_MS),
        loss=interval(pooled(p.state.losses for p in shown), rules),
        share=alone_share(effect, [p.state for p in shown], rules),
        pairs=view.total("pairs"),
        lost=view.total("lost") if setting.lost_known else None,
        probes=len(present),
        networks=len(groups),
        prevalence=view.prevalence(rules),
        detectable=detectable([p.state for p in ordered], rules),
    )


def assess_cell(
    cell: CellKey,
    states: Mapping[str, ProbeState],
    setting: Setting | None = None,
    *,
    rules: Rules = RULES,
) -> list[Assessment]:
    """Judge all effects of a cell from its probes' states, where nothing is known of enrolment."""
    probes = [summarise(probe, state, rules=rules) for probe, state in states.items()]
    return [assess(cell, effect, probes, setting, rules=rules) for effect in rules.effects]


def _older_than(rules: Rules, probes: Sequence[ProbeSummary]) -> bool:
    """Whether some of the pairs are older than the rule: its guarantee starts at its publication."""
    published = date.fromisoformat(rules.published).toordinal()
    return any(day < published for p in probes for day, _ in p.state.counts.pairs)


def _base_state(view: View, rules: Rules) -> tuple[State, tuple[Reason, ...]]:
    """The state without a case, and why it says no more."""
    threshold = math.log(rules.indication)
    if view.strength.without_one >= threshold:
        return "replicated", ()
    if view.strength.whole >= threshold:
        return "indication", ()
    pairs = view.total("pairs")
    if pairs and view.effect in {"slowing", "prioritising"} and not view.total("rated") + view.total(QUEUED):
        return "not_testable", ("not_queued" if view.total("concurrent") else "no_rates",)
    if pairs and view.total("void") == pairs:
        return "not_testable", ("both_segments_fail",)
    if pairs and view.effect == "tampering" and not view.total("whole") + view.total("touched"):
        return "not_testable", ("nothing_arrived",)
    clear = [p for p in view.present if p.clear[view.effect]]
    held = dict.fromkeys(reason for p in clear for reason in unfit(p, view.effect, rules))
    busy = _busy(view, pairs, rules)
    if (
        _networks_with(view, lambda p: p in clear and not unfit(p, view.effect, rules)) >= rules.least_probes
        and not busy
    ):
        return "no_indication", ()
    if _networks_with(view, lambda p: p.state.tally["pairs"] >= rules.enough_pairs) >= rules.least_probes:
        return "inconclusive", tuple(dict.fromkeys((*busy, *held)))
    return "insufficient", ("fewer_than_3_probes" if len(view.present) < rules.least_probes else "few_pairs",)


def _busy(view: View, pairs: int, rules: Rules) -> tuple[Reason, ...]:
    """Why "no indication" may not be said: in most pairs household, probe or reflector was the bottleneck.

    Whatever slows both segments to less than a throttle would hides the throttle.
    """
    if rules.witness_gates and 2 * view.total("saturated") > pairs:
        return ("reflector_saturated",)
    return ("busy_lines",) if 2 * view.total(POOR) > pairs else ()


def _networks_with(view: View, holds: Callable[[ProbeSummary], bool]) -> int:
    """How many networks have a probe for which this holds."""
    return sum(any(holds(view.probes[i]) for i in group) for group in view.groups)


def detectable(states: Sequence[ProbeState], rules: Rules = RULES) -> Detectable:
    """What the cell's pairs could see: medians over pairs of the pace their better segment achieved.

    Rate: `visible_share` of that pace. A throttle is seen only if its bucket is empty before the last half of
    the segment, so the burst is at most (pace - rate)·segment/2; /8 for bytes. Delay and loss: the rule's thresholds.
    """
    paces: list[tuple[float, int]] = []
    lengths: list[tuple[float, int]] = []
    for state in states:
        for label, count in state.paces.items():
            hundredths, _, milliseconds = label.partition(":")
            paces.append((int(hundredths) / 100, count))
            lengths.append((int(milliseconds) / 1000, count))
    queued = any(state.tally[QUEUED] for state in states)
    delay_ms, loss = (rules.delay_threshold_ms, rules.loss_threshold) if queued else (None, None)
    if not paces:
        return Detectable(rate_mbps=None, burst_kb=None, delay_ms=delay_ms, loss=loss)
    pace, length = _weighted_median(paces), _weighted_median(lengths)
    rate = rules.visible_share * pace
    burst = (pace - rate) * length / 16 * 1000
    return Detectable(rate_mbps=round(rate, 2), burst_kb=round(burst, 1), delay_ms=delay_ms, loss=loss)


def alone_share(effect: Effect, states: Sequence[ProbeState], rules: Rules = RULES) -> Share | None:
    """Blocking and tampering: share of the pairs in which only the app failed (was changed), pairs that say
    nothing of it set aside. None for other effects."""
    if effect not in {"blocking", "tampering"}:
        return None
    alone = others = lost = 0
    for state in states:
        not_so, so = state.counts.totals(END_TEST[effect])
        missing = state.tally["lost"]
        alone, others, lost = alone + so - missing, others + not_so, lost + missing
    return share_interval(alone, others, lost, rules)


def _weighted_median(values: Sequence[tuple[float, int]]) -> float:
    half = sum(count for _, count in values) / 2
    seen = 0
    for value, count in sorted(values):
        seen += count
        if seen >= half:
            return value
    raise ValueError("no values")

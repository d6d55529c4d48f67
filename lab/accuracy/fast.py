# SPDX-License-Identifier: EUPL-1.2
"""The same verdicts as `analysis.judge`, looked at after every pair, fast enough for ten thousand streams.

Nothing of the rule is written twice: scores, bets, mixtures and leave-out evidence are those of `analysis`. What is
saved is what a study does not need (samples, tallies, taking pairs back), reading evidence that cannot have grown,
and sorting the order history anew for each pair. Tests show that the figures equal the product's exactly.
Spec: spec/accuracy.md, section "Streams".
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any, Final

from analysis.cells import assess
from analysis.evidence import QUEUE_TESTS_OF, TESTS, TESTS_OF, ProbeCounts, outcomes, probe_evidence
from analysis.gates import Setting
from analysis.pairs import CellKey, OrderHistory, Pair, Scored, score
from analysis.plan import DEFAULT_PLAN, HypothesisPlan
from analysis.probes import ProbeState, summarise
from analysis.rules import EFFECTS, RULES, Rules
from lab.accuracy import rival
from lab.accuracy.judging import BOUNDS, CellResult, Judged, Place, count_sizes
from lab.accuracy.judging import judge_run as judge_slowly
from lab.accuracy.model import Measure, Run
from probe.wire.records import Effect

_INDICES: Final[dict[Effect, tuple[int, ...]]] = {
    effect: tuple(
        TESTS.index(test)
        for test in (*TESTS_OF[effect], *(t for tests in QUEUE_TESTS_OF.get(effect, ()) for t in tests))
    )
    for effect in EFFECTS
}
"""Which bets an effect's evidence is made of."""


@dataclass(slots=True)
class RunningHistory(OrderHistory):
    """The midpoint of a probe that measures one pair after the other: two sorted windows instead of sorting anew.

    Where a pair begins before an earlier one ended, the product's own history takes over (`_plain`).
    """

    _window: list[tuple[bool, float]] = field(default_factory=list)
    _sorted: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    _ended: int = -1
    _plain: bool = False

    def add(self, pair: Pair) -> None:
        """Remember a pair's d, by the same conditions as the product."""
        OrderHistory.add(self, pair)
        ratio = pair.log_ratio(self.rules)
        if ratio is None or pair.ended_ms is None or pair.neutral_first is None or not pair.received:
            return
        self._plain |= pair.ended_ms < self._ended
        self._ended = max(self._ended, pair.ended_ms)
        self._window.append((pair.neutral_first, ratio))
        bisect.insort(self._sorted[pair.neutral_first], ratio)
        if len(self._window) > self.rules.order_window:
            coin, oldest = self._window.pop(0)
            side = self._sorted[coin]
            del side[bisect.bisect_left(side, oldest)]

    def midpoint(self, pair: Pair) -> float:
        """Midpoint of the medians of d by order; 0 without both."""
        if self._plain or pair.started_ms < self._ended:
            return OrderHistory.midpoint(self, pair)
        app_first, neutral_first = self._sorted
        if not neutral_first or not app_first:
            return 0.0
        return (_median(neutral_first) + _median(app_first)) / 2


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


@dataclass(slots=True)
class Stream:
    """One probe in one cell, read after every pair."""

    rules: Rules = RULES
    log_e: dict[Effect, float] = field(default_factory=dict)
    """Of the pairs so far, as last read."""
    highest: dict[Effect, float] = field(default_factory=dict)
    """The largest that any look saw."""
    state: ProbeState = field(default_factory=ProbeState)
    _history: OrderHistory = field(default_factory=OrderHistory)
    _stale: set[Effect] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._history = RunningHistory(self.rules)
        self.log_e = dict.fromkeys(EFFECTS, 0.0)
        self.highest = dict.fromkeys(EFFECTS, 0.0)
        self._stale = set(EFFECTS)

    def put(self, pair: Pair) -> Scored:
        """Score and count the next pair, in the order of starts. Evidence is read where a bet was won."""
        scored = score(self._history, pair, UTC, rules=self.rules)
        self._history.add(pair)
        self.state.add(pair, scored, self.rules)
        bets = outcomes(scored, self.rules)
        for effect, indices in _INDICES.items():
            signs = [bets[i] for i in indices]
            if any(signs):
                self._stale.add(effect)
            # Evidence is monotone in wins: only a won bet can carry it to a new height.
            if 1 in signs:
                self.highest[effect] = max(self.highest[effect], self.read(effect))
        return scored

    def read(self, effect: Effect) -> float:
        """log E now."""
        if effect in self._stale:
            self._stale.discard(effect)
            self.log_e[effect] = _evidence(self.state.counts, effect, self.rules)
        return self.log_e[effect]


_MEMORY: dict[tuple[object, ...], float] = {}
_MOST_REMEMBERED = 200_000


def _evidence(counts: ProbeCounts, effect: Effect, rules: Rules) -> float:
    """`probe_evidence`, remembered by its wins and losses: streams of one day repeat the same few thousand."""
    if len({day for day, _ in counts.slots}) > 1:
        return probe_evidence(counts, effect, rules)
    columns = _INDICES[effect]
    rows = [counts.slots.get(slot, ()) for slot in sorted(counts.slots)]
    strata = tuple(stratum for _, stratum in sorted(counts.slots))
    key = (rules, effect, strata, *(row[2 * c + side] for row in rows for c in columns for side in (0, 1)))
    found = _MEMORY.get(key)
    if found is None:
        if len(_MEMORY) >= _MOST_REMEMBERED:
            _MEMORY.clear()
        found = _MEMORY[key] = probe_evidence(counts, effect, rules)
    return found


def judge_run(
    run: Run,
    measure: Measure,
    options: Mapping[str, Any],
    *,
    expected: Set[tuple[str, str]] = frozenset(),
    plan: HypothesisPlan = DEFAULT_PLAN,
    rules: Rules = RULES,
) -> Judged:
    """The same as `judging.judge_run`, ten times as fast where nothing is ever near a case.

    Where anything could be, at any look, the study's ordinary judging does all of it.
    """
    simple = not run.void and all(one.pair.kind == "test" for one in run.played) and not options.get("without_gate")
    found = _far_from_any_case(run, measure, plan, rules) if simple else None
    if found is None:
        return judge_slowly(run, measure, options, expected=expected, plan=plan, rules=rules)
    found.peer = rival.counted(run, {app for app, _ in expected})
    return found


def _far_from_any_case(run: Run, measure: Measure, plan: HypothesisPlan, rules: Rules) -> Judged | None:
    """The run judged, or None as soon as any selection could have chosen anything."""
    streams: dict[CellKey, dict[str, Stream]] = {}
    place = Place.last(measure.hypotheses)
    needed: dict[CellKey, float] = {}
    seen: set[tuple[str, int]] = set()
    octets = pairs = lost = 0
    for one in sorted(run.played, key=lambda played: played.pair.order):
        pair = one.pair
        if pair.id in seen:  # told again: taking back is the ordinary judging's work
            return None
        seen.add(pair.id)
        probes = streams.setdefault(pair.cell, {})
        if pair.cell not in needed:
            needed[pair.cell] = min(
                place.log_needed(pair.cell, effect, bound, plan, rules) for effect in EFFECTS for bound in BOUNDS
            )
        stream = probes.get(pair.probe) or probes.setdefault(pair.probe, Stream(rules))
        stream.put(pair)
        octets, pairs, lost = octets + one.octets, pairs + 1, lost + pair.lost
        if any(
            _most_without_one(probes.values(), effect) >= needed[pair.cell] - math.log(4 * len(streams))
            for effect in EFFECTS
        ):
            return None
    judged = Judged(repeat=run.repeat, pairs=pairs, lost=lost, octets=octets)
    for cell in sorted(streams, key=lambda key: key.order):
        _read(judged, cell, streams[cell], run.lost_known, rules)
    return judged


def _most_without_one(streams: Iterable[Stream], effect: Effect) -> float:
    """At least the evidence without the strongest network: Π(1 - π + π·E) is at most Π max(1, E) for every π."""
    high = [max(0.0, stream.read(effect)) for stream in streams]
    return math.fsum(high) - max(high)


def _read(judged: Judged, cell: CellKey, streams: Mapping[str, Stream], lost_known: bool, rules: Rules) -> None:
    """The cell as it stands at the end; no case can be open."""
    probes = [summarise(name, stream.state, rules=rules) for name, stream in streams.items()]
    setting = Setting(lost_known=lost_known, zone_known=True)
    for effect in EFFECTS:
        a = assess(cell, effect, probes, setting, rules=rules)
        held_back = (a.gates or ("below_case_threshold",)) if a.base in {"indication", "replicated"} else ()
        low, high = a.interval.slowdown()[1:]
        found = CellResult(
            state=a.base,
            reasons=(*held_back, *a.reasons),
            log_e=round(a.strength.whole, 4),
            estimate=a.interval.slowdown()[0],
            low=low,
            high=high,
        )
        judged.cells.setdefault(f"{cell.app}:{effect}", []).append(found)
    for _, stream in sorted(streams.items()):
        judged.streams += 1
        high_effects = [e for e, log_e in stream.highest.items() if log_e >= math.log(rules.indication)]
        for name in (*(f"{cell.app}:{e}" for e in high_effects), *(["any"] if high_effects else [])):
            judged.crossed[name] = judged.crossed.get(name, 0) + 1
        judged.largest.append(round(max(stream.highest.values()), 4))
        count_sizes(judged, cell, stream.state)

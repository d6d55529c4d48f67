# SPDX-License-Identifier: EUPL-1.2
"""The same verdicts as `analysis.judge`, looked at after every pair, fast enough for ten thousand streams.

Nothing of the rule is written twice: scores, bets, mixtures and leave-out evidence are those of `analysis`. What is
saved is what a study does not need (samples, tallies, taking pairs back), reading evidence that cannot have grown,
and sorting the order history anew for each pair. Tests show that the figures equal the product's exactly.
Spec: spec/accuracy.md, section "Streams".
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC

from analysis.evidence import TESTS, TESTS_OF, ProbeCounts, Slot, outcomes, probe_evidence
from analysis.pairs import OrderHistory, Pair, Scored, score
from analysis.rules import EFFECTS, RULES, Rules
from probe.wire.records import Effect

_INDICES = {effect: tuple(TESTS.index(test) for test in TESTS_OF[effect]) for effect in EFFECTS}


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
    log_e: dict[Effect, float] = field(default_factory=lambda: dict.fromkeys(EFFECTS, 0.0))
    """Of the pairs so far."""
    highest: dict[Effect, float] = field(default_factory=lambda: dict.fromkeys(EFFECTS, 0.0))
    """The largest that any look saw."""
    pairs: int = 0
    _counts: ProbeCounts = field(default_factory=ProbeCounts)
    _history: OrderHistory = field(default_factory=OrderHistory)
    _stale: set[Effect] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._history = RunningHistory(self.rules)

    def put(self, pair: Pair) -> Scored:
        """Score and count the next pair (in the order of starts). Evidence is read where a bet was won."""
        scored = score(self._history, pair, UTC, rules=self.rules)
        self._history.add(pair)
        self._counts.add(scored, self.rules)
        self.pairs += 1
        bets = outcomes(scored, self.rules)
        for effect, indices in _INDICES.items():
            signs = [bets[i] for i in indices]
            if any(signs) or self.pairs == 1:
                self._stale.add(effect)
            if any(s > 0 for s in signs):
                self.highest[effect] = max(self.highest[effect], self.read(effect))
        return scored

    def read(self, effect: Effect) -> float:
        """log E now."""
        if effect in self._stale:
            self._stale.discard(effect)
            self.log_e[effect] = _evidence(self._counts, effect, self.rules)
        return self.log_e[effect]


_MEMORY: dict[tuple[object, ...], float] = {}
_MOST_REMEMBERED = 200_000


def _evidence(counts: ProbeCounts, effect: Effect, rules: Rules) -> float:
    """`probe_evidence`, remembered by its wins and losses: streams of one day repeat the same few thousand."""
    if len({day for day, _ in counts.slots}) > 1:
        return probe_evidence(counts, effect, rules)
    slots: list[tuple[Slot, ...]] = [tuple(row[1:] for row in counts.of(test)) for test in TESTS_OF[effect]]  # type: ignore[misc]
    key = (id(rules), effect, *slots)
    found = _MEMORY.get(key)
    if found is None:
        if len(_MEMORY) >= _MOST_REMEMBERED:
            _MEMORY.clear()
        found = _MEMORY[key] = probe_evidence(counts, effect, rules)
    return found

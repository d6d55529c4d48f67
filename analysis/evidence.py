# SPDX-License-Identifier: EUPL-1.2
"""What one probe's pairs are worth: betting on coins, in integers, so that a pair can be added and taken back.

Each test is a product of (1 + λ·s) over pairs, s = ±1, a non-negative martingale when the coin is fair, so by
Ville's inequality it ever reaches 1/α with probability at most α (J. Ville, 1939; Ramdas et al., "Game-theoretic
statistics and safe anytime-valid inference", 2023). Only wins and losses per day and stratum are stored; λ and
the mixtures over start days and hours are applied on reading. Spec: spec/statistics.md, section "A probe".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal

from analysis.logs import log_mean, log_sum
from analysis.pairs import Scored, Stratum
from analysis.rules import RULES, Rules
from probe.wire.records import Effect

Test = Literal[
    "slowing.any",
    "slowing.material",
    "prioritising.any",
    "prioritising.material",
    "blocking.any",
    "slowing.end",
    "prioritising.end",
    "blocking.end",
]
TESTS: Final[tuple[Test, ...]] = (
    "slowing.any",
    "slowing.material",
    "prioritising.any",
    "prioritising.material",
    "blocking.any",
    "slowing.end",
    "prioritising.end",
    "blocking.end",
)
TESTS_OF: Final[dict[Effect, tuple[Test, ...]]] = {
    "slowing": ("slowing.any", "slowing.material"),
    "prioritising": ("prioritising.any", "prioritising.material"),
    "blocking": ("blocking.any",),
}
"""An effect's evidence is the smallest of its tests."""
END_TEST: Final[dict[Effect, Test]] = {
    "slowing": "slowing.end",
    "prioritising": "prioritising.end",
    "blocking": "blocking.end",
}
_INDEX: Final = {test: index for index, test in enumerate(TESTS)}
_STRATA: Final[tuple[Stratum, ...]] = ("peak", "rest")

Slot = tuple[int, int, int, int, int]
"""Day, then wins and losses at peak hours, then wins and losses in the rest of the day."""


def outcomes(scored: Scored, rules: Rules = RULES) -> tuple[int, ...]:
    """s of one pair for each of TESTS: +1 a won bet, -1 a lost one, 0 none."""
    if scored.lost:
        return (-1,) * len(TESTS)
    blocked = scored.failure
    # Still blocked means: the app fails alone. Anything else but a void pair speaks for the end.
    blocked_end = 0 if scored.void else (-1 if blocked == 1 else 1)
    y = scored.y
    if y is None:
        return (0, 0, 0, 0, blocked, 0, 0, blocked_end)
    return (
        _beyond(y, rules.any_threshold),
        _beyond(y - rules.material_shift, rules.material_threshold),
        _beyond(-y, rules.any_threshold),
        _beyond(-y - rules.material_shift, rules.material_threshold),
        blocked,
        _sign(-math.log1p(-rules.material_slowdown) - y),
        _sign(-math.log1p(-rules.material_slowdown) + y),
        blocked_end,
    )


def _beyond(value: float, threshold: float) -> int:
    return 1 if value >= threshold else -1 if value <= -threshold else 0


def _sign(value: float) -> int:
    return 1 if value > 0 else -1 if value < 0 else 0


@dataclass(slots=True)
class ProbeCounts:
    """Wins and losses of one probe in one cell, per day, stratum and test. Integers, hence exact and reversible."""

    slots: dict[tuple[int, Stratum], list[int]] = field(default_factory=dict)
    """For each day and stratum: wins then losses, in the order of TESTS."""
    pairs: dict[tuple[int, Stratum], int] = field(default_factory=dict)
    """How many pairs a slot holds, whether they bet or not: the first day is that of the first pair."""

    def add(self, scored: Scored, rules: Rules = RULES) -> None:
        """Count one pair. O(1)."""
        self._change(scored, 1, rules)

    def remove(self, scored: Scored, rules: Rules = RULES) -> None:
        """Take one pair back, exactly as it was counted."""
        self._change(scored, -1, rules)

    def _change(self, scored: Scored, by: int, rules: Rules) -> None:
        slot = (scored.day, scored.stratum)
        left = self.pairs.get(slot, 0) + by
        if left < 0:
            raise ValueError("a pair was removed that was never counted")
        row = self.slots.setdefault(slot, [0] * (2 * len(TESTS)))
        for index, s in enumerate(outcomes(scored, rules)):
            if s:
                row[2 * index + (s < 0)] += by
        self.pairs[slot] = left
        if left == 0:
            del self.slots[slot], self.pairs[slot]

    def of(self, test: Test, *, since: int | None = None) -> list[Slot]:
        """Wins and losses of one test per day, days ascending; from the day `since` on where given."""
        at = 2 * _INDEX[test]
        days = sorted({day for day, _ in self.slots if since is None or day >= since})
        nothing = [0] * (2 * len(TESTS))
        found: list[Slot] = []
        for day in days:
            peak, rest = (self.slots.get((day, stratum), nothing) for stratum in _STRATA)
            found.append((day, peak[at], peak[at + 1], rest[at], rest[at + 1]))
        return found

    def totals(self, test: Test, *, since: int | None = None) -> tuple[int, int]:
        """Wins and losses of one test over all days and hours."""
        rows = self.of(test, since=since)
        return sum(r[1] + r[3] for r in rows), sum(r[2] + r[4] for r in rows)

    def to_dict(self) -> dict[str, list[int]]:
        """Plain values for storage: `"DAY:STRATUM": [pairs, wins and losses in the order of TESTS]`."""
        return {f"{day}:{stratum}": [self.pairs[day, stratum], *row] for (day, stratum), row in self.slots.items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Sequence[int]]) -> ProbeCounts:
        """Inverse of `to_dict`."""
        counts = cls()
        for name, row in stored.items():
            day, _, label = name.partition(":")
            stratum: Stratum = "peak" if label == "peak" else "rest"
            counts.pairs[int(day), stratum] = row[0]
            counts.slots[int(day), stratum] = list(row[1:])
        return counts


def log_bet(wins: int, losses: int, lambdas: tuple[float, ...] = RULES.lambdas) -> float:
    """log of the mean over λ of (1 + λ)^wins · (1 - λ)^losses."""
    if not wins and not losses:
        return 0.0
    return log_mean([wins * won + losses * lost for won, lost in _steps(lambdas)])


@lru_cache(maxsize=16)
def _steps(lambdas: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    return tuple((math.log1p(lam), math.log1p(-lam)) for lam in lambdas)


def probe_evidence(counts: ProbeCounts, effect: Effect, rules: Rules = RULES) -> float:
    """log E of one probe for one effect: the smallest of the effect's tests, each mixed over days and hours."""
    return min(log_evidence(counts.of(test), rules) for test in TESTS_OF[effect])


def log_evidence(slots: Sequence[Slot], rules: Rules = RULES) -> float:
    """log of one test's e-process, mixed over start days and hours. O(days)."""
    if not slots:
        return 0.0
    all_hours, peak, rest = rules.hour_weights
    return log_sum(
        (
            math.log(all_hours) + _over_start_days(_suffixes(slots, (1, 3)), rules),
            math.log(peak) + _over_start_days(_suffixes(slots, (1,)), rules),
            math.log(rest) + _over_start_days(_suffixes(slots, (3,)), rules),
        )
    )


def _suffixes(slots: Sequence[Slot], columns: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """For each day with pairs: the day, and wins and losses from it on; days ascending."""
    wins = losses = 0
    found = []
    for slot in reversed(slots):
        wins += sum(slot[c] for c in columns)
        losses += sum(slot[c + 1] for c in columns)
        found.append((slot[0], wins, losses))
    found.reverse()
    return found


def _over_start_days(suffixes: Sequence[tuple[int, int, int]], rules: Rules) -> float:
    """Mixture over the day on which a treatment may have begun: w on day 1, (1 - w)/(d(d - 1)) on day d.

    A start day without pairs has the same bet as the next day with some; days to come have not bet: weight × 1.
    """
    first = suffixes[0][0]
    later = 1 - rules.first_day_weight
    terms = []
    previous = 0
    for day, wins, losses in suffixes:
        number = day - first + 1
        # Σ 1/(d(d-1)) for d = previous+1 … number telescopes to 1/previous - 1/number.
        weight = rules.first_day_weight if number == 1 else later * (1 / previous - 1 / number)
        terms.append(math.log(weight) + log_bet(wins, losses, rules.lambdas))
        previous = number
    terms.append(math.log(later / previous))
    return log_sum(terms)


def start_terms(counts: ProbeCounts, effect: Effect, rules: Rules = RULES) -> dict[int, float]:
    """For each day with pairs: log of the bet that the treatment began on that day (smallest of the tests)."""
    found: dict[int, float] = {}
    for test in TESTS_OF[effect]:
        for day, wins, losses in _suffixes(counts.of(test), (1, 3)):
            term = log_bet(wins, losses, rules.lambdas)
            found[day] = min(term, found.get(day, term))
    return found


def end_evidence(counts: ProbeCounts, effect: Effect, opened: int, rules: Rules = RULES) -> float:
    """log E against "still treated as when the case opened", from the pairs of the days after `opened`.

    Against slowing (prioritising): in at least half of the pairs the app is at least 20 % slower (faster).
    Against blocking: in at least half of the pairs the app alone fails. The end may come on any day: weights
    1/(d(d + 1)) over start days.
    """
    suffixes = _suffixes(counts.of(END_TEST[effect], since=opened + 1), (1, 3))
    terms = []
    previous = 1
    for day, wins, losses in suffixes:
        number = day - opened + 1
        terms.append(math.log(1 / previous - 1 / number) + log_bet(wins, losses, rules.lambdas))
        previous = number
    terms.append(math.log(1 / previous))
    return log_sum(terms)

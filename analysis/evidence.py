# SPDX-License-Identifier: EUPL-1.2
"""What one probe's pairs are worth: betting on coins, in integers, so that a pair can be added and taken back.

Each test is a product of (1 + λ·s) over pairs, s = ±1, a non-negative martingale when the coin is fair, so by
Ville's inequality it ever reaches 1/α with probability at most α (J. Ville, 1939; Ramdas et al., "Game-theoretic
statistics and safe anytime-valid inference", 2023). Only wins and losses per day and stratum are stored; λ and
the mixtures over start days and hours are applied on reading. Spec: spec/statistics.md, section "A probe".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal, get_args

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
    "slowing.delay.any",
    "slowing.delay.material",
    "prioritising.delay.any",
    "prioritising.delay.material",
    "slowing.loss.any",
    "slowing.loss.material",
    "prioritising.loss.any",
    "prioritising.loss.material",
    "tampering.any",
    "tampering.end",
]
TESTS: Final[tuple[Test, ...]] = get_args(Test)
"""In the order of stored rows: only ever added to, at the end."""
TESTS_OF: Final[dict[Effect, tuple[Test, ...]]] = {
    "slowing": ("slowing.any", "slowing.material"),
    "prioritising": ("prioritising.any", "prioritising.material"),
    "blocking": ("blocking.any",),
    "tampering": ("tampering.any",),
}
"""Of rates, failures and changed bytes: an effect's evidence from these is the smallest of its tests."""
QUEUE_TESTS_OF: Final[dict[Effect, tuple[tuple[Test, ...], ...]]] = {
    "slowing": (
        ("slowing.delay.any", "slowing.delay.material"),
        ("slowing.loss.any", "slowing.loss.material"),
    ),
    "prioritising": (
        ("prioritising.delay.any", "prioritising.delay.material"),
        ("prioritising.loss.any", "prioritising.loss.material"),
    ),
}
"""Of concurrent pairs: delay, then loss."""
END_TEST: Final[dict[Effect, Test]] = {
    "slowing": "slowing.end",
    "prioritising": "prioritising.end",
    "blocking": "blocking.end",
    "tampering": "tampering.end",
}
_INDEX: Final = {test: index for index, test in enumerate(TESTS)}
_WIDTH: Final = 2 * len(TESTS)
_STRATA: Final[tuple[Stratum, ...]] = ("peak", "rest")

Slot = tuple[int, int, int, int, int]
"""Day, then wins and losses at peak hours, then wins and losses in the rest of the day."""


_NONE: Final = (0, 0, 0, 0)
_LOST: Final = (-1, -1, -1, -1)
_OLD: Final = 8
"""Version 1 of the rule knows the first so many tests alone."""


def outcomes(scored: Scored, rules: Rules = RULES) -> tuple[int, ...]:
    """s of one pair for each of TESTS: +1 a won bet, -1 a lost one, 0 none.

    Everything but the signs is the same for a pair and its twin with the labels swapped, and a lost pair loses
    every bet of its design, so each test stays a fair game and none gains by a pair that is kept back.
    """
    if scored.lost:
        return _lost(scored, rules)
    blocked, y = scored.failure, scored.y
    # Still blocked means: the app fails alone. Anything else but a void or changed pair speaks for the end.
    blocked_end = 0 if scored.void or scored.touched else (-1 if blocked == 1 else 1)
    rates, ends = _NONE, _queue_ends(scored, rules)
    if y is not None:
        rates = (
            _beyond(y, rules.any_threshold),
            _beyond(y - rules.material_shift, rules.material_threshold),
            _beyond(-y, rules.any_threshold),
            _beyond(-y - rules.material_shift, rules.material_threshold),
        )
        ends = (
            _sign(-math.log1p(-rules.material_slowdown) - y),
            _sign(-math.log1p(-rules.material_slowdown) + y),
        )
    delay = _both_signs(
        scored.delay_ms, rules.delay_threshold_ms, rules.delay_shift_ms, rules.delay_material_threshold_ms
    )
    loss = _both_signs(scored.loss, rules.loss_threshold, rules.loss_shift, rules.loss_material_threshold)
    return (*rates, blocked, *ends, blocked_end, *delay, *loss, scored.altered, _tampering_end(scored, rules))


def _lost(scored: Scored, rules: Rules) -> tuple[int, ...]:
    """A lost pair loses what its design could have won: its coin decides no other bet."""
    if not rules.concurrent:
        rates, queue = _LOST, _NONE
    else:
        rates, queue = (_LOST, _NONE) if scored.design == "sequential" else (_NONE, _LOST)
    tampering = -1 if "tampering" in rules.effects else 0
    return (*rates, *_LOST, *queue, *queue, tampering, tampering)


def _both_signs(y: float | None, threshold: float, shift: float, material: float) -> tuple[int, int, int, int]:
    """Any and material difference, for slowing and for prioritising."""
    if y is None:
        return _NONE
    return (
        _beyond(y, threshold),
        _beyond(y - shift, material),
        _beyond(-y, threshold),
        _beyond(-y - shift, material),
    )


def _queue_ends(scored: Scored, rules: Rules) -> tuple[int, int]:
    """Concurrent pairs against "in at least half of the queued pairs the app waits or loses materially more (less)".

    It is lost where either is so, won where both figures are known and neither is: whichever of the two it was
    that was treated, while it lasts the bet is at best fair.
    """
    delay, loss = scored.delay_ms, scored.loss
    if delay is None and loss is None:
        return (0, 0)
    known = delay is not None and loss is not None
    waits, loses = delay or 0.0, loss or 0.0
    more = waits >= rules.delay_threshold_ms or loses >= rules.loss_threshold
    less = waits <= -rules.delay_threshold_ms or loses <= -rules.loss_threshold
    return (-1 if more else int(known), -1 if less else int(known))


def _tampering_end(scored: Scored, rules: Rules) -> int:
    """Against "in at least half of the pairs what the app arm sends is changed, and only that"."""
    if "tampering" not in rules.effects:
        return 0
    if scored.touched:
        return -1 if scored.altered == 1 else 0
    # What failed without a byte shows nothing of what would have become of it.
    return 0 if scored.void or scored.failure else 1


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
        row = self.slots.setdefault(slot, [0] * _WIDTH)
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
        nothing = [0] * _WIDTH
        found: list[Slot] = []
        for day in days:
            peak, rest = (self.slots.get((day, stratum), nothing) for stratum in _STRATA)
            found.append((day, peak[at], peak[at + 1], rest[at], rest[at + 1]))
        return found

    def bets_on(self, tests: Iterable[Test]) -> bool:
        """Whether any of these tests holds a bet."""
        columns = [c for test in tests for c in (2 * _INDEX[test], 2 * _INDEX[test] + 1)]
        return any(row[c] for row in self.slots.values() for c in columns)

    def totals(self, test: Test, *, since: int | None = None) -> tuple[int, int]:
        """Wins and losses of one test over all days and hours."""
        rows = self.of(test, since=since)
        return sum(r[1] + r[3] for r in rows), sum(r[2] + r[4] for r in rows)

    def to_dict(self) -> dict[str, list[int]]:
        """Plain values for storage: `"DAY:STRATUM": [pairs, wins and losses in the order of TESTS]`."""
        return {f"{day}:{stratum}": [self.pairs[day, stratum], *row] for (day, stratum), row in self.slots.items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Sequence[int]]) -> ProbeCounts:
        """Inverse of `to_dict`. Rows of earlier versions are shorter: the tests that they do not know hold no bets."""
        counts = cls()
        for name, row in stored.items():
            day, _, label = name.partition(":")
            stratum: Stratum = "peak" if label == "peak" else "rest"
            counts.pairs[int(day), stratum] = row[0]
            if len(row) > 1 + _WIDTH:
                raise ValueError("a stored row has more tests than this version knows: use the version that wrote it")
            counts.slots[int(day), stratum] = [*row[1:], *[0] * (1 + _WIDTH - len(row))]
        return counts


@lru_cache(maxsize=1 << 15)
def log_bet(wins: int, losses: int, lambdas: tuple[float, ...] = RULES.lambdas) -> float:
    """log of the mean over λ of (1 + λ)^wins · (1 - λ)^losses."""
    if not wins and not losses:
        return 0.0
    return log_mean([wins * won + losses * lost for won, lost in _steps(lambdas)])


@lru_cache(maxsize=16)
def _steps(lambdas: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    return tuple((math.log1p(lam), math.log1p(-lam)) for lam in lambdas)


def probe_evidence(counts: ProbeCounts, effect: Effect, rules: Rules = RULES) -> float:
    """log E of one probe for one effect.

    E = R · (D + L)/2, where R is the smaller of the tests on rates (for blocking and tampering: its one test), D and L
    the smaller of those on delay and on loss; each test mixed over days and hours.

    E is at most the product of R' (the test "any" of rates) and (D' + L')/2. R' is a martingale that moves with the
    coins of sequential pairs alone, D' and L' are two that move with those of concurrent pairs alone, and both stand
    still elsewhere: at each pair one factor is multiplied by a bet of mean 1 given everything before, the other is
    known. So the product is a non-negative martingale that begins at 1, and E is an e-process of "no difference"
    (Ville). The mean, not the product, of D' and L', because the same coin decides both. With "material" in place of
    "any", in any of the three, the bound holds where that difference is real but immaterial: each measure has to be
    different and materially so by itself. (The smaller of the two products would be valid too, and is never below E,
    but would let one measure's "any" stand in for another's.)

    Without concurrent pairs the second factor is 1, so E is that of version 1.
    """
    if effect not in rules.effects:
        return 0.0
    queue = queue_evidence(counts, effect, rules)
    rates = min(log_evidence(counts.of(test), rules) for test in TESTS_OF[effect])
    return rates if queue is None else rates + queue


def queue_evidence(counts: ProbeCounts, effect: Effect, rules: Rules = RULES) -> float | None:
    """log of the mean of delay's and loss's evidence; None where no pair bet on either."""
    measures = QUEUE_TESTS_OF.get(effect, ())
    if not rules.concurrent or not counts.bets_on(test for tests in measures for test in tests):
        return None
    return log_mean([min(log_evidence(counts.of(test), rules) for test in tests) for tests in measures])


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
    """For each day with pairs: log of the bet that the treatment began on that day, put together as for E."""
    terms = _start_terms(counts, TESTS_OF[effect], rules)
    measures = QUEUE_TESTS_OF.get(effect, ())
    if rules.concurrent and counts.bets_on(test for tests in measures for test in tests):
        queue = [_start_terms(counts, tests, rules) for tests in measures]
        return {day: term + log_mean([found[day] for found in queue]) for day, term in terms.items()}
    return terms


def _start_terms(counts: ProbeCounts, tests: Sequence[Test], rules: Rules) -> dict[int, float]:
    """The smallest of the tests, by start day."""
    found: dict[int, float] = {}
    for test in tests:
        for day, wins, losses in _suffixes(counts.of(test), (1, 3)):
            term = log_bet(wins, losses, rules.lambdas)
            found[day] = min(term, found.get(day, term))
    return found


def end_evidence(counts: ProbeCounts, effect: Effect, opened: int, rules: Rules = RULES) -> float:
    """log E against "still treated as when the case opened", from the pairs of the days after `opened`.

    Against slowing (prioritising): in at least half of the pairs the app is at least 20 % slower (faster); of the
    queued concurrent pairs it waits at least 10 ms longer (shorter) or loses at least 2 points more (less).
    Against blocking (tampering): in at least half of the pairs the app alone fails (is changed). The end may come on
    any day: weights 1/(d(d + 1)) over start days.
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

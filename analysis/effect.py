# SPDX-License-Identifier: EUPL-1.2
"""How large: the median of y, with a confidence sequence that stays valid however often one looks.

The sequence inverts the two-sided sign e-process of y - θ: it keeps each θ against which the evidence has not
reached 1/level. Exact where the effect is constant (y - θ is then a fair sign); where it varies, it covers the
typical pair. Method: confidence sequences by inverting e-processes (Howard, Ramdas, McAuliffe, Sekhon, 2021).
Spec: spec/statistics.md, section "Effect".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from analysis.evidence import log_bet
from analysis.logs import log_sum
from analysis.rules import RULES, Rules

GRID = 1000
"""y is kept in steps of 1/GRID (0.1 % of a rate); intervals are widened by half a step."""


@dataclass(slots=True)
class Sample:
    """How often each y occurred (in thousandths), and how many pairs are lost. Adds and takes back in O(1)."""

    bins: dict[int, int] = field(default_factory=dict)
    lost: int = 0

    def add(self, y: float | None, *, lost: bool = False, times: int = 1) -> None:
        """Count a pair; `times=-1` takes it back. A pair without y that is not lost leaves no trace."""
        if lost:
            self.lost += times
        elif y is not None:
            step = round(y * GRID)
            left = self.bins.get(step, 0) + times
            if left < 0:
                raise ValueError("a pair was removed that was never counted")
            self.bins[step] = left
            if left == 0:
                del self.bins[step]

    @property
    def size(self) -> int:
        """Pairs with a y."""
        return sum(self.bins.values())

    def to_dict(self) -> dict[str, object]:
        """Plain values for storage."""
        return {"bins": {str(step): count for step, count in self.bins.items()}, "lost": self.lost}

    @classmethod
    def from_dict(cls, stored: Mapping[str, object]) -> Sample:
        """Inverse of `to_dict`."""
        bins, lost = stored["bins"], stored["lost"]
        if not isinstance(bins, dict) or not isinstance(lost, int):
            raise TypeError("a stored sample has `bins` (an object) and `lost` (an integer)")
        return cls({int(step): int(count) for step, count in bins.items()}, lost)


def pooled(samples: Iterable[Sample]) -> Sample:
    """All pairs of several probes together."""
    total = Sample()
    for sample in samples:
        total.lost += sample.lost
        for step, count in sample.bins.items():
            total.bins[step] = total.bins.get(step, 0) + count
    return total


@dataclass(frozen=True, slots=True)
class Interval:
    """Median of y and its confidence sequence; infinite where the pairs are too few, None without any."""

    estimate: float | None
    low: float
    high: float

    def times(self, unit: float) -> Interval:
        """The same in another unit."""
        return Interval(None if self.estimate is None else self.estimate * unit, self.low * unit, self.high * unit)

    def slowdown(self) -> tuple[float | None, float | None, float | None]:
        """Estimate, low, high as fractions: 0.3 = 30 % slower, negative = faster. None where unbounded."""
        return (
            None if self.estimate is None else fraction(self.estimate),
            None if math.isinf(self.low) else fraction(self.low),
            None if math.isinf(self.high) else fraction(self.high),
        )


UNKNOWN = Interval(None, -math.inf, math.inf)


def fraction(y: float) -> float:
    """A log ratio as a slowdown: 1 - app/neutral."""
    return -math.expm1(-y)


def interval(sample: Sample, rules: Rules = RULES) -> Interval:
    """Median and confidence sequence at level `interval_level`. O(k log k) for k distinct values.

    A lost pair counts against rejecting θ from either side, so that losing pairs only widens.
    """
    size = sample.size
    if size == 0:
        return UNKNOWN
    steps = sorted(sample.bins)
    estimate = (_ranked(sample, steps, (size + 1) // 2) + _ranked(sample, steps, size // 2 + 1)) / 2 / GRID
    wins = _wins_needed(size, sample.lost, rules)
    if wins is None:
        return Interval(estimate, -math.inf, math.inf)
    # θ is rejected from below where at least `wins` values lie above it: the sequence begins at the next one.
    low = (_ranked(sample, steps, size - wins + 1) - 0.5) / GRID
    high = (_ranked(sample, steps, wins) + 0.5) / GRID
    return Interval(estimate, low, high)


def _ranked(sample: Sample, steps: list[int], rank: int) -> int:
    """The value of the given rank (1 = smallest), in steps."""
    seen = 0
    for step in steps:
        seen += sample.bins[step]
        if seen >= rank:
            return step
    raise IndexError(rank)


@lru_cache(maxsize=4096)
def _wins_needed(size: int, lost: int, rules: Rules) -> int | None:
    """Smallest number of `size` signs on one side that rejects θ; None where not even all of them do."""

    def rejects(wins: int) -> bool:
        sides = (
            log_bet(wins, size - wins + lost, rules.interval_lambdas),
            log_bet(size - wins, wins + lost, rules.interval_lambdas),
        )
        return log_sum(sides) - math.log(2) >= -math.log(rules.interval_level)

    if not rejects(size):
        return None
    low, high = size // 2, size
    while high - low > 1:
        middle = (low + high) // 2
        if rejects(middle):
            high = middle
        else:
            low = middle
    return high


def is_clear(sample: Sample, *, slower: bool, rules: Rules = RULES) -> bool:
    """Whether the confidence sequence lies on the even side of a material slowdown (or speed-up)."""
    return is_within(sample, -math.log1p(-rules.material_slowdown), slower=slower, rules=rules)


def is_within(sample: Sample, limit: float, *, slower: bool, rules: Rules = RULES) -> bool:
    """Whether the confidence sequence lies below `limit` (above -`limit`, where the app may be favoured)."""
    found = interval(sample, rules)
    return found.high < limit if slower else found.low > -limit


def is_clear_of_blocking(alone: int, others: int, rules: Rules = RULES) -> bool:
    """Whether "the app alone fails in at least a quarter of the pairs" is refuted.

    `alone` counts pairs in which only the app failed (or that are lost), `others` those in which it did not.
    A likelihood ratio against the bound, averaged over a few guesses of the true share, is an e-process.
    """
    bound = rules.clear_failure_share
    terms = []
    for guess in rules.clear_failure_guesses:
        if guess == 0 and alone:
            continue
        won = alone * math.log(guess / bound) if alone else 0.0
        terms.append(won + others * math.log((1 - guess) / (1 - bound)))
    return log_sum(terms) - math.log(len(rules.clear_failure_guesses)) >= -math.log(rules.interval_level)


@dataclass(frozen=True, slots=True)
class Share:
    """A share of pairs with its confidence sequence; the estimate is None without any pair."""

    estimate: float | None
    low: float
    high: float


def share_interval(alone: int, others: int, lost: int, rules: Rules = RULES) -> Share:
    """Of `alone + others` pairs, in which share it was the app alone; valid at every look. Lost pairs only widen.

    Keeps each p that is not refuted by the mixture of all shares with Jeffreys' prior against p: an e-process where
    each pair has probability p given the past (H. Robbins, "Statistical methods related to the law of the iterated
    logarithm", 1970). What a lost pair was is not known, so the lower end counts it as "not", the upper as "alone".
    """
    size = alone + others + lost
    if size == 0:
        return Share(None, 0.0, 1.0)
    known = alone + others
    return Share(
        alone / known if known else None,
        _share_end(alone, size, rules, lower=True),
        _share_end(alone + lost, size, rules, lower=False),
    )


def _share_end(wins: int, size: int, rules: Rules, *, lower: bool) -> float:
    """Where the mixture refutes p, below (above) the share that was seen; found by halving."""
    limit = -math.log(rules.interval_level)
    losses = size - wins
    mixed = _log_beta(wins + 0.5, losses + 0.5) - _log_beta(0.5, 0.5)

    def refuted(p: float) -> bool:
        likelihood = (wins * math.log(p) if wins else 0.0) + (losses * math.log1p(-p) if losses else 0.0)
        return mixed - likelihood >= limit

    if wins == (0 if lower else size):
        return 0.0 if lower else 1.0
    out, inside = (0.0, wins / size) if lower else (1.0, wins / size)
    for _ in range(50):
        middle = (out + inside) / 2
        out, inside = (middle, inside) if refuted(middle) else (out, middle)
    return out


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

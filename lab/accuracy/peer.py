# SPDX-License-Identifier: EUPL-1.2
"""The peer: Wehe's client rule on the very same segments, so that both methods are compared on one ground.

One test of Wehe is one pair: the relative difference of the means ("area") of at least 50 %, or 30 % where a mean
exceeds 10 Mbit/s, and a two-sample Kolmogorov-Smirnov test on the non-zero bins with p < 0.01, is differentiation;
the area without the p is inconclusive. What is not "none" is rerun once, and the second result replaces the first.
Behaviour of wehe-android `Replay.java` and of the analyser's `testHypothesis.py`; constants called "chosen ad hoc" by
their authors. Bins here are of 100 ms (Wehe's are 5 to 215 ms). spec/accuracy.md section 6.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from lab.accuracy.model import Played

AREA: Final = 0.5
AREA_FAST: Final = 0.3
FAST_MBPS: Final = 10.0
P_VALUE: Final = 0.01
EXACT_TO: Final = 10_000
"""Product of the sample sizes up to which the test's p-value is counted exactly, beyond it asymptotic."""

Answer = Literal["differentiation", "inconclusive", "none"]


@dataclass(frozen=True, slots=True)
class Test:
    """One test as a user of Wehe would get it, its confirmation run included."""

    answer: Answer
    pairs: int
    """1, or 2 where it was rerun."""
    octets: int
    app_slower: bool | None
    """Which way; None where there is no difference to speak of."""


def area(app: Sequence[float], neutral: Sequence[float]) -> float:
    """(mean of the control − mean of the app) / the larger mean; 0 where nothing moved."""
    a, n = _mean(app), _mean(neutral)
    most = max(a, n)
    return (n - a) / most if most > 0 else 0.0


def ks_statistic(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest distance between two empirical distribution functions."""
    a, b = sorted(one), sorted(other)
    i = j = 0
    most = 0.0
    while i < len(a) and j < len(b):
        at = min(a[i], b[j])
        while i < len(a) and a[i] <= at:
            i += 1
        while j < len(b) and b[j] <= at:
            j += 1
        most = max(most, abs(i / len(a) - j / len(b)))
    return most


def ks_p_value(one: Sequence[float], other: Sequence[float]) -> float:
    """P of a distance at least as large if both samples have one distribution (two-sided); 1 without a sample.

    Exact by counting lattice paths (Hodges, Arkiv för Matematik 3, 1958) as `scipy.stats.ks_2samp` does for samples
    of this size; for large ones Kolmogorov's series with Stephens' correction.
    """
    m, n = len(one), len(other)
    if not m or not n:
        return 1.0
    distance = ks_statistic(one, other)
    if m * n > EXACT_TO:
        return _series(distance, m, n)
    least = round(distance * m * n)  # distances are multiples of 1/(m·n)
    if least <= 0:
        return 1.0
    inside = [1 if j * m < least else 0 for j in range(n + 1)]
    for j in range(1, n + 1):
        inside[j] = inside[j - 1] if inside[j] else 0
    for i in range(1, m + 1):
        inside[0] = inside[0] if i * n < least else 0
        for j in range(1, n + 1):
            inside[j] = inside[j] + inside[j - 1] if abs(i * n - j * m) < least else 0
    return 1 - inside[n] / math.comb(m + n, n)


def _series(distance: float, m: int, n: int) -> float:
    root = math.sqrt(m * n / (m + n))
    x = (root + 0.12 + 0.11 / root) * distance
    if x < 0.2:
        return 1.0
    total = math.fsum((1 if k % 2 else -1) * math.exp(-2 * k * k * x * x) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * total))


def answer(app: Sequence[float], neutral: Sequence[float]) -> Answer:
    """What one pair's bins (Mbit/s) say. A segment without bins (it failed) gives no test: "none"."""
    if not app or not neutral:
        return "none"
    least = AREA_FAST if max(_mean(app), _mean(neutral)) > FAST_MBPS else AREA
    if abs(area(app, neutral)) < least:
        return "none"
    p = ks_p_value([x for x in app if x > 0], [x for x in neutral if x > 0])
    return "differentiation" if p < P_VALUE else "inconclusive"


def tests(played: Iterable[Played]) -> Iterator[Test]:
    """The tests that one probe's pairs of one app make, in their order.

    A pair whose answer is not "none" is followed by its confirmation run, which is the next pair; without a next one
    the first answer stands, as where a user closes the app.
    """
    pairs = iter(played)
    for first in pairs:
        last, count, octets = first, 1, first.octets
        found = answer(first.app_bins_mbps, first.neutral_bins_mbps)
        if found != "none":
            again = next(pairs, None)
            if again is not None:
                last, count, octets = again, 2, octets + again.octets
                found = answer(again.app_bins_mbps, again.neutral_bins_mbps)
        slower = None if found == "none" else area(last.app_bins_mbps, last.neutral_bins_mbps) > 0
        yield Test(found, count, octets, slower)


def is_positive(test: Test) -> bool:
    """Whether the test says that the app is treated differently."""
    return test.answer == "differentiation"


def repeated(found: Sequence[Test], times: int, least: int | None = None) -> list[bool]:
    """Wehe's rule repeated: of each `times` tests in a row at least `least` (all of them) must be positive.

    So it errs less and costs more. A remainder of fewer than `times` tests says nothing.
    """
    needed = times if least is None else least
    groups = (found[start : start + times] for start in range(0, len(found) - times + 1, times))
    return [sum(map(is_positive, group)) >= needed for group in groups]


def repeats_needed(false_rate: float, most: float) -> float:
    """n: how often independent tests must be repeated until all n are falsely positive with at most this rate.

    1 where one test errs little enough, infinite where it always errs. That tests are independent is in Wehe's
    favour: those on one bad line are not.
    """
    if false_rate <= most:
        return 1
    if false_rate >= 1:
        return math.inf
    return math.ceil(math.log(most) / math.log(false_rate) - 1e-9)


def _mean(bins: Sequence[float]) -> float:
    return sum(bins) / len(bins) if bins else 0.0

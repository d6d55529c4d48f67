# SPDX-License-Identifier: EUPL-1.2
"""Size and interval: order statistics against their definition, and coverage however often one looks."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.effect import (
    GRID,
    Interval,
    Sample,
    fraction,
    interval,
    is_clear,
    is_clear_of_blocking,
    pooled,
)
from analysis.evidence import log_bet
from analysis.pairs import OrderHistory, score
from analysis.rules import RULES
from analysis.simulate import Line, stream


def sample(values, lost=0):
    found = Sample(lost=lost)
    for value in values:
        found.add(value)
    return found


def rejected(theta, values, lost):
    """The definition: two-sided sign e-process at 1/level, ties bet nothing."""
    above, below = sum(v > theta for v in values), sum(v < theta for v in values)
    sides = [math.exp(log_bet(w, n + lost, RULES.interval_lambdas)) for w, n in ((above, below), (below, above))]
    return sum(sides) / 2 >= 1 / RULES.interval_level


@given(st.lists(st.integers(-3000, 3000), min_size=1, max_size=40, unique=True), st.integers(0, 3))
def test_interval_is_what_the_sign_process_keeps(steps, lost):
    values = [step / GRID for step in steps]
    found = interval(sample(values, lost))
    gap = 0.25 / GRID
    if math.isfinite(found.low):
        assert rejected(found.low - gap, values, lost)
        assert rejected(found.high + gap, values, lost)
        assert not rejected(found.low + 3 * gap, values, lost)
        assert not rejected(found.high - 3 * gap, values, lost)
    else:
        assert not rejected(min(values) - 1, values, lost)


def test_median_and_slowdown():
    assert interval(sample([0.1, 0.3, 0.2])).estimate == pytest.approx(0.2)
    assert interval(sample([0.1, 0.3])).estimate == pytest.approx(0.2)
    assert interval(Sample()) == Interval(None, -math.inf, math.inf)
    assert fraction(math.log(2)) == pytest.approx(0.5)
    assert fraction(-math.log(2)) == pytest.approx(-1.0)
    assert interval(sample([0.1] * 3)).slowdown() == (pytest.approx(fraction(0.1)), None, None)


def test_eight_pairs_bound_a_size_and_lost_pairs_widen_it():
    assert math.isinf(interval(sample([0.0] * 7)).high)
    assert math.isfinite(interval(sample([0.0] * 8)).high)
    values = [i / 100 for i in range(20)]
    whole, holed = interval(sample(values)), interval(sample(values, lost=3))
    assert holed.low <= whole.low
    assert holed.high > whole.high
    assert math.isinf(interval(sample([0.0] * 8, lost=1)).high)


def test_clear_means_below_a_fifth():
    assert is_clear(sample([0.02] * 12), slower=True)
    assert is_clear(sample([0.02] * 12), slower=False)
    assert not is_clear(sample([0.25] * 12), slower=True)
    assert is_clear(sample([0.25] * 12), slower=False)
    assert not is_clear(sample([-0.25] * 12), slower=False)
    assert not is_clear(sample([0.02] * 7), slower=True)


def test_clear_of_blocking():
    assert is_clear_of_blocking(0, 12)
    assert not is_clear_of_blocking(0, 10)
    assert not is_clear_of_blocking(1, 12)
    assert is_clear_of_blocking(1, 30)
    assert not is_clear_of_blocking(30, 90)
    assert is_clear_of_blocking(1, 5000)


def test_clear_of_blocking_errs_rarely():
    """An app that alone fails in just a quarter of the pairs is called clear in at most one stream of twenty."""
    wrong = 0
    for seed in range(1500):
        rng, alone = random.Random(seed), 0
        for n in range(1, 121):
            alone += rng.random() < RULES.clear_failure_share
            if is_clear_of_blocking(alone, n - alone):
                wrong += 1
                break
    assert wrong <= 0.05 * 1500 + 3 * math.sqrt(0.05 * 0.95 * 1500)


@given(st.lists(st.tuples(st.floats(-4, 4), st.booleans()), max_size=30))
def test_sample_takes_back_exactly_and_pools(entries):
    found = Sample()
    for y, lost in entries:
        found.add(y, lost=lost)
    assert Sample.from_dict(found.to_dict()) == found
    twice = pooled([found, found])
    assert twice.size == 2 * found.size
    assert twice.lost == 2 * found.lost
    for y, lost in entries:
        found.add(y, lost=lost, times=-1)
    assert found == Sample()


@pytest.mark.parametrize(
    "line",
    [
        Line(slowdown=0.3, noise=0.11),
        Line(slowdown=0.5, noise=0.6, boost=0.5),
        Line(slowdown=0.2, noise=0.3, heavy=True),
        Line(slowdown=-0.5, noise=0.2, congestion=0.5),
    ],
    ids=["quiet", "boosted", "heavy", "congested"],
)
def test_the_true_size_is_covered_at_every_look(line):
    """A constant effect leaves its interval at any of 60 looks in at most 5 % of streams."""
    runs, missed = 300, 0
    for seed in range(runs):
        missed += not covered(line, random.Random(seed), 60)
    assert missed <= 0.05 * runs + 3 * math.sqrt(0.05 * 0.95 * runs)


def covered(line, rng, looks):
    history, found, truth = OrderHistory(), Sample(), -math.log1p(-line.slowdown)
    for pair in stream(line, rng, looks):
        scored = score(history, pair)
        history.add(pair)
        found.add(scored.y)
        now = interval(found)
        if not now.low <= truth <= now.high:
            return False
    return True


def test_intervals_shrink():
    """A hundred quiet pairs know the size to a few per cent."""
    history, found = OrderHistory(), Sample()
    for pair in stream(Line(slowdown=0.3, noise=0.11), random.Random(1), 100):
        found.add(score(history, pair).y)
        history.add(pair)
    estimate, low, high = interval(found).slowdown()
    assert low < 0.3 < high
    assert high - low < 0.08
    assert abs(estimate - 0.3) < 0.03

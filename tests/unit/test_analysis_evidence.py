# SPDX-License-Identifier: EUPL-1.2
"""The probe's e-processes: exact values, exact martingale steps, exact bookkeeping."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.evidence import (
    TESTS,
    ProbeCounts,
    end_evidence,
    log_bet,
    log_evidence,
    outcomes,
    probe_evidence,
    start_terms,
)
from analysis.pairs import Scored
from analysis.rules import RULES

DAY = 739_000
LARGE = 1.0
"""A y beyond every threshold."""


def scored(y=None, day=DAY, stratum="rest", *, failure=0, lost=False, void=False):
    return Scored(day=day, stratum=stratum, ratio=None, midpoint=0.0, y=y, failure=failure, lost=lost, void=void)


SCORED = st.builds(
    scored,
    y=st.one_of(st.none(), st.floats(-5, 5)),
    day=st.integers(DAY, DAY + 9),
    stratum=st.sampled_from(["peak", "rest"]),
    failure=st.sampled_from([-1, 0, 1]),
    lost=st.booleans(),
    void=st.booleans(),
)


def counted(found):
    counts = ProbeCounts()
    for one in found:
        counts.add(one)
    return counts


def test_unanimous_pairs_before_mixing():
    """Six pairs in a row pass 20, ten give 323: the mean over λ of (1 + λ)^n."""
    assert math.exp(log_bet(5, 0)) == pytest.approx(15.74, abs=0.01)
    assert math.exp(log_bet(6, 0)) == pytest.approx(28.3, abs=0.05)
    assert math.exp(log_bet(10, 0)) == pytest.approx(323, abs=0.5)
    assert log_bet(0, 0) == 0.0


def test_one_day_at_one_hour_keeps_most_of_its_evidence():
    """0.8 all hours + 0.1 of the stratum, of which 0.8 begin on the first day; the rest of the money is unspent."""
    for stratum in ("peak", "rest"):
        counts = counted([scored(LARGE, stratum=stratum)] * 12)
        unmixed = math.exp(log_bet(12, 0))
        assert math.exp(probe_evidence(counts, "slowing")) == pytest.approx(0.9 * (0.8 * unmixed + 0.2) + 0.1)


def test_twelve_pairs_over_midnight_and_the_end_of_peak_hours_still_speak():
    slots = [(DAY, "peak")] * 4 + [(DAY, "rest")] * 4 + [(DAY + 1, "rest")] * 4
    counts = counted([scored(LARGE, day, stratum) for day, stratum in slots])
    assert math.exp(probe_evidence(counts, "slowing")) > 0.64 * math.exp(log_bet(12, 0))


@given(st.lists(SCORED, max_size=25), SCORED)
def test_a_fair_coin_wins_nothing_on_average(past, one):
    """The exact martingale step: the mean of E after the pair and after its swapped twin is E before it.

    For the smallest of two tests it is at most E before.
    """
    past = [p for p in past if p.day <= one.day]
    one = replace(one, lost=False, failure=one.failure if one.y is None else 0)
    twin = replace(one, y=None if one.y is None else -one.y, failure=-one.failure)
    before, after, other = counted(past), counted([*past, one]), counted([*past, twin])
    for effect in ("slowing", "prioritising", "blocking"):
        mean = (math.exp(probe_evidence(after, effect)) + math.exp(probe_evidence(other, effect))) / 2
        assert mean <= math.exp(probe_evidence(before, effect)) * (1 + 1e-9)
    for test in ("slowing.any", "prioritising.any", "blocking.any"):
        mean = (math.exp(log_evidence(after.of(test))) + math.exp(log_evidence(other.of(test)))) / 2
        assert mean == pytest.approx(math.exp(log_evidence(before.of(test))), rel=1e-9)


@given(st.lists(SCORED, min_size=1, max_size=25), st.data())
def test_adding_and_taking_back_is_exact(found, data):
    kept = data.draw(st.lists(st.booleans(), min_size=len(found), max_size=len(found)))
    counts = counted(found)
    for one, keep in zip(found, kept, strict=True):
        if not keep:
            counts.remove(one)
    straight = counted([one for one, keep in zip(found, kept, strict=True) if keep])
    assert counts == straight
    assert ProbeCounts.from_dict(counts.to_dict()) == straight


@given(st.lists(SCORED, max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_counting_does_not_matter(found, shuffle):
    shuffled = list(found)
    shuffle.shuffle(shuffled)
    assert counted(found) == counted(shuffled)
    assert probe_evidence(counted(found), "slowing") == probe_evidence(counted(shuffled), "slowing")


@given(st.lists(SCORED, min_size=1, max_size=20), st.data())
def test_a_lost_pair_is_never_better_than_a_known_one(found, data):
    """So evidence in the order of arrival stays below the martingale in the order of starts."""
    at = data.draw(st.integers(0, len(found) - 1))
    lost = [*found[:at], replace(found[at], lost=True), *found[at + 1 :]]
    for effect in ("slowing", "prioritising", "blocking"):
        assert probe_evidence(counted(lost), effect) <= probe_evidence(counted(found), effect) + 1e-12


def test_start_day_weights_sum_to_one_however_days_are_spaced():
    """With no bet at all every weight shows: E must be exactly 1."""
    for days in ([0], [0, 1], [0, 5], [0, 1, 2, 40, 400]):
        counts = counted([scored(0.0, DAY + day) for day in days])
        assert log_evidence(counts.of("slowing.any")) == pytest.approx(0.0, abs=1e-12)


def test_mixture_equals_its_definition():
    """Against the sum written out over every start day, days without pairs included."""
    rng = random.Random(5)
    found = [
        scored(rng.choice([-1, 1]) * LARGE, DAY + rng.choice([0, 1, 4, 9]), rng.choice(["peak", "rest"]))
        for _ in range(30)
    ]
    found.append(scored(LARGE, DAY))
    total = 0.0
    for share, strata in ((0.8, {"peak", "rest"}), (0.1, {"peak"}), (0.1, {"rest"})):
        for start in range(1, 2001):
            weight = 0.8 if start == 1 else 0.2 / (start * (start - 1))
            bets = [s for s in found if s.stratum in strata and s.day - DAY + 1 >= start]
            wins, losses = sum(s.y > 0 for s in bets), sum(s.y < 0 for s in bets)
            total += share * weight * sum((1 + lam) ** wins * (1 - lam) ** losses for lam in RULES.lambdas) / 4
        total += share * 0.2 / 2000
    assert math.exp(log_evidence(counted(found).of("slowing.any"))) == pytest.approx(total, rel=1e-9)


def test_part_time_throttling_is_found_at_its_hours():
    """Slowed at peak only, measured all day: the peak bet carries it."""
    rng = random.Random(3)
    found = []
    for day in range(10):
        found += [scored(LARGE, DAY + day, "peak")] * 2
        found += [scored(rng.choice([-1, 1]) * LARGE, DAY + day, "rest") for _ in range(12)]
    assert probe_evidence(counted(found), "slowing") > math.log(1000)


def test_late_throttling_is_found():
    rng = random.Random(3)
    quiet = [scored(rng.choice([-1, 1]) * LARGE, DAY + day) for day in range(30) for _ in range(4)]
    since = [scored(LARGE, DAY + day) for day in range(30, 36) for _ in range(4)]
    counts = counted(quiet + since)
    assert probe_evidence(counts, "slowing") > math.log(500)
    terms = start_terms(counts, "slowing")
    assert abs(max(terms, key=terms.get) - (DAY + 30)) <= 1


@pytest.mark.parametrize(
    ("y", "slowing", "material", "faster"),
    [
        (math.log(1 / 0.79), 1, 1, -1),
        (math.log(1 / 0.81), 0, 1, 0),
        (math.log(1 / 0.9), 0, 0, 0),
        (0.0, 0, -1, 0),
        (-math.log(1 / 0.79), -1, -1, 1),
    ],
)
def test_thresholds(y, slowing, material, faster):
    found = dict(zip(TESTS, outcomes(scored(y)), strict=True))
    assert (found["slowing.any"], found["slowing.material"], found["prioritising.any"]) == (slowing, material, faster)


def test_a_real_but_immaterial_difference_never_grows():
    """9 % slower in every pair, without noise: a thousand pairs and no evidence."""
    counts = counted([scored(math.log(1 / 0.91))] * 1000)
    assert probe_evidence(counts, "slowing") <= 1e-12


def test_void_pairs_bet_nothing_and_failures_only_on_blocking():
    assert set(outcomes(scored(void=True))) == {0}
    found = dict(zip(TESTS, outcomes(scored(failure=1)), strict=True))
    assert found["blocking.any"] == 1
    assert found["blocking.end"] == -1
    assert {found[t] for t in TESTS if not t.startswith("blocking")} == {0}


def test_thousands_of_pairs_do_not_overflow():
    counts = counted([scored(LARGE)] * 5000)
    assert probe_evidence(counts, "slowing") == pytest.approx(5000 * math.log(1.95), rel=1e-3)
    assert probe_evidence(counted([scored(-LARGE)] * 5000), "slowing") == pytest.approx(math.log(0.28), abs=1e-6)


def test_the_end_is_found_after_the_opening_only():
    during = [scored(LARGE, DAY + day) for day in range(20) for _ in range(4)]
    after = [scored(0.0, DAY + day) for day in range(20, 26) for _ in range(4)]
    counts = counted(during + after)
    assert end_evidence(counts, "slowing", DAY + 5) > math.log(1000)
    assert end_evidence(counted(during), "slowing", DAY + 5) <= 0.0
    assert end_evidence(counts, "slowing", DAY + 30) == 0.0
    still = [scored(-LARGE, DAY + day) for day in range(1, 9)]
    assert end_evidence(counted(still), "prioritising", DAY) < 0.0
    fails = [scored(failure=1, day=DAY + day) for day in range(10)]
    works = [scored(0.0, DAY + day) for day in range(10, 30)]
    assert end_evidence(counted(fails + works), "blocking", DAY) > math.log(100)

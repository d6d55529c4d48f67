# SPDX-License-Identifier: EUPL-1.2
"""Wehe's client rule, to the letter, and the Kolmogorov-Smirnov test that it needs."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.pairs import CellKey, Pair
from lab.accuracy import peer
from lab.accuracy.model import Played
from lab.accuracy.peer import answer, area, ks_p_value, ks_statistic, repeated, repeats_needed

SLOW = tuple(1.0 + i / 100 for i in range(10))
FAST = tuple(8.0 + i / 100 for i in range(10))
PAIR = Pair(cell=CellKey("o", 1, "a", "down", "fixed"), kind="test", probe="p", session="s", number=1, started_ms=0)


def played(app: tuple[float, ...], neutral: tuple[float, ...]) -> Played:
    return Played(pair=PAIR, app_bins_mbps=app, neutral_bins_mbps=neutral, octets=1000)


def test_area_is_the_relative_difference_of_the_means() -> None:
    assert area([1, 1], [4, 4]) == 0.75
    assert area([4, 4], [1, 1]) == -0.75
    assert area([0], [0]) == 0


@pytest.mark.parametrize(
    ("size", "distance", "p"),
    # scipy.stats.ks_2samp(mode="exact") for two samples of one size
    [(10, 0.6, 0.0524475), (10, 0.7, 0.0123406), (10, 0.8, 0.0020567), (10, 1.0, 1.0825e-05), (5, 0.8, 0.0793651)],
)
def test_p_values_are_those_of_tables(size: int, distance: float, p: float) -> None:
    shift = round(distance * size)
    one = list(range(size))
    other = [x + size for x in range(shift)] + one[shift:]
    assert ks_statistic(one, other) == pytest.approx(distance)
    assert ks_p_value(one, other) == pytest.approx(p, rel=5e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.randoms(use_true_random=False))
def test_p_values_are_those_of_all_labellings(m: int, n: int, rng: random.Random) -> None:
    values = rng.sample(range(1000), m + n)
    distance = ks_statistic(values[:m], values[m:])
    as_large, total = 0, 0
    for chosen in itertools.combinations(range(m + n), m):
        one = [values[i] for i in chosen]
        other = [v for i, v in enumerate(values) if i not in chosen]
        total += 1
        as_large += ks_statistic(one, other) >= distance - 1e-12
    assert ks_p_value(values[:m], values[m:]) == pytest.approx(as_large / total)


def test_large_samples_go_over_smoothly(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    one, other = [rng.gauss(0, 1) for _ in range(90)], [rng.gauss(0.5, 1) for _ in range(100)]
    exact = ks_p_value(one, other)
    monkeypatch.setattr(peer, "EXACT_TO", 1)
    assert ks_p_value(one, other) == pytest.approx(exact, rel=0.25)
    assert ks_p_value(one, one) == 1.0


def test_no_sample_is_no_evidence() -> None:
    assert ks_p_value([], [1.0]) == 1.0
    assert ks_statistic([1, 2], [1, 2]) == 0


def test_both_the_area_and_the_p_are_needed() -> None:
    assert answer(SLOW, FAST) == "differentiation"
    assert answer(FAST, SLOW) == "differentiation", "faster is different too"
    assert answer(tuple(x * 0.55 for x in FAST), FAST) == "none", "45 % is not enough below 10 Mbit/s"
    assert answer(SLOW[:3], FAST[:3]) == "inconclusive", "three bins can prove nothing"
    assert answer((), FAST) == "none"


def test_thirty_per_cent_is_enough_above_10_mbps() -> None:
    fast = tuple(x + 3 for x in FAST)
    assert answer(tuple(x * 0.65 for x in fast), fast) == "differentiation"
    assert answer(tuple(x * 0.75 for x in fast), fast) == "none"


def test_empty_bins_count_for_the_mean_and_not_for_the_p() -> None:
    gappy = (0.0,) * 7 + (8.0, 8.1, 8.2)
    assert area(gappy, FAST) > 0.5
    assert answer(gappy, FAST) == "inconclusive"


def test_the_second_run_replaces_the_first() -> None:
    differs, alike = played(SLOW, FAST), played(FAST, FAST)
    found = list(peer.tests([alike, differs, alike, differs, differs, alike, differs]))
    assert [(t.answer, t.pairs, t.octets, t.app_slower) for t in found] == [
        ("none", 1, 1000, None),
        ("none", 2, 2000, None),
        ("differentiation", 2, 2000, True),
        ("none", 1, 1000, None),
        ("differentiation", 1, 1000, True),
    ]


def test_the_second_run_decides_which_way() -> None:
    assert [t.app_slower for t in peer.tests([played(SLOW, FAST), played(FAST, SLOW)])] == [False]


def test_an_inconclusive_first_run_is_repeated_too() -> None:
    unclear, alike = played(SLOW[:3], FAST[:3]), played(FAST, FAST)
    assert [(t.answer, t.pairs) for t in peer.tests([unclear, alike])] == [("none", 2)]


def test_repetition_asks_for_all_or_for_k() -> None:
    yes, no = peer.Test("differentiation", 2, 10, True), peer.Test("none", 1, 5, None)
    assert repeated([yes, yes, yes, no, yes], 2) == [True, False]
    assert repeated([yes, no, no, no, yes, yes], 3, 1) == [True, True]
    assert repeated([yes], 2) == []


def test_how_often_it_must_be_repeated() -> None:
    assert repeats_needed(0.01, 0.01) == 1
    assert repeats_needed(0.1, 0.01) == 2
    assert repeats_needed(0.5, 0.01) == 7
    assert repeats_needed(0.0, 0.0) == 1
    assert repeats_needed(1.0, 0.01) == math.inf

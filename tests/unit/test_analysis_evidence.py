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
from analysis.rules import RULES, VERSION_1

DAY = 739_000
LARGE = 1.0
"""A y beyond every threshold."""


def scored(y=None, day=DAY, stratum="rest", *, failure=0, lost=False, void=False, **more):
    return Scored(
        day=day, stratum=stratum, ratio=None, midpoint=0.0, y=y, failure=failure, lost=lost, void=void, **more
    )


def queued(delay_ms, loss=0.0, day=DAY, **more):
    return scored(day=day, design="concurrent", delay_ms=delay_ms, loss=loss, **more)


def changed(altered, day=DAY):
    return scored(0.0, day, altered=altered, touched=True)


RATED = st.builds(
    scored,
    y=st.one_of(st.none(), st.floats(-5, 5)),
    day=st.integers(DAY, DAY + 9),
    stratum=st.sampled_from(["peak", "rest"]),
    failure=st.sampled_from([-1, 0, 1]),
    lost=st.booleans(),
    void=st.booleans(),
)

QUEUED = st.builds(
    queued,
    delay_ms=st.one_of(st.none(), st.floats(-60, 60)),
    loss=st.one_of(st.none(), st.floats(-0.1, 0.1)),
    day=st.integers(DAY, DAY + 9),
    lost=st.booleans(),
)
CHANGED = st.builds(changed, altered=st.sampled_from([-1, 0, 1]), day=st.integers(DAY, DAY + 9))
SCORED = st.one_of(RATED, QUEUED, CHANGED)
ALL = ("slowing", "prioritising", "blocking", "tampering")


def twin_of(one):
    """What the pair would have said had its coin fallen the other way."""
    turned = {
        name: None if value is None else -value for name in ("y", "delay_ms", "loss") for value in [getattr(one, name)]
    }
    return replace(one, failure=-one.failure, altered=-one.altered, **turned)


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
    one = replace(one, lost=False, failure=one.failure if one.y is None and not one.touched else 0)
    before, after, other = counted(past), counted([*past, one]), counted([*past, twin_of(one)])
    for rules in (RULES, VERSION_1):
        for effect in ALL:
            mean = (math.exp(probe_evidence(after, effect, rules)) + math.exp(probe_evidence(other, effect, rules))) / 2
            assert mean <= math.exp(probe_evidence(before, effect, rules)) * (1 + 1e-9)
    for test in TESTS:
        if test.endswith(".any"):
            mean = (math.exp(log_evidence(after.of(test))) + math.exp(log_evidence(other.of(test)))) / 2
            assert mean == pytest.approx(math.exp(log_evidence(before.of(test))), rel=1e-9)


@given(SCORED)
def test_the_coin_turns_every_bet_against_no_difference(one):
    """Each test "any" of a pair and its twin are opposite; "material" ones are never better than that."""
    one = replace(one, lost=False)
    ours, theirs = (dict(zip(TESTS, outcomes(s), strict=True)) for s in (one, twin_of(one)))
    for test in TESTS:
        if test.endswith(".any"):
            assert ours[test] == -theirs[test]
        elif test.endswith(".material"):
            assert ours[test] + theirs[test] <= 0


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
    for effect in ALL:
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


# -- delay, loss, tampering --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delay_ms", "loss", "expected"),
    [
        (10.0, 0.0, {"slowing.delay.any": 1, "slowing.delay.material": 1, "prioritising.delay.any": -1}),
        (9.9, 0.0, {"slowing.delay.any": 0, "slowing.delay.material": 0, "prioritising.delay.any": 0}),
        (5.0, 0.0, {"slowing.delay.any": 0, "slowing.delay.material": 0}),
        (0.0, 0.02, {"slowing.delay.any": 0, "slowing.delay.material": -1, "slowing.loss.any": 1}),
        (-12.0, -0.05, {"prioritising.delay.any": 1, "prioritising.loss.material": 1, "slowing.loss.any": -1}),
        (None, 0.5, {"slowing.delay.any": 0, "slowing.loss.any": 1, "slowing.end": -1, "prioritising.end": 0}),
        (3.0, 0.01, {"slowing.end": 1, "prioritising.end": 1}),
        (3.0, 0.03, {"slowing.end": -1, "prioritising.end": 1}),
        (-10.0, 0.0, {"slowing.end": 1, "prioritising.end": -1}),
        (None, None, {"slowing.end": 0, "prioritising.end": 0}),
    ],
)
def test_bets_of_concurrent_pairs(delay_ms, loss, expected):
    found = dict(zip(TESTS, outcomes(queued(delay_ms, loss)), strict=True))
    assert {test: found[test] for test in expected} == expected
    assert [found[t] for t in ("slowing.any", "slowing.material", "prioritising.any", "prioritising.material")] == [
        0
    ] * 4


def test_a_lost_pair_loses_the_bets_of_its_own_design():
    """Its coin decides no other bet: a lost concurrent pair leaves the evidence of rates as it was."""
    rates = [scored(LARGE)] * 8
    assert probe_evidence(counted([*rates, queued(30.0, lost=True)]), "slowing") < probe_evidence(
        counted(rates), "slowing"
    )
    found = dict(zip(TESTS, outcomes(queued(None, None, lost=True)), strict=True))
    assert {test for test, s in found.items() if s == 0} == {
        "slowing.any", "slowing.material", "prioritising.any", "prioritising.material"
    }  # fmt: skip


def test_evidence_is_rates_times_the_mean_of_delay_and_loss():
    """Both are e-processes of disjoint coins; delay and loss share theirs, so they are averaged."""
    rates, queues = [scored(LARGE)] * 4, [queued(30.0, 0.0)] * 9
    alone = probe_evidence(counted(rates), "slowing")
    delay = math.exp(log_evidence(counted(queues).of("slowing.delay.material")))
    loss = math.exp(log_evidence(counted(queues).of("slowing.loss.material")))
    both = probe_evidence(counted(rates + queues), "slowing")
    assert both == pytest.approx(alone + math.log((delay + loss) / 2))
    assert math.exp(probe_evidence(counted(queues), "slowing")) == pytest.approx((delay + loss) / 2)
    assert math.exp(probe_evidence(counted([queued(0.0, 0.06)] * 9), "slowing")) > 20


def test_real_but_immaterial_delay_and_loss_never_grow():
    assert probe_evidence(counted([queued(4.9, 0.009)] * 1000), "slowing") <= 1e-12
    assert probe_evidence(counted([queued(-4.9, -0.009)] * 1000), "prioritising") <= 1e-12


def test_changed_bytes_are_tampering_and_nothing_of_blocking():
    counts = counted([changed(1)] * 8)
    assert math.exp(probe_evidence(counts, "tampering")) > 20
    assert probe_evidence(counts, "blocking") == pytest.approx(0.0, abs=1e-12)
    assert counts.totals("blocking.end") == (0, 0)
    assert counts.totals("tampering.end") == (0, 8)
    assert probe_evidence(counted([changed(0)] * 50), "tampering") == pytest.approx(0.0, abs=1e-12)
    assert probe_evidence(counted([changed(-1)] * 20), "tampering") < 0
    still, over = [changed(1, DAY + day) for day in range(5)], [scored(0.0, DAY + day) for day in range(5, 25)]
    assert end_evidence(counted(still + over), "tampering", DAY) > math.log(100)
    # A pair that failed shows nothing of what would have become of it.
    assert counted([scored(failure=1), scored(void=True)]).totals("tampering.end") == (0, 0)


def test_the_end_of_a_queue_treatment_needs_both_figures_even():
    treated = [queued(40.0, 0.0, DAY + day) for day in range(5)]
    even, lossy = ([queued(1.0, loss, DAY + day) for day in range(5, 20)] for loss in (0.0, 0.05))
    assert end_evidence(counted(treated + even), "slowing", DAY) > math.log(20)
    assert end_evidence(counted(treated + lossy), "slowing", DAY) < 0
    assert (
        start_terms(counted(treated + even), "slowing")[DAY] > start_terms(counted(treated + even), "slowing")[DAY + 5]
    )


def test_rows_that_version_1_stored_are_read_and_longer_ones_refused():
    """Eight tests and the number of pairs: seventeen integers a slot."""
    found = [scored(LARGE)] * 7 + [scored(failure=1)]
    whole = counted(found).to_dict()
    shorter = {slot: row[:17] for slot, row in whole.items()}
    assert probe_evidence(ProbeCounts.from_dict(shorter), "slowing") == probe_evidence(counted(found), "slowing")
    assert probe_evidence(ProbeCounts.from_dict(shorter), "tampering") == pytest.approx(0.0, abs=1e-12)
    read = ProbeCounts.from_dict(shorter)
    read.add(queued(30.0))
    with pytest.raises(ValueError, match="more tests than this version knows"):
        ProbeCounts.from_dict({slot: [*row, 0] for slot, row in whole.items()})


def test_version_1_bets_on_what_it_always_bet():
    """Nothing of what it never knew, and a lost pair loses all of the eight."""
    for one in (scored(LARGE), scored(failure=-1), scored(void=True), scored(lost=True), scored(-LARGE)):
        assert outcomes(one, VERSION_1)[8:] == (0,) * 10
        assert outcomes(one, VERSION_1)[:8] == outcomes(one)[:8]

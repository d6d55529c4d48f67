# SPDX-License-Identifier: EUPL-1.2
"""Scoring: what a coin and two rates say, and that nothing but the coin can give them a sign."""

import math
import random
from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.evidence import TESTS, ProbeCounts, outcomes, probe_evidence
from analysis.judge import Ledger
from analysis.pairs import OrderHistory, Pair, local_slot, score
from analysis.probes import ProbeState
from analysis.rules import RULES
from analysis.simulate import CELL, Line, stream

RATE = st.one_of(st.none(), st.floats(0, 1e4, allow_nan=False))


def pair(number=1, **changes):
    base = Pair(
        cell=CELL,
        kind="test",
        probe="p1",
        session="s",
        number=number,
        started_ms=1_790_000_000_000 + number * 10_000,
        ended_ms=1_790_000_000_000 + number * 10_000 + 5_000,
        neutral_first=True,
        first_mbps=10.0,
        second_mbps=5.0,
        pace_mbps=12.0,
        segment_s=1.0,
    )
    return replace(base, **changes)


@st.composite
def pairs(draw):
    first, second = draw(RATE), draw(RATE)
    return pair(
        neutral_first=draw(st.booleans()),
        first_mbps=first,
        second_mbps=second,
        first_failed=first is None,
        second_failed=second is None,
        lost=draw(st.booleans()),
        edge=draw(st.sampled_from([True, False, None])),
        flags=frozenset(draw(st.sets(st.sampled_from(["household_traffic", "vpn", "saturated"])))),
        pace_mbps=draw(st.sampled_from([0.0, 12.0])),
    )


def test_a_slower_app_is_positive_in_either_order():
    assert score(OrderHistory(), pair()).y == pytest.approx(math.log(2))
    assert score(OrderHistory(), pair(neutral_first=False, first_mbps=5.0, second_mbps=10.0)).y == pytest.approx(
        math.log(2)
    )


def test_ratios_are_clipped_and_rate_zero_is_the_largest_difference():
    assert score(OrderHistory(), pair(second_mbps=1e-9)).y == pytest.approx(math.log(100))
    assert score(OrderHistory(), pair(second_mbps=0.0)).y == pytest.approx(math.log(100))
    assert score(OrderHistory(), pair(first_mbps=0.0)).y == pytest.approx(-math.log(100))
    assert score(OrderHistory(), pair(first_mbps=0.0, second_mbps=0.0)).y is None


@pytest.mark.parametrize(
    ("neutral_first", "first_fails", "second_fails", "failure", "void"),
    [
        (True, False, True, 1, False),
        (False, True, False, 1, False),
        (True, True, False, -1, False),
        (False, False, True, -1, False),
        (True, True, True, 0, True),
        (False, False, False, 0, False),
    ],
)
def test_failure_bets_on_blocking_alone(neutral_first, first_fails, second_fails, failure, void):
    failed = pair(
        neutral_first=neutral_first,
        first_failed=first_fails,
        second_failed=second_fails,
        first_mbps=None if first_fails else 10.0,
        second_mbps=None if second_fails else 10.0,
    )
    scored = score(OrderHistory(), failed)
    assert (scored.failure, scored.void) == (failure, void)
    if first_fails or second_fails:
        assert scored.y is None
        assert outcomes(scored)[:4] == (0, 0, 0, 0)


def test_a_lost_pair_loses_every_bet_whatever_its_rates():
    for lost in (pair(lost=True), pair(neutral_first=None, lost=True), pair(neutral_first=None)):
        bets = dict(zip(TESTS, outcomes(score(OrderHistory(), lost)), strict=True))
        queue = {test for test in TESTS if ".delay." in test or ".loss." in test}
        assert {test for test, s in bets.items() if s == -1} == set(TESTS) - queue
        assert {bets[test] for test in queue} == {0}


def test_midpoint_takes_the_order_effect_out():
    """A line whose first segment is twice as fast: alike arms must give y near 0 once both orders are known."""
    history = OrderHistory()
    for number in range(1, 9):
        one = pair(number, neutral_first=number % 2 == 0, first_mbps=20.0, second_mbps=10.0)
        scored = score(history, one)
        history.add(one)
        assert scored.y == pytest.approx(0.0 if number > 2 else math.log(2) * (1 if number % 2 == 0 else -1))


def test_midpoint_uses_only_pairs_that_had_ended():
    """Two sessions at once: the other's end could be shaped after this coin was seen."""
    history = OrderHistory()
    for number, coin in ((1, True), (2, False)):
        history.add(pair(number, session="other", neutral_first=coin, first_mbps=40.0))
    running = pair(3, session="other", neutral_first=True, first_mbps=1000.0, ended_ms=1_790_000_000_000 + 60_000)
    history.add(running)
    assert score(history, pair(4)).midpoint == pytest.approx(math.log(8))
    assert score(history, pair(9)).midpoint == pytest.approx((math.log(8) + (math.log(8) + math.log(100)) / 2) / 2)


def test_window_bounds_the_history():
    history = OrderHistory(replace(RULES, order_window=4))
    for number in range(1, 21):
        history.add(
            pair(number, neutral_first=number % 2 == 0, first_mbps=10.0 if number <= 16 else 80.0, second_mbps=10.0)
        )
    assert score(history, pair(30)).midpoint == pytest.approx(math.log(8))


@given(pairs(), st.lists(pairs(), max_size=6))
def test_swapping_the_arms_turns_every_bet_and_no_tally(one, earlier):
    """Given rates and past, the coin alone has a say: exchanging the labels negates each bet and moves no gate."""
    history = OrderHistory()
    for number, before in enumerate(earlier, start=1):
        history.add(replace(before, number=number, started_ms=number, ended_ms=number + 1))
    one = replace(one, number=99)
    as_is, swapped = score(history, one), score(history, one.swapped())
    assert as_is.midpoint == swapped.midpoint
    assert (as_is.day, as_is.stratum, as_is.lost, as_is.void) == (
        swapped.day,
        swapped.stratum,
        swapped.lost,
        swapped.void,
    )
    if not as_is.lost:
        assert swapped.failure == -as_is.failure
        assert swapped.y == (None if as_is.y is None else -as_is.y)
    states = ProbeState(), ProbeState()
    states[0].add(one, as_is)
    states[1].add(one.swapped(), swapped)
    assert states[0].tally == states[1].tally
    assert states[0].paces == states[1].paces


@given(st.lists(pairs(), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_uploads_late_or_in_any_order_change_no_midpoint_and_no_evidence(found, shuffle):
    """Receipts come from the reflector as sessions end; measurements come when the probe likes."""
    found = [
        replace(p, number=n, started_ms=p.started_ms + n * 10_000, ended_ms=p.ended_ms + n * 10_000, lost=False)
        for n, p in enumerate(found, start=1)
    ]
    at_once, late = Ledger(), Ledger()
    for one in found:
        at_once.put(one)
        late.put(replace(one, lost=True))  # its receipt came, the measurement did not yet
    complete = probe_evidence(at_once.states(CELL)["p1"].counts, "slowing")
    uploads = list(found)
    shuffle.shuffle(uploads)
    for one in uploads:
        # Missing pairs count as lost bets, so no selection and no order ever shows more than all together.
        assert probe_evidence(late.states(CELL)["p1"].counts, "slowing") <= complete + 1e-9
        late.put(one)
    assert [s for _, s in late.scores(CELL)] == [s for _, s in at_once.scores(CELL)]
    assert late.states(CELL)["p1"].to_dict() == at_once.states(CELL)["p1"].to_dict()


def test_withholding_chosen_pairs_never_beats_uploading_all():
    """The probe uploads only pairs that it won: with the others lost, E stays below that of all of them."""
    for seed in range(20):
        honest, picky = Ledger(), Ledger()
        for one in stream(Line(noise=0.5), random.Random(seed), 40):
            won = honest.put(one).y
            picky.put(replace(one, lost=won is None or won < RULES.any_threshold))
        evidence = [probe_evidence(ledger.states(CELL)["p1"].counts, "slowing") for ledger in (honest, picky)]
        assert evidence[1] <= evidence[0] + 1e-9


def test_days_and_peak_hours_are_the_operators():
    evening = int(datetime(2026, 7, 1, 22, 30, tzinfo=UTC).timestamp() * 1000)
    assert local_slot(evening) == (datetime(2026, 7, 1, tzinfo=UTC).toordinal(), "peak")
    assert local_slot(evening, ZoneInfo("Europe/Brussels")) == (datetime(2026, 7, 2, tzinfo=UTC).toordinal(), "rest")
    assert local_slot(evening, ZoneInfo("Europe/Lisbon"))[1] == "rest"
    assert local_slot(evening - 3_600_000, ZoneInfo("Europe/Lisbon"))[1] == "peak"


def test_achieved_pace_is_the_better_segment_up_to_the_pace():
    assert pair(first_mbps=15.0).achieved_mbps() == 12.0
    assert pair(first_mbps=3.0, second_mbps=8.0).achieved_mbps() == 8.0
    assert pair(first_mbps=30.0, pace_mbps=0.0).achieved_mbps() == 30.0
    assert pair(first_mbps=None, second_mbps=None, pace_mbps=0.0).achieved_mbps() is None


def test_counts_refuse_what_was_never_added():
    scored = score(OrderHistory(), pair())
    with pytest.raises(ValueError, match="never counted"):
        ProbeCounts().remove(scored)

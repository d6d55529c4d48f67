# SPDX-License-Identifier: EUPL-1.2
"""What liars and careless gates do to pairs: each does what its name says, and the coin tells which are harmless.

Shares here come from few streams with seeds of their own; the study's rows play the same with thousands.
"""

import math
import random
from dataclasses import replace

import pytest

from analysis.judge import Ledger
from analysis.pairs import OrderHistory, score
from lab.accuracy.fast import Stream
from lab.accuracy.noise import NO_CELL, Nuisance, stream
from lab.accuracy.variants import CHANGES, COINS, NAMES, Grinder, changed

FLIPPING = Nuisance(sd=0.11, flip_every=1)
WILD = Nuisance(sd=2.0)
BOOSTED = Nuisance(sd=0.11, boost=0.4)


def stream_of(name, seed, line, count=150):
    coin = COINS[name](random.Random(f"test/coin/{seed}")) if name in COINS else None
    pairs = stream(line, random.Random(f"test/{name}/{seed}"), count, coin=coin)
    return list(changed(pairs, name, random.Random(f"test/attack/{seed}")))


def crossing(name, line, streams=24, count=150):
    """The share of streams whose evidence of slowing, or of blocking, ever reaches 20."""
    reached = {"slowing": 0, "blocking": 0}
    for seed in range(streams):
        found = Stream()
        for pair in stream_of(name, seed, line, count):
            if pair.cell == NO_CELL:
                found.put(pair)
        for effect in reached:
            reached[effect] += found.highest[effect] >= math.log(20)
    return {effect: number / streams for effect, number in reached.items()}


@pytest.mark.parametrize(
    ("name", "line", "effect"),
    [
        ("drop_poor_neutral", Nuisance(sd=0.6), "slowing"),
        ("retry_neutral", Nuisance(failing=0.2), "blocking"),
        ("time_out_app", Nuisance(sd=1.5), "blocking"),
        ("grind_after_reveal", BOOSTED, "slowing"),
        ("void", FLIPPING, "slowing"),
        ("fail_one", FLIPPING, "slowing"),
        ("two_lines", FLIPPING, "slowing"),
        ("forge", Nuisance(), "slowing"),
    ],
)
def test_what_sees_the_arm_or_the_coin_makes_evidence_of_nothing(name, line, effect):
    """More than half of even streams end up as evidence."""
    assert crossing(name, line)[effect] > 0.5


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("drop_poor_either", Nuisance(sd=0.6)),
        ("retry_either", Nuisance(failing=0.3)),
        ("time_out_either", Nuisance(sd=1.5)),
        ("grind", BOOSTED),
        ("withhold", WILD),
        ("abandon", WILD),
        ("two_lines_lost", FLIPPING),
    ],
)
def test_what_is_blind_or_loses_makes_none(name, line):
    """Of 40 even streams not one in ten reaches 20 (Ville allows one in twenty)."""
    found = crossing(name, line, streams=40)
    assert max(found.values()) <= 0.1


def test_every_name_can_be_played():
    assert set(NAMES) == set(CHANGES) | set(COINS)
    for name in NAMES:
        assert stream_of(name, 0, Nuisance(sd=0.6), 30)


def test_withheld_and_abandoned_pairs_are_lost_and_all_others_win():
    for name in ("withhold", "abandon", "two_lines_lost"):
        history = OrderHistory()
        told = []
        for pair in stream_of(name, 1, FLIPPING, 80):
            told.append((pair.lost, score(history, pair).y))
            history.add(pair)
        assert 20 < sum(lost for lost, _ in told) < 60
        assert all(y is None or y > 0 for lost, y in told if not lost)


def test_void_pairs_are_void_and_all_others_win():
    history = OrderHistory()
    found = {"void": 0, "won": 0}
    for pair in stream_of("void", 2, FLIPPING, 80):
        told = score(history, pair)
        history.add(pair)
        assert told.void or told.y > 0
        found["void" if told.void else "won"] += 1
    assert min(found.values()) > 20


def test_failing_one_fails_exactly_one():
    pairs = stream_of("fail_one", 3, FLIPPING, 80)
    assert not any(p.void for p in pairs)
    assert 20 < sum(p.first_failed or p.second_failed for p in pairs) < 60


def test_a_replayed_pair_counts_once():
    """The product's own ledger: five times told is once told."""
    plain = list(stream(WILD, random.Random("test/replay"), 60))
    told = list(changed(iter(plain), "replay", random.Random(0)))
    assert len(told) > len(plain) + 60
    once, often = Ledger(), Ledger()
    for pair in plain:
        once.put(pair)
    for pair in told:
        often.put(pair)
    [cell] = once.cells()
    assert once.states(cell) == often.states(cell)


def test_the_order_in_which_things_are_uploaded_gains_nothing():
    """Won pairs' measurements first, lost pairs' last: at no moment is E above its value with everything known."""
    pairs = list(stream(Nuisance(sd=2.0), random.Random("test/order"), 60))
    history = OrderHistory()
    won = []
    for pair in pairs:
        won.append((score(history, pair).y or 0) > 0)
        history.add(pair)
    known, final = Ledger(), Ledger()
    for pair in pairs:  # reflectors send receipts by themselves
        known.put(replace(pair, lost=True))
        final.put(pair)
    [cell] = final.cells()

    def evidence(ledger):
        [a] = [a for a in ledger.assessments() if a.effect == "slowing"]
        return a.strength.whole

    highest = -math.inf
    for pair, win in sorted(zip(pairs, won, strict=True), key=lambda entry: not entry[1]):
        known.put(pair)
        if win:
            highest = max(highest, evidence(known))
    assert evidence(known) == pytest.approx(evidence(final))
    assert highest <= evidence(final) + 1e-9
    assert cell in known.cells()


def test_the_blind_twin_does_the_same_to_a_pair_and_its_swapped_twin():
    """Swapping the labels of every pair swaps nothing but the labels: which pairs are left, retried or given up."""
    for name in ("drop_poor_either", "retry_either", "time_out_either"):
        pairs = list(stream(Nuisance(sd=1.0, failing=0.2), random.Random("test/blind"), 80))
        one = list(changed(iter(pairs), name, random.Random(7)))
        other = list(changed((p.swapped() for p in pairs), name, random.Random(7)))
        assert [p.swapped() for p in one] == other


def test_the_seeing_variant_does_not():
    for name in ("drop_poor_neutral", "retry_neutral", "time_out_app"):
        pairs = list(stream(Nuisance(sd=1.0, failing=0.2), random.Random("test/blind"), 80))
        one = list(changed(iter(pairs), name, random.Random(7)))
        other = list(changed((p.swapped() for p in pairs), name, random.Random(7)))
        assert [p.swapped() for p in one] != other


def test_commit_and_reveal_takes_the_coin_from_the_grinder():
    """After the reveal every coin is as he likes; in the product's order his trying changes nothing."""
    after = Grinder(random.Random(1), reveal_first=True)
    assert all(after() for _ in range(60))
    before = Grinder(random.Random(1), reveal_first=False)
    falls = [before() for _ in range(2000)]
    assert abs(sum(falls) / 2000 - 0.5) < 0.04

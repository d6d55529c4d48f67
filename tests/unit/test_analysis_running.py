# SPDX-License-Identifier: EUPL-1.2
"""Kept pair by pair, a cell's evidence is what counting everything again gives; and a pair's cost does not grow."""

import bisect
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import running
from analysis.evidence import probe_evidence
from analysis.gates import strength
from analysis.judge import Ledger
from analysis.networks import grouped
from analysis.order import MOST, Sorted
from analysis.pairs import OrderHistory
from analysis.probes import summarise
from analysis.rules import EFFECTS, RULES, VERSION_1
from analysis.running import ExactSum, RunningProbe, RunningStrength
from analysis.simulate import CELL, Line, Queue, queue_stream, stream

SOME = st.floats(-1e6, 1e6, allow_nan=False)


def agrees(ledger, followed):
    """Against everything counted again."""
    probes = [summarise(name, state, rules=ledger.rules) for name, state in sorted(ledger.states(CELL).items())]
    groups = grouped(probes)
    for effect in ledger.rules.effects:
        full = strength([p.log_e[effect] for p in probes], groups, ledger.rules)
        kept = followed.strength(effect)
        assert kept.whole == pytest.approx(full.whole, abs=1e-9)
        assert kept.without_one == pytest.approx(full.without_one, abs=1e-9)
        assert kept.without_two == pytest.approx(full.without_two, abs=1e-9)
        assert kept.coalition == full.coalition


def town(seed, *, count=12, probes=5):
    """Pairs of several days, of both designs, with hashes that are shared here and there."""
    rng = random.Random(seed)
    found = []
    for number in range(probes):
        line = Line(slowdown=0.4 * (number % 2), noise=0.3, pairs_a_day=5, failing=0.1, altered=0.2 * (number == 3))
        own = random.Random(f"{seed}/{number}")
        pairs = list(stream(line, own, count, probe=f"p{number}"))
        if number == 4:
            pairs = list(queue_stream(Queue(delay_ms=25, pairs_a_day=4), own, count, probe="p4"))
        hashes = [f"n{number}", f"n{number}", None, "shared" if number < 2 else f"n{number}"]
        found += [replace(pair, network=hashes[rng.randrange(4)], lost=rng.random() < 0.1) for pair in pairs]
    rng.shuffle(found)
    return found


@pytest.mark.parametrize("rules", [RULES, VERSION_1], ids=["2", "1"])
@pytest.mark.parametrize("seed", range(4))
def test_a_cell_that_is_followed_equals_one_that_is_counted_again(seed, rules):
    ledger = Ledger(rules=rules)
    followed = ledger.follow(CELL)
    for pair in town(seed):
        ledger.put(pair)
        agrees(ledger, followed)
    rng = random.Random(seed)
    for pair in town(seed)[::3]:
        # Known better now: lost becomes measured, and sometimes the network turns out to be another.
        ledger.put(replace(pair, lost=False, network=rng.choice([pair.network, "other", None])))
        agrees(ledger, followed)


def test_following_may_begin_at_any_time():
    ledger = Ledger()
    for pair in town(9):
        ledger.put(pair)
    agrees(ledger, ledger.follow(CELL))


@given(st.lists(SOME, max_size=30), st.lists(st.integers(0, 29), max_size=15))
def test_exact_sums_give_back_what_they_took(values, taken):
    total = ExactSum()
    for value in values:
        total.add(value)
    assert total.value == math.fsum(values)
    gone = {index for index in taken if index < len(values)}
    for index in gone:
        total.add(-values[index])
    assert total.value == math.fsum(value for index, value in enumerate(values) if index not in gone)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.floats(-5, 40)), min_size=1, max_size=30),
    st.sets(st.integers(0, 5), max_size=3),
)
def test_running_strength_is_the_strength_to_the_last_digit(changes, dropped):
    kept, known = RunningStrength(), {}
    for probe, network, log_e in changes:
        kept.put(f"p{probe}", f"n{network}", log_e)
        known[f"p{probe}"] = (f"n{network}", log_e)
    for probe in dropped:
        kept.drop(f"p{probe}")
        known.pop(f"p{probe}", None)
    names = sorted(known)
    networks = sorted({known[name][0] for name in names})
    groups = [[i for i, name in enumerate(names) if known[name][0] == network] for network in networks]
    assert kept.strength == strength([known[name][1] for name in names], groups)


def test_one_more_pair_of_today_costs_the_same_after_ten_thousand(monkeypatch):
    """Counted, not timed: neither the days are gone over again nor does any other probe get a look."""
    ledger = Ledger()
    followed = ledger.follow(CELL)
    calls = Counter()
    for name in ("log_bet", "log_sum", "log_mixed", "log_mean"):
        counted = getattr(running, name)

        def spy(*args, name=name, counted=counted):
            calls[name] += 1
            return counted(*args)

        monkeypatch.setattr(running, name, spy)
    costs = []
    quiet = [stream(Line(noise=0.3), random.Random(n), 200, probe=f"q{n}") for n in range(10)]
    for pairs in quiet:
        for pair in pairs:
            ledger.put(pair)
    for number, pair in enumerate(stream(Line(noise=0.3), random.Random(7), 4000), start=1):
        calls.clear()
        ledger.put(pair)
        followed.strength("slowing")
        if number in {500, 4000}:
            costs.append(sum(calls.values()))
    assert costs[1] <= costs[0]
    assert followed.probes["p1"].rebuilt <= 2
    agrees(ledger, followed)


def test_days_are_gone_over_only_for_what_comes_late():
    kept = RunningProbe()
    ledger = Ledger()
    scores = [ledger.put(pair) for pair in stream(Line(slowdown=0.3, pairs_a_day=3), random.Random(2), 60)]
    for one in scores:
        kept.add(one)
        assert kept.log_e("slowing") == pytest.approx(probe_evidence(kept.counts, "slowing"), abs=1e-9)
    assert kept.rebuilt == 1
    kept.remove(scores[5])
    kept.add(scores[5])
    assert kept.log_e("slowing") == pytest.approx(probe_evidence(kept.counts, "slowing"), abs=1e-9)
    assert kept.rebuilt == 2
    for one in scores:
        kept.remove(one)
    assert [kept.log_e(effect) for effect in EFFECTS] == [0.0] * 4


class Counting(int):
    """An end time that counts how often it is compared."""

    compared = 0

    def __lt__(self, other):
        Counting.compared += 1
        return int(self) < int(other)

    def __eq__(self, other):
        Counting.compared += 1
        return int(self) == int(other)

    __hash__ = int.__hash__


def entry(at):
    return (Counting(at), "s", at, True, 0.0)


def test_adding_late_costs_a_few_comparisons_and_bounded_moves():
    """At 50,000 entries one more, wherever it belongs, is compared a few dozen times, and no block is long."""
    kept = Sorted()
    for at in range(0, 100_000, 2):
        kept.add(entry(at))
    for at in (1, 50_001, 99_999, 3):
        Counting.compared = 0
        kept.add(entry(at))
        assert Counting.compared <= 4 * math.log2(50_000)
        Counting.compared = 0
        window = kept.before((at, "￿"), 128)
        assert Counting.compared <= 4 * math.log2(50_000)
        assert [e[2] for e in window] == sorted(e[2] for e in window)
        assert window[-1][2] == at
    assert max(map(len, kept.blocks)) <= MOST
    assert len(kept) == 50_004


@pytest.mark.parametrize("seed", range(8))
def test_blocks_are_a_sorted_list(seed):
    """Long enough for several blocks, with ends that are equal."""
    rng = random.Random(seed)
    kept, plain = Sorted(), []
    for number in range(2000):
        one = (rng.randrange(800), "s", number, True, 0.0)
        kept.add(one)
        bisect.insort(plain, one)
    assert len(kept.blocks) > 7
    assert [e for block in kept.blocks for e in block] == plain
    for _ in range(50):
        limit, most = rng.randrange(-1, 801), rng.randrange(1, 700)
        until = bisect.bisect_right(plain, (limit, "￿"))
        assert kept.before((limit, "￿"), most) == plain[max(0, until - most) : until]


def test_midpoints_are_those_of_the_definition_whatever_the_order_of_arrival():
    """Against a walk over all pairs, with several sessions at once and ends that overlap."""
    rng = random.Random(4)
    pairs = [
        replace(pair, session=f"s{rng.randrange(40)}", number=number, ended_ms=pair.started_ms + rng.randrange(90_000))
        for number, pair in enumerate(stream(Line(noise=0.4, boost=0.3), rng, 900), start=1)
    ]
    rng.shuffle(pairs)
    history = OrderHistory()
    for pair in pairs:
        history.add(pair)
    for pair in pairs[:150]:
        before = sorted(
            (
                p
                for p in pairs
                if p.ended_ms <= pair.started_ms or (p.session == pair.session and p.number < pair.number)
            ),
            key=lambda p: (p.ended_ms > pair.started_ms, p.ended_ms, p.session, p.number),
        )[-RULES.order_window :]
        halves = [sorted(p.log_ratio() for p in before if p.neutral_first is coin) for coin in (True, False)]
        expected = 0.0
        if all(halves):
            expected = sum((h[len(h) // 2] + h[(len(h) - 1) // 2]) / 2 for h in halves) / 2
        assert history.midpoint(pair) == pytest.approx(expected, abs=1e-12)

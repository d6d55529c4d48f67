# SPDX-License-Identifier: EUPL-1.2
"""What the numbers promise, simulated: size under any noise that a fair coin allows, and power where it is promised.

Seeds are fixed and bounds wide; tests/bench/test_analysis_study.py runs the same with many more streams.
"""

import math
import random

import pytest

from analysis.evidence import probe_evidence
from analysis.gates import strength
from analysis.judge import Ledger
from analysis.rules import EFFECTS
from analysis.simulate import CELL, Line, stream

NULLS = {
    "quiet": Line(noise=0.11),
    "noisy": Line(noise=0.6),
    "wild": Line(noise=2.0),
    "heavy": Line(noise=0.3, heavy=True),
    "boosted": Line(noise=0.05, boost=1.0),
    "carried": Line(noise=0.2, boost=0.3, carry=0.8),
    "congested": Line(noise=0.2, congestion=1.5),
    "failing": Line(noise=0.2, failing=0.3),
    "many_days": Line(noise=0.6, pairs_a_day=4),
}


def most(line, seed, count):
    """The largest evidence of each effect at any look."""
    found, best = Ledger(), dict.fromkeys(EFFECTS, 0.0)
    for pair in stream(line, random.Random(seed), count):
        found.put(pair)
        counts = found.states(CELL)["p1"].counts
        for effect in EFFECTS:
            best[effect] = max(best[effect], probe_evidence(counts, effect))
    return best


def upper(share, runs):
    """Most crossings of `runs` that a true share may show (4.5 standard deviations)."""
    return share * runs + 4.5 * math.sqrt(share * (1 - share) * runs)


@pytest.mark.parametrize("name", NULLS)
def test_a_name_that_changes_nothing_rarely_shows_evidence(name):
    """Ever reaching 20 in 60 looks: at most 5 % under any noise; at most 1 % at a noise up to 0.6."""
    runs = 150
    best = [most(NULLS[name], seed, 60) for seed in range(runs)]
    for effect in EFFECTS:
        crossed = sum(b[effect] >= math.log(20) for b in best)
        assert crossed <= upper(0.05, runs)
        if name in {"quiet", "noisy"}:
            assert crossed <= upper(0.01, runs)


def test_a_label_dependent_gate_would_be_seen_by_this_simulation():
    """The counter-example: dropping pairs whose neutral arm was slow makes nulls cross, so the test above can fail."""
    crossed = 0
    for seed in range(100):
        found = Ledger()
        for pair in stream(Line(noise=0.5), random.Random(seed), 60):
            neutral = pair.first_mbps if pair.neutral_first else pair.second_mbps
            if neutral >= 12:
                found.put(pair)
        states = found.states(CELL)
        crossed += bool(states) and probe_evidence(states["p1"].counts, "slowing") >= math.log(20)
    assert crossed > 30


def pairs_needed(line, seed, effect="slowing", count=80):
    found = Ledger()
    for number, pair in enumerate(stream(line, random.Random(seed), count), start=1):
        found.put(pair)
        if probe_evidence(found.states(CELL)["p1"].counts, effect) >= math.log(20):
            return number
    return math.inf


@pytest.mark.parametrize(
    ("line", "effect", "expected", "slack"),
    [
        (Line(slowdown=0.5, noise=0.05), "slowing", 6, 0),
        (Line(slowdown=0.5, noise=0.11), "slowing", 6, 0),
        (Line(slowdown=0.5, noise=0.6), "slowing", 13, 3),
        (Line(slowdown=0.3, noise=0.05), "slowing", 6, 1),
        (Line(slowdown=0.3, noise=0.11), "slowing", 7, 1),
        (Line(slowdown=0.3, noise=0.3), "slowing", 16, 4),
        (Line(slowdown=0.3, noise=0.11, boost=0.2), "slowing", 8, 2),
        (Line(slowdown=-1.0, noise=0.11), "prioritising", 6, 0),
        (Line(blocked=1.0), "blocking", 6, 0),
        (Line(blocked=0.7), "blocking", 8, 2),
    ],
)
def test_median_pairs_to_twenty(line, effect, expected, slack):
    needed = sorted(pairs_needed(line, seed, effect) for seed in range(61))
    assert abs(needed[30] - expected) <= slack


def test_a_fifth_is_promised_nothing_and_a_tenth_is_never_found():
    assert sum(pairs_needed(Line(slowdown=0.1, noise=0.11), seed, count=60) < math.inf for seed in range(60)) <= 3
    assert pairs_needed(Line(slowdown=0.09, noise=0.0), 1, count=80) == math.inf


def test_a_cell_of_fair_coins_stays_fair_while_probes_join():
    """Every fifth pair brings a new probe; the cell's evidence ever reaches 20 in at most 5 % of cells."""
    runs, crossed = 150, 0
    for seed in range(runs):
        rng, found, best = random.Random(seed), Ledger(), 0.0
        streams = {f"p{n}": stream(Line(noise=1.0), random.Random(f"{seed}/{n}"), 60, probe=f"p{n}") for n in range(10)}
        log_es = {}
        for step in range(60):
            probe = f"p{rng.randrange(1 + step // 6)}"
            found.put(next(streams[probe]))
            log_es[probe] = probe_evidence(found.states(CELL)[probe].counts, "slowing")
            best = max(best, strength(list(log_es.values()), [[i] for i in range(len(log_es))]).whole)
        crossed += best >= math.log(20)
    assert crossed <= upper(0.05, runs)


@pytest.mark.parametrize(
    ("line", "pairs", "at_least"),
    [
        (Line(slowdown=0.5, noise=0.11), 12, 0.95),
        (Line(slowdown=0.3, noise=0.11), 14, 0.85),
        (Line(slowdown=0.3, noise=0.11, boost=0.2), 17, 0.85),
        (Line(slowdown=0.5, noise=0.3), 20, 0.90),
    ],
)
def test_three_probes_open_a_case(line, pairs, at_least):
    runs, opened = 60, 0
    for seed in range(runs):
        found = Ledger()
        for number in range(3):
            for pair in stream(line, random.Random(f"{seed}/{number}"), pairs, probe=f"p{number}"):
                found.put(pair)
        opened += any(v.is_case and v.assessment.effect == "slowing" for v in found.verdicts())
    assert opened >= at_least * runs - 3 * math.sqrt(at_least * (1 - at_least) * runs)


@pytest.mark.parametrize("name", NULLS)
def test_even_lines_are_never_accused(name):
    """Three subscribers of twelve pairs on each of many even lines: no case of any effect."""
    for seed in range(60):
        found = Ledger()
        for number in range(3):
            for pair in stream(NULLS[name], random.Random(f"{seed}/{number}"), 12, probe=f"p{number}"):
                found.put(pair)
        assert not any(v.is_case for v in found.verdicts())

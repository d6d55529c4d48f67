# SPDX-License-Identifier: EUPL-1.2
"""What the numbers promise, simulated: size under any noise that a fair coin allows, and power where it is promised.

Seeds are fixed and bounds wide; tests/bench/test_analysis_study.py runs the same with many more streams.
"""

import math
import random
from dataclasses import replace

import pytest

from analysis.evidence import probe_evidence
from analysis.gates import strength
from analysis.judge import Ledger
from analysis.rules import EFFECTS
from analysis.simulate import CELL, Line, Queue, queue_stream, stream

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
    "altering": Line(noise=0.2, altering=0.4),
}


QUEUES = {
    "quiet": Queue(),
    "noisy": Queue(noise_ms=20),
    "wild": Queue(noise_ms=200, level_ms=300),
    "heavy": Queue(noise_ms=8, heavy=True),
    "bufferbloat": Queue(level_ms=500, noise_ms=40, drift=0.5),
    "slot A 8 ms worse": Queue(slot_ms=8, noise_ms=6),
    "slot A 30 ms and 3 points worse": Queue(slot_ms=30, slot_loss=0.03, noise_ms=10),
    "carried": Queue(carry=0.5, noise_ms=15),
    "lossy": Queue(lossy=0.05),
    "bursts": Queue(lossy=0.03, bursts=20),
    "often idle": Queue(idle=0.6, noise_ms=15),
    "many days": Queue(noise_ms=15, pairs_a_day=4),
    "immaterial": Queue(delay_ms=4.5, loss=0.008, lossy=0.02, noise_ms=6),
}


def drawn(line, rng, count, **more):
    """Pairs of either design."""
    return (queue_stream if isinstance(line, Queue) else stream)(line, rng, count, **more)


def most(line, seed, count, effects=EFFECTS):
    """The largest evidence of each effect at any look."""
    found, best = Ledger(), dict.fromkeys(effects, 0.0)
    for pair in drawn(line, random.Random(seed), count):
        found.put(pair)
        counts = found.states(CELL)["p1"].counts
        for effect in effects:
            best[effect] = max(best[effect], probe_evidence(counts, effect))
    return best


def upper(share, runs):
    """Most crossings of `runs` that a true share may show (4.5 standard deviations)."""
    return share * runs + 4.5 * math.sqrt(share * (1 - share) * runs)


@pytest.mark.parametrize("name", NULLS)
def test_a_name_that_changes_nothing_rarely_shows_evidence(name):
    """Ever reaching 20 in 60 looks: at most 5 % under any noise; at most 1 % at a noise up to 0.6."""
    runs = 100
    best = [most(NULLS[name], seed, 60) for seed in range(runs)]
    for effect in EFFECTS:
        crossed = sum(b[effect] >= math.log(20) for b in best)
        assert crossed <= upper(0.05, runs)
        if name in {"quiet", "noisy"}:
            assert crossed <= upper(0.01, runs)


@pytest.mark.parametrize("name", QUEUES)
def test_a_queue_that_treats_names_alike_rarely_shows_evidence(name):
    """Bufferbloat, drift, what is left of the last load, a slot that is always worse: none of it knows the coin."""
    runs = 100
    effects = ("slowing", "prioritising")
    best = [most(QUEUES[name], seed, 40, effects) for seed in range(runs)]
    for effect in effects:
        crossed = sum(b[effect] >= math.log(20) for b in best)
        assert crossed <= upper(0.01 if name in {"quiet", "noisy", "slot A 8 ms worse"} else 0.05, runs)


def test_the_simulated_slots_do_differ():
    """Else the test above could not fail: the same streams show their slot effect to whoever forgets the coin."""
    wrong = Ledger()
    for pair in queue_stream(QUEUES["slot A 30 ms and 3 points worse"], random.Random(1), 20):
        wrong.put(replace(pair, neutral_first=False))  # as if the app always had slot A
    assert probe_evidence(wrong.states(CELL)["p1"].counts, "slowing") > math.log(100)


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
    for number, pair in enumerate(drawn(line, random.Random(seed), count), start=1):
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
        (Line(altered=1.0), "tampering", 6, 0),
        (Line(altered=0.7, altering=0.1), "tampering", 9, 3),
        (Queue(delay_ms=30), "slowing", 8, 0),
        (Queue(delay_ms=15), "slowing", 9, 1),
        (Queue(delay_ms=30, noise_ms=20), "slowing", 17, 4),
        (Queue(delay_ms=30, slot_ms=8), "slowing", 8, 1),
        (Queue(delay_ms=40, idle=0.5), "slowing", 15, 4),
        (Queue(loss=0.05), "slowing", 8, 1),
        (Queue(loss=0.03, lossy=0.02), "slowing", 15, 4),
        (Queue(delay_ms=30, loss=0.05), "slowing", 6, 1),
        (Queue(delay_ms=-40), "prioritising", 8, 1),
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
        (Queue(delay_ms=30), 14, 0.95),
        (Queue(loss=0.06), 16, 0.90),
    ],
)
def test_three_probes_open_a_case(line, pairs, at_least):
    runs, opened = 60, 0
    for seed in range(runs):
        found = Ledger()
        for number in range(3):
            for pair in drawn(line, random.Random(f"{seed}/{number}"), pairs, probe=f"p{number}"):
                found.put(pair)
        opened += any(v.is_case and v.assessment.effect == "slowing" for v in found.verdicts())
    assert opened >= at_least * runs - 3 * math.sqrt(at_least * (1 - at_least) * runs)


@pytest.mark.parametrize("name", [*NULLS, *QUEUES])
def test_even_lines_are_never_accused(name):
    """Three subscribers of twelve pairs on each of many even lines: no case of any effect."""
    line = NULLS[name] if name in NULLS else QUEUES[name]
    for seed in range(60):
        found = Ledger()
        for number in range(3):
            for pair in drawn(line, random.Random(f"{seed}/{number}"), 12, probe=f"p{number}"):
                found.put(pair)
        assert not any(v.is_case for v in found.verdicts())

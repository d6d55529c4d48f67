# SPDX-License-Identifier: EUPL-1.2
"""The promises of spec/statistics.md with many streams: figures are printed, bounds are those of the promise.

Run by `make bench` (some minutes). The unit tests run the same with few streams.
"""

import math
import random
from dataclasses import replace

import pytest

from analysis.effect import Sample, interval
from analysis.evidence import probe_evidence
from analysis.judge import Ledger
from analysis.pairs import OrderHistory, score
from analysis.rules import EFFECTS
from analysis.simulate import CELL, Line, Queue, queue_stream, stream

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

NULLS = {
    "quiet": Line(noise=0.11),
    "noisy": Line(noise=0.6),
    "wild": Line(noise=2.0),
    "heavy": Line(noise=0.3, heavy=True),
    "boosted": Line(noise=0.05, boost=1.0),
    "carried": Line(noise=0.2, boost=0.3, carry=0.8),
    "congested": Line(noise=0.2, congestion=1.5),
    "failing": Line(noise=0.2, failing=0.3),
    "days": Line(noise=0.6, pairs_a_day=12),
    "altering": Line(noise=0.2, altering=0.4),
}
QUEUES = {
    "queue, quiet": Queue(),
    "queue, noisy": Queue(noise_ms=20),
    "queue, wild": Queue(noise_ms=200, level_ms=300),
    "queue, heavy": Queue(noise_ms=8, heavy=True),
    "queue, bufferbloat": Queue(level_ms=500, noise_ms=40, drift=0.5),
    "queue, slot A 8 ms worse": Queue(slot_ms=8, noise_ms=6),
    "queue, slot A 30 ms, 3 points worse": Queue(slot_ms=30, slot_loss=0.03, noise_ms=10),
    "queue, carried": Queue(carry=0.5, noise_ms=15),
    "queue, lossy": Queue(lossy=0.05),
    "queue, bursts": Queue(lossy=0.03, bursts=20),
    "queue, immaterial": Queue(delay_ms=4.5, loss=0.008, lossy=0.02, noise_ms=6),
}
MODERATE = {"quiet", "noisy", "days", "queue, quiet", "queue, noisy"}
"""Where the promise is 1 %."""


def drawn(line, rng, count, **more):
    """Pairs of either design."""
    return (queue_stream if isinstance(line, Queue) else stream)(line, rng, count, **more)


def most_of(share, runs):
    """Three standard deviations above a share: what a true share seldom exceeds."""
    return share * runs + 3 * math.sqrt(share * (1 - share) * runs)


@pytest.mark.parametrize("name", [*NULLS, *QUEUES])
def test_size_of_one_probe(name):
    """Of 800 even streams with 150 looks each: at most 5 % ever reach 20, 1 % at a noise up to 0.6."""
    line = NULLS.get(name) or QUEUES[name]
    runs = 800
    crossed = dict.fromkeys(EFFECTS, 0)
    for seed in range(runs):
        found, reached = Ledger(), set()
        for pair in drawn(line, random.Random(f"size/{seed}"), 150):
            found.put(pair)
            counts = found.states(CELL)["p1"].counts
            reached |= {e for e in EFFECTS if probe_evidence(counts, e) >= math.log(20)}
        for effect in reached:
            crossed[effect] += 1
    print(f"\nsize {name}: " + ", ".join(f"{e} {n / runs:.2%}" for e, n in crossed.items()))
    for number in crossed.values():
        assert number <= most_of(
            0.01 if name in {"quiet", "noisy", "days", "queue, quiet", "queue, noisy"} else 0.05, runs
        )


def opened_after(line, seed, most, step):
    """Pairs per probe after which three probes' case is open, looking every `step` pairs."""
    streams = [drawn(line, random.Random(f"{seed}/{n}"), most, probe=f"p{n}") for n in range(3)]
    found = Ledger()
    for count in range(1, most + 1):
        for one in streams:
            found.put(next(one))
        if count % step == 0 and any(v.is_case and v.assessment.effect == "slowing" for v in found.verdicts()):
            return count
    return math.inf


@pytest.mark.parametrize(
    ("line", "share", "expected"),
    [
        (Line(slowdown=0.5, noise=0.11), 0.99, 9),
        (Line(slowdown=0.3, noise=0.11), 0.95, 14),
        (Line(slowdown=0.3, noise=0.11, boost=0.2), 0.95, 17),
        (Line(slowdown=0.5, noise=0.3), 0.99, 21),
        (Line(slowdown=0.3, noise=0.3), 0.95, 63),
        (Queue(delay_ms=30), 0.99, 10),
        (Queue(delay_ms=15), 0.95, 18),
        (Queue(delay_ms=50, noise_ms=20), 0.95, 25),
        (Queue(loss=0.05), 0.95, 13),
    ],
    ids=[
        "50% sd .11",
        "30% sd .11",
        "30% sd .11 boost",
        "50% sd .3",
        "30% sd .3",
        "30 ms",
        "15 ms",
        "50 ms sd 20",
        "5 points",
    ],
)
def test_pairs_to_a_case(line, share, expected):
    """Three probes, the first operator and cell of a plan of over two hundred families."""
    runs = 300
    needed = sorted(opened_after(line, seed, 2 * expected, 1) for seed in range(runs))
    at = needed[math.ceil(share * runs) - 1]
    print(f"\n{line}: {share:.0%} open after {at} pairs")
    assert at <= expected


def test_false_cases_among_even_operators():
    """A hundred studies of three even, noisy operators with three apps: hardly one accuses anybody."""
    wrong = 0
    for seed in range(100):
        found = Ledger()
        for operator in range(3):
            for app in ("youtube", "whatsapp", "facebook"):
                cell = replace(CELL, operator=f"o{operator}", app=app)
                for number in range(3):
                    name = f"p{operator}-{app}-{number}"
                    line = list(NULLS.values())[(seed + operator) % len(NULLS)]
                    for pair in stream(line, random.Random(f"{seed}/{name}"), 14, probe=name, cell=cell):
                        found.put(pair)
        wrong += any(v.is_case for v in found.verdicts())
    print(f"\neven studies with a case: {wrong} of 100")
    assert wrong <= 1


@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0])
def test_coverage(noise):
    """A constant effect stays inside its interval at every one of 300 looks in at least 95 % of streams."""
    runs, missed = 600, 0
    line = Line(slowdown=0.3, noise=noise, boost=0.2)
    truth = -math.log1p(-line.slowdown)
    for seed in range(runs):
        history, found = OrderHistory(), Sample()
        for pair in stream(line, random.Random(f"cover/{seed}"), 300):
            found.add(score(history, pair).y)
            history.add(pair)
            now = interval(found)
            if not now.low <= truth <= now.high:
                missed += 1
                break
    print(f"\nmissed at sd {noise}: {missed / runs:.2%}")
    assert missed <= most_of(0.05, runs)

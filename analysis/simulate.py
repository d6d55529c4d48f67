# SPDX-License-Identifier: EUPL-1.2
"""Streams of pairs with known truth: what the claims of this package are proven on.

A `Line` is a subscriber's line with its noise; its twin truth is what the operator does. Randomness is an
argument, so that a study names its seeds. Spec: spec/statistics.md, section "Simulations".
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from analysis.pairs import CellKey, Pair

CELL: Final = CellKey("operator", 64500, "youtube", "down", "fixed")
START_MS: Final = 1_795_997_400_000
"""2026-11-30, 00:10 UTC: a Monday after the publication of the rule in force, so that nothing is retrospective."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """How a line and its operator behave. Log rates are natural logarithms."""

    slowdown: float = 0.0
    """Truth: the app's share of lost rate, 0.5 = half. Negative: faster."""
    noise: float = 0.11
    """Standard deviation of a pair's log ratio."""
    boost: float = 0.0
    """The first segment is faster by this share (power boost)."""
    carry: float = 0.0
    """How much of the last pair's order advantage is carried into the next one."""
    congestion: float = 0.0
    """Stationary deviation of a slow common drift that moves within pairs too (autocorrelated)."""
    memory: float = 0.95
    heavy: bool = False
    """Noise has heavy tails (a ratio of normals, Cauchy) instead of Gaussian ones."""
    blocked: float = 0.0
    """Share of pairs in which the app alone fails by treatment."""
    failing: float = 0.0
    """Probability with which any segment fails, whichever arm."""
    altered: float = 0.0
    """Share of pairs in which what the app arm sends is changed by treatment."""
    altering: float = 0.0
    """Probability with which any segment is changed, whichever arm (a proxy for everything)."""
    pace_mbps: float = 12.0
    pairs_a_day: int = 1000
    since_day: int = 0
    """The treatment begins on this day (0 = from the first on)."""


def stream(line: Line, rng: random.Random, count: int, *, probe: str = "p1", cell: CellKey = CELL) -> Iterator[Pair]:
    """`count` pairs of one probe in order, with fair coins."""
    drift = previous = 0.0
    gap_ms = 86_400_000 // line.pairs_a_day if line.pairs_a_day < 1000 else 20_000
    for number in range(1, count + 1):
        neutral_first = rng.random() < 0.5
        step = rng.gauss(0, line.congestion * math.sqrt(1 - line.memory**2)) if line.congestion else 0.0
        before, drift = drift, line.memory * drift + step
        # What the order does, whichever arm comes first: boost, drift between the segments, carry-over, noise.
        order = math.log1p(line.boost) + (before - drift) + line.carry * previous + _noise(line, rng)
        previous = order
        treated = (number - 1) // line.pairs_a_day >= line.since_day
        app = math.log1p(-line.slowdown) if treated else 0.0
        order = max(-20.0, min(20.0, order))  # heavy tails overflow a rate long after they are clipped
        first, second = order / 2, -order / 2
        first, second = (first, second + app) if neutral_first else (first + app, second)
        app_fails = (treated and rng.random() < line.blocked) or rng.random() < line.failing
        neutral_fails = rng.random() < line.failing
        failed = (neutral_fails, app_fails) if neutral_first else (app_fails, neutral_fails)
        touched = _touched(line, rng, treated)
        altered = touched if neutral_first else touched[::-1]
        level = line.pace_mbps * math.exp(drift)
        started = START_MS + (number - 1) * gap_ms
        yield Pair(
            cell=cell,
            kind="test",
            probe=probe,
            session=f"{probe}-{number}",
            number=1,
            started_ms=started,
            ended_ms=started + 10_000,
            neutral_first=neutral_first,
            first_mbps=None if failed[0] else level * math.exp(first),
            second_mbps=None if failed[1] else level * math.exp(second),
            first_failed=failed[0],
            second_failed=failed[1],
            first_altered=altered[0],
            second_altered=altered[1],
            network=f"{probe}:net",
            edge=True,
            pace_mbps=line.pace_mbps,
            segment_s=1.0,
        )


def _touched(line: Line, rng: random.Random, treated: bool) -> tuple[bool, bool]:
    """Whether what the neutral and the app arm sent is changed under way."""
    app = bool(line.altered) and treated and rng.random() < line.altered
    if line.altering:
        return rng.random() < line.altering, app or rng.random() < line.altering
    return False, app


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """How the queue of a concurrent pair behaves, and what the operator does in it. Delays in ms, losses as shares."""

    delay_ms: float = 0.0
    """Truth: how much longer the app waits. Negative: shorter."""
    loss: float = 0.0
    """Truth: how much more of the app's packets is lost."""
    level_ms: float = 100.0
    """What both slots wait behind the load."""
    drift: float = 0.0
    """Stationary deviation of the level's logarithm, which wanders from pair to pair (autocorrelated)."""
    noise_ms: float = 4.0
    """Standard deviation of each slot's median, besides."""
    heavy: bool = False
    """Noise has Cauchy tails."""
    slot_ms: float = 0.0
    """Slot A always waits so much longer, whichever arm has it."""
    slot_loss: float = 0.0
    """Slot A always loses so much more."""
    carry: float = 0.0
    """What is left of a pair's queue when the next begins, which its slot A meets first."""
    lossy: float = 0.005
    """Share that each slot loses for reasons of its own."""
    bursts: int = 1
    """Packets are lost so many at a time."""
    idle: float = 0.0
    """Share of pairs in which the load does not fill the queue."""
    packets: int = 200
    """Of each slot while the load runs."""
    base_ms: float = 20.0
    pairs_a_day: int = 1000


def queue_stream(
    queue: Queue, rng: random.Random, count: int, *, probe: str = "p1", cell: CellKey = CELL
) -> Iterator[Pair]:
    """`count` concurrent pairs of one probe in order, with fair coins."""
    wander = left_ms = 0.0
    gap_ms = 86_400_000 // queue.pairs_a_day if queue.pairs_a_day < 1000 else 20_000
    for number in range(1, count + 1):
        neutral_first = rng.random() < 0.5
        wander = 0.9 * wander + rng.gauss(0, queue.drift * math.sqrt(1 - 0.9**2)) if queue.drift else 0.0
        filled = rng.random() >= queue.idle
        level = queue.level_ms * math.exp(wander) if filled else 0.0
        app = 1 if neutral_first else 0
        delays, losses = [], []
        for slot in (0, 1):
            treated = filled and slot == app
            extra = (queue.slot_ms + left_ms if slot == 0 else 0.0) + (queue.delay_ms if treated else 0.0)
            waited = level + extra + (_slot_noise(queue, rng) if filled else 0.0)
            delays.append(queue.base_ms + max(0.0, min(5000.0, waited)))
            share = queue.lossy + (queue.slot_loss if slot == 0 else 0.0) + (queue.loss if treated else 0.0)
            losses.append(_lost_share(queue, rng, share) if filled else 0.0)
        left_ms = queue.carry * max(delays)
        started = START_MS + (number - 1) * gap_ms
        yield Pair(
            cell=cell,
            kind="test",
            probe=probe,
            session=f"{probe}-{number}",
            number=1,
            started_ms=started,
            ended_ms=started + 10_000,
            neutral_first=neutral_first,
            design="concurrent",
            first_delay_ms=delays[0],
            second_delay_ms=delays[1],
            first_loss=losses[0],
            second_loss=losses[1],
            queued=any(delay - queue.base_ms >= 10 for delay in delays) or any(losses),
            network=f"{probe}:net",
            edge=True,
            pace_mbps=12.0,
            segment_s=4.0,
        )


def _slot_noise(queue: Queue, rng: random.Random) -> float:
    if queue.heavy:
        return queue.noise_ms * math.tan(math.pi * (rng.random() - 0.5))
    return rng.gauss(0, queue.noise_ms)


def _lost_share(queue: Queue, rng: random.Random, share: float) -> float:
    groups = queue.packets // queue.bursts
    return sum(rng.random() < share for _ in range(groups)) / groups


def _noise(line: Line, rng: random.Random) -> float:
    if line.heavy:
        return line.noise * math.tan(math.pi * (rng.random() - 0.5))
    return rng.gauss(0, line.noise)

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
            network=f"{probe}:net",
            edge=True,
            pace_mbps=line.pace_mbps,
            segment_s=1.0,
        )


def _noise(line: Line, rng: random.Random) -> float:
    if line.heavy:
        return line.noise * math.tan(math.pi * (rng.random() - 0.5))
    return rng.gauss(0, line.noise)

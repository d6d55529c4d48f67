# SPDX-License-Identifier: EUPL-1.2
"""Lines that behave as access lines do and the lab's plain queue does not: radio, power boost, fair queues.

All are `lab.links.LinkQueue`s whose rate follows something: a random walk (Wi-Fi, mobile), a bucket (power boost), or
the household's other flows (SQM). Pure and in virtual time, like the queue itself. spec/accuracy.md section 3.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from lab.links import CrossLoad, LinkQueue
from lab.model import Link, Scenario

Way = Literal["down", "up"]
STEP_S: Final = 0.02
"""A radio line takes a new rate this often: about what a rate controller and a scheduler do."""
DEPTH: Final = 0.05
"""A radio line never falls below this share of its nominal rate: below it a session would break, which is a loss."""


class Household(CrossLoad):
    """Household traffic that also counts what it moves, as the router's interface counters do."""

    def __init__(self, pattern: str, mbps: float, rng: random.Random) -> None:
        super().__init__(pattern, mbps, rng)
        self._octets = 0.0
        self._since = 0.0

    def turn(self, now: float) -> None:
        """As `CrossLoad.turn`; what the stretch that ends moved is counted."""
        self._octets += (now - self._since) * self.bps / 8
        self._since = now
        super().turn(now)

    def octets(self, now: float) -> float:
        """Bytes until `now`, as far as the line has been looked at."""
        return self._octets + max(0.0, now - self._since) * self.bps / 8


class Radio(LinkQueue):
    """A line whose rate wanders: the logarithm is an autoregressive process of order one.

    `sd` is its stationary deviation, `memory_s` the time after which the correlation is 1/e. What waits keeps its
    bytes when the rate changes.
    """

    __slots__ = ("_base", "_level", "_next", "_noise", "_rng", "_stay")

    def __init__(self, *, sd: float, memory_s: float, walk: random.Random, **queue: Any) -> None:
        super().__init__(**queue)
        self._rng = walk
        self._stay = math.exp(-STEP_S / memory_s)
        self._noise = sd * math.sqrt(1 - self._stay**2)
        self._level = walk.gauss(0, sd)
        self._base = self._per_byte
        self._next = 0.0

    def carry(self, size: int, now: float) -> float | None:
        """As `LinkQueue.carry`, at the rate of the moment."""
        if now >= self._next:
            self._wander(now)
        return super().carry(size, now)

    def _wander(self, now: float) -> None:
        steps = 1 + int((now - self._next) / STEP_S)
        self._next += steps * STEP_S
        if steps > 50:  # a long silence: several steps at once are one larger step of the same process
            stay = self._stay**steps
            spread = self._noise / math.sqrt(1 - self._stay**2) * math.sqrt(1 - stay**2)
            self._level = stay * self._level + self._rng.gauss(0, spread)
        else:
            for _ in range(steps):
                self._level = self._stay * self._level + self._rng.gauss(0, self._noise)
        before, self._per_byte = self._per_byte, self._base / max(DEPTH, math.exp(self._level))
        if self.busy > now:
            self.busy = now + (self.busy - now) * self._per_byte / before


class Boosted(LinkQueue):
    """A line that is faster for its first bytes after a rest ("power boost").

    A token bucket of `boost` bytes, filled at the line's own rate, pays for packets at the boosted rate.
    """

    __slots__ = ("_at", "_boost", "_fast", "_slow", "_tokens")

    def __init__(self, *, boost_mbps: float, boost_kb: float, **queue: Any) -> None:
        super().__init__(**queue)
        self._slow = self._per_byte
        self._fast = 8 / (boost_mbps * 1e6)
        self._boost = self._tokens = boost_kb * 1e3
        self._at = 0.0

    def carry(self, size: int, now: float) -> float | None:
        """As `LinkQueue.carry`, at the boosted rate while there are tokens."""
        if now > self._at:
            self._tokens = min(self._boost, self._tokens + (now - self._at) / self._slow)
            self._at = now
        fast = self._tokens >= size
        self._per_byte = self._fast if fast else self._slow
        done = super().carry(size, now)
        if fast and done is not None:
            self._tokens -= size
        return done


class Fair(LinkQueue):
    """A household's own fair queue (SQM: fq_codel, cake): our flow has its share and a short queue of its own.

    Household traffic takes what it wants up to half of the line; it never waits in our flow's queue.
    """

    __slots__ = ("_base", "_others")

    def __init__(self, *, others: CrossLoad | None, **queue: Any) -> None:
        super().__init__(**queue)
        self._base = self._per_byte
        self._others = others

    def carry(self, size: int, now: float) -> float | None:
        """As `LinkQueue.carry`, at the rate that the others leave."""
        others = self._others
        if others is not None:
            while others.until <= now:
                others.turn(max(others.until, 0.0))
            taken = min(0.5, others.bps * self._base / 8)
            self._per_byte = self._base / (1 - taken)
        return super().carry(size, now)


@dataclass(frozen=True, slots=True)
class Line:
    """Both directions of one subscriber's line, and what the household itself moves on it."""

    down: LinkQueue
    up: LinkQueue
    household: tuple[Household, ...]

    def household_kb(self, now: float) -> float:
        """What the rest of the household has moved until now, both ways."""
        return sum(one.octets(now) for one in self.household) / 1000


def line(scenario: Scenario, options: Mapping[str, Any], seed: str) -> Line:
    """A subscriber's line as the scenario and the row's options have it. Options (all of them optional):

    `rate_sd`, `rate_memory_s` (0.5): a rate that wanders; `boost_mbps`, `boost_kb`: power boost, down alone;
    `sqm`: the household's own fair queue.
    """
    made: dict[Way, LinkQueue] = {}
    household = []
    for way in ("down", "up"):
        side: Way = "down" if way == "down" else "up"
        traffic = scenario.cross_traffic
        mbps = 0.0 if traffic is None else getattr(traffic, f"{way}_mbps")
        load = None
        if traffic is not None and mbps > 0:
            load = Household(traffic.pattern, mbps, random.Random(f"{seed}/{way}/cross"))
            household.append(load)
        made[side] = _queue(scenario.link, side, options, seed, load)
    return Line(made["down"], made["up"], tuple(household))


def _queue(link: Link, way: Way, options: Mapping[str, Any], seed: str, load: CrossLoad | None) -> LinkQueue:
    queue: dict[str, Any] = {
        "mbps": link.down_mbps if way == "down" else link.up_mbps,
        "buffer_ms": link.buffer_ms,
        "delay_ms": link.rtt_ms / 2,
        "jitter_ms": link.jitter_ms,
        "loss": link.loss,
        "rng": random.Random(f"{seed}/{way}"),
    }
    if options.get("sqm"):
        return Fair(others=load, **queue)
    queue["cross"] = load
    if options.get("rate_sd"):
        walk = random.Random(f"{seed}/{way}/walk")
        return Radio(sd=options["rate_sd"], memory_s=options.get("rate_memory_s", 0.5), walk=walk, **queue)
    if options.get("boost_kb") and way == "down":
        return Boosted(boost_mbps=options["boost_mbps"], boost_kb=options["boost_kb"], **queue)
    return LinkQueue(**queue)

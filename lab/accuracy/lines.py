# SPDX-License-Identifier: EUPL-1.2
"""Lines that behave as access lines do and the lab's plain queue does not: power boost, a household's fair queue.

Both are `lab.links.LinkQueue`s whose rate follows something: a bucket, or the household's other flows. (Radio lines,
which vary and lose in bursts, the lab has itself.) Pure, in virtual time, like the queue. spec/accuracy.md section 3.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lab.links import CrossLoad, LinkQueue
from lab.model import Link, Scenario

Way = Literal["down", "up"]


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


class Boosted(LinkQueue):
    """A line that is faster for its first bytes after a rest ("power boost").

    A token bucket of `boost` bytes, filled at the line's own rate; while there are tokens, packets are sent at the
    boosted rate, and else each waits until the bucket has paid for it.
    """

    __slots__ = ("_at", "_boost", "_slow", "_tokens")

    def __init__(self, *, boost_mbps: float, boost_kb: float, **queue: Any) -> None:
        super().__init__(**queue)
        self._slow = self._per_byte
        self._full = self._per_byte = 8 / (boost_mbps * 1e6)
        self._boost = self._tokens = boost_kb * 1e3
        self._at = 0.0

    def carry(self, size: int, now: float) -> float | None:
        """As `LinkQueue.carry`, but a packet that the bucket cannot pay leaves when it can."""
        if now > self._at:
            self._tokens = min(self._boost, self._tokens + (now - self._at) / self._slow)
            self._at = now
        before = self.dropped
        arrival = super().carry(size, now)
        if self.dropped > before:
            return None
        self._tokens -= size
        late = max(0.0, now - self._tokens * self._slow - self.busy)
        self.busy += late
        return None if arrival is None else arrival + late


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

    `boost_mbps`, `boost_kb`: power boost, down alone; `sqm`: the household's own fair queue.
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
        "loss_burst": link.loss_burst,
        "vary": (link.vary, link.vary_s),
        "rng": random.Random(f"{seed}/{way}"),
    }
    if options.get("sqm"):
        return Fair(others=load, **queue)
    queue["cross"] = load
    if options.get("boost_kb") and way == "down":
        return Boosted(boost_mbps=options["boost_mbps"], boost_kb=options["boost_kb"], **queue)
    return LinkQueue(**queue)

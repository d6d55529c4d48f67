# SPDX-License-Identifier: EUPL-1.2
"""Queues in virtual time: an access line with a finite buffer, a token bucket, household traffic.

No clock is read here: every call says what time it is, so the same code serves real packets and thousands
of simulated runs. Times are seconds, sizes bytes of IP packet. spec/lab.md section 3.
"""

from __future__ import annotations

import random
from collections import deque

from lab.model import CrossTraffic

_ON_MEAN_S = _OFF_MEAN_S = 1.0  # onoff: exponential times of activity and of silence
_PAGE_MEDIAN_BYTES, _PAGE_SIGMA, _THINK_MEAN_S = 1_000_000, 1.0, 3.0  # web: log-normal pages, reading between


class CrossLoad:
    """Household traffic as a piecewise constant rate (bits per second) over time."""

    def __init__(self, pattern: str, mbps: float, rng: random.Random) -> None:
        self._pattern = pattern
        self._active_bps = mbps * 1e6
        self._rng = rng
        self._active = pattern == "constant"
        self.bps = self._active_bps if self._active else 0.0
        self.until = float("inf") if self._active else 0.0

    def turn(self, now: float) -> None:
        """Begin the next stretch of activity or silence at `now`."""
        self._active = not self._active
        if not self._active:
            self.bps, mean = 0.0, _OFF_MEAN_S if self._pattern == "onoff" else _THINK_MEAN_S
            self.until = now + self._rng.expovariate(1 / mean)
            return
        self.bps = self._active_bps
        if self._pattern == "onoff":
            self.until = now + self._rng.expovariate(1 / _ON_MEAN_S)
        else:
            page = _PAGE_MEDIAN_BYTES * self._rng.lognormvariate(0, _PAGE_SIGMA)
            self.until = now + page * 8 / self.bps


def cross_load(traffic: CrossTraffic | None, mbps: float, rng: random.Random) -> CrossLoad | None:
    """The load of one direction, None where there is none."""
    return CrossLoad(traffic.pattern, mbps, rng) if traffic is not None and mbps > 0 else None


class TokenBucket:
    """A bucket of `burst` bytes filled at `rate_bps`; starts full (RFC 2697's committed bucket)."""

    __slots__ = ("_at", "burst", "per_byte", "rate", "tokens")

    def __init__(self, rate_bps: float, burst: float) -> None:
        self.rate = rate_bps / 8
        self.per_byte = 1 / self.rate
        self.burst = max(burst, 1514.0)
        self.tokens = self.burst
        self._at: float | None = None

    def _fill(self, now: float) -> None:
        if self._at is not None and now > self._at:
            self.tokens = min(self.burst, self.tokens + (now - self._at) * self.rate)
        if self._at is None or now > self._at:
            self._at = now

    def take(self, size: int, now: float) -> bool:
        """Police: True where the packet conforms and its tokens are taken, False where it must go."""
        self._fill(now)
        if self.tokens < size:
            return False
        self.tokens -= size
        return True

    def delay(self, size: int, now: float, limit: float) -> float | None:
        """Shape: seconds a packet must wait, None where the queue would exceed `limit` seconds."""
        self._fill(now)
        wait = -self.tokens * self.per_byte if self.tokens < 0 else 0.0
        if wait > limit:
            return None
        self.tokens -= size
        return -self.tokens * self.per_byte if self.tokens < 0 else 0.0


class LinkQueue:
    """One direction of a line: serialisation at its rate, drop-tail, loss, propagation delay and jitter.

    The departure of a packet is computed on its arrival (a virtual clock), so that nothing has to happen in
    between. Packets of low priority wait aside until the line is idle. Packets never overtake one another.
    """

    __slots__ = (
        "_buffer_s",
        "_cross",
        "_delay_s",
        "_enters",
        "_full",
        "_jitter_s",
        "_leaves",
        "_losing",
        "_loss",
        "_low",
        "_low_bytes",
        "_per_byte",
        "_random",
        "_rng",
        "_seen",
        "_varies_at",
        "_vary",
        "busy",
        "dropped",
        "lost",
        "out",
    )  # fmt: skip

    def __init__(
        self,
        *,
        mbps: float,
        buffer_ms: float,
        delay_ms: float,
        rng: random.Random,
        loss: float = 0.0,
        loss_burst: float = 1.0,
        jitter_ms: float = 0.0,
        vary: tuple[float, float] = (0.0, 1.0),
        cross: CrossLoad | None = None,
    ) -> None:
        self._full = self._per_byte = 8 / (mbps * 1e6)
        self._vary = vary
        self._varies_at = 0.0
        self._buffer_s = buffer_ms / 1e3
        self._delay_s = delay_ms / 1e3
        self._jitter_s = jitter_ms / 1e3
        self._loss = loss
        # Gilbert (1960): a line is in one of two states; these are the chances to change it, packet by packet.
        self._leaves = 1 / loss_burst
        self._enters = loss * self._leaves / (1 - loss) if loss < 1 else 1.0
        self._losing = False
        self._cross = cross
        self._rng = rng
        self._random = rng.random
        self._low: deque[tuple[float, bytes]] = deque()
        self._low_bytes = 0
        self._seen = -1.0
        self.busy = 0.0
        self.dropped = 0
        self.lost = 0
        self.out: deque[tuple[float, bytes]] = deque()

    def carry(self, size: int, now: float) -> float | None:
        """When a packet arriving now leaves the far end; None where the buffer is full or the line loses it."""
        if self._vary[0] and now >= self._varies_at:
            self._draw_rate(now)
        if self._low:
            self.serve_low(now)
        if self._cross is not None and self._add_cross(now):
            self.dropped += 1
            return None
        start = self.busy
        if start < now:
            start = now
        elif start - now > self._buffer_s:
            self.dropped += 1
            return None
        self.busy = done = start + size * self._per_byte
        return self._arrival(done)

    def _arrival(self, done: float) -> float | None:
        if self._loss and self._loses():
            self.lost += 1
            return None
        release = done + self._delay_s
        if self._jitter_s:
            release += self._random() * self._jitter_s
            if self.out and release < self.out[-1][0]:
                release = self.out[-1][0]
        return release

    def _loses(self) -> bool:
        """Whether the line loses the next packet: each by itself, or in bursts."""
        if self._leaves == 1:
            return self._random() < self._loss
        self._losing = self._random() >= self._leaves if self._losing else self._random() < self._enters
        return self._losing

    def _draw_rate(self, now: float) -> None:
        """The rate until the next draw; what is under way keeps the time that it was given."""
        depth, mean_s = self._vary
        self._per_byte = self._full / (1 - depth * self._random())
        self._varies_at = now + self._rng.expovariate(1 / mean_s)

    def offer(self, packet: bytes, now: float) -> None:
        """A packet arrives at the line; if it survives, it is in `out` with its release time."""
        release = self.carry(len(packet), now)
        if release is not None:
            self.out.append((release, packet))

    def offer_low(self, packet: bytes, now: float) -> None:
        """A packet of low priority arrives: it is sent when nothing else waits."""
        self.serve_low(now)
        if (self._low_bytes + len(packet)) * self._per_byte + max(0.0, self.busy - now) > self._buffer_s:
            self.dropped += 1
            return
        self._low.append((now, packet))
        self._low_bytes += len(packet)
        self.serve_low(now)

    def serve_low(self, now: float) -> None:
        """Send what waits with low priority while the line is idle (also for the time since the last call)."""
        while self._low:
            if self._cross is not None:
                self._add_cross(now)
            if self.busy > now:
                return
            arrived, packet = self._low.popleft()
            self._low_bytes -= len(packet)
            self.busy = max(self.busy, arrived) + len(packet) * self._per_byte
            release = self._arrival(self.busy)
            if release is not None:
                self.out.append((release, packet))

    @property
    def low_due(self) -> float | None:
        """When to call serve_low again, None where nothing waits."""
        return self.busy if self._low else None

    def _add_cross(self, now: float) -> bool:
        """Put the household's load since the last call on the queue; True where a packet now would be lost.

        A fluid: while the load flows in at r and the line drains at c, the backlog grows by (r/c - 1) a
        second. What exceeds the buffer is lost, and a packet of ours that arrives then shares that fate in
        proportion.
        """
        cross, at = self._cross, self._seen
        if cross is None:
            return False
        if at < 0:
            at = now
        offered = overflow = 0.0
        while at < now:
            if cross.until <= at:
                cross.turn(at)
            step = min(now, cross.until) - at
            inflow = step * cross.bps * self._per_byte / 8
            backlog = max(0.0, self.busy - at)
            grown = max(0.0, backlog + inflow - step)
            kept = min(grown, max(self._buffer_s, backlog - step))
            offered += inflow
            overflow += grown - kept
            at += step
            self.busy = at + kept if kept else min(self.busy, at)
        self._seen = max(self._seen, now)
        return overflow > 0 and self._random() < overflow / offered

# SPDX-License-Identifier: EUPL-1.2
"""The two ends of a stream of datagrams: one paces and sends, the other counts and reports.

Either role may be either end. Times are seconds of a monotonic clock. Spec: spec/carriers.md, "Datagrams".
"""

from __future__ import annotations

from collections import deque
from typing import Final

from probe.protocol.datagram import (
    DATA,
    DATAGRAM_BYTES,
    END,
    FEEDBACK,
    SIGNAL_BYTES,
    WRAP,
    Codec,
    Packet,
    microseconds,
)
from probe.protocol.datagram_rate import FEEDBACK_S, SILENCE_S, RateControl

BURST_S: Final = 0.01
"""A sender that is late makes up for so much and no more: nothing it lost comes as a burst."""
_QUANTUM_S: Final = 0.002
"""Datagrams due within this leave together, so that fifty flows do not wake the loop at each datagram."""
_WINDOW: Final = 1024
"""Datagrams behind the newest that are still told from duplicates; older ones count as lost."""
_WINDOW_MASK: Final = (1 << _WINDOW) - 1
_STRIDE: Final = 1217
_REMEMBERED: Final = 64
"""Feedbacks: three seconds, longer than any round trip that leaves one in time."""
POOL_BYTES: Final = 64 * 1024
"""Smallest pool of random bytes to fill datagrams from."""


class Filler:
    """Slices of a pool of random bytes, so that datagrams are not made of one and the same."""

    def __init__(self, pool: memoryview) -> None:
        if len(pool) < POOL_BYTES:
            raise ValueError(f"a pool has at least {POOL_BYTES} bytes")
        self._pool = pool
        self._end = len(pool) - DATAGRAM_BYTES
        self._at = 0

    def next(self, size: int) -> memoryview:
        """`size` bytes, other ones than before."""
        self._at = (self._at + _STRIDE) % self._end
        return self._pool[self._at : self._at + size]


class Sender:
    """Sends data datagrams at the rate that its control allows."""

    def __init__(self, codec: Codec, filler: Filler, pace_mbps: float, now: float) -> None:
        self.control = RateControl(pace_mbps, now)
        self.sent = 0
        self._codec = codec
        self._filler = filler
        self._next = now
        self._woken = now
        self._started = now
        self._history: deque[tuple[float, int]] = deque(maxlen=_REMEMBERED)

    @property
    def wake_at(self) -> float:
        """When `due` wants to be called again."""
        return max(self._next, self._woken + _QUANTUM_S)

    @property
    def sent_bytes(self) -> int:
        """UDP payload sent."""
        return self.sent * DATAGRAM_BYTES

    @property
    def has_stopped(self) -> bool:
        """The circuit breaker has opened, or nobody reports any more."""
        return self.control.is_broken or self._woken - self.control.heard_at >= SILENCE_S

    def due(self, now: float) -> list[bytes]:
        """The datagrams to send now."""
        self._woken = now
        self.control.tick(now, self.sent)
        if self.has_stopped:
            return []
        out: list[bytes] = []
        gap = DATAGRAM_BYTES / self.control.rate
        at = max(self._next, now - max(BURST_S, gap))
        stamp = microseconds(now)
        while at <= now:
            self.sent += 1
            out.append(self._codec.seal(Packet(DATA, self.sent, stamp), self._filler.next(DATAGRAM_BYTES)))
            at += gap
        self._next = at
        return out

    def heard(self, feedback: Packet, now: float) -> bool:
        """Take a feedback; False where it counts for nothing."""
        before = self.control.rate
        if not self.control.heard(feedback, now, self.sent):
            return False
        self._history.append((now, self.sent))
        if self.control.rate > before:
            # The gap that is under way was made for a lower rate.
            self._next = min(self._next, now + DATAGRAM_BYTES / self.control.rate)
        return True

    def sent_before(self, now: float) -> int:
        """How many of the datagrams sent could be in a feedback that came at `now`: those of a round trip ago."""
        limit = now - (self.control.rtt_s or 0.0)
        before, then = self._started, 0
        for at, sent in self._history:
            if at >= limit:
                share = (limit - before) / (at - before) if at > before else 1.0
                return max(then + round((sent - then) * share), self.control.received)
            before, then = at, sent
        return max(then, self.control.received)


class Receiver:
    """Counts data datagrams, each once, and makes feedback."""

    def __init__(self, codec: Codec, filler: Filler, now: float) -> None:
        self.count = 0
        self.bytes = 0
        self.highest = 0
        self.last_at = now
        """When the last datagram arrived."""
        self.first_at: float | None = None
        self.wake_at = now
        """When the next feedback is due."""
        self._codec = codec
        self._filler = filler
        self._seen = 0
        self._echo_us = 0
        self._newest_at = now
        self._reports = 0

    def take(self, packet: Packet, size: int, now: float) -> bool:
        """A data datagram of `size` bytes came; False where it had come before, or far too late."""
        ahead = packet.sequence - self.highest
        if ahead > 0:
            self._seen = ((self._seen << ahead) | 1) & _WINDOW_MASK if ahead < _WINDOW else 1
            self.highest, self._echo_us, self._newest_at = packet.sequence, packet.time_us, now
        elif -ahead >= _WINDOW or self._seen >> -ahead & 1:
            return False
        else:
            self._seen |= 1 << -ahead
        if self.first_at is None:
            self.first_at = self.wake_at = now
        self.count += 1
        self.bytes += size
        self.last_at = now
        return True

    def due(self, now: float) -> list[bytes]:
        """A feedback every 50 ms, whether or not anything arrived, and one at once for the first datagram."""
        if now < self.wake_at:
            return []
        self.wake_at = max(self.wake_at + FEEDBACK_S, now + FEEDBACK_S / 2)
        return [self.feedback(now)]

    def feedback(self, now: float) -> bytes:
        """What has arrived so far."""
        self._reports += 1
        held = microseconds(now - self._newest_at) if self.highest else 0
        packet = Packet(
            FEEDBACK,
            self._reports,
            microseconds(now),
            self._echo_us,
            held,
            self.highest,
            self.count,
            self.bytes % WRAP,
        )
        return self._codec.seal(packet, self._filler.next(SIGNAL_BYTES))


class Farewell:
    """Three `end` datagrams, because one can be lost."""

    _AFTER_S: Final = (0.0, 0.02, 0.06)

    def __init__(self, codec: Codec, filler: Filler, now: float) -> None:
        self._codec = codec
        self._filler = filler
        self._since = now
        self._said = 0

    @property
    def is_over(self) -> bool:
        """All are sent."""
        return self._said == len(self._AFTER_S)

    @property
    def wake_at(self) -> float:
        """When the next one is due."""
        return self._since + self._AFTER_S[min(self._said, len(self._AFTER_S) - 1)]

    def due(self, now: float) -> list[bytes]:
        """What is to be sent now."""
        if self.is_over or now < self.wake_at:
            return []
        self._said += 1
        return [self._codec.seal(Packet(END, self._said, microseconds(now)), self._filler.next(SIGNAL_BYTES))]

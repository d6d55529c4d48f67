# SPDX-License-Identifier: EUPL-1.2
"""Who may open one more session, and how fast it may be: places, networks, and slots of the reflector's line.

A session's own quotas (pairs, bytes) come first and belong to its token; what a whole network may take comes second
and is generous, because many homes stand behind one carrier's address. Every answer costs a few dictionary look-ups,
however many sessions are open. Spec: spec/protocol.md, section "Room".
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

from probe.protocol.accounts import RETRY_AFTER_S, Limits, Refusal, refuse
from probe.protocol.pacing import FRAMING, SHARE_OF_LINE, allowed_pace_mbps

LEAST_OFFER: Final = 0.5
"""A slot of less than this share of the pace asked for is refused: the probe had better come back."""
_MINUTE_MS: Final = 60_000


def line_mbps(pace_mbps: float, *, calibrating: bool) -> float:
    """What a session of this pace puts on the line at most, headers included; more while it may still calibrate."""
    return pace_mbps * FRAMING / (SHARE_OF_LINE if calibrating else 1.0)


class Room:
    """Counts what is taken. Prefixes are opaque and forgotten with their last session and their last minute."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._slots: dict[str, tuple[str, float]] = {}  # session -> its prefix and what it booked, Mbit/s
        self._sessions: Counter[str] = Counter()
        self._total = 0  # thousandths of Mbit/s: sums of whole numbers come back to 0
        self._opened: dict[str, tuple[float, int]] = {}  # prefix -> sessions begun lately, and when that was so

    @property
    def booked_mbps(self) -> float:
        """What all open sessions have booked of the line."""
        return self._total / 1000

    def refuse(self, prefix: str, now_ms: int) -> Refusal | None:
        """Why `prefix` may not open one more session now, whatever its pace; None where it may."""
        if len(self._slots) >= self._limits.sessions:
            return refuse(503, "busy", "all sessions of this reflector are taken", RETRY_AFTER_S)
        if self._sessions[prefix] >= self._limits.sessions_per_prefix:
            return refuse(429, "quota", "too many sessions are open from this network", RETRY_AFTER_S)
        too_many = self._level(prefix, now_ms) + 1 - self._limits.openings_per_minute
        if too_many > 0:
            wait_s = max(1, math.ceil(too_many * _MINUTE_MS / self._limits.openings_per_minute / 1000))
            return refuse(429, "quota", "this network opens sessions too fast", wait_s)
        return None

    def offer(self, wanted_mbps: float, prefix: str) -> float | Refusal:
        """The highest pace that can be promised to a session that asks for `wanted` (0: as much as there is)."""
        pace = allowed_pace_mbps(wanted_mbps, self._limits.most_pace_mbps)
        capacity = self._limits.capacity_mbps
        if not capacity:
            return pace
        largest = capacity / line_mbps(1.0, calibrating=True)
        pace = min(pace, largest) if pace else largest
        fits = self._left_mbps(prefix) / line_mbps(1.0, calibrating=True)
        if fits >= pace:
            return pace
        if fits >= LEAST_OFFER * pace:
            return math.floor(fits * 1000) / 1000
        return refuse(503, "busy", "the line of this reflector is taken", RETRY_AFTER_S)

    def take(self, session: str, prefix: str, pace_mbps: float, now_ms: int) -> None:
        """Book a session's slot; until its first pair it may calibrate, which takes more of the line."""
        self._sessions[prefix] += 1
        self._opened[prefix] = (self._level(prefix, now_ms) + 1, now_ms)
        self._slots[session] = (prefix, 0.0)
        self._book(session, line_mbps(pace_mbps, calibrating=True))

    def calibrated(self, session: str, pace_mbps: float) -> None:
        """The session's first pair has begun: nothing of it is faster than its pace from here."""
        if session in self._slots:
            self._book(session, line_mbps(pace_mbps, calibrating=False))

    def give_back(self, session: str) -> None:
        """The session has ended."""
        if session not in self._slots:
            return
        self._book(session, 0.0)
        prefix, _ = self._slots.pop(session)
        self._sessions[prefix] -= 1
        if not self._sessions[prefix]:
            del self._sessions[prefix]

    def tick(self, now_ms: int) -> None:
        """Forget the networks that have opened nothing lately."""
        self._opened = {
            prefix: (level, min(then_ms, now_ms))  # the clock may have been set back
            for prefix, (level, then_ms) in self._opened.items()
            if self._level(prefix, now_ms) > 0
        }

    @property
    def networks_known(self) -> int:
        """How many prefixes are in memory."""
        return len(self._opened.keys() | self._sessions.keys())

    def _book(self, session: str, mbps: float) -> None:
        prefix, before = self._slots[session]
        more = round(mbps * 1000) - round(before * 1000)
        self._slots[session] = (prefix, mbps)
        self._total += more

    def _left_mbps(self, prefix: str) -> float:
        """A network's first session may take whatever is free; the others leave the newcomers' share alone."""
        kept = self._limits.newcomers if self._sessions[prefix] else 0.0
        return self._limits.capacity_mbps * (1 - kept) - self._total / 1000

    def _level(self, prefix: str, now_ms: int) -> float:
        """Sessions begun lately: a bucket that a minute empties."""
        level, then_ms = self._opened.get(prefix, (0.0, now_ms))
        return max(0.0, level - max(0, now_ms - then_ms) * self._limits.openings_per_minute / _MINUTE_MS)

# SPDX-License-Identifier: EUPL-1.2
"""Concurrent pairs in virtual time: two slots of small packets through one queue, while a neutral load fills it.

The small packets, when they are due, what counts as unanswered, and what a slot's delay and loss are, are the
product's own (`probe.protocol.concurrent`, `probe.wire.echo`). spec/protocol.md, "Concurrent pairs".
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from lab.accuracy.home import HELD, INFINITY
from lab.accuracy.lines import Way
from lab.accuracy.segment import Look, Refused, Wire, connect, deliver
from lab.accuracy.tcp import PACKET, Transfer
from lab.classify import UDP, FlowFacts
from lab.subscriber import RuleFlow
from probe.protocol.concurrent import GRACE_S, packet_count
from probe.wire.echo import BASELINE_S, UNANSWERED
from probe.wire.records import Segment

_HEADERS: Final = 28  # IP and UDP
_PORT: Final = 443
_TRIES, _TRY_EVERY_S = 6, 0.5


@dataclass(frozen=True, slots=True)
class Together:
    """What both slots came to."""

    segments: tuple[Segment, Segment]
    octets: int
    ended: float


At = Callable[[float, Callable[[float], None]], None]
"""Has something done at a time."""


class _Slot:
    """One slot: small packets to the probe, their echoes back. No retransmission: this is UDP."""

    def __init__(self, wire: Wire, look: Look, count: int, size: int, at: At) -> None:
        self._home, self._size, self._at = wire.home, size + _HEADERS, at
        self.look = look
        self._flow: RuleFlow = self._home.open(UDP, _PORT)
        self.echo_us = [UNANSWERED] * count
        self.is_open = False

    def open(self, wire: Wire, now: float) -> float:
        """The cookie's exchange; when it is over, or was given up."""
        self._flow.facts = FlowFacts(
            proto=UDP, server_port=_PORT, payload=self.look.payload, established=True, complete=True
        )
        self._home.learn(self._flow)
        for _ in range(_TRIES):
            there = deliver(wire, self._flow, "up", (self._size,), now)
            back = None if there is None else deliver(wire, self._flow, "down", (self._size,), there)
            if back is not None:
                self.is_open = True
                return back
            now += _TRY_EVERY_S
        return now

    def ping(self, place: int, now: float) -> None:
        """The reflector sends a packet."""
        self._move("down", now, partial(self._echo, place, now))

    def _echo(self, place: int, sent: float, arrived: float | None) -> None:
        """The probe has it, and answers at once."""
        if arrived is not None:
            self._at(arrived, lambda now: self._move("up", now, partial(self._heard, place, sent)))

    def _heard(self, place: int, sent: float, arrived: float | None) -> None:
        if arrived is not None:
            self.echo_us[place] = max(0, round((arrived - sent) * 1e6))

    def _move(self, way: Way, now: float, told: Callable[[float | None], None]) -> None:
        arrival = self._home.carry(self._flow, way, self._size, now, told)
        if arrival != HELD:
            told(arrival)

    def segment(self, segment_s: float, clock_end: float, began: float) -> Segment:
        """As the reflector writes it down; echoes later than its grace do not count."""
        if not self.is_open:
            return Segment(arm=self.look.arm, end="absent")
        latest = (clock_end + GRACE_S - began) * 1e6
        count = len(self.echo_us)
        step = segment_s / count * 1e6
        echoes = tuple(us if us + place * step <= latest else UNANSWERED for place, us in enumerate(self.echo_us))
        return Segment(arm=self.look.arm, end="complete", duration_ms=round(segment_s * 1000), echo_us=echoes)


def play_together(
    wire: Wire,
    looks: tuple[Look, Look],
    load: Look,
    way: Way,
    *,
    load_mbps: float,
    packet_bytes: int,
    interval_ms: int,
    segment_s: float,
    now: float,
) -> Together:
    """Slot A and slot B from `now` on, and from half a second later the load, until the pair's clock ends."""
    home = wire.home
    events: list[tuple[float, int, Callable[[float], None]]] = []
    order = itertools.count()

    def at(when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(events, (when, next(order), what))

    count = packet_count(segment_s, interval_ms)
    slots = tuple(_Slot(wire, look, count, packet_bytes, at) for look in looks)
    for slot in slots:
        now = slot.open(wire, now)
    try:
        flow, began, rtt = connect(wire, load, now)
    except Refused as refused:
        failed = tuple(Segment(arm=look.arm, end="absent") for look in looks)
        return Together((failed[0], failed[1]), 2000, wire.guard(refused.at))
    transfer = Transfer(home, flow, way, pace_mbps=load_mbps, rtt_s=max(rtt, wire.rtt_s), aside=wire.rtt_s / 2)
    for index, slot in enumerate(slots):
        for place in range(count if slot.is_open else 0):
            at(began + (place + index / 2) * interval_ms / 1000, partial(slot.ping, place))
    starts, ends = began + BASELINE_S, began + segment_s
    clock = began
    while (upcoming := min(events[0][0] if events else INFINITY, home.due)) <= ends + GRACE_S:
        then = max(clock, upcoming)
        if then > starts and clock < ends:
            transfer.run(max(clock, starts), min(then, ends))
        clock = then
        home.work(clock)
        while events and events[0][0] <= clock:
            heapq.heappop(events)[2](clock)
    first, second = (slot.segment(segment_s, ends, began) for slot in slots)
    octets = transfer.sent * PACKET + 4 * count * (packet_bytes + _HEADERS)
    return Together((first, second), octets, wire.guard(max(clock, ends)))

# SPDX-License-Identifier: EUPL-1.2
"""A TCP sender in virtual time: what a segment of a pair does on a line and past an operator's rules.

Modelled: cubic (RFC 9438) with slow start, HyStart's delay test, SACK loss detection by later deliveries (RFC 8985),
proportional rate reduction (RFC 6937), tail loss probe, retransmission time-out (RFC 6298 with Linux' 200 ms), pacing
at the agreed pace in bursts of two segments as Linux' autosizing has them, one acknowledgement a burst, and the
receiver's window. Not modelled: ECN, F-RTO, reordering, spurious time-outs' undoing. spec/accuracy.md section 3.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from lab.accuracy.home import HELD, INFINITY, Home
from lab.accuracy.lines import Way
from lab.subscriber import RuleFlow

MSS: Final = 1448
"""Payload of a full segment with time stamps, bytes."""
PACKET: Final = 1500
ACK: Final = 52
BURST: Final = 2
INITIAL_WINDOW: Final = 10
LEAST_RTO_S: Final = 0.2
LONGEST_RTO_S: Final = 120.0
_C, _BETA = 0.4, 0.7
_FRIENDLY: Final = 3 * (1 - _BETA) / (1 + _BETA)
_HYSTART_LOW_S, _HYSTART_HIGH_S, _HYSTART_WINDOW, _HYSTART_SAMPLES = 0.004, 0.016, 16, 8
_DUPLICATES: Final = 3
_END, _SEND, _HEAR, _WORK, _SILENCE = range(5)


class Cubic:
    """The congestion window, in segments."""

    __slots__ = (
        "_epoch", "_k", "_least", "_most", "_origin", "_round_ends", "_samples", "_w_est", "ssthresh", "window",
    )  # fmt: skip

    def __init__(self) -> None:
        self.window = float(INITIAL_WINDOW)
        self.ssthresh = INFINITY
        self._most = 0.0
        self._epoch = -1.0
        self._k = self._origin = self._w_est = 0.0
        self._round_ends, self._samples, self._least = 0, 0, INFINITY

    @property
    def is_starting(self) -> bool:
        """Slow start."""
        return self.window < self.ssthresh

    def grow(self, acked: int, now: float, rtt_min: float) -> None:
        """Segments were acknowledged while the window was the limit (RFC 9438, section 4)."""
        if self.window < self.ssthresh:
            self.window = min(self.window + acked, max(self.ssthresh, self.window))
            return
        if self._epoch < 0:
            self._epoch = now
            self._w_est = self.window
            self._origin = max(self._most, self.window)
            self._k = ((self._origin - self.window) / _C) ** (1 / 3)
        target = self._origin + _C * (now - self._epoch + rtt_min - self._k) ** 3
        target = min(target, 1.5 * self.window)
        step = (target - self.window) / self.window if target > self.window else 0.01 / self.window
        self._w_est += _FRIENDLY * acked / self.window
        self.window = max(self.window + acked * step, self._w_est)

    def reduce(self) -> None:
        """Loss: multiplicative decrease with fast convergence (RFC 9438, sections 4.6 and 4.7)."""
        most = self.window
        self._most = most * (1 + _BETA) / 2 if most < self._most else most
        self._epoch = -1.0
        self.ssthresh = max(2.0, self.window * _BETA)

    def watch(self, sample: float, rtt_min: float, number: int, upcoming: int) -> None:
        """HyStart: leave slow start once a round's delays have grown (as Linux' cubic does).

        `number` is the transmission that was acknowledged, `upcoming` the next one: a round is a window's worth.
        """
        if self.window >= self.ssthresh:
            return
        if number >= self._round_ends:
            self._round_ends, self._samples, self._least = upcoming, 0, INFINITY
        self._samples += 1
        if self._samples <= _HYSTART_SAMPLES:
            self._least = min(self._least, sample)
            return
        late = self._least > rtt_min + min(max(rtt_min / 8, _HYSTART_LOW_S), _HYSTART_HIGH_S)
        if late and self.window >= _HYSTART_WINDOW:
            self.ssthresh = self.window


class _Sent:
    """One transmission: its number in the order of sending, its place in the stream, and its fate."""

    __slots__ = ("at", "number", "ok", "place")

    def __init__(self, number: int, place: int, at: float) -> None:
        self.number, self.place, self.at = number, place, at
        self.ok = False


class Transfer:
    """One greedy TCP sender of one flow. `run` plays it; `progress` tells what moved when.

    `way` is where the data goes. `progress` holds (time, place) of segments in the order in which they became
    known to the reflector: acknowledged (down) or received (up). `aside`: acknowledgements take so long (s) and no
    room on the line, for where other packets share it and its queue must be asked in the order of time.
    """

    def __init__(
        self,
        home: Home,
        flow: RuleFlow,
        way: Way,
        *,
        pace_mbps: float,
        rtt_s: float,
        window_segments: float = INFINITY,
        aside: float | None = None,
    ) -> None:
        self._home, self._flow, self._way = home, flow, way
        self._back: Way = "up" if way == "down" else "down"
        self._gap_s = MSS * 8 / (pace_mbps * 1e6) if pace_mbps else 0.0
        self._receiver = window_segments
        self._aside = aside
        self._cubic = Cubic()
        self._srtt, self._rttvar, self._rtt_min = rtt_s, rtt_s / 2, rtt_s
        self._acks: deque[tuple[float, int]] = deque()
        self._flight: deque[_Sent] = deque()
        self._missing: list[_Sent] = []
        self._holes: dict[int, None] = {}
        self._again: deque[int] = deque()
        self._out = 0
        self._number = 0
        self._place = 0
        self._next_send = 0.0
        self._timer = INFINITY
        self._probed = False
        self._backoff = 1
        self._recover = -1
        self._prr = (0, 0, 1)
        self._is_limited = False
        self._most_out = 0
        self._ack_last = 0.0
        self._echo_last = 0.0
        self.progress: list[tuple[float, int]] = []
        self.sent = 0
        self.lost = 0

    # -- the loop -----------------------------------------------------------------------------------------------

    def run(self, now: float, end: float) -> None:
        """Send from `now` until the clock's end."""
        self._next_send = max(self._next_send, now)
        while True:
            at, what = self._upcoming(now, end)
            now = max(now, at)
            if what == _SEND:
                self._send(now, BURST)
            elif what == _HEAR:
                self._acked(now, self._acks.popleft()[1])
            elif what == _WORK:
                self._home.work(now)
            elif what == _SILENCE:
                self._time_out(now)
            else:
                return

    def _upcoming(self, now: float, end: float) -> tuple[float, int]:
        """What happens next, and when."""
        at, what = end, _END
        if self._acks and self._acks[0][0] < at:
            at, what = self._acks[0][0], _HEAR
        if self._home.due < at:
            at, what = self._home.due, _WORK
        if self._timer < at:
            at, what = self._timer, _SILENCE
        if self._out < self._receiver:
            if self._out < self._cubic.window:
                send = self._next_send if self._next_send > now else now
                if send < at:
                    return send, _SEND
            else:
                self._is_limited = True
        return at, what

    # -- sending ------------------------------------------------------------------------------------------------

    def _send(self, now: float, most: int) -> None:
        """Put a burst on its way, retransmissions first."""
        if not self._flight:
            self._timer = now + self._rto()
        room = int(min(self._cubic.window, self._receiver) - self._out)
        count = max(1, min(most, room))
        newest = self._put(now)
        for _ in range(count - 1):
            newest = max(newest, self._put(now))
        if newest > 0:
            self._answer(newest, self._number - 1)
        if self._recover >= 0:
            delivered, out, flight = self._prr
            self._prr = (delivered, out + count, flight)
        self._out += count
        self._most_out = max(self._most_out, self._out)
        self.sent += count
        gain = 2.0 if self._cubic.is_starting else 1.2
        gap = max(self._gap_s, self._srtt / (gain * self._cubic.window))
        self._next_send = now + count * gap

    def _put(self, now: float) -> float:
        """One packet; the time of its arrival where it is known, else 0."""
        if self._again:
            place = self._again.popleft()
        else:
            place = self._place
            self._place += 1
        one = _Sent(self._number, place, now)
        self._number += 1
        self._flight.append(one)
        home = self._home
        line = home.plain(self._flow, self._way)
        if line is not None:
            arrival = line.carry(PACKET, now)
        else:
            arrival = home.carry(self._flow, self._way, PACKET, now, lambda when: self._told(one, when))
        if arrival is None or arrival == HELD:
            return 0.0
        one.ok = True
        if self._way == "up":
            self.progress.append((arrival, place))
        return arrival

    def _told(self, one: _Sent, arrival: float | None) -> None:
        """A packet that the operator held back has gone on."""
        if arrival is None:
            return
        one.ok = True
        if self._way == "up":
            self.progress.append((arrival, one.place))
        self._answer(arrival, one.number)

    def _answer(self, now: float, number: int) -> None:
        """The receiver acknowledges everything up to this transmission that came."""
        now = self._echo_last = max(now, self._echo_last)
        if self._aside is not None:
            self._acks.append((now + self._aside, number))
            return
        line = self._home.plain(self._flow, self._back)
        back = line.carry(ACK, now) if line is not None else self._home.carry(self._flow, self._back, ACK, now)
        if back == HELD:  # an acknowledgement behind a delay: its own wait, without the queue's bookkeeping
            state = self._flow.down if self._back == "down" else self._flow.up
            back = now + (state.rule.delay_ms / 1e3 if state else 0.0)
        if back is not None:
            self._ack_last = max(self._ack_last, back)
            self._acks.append((self._ack_last, number))

    # -- hearing ------------------------------------------------------------------------------------------------

    def _acked(self, now: float, number: int) -> None:
        """An acknowledgement arrived: what was delivered, what must be lost, and how large the window is now."""
        flight, holes, down = self._flight, self._holes, self._way == "down"
        delivered, newest = 0, None
        while flight and flight[0].number <= number:
            one = flight.popleft()
            if not one.ok:
                self._missing.append(one)
                continue
            newest = one
            delivered += 1
            if holes:
                holes.pop(one.place, None)
            if down:
                self.progress.append((now, one.place))
        if newest is None:
            return
        self._out -= delivered
        self._sample(now - newest.at, newest.number)
        if self._missing:
            self._look_for_losses(newest, now)
        if self._recover >= 0:
            self._in_recovery(delivered)
        elif self._is_limited or (self._cubic.is_starting and self._cubic.window < 2 * self._most_out):
            self._cubic.grow(delivered, now, self._rtt_min)
        self._is_limited = False
        self._backoff, self._probed = 1, False
        self._timer = INFINITY if not self._out else now + max(2 * self._srtt, 0.01)

    def _sample(self, rtt: float, number: int) -> None:
        """RFC 6298."""
        self._rttvar += (abs(rtt - self._srtt) - self._rttvar) / 4
        self._srtt += (rtt - self._srtt) / 8
        self._rtt_min = min(self._rtt_min, rtt)
        self._cubic.watch(rtt, self._rtt_min, number, self._number)

    def _look_for_losses(self, newest: _Sent, now: float) -> None:
        """What was sent well before something that arrived is lost (RFC 8985)."""
        patience = 0.0 if self._recover >= 0 else self._srtt + self._rtt_min / 4
        late = newest.number - self._missing[0].number >= _DUPLICATES or now - self._missing[0].at >= patience
        if late:
            self._lose(self._missing, now)
            self._missing = []

    def _lose(self, lost: list[_Sent], now: float) -> None:
        del now
        if self._recover < 0:
            self._prr = (0, 0, max(1, self._out))
            self._recover = self._place
            self._cubic.reduce()
        self._out -= len(lost)
        self.lost += len(lost)
        for one in lost:
            self._holes[one.place] = None
            self._again.append(one.place)

    def _in_recovery(self, delivered: int) -> None:
        """Proportional rate reduction, until everything that was out when the loss was seen has arrived."""
        cubic = self._cubic
        if not self._holes or next(iter(self._holes)) >= self._recover:
            self._recover = -1
            cubic.window = max(2.0, cubic.ssthresh)
            return
        total, out, flight = self._prr
        total += delivered
        if self._out > cubic.ssthresh:
            room = math.ceil(total * cubic.ssthresh / flight) - out
        else:
            room = min(int(cubic.ssthresh) - self._out, max(total - out, delivered) + 1)
        if total == delivered:
            room = max(room, 1)  # the first retransmission is never held back
        cubic.window = self._out + max(0, room)
        self._prr = (total, out, flight)

    # -- silence ------------------------------------------------------------------------------------------------

    def _rto(self) -> float:
        return min(LONGEST_RTO_S, max(LEAST_RTO_S, self._srtt + 4 * self._rttvar) * self._backoff)

    def _time_out(self, now: float) -> None:
        """Nothing was heard: first a probe (RFC 8985, section 7), then everything out is lost (RFC 6298)."""
        if not self._probed and self._recover < 0 and self._backoff == 1:
            self._probed = True
            self._timer = now + self._rto()
            self._send(now, 1)
            return
        lost = [*self._missing, *(one for one in self._flight)]
        self._missing = []
        self._flight.clear()
        if self._backoff == 1:
            self._cubic.reduce()
        self._recover = -1
        self._cubic.window = 1.0
        self._out = 0
        self.lost += len(lost)
        waiting = set(self._again)
        for one in lost:
            self._holes[one.place] = None
            if one.place not in waiting:
                self._again.append(one.place)
        self._backoff = min(64, self._backoff * 2)
        self._next_send = now
        self._timer = now + self._rto()


def received_bins(progress: list[tuple[float, int]], start: float, segment_s: float, bin_s: float = 0.1) -> list[int]:
    """Bytes that became known in order within each bin: as a kernel counts them, a gap holds back what follows it."""
    count = max(1, math.ceil(segment_s / bin_s - 1e-9))
    bins = [0] * count
    expected = 0
    ahead: set[int] = set()
    for at, place in progress:
        if place < expected or place in ahead:
            continue
        if place > expected:
            ahead.add(place)
            continue
        expected += 1
        moved = 1
        while ahead and expected in ahead:
            ahead.discard(expected)
            expected += 1
            moved += 1
        index = int((at - start) / bin_s)
        if 0 <= index < count and at <= start + segment_s:
            bins[index] += moved * MSS
    return bins

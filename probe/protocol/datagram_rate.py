# SPDX-License-Identifier: EUPL-1.2
"""How fast datagrams are sent: up to the pace where the line carries it, near a throttle's rate where it does not.

TCP has its congestion control; over UDP the sender must bring its own (RFC 8085, section 3.1). This one follows what
the receiver says arrived. It is the same for both arms and knows nothing but the feedback. Rates are bytes of UDP
payload a second, times seconds of a monotonic clock. Spec: spec/carriers.md, section "Rate control".
"""

from __future__ import annotations

from collections import deque
from typing import Final

from probe.protocol.datagram import WRAP, Packet, elapsed_s, microseconds

FEEDBACK_S: Final = 0.05
SILENCE_S: Final = 0.5
"""Without feedback for so long nothing more is sent (measurement.md, "Not a weapon, not a nuisance")."""
MOST_MBPS: Final = 100.0
"""Highest pace over UDP, also where it is unlimited."""
START_MBPS: Final = 4.0
"""Highest rate before the first feedback: about twenty datagrams in its 50 ms."""
FLOOR_MBPS: Final = 0.1
"""Lowest rate: about ten datagrams a second, so that a receiver has something to report."""
CLEAN_LOSS: Final = 0.02
HEAVY_LOSS: Final = 0.10
"""Below the first the rate grows, above the second it falls, between them it stays (as in draft-ietf-rmcat-gcc-02,
section 6): the losses of a radio link are not congestion, and a policer's are heavier."""
VERY_HEAVY_LOSS: Final = 0.25
"""In one report alone; the other two are compared with the smoothed loss."""
QUEUE_S: Final = 0.05
"""A queue longer than this is drained: a shaper's buffer is not simply filled."""
EXTREME_LOSS: Final = 0.5
BREAKER_S: Final = 1.0
"""So long at the lowest rate with so much loss ends the segment (circuit breaker: RFC 8084; RFC 8085, 3.1.10)."""

_GROWTH: Final = 1.05
_FAST_GROWTH: Final = 1.15
"""After so many clean reports in a row, so that one bad moment does not cost the rest of the segment."""
_CLEAN_REPORTS: Final = 5
_AFTER_LOSS: Final = 0.95
_AFTER_QUEUE: Final = 0.85
_SPREAD: Final = 1.25
_JITTER_S: Final = 0.015
"""While starting, datagrams that arrive so much farther apart than they were sent are queueing already."""
_LEAST_REPORTED: Final = 10
"""Datagrams in one report: fewer would make one loss look like a tenth."""
_LONGEST_REPORT_S: Final = 0.2
_NO_NEWS_S: Final = 0.1
_LONGEST_RTT_S: Final = 5.0
"""A longer one is nonsense, and would hold the circuit breaker open."""


def datagram_pace_mbps(pace_mbps: float) -> float:
    """The pace that is kept over UDP, where 0 (unlimited) is the highest one."""
    return min(pace_mbps or MOST_MBPS, MOST_MBPS)


def bytes_per_s(mbps: float) -> float:
    """Mbit/s as bytes a second."""
    return mbps * 1e6 / 8


class RateControl:
    """The rate of one sender: `heard` takes feedback, `tick` lets time pass, `rate` is what may be sent now."""

    def __init__(self, pace_mbps: float, now: float) -> None:
        self.pace = bytes_per_s(datagram_pace_mbps(pace_mbps))
        self.floor = min(self.pace, bytes_per_s(FLOOR_MBPS))
        self.rate = max(self.floor, min(self.pace / 3, bytes_per_s(START_MBPS)))
        self.rtt_min_s: float | None = None
        self.rtt_s: float | None = None
        self.is_broken = False
        """The circuit breaker has opened: send nothing more."""
        self.heard_at = now
        """When the last feedback came."""
        self._is_starting = True
        self._clean = 0
        self._rtts: deque[float] = deque(maxlen=3)
        self._newest = Packet(0)
        self._reported: Packet | None = None
        self._progress_at = now
        self._lowered_at = now
        self._loss = 0.0
        """Share of the datagrams lost, smoothed over about two reports."""
        self._halved_at = now
        self._at_floor: tuple[float, int, int] | None = None
        """Since when the rate is the lowest, and what had been sent and received then."""

    @property
    def received(self) -> int:
        """Datagrams that arrived, as the last feedback said."""
        return self._newest.arrived

    def heard(self, feedback: Packet, now: float, sent: int) -> bool:
        """The receiver said what arrived; False where that was overtaken or cannot be.

        `sent` is how many data datagrams have been sent so far.
        """
        if feedback.sequence <= self._newest.sequence or max(feedback.highest, feedback.arrived) > sent:
            return False
        self.heard_at = now
        if feedback.highest > self._newest.highest:
            self._progress_at = now
            self._take_rtt(elapsed_s(microseconds(now), feedback.echo_us) - feedback.held_us / 1e6)
        self._newest = feedback
        if feedback.highest:
            self._report(feedback, now)
        self._look_for_progress(now, sent)
        self._watch_floor(now, sent)
        return True

    def tick(self, now: float, sent: int) -> None:
        """After two missing feedbacks the rate is halved, again and again (as RFC 5348, section 4.4)."""
        if now - self.heard_at > _NO_NEWS_S + FEEDBACK_S:
            self._halve(now)
        self._watch_floor(now, sent)

    # -- what a report says -------------------------------------------------------------------------------------

    def _take_rtt(self, sample: float) -> None:
        if not 0 <= sample <= _LONGEST_RTT_S:
            return
        self._rtts.append(sample)
        self.rtt_min_s = sample if self.rtt_min_s is None else min(sample, self.rtt_min_s)
        self.rtt_s = sample if self.rtt_s is None else 0.875 * self.rtt_s + 0.125 * sample

    @property
    def _queue_s(self) -> float:
        """The queue that the last datagrams met; the least of three samples, because one may be jitter."""
        return min(self._rtts) - self.rtt_min_s if self._rtts and self.rtt_min_s is not None else 0.0

    def _report(self, last: Packet, now: float) -> None:
        """Compare two feedbacks far enough apart: what of the datagrams sent between them arrived, and how fast."""
        first = self._reported
        if first is None:
            self._reported = last
            return
        sent = last.highest - first.highest
        sending = elapsed_s(last.echo_us, first.echo_us)
        if sent <= 0 or sending <= 0 or (sent < _LEAST_REPORTED and sending < _LONGEST_REPORT_S):
            return
        self._reported = last
        loss = max(0.0, 1 - (last.arrived - first.arrived) / sent)
        self._loss += (loss - self._loss) / 2
        arriving = elapsed_s(last.time_us, first.time_us) - (last.held_us - first.held_us) / 1e6
        delivered = (last.octets - first.octets) % WRAP / max(arriving, sending / 2)
        is_spread = self._is_starting and arriving > max(_SPREAD * sending, sending + _JITTER_S)
        # Only what was sent wholly after the rate was lowered says whether that was enough.
        is_new = elapsed_s(first.echo_us, microseconds(self._lowered_at)) >= 0
        if loss > VERY_HEAVY_LOSS or self._loss > HEAVY_LOSS:
            self._lower(delivered * _AFTER_LOSS, now)
        elif is_spread or self._queue_s > QUEUE_S:
            self._lower(delivered * _AFTER_QUEUE, now)
        elif self._is_starting:
            # At most twice of what the line has carried, as BBR starts: a throttle is overshot by no more.
            self._set(max(self.rate, 2 * delivered))
            self._is_starting = self.rate < self.pace
        elif self._loss > CLEAN_LOSS:
            self._clean = 0
        elif is_new:
            self._clean += 1
            self._set(self.rate * (_FAST_GROWTH if self._clean > _CLEAN_REPORTS else _GROWTH))

    def _lower(self, rate: float, now: float) -> None:
        """To a share of what was delivered: doing it twice for the same loss lowers no further."""
        self._is_starting, self._clean = False, 0
        self._loss = min(self._loss, HEAVY_LOSS)
        if rate < self.rate:
            self._lowered_at = now
            self._set(rate)

    # -- no news, bad news --------------------------------------------------------------------------------------

    def _look_for_progress(self, now: float, sent: int) -> None:
        """Feedback comes but nothing of what was sent arrives."""
        patience = _NO_NEWS_S + 1.5 * (self.rtt_s if self.rtt_s is not None else 2 * _NO_NEWS_S)
        patience += 2 * self._gap_s
        if sent > self._newest.highest and now - self._progress_at > patience:
            self._halve(now)

    @property
    def _gap_s(self) -> float:
        """Time between two datagrams of the usual size."""
        return 1200 / self.rate

    def _halve(self, now: float) -> None:
        if now - self._halved_at >= _NO_NEWS_S:
            self._halved_at = now
            self._lower(self.rate / 2, now)

    def _watch_floor(self, now: float, sent: int) -> None:
        if self.rate > self.floor * 1.01:
            self._at_floor = None
            return
        if self._at_floor is None:
            self._at_floor = (now, sent, self.received)
            return
        since, sent_then, received_then = self._at_floor
        tried = sent - sent_then
        if now - since >= BREAKER_S + (self.rtt_s or 0.0) and tried:
            arrived = self.received - received_then
            self.is_broken = self.is_broken or arrived <= (1 - EXTREME_LOSS) * tried
            self._at_floor = (now, sent, self.received)

    def _set(self, rate: float) -> None:
        self.rate = max(self.floor, min(self.pace, rate))

# SPDX-License-Identifier: EUPL-1.2
"""How fast a segment is sent, what that costs, and which throttles it can show at all.

Units: Mbit/s are 10^6 bit/s, kb and MB are decimal bytes. A pace of 0 means unlimited and is for benchmarks.
Spec: spec/protocol.md, sections "Data connection" and "Rate".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MOST_PACE_MBPS: Final = 12.0
"""Enough for high-definition video, and about 6 MB for a segment of 4 s."""
SHARE_OF_LINE: Final = 0.6
"""Of what a calibration reached: below the line's own rate, so that the line itself is not what is measured."""
LOAD_FACTOR: Final = 1.5
"""Of what a calibration reached: above the line's own rate, because a queue is what is wanted."""
FRAMING: Final = 1.06
"""IP, TCP and TLS headers beside 1400-byte segments, rounded up; used for budgets only."""


def pace_mbps(calibration_mbps: float | None, most_mbps: float = MOST_PACE_MBPS) -> float:
    """The pace of both arms: min(most, 0.6 × calibration); `most` where nothing was calibrated."""
    if calibration_mbps is None:
        return most_mbps
    return round(max(0.1, min(most_mbps, SHARE_OF_LINE * calibration_mbps)), 3)


def load_pace_mbps(calibration_mbps: float | None, most_mbps: float) -> float:
    """The pace of what fills a queue: 1.5 × calibration, so that it is full within a second, but never above `most`.

    A pace far above the line's would only cost bytes that its buffer drops; a line faster than `most` stays empty, and
    such a pair bets nothing.
    """
    if calibration_mbps is None:
        return most_mbps
    return round(max(0.1, min(most_mbps, LOAD_FACTOR * calibration_mbps)), 3)


def allowed_pace_mbps(wanted_mbps: float, most_mbps: float) -> float:
    """`wanted` within what the reflector grants; on both sides 0 means unlimited."""
    if most_mbps == 0:
        return wanted_mbps
    return most_mbps if wanted_mbps == 0 else min(wanted_mbps, most_mbps)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectableRegion:
    """Throttles that a segment can show: to `rate_mbps` or less, with a bucket of at most `burst_kb`.

    `after_kb`: a throttle without a bucket that acts only after a flow has moved this much is still seen.
    """

    rate_mbps: float
    burst_kb: float
    after_kb: float


def largest_burst_kb(pace: float, rate: float, segment_s: float) -> float:
    """Largest token bucket (kb) that is empty before the half of the segment that counts begins.

    In that time the pace drains the bucket by pace − rate: (pace − rate) Mbit/s · segment_s/2 = so many MB/16.
    """
    return max(0.0, (pace - rate) * segment_s / 16 * 1000)


def detectable_region(pace: float, segment_s: float, rate: float | None = None) -> DetectableRegion:
    """What a pair at this pace (Mbit/s, > 0) and segment length (s) can see, for throttles to at most `rate`.

    `rate` is half the pace unless given: a slowdown of 50 % shows within about ten pairs on any usual line.
    """
    if pace <= 0:
        raise ValueError("an unlimited pace has no detectable region: give the rate that was reached")
    rate = pace / 2 if rate is None else rate
    return DetectableRegion(
        rate_mbps=rate,
        burst_kb=largest_burst_kb(pace, rate, segment_s),
        after_kb=largest_burst_kb(pace, 0.0, segment_s),
    )


def segment_bytes(pace: float, segment_s: float) -> int:
    """Most bytes that one segment puts on the line, headers included; 0 where the pace is unlimited."""
    return round(pace * 1e6 / 8 * segment_s * FRAMING)


def pair_bytes(pace: float, segment_s: float) -> int:
    """Most bytes of a pair: both arms are sent the same way."""
    return 2 * segment_bytes(pace, segment_s)

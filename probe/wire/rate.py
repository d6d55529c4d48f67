# SPDX-License-Identifier: EUPL-1.2
"""The one definition of a segment's rate, shared by whoever shows it and whoever judges it.

Spec: spec/protocol.md, section "Rate".
"""

from __future__ import annotations

from probe.wire.records import Segment


def rate_mbps(segment: Segment, segment_s: float) -> float | None:
    """Mbit/s over the last half of the segment's nominal time; None where it did not complete.

    Bytes between two readings are spread evenly over the time between them, so that a late reading
    moves bytes by a fraction of a bin and never adds any.
    """
    if segment.end != "complete" or segment_s <= 0:
        return None
    end_ms = segment_s * 1000
    half_ms = end_ms / 2
    moved, before_ms = 0.0, 0.0
    for at_ms, count in zip(segment.bins_ms, segment.bins_bytes, strict=False):
        width = at_ms - before_ms
        overlap = min(at_ms, end_ms) - max(before_ms, half_ms)
        if width > 0 and overlap > 0:
            moved += count * overlap / width
        elif width <= 0 and half_ms < at_ms <= end_ms:
            moved += count
        before_ms = max(before_ms, at_ms)
    return moved * 8 / (half_ms * 1000)

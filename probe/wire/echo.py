# SPDX-License-Identifier: EUPL-1.2
"""The one definition of a slot's delay and loss in a concurrent pair, shared by whoever shows it and whoever judges it.

The first half second of a pair has no load: what its packets waited tells the line from its queue. A packet's place in
`Segment.echo_us` tells when it was sent, because packets leave at a fixed interval and none is left out.
Spec: spec/protocol.md, section "Concurrent pairs".
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Final

from probe.wire.records import Segment

BASELINE_S: Final = 0.5
"""So long a concurrent pair runs without load."""
UNANSWERED: Final = -1
"""In `Segment.echo_us`: a packet whose echo never came."""


def echoes_under_load(segment: Segment, segment_s: float) -> tuple[int, ...]:
    """The round-trip times (µs, −1 unanswered) of the packets that were sent while the load ran."""
    count = len(segment.echo_us)
    if not count or segment_s <= BASELINE_S:
        return ()
    first = sum(1 for place in range(count) if place * segment_s < BASELINE_S * count)
    return segment.echo_us[first:]


def delay_ms(segment: Segment, segment_s: float) -> float | None:
    """Median round-trip time of the echoes while the load ran; None where none came or the slot did not complete."""
    answered = [us for us in echoes_under_load(segment, segment_s) if us >= 0]
    return statistics.median(answered) / 1000 if answered and segment.end == "complete" else None


def loss(segment: Segment) -> float | None:
    """Share of the slot's packets that were never answered; None where there are none or it did not complete."""
    if not segment.echo_us or segment.end != "complete":
        return None
    return segment.echo_us.count(UNANSWERED) / len(segment.echo_us)


def baseline_ms(segments: Iterable[Segment]) -> float | None:
    """The smallest echo of either slot: what the line takes without a queue."""
    answered = [us for segment in segments for us in segment.echo_us if us >= 0]
    return min(answered) / 1000 if answered else None

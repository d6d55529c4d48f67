# SPDX-License-Identifier: EUPL-1.2
"""How a calibration grows: slowly enough that it can be stopped before the house's other traffic suffers.

It doubles about every sixth of a second, so that at the moment at which the line's queue begins to grow the excess is
small, and whoever watches the round-trip time can end it in time. Spec: spec/protocol.md, "Data connection".
"""

from __future__ import annotations

import math
from typing import Final

START_MBPS: Final = 1.0
RAMP: Final = 0.7
"""Share of its time in which a calibration grows from the start to the full pace."""
STEP_S: Final = 0.025
"""How often a sender sets its pace anew."""
UNLIMITED_MBPS: Final = 1000.0
"""Where a calibration without a limit ends."""
QUEUE_MS: Final = 10.0
"""So much above what the idle line shows, twice in a row, is a queue that we may be the cause of."""
LONG_QUEUE_MS: Final = 30.0
"""So much once is enough."""


def ramp_mbps(at_s: float, most_mbps: float, duration_s: float = 1.0) -> float:
    """The pace `at_s` after the start of a calibration that ends at `most_mbps` (0: unlimited)."""
    grows_s = RAMP * duration_s
    most = most_mbps or UNLIMITED_MBPS
    start = min(START_MBPS, most)
    return most if at_s >= grows_s else start * (most / start) ** (max(0.0, at_s) / grows_s)


def ramp_bytes(at_s: float, most_mbps: float, duration_s: float = 1.0) -> float:
    """What may have been sent by then: the area under `ramp_mbps`."""
    grows_s = RAMP * duration_s
    most = most_mbps or UNLIMITED_MBPS
    start = min(START_MBPS, most)
    growing_s = min(max(0.0, at_s), grows_s)
    growth = math.log(most / start) / grows_s
    area = start * growing_s if growth == 0 else start * math.expm1(growth * growing_s) / growth
    return (area + most * max(0.0, at_s - grows_s)) * 1e6 / 8


class QueueSigns:
    """Round-trip times beside a calibration, in ms, against those of the idle line."""

    def __init__(self, idle_ms: float) -> None:
        self._idle = idle_ms
        self._in_a_row = 0
        self.is_queueing = False

    def took(self, ms: float | None) -> None:
        """One more round trip; None where it took longer than anybody waited."""
        excess = math.inf if ms is None else ms - self._idle
        self._in_a_row = self._in_a_row + 1 if excess > max(QUEUE_MS, self._idle / 4) else 0
        if self._in_a_row >= 2 or excess > max(LONG_QUEUE_MS, self._idle / 2):
            self.is_queueing = True

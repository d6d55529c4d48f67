# SPDX-License-Identifier: EUPL-1.2
"""The reflector's time of day, which never steps while a session runs.

A clock that is set forward an hour would time every open session out, one that is set back would date pairs before
their session. Rates and durations use the monotonic clock anyway; this is for the times in records and for time-outs.
Spec: spec/protocol.md, section "Data connection".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_MOST_SLEW_NS: Final = 50_000_000
"""How far one settling follows a clock that was set, while sessions are open: called once a second, 5 %."""


class SteadyClock:
    """Unix milliseconds: the time of day at the last settling, carried on by the monotonic clock."""

    def __init__(
        self, wall_ns: Callable[[], int] = time.time_ns, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._offset_ns = wall_ns() - monotonic_ns()

    def ms(self) -> int:
        """Now."""
        return (self._offset_ns + self._monotonic_ns()) // 1_000_000

    def settle(self, *, is_idle: bool) -> None:
        """Follow the system's clock; call about once a second. At once where no session is open, else gently."""
        behind_ns = self._wall_ns() - self._monotonic_ns() - self._offset_ns
        if not is_idle:
            behind_ns = max(-_MOST_SLEW_NS, min(_MOST_SLEW_NS, behind_ns))
        self._offset_ns += behind_ns

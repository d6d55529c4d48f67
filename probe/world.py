# SPDX-License-Identifier: EUPL-1.2
"""What a turn touches outside its own files: clocks, chance, the collector, the door, the household, a session.

A turn is given one of these, so that thirty days can be lived through in seconds (tests/bench/test_agent_month.py).
`Here` is the real one: this machine and its line. Spec: spec/probe.md, section "The turn".
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from probe.budget import clock_now
from probe.enrol import Enrolled, Left, leave, renew_plan
from probe.environment import is_metered, observe
from probe.handover import SpoolSent, sync_spool
from probe.household import Household, find
from probe.ledger import Clock
from probe.line import Line, line_of, source_towards
from probe.netio.control import ControlChannel, ControlFailed, parse_url
from probe.netio.dial import Dialer
from probe.nettests.base import Progress
from probe.plan import Fetched
from probe.portal import Door, Look, look, run_login_hook
from probe.runner import Ran, Request, run
from probe.settings import Settings
from probe.state import State
from probe.wire.records import PlannedReflector

OnProgress = Callable[[Progress], None]
ShouldStop = Callable[[], bool]
_FIRST_PINGS: Final = 3


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The rest of the household before a session."""

    is_busy: bool | None
    """Whether somebody uses the line; None where that cannot be told."""
    smallest_ms: float | None
    """Smallest round-trip time to this reflector ever seen."""
    household: Household | None = None
    """What counts its bytes, lent to the session so that it is counted within pairs too."""


class World(Protocol):
    """Everything that is not a file of the probe's."""

    rng: random.Random

    def clock(self) -> Clock:
        """This moment."""
        ...

    def minute_of(self, wall_ms: int) -> float:
        """Minutes since local midnight."""
        ...

    def free_bytes(self, directory: Path) -> int:
        """Room in a directory."""
        ...

    def leave(self, state: State, now_ms: int) -> Left:
        """Tell the collector that the volunteer left. Raises StateError, EnrolError."""
        ...

    def renew_plan(self, state: State, kept: Enrolled, probe: str, now_ms: int) -> Fetched:
        """Ask for the plan and keep it. Raises StateError."""
        ...

    def sync_spool(self, state: State, kept: Enrolled, now_ms: int) -> SpoolSent:
        """Upload what waits. Raises StateError."""
        ...

    def is_metered(self, settings: Settings, reflector: PlannedReflector) -> bool | None:
        """Whether the line is paid by volume."""
        ...

    def look(self, door: Door, settings: Settings) -> Look:
        """What is between us and the reflector."""
        ...

    def log_in(self, program: str) -> bool:
        """Run the owner's own program for a portal."""
        ...

    def neighbours(self, reflector: PlannedReflector, settings: Settings, smallest_ms: float | None) -> Neighbours:
        """Whether somebody in the household uses the line."""
        ...

    def measure(
        self, request: Request, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]
    ) -> Ran:
        """One session, signed and kept. Raises RunError, StateError."""
        ...


class Here:
    """This machine."""

    def __init__(self) -> None:
        self.rng: random.Random = random.SystemRandom()
        self._lines: dict[str, tuple[str, str, Line | None]] = {}

    def clock(self) -> Clock:
        """This moment by the device's calendar."""
        return clock_now()

    def minute_of(self, wall_ms: int) -> float:
        """By the device's time zone."""
        at = time.localtime(wall_ms / 1000)
        return at.tm_hour * 60 + at.tm_min + at.tm_sec / 60

    def free_bytes(self, directory: Path) -> int:
        """What an ordinary user may still write there."""
        disk = os.statvfs(directory)
        return disk.f_bavail * (disk.f_frsize or 4096)

    def leave(self, state: State, now_ms: int) -> Left:
        """Over the network."""
        return leave(state, now_ms, has_lock=True)

    def renew_plan(self, state: State, kept: Enrolled, probe: str, now_ms: int) -> Fetched:
        """Over the network."""
        return renew_plan(state, kept, probe=probe, now_ms=now_ms)

    def sync_spool(self, state: State, kept: Enrolled, now_ms: int) -> SpoolSent:
        """Over the network."""
        return sync_spool(state, kept.url, now_ms, self.rng)

    def is_metered(self, settings: Settings, reflector: PlannedReflector) -> bool | None:
        """As the owner or the system says of the line that leads there."""
        if settings.metered != "auto":
            return settings.metered == "yes"
        return is_metered(self._line(reflector, settings)[2], settings)

    def look(self, door: Door, settings: Settings) -> Look:
        """About three seconds and a few kB."""
        local = source_towards(door.control.host, settings.bind) if _is_address(door.control.host) else ""
        return look(door, bind=settings.bind, line=line_of(local) if local else None)

    def log_in(self, program: str) -> bool:
        """A minute at most."""
        return run_login_hook(program)

    def neighbours(self, reflector: PlannedReflector, settings: Settings, smallest_ms: float | None) -> Neighbours:
        """Five seconds of looking at counters, or of round trips to the reflector."""
        channel = ControlChannel(Dialer(settings.bind), parse_url(reflector.url))
        try:
            took = [channel.ping() for _ in range(_FIRST_PINGS)]
            local, peer = channel.addresses()
            line = line_of(local) if local else None
            seen = find(observe(local, peer, line, declared=settings), local, line)

            def ping() -> float | None:
                found = channel.ping()
                took.append(found)
                return found

            busy = seen.is_busy(ping=ping, smallest_ms=smallest_ms)
        except ControlFailed:
            return Neighbours(None, smallest_ms)
        finally:
            channel.close()
        smallest = min((ms for ms in (*took, smallest_ms) if ms is not None), default=None)
        return Neighbours(busy, smallest, seen)

    def measure(
        self, request: Request, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]
    ) -> Ran:
        """Over the network."""
        return run(request, on_progress=on_progress, should_stop=should_stop)

    def _line(self, reflector: PlannedReflector, settings: Settings) -> tuple[str, str, Line | None]:
        if reflector.key not in self._lines:
            channel = ControlChannel(Dialer(settings.bind), parse_url(reflector.url))
            try:
                channel.ping()
            except ControlFailed:
                return "", "", None
            finally:
                local, peer = channel.addresses()
                channel.close()
            self._lines[reflector.key] = (local, peer, line_of(local) if local else None)
        return self._lines[reflector.key]


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()

# SPDX-License-Identifier: EUPL-1.2
"""Is somebody else in the house using the line? Then we wait, and what passed beside a pair is told with it.

On a router the interface counts the whole household. Elsewhere the home router is asked (UPnP), where it answers and
its counters are prompt; else the idle round-trip time tells a busy line, if less surely.
Spec: spec/probe.md, section "Household".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from probe import igd
from probe.line import ROOT, Line, gateway_of, ipv4_of
from probe.wire.records import Environment

BUSY_MBPS: Final = 1.0
"""Of others' traffic, both ways together: a call or a film, not a mail programme asking for news."""
BUSY_MS: Final = 15.0
"""So much above the smallest round-trip time ever seen: somebody's queue."""
WINDOW_S: Final = 5.0
_PING_EVERY_S: Final = 0.25
_LEAST_PINGS: Final = 3
_SIOCGIFNETMASK: Final = 0x891B
_SEES_US: Final = 0.5
"""A counter that shows less than this share of our own bytes at once lags behind and says nothing of a pair."""
Source = Literal["router", "igd"]
Counter = Callable[[], int | None]
Ping = Callable[[], float | None]


class Household:
    """The rest of the household, as far as this device can see it."""

    def __init__(self, source: Source | None, counter: Counter | None) -> None:
        self._source: Source | None = source
        self._counter = counter

    @property
    def source(self) -> Source | None:
        """Where bytes are counted, for the record; None where they are not."""
        return self._source

    def count(self) -> int | None:
        """Bytes that passed the household's line so far, both ways; None where they cannot be seen (now)."""
        return self._counter() if self._counter is not None else None

    def check(self, before: int | None, after: int | None, own_bytes: int) -> None:
        """After a transfer of ours, `own_bytes` of which must show: a counter that lags is not used within pairs."""
        if before is None or after is None or own_bytes <= 0:
            return
        if after - before < _SEES_US * own_bytes:
            self._source, self._counter = None, None

    def is_busy(
        self, window_s: float = WINDOW_S, *, ping: Ping | None = None, smallest_ms: float | None = None
    ) -> bool | None:
        """Look for `window_s` while this probe sends nothing of its own; None where nothing can be said.

        Counted: more than 1 Mbit/s. Else by `ping` (one round trip in ms, None: lost): the median is more than 15 ms
        above `smallest_ms`, the smallest that this probe has ever seen to the same reflector.
        """
        before, begun = self.count(), time.monotonic()
        took = _pings(window_s, ping) if before is None and ping is not None else []
        left = window_s - (time.monotonic() - begun)
        if before is not None and left > 0:
            time.sleep(left)
        after = self.count() if before is not None else None
        if before is not None and after is not None:
            return is_much(after - before, time.monotonic() - begun)
        return is_inflated(took, smallest_ms)


def is_much(moved_bytes: int, seconds: float) -> bool:
    """Whether others move more than a household at rest does."""
    return moved_bytes * 8 / 1e6 / seconds > BUSY_MBPS


def is_inflated(took_ms: list[float | None], smallest_ms: float | None) -> bool | None:
    """Whether round-trip times show a queue. A lost one counts as a long one. None: too few, or nothing to compare."""
    if len(took_ms) < _LEAST_PINGS:
        return None
    known = [ms for ms in took_ms if ms is not None]
    if not known:
        return None
    least = min(known) if smallest_ms is None else min(smallest_ms, *known)
    middle = sorted(float("inf") if ms is None else ms for ms in took_ms)[len(took_ms) // 2]
    if middle > least + BUSY_MS:
        return True
    # A queue that never empties within the window looks like a long line, unless one has seen this line idle.
    return None if smallest_ms is None else False


def on_this_device(environment: Environment, line: Line | None, root: Path = ROOT) -> Household:
    """What this device can count by itself, asking nobody: the whole household where it is the house's router."""
    if line is None or line.is_vpn or environment.position != "edge" or environment.upstream_router is not False:
        return Household(None, None)
    return Household("router", interface_counter(line, root))


def find(environment: Environment, local: str, line: Line | None, root: Path = ROOT) -> Household:
    """What this device can see. On the network: at most an SSDP search of 2 s and the router's description."""
    here = on_this_device(environment, line, root)
    if line is None or line.is_vpn or here.source is not None:
        return here
    if ":" in local:
        local = ipv4_of(line.name) or ""
    if not local:
        return Household(None, None)
    router = igd.find(local, gateway_of(line, root), ipv4_of(line.name, request=_SIOCGIFNETMASK))
    if router is None or router.total() is None:
        return Household(None, None)
    return Household("igd", router.total)


def interface_counter(line: Line, root: Path = ROOT) -> Counter:
    """Bytes through an interface of this device, both ways."""
    directory = root / "sys/class/net" / line.name / "statistics"

    def count() -> int | None:
        try:
            return sum(int((directory / name).read_text(encoding="ascii")) for name in ("rx_bytes", "tx_bytes"))
        except (OSError, ValueError):
            return None

    return count


def _pings(window_s: float, ping: Ping) -> list[float | None]:
    took: list[float | None] = []
    end = time.monotonic() + window_s
    while (left := end - time.monotonic()) > 0:
        took.append(ping())
        time.sleep(min(left, _PING_EVERY_S))
    return took

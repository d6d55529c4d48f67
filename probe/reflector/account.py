# SPDX-License-Identifier: EUPL-1.2
"""The account of one segment: bins from the kernel's counters, the sender's signs, how it ended.

Where the kernel has no counters the application's bytes are counted: up, the same but for TLS; down, too much by
what waits in the socket's buffer. Spec: spec/protocol.md, section "Data connection", "Bins".
"""

from __future__ import annotations

import socket
import statistics

from probe.protocol.accounts import Counted
from probe.reflector import tcpinfo
from probe.wire.limits import MAX_BINS
from probe.wire.records import Direction, SegmentEnd


class Account:
    """Counts from its making on. Times are seconds of a monotonic clock."""

    def __init__(
        self,
        sock: socket.socket,
        direction: Direction,
        *,
        now: float,
        started_ms: int,
        baseline: int | None = None,
        congestion: str | None = None,
        paced: bool | None = None,
    ) -> None:
        self.started = now
        self.app_bytes = 0
        """Application bytes sent or received, kept by the connection."""
        self._sock = sock
        self._direction = direction
        self._started_ms = started_ms
        self._congestion = congestion
        self._paced = paced
        first = tcpinfo.read(sock)
        self._has_info = first is not None
        self._first = first
        self._last = first
        self._baseline = self._counter(first) if baseline is None else baseline
        self._total = 0
        self._bins_ms: list[int] = []
        self._bins_bytes: list[int] = []
        self._rtts: list[float] = []

    def restart(self, now: float, started_ms: int) -> None:
        """Begin the clock anew, with the counter where it was: up, when the first payload byte came."""
        self.started, self._started_ms = now, started_ms
        self._total, self._bins_ms, self._bins_bytes = 0, [], []

    def read(self, now: float) -> None:
        """One reading: closes a bin. Two readings within the same millisecond are one."""
        info = tcpinfo.read(self._sock)
        if info is not None:
            self._last = info
            if info.rtt_ms is not None and self._direction == "down":
                self._rtts.append(info.rtt_ms)
        elif self._has_info:
            return  # the socket is gone: what was read last stands
        total = max(self._total, self._counter(info) - self._baseline)
        offset_ms = round((now - self.started) * 1000)
        if self._bins_ms and (offset_ms <= self._bins_ms[-1] or len(self._bins_ms) >= MAX_BINS):
            self._bins_bytes[-1] += total - self._total
        else:
            self._bins_ms.append(offset_ms)
            self._bins_bytes.append(total - self._total)
        self._total = total

    def close(self, end: SegmentEnd, now: float, *, saturated: bool) -> Counted:
        """Read a last time and say what was counted."""
        self.read(now)
        first, last = self._first, self._last
        return Counted(
            end=end,
            started_ms=self._started_ms,
            duration_ms=round((now - self.started) * 1000),
            bytes=self._total,
            bins_ms=tuple(self._bins_ms),
            bins_bytes=tuple(self._bins_bytes),
            rtt_min_ms=last.rtt_min_ms if last else None,
            rtt_ms=round(statistics.median(self._rtts), 3) if self._rtts else None,
            retransmits=last.retransmits - first.retransmits if last and first and self._direction == "down" else None,
            rwnd_limited_ms=self._rwnd_limited_ms(),
            congestion=self._congestion,
            paced=self._paced,
            saturated=saturated,
        )

    def _counter(self, info: tcpinfo.TcpInfo | None) -> int:
        if info is None:
            return self.app_bytes
        return info.bytes_acked if self._direction == "down" else info.bytes_received

    def _rwnd_limited_ms(self) -> int | None:
        first, last = self._first, self._last
        if self._direction == "up" or not first or not last:
            return None
        if first.rwnd_limited_ms is None or last.rwnd_limited_ms is None:
            return None
        return last.rwnd_limited_ms - first.rwnd_limited_ms

# SPDX-License-Identifier: EUPL-1.2
"""A slot of a concurrent pair over TCP: frames of one length, sent at their times, timed when their echoes come.

What an application produces while the connection waits for a lost packet is sent late, and its echo counts from when
it was due: over TCP a loss shows as delay (head-of-line blocking), as an app would meet it.
Spec: spec/protocol.md, section "Concurrent pairs"; spec/carriers.md, section "Small packets".
"""

from __future__ import annotations

import socket
import ssl
import time
from collections import deque
from dataclasses import replace
from typing import Final

from probe.protocol.accounts import Counted, EchoPlan, Job
from probe.protocol.concurrent import START_WAIT_S, Echoes
from probe.protocol.concurrent_probe import Frames
from probe.protocol.concurrent_reflector import counted
from probe.protocol.datagram import Codec
from probe.protocol.datagram_flow import Filler
from probe.reflector import tcpinfo
from probe.wire.records import SegmentEnd

_READ_BYTES: Final = 16 * 1024
_READS_A_TURN: Final = 16
"""A peer that sends more than its echoes is served in its turn."""


class PeerEnded(Exception):
    """The peer closed its end in order."""


class EchoConnection:
    """The slot on its socket, which never blocks. Times are seconds of the loop's monotonic clock."""

    def __init__(self, sock: socket.socket, job: Job, plan: EchoPlan, filler: Filler, unix_ms: int) -> None:
        now = time.monotonic()
        self._sock = sock
        self._echoes = Echoes(plan)
        self._filler = filler
        self._frames = Frames(job.carrier, Codec(job.ticket, "reflector", b""), plan.size)
        self._out: deque[bytes] = deque()
        self._deadline = now + START_WAIT_S
        self._opened_at = now
        self._unix_ms = unix_ms
        self._retransmits = _retransmits(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if job.answer:
            self._out.append(job.answer)
        self._out.append(self._frames.make(self._echoes.ping(0, now), filler))

    @property
    def started(self) -> float:
        """When the pair began; before that, when the slot was opened."""
        return self._opened_at if self._echoes.begun_at is None else self._echoes.begun_at

    @property
    def wants_write(self) -> bool:
        """Whether something waits for room in the socket."""
        return bool(self._out) and not self._echoes.is_stale(time.monotonic())

    @property
    def wake_at(self) -> float:
        """When `advance` is to be called at the latest."""
        return self._deadline if self._echoes.begun_at is None else self._echoes.wake_at

    def begin(self, at: float) -> None:
        """The pair's clock starts."""
        self._echoes.begin(at)

    def advance(self) -> SegmentEnd | None:
        """Read what is there, send what is due; how it ended, once it has. Raises OSError, PeerEnded."""
        self._read()
        now = time.monotonic()
        for packet in self._echoes.due(now):
            self._out.append(self._frames.make(packet, self._filler))
        if self._echoes.is_over(now):
            return "complete"
        if self._echoes.begun_at is None and now >= self._deadline:
            return "aborted"
        if not self._echoes.is_stale(now):
            self._write()
        return None

    def close(self, end: SegmentEnd, now: float, *, saturated: bool) -> Counted:
        """The account."""
        started_ms = self._unix_ms + round((self.started - self._opened_at) * 1000)
        after = _retransmits(self._sock)
        found = counted(self._echoes, end, now, started_ms, is_datagrams=False)
        lost = None if after is None or self._retransmits is None else after - self._retransmits
        return replace(found, saturated=saturated, retransmits=lost, altered=self._frames.is_altered)

    def _read(self) -> None:
        for _ in range(_READS_A_TURN):
            try:
                raw = self._sock.recv(_READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            if not raw:
                raise PeerEnded
            now = time.monotonic()
            for packet in self._frames.take(raw):
                self._echoes.take(packet, now)

    def _write(self) -> None:
        while self._out:
            try:
                sent = self._sock.send(self._out[0])
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            frame = self._out.popleft()
            if sent < len(frame):
                self._out.appendleft(frame[sent:])


def _retransmits(sock: socket.socket) -> int | None:
    info = tcpinfo.read(sock)
    return info.retransmits if info is not None else None

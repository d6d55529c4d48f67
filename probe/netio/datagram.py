# SPDX-License-Identifier: EUPL-1.2
"""One timed transfer over UDP: a fresh connected socket, and the loop that lets the sans-IO flow see it.

Everything that goes wrong becomes a fact of the segment. Nothing here knows which arm it serves.
Spec: spec/carriers.md, sections "Opening over UDP" and "Datagrams".
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from dataclasses import dataclass
from typing import Final

from probe.netio.dial import Dialer, local_address, receive_drops
from probe.protocol.datagram_flow import Filler
from probe.protocol.datagram_probe import ProbeFlow
from probe.protocol.steps import RunSegment, SegmentFacts
from probe.wire.failure import classify

_LONGEST: Final = 2048
_BUFFER_BYTES: Final = 512 * 1024
"""A third of a second at 12 Mbit/s: a small router may look after something else for so long."""
_A_TURN: Final = 64
_DROPPED: Final = 0.01
"""Share of the datagrams that came: below it a radio link's own losses are larger."""
_HEADERS: Final = {socket.AF_INET: 28, socket.AF_INET6: 48}
_PASSING: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ENOBUFS, errno.ENOMEM})
"""The kernel has no room for this one datagram: a loss like any other."""


@dataclass(frozen=True, slots=True)
class Transferred:
    """A segment's facts, and what it put on the line with IP and UDP headers, both ways."""

    facts: SegmentFacts
    wire_bytes: int


def run_datagrams(dialer: Dialer, host: str, step: RunSegment, pool: memoryview) -> Transferred:
    """Carry out one segment of the carriers quic and datagram; `pool` is random bytes to fill datagrams from."""
    try:
        sock = dialer.connect_datagrams(host, step.endpoint.port)
    except OSError as error:
        return Transferred(SegmentFacts(hello_sent=False, failure=classify(error, during="connect")), 0)
    with sock:
        loop = _Loop(sock, step, pool)
        loop.run()
    return loop.told()


class _Loop:
    """Socket and clock for one flow."""

    def __init__(self, sock: socket.socket, step: RunSegment, pool: memoryview) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._sock = sock
        self._overhead = _HEADERS[socket.AddressFamily(sock.family)]
        self._wire_bytes = 0
        self._dropped: int | None = None
        hello = step.hello(local_address(sock))
        self._flow = ProbeFlow(step, hello, Filler(pool), os.urandom, time.monotonic())

    def run(self) -> None:
        """Until it is over."""
        flow, poller = self._flow, select.poll()
        poller.register(self._sock, select.POLLIN)
        while True:
            for raw in flow.poll(time.monotonic()):
                self._send(raw)
            if flow.is_over:
                self._dropped = receive_drops(self._sock)
                return
            if poller.poll(max(0.0, flow.wake_at - time.monotonic()) * 1000):
                self._receive()

    def told(self) -> Transferred:
        """What became of it."""
        flow = self._flow
        ended = flow.ended_at if flow.ended_at is not None else time.monotonic()
        spent = ended - flow.started_at if flow.started_at is not None else 0.0
        facts = SegmentFacts(
            hello_sent=flow.hello_sent,
            failure=flow.failure,
            bytes=flow.moved,
            duration_ms=round(spent * 1000),
            connect_ms=None if flow.answered_s is None else round(flow.answered_s * 1000, 3),
            rtt_min_ms=None if flow.rtt_min_s is None else round(flow.rtt_min_s * 1000, 3),
            datagrams_sent=flow.datagrams_sent,
            datagrams_received=flow.datagrams_received,
            altered=flow.altered,
            queue_limited=self._is_queue_limited(),
        )
        return Transferred(facts, self._wire_bytes)

    def _is_queue_limited(self) -> bool | None:
        """Whether our own kernel dropped more than one in a hundred of the datagrams that had come."""
        came = self._flow.datagrams_received or 0
        return None if self._dropped is None else self._dropped > _DROPPED * came

    def _send(self, raw: bytes) -> None:
        try:
            self._sock.send(raw)
        except OSError as error:
            self._failed(error)
        else:
            self._wire_bytes += len(raw) + self._overhead

    def _receive(self) -> None:
        recv, flow, now = self._sock.recv, self._flow, time.monotonic()
        for _ in range(_A_TURN):
            try:
                raw = recv(_LONGEST)
            except OSError as error:
                self._failed(error)
                return
            self._wire_bytes += len(raw) + self._overhead
            flow.receive(raw, now)

    def _failed(self, error: OSError) -> None:
        if error.errno not in _PASSING:
            self._flow.broke(classify(error, during="transfer"), time.monotonic())

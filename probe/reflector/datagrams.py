# SPDX-License-Identifier: EUPL-1.2
"""The data port over UDP: one thread, one selector, all segments of the carriers quic and datagram.

Apart from the TCP data port, because it paces by its own timers: the kernel paces TCP, and nobody paces datagrams for
us. Spec: spec/carriers.md, sections "Opening over UDP" and "Datagrams".
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from probe.protocol.accounts import Awaited, Job, NoJob
from probe.protocol.booking import Booking
from probe.protocol.concurrent_reflector import EchoFlow
from probe.protocol.datagram import Codec
from probe.protocol.datagram_door import Door
from probe.protocol.datagram_flow import Filler
from probe.protocol.datagram_reflector import Flow, flow_for
from probe.reflector.metrics import Metrics
from probe.reflector.origin import Address, parse_address, prefix_of
from probe.reflector.udp import Peer, UdpPort
from probe.wire.messages import DataHello
from probe.wire.records import Carrier, Origin

_POOL_BYTES: Final = 256 * 1024
_PATIENCE_S: Final = 0.01
"""A timer this late is not called late: a sender makes up for as much."""
_A_TURN: Final = 256
"""Most datagrams read from one socket before the timers are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatagramLimits:
    """How many may run and knock at once. How fast they are together is for the booking to know (Limits)."""

    flows: int = 1000
    """Segments at once. A probe that finds no room asks again for 3 s."""
    knocks: int = 8192
    knocks_per_prefix: int = 256


@dataclass(slots=True)
class _Running:
    """One segment and where its datagrams go."""

    flow: Flow
    port: UdpPort
    peer: Peer
    effort: tuple[float, float, int]
    wake_at: float = 0.0
    is_told: bool = False


_Key = tuple[int, Peer]


class DatagramPlane:
    """Serves UDP in a thread of its own. `lock` guards the booking, which others use too."""

    def __init__(
        self,
        *,
        ports: Sequence[UdpPort],
        booking: Booking,
        lock: threading.Lock,
        origin_of: Callable[[Address, str | None], Origin],
        metrics: Metrics,
        on_death: Callable[[], None],
        limits: DatagramLimits | None = None,
    ) -> None:
        self._ports = ports
        self._booking = booking
        self._lock = lock
        self._origin_of = origin_of
        self._metrics = metrics
        self._on_death = on_death
        self._limits = limits or DatagramLimits()
        self._pool = memoryview(secrets.token_bytes(_POOL_BYTES))
        self._door = Door(
            self,
            secrets.token_bytes(32),
            Filler(self._pool),
            most=self._limits.knocks,
            per_prefix=self._limits.knocks_per_prefix,
        )
        self._address: Address | None = None
        self._flows: dict[_Key, _Running] = {}
        self._timers: list[tuple[float, int, _Key]] = []
        self._order = itertools.count()
        self._late_s = 0.0
        self._commands: list[tuple[str, float | None]] = []
        """Tickets whose segment is to end, or whose clock is to start at a time."""
        self._stopping = False
        self._selector = selectors.DefaultSelector()
        self._waker, self._wakened = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="datagrams", daemon=True)

    # -- called from other threads ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve."""
        self._wakened.setblocking(False)
        self._selector.register(self._wakened, selectors.EVENT_READ, None)
        for index, port in enumerate(self._ports):
            self._selector.register(port.socket, selectors.EVENT_READ, (index, port))
        self._thread.start()

    def end(self, tickets: Sequence[str]) -> None:
        """End the segments of these tickets soon."""
        with self._lock:
            self._commands += ((ticket, None) for ticket in tickets)
        self._wake_up()

    def begin(self, tickets: Sequence[str], at: float) -> None:
        """Start the clock of these slots (a time of the monotonic clock)."""
        with self._lock:
            self._commands += ((ticket, at) for ticket in tickets)
        self._wake_up()

    def stop(self) -> None:
        """End everything and return when the thread has ended."""
        self._stopping = True
        self._wake_up()
        if self._thread.ident is not None:
            self._thread.join()
        self._selector.close()
        self._waker.close()
        self._wakened.close()
        for port in self._ports:
            port.close()

    def _wake_up(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    # -- what the door asks -------------------------------------------------------------------------------------

    def awaited(self, ticket: str) -> Awaited | None:
        """Ask the booking."""
        with self._lock:
            return self._booking.awaited(ticket)

    def awaited_flight(self, flight: str) -> Awaited | None:
        """Ask the booking."""
        with self._lock:
            return self._booking.awaited_flight(flight)

    def open(self, hello: DataHello, carrier: Carrier, flight: str) -> Job | NoJob | None:
        """Ask the booking, if there is room for one more segment."""
        if self._address is None or len(self._flows) >= self._limits.flows:
            return None
        origin = self._origin_of(self._address, hello.address)
        with self._lock:
            return self._booking.opened(hello, None, origin, self._metrics.now_ms(), carrier=carrier, flight=flight)

    # -- the loop -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
            now = time.monotonic()
            for key, running in list(self._flows.items()):
                running.flow.stop(now)
                self._serve(key, running, now)
        finally:
            if not self._stopping:
                self._on_death()  # a bug: the exception is on its way to stderr, and the reflector must not limp on

    def _turn(self) -> None:
        events = self._selector.select(self._until_next_timer())
        touched: dict[_Key, _Running] = {}
        for selected, _ in events:
            if selected.data is None:
                self._take_commands(touched)
            else:
                index, port = selected.data
                self._read(index, port, touched)
        now = time.monotonic()
        for key, running in touched.items():
            self._serve(key, running, now)
        self._run_timers(now)

    def _until_next_timer(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _read(self, index: int, port: UdpPort, touched: dict[_Key, _Running]) -> None:
        now = time.monotonic()
        for turn in range(_A_TURN):
            got = port.receive()
            if got is None:
                return
            raw, peer = got
            if turn % 16 == 15:
                now = time.monotonic()
            key = (index, peer)
            running = self._flows.get(key)
            if running is None:
                self._knock(key, port, raw, now, touched)
            elif running.flow.receive(raw, now):
                touched[key] = running

    def _knock(self, key: _Key, port: UdpPort, raw: bytes, now: float, touched: dict[_Key, _Running]) -> None:
        _, peer = key
        self._address = parse_address(peer.host)
        entered = self._door.take(repr(key).encode(), lambda: prefix_of(parse_address(peer.host)), raw, now)
        self._metrics.datagram_knocks.labels(verdict=entered.verdict).inc()
        for answer in entered.send:
            port.send(answer, peer)
        if entered.job is None:
            return
        job = entered.job
        codec = Codec(job.ticket, "reflector", job.head)
        kind = flow_for if job.echo is None else EchoFlow
        flow = kind(job, codec, Filler(self._pool), now, self._metrics.now_ms())
        touched[key] = self._flows[key] = _Running(flow, port, peer, self._effort(port))
        self._metrics.datagram_flows_open.set(len(self._flows))

    def _serve(self, key: _Key, running: _Running, now: float) -> None:
        """Let a flow send what is due, tell the booking when its account is closed, and wake it in time."""
        flow = running.flow
        out = flow.poll(now)
        if flow.counted is not None and not running.is_told:
            self._tell(running, now)  # before the first `end` leaves: whoever sees one can rely on the account
        for raw in out:
            running.port.send(raw, running.peer)
        if flow.is_over:
            del self._flows[key]
            running.wake_at = 0.0
            self._metrics.datagram_flows_open.set(len(self._flows))
            return
        at = flow.wake_at
        if not now < running.wake_at <= at:
            running.wake_at = at
            heapq.heappush(self._timers, (at, next(self._order), key))

    def _tell(self, running: _Running, now: float) -> None:
        counted, job = running.flow.counted, running.flow.job
        if counted is None:
            raise AssertionError("only a closed account is told")
        running.is_told = True
        spent = max(now - running.flow.started_at, 0.1)
        cpu, late, dropped = (
            after - before for after, before in zip(self._effort(running.port), running.effort, strict=True)
        )
        counted = replace(counted, saturated=cpu > 0.9 * spent or late > 0.05 * spent or dropped > 0)
        with self._lock:
            self._booking.ended(job, counted, self._metrics.now_ms())
        self._metrics.data_bytes.labels(direction=job.direction).inc(counted.bytes)
        self._metrics.datagram_flows_ended.labels(end=counted.end).inc()
        if counted.saturated:
            self._metrics.saturated.inc()

    def _effort(self, port: UdpPort) -> tuple[float, float, int]:
        """Seconds of CPU used by this thread, seconds by which timers came late, datagrams the kernel dropped."""
        return time.thread_time(), self._late_s, port.dropped()

    def _run_timers(self, now: float) -> None:
        is_first = True
        while self._timers and self._timers[0][0] <= now:
            at, _, key = heapq.heappop(self._timers)
            running = self._flows.get(key)
            if running is None or running.wake_at != at:
                continue  # it has ended, or wished for another time since
            if is_first:
                is_first = False
                self._late_s += max(0.0, now - at - _PATIENCE_S)
            self._serve(key, running, now)

    def _take_commands(self, touched: dict[_Key, _Running]) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakened.recv(4096)
        with self._lock:
            commands, self._commands = dict(self._commands), []
        now = time.monotonic()
        for key, running in self._flows.items():
            ticket = running.flow.job.ticket
            if ticket not in commands:
                continue
            begins_at = commands[ticket]
            if begins_at is None:
                running.flow.stop(now)
            elif isinstance(running.flow, EchoFlow):
                running.flow.begin(begins_at)
            touched[key] = running

# SPDX-License-Identifier: EUPL-1.2
"""The data port: one thread, one selector, all data connections.

Apart from the control channel's event loop, because fifty TLS senders must be served within milliseconds.
Spec: spec/protocol.md, sections "Data connection" and "Not a weapon".
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import secrets
import selectors
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from probe.netio.dial import prepare_sender, reset
from probe.protocol.accounts import Awaited, Counted, Job, NoJob
from probe.protocol.booking import Booking
from probe.protocol.datagram_flow import Filler
from probe.reflector.connection import PIECE_BYTES, Connection
from probe.reflector.metrics import Metrics
from probe.reflector.opening import Ending, Greeting, NamedSocket
from probe.reflector.origin import Address, parse_address, prefix_of
from probe.wire.records import Origin

_PIECES: Final = 64
"""So many pieces are sent over and over: about 1 MB."""
_MOST_CONTEXTS: Final = 64
_PATIENCE_S: Final = 0.05
"""A timer this late is not called late: a sender's 64 kB last as long at 10 Mbit/s."""
_ACCEPTS_A_TURN: Final = 64
_SEGMENT_BYTES: Final = 1460
"""Largest TCP segment: that of Ethernet. Loopback's 64 kB would make paced bytes arrive in lumps of 0.1 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataLimits:
    """How many connections may be open, in all and before their hello."""

    connections: int = 4000
    handshakes: int = 512
    handshakes_per_prefix: int = 64


class Contexts:
    """One TLS context for each protocol that clients put first."""

    def __init__(self, certificate: Path) -> None:
        self._certificate = certificate
        self._made: dict[str, ssl.SSLContext] = {}
        # What everybody asks for, so that a certificate that cannot be used is found out now.
        for protocols in ((), (b"h2",), (b"http/1.1",)):
            self.find(protocols)

    def find(self, protocols: tuple[bytes, ...]) -> ssl.SSLContext:
        """The context that selects the first of `protocols`; no protocol where there is none."""
        first = protocols[0] if protocols else b""
        key = first.decode("ascii", "replace") if first.isascii() else ""
        made = self._made.get(key)
        if made is None:
            if len(self._made) >= _MOST_CONTEXTS:
                return self._made[""]  # somebody is playing; the handshake goes on without a protocol
            made = self._made[key] = self._make([key] if key else [])
        return made

    def _make(self, protocols: Sequence[str]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self._certificate)
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        context.sslsocket_class = NamedSocket
        context.sni_callback = _remember_name
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context


def _remember_name(sock: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
    if isinstance(sock, NamedSocket):
        sock.name_seen = name


class DataPlane:
    """Serves data connections in a thread of its own. `lock` guards the booking, which the control side uses too."""

    def __init__(
        self,
        *,
        listeners: Sequence[socket.socket],
        contexts: Contexts,
        booking: Booking,
        lock: threading.Lock,
        origin_of: Callable[[Address, str | None], Origin],
        metrics: Metrics,
        on_death: Callable[[], None],
        on_begin: Callable[[Sequence[str], float], None] = lambda _tickets, _at: None,
        limits: DataLimits | None = None,
    ) -> None:
        self._noise = memoryview(secrets.token_bytes(_PIECES * PIECE_BYTES))
        self.filler = Filler(self._noise)
        self.scratch = memoryview(bytearray(PIECE_BYTES))
        self._contexts = contexts
        self._booking = booking
        self._lock = lock
        self._origin_of = origin_of
        self._metrics = metrics
        self._on_death = on_death
        self._on_begin = on_begin
        self._slots: dict[str, Connection] = {}  # by ticket: slots of concurrent pairs
        self._limits = limits or DataLimits()
        self._listeners = listeners
        self._selector = selectors.DefaultSelector()
        self._connections: set[Connection] = set()
        self._watched: dict[int, int] = {}
        self._young: Counter[str] = Counter()
        self._timers: list[tuple[float, int, Connection]] = []
        self._order = itertools.count()
        self._late_s = 0.0
        self._stopping = False
        self._commands: list[str] = []
        self._waker, self._wakened = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="data", daemon=True)

    # -- called from other threads ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve."""
        self._wakened.setblocking(False)
        self._selector.register(self._wakened, selectors.EVENT_READ, None)
        for listener in self._listeners:
            listener.setblocking(False)
            # Inherited by every connection from its first packet on: never the system's default, which may be bbr.
            prepare_sender(listener, 0)
            self._selector.register(listener, selectors.EVENT_READ, listener)
        self._thread.start()

    def end(self, tickets: Sequence[str]) -> None:
        """End the connections of these tickets soon."""
        with self._lock:
            self._commands += tickets
        self._wake_up()

    def stop(self) -> None:
        """Reset everything and return when the thread has ended."""
        self._stopping = True
        self._wake_up()
        if self._thread.ident is not None:
            self._thread.join()
        self._selector.close()
        self._waker.close()
        self._wakened.close()

    def _wake_up(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    # -- what a connection asks for -----------------------------------------------------------------------------

    def context_for(self, protocols: tuple[bytes, ...]) -> ssl.SSLContext:
        """The TLS context that selects the first of these application protocols."""
        return self._contexts.find(protocols)

    def watch(self, connection: Connection, events: int) -> None:
        """Call `connection.ready` on these events."""
        before = self._watched.get(connection.fd)
        if before == events:
            return
        if before is None:
            self._selector.register(connection.fd, events, connection)
        else:
            self._selector.modify(connection.fd, events, connection)
        self._watched[connection.fd] = events

    def wake(self, connection: Connection, at: float) -> None:
        """Call `connection.tick` at this time."""
        connection.wake_at = at
        heapq.heappush(self._timers, (at, next(self._order), connection))

    def noise(self) -> tuple[memoryview, int]:
        """What to send over and over, and where to begin: anywhere, so that no two connections begin alike."""
        return self._noise, secrets.randbelow(_PIECES) * PIECE_BYTES

    def awaited(self, ticket: str) -> Awaited | None:
        """Ask the booking what a ticket is good for."""
        with self._lock:
            return self._booking.awaited(ticket)

    def opened(self, greeting: Greeting, address: Address) -> Job | NoJob:
        """Ask the booking."""
        hello = greeting.hello
        origin = self._origin_of(address, hello.address)
        with self._lock:
            return self._booking.opened(
                hello, greeting.name, origin, self.unix_ms(), carrier=greeting.carrier, flight=greeting.flight
            )

    def begin(self, tickets: tuple[str, ...], at: float) -> None:
        """The load of these slots said hello: their clock starts, also of those that are carried over UDP."""
        for ticket in tickets:
            if (slot := self._slots.get(ticket)) is not None:
                slot.begin(at)
        self._on_begin(tickets, at)

    def ended(self, job: Job, counted: Counted) -> None:
        """Tell the booking."""
        with self._lock:
            self._booking.ended(job, counted, self.unix_ms())
        self._metrics.data_bytes.labels(direction=job.direction).inc(counted.bytes)
        if counted.saturated:
            self._metrics.saturated.inc()

    def closed(self, connection: Connection, how: Ending) -> None:
        """The connection is over."""
        if self._watched.pop(connection.fd, None) is not None:
            self._selector.unregister(connection.fd)
        connection.wake_at = 0.0
        self._connections.discard(connection)
        if connection.job is not None:
            self._slots.pop(connection.job.ticket, None)
        if connection.is_young:
            self._no_longer_young(connection)
        self._metrics.data_ended.labels(end=how).inc()
        self._metrics.data_open.set(len(self._connections))

    def grown_up(self, connection: Connection) -> None:
        """The connection has shown a valid hello."""
        if connection.job is not None and connection.job.echo is not None:
            self._slots[connection.job.ticket] = connection
        self._no_longer_young(connection)

    def unix_ms(self) -> int:
        """Time of day, the same for all of this reflector."""
        return self._metrics.now_ms()

    def effort(self) -> tuple[float, float]:
        """Seconds of CPU used by this thread, seconds by which timers came late."""
        return time.thread_time(), self._late_s

    # -- the loop -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
            now = time.monotonic()
            for connection in list(self._connections):
                connection.stop(now)
        finally:
            for listener in self._listeners:
                listener.close()
            if not self._stopping:
                self._on_death()  # a bug: the exception is on its way to stderr, and the reflector must not limp on

    def _turn(self) -> None:
        events = self._selector.select(self._until_next_timer())
        now = time.monotonic()
        for key, mask in events:
            if isinstance(key.data, Connection):
                if key.fd in self._watched:  # not closed by an earlier event of this turn
                    key.data.ready(mask, now)
            elif key.data is None:
                self._take_commands(now)
            else:
                self._accept(key.data, now)
        self._run_timers(time.monotonic())

    def _until_next_timer(self) -> float | None:
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - time.monotonic())

    def _run_timers(self, now: float) -> None:
        is_first = True
        while self._timers and self._timers[0][0] <= now:
            at, _, connection = heapq.heappop(self._timers)
            if connection.wake_at != at:
                continue  # it has closed, or wished for another time since
            if is_first:
                is_first = False
                self._late_s += max(0.0, now - at - _PATIENCE_S)
            connection.tick(now)

    def _take_commands(self, now: float) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakened.recv(4096)
        with self._lock:
            tickets, self._commands = set(self._commands), []
        for connection in list(self._connections):
            if connection.job is not None and connection.job.ticket in tickets:
                connection.stop(now)

    def _accept(self, listener: socket.socket, now: float) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, peer = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                # Out of descriptors: leave it in the queue and let others finish first.
                time.sleep(0.01)
                return
            self._metrics.data_accepted.inc()
            self._take(sock, str(peer[0]), now)

    def _take(self, sock: socket.socket, peer: str, now: float) -> None:
        address = parse_address(peer)
        prefix = prefix_of(address)
        is_full = (
            len(self._connections) >= self._limits.connections
            or self._young.total() >= self._limits.handshakes
            or self._young[prefix] >= self._limits.handshakes_per_prefix
        )
        if is_full:
            self._metrics.data_ended.labels(end="no_room").inc()
            reset(sock)
            return
        sock.setblocking(False)
        connection = Connection(self, sock, address, now)
        self._young[prefix] += 1
        self._connections.add(connection)
        self._metrics.data_open.set(len(self._connections))

    def _no_longer_young(self, connection: Connection) -> None:
        prefix = prefix_of(connection.address)
        self._young[prefix] -= 1
        if self._young[prefix] <= 0:
            del self._young[prefix]


def open_listener(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" means both families.
            with contextlib.suppress(OSError):
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        tune_listener(listener)
        listener.bind(address)
        listener.listen(512)
    except OSError:
        listener.close()
        raise
    return listener


def tune_listener(listener: socket.socket) -> None:
    """What connections shall inherit from a listening socket, whoever opened it."""
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT_BYTES)

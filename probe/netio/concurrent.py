# SPDX-License-Identifier: EUPL-1.2
"""A concurrent pair on the probe: two slots that answer small packets at once, and the load that fills the queue.

One loop serves all three, and looks at the slots before every piece of the load, so that the answers wait for nothing
of ours. Which arm is in which slot it does not know. Spec: spec/protocol.md, section "Concurrent pairs".
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from probe.netio.dial import Dialer, local_address, prepare_sender, reset, tcp_info, was_reset
from probe.netio.stream import greetings, take_answer
from probe.protocol.concurrent import GRACE_S, LOAD_ALPN, echo_of
from probe.protocol.concurrent_probe import AnsweringFlow, Frames
from probe.protocol.datagram import PING, UDP_CARRIERS, Codec
from probe.protocol.datagram_flow import Filler
from probe.protocol.datagram_probe import CLOCK_SLACK_S, SILENCE_AFTER_S
from probe.protocol.steps import Load, RunSegment, RunTogether, SegmentFacts
from probe.wire.failure import Failure, classify

_LONGEST: Final = 2048
_A_TURN: Final = 16
_LOAD_PIECE: Final = 16 * 1024
_HEADERS: Final = {socket.AF_INET: 28, socket.AF_INET6: 48}


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection over TCP with its handshake behind it, or why there is none."""

    sock: socket.socket | None
    failure: Failure | None = None
    connect_ms: float | None = None
    tls_ms: float | None = None


Opener = Callable[[RunSegment | Load], Opened]
"""Opens the connection of a slot over TCP, or of the load. Network failures are in what it returns."""


@dataclass(frozen=True, slots=True)
class RanTogether:
    """The facts of both slots, and what the pair put on the line with all headers, both ways."""

    facts: tuple[SegmentFacts, SegmentFacts]
    wire_bytes: int


class Slot(Protocol):
    """One slot, over whatever it goes."""

    failure: Failure | None
    is_over: bool
    wire_bytes: int

    @property
    def wake_at(self) -> float:
        """When `serve` is to be called at the latest."""
        ...

    def fileno(self) -> int:
        """Of its socket."""
        ...

    def open(self) -> None:
        """Get as far as the reflector's welcome, or fail."""
        ...

    def begin(self, now: float) -> None:
        """The load's hello has left."""
        ...

    def serve(self) -> bool:
        """Read what is there, answer at once, look at the clock; whether it is over."""
        ...

    def told(self) -> SegmentFacts:
        """What became of it."""
        ...

    def close(self) -> None:
        """Give the socket back."""
        ...


def run_together(dialer: Dialer, host: str, step: RunTogether, opener: Opener, pool: memoryview) -> RanTogether:
    """Carry out one concurrent pair; `pool` is random bytes to fill packets from."""
    slots: list[Slot] = []
    for one in step.slots:
        over_udp = one.carrier in UDP_CARRIERS
        slot: Slot = DatagramSlot(dialer, host, one, pool) if over_udp else StreamSlot(one, opener, pool)
        slots.append(slot)
        slot.open()
    load = LoadTransfer(step.load, opener, pool)
    if not all(slot.is_over for slot in slots):
        load.open()
        _serve(slots, load, step.load.segment_s)
    for slot in slots:
        slot.close()
    load.close()
    # Without its load the pair never begins, and the slots that were open all tell the same reason.
    first, second = (
        slot.told() if slot.is_over or load.failure is None else replace(slot.told(), failure=load.failure)
        for slot in slots
    )
    return RanTogether((first, second), sum(slot.wire_bytes for slot in slots) + load.wire_bytes)


def _serve(slots: list[Slot], load: LoadTransfer, segment_s: float) -> None:
    """Until both slots are over, or surely should be."""
    if load.failure is not None:
        return
    began = time.monotonic()
    limit = began + segment_s + GRACE_S + 2 * SILENCE_AFTER_S
    poller = select.poll()
    for slot in slots:
        if not slot.is_over:
            slot.begin(began)
            poller.register(slot.fileno(), select.POLLIN)
    while not all(slot.is_over for slot in slots):
        now = time.monotonic()
        if now >= limit:
            return
        load.watch(poller)
        wake_at = min([limit, load.wake_at, *(slot.wake_at for slot in slots if not slot.is_over)])
        ready = {fd for fd, _ in poller.poll(max(0.0, wake_at - now) * 1000)}
        for slot in slots:
            if not slot.is_over and slot.serve():
                poller.unregister(slot.fileno())
        if load.fd in ready or time.monotonic() >= load.wake_at:
            load.serve(poller)


class DatagramSlot:
    """A slot over UDP: a fresh socket and the sans-IO flow."""

    def __init__(self, dialer: Dialer, host: str, step: RunSegment, pool: memoryview) -> None:
        self.failure: Failure | None = None
        self.is_over = False
        self.wire_bytes = 0
        self._sock: socket.socket | None = None
        self._flow: AnsweringFlow | None = None
        self._overhead = 28
        try:
            self._sock = dialer.connect_datagrams(host, step.endpoint.port)
        except OSError as error:
            self.failure, self.is_over = classify(error, during="connect"), True
            return
        self._sock.setblocking(False)
        self._overhead = _HEADERS[socket.AddressFamily(self._sock.family)]
        hello = step.hello(local_address(self._sock))
        self._flow = AnsweringFlow(step, hello, Filler(pool), os.urandom, time.monotonic())

    def open(self) -> None:
        """See `Slot`."""
        if self._flow is None or self._sock is None:
            return
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        while not self.serve() and not self._flow.is_open:
            poller.poll(max(0.0, self._flow.wake_at - time.monotonic()) * 1000 + 1)

    def begin(self, now: float) -> None:
        """See `Slot`."""
        if self._flow is not None:
            self._flow.begin(now)

    @property
    def wake_at(self) -> float:
        """See `Slot`."""
        return self._flow.wake_at if self._flow is not None else 0.0

    def fileno(self) -> int:
        """See `Slot`."""
        return self._sock.fileno() if self._sock is not None else -1

    def serve(self) -> bool:
        """See `Slot`."""
        flow, sock = self._flow, self._sock
        if flow is None or sock is None:
            return True
        for _ in range(_A_TURN):
            try:
                raw = sock.recv(_LONGEST)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                flow.broke(classify(error, during="transfer"), time.monotonic())
                break
            self.wire_bytes += len(raw) + self._overhead
            flow.receive(raw, time.monotonic())
            self._send(flow, sock)
        self._send(flow, sock)
        self.is_over = flow.is_over
        return self.is_over

    def told(self) -> SegmentFacts:
        """See `Slot`."""
        flow = self._flow
        if flow is None:
            return SegmentFacts(hello_sent=False, failure=self.failure)
        ended = flow.ended_at if flow.ended_at is not None else time.monotonic()
        return SegmentFacts(
            hello_sent=flow.hello_sent,
            failure=flow.failure if flow.phase == "over" or flow.pings else "stalled",
            bytes=flow.moved,
            duration_ms=round((ended - flow.begun_at) * 1000) if flow.begun_at is not None else 0,
            connect_ms=None if flow.answered_s is None else round(flow.answered_s * 1000, 3),
            datagrams_sent=flow.datagrams_sent,
            datagrams_received=flow.datagrams_received,
            altered=flow.altered,
        )

    def close(self) -> None:
        """See `Slot`."""
        if self._sock is not None:
            self._sock.close()

    def _send(self, flow: AnsweringFlow, sock: socket.socket) -> None:
        for raw in flow.poll(time.monotonic()):
            try:
                sock.send(raw)
            except BlockingIOError:
                continue  # no room for this one: a loss like any other
            except OSError as error:
                flow.broke(classify(error, during="transfer"), time.monotonic())
                return
            self.wire_bytes += len(raw) + self._overhead


class StreamSlot:
    """A slot over TCP: frames in both directions."""

    def __init__(self, step: RunSegment, opener: Opener, pool: memoryview) -> None:
        self.failure: Failure | None = None
        self.is_over = False
        self.wire_bytes = 0
        self._step = step
        self._opener = opener
        self._filler = Filler(pool)
        self._frames = Frames(step.carrier, Codec(step.ticket, "probe", b""), step.packet_bytes)
        self._opened = Opened(None)
        self._hello_sent = False
        self._began: float | None = None
        self._ended: float | None = None
        self._pings = 0
        self._welcomed = False
        self._out = b""
        self._rtt_min_ms: float | None = None
        self._altered = False

    def open(self) -> None:
        """See `Slot`."""
        step, self._opened = self._step, self._opener(self._step)
        sock = self._opened.sock
        if sock is None:
            self._end(self._opened.failure)
            return
        deadline = time.monotonic() + step.tls_timeout_s
        try:
            sock.settimeout(step.tls_timeout_s)
            for greeting in greetings(step, step.hello(local_address(sock))):
                sock.sendall(greeting)
            self._hello_sent = True
            self._altered = not take_answer(sock, step, deadline)
            while not self._welcomed and not self.is_over:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError("no welcome")
                sock.settimeout(left)
                self._take(sock.recv(_LONGEST))
            sock.setblocking(False)
            self._write(sock)
        except (OSError, EOFError) as error:
            self._end(classify(error, during="transfer"))

    def begin(self, now: float) -> None:
        """See `Slot`."""
        self._began = now

    @property
    def wake_at(self) -> float:
        """See `Slot`."""
        return self._patience

    def fileno(self) -> int:
        """See `Slot`."""
        return self._opened.sock.fileno() if self._opened.sock is not None else -1

    def serve(self) -> bool:
        """See `Slot`."""
        sock = self._opened.sock
        if sock is None:
            return True
        try:
            self._write(sock)
            for _ in range(_A_TURN):
                self._take(sock.recv(_LONGEST))
                self._write(sock)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except (OSError, EOFError) as error:
            failure = classify(error, during="transfer")
            self._end("connection_reset" if failure == "end_of_stream" and was_reset(sock) else failure)
        if not self.is_over and (now := time.monotonic()) >= self._patience:
            # Its reset was lost, or nothing ever came.
            self.is_over, self._ended, self.failure = True, now, None if self._pings else "stalled"
        return self.is_over

    def told(self) -> SegmentFacts:
        """See `Slot`."""
        ended = self._ended if self._ended is not None else time.monotonic()
        return SegmentFacts(
            hello_sent=self._hello_sent,
            failure=self.failure if self.is_over or self._pings else "stalled",
            bytes=self._pings * self._step.packet_bytes,
            duration_ms=round((ended - self._began) * 1000) if self._began is not None else 0,
            connect_ms=self._opened.connect_ms,
            tls_ms=self._opened.tls_ms,
            rtt_min_ms=self._rtt_min_ms,
            altered=self._altered or self._frames.is_altered,
        )

    def close(self) -> None:
        """See `Slot`."""
        sock = self._opened.sock
        if sock is None:
            return
        info = tcp_info(sock)
        if info is not None:
            self.wire_bytes, self._rtt_min_ms = info.wire_bytes, info.rtt_min_ms
        reset(sock)

    @property
    def _patience(self) -> float:
        if self._began is None:
            return float("inf")
        return self._began + self._step.segment_s + GRACE_S + SILENCE_AFTER_S

    def _take(self, raw: bytes) -> None:
        if not raw:
            raise EOFError
        for packet in self._frames.take(raw):
            if packet.kind == PING:
                self._welcomed = True
                self._pings += packet.sequence > 0
                self._out += self._frames.make(echo_of(packet, time.monotonic()), self._filler)

    def _write(self, sock: socket.socket) -> None:
        while self._out:
            self._out = self._out[sock.send(self._out) :]

    def _end(self, failure: Failure | None) -> None:
        """An end at the pair's own time or later is the normal one, in whatever form it reaches us."""
        now = time.monotonic()
        if self.is_over:
            return
        is_normal = self._began is not None and now >= self._began + self._step.segment_s - CLOCK_SLACK_S
        self.failure = None if is_normal else failure
        self.is_over, self._ended = True, now


class LoadTransfer:
    """What fills the queue: bytes one way over TLS, of which nothing is kept."""

    def __init__(self, step: Load, opener: Opener, pool: memoryview) -> None:
        self.failure: Failure | None = None
        self.fd = -1
        self.wire_bytes = 0
        self._step = step
        self._opener = opener
        self._sock: socket.socket | None = None
        self._scratch = memoryview(bytearray(_LOAD_PIECE))
        self._noise = pool[:_LOAD_PIECE]
        self._may_send = False
        self._bytes_per_s = 0.0
        self._sent = 0
        self._since = 0.0
        self._watched = 0

    def open(self) -> None:
        """Connect and say hello: the reflector starts the pair's clock when it reads it."""
        opened = self._opener(self._step)
        self.failure, self._sock = opened.failure, opened.sock
        sock = self._sock
        if sock is None:
            return
        if self._step.direction == "up":
            options = prepare_sender(sock, self._step.pace_mbps)
            self._bytes_per_s = 0.0 if options.paced else self._step.pace_mbps * 1e6 / 8
        try:
            sock.settimeout(self._step.tls_timeout_s)
            sock.sendall(self._step.hello(local_address(sock)))
        except OSError as error:
            self.failure = classify(error, during="transfer")
            return
        sock.setblocking(False)
        self.fd = sock.fileno()

    @property
    def wake_at(self) -> float:
        """When it wants to be served although its socket is not ready: a sender that paces itself."""
        if self.fd < 0 or not self._may_send or not self._bytes_per_s:
            return float("inf")
        return self._since + self._sent / self._bytes_per_s

    def watch(self, poller: select.poll) -> None:
        """Tell the poller what this waits for now."""
        if self.fd < 0:
            return
        wanted = select.POLLIN
        if self._may_send and (not self._bytes_per_s or time.monotonic() >= self.wake_at):
            wanted |= select.POLLOUT
        if wanted != self._watched:
            poller.register(self.fd, wanted)
            self._watched = wanted

    def serve(self, poller: select.poll) -> None:
        """One piece: more would keep the slots waiting."""
        sock = self._sock
        if sock is None or self.fd < 0:
            return
        try:
            if self._may_send:
                self._sent += sock.send(self._noise)
            elif not sock.recv_into(self._scratch):
                raise EOFError
            elif self._step.direction == "up":
                self._may_send, self._since = True, time.monotonic()
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except (OSError, EOFError):
            # The reset that ends it, or an early end: the receipt says what the load moved.
            poller.unregister(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Reset it, whatever it does."""
        sock = self._sock
        if sock is None:
            return
        info = tcp_info(sock)
        self.wire_bytes = info.wire_bytes if info is not None else 0
        self.fd = -1
        reset(sock)


__all__ = ["LOAD_ALPN", "Opened", "Opener", "RanTogether", "run_together"]

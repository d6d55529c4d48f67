# SPDX-License-Identifier: EUPL-1.2
"""One timed transfer: connect, TLS or what the carrier has instead, hello, bytes one way until the reset.

The loops do constant work per TLS record and none per byte. Everything that goes wrong becomes a fact of the
segment. Nothing here knows which arm it serves. Spec: spec/protocol.md, section "Data connection"; spec/carriers.md.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

from probe.netio.calibration import Ping, Watcher, calibrate
from probe.netio.concurrent import LOAD_ALPN, Opened, run_together
from probe.netio.datagram import run_datagrams
from probe.netio.dial import (
    Dialer,
    SenderOptions,
    WrongCertificate,
    local_address,
    prepare_sender,
    reset,
    tcp_info,
    was_reset,
)
from probe.netio.held import Fill, sender_waited_s, was_held_back
from probe.netio.stream import HelloMaker, greetings, shake, take_answer
from probe.protocol import sealed
from probe.protocol.datagram import UDP_CARRIERS
from probe.protocol.payload import KNOWN, Check, payload
from probe.protocol.session import UP_GRACE_S
from probe.protocol.steps import Calibrate, Load, RunSegment, RunTogether, SegmentFacts
from probe.wire.failure import Failure, classify

_BUFFER_BYTES: Final = 64 * 1024
_WRITE_BYTES: Final = 16 * 1024
"""One TLS record."""
_SILENCE_S: Final = 0.25
"""Once the reflector's clock is surely over, so long without a byte means that its reset was lost."""
_CLOCK_SLACK_S: Final = 0.02
"""The reflector's timer may fire a little early, and its clock may run faster than ours."""
_CPU_LIMITED: Final = 0.9
"""Share of a segment's time that this process computed: above it the probe itself may be the bottleneck."""
_CPU_NOTICED_S: Final = 0.1
"""A segment that failed sooner is too short to say anything of the processor."""

Counter = Callable[[], int | None]
"""Bytes that passed the household's line so far; None where this device cannot see them."""


class Watch(Protocol):
    """Notices another path than at the beginning of the pair."""

    def begin(self) -> None:
        """A pair begins."""
        ...

    def has_changed(self) -> bool | None:
        """Whether address, interface or gateway are others than at its beginning; None where that cannot be seen."""
        ...


Handshake = Callable[[socket.socket], socket.socket]
"""Takes a connected socket over and gives back what to use from there. Raises OSError, WrongCertificate."""


@dataclass(slots=True)
class _Moved:
    bytes: int = 0
    seconds: float = 0.0
    failure: Failure | None = None
    altered: bool = False
    """What came was not what the reflector is bound to send, where nothing failed by it."""
    full_s: float | None = None
    """How long our receive buffer was nearly full; None where that cannot be seen."""


@dataclass(slots=True)
class _Opened:
    sock: socket.socket | None = None
    failure: Failure | None = None
    connect_ms: float | None = None
    tls_ms: float | None = None


@dataclass(frozen=True, slots=True)
class _Clock:
    """A transfer's times, on time.monotonic(): an end at `over` or later is the normal one."""

    start: float
    nominal_s: float
    limit: float

    @property
    def over(self) -> float:
        return self.start + self.nominal_s - _CLOCK_SLACK_S


class Transfers:
    """Runs segments and calibrations; holds the one buffer and the TLS contexts of a session."""

    def __init__(
        self,
        dialer: Dialer,
        control_host: str,
        counter: Counter | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._dialer = dialer
        self._control_host = control_host
        self._counter = counter
        self._watch = watch
        self._view = memoryview(bytearray(os.urandom(_BUFFER_BYTES)))

    def run_segment(
        self, step: RunSegment, alpn: Sequence[str], client_hello: HelloMaker | None = None
    ) -> SegmentFacts:
        """Carry out one segment. Network failures are facts, never exceptions.

        `client_hello` is for the carrier `hello`, which cannot do without.
        """
        if self._watch is not None and step.slot == 0:
            self._watch.begin()
        facts = self._run(step, alpn, client_hello)
        return facts if self._watch is None else replace(facts, path_changed=self._watch.has_changed())

    def _run(self, step: RunSegment, alpn: Sequence[str], client_hello: HelloMaker | None) -> SegmentFacts:
        passed, cpu, wall = self._count(), time.process_time(), time.monotonic()
        if step.carrier in UDP_CARRIERS:
            found = run_datagrams(self._dialer, step.endpoint.host or self._control_host, step, self._view)
            others_kb = self._others_kb(passed, found.wire_bytes)
            return replace(found.facts, household_kb=others_kb, cpu_limited=_is_cpu_limited(cpu, wall))
        known = _Known(step) if step.carrier in KNOWN else None  # before the connection: it takes a router milliseconds
        opened = self._open(step, self._handshake(step, alpn, client_hello))
        moved, hello_sent, options, info = _Moved(failure=opened.failure), False, None, None
        if opened.sock is not None:
            options = prepare_sender(opened.sock, step.pace_mbps) if step.direction == "up" else None
            sleep_mbps = _sleep_pace(options, step.pace_mbps)
            moved, hello_sent = self._move(opened.sock, step, known, sleep_mbps=sleep_mbps)
            info = tcp_info(opened.sock)
            reset(opened.sock)
        return SegmentFacts(
            hello_sent=hello_sent,
            failure=moved.failure,
            bytes=moved.bytes,
            duration_ms=round(moved.seconds * 1000),
            connect_ms=opened.connect_ms,
            tls_ms=opened.tls_ms,
            congestion=options.congestion if options else None,
            paced=options.paced if options else None,
            retransmits=info.retransmits if info else None,
            rtt_min_ms=info.rtt_min_ms if info else None,
            household_kb=self._others_kb(passed, info.wire_bytes if info else moved.bytes),
            cpu_limited=_is_cpu_limited(cpu, wall),
            altered=moved.altered,
            queue_limited=was_held_back(sender_waited_s(info) if options else moved.full_s, moved.seconds),
        )

    def run_together(
        self, step: RunTogether, alpn: Sequence[str], client_hello: HelloMaker | None = None
    ) -> tuple[SegmentFacts, SegmentFacts]:
        """Carry out a concurrent pair. What is said of the line or of this device is said of both slots alike."""
        if self._watch is not None:
            self._watch.begin()
        passed, cpu, wall = self._count(), time.process_time(), time.monotonic()

        def opener(one: RunSegment | Load) -> Opened:
            if isinstance(one, Load):
                handshake: Handshake | None = self._tls(one, LOAD_ALPN)
            else:
                handshake = self._handshake(one, alpn, client_hello)
            found = self._open(one, handshake)
            return Opened(found.sock, found.failure, found.connect_ms, found.tls_ms)

        host = step.load.endpoint.host or self._control_host
        ran = run_together(self._dialer, host, step, opener, self._view)
        first, second = (
            replace(
                facts,
                cpu_limited=_is_cpu_limited(cpu, wall),
                path_changed=self._watch.has_changed() if self._watch is not None else None,
            )
            for facts in ran.facts
        )
        # Summed over the pair, so it is told once.
        others_kb = self._others_kb(passed, ran.wire_bytes)
        return replace(first, household_kb=others_kb), replace(second, household_kb=None if others_kb is None else 0)

    def calibrate(self, step: Calibrate, alpn: Sequence[str], ping: Ping | None = None) -> float | None:
        """Mbit/s that a short neutral transfer reached; None where it failed.

        With `ping` it ends as soon as the line shows a queue.
        """
        sock = self._open(step, self._tls(step, alpn)).sock
        if sock is None:
            return None
        try:
            return calibrate(sock, self._view, step, Watcher(ping))
        except OSError:
            return None
        finally:
            reset(sock)

    def _count(self) -> int | None:
        return self._counter() if self._counter else None

    def _others_kb(self, before: int | None, own: int) -> int | None:
        after = self._count()
        return None if before is None or after is None else max(0, after - before - own) // 1000

    def _handshake(self, step: RunSegment, alpn: Sequence[str], client_hello: HelloMaker | None) -> Handshake | None:
        """What comes between TCP and the hello: the one place where the carriers over TCP part. None is nothing."""
        if step.carrier == "stream":
            return None
        if step.carrier != "hello":
            return self._tls(step, alpn)
        if client_hello is None:
            raise ValueError("the carrier hello needs somebody who makes a ClientHello")
        session_id = sealed.session_id(step.ticket, os.urandom)
        # Made before the connection: a browser's key takes a slow processor some milliseconds.
        first = client_hello(step.name, session_id)
        return partial(shake, client_hello=first, session_id=session_id, timeout_s=step.tls_timeout_s)

    def _tls(self, step: RunSegment | Calibrate | Load, alpn: Sequence[str]) -> Handshake:
        return partial(
            self._dialer.open_tls,
            name=step.name,
            alpn=alpn,
            certificate=step.certificate,
            timeout_s=step.tls_timeout_s,
        )

    def _open(self, step: RunSegment | Calibrate | Load, handshake: Handshake | None) -> _Opened:
        opened = _Opened()
        start = time.monotonic()
        host = step.endpoint.host or self._control_host
        try:
            opened.sock = plain = self._dialer.connect(host, step.endpoint.port, step.connect_timeout_s)
        except OSError as error:
            opened.failure = classify(error, during="connect")
            return opened
        opened.connect_ms = _ms_since(start)
        if handshake is None:
            return opened
        start, opened.sock = time.monotonic(), None
        try:
            opened.sock = handshake(plain)
        except WrongCertificate:
            opened.failure = "tls_wrong_certificate"
        except OSError as error:
            opened.failure = classify(error, during="tls")
        else:
            opened.tls_ms = _ms_since(start)
        return opened

    def _move(
        self, sock: socket.socket, step: RunSegment, known: _Known | None, *, sleep_mbps: float
    ) -> tuple[_Moved, bool]:
        moved = _Moved()
        said = False
        start = time.monotonic()
        limit = start + step.transfer_timeout_s
        try:
            sock.settimeout(step.transfer_timeout_s)
            for greeting in greetings(step, step.hello(local_address(sock))):
                sock.sendall(greeting)
            said = True
            moved.altered = not take_answer(sock, step, limit)
        except (OSError, EOFError) as error:
            moved.failure = classify(error, during="transfer")
            moved.seconds = time.monotonic() - start if said else 0.0
            return moved, said
        if step.direction == "down":
            _receive(sock, self._view, moved, _Clock(start, step.segment_s, limit), known.check if known else None)
        else:
            begun = time.monotonic()  # after the answer, where there is one to wait for
            clock = _Clock(begun, step.segment_s, begun + step.segment_s + UP_GRACE_S)
            _send(sock, known.payload if known else self._view, moved, clock, sleep_mbps)
        moved.seconds = time.monotonic() - start
        return moved, True


class _Known:
    """The payload of a carrier that does not encrypt: to be sent, or to compare with."""

    def __init__(self, step: RunSegment) -> None:
        up = step.direction == "up"
        self.payload = memoryview(payload(step.carrier, step.ticket) if up else b"")
        self.check = None if up else Check(step.carrier, step.ticket)


def _is_cpu_limited(cpu: float, wall: float) -> bool:
    """Whether this process computed nearly all the time since these two readings."""
    return (time.process_time() - cpu) / max(_CPU_NOTICED_S, time.monotonic() - wall) > _CPU_LIMITED


def _sleep_pace(options: SenderOptions | None, pace_mbps: float) -> float:
    """The pace that is left to keep by sleeping: 0 where the kernel keeps it or we receive."""
    return 0.0 if options is None or options.paced else pace_mbps


def _ms_since(start: float) -> float:
    return round((time.monotonic() - start) * 1000, 3)


def _receive(sock: socket.socket, view: memoryview, moved: _Moved, clock: _Clock, check: Check | None = None) -> None:
    """Read until the peer ends it, or until its clock is surely over and the line silent, or until the limit."""
    sock.setblocking(False)
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    recv_into, monotonic, limit = sock.recv_into, time.monotonic, clock.limit
    first: float | None = None
    last = clock.start
    fill = Fill(sock, last)
    while last < limit:
        try:
            got = recv_into(view)
        except (ssl.SSLWantReadError, BlockingIOError):
            until = limit
            if first is not None:
                # The reflector's clock started before its first byte came here.
                until = min(limit, max(first + clock.nominal_s, last) + _SILENCE_S)
            patience = until - monotonic()
            if patience <= 0 or not poller.poll(patience * 1000 + 1):
                break
            continue
        except OSError as error:
            moved.failure = _ending(sock, error, clock)
            return
        if not got:
            moved.failure = _ending(sock, EOFError(), clock)
            return
        last = monotonic()
        if first is None:
            first = last
        moved.bytes += got
        if last >= fill.next_at:
            fill.look(last)
            moved.full_s = fill.full_s
        if check is not None and not moved.altered:
            check.take(view[:got])
            moved.altered = check.is_altered
    moved.failure = None if moved.bytes else "stalled"


def _send(sock: socket.socket, noise: memoryview, moved: _Moved, clock: _Clock, sleep_mbps: float) -> None:
    """Write until the peer's reset or the limit. Paces by sleeping where the kernel does not (`sleep_mbps` > 0)."""
    sock.setblocking(False)
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    send, monotonic = sock.send, time.monotonic
    at = 0
    bytes_per_s = sleep_mbps * 1e6 / 8
    while (now := monotonic()) < clock.limit:
        if bytes_per_s and (ahead := moved.bytes - (now - clock.start) * bytes_per_s) > 0:
            time.sleep(min(0.01, ahead / bytes_per_s))
            continue
        try:
            sent = send(noise[at : at + _WRITE_BYTES])
            moved.bytes += sent
            at = (at + sent) % len(noise)
        except (ssl.SSLWantWriteError, BlockingIOError):
            poller.poll((clock.limit - now) * 1000 + 1)
        except OSError as error:
            moved.failure = _ending(sock, error, clock)
            return
    moved.failure = None if moved.bytes else "stalled"


def _ending(sock: socket.socket, error: Exception, clock: _Clock) -> Failure | None:
    """An end at the segment's own time or later is its normal one, in whatever form the reset reached us."""
    if time.monotonic() >= clock.over:
        return None
    failure = classify(error, during="transfer")
    return "connection_reset" if failure == "end_of_stream" and was_reset(sock) else failure

# SPDX-License-Identifier: EUPL-1.2
"""A short neutral transfer that finds out what the line carries, and ends as soon as others would feel it.

Somebody may be on the telephone. So the transfer grows from 1 Mbit/s, the control channel's round-trip time is watched
beside it, and where a queue shows the rate of the last moments is what the line carries: a queue means that it carries
no more. Nothing here knows an arm. Spec: spec/protocol.md, section "Data connection".
"""

from __future__ import annotations

import select
import socket
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Self

from probe.netio.control import ControlFailed
from probe.netio.dial import SO_MAX_PACING_RATE, local_address, prepare_sender, tcp_info
from probe.protocol.ramp import RAMP, STEP_S, QueueSigns, ramp_bytes, ramp_mbps
from probe.protocol.steps import Calibrate

Ping = Callable[[float], float | None]
"""A round trip in ms, or None where it took longer than so many seconds. Raises ControlFailed."""

_PING_S: Final = 0.3
_PING_EVERY_S: Final = 0.015
_LOOK_S: Final = 0.02
_WINDOW_S: Final = 0.12
"""What is taken as the rate where a queue ended the transfer."""
_LEAST_S: Final = 0.08
_IDLE_PINGS: Final = 8
_IDLE_S: Final = 0.4
_WRITE_BYTES: Final = 4096


class Watcher:
    """Pings in a thread while a calibration runs."""

    def __init__(self, ping: Ping | None) -> None:
        self._ping = ping
        self._signs: QueueSigns | None = None
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        idle = self._idle_ms()
        if self._ping is not None and idle:
            # How restless the idle line is, but for one outlier: jitter of a radio is no queue of ours.
            self._signs = QueueSigns(sorted(idle)[-2] if len(idle) > 2 else min(idle))
            self._thread = threading.Thread(target=self._watch, args=(self._ping, self._signs), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def is_queueing(self) -> bool:
        """Whether the line shows a queue."""
        return self._signs is not None and self._signs.is_queueing

    def _idle_ms(self) -> list[float]:
        """Round trips before the transfer; none where the channel fails, which the next request will tell."""
        took: list[float] = []
        end = time.monotonic() + _IDLE_S
        try:
            while self._ping is not None and len(took) < _IDLE_PINGS and time.monotonic() < end:
                ms = self._ping(_PING_S)
                took += [ms] if ms is not None else []
        except ControlFailed:
            return []
        return took

    def _watch(self, ping: Ping, signs: QueueSigns) -> None:
        while not self._is_over.is_set() and not signs.is_queueing:
            begun = time.monotonic()
            try:
                signs.took(ping(_PING_S))
            except ControlFailed:
                return
            self._is_over.wait(max(0.0, _PING_EVERY_S - (time.monotonic() - begun)))


class Samples:
    """Bytes so far at times, and the rate that follows from them."""

    def __init__(self, now: float, counts_after_s: float, total: int = 0) -> None:
        self._since = now + counts_after_s
        self._half: tuple[float, int] | None = None
        self._recent: deque[tuple[float, int]] = deque([(now, total)])
        self.first = now

    def add(self, now: float, total: int) -> None:
        """So many bytes by now."""
        if self._half is None and now >= self._since:
            self._half = self._recent[-1]
        self._recent.append((now, total))
        while len(self._recent) > 2 and self._recent[1][0] <= now - _WINDOW_S:
            self._recent.popleft()

    def rate_mbps(self, *, of_the_last: bool) -> float | None:
        """Over the last moments, or over all that counts; None where that is too little to say anything."""
        begun = self._recent[0] if of_the_last else self._half
        ended = self._recent[-1]
        if begun is None or ended[0] - begun[0] < _LEAST_S / 2 or ended[1] <= begun[1]:
            return None
        return (ended[1] - begun[1]) * 8 / (ended[0] - begun[0]) / 1e6


def calibrate(sock: socket.socket, view: memoryview, step: Calibrate, watcher: Watcher) -> float | None:
    """Mbit/s that was reached in the second half, or when a queue showed; None where nothing can be said.

    The socket is connected and has not said its hello; it is the caller's to reset. Raises OSError.
    """
    with watcher:
        sock.settimeout(step.tls_timeout_s)
        sock.sendall(step.hello(local_address(sock)))
        sock.setblocking(False)
        return _down(sock, view, step, watcher) if step.direction == "down" else _up(sock, view, step, watcher)


def _down(sock: socket.socket, view: memoryview, step: Calibrate, watcher: Watcher) -> float | None:
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    start = time.monotonic()
    limit = start + step.transfer_timeout_s
    samples: Samples | None = None
    total, now = 0, start
    is_stopped = False
    while now < limit and not (is_stopped := _may_stop(samples, now, watcher)):
        try:
            got = sock.recv_into(view)
        except (ssl.SSLWantReadError, BlockingIOError):
            poller.poll(_LOOK_S * 1000)
            now = time.monotonic()
            continue
        except OSError:
            break  # the reset that ends it
        if not got:
            break
        now = time.monotonic()
        total += got
        if samples is None:
            samples = Samples(now, step.duration_s / 2, total)
        samples.add(now, total)
    if samples is None or not (is_stopped or now - samples.first >= step.duration_s * 0.6):
        return None
    return samples.rate_mbps(of_the_last=is_stopped)


def _up(sock: socket.socket, view: memoryview, step: Calibrate, watcher: Watcher) -> float | None:
    is_paced = prepare_sender(sock, ramp_mbps(0, step.most_mbps, step.duration_s)).paced
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    start = now = time.monotonic()
    samples = Samples(now, RAMP * step.duration_s)
    before = tcp_info(sock)
    written, looked, stepped = 0, now, now
    is_stopped = False
    while now < start + step.duration_s and not (is_stopped := _may_stop(samples, now, watcher)):
        if is_paced and now - stepped >= STEP_S:
            stepped = now
            rate = round(ramp_mbps(now - start, step.most_mbps, step.duration_s) * 1e6 / 8)
            sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, min(rate, 2**32 - 2).to_bytes(4, sys.byteorder))
        try:
            if is_paced or written <= ramp_bytes(now - start, step.most_mbps, step.duration_s):
                written += sock.send(view[:_WRITE_BYTES])
            else:
                time.sleep(_LOOK_S / 10)
        except (ssl.SSLWantWriteError, BlockingIOError):
            poller.poll(_LOOK_S * 1000)
        except OSError:
            break
        now = time.monotonic()
        if now - looked >= _LOOK_S:
            looked, after = now, tcp_info(sock)
            samples.add(now, after.acked_bytes - before.acked_bytes if before and after else written)
    if not is_stopped and now - start < step.duration_s * 0.6:
        return None
    return samples.rate_mbps(of_the_last=is_stopped)


def _may_stop(samples: Samples | None, now: float, watcher: Watcher) -> bool:
    """A queue shows, and there is enough to tell a rate from."""
    return watcher.is_queueing and samples is not None and now - samples.first >= _LEAST_S

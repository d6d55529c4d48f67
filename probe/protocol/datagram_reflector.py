# SPDX-License-Identifier: EUPL-1.2
"""A segment over UDP as the reflector runs it, once the probe has echoed its cookie: it sends or counts.

No sockets and no clock: `receive` takes datagrams, `poll` gives those to send. Spec: spec/carriers.md, sections
"Datagrams" and "Account".
"""

from __future__ import annotations

import abc
import hashlib
import statistics
from dataclasses import replace
from typing import Final

from probe.protocol.accounts import Counted, Job
from probe.protocol.datagram import DATA, DATAGRAM_BYTES, END, FEEDBACK, WRAP, Codec, Packet, read_opening
from probe.protocol.datagram_flow import Farewell, Filler, Receiver, Sender
from probe.protocol.datagram_rate import FEEDBACK_S, SILENCE_S
from probe.protocol.session import BIN_MS, HELLO_WAIT_S
from probe.wire.limits import MAX_BINS
from probe.wire.records import SegmentEnd

_LAST_WORD_S: Final = 2.5 * FEEDBACK_S
"""Down, the account is closed with the first feedback after the clock's end, or so much later without one."""
_BIN_S: Final = BIN_MS / 1000


class Tally:
    """Bytes by bins of nominally 100 ms; the true time of each reading is kept."""

    def __init__(self, now: float) -> None:
        self.started = now
        self.bins_ms: list[int] = []
        self.bins_bytes: list[int] = []
        self.total = 0
        self._next = now + _BIN_S

    @property
    def next_at(self) -> float:
        """When a reading closes the present bin."""
        return self._next

    def read(self, now: float, total: int) -> None:
        """The counter stands at `total`."""
        offset, more = round((now - self.started) * 1000), total - self.total
        if self.bins_ms and (offset <= self.bins_ms[-1] or len(self.bins_ms) >= MAX_BINS):
            self.bins_bytes[-1] += more
        else:
            self.bins_ms.append(offset)
            self.bins_bytes.append(more)
        self.total = total
        self._next = self.started + (int((now - self.started) / _BIN_S + 1e-6) + 1) * _BIN_S


class Flow(abc.ABC):
    """What both directions share: the clock, silence, and the way it ends."""

    def __init__(self, job: Job, codec: Codec, filler: Filler, now: float, unix_ms: int) -> None:
        self.job = job
        self.counted: Counted | None = None
        """Set when the account is closed, before the first `end` is given out by `poll`."""
        self.started_at = now
        self._codec = codec
        self._filler = filler
        self._tally = Tally(now)
        self._opened_at = now
        self._unix_ms = unix_ms
        self._farewell: Farewell | None = None
        self._is_altered = False

    @property
    def is_over(self) -> bool:
        """Nothing more will be sent."""
        return self._farewell is not None and self._farewell.is_over

    def receive(self, raw: bytes | memoryview, now: float) -> bool:
        """A datagram of this flow came; False where it counts for nothing."""
        packet = self._codec.open(raw)
        if packet is None:
            self._is_altered = self._is_altered or self._is_foreign(raw)
            return False
        if self.counted is None:
            if packet.kind == END:
                self.stop(now)
            else:
                self._take(packet, len(raw), now)
        return True

    def poll(self, now: float) -> list[bytes]:
        """What is to be sent now; ends the account when its time has come."""
        out = self._run(now) if self.counted is None else []
        return out + (self._farewell.due(now) if self._farewell else [])

    def stop(self, now: float) -> None:
        """End it before its time: the pair was finished, the probe has ended, or the reflector stops."""
        if self.counted is None:
            self._close("aborted", now)

    @property
    def wake_at(self) -> float:
        """When `poll` is to be called at the latest."""
        return self._farewell.wake_at if self._farewell else self._next_at()

    @property
    def _clock_end(self) -> float:
        return self.started_at + self.job.duration_s

    def _unix(self, at: float) -> int:
        return self._unix_ms + round((at - self._opened_at) * 1000)

    def _is_foreign(self, raw: bytes | memoryview) -> bool:
        """Whether the probe cannot have sent this; its flight and hello may come twice, and late."""
        return read_opening(bytes(raw)) is None and hashlib.sha256(raw).hexdigest() != self.job.flight

    def _close(self, end: SegmentEnd, now: float) -> None:
        self.counted = replace(self._count(end, now), altered=self._is_altered)
        self._farewell = Farewell(self._codec, self._filler, now)

    @abc.abstractmethod
    def _take(self, packet: Packet, size: int, now: float) -> None:
        """A datagram of this segment came, before its account was closed."""

    @abc.abstractmethod
    def _run(self, now: float) -> list[bytes]:
        """What the segment sends now; closes the account when its time has come."""

    @abc.abstractmethod
    def _next_at(self) -> float:
        """When `_run` is to be called at the latest."""

    @abc.abstractmethod
    def _count(self, end: SegmentEnd, now: float) -> Counted:
        """The account as it is closed."""


class DownFlow(Flow):
    """The reflector sends. What counts is what the probe's feedback says arrived, at the time the feedback came."""

    def __init__(self, job: Job, codec: Codec, filler: Filler, now: float, unix_ms: int) -> None:
        super().__init__(job, codec, filler, now, unix_ms)
        self._sender = Sender(codec, filler, job.pace_mbps, now)
        self._octets = 0
        self._arrived = 0
        self._arrived_at = now
        self._rtts: list[float] = []

    def _take(self, packet: Packet, size: int, now: float) -> None:
        control = self._sender.control
        arrived = self._arrived + (packet.octets - self._octets) % WRAP
        if packet.kind != FEEDBACK or arrived > self._sender.sent * DATAGRAM_BYTES:
            return
        if not self._sender.heard(packet, now):
            return
        self._arrived, self._octets, self._arrived_at = arrived, packet.octets, now
        if now >= self._tally.next_at or now >= self._clock_end:
            if control.rtt_s is not None:
                self._rtts.append(control.rtt_s * 1000)
            self._tally.read(now, self._arrived)
        if now >= self._clock_end:
            self._close("complete", now)

    def _run(self, now: float) -> list[bytes]:
        if now >= self._clock_end + _LAST_WORD_S:
            self._close("complete", now)
            return []
        out = self._sender.due(now)
        if self._sender.has_stopped:
            self._close("aborted", now)
        return out

    def _next_at(self) -> float:
        return min(self._sender.wake_at, self._clock_end + _LAST_WORD_S)

    def _count(self, end: SegmentEnd, now: float) -> Counted:
        control = self._sender.control
        self._tally.read(self._arrived_at, self._arrived)
        return Counted(
            end=end,
            started_ms=self._unix(self.started_at),
            duration_ms=round((now - self.started_at) * 1000),
            bytes=self._tally.total,
            bins_ms=tuple(self._tally.bins_ms),
            bins_bytes=tuple(self._tally.bins_bytes),
            rtt_min_ms=None if control.rtt_min_s is None else round(control.rtt_min_s * 1000, 3),
            rtt_ms=round(statistics.median(self._rtts), 3) if self._rtts else None,
            datagrams_sent=self._sender.sent_before(self._arrived_at),
            datagrams_received=control.received,
        )


class UpFlow(Flow):
    """The probe sends. What counts is what arrives here; the clock starts with the first datagram."""

    def __init__(self, job: Job, codec: Codec, filler: Filler, now: float, unix_ms: int) -> None:
        super().__init__(job, codec, filler, now, unix_ms)
        self._receiver = Receiver(codec, filler, now)

    def _take(self, packet: Packet, size: int, now: float) -> None:
        if packet.kind != DATA:
            return
        if self._receiver.first_at is None:
            self.started_at = now
            self._tally = Tally(now)
        self._receiver.take(packet, size, now)

    def _run(self, now: float) -> list[bytes]:
        receiver = self._receiver
        if now >= self._tally.next_at and receiver.first_at is not None:
            self._tally.read(now, receiver.bytes)
        if receiver.first_at is not None and now >= self._clock_end:
            self._close("complete", now)
            return []
        patience = HELLO_WAIT_S if receiver.first_at is None else SILENCE_S
        if now - receiver.last_at >= patience:
            self._close("aborted", now)
            return []
        return receiver.due(now)

    def _next_at(self) -> float:
        receiver = self._receiver
        if receiver.first_at is None:
            return min(receiver.wake_at, receiver.last_at + HELLO_WAIT_S)
        return min(receiver.wake_at, receiver.last_at + SILENCE_S, self._clock_end, self._tally.next_at)

    def _count(self, end: SegmentEnd, now: float) -> Counted:
        receiver = self._receiver
        self._tally.read(now, receiver.bytes)
        return Counted(
            end=end,
            started_ms=self._unix(self.started_at),
            duration_ms=round((now - self.started_at) * 1000),
            bytes=receiver.bytes,
            bins_ms=tuple(self._tally.bins_ms),
            bins_bytes=tuple(self._tally.bins_bytes),
            datagrams_sent=receiver.highest,
            datagrams_received=receiver.count,
        )


def flow_for(job: Job, codec: Codec, filler: Filler, now: float, unix_ms: int) -> Flow:
    """The flow of a job."""
    kind = DownFlow if job.direction == "down" else UpFlow
    return kind(job, codec, filler, now, unix_ms)

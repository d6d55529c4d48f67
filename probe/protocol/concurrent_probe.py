# SPDX-License-Identifier: EUPL-1.2
"""A slot of a concurrent pair as the probe runs it: it answers each small packet at once, and that is all.

Over UDP the opening is that of every other segment. Over TCP the packets are frames of one length in both directions.
No sockets and no clock, and nothing here knows which arm it serves. Spec: spec/protocol.md, section "Concurrent
pairs"; spec/carriers.md, section "Small packets".
"""

from __future__ import annotations

from typing import Final

from probe.protocol import sealed
from probe.protocol.concurrent import GRACE_S, echo_of
from probe.protocol.datagram import ALIVE, PING, SIGNAL_BYTES, Codec, Packet, RandomBytes, microseconds
from probe.protocol.datagram_flow import Filler
from probe.protocol.datagram_probe import CLOCK_SLACK_S, SILENCE_AFTER_S, ProbeFlow
from probe.protocol.steps import RunSegment
from probe.wire.records import Carrier

ALIVE_S: Final = 0.1
"""So long after its last datagram the probe sends another, so that a slot whose packets are lost is not given up."""


class AnsweringFlow(ProbeFlow):
    """One slot over UDP. `is_open` says that the reflector has heard the cookie; `begin` starts the clock."""

    def __init__(self, step: RunSegment, hello: bytes, filler: Filler, random_bytes: RandomBytes, now: float) -> None:
        super().__init__(step, hello, filler, random_bytes, now)
        self.pings = 0
        """Small packets that came, the welcome left out."""
        self.begun_at: float | None = None
        self._size = step.packet_bytes
        self._waiting: list[bytes] = []
        self._said_at = now
        self._alive = 0

    @property
    def is_open(self) -> bool:
        """Whether the reflector has answered the cookie."""
        return self.phase == "moving"

    def begin(self, now: float) -> None:
        """The load's hello has left: the reflector starts the pair's clock with it."""
        self.begun_at = self._said_at = now

    def poll(self, now: float) -> list[bytes]:
        """What is to be sent now: echoes first, for they are timed."""
        out, self._waiting = self._waiting, []
        out += super().poll(now)
        if self.phase == "moving" and self.begun_at is not None and now >= self._said_at + ALIVE_S:
            self._alive += 1
            packet = Packet(ALIVE, self._alive, microseconds(now))
            out.append(self._codec.seal(packet, self._filler.next(SIGNAL_BYTES)))
        if out:
            self._said_at = now
        return out

    @property
    def moved(self) -> int:
        """UDP payload of the small packets that came."""
        return self.pings * self._size

    @property
    def datagrams_sent(self) -> int | None:
        """Echoes; as many as packets came."""
        return self.pings

    @property
    def datagrams_received(self) -> int | None:
        """Small packets that came."""
        return self.pings

    @property
    def wake_at(self) -> float:
        """When `poll` is to be called at the latest."""
        if self._waiting:
            return self._began
        if self.phase != "moving":
            return super().wake_at
        alive = self._said_at + ALIVE_S if self.begun_at is not None else self._patience
        return min(self._patience, alive)

    def _start(self, now: float) -> None:
        self.started_at = now

    def _take(self, packet: Packet, size: int, now: float) -> None:
        if packet.kind != PING:
            return
        self.phase = "moving"
        self.pings += packet.sequence > 0
        self._waiting.append(self._codec.seal(echo_of(packet, now), self._filler.next(self._size)))

    @property
    def _over(self) -> float:
        return float("inf") if self.begun_at is None else self.begun_at + self._step.segment_s - CLOCK_SLACK_S

    @property
    def _patience(self) -> float:
        if self.begun_at is None:
            return float("inf")
        return self.begun_at + self._step.segment_s + GRACE_S + SILENCE_AFTER_S

    def _look_at_clock(self, now: float) -> None:
        if now >= self._patience:
            self._end(None if self.pings else "stalled", now)


class Frames:
    """Small packets in a stream: one after the other, all of one length, so that nothing has to be searched for.

    Over `hello` each is the body of a record that looks like TLS.
    """

    def __init__(self, carrier: Carrier, codec: Codec, size: int) -> None:
        self._codec = codec
        self._size = size
        self._is_record = carrier == "hello"
        self._got = b""
        self.is_altered = False
        """A whole frame came that the other side cannot have made."""
        self.wire_bytes = size + (sealed.RECORD_HEADER_BYTES if self._is_record else 0)
        """Of each frame, as it is given to the connection."""

    def make(self, packet: Packet, filler: Filler) -> bytes:
        """A packet as it goes into the stream."""
        raw = self._codec.seal(packet, filler.next(self._size))
        return sealed.record(raw) if self._is_record else raw

    def take(self, received: bytes) -> list[Packet]:
        """The packets that these bytes complete; what is none of the other side's counts for nothing."""
        self._got += received
        found: list[Packet] = []
        while len(self._got) >= self.wire_bytes:
            raw, self._got = self._got[: self.wire_bytes], self._got[self.wire_bytes :]
            packet = self._codec.open(raw[self.wire_bytes - self._size :])
            if packet is not None:
                found.append(packet)
            else:
                self.is_altered = True
        return found

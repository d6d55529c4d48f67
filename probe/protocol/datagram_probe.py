# SPDX-License-Identifier: EUPL-1.2
"""A segment over UDP as the probe runs it: flight, hello, cookie, then counting or sending until the end.

No sockets and no clock: `receive` takes datagrams, `poll` gives those to send. Which arm it serves it does not know.
Spec: spec/carriers.md, sections "Opening over UDP" and "Datagrams".
"""

from __future__ import annotations

from typing import Final, Literal

from probe.protocol.datagram import CHALLENGE, DATA, END, FEEDBACK, Codec, Packet, RandomBytes, opening
from probe.protocol.datagram_flow import Farewell, Filler, Receiver, Sender
from probe.protocol.session import UP_GRACE_S
from probe.protocol.steps import RunSegment
from probe.wire.failure import Failure

REPEAT_S: Final = 0.25
"""Flight and hello are sent again after so long without an answer."""
SILENCE_AFTER_S: Final = 0.25
"""Once the reflector's clock is surely over, so long without a datagram means that its three ends were lost."""
CLOCK_SLACK_S: Final = 0.02
"""As over TCP: the reflector's timer may fire a little early, and its clock may run faster than ours."""


class ProbeFlow:
    """One segment. `is_over` says when to close the socket; what it was is in the other attributes."""

    def __init__(self, step: RunSegment, hello: bytes, filler: Filler, random_bytes: RandomBytes, now: float) -> None:
        if step.wire is None:
            raise ValueError(f"the carrier {step.carrier} needs the bytes of its arm")
        wire = step.wire
        self.phase: Literal["knocking", "echoing", "moving", "over"] = "knocking"
        self.failure: Failure | None = None
        self.hello_sent = False
        self.answered_s: float | None = None
        """From the first flight to the reflector's challenge."""
        self.started_at: float | None = None
        """When the cookie was first echoed."""
        self.ended_at: float | None = None
        self.altered = False
        """A datagram came that the reflector cannot have sent."""
        self._step = step
        self._wire = wire
        self._hello = hello
        self._filler = filler
        self._random = random_bytes
        self._codec = Codec(step.ticket, "probe", wire.head)
        self._began = now
        self._deadline = now + step.connect_timeout_s
        self._cookie: bytes | None = None
        self._repeat_at = now
        self._turn: Literal["flight", "listen", "hello", "both"] = "flight" if wire.answer else "both"
        """What is sent next. An arm's answer is to be the packet behind its flight, so the hello waits for it."""
        self._receiver: Receiver | None = None
        self._sender: Sender | None = None
        self._farewell: Farewell | None = None
        self._sending_since = now

    # -- what the shell calls -----------------------------------------------------------------------------------

    def receive(self, raw: bytes | memoryview, now: float) -> None:
        """A datagram came from the reflector's address."""
        packet = self._codec.open(raw)
        if packet is None and self.phase != "over" and raw != self._wire.answer:
            self.altered = True
        if packet is None or self.phase == "over":
            if self._turn == "listen" and raw == self._wire.answer:
                self._turn, self._repeat_at = "hello", now
            return  # the profile's answer, or somebody else's
        if packet.kind == CHALLENGE:
            self._take_challenge(packet, now)
        elif self.started_at is None:
            return  # nothing else is sent to who has not echoed
        elif packet.kind == END:
            self._end(None if now >= self._over else "connection_aborted", now)
        else:
            self._take(packet, len(raw), now)

    def _take(self, packet: Packet, size: int, now: float) -> None:
        """A datagram of the segment itself came."""
        if self._step.direction == "down" and packet.kind == DATA and self._receiver is not None:
            self.phase = "moving"
            self._receiver.take(packet, size, now)
        elif self._step.direction == "up" and packet.kind == FEEDBACK:
            self._take_feedback(packet, now)

    def poll(self, now: float) -> list[bytes]:
        """What is to be sent now."""
        out = []
        if self.phase in {"knocking", "echoing"}:
            out = self._open(now)
        if self.phase == "moving":
            self._look_at_clock(now)
        if self._receiver is not None and self.phase != "over":
            out += self._receiver.due(now)
        if self._sender is not None and self.phase == "moving":
            out += self._sender.due(now)
            if self._sender.has_stopped:
                self._give_up(now)
        if self._farewell is not None:
            out += self._farewell.due(now)
        return out

    def broke(self, failure: Failure, now: float) -> None:
        """The socket reported an error; once the clock is over, an unreachable peer is how it may end."""
        self._end(failure if self.started_at is None or now < self._over else None, now)

    @property
    def is_over(self) -> bool:
        """Nothing more to do."""
        return self.phase == "over" and (self._farewell is None or self._farewell.is_over)

    @property
    def wake_at(self) -> float:
        """When `poll` is to be called at the latest."""
        if self._farewell is not None:
            return self._farewell.wake_at
        times = []
        if self.phase in {"knocking", "echoing"}:
            times += [self._repeat_at, self._deadline]
        if self._receiver is not None:
            times.append(self._receiver.wake_at)
        if self.phase == "moving":
            times.append(self._patience)
            if self._sender is not None:
                times.append(self._sender.wake_at)
        return min(times, default=self._began)

    # -- what is told -------------------------------------------------------------------------------------------

    @property
    def moved(self) -> int:
        """UDP payload in data datagrams: received (down), handed to the kernel (up)."""
        if self._sender is not None:
            return self._sender.sent_bytes
        return self._receiver.bytes if self._receiver is not None else 0

    @property
    def datagrams_sent(self) -> int | None:
        """Up."""
        return self._sender.sent if self._sender is not None else None

    @property
    def datagrams_received(self) -> int | None:
        """Down."""
        return self._receiver.count if self._receiver is not None else None

    @property
    def rtt_min_s(self) -> float | None:
        """Up."""
        return self._sender.control.rtt_min_s if self._sender is not None else None

    # -- opening ------------------------------------------------------------------------------------------------

    def _open(self, now: float) -> list[bytes]:
        if now >= self._deadline:
            self._end("connect_timeout", now)
            return []
        if now < self._repeat_at:
            return []
        self._repeat_at = now + REPEAT_S
        if self._turn == "flight":
            self._turn = "listen"
            return [self._wire.flight]
        hello = opening(self._wire.head, self._hello, self._random, *([self._cookie] if self._cookie else []))
        self.hello_sent = True
        if self._cookie is None:
            out = [hello] if self._turn == "hello" else [self._wire.flight, hello]
            self._turn = "both"
            return out
        if self.started_at is None:
            self._start(now)
        return [hello]

    def _start(self, now: float) -> None:
        """The first echo leaves: from here on the reflector may begin."""
        self.started_at = now
        if self._step.direction == "down":
            self._receiver = Receiver(self._codec, self._filler, now)

    def _take_challenge(self, packet: Packet, now: float) -> None:
        if self.phase == "knocking":
            self.phase = "echoing"
            self.answered_s = now - self._began
            self._cookie, self._repeat_at = packet.cookie, now

    # -- moving -------------------------------------------------------------------------------------------------

    def _take_feedback(self, packet: Packet, now: float) -> None:
        if self._sender is None:
            self.phase = "moving"
            self._sending_since = now
            self._sender = Sender(self._codec, self._filler, self._step.pace_mbps, now)
        self._sender.heard(packet, now)

    @property
    def _over(self) -> float:
        """An end at this time or later is the normal one."""
        return (self.started_at or self._began) + self._step.segment_s - CLOCK_SLACK_S

    @property
    def _patience(self) -> float:
        """When to stop although nobody said so."""
        if self._sender is not None:
            return self._sending_since + self._step.segment_s + UP_GRACE_S
        limit = (self.started_at or self._began) + self._step.transfer_timeout_s
        receiver = self._receiver
        if receiver is None or receiver.first_at is None:
            return limit
        return min(limit, max(receiver.first_at + self._step.segment_s, receiver.last_at) + SILENCE_AFTER_S)

    def _look_at_clock(self, now: float) -> None:
        if now >= self._patience:
            self._end(None if self.moved else "stalled", now)

    def _give_up(self, now: float) -> None:
        """Up: no feedback, or the circuit breaker. The reflector is told, in case it can hear."""
        self._end(None if now >= self._over else "stalled", now)
        self._farewell = Farewell(self._codec, self._filler, now)

    def _end(self, failure: Failure | None, now: float) -> None:
        if self.phase != "over":
            self.phase, self.failure, self.ended_at = "over", failure, now

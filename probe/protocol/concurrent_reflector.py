# SPDX-License-Identifier: EUPL-1.2
"""A slot of a concurrent pair over UDP as the reflector runs it, once the probe has echoed its cookie.

It waits for the pair to begin, then sends small packets at their times and notes when each echo came back. No sockets
and no clock. Spec: spec/protocol.md, section "Concurrent pairs"; spec/carriers.md, section "Small packets".
"""

from __future__ import annotations

import statistics

from probe.protocol.accounts import Counted, Job
from probe.protocol.concurrent import MOST_WELCOMES, STALE_S, START_WAIT_S, WELCOME_EVERY_S, Echoes
from probe.protocol.datagram import Codec, Packet
from probe.protocol.datagram_flow import Filler
from probe.protocol.datagram_rate import SILENCE_S
from probe.protocol.datagram_reflector import Flow
from probe.wire.records import SegmentEnd


class EchoFlow(Flow):
    """The slot. `begin` starts its clock; until then it sends a few welcomes and nothing else."""

    def __init__(self, job: Job, codec: Codec, filler: Filler, now: float, unix_ms: int) -> None:
        super().__init__(job, codec, filler, now, unix_ms)
        if job.echo is None:
            raise ValueError("a slot needs to know what it sends")
        self._echoes = Echoes(job.echo)
        self._heard_at = now
        self._is_heard = False
        self._welcomes = 0
        self._thin_at = now

    def begin(self, at: float) -> None:
        """The pair's clock starts."""
        if self.counted is None and self._echoes.begun_at is None:
            self._echoes.begin(at)
            self.started_at = self._heard_at = at

    def _take(self, packet: Packet, size: int, now: float) -> None:
        self._heard_at, self._is_heard = now, True
        self._echoes.take(packet, now)

    def _run(self, now: float) -> list[bytes]:
        echoes = self._echoes
        if echoes.begun_at is None:
            if now - self._opened_at >= START_WAIT_S:
                self._close("aborted", now)
                return []
            return self._welcome(now)
        if echoes.is_over(now):
            self._close("complete", now)
        elif now - self._heard_at >= SILENCE_S and now < echoes.clock_end:
            self._close("aborted", now)
        elif echoes.is_stale(now) and now < self._thin_at:
            echoes.skip(now)  # nothing comes back: what is sent nevertheless is to find out whether that has changed
        else:
            due = echoes.due(now)
            if due:
                self._thin_at = now + STALE_S
            return [self._sealed(packet) for packet in due]
        return []

    def _welcome(self, now: float) -> list[bytes]:
        """What tells the probe that its echo of the cookie was heard; five at most, until one is answered."""
        if self._is_heard or self._welcomes >= MOST_WELCOMES or now < self._next_welcome:
            return []
        self._welcomes += 1
        return [self._sealed(self._echoes.ping(0, now))]

    @property
    def _next_welcome(self) -> float:
        return self._opened_at + self._welcomes * WELCOME_EVERY_S

    def _sealed(self, packet: Packet) -> bytes:
        return self._codec.seal(packet, self._filler.next(self._echoes.plan.size))

    def _next_at(self) -> float:
        if self._echoes.begun_at is not None:
            silent_at = self._heard_at + SILENCE_S
            return min(self._echoes.wake_at, silent_at if silent_at < self._echoes.clock_end else self._echoes.wake_at)
        if self._is_heard or self._welcomes >= MOST_WELCOMES:
            return self._opened_at + START_WAIT_S
        return self._next_welcome

    def _count(self, end: SegmentEnd, now: float) -> Counted:
        return counted(self._echoes, end, now, self._unix(self.started_at), is_datagrams=True)


def counted(echoes: Echoes, end: SegmentEnd, now: float, started_ms: int, *, is_datagrams: bool) -> Counted:
    """The account of a slot, over whatever it went."""
    answered = [us for us in echoes.echo_us if us >= 0]
    begun = echoes.begun_at
    return Counted(
        end=end,
        started_ms=started_ms,
        duration_ms=0 if begun is None else max(0, round((now - begun) * 1000)),
        bytes=echoes.bytes,
        rtt_min_ms=min(answered) / 1000 if answered else None,
        rtt_ms=round(statistics.median(answered) / 1000, 3) if answered else None,
        datagrams_sent=echoes.sent if is_datagrams else None,
        datagrams_received=echoes.answered if is_datagrams else None,
        echo_us=echoes.echo_us if begun is not None else (),
    )

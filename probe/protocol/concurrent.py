# SPDX-License-Identifier: EUPL-1.2
"""What makes a concurrent pair: two slots of small regular packets through one queue, and a load that fills it.

The rules that both roles share, and the reflector's account of one slot's echoes. No sockets, no clock, no arms:
what differs between the slots is port, start and phase, and the coin says which arm has which.
Spec: spec/protocol.md, section "Concurrent pairs".
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

from probe.protocol import receipt_size
from probe.protocol.accounts import EchoPlan
from probe.protocol.datagram import ECHO, PING, Packet, microseconds
from probe.protocol.datagram_rate import datagram_pace_mbps
from probe.protocol.pacing import pair_bytes, segment_bytes
from probe.protocol.session import CONNECT_TIMEOUT_S, TICKET_WINDOW_S, TLS_TIMEOUT_S
from probe.wire.echo import BASELINE_S, UNANSWERED
from probe.wire.limits import MAX_ECHOES
from probe.wire.messages import PairCommit, SmallPackets

LEAST_SEGMENT_S: Final = 1.0
"""The baseline, and as long again with the load."""
GRACE_S: Final = 1.0
"""An echo counts until so long after the pair's clock: longer than nearly every queue."""
START_WAIT_S: Final = TICKET_WINDOW_S + 2 * (CONNECT_TIMEOUT_S + TLS_TIMEOUT_S)
"""An open slot waits so long for the pair to begin: the other slot and the load may each time out before."""
LOAD_ALPN: Final = ("h2", "http/1.1")
WELCOME_EVERY_S: Final = 0.1
MOST_WELCOMES: Final = 5
"""Over UDP: what an open slot sends before the pair begins, until one is answered."""
STALE_S: Final = 0.5
"""Without an echo for so long the reflector stops: over UDP to one packet in as much, over TCP altogether."""
_HEADERS: Final = 110
"""IP, TCP and TLS around a small packet and what acknowledges it, rounded up; for budgets only."""
LOAD_WINDOW_S: Final = 3 * TICKET_WINDOW_S
"""The load's ticket is good for so long after the reveal; the slots' for one and two of these windows."""


def packet_count(segment_s: float, interval_ms: int) -> int:
    """How many small packets each slot sends."""
    return int(segment_s * 1000 / interval_ms + 1e-6)


def small_mbps(packets: SmallPackets) -> float:
    """What one slot's packets take each way (UDP payload)."""
    return packets.bytes * 8 / packets.interval_ms / 1000


def load_s(segment_s: float) -> float:
    """How long the load runs."""
    return max(0.0, segment_s - BASELINE_S)


def concurrent_pair_bytes(pace_mbps: float, segment_s: float, packets: SmallPackets) -> int:
    """Most bytes that a concurrent pair puts on the line, both ways and headers included; of the load none where the
    pace is unlimited."""
    each = packet_count(segment_s, packets.interval_ms) * 2 * (packets.bytes + _HEADERS)
    return segment_bytes(pace_mbps, load_s(segment_s)) + 2 * each


def datagram_mbps(commit: PairCommit) -> float:
    """What a pair over UDP sends at once each way."""
    return 2 * small_mbps(commit.packets) if commit.packets else datagram_pace_mbps(commit.pace_mbps)


def wanted_bytes(commit: PairCommit) -> int:
    """Most bytes that a pair of either design puts on the line."""
    if commit.packets is None:
        return pair_bytes(commit.pace_mbps, commit.segment_s)
    return concurrent_pair_bytes(commit.pace_mbps, commit.segment_s, commit.packets)


def receipt_bytes(commit: PairCommit) -> float:
    """How much of a receipt a pair of either design may take."""
    if commit.packets is None:
        return receipt_size.sequential_bytes(commit.segment_s)
    return receipt_size.concurrent_bytes(packet_count(commit.segment_s, commit.packets.interval_ms))


def why_not_concurrent(commit: PairCommit) -> str:
    """What keeps a commitment from being a concurrent pair's, or a sequential one's; empty where nothing does."""
    packets = commit.packets
    if commit.design != "concurrent":
        return "" if packets is None else "small packets belong to concurrent pairs"
    if packets is None:
        return "a concurrent pair needs its small packets"
    if commit.segment_s < LEAST_SEGMENT_S:
        return f"a concurrent pair lasts at least {LEAST_SEGMENT_S:g} s"
    if packet_count(commit.segment_s, packets.interval_ms) > MAX_ECHOES:
        return f"more than {MAX_ECHOES} small packets in a slot: ask for shorter segments"
    if packets.load_name.lower() in {"", commit.app_name.lower(), commit.neutral_name.lower()}:
        return "the load needs a name that neither arm has"
    return ""


def echo_plan(commit: PairCommit, slot: Literal[0, 1], secret: bytes) -> EchoPlan:
    """What a slot of a committed concurrent pair sends; slot B is half an interval behind slot A."""
    if commit.packets is None:
        raise ValueError("only a concurrent pair has echoes")
    interval_s = commit.packets.interval_ms / 1000
    return EchoPlan(
        count=packet_count(commit.segment_s, commit.packets.interval_ms),
        interval_s=interval_s,
        size=commit.packets.bytes,
        offset_s=slot * interval_s / 2,
        secret=secret,
    )


class Echoes:
    """One slot's small packets as the reflector sends and times them. Times are seconds of a monotonic clock.

    Packet k (from 1) is due at the pair's start + offset + (k − 1) · interval. Each carries eight bytes that nobody
    can foresee, and its echo must bring them back: answering before the packet arrived earns nothing.
    """

    def __init__(self, plan: EchoPlan) -> None:
        self.plan = plan
        self.begun_at: float | None = None
        """When the pair began."""
        self.sent = 0
        self.answered = 0
        self.echoed_at: float | None = None
        """When the last echo came; the beginning until there is one."""
        self._next = 1
        self._sent_at: dict[int, float] = {}
        self._echo_us = [UNANSWERED] * plan.count

    def begin(self, at: float) -> None:
        """The pair begins; a second time changes nothing."""
        if self.begun_at is None:
            self.begun_at = self.echoed_at = at

    @property
    def clock_end(self) -> float:
        """When the segment's time is over; only after the beginning."""
        return self._begun + self.plan.count * self.plan.interval_s + self.plan.offset_s

    @property
    def is_all_sent(self) -> bool:
        """Whether every packet's turn has come."""
        return self._next > self.plan.count

    def is_over(self, now: float) -> bool:
        """Whether nothing more is to be waited for."""
        if self.begun_at is None or now < self.clock_end:
            return False
        return self.answered == self.plan.count or now >= self.clock_end + GRACE_S

    def is_stale(self, now: float) -> bool:
        """Whether no echo has come for half a second, although there was something to answer."""
        return self.echoed_at is not None and now - self.echoed_at >= STALE_S and self.answered < self.sent

    @property
    def wake_at(self) -> float:
        """When `due` or `is_over` want to be asked again."""
        if not self.is_all_sent:
            return self._due_at(self._next)
        return self.clock_end if self.answered == self.plan.count else self.clock_end + GRACE_S

    def due(self, now: float) -> list[Packet]:
        """The packets whose turn has come."""
        out: list[Packet] = []
        while self.begun_at is not None and not self.is_all_sent and self._due_at(self._next) <= now:
            self._sent_at[self._next] = now
            self.sent += 1
            out.append(self.ping(self._next, now))
            self._next += 1
        return out

    def skip(self, now: float) -> None:
        """Let the turn of the packets that are due pass without sending them: they stay unanswered."""
        while self.begun_at is not None and not self.is_all_sent and self._due_at(self._next) <= now:
            self._next += 1

    def ping(self, sequence: int, now: float) -> Packet:
        """A small packet; 0 is the welcome, which does not count."""
        first, second = self._token(sequence)
        return Packet(PING, sequence, microseconds(now), first, second)

    def take(self, packet: Packet, now: float) -> bool:
        """An echo came; False where it answers nothing that is waited for."""
        if packet.kind != ECHO or (packet.echo_us, packet.held_us) != self._token(packet.sequence):
            return False
        sent_at = self._sent_at.pop(packet.sequence, None)
        if sent_at is None:
            return packet.sequence == 0
        self._echo_us[packet.sequence - 1] = max(0, round((now - sent_at) * 1e6))
        self.answered += 1
        self.echoed_at = now
        return True

    @property
    def echo_us(self) -> tuple[int, ...]:
        """Round-trip times in the order of sending, −1 for each packet that has no echo."""
        return tuple(self._echo_us)

    @property
    def bytes(self) -> int:
        """Of the packets that were answered."""
        return self.answered * self.plan.size

    def _token(self, sequence: int) -> tuple[int, int]:
        raw = hashlib.blake2s(sequence.to_bytes(4, "big"), key=self.plan.secret, digest_size=8).digest()
        return int.from_bytes(raw[:4], "big"), int.from_bytes(raw[4:], "big")

    def _due_at(self, sequence: int) -> float:
        return self._begun + self.plan.offset_s + (sequence - 1) * self.plan.interval_s

    @property
    def _begun(self) -> float:
        if self.begun_at is None:
            raise ValueError("the pair has not begun")
        return self.begun_at


def echo_of(ping: Packet, now: float) -> Packet:
    """What the probe answers a small packet with."""
    return Packet(ECHO, ping.sequence, microseconds(now), ping.echo_us, ping.held_us)

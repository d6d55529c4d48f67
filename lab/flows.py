# SPDX-License-Identifier: EUPL-1.2
"""The middlebox's memory of transport flows: which flow a packet belongs to and what is known of it.

Both directions of a flow lead to one `Flow`, found by a stretch of the packet itself (addresses and ports
stand side by side in IPv4 and in IPv6), so that a packet of a known flow costs one dictionary look-up.
spec/lab.md sections 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from lab.classify import TCP, UDP, Direction, FlowFacts
from lab.packets import ACK, SYN, datagram, header_size, proto_of, segment, tcp_flags
from lab.tamper import HeaderInsertion

MAX_FLOWS: Final = 20_000  # remembered per subscriber, transport and direction; the oldest are forgotten first

State = TypeVar("State")


@dataclass
class Flow(Generic[State]):
    """One transport flow; `State` is whatever its owner keeps for the rule that treats a direction."""

    facts: FlowFacts
    client: Direction  # the direction in which the client sends
    key: bytes = b""  # addresses and ports as the client's packets have them
    isn: int = -1
    answered: bool = False
    moved: int = 0  # payload bytes, both ways
    epoch: int = -1  # of the rules it was last matched against; -1: match it again
    down: State | None = None
    up: State | None = None
    dead: Literal["", "block", "reset"] = ""
    insertion: HeaderInsertion | None = None

    @property
    def learning(self) -> bool:
        """Whether another packet could still add to what is known."""
        return not (self.facts.complete and (self.facts.established or self.facts.proto == UDP))

    def inspect(self, packet: bytes, direction: Direction) -> None:
        """Let the classifier see a packet; a fact learned makes the flow be matched again."""
        facts = self.facts
        if facts.proto == UDP:
            learned = facts.datagram(datagram(packet), "up" if direction == self.client else "down")
        elif direction != self.client:
            self.answered = self.answered or tcp_flags(packet) & (SYN | ACK) == SYN | ACK
            return
        else:
            learned = self._client_segment(packet)
        if learned:
            self.epoch = -1

    def _client_segment(self, packet: bytes) -> bool:
        tcp, facts = segment(packet), self.facts
        learned = False
        if tcp.flags & SYN:
            self.isn = tcp.sequence
            facts.syn(tcp.sequence)
        elif self.answered and not facts.established and tcp.flags & ACK:
            facts.established = learned = True
        if tcp.payload:
            sequence = tcp.sequence + bool(tcp.flags & SYN) & 0xFFFFFFFF
            learned = facts.client_segment(sequence, tcp.payload) or learned
        return learned


class FlowTable(Generic[State]):
    """The flows of one subscriber."""

    def __init__(self) -> None:
        self._flows: dict[Direction, dict[int, dict[bytes, Flow[State]]]] = {
            "down": {TCP: {}, UDP: {}},
            "up": {TCP: {}, UDP: {}},
        }

    def find(self, packet: bytes, direction: Direction) -> Flow[State] | None:
        """The packet's flow, a new one where it is the first or a SYN reuses the ports.

        None for what has no ports to look at: other protocols, fragments, IP options, IPv6 extension headers.
        """
        if packet[0] == 0x45 and not packet[6] & 0x3F and not packet[7]:
            proto, key, base = packet[9], packet[12:24], 20
        elif packet[0] >> 4 == 6 and len(packet) >= 48:
            proto, key, base = packet[6], packet[8:44], 40
        else:
            return None
        table = self._flows[direction].get(proto)
        if table is None or len(packet) < base + (20 if proto == TCP else 8):
            return None
        flow = table.get(key)
        if flow is not None and not (proto == TCP and _opens_anew(packet, base, flow.isn)):
            return flow
        return self._add(packet, direction, (proto, key, base))

    def _add(self, packet: bytes, direction: Direction, found: tuple[int, bytes, int]) -> Flow[State]:
        proto, key, base = found
        from_client = not (proto == TCP and packet[base + 13] & (SYN | ACK) == SYN | ACK)
        other: Direction = "up" if direction == "down" else "down"
        at = base + 2 if from_client else base
        facts = FlowFacts(proto=proto, server_port=packet[at] << 8 | packet[at + 1])
        half = (len(key) - 4) // 2
        reverse = key[half : 2 * half] + key[:half] + key[-2:] + key[-4:-2]
        client: Direction = direction if from_client else other
        flow: Flow[State] = Flow(facts, client=client, key=key if from_client else reverse)
        for side, name in ((direction, key), (other, reverse)):
            flows = self._flows[side][proto]
            flows.pop(name, None)
            if len(flows) >= MAX_FLOWS:
                del flows[next(iter(flows))]
            flows[name] = flow
        return flow


def _opens_anew(packet: bytes, base: int, isn: int) -> bool:
    """Whether a packet of known ports is the SYN of another connection, not a repetition of the known one."""
    flags = packet[base + 13]
    return bool(flags & SYN) and not flags & ACK and segment(packet).sequence != isn


def payload_size(packet: bytes) -> int:
    """Payload bytes of a TCP or UDP packet."""
    base = header_size(packet)
    return len(packet) - base - ((packet[base + 12] >> 4) * 4 if proto_of(packet) == TCP else 8)

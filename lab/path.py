# SPDX-License-Identifier: EUPL-1.2
"""What a bad path does to packets that came through a line: it swallows, reorders, repeats and damages them.

Properties of a link, so innocent: they meet every packet alike, whatever it carries. Without any I/O and
without a clock; the same seed does the same. spec/lab.md section 3; RFC 2923 section 2.1 (MTU black holes),
RFC 4737 (reordering), RFC 1071 (what a checksum does not see).
"""

from __future__ import annotations

import heapq
import itertools
import random
from typing import Final

from lab.model import Link
from lab.packets import header_size, payload_start, with_checksum

Out = tuple[int, bytes]
FAULTS: Final = ("swallowed", "reordered", "duplicated", "corrupted", "corrupted_payload")


def path_of(link: Link, rng: random.Random) -> Path | None:
    """The path behind one direction of a line; None where it does nothing."""
    faults = (link.path_mtu, link.reorder, link.duplicate, link.corrupt, link.corrupt_payload)
    return Path(link, rng) if any(faults) else None


class Path:
    """One direction of a path. `counted` says how often it did what."""

    def __init__(self, link: Link, rng: random.Random) -> None:
        self._link = link
        self._rng = rng
        self._held_s = link.reorder_ms / 1e3
        self._held: list[tuple[float, int, Out]] = []
        self._order = itertools.count()
        self.counted = dict.fromkeys(FAULTS, 0)

    def carry(self, out: list[Out], start: int, now: float) -> float:
        """Do to the packets from `start` on what the path does to them, and let go whom it held back by now.

        Says when the next held packet is due (infinity: none). Packets behind a held one overtake it.
        """
        if len(out) > start:
            arrived = out[start:]
            del out[start:]
            for one in arrived:
                self._pass(one, out, now)
        while self._held and self._held[0][0] <= now:
            out.append(heapq.heappop(self._held)[2])
        return self._held[0][0] if self._held else float("inf")

    def _pass(self, one: Out, out: list[Out], now: float) -> None:
        link, (port, packet) = self._link, one
        if link.path_mtu and len(packet) > link.path_mtu:
            self.counted["swallowed"] += 1
            return
        if self._happens(link.corrupt):
            packet = self._damaged(packet)
        if self._happens(link.corrupt_payload):
            packet = self._damaged_payload(packet)
        if self._happens(link.duplicate):
            self.counted["duplicated"] += 1
            out.append((port, packet))
        if self._happens(link.reorder):
            self.counted["reordered"] += 1
            heapq.heappush(self._held, (now + self._held_s, next(self._order), (port, packet)))
        else:
            out.append((port, packet))

    def _happens(self, share: float) -> bool:
        return share > 0 and self._rng.random() < share

    def _damaged(self, packet: bytes) -> bytes:
        """One bit behind the IP header is wrong, and so is the checksum."""
        self.counted["corrupted"] += 1
        return self._flipped(packet, header_size(packet))

    def _damaged_payload(self, packet: bytes) -> bytes:
        """One bit of what TCP or UDP carries is wrong and the checksum fits: only TLS can tell."""
        start = payload_start(packet)
        if start >= len(packet):
            return packet
        self.counted["corrupted_payload"] += 1
        return with_checksum(self._flipped(packet, start))

    def _flipped(self, packet: bytes, start: int) -> bytes:
        if start >= len(packet):
            return packet
        changed = bytearray(packet)
        changed[self._rng.randrange(start, len(packet))] ^= 1 << self._rng.randrange(8)
        return bytes(changed)

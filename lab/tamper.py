# SPDX-License-Identifier: EUPL-1.2
"""A header of the operator's in other people's HTTP requests, as boxes that mark subscribers insert it.

Inserting bytes into somebody's TCP stream moves everything behind them: from then on the client's sequence numbers
are shifted onward, and the server's acknowledgements and SACK blocks back, until the connection ends. A segment
that is sent again gets the same bytes again, however it is cut then. spec/lab.md section 3; RFC 9112 section 2.1,
RFC 9293 section 3.4, RFC 2018.
"""

from __future__ import annotations

import struct
from typing import Final

from lab.packets import header_size, segment, with_checksum, with_payload

MTU: Final = 1500
_HALF: Final = 1 << 31
_MASK: Final = 0xFFFFFFFF
_SACK: Final = 5


class HeaderInsertion:
    """The insertion in one connection: `text` (with its line end) stands before the client's byte number `at`."""

    def __init__(self, at: int, text: bytes) -> None:
        self._at = at & _MASK
        self._text = text

    @classmethod
    def into(cls, packet: bytes, header: str) -> HeaderInsertion | None:
        """The insertion behind the first line that ends in a client's packet; None where it holds no such end."""
        tcp = segment(packet)
        end = tcp.payload.find(b"\r\n")
        if end <= 0:  # at 0 it may end the head, and behind it nothing is a header
            return None
        return cls(tcp.sequence + end + 2, header.encode("ascii") + b"\r\n")

    def onward(self, packet: bytes) -> list[bytes]:
        """A client's packet as the server gets it: two of them where it would not fit one."""
        tcp = segment(packet)
        offset = (self._at - tcp.sequence) & _MASK
        if offset >= _HALF:  # it lies behind the insertion
            return [_renumbered(packet, tcp.sequence + len(self._text), tcp.acknowledgement)]
        if offset >= len(tcp.payload):
            return [packet]
        payload = tcp.payload[:offset] + self._text + tcp.payload[offset:]
        room = MTU - (len(packet) - len(tcp.payload))
        pieces = [(at, payload[at : at + room]) for at in range(0, len(payload), room)]
        return [with_payload(_renumbered(packet, tcp.sequence + at, None), piece) for at, piece in pieces]

    def back(self, packet: bytes) -> bytes:
        """A server's packet as the client gets it."""
        start = header_size(packet)
        end = start + (packet[start + 12] >> 4) * 4
        changed = bytearray(packet)
        at = start + 20
        while at + 1 < end and packet[at] != 0:
            size = 1 if packet[at] == 1 else packet[at + 1]
            if size < 1 or at + size > end:
                break
            if packet[at] == _SACK:
                for edge in range(at + 2, at + size - 3, 4):
                    (number,) = struct.unpack_from("!I", packet, edge)
                    struct.pack_into("!I", changed, edge, self._before(number))
            at += size
        tcp = segment(packet)
        return _renumbered(bytes(changed), tcp.sequence, self._before(tcp.acknowledgement))

    def _before(self, number: int) -> int:
        """What the client calls a byte number of the server's."""
        behind = (number - self._at) & _MASK
        return number if behind >= _HALF else (number - min(behind, len(self._text))) & _MASK


def _renumbered(packet: bytes, sequence: int, acknowledgement: int | None) -> bytes:
    at = header_size(packet) + 4
    numbers = struct.pack("!I", sequence & _MASK)
    if acknowledgement is not None:
        numbers += struct.pack("!I", acknowledgement & _MASK)
    return with_checksum(packet[:at] + numbers + packet[at + len(numbers) :])

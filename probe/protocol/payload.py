# SPDX-License-Identifier: EUPL-1.2
"""The payload of the TCP carriers without encryption, and whether what arrives is it.

TLS tells by itself when bytes were changed under way. `hello` and `stream` have nothing that could, so their payload
is a sequence that both ends can compute: it looks random, and whoever changes a byte of it is noticed. It follows from
the ticket, so no two connections carry the same. Spec: spec/carriers.md, section "Common to both".
"""

from __future__ import annotations

import hashlib
from typing import Final

from probe.protocol import sealed
from probe.wire.records import Carrier

_LABEL: Final = b"evenlane payload"
_STREAM_BYTES: Final = 64 * 1024
_HELLO_RECORDS: Final = 4
"""About as much as the stream repeats: 0.2 ms of work on a server, some milliseconds on a small router."""
KNOWN: Final[tuple[Carrier, ...]] = ("hello", "stream")
"""Carriers whose payload both ends know."""


def payload(carrier: Carrier, ticket: str) -> bytes:
    """What the sender repeats from its beginning on, as long as the segment runs."""
    size = _STREAM_BYTES if carrier == "stream" else _HELLO_RECORDS * sealed.RECORD_BODY_BYTES
    noise = hashlib.shake_256(_LABEL + bytes.fromhex(ticket)).digest(size)
    return noise if carrier == "stream" else sealed.framed(noise)


class Check:
    """Compares what arrives with what was sent; once it differs nothing more is compared."""

    def __init__(self, carrier: Carrier, ticket: str) -> None:
        self.is_altered = False
        self._expected = payload(carrier, ticket)
        self._at = 0

    def take(self, received: memoryview) -> None:
        """The next bytes of the payload."""
        at, expected, left = self._at, self._expected, received
        while left and not self.is_altered:
            piece = expected[at : at + len(left)]
            # Copied, because bytes are compared twenty times faster than views.
            self.is_altered = bytes(left[: len(piece)]) != piece
            left, at = left[len(piece) :], (at + len(piece)) % len(expected)
        self._at = at

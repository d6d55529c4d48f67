# SPDX-License-Identifier: EUPL-1.2
"""QUIC version 1 Initials with any name, without a crypto library: what encrypts them was computed beforehand.

The keys of an Initial follow from its connection id alone (RFC 9001, section 5.2), and AES-GCM XORs with a key
stream that follows from the keys. So quic_openings.txt has connection ids, each with its key stream and what the
tag and the header's mask need; lab/quic_initials.py computes them. Here remains an XOR and GHASH.
Spec: spec/profiles.md, section "QUIC".
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Final

from probe.profiles.browser import hello_message

RandomBytes = Callable[[int], bytes]

OPENINGS_FILE: Final = Path(__file__).with_name("quic_openings.txt")
DATAGRAM_BYTES: Final = 1200
"""The least that a client's first datagram may have (RFC 9000, section 14.1), and what an arm may announce."""
CONNECTION_ID_BYTES: Final = 8
TAG_BYTES: Final = 16
ANSWER_BYTES: Final = 256
LEADING_PADDING: Final = 24
"""PADDING frames before the CRYPTO frame, as browsers scatter them. They make the sample from which the header's
mask comes (RFC 9001, section 5.4.2) the same for every name."""
_VERSION: Final = b"\x00\x00\x00\x01"
_NUMBER: Final = b"\x00"
"""The packet number 0 in one byte."""
HEADER_BYTES: Final = 1 + 4 + 1 + CONNECTION_ID_BYTES + 1 + 1 + 2 + len(_NUMBER)
PAYLOAD_BYTES: Final = DATAGRAM_BYTES - HEADER_BYTES - TAG_BYTES


@dataclass(frozen=True, slots=True)
class Opening:
    """One connection id and what follows from it."""

    connection: bytes
    """The client's Destination Connection ID."""
    mask: bytes
    """Header protection: one byte for the flags, one for the packet number."""
    hash_key: bytes
    """H of GHASH: the encrypted zero block (NIST SP 800-38D, section 6.4)."""
    tag_mask: bytes
    """What the tag is XORed with: the encrypted first counter block."""
    stream: bytes
    """The key stream for the payload."""

    def line(self) -> str:
        """As it stands in the file."""
        return base64.b64encode(self.connection + self.mask + self.hash_key + self.tag_mask + self.stream).decode()


def read_opening(line: str) -> Opening:
    """The inverse of `Opening.line`."""
    raw = base64.b64decode(line)
    cuts = (0, CONNECTION_ID_BYTES, 10, 26, 42, len(raw))
    return Opening(*(raw[start:end] for start, end in pairwise(cuts)))


def openings(rng: Random, count: int) -> tuple[Opening, ...]:
    """`count` different ones, drawn at random. Only what was drawn is kept in memory."""
    with OPENINGS_FILE.open(encoding="ascii") as file:
        lines = [line for line in file if not line.startswith("#")]
    return tuple(read_opening(line) for line in rng.sample(lines, count))


def header(connection: bytes) -> bytes:
    """The Initial's header before its protection (RFC 9000, section 17.2.2): no source id, no token."""
    length = len(_NUMBER) + PAYLOAD_BYTES + TAG_BYTES
    return (
        bytes([0xC0 | len(_NUMBER) - 1])
        + _VERSION
        + bytes([len(connection)])
        + connection
        + b"\x00\x00"
        + (0x4000 | length).to_bytes(2, "big")
        + _NUMBER
    )


def payload(shape: str, name: str, *, alpn: Sequence[str], random_bytes: RandomBytes) -> bytes:
    """The frames: padding, the ClientHello in one CRYPTO frame (RFC 9000, section 19.6), padding."""
    message = hello_message(shape, name, alpn=alpn, session_id=b"", random_bytes=random_bytes)
    frames = bytes(LEADING_PADDING) + b"\x06\x00" + (0x4000 | len(message)).to_bytes(2, "big") + message
    if len(frames) > PAYLOAD_BYTES:
        raise ValueError(f"a ClientHello of {len(message)} bytes does not fit one datagram")
    return frames.ljust(PAYLOAD_BYTES, b"\x00")


def initial(opening: Opening, shape: str, name: str, *, alpn: Sequence[str], random_bytes: RandomBytes) -> bytes:
    """One datagram of 1200 bytes: the Initial that opens a connection to `name`."""
    plain = payload(shape, name, alpn=alpn, random_bytes=random_bytes)
    head = header(opening.connection)
    sealed = _xor(plain, opening.stream)
    tag = _xor(ghash(opening.hash_key, head, sealed), opening.tag_mask)
    protected = bytes([head[0] ^ opening.mask[0] & 0x0F]) + head[1:-1] + bytes([head[-1] ^ opening.mask[1]])
    return protected + sealed + tag


def answer(connection: bytes, random_bytes: RandomBytes) -> bytes:
    """What a server sends first, as far as a stranger can tell: a Handshake packet from its connection id.

    Its content can be read with the handshake's secret keys alone, so random bytes are as good.
    """
    count = ANSWER_BYTES - 1 - 4 - 1 - 1 - len(connection) - 2
    return (
        bytes([0xE0 | random_bytes(1)[0] & 0x0F])
        + _VERSION
        + b"\x00"  # the client's connection id is empty
        + bytes([len(connection)])
        + connection
        + (0x4000 | count).to_bytes(2, "big")
        + random_bytes(count)
    )


def short_header(connection: bytes, random_bytes: RandomBytes) -> bytes:
    """The head of each later datagram: fixed bit, no spin, protected bits, connection id (RFC 9000, section 17.3.1)."""
    return bytes([0x40 | random_bytes(1)[0] & 0x1F]) + connection


def ghash(key: bytes, authenticated: bytes, sealed: bytes) -> bytes:
    """GHASH (NIST SP 800-38D, section 6.4) of both, each filled up to whole blocks, and their lengths in bits."""
    factor, state = int.from_bytes(key, "big"), 0
    lengths = (8 * len(authenticated)).to_bytes(8, "big") + (8 * len(sealed)).to_bytes(8, "big")
    for part in (authenticated, sealed, lengths):
        for start in range(0, len(part), 16):
            block = part[start : start + 16].ljust(16, b"\x00")
            state = _times(state ^ int.from_bytes(block, "big"), factor)
    return state.to_bytes(16, "big")


def _times(one: int, other: int) -> int:
    """Multiplication in GF(2^128) with the bits in GCM's order."""
    product = 0
    for place in range(127, -1, -1):
        if one >> place & 1:
            product ^= other
        other = other >> 1 ^ (0xE1 << 120 if other & 1 else 0)
    return product


def _xor(one: bytes, other: bytes) -> bytes:
    size = len(one)
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).to_bytes(size, "big")

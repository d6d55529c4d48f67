# SPDX-License-Identifier: EUPL-1.2
"""The datagrams of the carriers quic and datagram: how they look, and how both ends read them.

Everything after a datagram's head looks random, and both arms' datagrams are equally long, so that a classifier has
the flight and the head to go by and nothing else. The masking keeps no secret from somebody who reads the hello; it
keeps out whoever cannot. Spec: spec/carriers.md, section "Datagrams".
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from probe.protocol.sealed import SEALED_BYTES, seal, unseal
from probe.protocol.session import decode_hello
from probe.wire.codec import WireError
from probe.wire.limits import MAX_HEAD
from probe.wire.messages import DataHello
from probe.wire.records import Carrier

Role = Literal["probe", "reflector"]
RandomBytes = Callable[[int], bytes]

UDP_CARRIERS: Final[tuple[Carrier, ...]] = ("quic", "datagram")
DATAGRAM_BYTES: Final = 1200
"""UDP payload of each data datagram: fits IPv6's smallest MTU (RFC 8200, section 5; RFC 9000, section 14)."""
SIGNAL_BYTES: Final = 96
"""UDP payload of every other datagram after the hello, so that no kind is known by its length."""
COOKIE_BYTES: Final = 16
OPENING_BYTES: Final = COOKIE_BYTES + SEALED_BYTES
"""A hello datagram behind its head."""

DATA: Final = 1
FEEDBACK: Final = 2
CHALLENGE: Final = 3
END: Final = 4
PING: Final = 5
"""A small packet of a concurrent pair; `echo_us` and `held_us` carry what its echo must bring back."""
ECHO: Final = 6
ALIVE: Final = 7
"""The probe is still there, though nothing came that it could have answered."""

_TAG_BYTES: Final = 8
_HEADER: Final = struct.Struct(">B3xIIIIIII")
_HEADER_BYTES: Final = _HEADER.size
_PREFIX_BYTES: Final = _TAG_BYTES + _HEADER_BYTES
_NO_COOKIE: Final = bytes(COOKIE_BYTES)
_SLOT_S: Final = 10
WRAP: Final = 2**32


class Packet(NamedTuple):
    """The header of a datagram after the hello. Times are microseconds of the sender's clock modulo 2**32."""

    kind: int
    sequence: int = 0
    """Counts the sender's datagrams of this kind from 1."""
    time_us: int = 0
    """When it was sent."""
    echo_us: int = 0
    """`time_us` of the data datagram with the highest sequence number that arrived; 0 where none did."""
    held_us: int = 0
    """How long ago that one arrived."""
    highest: int = 0
    """Its sequence number."""
    arrived: int = 0
    """Different data datagrams that arrived."""
    octets: int = 0
    """Their UDP payload in bytes, modulo 2**32."""

    @property
    def cookie(self) -> bytes:
        """What a challenge carries in place of a feedback's numbers."""
        return b"".join(
            number.to_bytes(4, "big") for number in (self.echo_us, self.held_us, self.highest, self.arrived)
        )


def challenge(cookie: bytes) -> Packet:
    """The reflector's answer to a hello without a cookie."""
    return Packet(CHALLENGE, 1, 0, *struct.unpack(">IIII", cookie))


def microseconds(now: float) -> int:
    """A time of a monotonic clock in seconds, as headers tell it."""
    return int(now * 1e6) % WRAP


def elapsed_s(later_us: int, earlier_us: int) -> float:
    """Seconds between two times of one clock, the later first; negative where they are the other way round."""
    difference = (later_us - earlier_us) % WRAP
    return (difference - WRAP if difference >= WRAP // 2 else difference) / 1e6


class Codec:
    """Masks and reads the datagrams of one segment.

    The mask follows from the ticket, so that nobody who has not seen it can put in a datagram that counts (64-bit
    tags), or tell a header from noise. As in SIV, the tag over the header is also the nonce of its mask.
    """

    __slots__ = ("_mask_in", "_mask_out", "_tag_in", "_tag_out", "head")

    def __init__(self, ticket: str, role: Role, head: bytes) -> None:
        self.head = head
        key = bytes.fromhex(ticket)
        other: Role = "reflector" if role == "probe" else "probe"
        self._tag_out, self._mask_out = _hashes(key, role)
        self._tag_in, self._mask_in = _hashes(key, other)

    def seal(self, packet: Packet, filler: bytes | memoryview) -> bytes:
        """The datagram: head, tag, masked header, filler (for the whole of `DATAGRAM_BYTES` or `SIGNAL_BYTES`)."""
        header = _HEADER.pack(*packet)
        tagging, masking = self._tag_out.copy(), self._mask_out.copy()
        tagging.update(header)
        tag = tagging.digest()
        masking.update(tag)
        masked = int.from_bytes(header, "big") ^ int.from_bytes(masking.digest(), "big")
        head = self.head
        return b"".join((head, tag, masked.to_bytes(_HEADER_BYTES, "big"), filler[len(head) + _PREFIX_BYTES :]))

    def open(self, raw: bytes | memoryview) -> Packet | None:
        """The header of a datagram that the other role of this segment made; None for anything else."""
        start = len(self.head)
        if len(raw) < start + _PREFIX_BYTES or raw[:start] != self.head:
            return None
        tag = bytes(raw[start : start + _TAG_BYTES])
        masking, tagging = self._mask_in.copy(), self._tag_in.copy()
        masking.update(tag)
        masked = int.from_bytes(raw[start + _TAG_BYTES : start + _PREFIX_BYTES], "big")
        header = (masked ^ int.from_bytes(masking.digest(), "big")).to_bytes(_HEADER_BYTES, "big")
        tagging.update(header)
        if not hmac.compare_digest(tagging.digest(), tag):
            return None
        return Packet(*_HEADER.unpack(header))


def _hashes(key: bytes, role: Role) -> tuple[hashlib.blake2s, hashlib.blake2s]:
    """Keyed hashes to copy from: one for the tag, one for the mask."""
    person = role[:1].encode()
    return (
        hashlib.blake2s(key=key, person=person + b"tag", digest_size=_TAG_BYTES),
        hashlib.blake2s(key=key, person=person + b"mask", digest_size=_HEADER_BYTES),
    )


# -- the hello ------------------------------------------------------------------------------------------------------


class Opening(NamedTuple):
    """A hello datagram, read."""

    hello: DataHello
    cookie: bytes
    """All zero where it carries none."""
    head: bytes

    @property
    def has_cookie(self) -> bool:
        """Whether it echoes a challenge."""
        return self.cookie != _NO_COOKIE


def opening(head: bytes, hello: bytes, random_bytes: RandomBytes, cookie: bytes = _NO_COOKIE) -> bytes:
    """The hello datagram: head, then cookie and the 512 bytes of the hello, sealed."""
    return head + seal(cookie + hello, random_bytes)


def read_opening(raw: bytes) -> Opening | None:
    """The hello in a datagram; None for anything else. Work is bounded by the one length that a hello can have."""
    start = len(raw) - OPENING_BYTES
    if not 0 <= start <= MAX_HEAD:
        return None
    plain = unseal(raw[start:])
    if plain[COOKIE_BYTES : COOKIE_BYTES + 1] != b"{":
        return None
    try:
        hello = decode_hello(plain[COOKIE_BYTES:])
    except WireError:
        return None
    return Opening(hello, plain[:COOKIE_BYTES], raw[:start])


class Cookies:
    """Proof that whoever shows one receives at its address: nothing is remembered for it.

    Bound to both addresses and ports, to the ticket, and to 10 to 20 seconds (compare RFC 9000, section 8.1).
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def make(self, flow: bytes, ticket: str, now: float) -> bytes:
        """The cookie for a ticket that was shown on a flow (any bytes that stand for the 5-tuple)."""
        return self._at(flow, ticket, int(now // _SLOT_S))

    def is_good(self, cookie: bytes, flow: bytes, ticket: str, now: float) -> bool:
        """Whether this is the cookie that was made for it not long ago."""
        slot = int(now // _SLOT_S)
        found = [hmac.compare_digest(cookie, self._at(flow, ticket, at)) for at in (slot, slot - 1)]
        return any(found)

    def _at(self, flow: bytes, ticket: str, slot: int) -> bytes:
        text = b"|".join((str(slot).encode(), ticket.encode(), flow))
        made = hmac.digest(self._secret, text, "sha256")[:COOKIE_BYTES]
        return made if made != _NO_COOKIE else b"\1" * COOKIE_BYTES

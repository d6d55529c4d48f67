# SPDX-License-Identifier: EUPL-1.2
"""Reads the ClientHello in QUIC version 1 Initials, as real DPI engines do: whoever sees them can decrypt them.

The keys of an Initial follow from the connection id that the client chose for its first datagram and from a salt
that the RFC prints. The hello may be spread over CRYPTO frames in any order, over coalesced packets and over
several datagrams. spec/lab.md section 2; RFC 9000 sections 12, 16, 17.2 and 19, RFC 9001 sections 5.2 to 5.4.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SALT: Final = bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")
MAX_CRYPTO: Final = 20_000
"""Bytes of a client's CRYPTO stream that are looked at, larger than any real ClientHello."""
MAX_DATAGRAMS: Final = 10
"""Datagrams in which a client's hello must be complete."""
_VERSION: Final = b"\0\0\0\1"
_TAG: Final = 16
_SAMPLE: Final = 16


class NotInitial(ValueError):
    """The bytes are no version 1 Initial, or cannot be decrypted as one."""


class Keys:
    """What protects a client's Initials, from the Destination Connection ID of its first one."""

    def __init__(self, connection: bytes) -> None:
        initial = hmac.digest(SALT, connection, "sha256")
        client = expand_label(initial, "client in", 32)
        self.key = expand_label(client, "quic key", 16)
        self.iv = expand_label(client, "quic iv", 12)
        self.header = expand_label(client, "quic hp", 16)

    def mask(self, sample: bytes) -> bytes:
        """What the first byte and the packet number are XORed with."""
        # A single block: this is how RFC 9001 section 5.4.3 defines the mask.
        block = Cipher(algorithms.AES(self.header), modes.ECB()).encryptor()  # noqa: S305
        return block.update(sample)[:5]


def expand_label(secret: bytes, label: str, size: int) -> bytes:
    """HKDF-Expand-Label without a context (RFC 8446 section 7.1), for at most one block of SHA-256."""
    name = b"tls13 " + label.encode()
    info = size.to_bytes(2, "big") + bytes([len(name)]) + name + b"\0"
    return hmac.new(secret, info + b"\1", hashlib.sha256).digest()[:size]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer and where it ends. Raises NotInitial."""
    if at >= len(data):
        raise NotInitial("cut short")
    size = 1 << (data[at] >> 6)
    if at + size > len(data):
        raise NotInitial("cut short")
    return int.from_bytes(data[at : at + size], "big") & (1 << 8 * size - 2) - 1, at + size


class InitialReader:
    """Collects the hello of one flow from its client's datagrams."""

    def __init__(self) -> None:
        self._keys: Keys | None = None
        self._pieces: dict[int, bytes] = {}
        self._kept = 0
        self._datagrams = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether no datagram can add to what is known."""
        return self._datagrams >= MAX_DATAGRAMS or self._kept > MAX_CRYPTO

    def add(self, datagram: bytes) -> bytes | None:
        """Take a client's datagram; the body of the ClientHello once it is whole.

        Raises NotInitial where the first datagram is not one, and where what was decrypted is no hello.
        """
        self._datagrams += 1
        at = 0
        while at < len(datagram) and datagram[at] & 0xF0 == 0xC0 and datagram[at + 1 : at + 5] == _VERSION:
            at = self._packet(datagram, at)
        if self._keys is None:
            raise NotInitial("it does not begin with a version 1 Initial")
        return self._hello()

    def _packet(self, data: bytes, start: int) -> int:
        """Read one Initial; where the next coalesced packet begins."""
        connection, at = _short_vector(data, start + 5)
        _, at = _short_vector(data, at)
        size, at = _varint(data, at)  # of the token
        length, at = _varint(data, at + size)
        end = at + length
        if length < 4 + _SAMPLE or end > len(data):
            raise NotInitial("cut short")
        if self._keys is None:
            self._keys = Keys(connection)
        mask = self._keys.mask(data[at + 4 : at + 4 + _SAMPLE])
        first = data[start] ^ mask[0] & 0x0F
        width = (first & 3) + 1
        number = bytes(a ^ b for a, b in zip(data[at : at + width], mask[1:], strict=False))
        head = bytes([first]) + data[start + 1 : at] + number
        nonce = (int.from_bytes(self._keys.iv, "big") ^ int.from_bytes(number, "big")).to_bytes(12, "big")
        try:
            self._frames(AESGCM(self._keys.key).decrypt(nonce, data[at + width : end], head))
        except InvalidTag:
            if not self._pieces:
                self._keys = None
            raise NotInitial("it cannot be decrypted") from None
        return end

    def _frames(self, frames: bytes) -> None:
        """Keep the CRYPTO frames of a packet; of the others a client may send here, read the length."""
        at = 0
        while at < len(frames):
            kind, at = frames[at], at + 1
            if kind in {0x00, 0x01}:  # PADDING, PING
                continue
            if kind == 0x06:
                offset, at = _varint(frames, at)
                size, at = _varint(frames, at)
                piece = frames[at : at + size]
                at += size
                if offset + size <= MAX_CRYPTO and len(piece) > len(self._pieces.get(offset, b"")):
                    self._pieces[offset] = piece
                    self._kept += len(piece)
            elif kind in {0x02, 0x03}:  # ACK
                for _ in range(2):
                    _, at = _varint(frames, at)
                ranges, at = _varint(frames, at)
                for _ in range(min(2 * ranges + 1 + 3 * (kind == 0x03), len(frames))):
                    _, at = _varint(frames, at)
            else:  # CONNECTION_CLOSE, or nothing that an Initial may hold
                return

    def _hello(self) -> bytes | None:
        stream = b""
        for offset in sorted(self._pieces):
            if offset > len(stream):
                break
            stream += self._pieces[offset][len(stream) - offset :]
        if stream and stream[0] != 1:
            raise NotInitial("it holds no ClientHello")
        size = int.from_bytes(stream[1:4], "big")
        return stream[4 : 4 + size] if len(stream) >= 4 + size and size else None


def _short_vector(data: bytes, at: int) -> tuple[bytes, int]:
    """A connection id: at most 20 bytes behind one that says how many."""
    if at >= len(data) or data[at] > 20 or at + 1 + data[at] > len(data):
        raise NotInitial("cut short")
    end = at + 1 + data[at]
    return data[at + 1 : end], end

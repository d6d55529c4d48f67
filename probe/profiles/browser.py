# SPDX-License-Identifier: EUPL-1.2
"""A ClientHello as a browser sends it, with the name swapped: what equipment meets all day.

The probe's own TLS library has a fingerprint of its own; a rule for "browsers to this name" would miss it. No
handshake comes of these bytes: keys are random, and the reflector answers with bytes that are shaped like TLS.
RFC 8446, section 4.1.2; RFC 8701. Spec: spec/profiles.md, section "Browser shapes".
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

RandomBytes = Callable[[int], bytes]

SHAPES_FILE: Final = Path(__file__).with_name("shapes.toml")
SESSION_ID_BYTES: Final = 32
"""Browsers send a legacy session id of this length over TCP (RFC 8446, appendix D.4) and none over QUIC."""

_SERVER_NAME, _GROUPS, _KEY_SHARE, _VERSIONS = "0000", "000a", "0033", "002b"
_P256: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1
_P256_B: Final = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
_MLKEM_Q: Final = 3329
_MLKEM_COEFFICIENTS: Final = 768


@dataclass(frozen=True, slots=True)
class Shape:
    """What a browser offers and in which order; see shapes.toml."""

    id: str
    version: int
    ciphers: tuple[str, ...]
    extensions: tuple[tuple[str, ...], ...]


@cache
def shapes() -> dict[str, Shape]:
    """All shapes by their names."""
    document = tomllib.loads(SHAPES_FILE.read_text(encoding="utf-8"))
    return {
        name: Shape(
            name,
            shape["version"],
            tuple(shape["ciphers"].split()),
            tuple(tuple(words.split()) for words in shape["extensions"]),
        )
        for name, shape in document.items()
    }


def client_hello(shape: str, name: str, *, alpn: Sequence[str], session_id: bytes, random_bytes: RandomBytes) -> bytes:
    """The TLS record with a ClientHello for `name`. Names of one length give hellos of one length.

    `session_id` has 32 bytes, of which the first 16 may carry a ticket. Raises KeyError for an unknown shape.
    """
    if len(session_id) != SESSION_ID_BYTES:
        raise ValueError(f"a legacy session id has {SESSION_ID_BYTES} bytes")
    message = hello_message(shape, name, alpn=alpn, session_id=session_id, random_bytes=random_bytes)
    # The first record says TLS 1.0 for compatibility (RFC 8446, section 5.1).
    return b"\x16\x03\x01" + _vector(message, 2)


def hello_message(shape: str, name: str, *, alpn: Sequence[str], session_id: bytes, random_bytes: RandomBytes) -> bytes:
    """The handshake message alone, as QUIC carries it (RFC 9001, section 4)."""
    writer = _Writer(name, tuple(alpn), random_bytes)
    wanted = shapes()[shape]
    ciphers = b"".join(writer.number(cipher) for cipher in wanted.ciphers)
    extensions = b"".join(writer.extension(*words) for words in wanted.extensions)
    body = (
        b"\x03\x03"
        + random_bytes(32)
        + _vector(session_id, 1)
        + _vector(ciphers, 2)
        + b"\x01\x00"  # no compression
        + _vector(extensions, 2)
    )
    return b"\x01" + _vector(body, 3)


class _Writer:
    """Writes the parts of one hello. GREASE values are drawn once for each place, as browsers do."""

    def __init__(self, name: str, alpn: tuple[str, ...], random_bytes: RandomBytes) -> None:
        self._name = name.encode("ascii")
        self._alpn = alpn
        self._random = random_bytes
        seeds = random_bytes(5)
        grease = [bytes([seed & 0xF0 | 0x0A] * 2) for seed in seeds]
        if grease[2] == grease[3]:  # two extensions of one number are forbidden (RFC 8446, section 4.2)
            grease[3] = bytes([grease[3][0] ^ 0x10] * 2)
        self._cipher, self._group, self._first, self._last, self._version = grease
        self._extensions = iter((self._first, self._last))

    def number(self, word: str) -> bytes:
        """A cipher suite."""
        return self._cipher if word == "grease" else bytes.fromhex(word)

    def extension(self, number: str, kind: str = "", *rest: str) -> bytes:
        """One extension with its number and length."""
        code = next(self._extensions) if number == "grease" else bytes.fromhex(number)
        return code + _vector(self._content(number, kind, rest), 2)

    def _content(self, number: str, kind: str, rest: Sequence[str]) -> bytes:
        if kind == "name":
            return _vector(b"\x00" + _vector(self._name, 2), 2)
        if kind == "alpn":
            return _vector(b"".join(_vector(protocol.encode("ascii"), 1) for protocol in self._alpn), 2)
        if kind == "ech":
            return self._ech(int(rest[0]))
        if kind in {"list", "grease-first"}:
            return self._listed(number, rest, grease=kind == "grease-first")
        return bytes.fromhex("".join(rest))

    def _listed(self, number: str, items: Sequence[str], *, grease: bool) -> bytes:
        if number == _VERSIONS:
            first = self._version if grease else b""
            return _vector(first + bytes.fromhex("".join(items)), 1)
        if number == _GROUPS:
            return _vector((self._group if grease else b"") + bytes.fromhex("".join(items)), 2)
        # The GREASE group of supported_groups stands in key_share too, with one byte for a key.
        shares = self._group + b"\x00\x01\x00" if grease else b""
        return _vector(shares + b"".join(bytes.fromhex(group) + _vector(self._key(group), 2) for group in items), 2)

    def _key(self, group: str) -> bytes:
        """A public key that a server accepts as one. Nobody has the private key to it."""
        if group == "001d":
            return self._x25519()
        if group == "11ec":  # draft-ietf-tls-ecdhe-mlkem: the ML-KEM-768 key, then the X25519 key
            return self._mlkem() + self._x25519()
        return self._p256()

    def _x25519(self) -> bytes:
        key = bytearray(self._random(32))
        key[31] &= 0x7F  # RFC 7748, section 5
        return bytes(key)

    def _mlkem(self) -> bytes:
        """FIPS 203, algorithm 16: 768 coefficients below q in 12 bits each, then the seed."""
        packed = 0
        for place in range(_MLKEM_COEFFICIENTS):
            # 4 bytes a coefficient: the bias of the remainder is below one in a million.
            packed |= int.from_bytes(self._random(4), "big") % _MLKEM_Q << (12 * place)
        return packed.to_bytes(_MLKEM_COEFFICIENTS * 12 // 8, "little") + self._random(32)

    def _p256(self) -> bytes:
        """A random point of the curve (SEC 2), uncompressed: y is a square root, if there is one."""
        while True:
            x = int.from_bytes(self._random(32), "big") % _P256
            square = (x * x * x - 3 * x + _P256_B) % _P256
            y = pow(square, (_P256 + 1) // 4, _P256)
            if y * y % _P256 == square:
                return b"\x04" + x.to_bytes(32, "big") + y.to_bytes(32, "big")

    def _ech(self, payload: int) -> bytes:
        """GREASE Encrypted Client Hello: outer, HKDF-SHA256 with AES-128-GCM, an encapsulated key, a payload."""
        return (
            b"\x00\x00\x01\x00\x01" + self._random(1) + _vector(self._x25519(), 2) + _vector(self._random(payload), 2)
        )


def _vector(content: bytes, width: int) -> bytes:
    return len(content).to_bytes(width, "big") + content

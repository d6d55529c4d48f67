# SPDX-License-Identifier: EUPL-1.2
"""First bytes as data: a list of words says what an application sends first, and this makes bytes of it.

A field that is random on the wire is drawn anew for each session; everything else is written out. The length is
fixed by the words alone, so that the opaque arm can be exactly as long. Spec: spec/profiles.md, "First bytes".
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

RandomBytes = Callable[[int], bytes]

_LETTERS: Final = b"abcdefghijklmnopqrstuvwxyz012345"
"""32 of them, so that five random bits are one character and none is likelier than another."""
_MOST_DRAWN: Final = 1200
_STUN_FINGERPRINT: Final = 0x5354554E
"""RFC 8489, section 14.7: CRC-32 of the message so far, XORed with this."""
_OPAQUE_STREAM: Final = bytes(range(0xE4, 0xEC))
_OPAQUE_DATAGRAM: Final = bytes(range(0x18, 0x20))
"""First bytes of the opaque arm: neither 0x16 nor printable (spec/carriers.md), and none with which a common protocol
begins. Over TCP low ones are lengths and types of many, five bits from 0x14 to 0x1F may be Z39.50, 0xE3 is eDonkey,
0xEF Telegram; over UDP 0x80 to 0xBF are RTP's, those above QUIC's, and some below 0x10 count as Skype's."""
_NOT_THIRD: Final = 0x04
"""nDPI takes 300 to 600 bytes over TCP with this third byte for the mining of Ethereum."""


class WordError(ValueError):
    """A word of a list cannot be read; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Part:
    """One word, read."""

    kind: str
    literal: bytes = b""
    count: int = 0
    name: str = ""

    @property
    def size(self) -> int:
        """How many bytes it makes; `again` is not known here."""
        return {"literal": len(self.literal), "fingerprint": 8}.get(self.kind, self.count)


def read(words: Iterable[str], known: dict[str, int] | None = None) -> tuple[Part, ...]:
    """The words of one list. `known` has the sizes of names drawn before, and gets those drawn here.

    Raises WordError.
    """
    known = {} if known is None else known
    return tuple(_read_word(word, known) for word in words)


def size(parts: Iterable[Part]) -> int:
    """Bytes that the parts make."""
    return sum(part.size for part in parts)


def make(parts: Iterable[Part], drawn: dict[str, bytes], random_bytes: RandomBytes) -> bytes:
    """The bytes of one list; `drawn` keeps what was drawn under a name, for `again`."""
    made = bytearray()
    for part in parts:
        if part.kind == "literal":
            made += part.literal
        elif part.kind == "again":
            made += drawn[part.name]
        elif part.kind == "fingerprint":
            crc = zlib.crc32(made) ^ _STUN_FINGERPRINT
            made += b"\x80\x28\x00\x04" + crc.to_bytes(4, "big")
        else:
            value = random_bytes(part.count)
            if part.kind == "letters":
                value = bytes(_LETTERS[byte & 31] for byte in value)
            if part.name:
                drawn[part.name] = value
            made += value
    return bytes(made)


def opaque(count: int, random_bytes: RandomBytes, *, stream: bool) -> bytes:
    """`count` random bytes that no engine takes for the beginning of anything, over TCP (`stream`) or UDP."""
    value = bytearray(random_bytes(count))
    if count:
        firsts = _OPAQUE_STREAM if stream else _OPAQUE_DATAGRAM
        value[0] = firsts[value[0] % len(firsts)]
    if value[2:3] == bytes([_NOT_THIRD]):
        value[2] ^= 0x80
    return bytes(value)


def _read_word(word: str, known: dict[str, int]) -> Part:
    kind, _, rest = word.partition(" ")
    if kind == "hex":
        try:
            return Part("literal", bytes.fromhex(rest))
        except ValueError:
            raise WordError(f"{word!r} is not hexadecimal") from None
    if kind in {"text", "line"}:
        if not rest.isascii():
            raise WordError(f"{word!r} is not ASCII")
        return Part("literal", rest.encode() + (b"\r\n" if kind == "line" else b""))
    if kind in {"random", "letters"}:
        return _read_draw(kind, word, rest, known)
    if kind == "again":
        if rest not in known:
            raise WordError(f"{word!r} names nothing that was drawn before")
        return Part("again", count=known[rest], name=rest)
    if word == "fingerprint":
        return Part("fingerprint")
    raise WordError(f"{word!r} begins with none of hex, text, line, random, letters, again, fingerprint")


def _read_draw(kind: str, word: str, rest: str, known: dict[str, int]) -> Part:
    count, _, name = rest.partition(" ")
    if not (count.isascii() and count.isdigit() and 0 < int(count) <= _MOST_DRAWN):
        raise WordError(f"{word!r} needs a number of bytes between 1 and {_MOST_DRAWN}")
    if name:
        if name in known:
            raise WordError(f"{word!r} gives a name for the second time")
        known[name] = int(count)
    return Part(kind, count=int(count), name=name)

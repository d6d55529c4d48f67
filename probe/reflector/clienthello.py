# SPDX-License-Identifier: EUPL-1.2
"""Reads a ClientHello before TLS does, to select the first application protocol that the client offers.

Python's ssl selects by the server's preference; profiles offer different lists, and both arms of a pair must get
what they put first. It also finds the ticket of a browser-shaped hello that no TLS will ever answer
(spec/carriers.md, "hello"). Bytes are peeked at, never taken. RFC 8446, sections 4.1.2 and 5.1; RFC 7301; RFC 6066.
Spec: spec/protocol.md, section "Data connection".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

LONGEST: Final = 16 * 1024
"""No ClientHello of any known client comes near."""
RECORD_HEADER_BYTES: Final = 5
_HANDSHAKE: Final = 0x16
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_ALPN: Final = 16


class NoClientHello(Exception):
    """The bytes do not begin a TLS handshake."""


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What the reflector needs of it."""

    server_name: bytes | None
    protocols: tuple[bytes, ...]
    session_id: bytes = field(default=b"", compare=False)
    """The legacy session id: the carrier `hello` shows its ticket there."""
    size: int = field(default=0, compare=False)
    """Bytes of the stream that it takes, record headers included."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise NoClientHello("a length points beyond the end")
        found, self._at = self._data[self._at : end], end
        return found

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def vector(self, width: int) -> _Reader:
        return _Reader(self.take(self.number(width)))

    def rest(self) -> bytes:
        return self._data[self._at :]

    @property
    def is_empty(self) -> bool:
        return self._at >= len(self._data)


def peek(data: bytes) -> ClientHello | int:
    """The ClientHello at the head of a stream, or how many bytes must be there before asking again.

    Raises NoClientHello where it is none, or a longer one than 16 kB.
    """
    message, at = b"", 0
    while True:
        if len(data) < at + 5:
            return _wanted(at + 5)
        if data[at] != _HANDSHAKE or data[at + 1] != 3:
            raise NoClientHello("not a TLS handshake record")
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        if not length:
            raise NoClientHello("an empty record")
        at += 5
        if len(data) < at + length:
            return _wanted(at + length)
        message += data[at : at + length]
        at += length
        if len(message) >= 4:
            if message[0] != _CLIENT_HELLO:
                raise NoClientHello("another handshake message")
            whole = 4 + int.from_bytes(message[1:4], "big")
            _wanted(whole)
            if len(message) >= whole:
                return _read(message[4:whole], at)


def _wanted(count: int) -> int:
    if count > LONGEST:
        raise NoClientHello("longer than 16 kB")
    return count


def _read(body: bytes, size: int) -> ClientHello:
    reader = _Reader(body)
    reader.take(2 + 32)  # legacy version, random
    session_id = reader.vector(1).rest()
    reader.vector(2)  # cipher suites
    reader.vector(1)  # compression methods
    name: bytes | None = None
    protocols: tuple[bytes, ...] = ()
    extensions = reader.vector(2) if not reader.is_empty else _Reader(b"")
    while not extensions.is_empty:
        kind, content = extensions.number(2), extensions.vector(2)
        if kind == _SERVER_NAME:
            name = _server_name(content)
        elif kind == _ALPN:
            protocols = _protocols(content)
    return ClientHello(server_name=name, protocols=protocols, session_id=session_id, size=size)


def _server_name(content: _Reader) -> bytes | None:
    if content.is_empty:
        return None
    names = content.vector(2)
    while not names.is_empty:
        is_host, name = names.number(1) == 0, names.vector(2).rest()
        if is_host:
            return name
    return None


def _protocols(content: _Reader) -> tuple[bytes, ...]:
    found, listed = [], content.vector(2)
    while not listed.is_empty:
        found.append(listed.vector(1).rest())
    return tuple(found)

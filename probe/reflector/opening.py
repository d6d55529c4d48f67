# SPDX-License-Identifier: EUPL-1.2
"""From a connection's first bytes to its hello, for each carrier over TCP.

`recognise` is the one place that tells the carriers apart. An opening goes as far as the bytes that are there allow
and raises what a socket that never blocks raises; a stranger costs constant work and gets no byte that a TLS server
would not send. Spec: spec/carriers.md; spec/protocol.md, sections "Data connection" and "Not a weapon".
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import ssl
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from probe.protocol import sealed
from probe.protocol.accounts import Awaited
from probe.protocol.session import decode_hello
from probe.reflector import clienthello
from probe.wire.codec import WireError
from probe.wire.messages import DATA_HELLO_BYTES, DataHello
from probe.wire.records import Carrier

Ending = Literal["no_tls", "bad_hello", "refused", "too_slow", "gone", "done", "broken", "stopped"]
CARRIERS: Final[tuple[Carrier, ...]] = ("tls", "hello", "stream")
"""What this module can open."""
_PEEKED: Final = clienthello.LONGEST + clienthello.RECORD_HEADER_BYTES


class NotOpened(Exception):
    """The connection is to be closed without a byte; `how` is for the metrics."""

    def __init__(self, how: Ending) -> None:
        super().__init__(how)
        self.how: Ending = how


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """A hello that can be read, and what came before it."""

    hello: DataHello
    carrier: Carrier
    name: str | None = None
    """The server name as it arrived, where the carrier has one."""
    flight: str | None = None
    """SHA-256 of the first flight as it arrived, where the carrier announces it."""


class Knowing(Protocol):
    """What an opening asks of the loop."""

    def context_for(self, protocols: tuple[bytes, ...]) -> ssl.SSLContext:
        """The TLS context that selects the first of these application protocols."""
        ...

    def awaited(self, ticket: str) -> Awaited | None:
        """What the booking knows of a ticket."""
        ...


class Opening(Protocol):
    """The way of one carrier to its hello."""

    sock: socket.socket
    """To be used from now on, also to close it."""
    is_writing: bool
    """Where it stopped because it could not go on: at a write."""

    def advance(self) -> Greeting:
        """Go on. Raises BlockingIOError or ssl's wishes until the hello is there, NotOpened, OSError."""
        ...


def recognise(sock: socket.socket, host: Knowing) -> Opening | None:
    """The carrier that these first bytes begin; None where more of them must come. Raises NotOpened, OSError."""
    data = sock.recv(_PEEKED, socket.MSG_PEEK)
    if not data:
        raise NotOpened("gone")
    if sealed.is_stream(data[0]):
        return StreamOpening(sock, host)
    try:
        found = clienthello.peek(data)
    except clienthello.NoClientHello:
        raise NotOpened("no_tls") from None
    if isinstance(found, int):
        # Sleep until so much is there: what was only peeked at would wake the loop for ever.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, found)
        return None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    if found.server_name is not None and not found.server_name.isascii():
        raise NotOpened("no_tls")
    ticket = sealed.shown_ticket(found.session_id)
    awaited = host.awaited(ticket) if ticket else None
    if ticket is None or awaited is None:
        return TlsOpening(sock, host.context_for(found.protocols))
    if awaited.carrier != "hello" or not awaited.is_waiting:
        raise NotOpened("refused")
    return HelloOpening(sock, found, ticket)


class NamedSocket(ssl.SSLSocket):
    """Remembers the server name of its ClientHello."""

    name_seen: str | None = None


class TlsOpening:
    """A real handshake, then the hello inside it."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._tls = context.wrap_socket(
            sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        self.sock: socket.socket = self._tls
        self.is_writing = False
        self._has_shaken = False
        self._got = b""

    def advance(self) -> Greeting:
        """See `Opening`."""
        if not self._has_shaken:
            self._tls.do_handshake()
            self._has_shaken = True
        while len(self._got) < DATA_HELLO_BYTES:
            self._got += _some(self.sock, DATA_HELLO_BYTES - len(self._got))
        name = self._tls.name_seen if isinstance(self._tls, NamedSocket) else None
        return Greeting(
            hello=_decoded(self._got, purposes=("segment", "calibration", "load")), carrier="tls", name=name
        )


class HelloOpening:
    """A ClientHello that shows a waiting ticket is answered by the shape of a handshake; the hello ends it."""

    def __init__(self, sock: socket.socket, found: clienthello.ClientHello, ticket: str) -> None:
        self.sock = sock
        self.is_writing = False
        self._ticket = ticket
        self._name = found.server_name.decode("ascii") if found.server_name is not None else None
        self._ahead = found.size
        self._flight = memoryview(sealed.server_flight(found.session_id, secrets.token_bytes))
        self._got = b""

    def advance(self) -> Greeting:
        """See `Opening`."""
        while self._ahead:
            self._ahead -= len(_some(self.sock, self._ahead))
        while self._flight:
            self.is_writing = True
            self._flight = self._flight[self.sock.send(self._flight) :]
        self.is_writing = False
        while len(self._got) < sealed.CLIENT_FINISH_BYTES:
            self._got += _some(self.sock, sealed.CLIENT_FINISH_BYTES - len(self._got))
        try:
            raw = sealed.hello_in_finish(self._got)
        except WireError:
            raise NotOpened("bad_hello") from None
        hello = _decoded(raw)
        if hello.ticket != self._ticket:
            raise NotOpened("bad_hello")
        return Greeting(hello=hello, carrier="hello", name=self._name)


class StreamOpening:
    """The application's own first bytes. The hello stands at a fixed place, so that its ticket tells their length."""

    def __init__(self, sock: socket.socket, host: Knowing) -> None:
        self.sock = sock
        self.is_writing = False
        self._host = host
        self._got = b""

    def advance(self) -> Greeting:
        """See `Opening`."""
        while (missing := sealed.STREAM_OPENING_BYTES - len(self._got)) > 0:
            self._got += _some(self.sock, missing)
        hello = _decoded(sealed.unseal(self._got[-sealed.SEALED_BYTES :]))
        awaited = self._host.awaited(hello.ticket)
        flight = self._got[: awaited.flight_bytes] if awaited else b""
        return Greeting(hello=hello, carrier="stream", flight=hashlib.sha256(flight).hexdigest())


def _some(sock: socket.socket, most: int) -> bytes:
    piece = sock.recv(most)
    if not piece:
        raise NotOpened("gone")
    return piece


def _decoded(raw: bytes, purposes: tuple[str, ...] = ("segment",)) -> DataHello:
    try:
        hello = decode_hello(raw)
    except WireError:
        raise NotOpened("bad_hello") from None
    if hello.purpose not in purposes:
        raise NotOpened("bad_hello")
    return hello

# SPDX-License-Identifier: EUPL-1.2
"""A page in plain HTTP that only this reflector can have written: how a probe notices who stands in between.

`GET /portal/NONCE` is answered with the reflector's signature over that nonce. No aiohttp here: a stranger's bytes
meet one regular expression, every answer costs at most one signature, and nothing is written down.
Spec: spec/protocol.md, section "Portal page".
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from probe.reflector.data import open_listener
from probe.reflector.listen import CannotListen, why_not_listening
from probe.reflector.origin import parse_address, prefix_of
from probe.wire.portal import page_of, signed_bytes

MOST_REQUEST_BYTES: Final = 4096
MOST_CONNECTIONS: Final = 512
MOST_CONNECTIONS_PER_PREFIX: Final = 64
MOST_PER_S: Final = 500.0
"""Signatures for everybody together: a few hundredths of one processor."""
BURST_PER_PREFIX: Final = 60.0
PER_PREFIX_PER_S: Final = 2.0
"""A probe asks a handful of times in six hours; many homes stand behind one carrier's address."""
REQUEST_S: Final = 5.0
_MOST_PREFIXES: Final = 4096
_REQUEST: Final = re.compile(rb"GET /portal/([0-9a-f]{32}) HTTP/1\.[01]\r\n")
_HTTP: Final = re.compile(rb"[A-Z]{1,16} [!-~]{1,2048} HTTP/1\.[01]\r\n")
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    429: "Too Many Requests",
    503: "Service Unavailable",
}


class Allowance:
    """Token buckets, one a network and one for all. What is longest unused is forgotten first."""

    def __init__(self) -> None:
        self._all = (MOST_PER_S, 0.0)
        self._prefixes: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def status(self, prefix: str, now: float) -> int:
        """200 where one more signature may be made (and is counted), 429 or 503 where not. `now` in seconds."""
        mine = _refilled(self._prefixes.get(prefix, (BURST_PER_PREFIX, now)), now, PER_PREFIX_PER_S, BURST_PER_PREFIX)
        everybody = _refilled(self._all, now, MOST_PER_S, MOST_PER_S)
        if mine < 1:
            return 429
        if everybody < 1:
            return 503
        self._all = (everybody - 1, now)
        self._prefixes[prefix] = (mine - 1, now)
        self._prefixes.move_to_end(prefix)
        if len(self._prefixes) > _MOST_PREFIXES:
            self._prefixes.popitem(last=False)
        return 200


def _refilled(bucket: tuple[float, float], now: float, per_s: float, most: float) -> float:
    tokens, then = bucket
    return min(most, tokens + max(0.0, now - then) * per_s)


class PortalPage:
    """Serves the page. `sign` signs with the reflector's present key."""

    def __init__(self, sign: Callable[[bytes], bytes]) -> None:
        self._sign = sign
        self._allowance = Allowance()
        self._servers: list[asyncio.Server] = []
        self._open: dict[_Asking, str] = {}
        self._counts: Counter[str] = Counter()

    async def start(self, listeners: Sequence[socket.socket]) -> None:
        """Serve on these listening sockets."""
        loop = asyncio.get_running_loop()
        for listener in listeners:
            self._servers.append(await loop.create_server(lambda: _Asking(self), sock=listener))

    def stop(self) -> None:
        """Stop listening and drop whoever is there."""
        for server in self._servers:
            server.close()
        for asking in list(self._open):
            asking.drop()

    def enter(self, asking: _Asking, prefix: str) -> bool:
        """Whether there is room for one more connection from this network."""
        if len(self._open) >= MOST_CONNECTIONS or self._counts[prefix] >= MOST_CONNECTIONS_PER_PREFIX:
            return False
        self._open[asking] = prefix
        self._counts[prefix] += 1
        return True

    def leave(self, asking: _Asking) -> None:
        """A connection is over."""
        prefix = self._open.pop(asking, None)
        if prefix is not None:
            self._counts[prefix] -= 1
            if not self._counts[prefix]:
                del self._counts[prefix]

    def answer(self, request: bytes, prefix: str, now: float) -> bytes:
        """The bytes of the answer to the head of a request."""
        wanted = _REQUEST.match(request)
        if wanted is None:
            return _answer(404 if _HTTP.match(request) else 400, b"")
        status = self._allowance.status(prefix, now)
        if status != 200:
            return _answer(status, b"", "Retry-After: 30\r\n")
        nonce = bytes.fromhex(wanted[1].decode("ascii"))
        return _answer(200, page_of(nonce, self._sign(signed_bytes(nonce))))


class _Asking(asyncio.Protocol):
    """One connection: one request, one answer, over."""

    def __init__(self, page: PortalPage) -> None:
        self._page = page
        self._data = bytearray()
        self._prefix = ""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse one too many at once."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a TCP connection has a transport that writes")
        peer = transport.get_extra_info("peername")
        self._prefix = prefix_of(parse_address(peer[0])) if peer else ""
        self._transport = transport
        if not self._page.enter(self, self._prefix):
            transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(REQUEST_S, self.drop)

    def data_received(self, data: bytes) -> None:
        """Answer as soon as the head is whole."""
        if self._transport is None or self._transport.is_closing():
            return
        self._data += data
        if b"\r\n\r\n" not in self._data and len(self._data) <= MOST_REQUEST_BYTES:
            return
        head = bytes(self._data) if b"\r\n\r\n" in self._data else b""
        self._transport.write(self._page.answer(head, self._prefix, asyncio.get_running_loop().time()))
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give its place free."""
        if self._timer is not None:
            self._timer.cancel()
        self._page.leave(self)

    def drop(self) -> None:
        """End it without a word."""
        if self._transport is not None:
            self._transport.abort()


def _answer(status: int, body: bytes, more: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nServer: evenlane\r\nContent-Type: text/plain; charset=us-ascii\r\n"
        f"Cache-Control: no-store, no-transform\r\nX-Content-Type-Options: nosniff\r\n{more}"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


def portal_listeners(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Listening sockets of the page, one a host. Raises CannotListen."""
    opened: list[socket.socket] = []
    for host in hosts:
        try:
            opened.append(open_listener(host, opened[0].getsockname()[1] if opened else port))
        except OSError as error:
            for listener in opened:
                listener.close()
            why = why_not_listening(host, port, error)
            raise CannotListen(why.replace("--control-port or --data-port", "--portal-port")) from None
    return opened

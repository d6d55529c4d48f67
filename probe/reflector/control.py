# SPDX-License-Identifier: EUPL-1.2
"""The control port: HTTP around `probe.protocol.desk`, with limits on everything a stranger can stretch.

aiohttp's low-level server without its application: there are three fixed paths and the desk's.
Spec: spec/protocol.md, section "Control channel".
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from probe.protocol.accounts import StillRunning, refuse
from probe.protocol.booking import Booking
from probe.protocol.desk import Answer, ControlRequest, answer, refusal_answer
from probe.protocol.session import encode_message
from probe.reflector.data import DataPlane
from probe.reflector.datagrams import DatagramPlane
from probe.reflector.logs import LOG
from probe.reflector.metrics import CONTENT_TYPE, Metrics
from probe.reflector.origin import Address, parse_address, prefix_of
from probe.reflector.pool import Pool
from probe.reflector.witness import Witness
from probe.wire.codec import WireError
from probe.wire.envelope import to_line
from probe.wire.limits import MAX_MESSAGE_BYTES
from probe.wire.messages import Problem
from probe.wire.records import Direction, Origin

MOST_CONNECTIONS: Final = 2000
MOST_CONNECTIONS_PER_PREFIX: Final = 512
"""Twice the sessions that one network may have open: a probe may come back before its old connection is gone."""
HANDSHAKE_S: Final = 5.0
FIRST_REQUEST_S: Final = 10.0
"""So long after TLS a connection may take until its first whole request head."""
BODY_S: Final = 5.0
KEEPALIVE_S: Final = 150.0
"""Longer than two of the longest segments."""
_WAIT_FOR_DATA_S: Final = 1.0
_POLL_S: Final = 0.01
_DIRECTIONS: Final[tuple[Direction, ...]] = ("down", "up")
_NAME: Final = {"Server": "evenlane"}
"""Instead of the versions that aiohttp would tell everybody."""
_HEADERS: Final = {**_NAME, "Content-Type": "application/json", "Cache-Control": "no-store"}

_HANDLER: Final[dict[str, Any]] = {
    "access_log": None,  # it would hold addresses
    "logger": LOG,
    "keepalive_timeout": KEEPALIVE_S,
    "lingering_time": 1.0,
    "auto_decompress": False,
    "max_line_size": 2048,
    "max_field_size": 4096,
    "max_headers": 64,
}


@dataclass(slots=True)
class ControlParts:
    """What the control port is composed of."""

    booking: Booking
    lock: threading.Lock
    data: DataPlane
    datagrams: DatagramPlane
    witness: Witness
    pool: Pool
    metrics: Metrics
    origin_of: Callable[[Address, str | None], Origin]
    health: dict[str, Any] = field(default_factory=dict)


class _QuietHandler(RequestHandler):
    """Answers what is not HTTP with a Problem; a stranger's nonsense is not worth a traceback in the log."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Called by aiohttp for requests that it cannot read (4xx) and for defects of ours (500)."""
        if status >= 500 or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        problem = Problem(error="bad_http", detail="this is not an HTTP/1.1 request that can be read")
        response = web.Response(status=status, body=encode_message(problem), headers=_HEADERS)
        response.force_close()
        return response


class _GuardedServer(web.Server):
    """Bounds how many connections there are, and how long one may stay without a request."""

    def __init__(self, handler: Callable[[web.BaseRequest], Any]) -> None:
        super().__init__(handler)
        self._prefixes: dict[RequestHandler, str] = {}
        self._counts: Counter[str] = Counter()
        self.spoke: set[RequestHandler] = set()

    def __call__(self) -> RequestHandler:
        """A handler for one connection."""
        return _QuietHandler(self, loop=asyncio.get_running_loop(), **_HANDLER)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Refuse a connection too many at once; drop one later that never says anything."""
        super().connection_made(handler, transport)
        peer = transport.get_extra_info("peername")
        prefix = prefix_of(parse_address(peer[0])) if peer else ""
        if len(self._prefixes) >= MOST_CONNECTIONS or self._counts[prefix] >= MOST_CONNECTIONS_PER_PREFIX:
            transport.abort()
            return
        self._prefixes[handler] = prefix
        self._counts[prefix] += 1
        asyncio.get_running_loop().call_later(FIRST_REQUEST_S, self._drop_if_silent, handler, transport)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Give its place free."""
        super().connection_lost(handler, exc)
        self.spoke.discard(handler)
        prefix = self._prefixes.pop(handler, None)
        if prefix is not None:
            self._counts[prefix] -= 1
            if not self._counts[prefix]:
                del self._counts[prefix]

    def _drop_if_silent(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        if handler in self._prefixes and handler not in self.spoke:
            transport.abort()


class Control:
    """Answers control requests."""

    def __init__(self, parts: ControlParts) -> None:
        self._parts = parts
        self._server: _GuardedServer | None = None
        self._listening: list[asyncio.Server] = []
        self._ticker: asyncio.Task[None] | None = None

    async def start(self, listeners: list[Any], context: ssl.SSLContext) -> None:
        """Serve on these listening sockets."""
        loop = asyncio.get_running_loop()
        self._server = _GuardedServer(self._handle)
        for listener in listeners:
            self._listening.append(
                await loop.create_server(
                    self._server,
                    sock=listener,
                    ssl=context,
                    ssl_handshake_timeout=HANDSHAKE_S,
                    ssl_shutdown_timeout=1.0,
                )
            )
        self._ticker = asyncio.create_task(self._tick())

    async def stop(self) -> None:
        """Stop listening and answer nobody any more."""
        for listening in self._listening:
            listening.close()
        if self._ticker is not None:
            self._ticker.cancel()
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(1.0)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            with self._parts.lock:
                ended = self._parts.booking.tick(self._parts.metrics.now_ms())
            self._parts.witness.catch_up(ended)

    # -- one request --------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        if self._server is not None and request.protocol is not None:
            self._server.spoke.add(request.protocol)
        if request.method == "GET" and request.path in {"/v1/ping", "/healthz", "/metrics"}:
            return self._read_only(request.path)
        try:
            async with asyncio.timeout(BODY_S):
                body = await _read_body(request)
        except TimeoutError:
            found: Answer = refusal_answer(refuse(408, "too_slow", "the request's body did not come in time"))
        except (web.RequestPayloadError, HttpProcessingError, ConnectionError):
            found = refusal_answer(refuse(400, "bad_http", "the request's body cannot be read"))
        except WireError as error:
            problem = Problem(error=error.reason, detail=str(error))
            found = Answer(status=413, body=encode_message(problem), error=error.reason)
        else:
            found = await self._decide(self._control_request(request, body))
        return self._respond(found)

    def _read_only(self, path: str) -> web.Response:
        if path == "/v1/ping":
            return web.Response(status=204, headers=_NAME)
        self.measure()
        if path == "/metrics":
            return web.Response(body=self._parts.metrics.text(), headers={**_NAME, "Content-Type": CONTENT_TYPE})
        with self._parts.lock:
            sessions = self._parts.booking.sessions_open
        return web.Response(
            text=json.dumps({"status": "ok", "sessions_open": sessions, **self._parts.health}) + "\n",
            content_type="application/json",
            headers=_NAME,
        )

    def measure(self) -> None:
        """Bring the gauges up to date, all from one moment."""
        parts = self._parts
        with parts.lock:
            parts.metrics.sessions_open.set(parts.booking.sessions_open)
            parts.metrics.pairs_open.set(parts.booking.pairs_open)
            parts.metrics.booked.set(parts.booking.booked_mbps)
            for direction in _DIRECTIONS:
                parts.metrics.used.labels(direction=direction).set(parts.booking.used_mbps(direction))

    def _control_request(self, request: web.BaseRequest, body: bytes) -> ControlRequest:
        transport = request.transport
        peer = transport.get_extra_info("peername") if transport else None
        here = transport.get_extra_info("sockname") if transport else None
        address = parse_address(peer[0] if peer else "::")
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return ControlRequest(
            method=request.method,
            path=request.path,
            body=body,
            token=token.strip() if scheme.lower() == "bearer" else "",
            prefix=prefix_of(address),
            origin=self._parts.origin_of(address, None),
            endpoints=self._parts.pool.seen_from(
                host_header=request.headers.get("Host", ""), local_address=here[0] if here else ""
            ),
        )

    async def _decide(self, request: ControlRequest) -> Answer:
        parts, deadline = self._parts, asyncio.get_running_loop().time() + _WAIT_FOR_DATA_S
        force = False
        while True:
            with parts.lock:
                found = answer(parts.booking, request, parts.metrics.now_ms(), force=force)
            if not isinstance(found, StillRunning):
                return self._write_down(found)
            # The reset that ends the segment may still be on its way here.
            if asyncio.get_running_loop().time() >= deadline:
                parts.data.end(found.tickets)
                parts.datagrams.end(found.tickets)
                force = True
            await asyncio.sleep(_POLL_S)

    def _write_down(self, found: Answer) -> Answer:
        witness = self._parts.witness
        if found.status == 201:
            self._parts.metrics.sessions_started.inc()
        if found.session is not None and found.started is not None and not witness.begin(found.session, found.started):
            return _cannot_write()
        if found.ended is None:
            return found
        envelope = witness.end(found.ended)
        if not found.wants_receipt:
            return found
        return _cannot_write() if envelope is None else Answer(status=found.status, body=to_line(envelope))

    def _respond(self, found: Answer) -> web.Response:
        self._parts.metrics.requests.labels(status=str(found.status)).inc()
        if found.error:
            self._parts.metrics.refusals.labels(error=found.error).inc()
        headers = dict(_HEADERS)
        if found.retry_after_s is not None:
            headers["Retry-After"] = str(found.retry_after_s)
        if found.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return web.Response(status=found.status, body=found.body, headers=headers)


def _cannot_write() -> Answer:
    return refusal_answer(refuse(503, "busy", "this reflector cannot write its records", 30))


async def _read_body(request: web.BaseRequest) -> bytes:
    """The body, at most 64 kB. Raises WireError too_large as soon as it is known to be longer."""
    too_large = WireError("too_large", detail=f"at most {MAX_MESSAGE_BYTES} bytes")
    if (request.content_length or 0) > MAX_MESSAGE_BYTES:
        raise too_large
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > MAX_MESSAGE_BYTES:
            raise too_large
    return bytes(body)

# SPDX-License-Identifier: EUPL-1.2
"""The TCP carriers that use no TLS, on the probe: what is sent before the payload, and what is waited for.

Nothing here knows an arm, and every length but the flight's is the same for all. Spec: spec/carriers.md, sections
"hello" and "stream".
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from collections.abc import Callable

from probe.protocol import sealed
from probe.protocol.steps import RunSegment

HelloMaker = Callable[[str, bytes], bytes]
"""Makes the browser-shaped ClientHello for a server name and a legacy session id of 32 bytes."""


def shake(sock: socket.socket, *, client_hello: bytes, session_id: bytes, timeout_s: float) -> socket.socket:
    """The shape of a TLS handshake up to the server's flight, on a socket which this call takes over.

    Raises OSError as a real handshake would: TimeoutError, ConnectionResetError, ssl.SSLError for another answer.
    """
    deadline = time.monotonic() + timeout_s
    try:
        sock.settimeout(timeout_s)
        sock.sendall(client_hello)
        flight = _exactly(sock, sealed.SERVER_FLIGHT_BYTES, deadline, first=sealed.TLS_HANDSHAKE)
        if not sealed.is_server_flight(flight, session_id):
            raise ssl.SSLError("another server answered")
    except BaseException:
        sock.close()
        raise
    return sock


def greetings(step: RunSegment, hello: bytes) -> tuple[bytes, ...]:
    """What is sent before any payload, one write each; the hello is in the last one."""
    if step.carrier == "hello":
        return (sealed.client_finish(hello, os.urandom),)
    if step.carrier == "stream" and step.wire is not None:
        # Engines look at the first packet: it holds the flight and nothing else.
        flight = step.wire.flight
        return flight, sealed.behind_flight(len(flight), hello, os.urandom)
    return (hello,)


def take_answer(sock: socket.socket, step: RunSegment, deadline: float) -> bool:
    """Wait for what the reflector says first; False where it is not what it had to say. Raises OSError, EOFError."""
    if step.wire is None or not step.wire.answer:
        return True
    return _exactly(sock, len(step.wire.answer), deadline) == step.wire.answer


def _exactly(sock: socket.socket, count: int, deadline: float, first: int | None = None) -> bytes:
    got = b""
    while len(got) < count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline passed")
        sock.settimeout(left)
        piece = sock.recv(count - len(got))
        if not piece and first is not None:
            raise ConnectionResetError(errno.ECONNRESET, "the handshake was cut")
        if not piece:
            raise EOFError("the peer ended before its answer was complete")
        got += piece
        if first is not None and got[0] != first:
            raise ssl.SSLError("this is no handshake")
    return got

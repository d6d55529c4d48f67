# SPDX-License-Identifier: EUPL-1.2
"""HTTP/1.1 over one socket: as much as the control channel and uploads need.

The standard library's client would bring in the e-mail package, which is a package of its own on OpenWrt and
costs more memory than all of this module's users together. RFC 9112. Spec: spec/protocol.md, "Control channel".
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MAX_HEAD_BYTES: Final = 32 * 1024
_READ_BYTES: Final = 16 * 1024


class HttpError(Exception):
    """The peer does not speak HTTP/1.1 as we understand it."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def retry_after_s(self) -> int | None:
        """Retry-After in seconds, where it is a number (RFC 9110, section 10.2.3)."""
        value = self.headers.get("retry-after", "")
        return int(value) if _is_number(value, 8) else None


class HttpConnection:
    """Requests one after another on one connected (TLS or plain) socket.

    Raises OSError (TimeoutError where the deadline passed), EOFError where the peer closed, HttpError.
    """

    def __init__(self, sock: socket.socket, host: str) -> None:
        self._sock = sock
        self._host = host
        self._buffer = bytearray()
        self._unread = 0
        self._deadline = 0.0
        self._within_answer = False
        self.closed_by_peer = False

    def request(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        most: int = 8 * 1024 * 1024,
    ) -> Response:
        """Send a request and read its answer, both within `timeout_s`."""
        self._deadline = time.monotonic() + timeout_s
        self._send(method, path, body, headers or {})
        while self._unread:  # the answer to a ping that one did not wait for
            self._read(most)
            self._unread -= 1
        return self._read(most)

    def begin(self, method: str, path: str, *, timeout_s: float) -> bool:
        """Send a request without body; whether its answer came in time. A late answer is read by the next request."""
        self._deadline = time.monotonic() + timeout_s
        self._send(method, path, None, {})
        self._unread += 1
        try:
            while self._unread:
                self._read(_READ_BYTES)
                self._unread -= 1
        except TimeoutError:
            if self._within_answer:
                raise HttpError("an answer stopped half way") from None
            return False
        return True

    @property
    def addresses(self) -> tuple[str, str]:
        """The socket's own and its peer's address, without port and scope."""
        own, peer = self._sock.getsockname()[0], self._sock.getpeername()[0]
        return str(own).partition("%")[0], str(peer).partition("%")[0]

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def _send(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> None:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
        self._sock.settimeout(self._left())
        # One write, so that a small request is one packet.
        self._sock.sendall(head + (body or b""))

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline passed")
        return left

    def _fill(self) -> None:
        self._sock.settimeout(self._left())
        chunk = self._sock.recv(_READ_BYTES)
        if not chunk:
            self.closed_by_peer = True
            raise EOFError("the peer closed the connection")
        self._buffer += chunk

    def _line_block(self) -> bytes:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise HttpError("the answer's head is too long")
            self._fill()
        block = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        return block

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill()
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _read(self, most: int) -> Response:
        head = self._line_block()
        self._within_answer = True
        response = self._after_head(head, most)
        self._within_answer = False
        return response

    def _after_head(self, head: bytes, most: int) -> Response:
        status, headers = _parse_head(head)
        while 100 <= status < 200:
            status, headers = _parse_head(self._line_block())
        if headers.get("connection", "").lower() == "close":
            self.closed_by_peer = True
        if status in {204, 304}:
            return Response(status, headers, b"")
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return Response(status, headers, self._chunks(most))
        length = headers.get("content-length", "")
        if not _is_number(length, 12):
            raise HttpError("the answer has no usable length")
        if int(length) > most:
            raise HttpError("the answer is too large")
        return Response(status, headers, self._take(int(length)))

    def _chunks(self, most: int) -> bytes:
        body = bytearray()
        while True:
            size = _chunk_size(self._until_newline())
            if len(body) + size > most:
                raise HttpError("the answer is too large")
            if size == 0:
                while self._until_newline():
                    pass  # trailer fields
                return bytes(body)
            body += self._take(size)
            if self._take(2) != b"\r\n":
                raise HttpError("a chunk does not end where it says")

    def _until_newline(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise HttpError("a line is too long")
            self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line


def _is_number(text: str, longest: int) -> bool:
    # `isdigit` alone takes superscripts for digits, and `int` does not.
    return text.isascii() and text.isdigit() and len(text) <= longest


def _parse_head(block: bytes) -> tuple[int, dict[str, str]]:
    first, *rest = block.decode("latin-1").split("\r\n")
    version, _, tail = first.partition(" ")
    code = tail[:3]
    if not version.startswith("HTTP/1.") or not _is_number(code, 3) or int(code) < 100:
        raise HttpError("the peer does not speak HTTP/1.1")
    headers: dict[str, str] = {}
    for line in rest:
        name, colon, value = line.partition(":")
        if not colon:
            raise HttpError("a header field has no colon")
        headers[name.strip().lower()] = value.strip()
    return int(code), headers


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not digits or len(digits) > 8 or any(digit not in b"0123456789abcdefABCDEF" for digit in digits):
        raise HttpError("a chunk has no usable size")
    return int(digits, 16)

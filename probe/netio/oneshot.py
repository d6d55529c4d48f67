# SPDX-License-Identifier: EUPL-1.2
"""One plain HTTP request on a connection of its own, to somebody who may be anybody.

For captive portals and home routers, which speak HTTP as they please: whatever comes within the time and the bytes
allowed is taken as it is, nothing is followed, nothing is decoded. Spec: spec/probe.md, "Portal" and "Household".
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from probe.netio.dial import Dialer

_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?\r?\n")
_READ_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Reply:
    """What came. `status` is None where it was not HTTP at all; header names are in lower case."""

    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_whole: bool = False
    """It ended as it said it would, or by the end of the connection."""


def fetch(
    dialer: Dialer,
    host: str,
    port: int,
    request: bytes,
    *,
    connect_s: float,
    timeout_s: float,
    most: int,
) -> Reply | None:
    """Send `request` and read at most `most` bytes within `timeout_s`; None where nobody says anything.

    Never raises for what the network or the peer does.
    """
    try:
        sock = dialer.connect(host, port, connect_s)
    except OSError:
        return None
    deadline = time.monotonic() + timeout_s
    data = bytearray()
    ended = False
    try:
        sock.settimeout(timeout_s)
        sock.sendall(request)
        while len(data) < most and not _is_complete(data):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            sock.settimeout(left)
            piece = sock.recv(min(_READ_BYTES, most - len(data)))
            if not piece:
                ended = True
                break
            data += piece
    except OSError:
        pass  # what came before a reset is an answer too
    finally:
        sock.close()
    return _reply(bytes(data), ended) if data else None


def request_head(
    method: str, path: str, authority: str, headers: Mapping[str, str], length: int | None = None
) -> bytes:
    """The bytes of a request's head. The caller answers for what is in it."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {authority}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _split(data: bytes | bytearray) -> tuple[bytes, bytes] | None:
    end = data.find(b"\r\n\r\n")
    return None if end < 0 else (bytes(data[: end + 2]), bytes(data[end + 4 :]))


def _length(head: bytes) -> int | None:
    found = re.search(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r\n", head, re.IGNORECASE)
    return int(found[1]) if found else None


def _is_complete(data: bytearray) -> bool:
    parts = _split(data)
    if parts is None:
        return False
    length = _length(parts[0])
    return length is not None and len(parts[1]) >= length


def _reply(data: bytes, ended: bool) -> Reply:
    line = _STATUS.match(data)
    if line is None:
        return Reply(None, {}, data)
    parts = _split(data)
    if parts is None:
        return Reply(int(line[1]))
    head, body = parts
    headers = {}
    for row in head.decode("latin-1").split("\r\n")[1:]:
        name, colon, value = row.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    length = _length(head)
    if length is None:
        return Reply(int(line[1]), headers, body, is_whole=ended)
    return Reply(int(line[1]), headers, body[:length], is_whole=len(body) >= length)

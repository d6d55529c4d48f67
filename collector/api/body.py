# SPDX-License-Identifier: EUPL-1.2
"""How a stranger's body is read: a rate limit first, then at most so many bytes within so much time.

Spec: spec/api.md, section "Limits".
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Final

from aiohttp import ClientPayloadError, web

from collector.api.problem import problem
from collector.intake import Rejection
from collector.keys import CONFIG, IN_FLIGHT, LIMIT
from collector.limits import client_of

BODY_S: Final = 30.0
"""Longest time for a body to arrive."""


def too_often(request: web.Request) -> web.Response | None:
    """The refusal of a client that comes too often; None to go on."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    address = peer[0] if isinstance(peer, tuple) and peer else None
    client = client_of(address, request.headers.get("X-Forwarded-For"), request.app[CONFIG].trusted_proxies)
    wait_s = request.app[LIMIT].take(client, time.monotonic())
    if not wait_s:
        return None
    return problem(429, "slow_down", headers={"Retry-After": str(math.ceil(wait_s))})


async def read(request: web.Request, body: bytearray, most: int) -> Rejection | web.Response | None:
    """Append the body as it was sent; what stands against it, or the answer where it never came whole.

    Whatever happens, the caller takes `len(body)` out of `IN_FLIGHT` in the end.
    """
    try:
        return await asyncio.wait_for(_append(request, body, most), BODY_S)
    except TimeoutError:
        return problem(408, "too_slow", f"the body took more than {BODY_S:g} s")
    except (ClientPayloadError, web.RequestPayloadError, ConnectionError):
        return problem(400, "cut_off", "the body ended too early; send it again")


async def _append(request: web.Request, body: bytearray, most: int) -> Rejection | None:
    """Append the body; what stands against it, as soon as that is known."""
    too_large = Rejection(status=413, reason="too_large", detail=f"at most {most} bytes")
    if (request.content_length or 0) > most:
        return too_large
    async for chunk in request.content.iter_any():
        body += chunk
        if not request.app[IN_FLIGHT].add(len(chunk)):
            return Rejection(status=503, reason="busy", detail="too much is being uploaded at once; try again")
        if len(body) > most:
            return too_large
    return None


def told(request: web.Request) -> tuple[str, str]:
    """Type and encoding of the body, as the request says."""
    kind = request.content_type if "Content-Type" in request.headers else ""
    return kind, request.headers.get("Content-Encoding", "").strip().lower()

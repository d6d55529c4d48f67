# SPDX-License-Identifier: EUPL-1.2
"""Every refusal in one shape: problem JSON with a stable code (RFC 9457). Spec: spec/api.md, section "Refusals"."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from collector.keys import LOG
from collector.store.base import StoreError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RETRY_S: Final = 5
_CODES: Final = {404: "not_found", 405: "method_not_allowed", 408: "too_slow", 413: "too_large"}
_SAFE: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Server": "evenlane",
}


def body_of(status: int, error: str, detail: str = "", path: str = "") -> dict[str, Any]:
    """The members of a problem; detail and path only where there are any."""
    told = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "error": error}
    return {**told, **({"detail": detail} if detail else {}), **({"path": path} if path else {})}


def problem(
    status: int, error: str, detail: str = "", path: str = "", headers: Mapping[str, str] | None = None
) -> web.Response:
    """A refusal as an answer."""
    return web.Response(
        text=json.dumps(body_of(status, error, detail, path)),
        status=status,
        content_type="application/problem+json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns what a handler raises into a problem; a bug is logged and answered with 500."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return problem(error.status, _CODES.get(error.status, "refused"), headers=allow)
    except StoreError as error:
        request.app[LOG].error("a request could not be answered: %s", error)
        return problem(503, "store_unavailable", "try again later", headers={"Retry-After": str(RETRY_S)})
    except Exception:  # noqa: BLE001 - a bug: logged in full, told in short
        request.app[LOG].log(logging.ERROR, "a request failed", exc_info=True)
        return problem(500, "internal", "this is a defect of the collector")


async def prepare(request: web.Request, response: web.StreamResponse) -> None:
    """Headers of every answer; anybody's page may read the open data."""
    response.headers.update({name: value for name, value in _SAFE.items() if name not in response.headers})
    response.headers["Server"] = _SAFE["Server"]
    if request.path.startswith("/v1/") and request.method in {"GET", "HEAD", "OPTIONS"}:
        response.headers["Access-Control-Allow-Origin"] = "*"
        response.headers["Access-Control-Expose-Headers"] = "ETag"

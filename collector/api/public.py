# SPDX-License-Identifier: EUPL-1.2
"""What everybody may read: cells, cases, evidence, operators; JSON by default, CSV on request.

Spec: spec/api.md, section "Open data".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any, Final, cast, get_args

from aiohttp import web

from collector.api.problem import problem
from collector.api.shape import (
    CASE_COLUMNS,
    CELL_COLUMNS,
    PAIR_COLUMNS,
    case_row,
    cell_row,
    flat,
    operator_row,
    pictures,
    to_csv,
)
from collector.keys import STORE, in_thread
from collector.model import CellKey, CellView, State
from probe.wire.records import Access, Direction, Effect

CELL_FILTERS: Final = ("operator", "asn", "country", "app", "direction", "access", "effect", "state")
_ALLOWED: Final[dict[str, tuple[str, ...]]] = {
    "direction": get_args(Direction),
    "access": get_args(Access),
    "effect": get_args(Effect),
    "state": get_args(State),
    "format": ("json", "csv"),
    "status": ("open", "ended", "withdrawn", "corrected"),
}


class BadQuery(ValueError):
    """A query that cannot be understood; the message names the parameter."""

    def __init__(self, name: str, detail: str) -> None:
        self.name = name
        super().__init__(detail)


def setup(app: web.Application) -> None:
    """Add the routes."""
    router = app.router
    router.add_get("/v1/cells", _guarded(_cells))
    router.add_get("/v1/evidence", _guarded(_evidence))
    router.add_get("/v1/cases", _guarded(_cases))
    router.add_get("/v1/cases/{id:[0-9A-Za-z_-]{1,64}}", _guarded(_case))
    router.add_get("/v1/operators", _guarded(_operators))
    router.add_route("OPTIONS", "/v1/{tail:.*}", _preflight)


Handler = Callable[[web.Request], Any]


def _guarded(handler: Handler) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            answer: web.StreamResponse = await handler(request)
        except BadQuery as error:
            return problem(400, "bad_query", str(error), error.name)
        return answer

    return handle


async def _preflight(_: web.Request) -> web.Response:
    return web.Response(
        status=204,
        headers={"Access-Control-Allow-Methods": "GET, HEAD, OPTIONS", "Access-Control-Max-Age": "86400"},
    )


async def _cells(request: web.Request) -> web.Response:
    wanted = _query(request, CELL_FILTERS)
    cells = [cell for cell in await in_thread(request.app[STORE].cells) if _fits(cell, wanted)]
    rows = [cell_row(cell) for cell in cells]
    return _answer(request, {"cells": rows}, lambda: to_csv(map(flat, rows), CELL_COLUMNS))


def _fits(cell: CellView, wanted: dict[str, set[str]]) -> bool:
    key = cell.key
    has = {
        "operator": key.operator,
        "asn": "" if key.asn is None else str(key.asn),
        "country": cell.country or "",
        "app": key.app,
        "direction": key.direction,
        "access": key.access,
        "effect": key.effect,
        "state": cell.state,
    }
    return all(has[name] in values for name, values in wanted.items())


async def _cases(request: web.Request) -> web.Response:
    wanted = _query(request, (*CELL_FILTERS, "status"))
    statuses = wanted.pop("status", None)
    cases = [
        case
        for case in await in_thread(request.app[STORE].cases)
        if _fits(case.cell, wanted) and (statuses is None or case.status in statuses)
    ]
    rows = [case_row(case) for case in cases]
    return _answer(request, {"cases": rows}, lambda: to_csv(map(flat, rows), CASE_COLUMNS))


async def _case(request: web.Request) -> web.Response:
    _query(request, ())
    detail = await in_thread(request.app[STORE].case, request.match_info["id"])
    if detail is None:
        return problem(404, "not_found", "there is no such case")
    more = await in_thread(pictures, detail)
    return _answer(request, {**case_row(detail.case), **more}, lambda: to_csv(more["pairs"], PAIR_COLUMNS))


async def _evidence(request: web.Request) -> web.Response:
    names = ("operator", "app", "direction", "access", "effect")
    wanted = _query(request, names)
    for name in names:
        if len(wanted.get(name, ())) != 1:
            raise BadQuery(name, f"{name} must be given once")
    operator, app, direction, access, effect = (next(iter(wanted[name])) for name in names)
    key = CellKey(
        operator=operator,
        asn=None,
        app=app,
        direction=cast("Direction", direction),
        access=cast("Access", access),
        effect=cast("Effect", effect),
    )
    detail = await in_thread(request.app[STORE].evidence, key)
    if detail is None:
        return problem(404, "not_found", "there is no such cell")
    more = await in_thread(pictures, detail)
    return _answer(request, {"cell": cell_row(detail.cell), **more}, lambda: to_csv(more["pairs"], PAIR_COLUMNS))


async def _operators(request: web.Request) -> web.Response:
    _query(request, ())
    rows = [operator_row(operator) for operator in await in_thread(request.app[STORE].operators)]
    columns = ("place", "id", "brand", "asns", "country", "timezone", "configured", "cgnat")
    return _answer(request, {"operators": rows}, lambda: to_csv(map(flat, rows), columns))


def _query(request: web.Request, names: Iterable[str]) -> dict[str, set[str]]:
    """The filters of a request; a name may stand several times (or). What is not known is refused, not ignored."""
    known = {*names, "format"}
    wanted: dict[str, set[str]] = {}
    for name, value in request.query.items():
        if name not in known:
            raise BadQuery(name[:64], f"known here: {', '.join(sorted(known))}")
        if value not in _ALLOWED.get(name, (value,)):
            raise BadQuery(name, f"{name} is one of {', '.join(_ALLOWED[name])}")
        if name != "format":
            wanted.setdefault(name, set()).add(value)
    return wanted


def _answer(request: web.Request, told: dict[str, Any], as_csv: Callable[[], str]) -> web.Response:
    csv = request.query.get("format", "csv" if _prefers_csv(request.headers.get("Accept", "")) else "json") == "csv"
    text = as_csv() if csv else json.dumps(told, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    body = text.encode()
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "public, no-cache", "Vary": "Accept, Accept-Encoding"}
    if tag in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers=headers)
    kind = "text/csv" if csv else "application/json"
    response = web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)
    if len(body) > 1024:
        response.enable_compression()
    return response


def _prefers_csv(accept: str) -> bool:
    """Whether text/csv stands in Accept before anything that JSON satisfies."""
    for part in accept.split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind in {"application/json", "*/*", "application/*"}:
            return False
        if kind == "text/csv":
            return True
    return False

# SPDX-License-Identifier: EUPL-1.2
"""`POST /v1/measurements` and `/v1/receipts`: the thin shell around `collector.intake`.

An answer that says accepted or duplicate leaves only after the commit. Spec: spec/api.md, section "Uploads".
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web

from collector.api.body import read as read_body
from collector.api.body import told as told_of
from collector.api.body import too_often
from collector.api.problem import RETRY_S, problem
from collector.intake import DOORS, Door, Rejection, Upload, admit, take_apart
from collector.keys import CLOCK, CONFIG, IN_FLIGHT, LOG, METRICS, STORE, WORKER, in_thread
from collector.metrics import Metrics
from collector.store.base import EnvelopeRow, Stored, StoreError
from probe.wire.limits import MAX_BODY_BYTES

INLINE_BYTES: Final = 64 * 1024
"""A larger body is read beside the event loop."""
_REFUSALS: Final[dict[Stored, tuple[int, str]]] = {
    "conflict": (409, "other bytes are here under this id"),
    "session_measured": (409, "this probe has told of this session before"),
    "left": (410, "this probe has left since, and nothing is kept of it"),
}


def setup(app: web.Application) -> None:
    """Add the two doors."""
    for door in DOORS:
        app.router.add_post(f"/v1/{door}", _handler(door))


def _handler(door: Door) -> Any:
    async def handle(request: web.Request) -> web.Response:
        refusal = too_often(request)
        if refusal is not None:
            return refusal
        metrics = request.app[METRICS]
        with metrics.intake_seconds.time():
            return await _answer(request, door, metrics)

    return handle


async def _answer(request: web.Request, door: Door, metrics: Metrics) -> web.Response:
    body = bytearray()
    try:
        return await _read_and_keep(request, door, metrics, body)
    finally:
        request.app[IN_FLIGHT].remove(len(body))


async def _read_and_keep(request: web.Request, door: Door, metrics: Metrics, body: bytearray) -> web.Response:
    trouble = await read_body(request, body, MAX_BODY_BYTES)
    if isinstance(trouble, Rejection):
        return _refuse(trouble, metrics)
    if trouble is not None:
        return trouble
    content_type, encoding = told_of(request)
    told = _Told(
        door=door,
        content_type=content_type,
        encoding=encoding,
        trusted=frozenset(request.app[CONFIG].reflectors),
        now_ms=request.app[CLOCK](),
    )
    raw = bytes(body)
    read = told.read(raw) if len(raw) <= INLINE_BYTES else await in_thread(told.read, raw)
    if isinstance(read, Rejection):
        return _refuse(read, metrics)
    single, found = read
    metrics.received.inc(len(found))
    try:
        stored = await _keep(request, [row for row in found if isinstance(row, EnvelopeRow)])
    except StoreError as error:
        request.app[LOG].error("an upload could not be kept: %s", error)
        _count(found, metrics, failed=True)
        return problem(503, "store_unavailable", "nothing was kept; try again", headers={"Retry-After": str(RETRY_S)})
    results = _results(found, stored)
    _count(results, metrics)
    if not single:
        return web.json_response({"results": [_told_in_batch(result) for result in results]})
    return _single(results[0])


class _Told:
    """What a request says of its body, and the body read accordingly."""

    def __init__(self, *, door: Door, content_type: str, encoding: str, trusted: frozenset[str], now_ms: int) -> None:
        self._door: Door = door
        self._content_type = content_type
        self._encoding = encoding
        self._trusted = trusted
        self._now_ms = now_ms

    def read(self, raw: bytes) -> tuple[bool, list[EnvelopeRow | Rejection]] | Rejection:
        """Whether it was one envelope, and each one verified; or why the whole of it is refused."""
        upload = take_apart(raw, content_type=self._content_type, encoding=self._encoding)
        if not isinstance(upload, Upload):
            return upload
        return upload.single, [
            admit(item, door=self._door, trusted=self._trusted, now_ms=self._now_ms) for item in upload.items
        ]


async def _keep(request: web.Request, rows: list[EnvelopeRow]) -> list[Stored]:
    if not rows:
        return []
    # Shielded: a client that hangs up does not undo what is being written.
    stored = await asyncio.shield(asyncio.wrap_future(request.app[STORE].add(rows)))
    if "accepted" in stored:
        request.app[WORKER].wake()
    return stored


Result = tuple[EnvelopeRow | Rejection, Stored | None]
"""An envelope with what the store said; or a rejection."""


def _results(found: list[EnvelopeRow | Rejection], stored: list[Stored]) -> list[Result]:
    answers = iter(stored)
    results: list[Result] = []
    for one in found:
        answer = next(answers) if isinstance(one, EnvelopeRow) else None
        if isinstance(one, EnvelopeRow) and answer in _REFUSALS:
            status, detail = _REFUSALS[answer]
            results.append((Rejection(status=status, reason=answer, detail=detail, id=one.ident, kind=one.kind), None))
        else:
            results.append((one, answer))
    return results


def _count(results: list[Result] | list[EnvelopeRow | Rejection], metrics: Metrics, *, failed: bool = False) -> None:
    for result in results:
        one, answer = result if isinstance(result, tuple) else (result, None)
        if isinstance(one, Rejection):
            metrics.count(one.kind or "unknown", "refused")
        elif failed:
            metrics.count(one.kind, "failed")
        else:
            metrics.count(one.kind, "repeated" if answer == "duplicate" else "stored")


def _refuse(rejection: Rejection, metrics: Metrics) -> web.Response:
    """A body of which nothing could be read counts as one envelope of unknown type."""
    metrics.received.inc()
    metrics.count("unknown", "refused" if rejection.status < 500 else "failed")
    return _problem(rejection)


def _problem(rejection: Rejection) -> web.Response:
    headers = {"Retry-After": str(RETRY_S)} if rejection.status == 503 else {}
    return problem(rejection.status, rejection.reason, rejection.detail, rejection.path, headers=headers)


def _told_in_batch(result: Result) -> dict[str, Any]:
    one, answer = result
    if isinstance(one, EnvelopeRow):
        return {"status": answer, "reason": "", "id": one.ident}
    return {
        "status": "rejected",
        "reason": one.reason,
        "id": one.id,
        "http": one.status,
        "detail": one.detail,
        "path": one.path,
    }


def _single(result: Result) -> web.Response:
    one, answer = result
    if isinstance(one, Rejection):
        return _problem(one)
    return web.json_response(_told_in_batch(result), status=200 if answer == "duplicate" else 201)

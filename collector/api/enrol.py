# SPDX-License-Identifier: EUPL-1.2
"""The doors for those who take part: `/v1/about`, `/v1/enrol`, `/v1/plan`, `/v1/leave`.

Thin: `collector.enrolment` decides. Spec: spec/enrolment.md.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from collector.api.body import read, told, too_often
from collector.api.problem import RETRY_S, problem
from collector.enrolment import CONSENT, MAX_WISH_BYTES, Decision, Wish, decide, token_id
from collector.enrolment import read as read_wish
from collector.intake import Rejection
from collector.keys import CLOCK, CONFIG, IDENTITY, IN_FLIGHT, LOG, SHELF, STORE, WORKER, in_thread
from collector.store.base import Roll, StoreError
from probe.wire.codec import WireError
from probe.wire.records import Enrolment
from probe.wire.signing import key_bytes

Answer = Callable[[web.Request, Wish], Awaitable[web.Response]]
VERSION: Final = 1
SMALL_BYTES: Final = 64 * 1024 * 1024
"""A store up to this size is written anew at once when a probe leaves; a larger one within a day."""
SCRUB_EVERY_MS: Final = 10 * 60_000
"""No oftener at once: else whoever joins and leaves by turns would keep everybody's uploads waiting."""
HOUSEKEEPING_S: Final = 3600.0
DELETED_FOR_MS: Final = 20 * 3_600_000
"""So that what was deleted is gone from the disk within a day, and the store is written anew once a day at most."""


_SCRUBBED: Final[web.AppKey[list[int]]] = web.AppKey("SCRUBBED")
"""When the store was last written anew because of a leave (Unix ms)."""


def setup(app: web.Application) -> None:
    """Add the doors."""
    app[_SCRUBBED] = [0]
    app.router.add_get("/v1/about", _about)
    app.router.add_get("/v1/plan", _plan)
    app.router.add_post("/v1/enrol", _door("enrolment", _enrol))
    app.router.add_post("/v1/leave", _door("leave", _leave))
    app.cleanup_ctx.append(_housekeeping)


async def _about(request: web.Request) -> web.Response:
    """Whom a volunteer is about to trust, and with which key."""
    config = request.app[CONFIG]
    answer = {
        "v": VERSION,
        "name": config.name,
        "contact": config.contact,
        "key": request.app[IDENTITY].key_id,
        "consent": CONSENT,
        "enrolment": config.enrolment,
        "time_ms": request.app[CLOCK](),
    }
    return web.json_response(answer, headers={"Cache-Control": "no-store"})


async def _plan(request: web.Request) -> web.Response:
    """The newest plan that is rolled out to this probe."""
    asked = request.query.getall("probe", [])
    if len(asked) != 1 or len(request.query) != 1:
        return problem(400, "bad_query", "probe must be given once, and nothing else", "probe")
    try:
        key_bytes(asked[0])
    except WireError:
        return problem(400, "bad_query", "probe is a key id: 43 characters of base64url", "probe")
    found = await in_thread(request.app[SHELF].for_probe, asked[0], request.app[CLOCK]())
    if found is None:
        return problem(404, "no_plan", "nothing is planned at present: ask again tomorrow")
    headers = {"ETag": found.tag, "Cache-Control": "private, no-cache"}
    if found.tag in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers=headers)
    return web.Response(body=found.answer, content_type="application/json", headers=headers)


def _door(kind: str, answer: Answer) -> Any:
    """A door for one signed wish."""

    async def handle(request: web.Request) -> web.Response:
        refusal = too_often(request)
        if refusal is not None:
            return refusal
        body = bytearray()
        try:
            trouble = await read(request, body, MAX_WISH_BYTES)
            if trouble is not None:
                return refused(trouble) if isinstance(trouble, Rejection) else trouble
            content_type, encoding = told(request)
            wish = read_wish(
                bytes(body),
                content_type=content_type,
                encoding=encoding,
                kind=kind,
                own=request.app[IDENTITY].key_id,
                now_ms=request.app[CLOCK](),
            )
            return refused(wish) if isinstance(wish, Rejection) else await answer(request, wish)
        finally:
            request.app[IN_FLIGHT].remove(len(body))

    return handle


def refused(rejection: Rejection) -> web.Response:
    """A rejection as an answer."""
    headers = {"Retry-After": str(RETRY_S)} if rejection.status == 503 else {}
    return problem(rejection.status, rejection.reason, rejection.detail, rejection.path, headers=headers)


async def _leave(request: web.Request, wish: Wish) -> web.Response:
    # Shielded, as below; also a probe that nobody knows has left, so that asking twice is asking once.
    found = await asyncio.shield(request.app[WORKER].leave(wish))
    if found is not None:
        return refused(found)
    last, now_ms = request.app[_SCRUBBED], request.app[CLOCK]()
    if abs(now_ms - last[0]) >= SCRUB_EVERY_MS:
        last[0] = now_ms
        await _scrub(request.app, SMALL_BYTES)
    return web.json_response({"status": "left"})


async def _scrub(app: web.Application, most_bytes: int | None = None) -> None:
    try:
        await in_thread(app[STORE].scrub, most_bytes)
    except StoreError as error:
        app[LOG].warning("the store could not be written anew, which is tried again: %s", error)


async def _housekeeping(app: web.Application) -> AsyncIterator[None]:
    """Once an hour: forget marks whose time is over, and overwrite what was deleted a day ago."""

    async def always() -> None:
        while True:
            try:
                await _keep_house(app)
            except StoreError as error:
                app[LOG].error("housekeeping waits for an hour: %s", error)
            await asyncio.sleep(HOUSEKEEPING_S)

    task = asyncio.create_task(always(), name="evenlane-housekeeping")
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _keep_house(app: web.Application) -> None:
    now_ms = app[CLOCK]()

    def work(roll: Roll) -> int | None:
        roll.tidy(now_ms)
        return roll.deleted_ms()

    deleted_ms = await asyncio.wrap_future(app[STORE].roll(work))
    if deleted_ms is not None and now_ms - deleted_ms >= DELETED_FOR_MS:
        await _scrub(app)


async def _enrol(request: web.Request, wish: Wish) -> web.Response:
    who, now_ms = request.app[CONFIG].enrolment, request.app[CLOCK]()

    def work(roll: Roll) -> Decision | Rejection:
        named = wish.record.token if isinstance(wish.record, Enrolment) else None
        token = None if named is None else roll.token(token_id(named))
        decision = decide(
            wish,
            member=roll.member(wish.probe),
            departed=roll.departed(wish.probe),
            token=token,
            who=who,
            now_ms=now_ms,
        )
        if isinstance(decision, Decision):
            if decision.write:
                roll.put_member(decision.member)
            if decision.spent is not None:
                roll.put_token(decision.spent)
        return decision

    # Shielded: a client that hangs up does not undo what is being written.
    decision = await asyncio.shield(asyncio.wrap_future(request.app[STORE].roll(work)))
    if isinstance(decision, Rejection):
        return refused(decision)
    answer = {"status": decision.status, "vetted": decision.member.vetted_ms is not None}
    return web.json_response(answer, status=201 if decision.status == "enrolled" else 200)

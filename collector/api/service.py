# SPDX-License-Identifier: EUPL-1.2
"""`/healthz`, `/readyz` and `/metrics`: for whoever runs the collector. Spec: spec/api.md, section "Service"."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from aiohttp import web

from collector.api.problem import problem
from collector.keys import METRICS, STORE, in_thread
from collector.store.base import StoreError


def setup(app: web.Application) -> None:
    """Add the routes."""
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/readyz", _readyz)
    app.router.add_get("/metrics", _metrics)


async def _healthz(request: web.Request) -> web.Response:
    """Alive, and how much waits to be judged."""
    waiting = await in_thread(request.app[STORE].waiting)
    return web.json_response({"status": "ok", "version": _version(), "waiting": waiting})


def _version() -> str:
    try:
        return version("evenlane")
    except PackageNotFoundError:
        return "0+unknown"


async def _readyz(request: web.Request) -> web.Response:
    """Whether an upload would be kept now."""
    try:
        await in_thread(request.app[STORE].check)
    except StoreError as error:
        return problem(503, "store_unavailable", str(error))
    return web.json_response({"status": "ready"})


async def _metrics(request: web.Request) -> web.Response:
    store, metrics = request.app[STORE], request.app[METRICS]
    body = await in_thread(
        lambda: metrics.page(
            store.cells(),
            store.cases(),
            waiting=store.waiting(),
            outbox=store.outbox_size(),
            probes=store.enrolled(),
        )
    )
    return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

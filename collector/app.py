# SPDX-License-Identifier: EUPL-1.2
"""The collector as one aiohttp application: intake, judge, API and, where they are installed, pages and outbox.

Thin: it composes. The client's address is never logged. Spec: spec/api.md.
"""

from __future__ import annotations

import importlib
import importlib.util
import secrets
import time
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from collector.api import enrol, problem, public, service, upload
from collector.config import Config
from collector.identity import load as load_identity
from collector.judge import Judge
from collector.keys import CLOCK, CONFIG, IDENTITY, IN_FLIGHT, LIMIT, LOG, METRICS, SHELF, STORE, WORKER, in_thread
from collector.limits import MOST_IN_FLIGHT, InFlight, RateLimit
from collector.logs import logger
from collector.metrics import Metrics
from collector.plans import Shelf
from collector.store.base import Store
from collector.store.sqlite import SqliteStore
from collector.worker import Worker

__all__ = ["CONFIG", "METRICS", "STORE", "create_app", "in_thread", "now_ms"]

_OPTIONAL = ("collector.pages.routes", "collector.outbox")
"""Each has `setup(app)`, which adds its routes or its background task."""


def now_ms() -> int:
    """The collector's clock, Unix milliseconds."""
    return time.time_ns() // 1_000_000


def create_app(
    config: Config, *, store: Store | None = None, clock_ms: Callable[[], int] = now_ms, judge: Judge | None = None
) -> web.Application:
    """The application; opens the store in `config.data` unless one is given, and closes it at the end either way.

    Raises StoreError where the data directory cannot be used, ConfigError where a sink needs an extra that is missing.
    """
    log = logger()
    app = web.Application(
        middlewares=[problem.problems],
        client_max_size=0,  # bodies are read and limited by collector/api/body.py
        # The body is inflated by intake, which stops a bomb; an access log would hold addresses.
        handler_args={"auto_decompress": False, "access_log": None, "logger": log, "keepalive_timeout": 75.0},
    )
    metrics = Metrics()
    app[CONFIG] = config
    app[STORE] = store or SqliteStore(config.data)
    app[METRICS] = metrics
    app[CLOCK] = clock_ms
    app[LOG] = log
    app[LIMIT] = RateLimit(config.uploads_per_minute, secrets.token_bytes(32))
    app[IN_FLIGHT] = InFlight(MOST_IN_FLIGHT)
    app[WORKER] = Worker(app[STORE], judge or Judge(config), metrics, clock_ms=clock_ms, log=log)
    try:
        # After the store, which sees to it that the directory is there and nobody else's.
        app[IDENTITY] = load_identity(config)
        app[SHELF] = Shelf(config.data, app[IDENTITY])
        for part in (upload, enrol, public, service):
            part.setup(app)
        for name in _OPTIONAL:
            _add(app, name)
    except BaseException:
        app[STORE].close()
        raise
    app.on_response_prepare.append(problem.prepare)
    app.cleanup_ctx.append(_life)
    return app


def _add(app: web.Application, name: str) -> None:
    """Add a part that may be left out of an installation."""
    if importlib.util.find_spec(name) is not None:
        importlib.import_module(name).setup(app)


async def _life(app: web.Application) -> AsyncIterator[None]:
    app[WORKER].start()
    yield
    await app[WORKER].stop()
    await in_thread(app[STORE].close)

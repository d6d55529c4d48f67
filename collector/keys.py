# SPDX-License-Identifier: EUPL-1.2
"""Where the parts of the running application find each other (aiohttp's typed keys).

In a module of its own so that pages, API and tests need not import the application. Spec: spec/api.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from aiohttp import web

from collector.config import Config
from collector.identity import Identity
from collector.limits import InFlight, RateLimit
from collector.metrics import Metrics
from collector.plans import Shelf
from collector.store.base import Store
from collector.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")

STORE: Final = web.AppKey("STORE", Store)
CONFIG: Final = web.AppKey("CONFIG", Config)
METRICS: Final = web.AppKey("METRICS", Metrics)
"""`app[METRICS].registry` is where other parts of the application add theirs."""
IDENTITY: Final = web.AppKey("IDENTITY", Identity)
SHELF: Final = web.AppKey("SHELF", Shelf)
"""The plans that are rolled out."""
WORKER: Final = web.AppKey("WORKER", Worker)
LIMIT: Final = web.AppKey("LIMIT", RateLimit)
IN_FLIGHT: Final = web.AppKey("IN_FLIGHT", InFlight)
CLOCK: Final[web.AppKey[Callable[[], int]]] = web.AppKey("CLOCK")
"""Unix milliseconds."""
LOG: Final = web.AppKey("LOG", logging.Logger)


async def in_thread(call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Run one reading method of the store beside the event loop: `await in_thread(store.cells)`."""
    return await asyncio.to_thread(call, *args, **kwargs)

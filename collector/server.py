# SPDX-License-Identifier: EUPL-1.2
"""The collector on its sockets: as a program, or inside another one (the demo), which may hand in sockets of its own.

Spec: spec/api.md, section "Service".
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from collector.app import create_app
from collector.config import Config
from collector.keys import STORE, WORKER
from collector.store.base import Store


class ServeError(Exception):
    """The collector cannot listen; the message is one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Running:
    """A collector that listens."""

    app: web.Application
    host: str
    port: int
    """The port that was taken, also where 0 was asked for."""

    @property
    def url(self) -> str:
        """Where it is reached from this machine."""
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://[{shown}]:{self.port}" if ":" in shown else f"http://{shown}:{self.port}"

    @property
    def store(self) -> Store:
        """What it keeps."""
        return self.app[STORE]

    async def judged(self) -> None:
        """Wait until everything that was acknowledged before this call has been judged and published."""
        await self.app[WORKER].judged()


@asynccontextmanager
async def running(config: Config, *, extra_sockets: Iterable[socket.socket] = ()) -> AsyncIterator[Running]:
    """A collector that listens on `config.host` and `config.port`, and on sockets that are bound already.

    Such a socket may live in another network namespace. Raises StoreError and ServeError.
    """
    app = create_app(config)
    runner = web.AppRunner(app, shutdown_timeout=5.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, config.host, config.port)
        try:
            await site.start()
        except OSError as error:
            raise ServeError(_why(error, config)) from None
        port = int(runner.addresses[0][1])
        for extra in extra_sockets:
            await web.SockSite(runner, extra).start()
        yield Running(app, config.host, port)
    finally:
        await runner.cleanup()


def _why(error: OSError, config: Config) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {config.port} is in use by another program: choose another with --port"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"port {config.port} is not permitted to this user: choose one above 1023 with --port"
    if isinstance(error, socket.gaierror):
        return f"the host name {config.host} is not known: choose another with --host"
    reason = os.strerror(error.errno).lower() if error.errno else "unknown reason"
    return f"cannot listen on {config.host}, port {config.port} ({reason}): choose others with --host and --port"


async def serve(
    config: Config,
    *,
    extra_sockets: Iterable[socket.socket] = (),
    started: Callable[[Running], None] | None = None,
    until: asyncio.Event | None = None,
) -> None:
    """Run until cancelled, or until `until` is set. `started` is called once it listens."""
    async with running(config, extra_sockets=extra_sockets) as collector:
        if started is not None:
            started(collector)
        await (until or asyncio.Event()).wait()

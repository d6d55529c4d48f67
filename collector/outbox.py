# SPDX-License-Identifier: EUPL-1.2
"""Carries what the judge has written on to other systems: points to InfluxDB, cases to Grafana.

The store's outbox is filled in the transaction that judges, and emptied here: at least once, in order, in
batches, with growing pauses where the other side is away. Writing twice is harmless, because a point's time is
the start of its hour and an annotation is found again by its tag. Intake never waits for any of this.
Spec: spec/series.md, section "Delivery".
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import random
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge

from collector import series
from collector.config import Config, ConfigError
from collector.keys import CLOCK, CONFIG, LOG, METRICS, STORE
from collector.model import OutboxCase, OutboxPoint, OutboxRow
from collector.sinks import CaseSink, PointSink, Refused, Unreachable
from collector.store.base import Outbox, StoreError

BATCH: Final = 1000
IDLE_S: Final = 2.0
"""How long an empty outbox is left alone."""
LONGEST_PAUSE_S: Final = 300.0


@dataclass(slots=True)
class Delivery:
    """What became of one batch."""

    taken: int = 0
    written: int = 0
    refused: int = 0
    away: list[str] = field(default_factory=list)
    """Why something still waits; empty where all was settled."""


class Courier:
    """Delivers batches; knows neither clock nor loop."""

    def __init__(
        self, store: Outbox, log: logging.Logger, *, points: PointSink | None = None, cases: CaseSink | None = None
    ) -> None:
        self._store, self._log = store, log
        self._points, self._cases = points, cases

    def deliver(self, most: int = BATCH) -> Delivery:
        """Take one batch, hand it over, forget what was taken over or will never be."""
        result = Delivery()
        rows = self._store.outbox_take(most)
        result.taken = len(rows)
        settled = [*self._deliver_points(rows, result), *self._deliver_cases(rows, result)]
        if settled:
            # Confirmed last: a crash before this delivers twice, never not at all.
            self._store.outbox_done(settled)
        return result

    def close(self) -> None:
        """Let go of the other systems."""
        for sink in (self._points, self._cases):
            if sink is not None:
                sink.close()

    def _deliver_points(self, rows: Sequence[OutboxRow], result: Delivery) -> list[int]:
        settled, ready = [], []
        for row in rows:
            if not isinstance(row.body, OutboxPoint):
                continue
            if self._points is None:
                settled.append(row.id)  # left over from a configuration that had such a system
                continue
            line = self._line(row.body, result)
            if line is None:
                settled.append(row.id)
            else:
                ready.append((row.id, line))
        return settled + (self._write(ready, result) if ready else [])

    def _line(self, told: OutboxPoint, result: Delivery) -> str | None:
        """The point as a line; None where it may not leave."""
        point = series.cell_point(told.cell, told.point)
        wrong = series.problems(point)
        if not series.publishable(told.cell):
            wrong = (f"the cell has {told.cell.probes} probes", *wrong)
        if wrong:
            result.refused += 1
            self._log.error("a point was not written: %s", "; ".join(wrong))
            return None
        return point.line()

    def _write(self, ready: Sequence[tuple[int, str]], result: Delivery) -> list[int]:
        """Write lines; where some are refused, halve until they stand alone, so that one cannot stop the rest."""
        if self._points is None:
            return []
        try:
            self._points.write([line for _, line in ready])
        except Unreachable as error:
            result.away.append(str(error))
            return []
        except Refused as error:
            if len(ready) == 1:
                result.refused += 1
                self._log.error("a point was refused for good: %s", error)
                return [ready[0][0]]
            middle = len(ready) // 2
            first = self._write(ready[:middle], result)
            return first + ([] if result.away else self._write(ready[middle:], result))
        result.written += len(ready)
        return [number for number, _ in ready]

    def _deliver_cases(self, rows: Sequence[OutboxRow], result: Delivery) -> list[int]:
        settled = []
        for row in rows:
            if not isinstance(row.body, OutboxCase):
                continue
            if self._cases is not None:
                try:
                    self._cases.tell(row.body)
                except Unreachable as error:
                    # The later ones stay behind it, so that an ending is never told before its beginning.
                    result.away.append(str(error))
                    break
                except Refused as error:
                    result.refused += 1
                    self._log.error("an annotation was refused for good: %s", error)
                else:
                    result.written += 1
            settled.append(row.id)
        return settled


def pause_s(failures: int, rng: random.Random) -> float:
    """Seconds to wait after so many failures in a row: 1, 2, 4 … 300, less up to half of it by chance."""
    return float(min(LONGEST_PAUSE_S, 2.0 ** min(failures - 1, 30)) * rng.uniform(0.5, 1.0))


class Gauges:
    """What Prometheus is told of the deliveries."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.points = Counter(series.METRIC_OUTBOX_POINTS, "Rows delivered, by result.", ["result"], registry=registry)
        self.failures = Counter(
            series.METRIC_OUTBOX_FAILURES, "Deliveries that another system did not take.", registry=registry
        )
        self.success = Gauge(
            series.METRIC_OUTBOX_LAST_SUCCESS, "When everything taken was last delivered.", registry=registry
        )

    def count(self, result: Delivery, now_ms: int) -> None:
        """Add one delivery."""
        self.points.labels(result="written").inc(result.written)
        self.points.labels(result="refused").inc(result.refused)
        if result.away:
            self.failures.inc()
        else:
            self.success.set(now_ms / 1000)


async def run(
    courier: Courier,
    stop: asyncio.Event,
    *,
    gauges: Gauges,
    log: logging.Logger,
    clock_ms: Callable[[], int],
    rng: random.Random,
    idle_s: float = IDLE_S,
) -> None:
    """Deliver until told to stop. Each batch is delivered in a thread, so that no request waits for it."""
    failures = 0
    while not stop.is_set():
        try:
            result = await asyncio.to_thread(courier.deliver)
        except (StoreError, sqlite3.Error, OSError) as error:
            result = Delivery(away=[f"the outbox cannot be read ({type(error).__name__})"])
        gauges.count(result, clock_ms())
        if result.away:
            failures += 1
            pause = pause_s(failures, rng)
            log.warning("not delivered, next try in %.0f s: %s", pause, "; ".join(dict.fromkeys(result.away)))
        else:
            if failures:
                log.info("delivered again after %d failures", failures)
            failures, pause = 0, 0.0 if result.taken else idle_s
        if pause:
            try:
                async with asyncio.timeout(pause):
                    await stop.wait()
            except TimeoutError:
                pass


def setup(app: web.Application) -> None:
    """Deliver beside the application, where its configuration names a system to deliver to."""
    config = app[CONFIG]
    if config.influx is None and config.grafana is None:
        return
    log, stop = app[LOG], asyncio.Event()
    courier = Courier(app[STORE], log, points=_influx(config), cases=_grafana(config))
    gauges = Gauges(app[METRICS].registry)
    tasks: list[asyncio.Task[None]] = []

    async def start(_: web.Application) -> None:
        delivering = run(courier, stop, gauges=gauges, log=log, clock_ms=app[CLOCK], rng=random.Random())
        tasks.append(asyncio.create_task(delivering, name="outbox"))

    async def end(_: web.Application) -> None:
        # On shutdown, not on cleanup: the store closes there, and a batch may still be under way.
        stop.set()
        await asyncio.gather(*tasks)
        await asyncio.to_thread(courier.close)

    app.on_startup.append(start)
    app.on_shutdown.append(end)


def _influx(config: Config) -> PointSink | None:
    if config.influx is None:
        return None
    sink: PointSink = _module("influx").InfluxWriter(config.influx)
    return sink


def _grafana(config: Config) -> CaseSink | None:
    if config.grafana is None:
        return None
    sink: CaseSink = _module("grafana").Grafana(config.grafana.url, config.grafana.token, public_url=config.public_url)
    return sink


def _module(name: str) -> Any:
    """One of the two modules that need an extra, or a sentence that says which."""
    try:
        return importlib.import_module(f"collector.{name}")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the configuration", [f"{name} needs an extra ({error.name} is missing): pip install 'evenlane[{name}]'"]
        ) from None

# SPDX-License-Identifier: EUPL-1.2
"""The task that lets the judge work whenever something has been stored.

A session that the judge cannot judge must not hold up the others: it is found by judging one at a time, set
aside with its error in the log, and counted. Spec: spec/api.md, section "Judging".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from collector.enrolment import Wish
from collector.intake import Rejection
from collector.judge import Judge, Step
from collector.metrics import Metrics
from collector.store.base import Book, Store, StoreError

T = TypeVar("T")
STEP_S = 0.1
"""A step should take about so long: uploads wait for it."""
MOST_SESSIONS = 200
AGAIN_S = 5.0
"""Pause after the store could not be written."""


class Worker:
    """Judges in the background. `start` and `stop` belong to the application's life."""

    def __init__(
        self, store: Store, judge: Judge, metrics: Metrics, *, clock_ms: Callable[[], int], log: logging.Logger
    ) -> None:
        self._store = store
        self._judge = judge
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._log = log
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._most = 20
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin with whatever waits in the store."""
        self._wake.set()
        self._task = asyncio.create_task(self._run(), name="evenlane-judge")

    async def stop(self) -> None:
        """Finish the step under way; what waits is judged at the next start."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def wake(self) -> None:
        """Something new has been stored."""
        self._idle.clear()
        self._wake.set()

    async def leave(self, wish: Wish) -> Rejection | None:
        """Forget a probe, durably. Why not, if not."""
        now_ms = self._clock_ms()
        found = await self._write(lambda book: self._judge.leave(book, wish, now_ms))
        self.wake()
        return found

    async def judged(self) -> None:
        """Wait until everything stored before this call has been judged and published."""
        await self._idle.wait()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            left = True
            while left:
                left = await self._step()
            if not self._wake.is_set():
                self._idle.set()

    async def _step(self) -> bool:
        """One step; whether more waits."""
        began = time.monotonic()
        most = self._most
        try:
            step = await self._judged(most)
        except StoreError as error:
            self._judge.forget()
            self._log.error("judging pauses: %s", error)
            await asyncio.sleep(AGAIN_S)
            return True
        took = time.monotonic() - began
        self._metrics.judge_seconds.observe(took)
        self._metrics.pairs.labels(kind="test").inc(step.tests)
        self._metrics.pairs.labels(kind="placebo").inc(step.placebos)
        for what in step.alerts:
            self._metrics.alerts.labels(what=what).inc()
        if step.sessions:
            self._most = max(1, min(MOST_SESSIONS, 2 * most, round(step.sessions * STEP_S / max(took, 1e-4))))
        return step.left

    async def _judged(self, most: int) -> Step:
        """Judge so many sessions; where that fails on a defect, find the session by judging one at a time."""
        now_ms = self._clock_ms()
        try:
            return await self._write(lambda book: self._judge.step(book, now_ms, most))
        except StoreError:
            raise
        except Exception:  # noqa: BLE001 - logged and counted; one session may not stop the judging of all
            # The transaction was rolled back, so what the judge remembers is wrong.
            self._judge.forget()
            if most == 1:
                self._log.exception("a session could not be judged and is set aside")
                await self._write(lambda book: book.settle(book.pending(1)))
                self._metrics.set_aside.inc()
            self._most = 1
            return Step(sessions=0, tests=0, placebos=0, cells=0, left=True)

    async def _write(self, work: Callable[[Book], T]) -> T:
        # Shielded: what has begun in the writer ends there, and the judge's memory goes with its end.
        return await asyncio.shield(asyncio.wrap_future(self._store.write(work)))

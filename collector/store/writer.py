# SPDX-License-Identifier: EUPL-1.2
"""One thread writes; what waits while it commits is committed together next time (group commit).

A commit costs one fsync however many requests share it, so durability before every answer stays affordable.
Work that fails is rolled back to its own savepoint and fails alone. Spec: spec/api.md, section "Durability".
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, Final

from collector.store.base import StoreError

Work = Callable[[sqlite3.Connection], Any]
MOST_IN_A_COMMIT: Final = 256


@dataclass(frozen=True, slots=True)
class _Job:
    work: Work
    future: Future[Any]
    alone: bool


class Writer:
    """Owns the only connection that writes. `submit` may be called from any thread."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._connect = connect
        self.commits = 0
        """Commits so far: fewer than the works where they were grouped."""
        self._thread = threading.Thread(target=self._run, name="evenlane-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Work, *, alone: bool = False) -> Future[Any]:
        """Queue `work(connection)`; the future holds its result once the commit is durable.

        `alone`: outside any transaction, for what cannot be done within one.
        """
        job = _Job(work, Future(), alone)
        with self._closing:
            if self._closed:
                raise StoreError("the store is closed")
            self._queue.put(job)
        return job.future

    def close(self) -> None:
        """Do what is queued, then stop."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        connection = self._connect()
        try:
            following: list[_Job | None] = []
            while (job := following.pop() if following else self._queue.get()) is not None:
                if job.alone:
                    _alone(connection, job)
                    continue
                batch = [job]
                while len(batch) < MOST_IN_A_COMMIT and not following:
                    try:
                        waiting = self._queue.get_nowait()
                    except queue.Empty:
                        break
                    if waiting is None or waiting.alone:
                        following.append(waiting)
                    else:
                        batch.append(waiting)
                self._commit(connection, batch)
        finally:
            connection.close()

    def _commit(self, connection: sqlite3.Connection, batch: list[_Job]) -> None:
        done: list[tuple[Future[Any], Any]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for job in batch:
                if job.future.set_running_or_notify_cancel():
                    self._attempt(connection, job.work, job.future, done)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            # A full disk, say: nobody in this batch may be told that it was kept.
            for job in batch:
                _fail(job.future, StoreError(f"the store cannot be written ({error})"))
            return
        self.commits += 1
        for future, result in done:
            future.set_result(result)

    @staticmethod
    def _attempt(
        connection: sqlite3.Connection, work: Work, future: Future[Any], done: list[tuple[Future[Any], Any]]
    ) -> None:
        connection.execute("SAVEPOINT work")
        try:
            result = work(connection)
        except sqlite3.OperationalError:
            raise  # the disk, not the work: the whole commit fails
        except Exception as error:  # noqa: BLE001 - handed to whoever submitted the work, who decides
            connection.execute("ROLLBACK TO work")
            connection.execute("RELEASE work")
            future.set_exception(error)
            return
        connection.execute("RELEASE work")
        done.append((future, result))


def _alone(connection: sqlite3.Connection, job: _Job) -> None:
    if not job.future.set_running_or_notify_cancel():
        return
    try:
        result = job.work(connection)
    except sqlite3.Error as error:
        _fail(job.future, StoreError(f"the store cannot be written ({error})"))
        return
    job.future.set_result(result)


def _fail(future: Future[Any], error: StoreError) -> None:
    try:
        future.set_exception(error)
    except InvalidStateError:
        return  # cancelled, or failed by itself before

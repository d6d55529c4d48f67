# SPDX-License-Identifier: EUPL-1.2
"""The embedded store: one SQLite file in WAL mode, one writer, readers that never wait for it.

`synchronous=FULL` makes each commit an fsync of the log, so an acknowledged record survives a kill and a power
cut. Spec: spec/api.md, section "Durability".
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, TypeVar

from collector.members import Enrolled
from collector.model import (
    CaseDetail,
    CaseView,
    CellDetail,
    CellKey,
    CellView,
    OperatorView,
    OutboxCase,
    OutboxPoint,
    OutboxRow,
)
from collector.store import reading
from collector.store.base import Book, EnvelopeRow, Roll, Stored, StoreError
from collector.store.book import SqliteBook, operators
from collector.store.leave import too_late
from collector.store.roll import DELETED, SqliteRoll
from collector.store.rows import decode
from collector.store.schema import check_version, migrate
from collector.store.writer import Writer
from probe.wire.signing import load_or_create

T = TypeVar("T")
FILE: Final = "collector.sqlite3"
MARKS: Final = "marks"
"""Keys the marks of probes that left; beside the database, so that a copy of that alone tells nobody who left."""


class SqliteStore:
    """Everything in DIR/collector.sqlite3. Raises StoreError where the directory cannot be used."""

    def __init__(self, directory: Path) -> None:
        self._lock = _claim(directory)
        self._path = directory / FILE
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        self._closed = False
        self._drawn = reading.Drawn()
        try:
            # SQLite would make it readable for all, and gives its log the same permissions.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            connection = self._connect()
            try:
                migrate(connection)
            finally:
                connection.close()
            load_or_create(directory / MARKS)
            self._secret = (directory / MARKS).read_bytes()
        except (OSError, ValueError, sqlite3.Error, StoreError) as error:
            os.close(self._lock)
            raise StoreError(f"{self._path} cannot be used: {error}") from None
        self._writer = Writer(self._connect)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # What a probe takes back is overwritten, not only unlinked; `scrub` does the same for the log.
        connection.execute("PRAGMA secure_delete = ON")
        return connection

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """This thread's own reading connection, within one snapshot."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect()
            connection.execute("PRAGMA query_only = ON")
            with self._guard:
                if self._closed:
                    connection.close()
                    raise StoreError("the store is closed")
                self._readers.append(connection)
            self._local.connection = connection
        try:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(f"the store cannot be read ({error})") from error

    # Writing

    def add(self, rows: Sequence[EnvelopeRow]) -> Future[list[Stored]]:
        """Keep envelopes; the future is done when they are durable, with one answer per row in order."""

        def keep(connection: sqlite3.Connection) -> list[Stored]:
            roll = SqliteRoll(connection, self._secret)
            return [_insert(connection, roll, row) for row in rows]

        return self._writer.submit(keep)

    def write(self, work: Callable[[Book], T]) -> Future[T]:
        """Run `work(book)` in the writer, all of it or nothing; done when durable."""
        return self._writer.submit(
            lambda connection: work(SqliteBook(connection, SqliteRoll(connection, self._secret)))
        )

    def roll(self, work: Callable[[Roll], T]) -> Future[T]:
        """Run `work(roll)` in the writer, all of it or nothing; done when durable."""
        return self._writer.submit(lambda connection: work(SqliteRoll(connection, self._secret)))

    @property
    def commits(self) -> int:
        """Commits so far."""
        return self._writer.commits

    # Reading

    def cells(self) -> list[CellView]:
        """Every cell and effect, ordered by operator's place, app, direction, access and effect."""
        with self._snapshot() as connection:
            return reading.cells(connection)

    def cases(self) -> list[CaseView]:
        """Every case there ever was, the newest first."""
        with self._snapshot() as connection:
            return reading.cases(connection)

    def case(self, case_id: str) -> CaseDetail | None:
        """One case with its pairs and pictures."""
        with self._snapshot() as connection:
            return reading.case(connection, case_id, self._drawn)

    def evidence(self, key: CellKey) -> CellDetail | None:
        """One cell and effect with its pairs and pictures, case or none. `key.asn` is ignored."""
        with self._snapshot() as connection:
            return reading.evidence(connection, key, self._drawn)

    def operators(self) -> list[OperatorView]:
        """The register, by place."""
        with self._snapshot() as connection:
            return operators(connection)

    def waiting(self) -> int:
        """How many sessions wait to be judged."""
        with self._snapshot() as connection:
            return int(connection.execute("SELECT count(*) FROM pending").fetchone()[0])

    def enrolled(self) -> Enrolled:
        """How many take part, and how many left."""
        with self._snapshot() as connection:
            return SqliteRoll(connection, self._secret).counts()

    # Outbox

    def outbox_take(self, most: int) -> list[OutboxRow]:
        """The oldest rows that nobody has confirmed, at most `most`; they stay until `outbox_done`."""
        with self._snapshot() as connection:
            found = connection.execute("SELECT id, kind, body FROM outbox ORDER BY id LIMIT ?", (most,)).fetchall()
        return [
            OutboxRow(
                id=number,
                kind=kind,
                body=decode(OutboxPoint, body) if kind == "point" else decode(OutboxCase, body),
            )
            for number, kind, body in found
        ]

    def outbox_done(self, ids: Sequence[int]) -> None:
        """Forget rows that have been delivered."""

        def forget(connection: sqlite3.Connection) -> None:
            connection.executemany("DELETE FROM outbox WHERE id = ?", [(number,) for number in ids])

        self._writer.submit(forget).result()

    def outbox_size(self) -> int:
        """How many rows wait."""
        with self._snapshot() as connection:
            return int(connection.execute("SELECT count(*) FROM outbox").fetchone()[0])

    # Life

    def scrub(self, most_bytes: int | None = None) -> bool:
        """See to it that what was deleted is nowhere on disk; False where that is still to be done.

        Deleted cells are overwritten (secure_delete), but pages may hold remains of what was moved about in them, and
        the log the pages as they were. Writing the file anew costs a time that grows with it, in which uploads wait:
        it is not done where the file is larger than `most_bytes`.
        """

        def clear(connection: sqlite3.Connection) -> bool:
            if connection.execute("SELECT 1 FROM meta WHERE name = ?", (DELETED,)).fetchone() is None:
                return True
            if most_bytes is not None and self._path.stat().st_size > most_bytes:
                return False
            connection.execute("VACUUM")
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                connection.execute("DELETE FROM meta WHERE name = ?", (DELETED,))
            return not busy

        return bool(self._writer.submit(clear, alone=True).result())

    def check(self) -> None:
        """Raise StoreError unless the store can be read and written now."""
        try:
            self._writer.submit(lambda connection: connection.execute("SELECT 1 FROM meta").fetchone()).result(5)
        except TimeoutError:
            raise StoreError("the store has not answered for 5 s") from None

    def close(self) -> None:
        """Finish what waits, then let go of everything. Repeatable."""
        self._writer.close()
        with self._guard:
            if self._closed:
                return
            self._closed = True
            for connection in self._readers:
                connection.close()
            os.close(self._lock)


def check_directory(directory: Path) -> str:
    """Whether a store could be opened there, in one word; changes nothing. Raises StoreError if it could not."""
    file = directory / FILE
    nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise StoreError(f"the data directory {directory} cannot be written: choose another")
    if not file.exists():
        return "new"
    if not os.access(file, os.R_OK | os.W_OK):
        raise StoreError(f"{file} cannot be written: it belongs to another user")
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            check_version(connection)
    except (sqlite3.Error, StoreError) as error:
        raise StoreError(f"{file} cannot be used: {error}") from None
    return "in use before"


def _claim(directory: Path) -> int:
    """Make the directory and lock it: two judges on one store would overwrite each other."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        reason = "a file is in the way" if directory.is_file() else (error.strerror or "unknown reason").lower()
        raise StoreError(f"the data directory {directory} cannot be written ({reason}): choose another") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise StoreError(f"another collector is running on {directory}: stop it or choose another") from None
    return handle


def _insert(connection: sqlite3.Connection, roll: Roll, row: EnvelopeRow) -> Stored:
    late = too_late(connection, roll, row)
    if late is not None:
        return late
    found = connection.execute(
        "SELECT digest FROM envelope WHERE signer = ? AND kind = ? AND ident = ?", (row.signer, row.kind, row.ident)
    ).fetchone()
    if found is not None:
        return "duplicate" if found[0] == row.digest else "conflict"
    session = (row.reflector, row.session, row.probe)
    if (
        row.kind == "measurement"
        and connection.execute(
            "SELECT 1 FROM envelope WHERE kind = 'measurement' AND reflector = ? AND session = ? AND probe = ?", session
        ).fetchone()
    ):
        return "session_measured"
    connection.execute(
        "INSERT INTO envelope"
        " (kind, ident, signer, digest, session, probe, reflector, payload, signature, received_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.kind,
            row.ident,
            row.signer,
            row.digest,
            row.session,
            row.probe,
            row.reflector,
            row.payload,
            row.signature,
            row.received_ms,
        ),
    )
    # In the same transaction: whatever is durable is either judged or waiting to be.
    connection.execute("INSERT OR IGNORE INTO pending (reflector, session, probe) VALUES (?, ?, ?)", session)
    return "accepted"

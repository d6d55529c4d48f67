# SPDX-License-Identifier: EUPL-1.2
"""Tokens made, listed and revoked by the command line, also while a collector runs on the same directory.

The running collector holds the directory's lock; SQLite itself lets one writer wait for another, and a token is one
short write. Spec: spec/enrolment.md, section "Tokens".
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from collector.members import Token
from collector.store.base import StoreError
from collector.store.roll import SqliteRoll
from collector.store.schema import MIGRATIONS, check_version
from collector.store.sqlite import FILE, SqliteStore

T = TypeVar("T")
PATIENCE_S = 30.0


def on_roll(directory: Path, work: Callable[[SqliteRoll], T]) -> T:
    """Run `work` in one transaction. Raises StoreError."""
    file = directory / FILE
    try:
        if not file.exists() or _version(file) < len(MIGRATIONS):
            SqliteStore(directory).close()  # made, or brought up to date; nobody runs on such a file
        with closing(sqlite3.connect(file, isolation_level=None, timeout=PATIENCE_S)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("BEGIN IMMEDIATE")
            try:
                # Tokens need no marks of those who left, and so no secret.
                found = work(SqliteRoll(connection, b""))
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise StoreError(f"{file} cannot be used ({error})") from None
    return found


def _version(file: Path) -> int:
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        return check_version(connection)


def revoke(directory: Path, ident: str, now_ms: int) -> Token | None:
    """Revoke a token; None where there is no such one. What was enrolled by it stays."""

    def work(roll: SqliteRoll) -> Token | None:
        token = roll.token(ident)
        if token is None or token.revoked_ms is not None:
            return token
        revoked = replace(token, revoked_ms=now_ms)
        roll.put_token(revoked)
        return revoked

    return on_roll(directory, work)

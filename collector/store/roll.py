# SPDX-License-Identifier: EUPL-1.2
"""Who takes part, by which token, and who left lately: one transaction of the SQLite store.

Spec: spec/enrolment.md, section "What is kept".
"""

from __future__ import annotations

import hmac
import sqlite3
from typing import Final

from collector.members import Departed, Enrolled, Member, Token

RETURN_MS: Final = 24 * 3_600_000 + 10 * 60_000 + 3_600_000
"""So long after a leave an enrolment may arrive that was signed before it (24 hours old, 10 minutes ahead, and a
margin), and pairs can become complete: until then the mark tells the pseudonym."""
GONE_MS: Final = 90 * 86_400_000 + RETURN_MS
"""So long records of before a leave may arrive (spec/api.md: 90 days): until then the mark keeps them out."""
DELETED: Final = "deleted_ms"
"""The note that says since when something deleted may have left remains in the file."""
MOST_MARKS: Final = 100_000
"""Of strangers who leave; whoever took part has a mark in any case."""


class SqliteRoll:
    """Reads and writes of one transaction. `secret` keys the marks of those who left."""

    def __init__(self, connection: sqlite3.Connection, secret: bytes) -> None:
        self._db = connection
        self._secret = secret

    def mark(self, probe: str) -> bytes:
        """What is kept of the key of a probe that left."""
        return hmac.digest(self._secret, probe.encode(), "sha256")

    # Members

    def member(self, probe: str) -> Member | None:
        """A probe that takes part."""
        found = self._db.execute(
            "SELECT probe, at_ms, enrolled_ms, consent, language, hotspot, token, vetted_ms FROM enrolment"
            " WHERE probe = ?",
            (probe,),
        ).fetchone()
        if found is None:
            return None
        names = ("probe", "at_ms", "enrolled_ms", "consent", "language", "hotspot", "token", "vetted_ms")
        told = dict(zip(names, found, strict=True))
        return Member(**{**told, "hotspot": bool(told["hotspot"])})

    def put_member(self, member: Member) -> None:
        """Write an entry in place of what stood there."""
        m = member
        self._db.execute(
            "INSERT OR REPLACE INTO enrolment"
            " (probe, at_ms, enrolled_ms, consent, language, hotspot, token, vetted_ms)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (m.probe, m.at_ms, m.enrolled_ms, m.consent, m.language, m.hotspot, m.token, m.vetted_ms),
        )

    def counts(self) -> Enrolled:
        """How many there are, and how many left so far."""
        enrolled, vetted = self._db.execute("SELECT count(*), count(vetted_ms) FROM enrolment").fetchone()
        left = self._db.execute("SELECT value FROM meta WHERE name = 'left'").fetchone()
        return Enrolled(enrolled=enrolled, vetted=vetted, left=0 if left is None else int(left[0]))

    # Tokens

    def tokens(self) -> list[Token]:
        """Every token, the oldest first."""
        found = self._db.execute(
            "SELECT id, digest, label, uses, used, created_ms, expires_ms, revoked_ms FROM token"
            " ORDER BY created_ms, id"
        )
        names = ("id", "digest", "label", "uses", "used", "created_ms", "expires_ms", "revoked_ms")
        return [Token(**dict(zip(names, row, strict=True))) for row in found]

    def token(self, ident: str) -> Token | None:
        """One token by its id."""
        return next((token for token in self.tokens() if token.id == ident), None)

    def put_token(self, token: Token) -> None:
        """Write a token in place of what stood there."""
        t = token
        self._db.execute(
            "INSERT OR REPLACE INTO token (id, digest, label, uses, used, created_ms, expires_ms, revoked_ms)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (t.id, t.digest, t.label, t.uses, t.used, t.created_ms, t.expires_ms, t.revoked_ms),
        )

    # Those who left

    def strike(self, probe: str, departed: Departed, *, known: bool) -> None:
        """Take a probe off the roll and mark that it left; `known`: something was known of it."""
        self._db.execute("DELETE FROM enrolment WHERE probe = ?", (probe,))
        if known:
            self._db.execute(
                "INSERT INTO meta (name, value) VALUES ('left', '1')"
                " ON CONFLICT (name) DO UPDATE SET value = CAST(value AS INTEGER) + 1"
            )
            told = (DELETED, str(departed.left_ms))
            self._db.execute("INSERT OR IGNORE INTO meta (name, value) VALUES (?, ?)", told)
        elif self._db.execute("SELECT count(*) FROM departed").fetchone()[0] >= MOST_MARKS:
            return  # strangers who leave are no reason to fill the disk
        self._db.execute(
            "INSERT OR REPLACE INTO departed (mark, at_ms, left_ms, pseudonym) VALUES (?, ?, ?, ?)",
            (self.mark(probe), departed.at_ms, departed.left_ms, departed.pseudonym),
        )

    def tidy(self, now_ms: int) -> None:
        """Forget pseudonyms and marks whose time is over."""
        self._db.execute(
            "UPDATE departed SET pseudonym = NULL WHERE left_ms < ? AND pseudonym IS NOT NULL", (now_ms - RETURN_MS,)
        )
        self._db.execute("DELETE FROM departed WHERE left_ms < ?", (now_ms - GONE_MS,))

    def deleted_ms(self) -> int | None:
        """Since when something deleted may have left remains on disk (Unix ms); None: nothing has."""
        found = self._db.execute("SELECT value FROM meta WHERE name = ?", (DELETED,)).fetchone()
        return None if found is None else int(found[0])

    def departed(self, probe: str) -> Departed | None:
        """What is known of a probe that left lately."""
        found = self._db.execute(
            "SELECT at_ms, left_ms, pseudonym FROM departed WHERE mark = ?", (self.mark(probe),)
        ).fetchone()
        return None if found is None else Departed(at_ms=found[0], left_ms=found[1], pseudonym=found[2])

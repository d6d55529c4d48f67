# SPDX-License-Identifier: EUPL-1.2
"""A probe's key taken out of every table, within one transaction; and what comes late of a probe that has left.

Where a key may stand: envelope (columns, and inside the payload), pending, pair (column and body), state, label,
probe_network, probe_component, cases (the witnesses in the body), enrolment, departed. A test searches the bytes of
the file for the key, so that a table that is added is not forgotten here. Spec: spec/enrolment.md, section "Leaving".
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import replace

from analysis.cases import Case
from collector import leaving
from collector.store.base import EnvelopeRow, KeptSession, PairRow, Roll, Session, Stored
from collector.store.rows import decode, encode


def kept(connection: sqlite3.Connection, session: Session) -> KeptSession | None:
    """What is kept of a session of a probe that left."""
    found = connection.execute(
        "SELECT body FROM kept WHERE reflector = ? AND session = ? AND probe = ?",
        (session.reflector, session.session, session.probe),
    ).fetchone()
    return None if found is None else decode(KeptSession, found[0])


def put_kept(connection: sqlite3.Connection, session: Session, what: KeptSession) -> None:
    """Keep it in place of what stood there."""
    connection.execute(
        "INSERT OR REPLACE INTO kept (reflector, session, probe, body) VALUES (?, ?, ?, ?)",
        (session.reflector, session.session, session.probe, encode(what)),
    )


def sessions_of(connection: sqlite3.Connection, probe: str) -> list[Session]:
    """Every session that a record tells of."""
    # The index has all that is asked for, so that not one payload is read.
    found = connection.execute(
        "SELECT DISTINCT reflector, session, probe FROM envelope INDEXED BY envelope_session WHERE probe = ?", (probe,)
    )
    return [Session(*row) for row in found]


def forget(connection: sqlite3.Connection, probe: str, pseudonym: str, what: Mapping[Session, KeptSession]) -> None:
    """Put a pseudonym in place of a key, and what is kept in place of its records; networks' names are the caller's."""
    for session in sessions_of(connection, probe):
        _forget_session(connection, session, pseudonym)
    for session, one in what.items():
        put_kept(connection, replace(session, probe=pseudonym), one)
    for statement in (
        "UPDATE pending SET probe = ? WHERE probe = ?",
        "UPDATE state SET probe = ? WHERE probe = ?",
        "UPDATE label SET subject = ? WHERE kind = 'p' AND subject = ?",
        "UPDATE probe_network SET probe = ? WHERE probe = ?",
    ):
        connection.execute(statement, (pseudonym, probe))
    for ident, body in connection.execute("SELECT id, body FROM cases WHERE instr(body, ?)", (probe,)).fetchall():
        case = decode(Case, body)
        witnesses = tuple(sorted(pseudonym if one == probe else one for one in case.witnesses))
        connection.execute(
            "UPDATE cases SET body = ? WHERE id = ?", (encode(replace(case, witnesses=witnesses)), ident)
        )


def _forget_session(connection: sqlite3.Connection, session: Session, pseudonym: str) -> None:
    key = (session.reflector, session.session, session.probe)
    connection.execute("DELETE FROM envelope WHERE reflector = ? AND session = ? AND probe = ?", key)
    found = connection.execute(
        "SELECT number, body FROM pair WHERE reflector = ? AND session = ? AND probe = ?", key
    ).fetchall()
    for number, body in found:
        row = decode(PairRow, body)
        connection.execute(
            "UPDATE pair SET probe = ?, body = ? WHERE reflector = ? AND session = ? AND number = ?",
            (
                pseudonym,
                encode(replace(row, pair=replace(row.pair, probe=pseudonym))),
                session.reflector,
                session.session,
                number,
            ),
        )


def too_late(connection: sqlite3.Connection, roll: Roll, row: EnvelopeRow) -> Stored | None:
    """What becomes of a record of before its probe left; None where it is none."""
    departed = roll.departed(row.probe)
    if departed is None:
        return None
    member = roll.member(row.probe)
    if member is not None:
        # It came back. Each record is dated by its signer's clock: the probe's own, or a reflector's, which goes right.
        back_ms = member.at_ms if row.kind == "measurement" else member.enrolled_ms
        if leaving.started_ms(row) >= back_ms:
            return None
    if row.kind == "measurement" or departed.pseudonym is None:
        return "left"
    # It may have left twice, and have had another name when this session was kept.
    named = connection.execute(
        "SELECT probe FROM kept WHERE reflector = ? AND session = ?", (row.reflector, row.session)
    ).fetchone()
    session = Session(row.reflector, row.session, departed.pseudonym if named is None else named[0])
    what = leaving.joined(kept(connection, session), row, session.probe)
    if what is None:
        return "duplicate"
    put_kept(connection, session, what)
    connection.execute(
        "INSERT OR IGNORE INTO pending (reflector, session, probe) VALUES (?, ?, ?)",
        (session.reflector, session.session, session.probe),
    )
    return "accepted"

# SPDX-License-Identifier: EUPL-1.2
"""The judge's side of the SQLite store: everything here happens within one transaction of the writer.

Spec: spec/api.md, section "Store".
"""

from __future__ import annotations

import json
import random
import secrets
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from analysis.cases import Case
from collector.model import CaseEvent, CellView, OperatorView
from collector.store import leave
from collector.store.base import (
    CaseNumbers,
    CaseRow,
    CellRow,
    EnvelopeRow,
    HourRow,
    Hypothesis,
    KeptSession,
    Known,
    PairRow,
    Roll,
    Session,
)
from collector.store.rows import decode, encode
from collector.views import LEAST_PROBES
from probe.wire.records import Direction, Effect, PairKind

LABELS = 10**9
"""Labels are drawn below this: nine digits at most."""


class SqliteBook:
    """Reads and writes of one transaction."""

    def __init__(self, connection: sqlite3.Connection, roll: Roll, rng: random.Random | None = None) -> None:
        self._db = connection
        self.roll = roll
        self._rng = rng or secrets.SystemRandom()

    # What is known, what waits

    def known(self) -> Known:
        """Everything that the judge keeps in memory between transactions."""
        return Known(
            operators=operators(self._db),
            apps=[app for (app,) in self._db.execute("SELECT id FROM app ORDER BY place")],
            cells=[_cell(row) for row in self._db.execute("SELECT id, operator, app, direction, access FROM cell")],
            networks=list(self._db.execute("SELECT hash, probe FROM probe_network ORDER BY hash, probe")),
            hypotheses=[
                Hypothesis(cell=cell, effect=effect, log_e=log_e, log_weight=log_weight, listed=bool(listed))
                for cell, effect, log_e, log_weight, listed in self._db.execute(
                    "SELECT cell, effect, log_e, log_weight, listed FROM verdict"
                )
            ],
        )

    def pending(self, most: int) -> list[Session]:
        """Sessions about which something new is known, the first to arrive first."""
        return [
            Session(*row)
            for row in self._db.execute("SELECT reflector, session, probe FROM pending ORDER BY seq LIMIT ?", (most,))
        ]

    def settle(self, sessions: Iterable[Session]) -> None:
        """They have been judged."""
        self._db.executemany(
            "DELETE FROM pending WHERE reflector = ? AND session = ? AND probe = ?",
            [(s.reflector, s.session, s.probe) for s in sessions],
        )

    def pend_all(self) -> None:
        """Judge every session again: forget pairs and states (not verdicts, cases, labels and places)."""
        self._db.execute("DELETE FROM pair")
        self._db.execute("DELETE FROM state")
        self._db.execute("UPDATE cell SET extras = '{}'")
        self._db.execute(
            "INSERT OR IGNORE INTO pending (reflector, session, probe)"
            " SELECT reflector, session, probe FROM envelope GROUP BY reflector, session, probe ORDER BY min(seq)"
        )
        self._db.execute(
            "INSERT OR IGNORE INTO pending (reflector, session, probe) SELECT reflector, session, probe FROM kept"
        )

    def facts(self, session: Session) -> list[EnvelopeRow]:
        """What is known of a session, in the order of arrival."""
        found = self._db.execute(
            "SELECT kind, ident, signer, digest, payload, signature, received_ms FROM envelope"
            " WHERE reflector = ? AND session = ? AND probe = ? ORDER BY seq",
            (session.reflector, session.session, session.probe),
        )
        return [
            EnvelopeRow(
                kind=kind,
                ident=ident,
                signer=signer,
                digest=digest,
                session=session.session,
                probe=session.probe,
                reflector=session.reflector,
                payload=payload,
                signature=signature,
                received_ms=received_ms,
            )
            for kind, ident, signer, digest, payload, signature, received_ms in found
        ]

    def digests(self, cell: int) -> list[str]:
        """SHA-256 (hex) of every payload that tells of a session with pairs in the cell."""
        found = self._db.execute(
            "SELECT DISTINCT hex(e.digest) FROM (SELECT DISTINCT reflector, session, probe FROM pair WHERE cell = ?) p"
            " JOIN envelope e ON e.reflector = p.reflector AND e.session = p.session AND e.probe = p.probe"
            " UNION SELECT d.value FROM (SELECT DISTINCT reflector, session, probe FROM pair WHERE cell = ?) p"
            " JOIN kept k ON k.reflector = p.reflector AND k.session = p.session AND k.probe = p.probe,"
            " json_each(k.body, '$.digests') d",
            (cell, cell),
        )
        return [digest.lower() for (digest,) in found]

    # Probes that leave

    def kept(self, session: Session) -> KeptSession | None:
        """What is kept of a session of a probe that left."""
        return leave.kept(self._db, session)

    def sessions_of(self, probe: str) -> list[Session]:
        """Every session that a record tells of."""
        return leave.sessions_of(self._db, probe)

    def is_pending(self, session: Session) -> bool:
        """Whether something new is known about a session."""
        found = self._db.execute(
            "SELECT 1 FROM pending WHERE reflector = ? AND session = ? AND probe = ?",
            (session.reflector, session.session, session.probe),
        )
        return found.fetchone() is not None

    def forget(self, probe: str, pseudonym: str, kept: Mapping[Session, KeptSession]) -> None:
        """Put a pseudonym in place of a probe's key everywhere, and `kept` in place of its records."""
        leave.forget(self._db, probe, pseudonym, kept)
        before = self._db.execute("SELECT component FROM probe_component WHERE probe = ?", (probe,)).fetchone()
        if before is None:
            return
        found = self._db.execute("SELECT probe FROM probe_component WHERE component = ?", before)
        members = {member for (member,) in found} - {probe} | {pseudonym}
        self._db.execute("DELETE FROM probe_component WHERE probe = ?", (probe,))
        name = min(members)  # as collector.register names it
        self.put_component(name, members, {before[0]} - {name})

    # Pairs

    def pairs_of(self, session: Session) -> list[PairRow]:
        """The session's pairs as they stand."""
        return self._pairs(
            "WHERE reflector = ? AND session = ? AND probe = ? ORDER BY number",
            (session.reflector, session.session, session.probe),
        )

    def stream(self, cell: int, kind: PairKind, probe: str, since_ms: int) -> list[PairRow]:
        """One probe's pairs in one cell that started at `since_ms` or later, by start."""
        return self._pairs(
            "WHERE cell = ? AND probe = ? AND started_ms >= ? AND kind = ? ORDER BY started_ms, session, number",
            (cell, probe, since_ms, kind),
        )

    def pairs_in(self, cell: int, since_ms: int = 0) -> list[PairRow]:
        """A cell's pairs that started at `since_ms` or later, by start."""
        return self._pairs("WHERE cell = ? AND started_ms >= ? ORDER BY started_ms, session, number", (cell, since_ms))

    def _pairs(self, where: str, values: tuple[Any, ...]) -> list[PairRow]:
        # `where` is one of the literals above.
        return [decode(PairRow, body) for (body,) in self._db.execute(f"SELECT body FROM pair {where}", values)]  # noqa: S608

    def put_pair(self, row: PairRow) -> None:
        """Write a pair in place of what stood there."""
        pair = row.pair
        self._db.execute(
            "INSERT OR REPLACE INTO pair (reflector, session, number, cell, probe, kind, started_ms, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.reflector,
                pair.session,
                pair.number,
                row.cell,
                pair.probe,
                pair.kind,
                pair.started_ms,
                encode(row),
            ),
        )

    def drop_pair(self, row: PairRow) -> None:
        """Forget a pair."""
        self._db.execute(
            "DELETE FROM pair WHERE reflector = ? AND session = ? AND number = ?",
            (row.reflector, row.pair.session, row.pair.number),
        )

    # Registers

    def add_operator(self, operator: OperatorView) -> None:
        """Write an entry of the register in place of what stood at its place."""
        self._db.execute(
            "INSERT INTO operator (place, id, brand, asns, country, timezone, configured, cgnat)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (place) DO UPDATE SET brand = excluded.brand, asns = excluded.asns,"
            " country = excluded.country, timezone = excluded.timezone, configured = excluded.configured,"
            " cgnat = excluded.cgnat",
            (
                operator.place,
                operator.id,
                operator.brand,
                json.dumps(operator.asns),
                operator.country,
                operator.timezone,
                operator.configured,
                operator.cgnat,
            ),
        )

    def add_app(self, app: str) -> None:
        """Give an app outside the plan the next place."""
        self._db.execute("INSERT INTO app (id) VALUES (?)", (app,))

    def add_cell(self, operator: int, app: str, direction: Direction, access: str) -> CellRow:
        """A new cell."""
        cursor = self._db.execute(
            "INSERT INTO cell (operator, app, direction, access) VALUES (?, ?, ?, ?)",
            (operator, app, direction, access),
        )
        return _cell((cursor.lastrowid, operator, app, direction, access))

    def add_network(self, network: str, probe: str) -> None:
        """This probe was seen in this network."""
        self._db.execute("INSERT OR IGNORE INTO probe_network (hash, probe) VALUES (?, ?)", (network, probe))

    def put_component(self, component: str, probes: Iterable[str], gone: Iterable[str]) -> None:
        """These probes are one network, named `component`; those `gone` are part of it now: one label a cell."""
        self._db.executemany(
            "INSERT OR REPLACE INTO probe_component (probe, component) VALUES (?, ?)",
            [(probe, component) for probe in probes],
        )
        for subject in gone:
            self._db.execute(
                "UPDATE OR IGNORE label SET subject = ? WHERE kind = 'n' AND subject = ?", (component, subject)
            )
            self._db.execute("DELETE FROM label WHERE kind = 'n' AND subject = ?", (subject,))

    # States of probes, counts of cells

    def states(self, cell: int) -> list[tuple[PairKind, str, dict[str, Any]]]:
        """Kind, probe and stored state of each probe in a cell."""
        found = self._db.execute("SELECT kind, probe, body FROM state WHERE cell = ?", (cell,))
        return [(kind, probe, json.loads(body)) for kind, probe, body in found]

    def put_state(self, cell: int, kind: PairKind, probe: str, state: dict[str, Any] | None) -> None:
        """Write a probe's state; None forgets it."""
        if state is None:
            self._db.execute("DELETE FROM state WHERE cell = ? AND kind = ? AND probe = ?", (cell, kind, probe))
            return
        self._db.execute(
            "INSERT OR REPLACE INTO state (cell, kind, probe, body) VALUES (?, ?, ?, ?)",
            (cell, kind, probe, encode(state)),
        )

    def extras(self, cell: int) -> dict[str, Any]:
        """The cell's counts for pictures."""
        (body,) = self._db.execute("SELECT extras FROM cell WHERE id = ?", (cell,)).fetchone()
        found: dict[str, Any] = json.loads(body)
        return found

    def put_extras(self, cell: int, extras: dict[str, Any]) -> None:
        """Write them."""
        self._db.execute("UPDATE cell SET extras = ? WHERE id = ?", (encode(extras), cell))

    def cells_of(self, probes: Iterable[str]) -> list[int]:
        """Cells in which one of these probes has pairs."""
        found: set[int] = set()
        for probe in probes:
            found.update(cell for (cell,) in self._db.execute("SELECT cell FROM state WHERE probe = ?", (probe,)))
        return sorted(found)

    def latest_ms(self, cell: int) -> int | None:
        """Start of the cell's newest test pair."""
        found = self._db.execute(
            "SELECT started_ms FROM pair WHERE cell = ? AND kind = 'test' ORDER BY started_ms DESC LIMIT 1", (cell,)
        ).fetchone()
        return None if found is None else int(found[0])

    def label(self, cell: int, kind: Literal["p", "n"], subject: str) -> None:
        """See to it that the probe or network has a label in this cell: drawn at random, never changed."""
        known = self._db.execute(
            "SELECT 1 FROM label WHERE cell = ? AND kind = ? AND subject = ?", (cell, kind, subject)
        ).fetchone()
        while known is None:
            cursor = self._db.execute(
                "INSERT OR IGNORE INTO label (cell, kind, subject, label) VALUES (?, ?, ?, ?)",
                (cell, kind, subject, self._rng.randrange(1, LABELS)),
            )
            known = cursor.rowcount or None  # a label that another one has: draw again

    # Verdicts

    def put_verdict(self, hypothesis: Hypothesis, view: CellView) -> None:
        """Write what is shown of a cell and effect, and what the selection needs of it."""
        h = hypothesis
        self._db.execute(
            "INSERT OR REPLACE INTO verdict (cell, effect, log_e, log_weight, listed, view, stamp)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (h.cell, h.effect, h.log_e, h.log_weight, h.listed, encode(view), self._rng.getrandbits(62)),
        )

    def verdict(self, cell: int, effect: Effect) -> CellView | None:
        """What is shown of a cell and effect."""
        found = self._db.execute("SELECT view FROM verdict WHERE cell = ? AND effect = ?", (cell, effect)).fetchone()
        return None if found is None else decode(CellView, found[0])

    def drop_verdicts(self, cell: int, effects: Iterable[Effect] | None = None) -> None:
        """A cell without pairs shows nothing; an effect that the rule does not look for (`effects`) neither."""
        if effects is None:
            self._db.execute("DELETE FROM verdict WHERE cell = ?", (cell,))
            self._db.execute("DELETE FROM hour WHERE cell = ?", (cell,))
            return
        for effect in effects:
            self._db.execute("DELETE FROM verdict WHERE cell = ? AND effect = ?", (cell, effect))
            self._db.execute("DELETE FROM hour WHERE cell = ? AND effect = ?", (cell, effect))

    def keep_verdicts(self, rule: str, until_ms: int) -> None:
        """Keep what is shown of every cell and effect as what this edition of the rule said last."""
        self._db.execute(
            "INSERT INTO verdict_by_rule (cell, effect, rule, until_ms, view)"
            " SELECT cell, effect, ?, ?, view FROM verdict ORDER BY cell, effect",
            (rule, until_ms),
        )

    def put_hours(self, rows: Iterable[HourRow], *, cell: int, since_ms: int) -> None:
        """Write hours in place of all that stood from `since_ms` on."""
        self._db.execute("DELETE FROM hour WHERE cell = ? AND bucket_ms >= ?", (cell, since_ms))
        self._db.executemany(
            "INSERT INTO hour (cell, effect, bucket_ms, point, view) VALUES (?, ?, ?, ?, ?)",
            [(r.cell, r.effect, r.point.bucket_ms, encode(r.point), encode(r.view)) for r in rows],
        )

    # Cases

    def cases_of(self, cell: int, effect: Effect) -> list[CaseRow]:
        """The cell's cases, the oldest first."""
        found = self._db.execute(
            "SELECT body, numbers FROM cases WHERE cell = ? AND effect = ? ORDER BY opened_ms, id", (cell, effect)
        )
        return [CaseRow(cell=cell, case=decode(Case, body), numbers=decode(CaseNumbers, n)) for body, n in found]

    def put_case(self, row: CaseRow) -> None:
        """Write a case in place of what stood under its id; its events are added by `add_event`."""
        case = row.case
        self._db.execute(
            "INSERT INTO cases (id, cell, effect, opened_ms, body, numbers) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET body = excluded.body, numbers = excluded.numbers",
            (case.id, row.cell, case.effect, case.history[0].at_ms, encode(case), encode(row.numbers)),
        )

    def add_event(self, case_id: str, event: CaseEvent, *, as_of_ms: int) -> None:
        """Add one line to a case's history; `as_of_ms` is the newest hour that had been judged."""
        self._db.execute(
            "INSERT INTO case_event (id, as_of_ms, body) VALUES (?, ?, ?)", (case_id, as_of_ms, encode(event))
        )

    def events(self, case_id: str) -> list[tuple[int, CaseEvent]]:
        """The case's history with the `as_of_ms` of each line, the oldest first."""
        found = self._db.execute("SELECT as_of_ms, body FROM case_event WHERE id = ? ORDER BY seq", (case_id,))
        return [(as_of_ms, decode(CaseEvent, body)) for as_of_ms, body in found]

    # The way out, and notes

    def send(self, kind: Literal["point", "case"], topic: str, body: Any) -> None:
        """Put something into the outbox, in place of what waits there under the same topic."""
        self._db.execute(
            "INSERT OR REPLACE INTO outbox (kind, topic, body) VALUES (?, ?, ?)", (kind, topic, encode(body))
        )

    def send_hours(self) -> None:
        """Put every hour that may be published into the outbox: a time-series store was added."""
        self._db.execute(
            "INSERT OR REPLACE INTO outbox (kind, topic, body)"
            " SELECT 'point', cell || '/' || effect || '/' || bucket_ms,"
            " '{\"cell\":' || view || ',\"point\":' || point || '}' FROM hour"
            " WHERE json_extract(view, '$.probes') >= ? ORDER BY bucket_ms",
            (LEAST_PROBES,),
        )

    def note(self, name: str, value: str) -> None:
        """Remember one text under a name."""
        self._db.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (name, value))

    def noted(self, name: str) -> str | None:
        """What was remembered."""
        found = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if found is None else str(found[0])


def operators(connection: sqlite3.Connection) -> list[OperatorView]:
    """The register, by place."""
    found = connection.execute(
        "SELECT id, place, brand, asns, country, timezone, configured, cgnat FROM operator ORDER BY place"
    )
    return [
        OperatorView(
            id=name,
            place=place,
            brand=brand,
            asns=tuple(json.loads(asns)),
            country=country,
            timezone=timezone,
            configured=bool(configured),
            cgnat=bool(cgnat),
        )
        for name, place, brand, asns, country, timezone, configured, cgnat in found
    ]


def _cell(row: tuple[Any, ...]) -> CellRow:
    number, operator, app, direction, access = row
    return CellRow(id=number, operator=operator, app=app, direction=direction, access=access)

# SPDX-License-Identifier: EUPL-1.2
"""What the public may see, read out of the SQLite store within one snapshot.

Keys of probes and hashes of networks stop here: only labels leave, which are drawn per cell. Spec: spec/api.md,
section "Privacy".
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import date
from zoneinfo import ZoneInfo

from analysis.cases import Case
from analysis.episodes import after
from collector.eras import CLOSINGS, dated
from collector.model import (
    CaseDetail,
    CaseEvent,
    CaseView,
    CellDetail,
    CellKey,
    CellView,
    EvidencePoint,
    PairEvidence,
    RuleVerdict,
)
from collector.replay import by_pair
from collector.store.base import CaseNumbers, CaseRow, PairRow
from collector.store.rows import decode
from collector.views import LEAST_PROBES, shown_case
from probe.wire.records import Effect, PairRecord


def cells(connection: sqlite3.Connection) -> list[CellView]:
    """Every cell and effect, ordered by operator's place, app, direction, access and effect."""
    found = connection.execute(
        "SELECT v.view FROM verdict v JOIN cell c ON c.id = v.cell"
        " ORDER BY c.operator, c.app, c.direction, c.access, v.effect"
    )
    return [decode(CellView, view) for (view,) in found]


def cases(connection: sqlite3.Connection) -> list[CaseView]:
    """Every case there ever was, the newest first."""
    found = connection.execute("SELECT id FROM cases ORDER BY opened_ms DESC, id").fetchall()
    return [view for (name,) in found if (view := case_view(connection, name)) is not None]


def case_view(connection: sqlite3.Connection, case_id: str) -> CaseView | None:
    """One case without its pairs."""
    found = connection.execute(
        "SELECT c.body, c.numbers, v.view, c.cell FROM cases c"
        " JOIN verdict v ON v.cell = c.cell AND v.effect = c.effect WHERE c.id = ?",
        (case_id,),
    ).fetchone()
    if found is None:
        return None
    history = tuple(
        decode(CaseEvent, body)
        for (body,) in connection.execute("SELECT body FROM case_event WHERE id = ? ORDER BY seq", (case_id,))
    )
    row = CaseRow(cell=found[3], case=decode(Case, found[0]), numbers=decode(CaseNumbers, found[1]))
    return shown_case(row, decode(CellView, found[2]), history)


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a cell's life that a picture shows: an episode's. Days are proleptic ordinals, hours Unix ms."""

    since: int | None = None
    until: int | None = None
    from_ms: int = 0
    until_ms: int | None = None

    def holds(self, row: PairRow) -> bool:
        """Whether a pair belongs to it."""
        if row.scored is None:
            return False
        day = row.scored.day
        return (self.since is None or day >= self.since) and (self.until is None or day <= self.until)

    def shows(self, bucket_ms: int) -> bool:
        """Whether an hour belongs to it."""
        return bucket_ms >= self.from_ms and (self.until_ms is None or bucket_ms <= self.until_ms)


def windows(connection: sqlite3.Connection, cell: int, effect: Effect) -> tuple[dict[str, Window], Window]:
    """The window of each case of a cell and effect, and that of what is not (yet) a closed case."""
    (timezone,) = connection.execute(
        "SELECT o.timezone FROM cell c JOIN operator o ON o.place = c.operator WHERE c.id = ?", (cell,)
    ).fetchone()
    found = connection.execute(
        "SELECT id, body FROM cases WHERE cell = ? AND effect = ? ORDER BY opened_ms, id", (cell, effect)
    ).fetchall()
    now, by_case = Window(), {}
    for ident, body in found:
        row = dated(decode(Case, body), ZoneInfo(timezone))
        if row.status == "open":
            by_case[ident] = now
            continue
        closed_ms = _closed_ms(connection, ident)
        by_case[ident] = Window(now.since, row.closed_day, now.from_ms, closed_ms)
        now = Window(after([row.closed_day or row.opened_day]).since, None, closed_ms)
    return by_case, now


def _closed_ms(connection: sqlite3.Connection, case_id: str) -> int:
    found = connection.execute("SELECT as_of_ms, body FROM case_event WHERE id = ? ORDER BY seq", (case_id,))
    return next((int(as_of) for as_of, body in found if decode(CaseEvent, body).what in CLOSINGS), 0)


def case(connection: sqlite3.Connection, case_id: str, drawn: Drawn) -> CaseDetail | None:
    """One case with its pairs and pictures."""
    view = case_view(connection, case_id)
    if view is None:
        return None
    (cell,) = connection.execute("SELECT cell FROM cases WHERE id = ?", (case_id,)).fetchone()
    by_case, _ = windows(connection, cell, view.cell.key.effect)
    pairs, evidence, hours = drawn.pictures(connection, cell, view.cell, by_case[case_id])
    return CaseDetail(
        case=view,
        pairs=pairs,
        evidence_by_pair=evidence,
        evidence_by_hour=hours,
        verdicts_by_rule=verdicts_by_rule(connection, cell, view.cell.key.effect),
        rule=rule(connection),
    )


def evidence(connection: sqlite3.Connection, key: CellKey, drawn: Drawn) -> CellDetail | None:
    """One cell and effect with its pairs and pictures, case or none."""
    found = connection.execute(
        "SELECT v.cell, v.view FROM verdict v JOIN cell c ON c.id = v.cell JOIN operator o ON o.place = c.operator"
        " WHERE o.id = ? AND c.app = ? AND c.direction = ? AND c.access = ? AND v.effect = ?",
        (key.operator, key.app, key.direction, key.access, key.effect),
    ).fetchone()
    if found is None:
        return None
    view = decode(CellView, found[1])
    _, now = windows(connection, found[0], key.effect)
    pairs, by_pairs, hours = drawn.pictures(connection, found[0], view, now)
    return CellDetail(
        cell=view,
        pairs=pairs,
        evidence_by_pair=by_pairs,
        evidence_by_hour=hours,
        verdicts_by_rule=verdicts_by_rule(connection, found[0], key.effect),
        rule=rule(connection),
    )


def verdicts_by_rule(connection: sqlite3.Connection, cell: int, effect: Effect) -> tuple[RuleVerdict, ...]:
    """What earlier editions of the rule had said last, the oldest first."""
    found = connection.execute(
        "SELECT rule, until_ms, view FROM verdict_by_rule WHERE cell = ? AND effect = ? ORDER BY seq", (cell, effect)
    )
    return tuple(RuleVerdict(rule=name, until_ms=until, cell=decode(CellView, view)) for name, until, view in found)


def rule(connection: sqlite3.Connection) -> str:
    """The rule in force; empty before anything was judged."""
    found = connection.execute("SELECT value FROM meta WHERE name = 'rule'").fetchone()
    return "" if found is None else str(found[0])


Pictures = tuple[tuple[PairRecord, ...], tuple[PairEvidence, ...], tuple[EvidencePoint, ...]]


class Drawn:
    """Pictures drawn lately: a cell's pairs are read and replayed once, not for every reader. Thread-safe.

    They are kept under the stamp of the verdict that they belong to, which changes whenever it is written.
    """

    def __init__(self, most: int = 16) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[int, Effect, Window], tuple[int, Pictures]] = OrderedDict()
        self._guard = threading.Lock()

    def pictures(self, connection: sqlite3.Connection, cell: int, view: CellView, window: Window) -> Pictures:
        """The pictures of a cell and effect, or of one of its cases."""
        effect = view.key.effect
        (stamp,) = connection.execute(
            "SELECT stamp FROM verdict WHERE cell = ? AND effect = ?", (cell, effect)
        ).fetchone()
        key = (cell, effect, window)
        with self._guard:
            kept = self._kept.get(key)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        found = _pictures(connection, cell, view, window)
        with self._guard:
            self._kept[key] = (stamp, found)
            self._kept.move_to_end(key)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return found


def _pictures(connection: sqlite3.Connection, cell: int, view: CellView, window: Window) -> Pictures:
    if view.probes < LEAST_PROBES:
        return (), (), ()
    effect: Effect = view.key.effect
    rows = [
        (sequence, row)
        for sequence, (body,) in enumerate(
            connection.execute("SELECT body FROM pair WHERE cell = ? ORDER BY started_ms, session, number", (cell,)),
            start=1,
        )
        if window.holds(row := decode(PairRow, body))
    ]
    labels = {
        (kind, subject): f"{kind}{label}"
        for kind, subject, label in connection.execute("SELECT kind, subject, label FROM label WHERE cell = ?", (cell,))
    }
    (shared,) = connection.execute(
        "SELECT c.access = 'mobile' OR o.cgnat FROM cell c JOIN operator o ON o.place = c.operator WHERE c.id = ?",
        (cell,),
    ).fetchone()
    components = {} if shared else dict(connection.execute("SELECT probe, component FROM probe_component"))
    # The network's label is what the judging grouped by, so that whoever recomputes groups alike.
    networks = {probe: labels["n", components.get(probe, "")] for probe in {row.pair.probe for _, row in rows}}
    pairs = tuple(
        pair_record(row, sequence, labels["p", row.pair.probe], networks[row.pair.probe]) for sequence, row in rows
    )
    hours = tuple(
        decode(EvidencePoint, point)
        for bucket_ms, point in connection.execute(
            "SELECT bucket_ms, point FROM hour WHERE cell = ? AND effect = ? ORDER BY bucket_ms", (cell, effect)
        )
        if window.shows(bucket_ms)
    )
    first = rows[0][0] if rows else 1
    return pairs, by_pair([row for _, row in rows], effect, networks, first=first), hours


def pair_record(row: PairRow, sequence: int, probe: str, network: str) -> PairRecord:
    """A pair as published."""
    pair, scored = row.pair, row.scored
    if scored is None:
        raise ValueError("a pair that was never scored cannot be published")
    first, second = (None, None) if scored.lost else (pair.first_mbps, pair.second_mbps)
    ends = row.ends if len(row.ends) == 2 and pair.neutral_first is not None else (None, None)
    neutral_first = bool(pair.neutral_first)
    delays = (None, None) if scored.lost else (pair.first_delay_ms, pair.second_delay_ms)
    losses = (None, None) if scored.lost else (pair.first_loss, pair.second_loss)
    altered = (pair.first_altered, pair.second_altered)
    app, neutral = (1, 0) if neutral_first else (0, 1)
    return PairRecord(
        v=1,
        sequence=sequence,
        kind=pair.kind,
        operator=pair.cell.operator,
        asn=pair.cell.asn,
        app=pair.cell.app,
        direction=pair.cell.direction,
        access=pair.cell.access,
        day=date.fromordinal(scored.day).isoformat(),
        stratum=scored.stratum,
        probe=probe,
        network=network,
        neutral_first=pair.neutral_first,
        lost=scored.lost,
        app_mbps=second if neutral_first else first,
        neutral_mbps=first if neutral_first else second,
        app_end=ends[1] if neutral_first else ends[0],
        neutral_end=ends[0] if neutral_first else ends[1],
        pace_mbps=pair.pace_mbps,
        segment_s=pair.segment_s,
        edge=pair.edge,
        design=pair.design,
        app_delay_ms=delays[app],
        neutral_delay_ms=delays[neutral],
        app_loss=losses[app],
        neutral_loss=losses[neutral],
        queued=pair.queued,
        app_altered=not scored.lost and altered[app],
        neutral_altered=not scored.lost and altered[neutral],
        flags=tuple(sorted(pair.flags)),
        midpoint=None if scored.y is None else scored.midpoint,
    )

# SPDX-License-Identifier: EUPL-1.2
"""What the public may see, read out of the SQLite store within one snapshot.

Keys of probes and hashes of networks stop here: only labels leave, which are drawn per cell. Spec: spec/api.md,
section "Privacy".
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from datetime import date

from analysis.cases import Case
from collector.model import (
    CaseDetail,
    CaseEvent,
    CaseView,
    CellDetail,
    CellKey,
    CellView,
    EvidencePoint,
    PairEvidence,
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


def case(connection: sqlite3.Connection, case_id: str, drawn: Drawn) -> CaseDetail | None:
    """One case with its pairs and pictures."""
    view = case_view(connection, case_id)
    if view is None:
        return None
    (cell,) = connection.execute("SELECT cell FROM cases WHERE id = ?", (case_id,)).fetchone()
    pairs, evidence, hours = drawn.pictures(connection, cell, view.cell)
    return CaseDetail(case=view, pairs=pairs, evidence_by_pair=evidence, evidence_by_hour=hours)


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
    pairs, by_pairs, hours = drawn.pictures(connection, found[0], view)
    return CellDetail(cell=view, pairs=pairs, evidence_by_pair=by_pairs, evidence_by_hour=hours)


Pictures = tuple[tuple[PairRecord, ...], tuple[PairEvidence, ...], tuple[EvidencePoint, ...]]


class Drawn:
    """Pictures drawn lately: a cell's pairs are read and replayed once, not for every reader. Thread-safe.

    They are kept under the stamp of the verdict that they belong to, which changes whenever it is written.
    """

    def __init__(self, most: int = 16) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[int, Effect], tuple[int, Pictures]] = OrderedDict()
        self._guard = threading.Lock()

    def pictures(self, connection: sqlite3.Connection, cell: int, view: CellView) -> Pictures:
        """The pictures of a cell and effect."""
        key = (cell, view.key.effect)
        (stamp,) = connection.execute("SELECT stamp FROM verdict WHERE cell = ? AND effect = ?", key).fetchone()
        with self._guard:
            kept = self._kept.get(key)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        found = _pictures(connection, cell, view)
        with self._guard:
            self._kept[key] = (stamp, found)
            self._kept.move_to_end(key)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return found


def _pictures(connection: sqlite3.Connection, cell: int, view: CellView) -> Pictures:
    if view.probes < LEAST_PROBES:
        return (), (), ()
    effect: Effect = view.key.effect
    rows = [
        decode(PairRow, body)
        for (body,) in connection.execute(
            "SELECT body FROM pair WHERE cell = ? ORDER BY started_ms, session, number", (cell,)
        )
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
    networks = {probe: labels["n", components.get(probe, "")] for probe in {row.pair.probe for row in rows}}
    pairs = tuple(
        pair_record(row, sequence, labels["p", row.pair.probe], networks[row.pair.probe])
        for sequence, row in enumerate(rows, start=1)
    )
    hours = tuple(
        decode(EvidencePoint, point)
        for (point,) in connection.execute(
            "SELECT point FROM hour WHERE cell = ? AND effect = ? ORDER BY bucket_ms", (cell, effect)
        )
    )
    return pairs, by_pair(rows, effect, networks), hours


def pair_record(row: PairRow, sequence: int, probe: str, network: str) -> PairRecord:
    """A pair as published."""
    pair, scored = row.pair, row.scored
    if scored is None:
        raise ValueError("a pair that was never scored cannot be published")
    first, second = (None, None) if scored.lost else (pair.first_mbps, pair.second_mbps)
    ends = row.ends if len(row.ends) == 2 and pair.neutral_first is not None else (None, None)
    neutral_first = bool(pair.neutral_first)
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
        midpoint=None if scored.y is None else scored.midpoint,
    )

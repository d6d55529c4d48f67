# SPDX-License-Identifier: EUPL-1.2
"""What is known of one session becomes pairs in cells: matching, lateness, labels.

Spec: spec/api.md, section "Judging"; spec/statistics.md, section "From records to pairs".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from analysis import match
from analysis.match import OperatorOf
from analysis.pairs import Pair
from collector.mind import Mind
from collector.store.base import Book, EnvelopeRow, KeptSession, PairRow, Session
from probe.wire.envelope import read_payload
from probe.wire.records import Measurement, Origin, PairKind, Receipt, SegmentEnd, Started

LATE_MS: Final = 24 * 3_600_000
"""What comes later than this after a pair's start finds it lost for good."""


@dataclass(slots=True)
class Taken:
    """What taking sessions in has changed."""

    touched: set[int] = field(default_factory=set)
    """Cells with new, changed or departed pairs."""
    regrouped: set[int] = field(default_factory=set)
    """Cells with probes that turned out to be one network."""
    fresh: Counter[PairKind] = field(default_factory=Counter)
    """Pairs met for the first time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that is known of one session, and when its two halves arrived (Unix ms)."""

    receipt: Receipt | None = None
    measurement: Measurement | None = None
    started: tuple[Started, ...] = ()
    complete_ms: int = 0
    """When the later of receipt and measurement came."""

    def origins(self) -> Iterator[Origin]:
        """Where the session came from, as each record says."""
        if self.receipt is not None:
            yield self.receipt.origin
        for started in self.started:
            yield started.origin

    def pairs(self, operator_of: OperatorOf) -> Iterator[tuple[Pair, tuple[SegmentEnd, ...]]]:
        """The session's pairs, each with how its segments ended."""
        known = match.Session(receipt=self.receipt, measurement=self.measurement, started=self.started)
        ends = {p.pair: tuple(s.end for s in p.segments) for p in self.receipt.pairs} if self.receipt else {}
        for pair in match.pairs_of(known, operator_of):
            late = self.complete_ms - pair.started_ms > LATE_MS
            yield (replace(pair, lost=True) if late else pair), ends.get(pair.number, ())


def read(rows: list[EnvelopeRow]) -> Facts:
    """Read a session's envelopes, which were verified when they came."""
    if all(row.kind == "measurement" for row in rows):
        return Facts()  # no reflector has told of it yet (or ever will): there is nothing to count
    receipt: Receipt | None = None
    measurement: Measurement | None = None
    started: list[Started] = []
    complete_ms = 0
    for row in rows:
        record = read_payload(row.payload)
        if isinstance(record, Receipt):
            receipt, complete_ms = record, max(complete_ms, row.received_ms)
        elif isinstance(record, Measurement):
            measurement, complete_ms = record, max(complete_ms, row.received_ms)
        elif isinstance(record, Started):
            started.append(record)
    return Facts(receipt=receipt, measurement=measurement, started=tuple(started), complete_ms=complete_ms)


def take(book: Book, mind: Mind, session: Session, taken: Taken) -> None:
    """Compare what is now known of a session with what stood, and replace what differs."""
    kept = book.kept(session)
    if kept is None:
        facts = read(book.facts(session))
        networks, pairs = [origin.network for origin in facts.origins()], facts.pairs(partial(mind.operator_of, book))
    else:  # its probe has left, and its records with it
        networks, pairs = list(kept.networks), _kept_pairs(book, mind, kept)
    _take_networks(book, mind, session, networks, taken)
    stood = {row.pair.number: row for row in book.pairs_of(session)}
    for pair, ends in pairs:
        taken.fresh[pair.kind] += pair.number not in stood
        _take_pair(
            book,
            mind,
            PairRow(reflector=session.reflector, cell=0, pair=pair, ends=ends),
            stood.pop(pair.number, None),
            taken,
        )
    for row in stood.values():
        _remove(book, mind, row, taken)


def _kept_pairs(book: Book, mind: Mind, kept: KeptSession) -> Iterator[tuple[Pair, tuple[SegmentEnd, ...]]]:
    for one in kept.pairs:
        operator, asn = mind.operator_of(book, one.origin)
        yield replace(one.pair, cell=replace(one.pair.cell, operator=operator, asn=asn)), one.ends


def _take_networks(book: Book, mind: Mind, session: Session, networks: Iterable[str], taken: Taken) -> None:
    for network in networks:
        book.add_network(network, session.probe)
        changed = mind.networks.see(network, session.probe)
        if changed is None:
            continue
        component, gone = changed
        members = mind.networks.members(component)
        book.put_component(component, members, gone)
        for number in book.cells_of(members):
            taken.regrouped.add(number)
            book.label(number, "n", component)


def _take_pair(book: Book, mind: Mind, row: PairRow, before: PairRow | None, taken: Taken) -> None:
    key = row.pair.cell
    cell = mind.find(book, key.operator, key.app, key.direction, key.access)
    row = replace(row, cell=cell.row.id)
    if before is not None and replace(before, scored=None) == row:
        return
    if before is not None and (before.cell, before.pair.kind) != (row.cell, row.pair.kind):
        _remove(book, mind, before, taken)
        before = None
    cell.put(book, row, before)
    probe = row.pair.probe
    book.label(row.cell, "p", probe)
    book.label(row.cell, "n", "" if cell.shared else mind.networks.component(probe) or "")
    taken.touched.add(row.cell)


def _remove(book: Book, mind: Mind, row: PairRow, taken: Taken) -> None:
    mind.cell(book, row.cell).remove(book, row)
    taken.touched.add(row.cell)

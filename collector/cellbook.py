# SPDX-License-Identifier: EUPL-1.2
"""One cell in the judge's memory: its probes' states, read from the store once and written back when they change.

Everything here is exact and reversible: a pair that turns out otherwise is taken back as it was counted.
Spec: spec/api.md, section "Judging".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from analysis.cells import Assessment, assess
from analysis.gates import Setting
from analysis.pairs import CellKey, OrderHistory, Pair, score
from analysis.probes import ProbeState, ProbeSummary, Standing, placebo_evidence, summarise
from analysis.rules import EFFECTS, Rules
from collector.model import OperatorView
from collector.register import Networks
from collector.replay import Folded, unfold
from collector.store.base import Book, CellRow, PairRow
from collector.views import Extras
from probe.wire.records import Effect, PairKind

Stream = tuple[PairKind, str]
"""Kind and probe: what shares an order history within a cell."""
Assessments = dict[Effect, Assessment]


@dataclass(slots=True)
class Cell:
    """One cell as it stands. `operator` must be the current entry of the register."""

    row: CellRow
    operator: OperatorView
    zone_known: bool
    rules: Rules
    states: dict[PairKind, dict[str, ProbeState]] = field(default_factory=lambda: {"test": {}, "placebo": {}})
    extras: Extras = field(default_factory=Extras)
    since: dict[Stream, int] = field(default_factory=dict)
    """Streams with changed pairs, and the start (Unix ms) of the earliest of these."""
    _histories: dict[Stream, OrderHistory] = field(default_factory=dict)
    _summaries: dict[str, ProbeSummary] = field(default_factory=dict)
    _placebo: dict[str, float] = field(default_factory=dict)
    """log E of each probe with placebo pairs that neutral names are not treated alike."""

    @classmethod
    def load(cls, book: Book, row: CellRow, operator: OperatorView, *, zone_known: bool, rules: Rules) -> Cell:
        """Read a cell from the store."""
        cell = cls(row=row, operator=operator, zone_known=zone_known, rules=rules)
        for kind, probe, stored in book.states(row.id):
            cell.states[kind][probe] = ProbeState.from_dict(stored)
        cell.extras = Extras.from_dict(book.extras(row.id))
        return cell

    @property
    def key(self) -> CellKey:
        """As analysis names it: every number of an operator is one cell, shown under its first."""
        asn = self.operator.asns[0] if self.operator.asns else None
        return CellKey(self.operator.id, asn, self.row.app, self.row.direction, self.row.access)

    @property
    def zone(self) -> tzinfo:
        """The operator's local time."""
        return ZoneInfo(self.operator.timezone)

    @property
    def shared(self) -> bool:
        """Whether addresses tell its homes apart (no) or are shared (yes): then its probes are one network."""
        return self.row.access == "mobile" or self.operator.cgnat

    # Pairs

    def put(self, book: Book, row: PairRow, before: PairRow | None) -> None:
        """A pair is new here, or known better than `before`; it is scored by `rescore`."""
        stream = (row.pair.kind, row.pair.probe)
        if before is not None:
            self._uncount(before)
        if before is not None and _entry(before.pair, self.rules) not in (None, _entry(row.pair, self.rules)):
            self._histories.pop(stream, None)
        elif stream in self._histories and (before is None or _entry(before.pair, self.rules) is None):
            self._histories[stream].add(row.pair)
        book.put_pair(row)
        self._touch(stream, row.pair.started_ms if before is None else min(row.pair.started_ms, before.pair.started_ms))

    def remove(self, book: Book, row: PairRow) -> None:
        """A pair turned out to belong elsewhere."""
        self._uncount(row)
        self._histories.pop((row.pair.kind, row.pair.probe), None)
        book.drop_pair(row)
        self._touch((row.pair.kind, row.pair.probe), row.pair.started_ms)

    def _touch(self, stream: Stream, started_ms: int) -> None:
        self.since[stream] = min(started_ms, self.since.get(stream, started_ms))

    def rescore(self, book: Book) -> None:
        """Score what changed, and every later pair whose order history changed with it."""
        for (kind, probe), since_ms in self.since.items():
            history = self._history(book, kind, probe)
            for row in book.stream(self.row.id, kind, probe, since_ms):
                scored = score(history, row.pair, self.zone, rules=self.rules)
                if scored != row.scored:
                    self._uncount(row)
                    counted = replace(row, scored=scored)
                    self._count(counted)
                    book.put_pair(counted)

    def _history(self, book: Book, kind: PairKind, probe: str) -> OrderHistory:
        if (kind, probe) not in self._histories:
            history = OrderHistory(self.rules)
            for row in book.stream(self.row.id, kind, probe, 0):
                history.add(row.pair)
            self._histories[kind, probe] = history
        return self._histories[kind, probe]

    def _count(self, row: PairRow) -> None:
        if row.scored is None:
            raise ValueError("a pair that was never scored cannot be counted")
        self.states[row.pair.kind].setdefault(row.pair.probe, ProbeState()).add(row.pair, row.scored, self.rules)
        self.extras.add(row)
        self._changed(row)

    def _uncount(self, row: PairRow) -> None:
        if row.scored is None:
            return
        states = self.states[row.pair.kind]
        states[row.pair.probe].remove(row.pair, row.scored, self.rules)
        if not states[row.pair.probe].counts.pairs:
            del states[row.pair.probe]
        self.extras.add(row, -1)
        self._changed(row)

    def _changed(self, row: PairRow) -> None:
        cache: dict[str, Any] = self._summaries if row.pair.kind == "test" else self._placebo
        cache.pop(row.pair.probe, None)

    def save(self, book: Book) -> None:
        """Write what changed."""
        for kind, probe in self.since:
            state = self.states[kind].get(probe)
            book.put_state(self.row.id, kind, probe, None if state is None else state.to_dict())
        if self.since:
            book.put_extras(self.row.id, self.extras.to_dict())
        self.since.clear()

    # Verdicts

    def summaries(self, networks: Networks) -> list[ProbeSummary]:
        """Each probe with test pairs, read; those that did not change since are not read again."""
        for probe, state in self.states["test"].items():
            if probe not in self._summaries:
                self._summaries[probe] = summarise(probe, state, standing=self._standing, rules=self.rules)
        return [named(self._summaries[probe], networks) for probe in self.states["test"]]

    def placebo(self) -> list[float]:
        """log E of each probe with placebo pairs; those that did not change since are not computed again."""
        states = self.states["placebo"]
        for probe, state in states.items():
            if probe not in self._placebo:
                (self._placebo[probe],) = placebo_evidence([state], self.rules)
        return [self._placebo[probe] for probe in states]

    @property
    def _standing(self) -> Standing:
        return "shared" if self.shared else "hash"

    def setting(self, placebo: tuple[ProbeState, ...]) -> Setting:
        """What is known of the cell besides its probes."""
        return Setting(placebo=placebo, zone_known=self.zone_known)

    def assess(self, networks: Networks, setting: Setting) -> Assessments:
        """Every effect, short of the selection of cases."""
        probes = self.summaries(networks)
        return {effect: assess(self.key, effect, probes, setting, rules=self.rules) for effect in EFFECTS}

    def before(self, rows: Sequence[PairRow]) -> tuple[Folded, dict[str, ProbeSummary]]:
        """The cell before these pairs, its newest, and the summaries of the probes that have none of them."""
        folded = unfold(self.states["test"], self.extras, rows, self.rules)
        known = {probe: found for probe, found in self._summaries.items() if probe not in folded.changed}
        return folded, known

    def assess_past(
        self,
        states: Mapping[str, ProbeState],
        known: dict[str, ProbeSummary],
        networks: Networks,
        setting: Setting,
    ) -> Assessments:
        """Every effect as of an earlier moment; `known` keeps the summaries of probes that did not change."""
        for probe, state in states.items():
            if probe not in known:
                known[probe] = summarise(probe, state, standing=self._standing, rules=self.rules)
        probes = [named(known[probe], networks) for probe in states]
        return {effect: assess(self.key, effect, probes, setting, rules=self.rules) for effect in EFFECTS}


def named(summary: ProbeSummary, networks: Networks) -> ProbeSummary:
    """The probe with its network as all its measurements in all cells tell it."""
    component = networks.component(summary.probe)
    return replace(summary, networks=frozenset() if component is None else frozenset({component}))


def _entry(pair: Pair, rules: Rules) -> tuple[Any, ...] | None:
    """What a pair contributes to the order history; None if nothing."""
    ratio = pair.log_ratio(rules)
    if ratio is None or pair.ended_ms is None or pair.neutral_first is None or not pair.received:
        return None
    return (pair.ended_ms, pair.neutral_first, ratio)

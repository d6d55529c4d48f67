# SPDX-License-Identifier: EUPL-1.2
"""One cell in the judge's memory: its probes' states, read from the store once and written back when they change.

Everything here is exact and reversible: a pair that turns out otherwise is taken back as it was counted.
Spec: spec/api.md, section "Judging".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo

from analysis.cells import Assessment, assess
from analysis.episodes import Episode
from analysis.gates import Setting
from analysis.pairs import CellKey, OrderHistory, Pair, score
from analysis.probes import ProbeState, ProbeSummary, Standing, placebo_evidence, summarise
from analysis.rules import Rules
from collector.eras import Eras, read_eras
from collector.model import OperatorView
from collector.register import Networks
from collector.replay import Folded, Span, unfold
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
    spans: dict[int | None, Span] = field(default_factory=lambda: {None: Span()})
    """Test pairs and counts: of all days, and of the days since a case was closed."""
    placebos: dict[str, ProbeState] = field(default_factory=dict)
    eras: dict[Effect, Eras] = field(default_factory=dict)
    since: dict[Stream, int] = field(default_factory=dict)
    """Streams with changed pairs, and the start (Unix ms) of the earliest of these."""
    _histories: dict[Stream, OrderHistory] = field(default_factory=dict)
    _summaries: dict[int | None, dict[str, ProbeSummary]] = field(default_factory=dict)
    """By span."""
    _placebo: dict[str, float] = field(default_factory=dict)
    """log E of each probe with placebo pairs that neutral names are not treated alike."""

    @classmethod
    def load(cls, book: Book, row: CellRow, operator: OperatorView, *, zone_known: bool, rules: Rules) -> Cell:
        """Read a cell from the store."""
        cell = cls(row=row, operator=operator, zone_known=zone_known, rules=rules)
        for kind, probe, stored in book.states(row.id):
            cell._states(kind)[probe] = ProbeState.from_dict(stored)
        cell.whole.extras = Extras.from_dict(book.extras(row.id))
        cell.open_eras(book)
        return cell

    def open_eras(self, book: Book) -> None:
        """See which episode each effect is in; called again when a case was closed."""
        self.eras = {effect: read_eras(book, self.row.id, effect, self.zone) for effect in self.rules.effects}
        days = {era.episode.since for eras in self.eras.values() for era in eras.eras}
        for gone in self.spans.keys() - days - {None}:
            del self.spans[gone]
        for since in sorted(day for day in days if day is not None and day not in self.spans):
            span = Span(since)
            for row in book.pairs_in(self.row.id, _begins_ms(since)):
                if row.scored is not None:
                    span.add(row, self.rules)
            self.spans[since] = span
        self._summaries.clear()

    @property
    def whole(self) -> Span:
        """Pairs of all days."""
        return self.spans[None]

    def _states(self, kind: PairKind) -> dict[str, ProbeState]:
        return self.whole.states if kind == "test" else self.placebos

    def episode(self, effect: Effect) -> Episode:
        """The episode in which an effect is."""
        return self.eras[effect].current

    def span(self, effect: Effect) -> Span:
        """The pairs that count for an effect now."""
        return self.spans[self.episode(effect).since]

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
        for span in self.spans.values():
            span.add(row, self.rules)
        if row.pair.kind == "placebo":
            self.placebos.setdefault(row.pair.probe, ProbeState()).add(row.pair, row.scored, self.rules)
        self._changed(row)

    def _uncount(self, row: PairRow) -> None:
        if row.scored is None:
            return
        for span in self.spans.values():
            span.remove(row, self.rules)
        if row.pair.kind == "placebo":
            state = self.placebos[row.pair.probe]
            state.remove(row.pair, row.scored, self.rules)
            if not state.counts.pairs:
                del self.placebos[row.pair.probe]
        self._changed(row)

    def _changed(self, row: PairRow) -> None:
        self._placebo.pop(row.pair.probe, None)
        for known in self._summaries.values():
            known.pop(row.pair.probe, None)

    def save(self, book: Book) -> None:
        """Write what changed."""
        for kind, probe in self.since:
            state = self._states(kind).get(probe)
            book.put_state(self.row.id, kind, probe, None if state is None else state.to_dict())
        if self.since:
            book.put_extras(self.row.id, self.whole.extras.to_dict())
        self.since.clear()

    # Verdicts

    def summaries(self, networks: Networks, effect: Effect) -> list[ProbeSummary]:
        """Each probe with test pairs that count for the effect, read; what did not change is not read again."""
        span = self.span(effect)
        return self._read(span, self._summaries.setdefault(span.since, {}), networks)

    def _read(self, span: Span, known: dict[str, ProbeSummary], networks: Networks) -> list[ProbeSummary]:
        for probe, state in span.states.items():
            if probe not in known:
                known[probe] = summarise(probe, state, standing=self._standing, rules=self.rules)
        return [named(known[probe], networks) for probe in span.states]

    def placebo(self) -> list[float]:
        """log E of each probe with placebo pairs; those that did not change since are not computed again."""
        for probe, state in self.placebos.items():
            if probe not in self._placebo:
                (self._placebo[probe],) = placebo_evidence([state], self.rules)
        return [self._placebo[probe] for probe in self.placebos]

    @property
    def _standing(self) -> Standing:
        return "shared" if self.shared else "hash"

    def setting(self, placebo: tuple[ProbeState, ...]) -> Setting:
        """What is known of the cell besides its probes."""
        return Setting(placebo=placebo, zone_known=self.zone_known)

    def assess(self, networks: Networks, setting: Setting) -> Assessments:
        """Every effect in its present episode, short of the selection of cases."""
        return {
            effect: assess(self.key, effect, self.summaries(networks, effect), setting, rules=self.rules)
            for effect in self.rules.effects
        }

    def before(self, rows: Sequence[PairRow]) -> tuple[Folded, dict[int | None, dict[str, ProbeSummary]]]:
        """The cell before these pairs, its newest, and by span the summaries of probes that have none of them."""
        folded = unfold(self.spans.values(), rows, self.rules)
        known = {
            since: {probe: found for probe, found in of.items() if probe not in folded.changed}
            for since, of in self._summaries.items()
        }
        return folded, known

    def assess_past(
        self,
        bucket_ms: int,
        folded: Folded,
        known: dict[int | None, dict[str, ProbeSummary]],
        networks: Networks,
        setting: Setting,
    ) -> tuple[Assessments, dict[Effect, Extras]]:
        """Every effect at the end of an earlier hour, in the episode it was in then, and the counts of that.

        `known` keeps the summaries of probes that did not change.
        """
        for of in known.values():
            for probe in folded.changed:
                of.pop(probe, None)
        found: Assessments = {}
        extras: dict[Effect, Extras] = {}
        for effect in self.rules.effects:
            span = folded.spans[self.eras[effect].at(bucket_ms).since]
            probes = self._read(span, known.setdefault(span.since, {}), networks)
            found[effect] = assess(self.key, effect, probes, setting, rules=self.rules)
            extras[effect] = span.extras
        return found, extras


DAY_MS: Final = 86_400_000


def _begins_ms(day: int) -> int:
    """A moment before a local day (proleptic ordinal) begins, wherever on earth; Unix ms."""
    return (day - date(1970, 1, 1).toordinal() - 1) * DAY_MS


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

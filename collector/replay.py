# SPDX-License-Identifier: EUPL-1.2
"""The past of a cell, computed again from its scored pairs: hour by hour, and pair by pair.

Pure. An hour's point is the same whether it is written as the hour passes or rewritten after a late upload.
Spec: spec/api.md, section "Judging".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from analysis.evidence import probe_evidence
from analysis.gates import strength
from analysis.probes import ProbeState
from analysis.rules import RULES, Rules
from collector.model import PairEvidence
from collector.store.base import PairRow
from collector.views import Extras
from probe.wire.records import Effect

HOUR_MS: Final = 3_600_000
MOST_POINTS: Final = 200
"""A picture needs no more points than this."""


def hour_of(time_ms: int) -> int:
    """Start of the hour (UTC) that holds a moment, both Unix ms."""
    return time_ms - time_ms % HOUR_MS


@dataclass(slots=True)
class Span:
    """A cell's pairs from some day on: the states of its test pairs, and its counts for pictures."""

    since: int | None = None
    """First day (proleptic ordinal, operator's local time) whose pairs count; None = all."""
    states: dict[str, ProbeState] = field(default_factory=dict)
    extras: Extras = field(default_factory=Extras)

    def holds(self, row: PairRow) -> bool:
        """Whether a scored pair belongs to it."""
        if row.scored is None:
            raise ValueError("a pair that was never scored cannot be counted")
        return self.since is None or row.scored.day >= self.since

    def add(self, row: PairRow, rules: Rules = RULES) -> None:
        """Count a pair."""
        if row.scored is not None and self.holds(row):
            self.extras.add(row)
            if row.pair.kind == "test":
                self.states.setdefault(row.pair.probe, ProbeState()).add(row.pair, row.scored, rules)

    def remove(self, row: PairRow, rules: Rules = RULES) -> None:
        """Take a pair back as it was counted."""
        if row.scored is not None and self.holds(row):
            self.extras.add(row, -1)
            if row.pair.kind == "test":
                state = self.states[row.pair.probe]
                state.remove(row.pair, row.scored, rules)
                if not state.counts.pairs:
                    del self.states[row.pair.probe]


@dataclass(slots=True)
class Folded:
    """A cell's pairs up to some moment, over each span of days that an episode may have."""

    spans: dict[int | None, Span] = field(default_factory=lambda: {None: Span()})
    """By first day."""
    changed: set[str] = field(default_factory=set)
    """Probes with test pairs in the newest hour that has any."""


def unfold(spans: Iterable[Span], rows: Sequence[PairRow], rules: Rules = RULES) -> Folded:
    """The cell as it stood before its newest pairs: copies, from which `rows` are taken back as they were counted.

    Everything counted is an integer, so this is exact, and it costs what the newest pairs cost, however many came
    before them.
    """
    before = Folded({})
    probes = {row.pair.probe for row in rows if row.pair.kind == "test" and row.scored is not None}
    for span in spans:
        states = dict(span.states)
        for probe in probes & states.keys():
            states[probe] = ProbeState.from_dict(states[probe].to_dict())
        copy = Span(span.since, states, Extras.from_dict(span.extras.to_dict()))
        for row in rows:
            copy.remove(row, rules)
        before.spans[span.since] = copy
    before.changed = probes
    return before


def by_hour(folded: Folded, rows: Sequence[PairRow], rules: Rules = RULES) -> Iterator[tuple[int, Folded]]:
    """The cell at the end of each hour in which `rows` (by start) has test pairs; it begins as `folded`.

    The same object is handed out again and again, with more in it each time.
    """
    for bucket, group in itertools.groupby(rows, key=lambda row: hour_of(row.pair.started_ms)):
        folded.changed.clear()
        for row in group:
            for span in folded.spans.values():
                span.add(row, rules)
            if row.pair.kind == "test":
                folded.changed.add(row.pair.probe)
        if folded.changed:
            yield bucket, folded


def by_pair(
    rows: Sequence[PairRow],
    effect: Effect,
    components: Mapping[str, str],
    rules: Rules = RULES,
    *,
    first: int = 1,
) -> tuple[PairEvidence, ...]:
    """The cell's evidence after each pair (every so-manieth where they are many); `rows` by start.

    `components` name each probe's network; probes that it does not name are one network together. `first` is the
    sequence number of the first row.
    """
    span = Span()
    log_es: dict[str, float] = {}
    found: list[PairEvidence] = []
    step = max(1, math.ceil(len(rows) / MOST_POINTS))
    changed: set[str] = set()
    for number, row in enumerate(rows, start=1):
        span.add(row, rules)
        if row.pair.kind == "test":
            changed.add(row.pair.probe)
        if number % step and number != len(rows):
            continue
        log_es.update({probe: probe_evidence(span.states[probe].counts, effect, rules) for probe in changed})
        changed.clear()
        probes = sorted(log_es)
        whole, without_one = 0.0, 0.0
        if probes:
            found_now = strength([log_es[p] for p in probes], _groups(probes, components), rules)
            whole, without_one = found_now.whole, found_now.without_one
        found.append(
            PairEvidence(
                sequence=first + number - 1,
                log10_e=whole / math.log(10),
                log10_e_without_one=without_one / math.log(10),
            )
        )
    return tuple(found)


def _groups(probes: Sequence[str], components: Mapping[str, str]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for index, probe in enumerate(probes):
        groups.setdefault(components.get(probe, ""), []).append(index)
    return list(groups.values())

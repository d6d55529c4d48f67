# SPDX-License-Identifier: EUPL-1.2
"""The past of a cell, computed again from its scored pairs: hour by hour, and pair by pair.

Pure. An hour's point is the same whether it is written as the hour passes or rewritten after a late upload.
Spec: spec/api.md, section "Judging".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
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
class Folded:
    """A cell's pairs up to some moment: the states of its test pairs, and its counts for pictures."""

    states: dict[str, ProbeState] = field(default_factory=dict)
    extras: Extras = field(default_factory=Extras)
    changed: set[str] = field(default_factory=set)
    """Probes with test pairs in the newest hour that has any."""


def unfold(states: Mapping[str, ProbeState], extras: Extras, rows: Sequence[PairRow], rules: Rules = RULES) -> Folded:
    """The cell as it stood before its newest pairs: copies, from which `rows` are taken back as they were counted.

    Everything counted is an integer, so this is exact, and it costs what the newest pairs cost, however many came
    before them.
    """
    before = Folded(dict(states), Extras.from_dict(extras.to_dict()))
    for row in rows:
        before.extras.add(row, -1)
        probe = row.pair.probe
        if row.pair.kind != "test" or row.scored is None:
            continue
        if probe not in before.changed:
            before.states[probe] = ProbeState.from_dict(states[probe].to_dict())
            before.changed.add(probe)
        before.states[probe].remove(row.pair, row.scored, rules)
        if not before.states[probe].counts.pairs:
            # Its oldest pair: nothing of it is left to be taken back.
            del before.states[probe]
    return before


def by_hour(folded: Folded, rows: Sequence[PairRow], rules: Rules = RULES) -> Iterator[tuple[int, Folded]]:
    """The cell at the end of each hour in which `rows` (by start) has test pairs; it begins as `folded`.

    The same object is handed out again and again, with more in it each time.
    """
    for bucket, group in itertools.groupby(rows, key=lambda row: hour_of(row.pair.started_ms)):
        folded.changed.clear()
        for row in group:
            folded.extras.add(row)
            if row.pair.kind == "test":
                _count(folded.states, row, rules)
                folded.changed.add(row.pair.probe)
        if folded.changed:
            yield bucket, folded


def _count(states: dict[str, ProbeState], row: PairRow, rules: Rules) -> None:
    if row.scored is None:
        raise ValueError("a pair that was never scored cannot be counted")
    states.setdefault(row.pair.probe, ProbeState()).add(row.pair, row.scored, rules)


def by_pair(
    rows: Sequence[PairRow], effect: Effect, components: Mapping[str, str], rules: Rules = RULES
) -> tuple[PairEvidence, ...]:
    """The cell's evidence after each pair (every so-manieth where they are many); `rows` by start.

    `components` name each probe's network; probes that it does not name are one network together.
    """
    states: dict[str, ProbeState] = {}
    log_es: dict[str, float] = {}
    found: list[PairEvidence] = []
    step = max(1, math.ceil(len(rows) / MOST_POINTS))
    changed: set[str] = set()
    for sequence, row in enumerate(rows, start=1):
        if row.pair.kind == "test":
            _count(states, row, rules)
            changed.add(row.pair.probe)
        if sequence % step and sequence != len(rows):
            continue
        log_es.update({probe: probe_evidence(states[probe].counts, effect, rules) for probe in changed})
        changed.clear()
        probes = sorted(log_es)
        whole, without_one = 0.0, 0.0
        if probes:
            found_now = strength([log_es[p] for p in probes], _groups(probes, components), rules)
            whole, without_one = found_now.whole, found_now.without_one
        found.append(
            PairEvidence(
                sequence=sequence,
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

# SPDX-License-Identifier: EUPL-1.2
"""Pairs in, verdicts out: scoring, states and assessments put together, one pair at a time.

The collector feeds it as receipts and measurements arrive, file readers in the order of starts; both get what
`spec/statistics.md` defines. Holds everything in memory and does no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, tzinfo

from analysis.cells import Assessment, assess
from analysis.gates import Setting, mixed_placebo
from analysis.pairs import CellKey, OrderHistory, Pair, Scored, in_order, score
from analysis.plan import DEFAULT_PLAN, HypothesisPlan
from analysis.probes import ProbeState, Standing, placebo_evidence, summarise
from analysis.rules import RULES, Rules
from analysis.running import RunningCell
from analysis.verdict import CellVerdict, decide
from probe.wire.records import Access, Direction, PairKind

Zones = Callable[[CellKey], tzinfo | None]
"""The operator's time zone; None where it is not known (then UTC)."""


def no_zones(cell: CellKey) -> tzinfo | None:
    """No zone is known: everything in UTC."""
    del cell
    return None


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What only a collector knows of a probe."""

    vetted: bool = False
    standing: Standing = "hash"


@dataclass(slots=True)
class Ledger:
    """All pairs of all cells, scored. `put` again with the same pair id replaces what was known of it."""

    zones: Zones = no_zones
    rules: Rules = RULES
    lost_known: bool = True
    """False where no list of started pairs is at hand."""
    _states: dict[tuple[CellKey, PairKind], dict[str, ProbeState]] = field(default_factory=dict)
    _histories: dict[tuple[CellKey, PairKind, str], OrderHistory] = field(default_factory=dict)
    _known: dict[tuple[str, int], tuple[Pair, Scored]] = field(default_factory=dict)
    _first: dict[CellKey, int] = field(default_factory=dict)
    """When the first pair of each cell started."""
    _running: dict[CellKey, RunningCell] = field(default_factory=dict)

    def put(self, pair: Pair) -> Scored:
        """Score and count a pair, or what is now known of it. O(log n).

        Its midpoint m is frozen when its receipt is first put, from the receipts known then; a measurement that
        comes later changes nothing but "lost". Returns the score.
        """
        before = self._known.get(pair.id)
        frozen = None
        if before is not None:
            self._remove(*before)
            # Without its receipt a pair has no place in the order history yet; with it, m stays as it was.
            frozen = before[1].midpoint if before[0].received and before[0].cell == pair.cell else None
        history = self._histories.setdefault((pair.cell, pair.kind, pair.probe), OrderHistory(self.rules))
        scored = score(history, pair, self.zones(pair.cell) or UTC, midpoint=frozen, rules=self.rules)
        if frozen is None:
            history.add(pair)
        states = self._states.setdefault((pair.cell, pair.kind), {})
        states.setdefault(pair.probe, ProbeState()).add(pair, scored, self.rules)
        if pair.kind == "test" and pair.cell in self._running:
            self._running[pair.cell].add(pair, scored)
        self._known[pair.id] = (pair, scored)
        self._first[pair.cell] = min(self._first.get(pair.cell, pair.started_ms), pair.started_ms)
        return scored

    def _remove(self, pair: Pair, scored: Scored) -> None:
        states = self._states[pair.cell, pair.kind]
        states[pair.probe].remove(pair, scored, self.rules)
        if pair.kind == "test" and pair.cell in self._running:
            self._running[pair.cell].remove(pair, scored)
        if not states[pair.probe].counts.pairs:
            del states[pair.probe]

    def adopt(self, cell: CellKey, kind: PairKind, probe: str, *, state: ProbeState, first_ms: int) -> None:
        """Take over what was counted elsewhere of a probe that is not here: its pairs are not known one by one."""
        if probe in self._states.setdefault((cell, kind), {}):
            raise ValueError("a probe that has pairs here cannot be adopted")
        self._states[cell, kind][probe] = state
        self._first[cell] = min(self._first.get(cell, first_ms), first_ms)

    def follow(self, cell: CellKey) -> RunningCell:
        """The cell's evidence, from now on kept up to date with every pair at a cost that does not grow with them.

        Networks are told by hashes alone, as on files. Costs O(pairs) the first time.
        """
        if cell not in self._running:
            running = RunningCell(self.rules)
            for pair, scored in self.scores(cell):
                running.add(pair, scored)
            self._running[cell] = running
        return self._running[cell]

    def cells(self) -> list[CellKey]:
        """Cells with test pairs, in a fixed order."""
        return sorted((c for (c, kind), s in self._states.items() if kind == "test" and s), key=lambda c: c.order)

    def states(self, cell: CellKey, kind: PairKind = "test") -> Mapping[str, ProbeState]:
        """The probes of a cell."""
        return self._states.get((cell, kind), {})

    def scores(self, cell: CellKey, kind: PairKind = "test") -> list[tuple[Pair, Scored]]:
        """The cell's pairs with their scores, by start: for pictures and tables."""
        found = [(p, s) for p, s in self._known.values() if p.cell == cell and p.kind == kind]
        return sorted(found, key=lambda entry: entry[0].order)

    def cell_order(self) -> dict[CellKey, int]:
        """Each cell's place by its first started pair: fixed before any of its coins."""
        ranked = sorted(self._first, key=lambda cell: (self._first[cell], cell.order))
        return {cell: place for place, cell in enumerate(ranked, start=1)}

    def operator_order(self) -> dict[CellKey, int]:
        """Each cell's operator's place by its first started pair: a register for those who have none."""
        places: dict[tuple[str, int | None], int] = {}
        found = {}
        for cell in self.cell_order():
            found[cell] = places.setdefault((cell.operator, cell.asn), len(places) + 1)
        return found

    def assessments(self, enrolment: Mapping[str, Enrolment] | None = None) -> list[Assessment]:
        """Each cell and effect, short of the selection of cases."""
        placebo = self._placebo()
        known = enrolment or {}
        found = []
        for cell in self.cells():
            setting = Setting(
                placebo=placebo.get((cell.operator, cell.asn, cell.direction, cell.access), ()),
                lost_known=self.lost_known,
                zone_known=self.zones(cell) is not None,
            )
            probes = []
            for probe, state in self.states(cell).items():
                who = known.get(probe, Enrolment())
                probes.append(summarise(probe, state, vetted=who.vetted, standing=who.standing, rules=self.rules))
            found += [assess(cell, effect, probes, setting, rules=self.rules) for effect in self.rules.effects]
        return found

    def _placebo(self) -> dict[tuple[str, int | None, Direction, Access], tuple[ProbeState, ...]]:
        """Placebo pairs say something of the neutral names, so they count for all apps of a line.

        Only those that raise the alarm, for each cell and effect computes it anew.
        """
        found: dict[tuple[str, int | None, Direction, Access], list[ProbeState]] = {}
        for (cell, kind), states in self._states.items():
            if kind == "placebo":
                line = (cell.operator, cell.asn, cell.direction, cell.access)
                found.setdefault(line, []).extend(states.values())
        return {
            line: alarming(states, placebo_evidence(states, self.rules), self.rules) for line, states in found.items()
        }

    def verdicts(
        self, plan: HypothesisPlan = DEFAULT_PLAN, *, enrolment: Mapping[str, Enrolment] | None = None
    ) -> list[CellVerdict]:
        """The verdict of every cell and effect; operators and cells take their places by their first pairs."""
        places, orders = self.operator_order(), self.cell_order()
        return decide(self.assessments(enrolment), plan, places.__getitem__, order=orders.__getitem__, rules=self.rules)


def alarming(states: Sequence[ProbeState], evidence: Sequence[float], rules: Rules = RULES) -> tuple[ProbeState, ...]:
    """None unless the states of a line's placebo pairs raise the alarm together; else the strongest that suffice.

    `evidence` is each one's from `placebo_evidence`. A cell and effect computes the alarm anew from what it is given:
    this keeps that cheap, and changes nothing in whether there is one.
    """
    alarm = math.log(rules.indication)
    if mixed_placebo(evidence, rules) < alarm:
        return ()
    ranked = sorted(range(len(states)), key=lambda i: -evidence[i])
    size = 1
    while mixed_placebo([evidence[i] for i in ranked[:size]], rules) < alarm:
        size *= 2
    return tuple(states[i] for i in ranked[:size])


def judge(
    pairs: Iterable[Pair],
    plan: HypothesisPlan = DEFAULT_PLAN,
    *,
    zones: Zones = no_zones,
    lost_known: bool = True,
    rules: Rules = RULES,
) -> list[CellVerdict]:
    """Judge a finished set of pairs, whatever their order."""
    ledger = Ledger(zones=zones, rules=rules, lost_known=lost_known)
    for pair in in_order(pairs):
        ledger.put(pair)
    return ledger.verdicts(plan)

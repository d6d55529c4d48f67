# SPDX-License-Identifier: EUPL-1.2
"""One played run, judged as the product judges: look by look, until the last pair.

Nothing here decides anything. Pairs go through `analysis.judge.Ledger` in the order of their starts, and at each
look the cases are selected by `analysis.verdict.decide` with the row's cells at the worst place of their plan.
spec/accuracy.md section 4.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from typing import Any, Final

from analysis.cells import Assessment
from analysis.evidence import probe_evidence
from analysis.gates import strength
from analysis.judge import Ledger
from analysis.pairs import CellKey, Pair
from analysis.plan import DEFAULT_PLAN, HypothesisPlan
from analysis.probes import ProbeState
from analysis.rules import RULES, Rules
from analysis.verdict import CellVerdict, decide
from lab.accuracy import counterfactual, rival
from lab.accuracy.model import Measure, Run
from lab.accuracy.reading import judging_of

EFFECTS_OF_A_CELL: Final = 4
"""slowing, blocking, prioritising, tampering: so many hypotheses each cell has."""
CELLS_OF_AN_OPERATOR: Final = 3
BOUNDS: Final = ("last", "first", "equal")
"""At which threshold a case would open: as the last of the study's hypotheses in the default plan (what counts
everywhere), as the first cell of the first operator there, and with an equal share 1/hypotheses each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the row's cells stand among the hypotheses that share the budget."""

    operator: int
    order: int
    hypotheses: int

    @classmethod
    def last(cls, hypotheses: int) -> Place:
        """The worst: all other cells started before, three to an operator. 36 make the 9th cell, 3rd operator."""
        cells = math.ceil(hypotheses / EFFECTS_OF_A_CELL)
        return cls(operator=math.ceil(cells / CELLS_OF_AN_OPERATOR), order=cells, hypotheses=hypotheses)

    def decide(
        self, assessments: Sequence[Assessment], plan: HypothesisPlan = DEFAULT_PLAN, rules: Rules = RULES
    ) -> list[CellVerdict]:
        """The product's selection with *every* cell at this place: each of several has at most what it would get."""
        return decide(assessments, plan, lambda _: self.operator, order=lambda _: self.order, rules=rules)

    def log_needed(self, cell: CellKey, effect: Any, bound: str, plan: HypothesisPlan, rules: Rules) -> float:
        """log e at which the hypothesis alone would open; what `BOUNDS` names."""
        if bound == "equal":
            return math.log(self.hypotheses / rules.alpha)
        place, order = (self.operator, self.order) if bound == "last" else (1, 1)
        unnamed = 1.0 if cell.app in plan.named else 7.0  # the first of the unplanned apps has 1/7 of the remainder
        return -math.log(rules.alpha) - plan.log_weight(cell, effect, place, unnamed, order=order)


@dataclass(slots=True, kw_only=True)
class CellResult:
    """One effect of one app in one run."""

    state: str = "insufficient"
    reasons: tuple[str, ...] = ()
    opened: dict[str, int] = field(default_factory=dict)
    """Pairs of each probe at which the case opened first, by bound; absent where it never did."""
    octets: int | None = None
    """Bytes of the cell's pairs, of all probes, until the case opened as the last of the hypotheses."""
    log_e: float = 0.0
    """At the end, all probes together."""
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    """Slowdown and its interval at the end; low and high None where unbounded."""
    without: dict[str, str] = field(default_factory=dict)
    """State at the end had one gate been left out."""

    @property
    def accused(self) -> bool:
        """Whether a case was open at any look."""
        return "last" in self.opened


@dataclass(slots=True, kw_only=True)
class Judged:
    """One run, judged. Small: it travels between processes."""

    repeat: int
    void: str | None = None
    cells: dict[str, list[CellResult]] = field(default_factory=dict)
    """By "app:effect"; several where the row has several operators."""
    streams: int = 0
    """Probes times apps: each is a stream of pairs of its own."""
    crossed: dict[str, int] = field(default_factory=dict)
    """Streams whose own evidence reached 20 at any look, by "app:effect"; "any" counts a stream once."""
    largest: list[float] = field(default_factory=list)
    """The largest log E that each stream ever reached, of its effects."""
    samples: dict[str, dict[int, int]] = field(default_factory=dict)
    """How often each y (in thousandths) occurred, by app."""
    delays: dict[str, dict[int, int]] = field(default_factory=dict)
    """The same of concurrent pairs, in steps of 0.1 ms."""
    pairs: int = 0
    lost: int = 0
    octets: int = 0
    placebo_alarm: bool | None = None
    """None without placebo pairs."""
    peer: Counter[str] = field(default_factory=Counter)
    """What Wehe's client rule says of the same segments: see `rival`."""


def _utc(cell: CellKey) -> tzinfo:
    del cell
    return UTC


class _Looks:
    """The state between two looks at one run."""

    def __init__(self, run: Run, measure: Measure, plan: HypothesisPlan, rules: Rules) -> None:
        self.ledger = Ledger(zones=_utc, rules=rules, lost_known=run.lost_known)
        self.place = Place.last(measure.hypotheses)
        self.plan, self.rules, self.probes = plan, rules, measure.probes
        self.evidence: dict[CellKey, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
        self.most: dict[tuple[CellKey, str], dict[str, float]] = defaultdict(dict)
        self.pairs: Counter[CellKey] = Counter()
        self.octets: Counter[CellKey] = Counter()
        self.placebo: set[CellKey] = set()
        self.results: dict[tuple[CellKey, str], CellResult] = {}

    def put(self, pair: Pair, octets: int) -> None:
        """Count a pair, and look where each probe has had its turn."""
        self.ledger.put(pair)
        self.octets[pair.cell] += octets
        if pair.kind != "test":
            self.placebo.add(pair.cell)
            return
        self.pairs[pair.cell] += 1
        counts = self.ledger.states(pair.cell)[pair.probe].counts
        ever = self.most[pair.cell, pair.probe]
        for effect in self.rules.effects:
            log_e = probe_evidence(counts, effect, self.rules)
            self.evidence[pair.cell][effect][pair.probe] = log_e
            ever[effect] = max(ever.get(effect, 0.0), log_e)
        if self.pairs[pair.cell] % self.probes == 0:
            self.look(pair.cell)

    def look(self, cell: CellKey) -> None:
        """Whether a case is open now, under each bound. What cannot be one is not judged in full."""
        if not any(self._might_open(cell, effect) for effect in self.rules.effects):
            return
        assessments = self.ledger.assessments()
        opened = {(v.assessment.cell, v.assessment.effect): v.is_case for v in self._decide(assessments)}
        for a in assessments:
            result = self.result(a.cell, a.effect)
            number = math.ceil(self.pairs[a.cell] / self.probes)
            for bound in BOUNDS:
                alone = a.log_case_e >= self.place.log_needed(a.cell, a.effect, bound, self.plan, self.rules)
                if opened[a.cell, a.effect] if bound == "last" else alone:
                    result.opened.setdefault(bound, number)
            if result.accused and result.octets is None:
                result.octets = self.octets[a.cell]

    def _might_open(self, cell: CellKey, effect: str) -> bool:
        """An upper bound of what the selection could see: gates passed, each probe a network, all cells cases."""
        if len(self.result(cell, effect).opened) == len(BOUNDS):
            return False
        log_es = list(self.evidence[cell][effect].values())
        found = strength(log_es, [[index] for index in range(len(log_es))], self.rules).without_one
        least = min(self.place.log_needed(cell, effect, bound, self.plan, self.rules) for bound in BOUNDS)
        return found >= least - math.log(max(1, len(self.evidence) * len(self.rules.effects)))

    def _decide(self, assessments: Sequence[Assessment]) -> list[CellVerdict]:
        return self.place.decide(assessments, self.plan, self.rules)

    def result(self, cell: CellKey, effect: str) -> CellResult:
        return self.results.setdefault((cell, effect), CellResult())

    def finish(self) -> list[Assessment]:
        """The last look, whatever is known by then."""
        for cell in self.pairs:
            self.look(cell)
        assessments = self.ledger.assessments()
        for verdict in self._decide(assessments):
            a = verdict.assessment
            result = self.result(a.cell, a.effect)
            result.state, result.reasons = verdict.state, tuple(verdict.reasons)
            result.log_e = round(a.strength.whole, 4)
            result.estimate, result.low, result.high = a.interval.slowdown()
        return assessments

    def placebo_alarm(self, assessments: Sequence[Assessment]) -> bool | None:
        """Whether neutral names seem not to be treated alike on any of the lines."""
        return any("placebo_alarm" in a.gates for a in assessments) if self.placebo else None


def judge_run(
    run: Run,
    measure: Measure,
    options: Mapping[str, Any],
    *,
    expected: Set[tuple[str, str]] = frozenset(),
    plan: HypothesisPlan = DEFAULT_PLAN,
    rules: Rules = RULES,
) -> Judged:
    """Judge one run look by look."""
    if run.void:
        return Judged(repeat=run.repeat, void=run.void)
    looks = _Looks(run, measure, plan, rules)
    for played in sorted(run.played, key=lambda one: one.pair.order):
        looks.put(played.pair, played.octets)
    assessments = looks.finish()
    for name in judging_of(options):
        _leave_out(name, looks, assessments, [one.pair for one in run.played])
    judged = Judged(
        repeat=run.repeat,
        cells=_named(looks.results),
        streams=len(looks.most),
        pairs=sum(looks.pairs.values()),
        lost=sum(one.pair.lost for one in run.played if one.pair.kind == "test"),
        octets=sum(looks.octets.values()),
        placebo_alarm=looks.placebo_alarm(assessments),
        peer=rival.counted(run, {app for app, _ in expected}),
    )
    _streams(judged, looks)
    return judged


def _named(results: Mapping[tuple[CellKey, str], CellResult]) -> dict[str, list[CellResult]]:
    named: dict[str, list[CellResult]] = {}
    for cell, effect in sorted(results, key=lambda key: (key[0].order, key[1])):
        named.setdefault(f"{cell.app}:{effect}", []).append(results[cell, effect])
    return named


def _streams(judged: Judged, looks: _Looks) -> None:
    """What each probe's own evidence ever reached, and the sizes of its pairs."""
    threshold = math.log(looks.rules.indication)
    for (cell, probe), ever in sorted(looks.most.items(), key=lambda entry: (entry[0][0].order, entry[0][1])):
        high = [effect for effect, log_e in ever.items() if log_e >= threshold]
        for effect in high:
            judged.crossed[f"{cell.app}:{effect}"] = judged.crossed.get(f"{cell.app}:{effect}", 0) + 1
        if high:
            judged.crossed["any"] = judged.crossed.get("any", 0) + 1
        judged.largest.append(round(max(ever.values()), 4))
        count_sizes(judged, cell, looks.ledger.states(cell)[probe])


def count_sizes(judged: Judged, cell: CellKey, state: ProbeState) -> None:
    """Add what one probe's pairs measured."""
    for table, sample in ((judged.samples, state.sample), (judged.delays, state.delays)):
        bins = table.setdefault(cell.app, {})
        for step, count in sample.bins.items():
            bins[step] = bins.get(step, 0) + count


def _leave_out(name: str, looks: _Looks, assessments: Sequence[Assessment], pairs: Sequence[Pair]) -> None:
    """The states at the end had this gate not been looked at."""
    if counterfactual.changes_pairs(name):
        ledger = Ledger(zones=_utc, rules=looks.rules, lost_known=looks.ledger.lost_known)
        for pair in sorted(counterfactual.cleared(pairs, name), key=lambda one: one.order):
            ledger.put(pair)
        assessments = ledger.assessments()
    lifted = counterfactual.lifted(assessments, name)
    for verdict in looks.place.decide(lifted, looks.plan, looks.rules):
        looks.result(verdict.assessment.cell, verdict.assessment.effect).without[name] = verdict.state

# SPDX-License-Identifier: EUPL-1.2
"""Which cells are open cases, and the life of a case: onset, support, alert, end.

Selection is weighted e-BH over all hypotheses that ever get data (Wang and Ramdas, "False discovery rate control
with e-values", 2022): with weights γ that sum to at most 1 and were settled before the data, at most a share α of
the open list is false in expectation, at any time one looks and whatever depends on what. A case that was closed
leaves the list for good; `analysis.episodes` tells how the same hypothesis may become another case.
Spec: spec/statistics.md, sections "Cases", "Episodes" and "Alerts".
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from analysis.episodes import Episode, after
from analysis.evidence import end_evidence, start_terms
from analysis.gates import strength
from analysis.networks import grouped
from analysis.pairs import CellKey
from analysis.probes import ProbeSummary
from analysis.rules import RULES, Rules
from probe.wire.records import Effect

Status = Literal["open", "ended", "withdrawn", "corrected"]
EventKind = Literal["opened", "alerted", "no_longer_supported", "supported_again", "ended"]
"""`alerted`: the event is told to whoever asked to be woken; its ending is the only other thing they are told."""
Key = tuple[CellKey, Effect]


def select(evidence: Sequence[tuple[float, float]], alpha: float = RULES.alpha) -> frozenset[int]:
    """Indices of the hypotheses that are open cases, given each one's (log e, log γ).

    Opens the largest k for which the k-th largest e·γ is at least 1/(α·k). O(n log n).
    """
    scores = [log_e + log_weight for log_e, log_weight in evidence]
    ranked = sorted(range(len(scores)), key=lambda i: -scores[i])
    opened = 0
    for k, index in enumerate(ranked, start=1):
        if scores[index] >= -math.log(alpha * k):
            opened = k
    return frozenset(ranked[:opened])


def needed(log_weight: float, open_cases: int, alpha: float = RULES.alpha) -> float:
    """log e that a hypothesis needs to join a list of which `open_cases` are open: 1/(α·(open + 1)·γ)."""
    return -math.log(alpha * (open_cases + 1)) - log_weight


def onset(probes: Sequence[ProbeSummary], effect: Effect, rules: Rules = RULES) -> int | None:
    """The start day (proleptic ordinal) with the largest term, over the probes that show the effect.

    None without pairs. The earliest day wins a tie.
    """
    witnesses = [p for p in probes if p.slowed(effect, rules)] or list(probes)
    terms = [start_terms(p.state.counts, effect, rules) for p in witnesses]
    days = sorted({day for term in terms for day in term})
    totals = dict.fromkeys(days, 0.0)
    for term in terms:
        # A start day without pairs of this probe bets like its next day with some; after its last, not at all.
        upcoming = 0.0
        for day in reversed(days):
            upcoming = term.get(day, upcoming)
            totals[day] += upcoming
    return max(days, key=lambda day: (totals[day], -day), default=None)


def end_strength(probes: Sequence[ProbeSummary], effect: Effect, opened_day: int, rules: Rules = RULES) -> float:
    """log evidence that the treatment has ended since `opened_day`, without the network that says so loudest.

    `probes` are the case's witnesses: those that showed the effect when it was opened. One of them alone can
    end nothing, as one alone can open nothing.
    """
    if not probes:
        return 0.0
    log_es = [end_evidence(p.state.counts, effect, opened_day, rules) for p in probes]
    return strength(log_es, grouped(probes), rules).without_one


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of a case's history, which is only ever added to."""

    at_ms: int
    kind: EventKind
    rule: str
    inputs: str
    """Digest of the inputs that were judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A cell and effect whose evidence passed every gate and the selection."""

    id: str
    cell: CellKey
    effect: Effect
    status: Status
    supported: bool
    """False: it is not on the list at present ("no longer supported"), though nothing says that it ended."""
    onset_day: int
    opened_day: int
    witnesses: tuple[str, ...]
    """The probes that showed the effect when it was opened: its end is looked for at them."""
    history: tuple[Event, ...]
    closed_day: int | None = None
    """The day on which it ended, was withdrawn or corrected: from the next one on a new case may be found."""
    episode: int = 1
    """Which of the hypothesis' cases it is."""
    retrospective: bool = False
    """It was opened by data that are older than the rule which judged them."""

    @property
    def alerted(self) -> bool:
        """Whether anybody was alerted to it."""
        return any(event.kind == "alerted" for event in self.history)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one judging says of a hypothesis that is a case or was one."""

    supported: bool
    onset_day: int
    witnesses: tuple[str, ...]
    log_end: float = 0.0
    """From `end_strength` with the case's own witnesses and opening day; 0 for a case not yet open."""
    episode: Episode = field(default_factory=Episode)
    """The episode whose evidence this is (`episode_of`)."""
    alarm: bool = False
    """Whether the detector of `analysis.alerts` has reached its threshold."""
    retrospective: bool = False
    """Whether some of the data are older than the rule."""


def episode_of(cases: Iterable[Case]) -> Episode:
    """The episode in which a hypothesis with these cases stands: that of its open case, else the next one."""
    return after([case.closed_day or case.opened_day for case in cases if case.status != "open"])


def case_id(cell: CellKey, effect: Effect, opened_ms: int) -> str:
    """A permanent address: the same wherever the same case is opened again from the same history."""
    text = json.dumps([*cell.order, effect, opened_ms], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def update_cases(
    cases: Iterable[Case],
    findings: Mapping[Key, Finding],
    *,
    now_ms: int,
    today: int,
    inputs: str,
    rules: Rules = RULES,
) -> list[Case]:
    """Apply one judging: open, alert, mark as no longer supported or supported again, end. Nothing is rewritten.

    A case that was withdrawn, corrected or has ended is left alone; the hypothesis becomes a new case only by a
    finding of a later episode, that is with evidence of the days after the closing. `today` is in the operator's
    local time, like `onset_day`.
    """

    def event(kind: EventKind) -> Event:
        return Event(at_ms=now_ms, kind=kind, rule=rules.name, inputs=inputs)

    updated = []
    known: dict[Key, list[Case]] = {}
    for case in cases:
        known.setdefault((case.cell, case.effect), []).append(case)
        finding = findings.get((case.cell, case.effect))
        updated.append(case if finding is None else _progress(case, finding, event, today, rules))
    for key, finding in findings.items():
        before = known.get(key, [])
        if not finding.supported or any(case.status == "open" for case in before):
            continue
        if finding.episode == episode_of(before):
            updated.append(_opened(key, finding, event, now_ms, today))
    return updated


def _opened(key: Key, finding: Finding, event: Callable[[EventKind], Event], now_ms: int, today: int) -> Case:
    cell, effect = key
    case = Case(
        id=case_id(cell, effect, now_ms),
        cell=cell,
        effect=effect,
        status="open",
        supported=True,
        onset_day=finding.onset_day,
        opened_day=today,
        witnesses=finding.witnesses,
        history=(event("opened"),),
        episode=finding.episode.number,
        retrospective=finding.retrospective,
    )
    return _alerted(case, finding, event)


def _alerted(case: Case, finding: Finding, event: Callable[[EventKind], Event]) -> Case:
    """Alert once, while the case is open and supported: whatever it does afterwards is no new event."""
    if not finding.alarm or not case.supported or case.alerted:
        return case
    return replace(case, history=(*case.history, event("alerted")))


def _progress(case: Case, finding: Finding, event: Callable[[EventKind], Event], today: int, rules: Rules) -> Case:
    if case.status != "open":
        return case
    if finding.log_end >= math.log(rules.end_evidence):
        return replace(case, status="ended", closed_day=today, history=(*case.history, event("ended")))
    if finding.supported != case.supported:
        kind: EventKind = "supported_again" if finding.supported else "no_longer_supported"
        case = replace(case, supported=finding.supported, history=(*case.history, event(kind)))
    return _alerted(case, finding, event)

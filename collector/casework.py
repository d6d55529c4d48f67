# SPDX-License-Identifier: EUPL-1.2
"""Which hypotheses are open cases, and the life of each case, written down as it happens.

Selection is `analysis.cases.select` over every hypothesis that has data; a case's history is only ever added to.
Spec: spec/statistics.md, section "Cases"; spec/api.md, section "Cases".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from analysis.cases import Case, Event, Finding, end_strength, needed, onset, select, update_cases
from analysis.cells import Assessment
from analysis.probes import ProbeSummary
from analysis.rules import Rules, digest_of_inputs
from collector.cellbook import Cell
from collector.mind import Key
from collector.model import CaseEvent, CellView, OutboxCase
from collector.register import Networks
from collector.store.base import Book, CaseNumbers, CaseRow, Hypothesis
from collector.views import log10, shown_case
from probe.wire.records import Effect


def reselect(hypotheses: dict[Key, Hypothesis], rules: Rules) -> list[Key]:
    """Put the list of open cases in order; the hypotheses that joined or left it."""
    keys = sorted(hypotheses)
    listed = select([(hypotheses[key].log_e, hypotheses[key].log_weight) for key in keys], rules.alpha)
    changed = [key for index, key in enumerate(keys) if hypotheses[key].listed != (index in listed)]
    for key in changed:
        hypotheses[key] = replace(hypotheses[key], listed=not hypotheses[key].listed)
    return changed


@dataclass(frozen=True, slots=True)
class Listing:
    """When a cell and effect was an open case: hour from which on, and whether it was."""

    changes: tuple[tuple[int, bool], ...] = ()
    ended: bool = False

    def at(self, bucket_ms: int) -> bool:
        """Whether it was one at the end of the hour that begins at `bucket_ms`."""
        return next((listed for since, listed in reversed(self.changes) if since <= bucket_ms), False)


_LISTS = {"opened": True, "supported_again": True, "no_longer_supported": False, "ended": False, "withdrawn": False}


def listing(cases: list[CaseRow], book: Book) -> Listing:
    """Read it from the cases' histories."""
    changes = [
        (as_of_ms, _LISTS[event.what])
        for row in cases
        for as_of_ms, event in book.events(row.case.id)
        if event.what in _LISTS
    ]
    return Listing(tuple(changes), ended=bool(cases) and cases[-1].case.status == "ended")


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """A cell and effect after its cases were followed: when it was listed, its last case, what is new of it."""

    listing: Listing
    case: CaseRow | None = None
    news: tuple[CaseEvent, ...] = ()


def follow(
    book: Book,
    cell: Cell,
    found: Assessment,
    hypotheses: Mapping[Key, Hypothesis],
    networks: Networks,
    *,
    bucket_ms: int,
    now_ms: int,
    rules: Rules,
) -> Followed:
    """Open, keep, or end the cases of one hypothesis. `bucket_ms` is the newest hour judged, `now_ms` the clock."""
    hypothesis = hypotheses[cell.row.id, found.effect]
    cases = book.cases_of(cell.row.id, found.effect)
    if not hypothesis.listed and not cases:
        return Followed(listing=Listing())
    numbers = _numbers(found, hypotheses, hypothesis, rules)
    # A cell's number may have changed in the register since: it is still this cell's case.
    known = [replace(row.case, cell=cell.key) for row in cases]
    finding = _finding(cell, found.effect, known, cell.summaries(networks), supported=hypothesis.listed, rules=rules)
    after = update_cases(
        known,
        {(cell.key, found.effect): finding},
        now_ms=now_ms,
        today=datetime.fromtimestamp(now_ms / 1000, tz=UTC).astimezone(cell.zone).date().toordinal(),
        inputs="",
        rules=rules,
    )
    news: list[CaseEvent] = []
    for index, case in enumerate(after):
        old = known[index].history if index < len(known) else ()
        if case.status == "open" or len(case.history) > len(old):
            news = _keep(book, cell, case, found=found, numbers=numbers, old=len(old), bucket_ms=bucket_ms)
    cases = book.cases_of(cell.row.id, found.effect)
    return Followed(listing=listing(cases, book), case=cases[-1], news=tuple(news))


def _numbers(found: Assessment, hypotheses: Mapping[Key, Hypothesis], own: Hypothesis, rules: Rules) -> CaseNumbers:
    others = sum(h.listed for h in hypotheses.values()) - own.listed
    threshold = needed(own.log_weight, others, rules.alpha)
    return CaseNumbers(
        smallest_coalition=found.strength.coalition,
        hypotheses=len(hypotheses),
        # A cell whose weight was taken away has no threshold it could reach; JSON knows no infinity.
        threshold_log10_e=log10(min(threshold, 300 * math.log(10))),
    )


def _finding(
    cell: Cell, effect: Effect, known: list[Case], summaries: list[ProbeSummary], *, supported: bool, rules: Rules
) -> Finding:
    log_end = 0.0
    if known and known[-1].status == "open":
        witnesses = [s for s in summaries if s.probe in known[-1].witnesses]
        log_end = end_strength(witnesses, effect, known[-1].opened_day, rules)
    return Finding(
        supported=supported,
        onset_day=onset(summaries, effect, rules) or 1,
        witnesses=tuple(sorted(s.probe for s in summaries if s.slowed(effect, rules))),
        log_end=log_end,
    )


def _keep(
    book: Book, cell: Cell, case: Case, *, found: Assessment, numbers: CaseNumbers, old: int, bucket_ms: int
) -> list[CaseEvent]:
    """Write a case and what is new of it; the digest of its inputs is made only where something is."""
    news: list[CaseEvent] = []
    if len(case.history) > old:
        inputs = digest_of_inputs(book.digests(cell.row.id))
        fresh = tuple(replace(event, inputs=inputs) for event in case.history[old:])
        case = replace(case, history=(*case.history[:old], *fresh))
        news = [_event(event, case, found) for event in fresh]
    book.put_case(CaseRow(cell=cell.row.id, case=case, numbers=numbers))
    for event in news:
        book.add_event(case.id, event, as_of_ms=bucket_ms)
    return news


def _event(event: Event, case: Case, found: Assessment) -> CaseEvent:
    listed = case.status == "open" and case.supported
    return CaseEvent(
        at_ms=event.at_ms,
        what=event.kind,
        state="corroborated" if listed else found.base,
        log10_e=log10(found.strength.whole),
        rule=event.rule,
        inputs=event.inputs,
        reason="" if listed or event.kind == "ended" else next(iter(found.gates), "below_case_threshold"),
        log10_e_without_one=log10(found.strength.without_one),
    )


def announcements(book: Book, followed: Followed, view: CellView) -> list[OutboxCase]:
    """What is new of a case, for whoever is told: each event with the case as it is shown now."""
    if followed.case is None or not followed.news:
        return []
    history = tuple(event for _, event in book.events(followed.case.case.id))
    shown = shown_case(followed.case, view, history)
    return [OutboxCase(case=shown, event=event) for event in followed.news]

# SPDX-License-Identifier: EUPL-1.2
"""Which hypotheses are open cases, and the life of each case, written down as it happens.

Selection is `analysis.cases.select` over every hypothesis that has data; a case's history is only ever added to, and
a case that was closed is not touched again. Spec: spec/statistics.md, sections "Cases", "Episodes" and "Alerts";
spec/api.md, section "Cases".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from analysis.alerts import log_detector, log_needed
from analysis.cases import Case, Event, Finding, end_strength, needed, onset, select, update_cases
from analysis.cells import Assessment
from analysis.rules import Rules, digest_of_inputs
from collector.cellbook import Cell
from collector.eras import CLOSINGS, dated, day_of
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

    def at(self, bucket_ms: int) -> bool:
        """Whether it was one at the end of the hour that begins at `bucket_ms`."""
        return next((listed for since, listed in reversed(self.changes) if since <= bucket_ms), False)


_LISTS = {"opened": True, "supported_again": True, "no_longer_supported": False, **dict.fromkeys(CLOSINGS, False)}


def listing(cases: list[CaseRow], book: Book) -> Listing:
    """Read it from the cases' histories."""
    changes = [
        (as_of_ms, _LISTS[event.what])
        for row in cases
        for as_of_ms, event in book.events(row.case.id)
        if event.what in _LISTS
    ]
    return Listing(tuple(changes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When a judging takes place: the newest hour judged, and the clock (both Unix ms)."""

    bucket_ms: int
    now_ms: int

    def day(self, cell: Cell) -> int:
        """The day (proleptic ordinal) in the operator's local time."""
        return day_of(self.now_ms, cell.zone)


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """A cell and effect after its cases were followed: when it was listed, its last case, what is new of it."""

    listing: Listing
    case: CaseRow | None = None
    news: tuple[CaseEvent, ...] = ()


def close(
    book: Book,
    cell: Cell,
    found: Assessment,
    networks: Networks,
    *,
    view: CellView,
    moment: Moment,
    rules: Rules,
) -> tuple[CaseEvent, ...]:
    """End the open case of a hypothesis if its evidence says so; what is new then. It keeps `view` for good."""
    (row,) = [row for row in book.cases_of(cell.row.id, found.effect) if row.case.status == "open"] or (None,)
    if row is None:
        return ()
    case = replace(row.case, cell=cell.key)
    witnesses = [s for s in cell.summaries(networks, found.effect) if s.probe in case.witnesses]
    finding = Finding(
        supported=case.supported,
        onset_day=case.onset_day,
        witnesses=case.witnesses,
        log_end=end_strength(witnesses, found.effect, case.opened_day, rules),
        episode=cell.episode(found.effect),
    )
    (after,) = _updated([case], cell, found.effect, finding=finding, moment=moment, rules=rules)
    if after.status == "open":
        return ()
    numbers = replace(row.numbers, closed=view)
    return _keep(book, cell, after, found=found, numbers=numbers, old=len(case.history), moment=moment)


def follow(
    book: Book,
    cell: Cell,
    found: Assessment,
    hypotheses: Mapping[Key, Hypothesis],
    networks: Networks,
    *,
    log_budget: float,
    moment: Moment,
    rules: Rules,
) -> Followed:
    """Open or keep the case of one hypothesis. `log_budget` is log γ without the share of the episode."""
    hypothesis = hypotheses[cell.row.id, found.effect]
    cases = book.cases_of(cell.row.id, found.effect)
    if not hypothesis.listed and not cases:
        return Followed(listing=Listing())
    # A cell's number may have changed in the register since: it is still this cell's case.
    known = [dated(replace(row.case, cell=cell.key), cell.zone) for row in cases]
    numbers = _numbers(found, hypotheses, hypothesis, rules)
    finding = _finding(cell, found, known, networks, supported=hypothesis.listed, log_budget=log_budget, rules=rules)
    updated = _updated(known, cell, found.effect, finding=finding, moment=moment, rules=rules)
    news: tuple[CaseEvent, ...] = ()
    for index, case in enumerate(updated):
        old = known[index].history if index < len(known) else ()
        if case.status == "open":
            news = _keep(book, cell, case, found=found, numbers=numbers, old=len(old), moment=moment)
    cases = book.cases_of(cell.row.id, found.effect)
    return Followed(listing=listing(cases, book), case=cases[-1] if cases else None, news=news)


def _updated(
    known: list[Case], cell: Cell, effect: Effect, *, finding: Finding, moment: Moment, rules: Rules
) -> list[Case]:
    return update_cases(
        known,
        {(cell.key, effect): finding},
        now_ms=moment.now_ms,
        today=moment.day(cell),
        inputs="",
        rules=rules,
    )


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
    cell: Cell,
    found: Assessment,
    known: list[Case],
    networks: Networks,
    *,
    supported: bool,
    log_budget: float,
    rules: Rules,
) -> Finding:
    summaries = cell.summaries(networks, found.effect)
    told = any(case.status == "open" and case.alerted for case in known)
    # Once it has alerted, nobody asks the detector again before the case is closed.
    alarm = supported and not told and log_detector(summaries, found.effect, rules) >= log_needed(log_budget)
    return Finding(
        supported=supported,
        onset_day=onset(summaries, found.effect, rules) or 1,
        witnesses=tuple(sorted(s.probe for s in summaries if s.slowed(found.effect, rules))),
        episode=cell.episode(found.effect),
        alarm=alarm,
        retrospective="retrospective" in found.reasons,
    )


def _keep(
    book: Book, cell: Cell, case: Case, *, found: Assessment, numbers: CaseNumbers, old: int, moment: Moment
) -> tuple[CaseEvent, ...]:
    """Write a case and what is new of it; the digest of its inputs is made only where something is."""
    news: list[CaseEvent] = []
    if len(case.history) > old:
        inputs = digest_of_inputs(book.digests(cell.row.id))
        fresh = tuple(replace(event, inputs=inputs) for event in case.history[old:])
        case = replace(case, history=(*case.history[:old], *fresh))
        news = [_event(event, case, found) for event in fresh]
    book.put_case(CaseRow(cell=cell.row.id, case=case, numbers=numbers))
    for event in news:
        book.add_event(case.id, event, as_of_ms=moment.bucket_ms)
    return tuple(news)


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


def alerts(book: Book, news: Sequence[CaseEvent], row: CaseRow | None, view: CellView) -> list[OutboxCase]:
    """What people are told: that there is a case, once, and how it ended, if they were told that it began."""
    if row is None or not news:
        return []
    history = tuple(event for _, event in book.events(row.case.id))
    told = any(event.what == "alerted" for event in history)
    shown = shown_case(row, view, history)
    return [
        OutboxCase(case=shown, event=event)
        for event in news
        if event.what == "alerted" or (told and event.what in CLOSINGS)
    ]

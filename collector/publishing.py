# SPDX-License-Identifier: EUPL-1.2
"""Verdicts written where the public reads them: cells, cases, hours, and what goes on to other systems.

Spec: spec/api.md, section "Judging".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from analysis.cells import Assessment
from analysis.episodes import log_share
from analysis.plan import HypothesisPlan
from analysis.rules import EFFECTS, Rules
from collector.casework import Followed, Moment, alerts, close, follow, reselect
from collector.cellbook import Assessments, Cell
from collector.mind import Mind
from collector.model import CaseEvent, CellView, OutboxCase, OutboxPoint
from collector.replay import by_hour, hour_of
from collector.store.base import Book, CaseRow, HourRow, Hypothesis
from collector.views import Extras, cell_view, evidence_point
from probe.wire.records import Effect

Since = Mapping[int, int | None]
"""Cells to publish, each with the moment (Unix ms) from which on its hours have changed; None: the newest hour."""
Hours = Iterator[tuple[int, Assessments, Mapping[Effect, Extras]]]
"""A cell at the end of each hour, by the hour's start."""
News = dict[tuple[int, Effect], tuple[CaseRow, tuple[CaseEvent, ...]]]
"""Cases that were closed in this publication, and what is new of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What one publication did."""

    cells: int = 0
    alerts: tuple[str, ...] = ()
    """What each alert was about: `alerted`, `ended`."""
    postponed: Mapping[int, int] = field(default_factory=dict)
    """Cells of which hours before the newest are still to be written again, and from when on (Unix ms)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """What all views of one cell share in one publication."""

    cell: Cell
    followed: Mapping[Effect, Followed]
    now_ms: int
    rule: str

    def view(self, found: Assessment, extras: Extras, bucket_ms: int) -> CellView:
        followed = self.followed[found.effect]
        return cell_view(
            found,
            extras,
            country=self.cell.operator.country,
            listed=followed.listing.at(bucket_ms),
            case=None if followed.case is None else followed.case.case.id,
            now_ms=self.now_ms,
            since=self.cell.eras[found.effect].at(bucket_ms).since,
            rule=self.rule,
        )

    def hour(self, found: Assessment, extras: Extras, bucket_ms: int) -> HourRow:
        listed = self.followed[found.effect].listing.at(bucket_ms)
        return HourRow(
            cell=self.cell.row.id,
            effect=found.effect,
            point=evidence_point(found, bucket_ms, listed=listed),
            view=self.view(found, extras, bucket_ms),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """Assesses cells, selects the cases among all hypotheses, and writes what follows."""

    plan: HypothesisPlan
    rules: Rules
    points: bool
    """Whether a time-series store is to be told."""
    annotations: bool
    """Whether a board is to be told of cases."""

    def publish(self, book: Book, mind: Mind, since: Since, now_ms: int, *, postpone: bool = False) -> Published:
        """Publish these cells and all that follow from them.

        `postpone`: write the newest hour alone and leave earlier ones, which late pairs change, for later: what is
        shown now costs the same however late the pairs are, and a backlog of them rewrites the past once.
        """
        left: dict[int, int] = {}
        assessed: dict[int, Assessments] = {}
        closed: News = {}
        for number in since:
            cell = mind.cell(book, number)
            if cell.whole.states or self._has_case(book, number):
                assessed[number] = self._assess(book, mind, cell)
                # Before the selection: a closed case leaves the list, and makes each other one harder.
                closed.update(self._close(book, mind, cell, assessed[number], now_ms))
                self._weigh(mind, cell, assessed[number])
                self._forget(book, mind, number, set(EFFECTS) - set(self.rules.effects))
            else:
                # Its pairs all turned out to belong elsewhere.
                book.drop_verdicts(number)
                for effect in EFFECTS:
                    mind.hypotheses.pop((number, effect), None)
        for number, _ in reselect(mind.hypotheses, self.rules):
            # What others found may put a cell on the list, or take it off, without a pair of its own.
            if number not in assessed:
                assessed[number] = self._assess(book, mind, mind.cell(book, number))
        told: list[str] = []
        for number, found in assessed.items():
            cell, from_ms = mind.cell(book, number), since.get(number)
            if postpone and from_ms is not None and from_ms < _moment(book, cell, now_ms).bucket_ms:
                left[number], from_ms = from_ms, None
            told += self._write(book, mind, cell, found=found, closed=closed, since_ms=from_ms, now_ms=now_ms)
        return Published(cells=len(assessed), alerts=tuple(told), postponed=left)

    def _close(self, book: Book, mind: Mind, cell: Cell, found: Assessments, now_ms: int) -> News:
        """End what has ended; `found` then holds the next episode of these effects."""
        news: News = {}
        moment = _moment(book, cell, now_ms)
        for effect, assessment in found.items():
            if all(row.case.status != "open" for row in book.cases_of(cell.row.id, effect)):
                continue
            view = cell_view(
                assessment,
                cell.span(effect).extras,
                country=cell.operator.country,
                listed=False,
                ended=True,
                case=None,
                now_ms=now_ms,
                since=cell.episode(effect).since,
                rule=self.rules.name,
            )
            events = close(book, cell, assessment, mind.networks, view=view, moment=moment, rules=self.rules)
            if events:
                news[cell.row.id, effect] = (book.cases_of(cell.row.id, effect)[-1], events)
        if news:
            cell.open_eras(book)
            found.update(self._assess(book, mind, cell))
        return news

    @staticmethod
    def _forget(book: Book, mind: Mind, number: int, effects: Iterable[Effect]) -> None:
        """What the rule in force does not look for is no hypothesis; a case of it keeps its address."""
        for effect in effects:
            if mind.hypotheses.pop((number, effect), None) is not None and not book.cases_of(number, effect):
                book.drop_verdicts(number, (effect,))

    @staticmethod
    def _has_case(book: Book, number: int) -> bool:
        """A case's address is permanent, even where its cell has lost its pairs."""
        return any(book.cases_of(number, effect) for effect in EFFECTS)

    @staticmethod
    def _assess(book: Book, mind: Mind, cell: Cell) -> Assessments:
        return cell.assess(mind.networks, cell.setting(mind.placebo(book, cell.row)))

    def _weigh(self, mind: Mind, cell: Cell, found: Assessments) -> None:
        for effect, assessment in found.items():
            before = mind.hypotheses.get((cell.row.id, effect))
            mind.hypotheses[cell.row.id, effect] = Hypothesis(
                cell=cell.row.id,
                effect=effect,
                log_e=assessment.log_case_e,
                log_weight=self._log_weight(mind, cell, effect) + log_share(cell.episode(effect).number),
                listed=before is not None and before.listed,
            )

    def _log_weight(self, mind: Mind, cell: Cell, effect: Effect) -> float:
        """log γ of the hypothesis, without the share of its episode; settled when the cell was first met.

        The k-th app outside the plan has a share of about 6/(π²k²) of the remainder, as operators have theirs: an
        equal share would shrink with every new name, long after the data that it weighs.

        Half of the budget goes by the order in which cells were first met, as files have it by the order of first
        started pairs, so that a case does not need more evidence because of apps and operators that nobody measures.
        Not by starts: a record that comes late could then put a cell before others and change their weights long
        after their data, and with weights that move with time Σ γ ≤ 1 holds at each moment but not for the moments
        at which cases open. The cell's number never changes. It is given when the first record of a session is
        judged: receipts and started pairs, which reflectors send by themselves, so no probe can choose it after
        seeing a coin. Σ over cells and effects of (plan + order)/2 ≤ 1, so the rate of the list holds; the price is
        that two collectors fed with the same records in another order of arrival weigh cells differently, as they
        already number operators differently. A plan that leaves nothing to the order has all of its own weights.
        """
        unnamed = math.ceil((math.pi * mind.app_place(cell.row.app)) ** 2 / 6)
        order = cell.row.id if self.plan.effects else None
        return self.plan.log_weight(cell.key, effect, cell.row.operator, unnamed, order=order)

    def _write(
        self,
        book: Book,
        mind: Mind,
        cell: Cell,
        *,
        found: Assessments,
        closed: News,
        since_ms: int | None,
        now_ms: int,
    ) -> list[str]:
        latest, moment = book.latest_ms(cell.row.id), _moment(book, cell, now_ms)
        followed: dict[Effect, Followed] = {}
        for effect, assessment in found.items():
            followed[effect] = follow(
                book,
                cell,
                assessment,
                mind.hypotheses,
                mind.networks,
                log_budget=self._log_weight(mind, cell, effect),
                moment=moment,
                rules=self.rules,
            )
        page = _Page(cell=cell, followed=followed, now_ms=now_ms, rule=self.rules.name)
        told: list[str] = []
        for effect, assessment in found.items():
            view = page.view(assessment, cell.span(effect).extras, moment.bucket_ms)
            book.put_verdict(mind.hypotheses[cell.row.id, effect], view)
            row, ending = closed.get((cell.row.id, effect), (None, ()))
            told += self._tell(book, [*alerts(book, ending, row, view), *_alerts(book, followed[effect], view)])
        if latest is not None:
            bucket = moment.bucket_ms
            first = bucket if since_ms is None else min(bucket, hour_of(since_ms))
            now = iter([(bucket, found, {effect: cell.span(effect).extras for effect in found})])
            hours = now if first == bucket else self._past(book, mind, cell, first)
            self._write_hours(book, page, hours, first)
        return told

    def _tell(self, book: Book, news: list[OutboxCase]) -> list[str]:
        """Put alerts into the outbox, each under a topic of its own, so that none takes another's place."""
        for one in news:
            if self.annotations:
                book.send("case", f"case/{one.case.id}/{one.event.what}", one)
        return [one.event.what for one in news]

    def _write_hours(self, book: Book, page: _Page, hours: Hours, first: int) -> None:
        rows = [
            page.hour(assessment, extras[effect], at)
            for at, found, extras in hours
            for effect, assessment in found.items()
        ]
        book.put_hours(rows, cell=page.cell.row.id, since_ms=first)
        for row in rows:
            if self.points and row.view.probes >= self.rules.least_probes:
                topic = f"{row.cell}/{row.effect}/{row.point.bucket_ms}"
                book.send("point", topic, OutboxPoint(cell=row.view, point=row.point))

    def _past(self, book: Book, mind: Mind, cell: Cell, first: int) -> Hours:
        """The cell at the end of each hour from `first` on, from its pairs."""
        setting = cell.setting(mind.placebo(book, cell.row))
        rows = book.pairs_in(cell.row.id, first)
        before, known = cell.before(rows)
        for at, folded in by_hour(before, rows, self.rules):
            yield at, *cell.assess_past(at, folded, known, mind.networks, setting)


def _moment(book: Book, cell: Cell, now_ms: int) -> Moment:
    latest = book.latest_ms(cell.row.id)
    return Moment(bucket_ms=hour_of(now_ms if latest is None else latest), now_ms=now_ms)


def _alerts(book: Book, followed: Followed, view: CellView) -> list[OutboxCase]:
    return alerts(book, followed.news, followed.case, view)

# SPDX-License-Identifier: EUPL-1.2
"""Verdicts written where the public reads them: cells, cases, hours, and what goes on to other systems.

Spec: spec/api.md, section "Judging".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from analysis.cells import Assessment
from analysis.plan import HypothesisPlan
from analysis.rules import EFFECTS, Rules
from collector.casework import Followed, announcements, follow, reselect
from collector.cellbook import Assessments, Cell
from collector.mind import Mind
from collector.model import CellView, OutboxPoint
from collector.replay import by_hour, hour_of
from collector.store.base import Book, HourRow, Hypothesis
from collector.views import Extras, cell_view, evidence_point
from probe.wire.records import Effect

Since = Mapping[int, int | None]
"""Cells to publish, each with the moment (Unix ms) from which on its hours have changed; None: the newest hour."""
Hours = Iterator[tuple[int, Assessments, Extras]]
"""A cell at the end of each hour, by the hour's start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """What all views of one cell share in one publication."""

    cell: Cell
    followed: Mapping[Effect, Followed]
    now_ms: int

    def view(self, found: Assessment, extras: Extras, bucket_ms: int) -> CellView:
        followed = self.followed[found.effect]
        return cell_view(
            found,
            extras,
            country=self.cell.operator.country,
            listed=followed.listing.at(bucket_ms),
            ended=followed.listing.ended,
            case=None if followed.case is None else followed.case.case.id,
            now_ms=self.now_ms,
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

    def publish(self, book: Book, mind: Mind, since: Since, now_ms: int) -> int:
        """Publish these cells and all that follow from them; how many were written."""
        assessed: dict[int, Assessments] = {}
        for number in since:
            cell = mind.cell(book, number)
            if cell.states["test"] or self._has_case(book, number):
                assessed[number] = self._assess(book, mind, cell)
                self._weigh(mind, cell, assessed[number])
            else:
                # Its pairs all turned out to belong elsewhere.
                book.drop_verdicts(number)
                for effect in EFFECTS:
                    mind.hypotheses.pop((number, effect), None)
        for number, _ in reselect(mind.hypotheses, self.rules):
            # What others found may put a cell on the list, or take it off, without a pair of its own.
            if number not in assessed:
                assessed[number] = self._assess(book, mind, mind.cell(book, number))
        for number, found in assessed.items():
            self._write(book, mind, mind.cell(book, number), found=found, since_ms=since.get(number), now_ms=now_ms)
        return len(assessed)

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
                log_weight=self._log_weight(mind, cell, effect),
                listed=before is not None and before.listed,
            )

    def _log_weight(self, mind: Mind, cell: Cell, effect: Effect) -> float:
        """log γ, settled when operator and app were first seen.

        The k-th app outside the plan has a share of about 6/(π²k²) of the remainder, as operators have theirs: an
        equal share would shrink with every new name, long after the data that it weighs.
        """
        unnamed = math.ceil((math.pi * mind.app_place(cell.row.app)) ** 2 / 6)
        return self.plan.log_weight(cell.key, effect, cell.row.operator, unnamed)

    def _write(
        self, book: Book, mind: Mind, cell: Cell, *, found: Assessments, since_ms: int | None, now_ms: int
    ) -> None:
        latest = book.latest_ms(cell.row.id)
        bucket = hour_of(now_ms if latest is None else latest)
        followed: dict[Effect, Followed] = {}
        for effect, assessment in found.items():
            followed[effect] = follow(
                book,
                cell,
                assessment,
                mind.hypotheses,
                mind.networks,
                bucket_ms=bucket,
                now_ms=now_ms,
                rules=self.rules,
            )
        page = _Page(cell=cell, followed=followed, now_ms=now_ms)
        for effect, assessment in found.items():
            view = page.view(assessment, cell.extras, bucket)
            book.put_verdict(mind.hypotheses[cell.row.id, effect], view)
            if self.annotations:
                for number, news in enumerate(announcements(book, followed[effect], view)):
                    book.send("case", f"case/{news.case.id}/{len(news.case.history)}/{number}", news)
        if latest is not None:
            first = bucket if since_ms is None else min(bucket, hour_of(since_ms))
            now = iter([(bucket, found, cell.extras)])
            hours = now if first == bucket else self._past(book, mind, cell, first)
            self._write_hours(book, page, hours, first)

    def _write_hours(self, book: Book, page: _Page, hours: Hours, first: int) -> None:
        rows = [page.hour(assessment, extras, at) for at, found, extras in hours for assessment in found.values()]
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
            for probe in folded.changed:
                known.pop(probe, None)
            yield at, cell.assess_past(folded.states, known, mind.networks, setting), folded.extras

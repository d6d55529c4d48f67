# SPDX-License-Identifier: EUPL-1.2
"""Which episode of a hypothesis was the present one at which hour, read from its cases.

Spec: spec/statistics.md, section "Episodes"; spec/api.md, section "Cases".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from typing import Final

from analysis.cases import Case, episode_of
from analysis.episodes import Episode
from collector.store.base import Book, CaseRow
from probe.wire.records import Effect

CLOSINGS: Final = frozenset({"ended", "withdrawn", "corrected"})
"""Events that close a case."""


@dataclass(frozen=True, slots=True)
class Era:
    """An episode, and the start of the hour (Unix ms) at whose end it was the present one for the first time."""

    from_ms: int
    episode: Episode


@dataclass(frozen=True, slots=True)
class Eras:
    """All episodes of a hypothesis so far, the oldest first."""

    eras: tuple[Era, ...] = (Era(0, Episode()),)

    @property
    def current(self) -> Episode:
        """The present one."""
        return self.eras[-1].episode

    def at(self, bucket_ms: int) -> Episode:
        """The one at the end of the hour that begins at `bucket_ms`."""
        return next((era.episode for era in reversed(self.eras) if era.from_ms <= bucket_ms), self.eras[0].episode)


def day_of(at_ms: int, zone: tzinfo) -> int:
    """The local day (proleptic ordinal) of a moment (Unix ms)."""
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).astimezone(zone).date().toordinal()


def dated(case: Case, zone: tzinfo) -> Case:
    """The case with the day of its closing, which older programs did not write down."""
    if case.status == "open" or case.closed_day is not None:
        return case
    return replace(case, closed_day=day_of(case.history[-1].at_ms, zone))


def read_eras(book: Book, cell: int, effect: Effect, zone: tzinfo) -> Eras:
    """Read them from the cases of a cell and effect."""
    eras = [Era(0, Episode())]
    closed: list[Case] = []
    for row in book.cases_of(cell, effect):
        if row.case.status != "open":
            closed.append(dated(row.case, zone))
            eras.append(Era(_closed_ms(book, row), episode_of(closed)))
    return Eras(tuple(eras))


def _closed_ms(book: Book, row: CaseRow) -> int:
    """Start of the newest hour that had been judged when the case was closed."""
    return next((as_of for as_of, event in book.events(row.case.id) if event.what in CLOSINGS), 0)

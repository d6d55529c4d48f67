# SPDX-License-Identifier: EUPL-1.2
"""From envelopes to verdicts, a few sessions at a time, each time within one transaction of the store.

What is judged is a function of what is stored: in whichever order the records arrived, and whether they are judged
as they come or all again, pairs, states, cells and hours are the same. Only the history of cases, which is
append-only, remembers when something was found. Spec: spec/api.md, section "Judging".
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from analysis.plan import DEFAULT_PLAN, HypothesisPlan
from analysis.rules import RULES, Rules
from collector.config import Config
from collector.enrolment import SUPERSEDED, Wish, superseded
from collector.intake import Rejection
from collector.leaving import kept_of
from collector.members import Departed
from collector.mind import Mind
from collector.publishing import Published, Publisher
from collector.store.base import Book, KeptSession, Session
from collector.store.rows import encode
from collector.taking import Taken, take
from probe.wire.envelope import encode as encode_key

LATEST_MS: Final = 60_000
"""After so long past hours are written again even while more sessions wait."""
COUNTED: Final = 3
"""Goes up by one when more is counted of the same pairs (2: by coin, 3: doors that were not open during a session), so
that older files are judged again."""
MOST_CELLS: Final = 5000
"""Cells kept in memory between two steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step did."""

    sessions: int
    tests: int
    """Pairs met for the first time; `placebos` those of two neutral names."""
    placebos: int
    cells: int
    """Cells whose verdicts were written."""
    left: bool
    """More sessions wait."""
    alerts: tuple[str, ...] = ()
    """What people were alerted to: `alerted` (a case), `ended`."""


class Judge:
    """Judges what waits. Not thread-safe: `step` runs in the store's writer, one at a time."""

    def __init__(self, config: Config, *, plan: HypothesisPlan = DEFAULT_PLAN, rules: Rules = RULES) -> None:
        self._config = config
        self._plan = plan
        self._rules = rules
        self._publisher = Publisher(
            plan=plan, rules=rules, points=config.influx is not None, annotations=config.grafana is not None
        )
        self._mind: Mind | None = None

    def forget(self) -> None:
        """Drop what is remembered: after a step whose transaction did not come through."""
        self._mind = None

    def rejudge(self, book: Book) -> None:
        """See to it that everything is judged again from the envelopes; the public sees the old until the end."""
        book.pend_all()
        book.note("rejudging", "yes")
        self._mind = None

    def leave(self, book: Book, wish: Wish, now_ms: int) -> Rejection | None:
        """Forget a probe: its records go, its pairs stay under a pseudonym. Why not, if not."""
        roll, probe, at_ms = book.roll, wish.probe, wish.record.at_ms
        member, before, sessions = roll.member(probe), roll.departed(probe), book.sessions_of(probe)
        if superseded(wish, member):
            return SUPERSEDED
        if member is None and before is not None and before.pseudonym is not None:
            pseudonym = before.pseudonym  # it said so before
        else:
            pseudonym = encode_key(secrets.token_bytes(32))
        self._mind = None  # it knows the key; what this one learns is written down
        mind = self._begin(book)
        kept: dict[Session, KeptSession] = {}
        for session in sessions:
            judged = not book.is_pending(session)
            one = kept_of(book.facts(session), partial(mind.operator_of, book), pseudonym, judged=judged)
            if one is not None:
                kept[session] = one
        book.forget(probe, pseudonym, kept)
        last_ms = max(at_ms, before.at_ms if before is not None else 0)
        roll.strike(
            probe,
            Departed(at_ms=last_ms, left_ms=now_ms, pseudonym=pseudonym),
            known=member is not None or bool(sessions),
        )
        roll.tidy(now_ms)
        return None

    def step(self, book: Book, now_ms: int, most: int = 20) -> Step:
        """Judge at most `most` sessions."""
        mind = self._mind = self._mind or self._begin(book)
        sessions = book.pending(most)
        taken = Taken()
        for session in sessions:
            take(book, mind, session, taken)
        book.settle(sessions)
        left = bool(book.pending(1))
        since = _rescore(book, mind, taken)
        published = Published()
        if book.noted("rejudging") != "yes":
            self._by_rule(book, now_ms)
            late = _Late.read(book)
            postpone = left and not late.overdue(now_ms)
            wanted = since if postpone else late.joined(since)
            published = self._publisher.publish(book, mind, wanted, now_ms, postpone=postpone)
            _Late.write(book, late if postpone else _Late(), published.postponed, now_ms)
        elif not left:
            self._by_rule(book, now_ms)
            published = self._publisher.publish(book, mind, dict.fromkeys(mind.numbers, 0), now_ms)
            book.note("rejudging", "no")
            _Late.write(book, _Late(), {}, now_ms)
        mind.trim(MOST_CELLS)
        return Step(
            sessions=len(sessions),
            tests=taken.fresh["test"],
            placebos=taken.fresh["placebo"],
            cells=published.cells,
            left=left,
            alerts=published.alerts,
        )

    def _by_rule(self, book: Book, now_ms: int) -> None:
        """Before another edition of the rule writes its verdicts, keep what the one before said last."""
        before, name = book.noted("rule"), self._rules.name
        if before == name:
            return
        if before is not None:
            book.keep_verdicts(before, now_ms)
        book.note("rule", name)

    def _begin(self, book: Book) -> Mind:
        mind = Mind(book, self._config, self._plan, self._rules)
        if book.noted("judged_by") != self._judged_by():
            if mind.numbers:
                book.pend_all()
                book.note("rejudging", "yes")
            book.note("judged_by", self._judged_by())
        points = "no" if self._config.influx is None else "yes"
        if points == "yes" and book.noted("points") != "yes":
            book.send_hours()
        book.note("points", points)
        return mind

    def _judged_by(self) -> str:
        """What, when it changes, makes every verdict out of date: rule, plan, register, and what is counted."""
        config = self._config
        told = [COUNTED, self._rules.digest(), self._plan.name, config.operators, config.timezone, config.timezones]
        return hashlib.sha256(encode(told).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Late:
    """Cells whose past hours are still to be written again: from when on (Unix ms), and since when they wait."""

    cells: Mapping[int, int] = field(default_factory=dict)
    waiting_ms: int | None = None

    @classmethod
    def read(cls, book: Book) -> _Late:
        """As the store has it: a restart forgets none."""
        stored = json.loads(book.noted("late_hours") or "{}")
        return cls({int(cell): at for cell, at in stored.get("cells", {}).items()}, stored.get("waiting_ms"))

    @staticmethod
    def write(book: Book, known: _Late, more: Mapping[int, int], now_ms: int) -> None:
        """Remember these and more."""
        cells = dict(known.cells)
        for cell, at in more.items():
            cells[cell] = min(at, cells.get(cell, at))
        waiting = now_ms if known.waiting_ms is None else known.waiting_ms
        told = encode({"cells": cells, "waiting_ms": waiting}) if cells else "{}"
        if told != (book.noted("late_hours") or "{}"):
            book.note("late_hours", told)

    def overdue(self, now_ms: int) -> bool:
        """Whether they have waited for so long that they are written though more sessions wait."""
        return self.waiting_ms is not None and now_ms - self.waiting_ms >= LATEST_MS

    def joined(self, since: Mapping[int, int | None]) -> dict[int, int | None]:
        """What is to be published when they are written."""
        found = dict(since)
        for cell, at in self.cells.items():
            other = found.get(cell)
            found[cell] = at if other is None else min(at, other)
        return found


def _rescore(book: Book, mind: Mind, taken: Taken) -> dict[int, int | None]:
    """Score what changed; returns the cells to publish (`publishing.Since`)."""
    since: dict[int, int | None] = {}
    for number in sorted(taken.touched):
        cell = mind.cell(book, number)
        tests = [started_ms for (kind, _), started_ms in cell.since.items() if kind == "test"]
        if any(kind == "placebo" for kind, _ in cell.since):
            since.update({other: since.get(other) for other in mind.line(cell.row)})
        if tests:
            since[number] = min(tests)
        cell.rescore(book)
        cell.save(book)
    # Two networks that turned out to be one were never two: all hours of their cells change.
    since.update(dict.fromkeys(taken.regrouped, 0))
    return since

# SPDX-License-Identifier: EUPL-1.2
"""What the judge keeps in memory between two steps. All of it can be read from the store again.

Spec: spec/api.md, section "Judging".
"""

from __future__ import annotations

from analysis.judge import alarming
from analysis.plan import HypothesisPlan
from analysis.probes import ProbeState
from analysis.rules import Rules
from collector.cellbook import Cell
from collector.config import Config
from collector.register import Networks, Register
from collector.store.base import Book, CellRow, Hypothesis
from probe.wire.records import Access, Direction, Effect, Origin

Key = tuple[int, Effect]
"""A hypothesis: number of the cell, and the effect."""


class Mind:
    """Registers, networks, hypotheses, and the cells that were needed lately."""

    def __init__(self, book: Book, config: Config, plan: HypothesisPlan, rules: Rules) -> None:
        known = book.known()
        self.register = Register(config, known.operators)
        self.networks = Networks(known.networks)
        self.hypotheses: dict[Key, Hypothesis] = {(h.cell, h.effect): h for h in known.hypotheses}
        self._plan = plan
        self._rules = rules
        self._apps = {app: place for place, app in enumerate(known.apps, start=1)}
        self._rows: dict[int, CellRow] = {}
        self._numbers: dict[tuple[int, str, str, str], int] = {}
        self._cells: dict[int, Cell] = {}
        for row in known.cells:
            self._remember(row)
        self._write_register(book)

    def _remember(self, row: CellRow) -> None:
        self._rows[row.id] = row
        self._numbers[row.operator, row.app, row.direction, row.access] = row.id

    @property
    def numbers(self) -> list[int]:
        """Every cell there is."""
        return sorted(self._rows)

    def trim(self, most: int) -> None:
        """Let go of cells where more than `most` are held; only between steps, when all is saved."""
        if len(self._cells) > most:
            self._cells.clear()

    def operator_of(self, book: Book, origin: Origin) -> tuple[str, int | None]:
        """The operator's id and first number, as the register has it; an unknown one is appended."""
        operator = self.register.resolve(origin)
        self._write_register(book)
        return operator.id, (operator.asns[0] if operator.asns else None)

    def _write_register(self, book: Book) -> None:
        for operator in self.register.changed:
            book.add_operator(operator)
            for cell in self._cells.values():
                if cell.row.operator == operator.place:
                    cell.operator = operator
        self.register.changed.clear()

    def find(self, book: Book, operator: str, app: str, direction: Direction, access: Access) -> Cell:
        """The cell, made where there was none."""
        place = self.register.place_of(operator)
        number = self._numbers.get((place, app, direction, access))
        if number is None:
            row = book.add_cell(place, app, direction, access)
            self._remember(row)
            number = row.id
            if app not in self._plan.named and app not in self._apps:
                book.add_app(app)
                self._apps[app] = len(self._apps) + 1
        return self.cell(book, number)

    def cell(self, book: Book, number: int) -> Cell:
        """A cell that exists, from memory or from the store."""
        if number not in self._cells:
            row = self._rows[number]
            operator = self.register.at(row.operator)
            known = self.register.zone_known(operator)
            self._cells[number] = Cell.load(book, row, operator, zone_known=known, rules=self._rules)
        return self._cells[number]

    def line(self, row: CellRow) -> list[int]:
        """Cells that share placebo pairs: they say something of the neutral names, whatever the app."""
        line = (row.operator, row.direction, row.access)
        return sorted(r.id for r in self._rows.values() if (r.operator, r.direction, r.access) == line)

    def placebo(self, book: Book, row: CellRow) -> tuple[ProbeState, ...]:
        """The states of the placebo pairs of the cell's line that raise the alarm, if they do.

        Their evidence is kept per probe and mixed here, because computing all of it again for every cell and
        effect would make each pair cost as much as all pairs before it.
        """
        cells = [self.cell(book, number) for number in self.line(row)]
        states = [state for cell in cells for state in cell.placebos.values()]
        return alarming(states, [log_e for cell in cells for log_e in cell.placebo()], self._rules)

    def app_place(self, app: str) -> int:
        """Place of an app outside the plan, in the order of first appearance; 1 for those in it."""
        return self._apps.get(app, 1)

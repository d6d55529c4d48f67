# SPDX-License-Identifier: EUPL-1.2
"""The public page as data: operators × apps, the open cases, what is covered and what is not known.

Pure: cells, cases and register in, rows out; the template only places them. Spec: spec/series.md, section "Pages".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from collector.model import CaseView, CellKey, CellView, OperatorView, State
from collector.pages.apps import app_name
from collector.pages.language import Words
from collector.pages.sentence import LEAST_PROBES, sentence, short_size
from collector.series import STATE_CODES, STATE_LOOKS

CLAIMS: Final = ("indication", "replicated", "corroborated")
STATES: Final[tuple[State, ...]] = (
    "no_indication",
    "indication",
    "replicated",
    "corroborated",
    "inconclusive",
    "insufficient",
    "not_testable",
)
"""In the order in which the legend explains them."""


@dataclass(frozen=True, slots=True)
class Chip:
    """A state as it is shown: word, sign and the class that colours it. Never colour alone."""

    word: str
    sign: str
    kind: str
    """The style's class: a state, with ` ended` behind it where it has ended."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line in a cell of the table."""

    chip: Chip
    effect: str
    """Named where something is claimed; empty otherwise."""
    size: str
    span: str
    count: str
    href: str


@dataclass(frozen=True, slots=True)
class Row:
    """One operator on one kind of line; `entries` has one tuple an app."""

    operator: str
    href: str
    """The operator's page."""
    asn: str
    line: str
    entries: tuple[tuple[Entry, ...], ...]


@dataclass(frozen=True, slots=True)
class OpenCase:
    """An open case on the overview: its sentence and where to read on."""

    sentence: str
    href: str
    note: str = ""
    """What must be read with it: that older data opened it."""


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything the page shows."""

    apps: tuple[tuple[str, str], ...]
    """Name and address of each app's page, in the order of the columns."""
    rows: tuple[Row, ...]
    cases: tuple[OpenCase, ...]
    headline: str
    hypotheses: str
    coverage: str
    as_of: str


def chip(words: Words, state: State, *, ended: bool = False) -> Chip:
    """How a state is shown."""
    if ended:
        return Chip(words("state.ended"), "⊣", f"{state} ended")
    return Chip(words(f"state.{state}"), STATE_LOOKS[state].sign, state)


def brand(words: Words, operator: str, register: Sequence[OperatorView]) -> str:
    """An operator's name as its customers know it."""
    if operator == "unknown":
        return words("overview.unknown_operator")
    return next((entry.brand for entry in register if entry.id == operator and entry.brand), operator)


def place_name(words: Words, key: CellKey, register: Sequence[OperatorView]) -> str:
    """Where a cell was measured: an operator, or hotspots which use it (somebody else's equipment stands there)."""
    name = brand(words, key.operator, register)
    return words("overview.hotspots", operator=name) if key.access == "hotspot" else name


def cell_address(key: CellKey) -> str:
    """The address of a cell's page."""
    parts = (key.operator, key.app, key.direction, key.access, key.effect)
    return "/cell/" + "/".join(quote(part, safe="") for part in parts)


def overview(
    words: Words, cells: Sequence[CellView], cases: Sequence[CaseView], register: Sequence[OperatorView]
) -> Overview:
    """The page from what the store has now."""
    by_id = {case.id: case for case in cases}
    apps = sorted({cell.key.app for cell in cells}, key=lambda app: app_name(words, app).casefold())
    live = [case for case in cases if case.status == "open" and case.supported]
    asked = max([case.hypotheses for case in live], default=len(cells))
    return Overview(
        apps=tuple((app_name(words, app), f"/app/{quote(app, safe='')}") for app in apps),
        rows=tuple(_rows(words, cells, by_id, apps, register)),
        cases=tuple(
            open_case(words, case, sentence(words, case, brand(words, case.cell.key.operator, register)))
            for case in live
        ),
        headline=words("overview.cases_none") if not live else words.count("overview.cases", len(live)),
        hypotheses=words("overview.hypotheses", n=words.whole(max(asked, len(cells)))),
        coverage=_coverage(words, cells, apps),
        as_of=words("site.as_of", moment=words.moment(max(cell.updated_ms for cell in cells)))
        if cells
        else words("site.no_data_yet"),
    )


def open_case(words: Words, case: CaseView, text: str) -> OpenCase:
    """An open case in a list of them."""
    return OpenCase(text, f"/case/{case.id}", words("case.looks_back") if case.retrospective else "")


def _coverage(words: Words, cells: Sequence[CellView], apps: Sequence[str]) -> str:
    lines = {(c.key.operator, c.key.app, c.key.direction, c.key.access): c.pairs for c in cells}
    decided = sum(shown_state(cell) not in {"insufficient", "not_testable"} for cell in cells)
    return words(
        "overview.coverage",
        operators=words.whole(len({cell.key.operator for cell in cells})),
        apps=words.whole(len(apps)),
        pairs=words.whole(sum(lines.values())),
        decided=words.whole(decided),
        cells=words.whole(len(cells)),
    )


def _rows(
    words: Words,
    cells: Sequence[CellView],
    cases: dict[str, CaseView],
    apps: Sequence[str],
    register: Sequence[OperatorView],
) -> list[Row]:
    groups: dict[tuple[str, str, str], dict[str, list[CellView]]] = {}
    for cell in cells:
        line = (cell.key.operator, cell.key.access, cell.key.direction)
        groups.setdefault(line, {}).setdefault(cell.key.app, []).append(cell)
    rows = []
    for (operator, access, direction), by_app in groups.items():
        any_cell = next(iter(by_app.values()))[0]
        asn = any_cell.key.asn
        rows.append(
            Row(
                operator=place_name(words, any_cell.key, register),
                href=f"/operator/{quote(operator, safe='')}",
                asn="" if asn is None else words("overview.asn", asn=asn),
                line=words(
                    "overview.line", access=words(f"access.{access}"), direction=words(f"direction.{direction}")
                ),
                entries=tuple(tuple(entries(words, by_app.get(app, ()), cases)) for app in apps),
            )
        )
    return rows


def entries(words: Words, cells: Sequence[CellView], cases: dict[str, CaseView]) -> list[Entry]:
    """What one place of the table says: every claim and every case there was; without any, one plain line."""
    telling = [cell for cell in cells if shown_state(cell) in CLAIMS or cell.case in cases]
    telling.sort(key=lambda cell: (-STATE_CODES[cell.state], -cell.log10_e, cell.key.effect))
    if telling:
        return [_entry(words, cell, cases.get(cell.case or ""), claim=True) for cell in telling]
    plain = [cell for cell in cells if cell.key.effect == "slowing"] or list(cells)
    return [_entry(words, cell, None, claim=False) for cell in plain[:1]]


def _entry(words: Words, cell: CellView, case: CaseView | None, *, claim: bool) -> Entry:
    # Where nothing can be said yet, a figure would say it all the same.
    found = None if shown_state(cell) in {"insufficient", "not_testable"} else short_size(words, cell)
    hidden = cell.probes < LEAST_PROBES
    pairs = f"{words.count('size.pairs', cell.pairs)}, {words.count('size.probes', cell.probes)}"
    return Entry(
        chip=chip(words, shown_state(cell)) if case is None else case_chip(words, case),
        effect=words(f"effect.{cell.key.effect}") if claim else "",
        size="" if found is None else found[0],
        span="" if found is None else found[1],
        count=words("size.few_probes") if hidden else pairs,
        href=cell_address(cell.key) if case is None else f"/case/{case.id}",
    )


def case_chip(words: Words, case: CaseView) -> Chip:
    """How a case is shown: what it was once it has ended, what its cell is now otherwise."""
    return chip(words, "corroborated", ended=True) if case.status == "ended" else chip(words, case.cell.state)


def shown_state(cell: CellView) -> State:
    """The state as the public sees it: below three probes nothing is said, whatever the evidence."""
    return cell.state if cell.probes >= LEAST_PROBES else "insufficient"

# SPDX-License-Identifier: EUPL-1.2
"""All that is known of one operator, or of one app: what a reader looks for who comes with a name.

Sizes stand beside each other with their intervals on one scale, in alphabetical order: it is no ranking.
Spec: spec/series.md, section "Pages".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from markupsafe import Markup

from collector.model import CaseView, CellView, OperatorView
from collector.pages import svg
from collector.pages.apps import app_name
from collector.pages.figure import Figure
from collector.pages.language import Words
from collector.pages.overview import CLAIMS, Entry, OpenCase, brand, chip, entries, open_case, place_name, shown_state
from collector.pages.sentence import sentence, status_note

MOST_LETTERS: Final = 24
"""Of a label, so that it fits a phone beside its figure."""
MOST_SIZES: Final = 40
"""More sizes than this are told in the list alone."""


@dataclass(frozen=True, slots=True)
class Line:
    """One app at one operator on one kind of line."""

    name: str
    line: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class PastCase:
    """A case that is not open any more, or not supported: its sentence, what became of it, and where to read on."""

    sentence: str
    note: str
    href: str


@dataclass(frozen=True, slots=True)
class PlacePage:
    """Everything the page of an operator or of an app shows."""

    title: str
    facts: str
    cases: tuple[OpenCase, ...]
    past: tuple[PastCase, ...]
    sizes: Figure | None
    lines: tuple[Line, ...]
    as_of: str


def operator_page(
    words: Words, operator: str, cells: Sequence[CellView], cases: Sequence[CaseView], register: Sequence[OperatorView]
) -> PlacePage | None:
    """An operator's page; None where nobody ever measured there."""
    here = [cell for cell in cells if cell.key.operator == operator]
    if not here:
        return None
    entry = next((o for o in register if o.id == operator), None)
    numbers = sorted({cell.key.asn for cell in here if cell.key.asn is not None} | set(entry.asns if entry else ()))
    facts = [words("overview.asn", asn=number) for number in numbers]
    if entry is not None and entry.country:
        facts.append(entry.country)
    if entry is not None and entry.cgnat:
        facts.append(words("place.cgnat"))
    own = [case for case in cases if case.cell.key.operator == operator]
    return _page(
        words,
        brand(words, operator, register),
        " · ".join(facts),
        by_app=True,
        cells=here,
        cases=own,
        register=register,
    )


def app_page(
    words: Words, app: str, cells: Sequence[CellView], cases: Sequence[CaseView], register: Sequence[OperatorView]
) -> PlacePage | None:
    """An app's page; None where nobody ever measured it."""
    here = [cell for cell in cells if cell.key.app == app]
    if not here:
        return None
    own = [case for case in cases if case.cell.key.app == app]
    return _page(
        words, app_name(words, app), words("place.app_facts"), by_app=False, cells=here, cases=own, register=register
    )


def _page(
    words: Words,
    title: str,
    facts: str,
    *,
    by_app: bool,
    cells: Sequence[CellView],
    cases: Sequence[CaseView],
    register: Sequence[OperatorView],
) -> PlacePage:
    def name(cell: CellView) -> str:
        return app_name(words, cell.key.app) if by_app else place_name(words, cell.key, register)

    groups: dict[tuple[str, str, str, str], list[CellView]] = {}
    for cell in sorted(cells, key=lambda c: (name(c).casefold(), c.key.access, c.key.direction)):
        key = cell.key
        groups.setdefault((key.operator, key.app, key.access, key.direction), []).append(cell)
    by_id = {case.id: case for case in cases}
    told = [(case, sentence(words, case, brand(words, case.cell.key.operator, register))) for case in cases]
    return PlacePage(
        title=title,
        facts=facts,
        cases=tuple(open_case(words, c, text) for c, text in told if c.status == "open" and c.supported),
        past=tuple(
            PastCase(text, note, f"/case/{c.id}") for c, text in told if (note := status_note(words, c)) is not None
        ),
        sizes=_sizes(words, [(name(group[0]), group) for group in groups.values()]),
        lines=tuple(
            Line(name(group[0]), _line(words, group[0]), tuple(entries(words, group, by_id)))
            for group in groups.values()
        ),
        as_of=words("site.as_of", moment=words.moment(max(cell.updated_ms for cell in cells))),
    )


def _line(words: Words, cell: CellView) -> str:
    key = cell.key
    return words("overview.line", access=words(f"access.{key.access}"), direction=words(f"direction.{key.direction}"))


@dataclass(frozen=True, slots=True)
class _Size:
    name: str
    line: str
    cell: CellView
    label: str
    """In the picture: the name, with what tells it from another of the same name."""


def _sizes(words: Words, groups: Sequence[tuple[str, Sequence[CellView]]]) -> Figure | None:
    """Sizes with their intervals below each other, the app's slowness counted positive; in the order of the list."""
    shown: list[_Size] = []
    for name, group in groups:
        known = [c for c in group if c.slowdown is not None and shown_state(c) not in {"insufficient", "not_testable"}]
        telling = [c for c in known if c.state in CLAIMS and c.key.effect in {"slowing", "prioritising"}]
        plain = [c for c in known if c.key.effect == "slowing"]
        if (telling or plain) and len(shown) < MOST_SIZES:
            line, cell = _line(words, group[0]), (telling or plain)[0]
            shown.append(_Size(name, line, cell, svg.shorten(name, MOST_LETTERS)))
    names = Counter(size.name for size in shown)
    shown = [size if names[size.name] == 1 else replace(size, label=_told_apart(words, size)) for size in shown]
    if not shown:
        return None
    claims = sum(size.cell.state in CLAIMS for size in shown)
    title = words("place.sizes_finding", k=words.whole(claims), n=words.whole(len(shown)))
    note = words("place.sizes_note")
    drawn = svg.picture("sizes", 44 + 50 * len(shown), title=title, description=note, content=_drawing(words, shown))
    head = tuple(words(key) for key in ("place.name", "place.line", "chart.state", "cell.size", "chart.allowed"))
    return Figure(title, note, drawn, head, tuple(_row(words, size) for size in shown))


def _told_apart(words: Words, size: _Size) -> str:
    """A name that stands twice, on a fixed line and at hotspots for instance, with the kind of line behind it."""
    key = size.cell.key
    kind = words(f"access.{key.access}") + ("" if key.direction == "down" else f", {words('direction.up')}")
    return f"{svg.shorten(size.name.partition(' (')[0], MOST_LETTERS - 12)} · {kind}"


def _figures(words: Words, cell: CellView) -> tuple[str, str]:
    if cell.slowdown is None:
        raise ValueError("a cell without a size has no place in this picture")
    low, high = words.percents(cell.slowdown.low, cell.slowdown.high)
    return words.percent(cell.slowdown.estimate), words("size.range", lo=low, hi=high)


def _row(words: Words, size: _Size) -> tuple[str, ...]:
    return (size.name, size.line, words(f"state.{size.cell.state}"), *_figures(words, size.cell))


def _drawing(words: Words, shown: Sequence[_Size]) -> list[Markup]:
    intervals = [size.cell.slowdown for size in shown if size.cell.slowdown is not None]
    across = svg.Scale(
        max(-1.0, min(-0.25, *(i.low for i in intervals))), min(1.0, max(0.5, *(i.high for i in intervals))), 1, 99
    )
    bottom = 24 + 50 * len(shown)
    content = [
        svg.box(across(-0.2), 6, across(0.2) - across(-0.2), bottom - 6, "road"),
        svg.line(across(0), 6, across(0), bottom, "grid strong"),
    ]
    for number, size in enumerate(shown):
        interval, at = size.cell.slowdown, 24 + 50 * number
        if interval is None:
            continue
        sign = chip(words, size.cell.state).sign
        estimate, _ = _figures(words, size.cell)
        content += [
            svg.text(0, at, f"{sign} {size.label}", "label strong halo-text"),
            svg.text(100, at, estimate, "label strong figure halo-text", "end"),
            svg.line(across(interval.low), at + 16, across(interval.high), at + 16, "interval"),
            svg.element("circle", cx=f"{across(interval.estimate):.2f}%", cy=at + 16, r=5, class_="estimate"),
        ]
    for mark in (-0.5, 0.0, 0.5, 1.0):
        if across.low <= mark <= across.high:
            anchor = "end" if mark == 1.0 else "middle"
            content.append(svg.text(across(mark), bottom + 16, words.percent(mark), anchor=anchor))
    return content

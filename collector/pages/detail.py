# SPDX-License-Identifier: EUPL-1.2
"""A case's page and a cell's page as data: the pictures and sentences, in the order in which they are read.

The order on a case's page is fixed: the sentence; how sure we are and why; what else could explain it; what the
regulation calls it; what the operator answers; the data. Spec: spec/series.md, section "Pages".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote, urlencode

from analysis.rules import RULES
from collector.model import CaseDetail, CaseView, CellDetail, CellKey, CellView, OperatorView, RuleVerdict
from collector.pages.account import (
    Explanation,
    History,
    Law,
    by_coin,
    explanations,
    history,
    law,
    reason_in,
    rule_number,
    sure,
)
from collector.pages.apps import app_name
from collector.pages.curve import Threshold, evidence
from collector.pages.figure import Figure
from collector.pages.language import Words
from collector.pages.overview import CLAIMS, Chip, brand, case_chip, cell_address, chip, place_name, shown_state
from collector.pages.pictures import lanes, slopes
from collector.pages.sentence import (
    LEAST_PROBES,
    Measure,
    measure,
    reaches_below_material,
    sentence,
    short_size,
    status_note,
)


@dataclass(frozen=True, slots=True)
class Said:
    """What an earlier edition of the rule had said last: one sentence, and the edition's whole name."""

    text: str
    rule: str


@dataclass(frozen=True, slots=True)
class CasePage:
    """Everything a case's page shows."""

    id: str
    title: str
    kicker: str
    chip: Chip
    sentence: str
    notes: tuple[str, ...]
    """What must be read with the sentence: that it is over, that it looks back, that it is not the first."""
    lanes: Figure | None
    sure: tuple[str, ...]
    pairs: Figure
    evidence: Figure | None
    explanations: tuple[Explanation, ...]
    law: Law
    history: History
    before: tuple[Said, ...]
    """What earlier editions of the rule had said."""
    siblings: tuple[tuple[str, str], ...]
    """What the other cases of the same question are, and their addresses."""
    places: tuple[tuple[str, str], ...]
    """Name and address of the operator's and the app's pages."""
    as_of: str


@dataclass(frozen=True, slots=True)
class CellPage:
    """Everything a cell's page shows."""

    title: str
    kicker: str
    chip: Chip
    meaning: str
    case: str | None
    """The cell's open case."""
    reasons: tuple[str, ...]
    lanes: Figure | None
    pairs: Figure | None
    evidence: Figure | None
    figures: tuple[tuple[str, str], ...]
    since: str | None
    """Where an earlier case was closed: that its pairs count no more."""
    before: tuple[Said, ...]
    siblings: tuple[tuple[str, str], ...]
    """What its other cases are, and their addresses."""
    places: tuple[tuple[str, str], ...]
    data: str
    """Address of the cell's data."""
    others: tuple[tuple[str, Chip, str], ...]
    """Question, state and address of the cell's other effects."""
    as_of: str


def case_page(
    words: Words, detail: CaseDetail, register: Sequence[OperatorView], cases: Sequence[CaseView] = ()
) -> CasePage:
    """The page of a case; of all `cases` it tells those of the same question."""
    case, cell = detail.case, detail.case.cell
    operator, name = brand(words, cell.key.operator, register), app_name(words, cell.key.app)
    state = case_chip(words, case)
    return CasePage(
        id=case.id,
        title=words(
            f"case.title{_hotspot(cell)}",
            app=name,
            operator=place_name(words, cell.key, register),
            effect=words(f"effect.{cell.key.effect}"),
        ),
        kicker=words("case.kicker", id=case.id, line=_line(words, cell), state=state.word),
        chip=state,
        sentence=sentence(words, case, operator, detail.evidence_by_hour),
        notes=tuple(notes(words, case)),
        lanes=lanes(words, cell),
        sure=tuple(sure(words, case, detail.pairs)),
        pairs=slopes(words, detail.pairs, cell.key.app, cell.key.effect, drawn_in(cell)),
        evidence=evidence(
            words,
            detail.pairs,
            cell.key.effect,
            detail.evidence_by_hour,
            Threshold(
                log10_e=case.threshold_log10_e,
                label=words("chart.threshold", t=words.evidence(case.threshold_log10_e)),
                of_case=True,
            ),
        ),
        explanations=tuple(explanations(words, case, detail.pairs)),
        law=law(words, cell.key.effect),
        history=history(words, case),
        before=tuple(said_before(words, said) for said in detail.verdicts_by_rule),
        siblings=siblings(words, cell.key, cases, but=case.id),
        places=places(words, cell, register),
        as_of=words("site.as_of", moment=words.moment(cell.updated_ms)),
    )


def notes(words: Words, case: CaseView) -> list[str]:
    """What must be read with the sentence."""
    status = status_note(words, case)
    said = [] if status is None else [status]
    if case.retrospective or "retrospective" in case.cell.reasons:
        said.append(words("case.sure_retrospective"))
    if case.episode > 1:
        said.append(words("case.episode", k=words.whole(case.episode)))
    return said


def siblings(
    words: Words, key: CellKey, cases: Sequence[CaseView], but: str | None = None
) -> tuple[tuple[str, str], ...]:
    """The cases of one question, all but one: what each is, and its address. The number of the network may differ."""
    same = [c for c in cases if replace(c.cell.key, asn=None) == replace(key, asn=None) and c.id != but]
    return tuple(
        (
            words("case.sibling", id=c.id, date=words.day_of(c.opened_ms), state=case_chip(words, c).word),
            f"/case/{c.id}",
        )
        for c in sorted(same, key=lambda c: (c.opened_ms, c.id))
    )


def cell_page(
    words: Words,
    detail: CellDetail,
    cells: Sequence[CellView],
    register: Sequence[OperatorView],
    cases: Sequence[CaseView] = (),
) -> CellPage:
    """The page of a cell and effect, case or none; of all `cases` it tells its own."""
    cell = detail.cell
    open_case = next((c.id for c in cases if c.id == cell.case and c.status == "open" and c.supported), None)
    name = app_name(words, cell.key.app)
    state, hidden = shown_state(cell), cell.probes < LEAST_PROBES
    place = (cell.key.operator, cell.key.app, cell.key.direction, cell.key.access)
    others = [
        c
        for c in cells
        if (c.key.operator, c.key.app, c.key.direction, c.key.access) == place and c.key.effect != cell.key.effect
    ]
    return CellPage(
        title=words(
            f"cell.title{_hotspot(cell)}",
            app=name,
            operator=place_name(words, cell.key, register),
            question=words(f"effect_question.{cell.key.effect}"),
        ),
        kicker=_line(words, cell),
        chip=chip(words, state),
        meaning=words(f"state_means.{state}"),
        case=open_case,
        reasons=(words("size.few_probes"),) if hidden else tuple(_reasons(words, cell)),
        lanes=lanes(words, cell),
        pairs=None
        if hidden or not detail.pairs
        else slopes(words, detail.pairs, cell.key.app, cell.key.effect, drawn_in(cell)),
        evidence=None
        if hidden
        else evidence(words, detail.pairs, cell.key.effect, detail.evidence_by_hour, _replicated(words)),
        figures=() if hidden else tuple(_figures(words, cell)),
        since=None if cell.since_day is None else words("cell.since", day=words.day(cell.since_day)),
        before=tuple(said_before(words, said) for said in detail.verdicts_by_rule),
        siblings=siblings(words, cell.key, cases, but=open_case),
        places=places(words, cell, register),
        data="/v1/evidence?"
        + urlencode({name: getattr(cell.key, name) for name in ("operator", "app", "direction", "access", "effect")}),
        others=tuple(
            (words(f"effect_question.{c.key.effect}"), chip(words, shown_state(c)), cell_address(c.key)) for c in others
        ),
        as_of=words("site.as_of", moment=words.moment(cell.updated_ms)),
    )


def _reasons(words: Words, cell: CellView) -> list[str]:
    """Why no more is claimed, and what must be read with what is."""
    small = cell.state in CLAIMS and reaches_below_material(cell)
    return [*(reason_in(words, reason) for reason in cell.reasons), *([words("case.sure_small")] if small else [])]


def drawn_in(cell: CellView) -> Measure:
    """In which measure the pairs are drawn."""
    return measure(cell) if cell.key.effect in {"slowing", "prioritising"} else "rate"


def said_before(words: Words, said: RuleVerdict) -> Said:
    """Judged by an earlier rule until a day: the state, and the size if one was claimed."""
    state = shown_state(said.cell)
    found = None if state in {"insufficient", "not_testable"} else short_size(words, said.cell)
    figures = "" if found is None else f", {found[0]} ({found[1]})"
    text = words(
        "case.said_before",
        rule=rule_number(said.rule),
        date=words.day_of(said.until_ms),
        state=words(f"state.{state}") + figures,
    )
    return Said(text, said.rule)


def _hotspot(cell: CellView) -> str:
    return "_hotspot" if cell.key.access == "hotspot" else ""


def _replicated(words: Words) -> Threshold:
    """Where there is no case the picture shows what the state `replicated` needs."""
    log10_e = math.log10(RULES.indication)
    label = words("chart.threshold_replicated", t=words.evidence(log10_e))
    return Threshold(log10_e=log10_e, label=label, of_case=False)


def places(words: Words, cell: CellView, register: Sequence[OperatorView]) -> tuple[tuple[str, str], ...]:
    """The pages of the cell's operator and of its app."""
    key = cell.key
    return (
        (words("place.all_of", name=brand(words, key.operator, register)), f"/operator/{quote(key.operator, safe='')}"),
        (words("place.all_of", name=app_name(words, key.app)), f"/app/{quote(key.app, safe='')}"),
    )


def _line(words: Words, cell: CellView) -> str:
    key = cell.key
    line = words("overview.line", access=words(f"access.{key.access}"), direction=words(f"direction.{key.direction}"))
    return line if key.asn is None else f"{words('overview.asn', asn=key.asn)}, {line}"


def _figures(words: Words, cell: CellView) -> list[tuple[str, str]]:
    found = short_size(words, cell)
    not_yet, one = words("cell.not_yet"), cell.log10_e_without_one
    detectable = not_yet
    if cell.detectable_rate_mbps is not None and cell.detectable_burst_kb is not None:
        rate, burst = words.rate(cell.detectable_rate_mbps), words.size(cell.detectable_burst_kb)
        detectable = words("cell.detectable_value", rate=rate, burst=burst)
    if cell.detectable_delay_ms is not None and cell.detectable_loss is not None:
        queue = words(
            "cell.detectable_queue",
            delay=words.delay(cell.detectable_delay_ms),
            loss=words.points(cell.detectable_loss),
        )
        detectable = queue if detectable == not_yet else f"{detectable}; {queue}"
    values = (
        ("size", not_yet if found is None else f"{found[0]} ({found[1]})"),
        ("evidence_one", not_yet if one is None else words.evidence(one)),
        ("evidence", words.evidence(cell.log10_e)),
        ("pairs", words.whole(cell.pairs)),
        ("lost", words.whole(cell.lost_pairs)),
        ("void", by_coin(words, cell, "void")),
        ("failed", by_coin(words, cell, "failed")),
        ("placebo", words.whole(cell.placebo_pairs)),
        ("probes", words.whole(cell.probes)),
        ("slowed", words.whole(cell.slowed)),
        ("clear", words.whole(cell.clear)),
        ("undecided", words.whole(cell.undecided)),
        ("detectable", detectable),
    )
    return [(words(f"cell.{key}"), value) for key, value in values]

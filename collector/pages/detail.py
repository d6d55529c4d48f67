# SPDX-License-Identifier: EUPL-1.2
"""A case's page and a cell's page as data: pictures, how sure and why, other explanations, law, history.

The order on a case's page is fixed: the sentence; how sure we are and why; what else could explain it; what the
regulation calls it; what the operator answers; the data. Spec: spec/series.md, section "Pages".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from collector.model import CaseDetail, CaseView, CellDetail, CellView, OperatorView
from collector.pages.language import Words
from collector.pages.overview import Chip, brand, case_chip, cell_address, chip, shown_state
from collector.pages.pictures import Figure, evidence, lanes, slopes
from collector.pages.sentence import LEAST_PROBES, app_name, sentence, short_size, status_note
from probe.wire.records import PairRecord


@dataclass(frozen=True, slots=True)
class Explanation:
    """Something else that could explain the difference, and how far the data rule it out."""

    cause: str
    answer: str
    verdict: str


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the history."""

    at: str
    what: str
    state: str
    evidence: str
    rule: str
    inputs: str
    reason: str


@dataclass(frozen=True, slots=True)
class Law:
    """The regulation's words, with the verb picked out: the quotation before it, the verb, and after it."""

    before: str
    verb: str
    after: str


@dataclass(frozen=True, slots=True)
class CasePage:
    """Everything a case's page shows."""

    id: str
    title: str
    kicker: str
    chip: Chip
    sentence: str
    note: str | None
    lanes: Figure | None
    sure: tuple[str, ...]
    pairs: Figure
    evidence: Figure | None
    explanations: tuple[Explanation, ...]
    law: Law
    history: tuple[Event, ...]
    as_of: str


@dataclass(frozen=True, slots=True)
class CellPage:
    """Everything a cell's page shows."""

    title: str
    kicker: str
    chip: Chip
    meaning: str
    case: str | None
    reasons: tuple[str, ...]
    lanes: Figure | None
    pairs: Figure | None
    evidence: Figure | None
    figures: tuple[tuple[str, str], ...]
    others: tuple[tuple[str, Chip, str], ...]
    """Question, state and address of the cell's other effects."""
    as_of: str


def case_page(words: Words, detail: CaseDetail, register: Sequence[OperatorView]) -> CasePage:
    """The page of a case."""
    case, cell = detail.case, detail.case.cell
    operator, name = brand(words, cell.key.operator, register), app_name(cell.key.app)
    state = case_chip(words, case)
    return CasePage(
        id=case.id,
        title=words("case.title", app=name, operator=operator, effect=words(f"effect.{cell.key.effect}")),
        kicker=words("case.kicker", id=case.id, line=_line(words, cell), state=state.word),
        chip=state,
        sentence=sentence(words, case, operator),
        note=status_note(words, case),
        lanes=lanes(words, cell),
        sure=tuple(_sure(words, case)),
        pairs=slopes(words, detail.pairs, cell.key.app, cell.key.effect),
        evidence=evidence(words, detail.evidence_by_pair, detail.evidence_by_hour, case.threshold_log10_e),
        explanations=tuple(_explanations(words, case, detail.pairs)),
        law=law(words, cell.key.effect),
        history=tuple(_history(words, case)),
        as_of=words("site.as_of", moment=words.moment(cell.updated_ms)),
    )


def cell_page(
    words: Words, detail: CellDetail, cells: Sequence[CellView], register: Sequence[OperatorView]
) -> CellPage:
    """The page of a cell and effect, case or none."""
    cell = detail.cell
    operator, name = brand(words, cell.key.operator, register), app_name(cell.key.app)
    state, hidden = shown_state(cell), cell.probes < LEAST_PROBES
    place = (cell.key.operator, cell.key.app, cell.key.direction, cell.key.access)
    others = [
        c
        for c in cells
        if (c.key.operator, c.key.app, c.key.direction, c.key.access) == place and c.key.effect != cell.key.effect
    ]
    return CellPage(
        title=words("cell.title", app=name, operator=operator, question=words(f"effect_question.{cell.key.effect}")),
        kicker=_line(words, cell),
        chip=chip(words, state),
        meaning=words(f"state_means.{state}"),
        case=cell.case,
        reasons=(words("size.few_probes"),) if hidden else tuple(_reason(words, reason) for reason in cell.reasons),
        lanes=lanes(words, cell),
        pairs=None if hidden or not detail.pairs else slopes(words, detail.pairs, cell.key.app, cell.key.effect),
        evidence=None if hidden else evidence(words, detail.evidence_by_pair, detail.evidence_by_hour, None),
        figures=() if hidden else tuple(_figures(words, cell)),
        others=tuple(
            (words(f"effect_question.{c.key.effect}"), chip(words, shown_state(c)), cell_address(c.key)) for c in others
        ),
        as_of=words("site.as_of", moment=words.moment(cell.updated_ms)),
    )


def law(words: Words, effect: str) -> Law:
    """The verbs of Art. 3(3) Reg. (EU) 2015/2120 in the official words, the measured one picked out."""
    quote, verb = words("case.law_quote"), words(f"verb.{effect}")
    before, _, after = quote.partition(verb)
    return Law(before, verb, after)


def _line(words: Words, cell: CellView) -> str:
    key = cell.key
    line = words("overview.line", access=words(f"access.{key.access}"), direction=words(f"direction.{key.direction}"))
    return line if key.asn is None else f"{words('overview.asn', asn=key.asn)}, {line}"


def _reason(words: Words, reason: str) -> str:
    """A reason in words; one that these pages do not know yet is shown by its code rather than hidden."""
    return words(f"reason.{reason}") if words.has(f"reason.{reason}") else reason


def _sure(words: Words, case: CaseView) -> list[str]:
    cell = case.cell
    said = [
        words("case.sure_evidence", e=words.evidence(cell.log10_e)),
        words(
            "case.sure_pairs",
            pairs=words.whole(cell.pairs),
            probes=words.whole(cell.probes),
            slowed=words.whole(cell.slowed),
            clear=words.whole(cell.clear),
            undecided=words.whole(cell.undecided),
        ),
        words("case.sure_threshold", t=words.evidence(case.threshold_log10_e), n=words.whole(case.hypotheses)),
        words("case.sure_coalition", g=words.whole(case.smallest_coalition)),
    ]
    if cell.lost_pairs:
        said.append(words.count("case.sure_lost", cell.lost_pairs))
    if cell.detectable_rate_mbps is not None and cell.detectable_burst_kb is not None:
        rate, burst = words.rate(cell.detectable_rate_mbps), words.size(cell.detectable_burst_kb)
        said.append(words("case.sure_detectable", rate=rate, burst=burst))
    return said


def _explanations(words: Words, case: CaseView, pairs: Sequence[PairRecord]) -> list[Explanation]:
    ruled_out, partly, open_ = (words(f"case.{key}") for key in ("ruled_out", "partly", "not_ruled_out"))
    edge = {pair.probe for pair in pairs if pair.edge}
    placebo = case.cell.placebo_pairs
    home = (
        words("case.explain_home_edge", k=words.whole(len(edge)), n=words.whole(case.cell.probes))
        if edge
        else words("case.explain_home_none")
    )
    us = words("case.explain_us_answer", n=words.whole(placebo)) if placebo else words("case.explain_us_none")
    liars = words("case.explain_liars_answer", g=words.whole(case.smallest_coalition))
    found = (
        ("moment", words("case.explain_moment_answer"), ruled_out),
        ("us", us, partly if placebo else open_),
        ("liars", liars, partly),
        ("home", home, partly if edge else open_),
        ("tariff", words("case.explain_tariff_answer"), open_),
        ("transit", words("case.explain_transit_answer"), open_),
    )
    return [Explanation(words(f"case.explain_{cause}"), answer, verdict) for cause, answer, verdict in found]


def _history(words: Words, case: CaseView) -> list[Event]:
    return [
        Event(
            at=words.moment(event.at_ms),
            what=words(f"event.{event.what}"),
            state=words(f"state.{event.state}"),
            evidence=words.evidence(event.log10_e),
            rule=event.rule,
            inputs=event.inputs,
            reason=_reason(words, event.reason) if event.reason else "",
        )
        for event in case.history
    ]


def _figures(words: Words, cell: CellView) -> list[tuple[str, str]]:
    found = short_size(words, cell)
    not_yet = words("cell.not_yet")
    detectable = not_yet
    if cell.detectable_rate_mbps is not None and cell.detectable_burst_kb is not None:
        rate, burst = words.rate(cell.detectable_rate_mbps), words.size(cell.detectable_burst_kb)
        detectable = words("cell.detectable_value", rate=rate, burst=burst)
    values = (
        ("size", not_yet if found is None else f"{found[0]} ({found[1]})"),
        ("evidence", words.evidence(cell.log10_e)),
        ("pairs", words.whole(cell.pairs)),
        ("lost", words.whole(cell.lost_pairs)),
        ("placebo", words.whole(cell.placebo_pairs)),
        ("probes", words.whole(cell.probes)),
        ("slowed", words.whole(cell.slowed)),
        ("clear", words.whole(cell.clear)),
        ("undecided", words.whole(cell.undecided)),
        ("detectable", detectable),
    )
    return [(words(f"cell.{key}"), value) for key, value in values]

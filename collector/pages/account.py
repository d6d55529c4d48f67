# SPDX-License-Identifier: EUPL-1.2
"""What a case's page answers for: how sure and why, what else could explain it, the law's words, what happened when.

Sentences are data (`words/*.toml`); here stands which of them the data allow, and with which figures.
Spec: spec/series.md, sections "Pages" and "Words and figures".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from collector.model import CaseEvent, CaseView, CellView, CoinCounts
from collector.pages.apps import app_name
from collector.pages.language import Words
from collector.pages.recompute import curve
from collector.pages.sentence import reaches_below_material, size
from probe.wire.records import PairRecord

FIRST_LINES: Final = 2
LAST_LINES: Final = 6
"""Of a history that is longer than both together, the middle is left to the data."""
OFFICIAL_TEXT: Final = "http://data.europa.eu/eli/reg/2015/2120/oj"
"""European Legislation Identifier of Regulation (EU) 2015/2120, OJ L 310, 26.11.2015, p. 1."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Something else that could explain the difference, and how far the data rule it out."""

    cause: str
    answer: str
    verdict: str
    sign: str


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the history."""

    at: str
    what: str
    sign: str
    reason: str
    evidence: str
    """Without the strongest network; a dash where an older version did not write it down."""
    whole: str
    """With all networks."""
    rule: str
    inputs: str


@dataclass(frozen=True, slots=True)
class History:
    """What happened to a case, shortened where it is long; a case that went to and fro is summed up in a sentence."""

    summary: str | None
    events: tuple[Event, ...]
    left_out: str
    """Said where lines are missing; empty otherwise."""
    gap_after: int
    """After so many lines."""
    rule: str | None
    """The rule that decided everything, where it was one; else each line names its own."""
    number: str
    """Its version."""


@dataclass(frozen=True, slots=True)
class Law:
    """The regulation's words, with the verb picked out: the quotation before it, the verb, and after it."""

    before: str
    verb: str
    after: str
    source: str = OFFICIAL_TEXT


def law(words: Words, effect: str) -> Law:
    """The verbs of Art. 3(3) Reg. (EU) 2015/2120 in the official words, the measured one picked out."""
    quote, verb = words("case.law_quote"), words(f"verb.{effect}")
    before, _, after = quote.partition(verb)
    return Law(before, verb, after)


def reason_in(words: Words, reason: str) -> str:
    """A reason in words; one that these pages do not know yet is shown by its code rather than hidden."""
    return words(f"reason.{reason}") if words.has(f"reason.{reason}") else reason


def strength_decided_on(case: CaseView, pairs: tuple[PairRecord, ...]) -> float:
    """The strength without the strongest network, as a decimal logarithm: as judged, else from the pairs."""
    if case.cell.log10_e_without_one is not None:
        return case.cell.log10_e_without_one
    points = curve(pairs, case.cell.key.effect)
    return points[-1].decides if points else 0.0


def sure(words: Words, case: CaseView, pairs: tuple[PairRecord, ...]) -> list[str]:
    """How sure we are, and why: chance first, then the bar, the checks, the size, and what would be seen at all."""
    cell = case.cell
    listed = case.status == "open" and case.supported
    one = strength_decided_on(case, pairs)
    threshold = words.evidence(case.threshold_log10_e)
    said = [
        words(
            "case.sure_chance" if one > 0 else "case.sure_no_evidence",
            one=words.evidence(one),
            e=words.evidence(cell.log10_e),
        ),
        words("case.sure_threshold", t=threshold, n=words.whole(case.hypotheses)),
        words(
            "case.sure_pairs",
            pairs=words.whole(cell.pairs),
            probes=words.whole(cell.probes),
            slowed=words.whole(cell.slowed),
            clear=words.whole(cell.clear),
            undecided=words.whole(cell.undecided),
        ),
    ]
    if listed:
        said.append(words("case.sure_checks"))
    if size(cell) is not None:
        among = "_among" if "effect_among_slowed" in cell.reasons else ""
        said.append(words(f"case.sure_interval{among}"))
    if cell.lost_pairs:
        said.append(words.count("case.sure_lost", cell.lost_pairs))
    if "lost_unknown" in cell.reasons:
        said.append(words("case.sure_lost_unknown"))
    compares = cell.key.effect in {"slowing", "prioritising"}
    if compares and cell.detectable_rate_mbps is not None and cell.detectable_burst_kb is not None:
        rate, burst = words.rate(cell.detectable_rate_mbps), words.size(cell.detectable_burst_kb)
        said.append(words("case.sure_detectable", rate=rate, burst=burst))
    if compares and cell.detectable_delay_ms is not None and cell.detectable_loss is not None:
        delay, loss = words.delay(cell.detectable_delay_ms), words.points(cell.detectable_loss)
        said.append(words("case.sure_detectable_queue", delay=delay, loss=loss))
    if reaches_below_material(cell):
        said.append(words("case.sure_small"))
    if cell.void_pairs:
        said.append(words("case.sure_void", by_coin=by_coin(words, cell, "void")))
    return said


def by_coin(words: Words, cell: CellView, what: Literal["void", "failed"]) -> str:
    """How many pairs failed in both arms, or in one, and how they fall upon the two sides of the coin."""
    if cell.neutral_first is None or cell.app_first is None:
        return words("cell.not_yet")

    def count(coin: CoinCounts) -> int:
        return coin.void if what == "void" else coin.failed_app + coin.failed_neutral

    first, second = cell.neutral_first, cell.app_first
    return words(
        "cell.by_coin",
        k=words.whole(count(first) + count(second)),
        n=words.whole(first.pairs + second.pairs),
        a=words.whole(count(first)),
        of_a=words.whole(first.pairs),
        b=words.whole(count(second)),
        of_b=words.whole(second.pairs),
        app=app_name(words, cell.key.app),
    )


def rule_number(rule: str) -> str:
    """The version in a rule's name: "2" of "evenlane-pairs@2:1f0a…"; a name of another form as it is."""
    version = rule.partition("@")[2].partition(":")[0]
    return version or rule


def explanations(words: Words, case: CaseView, pairs: Sequence[PairRecord]) -> list[Explanation]:
    """What else could explain the difference, the best excluded first."""
    verdicts = {
        "ruled_out": (words("case.ruled_out"), "✓"),
        "partly": (words("case.partly"), "±"),
        "open": (words("case.not_ruled_out"), "?"),
    }
    edge = {pair.probe for pair in pairs if pair.edge}
    placebo, alarmed = case.cell.placebo_pairs, "placebo_alarm" in case.cell.reasons
    home = (
        words("case.explain_home_edge", k=words.whole(len(edge)), n=words.whole(case.cell.probes))
        if edge
        else words("case.explain_home_none")
    )
    us = words("case.explain_us_none")
    if placebo:
        us = words(f"case.explain_us_{'alarm' if alarmed else 'answer'}", n=words.whole(placebo))
    coalition = case.smallest_coalition
    at_once = bool(pairs) and all(pair.design == "concurrent" for pair in pairs)
    liars = words("case.explain_liars_answer", g=words.whole(coalition))
    found = (
        ("moment", words(f"case.explain_moment_{'both' if at_once else 'answer'}"), "ruled_out"),
        ("us", us, "partly" if placebo and not alarmed else "open"),
        ("liars", liars, "partly" if coalition > 1 else "open"),
        ("home", home, "partly" if edge else "open"),
        ("tariff", words("case.explain_tariff_answer"), "open"),
        ("transit", words("case.explain_transit_answer"), "open"),
    )
    return [Explanation(words(f"case.explain_{cause}"), answer, *verdicts[verdict]) for cause, answer, verdict in found]


_SIGNS: Final = {
    "opened": "≠",
    "alerted": "!",
    "changed": "·",
    "no_longer_supported": "↓",
    "supported_again": "↑",
    "ended": "⊣",
    "withdrawn": "×",
    "corrected": "·",
}


def history(words: Words, case: CaseView) -> History:
    """What happened, in order; a case that lost its support and got it back says so in one sentence first."""
    lines = case.history
    kept: Sequence[CaseEvent] = lines
    gap, left_out = 0, ""
    if len(lines) > FIRST_LINES + LAST_LINES:
        kept = (*lines[:FIRST_LINES], *lines[-LAST_LINES:])
        gap, left_out = FIRST_LINES, words.count("case.history_left_out", len(lines) - len(kept))
    rules = {line.rule for line in lines}
    rule = next(iter(rules)) if len(rules) == 1 else None
    return History(
        summary=_to_and_fro(words, case),
        events=tuple(_event(words, line) for line in kept),
        left_out=left_out,
        gap_after=gap,
        rule=rule,
        number=rule_number(rule or ""),
    )


def _event(words: Words, line: CaseEvent) -> Event:
    return Event(
        at=words.moment(line.at_ms),
        what=words(f"event.{line.what}"),
        sign=_SIGNS[line.what],
        reason=reason_in(words, line.reason) if line.reason else "",
        evidence="–" if line.log10_e_without_one is None else words.evidence(line.log10_e_without_one),
        whole=words.evidence(line.log10_e),
        rule=line.rule,
        inputs=line.inputs,
    )


def _to_and_fro(words: Words, case: CaseView) -> str | None:
    """For a case that fell off the list and came back: how often, and where it stands."""
    falls = [line for line in case.history if line.what == "no_longer_supported"]
    returns = [line for line in case.history if line.what == "supported_again"]
    if not returns:
        return None
    times = words.count("case.history_falls", len(falls))
    if case.status == "open" and case.supported:
        return words("case.history_again", times=times, date=words.day_of(returns[-1].at_ms))
    return words("case.history_fro", times=times)

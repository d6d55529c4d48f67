# SPDX-License-Identifier: EUPL-1.2
"""The three pictures of a case: two lanes, its pairs as slopes, its evidence against the threshold.

Pure functions from the model to SVG and to the table that says the same. A title states what was found.
Never a gauge, a pie or a ranking without intervals. Spec: spec/series.md, section "Look".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from markupsafe import Markup

from collector.model import CellView, EvidencePoint, Interval, PairEvidence
from collector.pages import svg
from collector.pages.language import Words
from collector.pages.sentence import LEAST_PROBES, app_name, share_failed
from probe.wire.records import Effect, PairRecord

_T = TypeVar("_T")

MOST_SLOPES: Final = 300
"""More lines than this cannot be told apart; they are then drawn evenly spread over the pairs."""
DENSE: Final = 60
"""More lines than this are drawn fainter, so that one sees where they are many."""
MOST_ROWS: Final = 100
"""Rows of a table on a page; the rest is in the data."""
LEAST_HOURS: Final = 6
"""From so many hours with pairs on, evidence is drawn over time; before, over pairs."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One picture with everything that goes with it."""

    title: str
    note: str
    svg: Markup
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    more: str = ""
    """Said above the table where it does not hold everything."""


def lanes(words: Words, cell: CellView) -> Figure | None:
    """A street with two lanes: the app and the same traffic under another name, on one scale."""
    if cell.probes < LEAST_PROBES:
        return None
    if cell.key.effect == "blocking":
        return _lanes_blocking(words, cell)
    app, neutral = cell.app_mbps, cell.neutral_mbps
    if app is None or neutral is None:
        return None
    kind = "even"
    if cell.state in {"indication", "replicated", "corroborated"} and cell.key.effect in {"slowing", "prioritising"}:
        kind = cell.key.effect
    name = app_name(cell.key.app)
    title = words(f"case.lanes_finding_{kind}", app=name, a=words.rate(app.estimate), b=words.rate(neutral.estimate))
    values = tuple((words.rate(i.estimate), f"{words.rate(i.low)} – {words.rate(i.high)}") for i in (app, neutral))
    top = max(app.high, app.estimate, neutral.high, neutral.estimate, 1e-9)
    return _street(
        words,
        name=name,
        title=title,
        note=words("case.lanes_note"),
        both=(app, neutral),
        top=top,
        values=values,
        heads=("chart.rate", "chart.middle_half"),
    )


def _lanes_blocking(words: Words, cell: CellView) -> Figure | None:
    failed = (cell.failed_app, cell.failed_neutral)
    found = [share_failed(k, cell.pairs) for k in failed]
    if found[0] is None or found[1] is None:
        return None
    worked = tuple(Interval(estimate=1 - s.estimate, low=1 - s.high, high=1 - s.low) for s in found if s is not None)
    name = app_name(cell.key.app)
    title = words(
        "case.lanes_finding_blocking",
        app=name,
        k=words.whole(failed[0]),
        m=words.whole(failed[1]),
        n=words.whole(cell.pairs),
    )
    values = tuple((words.percent(i.estimate), " – ".join(words.percents(i.low, i.high))) for i in worked)
    note = words("case.lanes_note_blocking")
    heads = ("chart.share_worked", "chart.allowed")
    both = (worked[0], worked[1])
    return _street(words, name=name, title=title, note=note, both=both, top=1.0, values=values, heads=heads)


def _street(
    words: Words,
    *,
    name: str,
    title: str,
    note: str,
    both: tuple[Interval, Interval],
    top: float,
    values: tuple[tuple[str, str], ...],
    heads: tuple[str, str],
) -> Figure:
    across = svg.Scale(0, top, 0, 98)
    other = words("case.lane_neutral")
    content = [
        svg.box(0, 26, 100, 36, "road"),
        svg.box(0, 62, 100, 36, "road"),
        svg.line(0, 62, 100, 62, "road-middle"),
    ]
    places = (("app", name, 18, 44), ("neutral", other, 118, 80))
    for (class_, label, at, middle), lane, (value, _) in zip(places, both, values, strict=True):
        content += [
            svg.box(0, middle - 12, across(lane.estimate), 24, f"lane lane-{class_}"),
            *_whisker(across(lane.low), across(lane.high), middle),
            svg.text(0, at, label, "label strong"),
            svg.text(100, at, value, "label strong figure", "end"),
        ]
    rows = tuple((label, *pair) for label, pair in zip((name, other), values, strict=True))
    head = (words("chart.lane"), words(heads[0]), words(heads[1]))
    return Figure(title, note, svg.picture("lanes", 126, title=title, description=note, content=content), head, rows)


def _whisker(low: float, high: float, middle: float) -> list[Markup]:
    parts = ((low, middle, high, middle), (low, middle - 5, low, middle + 5), (high, middle - 5, high, middle + 5))
    return [svg.line(*part, class_) for class_ in ("halo", "whisker") for part in parts]


def slopes(words: Words, pairs: Sequence[PairRecord], app: str, effect: Effect) -> Figure:
    """One thin line a pair, from the neutral name on the left to the app on the right."""
    name = app_name(app)
    tested = [pair for pair in pairs if pair.kind == "test" and not pair.lost]
    drawn = [pair for pair in tested if pair.app_mbps is not None or pair.neutral_mbps is not None]
    shown = _spread(drawn, MOST_SLOPES)
    title = _slopes_title(words, tested, name, effect)
    note = words("chart.pairs_text", app=name)
    if len(shown) < len(drawn):
        note += " " + words("chart.pairs_sampled", n=words.whole(len(shown)), total=words.whole(len(drawn)))
    marks = svg.ticks(max([r for p in shown for r in (p.app_mbps, p.neutral_mbps) if r is not None], default=1.0))
    down = svg.Scale(0, marks[-1], 232, 16)
    content = []
    for mark in marks:
        content += [
            svg.line(17, down(mark), 100, down(mark), "grid"),
            svg.text(16, down(mark) + 4, words.mark(mark, unit=mark == marks[-1]), anchor="end"),
        ]
    content += [svg.line(x, 16, x, 232, "grid strong") for x in (22, 95)]
    for pair in shown:
        y_app, y_other = down(pair.app_mbps or 0), down(pair.neutral_mbps or 0)
        content.append(svg.line(22, y_other, 95, y_app, "pair" if len(shown) <= DENSE else "pair dense"))
        content += [_cross(x, 232) for x, rate in ((95, pair.app_mbps), (22, pair.neutral_mbps)) if rate is None]
    content += [
        svg.text(22, 258, words("case.lane_neutral"), "label strong", "start"),
        svg.text(95, 258, name, "label strong", "end"),
    ]
    return Figure(
        title,
        note,
        svg.picture("pairs", 266, title=title, description=note, content=content),
        tuple(words(f"chart.{key}", app=name) for key in ("pair", "day", "probe", "neutral", "app", "first")),
        tuple(_pair_row(words, pair, name) for pair in pairs[:MOST_ROWS]),
        words("chart.table_first", n=words.whole(MOST_ROWS), total=words.whole(len(pairs)))
        if len(pairs) > MOST_ROWS
        else "",
    )


def _slopes_title(words: Words, tested: Sequence[PairRecord], name: str, effect: Effect) -> str:
    if not tested:
        return words("chart.pairs_finding_none")
    if effect == "blocking":
        count, of = sum(p.app_mbps is None and p.neutral_mbps is not None for p in tested), len(tested)
    else:
        both = [(p.app_mbps, p.neutral_mbps) for p in tested if p.app_mbps is not None and p.neutral_mbps is not None]
        of = len(both)
        count = sum(a > b if effect == "prioritising" else a < b for a, b in both)
    kind = effect if effect in {"slowing", "prioritising", "blocking"} else "slowing"
    if of == 0:
        return words("chart.pairs_finding_none")
    return words(f"chart.pairs_finding_{kind}", k=words.whole(count), n=words.whole(of), app=name)


def _pair_row(words: Words, pair: PairRecord, name: str) -> tuple[str, ...]:
    order = "" if pair.neutral_first is None else words("chart.order_neutral") if pair.neutral_first else name
    if pair.lost:
        cells = (words("chart.lost"), words("chart.lost"))
    else:
        rates = (pair.neutral_mbps, pair.app_mbps)
        cells = tuple(words("chart.failed") if rate is None else words.rate(rate) for rate in rates)  # type: ignore[assignment]
    number = words.whole(pair.sequence)
    if pair.kind == "placebo":
        number += f" ({words('chart.placebo')})"
    return (number, pair.day, pair.probe, *cells, order)


def _cross(x: float, y: float) -> Markup:
    """A failed connection; its strokes are pixels around a percentage, which only a nested picture allows."""
    return svg.element(
        "svg",
        svg.element("path", d="M-5-5L5 5M-5 5L5-5", class_="cross"),
        x=f"{x}%",
        y=y,
        overflow="visible",
    )


def evidence(
    words: Words, by_pair: Sequence[PairEvidence], by_hour: Sequence[EvidencePoint], threshold: float | None
) -> Figure | None:
    """Evidence on a scale of powers of ten: over time where there are hours enough, else over pairs."""
    if len(by_hour) >= LEAST_HOURS:
        points = [(float(p.bucket_ms), p.log10_e) for p in by_hour]
        ends = (words.day_of(by_hour[0].bucket_ms), words.day_of(by_hour[-1].bucket_ms))
        if ends[0] == ends[1]:
            ends = (words.moment(by_hour[0].bucket_ms), words.clock(by_hour[-1].bucket_ms))
        head = (words("chart.hour"), words("chart.evidence"))
        rows = [(words.moment(p.bucket_ms), words.evidence(p.log10_e)) for p in by_hour]
    elif by_pair:
        points = [(0.0, 0.0), *((float(p.sequence), p.log10_e) for p in by_pair)]
        ends = ("", words.count("size.pairs", by_pair[-1].sequence))
        head = (words("chart.pair"), words("chart.evidence"))
        rows = [(words.whole(p.sequence), words.evidence(p.log10_e)) for p in by_pair]
    else:
        return None
    title = _evidence_title(words, points, threshold, over_time=len(by_hour) >= LEAST_HOURS)
    note = words("chart.evidence_text")
    if threshold is not None:
        note += " " + words("chart.evidence_threshold_text")
    shown = rows if len(rows) <= MOST_ROWS else _spread(rows, MOST_ROWS)
    more = "" if shown is rows else words("chart.rows_sampled", n=words.whole(len(shown)), total=words.whole(len(rows)))
    drawn = svg.picture(
        "evidence", 250, title=title, description=note, content=_evidence_lines(words, points, threshold, ends)
    )
    return Figure(title, note, drawn, head, tuple(shown), more)


def _evidence_title(
    words: Words, points: Sequence[tuple[float, float]], threshold: float | None, *, over_time: bool
) -> str:
    last = points[-1][1]
    if threshold is None:
        return f"{words('chart.evidence')}: {words.evidence(last)}"
    passed = next((at for at, value in points if value >= threshold), None)
    if passed is None:
        return words("chart.evidence_finding_not", e=words.evidence(last), t=words.evidence(threshold))
    if over_time:
        return words("chart.evidence_finding_passed_at", moment=words.moment(int(passed)))
    return words("chart.evidence_finding_passed", n=words.whole(passed))


def _evidence_lines(
    words: Words, points: Sequence[tuple[float, float]], threshold: float | None, ends: tuple[str, str]
) -> list[Markup]:
    values = [min(max(value, -6.0), 300.0) for _, value in points] + ([threshold] if threshold is not None else [])
    low, high = math.floor(min(0.0, *values)), math.ceil(max(1.0, *values) + 0.2)
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if (high - low) / s <= 7)
    up = svg.Scale(low, high, 212, 14)
    content = []
    for exponent in range(math.ceil(low / step) * step, high + 1, step):
        content.append(svg.line(17, up(exponent), 100, up(exponent), "grid strong" if exponent == 0 else "grid"))
        content.append(svg.text(16, up(exponent) + 4, words.power(exponent), anchor="end"))
    across = svg.Scale(points[0][0], points[-1][0], 0, 1000)
    steps = _steps([(across(at), up(value) - 14) for at, value in _spread(points, 600)])
    content.append(
        svg.element(
            "svg",
            svg.element("polyline", points=steps, class_="evidence", vector_effect="non-scaling-stroke"),
            x="17%",
            y=14,
            width="83%",
            height=198,
            viewBox="0 0 1000 198",
            preserveAspectRatio="none",
        )
    )
    if threshold is not None:
        at = up(threshold)
        content.append(svg.line(17, at, 100, at, "threshold"))
        below = at + 17 if at < 40 else at - 7
        content.append(
            svg.text(18, below, words("chart.threshold", t=words.evidence(threshold)), "label strong halo-text")
        )
    content += [svg.text(17, 236, ends[0]), svg.text(100, 236, ends[1], anchor="end")]
    return content


def _steps(points: Sequence[tuple[float, float]]) -> str:
    """A staircase: evidence stands still between pairs."""
    written: list[str] = []
    before: float | None = None
    for x, y in points:
        if before is not None:
            written.append(f"{x:.1f},{before:.1f}")
        written.append(f"{x:.1f},{y:.1f}")
        before = y
    return " ".join(written)


def _spread(items: Sequence[_T], most: int) -> list[_T]:
    """At most so many items, evenly spread, first and last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]

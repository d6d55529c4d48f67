# SPDX-License-Identifier: EUPL-1.2
"""Two lanes, pairs as slopes, and sizes beside each other: from the model to SVG and the table that says the same.

A title states what was found. Never a gauge, a pie or a ranking without intervals. Spec: spec/series.md, section
"Look".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from markupsafe import Markup

from collector.model import CellView, Interval
from collector.pages import svg
from collector.pages.apps import app_name
from collector.pages.figure import Figure, spread
from collector.pages.language import Words
from collector.pages.sentence import LEAST_PROBES, Measure, share_failed
from collector.pages.sentence import measure as measured
from probe.wire.records import Effect, PairRecord

MOST_SLOPES: Final = 300
"""More lines than this cannot be told apart; they are then drawn evenly spread over the pairs."""
BESIDE: Final = 22
"""Two labels with more letters than this do not fit beside each other on a phone."""
DENSE: Final = 60
"""More lines than this are drawn fainter, so that one sees where they are many."""
MOST_ROWS: Final = 100
"""Rows of a table on a page; the rest is in the data."""


def lanes(words: Words, cell: CellView) -> Figure | None:
    """A street with two lanes: the app and the same traffic under another name, on one scale."""
    if cell.probes < LEAST_PROBES:
        return None
    if cell.key.effect in {"blocking", "tampering"}:
        return _lanes_counted(words, cell)
    seen = measured(cell)
    app, neutral = {
        "rate": (cell.app_mbps, cell.neutral_mbps),
        "delay": (cell.app_delay_ms, cell.neutral_delay_ms),
        "loss": (cell.app_loss, cell.neutral_loss),
    }[seen]
    if app is None or neutral is None:
        return None
    kind = "even"
    if cell.state in {"indication", "replicated", "corroborated"} and cell.key.effect in {"slowing", "prioritising"}:
        kind = cell.key.effect
    name, say = app_name(words, cell.key.app), _say(words, seen)
    wait = "" if seen == "rate" else f"_{seen}"
    finding = f"case.lanes_finding_{kind}" if seen == "rate" else f"case.lanes_finding{wait}"
    title = words(finding, app=name, a=say(app.estimate), b=say(neutral.estimate))
    values = tuple((say(i.estimate), f"{say(i.low)} – {say(i.high)}") for i in (app, neutral))
    top = max(app.high, app.estimate, neutral.high, neutral.estimate, 1e-9)
    return _street(
        words,
        name=name,
        title=title,
        note=words(f"case.lanes_note{wait}"),
        both=(app, neutral),
        top=top,
        values=values,
        heads=(f"chart.{seen}", "chart.middle_half"),
    )


def _say(words: Words, seen: Measure) -> Callable[[float], str]:
    """How a figure of this measure is written."""
    return {"rate": words.rate, "delay": words.delay, "loss": words.tenths}[seen]


def _lanes_counted(words: Words, cell: CellView) -> Figure | None:
    """Blocking and tampering: in how many pairs each arm got through, as it was sent."""
    effect = cell.key.effect
    # A void pair failed in both arms, and says nothing of what arrived.
    failed = tuple(k + cell.void_pairs for k in (cell.failed_app, cell.failed_neutral))
    of = cell.pairs
    if effect == "tampering":
        failed = tuple(k + cell.altered_both for k in (cell.altered_app, cell.altered_neutral))
        of -= cell.void_pairs
    found = [share_failed(k, of) for k in failed]
    if found[0] is None or found[1] is None:
        return None
    worked = tuple(Interval(estimate=1 - s.estimate, low=1 - s.high, high=1 - s.low) for s in found if s is not None)
    name = app_name(words, cell.key.app)
    title = words(
        f"case.lanes_finding_{effect}",
        app=name,
        k=words.whole(failed[0]),
        m=words.whole(failed[1]),
        n=words.whole(of),
    )
    values = tuple((words.percent(i.estimate), " – ".join(words.percents(i.low, i.high))) for i in worked)
    note = words(f"case.lanes_note_{effect}")
    heads = (f"chart.share_{'worked' if effect == 'blocking' else 'unaltered'}", "chart.allowed")
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
            svg.text(0, at, svg.shorten(label), "label strong"),
            svg.text(100, at, value, "label strong figure", "end"),
        ]
    rows = tuple((label, *pair) for label, pair in zip((name, other), values, strict=True))
    head = (words("chart.lane"), words(heads[0]), words(heads[1]))
    return Figure(title, note, svg.picture("lanes", 126, title=title, description=note, content=content), head, rows)


def _whisker(low: float, high: float, middle: float) -> list[Markup]:
    parts = ((low, middle, high, middle), (low, middle - 5, low, middle + 5), (high, middle - 5, high, middle + 5))
    return [svg.line(*part, class_) for class_ in ("halo", "whisker") for part in parts]


def figures_of(pair: PairRecord, seen: Measure) -> tuple[float | None, float | None]:
    """App and neutral arm of a pair in one measure: Mbit/s, ms, or percent of its packets."""
    if seen == "delay":
        return pair.app_delay_ms, pair.neutral_delay_ms
    if seen == "loss":
        return _percent(pair.app_loss), _percent(pair.neutral_loss)
    return pair.app_mbps, pair.neutral_mbps


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def slopes(words: Words, pairs: Sequence[PairRecord], app: str, effect: Effect, seen: Measure = "rate") -> Figure:
    """One thin line a pair, from the neutral name on the left to the app on the right."""
    name = app_name(words, app)
    tested = [pair for pair in pairs if pair.kind == "test" and not pair.lost and _compares(pair, seen)]
    drawn = [pair for pair in tested if figures_of(pair, seen) != (None, None)]
    shown = spread(drawn, MOST_SLOPES)
    title = _slopes_title(words, tested, name, effect, seen)
    altered = "_tampering" if effect == "tampering" else ""
    note = words(f"chart.pairs_text{altered}" if seen == "rate" else f"chart.pairs_text_{seen}", app=name)
    if len(shown) < len(drawn):
        note += " " + words("chart.pairs_sampled", n=words.whole(len(shown)), total=words.whole(len(drawn)))
    marks = svg.ticks(max([r for p in shown for r in figures_of(p, seen) if r is not None], default=1.0) or 1.0)
    unit = {"rate": "Mbit/s", "delay": "ms", "loss": "%"}[seen]
    down = svg.Scale(0, marks[-1], 232, 16)
    content = []
    for mark in marks:
        content += [
            svg.line(17, down(mark), 100, down(mark), "grid"),
            svg.text(16, down(mark) + 4, words.mark(mark, unit if mark == marks[-1] else ""), anchor="end"),
        ]
    content += [svg.line(x, 16, x, 232, "grid strong") for x in (22, 95)]
    for pair in shown:
        of_app, of_other = figures_of(pair, seen)
        y_app, y_other = down(of_app or 0), down(of_other or 0)
        content.append(svg.line(22, y_other, 95, y_app, "pair" if len(shown) <= DENSE else "pair dense"))
        content += [_mark(x, 232, CROSS, "cross") for x, rate in ((95, of_app), (22, of_other)) if rate is None]
        if altered:
            arms = ((95, y_app, pair.app_altered), (22, y_other, pair.neutral_altered))
            content += [_mark(x, y, DIAMOND, "altered") for x, y, so in arms if so]
    left, right = words("case.lane_neutral"), svg.shorten(name)
    below = 20 if len(left) + len(right) > BESIDE else 0
    content += [
        svg.text(22, 258, left, "label strong", "start"),
        svg.text(95, 258 + below, right, "label strong", "end"),
    ]
    return Figure(
        title,
        note,
        svg.picture("pairs", 266 + below, title=title, description=note, content=content),
        tuple(words(f"chart.{key}", app=name) for key in ("pair", "day", "probe", "neutral", "app", "first")),
        tuple(_pair_row(words, pair, name, effect) for pair in pairs[:MOST_ROWS]),
        words("chart.table_first", n=words.whole(MOST_ROWS), total=words.whole(len(pairs)))
        if len(pairs) > MOST_ROWS
        else "",
    )


def _compares(pair: PairRecord, seen: Measure) -> bool:
    """Whether a pair says something in this measure: rates are of sequential pairs, the others need a queue."""
    return pair.design == "sequential" if seen == "rate" else pair.design == "concurrent" and bool(pair.queued)


def _slopes_title(words: Words, tested: Sequence[PairRecord], name: str, effect: Effect, seen: Measure) -> str:
    kind: str = effect
    if effect == "blocking":
        count, of = sum(p.app_mbps is None and p.neutral_mbps is not None for p in tested), len(tested)
    elif effect == "tampering":
        count, of = sum(p.app_altered and not p.neutral_altered for p in tested), len(tested)
    else:
        both = [(a, b) for a, b in (figures_of(p, seen) for p in tested) if a is not None and b is not None]
        of = len(both)
        # More is better of rates, worse of delay and loss.
        more = (effect == "prioritising") == (seen == "rate")
        count = sum(a > b if more else a < b for a, b in both)
        kind = effect if seen == "rate" else f"{effect}_{seen}"
    if of == 0:
        return words("chart.pairs_finding_none")
    return words(f"chart.pairs_finding_{kind}", k=words.whole(count), n=words.whole(of), app=name)


def _pair_row(words: Words, pair: PairRecord, name: str, effect: Effect) -> tuple[str, ...]:
    order = "" if pair.neutral_first is None else words("chart.order_neutral") if pair.neutral_first else name
    cells = tuple(_arm(words, pair, app=app, effect=effect) for app in (False, True))
    number = words.whole(pair.sequence)
    if pair.kind == "placebo":
        number += f" ({words('chart.placebo')})"
    return (number, pair.day, pair.probe, *cells, order)


def _arm(words: Words, pair: PairRecord, *, app: bool, effect: Effect) -> str:
    """What one arm of a pair came to, in a table."""
    if pair.lost:
        return words("chart.lost")
    if effect == "tampering" and (pair.app_altered if app else pair.neutral_altered):
        return words("chart.altered")
    end = pair.app_end if app else pair.neutral_end
    rate = pair.app_mbps if app else pair.neutral_mbps
    if pair.design == "sequential":
        return words("chart.failed") if rate is None else words.rate(rate)
    if end is not None and end != "complete":
        return words("chart.failed")
    delay = pair.app_delay_ms if app else pair.neutral_delay_ms
    loss = pair.app_loss if app else pair.neutral_loss
    figures = [words.delay(delay)] if delay is not None else []
    figures += [words("chart.lost_share", x=words.tenths(loss))] if loss is not None else []
    return ", ".join(figures) or words("chart.failed")


CROSS: Final = "M-5-5L5 5M-5 5L5-5"
"""A connection that failed."""
DIAMOND: Final = "M0-6L6 0L0 6L-6 0Z"
"""A transfer that arrived altered."""


def _mark(x: float, y: float, path: str, class_: str) -> Markup:
    """A sign at the end of a line; its strokes are pixels around a percentage, which only a nested picture allows."""
    return svg.element(
        "svg",
        svg.element("path", d=path, class_=class_),
        x=f"{x}%",
        y=y,
        overflow="visible",
    )

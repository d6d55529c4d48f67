# SPDX-License-Identifier: EUPL-1.2
"""The evidence of a case against its threshold: what is decided on, with all networks' beside it as a thin line.

A case is opened on what remains without the strongest network, so that is the thick line, and the threshold is the
one that applies to it. Drawn over time where there are hours enough, else over pairs with the days below.
Spec: spec/series.md, section "Look"; spec/statistics.md, sections "Cell" and "Cases".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from collector.model import EvidencePoint
from collector.pages import svg
from collector.pages.figure import Figure, spread
from collector.pages.language import Words
from collector.pages.recompute import curve
from probe.wire.records import Effect, PairRecord

LEAST_HOURS: Final = 6
"""From so many hours with pairs on, evidence is drawn over time; before, over pairs."""
MOST_ROWS: Final = 100
BESIDE: Final = 34
"""Two labels with more letters than this do not fit beside each other below the axis on a phone."""
LEFT, RIGHT = 17.0, 100.0
TOP, BOTTOM = 58, 252


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """The line to reach, and the words for it: a case's own bar, or the one of the state `replicated`."""

    log10_e: float
    label: str
    of_case: bool


@dataclass(frozen=True, slots=True)
class _At:
    """One point: its place on the axis, and both strengths as decimal logarithms."""

    x: float
    decides: float
    whole: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Course:
    """Points with what goes along the axis and into the table."""

    points: tuple[_At, ...]
    marks: tuple[tuple[float, str], ...]
    """Places on the axis with their labels, left to right."""
    head: str
    rows: tuple[tuple[str, ...], ...]
    over_time: bool


def evidence(
    words: Words,
    pairs: tuple[PairRecord, ...],
    effect: Effect,
    by_hour: Sequence[EvidencePoint],
    threshold: Threshold | None,
) -> Figure | None:
    """The picture, or None where nothing was measured."""
    known = [(p.bucket_ms, p.log10_e_without_one, p.log10_e) for p in by_hour if p.log10_e_without_one is not None]
    enough = len(known) >= LEAST_HOURS and len(known) == len(by_hour)
    course = _over_hours(words, known) if enough else _over_pairs(words, pairs, effect)
    if course is None:
        return None
    title = _title(words, course, threshold)
    note = words("chart.evidence_text")
    if threshold is not None and threshold.of_case:
        note += " " + words("chart.evidence_threshold_text")
    rows = spread(course.rows, MOST_ROWS)
    more = ""
    if len(rows) < len(course.rows):
        more = words("chart.rows_sampled", n=words.whole(len(rows)), total=words.whole(len(course.rows)))
    return Figure(
        title,
        note,
        svg.picture("evidence", 298, title=title, description=note, content=_drawing(words, course, threshold)),
        (course.head, words("chart.evidence_decides"), words("chart.evidence_whole")),
        tuple(rows),
        more,
    )


def _over_hours(words: Words, known: Sequence[tuple[int, float, float]]) -> _Course:
    points = tuple(_At(float(at), decides, whole) for at, decides, whole in known)
    first, last = known[0][0], known[-1][0]
    within_a_day = words.day_of(first) == words.day_of(last)
    label = words.moment if within_a_day else words.day_of
    return _Course(
        points=points,
        marks=((float(first), label(first)), (float(last), words.clock(last) if within_a_day else label(last))),
        head=words("chart.hour"),
        rows=tuple((words.moment(at), words.evidence(one), words.evidence(whole)) for at, one, whole in known),
        over_time=True,
    )


def _over_pairs(words: Words, pairs: tuple[PairRecord, ...], effect: Effect) -> _Course | None:
    found = curve(pairs, effect)
    if not found:
        return None
    days = sorted({pair.day for pair in pairs})
    ends = (words.day(days[0]), words.count("size.pairs", found[-1].sequence))
    if len(days) > 1:
        ends = (ends[0], f"{words.day(days[-1])} ({ends[1]})")
    return _Course(
        points=(_At(0.0, 0.0, 0.0), *(_At(float(p.sequence), p.decides, p.whole) for p in found)),
        marks=((0.0, ends[0]), (float(found[-1].sequence), ends[1])),
        head=words("chart.pair"),
        rows=tuple((words.whole(p.sequence), words.evidence(p.decides), words.evidence(p.whole)) for p in found),
        over_time=False,
    )


def _title(words: Words, course: _Course, threshold: Threshold | None) -> str:
    last = course.points[-1].decides
    if threshold is None:
        return words("chart.evidence_finding", e=words.evidence(last))
    figures = {"e": words.evidence(last), "t": words.evidence(threshold.log10_e)}
    above = [point.decides >= threshold.log10_e for point in course.points]
    if not any(above):
        return words("chart.evidence_finding_not", **figures)
    if not above[-1]:
        return words("chart.evidence_finding_fell", **figures)
    # Where it went up and down again, what counts is since when it has stayed above.
    since = len(above) - next((i for i, up in enumerate(reversed(above)) if not up), len(above))
    if course.over_time:
        return words("chart.evidence_finding_passed_at", moment=words.moment(int(course.points[since].x)), **figures)
    return words("chart.evidence_finding_passed", n=words.whole(course.points[since].x), **figures)


def _drawing(words: Words, course: _Course, threshold: Threshold | None) -> list[Markup]:
    kept = spread(course.points, 600)
    values = [_bounded(v) for p in kept for v in (p.decides, p.whole)]
    values += [] if threshold is None else [threshold.log10_e]
    low, high = math.floor(min(0.0, *values)), math.ceil(max(1.0, *values) + 0.2)
    up = svg.Scale(low, high, BOTTOM, TOP)
    across = svg.Scale(course.points[0].x, course.points[-1].x, 0, 1000)
    content = _grid(words, low, high, up)
    for class_, path in (
        ("evidence whole", [(across(p.x), up(_bounded(p.whole)) - TOP) for p in kept]),
        ("evidence", [(across(p.x), up(_bounded(p.decides)) - TOP) for p in kept]),
    ):
        content.append(
            svg.element(
                "svg",
                svg.element("polyline", points=_stairs(path), class_=class_, vector_effect="non-scaling-stroke"),
                x=f"{LEFT}%",
                y=TOP,
                width=f"{RIGHT - LEFT}%",
                height=BOTTOM - TOP,
                viewBox=f"0 0 1000 {BOTTOM - TOP}",
                preserveAspectRatio="none",
                overflow="visible",
            )
        )
    if threshold is not None:
        at = up(threshold.log10_e)
        content.append(svg.line(LEFT, at, RIGHT, at, "threshold"))
        content.append(
            svg.text(LEFT + 1, at + 17 if at < TOP + 24 else at - 7, threshold.label, "label strong halo-text")
        )
    content += _key(words)
    (_, start), (_, end) = course.marks
    below = 18 if len(start) + len(end) > BESIDE else 0
    content += [svg.text(LEFT, BOTTOM + 22, start), svg.text(RIGHT, BOTTOM + 22 + below, end, anchor="end")]
    return content


def _bounded(log10_e: float) -> float:
    return min(max(log10_e, -6.0), 300.0)


def _grid(words: Words, low: int, high: int, up: svg.Scale) -> list[Markup]:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if (high - low) / s <= 7)
    content = []
    for exponent in range(math.ceil(low / step) * step, high + 1, step):
        content.append(svg.line(LEFT, up(exponent), RIGHT, up(exponent), "grid strong" if exponent == 0 else "grid"))
        content.append(svg.text(LEFT - 1, up(exponent) + 4, words.power(exponent), anchor="end"))
    return content


def _key(words: Words) -> list[Markup]:
    """Which line is which, above the picture: thick and thin, so that it also holds without colour."""
    return [
        svg.line(0, 9, 8, 9, "evidence"),
        svg.text(10, 13, words("chart.key_decides"), "label ink"),
        svg.line(0, 31, 8, 31, "evidence whole"),
        svg.text(10, 35, words("chart.key_whole")),
    ]


def _stairs(points: Sequence[tuple[float, float]]) -> str:
    """A staircase: evidence stands still between pairs."""
    written: list[str] = []
    before: float | None = None
    for x, y in points:
        if before is not None:
            written.append(f"{x:.1f},{before:.1f}")
        written.append(f"{x:.1f},{y:.1f}")
        before = y
    return " ".join(written)

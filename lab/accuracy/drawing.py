# SPDX-License-Identifier: EUPL-1.2
"""Figures as SVG, the same bytes for the same figure: matplotlib with a fixed salt and no date. spec/accuracy.md.

Needs the extra `report`. Colours are the house's; lines and marks differ in form too, so that nothing rests on colour.
"""

from __future__ import annotations

import io
import math
import re
from html import escape
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from collector.pages.palette import LIGHT, STATE_COLOURS
from lab.accuracy.figures import Figure, Series

WIDTH_IN: Final = 7.2
_SETTINGS: Final[dict[Any, Any]] = {
    "svg.hashsalt": "evenlane",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": LIGHT["line"],
    "axes.labelcolor": LIGHT["ink"],
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["quiet"],
    "ytick.color": LIGHT["quiet"],
    "axes.grid": True,
    "grid.color": LIGHT["road"],
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify": False,
}
_OURS: Final = (
    LIGHT["app"],
    *(STATE_COLOURS[state] for state in ("no_indication", "replicated", "corroborated")),
    "#cc79a7",  # the two of Okabe and Ito's colours that states leave
    "#56b4e9",
)
_DASHES: Final[tuple[Any, ...]] = (
    "-",
    (0, (8, 1)),
    (0, (2, 0.7)),
    (0, (6, 1, 1, 1)),
    (0, (4, 1)),
    (0, (8, 1, 1, 1, 1, 1)),
)
_MARKS: Final = {"ours": "o", "theirs": "D", "other": ".", "bound": ""}


def draw(figure: Figure) -> str:
    """The figure as an SVG document with its title and description inside."""
    with mpl.rc_context(_SETTINGS):
        height = 0.22 * len(figure.labels) + 1.2 if figure.kind == "dots" else 4.2
        canvas = Canvas(figsize=(WIDTH_IN, height), layout="constrained", facecolor=LIGHT["ground"])
        axes = canvas.add_subplot(facecolor=LIGHT["ground"])
        {"curves": _curves, "dots": _dots, "scatter": _scatter}[figure.kind](axes, figure)
        axes.set_xlabel(figure.x)
        axes.set_ylabel(figure.y)
        out = io.StringIO()
        canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return _described(out.getvalue(), figure)


def _curves(axes: Any, figure: Figure) -> None:
    if figure.log_x:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if figure.log_y:
        axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    for number, one in enumerate(figure.series):
        axes.plot(*_columns(one), label=one.label, **_line(one, number))
    if not figure.log_y:
        axes.set_ylim(0, 1.02)
        axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=8)


def _line(one: Series, number: int) -> dict[str, Any]:
    if one.look == "theirs":
        return {"color": LIGHT["ink"], "linestyle": (0, (4, 3)), "linewidth": 1.2}
    if one.look == "bound":
        return {"color": LIGHT["neutral"], "linestyle": ":", "linewidth": 1.4}
    return {"color": _OURS[number % len(_OURS)], "linestyle": _DASHES[number % len(_DASHES)], "linewidth": 2}


def _dots(axes: Any, figure: Figure) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    count = len(figure.labels)
    axes.set_yticks([count - at for at in range(count)], figure.labels)
    axes.set_ylim(0.3, count + 0.7)
    for one in figure.series:
        axes.plot(*_columns(one), label=one.label, linestyle="", **_mark(one))
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3)


_RATIOS: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 5)
"""Ratios of rates with a name on the axes; these are logarithms, so that faster and slower take the same room."""


def _scatter(axes: Any, figure: Figure) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([math.log(ratio) for ratio in _RATIOS], labels=[f"{100 * ratio:g} %" for ratio in _RATIOS])
    axes.set_aspect("equal")
    for one in figure.series:
        if one.look == "bound":
            axes.plot(*_columns(one), label=one.label, color=LIGHT["neutral"], linestyle=":", linewidth=1.2)
        elif one.points:
            axes.plot(*_columns(one), label=one.label, linestyle="", **_mark(one))
    axes.legend(frameon=False, fontsize=8)


def _mark(one: Series) -> dict[str, Any]:
    colour = {"ours": LIGHT["app"], "theirs": STATE_COLOURS["corroborated"], "other": LIGHT["neutral"]}[one.look]
    filled = colour if one.look != "theirs" else "none"
    return {"marker": _MARKS[one.look], "color": colour, "markerfacecolor": filled, "markersize": 5.5}


def _columns(one: Series) -> tuple[list[float], list[float]]:
    return [x for x, _ in one.points], [y for _, y in one.points]


def _described(svg: str, figure: Figure) -> str:
    """Title and description for whoever does not see it; numbers with no more digits than can be seen."""
    start = svg.index("<svg")
    head = svg.index(">", start) + 1
    told = f"\n <title>{escape(figure.title)}</title>\n <desc>{escape(figure.description)}</desc>"
    svg = svg[start:head].replace("<svg", '<svg role="img"', 1) + told + svg[head:]
    svg = re.sub(r" <metadata>.*?</metadata>\n", "", svg, flags=re.DOTALL)
    return re.sub(r"(\d+\.\d{3})\d+", r"\1", svg)

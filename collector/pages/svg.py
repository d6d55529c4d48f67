# SPDX-License-Identifier: EUPL-1.2
"""Writes SVG by hand: escaped elements, scales and ticks, nothing else.

Positions across are percentages and sizes are pixels, without a viewBox, so that a picture fits any width
while its text keeps its size. Spec: spec/series.md, section "Look".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


def element(tag: str, /, *children: Markup | str, **attributes: str | float) -> Markup:
    """An element; text and attributes are escaped. `_` in a name becomes `-`, one at the end vanishes."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"' for name, value in attributes.items()
    )
    inside = Markup("").join(children)
    return Markup(f"<{tag}{written}>{inside}</{tag}>" if children else f"<{tag}{written}/>")  # noqa: S704 - escaped


def picture(ident: str, height: int, *, title: str, description: str, content: Sequence[Markup]) -> Markup:
    """A whole picture as wide as its column, with the title and description that a screen reader tells."""
    return element(
        "svg",
        element("title", title, id=f"{ident}-title"),
        element("desc", description, id=f"{ident}-desc"),
        *content,
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_labelledby=f"{ident}-title",
        aria_describedby=f"{ident}-desc",
        width="100%",
        height=height,
        class_="picture",
    )


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A line; x in percent of the width, y in pixels."""
    return element("line", x1=f"{_plain(x1)}%", y1=y1, x2=f"{_plain(x2)}%", y2=y2, class_=class_)


def text(x: float, y: float, words: str, class_: str = "label", anchor: str = "start") -> Markup:
    """A text at x percent, y pixels; `anchor` is start, middle or end."""
    return element("text", words, x=f"{_plain(x)}%", y=y, class_=class_, text_anchor=anchor)


def shorten(words: str, most: int = 22) -> str:
    """A label that fits a phone; what is cut off stands in the title, the description and the table.

    Rather without its brackets than with half a word: "Signal (calls and messages)" is "Signal".
    """
    plain, bracket, _ = words.partition(" (")
    if len(words) > most and bracket and 0 < len(plain) <= most:
        return plain
    return words if len(words) <= most else words[: most - 1].rstrip(" ,.(") + "…"


def box(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    """A rectangle; x and width in percent."""
    return element("rect", x=f"{_plain(x)}%", y=y, width=f"{_plain(max(width, 0.0))}%", height=height, class_=class_)


@dataclass(frozen=True, slots=True)
class Scale:
    """A straight scale from values to positions."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The position of a value; values outside stay at the ends."""
        if self.high == self.low:
            return self.start
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def ticks(high: float, about: int = 4) -> list[float]:
    """Round values from 0 to at least `high`, about so many steps of 1, 2 or 5 times a power of ten."""
    if not math.isfinite(high) or high <= 0:
        return [0.0, 1.0]
    rough = high / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [i * step for i in range(math.ceil(high / step - 1e-9) + 1)]


def _plain(value: str | float) -> str:
    """A number with at most two decimals; text stays as it is."""
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")

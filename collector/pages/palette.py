# SPDX-License-Identifier: EUPL-1.2
"""The colours of the pages, light and dark, and whether one can be read on another.

The style sheet and this table must agree; a test says so. Spec: spec/series.md, section "Look".
"""

from __future__ import annotations

from typing import Final

from collector.series import STATE_LOOKS

INK: Final = "#111111"
"""Text on every state's colour, in both themes."""
LIGHT: Final = {
    "ground": "#fdfdfc",
    "raised": "#f2f2ef",
    "ink": "#1b1b1a",
    "quiet": "#55554f",
    "line": "#8a8a84",
    "link": "#00578c",
    "app": "#0072b2",
    "neutral": "#767670",
    "road": "#e6e6e1",
}
DARK: Final = {
    "ground": "#151618",
    "raised": "#212326",
    "ink": "#ececea",
    "quiet": "#b4b4ae",
    "line": "#7d7d78",
    "link": "#8ccbf2",
    "app": "#56b4e9",
    "neutral": "#a6a6a0",
    "road": "#2b2d31",
}
PRINT: Final = {**LIGHT, "ground": "#ffffff", "ink": "#000000", "quiet": "#444444", "link": "#000000"}
GROUNDS: Final = ("ground", "raised", "road")
"""What text stands on; `road` below the labels of a picture."""
TEXTS: Final = ("ink", "quiet", "link")
"""Colours in which text is set; each needs 4.5:1 on each of GROUNDS (WCAG 2.2, 1.4.3)."""
DRAWN: Final = ("app", "neutral", "line")
"""Colours in which pictures are drawn; each needs 3:1 on `ground` (WCAG 2.2, 1.4.11)."""


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def half(colour: str, ground: str = "#ffffff") -> str:
    """A colour at half strength on a ground: how a state looks once it has ended."""
    mixed = [round((int(colour[i : i + 2], 16) + int(ground[i : i + 2], 16)) / 2) for i in (1, 3, 5)]
    return "#" + "".join(f"{part:02x}" for part in mixed)


STATE_COLOURS: Final = {state: look.colour.lower() for state, look in STATE_LOOKS.items()}

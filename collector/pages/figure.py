# SPDX-License-Identifier: EUPL-1.2
"""What every picture of the pages is: a drawing, the finding above it, a note below it, and a table of the same.

Spec: spec/series.md, section "Look".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from markupsafe import Markup

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Figure:
    """One picture with everything that goes with it."""

    title: str
    """The finding, as a sentence."""
    note: str
    svg: Markup
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    more: str = ""
    """Said above the table where it does not hold everything."""


def spread(items: Sequence[_T], most: int) -> list[_T]:
    """At most so many items, evenly spread, first and last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]

# SPDX-License-Identifier: EUPL-1.2
"""Which hypotheses share the error budget, and how: weights settled before the data they judge.

A collector's plan carries its own weights (`probe.wire.records.Weight`); files are judged with the bundled
default plan, and the verdict says so. Spec: spec/statistics.md, section "Weights".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from analysis.pairs import CellKey
from probe.wire.records import Access, Direction, Effect, Weight

REMAINDER: Final = "*"
"""Stands for all apps that a plan does not name; they share its weight by their first pairs."""

Family = tuple[str, Direction, Access, Effect]


@dataclass(frozen=True, slots=True, kw_only=True)
class HypothesisPlan:
    """Weights of app × direction × access × effect, which sum to at most 1."""

    name: str
    weights: Mapping[Family, float]
    named: frozenset[str] = field(default_factory=frozenset)
    effects: Mapping[Effect, float] = field(default_factory=dict)
    """How a cell's share by order of appearance is divided among effects; sums to at most 1."""

    def __post_init__(self) -> None:
        for shares in (self.weights, self.effects):
            total = math.fsum(shares.values())
            if total > 1 + 1e-9 or any(w < 0 for w in shares.values()):
                raise ValueError(f"the weights of plan {self.name} sum to {total:.6f}; they may sum to at most 1")

    @property
    def hypotheses(self) -> int:
        """How many families of hypotheses have a weight (the remainder counts as one app)."""
        return sum(1 for weight in self.weights.values() if weight > 0)

    def log_weight(
        self, cell: CellKey, effect: Effect, place: int, unnamed: float = 1, *, order: int | None = None
    ) -> float:
        """log γ of a hypothesis; -inf for what can never be a case.

        Its family's weight times that of the operator's `place` in the register. `unnamed`: of an app outside the
        plan, the inverse of its share of the remainder. Where `order` is given (the cell's place in the order of
        first started pairs, from 1), half the budget goes by it instead: it is settled before the cell's data too,
        and larger wherever few cells are measured.
        """
        named = cell.app in self.named
        family = (cell.app if named else REMAINDER, cell.direction, cell.access, effect)
        weight = self.weights.get(family, 0.0) * place_weight(place)
        if not named:
            weight /= max(1, unnamed)
        if order is not None:
            weight = (weight + self.effects.get(effect, 0.0) * place_weight(order)) / 2
        return -math.inf if weight <= 0 else math.log(weight)


def place_weight(place: int) -> float:
    """w(n) = 6/((n + 5)(n + 6)) for place n = 1, 2, …; telescopes to Σ w = 1.

    Lighter than 6/(π²n²): simulated, it costs the first operator one pair and saves the tenth to the hundredth
    one or two (spec/statistics.md, "Weights").
    """
    if place < 1:
        raise ValueError("places are counted from 1")
    return 6 / ((place + 5) * (place + 6))


def from_weights(name: str, weights: Iterable[Weight]) -> HypothesisPlan:
    """A plan from the weights that the collector signed."""
    table: dict[Family, float] = {}
    for w in weights:
        family: Family = (w.app, w.direction, w.access, w.effect)
        table[family] = table.get(family, 0.0) + w.weight
    return HypothesisPlan(name=name, weights=table, named=frozenset(app for app, *_ in table) - {REMAINDER})


APPS: Final = (
    "youtube",
    "netflix",
    "twitch",
    "tiktok",
    "instagram",
    "facebook",
    "whatsapp",
    "signal",
    "telegram",
    "teams",
    "zoom",
    "spotify",
)
_APP: Final[dict[str, float]] = {**dict.fromkeys(APPS, 0.065), REMAINDER: 0.22}
_DIRECTION: Final[dict[Direction, float]] = {"down": 0.75, "up": 0.25}
# Hotspot cells are never cases, so a weight there would be wasted.
_ACCESS: Final[dict[Access, float]] = {"fixed": 0.7, "mobile": 0.3}
_EFFECT: Final[dict[Effect, float]] = {"slowing": 0.45, "blocking": 0.35, "prioritising": 0.15, "tampering": 0.05}

DEFAULT_PLAN: Final = HypothesisPlan(
    name="default-1",
    weights={
        (app, direction, access, effect): a * d * c * e
        for app, a in _APP.items()
        for direction, d in _DIRECTION.items()
        for access, c in _ACCESS.items()
        for effect, e in _EFFECT.items()
    },
    named=frozenset(APPS),
    effects=_EFFECT,
)
"""Judges files. Downloads on fixed lines weigh most, because they are what most measure."""

ZONES: Final[dict[str, str]] = {
    "AT": "Europe/Vienna", "BE": "Europe/Brussels", "BG": "Europe/Sofia", "CH": "Europe/Zurich",
    "CY": "Asia/Nicosia", "CZ": "Europe/Prague", "DE": "Europe/Berlin", "DK": "Europe/Copenhagen",
    "EE": "Europe/Tallinn", "ES": "Europe/Madrid", "FI": "Europe/Helsinki", "FR": "Europe/Paris",
    "GB": "Europe/London", "GR": "Europe/Athens", "HR": "Europe/Zagreb", "HU": "Europe/Budapest",
    "IE": "Europe/Dublin", "IS": "Atlantic/Reykjavik", "IT": "Europe/Rome", "LI": "Europe/Vaduz",
    "LT": "Europe/Vilnius", "LU": "Europe/Luxembourg", "LV": "Europe/Riga", "MT": "Europe/Malta",
    "NL": "Europe/Amsterdam", "NO": "Europe/Oslo", "PL": "Europe/Warsaw", "PT": "Europe/Lisbon",
    "RO": "Europe/Bucharest", "SE": "Europe/Stockholm", "SI": "Europe/Ljubljana", "SK": "Europe/Bratislava",
}  # fmt: skip
"""Time zone of most subscribers by country (ISO 3166), for days and peak hours. Elsewhere UTC, which is said."""

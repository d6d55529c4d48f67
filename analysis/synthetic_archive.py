# SPDX-License-Identifier: EUPL-1.2
"""Archives of published pairs with known truth, as large as one likes: for tests and figures of judging again.

Cells, probes and days as a network of volunteers would fill them, with lost, placebo, failed, concurrent and altered
pairs, flags, and midpoints that follow from the pairs before. Spec: spec/rejudge.md, section "Speed".
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Final

from analysis.opendata import Midpoints, pair_of
from analysis.pairs import CellKey
from analysis.rules import RULES
from probe.wire.records import Access, Direction, PairRecord

APPS: Final = ("youtube", "netflix", "whatsapp", "teams", "signal", "spotify")
_LINES: Final[tuple[tuple[Direction, Access], ...]] = (("down", "fixed"), ("up", "fixed"), ("down", "mobile"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """How pairs of a cell come out. Shares are of pairs; log rates are natural logarithms."""

    slowdown: float = 0.0
    noise: float = 0.3
    boost: float = 0.1
    """The first segment is faster by this log ratio."""
    lost: float = 0.02
    placebo: float = 0.05
    failed: float = 0.02
    concurrent: float = 0.1
    altered: float = 0.005


@dataclass(slots=True)
class _Cell:
    """One cell while its pairs are made."""

    key: CellKey
    truth: Truth
    rng: random.Random
    histories: dict[tuple[str, str], Midpoints] = field(default_factory=dict)

    def pair(self, sequence: int, day: date, probe: int) -> PairRecord:
        """The next pair."""
        rng, truth, key = self.rng, self.truth, self.key
        neutral_first = rng.random() < 0.5
        lost = rng.random() < truth.lost
        concurrent = rng.random() < truth.concurrent
        ends: list[Any] = ["reset" if rng.random() < truth.failed else "complete" for _ in range(2)]
        order = truth.boost + rng.gauss(0, truth.noise)
        kind = "placebo" if rng.random() < truth.placebo else "test"
        slowdown = truth.slowdown if kind == "test" else 0.0
        app_log = math.log1p(-slowdown)
        app, neutral = (10 * math.exp(side) for side in (app_log - order / 2, order / 2))
        if not neutral_first:
            app, neutral = (10 * math.exp(side) for side in (app_log + order / 2, -order / 2))
        rates = [
            None if concurrent or end != "complete" else rate for rate, end in zip((app, neutral), ends, strict=True)
        ]
        made: dict[str, Any] = {
            "v": 1,
            "sequence": sequence,
            "kind": kind,
            "operator": key.operator,
            "asn": key.asn,
            "app": key.app,
            "direction": key.direction,
            "access": key.access,
            "day": day.isoformat(),
            "stratum": "peak" if rng.random() < 0.3 else "rest",
            "probe": f"p{probe + 1}",
            "network": "n1" if key.access == "mobile" else f"n{probe + 1}",
            "neutral_first": neutral_first,
            "lost": False,
            "app_mbps": rates[0],
            "neutral_mbps": rates[1],
            "app_end": ends[0],
            "neutral_end": ends[1],
            "pace_mbps": 12.0,
            "segment_s": 4.0,
            "edge": probe % 3 == 0,
            "app_altered": rng.random() < truth.altered,
            "flags": ("household_traffic",) if rng.random() < 0.05 else (),
        }
        if concurrent:
            waited = 40 + 100 * rng.random()
            made |= {
                "design": "concurrent",
                "app_delay_ms": waited + 50 * slowdown,
                "neutral_delay_ms": waited + rng.gauss(0, 2),
                "app_loss": 0.01,
                "neutral_loss": 0.01,
                "queued": True,
            }
            made["neutral_delay_ms"] = max(0.0, made["neutral_delay_ms"])
        return self._scored(PairRecord(**made), lost=lost)

    def _scored(self, record: PairRecord, *, lost: bool) -> PairRecord:
        """With its m, which every receipt decides, and without its rates if it is lost."""
        history = self.histories.setdefault((record.kind, record.probe), Midpoints(RULES.order_window))
        pair = pair_of(record, self.key, RULES)
        ratio, m = pair.log_ratio(), history.value()
        history.add(pair, record, ratio)
        # What a lost pair's receipt tells stays in the history though it is not published.
        hidden = {"app_mbps": None, "neutral_mbps": None, "lost": True} if lost else {}
        values = {name: getattr(record, name) for name in PairRecord.__dataclass_fields__}
        return PairRecord(**values | hidden | {"midpoint": m if ratio is not None and not lost else None})


def records(
    count: int, rng: random.Random, *, cells: int = 60, probes: int = 12, days: int = 90, start: date = date(2026, 9, 1)
) -> Iterator[PairRecord]:
    """`count` pairs in `cells` cells, one after the other; each fifth cell is slowed by a third."""
    for index in range(cells):
        operator, line = index // (len(APPS) * len(_LINES)), index % len(_LINES)
        app = APPS[index // len(_LINES) % len(APPS)]
        key = CellKey(f"operator-{operator + 1}", 64500 + operator, app, *_LINES[line])
        cell = _Cell(key, Truth(slowdown=0.33 if index % 5 == 0 else 0.0), rng)
        size = count // cells + (index < count % cells)
        for number in range(size):
            day = start + timedelta(days=number * days // max(1, size))
            yield cell.pair(number + 1, day, rng.randrange(probes))


def line_of(record: PairRecord) -> bytes:
    """A pair as one line of an export: its members in the order of the record, as the collector writes them."""
    values = {name: getattr(record, name) for name in PairRecord.__dataclass_fields__}
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"

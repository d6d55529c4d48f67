# SPDX-License-Identifier: EUPL-1.2
"""What a run shows of concurrent pairs: how long small packets took behind a load, and how many never came back.

Spec: spec/nettests/differential.md, section "Output".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from analysis.effect import Interval, interval
from analysis.pairs import Pair
from analysis.probes import DELAY_UNIT_MS, ProbeState

_SAME_MS: Final = 2.0
_SAME_LOSS: Final = 0.005
"""Median differences below these are told as about the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """One app in one direction. Delays in ms, losses as shares; None without a pair that tells them."""

    app_ms: float | None
    """Median over the pairs."""
    neutral_ms: float | None
    app_loss: float | None
    """Mean over the pairs: most have none."""
    neutral_loss: float | None
    queued: int
    """Pairs in which a queue was met, so that there was something to differ in."""
    pairs: int
    delay: Interval
    """Of the app's delay minus its control's."""
    loss: Interval


def delays_of(pairs: Sequence[Pair], state: ProbeState) -> Delays | None:
    """What finished concurrent pairs of one app and direction came to; None where there are none."""
    pairs = [pair for pair in pairs if pair.design == "concurrent"]
    if not pairs:
        return None
    app, neutral = _sides(pairs, app=True), _sides(pairs, app=False)
    return Delays(
        app_ms=_median([delay for delay, _ in app]),
        neutral_ms=_median([delay for delay, _ in neutral]),
        app_loss=_mean([loss for _, loss in app]),
        neutral_loss=_mean([loss for _, loss in neutral]),
        queued=sum(bool(pair.queued) for pair in pairs),
        pairs=len(pairs),
        delay=interval(state.delays).times(DELAY_UNIT_MS),
        loss=interval(state.losses),
    )


def _sides(pairs: Sequence[Pair], *, app: bool) -> list[tuple[float | None, float | None]]:
    """Delay and loss of one arm: the neutral arm has slot A where the coin says so."""
    return [
        (pair.second_delay_ms, pair.second_loss)
        if bool(pair.neutral_first) == app
        else (pair.first_delay_ms, pair.first_loss)
        for pair in pairs
    ]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def plain_delays(found: Delays | None) -> dict[str, Any]:
    """The keys of `apps[]` that tell of concurrent pairs; null where rates were compared."""
    if found is None:
        return {"design": "sequential", "delay": None, "loss": None, "queued_pairs": None}
    return {
        "design": "concurrent",
        "delay": {
            "app_ms": _round(found.app_ms, 3),
            "neutral_ms": _round(found.neutral_ms, 3),
            "difference_ms": _plain_interval(found.delay, 3),
        },
        "loss": {
            "app": _round(found.app_loss, 5),
            "neutral": _round(found.neutral_loss, 5),
            "difference": _plain_interval(found.loss, 5),
        },
        "queued_pairs": found.queued,
    }


def _plain_interval(size: Interval, digits: int) -> dict[str, float | None]:
    edges = {"estimate": size.estimate, "low": size.low, "high": size.high}
    return {key: _round(edge, digits) for key, edge in edges.items()}


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


def delay_words(found: Delays, control: str) -> str:
    """The comparison in words, without what the evidence says."""
    pairs = f"{found.pairs} {'pair' if found.pairs == 1 else 'pairs'}"
    if found.app_ms is None or found.neutral_ms is None:
        told = "no delays to compare"
    else:
        told = f"{_later(found.app_ms - found.neutral_ms, control)} ({found.app_ms:.0f} against {found.neutral_ms:.0f} "
        told += f"ms behind the load, median of {pairs})"
    text = f"{told}; {_lost(found)}."
    if found.queued < found.pairs:
        text += (
            f" Only {found.queued} of {pairs} met a queue; the others bet nothing (--pace-mbps makes the load faster)."
        )
    return text


def _later(by_ms: float, control: str) -> str:
    if abs(by_ms) < _SAME_MS:
        return f"about as quick as {control}"
    return f"about {abs(by_ms):.0f} ms {'later' if by_ms > 0 else 'earlier'} than {control}"


def _lost(found: Delays) -> str:
    app, neutral = found.app_loss or 0.0, found.neutral_loss or 0.0
    if abs(app - neutral) < _SAME_LOSS:
        return f"about as many packets lost ({app:.1%})" if max(app, neutral) >= _SAME_LOSS else "hardly a packet lost"
    return f"{app:.1%} of its packets lost against {neutral:.1%}"

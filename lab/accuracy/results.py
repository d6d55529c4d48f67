# SPDX-License-Identifier: EUPL-1.2
"""Results of a row as data: shares with their bounds, quantiles, and the file that is committed for each row.

Every share is given as k of n with its Wilson interval, because "never" among 73 is another claim than among 10,000.
spec/accuracy.md section 6; E. B. Wilson, "Probable inference" (1927).
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from analysis.effect import GRID, fraction
from analysis.probes import DELAY_UNIT_MS
from lab.accuracy import rival
from lab.accuracy.judging import BOUNDS, CellResult, Judged
from lab.accuracy.model import Row
from lab.nulls import wilson

VERSION: Final = 1
DIRECTORY: Final = Path("docs/accuracy")
QUANTILES: Final = (0.5, 0.9, 0.95, 0.99)
E_STEPS: Final = 8
"""The distribution of the largest evidence is kept as shares of streams above 2^1 … 2^8 and 20."""


def share(k: int, n: int) -> dict[str, Any]:
    """k of n with its Wilson interval (95 %)."""
    if n == 0:
        return {"k": 0, "n": 0, "share": None, "low": None, "high": None}
    low, high = wilson(k, n)
    return {"k": k, "n": n, "share": _round(k / n), "low": _round(low), "high": _round(high)}


def quantiles(values: Iterable[float], n: int) -> dict[str, float | None]:
    """The smallest value that this share of all n had reached; None where too few ever did."""
    ranked = sorted(values)
    found: dict[str, float | None] = {}
    for q in QUANTILES:
        rank = math.ceil(q * n)
        found[f"{q * 100:g}"] = ranked[rank - 1] if 0 < rank <= len(ranked) else None
    return found


def aggregate(row: Row, judged: Sequence[Judged]) -> dict[str, Any]:
    """All repeats of a row's virtual tier as one table."""
    valid = sorted((one for one in judged if one.void is None), key=lambda one: one.repeat)
    names = sorted({name for one in valid for name in one.cells} | {f"{app}:{effect}" for app, effect in row.expected})
    expected = {f"{app}:{effect}" for app, effect in row.expected}
    wrong = sum(any(name not in expected and _accused(cells) for name, cells in one.cells.items()) for one in valid)
    found = sum(all(_accused(one.cells.get(name, [])) for name in expected) for one in valid)
    streams = sum(one.streams for one in valid)
    result: dict[str, Any] = {
        "repeats": len(valid),
        "void": len(judged) - len(valid),
        "found": share(found, len(valid)) if expected else None,
        "wrong": share(wrong, len(valid)),
        "cells": {name: _cell(row, name, valid) for name in names},
        "streams": {
            "count": streams,
            "reached_20": share(sum(one.crossed.get("any", 0) for one in valid), streams),
            "by_effect": _by_effect(valid, streams),
            "largest": _largest(valid),
        },
        "pairs": sum(one.pairs for one in valid),
        "lost": sum(one.lost for one in valid),
        "octets": sum(one.octets for one in valid),
        "noise": _noises(valid),
        "placebo": _placebo(valid),
        "peer": rival.table([one.peer for one in valid]),
        "first": [_fingerprint(one) for one in valid[:2]],
    }
    return result


def _accused(cells: Sequence[CellResult]) -> bool:
    """Whether a case was ever open in any of the cells of this name."""
    return any(cell.accused for cell in cells)


def _cell(row: Row, name: str, valid: Sequence[Judged]) -> dict[str, Any]:
    cells = [cell for one in valid for cell in one.cells.get(name, [CellResult()])]
    table: dict[str, Any] = {
        "expected": name in {f"{app}:{effect}" for app, effect in row.expected},
        "states": dict(sorted(Counter(cell.state for cell in cells).items())),
        "reasons": dict(sorted(Counter(reason for cell in cells for reason in cell.reasons).items())),
        "corroborated": share(sum(cell.accused for cell in cells), len(cells)),
    }
    if any(cell.opened for cell in cells):
        table["pairs_to_case"] = {
            bound: quantiles([cell.opened[bound] for cell in cells if bound in cell.opened], len(cells))
            for bound in BOUNDS
        }
        table["opened_after"] = _counted(cell.opened["last"] for cell in cells if "last" in cell.opened)
        table["octets_to_case"] = quantiles([cell.octets for cell in cells if cell.octets is not None], len(cells))
    if (size := _size(row, name, cells, valid)) is not None:
        table["slowdown"] = size
    if any(cell.without for cell in cells):
        gates = sorted({gate for cell in cells for gate in cell.without})
        table["without"] = {
            gate: dict(sorted(Counter(cell.without.get(gate, cell.state) for cell in cells).items())) for gate in gates
        }
    return table


def _counted(values: Iterable[int]) -> dict[str, int]:
    """A histogram with text keys, as JSON wants them, in the order of the numbers."""
    return {str(value): count for value, count in sorted(Counter(values).items())}


def _size(row: Row, name: str, cells: Sequence[CellResult], valid: Sequence[Judged]) -> dict[str, Any] | None:
    """How often the interval of the effect held the truth, and how wide it was.

    The truth is the row's own (`slowdown` of its options, 0 on neutral rows), else the median over all repeats: what
    a policer of so many Mbit/s takes from a segment follows from its bucket and TCP, not from a formula.
    """
    app, _, effect = name.partition(":")
    if effect != "slowing":
        return None
    known = [(cell.low, cell.high) for cell in cells if cell.low is not None and cell.high is not None]
    estimates = [cell.estimate for cell in cells if cell.estimate is not None]
    if not estimates:
        return None
    told = truth_of(row)
    truth = fraction(median(pooled((one.samples for one in valid), app))) if told is None else told
    # An interval that is unbounded holds everything.
    holds = sum((c.low is None or c.low <= truth) and (c.high is None or truth <= c.high) for c in cells)
    return {
        "truth": _round(truth),
        "told": "median of all repeats" if told is None else "row",
        "estimate": _round(statistics.median(estimates)),
        "bounded": len(known),
        "covered": share(holds, len(cells)),
        "width": _round(statistics.median(high - low for low, high in known)) if known else None,
    }


def truth_of(row: Row) -> float | None:
    """The slowdown that the row itself tells; None where it follows from a bucket and TCP."""
    if row.kind == "neutral":
        return 0.0
    noise_of_line = row.options.get("noise")
    told = row.options.get("slowdown", noise_of_line.get("slowdown") if isinstance(noise_of_line, dict) else None)
    return None if told is None else float(told)


def pooled(tables: Iterable[Mapping[str, Mapping[int, int]]], app: str) -> dict[int, int]:
    """One app's histogram over several runs."""
    bins: Counter[int] = Counter()
    for one in tables:
        bins.update(one.get(app, {}))
    return bins


def median(bins: Mapping[int, int]) -> float:
    """The median of y from its histogram in thousandths; 0 for nothing."""
    return _ranked(bins, 0.5)


def _ranked(bins: Mapping[int, int], q: float) -> float:
    left = q * sum(bins.values())
    for step in sorted(bins):
        left -= bins[step]
        if left <= 0:
            return step / GRID
    return 0.0


def noise(bins: Mapping[int, int]) -> float | None:
    """Pair noise: the standard deviation that a Gaussian with these quartiles would have. None below 4 pairs."""
    if sum(bins.values()) < 4:
        return None
    return (_ranked(bins, 0.75) - _ranked(bins, 0.25)) / 1.349


def _noises(valid: Sequence[Judged]) -> dict[str, Any]:
    """Median and noise of y by app; of concurrent pairs in ms."""
    found = {}
    for app in sorted({app for one in valid for app in one.samples}):
        rates = pooled((one.samples for one in valid), app)
        delays = pooled((one.delays for one in valid), app)
        sd, delay_sd = noise(rates), noise(delays)
        found[app] = {"sd": None if sd is None else _round(sd), "median": _round(median(rates))}
        if delay_sd is not None:
            found[app]["delay_sd_ms"] = _round(delay_sd * DELAY_UNIT_MS)
            found[app]["delay_ms"] = _round(median(delays) * DELAY_UNIT_MS)
    return found


def _by_effect(valid: Sequence[Judged], streams: int) -> dict[str, Any]:
    total: Counter[str] = Counter()
    for one in valid:
        for name, count in one.crossed.items():
            if name != "any":
                total[name.partition(":")[2]] += count
    return {effect: share(count, streams) for effect, count in sorted(total.items()) if count}


def _largest(valid: Sequence[Judged]) -> dict[str, int]:
    """How many streams ever reached each evidence: the curve that Ville's inequality bounds by 1/E."""
    logs = [log_e for one in valid for log_e in one.largest]
    steps = [2**n for n in range(1, E_STEPS + 1)]
    return {str(step): sum(log_e >= math.log(step) for log_e in logs) for step in sorted({*steps, 20})}


def _placebo(valid: Sequence[Judged]) -> dict[str, Any] | None:
    told = [one.placebo_alarm for one in valid if one.placebo_alarm is not None]
    return share(sum(told), len(told)) if told else None


def _fingerprint(one: Judged) -> dict[str, Any]:
    """What a repeat must give again wherever it is played: its pairs and the evidence of each effect."""
    return {
        "repeat": one.repeat,
        "pairs": one.pairs,
        "log_e": {name: [cell.log_e for cell in cells] for name, cells in one.cells.items()},
    }


def _round(value: float) -> float:
    return round(value, 5)


# -- files -------------------------------------------------------------------------------------------------------


def path_of(name: str, directory: Path = DIRECTORY) -> Path:
    """Where a row's result is kept."""
    return directory / "rows" / f"{name}.json"


def read(name: str, directory: Path = DIRECTORY) -> dict[str, Any] | None:
    """A row's result, None where there is none yet."""
    try:
        found: dict[str, Any] = json.loads(path_of(name, directory).read_text("utf-8"))
    except FileNotFoundError:
        return None
    return found


def write(result: Mapping[str, Any], directory: Path = DIRECTORY) -> Path:
    """Write a row's result in one step: whoever reads sees the old one or the new one, never a half."""
    path = path_of(result["row"], directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.part")
    draft.write_text(json.dumps(result, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
    draft.replace(path)
    return path

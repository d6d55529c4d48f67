# SPDX-License-Identifier: EUPL-1.2
"""The real tier: a few pairs of every row through kernel TCP, so that the virtual one can be believed.

The product's own probe and reflector measure over the emulated operator (tun, else veth; the relay never counts).
What they recorded is judged like a virtual run, and compared with the engine playing exactly the same measurement.
spec/accuracy.md section 3.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from analysis.probes import DELAY_UNIT_MS
from analysis.sources import Records, corpus, read_files
from lab import run as lab_run
from lab.accuracy import results
from lab.accuracy.judging import Judged, judge_run
from lab.accuracy.model import Played, Row, Run
from lab.accuracy.reading import RealMeasure, real_of
from lab.drivers import DRIVERS, NoDriver, choose_driver, refusal
from lab.stage import Stage, StageError
from probe.wire.records import ReceiptPair, Segment

MOST_VOID: Final = 2
"""So many times a repeat is tried again because the machine was too busy, or a probe could not begin."""
TWINS: Final = 9
"""Virtual runs with the real one's pairs and length: what the engine says of the same measurement."""
NOISE_FACTOR: Final = 3.0
STREAM: Final = "drawn from a noise model: there is no line that real sockets could use"

Say = Callable[[str], None]


def refused(row: Row) -> str | None:
    """Why real sockets cannot play this row; None where they can."""
    asked = real_of(row.options)
    if asked.skip:
        return asked.skip
    return STREAM if row.engine == "stream" else None


def play(row: Row, *, driver: str | None, say: Say) -> dict[str, Any]:
    """The row through real sockets, beside its virtual twin. Raises NoDriver, StageError."""
    if why := refused(row):
        return {"skipped": why}
    asked, used = real_of(row.options), _driver(driver)
    plan = plan_of(row, asked)
    runs = []
    for repeat in range(asked.repeats):
        for attempt in range(1 + MOST_VOID):
            say(f"{row.name}: real sockets ({used}), repeat {repeat + 1} of {asked.repeats}")
            try:
                found = _measured(row, plan, used, repeat=repeat, seed=f"{row.name}/{repeat}/{attempt}")
            except StageError as error:  # on a line that loses packets in bursts a first connection may fail
                if attempt == MOST_VOID:
                    raise
                say(f"{row.name}: tried again, {error}")
                continue
            runs.append(found)
            if found.void is None:
                break
            say(f"{row.name}: void, {found.void}")
    twin = replace(row, measure=replace(row.measure, pairs=asked.pairs, segment_s=asked.segment_s))
    judged = [judge_run(run, twin.measure, row.options) for run in runs]
    return {"driver": used, "pairs": asked.pairs, "segment_s": asked.segment_s, **compared(twin, judged, _twins(twin))}


def _driver(wanted: str | None) -> str:
    """tun, else veth. The relay ends TCP in the middle, so what it shows is no line's behaviour."""
    if wanted is not None:
        return choose_driver(wanted)
    for name in DRIVERS:
        if name != "relay" and refusal(name) is None:
            return name
    raise NoDriver("neither tun nor veth works here, and the relay never counts; use --tier virtual")


def plan_of(row: Row, asked: RealMeasure) -> lab_run.Plan:
    """How `evenlane probe run` is asked to measure; the usual pace is left to its calibration."""
    pace = row.measure.pace_mbps
    return lab_run.Plan(
        probes=row.measure.probes,
        pairs=asked.pairs,
        segment_s=asked.segment_s,
        direction=row.measure.direction,
        pace_mbps=None if pace == 12.0 else pace,
    )


def apps_of(row: Row) -> list[str]:
    """The row's apps, else those that `lab run` would measure."""
    return list(row.measure.apps) or lab_run.apps_of(row.scenario)


def _measured(row: Row, plan: lab_run.Plan, driver: str, *, repeat: int, seed: str) -> Run:
    day_s = plan.hour_for(row.scenario) * 3600
    with Stage([row.scenario], driver=driver, subscribers=plan.probes, seed=seed, day_s=day_s) as stage:
        stage.start_reflector()
        outs = lab_run.measure(stage, plan, apps_of(row))
        void = stage.void_reason()
        return run_of(row.name, repeat, outs + stage.records, void)


def run_of(name: str, repeat: int, files: Iterable[Path], void: str | None) -> Run:
    """What real programs wrote, in the form in which engines give it."""
    records = read_files(files)
    told = corpus(records)
    receipts = _receipts(records)
    played = []
    for pair in told.pairs:
        receipt = receipts.get(pair.id)
        app, neutral = _arms(receipt)
        played.append(
            Played(
                pair=pair,
                app_bins_mbps=bins_mbps(app),
                neutral_bins_mbps=bins_mbps(neutral),
                octets=0 if receipt is None else sum(s.bytes for s in receipt.segments) + receipt.load_bytes,
            )
        )
    return Run(row=name, repeat=repeat, played=tuple(played), lost_known=told.lost_known, void=void)


def _receipts(records: Records) -> dict[tuple[str, int], ReceiptPair]:
    return {
        (receipt.session, pair.pair): pair
        for entries in records.receipts.values()
        for _, receipt in entries
        for pair in receipt.pairs
    }


def _arms(pair: ReceiptPair | None) -> tuple[Segment | None, Segment | None]:
    segments = pair.segments if pair is not None else ()
    app = next((s for s in segments if s.arm == "app"), None)
    return app, next((s for s in segments if s.arm != "app"), None)


def bins_mbps(segment: Segment | None) -> tuple[float, ...]:
    """Rates of a segment's bins, each over the time that it really took."""
    if segment is None:
        return ()
    found, before = [], 0
    for at, octets in zip(segment.bins_ms, segment.bins_bytes, strict=False):
        if at > before:
            found.append(octets * 8 / 1000 / (at - before))
        before = at
    return tuple(found)


def _twins(twin: Row) -> list[Judged]:
    from lab.accuracy.study import engine  # noqa: PLC0415 - the study imports this module

    play_one = engine(twin.engine)
    return [judge_run(play_one(twin, repeat), twin.measure, {}) for repeat in range(TWINS)]


@dataclass(frozen=True, slots=True)
class _Unit:
    """How differences of one kind are told and compared; all in the unit in which the analysis keeps y."""

    factor: float
    sign: str
    tolerance: float
    """Medians may differ by this and by what both noises explain."""
    quiet: float
    """Below this noise the same cases open at the same pair, so that the ratio of noises says nothing."""

    def words(self, y: float) -> str:
        return f"{y * self.factor:.2f}{self.sign}"


UNITS: Final = {
    "rates": _Unit(factor=1, sign="", tolerance=0.1, quiet=0.15),
    "delays": _Unit(factor=DELAY_UNIT_MS, sign=" ms", tolerance=5 / DELAY_UNIT_MS, quiet=10 / DELAY_UNIT_MS),
}


@dataclass(frozen=True, slots=True)
class _Size:
    """Median and noise of an app's y, and how many there were."""

    median: float
    sd: float
    count: int

    @property
    def error(self) -> float:
        """Standard error of the median of a Gaussian sample."""
        return 1.253 * self.sd / math.sqrt(max(1, self.count))

    def told(self, unit: _Unit) -> dict[str, Any]:
        """As results keep it: log ratios, or ms."""
        return {
            "y": round(self.median * unit.factor, 4),
            "sd": round(self.sd * unit.factor, 4),
            "pairs": self.count,
        }


def compared(twin: Row, judged: list[Judged], twins: list[Judged]) -> dict[str, Any]:
    """Real against virtual: the same measurement, what each said of it, and in what they differ."""
    valid = [one for one in judged if one.void is None]
    table: dict[str, Any] = {"repeats": len(valid), "voided": [one.void for one in judged if one.void]}
    if not valid:
        return {**table, "void": table["voided"][-1], "agrees": None, "differs": []}
    differs: list[str] = []
    apps: dict[str, Any] = {}
    for app in sorted({app for one in valid for app in one.samples}):
        apps[app] = {}
        for what, unit in UNITS.items():
            real, virtual = (_size(what, app, tier) for tier in (valid, twins))
            if real is not None and virtual is not None:
                apps[app][what] = {"real": real.told(unit), "virtual": virtual.told(unit)}
                differs += [f"{app}: {why}" for why in _apart(real, virtual, unit)]
    expected = {f"{app}:{effect}" for app, effect in twin.expected}
    cells = {name: _states(name, valid, twins) for name in sorted({n for one in valid for n in one.cells})}
    wrong = sorted(
        name
        for one in valid
        for name, told in one.cells.items()
        if name not in expected and any(c.accused for c in told)
    )
    differs += [f"{name}: accused, and it is not true" for name in wrong]
    differs += [f"{name}: {why}" for name, cell in cells.items() if (why := _contradicts(cell))]
    octets = sum(one.octets for one in valid)
    return {**table, "apps": apps, "cells": cells, "octets": octets, "agrees": not differs, "differs": differs}


def _size(what: str, app: str, judged: list[Judged]) -> _Size | None:
    bins = results.pooled((one.samples if what == "rates" else one.delays for one in judged), app)
    sd = results.noise(bins)
    return None if sd is None else _Size(results.median(bins), sd, sum(bins.values()))


def _apart(real: _Size, virtual: _Size, unit: _Unit) -> list[str]:
    found = []
    allowed = unit.tolerance + 2 * math.hypot(real.error, virtual.error)
    if abs(real.median - virtual.median) > allowed:
        found.append(f"median of {unit.words(real.median)} where virtual time has {unit.words(virtual.median)}")
    low, high = sorted((real.sd, virtual.sd))
    if high > unit.quiet and high > NOISE_FACTOR * low:
        found.append(f"pair noise of {unit.words(real.sd)} where virtual time has {unit.words(virtual.sd)}")
    return found


def _states(name: str, valid: list[Judged], twins: list[Judged]) -> dict[str, Any]:
    def told(judged: list[Judged]) -> dict[str, Any]:
        cells = [cell for one in judged for cell in one.cells.get(name, [])]
        states = dict(sorted(Counter(cell.state for cell in cells).items()))
        return {"states": states, "log_e": round(statistics.median(c.log_e for c in cells), 2) if cells else None}

    return {"real": told(valid), "virtual": told(twins)}


_SPEAKS: Final = frozenset({"indication", "replicated", "corroborated"})
_SPEAKS_UP: Final = frozenset({"replicated", "corroborated"})


def _contradicts(cell: dict[str, Any]) -> str:
    """One tier sees an effect clearly in all of its runs, the other in none of its own sees any."""
    real, virtual = (set(cell[tier]["states"]) for tier in ("real", "virtual"))
    for one, other in ((real, virtual), (virtual, real)):
        if one and other and one <= _SPEAKS_UP and not other & _SPEAKS:
            return f"real sockets say {', '.join(sorted(real))}, virtual time {', '.join(sorted(virtual))}"
    return ""

# SPDX-License-Identifier: EUPL-1.2
"""The engine `stream`: pairs drawn from invented weather, for what needs ten thousand streams, or liars.

A row's `[options]` hold, beside what the study itself reads:

- `noise`: the line of every probe (`lab.accuracy.noise.Nuisance`);
- `probe`: a list of groups that differ from the others: `count`, `noise` (values that differ), `network` (one for
  the whole group), `attack` (`lab.accuracy.variants`), `placebo` (like `noise`, for placebo pairs), `edge`, `pairs`,
  `days_early` (begins so many days before the others);
- `attack`: of all probes; `variant`: the same, said of how everybody is measured;
- `placebo`: one extra placebo pair after every so many pairs (0: none);
- `cells`: so many cells of the app, each with probes of its own (operators 1, 2, …);
- `bins_until`: repeats below this number carry 100 ms bins for Wehe's rule, which costs more than everything else.

Bins are the segment's rate times exp(a), a being autoregressive of first order with stationary deviation 0.2 and memory
0.6 from bin to bin: within a segment rates wander as those of one TCP flow do, and their median is the segment's rate.
Everything is a function of (row, repeat). Spec: spec/accuracy.md, section "Streams".
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from analysis.pairs import CellKey, Pair
from lab.accuracy import variants
from lab.accuracy.model import Played, Row, Run
from lab.accuracy.noise import DAY_MS, START_MS, Coin, Nuisance, read, stream

DEFAULT_APP: Final = "youtube"
BIN_SD: Final = 0.2
BIN_MEMORY: Final = 0.6
_STUDY: Final = frozenset({"real", "without_gate", "misleads", "slowdown", "peer", "most_crossing"})
"""Keys of `[options]` that are not the engine's."""
_OPTIONS: Final = frozenset({"noise", "probe", "attack", "variant", "placebo", "cells", "bins_until"})
_GROUP: Final = frozenset({"count", "noise", "network", "attack", "placebo", "edge", "pairs", "days_early"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Probes that are alike."""

    count: int
    line: Nuisance
    network: str | None = None
    attack: str = ""
    placebo: Nuisance | None = None
    """None: as the test pairs' weather, and nothing is treated."""
    edge: bool = True
    pairs: int = 0
    """0: as many as the row says."""
    days_early: int = 0
    """So many days before everybody else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """What a row's options ask for."""

    groups: tuple[Group, ...]
    variant: str = ""
    placebo_every: int = 0
    cells: int = 1
    bins_until: int = 0
    apps: tuple[str, ...] = field(default=(DEFAULT_APP,))


class BadOptionError(ValueError):
    """A row's option that cannot be played; the message names it."""


def campaign(row: Row) -> Campaign:
    """Read a row's options strictly."""
    options = row.options
    _known(options, _OPTIONS | _STUDY, "options")
    line = read(options.get("noise", {})).with_(pace_mbps=row.measure.pace_mbps)
    attack = _attack(options.get("attack", ""), "options.attack")
    groups = [_group(table, line, attack, n) for n, table in enumerate(options.get("probe", []), start=1)]
    told = sum(group.count for group in groups)
    if told > row.measure.probes:
        raise BadOptionError(f"options.probe names {told} probes, but measure.probes is {row.measure.probes}")
    groups.append(Group(count=row.measure.probes - told, line=line, attack=attack))
    return Campaign(
        groups=tuple(groups),
        variant=_attack(options.get("variant", ""), "options.variant"),
        placebo_every=_whole(options, "placebo", 0),
        cells=_whole(options, "cells", 1),
        bins_until=_whole(options, "bins_until", row.repeats),
        apps=row.measure.apps or (DEFAULT_APP,),
    )


def _group(table: Mapping[str, Any], line: Nuisance, attack: str, number: int) -> Group:
    path = f"options.probe[{number}]"
    _known(table, _GROUP, path)
    own = read({**_as_table(line), **table.get("noise", {})}, f"{path}.noise")
    placebo = read({**_as_table(line), **table["placebo"]}, f"{path}.placebo") if "placebo" in table else None
    return Group(
        count=_whole(table, "count", 1),
        line=own,
        network=table.get("network"),
        attack=_attack(table.get("attack", attack), f"{path}.attack"),
        placebo=placebo,
        edge=bool(table.get("edge", True)),
        pairs=_whole(table, "pairs", 0),
        days_early=_whole(table, "days_early", 0),
    )


def _as_table(line: Nuisance) -> dict[str, Any]:
    return {name: getattr(line, name) for name in Nuisance.__dataclass_fields__}


def _known(table: Mapping[str, Any], names: frozenset[str], path: str) -> None:
    for key in table:
        if key not in names:
            raise BadOptionError(f"{path}.{key} is not known; known are {', '.join(sorted(names))}")


def _whole(table: Mapping[str, Any], key: str, default: int) -> int:
    value = table.get(key, default)
    if type(value) is not int or value < 0:
        raise BadOptionError(f"options.{key} must be a whole number from 0, not {value!r}")
    return value


def _attack(name: Any, path: str) -> str:
    if name and name not in variants.NAMES:
        raise BadOptionError(f"{path} {name!r} is not known; known are {', '.join(variants.NAMES)}")
    return str(name)


# -- playing -----------------------------------------------------------------------------------------------------


def play(row: Row, repeat: int) -> Run:
    """One repeat: every probe's pairs, in the order of starts."""
    told = campaign(row)
    with_bins = repeat < told.bins_until
    found: list[Played] = []
    for operator in range(1, told.cells + 1):
        for app in told.apps:
            cell = CellKey(f"operator-{operator}", 64499 + operator, app, row.measure.direction, "fixed")
            for number, group in enumerate(_each(told.groups), start=1):
                seed = f"stream/{row.name}/{repeat}/{operator}/{app}/{number}"
                pairs = _Probe(row, told, group, cell, f"p{operator}-{number}", seed).pairs()
                found += _played(pairs, random.Random(f"{seed}/bins") if with_bins else None)
    found.sort(key=lambda one: one.pair.order)
    return Run(row=row.name, repeat=repeat, played=tuple(found))


def _each(groups: Iterable[Group]) -> Iterator[Group]:
    for group in groups:
        yield from itertools.repeat(group, group.count)


@dataclass(frozen=True, slots=True)
class _Probe:
    """One probe of a repeat."""

    row: Row
    told: Campaign
    group: Group
    cell: CellKey
    name: str
    seed: str

    def _rng(self, purpose: str = "") -> random.Random:
        return random.Random(f"{self.seed}/{purpose}" if purpose else self.seed)

    def _stream(self, line: Nuisance, count: int, rng: random.Random, coin: Coin | None = None) -> Iterator[Pair]:
        length, edge = self.row.measure.segment_s, self.group.edge
        found = stream(line, rng, count, probe=self.name, cell=self.cell, network=self.group.network, coin=coin)
        if length == 1.0 and edge:
            return found
        return (replace(pair, segment_s=length, edge=edge) for pair in found)

    def pairs(self) -> Iterator[Pair]:
        """Test pairs and placebo pairs; an attack may drop some: the row's number is that of started ones."""
        count = self.group.pairs or self.row.measure.pairs
        tool = self.group.attack if self.group.attack in variants.COINS else self.told.variant
        coin = variants.COINS[tool](self._rng("coin")) if tool in variants.COINS else None
        tests = self._stream(self.group.line, count, self._rng(), coin)
        attacked = variants.changed(tests, self.group.attack, self._rng("attack"))
        told = variants.changed(attacked, self.told.variant, self._rng("variant"))
        placebo = self._placebo(count // self.told.placebo_every) if self.told.placebo_every else iter(())
        early = self.group.days_early * DAY_MS
        for pair in itertools.chain(told, placebo):
            yield _moved(pair, -early) if early else pair

    def _placebo(self, count: int) -> Iterator[Pair]:
        """Each placebo pair starts ten seconds after the test pair that it follows."""
        line = self.group.placebo or self.group.line.with_(slowdown=0.0, blocked=0.0, altered=0.0)
        for number, pair in enumerate(self._stream(line, count, self._rng("placebo")), start=1):
            started = START_MS + (number * self.told.placebo_every - 1) * 20_000 + 10_000
            session = f"{self.name}-placebo-{number}"
            yield replace(pair, kind="placebo", session=session, started_ms=started, ended_ms=started + 9_000)


def _moved(pair: Pair, by_ms: int) -> Pair:
    ended = None if pair.ended_ms is None else pair.ended_ms + by_ms
    return replace(pair, started_ms=pair.started_ms + by_ms, ended_ms=ended)


def _played(pairs: Iterable[Pair], rng: random.Random | None) -> Iterator[Played]:
    for pair in pairs:
        octets = sum(round(rate * pair.segment_s * 125_000) for rate in (pair.first_mbps, pair.second_mbps) if rate)
        if rng is None or pair.design == "concurrent":
            yield Played(pair=pair, octets=octets)
            continue
        first, second = (_bins(rate, pair.segment_s, rng) for rate in (pair.first_mbps, pair.second_mbps))
        neutral, app = (first, second) if pair.neutral_first else (second, first)
        yield Played(pair=pair, app_bins_mbps=app, neutral_bins_mbps=neutral, octets=octets)


def _bins(rate: float | None, segment_s: float, rng: random.Random) -> tuple[float, ...]:
    """100 ms bins of one segment; none of one that failed."""
    if rate is None:
        return ()
    wander, found = rng.gauss(0, BIN_SD), []
    step = BIN_SD * math.sqrt(1 - BIN_MEMORY**2)
    for _ in range(round(segment_s * 10)):
        found.append(rate * math.exp(wander))
        wander = BIN_MEMORY * wander + rng.gauss(0, step)
    return tuple(found)

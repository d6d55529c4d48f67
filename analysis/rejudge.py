# SPDX-License-Identifier: EUPL-1.2
"""Judging an archive again: published pairs counted by several rules at once, and two verdicts side by side.

Each pair is read once, counted and let go, so memory grows with probes and days, never with pairs. Counts are
integers per probe: whoever counts which probes, the sum is the same to the last digit. Spec: spec/rejudge.md.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date
from pathlib import Path
from typing import Any, Final

from analysis.archive import ArchiveError
from analysis.editions import PUBLISHED, Edition
from analysis.judge import Ledger
from analysis.opendata import LineError, Midpoints, Progress, Share, cell_of, day_of, pair_of, published
from analysis.pairs import CellKey, OrderHistory, Pair, score
from analysis.plan import DEFAULT_PLAN, HypothesisPlan
from analysis.probes import ProbeState
from analysis.rules import Rules
from analysis.verdict import CellVerdict
from probe.wire.records import PairKind, PairRecord

MOST_PROBES: Final = 100_000
"""So many probes in cells fit into the memory that is promised; larger archives are judged in parts."""
DAY_MS: Final = 86_400_000
_EPOCH: Final = date(1970, 1, 1).toordinal()
FIXED_AT_PUBLICATION: Final = ("clip", "order_window", "peak_hours")
"""Numbers of a rule that published pairs were made with: m and stratum cannot be had by others."""
CLAIMS: Final = frozenset({"indication", "replicated", "corroborated"})

StreamKey = tuple[CellKey, PairKind, str]
"""Cell, kind of pair, probe."""


def named(cell: CellKey) -> str:
    """A cell in words."""
    operator = cell.operator if cell.asn is None else f"{cell.operator} (AS{cell.asn})"
    return f"{operator}, {cell.app}, {cell.direction}, {cell.access}"


def usable(rules: Rules) -> str | None:
    """Why published pairs cannot be judged by a rule; None where they can."""
    other = [name for name in FIXED_AT_PUBLICATION if getattr(rules, name) != getattr(PUBLISHED[1].rules, name)]
    if not other:
        return None
    return (
        f"published pairs were made with the published {' and '.join(other)}; a rule with another one can judge signed "
        "records alone"
    )


@dataclass(slots=True)
class Checked:
    """Midpoints computed again: how many are as published, are not, and cannot be told."""

    same: int = 0
    different: int = 0
    unknown: int = 0
    missing: int = 0
    """Not published though the pair has a score: computed here, 0 where that cannot be."""
    first: tuple[int, int] | None = None
    """File and line of the first that is different."""

    def look(self, published_m: float | None, own: float | None, at: tuple[int, int]) -> float:
        """Compare one pair's and return the m that counts: the published one where there is one."""
        if published_m is None:
            self.missing += 1
            return own or 0.0
        if own is None:
            self.unknown += 1
        elif own == published_m:
            self.same += 1
        else:
            self.different += 1
            self.first = self.first or at
        return published_m

    def merge(self, other: Checked) -> None:
        """Add another's."""
        self.same += other.same
        self.different += other.different
        self.unknown += other.unknown
        self.missing += other.missing
        self.first = min((one for one in (self.first, other.first) if one is not None), default=None)


@dataclass(slots=True)
class Stream:
    """One probe's pairs of one kind in one cell, counted by each rule."""

    states: list[ProbeState]
    early: list[int]
    """How many are from before each rule's publication."""
    first_day: int
    pairs: int = 0
    flagless: int = 0
    """Pairs published before flags were."""
    checked: Checked = field(default_factory=Checked)
    last: int = 0
    digest: str = ""
    """Of all its lines: the same in two exports only if they say the same of it."""


@dataclass(slots=True)
class _Open:
    """What is needed of a stream while more of its pairs may come."""

    stream: Stream
    midpoints: Midpoints
    hash: Any


Export = dict[StreamKey, Stream]
"""All pairs of one file that are in one's share."""


def too_many_probes() -> ArchiveError:
    """More than fit into the memory that is promised."""
    return ArchiveError(f"the files hold more than {MOST_PROBES} probes in cells; judge the archive in parts")


def count(
    path: Path, number: int, editions: Sequence[Edition], share: Share, progress: Progress | None = None
) -> Export:
    """Count the pairs of a file, the `number`th, that are in one's share. Raises ArchiveError."""
    rules = [edition.rules for edition in editions]
    since = [edition.published.toordinal() for edition in editions]
    cells: dict[CellKey, CellKey] = {}
    found: dict[StreamKey, _Open] = {}
    nothing = OrderHistory(rules[0])  # never filled: m is given
    for line, record, raw, with_flags in published(path, share, progress):
        cell = cell_of(record)
        cell = cells.setdefault(cell, cell)
        key = (cell, record.kind, record.probe)
        one = found.get(key)
        if one is None:
            one = found[key] = _begin(record, rules)
            if len(found) > MOST_PROBES:
                raise too_many_probes()
        stream = one.stream
        if record.sequence <= stream.last:
            raise LineError(path, line, _out_of_order(record, cell, stream.last))
        stream.last = record.sequence
        one.hash.update(raw)
        stream.pairs += 1
        stream.flagless += not with_flags
        pair = pair_of(record, cell, rules[0])
        ratio = None if pair.lost or pair.neutral_first is None else pair.log_ratio(rules[0])
        m = 0.0 if ratio is None else stream.checked.look(record.midpoint, one.midpoints.value(), (number, line))
        one.midpoints.add(pair, record, ratio)
        day = day_of(record.day)
        stream.first_day = min(stream.first_day, day)
        for index, rule in enumerate(rules):
            stream.states[index].add(pair, score(nothing, pair, midpoint=m, rules=rule), rule)
            stream.early[index] += day < since[index]
    for one in found.values():
        one.stream.digest = one.hash.hexdigest()
    return {key: one.stream for key, one in found.items()}


def _begin(record: PairRecord, rules: Sequence[Rules]) -> _Open:
    states = [ProbeState() for _ in rules]
    return _Open(
        stream=Stream(states=states, early=[0] * len(rules), first_day=day_of(record.day)),
        midpoints=Midpoints(rules[0].order_window),
        hash=hashlib.blake2b(digest_size=16),
    )


def _out_of_order(record: PairRecord, cell: CellKey, last: int) -> str:
    return (
        f"is pair {record.sequence} of {record.probe} in {named(cell)}, which stands after its pair {last}; give each "
        "export whole and as it was published"
    )


@dataclass(slots=True)
class Tally:
    """The published pairs of all files, counted."""

    editions: Sequence[Edition]
    streams: Export = field(default_factory=dict)
    checked: Checked = field(default_factory=Checked)
    pairs: int = 0
    repeated: int = 0
    """Pairs that stood in an earlier file too."""
    flagless: int = 0
    _owner: dict[CellKey, Path] = field(default_factory=dict)

    def join(self, export: Export, path: Path) -> None:
        """Add a file's cells; one that an earlier file has too must be the same there, and counts once."""
        if len(self.streams) + len(export) > MOST_PROBES:
            raise too_many_probes()
        by_cell: dict[CellKey, Export] = {}
        for key, stream in export.items():
            by_cell.setdefault(key[0], {})[key] = stream
        owned: dict[CellKey, dict[StreamKey, str]] = {}
        for key, stream in self.streams.items():
            if key[0] in by_cell:
                owned.setdefault(key[0], {})[key] = stream.digest
        for cell, streams in sorted(by_cell.items(), key=lambda item: item[0].order):
            if cell not in owned:
                self._owner[cell] = path
                self._add(streams)
            elif owned[cell] == {key: stream.digest for key, stream in streams.items()}:
                self.repeated += sum(stream.pairs for stream in streams.values())
            else:
                raise ArchiveError(
                    f"{path} and {self._owner[cell]} hold different exports of {named(cell)}; give one of them, the "
                    "newer has all its pairs"
                )

    def _add(self, streams: Export) -> None:
        self.streams.update(streams)
        for stream in streams.values():
            self.pairs += stream.pairs
            self.flagless += stream.flagless
            self.checked.merge(stream.checked)


# Verdicts


def verdicts(
    tally: Tally, which: int, plan: HypothesisPlan = DEFAULT_PLAN
) -> tuple[list[CellVerdict], dict[CellKey, int]]:
    """The verdicts of one of the rules, and how many of each cell's test pairs are older than it."""
    rules = tally.editions[which].rules
    ledger = Ledger(rules=rules, zones=_published_zone)
    early: Counter[CellKey] = Counter()
    for (cell, kind, probe), stream in sorted(tally.streams.items(), key=lambda item: (item[0][0].order, *item[0][1:])):
        first_ms = (stream.first_day - _EPOCH) * DAY_MS
        ledger.adopt(cell, kind, probe, state=stream.states[which], first_ms=first_ms)
        early[cell] += stream.early[which] if kind == "test" else 0
    return ledger.verdicts(plan), dict(early)


def _published_zone(cell: CellKey) -> Any:
    """Published days and strata are in the operator's time already."""
    del cell
    return UTC


def judged_pairs(
    pairs: Sequence[Pair], edition: Edition, zones: Callable[[CellKey], Any], *, lost_known: bool
) -> tuple[list[CellVerdict], dict[CellKey, int]]:
    """The same from pairs of signed records."""
    ledger = Ledger(zones=zones, rules=edition.rules, lost_known=lost_known)
    early: Counter[CellKey] = Counter()
    since = edition.published.toordinal()
    for pair in pairs:
        scored = ledger.put(pair)
        early[pair.cell] += scored.day < since and pair.kind == "test"
    return ledger.verdicts(), dict(early)


# Side by side

Identity = tuple[str, int | None, str, str, str, str]
IDENTITY: Final = ("operator", "asn", "app", "direction", "access", "effect")
COMPARED: Final = (
    "state",
    "e_value",
    "slowdown",
    "pairs",
    "lost_pairs",
    "probes",
    "prevalence",
    "detectable",
    "reasons",
)


def identity(row: Mapping[str, Any]) -> Identity:
    """What a row is about."""
    return tuple(row.get(name) for name in IDENTITY)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One cell and effect, before and now."""

    about: Mapping[str, Any]
    old: Mapping[str, Any] | None
    new: Mapping[str, Any] | None
    changed: tuple[str, ...]
    """Members that differ, of those that both have; `only_old`, `only_new` where one side lacks it."""
    retrospective_pairs: int
    """Pairs from before the new rule's publication: its guarantee does not hold for what it says of them."""

    @property
    def differs(self) -> bool:
        """Whether the verdicts are not the same. One side's silence is a difference only beside a claim."""
        if self.old is None or self.new is None:
            return (self.new or self.old or {}).get("state") in CLAIMS
        return bool(self.changed)

    def row(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **self.about,
            "old": self.old,
            "new": self.new,
            "changed": list(self.changed),
            "retrospective": self.retrospective_pairs > 0,
            "retrospective_pairs": self.retrospective_pairs,
        }


def side_by_side(
    old: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]], early: Mapping[CellKey, int]
) -> list[Compared]:
    """Two verdicts, row by row, in a fixed order."""
    before, now = ({identity(row): row for row in rows} for rows in (old, new))
    retrospective = {cell.order: count for cell, count in early.items()}
    found = []
    for key in sorted(before.keys() | now.keys(), key=_order):
        one, other = before.get(key), now.get(key)
        found.append(
            Compared(
                about=dict(zip(IDENTITY, key, strict=True)),
                old=_without_identity(one),
                new=_without_identity(other),
                changed=_changed(one, other),
                retrospective_pairs=retrospective.get(_order(key)[:5], 0) if other is not None else 0,
            )
        )
    return found


def _order(key: Identity) -> tuple[str, int, str, str, str, str]:
    operator, asn, app, direction, access, effect = key
    return (operator, -1 if asn is None else asn, app, direction, access, effect)


def _without_identity(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if row is None else {name: row[name] for name in COMPARED if name in row}


def _changed(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> tuple[str, ...]:
    if old is None or new is None:
        return ("only_new",) if old is None else ("only_old",)
    return tuple(n for n in COMPARED if n in old and n in new and not same(old[n], new[n]))


def same(old: Any, new: Any) -> bool:
    """Whether two plain values are equal, -0 and 0 too; lists as sets, for the order of reasons says nothing."""
    if isinstance(old, list) and isinstance(new, list):
        return {repr(one) for one in old} == {repr(one) for one in new}
    return bool(old == new)

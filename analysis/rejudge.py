# SPDX-License-Identifier: EUPL-1.2
"""Judging an archive again: published pairs counted by several rules at once, and two verdicts side by side.

Each pair is read once, counted and let go, so memory grows with probes and days, never with pairs. Counts are
integers per probe: whoever counts which probes, the sum is the same to the last digit. Spec: spec/rejudge.md.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final

from analysis.archive import ArchiveError
from analysis.cells import assess
from analysis.editions import PUBLISHED, Edition
from analysis.gates import Setting
from analysis.judge import Ledger, alarming
from analysis.opendata import LineError, Midpoints, Progress, Share, cell_of, day_of, pair_of, published
from analysis.pairs import CellKey, OrderHistory, score
from analysis.plan import DEFAULT_PLAN, HypothesisPlan
from analysis.probes import ProbeState, ProbeSummary, placebo_evidence, summarise
from analysis.rules import Rules, digest_of_inputs
from analysis.sources import SourceError, corpus, read_files
from analysis.verdict import CellVerdict, decide
from probe.wire.records import PairKind, PairRecord

MOST_PROBES: Final = 100_000
"""So many probes in cells fit into the memory that is promised; larger archives are judged in parts."""
DAY_MS: Final = 86_400_000
_EPOCH: Final = date(1970, 1, 1).toordinal()
FIXED_AT_PUBLICATION: Final = ("clip", "order_window", "peak_hours")
"""Numbers of a rule that published pairs were made with: m and stratum cannot be had by others."""

StreamKey = tuple[CellKey, PairKind, str]
"""Cell, kind of pair, probe."""


def named(cell: CellKey) -> str:
    """A cell in words."""
    operator = cell.operator if cell.asn is None else f"{cell.operator} (AS{cell.asn})"
    return f"{operator}, {cell.app}, {cell.direction}, {cell.access}"


def unusable(rules: Rules) -> str | None:
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

    def untold(self) -> Checked:
        """The same where nothing could be compared after all."""
        return Checked(unknown=self.same + self.different + self.unknown, missing=self.missing)

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
    young: Checked = field(default_factory=Checked)
    """The same while pairs from before the export, were there any, would still have counted."""
    first: int = 0
    last: int = 0
    """Sequence numbers of its first and last pair."""
    digest: str = ""
    """Of all its lines: the same in two exports only if they say the same of it."""
    summaries: list[ProbeSummary] = field(default_factory=list)
    """Of test pairs, by each rule. Read by whoever counted, for reading many days takes long."""
    placebo: list[float] = field(default_factory=list)
    """Of placebo pairs, by each rule: log E that neutral names are not treated alike."""

    def close(self, key: StreamKey, digest: str, rules: Sequence[Rules]) -> None:
        """No more pairs come."""
        self.digest = digest
        _, kind, probe = key
        if kind == "placebo":
            self.placebo = [placebo_evidence([one], rule)[0] for one, rule in zip(self.states, rules, strict=True)]
        else:
            self.summaries = [summarise(probe, one, rules=rule) for one, rule in zip(self.states, rules, strict=True)]


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
        stream.first, stream.last = stream.first or record.sequence, record.sequence
        one.hash.update(raw)
        stream.pairs += 1
        stream.flagless += not with_flags
        pair = pair_of(record, cell, rules[0])
        ratio = None if pair.lost or pair.neutral_first is None else pair.log_ratio(rules[0])
        checked = stream.checked if one.midpoints.full else stream.young
        m = 0.0 if ratio is None else checked.look(record.midpoint, one.midpoints.value(), (number, line))
        one.midpoints.add(pair, record, ratio)
        day = day_of(record.day)
        stream.first_day = min(stream.first_day, day)
        for index, rule in enumerate(rules):
            stream.states[index].add(pair, score(nothing, pair, midpoint=m, rules=rule), rule)
            stream.early[index] += day < since[index]
    for key, one in found.items():
        one.stream.close(key, one.hash.hexdigest(), rules)
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
        # An export that begins later than the cell lacks the history of its first pairs.
        whole = min(stream.first for stream in streams.values()) == 1
        for stream in streams.values():
            self.pairs += stream.pairs
            self.flagless += stream.flagless
            self.checked.merge(stream.checked)
            self.checked.merge(stream.young if whole else stream.young.untold())


# Verdicts


def verdicts(
    tally: Tally, which: int, plan: HypothesisPlan = DEFAULT_PLAN
) -> tuple[list[CellVerdict], dict[CellKey, int]]:
    """The verdicts of one of the rules, and how many of each cell's test pairs are older than it."""
    rules = tally.editions[which].rules
    places, early = Ledger(rules=rules), Counter[CellKey]()
    probes: dict[CellKey, list[ProbeSummary]] = {}
    for (cell, kind, probe), stream in sorted(tally.streams.items(), key=lambda item: (item[0][0].order, *item[0][1:])):
        # A day is as fine as published times are.
        first_ms = (stream.first_day - _EPOCH) * DAY_MS
        places.adopt(cell, kind, probe, state=stream.states[which], first_ms=first_ms)
        if kind == "test":
            probes.setdefault(cell, []).append(stream.summaries[which])
            early[cell] += stream.early[which]
    placebo = _placebo(tally, which)
    found = []
    for cell, summaries in probes.items():
        setting = Setting(placebo=placebo.get(_line(cell), ()))
        found += [assess(cell, effect, summaries, setting, rules=rules) for effect in rules.effects]
    by_operator, by_cell = places.operator_order(), places.cell_order()
    judged = decide(found, plan, by_operator.__getitem__, order=by_cell.__getitem__, rules=rules)
    return judged, dict(early)


def _line(cell: CellKey) -> tuple[str, int | None, str, str]:
    return (cell.operator, cell.asn, cell.direction, cell.access)


def _placebo(tally: Tally, which: int) -> dict[tuple[str, int | None, str, str], tuple[ProbeState, ...]]:
    """The placebo pairs that raise the alarm, of each line."""
    states: dict[tuple[str, int | None, str, str], list[ProbeState]] = {}
    evidence: dict[tuple[str, int | None, str, str], list[float]] = {}
    for (cell, kind, _), stream in tally.streams.items():
        if kind == "placebo":
            states.setdefault(_line(cell), []).append(stream.states[which])
            evidence.setdefault(_line(cell), []).append(stream.placebo[which])
    rules = tally.editions[which].rules
    return {line: alarming(found, evidence[line], rules) for line, found in states.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Verdicts by one or two rules, and what must be said about where they come from."""

    verdicts: Sequence[Sequence[CellVerdict]]
    early: Sequence[Mapping[CellKey, int]]
    """For each rule: test pairs of each cell from before its publication."""
    pairs: int
    inputs: str
    midpoints: Mapping[str, int] | None
    refused: Mapping[str, int]
    notes: Sequence[str]


def judge_published(tally: Tally) -> Judged:
    """The verdicts that follow from published pairs."""
    found = [verdicts(tally, which) for which in range(len(tally.editions))]
    checked = tally.checked
    return Judged(
        verdicts=[one for one, _ in found],
        early=[early for _, early in found],
        pairs=tally.pairs,
        inputs=digest_of_inputs(stream.digest for stream in tally.streams.values()),
        midpoints={
            "same": checked.same,
            "different": checked.different,
            "unknown": checked.unknown,
            "missing": checked.missing,
        },
        refused={},
        notes=tuple(_notes(tally)),
    )


def _notes(tally: Tally) -> Iterator[str]:
    """What a reader of a verdict on published pairs must know."""
    yield (
        "Published pairs do not tell who is enrolled with a token nor which tariff was declared: where a few probes "
        "could have made the evidence, the collector may have reasons to think otherwise."
    )
    yield (
        f"Cases are selected with the bundled plan {DEFAULT_PLAN.name}, operators and cells in the order of their "
        "first days in these files; a collector has a plan and a register of its own, and all of its cells."
    )
    yield "Placebo pairs of other apps on the same lines count only where they are in these files."
    checked = tally.checked
    if checked.different:
        number, line = checked.first or (0, 0)
        yield (
            f"{checked.different} published midpoints are not those that follow from the pairs before (first: file "
            f"{number + 1}, line {line}); either sessions of one probe overlapped, or they were changed. The published "
            "ones were used."
        )
    if checked.missing:
        yield f"{checked.missing} pairs come without their midpoint; it was computed from the pairs before them."
    if tally.flagless:
        yield f"{tally.flagless} pairs were published without flags: busy lines and tunnels cannot be told there."
    if tally.repeated:
        yield f"{tally.repeated} pairs stand in several files and count once."


def judge_signed(paths: Sequence[Path], editions: Sequence[Edition]) -> Judged:
    """The verdicts that follow from signed records. Raises SourceError."""
    found = corpus(read_files(paths))
    if not found.pairs:
        raise SourceError("the files hold no pair to judge; give receipts.jsonl, started.jsonl or a probe's --out file")
    judged, early = [], []
    for edition in editions:
        ledger = Ledger(zones=found.zones, rules=edition.rules, lost_known=found.lost_known)
        count: Counter[CellKey] = Counter()
        since = edition.published.toordinal()
        for pair in found.pairs:
            count[pair.cell] += ledger.put(pair).day < since and pair.kind == "test"
        judged.append(ledger.verdicts())
        early.append(count)
    return Judged(
        verdicts=judged,
        early=early,
        pairs=len(found.pairs),
        inputs=found.inputs,
        midpoints=None,
        refused=found.refused,
        notes=(*found.notes, f"Cases are selected with the bundled plan {DEFAULT_PLAN.name}."),
    )

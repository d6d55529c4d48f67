# SPDX-License-Identifier: EUPL-1.2
"""Published pairs, read as the collector gives them: JSON lines, CSV, or the document of a case or a cell.

A line is a `PairRecord` or the file is refused with its name and the line's number: whoever recomputes a verdict must
not do it from half a file without knowing. Spec: spec/rejudge.md, section "Published pairs".
"""

from __future__ import annotations

import csv
import math
import re
import types
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Union, cast, get_args, get_origin
from zlib import crc32

from analysis.archive import ArchiveError, head, lines, whole
from analysis.pairs import CellKey, Flag, Pair, Stratum
from analysis.quickpairs import QuickPairs
from analysis.rules import Rules
from probe.wire.codec import WireError, dumps, fields_of, from_dict, loads
from probe.wire.records import PairRecord

LONGEST_PAIR: Final = 65_536
"""No published pair is longer as a line, whatever fields are added."""
MOST_DOCUMENT: Final = 64_000_000
"""A document is one piece of JSON and is held in memory whole; more pairs than this are published as lines."""
_DAY_MS: Final = 86_400_000

Progress = Callable[[int], None]
Found = tuple[int, PairRecord, bytes, bool]
"""Number of the line (of the pair in a document) from 1, the record, its bytes, and whether it knows of flags."""


class LineError(ArchiveError):
    """A line is no published pair; `number` is the line's."""

    def __init__(self, path: Path, number: int, why: str, unit: str = "line") -> None:
        self.number = number
        super().__init__(f"{path}, {unit} {number} {why}")


@dataclass(frozen=True, slots=True)
class Share:
    """Which probes' pairs are one's own among several who read the same files."""

    index: int = 0
    count: int = 1

    def has(self, app: str, probe: str) -> bool:
        """Whether the pairs of this label in cells of this app are one's own."""
        return self.count == 1 or crc32(f"{app}/{probe}".encode("utf-8", "replace")) % self.count == self.index


def is_published(path: Path) -> bool:
    """Whether a file seems to hold published pairs rather than signed records. Raises ArchiveError."""
    start = head(path).lstrip()
    return not start.startswith(b"{") or b'"payload"' not in start


def published(path: Path, share: Share, progress: Progress | None = None) -> Iterator[Found]:
    """The pairs of a file that are in one's share, in its order. Raises ArchiveError, LineError."""
    start = head(path).lstrip()
    if not start:
        raise ArchiveError(f"{path} is empty")
    if not start.startswith(b"{"):
        return _of_csv(path, share, progress)
    if b'"sequence"' in start.partition(b"\n")[0] and not _DOCUMENT.match(start):
        return _of_lines(path, share, progress)
    return _of_document(path, share)


_DOCUMENT: Final = re.compile(rb'\{\s*"(?:cell|id|status)"\s*:')


def _of_lines(path: Path, share: Share, progress: Progress | None) -> Iterator[Found]:
    quick = QuickPairs()
    for number, text, ended in lines(path, longest=LONGEST_PAIR, progress=progress):
        labels = quick.labels(text)
        if labels is not None and not share.has(labels[0][1:-1], labels[1][1:-1]):
            continue
        found = quick.read() if labels is not None else None
        if found is not None:
            yield number, found[0], text, found[1]
            continue
        value, record = _with_care(path, number, text, ended=ended)
        if labels is not None:
            quick.learn(record)
        elif not share.has(record.app, record.probe):
            continue
        yield number, record, text, "flags" in value


def _with_care(path: Path, number: int, text: bytes, *, ended: bool) -> tuple[dict[str, Any], PairRecord]:
    try:
        value = loads(text, longest=LONGEST_PAIR)
        return value, _record(value)
    except WireError as error:
        if not ended and error.reason in {"not_json", "not_utf8"}:
            raise LineError(path, number, "ends in the middle: the file is not whole, fetch it again") from None
        raise LineError(path, number, f"is no published pair ({error})") from None


def _of_document(path: Path, share: Share) -> Iterator[Found]:
    text = whole(path, MOST_DOCUMENT)
    try:
        value = loads(text, longest=MOST_DOCUMENT)
    except WireError as error:
        raise ArchiveError(f"{path} holds neither published pairs nor signed records ({error})") from None
    pairs = value.get("pairs") if isinstance(value, dict) else None
    if not isinstance(pairs, list):
        raise ArchiveError(f"{path} holds no pairs; fetch a case, or /v1/evidence of a cell")
    for number, one in enumerate(pairs, start=1):
        try:
            record = _record(one)
        except WireError as error:
            raise LineError(path, number, f"is no published pair ({error})", "pair") from None
        if share.has(record.app, record.probe):
            yield number, record, dumps(one), "flags" in one


def _of_csv(path: Path, share: Share, progress: Progress | None) -> Iterator[Found]:
    columns: list[str] = []
    for number, text, _ in lines(path, longest=LONGEST_PAIR, progress=progress):
        try:
            row = next(csv.reader([text.decode("utf-8")]))
        except (UnicodeDecodeError, csv.Error, StopIteration):
            raise LineError(path, number, "is no line of CSV") from None
        if not columns:
            columns = row
            if "sequence" not in columns or "probe" not in columns:
                raise LineError(path, number, "does not name the columns of published pairs")
            continue
        if len(row) != len(columns):
            raise LineError(path, number, f"has {len(row)} columns, the first line {len(columns)}")
        value = {name: _csv_value(name, cell) for name, cell in zip(columns, row, strict=True)}
        try:
            record = _record(value)
        except WireError as error:
            raise LineError(path, number, f"is no published pair ({error})") from None
        if share.has(record.app, record.probe):
            yield number, record, text, "flags" in value


def _record(value: Any) -> PairRecord:
    """A published pair from plain values. Raises WireError."""
    record = from_dict(PairRecord, value)
    try:
        day_of(record.day)
    except ValueError:
        raise WireError("out_of_range", "day") from None
    return record


_COLUMNS: Final[Mapping[str, Any]] = {name: hint for name, hint, *_ in fields_of(PairRecord)}


@lru_cache(maxsize=1024)
def _kind(name: str) -> tuple[type, bool]:
    """What a column holds (a text, a number, true or false, a list), and whether it may be empty."""
    hint: Any = _COLUMNS.get(name, str)
    optional = get_origin(hint) in (types.UnionType, Union)
    if optional:
        (hint,) = (arm for arm in get_args(hint) if arm is not type(None))
    if get_origin(hint) is not None:
        # A list of texts, or one of several values of the same type.
        hint = tuple if get_origin(hint) is tuple else type(get_args(hint)[0])
    return hint, optional


def _csv_value(name: str, text: str) -> Any:
    """A value as JSON would have it; what it cannot be is left a text, which the codec refuses by its name."""
    kind, optional = _kind(name)
    if kind is tuple:
        return [part for part in text.strip("[]").split(";") if part]
    if text == "" and optional:
        return None
    if kind is bool:
        return {"true": True, "false": False}.get(text, text)
    if kind is str:
        # What a spreadsheet would run as a formula was written with an apostrophe before it.
        return text[1:] if _FORMULA.match(text) else text
    try:
        found = kind(text)
    except ValueError:
        return text
    return found if math.isfinite(found) else text


_FORMULA: Final = re.compile(r"'[=+\-@\t\r]")


# From a record to what is judged


@lru_cache(maxsize=4096)
def day_of(day: str) -> int:
    """A published day as proleptic ordinal. Raises ValueError."""
    return date.fromisoformat(day).toordinal()


def cell_of(record: PairRecord) -> CellKey:
    """The cell that a pair belongs to."""
    return CellKey(record.operator, record.asn, record.app, record.direction, record.access)


@lru_cache(maxsize=8192)
def _slot_ms(day: str, stratum: Stratum, peak_hours: tuple[int, int]) -> int:
    """A moment (Unix ms, in UTC) of this day and stratum: published pairs have no finer time."""
    first, last = peak_hours
    hour = first if stratum == "peak" else (last if last < 24 else 0)
    return (day_of(day) - _EPOCH) * _DAY_MS + hour * 3_600_000


_EPOCH: Final = date(1970, 1, 1).toordinal()


def pair_of(record: PairRecord, cell: CellKey, rules: Rules) -> Pair:
    """What was published of a pair as the pair that is judged: label for key, day for moment.

    Not published are session, tariff and position. A pair that is not lost had its receipt.
    """
    app_failed = record.app_end is not None and record.app_end != "complete"
    neutral_failed = record.neutral_end is not None and record.neutral_end != "complete"
    app = (
        record.app_mbps,
        app_failed,
        record.app_altered,
        record.app_delay_ms,
        record.app_loss,
    )
    neutral = (
        record.neutral_mbps,
        neutral_failed,
        record.neutral_altered,
        record.neutral_delay_ms,
        record.neutral_loss,
    )
    first, second = (neutral, app) if record.neutral_first else (app, neutral)
    return Pair(
        cell=cell,
        kind=record.kind,
        probe=record.probe,
        session=record.probe,
        number=record.sequence,
        started_ms=_slot_ms(record.day, record.stratum, rules.peak_hours),
        neutral_first=record.neutral_first,
        first_mbps=first[0],
        second_mbps=second[0],
        first_failed=first[1],
        second_failed=second[1],
        first_altered=first[2],
        second_altered=second[2],
        design=record.design,
        first_delay_ms=first[3],
        second_delay_ms=second[3],
        first_loss=first[4],
        second_loss=second[4],
        queued=record.queued,
        lost=record.lost,
        network=record.network,
        edge=record.edge,
        flags=_flags(record.flags),
        pace_mbps=record.pace_mbps,
        segment_s=record.segment_s,
    )


_KNOWN_FLAGS: Final = frozenset(get_args(Flag))


@lru_cache(maxsize=4096)
def _flags(names: tuple[str, ...]) -> frozenset[Flag]:
    """Flags that this version knows; later ones may be published beside them."""
    return cast("frozenset[Flag]", frozenset(names) & _KNOWN_FLAGS)


@dataclass(slots=True)
class Midpoints:
    """The midpoint m computed again from the published order of one probe's pairs, in O(log window) a pair.

    Equal to `OrderHistory.midpoint` where the probe's pairs do not overlap. What a lost pair's receipt told is not
    published, though it is part of the history: after one, m is unknown until it has left the window.
    """

    window: int
    _entries: deque[tuple[bool, float]] = field(default_factory=deque)
    _sorted: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    _blind: int = 0

    @property
    def full(self) -> bool:
        """Whether no pair from before the first one added could still count."""
        return len(self._entries) >= self.window

    def value(self) -> float | None:
        """m of the next pair; None where the published pairs cannot tell."""
        if self._blind:
            return None
        neutral_first, app_first = self._sorted[True], self._sorted[False]
        if not neutral_first or not app_first:
            return 0.0
        return (_median(neutral_first) + _median(app_first)) / 2

    def add(self, pair: Pair, record: PairRecord, ratio: float | None) -> None:
        """Remember a pair with its log ratio d, which is not known of a lost one."""
        if pair.lost and record.app_end == record.neutral_end == "complete":
            self._blind = self.window
        if ratio is None or pair.neutral_first is None:
            return
        self._blind -= self._blind > 0
        self._entries.append((pair.neutral_first, ratio))
        insort(self._sorted[pair.neutral_first], ratio)
        if len(self._entries) > self.window:
            coin, oldest = self._entries.popleft()
            ranked = self._sorted[coin]
            del ranked[bisect_left(ranked, oldest)]


def _median(ranked: list[float]) -> float:
    """As `statistics.median` computes it, of values in order."""
    half = len(ranked) // 2
    return ranked[half] if len(ranked) % 2 else (ranked[half - 1] + ranked[half]) / 2

# SPDX-License-Identifier: EUPL-1.2
"""Reads what probes and reflectors wrote into files; `analysis.archive` opens them.

Signatures are checked; a record that fails is refused, counted and named, and judging goes on without it. A line
that is no record at all stops with the file's name and the line's number: then the wrong file was given.
Spec: spec/statistics.md, section "Judging files".
"""

from __future__ import annotations

import zoneinfo
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import tzinfo
from pathlib import Path
from typing import Final, TypeVar

from analysis.archive import ArchiveError, lines
from analysis.match import UNKNOWN_OPERATOR, Session, pairs_of
from analysis.pairs import CellKey, Pair, in_order
from analysis.plan import ZONES
from analysis.rules import digest_of_inputs
from probe.wire.codec import WireError
from probe.wire.envelope import Envelope, from_line, open_record
from probe.wire.records import Measurement, Origin, Receipt, Started

NETTEST: Final = "differential"
"""The nettest whose pairs are judged here; records of others are left aside and counted."""

_R = TypeVar("_R", Receipt, Measurement)
_SessionKey = tuple[str, str]
"""The reflector's key id and the session: a stranger's session of the same name stays apart."""


class SourceError(Exception):
    """The files cannot be judged; the message is one sentence that says where and why."""


@dataclass(slots=True)
class Records:
    """What was read, each record once, whatever the number of files it stands in."""

    receipts: dict[_SessionKey, list[tuple[Envelope, Receipt]]] = field(default_factory=dict)
    measurements: dict[_SessionKey, list[tuple[Envelope, Measurement]]] = field(default_factory=dict)
    started: dict[_SessionKey, list[tuple[Envelope, Started]]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    """Records set aside, by reason."""
    digests: set[str] = field(default_factory=set)
    """Of the records used."""
    seen: set[tuple[str, bytes]] = field(default_factory=set)
    """Digest and signature of every envelope: the same one stands in a probe's file and in its reflector's."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing speaks of any pair."""
        return not self.receipts and not self.started


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Pairs in order, and what must be said about where they come from."""

    pairs: tuple[Pair, ...]
    lost_known: bool
    zones: Callable[[CellKey], tzinfo | None]
    refused: Mapping[str, int]
    notes: tuple[str, ...]
    inputs: str
    """Digest over the digests of all records used."""


def read_files(paths: Iterable[Path]) -> Records:
    """Read JSON lines of envelopes, plain or gzip. Raises SourceError."""
    records = Records()
    for path in paths:
        try:
            for number, line, whole in lines(path):
                _take(records, line, whole, f"{path}, line {number}")
        except ArchiveError as error:
            raise SourceError(str(error)) from None
    return records


def _take(records: Records, line: bytes, whole: bool, where: str) -> None:
    try:
        envelope = from_line(line)
    except WireError as error:
        if not whole and error.reason == "not_json":
            # A writer was stopped in the middle of its last line: that record was never given.
            records.refused["cut_off_line"] += 1
            return
        raise SourceError(f"{where} is not a record of a probe or reflector ({error})") from None
    if (envelope.digest, envelope.signature) in records.seen:
        return
    records.seen.add((envelope.digest, envelope.signature))
    try:
        record = open_record(envelope)
    except WireError as error:
        if error.reason == "unknown_type":
            raise SourceError(f"{where} is neither a receipt, a measurement nor a started pair") from None
        records.refused[error.reason] += 1
        return
    records.digests.add(envelope.digest)
    _file(records, envelope, record)


def _file(records: Records, envelope: Envelope, record: object) -> None:
    """Put a verified record where its session is, or refuse it."""
    if isinstance(record, Measurement | Receipt | Started) and record.nettest != NETTEST:
        records.refused["other_nettest"] += 1
    elif isinstance(record, Measurement):
        records.measurements.setdefault((record.reflector, record.session), []).append((envelope, record))
    elif isinstance(record, Receipt | Started):
        if record.probe == envelope.key_id:
            # Nobody witnesses for himself.
            records.refused["signed_by_its_own_probe"] += 1
        elif isinstance(record, Receipt):
            records.receipts.setdefault((envelope.key_id, record.session), []).append((envelope, record))
        else:
            records.started.setdefault((envelope.key_id, record.session), []).append((envelope, record))
    else:
        records.refused["not_used_here"] += 1


def corpus(records: Records) -> Corpus:
    """Match records into pairs."""
    refused = Counter(records.refused)
    watched = {key for key, _ in records.started}
    reflectors = sorted({key for key, _ in records.receipts} | watched)
    lost_known = bool(watched) and watched.issuperset(reflectors)
    sessions = _sessions(records, watched, refused)
    origins = [origin for session in sessions for origin in _origins(session)]
    numbers = _numbers(origins)

    def operator(origin: Origin) -> tuple[str, int | None]:
        name = origin.operator or UNKNOWN_OPERATOR
        return name, numbers.get(name, origin.asn)

    pairs = in_order(pair for session in sessions for pair in pairs_of(session, operator))
    return Corpus(
        pairs=tuple(pairs),
        lost_known=lost_known,
        zones=_zones(origins, operator),
        refused={reason: count for reason, count in sorted(refused.items()) if count},
        notes=tuple(_notes(reflectors, lost_known, bool(watched), pairs, refused)),
        inputs=digest_of_inputs(records.digests),
    )


def _sessions(records: Records, watched: set[str], refused: Counter[str]) -> list[Session]:
    """One Session for each reflector key and session id. Which of two conflicting records counts never depends on
    the order of files."""
    found = []
    for key in sorted(records.receipts.keys() | records.started.keys()):
        receipt = _latest(records.receipts.get(key, []), refused)
        started: dict[int, Started] = {}
        for _, one in sorted(records.started.get(key, []), key=lambda entry: entry[0].digest):
            if started.setdefault(one.pair, one) is not one:
                refused["conflicting_records"] += 1
        probe = receipt.probe if receipt else next(iter(started.values())).probe
        own = []
        for envelope, measurement in records.measurements.get(key, []):
            if envelope.key_id == probe:
                own.append((envelope, measurement))
            else:
                refused["measurement_of_another_probe"] += 1
        found.append(
            Session(
                receipt=receipt,
                measurement=_latest(own, refused),
                started=tuple(started.values()),
                needs_measurement=key[0] in watched,
            )
        )
    known = records.receipts.keys() | records.started.keys()
    refused["measurement_without_receipt"] += sum(len(m) for key, m in records.measurements.items() if key not in known)
    return found


def _latest(entries: list[tuple[Envelope, _R]], refused: Counter[str]) -> _R | None:
    if not entries:
        return None
    refused["conflicting_records"] += len(entries) - 1
    return max(entries, key=lambda entry: (entry[1].ended_ms, entry[0].digest))[1]


def _origins(session: Session) -> list[Origin]:
    return [r.origin for r in (session.receipt, *session.started) if r is not None]


def _numbers(origins: Iterable[Origin]) -> dict[str, int | None]:
    """One number for each named operator: the one seen most often, so that its cells are not torn apart."""
    seen: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for origin in origins:
        if origin.operator and origin.asn is not None:
            seen[origin.operator][origin.asn] += 1
    return {name: min(count, key=lambda asn: (-count[asn], asn)) for name, count in seen.items()}


def _zones(
    origins: Iterable[Origin], operator: Callable[[Origin], tuple[str, int | None]]
) -> Callable[[CellKey], tzinfo | None]:
    """Each operator's zone: that of the country its origins name most often."""
    seen: defaultdict[tuple[str, int | None], Counter[str]] = defaultdict(Counter)
    for origin in origins:
        if origin.country:
            seen[operator(origin)][origin.country] += 1
    zones = {name: zone_of(min(c, key=lambda country: (-c[country], country))) for name, c in seen.items()}
    return lambda cell: zones.get((cell.operator, cell.asn))


def zone_of(country: str | None) -> tzinfo | None:
    """The time zone of a country, None where the bundled table or this machine does not know it."""
    name = ZONES.get(country or "")
    if name is None:
        return None
    try:
        return zoneinfo.ZoneInfo(name)
    except zoneinfo.ZoneInfoNotFoundError:
        return None


def _notes(
    reflectors: list[str], lost_known: bool, watched: bool, pairs: list[Pair], refused: Mapping[str, int]
) -> Iterator[str]:
    """What a reader of a verdict on files must know."""
    keys = ", ".join(reflectors)
    yield f"Receipts are trusted as signed by these reflector keys, which nothing here vouches for: {keys}."
    if not lost_known:
        whose = "some reflectors" if watched else "the reflectors"
        yield f"The list of started pairs of {whose} was not given, so withheld pairs cannot be counted."
    unmeasured = sum(p.lost and p.received and p.neutral_first is not None for p in pairs)
    if unmeasured:
        yield f"{unmeasured} pairs have a receipt but not their probe's measurement and count as lost."
    for reason, count in sorted(refused.items()):
        if count:
            yield f"{count} records refused: {reason.replace('_', ' ')}."

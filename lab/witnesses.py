# SPDX-License-Identifier: EUPL-1.2
"""The two signed accounts of a session side by side: do the probe and the reflector tell the same story?

On a hostile path a pair may be void or lost, but it must never be wrong. Whatever both witnessed is compared
here field by field, so that tests and the A/A check can demand it of real runs. spec/lab.md section 6;
spec/records.md, spec/protocol.md section "One pair".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from analysis.sources import read_files
from probe.protocol import coin
from probe.wire.records import MeasuredPair, Measurement, Receipt, ReceiptPair, Started

MOST_APART = 0.15
"""Share by which two honest counts of a complete segment's bytes may differ: TLS, and what was under way."""
UNDER_WAY_BYTES = 200_000
"""Bytes that buffers may hold at the end of a segment, whatever its length."""


@dataclass(frozen=True)
class Told:
    """What is on record of one session."""

    session: str
    receipt: Receipt | None
    measurement: Measurement | None
    started: tuple[Started, ...]

    def pairs(self) -> Iterator[tuple[ReceiptPair, MeasuredPair | None]]:
        """The receipt's pairs, each with the probe's account of it."""
        measured = {pair.pair: pair for pair in self.measurement.pairs} if self.measurement else {}
        for pair in self.receipt.pairs if self.receipt else ():
            yield pair, measured.get(pair.pair)


def read(files: Iterable[Path]) -> list[Told]:
    """Every session of the files, oldest first. Raises analysis.sources.SourceError; a bad signature is an error."""
    records = read_files(files)
    if wrong := {reason: count for reason, count in records.refused.items() if reason != "not_used_here"}:
        raise ValueError(f"records were refused: {wrong}")
    receipts = {session: entries[-1][1] for (_, session), entries in records.receipts.items()}
    measurements = {session: entries[-1][1] for (_, session), entries in records.measurements.items()}
    started = {session: tuple(one for _, one in entries) for (_, session), entries in records.started.items()}
    told = [
        Told(one, receipts.get(one), measurements.get(one), started.get(one, ()))
        for one in {**receipts, **measurements, **started}
    ]
    return sorted(told, key=_first_ms)


def _first_ms(told: Told) -> int:
    times = [one.started_ms for one in (*told.started, told.receipt, told.measurement) if one is not None]
    return min(times)


def contradictions(told: Told) -> list[str]:
    """Everything in which the two accounts, or an account and the coin, do not fit together."""
    found = []
    known = {one.pair: one for one in told.started}
    for pair, measured in told.pairs():
        found += [f"pair {pair.pair}: {what}" for what in _within(told.session, pair)]
        start = known.get(pair.pair)
        if start is None or (start.commit, start.reflector_nonce) != (pair.commit, pair.reflector_nonce):
            found.append(f"pair {pair.pair}: its start was not written down as the receipt has it")
        if measured is not None:
            found += [f"pair {pair.pair}: {what}" for what in _between(pair, measured)]
    if told.measurement is not None:
        unknown = {pair.pair for pair in told.measurement.pairs if pair.segments} - known.keys()
        found += [f"pair {number}: the probe ran it, and nobody wrote down its start" for number in sorted(unknown)]
    return found


def _within(session: str, pair: ReceiptPair) -> Iterator[str]:
    """What in the receipt itself does not follow from the nonces."""
    if pair.probe_nonce is None or pair.neutral_first is None:
        return
    nonces = bytes.fromhex(pair.probe_nonce), bytes.fromhex(pair.reflector_nonce)
    if coin.commitment(nonces[0]) != pair.commit:
        yield "the probe's nonce is not the one it committed to"
    if coin.neutral_first(*nonces, session, pair.pair) != pair.neutral_first:
        yield "the receipt's coin does not follow from the nonces"
    arms = [segment.arm for segment in pair.segments]
    if arms and (arms[0] == "app") == pair.neutral_first:
        yield "the arms did not run in the coin's order"
    if len(set(arms)) != len(arms):
        yield "both segments have one arm"


def _between(pair: ReceiptPair, measured: MeasuredPair) -> Iterator[str]:
    """What probe and reflector say differently of one pair."""
    if pair.probe_nonce is not None and measured.nonce != pair.probe_nonce:
        yield "the probe revealed another nonce than it signed"
    if (pair.kind, pair.app, pair.direction) != (measured.kind, measured.app, measured.direction):
        yield "probe and reflector say different things of what it was"
    for slot, (theirs, ours) in enumerate(zip(pair.segments, measured.segments, strict=False), 1):
        if theirs.arm != ours.arm:
            yield f"segment {slot}: {theirs.arm} to the reflector and {ours.arm} to the probe"
        if theirs.end == "complete" and theirs.name_seen not in {None, ours.name}:
            yield f"segment {slot}: another name arrived than was sent"
        apart = abs(theirs.bytes - ours.bytes)
        if theirs.end == "complete" and apart > max(UNDER_WAY_BYTES, MOST_APART * max(theirs.bytes, ours.bytes)):
            yield f"segment {slot}: {theirs.bytes} bytes to the reflector and {ours.bytes} to the probe"

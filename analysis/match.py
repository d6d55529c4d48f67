# SPDX-License-Identifier: EUPL-1.2
"""Receipt, measurement and list of started pairs put together into `Pair`s. Pure.

A receipt suffices to score a pair; the measurement adds what the gates need, and its absence makes the pair lost
where a list of started pairs is kept. Spec: spec/statistics.md, section "From records to pairs".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from analysis.pairs import CellKey, Flag, Pair
from probe.wire import echo
from probe.wire.rate import rate_mbps
from probe.wire.records import (
    CONTROL_ARMS,
    Access,
    Environment,
    MeasuredPair,
    Measurement,
    Origin,
    Receipt,
    ReceiptPair,
    Segment,
    Started,
)

UNKNOWN_OPERATOR: Final = "unknown"
HOUSEHOLD_SHARE: Final = 0.1
"""Traffic of the rest of the household above this share of the pair's own is worth a flag."""

QUEUED_MS: Final = 10.0
"""A slot that waited so much longer than the line takes without a queue was queued."""

OperatorOf = Callable[[Origin], tuple[str, int | None]]
"""From an origin to the operator's id and number; a register may know better than the reflector's table."""


def operator_of(origin: Origin) -> tuple[str, int | None]:
    """The operator as the receipt names it, for those without a register."""
    return (origin.operator or UNKNOWN_OPERATOR, origin.asn)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """All that is known of one session: any of the three may be missing."""

    receipt: Receipt | None
    measurement: Measurement | None
    started: tuple[Started, ...] = ()
    needs_measurement: bool = True
    """A pair without its measurement is lost. False on files without a list of started pairs."""

    @property
    def environment(self) -> Environment:
        """What the probe said of its surroundings; all unknown without its measurement."""
        return self.measurement.environment if self.measurement else Environment()

    def measured(self, number: int) -> MeasuredPair | None:
        """The probe's own account of one pair."""
        pairs = self.measurement.pairs if self.measurement else ()
        return next((p for p in pairs if p.pair == number), None)


def pairs_of(session: Session, operator: OperatorOf = operator_of) -> Iterator[Pair]:
    """The session's pairs: those in its receipt, and those that only the list of started pairs knows."""
    started = {s.pair: s for s in session.started}
    if session.receipt is not None:
        for pair in session.receipt.pairs:
            yield _pair(session, session.receipt, pair, started.pop(pair.pair, None), operator=operator)
    for only in started.values():
        yield Pair(
            cell=_cell(only.origin, only, only.hotspot, operator),
            kind=only.kind,
            probe=only.probe,
            session=only.session,
            number=only.pair,
            started_ms=only.started_ms,
            design=only.design,
            lost=True,
            received=False,
            network=_network(only.origin),
            edge=only.origin.edge,
        )


def _pair(
    session: Session, receipt: Receipt, pair: ReceiptPair, started: Started | None, *, operator: OperatorOf
) -> Pair:
    environment, measured = session.environment, session.measured(pair.pair)
    seen = _cell(receipt.origin, pair, receipt.hotspot, operator)
    # The cell is the one of the list of started pairs, written before the coin. The receipt's origin is that of data
    # connections made after it: who has two uplinks could send the pairs whose coin he likes through the one, the
    # others through the other, and neither cell would miss any.
    cell = seen if started is None else _cell(started.origin, pair, started.hotspot, operator)
    sound = is_sound(receipt.session, pair) and (started is None or (_agree(pair, started) and _is_same(cell, seen)))
    lost = not sound or (session.needs_measurement and (measured is None or not _same(pair, measured)))
    segments = pair.segments if sound else ()
    concurrent = pair.design == "concurrent"
    rates = (None, None) if concurrent else pair_rates(segments, pair.segment_s)
    queue = queue_of(segments, pair.segment_s) if concurrent else NO_QUEUE
    altered = [_altered(s, measured) for s in segments]
    ends = [_end_ms(s) for s in segments]
    return Pair(
        cell=cell,
        kind=pair.kind,
        probe=receipt.probe,
        session=receipt.session,
        number=pair.pair,
        started_ms=pair.started_ms,
        ended_ms=_session_end(receipt, *ends) if len(ends) == 2 else None,
        neutral_first=pair.neutral_first if sound else None,
        first_mbps=rates[0],
        second_mbps=rates[1],
        first_failed=sound and segments[0].end != "complete",
        second_failed=sound and segments[1].end != "complete",
        first_altered=sound and altered[0],
        second_altered=sound and altered[1],
        design=pair.design,
        first_delay_ms=queue.delays_ms[0],
        second_delay_ms=queue.delays_ms[1],
        first_loss=queue.losses[0],
        second_loss=queue.losses[1],
        queued=queue.queued,
        lost=lost,
        network=_network(receipt.origin),
        edge=receipt.origin.edge,
        position=environment.position,
        tariff=environment.tariff,
        flags=_flags(pair, measured, environment),
        pace_mbps=pair.pace_mbps,
        segment_s=pair.segment_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What the two slots of a concurrent pair met, slot A first. Swapping their labels changes nothing here."""

    delays_ms: tuple[float | None, float | None] = (None, None)
    losses: tuple[float | None, float | None] = (None, None)
    queued: bool | None = None
    """None for sequential pairs and where a slot did not complete."""


NO_QUEUE: Final = Queue()


def queue_of(segments: tuple[Segment, ...], segment_s: float) -> Queue:
    """Delays and losses of a concurrent pair (`probe.wire.echo`), and whether there was a queue to differ in.

    It was queued if at least one slot lost something, or waited 10 ms longer under load than the fastest echo of
    either. Where neither did, the load never filled the queue, and no treatment in it could show.
    """
    if len(segments) != 2 or any(s.end != "complete" for s in segments):
        return NO_QUEUE
    delays = (echo.delay_ms(segments[0], segment_s), echo.delay_ms(segments[1], segment_s))
    losses = (echo.loss(segments[0]), echo.loss(segments[1]))
    base = echo.baseline_ms(segments)
    waited = base is not None and any(delay is not None and delay - base >= QUEUED_MS for delay in delays)
    return Queue(delays_ms=delays, losses=losses, queued=waited or any(losses))


def _altered(segment: Segment, measured: MeasuredPair | None) -> bool:
    """Whether what this arm sent was changed under way: its first bytes, its name, or what the probe was sent."""
    told = any(s.arm == segment.arm and s.altered for s in measured.segments) if measured else False
    return segment.altered or segment.end == "mismatch" or told


def _network(origin: Origin) -> str | None:
    """The hash, or None where the reflector had none to give (all zeros)."""
    return origin.network if origin.network.strip("0") else None


def _cell(origin: Origin, pair: ReceiptPair | Started, hotspot: bool, operator: OperatorOf) -> CellKey:
    # `hotspot` is what was declared before the coin: what the measurement says was signed after it, and could
    # move the pairs that went the wrong way to another cell.
    name, asn = operator(origin)
    access: Access = "hotspot" if hotspot else origin.access
    return CellKey(name, asn, pair.app, pair.direction, access)


def is_sound(session: str, pair: ReceiptPair) -> bool:
    """Whether the pair was finished and its receipt holds together: commitment, coin, order of the arms.

    What is not sound stays lost, whatever the reason.
    """
    if pair.outcome == "unfinished" or len(pair.segments) != 2 or pair.probe_nonce is None:
        return False
    if any(s.end == "control_lost" for s in pair.segments):
        return False
    nonce = bytes.fromhex(pair.probe_nonce)
    if hashlib.sha256(nonce).hexdigest() != pair.commit:
        return False
    if pair.neutral_first != coin(nonce, bytes.fromhex(pair.reflector_nonce), bytes.fromhex(session), pair.pair):
        return False
    # In a placebo pair "app" stands for the first of the two neutral twins.
    control = CONTROL_ARMS[pair.carrier]
    expected = (control, "app") if pair.neutral_first else ("app", control)
    return tuple(s.arm for s in pair.segments) == expected


def coin(probe_nonce: bytes, reflector_nonce: bytes, session: bytes, pair: int) -> bool:
    """The pair's coin: lowest bit of SHA-256(nonces ‖ session id ‖ pair number); True = neutral first."""
    return bool(hashlib.sha256(probe_nonce + reflector_nonce + session + pair.to_bytes(4, "big")).digest()[-1] & 1)


def _agree(pair: ReceiptPair, started: Started) -> bool:
    return (pair.commit, pair.reflector_nonce, pair.kind, pair.app, pair.direction, pair.design) == (
        started.commit,
        started.reflector_nonce,
        started.kind,
        started.app,
        started.direction,
        started.design,
    )


def _is_same(cell: CellKey, other: CellKey) -> bool:
    """Whether two cells are one; a named operator is one whatever its AS numbers."""
    named = cell.operator == other.operator != UNKNOWN_OPERATOR
    return replace(cell, asn=None) == replace(other, asn=None) if named else cell == other


def _same(pair: ReceiptPair, measured: MeasuredPair) -> bool:
    return (pair.probe_nonce, pair.kind, pair.app, pair.direction) == (
        measured.nonce,
        measured.kind,
        measured.app,
        measured.direction,
    )


def _end_ms(segment: Segment) -> int | None:
    return None if segment.started_ms is None else segment.started_ms + segment.duration_ms


def _session_end(receipt: Receipt, first_ms: int | None, second_ms: int | None) -> int | None:
    """When the pair became history for other sessions: with its session. None where the second's end is unknown.

    Not when the pair itself was over: who runs two sessions at once would decide, by closing the one before or after
    the other, whether its pairs enter the other's midpoint, and could do so after seeing that one's coin.
    """
    return None if second_ms is None else max(receipt.ended_ms, second_ms, first_ms or 0)


def _flags(pair: ReceiptPair, measured: MeasuredPair | None, environment: Environment) -> frozenset[Flag]:
    """What speaks of the pair as a whole. Sums over both segments only: a gate may not see which arm was which."""
    moved_kb = (pair.load_bytes + sum(s.bytes for s in pair.segments)) / 1000
    household = measured.household_kb if measured else None
    checks: tuple[tuple[bool | None, Flag], ...] = (
        (household is not None and household > HOUSEHOLD_SHARE * moved_kb, "household_traffic"),
        (measured.cpu_limited if measured else None, "short_of_cpu"),
        (measured.queue_limited if measured else None, "queue_limited"),
        (pair.saturated, "saturated"),
        (measured.captive if measured else None, "captive_portal"),
        # At hotspots alone: at home it would be an operator's way out of every accusation to rewrite plain pages.
        (environment.hotspot and environment.portal in {"captive", "intercepted"}, "captive_portal"),
        (pair.path_changed or (measured is not None and measured.path_changed), "path_changed"),
        (environment.vpn, "vpn"),
        (environment.opt_in_filters, "filters"),
        (environment.sqm, "sqm"),
        (environment.data_cap_exhausted, "data_cap"),
    )
    return frozenset(flag for holds, flag in checks if holds)


def pair_rates(segments: tuple[Segment, ...], segment_s: float) -> tuple[float | None, float | None]:
    """Mbit/s of a pair's two segments, None for one that did not complete; both None where there are not two."""
    if len(segments) != 2:
        return None, None
    return rate_mbps(segments[0], segment_s), rate_mbps(segments[1], segment_s)

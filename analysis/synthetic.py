# SPDX-License-Identifier: EUPL-1.2
"""Simulated pairs as the signed records that a probe and a reflector would have written.

For proving the way from records to verdicts without a network: coins, commitments and bins hold together, so
every check on records passes or fails for its own reason. Spec: spec/statistics.md, section "Simulations".
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.match import coin
from analysis.pairs import Pair
from probe.wire.echo import BASELINE_S, UNANSWERED
from probe.wire.envelope import Envelope, seal
from probe.wire.records import (
    Arm,
    Environment,
    MeasuredPair,
    MeasuredSegment,
    Measurement,
    Origin,
    Receipt,
    ReceiptPair,
    Segment,
    Started,
)
from probe.wire.signing import Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecords:
    """What one session leaves behind."""

    receipt: Receipt
    measurement: Measurement
    started: tuple[Started, ...]

    def sealed(self, probe: Signer, reflector: Signer) -> tuple[Envelope, Envelope, list[Envelope]]:
        """Receipt, measurement and started pairs, signed."""
        return seal(self.receipt, reflector), seal(self.measurement, probe), [seal(s, reflector) for s in self.started]


def session_records(
    pairs: Sequence[Pair],
    *,
    probe: str,
    reflector: str,
    rng: random.Random,
    origin: Origin,
    environment: Environment | None = None,
    hotspot: bool = False,
) -> SessionRecords:
    """One session with these pairs, in their order. `probe` and `reflector` are key ids; `hotspot` as declared."""
    session = rng.randbytes(16)
    witnessed = [_witnessed(number, pair, session, rng) for number, pair in enumerate(pairs, start=1)]
    begin, end = pairs[0].started_ms, pairs[-1].started_ms + 20_000
    measurement = Measurement(
        type="measurement",
        v=1,
        id=rng.randbytes(16).hex(),
        session=session.hex(),
        sequence=1,
        reflector=reflector,
        nettest="differential",
        started_ms=begin,
        ended_ms=end,
        environment=environment or Environment(position="edge"),
        pairs=tuple(_measured(pair) for pair in witnessed),
    )
    receipt = Receipt(
        type="receipt",
        v=1,
        session=session.hex(),
        probe=probe,
        nettest="differential",
        started_ms=begin,
        ended_ms=end,
        end="closed",
        origin=origin,
        pairs=tuple(witnessed),
        hotspot=hotspot,
    )
    started = tuple(
        Started(
            type="started",
            v=1,
            session=session.hex(),
            probe=probe,
            nettest="differential",
            pair=pair.pair,
            kind=pair.kind,
            app=pair.app,
            direction=pair.direction,
            started_ms=pair.started_ms,
            commit=pair.commit,
            reflector_nonce=pair.reflector_nonce,
            origin=origin,
            hotspot=hotspot,
            design=pair.design,
        )
        for pair in witnessed
    )
    return SessionRecords(receipt=receipt, measurement=measurement, started=started)


def _witnessed(number: int, pair: Pair, session: bytes, rng: random.Random) -> ReceiptPair:
    theirs = rng.randbytes(32)
    own = rng.randbytes(32)
    while coin(own, theirs, session, number) != pair.neutral_first:  # a simulation may grind; a probe is bound
        own = rng.randbytes(32)
    rates = (pair.first_mbps, pair.second_mbps)
    failed = (pair.first_failed, pair.second_failed)
    arms: tuple[Arm, Arm] = ("neutral", "app") if pair.neutral_first else ("app", "neutral")
    if pair.design == "concurrent":
        figures = ((pair.first_delay_ms, pair.first_loss), (pair.second_delay_ms, pair.second_loss))
        segments = tuple(
            Segment(arm=arm, end="reset") if broke else _slot(arm, pair.started_ms + 200, pair.segment_s, *figure)
            for arm, figure, broke in zip(arms, figures, failed, strict=True)
        )
    else:
        offsets = (200, 200 + round(pair.segment_s * 1000) + 200)
        segments = tuple(
            _segment(arm, pair.started_ms + offset, pair.segment_s, None if broke else rate)
            for arm, offset, rate, broke in zip(arms, offsets, rates, failed, strict=True)
        )
    altered = (pair.first_altered, pair.second_altered)
    segments = tuple(replace(s, altered=changed) for s, changed in zip(segments, altered, strict=True))
    return ReceiptPair(
        pair=number,
        kind=pair.kind,
        app=pair.cell.app,
        profile=f"{pair.cell.app}@1:0123456789abcdef",
        direction=pair.cell.direction,
        pace_mbps=pair.pace_mbps,
        segment_s=pair.segment_s,
        started_ms=pair.started_ms,
        commit=hashlib.sha256(own).hexdigest(),
        reflector_nonce=theirs.hex(),
        endpoint=0,
        outcome="both_failed" if all(failed) else "one_failed" if any(failed) else "both",
        probe_nonce=own.hex(),
        neutral_first=pair.neutral_first,
        segments=segments,
        design=pair.design,
        load_bytes=round(pair.pace_mbps * pair.segment_s * 125_000) if pair.design == "concurrent" else 0,
    )


def _slot(arm: Arm, started_ms: int, segment_s: float, delay_ms: float | None, lost: float | None) -> Segment:
    """Echoes every 10 ms: half a second without load, then with this median and share of losses."""
    count = round(segment_s * 100)
    quiet = round(100 * BASELINE_S)
    missing = round((lost or 0.0) * count)
    loaded = [UNANSWERED] * missing + [round((delay_ms or 0.0) * 1000)] * (count - quiet - missing)
    return Segment(
        arm=arm,
        end="complete",
        started_ms=started_ms,
        duration_ms=count * 10,
        bytes=160 * (count - missing),
        echo_us=(*(20_000,) * quiet, *loaded),
    )


def _segment(arm: Arm, started_ms: int, segment_s: float, mbps: float | None) -> Segment:
    if mbps is None:
        return Segment(arm=arm, end="reset")
    bins = round(segment_s * 10)
    each = round(mbps * 1e6 / 8 / 10)
    return Segment(
        arm=arm,
        end="complete",
        started_ms=started_ms,
        duration_ms=bins * 100,
        bytes=each * bins,
        bins_ms=tuple(100 * (i + 1) for i in range(bins)),
        bins_bytes=(each,) * bins,
    )


def _measured(pair: ReceiptPair) -> MeasuredPair:
    return MeasuredPair(
        pair=pair.pair,
        kind=pair.kind,
        app=pair.app,
        direction=pair.direction,
        nonce=pair.probe_nonce or "",
        segments=tuple(
            MeasuredSegment(
                arm=s.arm,
                name="example",
                failure=None if s.end == "complete" else "connection_reset",
                bytes=s.bytes,
                duration_ms=s.duration_ms,
            )
            for s in pair.segments
        ),
    )

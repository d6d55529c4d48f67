# SPDX-License-Identifier: EUPL-1.2
"""Signed records of sessions that never took place, with a known truth: for tests and benchmarks.

They go through the same doors as real ones; the keys are made from a seed, so a collector that trusts such a
reflector is one that was told to. Spec: spec/api.md, section "Rehearsal".
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from analysis.match import coin
from probe.wire.echo import BASELINE_S, UNANSWERED
from probe.wire.envelope import Envelope, seal
from probe.wire.records import (
    Arm,
    Direction,
    Environment,
    MeasuredPair,
    MeasuredSegment,
    Measurement,
    Origin,
    PairKind,
    Receipt,
    ReceiptPair,
    Segment,
    Started,
)
from probe.wire.signing import SeedSigner

PAIR_MS: Final = 2500
"""From one pair's start to the next one's."""
SLOT_S: Final = 2.0
"""Length of the slots of a concurrent pair."""


def signer(rng: random.Random) -> SeedSigner:
    """A key that the seed of `rng` decides."""
    return SeedSigner(rng.randbytes(32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What the operator does. `slowdown` 0.4: the app gets 60 % of the rate; `blocks`: its segments are reset.

    `concurrent` pairs wait behind a full queue (where there is one: `queue_ms`), the app `delay_ms` longer, and it
    loses `loss` more of its packets. `alters`: what the app arm sends arrives changed.
    """

    slowdown: float = 0.0
    placebo_slowdown: float = 0.0
    """One of two neutral names is slower: then the names are not neutral."""
    blocks: bool = False
    noise: float = 0.05
    """Standard deviation of the log rate of a segment."""
    rate_mbps: float = 10.0
    concurrent: bool = False
    queue_ms: float = 60.0
    delay_ms: float = 0.0
    loss: float = 0.0
    alters: bool = False
    voids: bool = False
    """A home that lets both transfers fail whenever the coin puts the app first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The three kinds of records of one session, sealed."""

    started: tuple[Envelope, ...]
    receipt: Envelope
    measurement: Envelope

    @property
    def all(self) -> tuple[Envelope, ...]:
        """In the order in which they arise."""
        return (*self.started, self.receipt, self.measurement)


@dataclass(slots=True)
class Rehearsal:
    """Makes sessions. Everything but the keys given comes from `rng`."""

    rng: random.Random
    reflector: SeedSigner
    segment_s: float = 1.0
    _sequence: dict[str, int] = field(default_factory=dict)

    def session(
        self,
        probe: SeedSigner,
        *,
        started_ms: int,
        pairs: int,
        truth: Truth | None = None,
        app: str = "youtube",
        direction: Direction = "down",
        origin: Origin | None = None,
        environment: Environment | None = None,
        placebo: int = 0,
        unfinished: int = 0,
        hotspot: bool = False,
    ) -> Told:
        """One session of `pairs` pairs, the last `placebo` of them placebo pairs; then `unfinished` ones."""
        truth = truth or Truth()
        origin = origin or Origin(asn=64500, operator="Example Net", country="NL", network="ab" * 16, edge=True)
        session = self.rng.randbytes(16).hex()
        kinds: list[PairKind] = []
        for kind, count in (("test", pairs - placebo), ("placebo", placebo), ("test", unfinished)):
            kinds += [kind] * count  # type: ignore[list-item]
        told = [
            self._pair(
                session,
                number,
                kind=kind,
                at_ms=started_ms + (number - 1) * PAIR_MS,
                truth=truth
                if kind == "test"
                else replace(truth, slowdown=truth.placebo_slowdown, blocks=False, delay_ms=0, loss=0, alters=False),
                about={"app": app, "direction": direction},
                finished=number <= pairs,
            )
            for number, kind in enumerate(kinds, start=1)
        ]
        ended_ms = started_ms + len(kinds) * PAIR_MS
        about: dict[str, Any] = {"v": 1, "session": session, "nettest": "differential"}
        witnessed = about | {"hotspot": hotspot}
        started = tuple(
            seal(
                Started(
                    type="started",
                    probe=probe.key_id,
                    pair=pair.pair,
                    kind=pair.kind,
                    app=app,
                    direction=direction,
                    started_ms=pair.started_ms,
                    commit=pair.commit,
                    reflector_nonce=pair.reflector_nonce,
                    origin=origin,
                    design=pair.design,
                    **witnessed,
                ),
                self.reflector,
            )
            for pair, _ in told
        )
        receipt = Receipt(
            type="receipt",
            probe=probe.key_id,
            started_ms=started_ms,
            ended_ms=ended_ms,
            end="closed",
            origin=origin,
            pairs=tuple(pair for pair, _ in told),
            **witnessed,
        )
        sequence = self._sequence[probe.key_id] = self._sequence.get(probe.key_id, -1) + 1
        measurement = Measurement(
            type="measurement",
            id=self.rng.randbytes(16).hex(),
            sequence=sequence,
            reflector=self.reflector.key_id,
            started_ms=started_ms,
            ended_ms=ended_ms,
            environment=environment or Environment(position="edge"),
            pairs=tuple(measured for _, measured in told),
            **about,
        )
        return Told(started=started, receipt=seal(receipt, self.reflector), measurement=seal(measurement, probe))

    def _pair(
        self,
        session: str,
        number: int,
        *,
        kind: PairKind,
        at_ms: int,
        truth: Truth,
        about: dict[str, Any],
        finished: bool,
    ) -> tuple[ReceiptPair, MeasuredPair]:
        mine, theirs = self.rng.randbytes(32), self.rng.randbytes(32)
        neutral_first = coin(mine, theirs, bytes.fromhex(session), number)
        made = self._slots if truth.concurrent else self._segments
        segments = tuple(made(at_ms, truth, neutral_first)) if finished else ()
        receipt = ReceiptPair(
            pair=number,
            kind=kind,
            profile=f"{about['app']}@1:{'0' * 16}",
            pace_mbps=12.0,
            segment_s=SLOT_S if truth.concurrent else self.segment_s,
            started_ms=at_ms,
            commit=hashlib.sha256(mine).hexdigest(),
            reflector_nonce=theirs.hex(),
            endpoint=0,
            outcome=_outcome(segments),
            probe_nonce=mine.hex() if finished else None,
            neutral_first=neutral_first if finished else None,
            segments=segments,
            design="concurrent" if truth.concurrent else "sequential",
            load_bytes=1_000_000 if truth.concurrent else 0,
            **about,
        )
        names = {"app": "r1.googlevideo.com", "neutral": "r1.harbourlight.example"}
        measured = MeasuredPair(
            pair=number,
            kind=kind,
            nonce=mine.hex(),
            segments=tuple(MeasuredSegment(arm=s.arm, name=names[s.arm], bytes=s.bytes) for s in segments),
            **about,
        )
        return receipt, measured

    def _segments(self, at_ms: int, truth: Truth, neutral_first: bool) -> Iterator[Segment]:
        # In a placebo pair "app" stands for the first of the two neutral twins.
        arms: tuple[Arm, ...] = ("neutral", "app") if neutral_first else ("app", "neutral")
        for index, arm in enumerate(arms):
            factor = 1 - truth.slowdown if arm == "app" else 1.0
            rate = truth.rate_mbps * factor * self.rng.lognormvariate(0, truth.noise)
            failed = (truth.blocks and arm == "app") or (truth.voids and not neutral_first)
            bins = 1 if failed else round(self.segment_s * 10)
            yield Segment(
                arm=arm,
                end="reset" if failed else "complete",
                started_ms=at_ms + index * round(self.segment_s * 1000),
                duration_ms=bins * 100,
                bytes=round(rate * 1e5 / 8) * bins,
                bins_ms=tuple(100 * (i + 1) for i in range(bins)),
                bins_bytes=(round(rate * 1e5 / 8),) * bins,
                altered=truth.alters and arm == "app",
            )

    def _slots(self, at_ms: int, truth: Truth, neutral_first: bool) -> Iterator[Segment]:
        """Both arms at once: an echo every 10 ms, half of a second without load, then behind the queue."""
        arms: tuple[Arm, ...] = ("neutral", "app") if neutral_first else ("app", "neutral")
        for arm in arms:
            treated = arm == "app"
            count, quiet = round(SLOT_S * 100), round(BASELINE_S * 100)
            wait = 20 + (truth.queue_ms + truth.delay_ms * treated) * self.rng.lognormvariate(0, truth.noise)
            lost = [self.rng.random() < truth.loss * treated for _ in range(count - quiet)]
            loaded = [UNANSWERED if gone else round(wait * 1000) for gone in lost]
            yield Segment(
                arm=arm,
                end="complete",
                started_ms=at_ms,
                duration_ms=round(SLOT_S * 1000),
                bytes=160 * (count - sum(lost)),
                echo_us=(*(20_000,) * quiet, *loaded),
                altered=truth.alters and treated,
            )


def _outcome(segments: tuple[Segment, ...]) -> Any:
    if not segments:
        return "unfinished"
    failed = sum(s.end != "complete" for s in segments)
    return ("both", "one_failed", "both_failed")[failed]

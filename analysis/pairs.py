# SPDX-License-Identifier: EUPL-1.2
"""One pair, and its score: the only place where a coin meets a rate.

If the name changes nothing, then given the rates, the past and every other probe the coin is still fair; all
evidence rests on this. So nothing here may depend on which arm was which except the sign that the coin gives.
Spec: spec/statistics.md, section "A pair".
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, tzinfo
from typing import Literal

from analysis.order import Entry, Sorted
from analysis.rules import RULES, Rules
from probe.wire.records import Access, Design, Direction, PairKind, Position

Stratum = Literal["peak", "rest"]
Flag = Literal[
    "household_traffic",
    "short_of_cpu",
    "queue_limited",
    "saturated",
    "captive_portal",
    "path_changed",
    "vpn",
    "filters",
    "sqm",
    "data_cap",
]
"""What makes a pair poorer, said of the pair as a whole: never of one arm."""


@dataclass(frozen=True, slots=True)
class CellKey:
    """Operator × app × direction × access. `asn` tells unknown operators apart; None means no number is known."""

    operator: str
    asn: int | None
    app: str
    direction: Direction
    access: Access

    @property
    def order(self) -> tuple[str, int, str, str, str]:
        """A sortable form, for output that does not depend on the order of input."""
        asn = -1 if self.asn is None else self.asn
        return (self.operator, asn, self.app, self.direction, self.access)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two adjacent segments in coin order, as receipt and measurement tell them together.

    Rates are Mbit/s over the last half of the segment as the reflector counted them, None where there is none.
    """

    cell: CellKey
    kind: PairKind
    probe: str
    session: str
    number: int
    started_ms: int
    """The reflector's clock at its reveal: pairs are ordered by this."""
    ended_ms: int | None = None
    """When its session ended, on the same clock: from then on it is history for pairs of other sessions. None where the
    end of its own second segment is not known."""
    neutral_first: bool | None = None
    """The coin; None where it was never thrown to the end."""
    first_mbps: float | None = None
    second_mbps: float | None = None
    first_failed: bool = False
    second_failed: bool = False
    first_altered: bool = False
    second_altered: bool = False
    """What arrived was changed under way, as reflector or probe says."""
    design: Design = "sequential"
    """Concurrent pairs have no rates; the first segment is the one in slot A."""
    first_delay_ms: float | None = None
    """Concurrent design: median round-trip time of the slot's echoes while the load ran."""
    second_delay_ms: float | None = None
    first_loss: float | None = None
    """Concurrent design: share of the slot's small packets that were never answered."""
    second_loss: float | None = None
    queued: bool | None = None
    """Concurrent design: whether either slot waited behind the load."""
    lost: bool = False
    """Started, and either its receipt or its measurement is missing, or it was never finished."""
    received: bool = True
    """Its receipt is known (a lost pair may have one: its rates still serve as order history)."""
    network: str | None = None
    edge: bool | None = None
    position: Position = "unknown"
    tariff: str | None = None
    flags: frozenset[Flag] = frozenset()
    pace_mbps: float = 0.0
    """The pace agreed before the coin; 0 means unlimited."""
    segment_s: float = 0.0

    @property
    def id(self) -> tuple[str, int]:
        """A pair is one number of one session."""
        return (self.session, self.number)

    @property
    def order(self) -> tuple[int, str, int]:
        """By the start as the reflector saw it; session and number settle a tie."""
        return (self.started_ms, self.session, self.number)

    @property
    def void(self) -> bool:
        """Both segments failed: it says nothing about either arm."""
        return self.first_failed and self.second_failed

    @property
    def touched(self) -> bool:
        """What arrived of either arm was changed under way."""
        return self.first_altered or self.second_altered

    def queue_differences(self, rules: Rules = RULES) -> tuple[float | None, float | None]:
        """Second minus first delay (ms, clipped) and loss (share), of a concurrent pair that met a queue.

        None where a slot failed, where neither was queued (the pair tests nothing), or where one has no figure.
        """
        if self.design != "concurrent" or not self.queued or self.first_failed or self.second_failed:
            return None, None
        delay, loss = None, None
        if self.first_delay_ms is not None and self.second_delay_ms is not None:
            clip = rules.delay_clip_ms
            delay = max(-clip, min(clip, self.second_delay_ms - self.first_delay_ms))
        if self.first_loss is not None and self.second_loss is not None:
            loss = self.second_loss - self.first_loss
        return delay, loss

    def log_ratio(self, rules: Rules = RULES) -> float | None:
        """d = log(first rate / second rate), clipped; None where a segment failed or neither moved a byte."""
        if self.first_failed or self.second_failed:
            return None
        first, second = self.first_mbps, self.second_mbps
        if first is None or second is None or first == second == 0:
            return None
        if first <= 0 or second <= 0:
            return rules.clip if first > 0 else -rules.clip
        return max(-rules.clip, min(rules.clip, math.log(first) - math.log(second)))

    def achieved_mbps(self) -> float | None:
        """What the pair's better segment reached, at most its pace: the same whichever arm it was."""
        rates = [r for r in (self.first_mbps, self.second_mbps) if r is not None]
        best = max(rates, default=self.pace_mbps)
        if self.pace_mbps > 0:
            best = min(best, self.pace_mbps)
        return best if best > 0 else None

    def swapped(self) -> Pair:
        """The same two segments had the coin fallen the other way: what a label-blind gate must not notice."""
        flipped = None if self.neutral_first is None else not self.neutral_first
        return replace(self, neutral_first=flipped)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a pair says: its slot in time, its bet on rates and its bet on failure."""

    day: int
    """Proleptic ordinal of the start's date in the operator's local time."""
    stratum: Stratum
    ratio: float | None
    """d, positive when the first segment was faster."""
    midpoint: float
    """m: how much faster first segments were before, whichever arm was first. Frozen."""
    y: float | None
    """o·(d - m): positive when the app was slower. None where it bets nothing on rates."""
    failure: Literal[-1, 0, 1]
    """+1 the app failed and the neutral arm did not, -1 the reverse."""
    lost: bool
    void: bool
    design: Design = "sequential"
    """A lost pair loses the bets of its own design."""
    delay_ms: float | None = None
    """o·(second delay - first delay): positive when the app waited longer. None where it bets nothing on delay."""
    loss: float | None = None
    """o·(second loss - first loss): positive when the app lost more."""
    altered: Literal[-1, 0, 1] = 0
    """+1 only what the app arm sent was changed under way, -1 only the neutral arm's."""
    touched: bool = False
    """Something was changed under way, in either arm: it says nothing of blocking then."""


@dataclass(slots=True)
class OrderHistory:
    """Earlier log ratios of one probe and cell, by order, for the midpoint m.

    Only receipts enter, so neither withholding a measurement nor the order of uploads can move m. Adding a pair and
    asking for its midpoint cost the same however many pairs there are, and however late one comes: O(log n)
    comparisons and a bounded number of moves (`Sorted`), then a window of `order_window` pairs.
    """

    rules: Rules = RULES
    _entries: Sorted = field(default_factory=Sorted)
    _sessions: dict[str, list[Entry]] = field(default_factory=dict)
    """Entries by session, sorted; a session has at most 512 pairs."""

    def add(self, pair: Pair) -> None:
        """Remember a pair's d, where it has one and its end and coin are known."""
        ratio = pair.log_ratio(self.rules)
        if ratio is None or pair.ended_ms is None or pair.neutral_first is None or not pair.received:
            return
        entry = (pair.ended_ms, pair.session, pair.number, pair.neutral_first, ratio)
        self._entries.add(entry)
        bisect.insort(self._sessions.setdefault(pair.session, []), entry)

    def midpoint(self, pair: Pair) -> float:
        """Midpoint of the medians of d by order, over pairs that were history when this one started; 0 without both.

        Those of its own session that came before it, and those of sessions that had ended. A session that was still
        open does not count: whoever runs two at once could shape the one after seeing the coin of the other, or
        decide by closing it late whether it counts at all.
        """
        # Entries are sorted by their end; those ended by the start lie before the limit, and of the same session
        # (which is one after the other by protocol) the lower numbers belong even where clocks are rounded.
        limit = (pair.started_ms, "￿")
        own = self._sessions.get(pair.session, ())
        late = [e for e in own[bisect.bisect_right(own, limit) :] if e[2] < pair.number]
        window = [*self._entries.before(limit, self.rules.order_window), *late][-self.rules.order_window :]
        neutral_first = sorted([e[4] for e in window if e[3]])
        app_first = sorted([e[4] for e in window if not e[3]])
        if not neutral_first or not app_first:
            return 0.0
        return (_median(neutral_first) + _median(app_first)) / 2


def _median(ranked: list[float]) -> float:
    """The same as `statistics.median`, of values already sorted."""
    middle = len(ranked) // 2
    return ranked[middle] if len(ranked) % 2 else (ranked[middle - 1] + ranked[middle]) / 2


def score(
    history: OrderHistory, pair: Pair, zone: tzinfo = UTC, *, midpoint: float | None = None, rules: Rules = RULES
) -> Scored:
    """Score one pair against the order history that was known when its receipt came.

    `midpoint` keeps an m that was frozen before (a pair first known by its receipt alone, now complete).
    The caller adds the pair to the history afterwards, lost or not.
    """
    day, stratum = local_slot(pair.started_ms, zone, rules)
    ratio = pair.log_ratio(rules)
    m = history.midpoint(pair) if midpoint is None else midpoint
    lost = pair.lost or pair.neutral_first is None
    # The app ran second (had slot B) where the neutral arm was first.
    sign = 1 if pair.neutral_first else -1
    touched = pair.touched and "tampering" in rules.effects
    delay, loss = (None, None) if lost or not rules.concurrent else pair.queue_differences(rules)
    return Scored(
        day=day,
        stratum=stratum,
        ratio=ratio,
        midpoint=m,
        y=None if lost or ratio is None else sign * (ratio - m),
        failure=0 if lost or touched else _signed(pair.second_failed - pair.first_failed, sign),
        lost=lost,
        void=pair.void and not lost,
        design=pair.design,
        delay_ms=None if delay is None else sign * delay,
        loss=None if loss is None else sign * loss,
        altered=0 if lost or not touched else _signed(pair.second_altered - pair.first_altered, sign),
        touched=touched and not lost,
    )


def _signed(difference: int, sign: int) -> Literal[-1, 0, 1]:
    """Which arm alone it was: +1 the app, given what the second segment has more than the first."""
    product = difference * sign
    return 1 if product > 0 else -1 if product < 0 else 0


def local_slot(started_ms: int, zone: tzinfo = UTC, rules: Rules = RULES) -> tuple[int, Stratum]:
    """Day (proleptic ordinal) and stratum of a moment in Unix milliseconds, in the operator's local time."""
    local = datetime.fromtimestamp(started_ms / 1000, tz=UTC).astimezone(zone)
    first, last = rules.peak_hours
    return local.date().toordinal(), "peak" if first <= local.hour < last else "rest"


def in_order(pairs: Iterable[Pair]) -> list[Pair]:
    """Pairs by the start that the reflector saw."""
    return sorted(pairs, key=lambda pair: pair.order)

# SPDX-License-Identifier: EUPL-1.2
"""Lines whose weather is invented, and streams of pairs on them: what the statistics are attacked with.

A `Nuisance` says everything that happens to a pair whichever arm is which; what an operator does (`slowdown`,
`blocked`, …) is said beside it. The nuisance is drawn *before* the coin of its pair, from the past alone: it may
know every earlier coin and every earlier verdict, as a network that watches its own traffic could.
Spec: spec/accuracy.md, section "Streams".
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, get_args

from analysis.evidence import log_bet
from analysis.pairs import CellKey, Pair
from probe.wire.records import Access, Design, Direction

START_MS: Final = 1_795_910_400_000
"""2026-11-29, 00:00 UTC: no pair of a study can be taken for one that was measured."""
DAY_MS: Final = 86_400_000
NO_CELL: Final = CellKey("operator-1", 64500, "youtube", "down", "fixed")
Habit = Literal["none", "bold", "hedge", "follow", "restart"]
HABITS: Final[tuple[str, ...]] = get_args(Habit)
"""Ways in which a nuisance that knows the past reacts to it:

- `bold`: huge order effects until the evidence of slowing is 20, then calm: it stops when it is ahead;
- `hedge`: an order effect against the arm that had the first slot more often so far;
- `follow`: the slot that was good for the claim last time is helped, the more the further the claim has come;
- `restart`: bold each day until it is ahead or hopeless for that day: the mixture over start days is its target.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nuisance:
    """One line, its weather, and the truth about its operator. Rates are natural logarithms, shares 0 to 1."""

    # the truth
    slowdown: float = 0.0
    """Share of its rate that the app loses, 0.5 = half; negative: the app is faster."""
    blocked: float = 0.0
    """Share of pairs in which the app alone fails by treatment."""
    altered: float = 0.0
    """Share of pairs in which the app's bytes alone are changed by treatment."""
    delay_ms: float = 0.0
    """Concurrent pairs: how much longer the app's small packets wait by treatment."""
    loss: float = 0.0
    """Concurrent pairs: share of the app's small packets lost by treatment."""
    since_day: int = 0
    """The treatment begins on this day (0 = the first)."""
    # the weather
    sd: float = 0.11
    """Standard deviation of a pair's log ratio."""
    cauchy: bool = False
    """Tails of a Cauchy law of scale `sd` instead of a Gaussian's."""
    boost: float = 0.0
    """First segments are faster by this share (1 = twice as fast)."""
    carry: float = 0.0
    """How much of the last pair's order effect lives on in the next one."""
    congestion: float = 0.0
    """Stationary deviation of a common drift that moves within pairs too (first-order autoregressive)."""
    memory: float = 0.95
    """The drift's autocorrelation from pair to pair."""
    night_sd: float = 0.0
    """Standard deviation in the night (hours 0 to 12 of the operator's day), 0: the same all day."""
    night_boost: float = 0.0
    """First segments' advantage in the night, added to `boost`."""
    trend: float = 0.0
    """The line slows down by this much within each pair, for ever (deterministic drift of the log rate)."""
    step: float = 0.0
    """Wi-Fi changes its rate by this factor's logarithm between the two segments …"""
    step_share: float = 0.0
    """… in this share of the pairs, up or down."""
    flip_every: int = 0
    """The order effect `flip` changes its sign every so many pairs; 0: there is none."""
    flip: float = 1.0
    failing: float = 0.0
    """Probability with which any segment fails, whichever arm."""
    altering: float = 0.0
    """Probability with which any segment's bytes are changed, whichever arm (a captive portal, a proxy)."""
    losing: float = 0.0
    """Probability with which a pair is never completed."""
    delay_sd_ms: float = 5.0
    """Concurrent pairs: standard deviation of the difference between the slots."""
    loss_sd: float = 0.01
    slot_ms: float = 0.0
    """Concurrent pairs: slot B waits so much longer, whichever arm it is."""
    habit: Habit = "none"
    # the campaign
    pace_mbps: float = 12.0
    pairs_a_day: int = 0
    """0: all within the first day, one every 20 s."""
    concurrent: float = 0.0
    """Share of the pairs that are concurrent (latency and loss)."""

    def with_(self, **changes: Any) -> Nuisance:
        """The same line with other values."""
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        return Nuisance(**{**known, **changes})


def read(table: Mapping[str, Any], path: str = "options.noise") -> Nuisance:
    """A nuisance from a row's table; an unknown or mistyped key is an error that names it."""
    kinds = {f.name: type(f.default) for f in fields(Nuisance)}
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key not in kinds:
            raise ValueError(f"{path}.{key} is not known; known are {', '.join(sorted(kinds))}")
        kind = kinds[key]
        if kind is float and type(value) is int:
            value = float(value)  # noqa: PLW2901 - TOML writes whole numbers without a point
        if type(value) is not kind:
            raise ValueError(f"{path}.{key} must be a {kind.__name__}, not {value!r}")
        found[key] = value
    if found.get("habit", "none") not in HABITS:
        raise ValueError(f"{path}.habit must be one of {', '.join(HABITS)}")
    return Nuisance(**found)


@dataclass(slots=True)
class Past:
    """What a nuisance may know when it decides on the next pair: everything up to the last one."""

    day: int = 0
    coins: int = 0
    """Neutral-first minus app-first so far."""
    last: int = 0
    wins: int = 0
    losses: int = 0
    """As if every pair had bet on slowing: what the nuisance can count itself."""

    @property
    def evidence(self) -> float:
        """What slowing's evidence would be by now, within a few per cent."""
        return 0.7 * math.exp(min(700.0, log_bet(self.wins, self.losses)))


Coin = Callable[[], bool]
"""A pair's coin: True = the neutral arm comes first."""


def stream(
    line: Nuisance,
    rng: random.Random,
    count: int,
    *,
    probe: str = "p1",
    cell: CellKey = NO_CELL,
    network: str | None = None,
    coin: Coin | None = None,
) -> Iterator[Pair]:
    """`count` pairs of one probe in the order of their starts; `coin` replaces the fair one (for grinding)."""
    past = Past()
    walk = drift = effect = 0.0
    sigma = line.congestion * math.sqrt(1 - line.memory**2)
    gap = DAY_MS // line.pairs_a_day if line.pairs_a_day else 20_000
    for number in range(1, count + 1):
        started = START_MS + (number - 1) * gap
        day, hour = divmod((started - START_MS) / 3_600_000, 24)
        before, drift = drift, line.memory * drift + (rng.gauss(0, sigma) if sigma else 0.0)
        walk = drift - number * line.trend
        effect = _order_effect(line, rng, past, number, (int(day), hour)) + (before - drift) + line.carry * effect
        effect = max(-20.0, min(20.0, effect))  # heavy tails overflow a rate long after they are clipped
        nuisances = tuple(rng.random() for _ in range(8))
        concurrent = nuisances[7] < line.concurrent
        slots = (rng.gauss(line.slot_ms, line.delay_sd_ms), rng.gauss(0, line.loss_sd)) if concurrent else (0.0, 0.0)
        # Only now the coin falls.
        neutral_first = coin() if coin else rng.random() < 0.5
        shape = _Shape(line, int(day) >= line.since_day, neutral_first, nuisances)
        fields_of = shape.concurrent(*slots) if concurrent else shape.sequential(effect, line.pace_mbps, walk)
        yield Pair(
            cell=cell,
            kind="test",
            probe=probe,
            session=f"{probe}-{cell.app}-{number}",
            number=1,
            started_ms=started,
            ended_ms=started + 10_000,
            neutral_first=neutral_first,
            network=network or f"{probe}:net",
            edge=True,
            pace_mbps=line.pace_mbps,
            segment_s=1.0,
            lost=nuisances[5] < line.losing,
            received=True,
            **fields_of,
        )
        _remember(line, past, int(day), effect, neutral_first)


def _order_effect(line: Nuisance, rng: random.Random, past: Past, number: int, when: tuple[int, float]) -> float:
    """What the order does to log(first/second) in this pair, whichever arm comes first: from the past alone."""
    day, hour = when
    night = hour < 12
    sd = line.night_sd if night and line.night_sd else line.sd
    noise = sd * math.tan(math.pi * (rng.random() - 0.5)) if line.cauchy else rng.gauss(0, sd)
    effect = math.log1p(line.boost + (line.night_boost if night else 0.0)) + noise + line.trend
    if line.step_share and rng.random() < line.step_share:
        effect += line.step if rng.random() < 0.5 else -line.step
    if line.flip_every:
        effect += line.flip if (number - 1) // line.flip_every % 2 == 0 else -line.flip
    return effect + _HABIT[line.habit](past, rng, day)


def _bold(past: Past, rng: random.Random, day: int) -> float:
    del day
    return (3.0 if rng.random() < 0.5 else -3.0) if past.evidence < 20 else 0.0


def _restart(past: Past, rng: random.Random, day: int) -> float:
    if day != past.day:
        past.wins = past.losses = 0
    return _bold(past, rng, day) if past.evidence > 0.1 else 0.0


_HABIT: Final[Mapping[str, Callable[[Past, random.Random, int], float]]] = {
    "none": lambda past, rng, day: 0.0,
    "bold": _bold,
    "restart": _restart,
    "hedge": lambda past, rng, day: -0.5 * max(-6, min(6, past.coins)),
    "follow": lambda past, rng, day: past.last * (0.4 + max(0, min(6, past.wins - past.losses)) / 2),
}


def _remember(line: Nuisance, past: Past, day: int, effect: float, neutral_first: bool) -> None:
    past.day = day
    past.last = 1 if neutral_first else -1
    past.coins += past.last
    if line.habit in {"bold", "restart"} and abs(effect) < 1:
        return
    won = (effect > 0) == neutral_first
    past.wins += won
    past.losses += not won


@dataclass(frozen=True, slots=True)
class _Shape:
    """From what happened to the slots to what is written down, once the coin has said which arm is which."""

    line: Nuisance
    treated: bool
    neutral_first: bool
    chance: tuple[float, ...]

    def _ordered(self, neutral: Any, app: Any) -> tuple[Any, Any]:
        return (neutral, app) if self.neutral_first else (app, neutral)

    def _events(self) -> tuple[tuple[bool, bool], tuple[bool, bool]]:
        """Failures and alterations of (first, second): chances belong to slots, treatment to the app."""
        line, c = self.line, self.chance
        app_second = self.neutral_first
        failed = [c[0] < line.failing, c[1] < line.failing]
        altered = [c[2] < line.altering, c[3] < line.altering]
        failed[app_second] |= self.treated and c[4] < line.blocked
        altered[app_second] |= self.treated and c[6] < line.altered
        return (failed[0], failed[1]), (altered[0], altered[1])

    def sequential(self, effect: float, pace: float, level: float) -> dict[str, Any]:
        """Two segments, one after the other."""
        failed, altered = self._events()
        app = math.log1p(-self.line.slowdown) if self.treated else 0.0
        shift = self._ordered(0.0, app)
        rate = pace * math.exp(max(-30.0, min(30.0, level)))
        return {
            "first_mbps": None if failed[0] else rate * math.exp(effect / 2 + shift[0]),
            "second_mbps": None if failed[1] else rate * math.exp(-effect / 2 + shift[1]),
            "first_failed": failed[0],
            "second_failed": failed[1],
            "first_altered": altered[0] and not failed[0],
            "second_altered": altered[1] and not failed[1],
        }

    def concurrent(self, slot_ms: float, slot_loss: float) -> dict[str, Any]:
        """Two slots at once behind one queue of 80 ms."""
        failed, _ = self._events()
        delay = self._ordered(0.0, self.line.delay_ms if self.treated else 0.0)
        loss = self._ordered(0.0, self.line.loss if self.treated else 0.0)
        design: Design = "concurrent"
        return {
            "design": design,
            "first_delay_ms": None if failed[0] else max(0.0, 80 - slot_ms / 2 + delay[0]),
            "second_delay_ms": None if failed[1] else max(0.0, 80 + slot_ms / 2 + delay[1]),
            "first_loss": None if failed[0] else _share(0.05 - slot_loss / 2 + loss[0]),
            "second_loss": None if failed[1] else _share(0.05 + slot_loss / 2 + loss[1]),
            "first_failed": failed[0],
            "second_failed": failed[1],
            "queued": True,
        }


def _share(value: float) -> float:
    return max(0.0, min(1.0, value))


def cell_of(operator: int, app: str, direction: Direction = "down", access: Access = "fixed") -> CellKey:
    """The cell of the n-th invented operator."""
    return CellKey(f"operator-{operator}", 64499 + operator, app, direction, access)

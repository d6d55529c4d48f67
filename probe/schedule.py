# SPDX-License-Identifier: EUPL-1.2
"""When a session is due: at random, so that no operator can see it coming and no hour of the day is preferred by habit.

Gaps are those of a Poisson process (RFC 2330, section 11.1.1: unpredictable, and unbiased by anything periodic on the
line; RFC 7312 asks for the same in networks that react to traffic), whose rate is higher in peak hours: half of the
runs fall there, because throttling at busy hours is a question of its own (spec/statistics.md, "Hours"). No gap is
shorter than a sixth or longer than four times the mean. What these bounds do to the rate is computed and corrected:
see `hazards`. No clock is read here: `now` is an argument, as are the random numbers and local time.
Spec: spec/probe.md, section "Schedule".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, Final

PEAK_HOURS: Final = (18, 23)
"""Local time, as analysis has it."""
PEAK_SHARE: Final = 0.5
"""Of the runs, in peak hours."""
LEAST_GAP: Final = 1 / 6
"""Shortest gap, in means."""
MOST_GAP: Final = 4.0
"""Longest gap, in means."""
LONGEST_HOLD_MS: Final = 25 * 3_600_000
"""The longest day. What lasts longer is looked at again: a budget may be raised meanwhile."""
FIRST_PAUSE_S: Final = 300
"""A session that was put off comes back after so long, then after twice, four times …"""
MOST_PAUSE_S: Final = 7200
_CELL_MIN: Final = 15
_CELLS: Final = 24 * 60 // _CELL_MIN
_DAY_S: Final = 86_400.0
_ROUNDS: Final = 8
_LEAST_READY: Final = 0.1
"""Of the hazard's divisor, where quiet hours leave so little of the day that the wished rate cannot be had."""

Window = tuple[int, int]
"""Quiet from and to, in minutes of the local day; over midnight where the second is smaller, all day where equal."""
MinuteOf = Callable[[int], float]
"""Minutes since local midnight of a time in Unix ms: the clock on the wall, summer time included."""


@dataclass(frozen=True, slots=True)
class Now:
    """One moment by two clocks: one that people may set, one that only ever counts on, also through a suspend."""

    wall_ms: int
    boot_ms: int
    boot: str = ""
    """Since which start of the machine `boot_ms` counts; empty where that is not known: then it is not believed."""


@dataclass(frozen=True, slots=True)
class Due:
    """When the next session is due, by both clocks, so that setting one of them neither hastens nor delays it."""

    wall_ms: int
    boot_ms: int
    boot: str
    drawn_wall_ms: int
    drawn_boot_ms: int
    mean_s: int
    """Of the schedule that it was drawn from: with another plan it is void."""
    tries: int = 0
    """How often in a row the session was put off."""
    held_ms: int = 0
    """How long nothing could be due at all (quiet hours, a spent budget): the gap began only then."""

    def plain(self) -> dict[str, Any]:
        """For schedule.json."""
        return {name: getattr(self, name) for name in Due.__slots__}


def due_from(plain: object) -> Due | None:
    """What `Due.plain` gave; None where it is anything else."""
    if not isinstance(plain, dict):
        return None
    found = {name: plain.get(name) for name in Due.__slots__}
    boot = found.pop("boot")
    numbers = {name: value for name, value in found.items() if type(value) is int and abs(value) < 2**53}
    if not isinstance(boot, str) or len(numbers) < len(found):
        return None
    due = Due(boot=boot, **numbers)
    return due if due.mean_s > 0 and due.tries >= 0 and 0 <= due.held_ms <= LONGEST_HOLD_MS else None


def left_ms(due: Due, now: Now, mean_s: int, quiet: Sequence[Window] = ()) -> int | None:
    """How long until the session is due, 0 where it is; None where what was drawn is void and must be drawn again.

    Within one start of the machine the clock that cannot be set decides: neither a clock set back nor one set forward
    matters, and a suspend counts as time. Across starts there is the wall clock alone: what it says must be possible,
    that is no further ahead than the longest gap.
    """
    if due.mean_s != mean_s:
        return None
    if due.boot and due.boot == now.boot and now.boot_ms >= due.drawn_boot_ms:
        left = due.boot_ms - now.boot_ms
    elif now.wall_ms >= due.drawn_wall_ms:
        left = due.wall_ms - now.wall_ms
    else:
        return None
    return None if left > longest_s(mean_s, quiet) * 1000 + due.held_ms else max(0, left)


# -- quiet hours ------------------------------------------------------------------------------------------------


def is_quiet(minute: float, windows: Sequence[Window]) -> bool:
    """Whether a minute of the local day is within quiet hours; the end is not."""
    return any(
        begin <= minute < end if begin < end else (begin == end or minute >= begin or minute < end)
        for begin, end in windows
    )


def quiet_until(wall_ms: int, windows: Sequence[Window], minute_of: MinuteOf) -> int:
    """The end of the quiet hours that this moment is in; the moment itself where it is in none.

    Goes from minute to minute by the clock on the wall, so that it is right on the days on which summer time begins
    or ends. Where all day is quiet: a day later.
    """
    if not is_quiet(minute_of(wall_ms), windows):
        return wall_ms
    at = wall_ms - wall_ms % 60_000
    for _ in range(24 * 60):
        at += 60_000
        if not is_quiet(minute_of(at), windows):
            return at
    return wall_ms + 86_400_000


def longest_s(mean_s: int, quiet: Sequence[Window]) -> float:
    """The longest gap by the clock: quiet hours do not count towards it, so with them it takes longer."""
    loud = sum(1 for cell in range(_CELLS) if not is_quiet((cell + 0.5) * _CELL_MIN, quiet))
    return MOST_GAP * mean_s * _CELLS / max(1, loud) + (_DAY_S if quiet else 0)


# -- drawing ----------------------------------------------------------------------------------------------------


def draw(
    now: Now,
    *,
    mean_s: int,
    rng: Random,
    minute_of: MinuteOf,
    quiet: Sequence[Window] = (),
    after_session: bool,
    from_wall_ms: int | None = None,
) -> Due:
    """The next session.

    `after_session` keeps the shortest gap. Without it the wait begins anew now (or at `from_wall_ms`): a Poisson
    process has no memory, so drawing again after a restart changes nothing about the rate, and a machine that is
    restarted every hour measures as often as others.
    """
    begin = min(max(now.wall_ms, from_wall_ms or 0), now.wall_ms + LONGEST_HOLD_MS)
    at = begin + (round(LEAST_GAP * mean_s * 1000) if after_session else 0)
    latest = begin + round(MOST_GAP * mean_s * 1000)
    never = begin + round(longest_s(mean_s, quiet) * 1000)
    rates = hazards(mean_s, tuple(quiet))
    need = rng.expovariate(1.0)
    while at < latest:
        minute = minute_of(at)
        cell = int(minute // _CELL_MIN) % _CELLS
        step_ms = min(max(1, math.ceil((_CELL_MIN - minute % _CELL_MIN) * 60_000)), latest - at)
        if not rates[cell]:  # quiet: does not count, else all that came to the longest gap would meet when it is over
            at, latest = at + step_ms, min(latest + step_ms, never)
            continue
        met = rates[cell] * step_ms / 1000
        if met >= need > 0:
            at += int(need / rates[cell] * 1000)
            break
        need -= met
        at += step_ms
    at = quiet_until(at, quiet, minute_of)
    return _due(now, at - now.wall_ms, mean_s, 0, begin - now.wall_ms)


def put_off(now: Now, *, tries: int, mean_s: int, rng: Random) -> Due:
    """The same session again after 5, 10, 20 … minutes, each a quarter more or less: neighbours shall not meet."""
    pause_s = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(tries, 10)) * rng.uniform(0.75, 1.25)
    return _due(now, round(min(pause_s, MOST_GAP * mean_s) * 1000), mean_s, tries + 1)


def at_once(now: Now, mean_s: int) -> Due:
    """The first session of a probe that has never measured: its owner waits for it."""
    return _due(now, 0, mean_s, 0)


def _due(now: Now, wait_ms: int, mean_s: int, tries: int, held_ms: int = 0) -> Due:
    return Due(
        wall_ms=now.wall_ms + wait_ms,
        boot_ms=now.boot_ms + wait_ms,
        boot=now.boot,
        drawn_wall_ms=now.wall_ms,
        drawn_boot_ms=now.boot_ms,
        mean_s=mean_s,
        tries=tries,
        held_ms=held_ms,
    )


# -- rates ------------------------------------------------------------------------------------------------------


def wished(mean_s: int, quiet: Sequence[Window] = ()) -> list[float]:
    """Runs a second in each quarter of an hour: one per mean all in all, PEAK_SHARE of them in peak hours, none in
    quiet ones, whose share goes to the others of their kind (to all others where none is left)."""
    middles = [(cell + 0.5) * _CELL_MIN for cell in range(_CELLS)]
    loud = [not is_quiet(minute, quiet) for minute in middles]
    busy = [PEAK_HOURS[0] * 60 <= minute < PEAK_HOURS[1] * 60 for minute in middles]
    open_peak = sum(1 for a, b in zip(loud, busy, strict=True) if a and b)
    open_rest = sum(loud) - open_peak
    share = PEAK_SHARE if open_peak and open_rest else float(bool(open_peak))
    each = {True: share / max(open_peak, 1), False: (1 - share) / max(open_rest, 1)}
    per_cell = _DAY_S / mean_s / (_CELL_MIN * 60)
    return [each[b] * per_cell if a else 0.0 for a, b in zip(loud, busy, strict=True)]


@lru_cache(maxsize=2)
def hazards(mean_s: int, quiet: tuple[Window, ...] = ()) -> list[float]:
    """The rate a second at which a session comes in each quarter of an hour, once the shortest gap is over.

    Clamping an exponential gap would keep its mean by luck (1/6 + exp(-1/6) - exp(-4) = 0.995 means), but put 15 % of
    the runs exactly a sixth of the mean behind another one, where they can be foreseen. Waiting a sixth of the mean
    and then an exponential time has no such step; it makes the mean 15 to 20 % longer, and, as the rate is not the
    same all day, half of the runs less than half (tests/unit/test_schedule.py shows both). So the rate is solved for.

    In the long run r(t) runs a second come at time t where (i) the age since the last run lies between the bounds with
    the chance 1 - (integral of r over the shortest gap before t), and (ii) those of the runs at t - longest that had no
    follower since come now, forced: F(t) = r(t - longest)·exp(-integral of h from then, past the shortest gap).
    Hence h(t) = (r(t) - F(t)) / (1 - integral of r), found by iteration; r repeats daily.
    """
    rate = wished(mean_s, quiet)
    least_s, most_s = LEAST_GAP * mean_s, MOST_GAP * mean_s
    upto_rate = _integral(rate)
    middles = [(cell + 0.5) * _CELL_MIN * 60 for cell in range(_CELLS)]
    ready = [max(_LEAST_READY, 1 - (upto_rate(t) - upto_rate(t - least_s))) for t in middles]
    found = [r / a for r, a in zip(rate, ready, strict=True)]
    for _ in range(_ROUNDS):
        upto = _integral(found)
        forced = [_at(rate, t - most_s) * math.exp(upto(t - most_s + least_s) - upto(t)) for t in middles]
        found = [max(0.0, r - f) / a if r else 0.0 for r, f, a in zip(rate, forced, ready, strict=True)]
    return found


def _at(values: Sequence[float], second: float) -> float:
    return values[int(second % _DAY_S // (_CELL_MIN * 60)) % _CELLS]


def _integral(values: Sequence[float]) -> Callable[[float], float]:
    """The integral from 0 to any second of what repeats daily."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value * _CELL_MIN * 60)

    def upto(second: float) -> float:
        days, rest = divmod(second, _DAY_S)
        cell = min(int(rest // (_CELL_MIN * 60)), _CELLS - 1)
        return days * sums[-1] + sums[cell] + values[cell] * (rest - cell * _CELL_MIN * 60)

    return upto

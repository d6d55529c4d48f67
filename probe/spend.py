# SPDX-License-Identifier: EUPL-1.2
"""Which app next, and how many pairs: the household's bytes go where they can tell most.

Each app first gets the plan's few pairs; one in which this probe's own pairs point one way gets more; none waits longer
than twice as many sessions as there are lines.

Why the evidence stays valid although it steers what is measured: a pair is chosen by pairs that are over. Given all
of them, the coin of a pair to come is still fair, so each factor of the e-process still has the expectation 1 under
"no difference", whichever app it is spent on, and a product of such factors is a martingale for *any* rule of choosing
that looks back only (spec/statistics.md, section 2; Ville's bound holds at all times at once). What would break it is
choosing after the coin, or leaving out pairs that were run: neither is possible here.

Nothing here reads a clock or a file. Spec: spec/probe.md, section "The turn".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from probe.nettests.base import Cost, Progress
from probe.wire.records import Direction

FIRST_PAIRS: Final = 2
"""An app with fewer is preferred."""
LEANING: Final = 2
"""Net pairs in one direction from which on an app counts as pointing one way."""
MORE: Final = 4
"""How many times the plan's pairs such an app may get in one session."""
MOST_APPS: Final = 8
"""In one session: each costs a first pair and time."""
MOST_WEIGHT: Final = 9.0
ROOM: Final = 1.5
"""A session's most, in shares of the budget."""
CLEARLY: Final = math.log(1 / 0.8)
"""A pair points somewhere from a difference of 20 % on (spec/statistics.md, section 2), concurrent ones from these:"""
CLEARLY_MS: Final = 10.0
CLEARLY_LOST: Final = 0.02
_MOST_COUNT: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Line:
    """One app in one direction under one line of the plan."""

    nettest: str
    app: str
    direction: Direction
    pairs: int
    """That the plan wishes for in a session."""
    segment_s: float
    most_pace_mbps: float

    @property
    def key(self) -> str:
        """As the tallies name it."""
        return f"{self.nettest}/{self.app}/{self.direction}"

    def goes_with(self, other: Line) -> bool:
        """Whether both fit into one session: it has one direction and one kind of segment."""
        return (self.nettest, self.direction, self.segment_s, self.most_pace_mbps) == (
            other.nettest,
            other.direction,
            other.segment_s,
            other.most_pace_mbps,
        )


@dataclass(frozen=True, slots=True)
class Tally:
    """What this probe has seen of a line."""

    pairs: int = 0
    slower: int = 0
    faster: int = 0
    session: int = -1
    """In which it was measured last, counted by this probe; -1: never."""

    @property
    def lean(self) -> int:
        """Net pairs in one direction, whichever."""
        return abs(self.slower - self.faster)

    def plain(self) -> dict[str, int]:
        """For spend.json."""
        return {"pairs": self.pairs, "slower": self.slower, "faster": self.faster, "session": self.session}


def tally_from(plain: object) -> Tally | None:
    """What `Tally.plain` gave; None where it is anything else."""
    if not isinstance(plain, dict):
        return None
    found = [plain.get(name) for name in ("pairs", "slower", "faster", "session")]
    numbers = [value for value in found if type(value) is int and -1 <= value <= _MOST_COUNT]
    return Tally(*numbers) if len(numbers) == len(found) else None


def sign_of(at: Progress) -> int:
    """+1: in this pair the app was clearly slower (or failed alone), -1: clearly faster, 0: neither."""
    if at.kind != "test" or at.outcome not in {"both", "one_failed"}:
        return 0
    if at.design == "concurrent":
        return _sign_of_delays(at)
    if at.outcome == "one_failed":
        return _sign(float(at.app_mbps is None) - float(at.neutral_mbps is None), 0.5)
    if not at.app_mbps or not at.neutral_mbps:
        return 0
    return _sign(math.log(at.neutral_mbps / at.app_mbps), CLEARLY)


def _sign_of_delays(at: Progress) -> int:
    if at.app_loss is None or at.neutral_loss is None:
        return _sign(float(at.app_loss is None) - float(at.neutral_loss is None), 0.5)
    lost = _sign(at.app_loss - at.neutral_loss, CLEARLY_LOST)
    if at.app_delay_ms is None or at.neutral_delay_ms is None:
        return lost
    return _sign(at.app_delay_ms - at.neutral_delay_ms, CLEARLY_MS) or lost


def _sign(value: float, least: float) -> int:
    return 0 if abs(value) < least else (1 if value > 0 else -1)


def learned(
    tallies: Mapping[str, Tally], measured: Sequence[Line], pairs: Sequence[Progress], session: int
) -> dict[str, Tally]:
    """The tallies after a session. A line that was tried counts as measured also where no pair was finished, so that
    one which always fails does not keep the others waiting."""
    found = dict(tallies)
    for line in measured:
        found[line.key] = replace(found.get(line.key, Tally()), session=session)
        for at in pairs:
            if at.kind != "test" or (at.app, at.direction) != (line.app, line.direction):
                continue
            old, sign = found[line.key], sign_of(at)
            found[line.key] = replace(
                old, pairs=old.pairs + 1, slower=old.slower + (sign > 0), faster=old.faster + (sign < 0)
            )
    return found


# -- choosing ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What to measure in one session."""

    lines: tuple[Line, ...]
    pairs: int
    """Of each line."""
    cost: Cost


CostOf = Callable[[Sequence[Line], int], Cost]
"""What a session of these lines with so many pairs each takes at most."""


def choose(
    lines: Sequence[Line],
    tallies: Mapping[str, Tally],
    *,
    session: int,
    allowance_bytes: int,
    cost_of: CostOf,
    rng: Random,
) -> Choice | int:
    """The next session that fits into the allowance; where none does, how many bytes the cheapest pair takes.

    The first in order leads; what goes with it in one session follows while it fits. One that points one way is
    measured alone and longer.
    """
    ordered = order(lines, tallies, session=session, rng=rng)
    least: int | None = None
    for lead in ordered:
        found = _session(lead, ordered, tallies, allowance_bytes, cost_of)
        if isinstance(found, Choice):
            return found
        least = found if least is None else min(least, found)
    return least or 0


def order(lines: Sequence[Line], tallies: Mapping[str, Tally], *, session: int, rng: Random) -> list[Line]:
    """Lines that were never tried, then those that waited for as many sessions as there are lines, the longest first,
    then the others at random, in favour of those with few pairs and of those that point one way.

    At most len(lines) others can be ahead of one that waited so long: it is measured within twice as many sessions.
    Random order by weight: that of u^(1/w), u uniform (Efraimidis and Spirakis 2006).
    """
    keyed: list[tuple[tuple[float, ...], Line]] = []
    for line in lines:
        tally = tallies.get(line.key, Tally())
        waited = session - tally.session
        rank: tuple[float, ...]
        if tally.session < 0:
            rank = (0.0, rng.random())
        elif waited > len(lines):
            rank = (1.0, -float(waited), rng.random())
        else:
            is_new = tally.pairs < FIRST_PAIRS
            weight = MOST_WEIGHT if is_new else min(MOST_WEIGHT, 1.0 + 2.0 * max(0, tally.lean - 1))
            rank = (2.0, -(rng.random() ** (1 / weight)))
        keyed.append((rank, line))
    return [line for _, line in sorted(keyed, key=lambda one: one[0])]


def _session(
    lead: Line, ordered: Sequence[Line], tallies: Mapping[str, Tally], allowance: int, cost_of: CostOf
) -> Choice | int:
    """A session that begins with this line, or the bytes that its cheapest one takes."""

    def fitting(lines: Sequence[Line], pairs: int) -> Choice | int:
        cost = cost_of(lines, pairs)
        taken = cost.bytes if cost.bytes is not None else allowance + 1
        return Choice(lines=tuple(lines), pairs=pairs, cost=cost) if taken <= allowance else taken

    best = fitting((lead,), 1)
    if isinstance(best, int):
        return best
    is_leaning = tallies.get(lead.key, Tally()).lean >= LEANING
    for pairs in range(2, lead.pairs * (MORE if is_leaning else 1) + 1):
        larger = fitting((lead,), pairs)
        if isinstance(larger, int):
            break
        best = larger
    if is_leaning:
        return best
    for line in ordered:
        if line is lead or not line.goes_with(lead) or len(best.lines) >= MOST_APPS:
            continue
        larger = fitting((*best.lines, line), best.pairs)
        if isinstance(larger, int):
            break
        best = larger
    return best


def allowance(left_day: int, left_month: int, *, day_left_s: float, month_left_s: float, mean_s: int) -> int:
    """The most that the next session may cost: what is left of day and month, over the sessions still to come in each.

    So a day's last sessions are not the poorest, and what one left over, the next ones may use. Half as much again,
    because a session's most is for a line at full pace, with every calibration and placebo pair: few take that.
    """
    share = min(left_day / max(1.0, day_left_s / mean_s), left_month / max(1.0, month_left_s / mean_s))
    return max(0, int(min(share * ROOM, left_day, left_month)))

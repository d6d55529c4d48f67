# SPDX-License-Identifier: EUPL-1.2
"""One session of a turn: what to measure, what it may cost, where, and what was learned.

Bytes are reserved before and settled after, so that whatever happens in between counts as spent.
Spec: spec/probe.md, section "The turn".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from probe.household import Household
from probe.netio.control import parse_url
from probe.nettests.base import Cost, OptionError, Options, Progress
from probe.nettests.registry import get
from probe.plan import SignedPlan
from probe.portal import door_of
from probe.profiles.model import DEFAULT_APPS, ProfileError
from probe.protocol.pacing import FRAMING
from probe.protocol.session import MOST_CALIBRATION_S, MOST_CALIBRATIONS
from probe.runner import Ran, Request
from probe.settings import Settings
from probe.shell import Surroundings
from probe.spend import Choice, Line, Tally
from probe.state import State
from probe.wire.records import Direction, PlannedNettest, PlannedReflector, Portal

OVERHEAD_BYTES: Final = 300_000
"""Of a session beside its segments: control messages, handshakes, looks at the door, rounded up."""
REFUSED_BYTES: Final = 100_000
"""Of a session that did not come about."""
LEAST_PACE_MBPS: Final = 1.0
MARGIN_S: Final = 60.0
"""Beside the time that a session's cost names, for a line that loses and waits."""


def lines_of(plan: SignedPlan, daily_bytes: int) -> tuple[list[Line], list[str]]:
    """What the plan wants measured, as far as this probe can, and sentences about the rest.

    Where a single pair would take more than half of a day's budget (a hotspot's is small), it is sent at a lower pace,
    which is settled before any coin: then larger throttles alone can be seen, and the record tells the pace.
    """
    found: list[Line] = []
    problems: list[str] = []
    for planned in plan.plan.nettests:
        for app in planned.apps or DEFAULT_APPS:
            ways: tuple[Direction, ...] = ("down", "up") if planned.direction == "both" else (planned.direction,)
            lines = [_line(planned, app, way) for way in ways]
            try:
                lines = [_within(plan, line, daily_bytes // 2) for line in lines]
            except (OptionError, ProfileError) as error:
                problems.append(f"the plan's {planned.nettest} of {app} is left out: {error}")
                continue
            found += [line for line in lines if line not in found]
    return found, problems


def _line(planned: PlannedNettest, app: str, way: Direction) -> Line:
    return Line(planned.nettest, app, way, planned.pairs, planned.segment_s, planned.most_pace_mbps)


def _within(plan: SignedPlan, line: Line, most_bytes: int) -> Line:
    """The line at a pace at which one pair costs no more than this, or at the lowest. Raises as `cost_of`."""
    cost = cost_of(plan, [line], 1).bytes
    if cost is None or cost <= most_bytes or most_bytes <= OVERHEAD_BYTES:
        return line
    pace = line.most_pace_mbps * (most_bytes - OVERHEAD_BYTES) / (cost - OVERHEAD_BYTES)
    return replace(line, most_pace_mbps=max(LEAST_PACE_MBPS, int(pace * 10) / 10))


def options_of(plan: SignedPlan, lines: Sequence[Line], pairs: int, *, hotspot: bool = False) -> Options:
    """A session of lines that go together."""
    first = lines[0]
    return Options(
        apps=tuple(line.app for line in lines),
        pairs=pairs,
        direction=first.direction,
        most_pace_mbps=first.most_pace_mbps,
        segment_s=first.segment_s,
        hotspot=hotspot,
        delivered=plan.profiles,
    )


def cost_of(plan: SignedPlan, lines: Sequence[Line], pairs: int) -> Cost:
    """The most that such a session takes, everything included. Raises OptionError, ProfileError."""
    cost = get(lines[0].nettest).cost(options_of(plan, lines, pairs))
    return Cost(None if cost.bytes is None else cost.bytes + OVERHEAD_BYTES, cost.seconds, cost.pairs)


def reflector_of(
    reflectors: Sequence[PlannedReflector], avoid: str, draw: Callable[[Sequence[PlannedReflector]], PlannedReflector]
) -> PlannedReflector:
    """One at random; not the one at which the last session failed, where there is another."""
    others = [one for one in reflectors if one.key != avoid]
    return draw(others or reflectors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outing:
    """A session about to be run."""

    plan: SignedPlan
    choice: Choice
    reflector: PlannedReflector
    portal: Portal | None
    settings: Settings
    household: Household | None = None
    """Who counted before; None: what this device itself can count."""

    def request(self, state: State, version: str) -> Request:
        """For the runner. The plan's addresses were checked when it was accepted."""
        return Request(
            nettest=get(self.choice.lines[0].nettest),
            options=options_of(
                self.plan, self.choice.lines, self.choice.pairs, hotspot=self.settings.stands_at_hotspot
            ),
            reflector=parse_url(self.reflector.url),
            state=state,
            keep=True,
            bind=self.settings.bind,
            plan=self.plan.digest,
            version=version,
            reflector_key=self.reflector.key,
            around=Surroundings(
                declared=self.settings,
                door=door_of(self.reflector),
                portal=self.portal,
                household=self.household,
            ),
            has_lock=True,
        )


class Meter:
    """Counts what a session's pairs moved, and stops it between two pairs once that is more than was granted."""

    def __init__(self, most_bytes: int, segment_s: float, should_stop: Callable[[], bool]) -> None:
        self.pairs: list[Progress] = []
        self._most = most_bytes
        self._segment_s = segment_s
        self._should_stop = should_stop
        self._bytes = 0.0

    def pair(self, at: Progress) -> None:
        """One pair is over."""
        self.pairs.append(at)
        rates = (at.app_mbps or 0.0) + (at.neutral_mbps or 0.0)
        self._bytes += rates * 1e6 / 8 * self._segment_s * FRAMING

    def should_stop(self) -> bool:
        """Whether the session ends here."""
        return self._bytes >= self._most or self._should_stop()


def spent_bytes(ran: Ran) -> int:
    """What a session took, both directions, headers reckoned; rather too much than too little."""
    session = ran.session
    counted = {result.pair: result for result in session.results}
    moved = 0
    for pair in ran.measurement.pairs:
        result = counted.get(pair.pair)
        seen = sum(segment.bytes for segment in pair.segments)
        there = 0 if result is None else sum(one.bytes for one in result.segments) + result.load_bytes
        moved += max(seen, there)
    reached = ran.measurement.calibration_mbps or 0.0
    moved += round(MOST_CALIBRATIONS * reached * 1e6 / 8 * MOST_CALIBRATION_S)
    return round(moved * FRAMING) + OVERHEAD_BYTES


def summary_of(ran: Ran, outing: Outing, spent: int, tallies: dict[str, Tally]) -> dict[str, Any]:
    """What `last.json` keeps of a session: facts by app, without analysis, which a router has no room for."""
    measurement = ran.measurement
    by_app = {}
    for line in outing.choice.lines:
        rows = [pair for pair in _finished(ran) if (pair["app"], pair["direction"]) == (line.app, line.direction)]
        tally = tallies.get(line.key, Tally())
        by_app[line.key] = {
            "app": line.app,
            "direction": line.direction,
            "pairs": len(rows),
            "app_mbps": _middle([row["app_mbps"] for row in rows]),
            "neutral_mbps": _middle([row["neutral_mbps"] for row in rows]),
            "so_far": {"pairs": tally.pairs, "slower": tally.slower, "faster": tally.faster},
        }
    return {
        "session": measurement.session,
        "sequence": measurement.sequence,
        "reflector": measurement.reflector,
        "started_ms": measurement.started_ms,
        "ended_ms": measurement.ended_ms,
        "pairs": {
            "finished": len(ran.session.results),
            "lost": len(measurement.pairs) - len(ran.session.results),
            "placebo": sum(pair.kind == "placebo" for pair in measurement.pairs),
        },
        "megabytes": round(spent / 1e6, 3),
        "calibration_mbps": measurement.calibration_mbps,
        "failure": measurement.failure,
        "complaint": ran.session.complaint or None,
        "apps": list(by_app.values()),
        "receipt": len(ran.envelopes) > 1,
    }


def _finished(ran: Ran) -> list[dict[str, Any]]:
    from probe.shell import rates_of  # noqa: PLC0415

    measured = {pair.pair: pair for pair in ran.measurement.pairs}
    rows = []
    for result in ran.session.results:
        pair = measured[result.pair]
        if pair.kind != "test" or ran.session.design_of(result.pair) != "sequential":
            continue
        app, neutral = rates_of(result, ran.segment_s)
        rows.append({"app": pair.app, "direction": pair.direction, "app_mbps": app, "neutral_mbps": neutral})
    return rows


def _middle(values: list[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    half = len(known) // 2
    return round(known[half] if len(known) % 2 else (known[half - 1] + known[half]) / 2, 4)

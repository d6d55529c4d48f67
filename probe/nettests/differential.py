# SPDX-License-Identifier: EUPL-1.2
"""Is this application's traffic treated differently by its name? Pairs of an app and its neutral twin.

Apps rotate pair by pair, so that a change of the line during the run meets all of them alike, and one extra pair
in ten compares two neutral names: a check of the method itself, outside the evidence.
Spec: spec/nettests/differential.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random, SystemRandom
from typing import Final

from probe.nettests.base import Cost, OptionError, Options, Tools
from probe.profiles.model import DEFAULT_APPS, NeutralPool, Profile, load, load_neutral
from probe.profiles.twins import twins
from probe.protocol.pacing import SHARE_OF_LINE, pace_mbps, pair_bytes, segment_bytes
from probe.protocol.probe_role import ProbeSession
from probe.protocol.session import MOST_CALIBRATION_S, MOST_CALIBRATIONS
from probe.protocol.steps import PlannedPair
from probe.wire.limits import MAX_PACE_MBPS, MAX_PAIRS, MAX_SEGMENT_S, MIN_SEGMENT_S
from probe.wire.messages import SessionRequest
from probe.wire.records import Direction, PairKind

PLACEBO_SHARE: Final = 10
"""One extra pair in so many."""
_PAIR_OVERHEAD_S: Final = 0.4
"""Set-up, control messages and guard gaps of a pair on an ordinary line."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One pair to come, before its pace is known."""

    kind: PairKind
    app: str
    direction: Direction


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one app in one session."""

    app: str
    neutral: str
    placebo: str
    """A second neutral twin, which takes the app's place in a placebo pair."""


def directions(options: Options) -> tuple[Direction, ...]:
    """Both means down and up in turn."""
    return ("down", "up") if options.direction == "both" else (options.direction,)


def schedule(apps: tuple[str, ...], options: Options, rng: Random) -> list[Slot]:
    """The order of the pairs: apps rotate, then directions, and placebo pairs are strewn in.

    Each ten test pairs have one placebo pair at a random place; fewer than ten have one with a chance of n/10.
    """
    slots: list[Slot] = []
    lines = [(app, direction) for direction in directions(options) for app in apps]
    for _ in range(options.pairs):
        slots += [Slot("test", app, direction) for app, direction in lines]
    for start in reversed(range(0, len(slots), PLACEBO_SHARE)):
        place = start + rng.randrange(PLACEBO_SHARE)
        if place < len(slots):
            app, direction = rng.choice(lines)
            slots.insert(place, Slot("placebo", app, direction))
    return slots


def draw_names(profile: Profile, pool: NeutralPool, rng: Random) -> Names:
    """One of the app's names and two neutral twins of it."""
    app = rng.choice(profile.names)
    neutral, placebo = twins(app, pool, rng, count=2)
    return Names(app=app, neutral=neutral, placebo=placebo)


def planned(slot: Slot, profile: Profile, names: Names, *, pace: float, segment_s: float) -> PlannedPair:
    """The slot as the session machine wants it."""
    return PlannedPair(
        kind=slot.kind,
        app=slot.app,
        profile=profile.reference,
        direction=slot.direction,
        pace_mbps=pace,
        segment_s=segment_s,
        app_name=names.app if slot.kind == "test" else names.placebo,
        neutral_name=names.neutral,
    )


class Differential:
    """The nettest."""

    id = "differential"
    title = "compares an app's traffic with the same traffic under a neutral name"

    def cost(self, options: Options) -> Cost:
        """Bytes and time at the highest pace, placebo pairs and calibration included."""
        apps = _checked(options)
        lines = len(apps) * len(directions(options))
        tests = lines * options.pairs
        pairs = tests + -(-tests // PLACEBO_SHARE)
        if pairs > MAX_PAIRS:
            raise OptionError(f"{pairs} pairs are more than the {MAX_PAIRS} of a session: ask for fewer pairs or apps")
        pace = options.most_pace_mbps if options.pace_mbps is None else options.pace_mbps
        seconds = pairs * (2 * options.segment_s + _PAIR_OVERHEAD_S) + 1
        if pace == 0:
            return Cost(None, seconds, pairs)
        moved = pairs * pair_bytes(pace, options.segment_s)
        if options.pace_mbps is None:
            most = MOST_CALIBRATIONS * len(directions(options))
            moved += most * segment_bytes(pace / SHARE_OF_LINE, MOST_CALIBRATION_S)
            seconds += most * MOST_CALIBRATION_S
        return Cost(moved, seconds, pairs)

    def run(self, tools: Tools, options: Options) -> ProbeSession:
        """One session of the whole schedule."""
        apps = _checked(options)
        rng = SystemRandom()
        pool = load_neutral()
        profiles = {app: load(app) for app in apps}
        names = {app: draw_names(profile, pool, rng) for app, profile in profiles.items()}
        slots = schedule(apps, options, rng)
        session = tools.open(
            SessionRequest(
                v=1,
                probe=tools.probe_key,
                nettest=self.id,
                pairs=len(slots),
                segment_s=options.segment_s,
                pace_mbps=options.most_pace_mbps if options.pace_mbps is None else options.pace_mbps,
                software=tools.software,
                hotspot=options.hotspot,
            )
        )
        if session.grant is None:
            return session
        calibrate = partial(tools.calibrate, session, name=names[apps[0]].neutral, alpn=profiles[apps[0]].alpn)
        pace = {way: _pace(options, partial(calibrate, direction=way)) for way in directions(options)}
        session.plan(
            [
                planned(
                    slot, profiles[slot.app], names[slot.app], pace=pace[slot.direction], segment_s=options.segment_s
                )
                for slot in slots
            ]
        )
        tools.drive(session, alpn={app: profile.alpn for app, profile in profiles.items()})
        return session


def _pace(options: Options, calibrate: Callable[[], float | None]) -> float:
    if options.pace_mbps is not None:
        return options.pace_mbps
    reached = None
    for _ in range(MOST_CALIBRATIONS):
        reached = calibrate()
        if reached is not None:
            break
    return pace_mbps(reached, options.most_pace_mbps)


def _checked(options: Options) -> tuple[str, ...]:
    """The apps to measure, each once. Raises OptionError, ProfileError."""
    if not 1 <= options.pairs <= MAX_PAIRS:
        raise OptionError(f"the number of pairs must lie between 1 and {MAX_PAIRS}")
    if not MIN_SEGMENT_S <= options.segment_s <= MAX_SEGMENT_S:
        raise OptionError(f"a segment lasts between {MIN_SEGMENT_S:g} and {MAX_SEGMENT_S:g} seconds")
    if options.pace_mbps is not None and not (options.pace_mbps == 0 or 0.1 <= options.pace_mbps <= MAX_PACE_MBPS):
        raise OptionError(f"the pace must be 0 (unlimited) or between 0.1 and {MAX_PACE_MBPS:g} Mbit/s")
    apps = tuple(dict.fromkeys(options.apps or DEFAULT_APPS))
    for app in apps:
        load(app)
    return apps

# SPDX-License-Identifier: EUPL-1.2
"""Is this application's traffic treated differently by its name or first bytes? Pairs of an app and its control.

Apps rotate pair by pair, so that a change of the line during the run meets all of them alike, and one extra pair
in ten compares two controls: a check of the method itself, outside the evidence.
Spec: spec/nettests/differential.md.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random, SystemRandom
from typing import Final

from probe.nettests.base import Cost, OptionError, Options, Tools
from probe.profiles.dress import ANNOUNCED, Arms, Dressed, dress
from probe.profiles.model import DEFAULT_APPS, Profile, Shelf
from probe.protocol.concurrent import GRACE_S, LEAST_SEGMENT_S, concurrent_pair_bytes
from probe.protocol.pacing import SHARE_OF_LINE, load_pace_mbps, pace_mbps, pair_bytes, segment_bytes
from probe.protocol.probe_role import ProbeSession
from probe.protocol.session import MOST_CALIBRATION_S, MOST_CALIBRATIONS
from probe.protocol.steps import PlannedPair, WireBytes
from probe.wire.limits import MAX_PACE_MBPS, MAX_PAIRS, MAX_SEGMENT_S, MIN_SEGMENT_S
from probe.wire.messages import SessionRequest, SmallPackets
from probe.wire.records import Carrier, Design, Direction, PairKind

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


@dataclass(frozen=True, slots=True)
class Paces:
    """Mbit/s in one direction."""

    rate: float
    """Of both arms where rates are compared."""
    load: float
    """Of what fills the queue where delay and loss are."""

    def of(self, profile: Profile) -> float:
        """The pace of a profile's pairs."""
        return self.rate if profile.live is None else self.load


def planned(slot: Slot, profile: Profile, arms: Arms, *, pace: float, segment_s: float) -> PlannedPair:
    """The slot as the session machine wants it."""
    shown = arms.app if slot.kind == "test" else arms.placebo
    announced = profile.carrier in ANNOUNCED
    return PlannedPair(
        kind=slot.kind,
        app=slot.app,
        profile=profile.reference,
        direction=slot.direction,
        pace_mbps=pace,
        segment_s=segment_s,
        app_name=shown.name,
        neutral_name=arms.control.name,
        carrier=profile.carrier,
        app_wire=_wire(shown) if announced else None,
        neutral_wire=_wire(arms.control) if announced else None,
        design=profile.design,
        packets=packets_of(profile, arms.load),
    )


def packets_of(profile: Profile, load_name: str) -> SmallPackets | None:
    """The small packets of a profile whose delay and loss are compared."""
    if profile.live is None:
        return None
    return SmallPackets(bytes=profile.live.packet_bytes, interval_ms=profile.live.interval_ms, load_name=load_name)


def _wire(arm: Dressed) -> WireBytes:
    return WireBytes(flight=arm.flight, answer=arm.answer, head=arm.head)


def carried(
    profiles: Iterable[Profile],
    carriers: tuple[Carrier, ...],
    designs: tuple[Design, ...] = ("sequential", "concurrent"),
) -> tuple[list[Profile], str]:
    """Which profiles a reflector can carry, and a sentence about the others; empty where there are none."""
    found = list(profiles)
    lacking = {profile.id: what for profile in found if (what := _lacking(profile, carriers, designs))}
    if not lacking:
        return found, ""
    missing, names = ", ".join(dict.fromkeys(lacking.values())), ", ".join(lacking)
    text = f"this reflector does not carry {missing}, so {names} {'is' if len(lacking) == 1 else 'are'} left out"
    return [profile for profile in found if profile.id not in lacking], text


def _lacking(profile: Profile, carriers: tuple[Carrier, ...], designs: tuple[Design, ...]) -> str:
    if profile.carrier not in carriers:
        return profile.carrier
    return "" if profile.design in designs else f"{profile.design} pairs"


class Differential:
    """The nettest."""

    id = "differential"
    title = "compares an app's traffic with the same traffic under a neutral name or random first bytes"

    def cost(self, options: Options) -> Cost:
        """Bytes and time at the highest pace, placebo pairs and calibration included."""
        profiles = _checked(options)
        lines = len(profiles) * len(directions(options))
        tests = lines * options.pairs
        placebos = -(-tests // PLACEBO_SHARE)
        pairs = tests + placebos
        if pairs > MAX_PAIRS:
            raise OptionError(f"{pairs} pairs are more than the {MAX_PAIRS} of a session: ask for fewer pairs or apps")
        each = [_pair_cost(profile, options) for profile in profiles]
        turns = options.pairs * len(directions(options))
        # Which app a placebo pair borrows is drawn later: the dearest one is reckoned with.
        seconds = turns * sum(cost.seconds for cost in each) + placebos * max(cost.seconds for cost in each) + 1
        bytes_each = [cost.bytes for cost in each if cost.bytes is not None]
        if len(bytes_each) < len(each):
            return Cost(None, seconds, pairs)
        moved = turns * sum(bytes_each) + placebos * max(bytes_each)
        if options.pace_mbps is None:
            most = MOST_CALIBRATIONS * len(directions(options))
            moved += most * segment_bytes(most_pace(options, profiles) / SHARE_OF_LINE, MOST_CALIBRATION_S)
            seconds += most * MOST_CALIBRATION_S
        return Cost(moved, seconds, pairs)

    def run(self, tools: Tools, options: Options) -> ProbeSession:
        """One session of the whole schedule, without the apps that this reflector cannot carry."""
        asked = _checked(options)
        rng = SystemRandom()
        shelf = Shelf(delivered=options.delivered)
        slots = schedule(tuple(profile.id for profile in asked), options, rng)
        session = tools.open(
            SessionRequest(
                v=1,
                probe=tools.probe_key,
                nettest=self.id,
                pairs=len(slots),
                segment_s=options.segment_s,
                pace_mbps=most_pace(options, asked),
                software=tools.software,
                hotspot=options.hotspot,
            )
        )
        if session.grant is None:
            return session
        profiles, left_out = carried(asked, session.grant.carriers, session.grant.designs)
        if left_out:
            slots = schedule(tuple(profile.id for profile in profiles), options, rng)
        if profiles:
            _measure(tools, session, _Work(options, shelf, profiles, slots), rng)
        else:
            session.stop("refused_by_peer")
            tools.drive(session, alpn={})
        session.complaint = session.complaint or left_out
        return session


@dataclass(frozen=True, slots=True)
class _Work:
    """What is left to do once a reflector said what it carries."""

    options: Options
    shelf: Shelf
    profiles: list[Profile]
    slots: list[Slot]


def _measure(tools: Tools, session: ProbeSession, work: _Work, rng: Random) -> None:
    options, pool = work.options, work.shelf.neutral()
    arms = {profile.id: dress(profile, pool, rng, secrets.token_bytes) for profile in work.profiles}
    by_id = {profile.id: profile for profile in work.profiles}
    name, alpn = _neutral(work, arms, rng)
    calibrate = partial(tools.calibrate, session, name=name, alpn=alpn)
    most_load = most_pace(options, work.profiles)
    paces = {way: _paces(options, most_load, partial(calibrate, direction=way)) for way in directions(options)}
    session.plan(
        [
            planned(
                slot,
                by_id[slot.app],
                arms[slot.app],
                pace=paces[slot.direction].of(by_id[slot.app]),
                segment_s=options.segment_s,
            )
            for slot in work.slots
        ]
    )
    tools.drive(
        session,
        alpn={app: profile.alpn for app, profile in by_id.items()},
        shapes={app: p.shape for app, p in by_id.items() if p.carrier == "hello" and p.shape},
    )


def _neutral(work: _Work, arms: dict[str, Arms], rng: Random) -> tuple[str, tuple[str, ...]]:
    """A neutral name and protocols for the calibration, which goes over TLS whatever is measured."""
    named = [profile for profile in work.profiles if profile.carrier in {"tls", "hello"}]
    if named:
        return arms[named[0].id].control.name, named[0].alpn
    common = work.shelf.load(DEFAULT_APPS[0])
    return dress(common, work.shelf.neutral(), rng, secrets.token_bytes).control.name, common.alpn


def most_pace(options: Options, profiles: Sequence[Profile]) -> float:
    """The highest pace that the session asks for: where a queue is to be filled, what a calibration takes anyway."""
    if options.pace_mbps is not None:
        return options.pace_mbps
    is_loaded = any(profile.live is not None for profile in profiles)
    return options.most_pace_mbps / SHARE_OF_LINE if is_loaded else options.most_pace_mbps


def _pair_cost(profile: Profile, options: Options) -> Cost:
    """The most that one pair takes."""
    if profile.live is None:
        pace = options.most_pace_mbps if options.pace_mbps is None else options.pace_mbps
        seconds = 2 * options.segment_s + _PAIR_OVERHEAD_S
        return Cost(pair_bytes(pace, options.segment_s) if pace else None, seconds, 1)
    seconds = options.segment_s + GRACE_S + _PAIR_OVERHEAD_S
    pace, packets = most_pace(options, [profile]), packets_of(profile, "")
    if not pace or packets is None:
        return Cost(None, seconds, 1)
    return Cost(concurrent_pair_bytes(pace, options.segment_s, packets), seconds, 1)


def _paces(options: Options, most_load: float, calibrate: Callable[[], float | None]) -> Paces:
    if options.pace_mbps is not None:
        return Paces(options.pace_mbps, options.pace_mbps)
    reached = None
    for _ in range(MOST_CALIBRATIONS):
        reached = calibrate()
        if reached is not None:
            break
    return Paces(pace_mbps(reached, options.most_pace_mbps), load_pace_mbps(reached, most_load))


def _checked(options: Options) -> tuple[Profile, ...]:
    """The apps to measure, each once. Raises OptionError, ProfileError."""
    if not 1 <= options.pairs <= MAX_PAIRS:
        raise OptionError(f"the number of pairs must lie between 1 and {MAX_PAIRS}")
    if not MIN_SEGMENT_S <= options.segment_s <= MAX_SEGMENT_S:
        raise OptionError(f"a segment lasts between {MIN_SEGMENT_S:g} and {MAX_SEGMENT_S:g} seconds")
    if options.pace_mbps is not None and not (options.pace_mbps == 0 or 0.1 <= options.pace_mbps <= MAX_PACE_MBPS):
        raise OptionError(f"the pace must be 0 (unlimited) or between 0.1 and {MAX_PACE_MBPS:g} Mbit/s")
    shelf = Shelf(delivered=options.delivered)
    profiles = tuple(shelf.load(app) for app in dict.fromkeys(options.apps or DEFAULT_APPS))
    live = [profile.id for profile in profiles if profile.live is not None]
    if live and options.segment_s < LEAST_SEGMENT_S:
        raise OptionError(f"{live[0]} needs segments of at least {LEAST_SEGMENT_S:g} s: half of the first has no load")
    return profiles

# SPDX-License-Identifier: EUPL-1.2
"""The engine `path`: a row's probes measure through the lab's own queues and rules, in virtual time.

Everything that decides is the product's: the order of pairs and placebo pairs, names and first bytes, pace, guard
gap, the definition of a rate, how a segment ends. Modelled are TCP (lab.accuracy.tcp) and the line (…lines).
The same row and repeat give the same run, on every machine. spec/accuracy.md section 3.

Options of a row (table `[options]`), beside those of `lab.accuracy.lines`:

`days`, `sessions_a_day` (4)   sessions spread over days as a plan does; without `days` one session at `hour` (12.25)
`gap_s` (0.3)                  between two pairs, besides the control channel's three exchanges
`edge`, `position`, `access`, `flags`   what receipts and measurements say; edge follows `link.nat` unless given
`lost`                         share of started pairs that never arrive
`cpu_mbps`, `reflector_mbps`, `window_kb`   what the ends can do: sets the flags of the gates
`second_path`                  during each session the line moves to another network, where alone the rules act
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from analysis.match import HOUSEHOLD_SHARE
from analysis.pairs import CellKey, Flag, Pair
from lab.accuracy.home import Home
from lab.accuracy.lines import line
from lab.accuracy.model import Played, Row, Run
from lab.accuracy.segment import SPLIT_HELLO, Look, Outcome, Wire, calibrate, play_segment
from lab.classify import Incomplete, stream_class
from lab.model import Rule, affected
from lab.run import apps_of
from lab.scenario import ScenarioError
from probe.nettests.base import Options
from probe.nettests.differential import Slot, schedule
from probe.profiles.dress import Arms, Dressed, dress
from probe.profiles.model import Profile, Shelf
from probe.profiles.schema import NeutralPool
from probe.wire.records import CONTROL_ARMS, Access, Arm, Position

DAY_MS: Final = 86_400_000
START_MS: Final = 1_789_948_800_000
"""2026-09-21, 00:00 UTC: a Monday, in no daylight-saving change."""
_EXCHANGES: Final = 3
"""Commit, reveal and finish: round trips of the control channel between two pairs."""
_ASN: Final = 64496


def play(row: Row, repeat: int) -> Run:
    """One repeat of a row: all its probes measure, each on a line of its own."""
    probes = row.measure.probes
    treated = []
    for number, rule in enumerate(row.scenario.rules):
        chosen = list(range(probes))
        random.Random(f"{row.name}/{repeat}/share/{number}").shuffle(chosen)
        treated.append((rule, frozenset(chosen[: affected(rule.share, probes)])))
    played: list[Played] = []
    for index in range(probes):
        rules = [rule for rule, who in treated if index in who]
        probe = _Probe(row=row, index=index, rules=rules, seed=f"{row.name}/{repeat}/{index}")
        played += probe.measure()
    played.sort(key=lambda one: one.pair.order)
    return Run(row=row.name, repeat=repeat, played=tuple(played))


@cache
def _shelf() -> tuple[Shelf, NeutralPool]:
    shelf = Shelf()
    return shelf, shelf.neutral()


@cache
def _profile(app: str) -> Profile:
    return _shelf()[0].load(app)


@dataclass(frozen=True, slots=True)
class _Session:
    """What stays the same within one session."""

    name: str
    began_ms: int
    arms: Mapping[str, Arms]
    rng: random.Random


@dataclass(slots=True)
class _Probe:
    """One subscriber who measures."""

    row: Row
    index: int
    rules: list[Rule]
    seed: str

    @property
    def options(self) -> Mapping[str, Any]:
        return self.row.options

    def measure(self) -> Iterator[Played]:
        """All sessions, one after the other."""
        measure, rng = self.row.measure, random.Random(f"{self.seed}/schedule")
        apps = measure.apps or tuple(apps_of(self.row.scenario))
        wanted = Options(apps=apps, pairs=measure.pairs, direction=measure.direction, segment_s=measure.segment_s)
        slots = schedule(apps, wanted, rng)
        begins = list(self._begins(rng))
        for number, began_ms in enumerate(begins):
            share = slots[number * len(slots) // len(begins) : (number + 1) * len(slots) // len(begins)]
            if share:
                arms = {app: dress(_profile(app), _shelf()[1], rng, rng.randbytes) for app in apps}
                session = _Session(f"{self.index:04x}{number:04x}", began_ms, arms, rng)
                yield from self._session(session, share)

    def _begins(self, rng: random.Random) -> Iterator[int]:
        """When the sessions begin, Unix milliseconds."""
        days, daily = self.options.get("days", 0), self.options.get("sessions_a_day", 4)
        if not days:
            yield START_MS + round(self.options.get("hour", 12.25) * DAY_MS / 24) + self.index
            return
        phase = rng.random() * DAY_MS / daily
        for day in range(days):
            for one in range(daily):
                yield START_MS + day * DAY_MS + round(phase + one * DAY_MS / daily)

    def _home(self, session: _Session, suffix: str, rules: list[Rule]) -> Wire:
        seed = f"{self.seed}/{session.name}{suffix}"
        home = Home(line(self.row.scenario, self.options, seed), rules, seed)
        home.at(session.began_ms % DAY_MS * 24 / DAY_MS)
        return Wire(home, rtt_s=self.row.scenario.link.rtt_ms / 1000 + 0.001, limits=self.options)

    def _session(self, session: _Session, slots: list[Slot]) -> Iterator[Played]:
        measure = self.row.measure
        second = bool(self.options.get("second_path"))
        wire = self._home(session, "", [] if second else self.rules)
        move_at = session.rng.randrange(len(slots)) if second else -1
        now = wire.guard(0.0)
        neutral = _looks(_profile(slots[0].app), session.arms[slots[0].app], "test")[1]
        pace, now = calibrate(wire, neutral, measure.direction, most_mbps=measure.pace_mbps, now=now)
        for number, slot in enumerate(slots, start=1):
            if number - 1 == move_at:
                wire = self._home(session, "/second", self.rules)
                now = wire.guard(0.0) + now
            one = self._pair(session, slot, number, wire, (pace, now))
            now = one.ended
            if move_at >= 0 and number > move_at:
                one.flags |= {"path_changed"}
            yield self._told(session, slot, number, one)

    def _pair(self, session: _Session, slot: Slot, number: int, wire: Wire, at: tuple[float, float]) -> _Both:
        """Two segments back to back in the coin's order."""
        pace, now = at
        del number
        measure = self.row.measure
        neutral_first = session.rng.random() < 0.5
        app, control = _looks(_profile(slot.app), session.arms[slot.app], slot.kind)
        started = now
        now += _EXCHANGES * wire.rtt_s
        household = wire.home.line.household_kb(now)
        order = (control, app) if neutral_first else (app, control)
        outcomes = []
        for look in order:
            one = play_segment(wire, look, measure.direction, pace=pace, segment_s=measure.segment_s, now=now)
            outcomes.append(one)
            now = one.ended
        moved_kb = sum(one.segment.bytes for one in outcomes) / 1000
        household = wire.home.line.household_kb(now) - household
        flags: set[Flag] = set(self.options.get("flags", ()))
        if household > HOUSEHOLD_SHARE * moved_kb and household > 0:
            flags.add("household_traffic")
        limits: tuple[tuple[str, Flag], ...] = (
            ("cpu_mbps", "short_of_cpu"),
            ("reflector_mbps", "saturated"),
            ("window_kb", "queue_limited"),
            ("sqm", "sqm"),
        )
        flags |= {flag for key, flag in limits if self.options.get(key)}
        return _Both(
            neutral_first,
            (outcomes[0], outcomes[1]),
            started,
            now + self.options.get("gap_s", 0.3) * (0.9 + 0.2 * session.rng.random()),
            pace,
            flags,
        )

    def _told(self, session: _Session, slot: Slot, number: int, both: _Both) -> Played:
        """The pair as receipt and measurement tell it together."""
        first, second = both.outcomes
        arms = (second, first) if both.neutral_first else (first, second)
        access: Access = self.options.get("access", "fixed")
        link, options = self.row.scenario.link, self.options
        position: Position = options.get("position", "behind_nat" if link.nat != "none" else "edge")
        lost = session.rng.random() < options.get("lost", 0.0)
        failed = [one.segment.end != "complete" for one in both.outcomes]
        pair = Pair(
            cell=CellKey(self.row.name, _ASN, slot.app, self.row.measure.direction, access),
            kind=slot.kind,
            probe=f"probe-{self.index}",
            session=f"{self.index}-{session.name}",
            number=number,
            started_ms=session.began_ms + round(both.started * 1000),
            ended_ms=session.began_ms + round(both.ended * 1000),
            neutral_first=both.neutral_first,
            first_mbps=first.mbps,
            second_mbps=second.mbps,
            first_failed=failed[0],
            second_failed=failed[1],
            lost=lost,
            network="carrier-nat" if link.nat == "cgnat" else f"network-{self.index}",
            edge=options.get("edge", link.nat == "none" and not options.get("second_path")),
            position=position,
            flags=frozenset(both.flags),
            pace_mbps=both.pace,
            segment_s=self.row.measure.segment_s,
        )
        return Played(
            pair=pair,
            app_bins_mbps=arms[0].bins_mbps,
            neutral_bins_mbps=arms[1].bins_mbps,
            octets=first.octets + second.octets,
        )


@dataclass(slots=True)
class _Both:
    """Both segments of a pair, played."""

    neutral_first: bool
    outcomes: tuple[Outcome, Outcome]
    started: float
    ended: float
    pace: float
    flags: set[Flag]


def _looks(profile: Profile, arms: Arms, kind: str) -> tuple[Look, Look]:
    """The two arms of a pair as the operator sees them: app (in a placebo pair another control) and control."""
    shown = arms.app if kind == "test" else arms.placebo
    return _look(profile, shown, "app"), _look(profile, arms.control, CONTROL_ARMS[profile.carrier])


def _look(profile: Profile, arm: Dressed, role: Arm) -> Look:
    if profile.carrier == "tls":
        return Look(arm=role, sni=arm.name)
    if profile.carrier == "hello":
        return Look(arm=role, sni=arm.name, hello=SPLIT_HELLO)
    if profile.carrier == "stream":
        try:
            payload = stream_class(arm.flight)
        except Incomplete:
            payload = "opaque"
        return Look(arm=role, payload=payload, hello=(52 + len(arm.flight),))
    raise ScenarioError(f"measure.apps: the engine path plays TCP alone, and {profile.id} is carried over UDP")

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
`design` ("sequential"), `load_mbps`, `packet_bytes` (200), `interval_ms` (20)   concurrent pairs
`second_path`                  behind its first pair each session goes on over another network: "treated" (the rules act
                               on the second one alone) or "untreated" (on the first one alone)
`fixed_pace`                   the pace is `measure.pace_mbps` whatever the line carries (`probe run --pace-mbps`)
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from analysis.match import HOUSEHOLD_SHARE, NO_QUEUE, pair_rates, queue_of
from analysis.pairs import CellKey, Flag, Pair
from lab.accuracy.concurrent import play_together
from lab.accuracy.home import Home
from lab.accuracy.lines import line
from lab.accuracy.model import Played, Row, Run
from lab.accuracy.reading import STUDY_OPTIONS
from lab.accuracy.segment import SPLIT_HELLO, Look, Wire, calibrate, play_segment
from lab.classify import Incomplete, datagram_class, stream_class
from lab.model import Rule, affected
from lab.run import apps_of
from lab.scenario import ScenarioError
from probe.nettests.base import Options
from probe.nettests.differential import Slot, schedule
from probe.profiles.dress import Arms, Dressed, dress
from probe.profiles.model import DEFAULT_APPS, Profile, Shelf
from probe.profiles.schema import NeutralPool
from probe.protocol.pacing import SHARE_OF_LINE
from probe.wire.records import CONTROL_ARMS, Access, Arm, Position, Segment

OPTIONS: Final = frozenset(
    {
        "days", "sessions_a_day", "hour", "gap_s", "edge", "position", "access", "flags", "lost", "cpu_mbps",
        "reflector_mbps", "window_kb", "design", "load_mbps", "packet_bytes", "interval_ms", "second_path",
        "fixed_pace", "boost_mbps", "boost_kb", "sqm",
    }
)  # fmt: skip
"""What this engine reads of `[options]`; another key is a mistake, besides those that the study reads itself."""
DAY_MS: Final = 86_400_000
START_MS: Final = 1_795_392_000_000
"""2026-11-23, 00:00 UTC: a Monday after the rule's publication, so that nothing is retrospective."""
_EXCHANGES: Final = 3
"""Commit, reveal and finish: round trips of the control channel between two pairs."""
_ASN: Final = 64496


def play(row: Row, repeat: int) -> Run:
    """One repeat of a row: all its probes measure, each on a line of its own."""
    for key in sorted(set(row.options) - OPTIONS - set(STUDY_OPTIONS)):
        raise ScenarioError(f"{row.name}: options.{key}: unknown to the engine path")
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
    spare: str
    """A neutral name that no arm has."""
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
        self._refuse(apps)
        wanted = Options(apps=apps, pairs=measure.pairs, direction=measure.direction, segment_s=measure.segment_s)
        slots = schedule(apps, wanted, rng)
        begins = list(self._begins(rng))
        for number, began_ms in enumerate(begins):
            share = slots[number * len(slots) // len(begins) : (number + 1) * len(slots) // len(begins)]
            if share:
                arms = {app: dress(_profile(app), _shelf()[1], rng, rng.randbytes) for app in apps}
                spare = dress(_profile(DEFAULT_APPS[0]), _shelf()[1], rng, rng.randbytes).control.name
                session = _Session(f"{self.index:04x}{number:04x}", began_ms, arms, spare, rng)
                yield from self._session(session, share)

    def _begins(self, rng: random.Random) -> Iterator[int]:
        """When the sessions begin, Unix milliseconds."""
        days, daily = self.options.get("days", 0), self.options.get("sessions_a_day", 4)
        if not days:
            yield START_MS + round(self.options.get("hour", 12.25) * DAY_MS / 24) + self.index
            return
        for day in range(days):
            for one in range(daily):
                yield START_MS + day * DAY_MS + round((one + rng.random()) * DAY_MS / daily)

    def _home(self, session: _Session, suffix: str, rules: list[Rule]) -> Wire:
        seed = f"{self.seed}/{session.name}{suffix}"
        home = Home(line(self.row.scenario, self.options, seed), rules, seed)
        home.at(session.began_ms % DAY_MS * 24 / DAY_MS)
        return Wire(home, rtt_s=self.row.scenario.link.rtt_ms / 1000 + 0.001, limits=self.options)

    def _refuse(self, apps: tuple[str, ...]) -> None:
        """What this engine cannot play is said before it begins."""
        for app in apps:
            if _profile(app).carrier in {"quic", "datagram"} and not self.is_concurrent:
                raise ScenarioError(
                    f"{self.row.name}: measure.apps: {app} is carried over UDP, which the engine path plays in "
                    'concurrent pairs alone; set options.design = "concurrent"'
                )

    def _session(self, session: _Session, slots: list[Slot]) -> Iterator[Played]:
        measure = self.row.measure
        second = self.options.get("second_path")
        wire = self._home(session, "", [] if second == "treated" else self.rules)
        move_at = 1 if second else -1
        now = wire.guard(0.0)
        neutral = _neutral(session)
        pace = measure.pace_mbps
        if not self.options.get("fixed_pace"):
            pace, now = calibrate(wire, neutral, measure.direction, most_mbps=measure.pace_mbps, now=now)
        for number, slot in enumerate(slots, start=1):
            if number - 1 == move_at:
                wire = self._home(session, "/second", self.rules if second == "treated" else [])
                now = wire.guard(0.0) + now
            one = self._pair(session, slot, wire, pace, now)
            now = one.ended
            if move_at >= 0 and number > move_at:
                one.flags |= {"path_changed"}
            yield self._told(session, slot, number, one)

    def _pair(self, session: _Session, slot: Slot, wire: Wire, pace: float, now: float) -> _Both:
        """Both segments of a pair in the coin's order, and what makes it poorer."""
        neutral_first = session.rng.random() < 0.5
        app, control = _looks(_profile(slot.app), session.arms[slot.app], slot.kind)
        started = now
        now += _EXCHANGES * wire.rtt_s
        household = wire.home.line.household_kb(now)
        order = (control, app) if neutral_first else (app, control)
        if self.is_concurrent:
            both = self._together(session, wire, order, now)
        else:
            both = self._in_turn(wire, order, pace, now)
        household = wire.home.line.household_kb(both.ended) - household
        both.neutral_first, both.started, both.pace = neutral_first, started, pace
        both.flags = self._flags(household, both.octets / 1000)
        both.ended += self.options.get("gap_s", 0.3) * (0.9 + 0.2 * session.rng.random())
        return both

    def _in_turn(self, wire: Wire, order: tuple[Look, Look], pace: float, now: float) -> _Both:
        """Back to back, with a guard gap behind each."""
        way, segment_s = self.row.measure.direction, self.row.measure.segment_s
        first = play_segment(wire, order[0], way, pace=pace, segment_s=segment_s, now=now)
        second = play_segment(wire, order[1], way, pace=pace, segment_s=segment_s, now=first.ended)
        return _Both(
            segments=(first.segment, second.segment),
            bins=(first.bins_mbps, second.bins_mbps),
            octets=first.octets + second.octets,
            ended=second.ended,
        )

    def _together(self, session: _Session, wire: Wire, order: tuple[Look, Look], now: float) -> _Both:
        """At once, in two slots."""
        measure, options = self.row.measure, self.options
        found = play_together(
            wire,
            order,
            _neutral(session),
            measure.direction,
            load_mbps=options.get("load_mbps", measure.pace_mbps / SHARE_OF_LINE),
            packet_bytes=options.get("packet_bytes", 200),
            interval_ms=options.get("interval_ms", 20),
            segment_s=measure.segment_s,
            now=now,
        )
        return _Both(segments=found.segments, octets=found.octets, ended=found.ended)

    @property
    def is_concurrent(self) -> bool:
        """Whether the row's pairs are."""
        return self.options.get("design") == "concurrent"

    def _flags(self, household_kb: float, moved_kb: float) -> set[Flag]:
        flags: set[Flag] = set(self.options.get("flags", ()))
        if household_kb > HOUSEHOLD_SHARE * moved_kb and household_kb > 0:
            flags.add("household_traffic")
        limits: tuple[tuple[str, Flag], ...] = (
            ("cpu_mbps", "short_of_cpu"),
            ("reflector_mbps", "saturated"),
            ("window_kb", "queue_limited"),
            ("sqm", "sqm"),
        )
        return flags | {flag for key, flag in limits if self.options.get(key)}

    def _told(self, session: _Session, slot: Slot, number: int, both: _Both) -> Played:
        """The pair as receipt and measurement tell it together."""
        access: Access = self.options.get("access", "fixed")
        link, options, measure = self.row.scenario.link, self.options, self.row.measure
        position: Position = options.get("position", "behind_nat" if link.nat != "none" else "edge")
        queue = queue_of(both.segments, measure.segment_s) if self.is_concurrent else NO_QUEUE
        rates = (None, None) if self.is_concurrent else pair_rates(both.segments, measure.segment_s)
        pair = Pair(
            cell=CellKey(self.row.name, _ASN, slot.app, measure.direction, access),
            kind=slot.kind,
            probe=f"probe-{self.index}",
            session=f"{self.index}-{session.name}",
            number=number,
            started_ms=session.began_ms + round(both.started * 1000),
            ended_ms=session.began_ms + round(both.ended * 1000),
            neutral_first=both.neutral_first,
            first_mbps=rates[0],
            second_mbps=rates[1],
            first_failed=both.segments[0].end != "complete",
            second_failed=both.segments[1].end != "complete",
            design="concurrent" if self.is_concurrent else "sequential",
            first_delay_ms=queue.delays_ms[0],
            second_delay_ms=queue.delays_ms[1],
            first_loss=queue.losses[0],
            second_loss=queue.losses[1],
            queued=queue.queued,
            lost=session.rng.random() < options.get("lost", 0.0),
            network="carrier-nat" if link.nat == "cgnat" else f"network-{self.index}",
            edge=options.get("edge", link.nat == "none" and not options.get("second_path")),
            position=position,
            flags=frozenset(both.flags),
            pace_mbps=both.pace,
            segment_s=measure.segment_s,
        )
        app, neutral = (1, 0) if both.neutral_first else (0, 1)
        return Played(pair=pair, app_bins_mbps=both.bins[app], neutral_bins_mbps=both.bins[neutral], octets=both.octets)


@dataclass(slots=True, kw_only=True)
class _Both:
    """Both segments of a pair, played."""

    segments: tuple[Segment, Segment]
    octets: int
    ended: float
    bins: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    neutral_first: bool = True
    started: float = 0.0
    pace: float = 0.0
    flags: set[Flag] = field(default_factory=set)


def _neutral(session: _Session) -> Look:
    """A neutral name of its own, for the calibration and for loads."""
    return Look(arm="neutral", sni=session.spare)


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
    return Look(arm=role, payload=datagram_class(arm.flight), hello=(28 + len(arm.flight),))

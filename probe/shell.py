# SPDX-License-Identifier: EUPL-1.2
"""Carries out what the session machine asks for: requests, waits, segments, guard gaps.

Thin on purpose: every decision is the machine's, every socket is netio's. Spec: spec/protocol.md.
"""

from __future__ import annotations

import os
import secrets
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from probe.environment import look_again, observe
from probe.household import Household, on_this_device
from probe.line import PathWatch, line_of, source_towards
from probe.netio.control import ControlChannel, ControlFailed, Url
from probe.netio.dial import Dialer
from probe.netio.stream import HelloMaker
from probe.netio.transfer import Transfers
from probe.nettests.base import Progress
from probe.portal import Door, glance, worst
from probe.protocol.probe_role import ProbeSession
from probe.protocol.session import GUARD_LIMIT_MS
from probe.protocol.steps import AwaitPlan, Finished, Guard, RunSegment, RunTogether, SegmentFacts, Send, Wait
from probe.settings import Settings
from probe.wire.echo import delay_ms, loss
from probe.wire.messages import PairResult, SessionRequest
from probe.wire.rate import rate_mbps
from probe.wire.records import Direction, Environment, Portal, Software

_BASELINE_PINGS: Final = 3


class _Clock:
    """Unix milliseconds that never step while a session runs."""

    def __init__(self) -> None:
        self._base = time.time() - time.monotonic()

    def ms(self) -> int:
        return round((self._base + time.monotonic()) * 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is known before a session, by who asked first: the turn of a probe that is looked after by nobody."""

    declared: Settings | None = None
    """What the owner told of the line."""
    door: Door | None = None
    """Where a captive portal would show; looked at again where a pair failed, and at the end."""
    portal: Portal | None = None
    """What the door was like before."""
    household: Household | None = None
    """None: what this device itself can count."""


class Shell:
    """Carries out the steps of a session: `probe.nettests.base.Tools`."""

    def __init__(
        self,
        reflector: Url,
        *,
        key_id: str,
        software: Software,
        segment_s: float,
        bind: str | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
        surroundings: Surroundings | None = None,
        expected_reflector: str | None = None,
    ) -> None:
        self._bind = bind
        self._around = surroundings or Surroundings()
        self._expected_reflector = expected_reflector
        self._household = Household(None, None)
        self._peer = ""
        self._dialer = Dialer(bind)
        self._control = ControlChannel(self._dialer, reflector)
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._clock = _Clock()
        self._transfers: Transfers | None = None
        self._reported = 0
        self._has_failed = False
        """A segment of the open pair."""
        self._segment_s = segment_s
        self.paces: dict[int, float] = {}
        self.probe_key = key_id
        self.software = software
        self.environment = Environment()
        self.last_error = ""

    def close(self) -> None:
        """Close the control channel."""
        self._control.close()

    def open(self, request: SessionRequest) -> ProbeSession:
        """Find the idle round-trip time, look around, ask for a session."""
        session = ProbeSession(request, random_bytes=secrets.token_bytes, expected_reflector=self._expected_reflector)
        try:
            for _ in range(_BASELINE_PINGS):
                self._control.ping()
            self._look_around()
        except ControlFailed as error:
            self.last_error = str(error)
            session.next(self._clock.ms())
            session.control_failed(error.failure, self._clock.ms())
        self._advance(session, {}, {})
        return session

    def calibrate(
        self, session: ProbeSession, *, name: str, alpn: tuple[str, ...], direction: Direction
    ) -> float | None:
        """A short neutral transfer, and the line quiet again after it."""
        step = session.calibration(name=name, direction=direction)
        before = self._household.count()
        reached = self._moving.calibrate(step, alpn, self._control.ping)
        session.calibrated(reached)
        self._household.check(before, self._household.count(), _moved_bytes(reached, step.duration_s))
        self._control.guard(GUARD_LIMIT_MS)
        return reached

    def drive(
        self,
        session: ProbeSession,
        *,
        alpn: Mapping[str, tuple[str, ...]],
        shapes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Carry out the plan. Ctrl-C gives up at once; the receipt is still asked for."""
        try:
            self._advance(session, alpn, shapes)
        except KeyboardInterrupt:
            self._control.close()  # an answer may be half read
            session.abandon("out_of_time")
            self._advance(session, alpn, shapes)

    @property
    def _moving(self) -> Transfers:
        if self._transfers is None:
            raise ValueError("no session is open")
        return self._transfers

    def _look_around(self) -> None:
        local, peer = self._control.addresses()
        self._peer = peer
        if local:
            line = line_of(local)
            self.environment = observe(local, peer, line, declared=self._around.declared)
            self._household = self._around.household or on_this_device(self.environment, line)
        self.environment = replace(self.environment, portal=self._around.portal)
        watch = PathWatch(peer, self._bind) if peer else None
        self._transfers = Transfers(self._dialer, self._control.host, self._household.count, watch)

    def _look_back(self) -> None:
        """The session is over: what is different from its beginning?"""
        if self._peer:
            local = source_towards(self._peer, self._bind)
            line = line_of(local) if local else None
            self.environment = look_again(self.environment, local, self._peer, line, declared=self._around.declared)
        self.environment = replace(self.environment, household_source=self._household.source)
        self._see_door()

    def _see_door(self) -> bool | None:
        """Whether somebody else answers for the reflector now; None where nobody looks or it cannot be told."""
        if self._around.door is None:
            return None
        found = glance(self._around.door, bind=self._bind)
        self.environment = replace(self.environment, portal=worst(self.environment.portal, found.state))
        is_hotspot = self._around.declared is not None and self._around.declared.stands_at_hotspot
        if found.is_reached and not is_hotspot:
            return False  # whoever rewrites plain pages at home is no portal that answers for the reflector
        return {"captive": True, "intercepted": True, "open": False}.get(found.state or "")

    def _advance(self, session: ProbeSession, alpn: Mapping[str, tuple[str, ...]], shapes: Mapping[str, str]) -> None:
        of = session.pairs_left + len(session.results)
        while True:
            step = session.next(self._clock.ms())
            if isinstance(step, Send):
                self._send(session, step)
            elif isinstance(step, RunSegment):
                self.paces[step.pair] = step.pace_mbps
                offered = alpn.get(step.app, ())
                facts = self._moving.run_segment(step, offered, _hello_maker(shapes.get(step.app), offered))
                session.segment_ended(replace(facts, captive=self._captive(step, facts)), self._clock.ms())
            elif isinstance(step, RunTogether):
                session.together_ended(self._run_together(step, alpn, shapes), self._clock.ms())
            elif isinstance(step, Guard):
                session.guard_ended(self._control.guard(step.limit_ms), self._clock.ms())
            elif isinstance(step, Wait):
                time.sleep(step.ms / 1000)
            elif isinstance(step, (AwaitPlan, Finished)):
                if isinstance(step, Finished) and session.grant is not None:
                    self._look_back()
                return
            self._report(session, of)

    def _run_together(
        self, step: RunTogether, alpn: Mapping[str, tuple[str, ...]], shapes: Mapping[str, str]
    ) -> tuple[SegmentFacts, SegmentFacts]:
        app = step.slots[0].app
        self.paces[step.pair] = step.load.pace_mbps
        offered = alpn.get(app, ())
        facts = self._moving.run_together(step, offered, _hello_maker(shapes.get(app), offered))
        has_failed = any(one.failure is not None for one in facts)
        captive = self._who_answered() if has_failed else False
        return replace(facts[0], captive=captive), replace(facts[1], captive=captive)

    def _captive(self, step: RunSegment, facts: SegmentFacts) -> bool | None:
        """Of the whole pair, told with its last segment: whether a captive portal answers.

        Where both segments went well nobody but the reflector can have answered. Where either failed, whoever answers
        a new connection to the reflector's own name is looked at, whichever arm it was.
        """
        self._has_failed = facts.failure is not None or (self._has_failed and step.slot == 1)
        if step.slot == 0:
            return None
        return self._who_answered() if self._has_failed else False

    def _who_answered(self) -> bool | None:
        seen = self._see_door()
        return self._control.is_impersonated() if seen is None else seen

    def _send(self, session: ProbeSession, step: Send) -> None:
        try:
            answer = self._control.request(
                step.method, step.path, body=step.body, token=step.token, timeout_s=step.timeout_s
            )
        except ControlFailed as error:
            self.last_error = str(error)
            session.control_failed(error.failure, self._clock.ms())
            return
        session.answered(answer.status, answer.body, self._clock.ms(), answer.retry_after_s)

    def _report(self, session: ProbeSession, of: int) -> None:
        results = session.results
        if len(results) > self._reported:
            self._reported = len(results)
            self._on_progress(_progress(session, results[-1], self._segment_s, of))
            if session.is_between_pairs and self._should_stop():
                session.stop()


def _moved_bytes(mbps: float | None, duration_s: float) -> int:
    """What a calibration surely moved: its rate was reached in the second half."""
    return 0 if mbps is None else round(mbps * 1e6 / 8 * duration_s / 2)


def _hello_maker(shape: str | None, alpn: tuple[str, ...]) -> HelloMaker | None:
    """What makes the ClientHellos of an app whose profile names a browser."""
    if shape is None:
        return None
    from probe.profiles.browser import client_hello  # noqa: PLC0415 (only where a browser is imitated: memory)

    return lambda name, session_id: client_hello(shape, name, alpn=alpn, session_id=session_id, random_bytes=os.urandom)


def _progress(session: ProbeSession, result: PairResult, segment_s: float, of: int) -> Progress:
    measured = session.measured[result.pair - 1]
    design = session.design_of(result.pair)
    rates = rates_of(result, segment_s) if design == "sequential" else (None, None)
    by_arm = {segment.arm != "app": segment for segment in result.segments}
    app, neutral = by_arm.get(False), by_arm.get(True)
    return Progress(
        pair=result.pair,
        app=measured.app,
        direction=measured.direction,
        kind=measured.kind,
        done=len(session.results),
        of=of,
        outcome=result.outcome,
        app_mbps=rates[0],
        neutral_mbps=rates[1],
        design=design,
        app_delay_ms=delay_ms(app, segment_s) if app else None,
        neutral_delay_ms=delay_ms(neutral, segment_s) if neutral else None,
        app_loss=loss(app) if app else None,
        neutral_loss=loss(neutral) if neutral else None,
    )


def rates_of(result: PairResult, segment_s: float) -> tuple[float | None, float | None]:
    """Mbit/s of the app's and the neutral segment, as the reflector counted them."""
    found = {segment.arm != "app": rate_mbps(segment, segment_s) for segment in result.segments}
    return found.get(False), found.get(True)


def software(version: str) -> Software:
    """What runs here. The kernel's version is cut to two numbers: three dots would look like an address."""
    release = os.uname().release.split("-")[0].split(".")
    return Software(
        version=version,
        python=".".join(str(part) for part in sys.version_info[:3]),
        tls=ssl.OPENSSL_VERSION[:64],
        kernel=".".join(release[:2])[:64],
    )

# SPDX-License-Identifier: EUPL-1.2
"""A turn's dealings with its collector: the plan is asked for, what waits is handed over.

A collector that fails, or says anything at all, holds up nothing but itself. Spec: spec/probe.md, section "The turn".
"""

from __future__ import annotations

from random import Random
from typing import Final

from probe import backoff
from probe.enrol import Enrolled, plan_file
from probe.handover import collector_name
from probe.kept import Kept
from probe.plan import Fetched
from probe.state import State
from probe.told import HOUR_MS, MINUTE_MS, Turn
from probe.world import World

PLAN_EVERY_MS: Final = 6 * HOUR_MS
"""How often a collector is asked for its plan, a quarter more or less."""
NO_PLAN_EVERY_MS: Final = 30 * MINUTE_MS


def about(rng: Random, ms: int) -> int:
    """A quarter more or less, so that probes do not meet at the collector."""
    return round(ms * rng.uniform(0.75, 1.25))


class Syncing:
    """With the collector that was joined. What goes wrong is added to the turn's problems. Raises StateError."""

    def __init__(self, state: State, world: World, kept: Kept, turn: Turn, joined: Enrolled) -> None:
        self._state = state
        self._world = world
        self._kept = kept
        self._turn = turn
        self._joined = joined
        self.did_something = False
        """The collector answered about the plan, or took a session."""

    def upload(self) -> None:
        """Hand over what waits in the spool."""
        if not self._state.spool.entries():
            return
        sent = self._world.sync_spool(self._state, self._joined, self._world.clock().now_ms)
        self.did_something = self.did_something or bool(sent.sessions)
        if sent.damaged:
            self._turn.problems.append(f"{sent.damaged} files of the spool could not be read and were set aside")
        if sent.rejected:
            codes = ", ".join(sorted(set(sent.rejected)))
            self._turn.problems.append(f"the collector refused {len(sent.rejected)} sessions ({codes})")

    def ask_plan(self) -> None:
        """Ask for a newer plan where it is time to."""
        now_ms = self._world.clock().now_ms
        is_stored = plan_file(self._state).exists()
        every_ms = PLAN_EVERY_MS if is_stored else NO_PLAN_EVERY_MS
        # A time further ahead than that was written by another clock.
        if now_ms < self._kept.plan_next_ms <= now_ms + 2 * every_ms:
            return
        standing = backoff.load(self._state.run).of(collector_name(self._joined.url))
        if backoff.waits_until_ms(standing.pause, now_ms) is not None:
            return
        key = self._state.known_key()
        if key is None:
            self._turn.problems.append("this device's key is gone: join again with `evenlane probe enrol --again`")
            return
        self._note(self._world.renew_plan(self._state, self._joined, key, now_ms), standing, is_stored)

    def _note(self, found: Fetched, standing: backoff.Standing, is_stored: bool) -> None:
        now_ms = self._world.clock().now_ms
        if found.status == "failed":
            asked_ms = None if found.retry_after_s is None else found.retry_after_s * 1000
            told = {"failure": found.failure or "http_error", "detail": found.detail}
            standing = standing.failed(now_ms, self._world.rng, asked_ms=asked_ms, **told)
        else:
            standing = standing.answered(now_ms)
            has_plan = is_stored or found.status == "new"
            every_ms = PLAN_EVERY_MS if has_plan else NO_PLAN_EVERY_MS
            self._kept.plan_next_ms = now_ms + about(self._world.rng, every_ms)
            self.did_something = True
        if found.status == "refused":
            self._turn.problems.append(found.detail)
        try:
            backoff.save(self._state.run, standing)
        except OSError as error:
            self._turn.problems.append(f"how the collector stands cannot be written down ({error.strerror})")

# SPDX-License-Identifier: EUPL-1.2
"""One turn of a probe that nobody looks after: sync, decide, measure at most one session, say how it went.

Each stage may fail for itself. What it says goes into `turn.json` as a stable reason and one sentence that says what
to do, and the rest goes on. Nothing is uploaded while measuring, because a turn does one after the other.
Spec: spec/probe.md, section "The turn".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from probe import backoff, kept
from probe.budget import Ledger
from probe.enrol import EnrolError, Enrolled, enrolled, is_leaving, plan_file
from probe.handover import collector_name
from probe.household import Household
from probe.ledger import Budgets as Bytes
from probe.measuring import (
    MARGIN_S,
    REFUSED_BYTES,
    Meter,
    Outing,
    cost_of,
    lines_of,
    reflector_of,
    spent_bytes,
    summary_of,
)
from probe.plan import Budgets, PlanError, SignedPlan, budgets, ceiling, stored, usable
from probe.portal import door_of
from probe.runner import RunError
from probe.schedule import Now, Window, at_once, draw, left_ms, put_off, quiet_until
from probe.settings import Settings, read_settings
from probe.spend import Choice, allowance, choose, learned
from probe.state import State, StateError
from probe.syncing import NO_PLAN_EVERY_MS, Syncing, about
from probe.told import HOUR_MS, MINUTE_MS, Held, Outcome, Reason, Turn
from probe.wire.limits import MIN_TIME_MS
from probe.wire.records import PlannedReflector
from probe.world import World

LONGEST_MS: Final = 6 * HOUR_MS
"""Between two turns: somebody may change something."""
FRESH_MS: Final = 24 * HOUR_MS
"""So long after joining, the first session is due at once: its volunteer waits for it."""
_MB: Final = 1_000_000
LEAST_ROOM_BYTES: Final = 512 * 1024
"""In the run's directory, before a session whose record would have no place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How this turn was called."""

    settings: Path
    version: str = "0"
    now: bool = False
    """Whatever the schedule says. Budgets, quiet hours and the household's say hold."""
    most_bytes: int | None = None
    """For this turn's session, below what the budgets leave."""
    should_stop: Callable[[], bool] = lambda: False
    lasts: Callable[[float], None] = lambda _: None
    """Told before a session: how many seconds it may take."""


def take_turn(state: State, world: World, asked: Asked) -> tuple[Turn, Settings]:
    """One turn. Raises nothing that a network, a collector, a plan or a full disk could cause."""
    settings, problems = read_settings(asked.settings)
    clock = world.clock()
    turn = Turn(at_ms=clock.now_ms, problems=list(problems))
    try:
        state.prepare()
        with state.exclusive():
            _Taking(state, world, asked, settings, turn).run()
    except StateError as error:
        # The lock's own refusal has the system's at its root; everything else is a directory that cannot be used.
        is_busy = isinstance(error.__context__, BlockingIOError)
        turn.outcome, turn.reason = ("waiting", "busy") if is_busy else ("failed", "storage")
        turn.detail = str(error)
        turn.next_ms = clock.now_ms + (2 if is_busy else 10) * MINUTE_MS
        if is_busy:
            return turn, settings  # the other one tells how it went
    try:
        kept.write(state, "turn.json", turn.plain())
    except StateError as error:
        turn.problems.append(str(error))
    return turn, settings


class _Taking:
    """The stages, one after the other."""

    def __init__(self, state: State, world: World, asked: Asked, settings: Settings, turn: Turn) -> None:
        self.state = state
        self.world = world
        self.asked = asked
        self.settings = settings
        self.turn = turn
        self.clock = world.clock()
        self.kept = kept.load(state)
        self.joined: Enrolled | None = None
        self.plan: SignedPlan | None = None
        self.quiet: tuple[Window, ...] = tuple((one.start_min, one.end_min) for one in settings.quiet_hours)
        self.syncing: Syncing | None = None
        self.household: Household | None = None
        turn.problems += self.kept.problems

    def run(self) -> None:
        """The whole turn."""
        held = self._enter()
        if held is None:
            self._sync()
            held = self._find_plan() or self._wait() or self._consider()
        if held is not None:
            self.turn.outcome, self.turn.reason, self.turn.detail = held.outcome, held.reason, held.detail
            if held.outcome == "waiting" and held.reason == "not_due" and self.syncing and self.syncing.did_something:
                self.turn.outcome = "synced"
        self._tell(held)

    @property
    def now(self) -> Now:
        """This moment for the schedule."""
        return Now(self.clock.now_ms, self.clock.boot_ms, self.clock.boot)

    # -- may it do anything? ------------------------------------------------------------------------------------

    def _enter(self) -> Held | None:
        now_ms = self.clock.now_ms
        if now_ms < MIN_TIME_MS:
            text = "this device's clock was never set: see to its time servers (NTP); until then nothing is measured"
            return Held("clock", text, now_ms + MINUTE_MS)
        if is_leaving(self.state):
            return self._leave()
        try:
            self.joined = enrolled(self.state)
        except EnrolError as error:
            return Held("not_enrolled", str(error), now_ms + HOUR_MS, "failed")
        if self.joined is None:
            text = "this device works for nobody yet: join with `evenlane probe enrol --collector URL`"
            return Held("not_enrolled", text, now_ms + HOUR_MS)
        if not self.settings.enabled:
            return Held("disabled", "the settings say enabled: no", now_ms + LONGEST_MS)
        return None

    def _leave(self) -> Held:
        """The volunteer left while the collector could not be reached: it is told again."""
        now_ms = self.clock.now_ms
        try:
            left = self.world.leave(self.state, now_ms)
        except EnrolError as error:
            return Held("leaving", str(error), now_ms + LONGEST_MS, "failed")
        if left.status == "pending":
            wait_ms = max(HOUR_MS, (left.retry_after_s or 0) * 1000)
            text = f"the wish to leave has not reached the collector ({left.detail}); it is sent again"
            return Held("leaving", text, now_ms + about(self.world.rng, wait_ms))
        return Held("not_enrolled", "this device has left, and everything here was erased", now_ms + LONGEST_MS)

    def _sync(self) -> None:
        if self.joined is None:
            return
        self.syncing = Syncing(self.state, self.world, self.kept, self.turn, self.joined)
        self.syncing.ask_plan()
        self.syncing.upload()
        self.clock = self.world.clock()

    # -- is a session due? --------------------------------------------------------------------------------------

    def _find_plan(self) -> Held | None:
        joined, now_ms = self.joined, self.clock.now_ms
        if joined is None:
            return None
        found = stored(plan_file(self.state), joined.key)
        if found is None:
            is_spoilt = plan_file(self.state).exists()
            if is_spoilt:  # asked for again at once, as the one that is kept cannot be believed
                self.kept.plan_next_ms = 0
            text = "the kept plan was spoilt; another one is asked for" if is_spoilt else "there is no plan yet"
            return Held("no_plan", text, now_ms + (5 * MINUTE_MS if is_spoilt else NO_PLAN_EVERY_MS))
        try:
            usable(found, joined.key, now_ms)
        except PlanError as error:
            known: dict[str, Reason] = {"expired": "plan_expired", "from_the_future": "clock"}
            if self.kept.plan_next_ms > now_ms + HOUR_MS:  # there may be a newer one since
                self.kept.plan_next_ms = now_ms + about(self.world.rng, HOUR_MS)
            return Held(known.get(error.reason, "no_plan"), f"the plan is not followed: {error}", now_ms + HOUR_MS)
        self.plan = found
        return None

    @property
    def mean_s(self) -> int:
        """Of the plan's schedule."""
        return self.plan.plan.interval_s if self.plan else 21_600

    def _draw(self, *, after_session: bool, from_wall_ms: int | None = None) -> None:
        self.kept.due = draw(
            self.now,
            mean_s=self.mean_s,
            rng=self.world.rng,
            minute_of=self.world.minute_of,
            quiet=self.quiet,
            after_session=after_session,
            from_wall_ms=from_wall_ms,
        )

    def _due_in_ms(self) -> int | None:
        return None if self.kept.due is None else left_ms(self.kept.due, self.now, self.mean_s, self.quiet)

    def _wait(self) -> Held | None:
        """Not due yet, or quiet hours."""
        now_ms = self.clock.now_ms
        left = self._due_in_ms()
        if left is None:
            is_first = self.kept.due is None and self._is_fresh()
            if is_first:
                self.kept.due = at_once(self.now, self.mean_s)
            else:
                self._draw(after_session=False)
            left = self._due_in_ms() or 0
        if left > 0 and not self.asked.now:
            return Held("not_due", "", now_ms + left)
        ends_ms = quiet_until(now_ms, self.quiet, self.world.minute_of)
        if ends_ms > now_ms:
            self._draw(after_session=False, from_wall_ms=ends_ms)
            return Held("quiet_hours", "these are quiet hours", self._due_ms(), "postponed")
        return None

    def _is_fresh(self) -> bool:
        """Whether this probe has just joined and never measured since its RAM was new."""
        since_ms = self.clock.now_ms - (self.joined.enrolled_ms if self.joined else 0)
        return self.state.sessions() == 0 and -HOUR_MS < since_ms < FRESH_MS

    def _due_ms(self) -> int:
        return self.clock.now_ms + (self._due_in_ms() or 0)

    def _postpone(self, reason: Reason, detail: str, outcome: Outcome = "postponed") -> Held:
        """The same session again after a growing pause."""
        tries = self.kept.due.tries if self.kept.due else 0
        self.kept.due = put_off(self.now, tries=tries, mean_s=self.mean_s, rng=self.world.rng)
        return Held(reason, detail, self._due_ms(), outcome)

    # -- may this household be measured now? --------------------------------------------------------------------

    @property
    def granted(self) -> Budgets:
        """MB a day and a month."""
        return budgets(self.plan.plan, self.settings) if self.plan else ceiling(self.settings)

    def _ledger(self) -> Ledger:
        most = self.granted
        return Ledger(self.state, Bytes(daily_bytes=most.daily_mb * _MB, monthly_bytes=most.monthly_mb * _MB))

    def _consider(self) -> Held | None:
        """Choose, look around, measure. What costs nothing is asked first."""
        plan = self.plan
        if plan is None or self.joined is None:
            return None
        lines, problems = lines_of(plan, self.granted.daily_mb * _MB)
        self.turn.problems += problems
        if not lines or not plan.plan.reflectors:
            return self._postpone("no_plan", "the plan has nothing that this program can measure: update evenlane")
        if self.world.free_bytes(self.state.run) < LEAST_ROOM_BYTES:
            return self._postpone("storage", f"{self.state.run} is full: make room there", "failed")
        found = self._choose(lines)
        if isinstance(found, Held):
            return found
        reflector = reflector_of(plan.plan.reflectors, self.kept.avoid, self.world.rng.choice)
        held = self._look_around(reflector)
        if held is not None:
            return held
        outing = Outing(
            plan=plan,
            choice=found,
            reflector=reflector,
            portal=self.turn.portal,
            settings=self.settings,
            household=self.household,
        )
        return self._measure(outing)

    def _choose(self, lines: list[Any]) -> Choice | Held:
        plan, clock, ledger = self.plan, self.clock, self._ledger()
        assert plan is not None  # noqa: S101  (for the type checker)
        day, month = ledger.spent_bytes(clock)
        most = allowance(
            self.granted.daily_mb * _MB - day,
            self.granted.monthly_mb * _MB - month,
            day_left_s=(clock.next_day_ms - clock.now_ms) / 1000,
            month_left_s=(clock.next_month_ms - clock.now_ms) / 1000,
            mean_s=self.mean_s,
        )
        least = min(cost_of(plan, [line], 1).bytes or 0 for line in lines)
        # A share too small for a single pair is no reason to measure nothing: what is left may pay for one.
        most = max(most, least)
        if self.asked.most_bytes is not None:
            most = min(most, self.asked.most_bytes)
        chosen = choose(
            lines,
            self.kept.tallies,
            session=self.kept.sessions,
            allowance_bytes=most,
            cost_of=lambda some, pairs: cost_of(plan, some, pairs),
            rng=self.world.rng,
        )
        if isinstance(chosen, int):
            self._draw(after_session=True)
            text = f"the smallest session takes {chosen / 1e6:.0f} MB, and this turn may spend {most / 1e6:.0f} MB"
            return Held("budget_day", text, self._due_ms(), "postponed")
        verdict = ledger.allowed(chosen.cost.bytes or 0, clock, round((chosen.cost.seconds + MARGIN_S) * 1000))
        if not verdict.ok and verdict.reason:
            self._draw(after_session=False, from_wall_ms=verdict.next_ms)
            span = "today" if verdict.reason == "budget_day" else "this month"
            cost_mb = (chosen.cost.bytes or 0) / 1e6
            text = f"{verdict.left_bytes / 1e6:.0f} MB are left {span}, and a session takes up to {cost_mb:.0f} MB"
            return Held(verdict.reason, text, self._due_ms(), "postponed")
        return chosen

    def _look_around(self, reflector: PlannedReflector) -> Held | None:
        """Door, purse, household."""
        door = door_of(reflector)
        seen = self.world.look(door, self.settings)
        if seen.state == "captive" and self.settings.login_hook and self.world.log_in(self.settings.login_hook):
            seen = self.world.look(door, self.settings)
        self.turn.portal = seen.state
        self.clock = self.world.clock()
        is_hotspot = self.settings.stands_at_hotspot
        if not seen.allows(hotspot=is_hotspot):
            reason: Reason = "captive" if seen.state == "captive" else "intercepted"
            if seen.state == "offline":
                self.kept.avoid = reflector.key
            return self._postpone("offline" if seen.state in {"offline", None} else reason, seen.why)
        if self.world.is_metered(self.settings, reflector):
            return self._postpone("metered", "this line is paid by volume; `metered: no` in the settings allows it")
        seen_before_ms = self.kept.smallest_ms.get(reflector.key)
        neighbours = self.world.neighbours(reflector, self.settings, seen_before_ms)
        self.clock = self.world.clock()
        if neighbours.smallest_ms is not None:
            self.kept.smallest_ms[reflector.key] = round(neighbours.smallest_ms, 2)
        self.household = neighbours.household
        if neighbours.is_busy:
            return self._postpone("household", "somebody in the household uses the line; it is tried again soon")
        return None

    # -- measuring ----------------------------------------------------------------------------------------------

    def _measure(self, outing: Outing) -> Held | None:
        ledger, cost = self._ledger(), outing.choice.cost
        limit_s = cost.seconds * 1.5 + MARGIN_S
        if self.asked.should_stop():
            return Held("busy", "this turn was asked to end", self._due_ms())
        verdict = ledger.reserve(cost.bytes or 0, self.clock, round(limit_s * 1000))
        if not verdict.ok and verdict.reason:
            self._draw(after_session=False, from_wall_ms=verdict.next_ms)
            return Held(verdict.reason, "the budget is spent", self._due_ms(), "postponed")
        self.asked.lasts(limit_s)
        # Also when it is killed now the next session is not due at once again.
        self._draw(after_session=True)
        self.kept.sessions += 1
        kept.save(self.state, self.kept)
        meter = Meter(cost.bytes or 0, outing.choice.lines[0].segment_s, self.asked.should_stop)
        try:
            ran = self.world.measure(outing.request(self.state, self.asked.version), meter.pair, meter.should_stop)
        except RunError as error:
            self.clock = self.world.clock()
            ledger.settle(REFUSED_BYTES, self.clock)
            self.kept.avoid = outing.reflector.key
            return self._postpone("reflector", str(error), "failed")
        finally:
            self.kept.tallies = learned(self.kept.tallies, outing.choice.lines, meter.pairs, self.kept.sessions)
        self.clock = self.world.clock()
        spent = spent_bytes(ran)
        ledger.settle(spent, self.clock)
        self.state.remember(summary_of(ran, outing, spent, self.kept.tallies))
        if ran.dropped:
            self.turn.problems.append(f"{ran.dropped} older sessions had to leave the spool for the newest one")
        if not ran.session.results:
            self.kept.avoid = outing.reflector.key
            why = ran.session.complaint or (ran.measurement.failure or "stopped").replace("_", " ")
            return self._postpone("reflector", f"no pair was finished ({why}); another reflector is next", "failed")
        self.kept.avoid = ""
        self.turn.outcome = "measured"
        self._draw(after_session=True)
        if self.syncing is not None:
            self.syncing.upload()
            self.clock = self.world.clock()
        return None

    # -- telling ------------------------------------------------------------------------------------------------

    def _tell(self, held: Held | None) -> None:
        """Fill in the turn and keep what the next one needs."""
        turn, now_ms = self.turn, self.clock.now_ms
        if self.joined is not None or held is None or held.reason != "not_enrolled":
            kept.save(self.state, self.kept)
        waits = [self._due_ms() if held is None else held.again_ms, now_ms + LONGEST_MS]
        entries, standing = self.state.spool.entries(), backoff.load(self.state.run)
        paused_ms = backoff.waits_until_ms(standing.pause, now_ms)
        if self.joined is not None:
            standing = standing.of(collector_name(self.joined.url))
            if entries:
                waits.append(paused_ms or now_ms + MINUTE_MS)
            if self.kept.plan_next_ms > now_ms:
                waits.append(self.kept.plan_next_ms)
            elif paused_ms is not None:
                waits.append(paused_ms)
            turn.collector = {
                "contact_ms": standing.contact_ms or None,
                "uploaded_ms": standing.uploaded_ms or None,
                "failure": standing.failure or None,
                "waiting_until_ms": paused_ms,
            }
        turn.next_ms = max(min(waits), now_ms + 1000)
        counts = self.state.spool.counts()
        size = sum(entry.size for entry in entries)
        turn.spool = {"sessions": len(entries), "bytes": size, "dropped": counts.dropped, "damaged": counts.damaged}
        if self.plan is not None:
            turn.plan = {"version": self.plan.plan.version, "expires_ms": self.plan.plan.expires_ms}
        turn.last = self.state.last()
        self._tell_budget()

    def _tell_budget(self) -> None:
        most, clock = self.granted, self.clock
        ledger = self._ledger()
        day, month = ledger.spent_bytes(clock)
        digits = f"{clock.day:08d}"
        self.turn.budget = {
            "day": f"{digits[:4]}-{digits[4:6]}-{digits[6:]}",
            "day_mb": round(day / 1e6, 3),
            "daily_mb": most.daily_mb,
            "month_mb": round(month / 1e6, 3),
            "monthly_mb": most.monthly_mb,
        }
        if ledger.problem:
            self.turn.problems.append(ledger.problem)

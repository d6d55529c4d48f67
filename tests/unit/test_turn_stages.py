# SPDX-License-Identifier: EUPL-1.2
"""Each stage of a turn may fail for itself: it is said, with what to do, and the rest goes on."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from probe.portal import Look
from probe.runner import RunError
from probe.state import State
from probe.wire.records import Measurement
from probe.world import Neighbours

_spec = importlib.util.spec_from_file_location("agent_days", Path(__file__).with_name("agent_days.py"))
assert _spec is not None
assert _spec.loader is not None
d = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("agent_days", d)
_spec.loader.exec_module(d)

CALM = (0, 0, 0, 0, 0, 0, 0)


@pytest.fixture
def days(tmp_path: Path) -> Any:
    found = d.Days(tmp_path / "probe", 1, d.Faults(*CALM), interval_s=21_600)
    found.offered_plan = steady(found)
    return found


def steady(days: Any) -> Callable[[], Any]:
    """Always the good plan."""
    make, rng = type(days).offered_plan, days.rng

    def offered() -> Any:
        class Even:
            def random(self) -> float:
                return 0.99

        days.rng = Even()
        try:
            return make(days)
        finally:
            days.rng = rng

    return offered


def measured(days: Any) -> Any:
    """A probe with its first session behind it."""
    for _ in range(30):  # a reflector has its bad day now and then, a door too
        turn = days.once()
        if turn.outcome == "measured":
            return turn
        days.advance(max(60_000, turn.next_ms - days.wall_ms))
    pytest.fail(f"no session: {turn}")


def settle(days: Any, **facts: Any) -> None:
    days.settings_file.write_text(json.dumps(facts))


# -- one after the other ----------------------------------------------------------------------------------------


def test_the_first_session_comes_at_once_and_the_next_by_chance(days: Any) -> None:
    turn = measured(days)
    assert turn.last["pairs"]["finished"] >= 2
    assert turn.spool == {"sessions": 0, "bytes": 0, "dropped": 0, "damaged": 0}
    assert turn.budget["day_mb"] > 1
    assert turn.plan["version"] == 1
    assert turn.collector["uploaded_ms"]
    assert json.loads((days.run_dir / "turn.json").read_text()) == json.loads(json.dumps(turn.plain()))
    again = days.once()
    assert (again.outcome, again.reason) == ("waiting", "not_due")
    assert again.next_ms >= days.wall_ms + 600_000
    assert len(days.kept_ids) == 1


def test_what_was_reserved_is_settled_at_what_was_spent(days: Any) -> None:
    days.look = lambda *_: Look("open", "")
    days.neighbours = lambda *_: Neighbours(False, 20.0)
    turn = days.once()
    assert turn.outcome == "measured"
    assert turn.budget["day_mb"] == pytest.approx(turn.last["megabytes"], abs=0.001)
    moved_mb = sum(days.by_day.values()) / 1e6
    assert moved_mb <= turn.budget["day_mb"] <= moved_mb + 4  # calibrations and overhead, reckoned rather too high


def test_a_collector_that_asked_for_a_pause_is_left_alone(days: Any) -> None:
    days.faults.collector_errors = 1.4
    days.collector._fail = lambda _: d.Response(503, {"retry-after": "900"}, b"{}")
    days.rng.seed(1)
    for _ in range(20):
        turn = days.once()
        assert turn.reason == "no_plan"
        days.advance(1000)
    assert days.collector.requests == 1
    assert turn.collector["waiting_until_ms"] >= days.wall_ms


def test_now_measures_whatever_the_schedule_says(days: Any) -> None:
    measured(days)
    for _ in range(8):
        if days.once(now=True).outcome == "measured":
            break
    assert len(days.kept_ids) == 2


def test_the_record_names_the_plan_and_what_was_seen_before(days: Any) -> None:
    days.look = lambda *_: Look("open", "")
    measured(days)
    taken: list[Measurement] = []
    days.collector._take = lambda envelope: (taken.append(d.open_record(envelope)), {"status": "accepted"})[1]
    days.advance(7 * 86_400_000)
    measured(days)
    (record,) = taken
    assert record.plan is not None
    assert len(record.plan) == 64
    assert record.reflector in {one.key_id for one in d.REFLECTORS}


# -- what is wrong ----------------------------------------------------------------------------------------------


def test_not_enrolled(tmp_path: Path, days: Any) -> None:
    (days.directory / "enrolment.json").unlink()
    turn = days.once()
    assert (turn.outcome, turn.reason) == ("waiting", "not_enrolled")
    assert "evenlane probe enrol" in turn.detail
    (days.directory / "enrolment.json").write_text("{half")
    assert days.once().reason == "not_enrolled"


def test_a_clock_that_was_never_set(days: Any) -> None:
    days.wall_ms = 3_600_000
    turn = days.once()
    assert (turn.reason, turn.next_ms) == ("clock", 3_660_000)
    assert "NTP" in turn.detail
    assert not days.collector.requests
    days.wall_ms = days.true_ms
    assert measured(days)


def test_a_clock_before_the_plan(days: Any) -> None:
    measured(days)
    days.wall_ms -= 40 * 86_400_000
    turn = days.once()
    assert turn.reason == "clock"
    days.wall_ms = days.true_ms + 90 * 86_400_000
    turn = days.once()
    assert turn.reason == "plan_expired"
    assert "fetch" in turn.detail


def test_wrong_settings_are_told_and_the_rest_goes_on(days: Any) -> None:
    settle(days, daily_mb="a lot", tariff="Home", typo=1)
    turn = measured(days)
    assert [text.split()[0] for text in turn.problems][:2] == ["daily_mb", "typo"]
    days.settings_file.write_bytes(b"\xff{")
    assert any("settings" in text for text in days.once().problems)


def test_disabled_and_quiet(days: Any) -> None:
    settle(days, enabled="no")
    assert days.once().reason == "disabled"
    assert not days.collector.requests
    settle(days, quiet_hours="22:00-07:00")  # it is midnight
    turn = days.once()
    assert (turn.outcome, turn.reason) == ("postponed", "quiet_hours")
    due = json.loads((days.run_dir / "schedule.json").read_text())["due"]["wall_ms"]
    assert due >= d.START_MS + 7 * d.HOUR_MS
    assert days.once(now=True).reason == "quiet_hours"


def test_a_spoilt_plan_is_asked_for_again_and_a_foreign_one_is_never_followed(days: Any) -> None:
    measured(days)
    plan = days.directory / "plan.jsonl"
    good = plan.read_bytes()
    plan.write_bytes(good[: len(good) // 2])
    assert days.once().reason == "no_plan"
    days.advance(300_000)
    days.once()
    assert plan.read_bytes() == good
    bad = d.seal(d.open_record(days.offered_plan()), d.OTHER)
    days.offered_plan = lambda: bad
    days.advance(12 * d.HOUR_MS)
    for _ in range(3):
        turn = days.once()
        days.advance(60_000)
        if any("signed by" in text for text in turn.problems):
            break
    else:
        pytest.fail("nobody said that the plan is another's")
    assert plan.read_bytes() == good


def test_garbage_from_the_collector_holds_up_nothing(days: Any) -> None:
    measured(days)
    days.faults.collector_errors = 1.4
    days.advance(3 * 86_400_000)
    turn = measured(days)
    assert turn.spool["sessions"] >= 1
    assert turn.collector["failure"]
    assert turn.collector["waiting_until_ms"] is None or turn.collector["waiting_until_ms"] > days.wall_ms - 60_000
    days.faults.collector_errors = 0
    days.advance(86_400_000)
    assert days.once().spool["sessions"] == 0


def test_a_spool_cut_in_half_is_told_and_the_other_sessions_are_sent(days: Any) -> None:
    days.faults.collector_errors = 1.4
    days.plan_facts["interval_s"] = 3600
    # The plan must come through first.
    days.faults.collector_errors = 0
    measured(days)
    days.faults.collector_errors = 1.4
    while len(State(days.directory, days.run_dir).spool.entries()) < 3:
        days.advance(2 * d.HOUR_MS)
        days.once()
    first, *_ = State(days.directory, days.run_dir).spool.entries()
    first.path.write_bytes(first.path.read_bytes()[:100])
    days.faults.collector_errors = 0
    days.advance(86_400_000)
    turn = days.once()
    assert any("could not be read" in text for text in turn.problems)
    assert turn.spool["sessions"] == 0
    assert turn.spool["damaged"] == 1


def test_damaged_notes_of_the_turn_before_are_begun_anew(days: Any) -> None:
    measured(days)
    (days.run_dir / "schedule.json").write_text('{"due": {"wall_ms"')
    (days.run_dir / "spend.json").write_text("[]")
    turn = days.once()
    assert sum("damaged" in text for text in turn.problems) == 2
    assert turn.reason in {"not_due", "", "reflector", "captive", "household"}
    assert not any("damaged" in text for text in days.once().problems)


def test_a_full_ram_disk_measures_nothing_and_says_so(days: Any) -> None:
    measured(days)
    days.is_full = True
    days.advance(3 * 86_400_000)
    turn = days.once()
    assert (turn.outcome, turn.reason) == ("failed", "storage")
    assert "make room" in turn.detail
    assert len(days.kept_ids) == 1
    days.is_full = False
    days.advance(3 * d.HOUR_MS)
    assert measured(days)


def test_another_turn_is_running(days: Any) -> None:
    measured(days)
    before = (days.run_dir / "turn.json").read_bytes()
    with State(days.directory, days.run_dir).exclusive():
        turn = days.once()
    assert turn.reason == "busy"
    assert (days.run_dir / "turn.json").read_bytes() == before  # the other one tells


def test_a_state_directory_that_cannot_be_used(days: Any) -> None:
    if os.geteuid() == 0:
        days.run_dir.rename(days.run_dir.with_name("old"))
        days.run_dir.write_text("a file")
    else:
        days.run_dir.chmod(0o500)
    turn = days.once()
    assert (turn.outcome, turn.reason) == ("failed", "storage")
    assert turn.next_ms == days.wall_ms + 600_000


# -- put off ----------------------------------------------------------------------------------------------------


def pauses(days: Any, turns: int) -> list[float]:
    """Minutes from one attempt to the next."""
    found = []
    for _ in range(turns):
        turn = days.once()
        due = json.loads((days.run_dir / "schedule.json").read_text())["due"]["wall_ms"]
        found.append((due - days.wall_ms) / 60_000)
        days.wall_ms, step = due, due - days.wall_ms
        days.true_ms += step
        days.boot_ms += step
    assert turn.outcome != "measured"
    return found


def test_a_busy_household_is_asked_again_ever_later(days: Any) -> None:
    days.look = lambda *_: Look("open", "")
    days.neighbours = lambda *_: Neighbours(True, 20.0)
    found = pauses(days, 5)
    for minutes, expected in zip(found, (5, 10, 20, 40, 80), strict=True):
        assert 0.75 * expected <= minutes <= 1.25 * expected
    assert not days.kept_ids
    days.neighbours = lambda *_: Neighbours(False, 20.0)
    assert measured(days)
    assert json.loads((days.run_dir / "schedule.json").read_text())["due"]["tries"] == 0


@pytest.mark.parametrize("state", ["captive", "intercepted", "offline"])
def test_a_door_that_is_not_open(days: Any, state: str) -> None:
    days.look = lambda *_: Look(state, "somebody is in between")
    turn = days.once()
    assert (turn.outcome, turn.reason, turn.portal) == ("postponed", state, state)
    assert not days.kept_ids


@pytest.mark.parametrize("state", ["captive", "intercepted"])
def test_who_rewrites_plain_pages_at_home_silences_nobody_and_is_written_down(days: Any, state: str) -> None:
    days.look = lambda *_: Look(state, "somebody is in between", is_reached=True)
    settle(days, hotspot="yes")
    assert days.once().outcome == "postponed"
    settle(days)
    days.advance(d.HOUR_MS)
    assert measured(days).portal == state


def test_what_is_not_proven_is_enough_at_home_and_not_at_a_hotspot(days: Any) -> None:
    days.look = lambda *_: Look(None, "the page cannot be had")
    settle(days, hotspot="yes")
    assert days.once().outcome == "postponed"
    settle(days)
    days.advance(d.HOUR_MS)
    assert measured(days)


def test_a_hotspot_has_its_own_budget_and_says_what_it_is(days: Any) -> None:
    days.look = lambda *_: Look("open", "")
    settle(days, hotspot="yes")
    turn = days.once()
    assert turn.budget["daily_mb"] == 30
    assert turn.budget["monthly_mb"] == 500
    turn = measured(days)  # at a lower pace than the plan's: else one pair would be more than a day's budget
    assert 0 < turn.budget["day_mb"] <= 30


def test_the_owners_program_is_run_before_a_portal_and_only_then(days: Any) -> None:
    doors = iter((Look("captive", ""), Look("open", "")))
    days.look = lambda *_: next(doors)
    ran: list[str] = []
    days.log_in = lambda program: ran.append(program) is None
    settle(days, login_hook="/usr/bin/login")
    assert days.once().portal == "open"
    assert ran == ["/usr/bin/login"]


def test_a_metered_line(days: Any) -> None:
    days.look = lambda *_: Look("open", "")
    days.is_metered = lambda *_: True
    turn = days.once()
    assert (turn.outcome, turn.reason) == ("postponed", "metered")


def test_a_reflector_that_fails_is_avoided_next_time(days: Any) -> None:
    days.look = lambda *_: Look("open", "")
    days.neighbours = lambda *_: Neighbours(False, 20.0)
    asked: list[str] = []

    def refuse(request: Any, *_: Any) -> Any:
        asked.append(request.reflector_key)
        raise RunError("the reflector cannot be reached")

    days.measure = refuse
    for _ in range(12):
        turn = days.once()
        assert (turn.outcome, turn.reason) == ("failed", "reflector")
        days.advance(3 * d.HOUR_MS)
    assert all(a != b for a, b in itertools.pairwise(asked))
    assert turn.budget["day_mb"] < 2  # a refusal costs next to nothing


def test_a_killed_session_counts_as_spent_and_is_not_due_again_at_once(days: Any) -> None:
    days.look = lambda *_: Look("open", "")
    days.neighbours = lambda *_: Neighbours(False, 20.0)

    def die(*_: Any) -> Any:
        raise d.Killed

    real, days.measure = days.measure, die
    with pytest.raises(d.Killed):
        days.once()
    days.measure = real
    turn = days.once()
    assert turn.reason == "not_due"
    assert turn.budget["day_mb"] > 20


def test_a_turn_that_is_asked_to_end_measures_nothing_more(days: Any) -> None:
    days.look = lambda *_: Look("open", "")
    days.neighbours = lambda *_: Neighbours(False, 20.0)
    turn = days.once(should_stop=lambda: True)
    assert turn.outcome == "waiting"
    assert not days.kept_ids


def test_a_turn_may_be_given_less_than_the_budget_leaves(days: Any) -> None:
    turn = days.once(most_bytes=1_000_000)
    assert turn.reason == "budget_day"
    assert "MB" in turn.detail
    assert not days.kept_ids


def test_a_session_says_beforehand_how_long_it_may_take(days: Any) -> None:
    days.look = lambda *_: Look("open", "")
    days.neighbours = lambda *_: Neighbours(False, 20.0)
    told: list[float] = []
    days.once(lasts=told.append)
    assert len(told) == 1
    assert 60 < told[0] < 600

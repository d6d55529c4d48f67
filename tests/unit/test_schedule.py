# SPDX-License-Identifier: EUPL-1.2
"""When sessions are due: the rate that the plan asks for whatever the bounds do, unharmed by clocks and quiet hours."""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections.abc import Sequence
from datetime import datetime
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe import schedule
from probe.schedule import Due, Now, Window, at_once, draw, due_from, hazards, is_quiet, left_ms, put_off, quiet_until

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
NIGHT: tuple[Window, ...] = ((22 * 60, 7 * 60),)


def utc_minute(ms: int) -> float:
    return ms / 60_000 % 1440


def brussels_minute(ms: int) -> float:
    at = datetime.fromtimestamp(ms / 1000, ZoneInfo("Europe/Brussels"))
    return at.hour * 60 + at.minute + at.second / 60


def brussels_ms(*when: int, fold: int = 0) -> int:
    return round(datetime(*when, fold=fold, tzinfo=ZoneInfo("Europe/Brussels")).timestamp() * 1000)  # type: ignore[misc,arg-type]


def times(mean_s: int, runs: int, quiet: Sequence[Window] = (), seed: int = 1) -> list[int]:
    """Each session's time, one drawn after the other."""
    rng, at, found = Random(seed), 0, []
    for _ in range(runs):
        due = draw(Now(at, 0), mean_s=mean_s, rng=rng, minute_of=utc_minute, quiet=quiet, after_session=True)
        at = due.wall_ms
        found.append(at)
    return found


def facts(found: list[int], mean_s: int) -> tuple[float, float, float, float]:
    """Mean, shortest and longest gap in means, and the share of runs in peak hours."""
    gaps = [(b - a) / 1000 / mean_s for a, b in zip([0, *found], found, strict=False)]
    peak = sum(18 * 60 <= utc_minute(at) < 23 * 60 for at in found)
    return statistics.fmean(gaps), min(gaps), max(gaps), peak / len(found)


# -- the rate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean_s", [600, 3600, 21_600, 86_400, 7 * 86_400])
def test_the_mean_is_the_plans_half_of_the_runs_are_in_peak_hours_and_no_gap_leaves_its_bounds(mean_s: int) -> None:
    mean, least, most, peak = facts(times(mean_s, 6000), mean_s)
    assert mean == pytest.approx(1, abs=0.03)
    assert peak == pytest.approx(0.5, abs=0.03)
    assert least >= 1 / 6
    assert most <= 4.001


@pytest.mark.parametrize("mean_s", [3600, 21_600])
def test_what_the_bounds_do_without_the_correction(mean_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "hazards", schedule.wished)
    mean, _, _, peak = facts(times(mean_s, 6000), mean_s)
    assert mean > 1.1  # the probe would measure a sixth less often than the plan says
    assert peak < 0.47


def test_gaps_are_spread_as_those_of_a_poisson_process_are() -> None:
    # Within one stratum and past the shortest gap the wait has no memory: a week-long peak would be one exponential.
    found = times(21_600, 20_000)
    gaps = sorted(b - a for a, b in itertools.pairwise(found))
    spread = statistics.pstdev(gaps) / statistics.fmean(gaps)
    assert 0.75 < spread < 1.05  # exponential: 1; a timer: 0
    assert sum(gap == gaps[0] for gap in gaps) < 5  # no heap at the shortest gap, where a run could be foreseen


@pytest.mark.parametrize("quiet", [NIGHT, ((0, 17 * 60),), ((8 * 60, 12 * 60), (23 * 60, 6 * 60))])
def test_quiet_hours_take_no_runs_and_the_others_take_theirs(quiet: tuple[Window, ...]) -> None:
    found = times(21_600, 4000, quiet)
    assert not [at for at in found if is_quiet(utc_minute(at), quiet)]
    mean, _, _, peak = facts(found, 21_600)
    assert mean == pytest.approx(1, abs=0.04)
    assert peak == pytest.approx(0.5, abs=0.04)


def test_runs_do_not_meet_when_quiet_hours_end() -> None:
    evening = Now(22 * HOUR_MS - 60_000, 0)
    found = [
        draw(evening, mean_s=3600, rng=Random(seed), minute_of=utc_minute, quiet=NIGHT, after_session=True).wall_ms
        for seed in range(300)
    ]
    assert min(found) >= 31 * HOUR_MS
    assert len(set(found)) > 250


def test_quiet_hours_that_end_within_a_quarter_of_an_hour_are_kept_to_the_minute() -> None:
    quiet = ((22 * 60 + 5, 7 * 60 + 8), (12 * 60 + 1, 12 * 60 + 4))
    assert not [at for at in times(1800, 2000, quiet) if is_quiet(utc_minute(at), quiet)]


def test_all_day_quiet_is_a_day_of_rest_not_a_loop() -> None:
    due = draw(Now(0, 0), mean_s=600, rng=Random(1), minute_of=utc_minute, quiet=((0, 0),), after_session=True)
    assert due.wall_ms >= DAY_MS
    assert not any(hazards(600, ((0, 0),)))


def test_without_a_session_before_the_wait_has_no_shortest_gap() -> None:
    draws = [
        draw(Now(0, 0), mean_s=21_600, rng=Random(seed), minute_of=utc_minute, after_session=False).wall_ms
        for seed in range(400)
    ]
    assert min(draws) < 21_600_000 / 30


def test_a_machine_that_is_restarted_every_hour_measures_about_as_often() -> None:
    rng, runs, now, day_s = Random(5), 0, 0, 86_400
    for _ in range(24 * 200):
        due = draw(Now(now, 0), mean_s=21_600, rng=rng, minute_of=utc_minute, after_session=False)
        runs += due.wall_ms < now + HOUR_MS
        now += HOUR_MS
    assert runs / 200 == pytest.approx(day_s / 21_600, rel=0.25)


# -- clocks -----------------------------------------------------------------------------------------------------


def drawn(now: Now, mean_s: int = 21_600, seed: int = 3) -> Due:
    return draw(now, mean_s=mean_s, rng=Random(seed), minute_of=utc_minute, after_session=True)


@pytest.mark.parametrize("jump_ms", [-40 * 365 * DAY_MS, -3 * DAY_MS, -HOUR_MS, HOUR_MS, 30 * DAY_MS])
def test_a_clock_that_is_set_changes_nothing(jump_ms: int) -> None:
    start = Now(1_800_000_000_000, 5_000_000, "a")
    due = drawn(start)
    wait = due.boot_ms - start.boot_ms
    jumped = Now(start.wall_ms + 60_000 + jump_ms, start.boot_ms + 60_000, "a")
    assert left_ms(due, jumped, 21_600) == wait - 60_000
    later = Now(jumped.wall_ms, start.boot_ms + wait, "a")
    assert left_ms(due, later, 21_600) == 0


def test_a_suspend_of_days_makes_one_run_due() -> None:
    start = Now(1_800_000_000_000, 0, "a")
    awake = Now(start.wall_ms + 9 * DAY_MS, 9 * DAY_MS, "a")
    assert left_ms(drawn(start), awake, 21_600) == 0
    after = drawn(awake)
    assert (left_ms(after, awake, 21_600) or 0) >= 21_600_000 / 6


def test_after_a_restart_the_wall_clock_decides_and_must_be_possible() -> None:
    start = Now(1_800_000_000_000, 80_000_000, "a")
    due = drawn(start)
    other = Now(start.wall_ms + HOUR_MS // 2, 1000, "b")
    assert left_ms(due, other, 21_600) == due.wall_ms - other.wall_ms
    assert left_ms(due, dataclasses.replace(other, wall_ms=due.wall_ms + 1), 21_600) == 0
    assert left_ms(due, dataclasses.replace(other, wall_ms=start.wall_ms - 1), 21_600) is None  # set back: void
    far = dataclasses.replace(due, wall_ms=start.wall_ms + 5 * 21_600_000, boot_ms=start.boot_ms + 5 * 21_600_000)
    assert left_ms(far, other, 21_600) is None
    assert left_ms(far, dataclasses.replace(start, boot_ms=start.boot_ms + 1), 21_600) is None


def test_where_nothing_tells_one_start_from_another_the_steady_clock_is_not_believed() -> None:
    start = Now(1_800_000_000_000, 80_000_000)
    due = drawn(start)
    assert (
        left_ms(due, Now(start.wall_ms + 1000, 80_000_000 + 30 * DAY_MS), 21_600) == due.wall_ms - start.wall_ms - 1000
    )


def test_another_plans_interval_makes_it_void() -> None:
    start = Now(1_800_000_000_000, 0, "a")
    assert left_ms(drawn(start), start, 3600) is None


def test_a_long_quiet_window_does_not_make_a_due_time_void() -> None:
    start = Now(12 * HOUR_MS, 0, "a")
    for seed in range(300):
        due = draw(start, mean_s=600, rng=Random(seed), minute_of=utc_minute, quiet=NIGHT, after_session=True)
        assert left_ms(due, start, 600, NIGHT) == due.wall_ms - start.wall_ms


def test_a_budget_that_is_spent_till_midnight_holds_a_short_interval_back() -> None:
    start = Now(12 * HOUR_MS, 0, "a")
    for seed in range(100):
        due = draw(start, mean_s=600, rng=Random(seed), minute_of=utc_minute, after_session=False, from_wall_ms=DAY_MS)
        assert due.wall_ms >= DAY_MS
        assert left_ms(due, start, 600) == due.wall_ms - start.wall_ms
        assert left_ms(due, Now(start.wall_ms, 1, "b"), 600) == due.wall_ms - start.wall_ms
    far = draw(start, mean_s=600, rng=Random(1), minute_of=utc_minute, after_session=False, from_wall_ms=30 * DAY_MS)
    assert far.wall_ms - start.wall_ms < 26 * HOUR_MS + 600_000 * 4  # somebody may raise the budget


@given(st.integers(0, 2**50), st.integers(600, 7 * 86_400), st.integers(0, 2**32), st.booleans())
def test_whatever_was_drawn_is_within_its_bounds(now: int, mean_s: int, seed: int, after: bool) -> None:
    at = Now(now, 77, "x")
    due = draw(at, mean_s=mean_s, rng=Random(seed), minute_of=utc_minute, after_session=after)
    left = left_ms(due, at, mean_s)
    assert left is not None
    assert (mean_s * 1000 / 6 - 1 if after else 0) <= left <= mean_s * 4000
    assert due.wall_ms - now == due.boot_ms - 77


# -- put off ----------------------------------------------------------------------------------------------------


def test_what_was_put_off_comes_back_ever_later_and_not_for_all_at_once() -> None:
    now = Now(1_800_000_000_000, 0, "a")
    for tries, minutes in ((0, 5), (1, 10), (2, 20), (3, 40), (4, 80), (5, 120), (60, 120)):
        waits = [put_off(now, tries=tries, mean_s=86_400, rng=Random(seed)) for seed in range(200)]
        took = [(due.wall_ms - now.wall_ms) / 60_000 for due in waits]
        assert minutes * 0.75 <= min(took) < minutes * 0.85
        assert minutes * 1.15 < max(took) <= minutes * 1.25
        assert {due.tries for due in waits} == {tries + 1}
    assert left_ms(at_once(now, 600), now, 600) == 0


# -- quiet hours ------------------------------------------------------------------------------------------------


def test_quiet_hours_over_midnight() -> None:
    assert [is_quiet(h * 60, NIGHT) for h in (21, 22, 23, 0, 6, 7, 12)] == [False, True, True, True, True, False, False]
    assert is_quiet(7 * 60 - 0.01, NIGHT)
    assert quiet_until(23 * HOUR_MS, NIGHT, utc_minute) == 31 * HOUR_MS
    assert quiet_until(12 * HOUR_MS, NIGHT, utc_minute) == 12 * HOUR_MS


def test_quiet_hours_end_by_the_clock_on_the_wall_when_summer_time_begins_and_ends() -> None:
    night = ((22 * 60, 7 * 60),)
    spring = brussels_ms(2027, 3, 27, 22)
    assert quiet_until(spring, night, brussels_minute) - spring == 8 * HOUR_MS  # 02:00 was 03:00
    autumn = brussels_ms(2026, 10, 24, 22)
    assert quiet_until(autumn, night, brussels_minute) - autumn == 10 * HOUR_MS
    twice = ((2 * 60, 3 * 60),)  # the hour that is there twice, and the one that is not there
    assert quiet_until(brussels_ms(2026, 10, 25, 2, 30), twice, brussels_minute) == brussels_ms(2026, 10, 25, 3)
    assert quiet_until(brussels_ms(2027, 3, 28, 3), twice, brussels_minute) == brussels_ms(2027, 3, 28, 3)


def test_draws_keep_to_local_time_on_the_days_on_which_it_changes() -> None:
    for begin in (brussels_ms(2027, 3, 27, 12), brussels_ms(2026, 10, 24, 12)):
        for seed in range(200):
            due = draw(
                Now(begin, 0), mean_s=7200, rng=Random(seed), minute_of=brussels_minute, quiet=NIGHT, after_session=True
            )
            assert not is_quiet(brussels_minute(due.wall_ms), NIGHT)


# -- what is kept -----------------------------------------------------------------------------------------------


def test_what_is_kept_comes_back() -> None:
    due = drawn(Now(1_800_000_000_000, 5, "a"))
    assert due_from(json.loads(json.dumps(due.plain()))) == due


WRONG = {
    "wall_ms": "1",
    "boot": 7,
    "tries": -1,
    "mean_s": 0,
    "boot_ms": True,
    "drawn_wall_ms": 2**60,
    "drawn_boot_ms": 1.5,
}


@pytest.mark.parametrize(
    "wrong",
    [None, 5, [], {}, {"wall_ms": 1}, "x", *({**drawn(Now(1, 5, "a")).plain(), name: WRONG[name]} for name in WRONG)],
)
def test_garbage_is_nothing(wrong: object) -> None:
    assert due_from(wrong) is None

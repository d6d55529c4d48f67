# SPDX-License-Identifier: EUPL-1.2
"""When a collector is asked again: jitter, doubling, Retry-After, and clocks that jump."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.backoff import (
    FIRST_MS,
    LEAST_MS,
    MOST_ASKED_MS,
    MOST_MS,
    Pause,
    Standing,
    after_failure,
    http_date_ms,
    load,
    retry_after_ms,
    save,
    waits_until_ms,
)

NOW = 1_790_000_000_000
HOUR = 3_600_000
DAY = 24 * HOUR


def grown(failures: int, seed: int = 1) -> Pause:
    pause, rng = Pause(), random.Random(seed)
    for _ in range(failures):
        pause = after_failure(pause, NOW, rng)
    return pause


@pytest.mark.parametrize(
    ("failures", "ceiling_ms"),
    [(1, FIRST_MS), (2, 2 * FIRST_MS), (5, 16 * FIRST_MS), (9, 256 * FIRST_MS), (10, MOST_MS), (500, MOST_MS)],
)
def test_pauses_are_spread_over_all_that_they_may_be_and_double_up_to_six_hours(failures: int, ceiling_ms: int) -> None:
    before = grown(failures - 1)
    rng = random.Random(5)
    waits = sorted(after_failure(before, NOW, rng).until_ms - NOW for _ in range(400))
    assert waits[0] >= LEAST_MS
    assert ceiling_ms * 0.97 < waits[-1] <= ceiling_ms
    # Full jitter: the quartiles are where an even spread has them (standard error 2.5 % of the range at most).
    for share in (0.25, 0.5, 0.75):
        assert waits[round(400 * share)] == pytest.approx(share * ceiling_ms, abs=0.1 * ceiling_ms)


def test_what_a_month_without_a_collector_costs() -> None:
    pause, rng, now_ms, tries = Pause(), random.Random(3), NOW, 0
    while now_ms < NOW + 30 * DAY:
        pause = after_failure(pause, now_ms, rng)
        now_ms, tries = pause.until_ms, tries + 1
    assert 150 < tries < 400


@given(asked=st.integers(1, 10 * DAY), failures=st.integers(0, 40), seed=st.integers(0, 99))
def test_one_never_comes_before_the_time_that_was_asked_for(asked: int, failures: int, seed: int) -> None:
    pause = after_failure(Pause(failures=failures), NOW, random.Random(seed), asked)
    told = min(asked, MOST_ASKED_MS)
    assert NOW + told <= pause.until_ms <= NOW + told + min(MOST_MS, told)
    assert waits_until_ms(pause, NOW) == pause.until_ms
    assert waits_until_ms(pause, pause.until_ms) is None


def test_those_who_were_told_the_same_do_not_come_together() -> None:
    ends = {after_failure(Pause(failures=3), NOW, random.Random(seed), 60_000).until_ms for seed in range(100)}
    assert len(ends) > 90


def test_a_retry_after_of_nothing_is_an_ordinary_failure() -> None:
    assert after_failure(Pause(), NOW, random.Random(1), 0) == after_failure(Pause(), NOW, random.Random(1))


@given(now=st.integers(0, 4_102_444_800_000), jump=st.integers(-100 * DAY, 100 * DAY), asked=st.none() | st.just(DAY))
def test_no_jump_of_the_clock_makes_a_pause_longer_than_a_day_and_some(now: int, jump: int, asked: int | None) -> None:
    pause = after_failure(Pause(failures=20), now, random.Random(1), asked)
    then = now + jump
    until = waits_until_ms(pause, then)
    if until is not None:
        assert 0 < until - then <= (DAY + MOST_MS if asked else MOST_MS) + HOUR
    if jump < -60_000:
        assert until is None
    if jump == 0:
        assert until is not None


@pytest.mark.parametrize("ahead_h", [7.1, 24, 24 * 365])
def test_an_absurd_pause_in_the_file_is_void(ahead_h: float) -> None:
    until = NOW + round(ahead_h * HOUR)
    assert waits_until_ms(Pause(failures=1, since_ms=NOW, until_ms=until), NOW) is None
    assert waits_until_ms(Pause(failures=1, since_ms=NOW, until_ms=NOW + 6 * HOUR), NOW) == NOW + 6 * HOUR


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("120", 120_000),
        (" 0 ", 0),
        ("99999999999", DAY),
        ("Mon, 21 Sep 2026 14:23:20 GMT", 10 * 60_000),
        ("Monday, 21-Sep-26 14:23:20 GMT", 10 * 60_000),
        ("Mon Sep 21 14:23:20 2026", 10 * 60_000),
        ("Mon, 21 Sep 2026 14:13:19 GMT", 0),
        ("Tue, 29 Sep 2026 14:23:20 GMT", DAY),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("²", None),
        ("٣", None),
        ("1" * 5000, DAY),
        ("Mon, 41 Sep 2026 14:23:20 GMT", None),
        ("Mon, 21 Sup 2026 14:23:20 GMT", None),
        ("Mox, 21 Sep 2026 14:23:20 GMT", None),
        ("Mon, 21 Sep 2026 25:23:20 GMT", None),
        ("Mon, 21 Sep 0026 14:23:20 GMT", None),
        ("Mon, 21 Sep 2026 14:23:20 CET", None),
    ],
)
def test_retry_after_in_all_its_spellings(value: str, expected: int | None) -> None:
    assert retry_after_ms({"retry-after": value}, NOW) == expected


def test_a_date_counts_from_the_collectors_own_clock() -> None:
    headers = {"retry-after": "Mon, 21 Sep 2026 14:23:20 GMT", "date": "Mon, 21 Sep 2026 14:22:20 GMT"}
    for ours in (0, NOW, NOW + 300 * DAY):
        assert retry_after_ms(headers, ours) == 60_000
    assert retry_after_ms(headers | {"date": "rubbish"}, NOW) == 600_000
    assert retry_after_ms({}, NOW) is None


@given(st.integers(0, 7_258_118_399))
def test_dates_agree_with_the_system(at_s: int) -> None:
    assert http_date_ms(time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(at_s))) == at_s * 1000
    assert http_date_ms(time.strftime("%a %b %e %H:%M:%S %Y", time.gmtime(at_s))) == at_s * 1000


def test_a_standing_is_kept_and_begins_anew_with_another_collector(tmp_path: Path) -> None:
    rng = random.Random(1)
    standing = Standing(collector="a:443").failed(NOW, rng, failure="timeout", detail="too slow", asked_ms=60_000)
    save(tmp_path, standing)
    assert load(tmp_path) == standing
    assert standing.of("a:443") == standing
    assert standing.of("b:443") == Standing(collector="b:443")
    better = standing.answered(NOW + 1)
    assert (better.pause, better.contact_ms, better.failure, better.detail) == (Pause(), NOW + 1, "", "")
    again = better.failed(NOW, rng, failure="timeout")
    assert (again.pause.failures, again.pause.asked, again.contact_ms) == (1, False, NOW + 1)


@pytest.mark.parametrize(
    "content",
    [
        *("", "[", "[]", "7", '{"v": 2}', '{"pause": 7}'),
        '{"pause": {"until_ms": "x"}, "contact_ms": -1, "refused": 1e9}',
        '{"pause": {"failures": true, "until_ms": 9007199254740993}, "detail": 3, "collector": null}',
    ],
)
def test_rubbish_in_the_file_is_a_fresh_start(tmp_path: Path, content: str) -> None:
    (tmp_path / "upload.json").write_text(content)
    assert load(tmp_path) == Standing()


def test_what_can_be_read_of_a_damaged_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "upload.json").write_text('{"contact_ms": 5, "pause": {"failures": 2}, "detail": "' + "x" * 999 + '"}')
    found = load(tmp_path)
    assert (found.contact_ms, found.pause.failures, len(found.detail)) == (5, 2, 256)

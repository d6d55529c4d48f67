# SPDX-License-Identifier: EUPL-1.2
"""The ledger of bytes: budgets hold under crashes, lost RAM and clocks that jump; flash is written rarely."""

from __future__ import annotations

import calendar
import itertools
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from probe.budget import Ledger, clock_now
from probe.files import write_small, write_whole
from probe.ledger import (
    Book,
    Budgets,
    Clock,
    Entry,
    closed,
    looked,
    reserved,
    settled,
    spent_this_month,
    spent_today,
    verdict,
)
from probe.state import State, StateError

HOUR = 3_600_000
DAY = 24 * HOUR
NOON = calendar.timegm((2026, 11, 23, 12, 0, 0)) * 1000
BUDGETS = Budgets(daily_bytes=1000, monthly_bytes=5000)
CHUNK = 1000 // 5
_RAM = "/dev/shm"  # noqa: S108  (a folder of our own is made in it)
_SCRATCH = tempfile.TemporaryDirectory(prefix="evenlane-ledger-", dir=_RAM if os.access(_RAM, os.W_OK) else None)
"""One folder an example; goes when the tests end."""


def at(now_ms: int, *, boot: str = "a", boot_ms: int = 0) -> Clock:
    """A clock that lives in Greenwich."""
    year, month, day = time.gmtime(now_ms / 1000)[:3]
    following = (year + month // 12, month % 12 + 1)
    return Clock(
        now_ms=now_ms,
        day=(year * 100 + month) * 100 + day,
        midnight_ms=now_ms // DAY * DAY,
        next_day_ms=(now_ms // DAY + 1) * DAY,
        next_month_ms=calendar.timegm((*following, 1, 0, 0, 0)) * 1000,
        boot=boot,
        boot_ms=boot_ms,
    )


def state_in(folder: Path) -> State:
    state = State(folder / "flash", folder / "ram")
    for directory in (state.directory, state.run):
        directory.mkdir(parents=True)
    return state


@pytest.fixture
def state(tmp_path: Path) -> State:
    return state_in(tmp_path)


def reboot(state: State) -> None:
    for path in state.run.iterdir():
        path.unlink()


def session(ledger: Ledger, clock: Clock, cost: int, actual: int | None = None) -> bool:
    found = ledger.reserve(cost, clock)
    if found.ok:
        ledger.settle(cost if actual is None else actual, clock)
    return found.ok


# -- what it says -----------------------------------------------------------------------------------------------


def test_a_day_ends_at_its_budget_and_says_when_the_next_begins(state: State) -> None:
    ledger, clock = Ledger(state, BUDGETS), at(NOON)
    assert ledger.allowed(1000, clock).ok
    assert not ledger.allowed(1001, clock).ok
    assert session(ledger, clock, 600, 400)
    found = ledger.allowed(601, clock)
    assert (found.ok, found.reason, found.next_ms, found.left_bytes) == (False, "budget_day", NOON + 12 * HOUR, 600)
    assert ledger.allowed(600, clock).ok
    assert ledger.reserve(601, clock) == found
    assert ledger.spent_bytes(clock) == (400, 400)
    tomorrow = at(NOON + DAY, boot_ms=DAY)
    assert ledger.spent_bytes(tomorrow) == (0, 400)
    assert ledger.allowed(1000, tomorrow).ok


def test_a_month_ends_at_its_budget(state: State) -> None:
    ledger = Ledger(state, BUDGETS)
    for day in range(5):
        assert session(ledger, at(NOON + day * DAY, boot_ms=day * DAY), 1000)
    clock = at(NOON + 5 * DAY, boot_ms=5 * DAY)
    found = ledger.allowed(1, clock)
    december = calendar.timegm((2026, 12, 1, 0, 0, 0)) * 1000
    assert (found.ok, found.reason, found.next_ms, found.left_bytes) == (False, "budget_month", december, 0)
    assert ledger.allowed(1000, at(december, boot_ms=december - NOON)).ok


def test_what_is_reserved_counts_until_it_is_settled(state: State) -> None:
    ledger, clock = Ledger(state, BUDGETS), at(NOON)
    assert ledger.reserve(700, clock).ok
    assert Ledger(state, BUDGETS).spent_bytes(clock) == (700, 700)
    assert not ledger.reserve(301, clock).ok
    ledger.settle(100, clock)
    assert Ledger(state, BUDGETS).spent_bytes(clock) == (100, 100)


def test_a_session_that_was_never_settled_spent_all_that_it_might(state: State) -> None:
    ledger, clock = Ledger(state, BUDGETS), at(NOON)
    ledger.reserve(300, clock)
    assert session(Ledger(state, BUDGETS), clock, 300, 100)
    assert ledger.spent_bytes(clock) == (400, 400)


def test_a_session_that_spent_more_than_it_might_is_known_on_flash_at_once(state: State) -> None:
    ledger, clock = Ledger(state, BUDGETS), at(NOON)
    session(ledger, clock, 100, 900)
    reboot(state)
    assert ledger.spent_bytes(clock) == (900, 900)


def test_what_is_spent_beside_sessions_counts(state: State) -> None:
    ledger, clock = Ledger(state, BUDGETS), at(NOON)
    for _ in range(30):
        ledger.spend(50, clock)
    assert ledger.spent_bytes(clock) == (1500, 1500)
    reboot(state)
    assert ledger.spent_bytes(clock)[0] >= 1500
    assert not ledger.allowed(1, clock).ok


def test_no_session_is_begun_that_might_last_beyond_midnight(state: State) -> None:
    ledger, late = Ledger(state, BUDGETS), at(NOON + 12 * HOUR - 60_000)
    assert ledger.allowed(10, late, 60_000).ok
    found = ledger.reserve(10, late, 60_001)
    assert (found.ok, found.reason, found.next_ms) == (False, "budget_day", NOON + 12 * HOUR)


def test_one_that_lasts_longer_counts_on_both_days_and_once_in_the_month(state: State) -> None:
    ledger, late = Ledger(state, BUDGETS), at(NOON + 12 * HOUR - 60_000)
    early = at(NOON + 12 * HOUR + 60_000, boot_ms=120_000)
    assert ledger.reserve(800, late).ok
    ledger.settle(600, early)
    assert ledger.spent_bytes(late) == (600, 600)
    assert ledger.spent_bytes(early) == (600, 600)
    reboot(state)
    assert ledger.spent_bytes(replace(early, boot="b"))[0] >= 600


# -- flash ------------------------------------------------------------------------------------------------------


def test_when_the_ram_is_lost_one_chunk_is_lost_at_most(state: State) -> None:
    ledger, clock = Ledger(state, BUDGETS), at(NOON)
    for _ in range(10):
        assert session(ledger, clock, 50, 10)
    assert ledger.spent_bytes(clock)[0] == 100
    reboot(state)
    after = ledger.spent_bytes(at(NOON, boot="b"))[0]
    assert 100 <= after <= 100 + 50 + CHUNK


@settings(max_examples=12)
@example(daily=1, shares=[(0.0, 0.0)], monthly=1.0)
@example(daily=1000, shares=[(0.08, 0.05)], monthly=30.0)
@example(daily=10**9, shares=[(0.5, 0.1), (0.01, 1.0)], monthly=0.9)
@given(
    daily=st.integers(1, 10**10),
    shares=st.lists(st.tuples(st.floats(0, 0.6), st.floats(0, 1)), min_size=1, max_size=60),
    monthly=st.floats(0.1, 40),
)
def test_flash_is_written_six_times_a_day_at_most_however_many_sessions(
    daily: int, shares: list[tuple[float, float]], monthly: float
) -> None:
    state = state_in(Path(tempfile.mkdtemp(dir=_SCRATCH.name)))
    ledger = Ledger(state, Budgets(daily_bytes=daily, monthly_bytes=round(daily * monthly)))
    with counted(state.directory) as writes:
        for number, (share, used) in enumerate(shares * (80 // len(shares))):
            cost = round(daily * share / 8)
            session(ledger, at(NOON + number, boot_ms=number), cost, round(cost * used))
            ledger.allowed(cost, at(NOON + number, boot_ms=number))
    assert len(writes) <= 6
    assert bool(writes) or ledger.spent_bytes(at(NOON, boot_ms=80))[0] == 0


class counted:  # noqa: N801  (a context manager reads like a function)
    """The paths of all files written whole below a directory, without waiting for a disk."""

    def __init__(self, directory: Path, kill: Callable[[int], None] = lambda _: None) -> None:
        self._directory = directory
        self._kill = kill
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> list[Path]:
        written: list[Path] = []
        steps = itertools.count()

        def whole(path: Path, content: bytes, *, durable: bool = True) -> None:
            self._kill(next(steps))
            write_whole(path, content, durable=False)
            if path.is_relative_to(self._directory):
                written.append(path)
            self._kill(next(steps))

        self._patch.setattr("probe.budget.write_whole", whole)
        self._patch.setattr("probe.budget.write_small", whole)
        return written

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


def test_looking_and_refusing_write_nothing(state: State) -> None:
    ledger, clock = Ledger(state, BUDGETS), at(NOON)
    with counted(state.run.parent) as writes:
        ledger.allowed(10, clock)
        ledger.spent_bytes(clock)
        assert not ledger.reserve(2000, clock).ok
    assert writes == []
    assert os.listdir(state.run) == os.listdir(state.directory) == []


@pytest.mark.parametrize("where", ["flash", "ram"])
def test_where_nothing_can_be_written_nothing_may_be_spent(
    state: State, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    ledger, clock = Ledger(state, BUDGETS), at(NOON)
    full = state.directory if where == "flash" else state.run

    def refuse(path: Path, content: bytes, *, durable: bool = True) -> None:
        if path.is_relative_to(full):
            raise OSError(28, "No space left on device")
        write_whole(path, content, durable=durable)

    with monkeypatch.context() as patch:
        patch.setattr("probe.budget.write_whole", refuse)
        patch.setattr("probe.budget.write_small", refuse)
        for _ in range(20):
            with pytest.raises(StateError, match="No space left on device") as caught:
                ledger.reserve(100, clock)
    assert "\n" not in str(caught.value)
    assert ledger.spent_bytes(clock) == (0, 0)
    assert session(ledger, clock, 100)


def test_a_full_ram_disk_goes_on_with_the_file_that_is_there(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, clock = Ledger(state, BUDGETS), at(NOON)
    session(ledger, clock, 100)

    def refuse(path: Path, content: bytes, *, durable: bool = True) -> None:
        if path.is_relative_to(state.run):
            raise OSError(28, "No space left on device")
        write_whole(path, content, durable=durable)

    monkeypatch.setattr("probe.files.write_whole", refuse)
    for _ in range(3):
        assert session(ledger, clock, 100, 70)
    assert ledger.spent_bytes(clock) == (310, 310)


# -- files ------------------------------------------------------------------------------------------------------


GARBAGE = [
    b"",
    b"[",
    b"[]",
    b'{"v":1}',
    b'{"entries":7}',
    b'{"entries":[[-5,20261123]],"seen":20261123}',
    b"\xff" * 100,
]


@pytest.mark.parametrize("garbage", [*GARBAGE, b'{"entries":[[5]]}', b'{"entries":[],"seen":"x"}', b"null"])
def test_a_damaged_ram_file_is_as_good_as_lost(state: State, garbage: bytes) -> None:
    ledger, clock = Ledger(state, BUDGETS), at(NOON)
    session(ledger, clock, 100, 10)
    (state.run / "ledger.json").write_bytes(garbage)
    assert 10 <= ledger.spent_bytes(clock)[0] <= 100 + CHUNK
    assert session(ledger, clock, 100)


@pytest.mark.parametrize("garbage", [b"", b"[", b"[]", b'{"entries":7}', b'{"entries":[[-5,20261123]]}', b"\xff" * 100])
def test_a_damaged_flash_file_is_mended_from_ram_or_costs_the_day_and_is_said(state: State, garbage: bytes) -> None:
    ledger, clock = Ledger(state, BUDGETS), at(NOON)
    session(ledger, clock, 100, 10)
    (state.directory / "budget.json").write_bytes(garbage)
    assert session(ledger, clock, 100, 10)
    assert ledger.spent_bytes(clock) == (20, 20)
    assert json.loads((state.directory / "budget.json").read_bytes())["v"] == 1

    (state.directory / "budget.json").write_bytes(garbage)
    reboot(state)
    again = Ledger(state, BUDGETS)
    assert not again.allowed(1, clock).ok
    assert "budget.json was damaged" in again.problem
    tomorrow = at(NOON + DAY, boot="b")
    assert Ledger(state, BUDGETS).allowed(1000, tomorrow).ok
    assert Ledger(state, BUDGETS).problem == ""


def test_the_ram_of_another_run_is_not_believed(tmp_path: Path) -> None:
    one, clock = state_in(tmp_path), at(NOON)
    other = State(one.directory, tmp_path / "ram2")
    other.run.mkdir()
    session(Ledger(one, BUDGETS), clock, 100)
    session(Ledger(other, BUDGETS), clock, 500)
    assert Ledger(one, BUDGETS).spent_bytes(clock)[0] >= 600
    assert not session(Ledger(one, BUDGETS), clock, 500)


def test_a_run_directory_on_a_disk_that_outlived_a_power_cut_is_not_believed(state: State) -> None:
    ledger = Ledger(state, BUDGETS)
    session(ledger, at(NOON), 100)
    old = (state.run / "ledger.json").read_bytes()
    session(ledger, at(NOON), 100)
    (state.run / "ledger.json").write_bytes(old)
    assert ledger.spent_bytes(at(NOON, boot="b"))[0] >= 200


def test_in_one_directory_the_account_goes_on_exactly_after_a_reboot(tmp_path: Path) -> None:
    ledger = Ledger(State(tmp_path), BUDGETS)
    session(ledger, at(NOON), 100, 10)
    assert ledger.spent_bytes(at(NOON, boot="b")) == (10, 10)


def test_the_files_stay_small(state: State) -> None:
    ledger = Ledger(state, Budgets(daily_bytes=200_000_000, monthly_bytes=5_000_000_000))
    with counted(state.directory):
        for day in range(120):
            for hour in range(0, 24, 6):
                now = NOON + day * DAY + hour * HOUR
                session(ledger, at(now, boot_ms=now - NOON), 6_000_000, 5_500_000)
    assert ledger.spent_bytes(at(now, boot="")) == (2 * 5_500_000, (22 * 4 + 2) * 5_500_000)  # it is 23 March now
    assert (state.run / "ledger.json").stat().st_size < 4096
    assert (state.directory / "budget.json").stat().st_size < 4096


# -- clocks that jump -------------------------------------------------------------------------------------------


def test_a_clock_that_goes_back_gives_no_budget_twice(state: State) -> None:
    ledger = Ledger(state, BUDGETS)
    assert session(ledger, at(NOON), 1000)
    for days in (-1, -2, -300):
        assert not ledger.allowed(1, at(NOON + days * DAY)).ok
        assert not ledger.allowed(1, at(NOON)).ok


def test_neither_does_one_that_goes_ahead_and_comes_back(state: State) -> None:
    ledger = Ledger(state, BUDGETS)
    assert session(ledger, at(NOON, boot=""), 1000)
    for days in (1, 2, 10, 3000):
        session(ledger, at(NOON + days * DAY, boot=""), 300)
        assert not ledger.allowed(1, at(NOON, boot="")).ok


def test_nor_one_that_is_set_ahead_while_the_day_is_the_same(state: State) -> None:
    ledger = Ledger(state, BUDGETS)
    assert session(ledger, at(NOON), 1000)
    ahead = at(NOON + 3 * DAY + HOUR, boot_ms=HOUR)
    assert not ledger.allowed(1, ahead).ok
    assert ledger.allowed(1000, at(NOON + 4 * DAY, boot_ms=DAY)).ok


@pytest.mark.parametrize("loses_ram", [False, True])
@pytest.mark.parametrize("days", [1, 2, 3, 27000])
def test_a_jump_ahead_and_back_costs_the_day_of_the_return_and_no_more(
    state: State, days: int, loses_ram: bool
) -> None:
    ledger = Ledger(state, BUDGETS)
    session(ledger, at(NOON, boot=""), 100)
    session(ledger, at(NOON + days * DAY, boot=""), 1000)
    for later in range(6):
        if loses_ram:
            reboot(state)
        found = ledger.allowed(800, at(NOON + later * DAY, boot=""))
        assert found.ok is (later not in {0, days}), later
    assert ledger.spent_bytes(at(NOON + 5 * DAY, boot=""))[1] <= 1100 + 100 + CHUNK


def test_a_router_that_begins_each_boot_in_the_past_writes_little_and_keeps_its_budget(state: State) -> None:
    """Without a clock of its own: each boot begins on the day when the firmware was made, then time comes in."""
    ledger = Ledger(state, BUDGETS)
    firmware = calendar.timegm((2026, 1, 1, 0, 0, 0)) * 1000
    with counted(state.directory) as writes:
        for day in range(20):
            reboot(state)
            now = NOON + day * DAY
            ledger.allowed(100, at(firmware, boot=str(day)))
            for number in range(10):
                right = at(now + number, boot=str(day), boot_ms=60_000 + number)
                assert session(ledger, right, 20), (day, number)
    assert len(writes) <= 20 * 3


def test_a_step_back_adds_the_day_to_what_is_dated_later_and_to_nothing_else() -> None:
    today, ahead = at(NOON, boot=""), at(NOON + 9 * DAY, boot="")
    older, now, later = Entry(1, (20261122,)), Entry(2, (20261123,)), Entry(4, (20261202,))
    book = Book(entries=(older, now, later), open=Entry(8, (ahead.day,)), seen=ahead.day)
    found = looked(book, today)
    assert found.entries == (older, now, Entry(4, (20261202, 20261123)))
    assert found.open == Entry(8, (20261202, 20261123))
    assert spent_today(found, today) == 14
    assert looked(replace(found, seen=ahead.day), today) == found
    for number in range(20):
        found = looked(replace(found, seen=ahead.day), at(NOON - number * DAY, boot=""))
    assert [len(entry.days) for entry in found.all] == [8, 8, 8, 8]
    assert {entry.days[0] for entry in found.all} == {20261122, 20261123, 20261202}
    assert all(at(NOON - 19 * DAY).day in entry.days for entry in found.all)
    assert looked(replace(found, seen=at(NOON - 19 * DAY).day), today).entries == found.entries


def test_what_is_open_counts_by_the_time_since_boot_too() -> None:
    ahead = at(NOON + DAY, boot_ms=HOUR)
    book = reserved(looked(Book(), ahead), ahead, 300)
    assert spent_today(replace(book, seen=0), at(NOON, boot_ms=HOUR)) == 300
    assert spent_this_month(replace(book, seen=0), at(NOON + 40 * DAY, boot_ms=HOUR)) == 300


def test_a_session_over_midnight_keeps_both_days() -> None:
    late, early = at(NOON), at(NOON + DAY, boot_ms=DAY)
    book = settled(looked(reserved(looked(Book(), late), late, 300), early), early, 200)
    assert book.entries == (Entry(200, (20261124, 20261123)),)


def test_an_open_session_is_closed_by_the_next() -> None:
    clock = at(NOON)
    book = reserved(reserved(looked(Book(), clock), clock, 300), clock, 200)
    assert (book.entries, book.open) == ((Entry(300, (20261123,)),), Entry(200, (20261123,)))
    assert closed(closed(book, clock), clock).entries == (Entry(500, (20261123,)),)


def test_the_list_of_what_was_spent_lately_is_short_and_complete() -> None:
    book = Book()
    for minute in range(0, 30 * 60, 7):
        clock = at(NOON + minute * 60_000, boot_ms=minute * 60_000)
        book = settled(reserved(looked(book, clock), clock, 5), clock, 3)
    assert len(book.recent) <= 26 * 2 + 2
    spent = sum(3 for minute in range(0, 30 * 60, 7) if minute >= (30 - 26) * 60)
    assert spent <= sum(count for _, count in book.recent) <= spent + 3 * 5
    assert [at_ms for at_ms, _ in book.recent] == sorted({at_ms for at_ms, _ in book.recent})


def test_a_chunk_is_used_up_before_the_next_is_reserved(state: State) -> None:
    ledger, clock = Ledger(state, BUDGETS), at(NOON)
    with counted(state.directory) as writes:
        assert session(ledger, clock, 100)
        assert session(ledger, clock, CHUNK)
        assert len(writes) == 1
        assert session(ledger, clock, 1)
        assert len(writes) == 2


def test_one_is_never_told_to_come_back_in_the_past() -> None:
    strange = replace(at(NOON), next_day_ms=NOON - HOUR, next_month_ms=NOON)
    for budgets in (BUDGETS, replace(BUDGETS, monthly_bytes=0)):
        assert verdict(Book(), strange, budgets, 2000).next_ms == NOON + 60_000


# -- any sequence of all of it ----------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone."""


class World:
    """True time, a clock that lies by so much, and every byte that went over the line, by the true day."""

    def __init__(self, state: State, daily: int, monthly: int) -> None:
        self.state = state
        self.budgets = Budgets(daily_bytes=daily, monthly_bytes=monthly)
        self.now_ms = NOON
        self.lie_ms = 0
        self.boots = 0
        self.booted_ms = NOON
        self.truly: defaultdict[int, int] = defaultdict(int)

    def clock(self) -> Clock:
        return at(self.now_ms + self.lie_ms, boot=str(self.boots), boot_ms=self.now_ms - self.booted_ms)

    def spent(self, count: int) -> None:
        if not self.lie_ms:
            self.truly[at(self.now_ms).day] += count

    def reboot(self) -> None:
        reboot(self.state)
        self.boots += 1
        self.booted_ms = self.now_ms

    def session(self, cost: int, used: float, end: str, kill_at: int) -> None:
        """Reserve, spend, settle; killed at the `kill_at`-th write or before it is settled, or not at all."""

        def kill(step: int) -> None:
            if step == kill_at:
                raise Killed

        lasts_ms, is_begun = 10 * 60_000, False
        actual = round(cost * used)
        with counted(self.state.directory, kill):
            try:
                if not Ledger(self.state, self.budgets).reserve(cost, self.clock(), lasts_ms).ok:
                    return
                is_begun = True
                self.now_ms += round(lasts_ms * used)
                self.spent(actual)
                if end == "settle":
                    Ledger(self.state, self.budgets).settle(actual, self.clock())
            except Killed:
                pass
        if end == "power cut" or (kill_at % 3 == 0 and not is_begun):
            self.reboot()

    def check(self) -> None:
        months: defaultdict[int, int] = defaultdict(int)
        for day, count in self.truly.items():
            assert count <= self.budgets.daily_bytes, (day, count)
            months[day // 100] += count
        assert all(count <= self.budgets.monthly_bytes for count in months.values()), months


NEVER = 99
SESSIONS = st.tuples(
    st.just("session"),
    st.integers(0, 400),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from(["settle"] * 4 + ["crash", "power cut"]),
    st.sampled_from([NEVER] * 6 + list(range(9))),
)
WAITS = st.tuples(st.just("wait"), st.sampled_from([60_000, HOUR, 7 * HOUR, DAY, 3 * DAY]))
LIES = st.tuples(st.just("lie"), st.sampled_from([0, 0, 0, *(d * DAY for d in (-40, -3, -1, 1, 2, 3, 9, 40, 9000))]))
LOOKS = st.tuples(st.just("look"), st.just(0))
CUTS = st.tuples(st.just("cut"), st.just(0))
STEPS = st.lists(SESSIONS | SESSIONS | SESSIONS | WAITS | LIES | LOOKS | CUTS, min_size=5, max_size=60)


@settings(max_examples=300)
@given(steps=STEPS, daily=st.sampled_from([500, 1000]), months=st.sampled_from([1, 2, 30]))
@example(  # what a right clock spent counts again after two lies
    steps=[
        ("session", 400, 1.0, "settle", NEVER),
        ("lie", 9 * DAY),
        ("look", 0),
        ("session", 10, 1.0, "settle", NEVER),
        ("lie", -3 * DAY),
        ("look", 0),
        ("cut", 0),
        ("lie", 0),
        ("session", 400, 1.0, "settle", NEVER),
    ],
    daily=500,
    months=1,
)
def test_no_true_day_and_no_true_month_gets_more_than_its_budget_from_a_right_clock(
    steps: list[tuple[Any, ...]], daily: int, months: int
) -> None:
    world = World(state_in(Path(tempfile.mkdtemp(dir=_SCRATCH.name))), daily, daily * months)
    for what, *how in steps:
        if what == "session":
            world.session(*how)
        elif what == "wait":
            world.now_ms += how[0]
        elif what == "lie":
            world.lie_ms = how[0]
        elif what == "cut":
            world.reboot()
        else:
            with counted(world.state.directory):
                Ledger(world.state, world.budgets).allowed(1, world.clock())
        world.check()


@settings(max_examples=40)
@given(steps=st.lists(SESSIONS | SESSIONS | WAITS, min_size=5, max_size=40))
def test_with_a_right_clock_a_reboot_loses_one_chunk_at_most(
    steps: list[tuple[Any, ...]],
) -> None:
    world = World(state_in(Path(tempfile.mkdtemp(dir=_SCRATCH.name))), 1000, 30_000)
    for what, *how in steps:
        if what == "wait":
            world.now_ms += how[0]
            continue
        cost, used, _, _ = how
        world.session(cost, used, "settle", NEVER)
        ledger = Ledger(world.state, world.budgets)
        exact = ledger.spent_bytes(world.clock())[0]
        assert exact == world.truly[at(world.now_ms).day]
        kept = {path: path.read_bytes() for path in world.state.run.iterdir()}
        reboot(world.state)
        after = ledger.spent_bytes(world.clock())[0]
        assert exact <= after <= exact + 400 + CHUNK
        for path, content in kept.items():
            path.write_bytes(content)


@given(step=st.integers(1, 12), forward=st.booleans(), hours=st.integers(0, 11))
def test_in_one_boot_no_lie_gives_a_true_day_more_than_its_budget(step: int, forward: bool, hours: int) -> None:
    """Time since boot tells what was spent since midnight, whatever the clock showed."""
    midnight = NOON - 12 * HOUR
    before = midnight + hours * HOUR
    lie = (step if forward else -step) * DAY
    lying = at(before + lie, boot_ms=HOUR * (hours + 1))
    book = Book(entries=(Entry(700, (lying.day,)),), seen=lying.day, boot="a", recent=((lying.boot_ms, 700),))
    right = at(NOON, boot_ms=lying.boot_ms + NOON - before)
    found = looked(book, right)
    assert spent_today(found, right) == spent_this_month(found, right) == 700
    tomorrow = replace(at(NOON + DAY + HOUR), boot_ms=right.boot_ms + DAY + HOUR)
    assert spent_today(looked(found, tomorrow), tomorrow) == (700 if lie == DAY else 0)


# -- the calendar -----------------------------------------------------------------------------------------------


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def choose(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield choose
    monkeypatch.undo()
    time.tzset()


def test_the_calendar_is_the_devices_own(zone: Callable[[str], None]) -> None:
    zone("CET-1CEST,M3.5.0,M10.5.0/3")
    late = calendar.timegm((2026, 12, 31, 22, 59, 59)) * 1000
    clock = clock_now(late)
    assert (clock.day, clock.month) == (20261231, 202612)
    assert clock.next_day_ms == clock.next_month_ms == late + 1000
    assert clock.midnight_ms == late + 1000 - DAY
    assert clock_now(late + 1000).day == 20270101
    summer_ends = clock_now(calendar.timegm((2026, 10, 25, 12, 0, 0)) * 1000)
    assert summer_ends.next_day_ms - summer_ends.midnight_ms == 25 * HOUR
    assert clock_now(0).day == 19700101


def test_a_day_without_midnight_is_no_endless_loop(zone: Callable[[str], None], state: State) -> None:
    zone("XXX0YYY,M3.5.0/0,M10.5.0")  # summer time begins at midnight
    for hour in range(48):
        clock = clock_now(calendar.timegm((2026, 3, 28, 0, 30, 0)) * 1000 + hour * HOUR)
        assert clock.midnight_ms <= clock.now_ms
        assert Ledger(state, BUDGETS).allowed(2000, clock).next_ms > clock.now_ms


def test_this_machine_tells_its_boot_and_the_time_since() -> None:
    if not Path("/proc/sys/kernel/random/boot_id").exists():
        pytest.skip("this system does not tell its boots apart")
    first, second = clock_now(), clock_now()
    assert first.boot == second.boot != ""
    assert 0 < first.boot_ms <= second.boot_ms
    assert abs(first.now_ms - time.time() * 1000) < 60_000


def test_small_files_are_written_as_the_ledger_expects() -> None:
    """`counted` stands in for these two: they must take what it takes."""
    assert (write_small.__kwdefaults__, write_whole.__kwdefaults__) == (None, {"durable": True})

# SPDX-License-Identifier: EUPL-1.2
"""How many bytes were spent this day and this month, so that a household's budgets hold whatever happens.

Exact in RAM (`ledger.json`, written around each session), and on flash (`budget.json`) never less than that: before
a session may spend what flash does not cover, a whole chunk is reserved there, its most plus a fifth of the daily
budget. So flash is written at most six times a day however many sessions there are, and when the RAM is lost what
was reserved counts as spent: at most one chunk is lost to the probe, nothing to the household.

Clocks jump; days and months are those of the device's calendar. What holds then, and why:

1. *An entry keeps for ever the day that the clock showed when it was spent.* So what was spent on a day by a right
   clock counts whenever that day is today again, whatever the clock showed in between: going forward and back, or
   back and forward, gives no day its budget twice.
2. *When the clock is found earlier than it was seen before*, everything dated later than today was spent by a clock
   that ran ahead, or today is wrong. Nobody can tell, so it counts today too (an entry may have several days). It
   does so from the first look on and is written down, flash included: the next day is no step back, so a jump to
   2099 and back costs the budget of the day of the return at most, and blocks nothing after it.
3. *Within one boot time is known without the clock* (CLOCK_BOOTTIME). What was spent since the last midnight, counted
   back from now, counts today whatever the clock showed then: a clock that is set forward gives no new budget while
   the day is the same.
4. The price of a lie: while the clock itself is wrong across its own midnight and RAM was lost, a true day can see
   two budgets. A right clock never does.
5. A session is not begun where it might last beyond midnight; where one does all the same, it counts on both days.

Entries are forgotten by number (the oldest days of 100), never by age: an age is what a wrong clock tells.
The core is pure (`Book`, `Clock` and what takes them); `Ledger` in probe/budget.py reads and writes.
Spec: spec/probe.md, section "Budgets".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

_SHARE: Final = 5
"""A chunk is a session's most and this part of the daily budget."""
_MOST_ENTRIES: Final = 100
"""Three months of days, and room for what a jumping clock adds."""
_MOST_DAYS: Final = 8
"""Days that one entry may count on: the first, which is rule 1, and the last seven."""
_RECENT_MS: Final = 26 * 3_600_000
"""The longest day has 25 hours."""
_GRAIN_MS: Final = 30 * 60_000
"""What was spent in the same so much of boot time is one item, dated at its end."""
_LEAST_MS: Final = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """One moment by the device's calendar."""

    now_ms: int
    day: int
    """Year, month and day as one number, 20261123, which sorts by time."""
    midnight_ms: int
    """When today began."""
    next_day_ms: int
    next_month_ms: int
    boot: str = ""
    """Which boot this is; empty where the system does not tell."""
    boot_ms: int = 0
    """Time since then, sleep included."""

    @property
    def month(self) -> int:
        """202611."""
        return self.day // 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """What a household gives."""

    daily_bytes: int
    monthly_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a session may be begun."""

    ok: bool
    reason: Literal["", "budget_day", "budget_month"] = ""
    next_ms: int = 0
    """When it is worth asking again; 0 where it may."""
    left_bytes: int = 0
    """The most that a session may cost now."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Bytes and the days that they count on; the first is the one on which they were spent."""

    bytes: int
    days: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """All that is known."""

    entries: tuple[Entry, ...] = ()
    open: Entry | None = None
    """A session that was begun: it counts with all that it may spend until it is settled, or for good."""
    seen: int = 0
    """The day of the last look."""
    recent: tuple[tuple[int, int], ...] = ()
    """(boot_ms, bytes) of this boot, the oldest first."""
    boot: str = ""
    left_bytes: int = 0
    left_day: int = 0
    """Of what flash counts on this day so much is not spent yet."""

    @property
    def all(self) -> tuple[Entry, ...]:
        """The entries and what is open."""
        return self.entries if self.open is None else (*self.entries, self.open)


def looked(book: Book, clock: Clock) -> Book:
    """The book after a look at the clock (rules 2 and 3)."""
    if clock.boot != book.boot:
        book = replace(book, boot=clock.boot, recent=())
    since_ms = clock.boot_ms - _RECENT_MS
    book = replace(book, recent=tuple(one for one in book.recent if one[0] >= since_ms))
    if clock.day < book.seen:
        entries = _joined(_also_on(entry, clock.day) for entry in book.entries)
        book = replace(book, entries=entries, open=book.open and _also_on(book.open, clock.day))
    return replace(book, seen=clock.day)


def _also_on(entry: Entry, day: int) -> Entry:
    """What is dated later than `day` counts on it too."""
    if max(entry.days) <= day or day in entry.days:
        return entry
    first, *rest = entry.days
    return Entry(entry.bytes, (first, *rest[-(_MOST_DAYS - 2) :], day))


def _joined(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """One entry for the same days; the oldest go where there are too many."""
    sums: dict[tuple[int, ...], int] = {}
    for entry in entries:
        sums[entry.days] = sums.get(entry.days, 0) + entry.bytes
    return tuple(Entry(count, days) for days, count in sorted(sums.items())[-_MOST_ENTRIES:] if count)


def spent_today(book: Book, clock: Clock) -> int:
    """Bytes that count today: by their dates, or by the time since they were spent, whichever is more."""
    dated = sum(entry.bytes for entry in book.all if clock.day in entry.days)
    if not clock.boot or book.boot != clock.boot:
        return dated
    since_ms = clock.boot_ms - (clock.now_ms - clock.midnight_ms)
    timed = sum(count for at_ms, count in book.recent if at_ms >= since_ms)
    return max(dated, timed + (book.open.bytes if book.open else 0))


def spent_this_month(book: Book, clock: Clock) -> int:
    """Bytes that count this month; never fewer than today's."""
    dated = sum(entry.bytes for entry in book.all if any(day // 100 == clock.month for day in entry.days))
    return max(dated, spent_today(book, clock))


def verdict(book: Book, clock: Clock, budgets: Budgets, cost_bytes: int, lasts_ms: int = 0) -> Verdict:
    """Whether a session of at most `cost_bytes`, lasting at most `lasts_ms`, may be begun now."""
    today = budgets.daily_bytes - spent_today(book, clock)
    month = budgets.monthly_bytes - spent_this_month(book, clock)
    left = max(0, min(today, month))
    if cost_bytes > month:
        return _refusal("budget_month", clock.next_month_ms, clock, left)
    if cost_bytes > today or clock.now_ms + lasts_ms > clock.next_day_ms:
        return _refusal("budget_day", clock.next_day_ms, clock, left)
    return Verdict(ok=True, left_bytes=left)


def _refusal(reason: Literal["budget_day", "budget_month"], next_ms: int, clock: Clock, left: int) -> Verdict:
    # Where a day has no midnight (summer time begins then) it may seem to be over already.
    return Verdict(ok=False, reason=reason, next_ms=max(next_ms, clock.now_ms + _LEAST_MS), left_bytes=left)


def chunk_bytes(book: Book, clock: Clock, budgets: Budgets, cost_bytes: int) -> int:
    """What flash must count beyond what was spent before such a session begins; 0 where it does already."""
    if book.left_day == clock.day and cost_bytes <= book.left_bytes:
        return 0
    today = budgets.daily_bytes - spent_today(book, clock)
    month = budgets.monthly_bytes - spent_this_month(book, clock)
    return max(cost_bytes, min(cost_bytes - (-budgets.daily_bytes // _SHARE), today, month))


def reserved(book: Book, clock: Clock, cost_bytes: int) -> Book:
    """The book with a session begun. One that was never settled spent all that it might have."""
    book = closed(book, clock)
    return replace(book, open=Entry(cost_bytes, (clock.day,)), left_bytes=book.left_bytes - cost_bytes)


def settled(book: Book, clock: Clock, actual_bytes: int) -> Book:
    """The book with the session over: what it really spent counts, on both days where it lasted beyond midnight."""
    was = book.open or Entry(0, (clock.day,))
    return closed(
        replace(
            book,
            open=Entry(actual_bytes, was.days if clock.day in was.days else (clock.day, *was.days[: _MOST_DAYS - 1])),
            left_bytes=book.left_bytes + was.bytes - actual_bytes,
        ),
        clock,
    )


def closed(book: Book, clock: Clock) -> Book:
    """The book without an open session: it is an entry like the others."""
    if book.open is None:
        return book
    recent = book.recent
    if clock.boot and book.boot == clock.boot:
        count = book.open.bytes
        if recent and recent[-1][0] // _GRAIN_MS == clock.boot_ms // _GRAIN_MS:
            recent, count = recent[:-1], count + recent[-1][1]
        recent = (*recent, (clock.boot_ms, count))
    return replace(book, entries=_joined(book.all), open=None, recent=recent)


def on_flash(book: Book, extra_bytes: int, day: int) -> tuple[Entry, ...]:
    """What flash says was spent: all that was, and a chunk that was not yet."""
    return _joined((*book.all, Entry(extra_bytes, (day,))))

# SPDX-License-Identifier: EUPL-1.2
"""The files of the ledger of bytes: exact in RAM, reserved in chunks on flash. What they mean: probe/ledger.py.

Flash is written before what it covers is spent, and RAM after flash: a kill between any two steps leaves more
counted than was spent, never less. A mark says which RAM file belongs to what is on flash; a stranger's, or one
that outlived a power cut, counts as lost. Spec: spec/probe.md, section "Budgets".
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from probe.files import read_object, read_small, write_small, write_whole
from probe.ledger import (
    Book,
    Budgets,
    Clock,
    Entry,
    Verdict,
    chunk_bytes,
    looked,
    on_flash,
    reserved,
    settled,
    spent_this_month,
    spent_today,
    verdict,
)
from probe.state import State, StateError
from probe.wire.limits import MAX_INT

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MOST_DAY: Final = 9999_12_31


def clock_now(now_ms: int | None = None) -> Clock:
    """This moment, or `now_ms` (Unix), by the device's calendar and the time since its boot."""
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    year, month, day = time.localtime(now_ms / 1000)[:3]
    boot_clock = getattr(time, "CLOCK_BOOTTIME", None)
    boot = "" if boot_clock is None else _boot_id()
    return Clock(
        now_ms=now_ms,
        day=(year * 100 + month) * 100 + day,
        midnight_ms=_local_ms(year, month, day),
        next_day_ms=_local_ms(year, month, day + 1),
        next_month_ms=_local_ms(year, month + 1, 1),
        boot=boot,
        boot_ms=time.clock_gettime_ns(boot_clock) // 1_000_000 if boot_clock is not None and boot else 0,
    )


def _local_ms(year: int, month: int, day: int) -> int:
    return round(time.mktime((year, month, day, 0, 0, 0, 0, 0, -1)) * 1000)


def _boot_id() -> str:
    try:
        return (read_small(_BOOT_ID) or b"").decode("ascii")[:8]
    except (OSError, ValueError):
        return ""


class Ledger:
    """A probe's accounts. Raises StateError where they cannot be kept: then nothing may be spent.

    One process at a time (`State.exclusive`). Nothing is held in memory between calls.
    """

    def __init__(self, state: State, budgets: Budgets) -> None:
        self.budgets = budgets
        self.problem = ""
        """A sentence where a file was damaged."""
        self._flash = state.directory / "budget.json"
        self._ram = state.run / "ledger.json"
        self._is_split = state.is_split

    def allowed(self, cost_bytes: int, clock: Clock, lasts_ms: int = 0) -> Verdict:
        """Whether a session of at most so many bytes may be begun now, and when it is worth asking again if not."""
        with self._readable_errors():
            book, _ = self._look(clock)
            return verdict(book, clock, self.budgets, cost_bytes, lasts_ms)

    def reserve(self, cost_bytes: int, clock: Clock, lasts_ms: int = 0) -> Verdict:
        """Begin a session: from here on its cost counts, until it is settled. Nothing is reserved unless it is ok."""
        with self._readable_errors():
            book, owner = self._look(clock)
            found = verdict(book, clock, self.budgets, cost_bytes, lasts_ms)
            if not found.ok:
                return found
            self._begin(book, owner, cost_bytes, clock)
            return found

    def spend(self, actual_bytes: int, clock: Clock) -> None:
        """Count what was spent beside any session (an upload, a plan), whether or not the budget had it."""
        with self._readable_errors():
            book, owner = self._look(clock)
            book = self._begin(book, owner, actual_bytes, clock)
            self._keep(settled(book, clock, actual_bytes), owner)

    def settle(self, actual_bytes: int, clock: Clock) -> None:
        """End the session: what it really spent counts, in both directions and with everything."""
        with self._readable_errors():
            before, owner = self._look(clock)
            book = settled(before, clock, actual_bytes)
            if book.left_bytes < 0 or (before.open is not None and clock.day not in before.open.days):
                # It spent more than it might, or on a day that flash does not cover yet.
                book = replace(book, left_bytes=max(0, book.left_bytes))
                self._keep_on_flash(book, owner, book.left_bytes, book.left_day or clock.day)
            self._keep(book, owner)

    def _begin(self, book: Book, owner: str, cost_bytes: int, clock: Clock) -> Book:
        chunk = chunk_bytes(book, clock, self.budgets, cost_bytes)
        if chunk:
            # First of all see that RAM takes it: else each vain attempt would cost a chunk.
            self._keep(book, owner)
            self._keep_on_flash(book, owner, chunk, clock.day)
            book = replace(book, left_bytes=chunk, left_day=clock.day)
        book = reserved(book, clock, cost_bytes)
        self._keep(book, owner)
        return book

    def spent_bytes(self, clock: Clock) -> tuple[int, int]:
        """What counts today and this month. Writes nothing."""
        with self._readable_errors():
            book, _, _ = self._load(clock)
            book = looked(book, clock)
            return spent_today(book, clock), spent_this_month(book, clock)

    def _look(self, clock: Clock) -> tuple[Book, str]:
        """The book after a look at the clock; what that changed for good is written down, which is rare."""
        before, owner, damaged = self._load(clock)
        book = looked(before, clock)
        if book.seen < before.seen:
            self._keep(book, owner)
        if damaged or book.all != before.all:
            self._keep(book, owner)
            self._keep_on_flash(book, owner, book.left_bytes, book.left_day or clock.day)
        return book, owner

    def _load(self, clock: Clock) -> tuple[Book, str, bool]:
        """The book, whose it is, and whether nothing was left of it."""
        flash, is_damaged = _read(self._flash)
        ram, _ = _read(self._ram)
        try:
            entries = _entries((flash or {}).get("entries", []))
            seen = _int((flash or {}).get("seen", 0), _MOST_DAY)
        except (TypeError, ValueError, KeyError):
            flash, entries, seen, is_damaged = None, (), 0, True
        if ram is not None and (flash is None or flash.get("owner") == ram.get("owner")):
            book, owner = _book(ram), ram.get("owner")
            if book is not None and isinstance(owner, str) and not self._outlived(book, clock):
                return (book if flash is not None else replace(book, left_bytes=0)), owner, False
        if is_damaged:
            self.problem = f"{self._flash} was damaged: today's budget counts as used up, the month begins anew"
            entries, seen = (Entry(self.budgets.daily_bytes, (clock.day,)),), clock.day
        return Book(entries=entries, seen=seen), secrets.token_hex(8), is_damaged

    def _outlived(self, book: Book, clock: Clock) -> bool:
        """Whether what should be in RAM is of an earlier boot: on a disk, it may be older than what was spent."""
        return self._is_split and bool(book.boot) and bool(clock.boot) and book.boot != clock.boot

    def _keep(self, book: Book, owner: str) -> None:
        plain = {
            "v": 1,
            "owner": owner,
            "entries": _plain(book.entries),
            "open": _plain((book.open,))[0] if book.open else None,
            "seen": book.seen,
            "recent": book.recent,
            "boot": book.boot,
            "left_bytes": book.left_bytes,
            "left_day": book.left_day,
        }
        write_small(self._ram, json.dumps(plain).encode() + b"\n", durable=not self._is_split)

    def _keep_on_flash(self, book: Book, owner: str, extra_bytes: int, day: int) -> None:
        entries = _plain(on_flash(book, extra_bytes, day))
        plain = {"v": 1, "owner": owner, "seen": book.seen, "entries": entries}
        write_whole(self._flash, json.dumps(plain).encode() + b"\n")

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StateError(
                f"the bytes spent cannot be written down in {self._flash} and {self._ram} "
                f"({error.strerror or type(error).__name__}), so none may be spent; make room there"
            ) from None


def _read(path: Path) -> tuple[dict[str, Any] | None, bool]:
    """The object in a file, and whether there is something else in it."""
    try:
        return read_object(path), False
    except ValueError:
        return None, True


def _plain(entries: tuple[Entry, ...]) -> list[list[Any]]:
    return [[entry.bytes, *entry.days] for entry in entries]


def _int(value: Any, most: int = MAX_INT) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError
    return value


def _entries(plain: Any) -> tuple[Entry, ...]:
    return tuple(_entry(one) for one in plain)


def _entry(plain: Any) -> Entry:
    count, first, *rest = plain
    return Entry(_int(count), tuple(_int(day, _MOST_DAY) for day in (first, *rest)))


def _book(plain: dict[str, Any]) -> Book | None:
    """The book in RAM; None where it cannot be read."""
    try:
        return Book(
            entries=_entries(plain["entries"]),
            open=None if plain["open"] is None else _entry(plain["open"]),
            seen=_int(plain["seen"], _MOST_DAY),
            recent=tuple((_int(at_ms), _int(count)) for at_ms, count in plain["recent"]),
            boot=str(plain["boot"])[:64],
            left_bytes=_int(plain["left_bytes"]),
            left_day=_int(plain["left_day"], _MOST_DAY),
        )
    except (KeyError, TypeError, ValueError):
        return None

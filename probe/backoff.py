# SPDX-License-Identifier: EUPL-1.2
"""When a collector that did not take everything is asked again, and how it stands between the two.

Full jitter, so that probes which failed together do not come back together; doubling, so that a collector that is
gone for a month costs four requests a day. Pure but for `load` and `save`. Spec: spec/probe.md, section "Uploads".
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from probe.files import read_object, write_small
from probe.wire.limits import MAX_INT

FIRST_MS: Final = 60_000
MOST_MS: Final = 6 * 3_600_000
LEAST_MS: Final = 5_000
"""Jitter alone may ask for no pause at all."""
MOST_ASKED_MS: Final = 24 * 3_600_000
"""So much of a Retry-After is obeyed."""
_ABSURD_MS: Final = 3_600_000
"""A pause may seem longer than it can have been made by so much; else the clock was set back."""
_STEP_MS: Final = 60_000
_DAYS: Final = {name: i for i, name in enumerate(("mon", "tue", "wed", "thu", "fri", "sat", "sun"))}
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DATES: Final = (
    re.compile(r"(?P<w>[A-Za-z]{3}), (?P<d>\d\d) (?P<m>[A-Za-z]{3}) (?P<y>\d{4}) (?P<t>\d\d:\d\d:\d\d) GMT", re.ASCII),
    re.compile(
        r"(?P<w>[A-Za-z]{3})[a-z]{3,6}, (?P<d>\d\d)-(?P<m>[A-Za-z]{3})-(?P<y>\d\d) (?P<t>\d\d:\d\d:\d\d) GMT", re.ASCII
    ),
    re.compile(r"(?P<w>[A-Za-z]{3}) (?P<m>[A-Za-z]{3}) (?P<d>[ \d]\d) (?P<t>\d\d:\d\d:\d\d) (?P<y>\d{4})", re.ASCII),
)
"""IMF-fixdate, RFC 850 and asctime: a recipient takes all three (RFC 9110, section 5.6.7)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """How long not to ask. Times are Unix milliseconds of the probe's clock."""

    failures: int = 0
    """One after the other; 0 after a success."""
    since_ms: int = 0
    until_ms: int = 0
    asked: bool = False
    """The collector said how long (Retry-After)."""


def after_failure(pause: Pause, now_ms: int, rng: random.Random, retry_after_ms: int | None = None) -> Pause:
    """The next pause: between nothing and twice as long as at most before, never shorter than was asked for.

    What was asked for is followed by jitter of its own, because everybody was told the same.
    """
    failures = min(pause.failures + 1, 1000)
    ceiling_ms = min(MOST_MS, FIRST_MS * 2 ** min(failures - 1, 30))
    wait_ms = max(LEAST_MS, rng.randrange(ceiling_ms + 1))
    asked = retry_after_ms is not None and retry_after_ms > 0
    if asked:
        told_ms = min(retry_after_ms or 0, MOST_ASKED_MS)
        wait_ms = told_ms + rng.randrange(min(ceiling_ms, told_ms) + 1)
    return Pause(failures=failures, since_ms=now_ms, until_ms=now_ms + wait_ms, asked=asked)


def waits_until_ms(pause: Pause, now_ms: int) -> int | None:
    """When one may ask again; None where that is now.

    A pause that begins in the future or ends later than any may is void: the clock was set back since.
    """
    longest_ms = MOST_ASKED_MS + MOST_MS if pause.asked else MOST_MS
    if pause.until_ms <= now_ms or now_ms < pause.since_ms - _STEP_MS:
        return None
    return None if pause.until_ms - now_ms > longest_ms + _ABSURD_MS else pause.until_ms


def retry_after_ms(headers: Mapping[str, str], now_ms: int) -> int | None:
    """What Retry-After asks for, at most a day; None where it is missing or means nothing (RFC 9110, 10.2.3).

    A date is compared with the answer's own Date, because a router's clock may be years away; without one with ours.
    """
    value = headers.get("retry-after", "").strip()[:40]
    if value.isascii() and value.isdigit():
        return min(int(value) * 1000, MOST_ASKED_MS)
    then_ms = http_date_ms(value)
    if then_ms is None:
        return None
    told_ms = http_date_ms(headers.get("date", "").strip()[:40])
    return min(max(then_ms - (now_ms if told_ms is None else told_ms), 0), MOST_ASKED_MS)


def http_date_ms(text: str) -> int | None:
    """Unix milliseconds of an HTTP date; None where it is none."""
    match = next((found for pattern in _DATES if (found := pattern.fullmatch(text))), None)
    if match is None or match["w"].lower() not in _DAYS or match["m"].lower() not in _MONTHS:
        return None
    year, day = int(match["y"]), int(match["d"])
    year += 0 if len(match["y"]) == 4 else 2000  # who writes two digits today means this century
    hours, minutes, seconds = (int(part) for part in match["t"].split(":"))
    if not 1970 <= year < 2200 or not 1 <= day <= 31 or hours > 23 or minutes > 59 or seconds > 60:
        return None
    days = _days(year, _MONTHS.index(match["m"].lower()) + 1, day)
    return (((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000


def _days(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a date of the Gregorian calendar, whose years are taken to begin in March."""
    year -= month <= 2
    from_march = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return year * 365 + year // 4 - year // 100 + year // 400 + from_march - 719_468


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a probe and its collector stand; kept in RAM as `upload.json`."""

    collector: str = ""
    """Whom the rest is about: the pause that one collector earned is none for the next."""
    pause: Pause = Pause()
    contact_ms: int = 0
    """When it last gave an answer that we understand; 0 is never."""
    uploaded_ms: int = 0
    """When it last acknowledged a record."""
    failure: str = ""
    detail: str = ""
    """Why the last attempt failed; empty after a success."""
    refused: int = 0
    """Records that it will never take."""
    refused_reason: str = ""
    refused_name: str = ""
    """Of the last of them."""

    def of(self, collector: str) -> Standing:
        """This standing if it is that collector's, else a fresh one."""
        return self if self.collector == collector else Standing(collector=collector)

    def answered(self, now_ms: int) -> Standing:
        """It answered as it should: no pause any more."""
        return replace(self, pause=Pause(), contact_ms=now_ms, failure="", detail="")

    def failed(
        self, now_ms: int, rng: random.Random, *, failure: str, detail: str = "", asked_ms: int | None = None
    ) -> Standing:
        """It could not be reached, or has to be asked again later; `asked_ms` is its Retry-After."""
        pause = after_failure(self.pause, now_ms, rng, asked_ms)
        return replace(self, pause=pause, failure=failure, detail=detail)


def load(run: Path) -> Standing:
    """What `save` kept in the run's directory; a fresh standing where there is nothing or it cannot be read."""
    try:
        found = read_object(run / "upload.json") or {}
    except (OSError, ValueError):
        return Standing()
    told = found.get("pause")
    pause = Pause(**_known(Pause(), told if isinstance(told, dict) else {}))
    return replace(Standing(pause=pause), **_known(Standing(), found))


def save(run: Path, standing: Standing, *, durable: bool = False) -> None:
    """Keep it. Raises OSError."""
    write_small(run / "upload.json", json.dumps({"v": 1, **asdict(standing)}).encode() + b"\n", durable=durable)


def _known(default: Any, found: dict[str, Any]) -> dict[str, Any]:
    """The members of `found` that `default` has with the same simple type."""
    kept: dict[str, Any] = {}
    for name in type(default).__slots__:
        value = found.get(name)
        if type(value) is not type(getattr(default, name)):
            continue
        if isinstance(value, str):
            kept[name] = value[:256]
        elif isinstance(value, int) and 0 <= value <= MAX_INT:
            kept[name] = value
    return kept

# SPDX-License-Identifier: EUPL-1.2
"""How a probe stands, told to whoever gave it a place: in four languages, with what is uncertain said as such.

The words are data (sentences.toml). A probe counts its own pairs and says what such a count can carry; it never judges,
because one line is never a case. Nothing here reads a clock. Spec: spec/probe.md, section "Seeing it".
"""

from __future__ import annotations

import math
import time
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from probe.consent import LANGUAGES, amount
from probe.settings import Language
from probe.wire.limits import MAX_TIME_MS

ENOUGH_PAIRS: Final = 14
"""So many open a case on three quiet lines where an app is 30 % slower (spec/statistics.md)."""
_SURE: Final = 20.0
"""Chance alone: at most one line in so many ever looks one-sided (Ville 1939)."""
_STAKES: Final = (0.4, 0.6, 0.8, 0.95)
"""As the rule's own (spec/statistics.md, section 2)."""
OVERDUE_MS: Final = 3_600_000
"""A turn that is so late does not come."""
_DAYS: Final[dict[Language, str]] = {"en": "%Y-%m-%d", "nl": "%d-%m-%Y", "fr": "%d/%m/%Y", "de": "%d.%m.%Y"}
Found = Literal["few", "even", "slower", "faster"]


@cache
def table() -> dict[str, Any]:
    """Every sentence, by key and language."""
    return tomllib.loads(Path(__file__).with_name("sentences.toml").read_text(encoding="utf-8"))


def say(key: str, language: Language, **places: object) -> str:
    """A sentence with its places filled; what is filled in is never taken for a place itself."""
    found: Any = table()
    for part in key.split("."):
        found = found[part]
    return str(found[language]).format(**places)


def reason_sentence(reason: str, language: Language) -> str:
    """Why nothing is measured and what to do; of a reason that is not in the table at least its name."""
    if reason in table()["reason"]:
        return say(f"reason.{reason}", language)
    return say("waits", language, reason=reason[:40].replace("_", " "))


def looks(pairs: int, slower: int, faster: int, lines: int) -> Found:
    """What so many pairs of one app look like, `lines` (apps and directions) being looked at on this line.

    A coin that nobody holds says which side of a pair goes first, so without any difference `slower` and `faster` are
    a fair game, however often one looks. One bets on it both ways for each line: that all of them together err on at
    most one household in 20, each needs so much more. Under ENOUGH_PAIRS nothing is said at all.
    """
    if pairs < ENOUGH_PAIRS:
        return "few"
    needed = _SURE * 2 * max(1, lines)
    if _won(slower, faster) >= needed:
        return "slower"
    return "faster" if _won(faster, slower) >= needed else "even"


def _won(wins: int, losses: int) -> float:
    """What one unit has become after so many won and lost bets."""
    logs = [wins * math.log1p(stake) + losses * math.log1p(-stake) for stake in _STAKES]
    return sum(math.exp(min(log, 600.0)) for log in logs) / len(logs)


def tell(document: Mapping[str, Any], language: Language, now_ms: int) -> list[str]:
    """The sentences of a `status.json` at a moment; of whatever else may stand in it, only what makes sense."""
    told = _Telling(document, language, now_ms)
    return told.now() + told.collector() + told.budget() + told.results() + told.problems()


class _Telling:
    """One document in one language."""

    def __init__(self, document: Mapping[str, Any], language: Language, now_ms: int) -> None:
        self.document = document
        self.language: Language = language
        self.now_ms = now_ms

    def now(self) -> list[str]:
        """What the last turn did, and when the next one is."""
        outcome, at_ms = self._text(self.document, "outcome"), _number(self.document, "at_ms")
        if not outcome or at_ms is None:
            is_joined = _number(self.document, "enrolled_ms") is not None
            return [self._say("never") if is_joined else reason_sentence("not_enrolled", self.language)]
        reason = self._text(self.document, "reason")
        if outcome in {"measured", "synced"}:
            lines = [self._say(outcome, at=self._at(at_ms))]
        elif reason:
            lines = [reason_sentence(reason, self.language)]
        else:
            lines = [self._say("failed", at=self._at(at_ms))]
        next_ms = _number(self.document, "next_ms")
        if next_ms is not None:
            key = "overdue" if next_ms + OVERDUE_MS < self.now_ms else "next"
            lines.append(self._say(key, at=self._at(next_ms)))
        return lines

    def collector(self) -> list[str]:
        """Whom it works for, and what waits for them."""
        lines: list[str] = []
        collector, spool = _object(self.document, "collector"), _object(self.document, "spool")
        name = self._text(collector, "name")
        contact_ms = _number(collector, "contact_ms")
        if name and contact_ms:
            lines.append(self._say("works_for", name=name, at=self._at(contact_ms)))
        elif name:
            lines.append(self._say("no_contact", name=name))
        until_ms = _number(collector, "waiting_until_ms")
        if until_ms:
            lines.append(self._say("silent", at=self._at(until_ms)))
        waiting, dropped = _number(spool, "sessions"), _number(spool, "dropped")
        if waiting:
            lines.append(self._say("waiting", sessions=waiting))
        if dropped:
            lines.append(self._say("dropped", dropped=dropped))
        return lines

    def budget(self) -> list[str]:
        """What it took of what it may take."""
        budget = _object(self.document, "budget")
        told = {name: _number(budget, f"{name}_mb") for name in ("day", "daily", "month", "monthly")}
        if any(value is None for value in told.values()):
            return []
        amounts = {name: amount(self.language, math.ceil(value or 0)) for name, value in told.items()}
        return [self._say("budget", **amounts)]

    def results(self) -> list[str]:
        """The last session, and the count of pairs of each app."""
        last = _object(self.document, "last")
        ended_ms = _number(last, "ended_ms")
        if ended_ms is None:
            return [self._say("no_last")] if self._text(self.document, "outcome") else []
        pairs = _number(_object(last, "pairs"), "finished") or 0
        key = "last_failed" if self._text(last, "failure") else "last"
        lines = [self._say(key, at=self._at(ended_ms), pairs=pairs)]
        apps = [one for one in _list(self.document, "apps") if isinstance(one, dict)]
        found = [(one, self._looks(one, len(apps))) for one in apps]
        lines += [self._app(one, look) for one, look in found]
        # The caution belongs to whatever says more than "too few".
        return lines + ([self._say("caution")] if any(look != "few" for _, look in found) else [])

    def problems(self) -> list[str]:
        """How much is to be mended."""
        count = len(_list(self.document, "problems"))
        return [self._say("problems", count=count)] if count else []

    def _looks(self, one: Mapping[str, Any], lines: int) -> Found:
        pairs, slower, faster = (int(_number(one, name) or 0) for name in ("pairs", "slower", "faster"))
        return looks(pairs, slower, faster, lines)

    def _app(self, one: Mapping[str, Any], look: Found) -> str:
        title = _object(one, "title").get(self.language)
        direction = self._text(one, "direction")
        way = self._say(f"direction.{direction}") if direction in {"down", "up"} else direction
        places = {name: int(_number(one, name) or 0) for name in ("pairs", "slower", "faster")}
        name = title if isinstance(title, str) else self._text(one, "app")
        return self._say(look, app=name[:80], direction=way, enough=ENOUGH_PAIRS, **places)

    def _say(self, key: str, **places: object) -> str:
        return say(key, self.language, **places)

    def _at(self, unix_ms: float) -> str:
        return local_time(unix_ms, self.language)

    @staticmethod
    def _text(found: Mapping[str, Any], name: str) -> str:
        value = found.get(name)
        return "".join(c for c in value[:200] if c.isprintable()) if isinstance(value, str) else ""


def local_time(unix_ms: float, language: Language) -> str:
    """Day and minute by the device's time zone, as the language writes them."""
    return time.strftime(f"{_DAYS[language]} %H:%M", time.localtime(unix_ms / 1000))


def _number(found: Mapping[str, Any], name: str) -> int | float | None:
    """A count, an amount or a time; None for everything that is none."""
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_TIME_MS:
        return None
    return value


def _object(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = found.get(name)
    return value if isinstance(value, dict) else {}


def _list(found: Mapping[str, Any], name: str) -> list[Any]:
    value = found.get(name)
    return value if isinstance(value, list) else []


def all_languages(document: Mapping[str, Any], now_ms: int) -> dict[str, list[str]]:
    """The sentences of all four."""
    return {language: tell(document, language, now_ms) for language in LANGUAGES}

# SPDX-License-Identifier: EUPL-1.2
"""A conversation on a terminal: sentences in the volunteer's language, questions that Enter skips.

Spec: spec/volunteer.md, section "Consent".
"""

from __future__ import annotations

import contextlib
import io
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TextIO

from probe.consent import amount
from probe.consent.strings import NO, YES, say
from probe.plan import MOST_MONTHLY_MB, ceiling
from probe.settings import Language, Settings, StandsAt, told_hours, told_speed, told_words

_COLUMNS: Final = 72
_LINE: Final = 1024
_TRIES: Final = 5
"""After so many answers that nobody understands a question counts as skipped, and a consent as not given."""
_PLACES: Final[dict[str, StandsAt]] = {"1": "router", "2": "behind_router", "3": "hotspot"}


class _Gone(Exception):
    """The other side hung up (end of input)."""


class Talk:
    """Speaks on `out`, listens on standard input."""

    def __init__(self, language: Language, out: TextIO) -> None:
        self.language: Language = language
        self._out = out
        for stream in (out, sys.stdin):
            if isinstance(stream, io.TextIOWrapper):
                with contextlib.suppress(io.UnsupportedOperation):
                    stream.reconfigure(errors="replace")  # a terminal that lacks a letter still shows the rest

    def tell(self, key: str, **places: str) -> None:
        """A sentence of the table."""
        self._paragraph(say(key, self.language, **places))

    def page(self, text: str) -> None:
        """A text of paragraphs."""
        for paragraph in text.strip().split("\n"):
            self._paragraph(paragraph)
        self._line("")

    def agrees(self, key: str, **places: str) -> bool:
        """Yes or no, and nothing else; no where nobody answers."""
        with contextlib.suppress(_Gone):
            for _ in range(_TRIES):
                word = self._ask(say(key, self.language, **places)).lower()
                if word in YES | NO:
                    return word in YES
                self.tell("hint_yes_no")
        return False

    def question(self, key: str, hint: str, read: Callable[[str], Any], before: Any, shown: str, **places: str) -> Any:
        """One answer; `before` where Enter was pressed, None where it was taken back. Raises _Gone."""
        for _ in range(_TRIES):
            asked = say(key, self.language, **places)
            answer = self._ask(f"{asked} [{shown}]" if shown else asked)
            if not answer:
                return before
            if answer == "-" and shown:
                return None
            try:
                return read(answer)
            except ValueError:
                self.tell(hint)
        return before

    def _ask(self, question: str) -> str:
        self._line("")
        self._paragraph(question)
        self._out.write("> ")
        self._out.flush()
        line = rest = sys.stdin.readline(_LINE)
        while len(rest) == _LINE and not rest.endswith("\n"):
            rest = sys.stdin.readline(_LINE)  # what is too long for an answer is no answer to the next question
        if not line:
            raise _Gone
        return line.strip()

    def _paragraph(self, text: str) -> None:
        self._line(textwrap.fill(text, _COLUMNS, break_long_words=False, break_on_hyphens=False))

    def _line(self, text: str) -> None:
        self._out.write(text + "\n")


def interview(talk: Talk, settings: Settings, told: Mapping[str, str]) -> Settings | None:
    """Ask what the command line has not told yet. None where a hotspot's owner has not agreed, or somebody hung up."""
    talk.tell("skip")
    if any(_shown(talk, settings, key) for key, _, _ in _QUESTIONS):
        talk.tell("keep")
    try:
        for key, hint, read in _QUESTIONS:
            if key not in told:
                settings = _one(talk, settings, key, hint, read)
            if key == "declared_position" and settings.stands_at_hotspot and not talk.agrees("hotspot_owner"):
                return None
    except _Gone:
        return None
    return settings


def _one(talk: Talk, settings: Settings, key: str, hint: str, read: Callable[[str], Any]) -> Settings:
    usual = amount(talk.language, ceiling(replace(settings, monthly_mb=None)).monthly_mb)
    before = getattr(settings, key)
    answer = talk.question(key, hint, read, before, _shown(talk, settings, key), usual=usual)
    empty: Any = () if key == "quiet_hours" else None
    return replace(settings, **{key: empty if answer is None else answer})


def _shown(talk: Talk, settings: Settings, key: str) -> str:
    """An earlier answer as its owner would type it; empty where there is none."""
    value = getattr(settings, key)
    if value is None or value == ():
        return ""
    if key == "declared_position":
        return next(number for number, place in _PLACES.items() if place == value)
    if key == "quiet_hours":
        return ", ".join(str(window) for window in value)
    if key == "monthly_mb":
        return f"{value / 1000:g}"
    if isinstance(value, bool):
        return {"en": "yes no", "nl": "ja nee", "fr": "oui non", "de": "ja nein"}[talk.language].split()[not value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _position(answer: str) -> StandsAt:
    if answer not in _PLACES:
        raise ValueError
    return _PLACES[answer]


def _flag(answer: str) -> bool:
    if answer.lower() not in YES | NO:
        raise ValueError
    return answer.lower() in YES


def _gigabytes(answer: str) -> int:
    number = float(answer.replace(",", "."))
    if not 0 <= number * 1000 <= MOST_MONTHLY_MB:
        raise ValueError
    return round(number * 1000)


_QUESTIONS: Final[tuple[tuple[str, str, Callable[[str], Any]], ...]] = (
    ("declared_position", "hint_declared_position", _position),
    ("brand", "hint_words", told_words),
    ("tariff", "hint_words", told_words),
    ("contract_down_mbps", "hint_speed", told_speed),
    ("contract_up_mbps", "hint_speed", told_speed),
    ("opt_in_filters", "hint_yes_no", _flag),
    ("quiet_hours", "hint_quiet_hours", told_hours),
    ("monthly_mb", "hint_monthly_mb", _gigabytes),
)

# SPDX-License-Identifier: EUPL-1.2
"""Words and figures in the reader's language: which language, which words, and how numbers and dates look.

The words are data (`words/*.toml`), so that a translator needs no Python. Numbers and dates come from Babel's
CLDR tables. Spec: spec/series.md, section "Words and figures".
"""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from importlib import resources
from typing import Any, Final, Literal, get_args

from babel import Locale
from babel.dates import format_date, format_time
from babel.numbers import format_decimal

Language = Literal["en", "nl", "fr", "de"]
LANGUAGES: Final[tuple[Language, ...]] = get_args(Language)
NAMES: Final[dict[Language, str]] = {"en": "English", "nl": "Nederlands", "fr": "Français", "de": "Deutsch"}
_LOCALES: Final[dict[Language, str]] = {"en": "en_GB", "nl": "nl", "fr": "fr", "de": "de"}

THIN: Final = "\u202f"
"""Narrow no-break space, before units: a figure and its unit are never parted by the end of a line."""
MINUS: Final = "\u2212"
_SUPERSCRIPTS: Final = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def choose(asked: str | None, accept: str | None) -> Language:
    """The language of a page: the one asked for in the address, else the reader's first that we have, else English.

    `accept` is the header Accept-Language (RFC 9110, section 12.5.4); what cannot be read in it is passed over.
    """
    for language in LANGUAGES:
        if asked == language:
            return language
    wishes: list[tuple[float, int, Language]] = []
    for place, part in enumerate((accept or "").split(",")[:32]):
        tag, _, parameter = part.partition(";")
        primary = tag.strip().lower().split("-")[0]
        quality = _quality(parameter)
        wishes += [(-quality, place, language) for language in LANGUAGES if language == primary and quality > 0]
    return min(wishes)[2] if wishes else "en"


def _quality(parameter: str) -> float:
    name, _, value = parameter.strip().partition("=")
    if not name:
        return 1.0
    try:
        quality = float(value)
    except ValueError:
        return 0.0
    return quality if name.strip() == "q" and 0 <= quality <= 1 else 0.0


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one language; calling it with a key such as `case.sure` gives the text."""

    language: Language
    texts: dict[str, str]
    entries: tuple[tuple[str, str, str], ...]
    """The glossary: anchor, word, explanation, in alphabetical order of the language."""

    def __call__(self, key: str, /, **values: object) -> str:
        """The text under a dotted key with its {placeholders} filled in. KeyError where there is none."""
        return self.texts[key].format(**values) if values else self.texts[key]

    def has(self, key: str) -> bool:
        """Whether there is a text under this key."""
        return key in self.texts

    def count(self, key: str, number: int) -> str:
        """A counted thing: `key`_one or `key`_other, by the language's plural rule."""
        form = Locale.parse(_LOCALES[self.language]).plural_form(number)
        return self(f"{key}_{'one' if form == 'one' else 'other'}", n=self.whole(number))

    def whole(self, number: float) -> str:
        """A whole number with the language's separators."""
        return self._decimal(round(number), "#,##0")

    def rate(self, mbps: float) -> str:
        """A rate in Mbit/s with about three digits: 0.42, 3.1, 118."""
        pattern = "0.00" if abs(mbps) < 0.995 else "0.0" if abs(mbps) < 99.5 else "#,##0"
        return f"{self._decimal(mbps, pattern)}{THIN}Mbit/s"

    def mark(self, number: float, unit: str) -> str:
        """A figure on an axis: as few decimals as it needs, and the unit on one mark only."""
        figure = self._decimal(number, "#,##0.###")
        return f"{figure}{THIN}{unit}" if unit else figure

    def size(self, kilobytes: float) -> str:
        """An amount of data; kB = 1000 bytes."""
        if kilobytes >= 1000:
            return f"{self._decimal(kilobytes / 1000, '#,##0.0')}{THIN}MB"
        return f"{self._decimal(kilobytes, '#,##0')}{THIN}kB"

    def percent(self, fraction: float) -> str:
        """0.3 as 30 %, rounded to whole percents."""
        return f"{self._decimal(_rounded(fraction * 100), '#,##0')}{THIN}%"

    def tenths(self, fraction: float) -> str:
        """0.062 as 6.2 %: small shares, such as of packets that were lost."""
        return f"{self._decimal(fraction * 100, '0.0')}{THIN}%"

    def percents(self, low: float, high: float) -> tuple[str, str]:
        """Both ends of an interval, the first without the sign, as in "40 to 61 %".

        Rounded outwards: an interval is never shown narrower than it is. Below -100 % (twice as fast) its
        exact place says nothing, so it stops at "< -100".
        """
        floor = math.floor(max(low, -10.0) * 100 + 1e-9)
        first = f"<{THIN}{MINUS}100" if floor < -100 else self._decimal(floor, "#,##0")
        return first, f"{self._decimal(math.ceil(min(high, 10.0) * 100 - 1e-9), '#,##0')}{THIN}%"

    def delay(self, ms: float) -> str:
        """A time in ms: 4.2 ms, 34 ms."""
        return f"{self._decimal(ms, '0.0' if abs(ms) < 9.95 else '#,##0')}{THIN}ms"

    def delays(self, low: float, high: float) -> tuple[str, str]:
        """Both ends of an interval of times, the first without the unit; rounded outwards."""
        return self._decimal(
            math.floor(low + 1e-9), "#,##0"
        ), f"{self._decimal(math.ceil(high - 1e-9), '#,##0')}{THIN}ms"

    def points(self, fraction: float) -> str:
        """A difference between two shares: 0.062 as 6.2 percentage points."""
        return f"{self._decimal(fraction * 100, '0.0')}{THIN}{self('unit.points')}"

    def both_points(self, low: float, high: float) -> tuple[str, str]:
        """Both ends of an interval of such differences, the first without the unit; rounded outwards."""
        first, last = (f(v * 1000 - d) / 10 for f, v, d in ((math.floor, low, -1e-9), (math.ceil, high, 1e-9)))
        return self._decimal(first, "0.0"), f"{self._decimal(last, '0.0')}{THIN}{self('unit.points')}"

    def evidence(self, log10_e: float) -> str:
        """Strength of evidence: 0.4, 37, 12,000, 25,000,000, and powers of ten from a thousand million on."""
        if log10_e >= 9:
            exponent = min(300, math.floor(log10_e + 1e-9))
            return "10" + str(exponent).translate(_SUPERSCRIPTS)
        value = 10.0 ** max(log10_e, -300.0)
        if value < 0.01:
            return f"< {self._decimal(0.01, '0.00')}"
        # Rounded down: the strength is never shown larger than it is.
        if value < 10:
            return self._decimal(math.floor(value * 100 + 1e-6) / 100, "0.0#")
        digits = 10 ** max(0, math.floor(math.log10(value)) - 1)
        return self._decimal(math.floor(value / digits + 1e-9) * digits, "#,##0")

    def power(self, exponent: int) -> str:
        """A power of ten for an axis: 1, 10, 1,000, 10⁶."""
        if -3 < exponent < 5:
            return self._decimal(10.0**exponent, "#,##0.##")
        return "10" + str(exponent).translate(_SUPERSCRIPTS)

    def day(self, day: date | str) -> str:
        """A day as it is written out: 22 November 2026. Text that is no ISO day is given back."""
        try:
            on = date.fromisoformat(day) if isinstance(day, str) else day
        except ValueError:
            return str(day)
        pattern = "d. MMMM y" if self.language == "de" else "d MMMM y"
        text = str(format_date(on, pattern, locale=_LOCALES[self.language]))
        if self.language == "fr" and on.day == 1:
            text = text.replace("1 ", "1er ", 1)
        return text.replace(" ", "\u00a0")

    def day_of(self, time_ms: int) -> str:
        """The UTC day of a Unix time in ms."""
        return self.day(_utc(time_ms).date())

    def moment(self, time_ms: int) -> str:
        """Day and minute of a Unix time in ms, in UTC."""
        return f"{self.day_of(time_ms)}, {self.clock(time_ms)}"

    def clock(self, time_ms: int) -> str:
        """The minute of a Unix time in ms, in UTC."""
        return f"{format_time(_utc(time_ms), 'HH:mm', locale=_LOCALES[self.language])} UTC"

    def _decimal(self, number: float, pattern: str) -> str:
        return str(format_decimal(number + 0.0, pattern, locale=_LOCALES[self.language])).replace("-", MINUS)


def _utc(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, tz=UTC)


def _rounded(number: float) -> float:
    """Half away from zero, and never a minus in front of nought."""
    return math.copysign(math.floor(abs(number) + 0.5), number) if abs(number) >= 0.5 else 0.0


@cache
def words(language: Language) -> Words:
    """The words of a language, read once."""
    file = resources.files("collector.pages") / "words" / f"{language}.toml"
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    entries = table["glossary"].pop("entries")
    return Words(
        language=language,
        texts={key: _typeset(text, language) for key, text in _flat(table, "")},
        entries=tuple(
            sorted(
                ((name, _typeset(word, language), _typeset(text, language)) for name, (word, text) in entries.items()),
                key=lambda entry: entry[1].casefold(),
            )
        ),
    )


def _flat(table: dict[str, Any], path: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in table.items():
        if isinstance(value, dict):
            found += _flat(value, f"{path}{name}.")
        else:
            found.append((path + name, str(value)))
    return found


def _typeset(text: str, language: Language) -> str:
    """The words are typed with ordinary spaces; here they become those at which no line may end."""
    text = re.sub(r"(?<=\d) ms\b", f"{THIN}ms", text.replace(" %", f"{THIN}%"))
    if language == "fr":
        text = re.sub(r" ([;?!»])", f"{THIN}\\1", text.replace(" :", "\u00a0:"))
        text = text.replace("« ", f"«{THIN}")
    return text

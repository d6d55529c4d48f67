# SPDX-License-Identifier: EUPL-1.2
"""What the owner of a device chose: budgets, quiet hours, what is known of the line.

One flat JSON object. OpenWrt's configuration knows only texts, so every value may be one ("12", "1", "yes"), and an
empty text means "not told". A wrong value is told in a sentence that begins with its key, takes its default, and the
rest goes on: a probe that nobody looks at must not stop because of a misspelt tariff.
Spec: spec/volunteer.md, section "Settings".
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, cast

from probe.wire.codec import WireError, dumps, loads
from probe.wire.scrub import find_address, scrub

MAX_SETTINGS_BYTES: Final = 64 * 1024
"""Largest settings file that is read."""
DAY_MIN: Final = 24 * 60
_QUOTE: Final = "'"
_MOST_PROBLEMS: Final = 24
_MOST_TEXT: Final = 64
"""As in the environment record (probe/wire/records.py), which these texts end up in."""
_MOST_PATH: Final = 1024
_MOST_WINDOWS: Final = 16
_MOST_MB: Final = 10_000_000

Metered = Literal["auto", "yes", "no"]
StandsAt = Literal["router", "behind_router", "hotspot"]
Language = Literal["nl", "fr", "de", "en"]

_YES: Final = frozenset({"1", "yes", "true", "on", "enabled"})
_NO: Final = frozenset({"0", "no", "false", "off", "disabled"})
"""The spellings of OpenWrt's own scripts."""
_WINDOW: Final = re.compile(r"([0-9]{1,2}):([0-9]{2})\s*-\s*([0-9]{1,2}):([0-9]{2})")
_URL: Final = re.compile(r"https?://[^\s/?#]+(?:/[^\s?#]*)?(?:#sha256=[0-9a-fA-F]{64})?")
_KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_INTERFACE: Final = re.compile(r"[A-Za-z0-9_.@+-]{1,15}")
"""IFNAMSIZ leaves 15 characters (linux/if.h)."""


@dataclass(frozen=True, slots=True, order=True)
class QuietHours:
    """From one minute of the local day until another; over midnight where the end is not later than the start."""

    start_min: int
    end_min: int

    def holds(self, minute: int) -> bool:
        """Whether a minute of the day (0 to 1439) lies inside. The end itself does not."""
        if self.start_min < self.end_min:
            return self.start_min <= minute < self.end_min
        return minute >= self.start_min or minute < self.end_min

    def __str__(self) -> str:
        at = [f"{minute // 60:02d}:{minute % 60:02d}" for minute in (self.start_min, self.end_min or DAY_MIN)]
        return "-".join(at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything an owner may set. None means "not told"."""

    collector: str | None = None
    """Address of the collector, `https://…`."""
    collector_key: str | None = None
    """Its key id, where the owner has it from elsewhere."""
    daily_mb: int | None = None
    """At most so much a day (10^6 bytes); the lower of this and the plan's holds. 0: nothing."""
    monthly_mb: int | None = None
    quiet_hours: tuple[QuietHours, ...] = ()
    """Local time in which nothing is measured."""
    metered: Metered = "auto"
    declared_position: StandsAt | None = None
    hotspot: bool = False
    brand: str | None = None
    tariff: str | None = None
    contract_down_mbps: float | None = None
    contract_up_mbps: float | None = None
    opt_in_filters: bool | None = None
    interface: str | None = None
    """The WAN interface, on a router."""
    bind: str | None = None
    """Local address to connect from."""
    textfile: str | None = None
    """Where a Prometheus textfile is written."""
    login_hook: str | None = None
    """The owner's own program for a portal; none is ever run unless it is named here."""
    language: Language | None = None
    enabled: bool = True

    @property
    def stands_at_hotspot(self) -> bool:
        """Told in either way."""
        return self.hotspot or self.declared_position == "hotspot"

    def quiet_left_min(self, minute: int) -> int:
        """Minutes from this minute of the local day (0 to 1439) until quiet hours are over; 0 outside of them.

        1440 where the windows together fill the day, so that nothing is ever measured.
        """
        for left in range(DAY_MIN):
            if not any(window.holds((minute + left) % DAY_MIN) for window in self.quiet_hours):
                return left
        return DAY_MIN


NAMES: Final = tuple(field.name for field in fields(Settings))
_TOLD: Final[dict[str, Callable[[Any], Any]]] = {}


class _Wrong(ValueError):
    """What a value must be."""


# -- reading ----------------------------------------------------------------------------------------------------


def read_settings(path: Path) -> tuple[Settings, tuple[str, ...]]:
    """The settings in a file, and what is wrong with it in sentences that begin with the key.

    A file that does not exist is no problem: everything has a default. One that cannot be read as a whole is one
    problem, told under the name of the file.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SETTINGS_BYTES + 1)
    except FileNotFoundError:
        return Settings(), ()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return Settings(), (f"{path.name} cannot be read ({reason}): all settings have their defaults",)
    if len(raw) > MAX_SETTINGS_BYTES:
        return Settings(), (f"{path.name} is larger than 64 kB: it must be one JSON object of the settings alone",)
    return parse_settings(raw, path.name)


def parse_settings(raw: bytes, name: str = "settings.json") -> tuple[Settings, tuple[str, ...]]:
    """The settings in the bytes of a file; never raises, whatever the bytes are."""
    try:
        document = loads(raw, longest=MAX_SETTINGS_BYTES)
    except WireError as error:
        why = str(error.reason).replace("_", " ")
        return Settings(), (f"{name} cannot be understood ({why}): it must be one JSON object of the settings",)
    if not isinstance(document, dict):
        return Settings(), (f"{name} must be one JSON object, and is none",)
    return settings_of(document)


def settings_of(document: Mapping[str, Any]) -> tuple[Settings, tuple[str, ...]]:
    """The settings in plain JSON values, and the problems."""
    found: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in document.items():
        reader = _TOLD.get(key)
        if reader is None:
            problems.append(f"{_shown(key).strip(_QUOTE) or 'a key'} is not a setting; known are {', '.join(NAMES)}")
            continue
        if value is None or (isinstance(value, str) and not value.strip()) or value == []:
            continue
        try:
            found[key] = reader(value)
        except _Wrong as wrong:
            problems.append(f"{key} must be {wrong}, not {_shown(value)}")
    if len(problems) > _MOST_PROBLEMS:
        more = len(problems) - _MOST_PROBLEMS
        problems = [*problems[:_MOST_PROBLEMS], f"settings have {more} more problems, which are not listed"]
    return Settings(**found), tuple(problems)


def _shown(value: Any) -> str:
    """A stranger's value in a sentence: short, one line, without addresses."""
    plain = value if isinstance(value, str) else dumps(value).decode()
    plain = scrub("".join(letter if letter.isprintable() else "?" for letter in plain[:400]))
    return f"'{plain[:40]}…'" if len(plain) > 40 else f"'{plain}'"


# -- one kind of value after the other --------------------------------------------------------------------------


def _text(value: Any, expected: str, longest: int = _MOST_TEXT) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _Wrong(expected)
    plain = str(value).strip()
    # What does not print could turn the rest of a line around (Unicode, bidirectional controls).
    if len(plain) > longest or not plain.isprintable():
        raise _Wrong(expected)
    return plain


def told_words(value: Any) -> str:
    """Words of the owner's that end up in a signed record: 64 characters, nothing that looks like an address."""
    expected = "words of at most 64 characters without an IP or MAC address"
    if isinstance(value, str):
        value = " ".join(value.split())  # pasted from a bill, with all sorts of blanks
    plain = _text(value, expected)
    if find_address(plain):
        raise _Wrong(expected)
    return plain


def told_flag(value: Any) -> bool:
    """Yes or no, in any of the usual spellings."""
    word = str(value).strip().lower() if isinstance(value, bool | str | int) else ""
    if word in _YES:
        return True
    if word in _NO:
        return False
    raise _Wrong("yes or no")


def told_megabytes(value: Any) -> int:
    """A whole number of MB, 0 or more."""
    expected = "a whole number of megabytes (0 or more)"
    plain = _text(value, expected)
    if not re.fullmatch(r"[0-9]{1,9}(?:\.0*)?", plain) or int(plain.partition(".")[0]) > _MOST_MB:
        raise _Wrong(expected)
    return int(plain.partition(".")[0])


def told_speed(value: Any) -> float:
    """A speed in Mbit/s; a comma may stand for the point, as on half of Europe's bills."""
    expected = "a speed in Mbit/s, above 0 and at most 1000000"
    plain = _text(value, expected).replace(",", ".")
    if not re.fullmatch(r"[0-9]{1,7}(?:\.[0-9]{1,6})?", plain) or not 0 < float(plain) <= 1_000_000:
        raise _Wrong(expected)
    return float(plain)


def told_hours(value: Any) -> tuple[QuietHours, ...]:
    """Windows like "22:30-07:00", as a list or in one text with commas."""
    expected = 'times of the day like "22:30-07:00", with commas between several'
    listed = value.split(",") if isinstance(value, str) else value
    if not isinstance(listed, list) or len(listed) > _MOST_WINDOWS:
        raise _Wrong(expected)
    return tuple(_window(one, expected) for one in listed)


def _window(value: Any, expected: str) -> QuietHours:
    match = _WINDOW.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise _Wrong(expected)
    hours, minutes = (int(match[1]), int(match[3])), (int(match[2]), int(match[4]))
    start, end = hours[0] * 60 + minutes[0], hours[1] * 60 + minutes[1]
    if max(minutes) > 59 or start >= DAY_MIN or end > DAY_MIN:
        raise _Wrong(expected)
    if start == end % DAY_MIN and end != DAY_MIN:
        raise _Wrong(f"{expected}, with an end that differs from the start")
    return QuietHours(start, end % DAY_MIN)


def _one_of(*words: str, **also: str) -> Callable[[Any], str]:
    listed = f"{', '.join(words[:-1])} or {words[-1]}"

    def read(value: Any) -> str:
        word = str(value).strip().lower() if isinstance(value, str | bool | int) else ""
        word = also.get(word, word)
        if word not in words:
            raise _Wrong(listed)
        return word

    return read


def _metered(value: Any) -> Metered:
    word = str(value).strip().lower() if isinstance(value, str | bool | int) else ""
    if word in _YES | _NO:
        return "yes" if word in _YES else "no"
    if word != "auto":
        raise _Wrong("auto, yes or no")
    return "auto"


def told_position(value: Any) -> StandsAt:
    """Where the device stands."""
    return cast("StandsAt", _one_of("router", "behind_router", "hotspot")(value))


def _matching(pattern: re.Pattern[str], expected: str, longest: int = 512) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        plain = _text(value, expected, longest)
        if not pattern.fullmatch(plain):
            raise _Wrong(expected)
        return plain

    return read


def _path(expected: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        plain = _text(value, expected, _MOST_PATH)
        if not plain.startswith("/") or plain.endswith("/"):
            raise _Wrong(expected)
        return plain

    return read


def _address(value: Any) -> str:
    expected = "an IP address of this device"
    plain = _text(value, expected)
    try:
        ipaddress.ip_address(plain)
    except ValueError:
        raise _Wrong(expected) from None
    return plain


_TOLD.update(
    collector=_matching(_URL, "an address like https://HOST"),
    collector_key=_matching(_KEY_ID, "a key id of 43 characters, as the collector's people publish it"),
    daily_mb=told_megabytes,
    monthly_mb=told_megabytes,
    quiet_hours=told_hours,
    metered=_metered,
    declared_position=told_position,
    hotspot=told_flag,
    brand=told_words,
    tariff=told_words,
    contract_down_mbps=told_speed,
    contract_up_mbps=told_speed,
    opt_in_filters=told_flag,
    interface=_matching(_INTERFACE, "the name of a network interface, like eth0.2"),
    bind=_address,
    textfile=_path("the full path of a file, beginning with /"),
    login_hook=_path("the full path of a program, beginning with /"),
    language=_one_of("nl", "fr", "de", "en"),
    enabled=told_flag,
)


# -- writing ----------------------------------------------------------------------------------------------------


def plain_settings(settings: Settings) -> dict[str, Any]:
    """What is not the default, as plain JSON values that `settings_of` reads back."""
    usual = Settings()
    plain: dict[str, Any] = {}
    for name in NAMES:
        value = getattr(settings, name)
        if value != getattr(usual, name):
            plain[name] = [str(window) for window in value] if name == "quiet_hours" else value
    return plain


def write_settings(path: Path, settings: Settings) -> None:
    """Replace the file in one step that survives a power cut. Raises OSError."""
    from probe.state import write_whole  # noqa: PLC0415  (costs memory, and writing is rare)

    write_whole(path, dumps(plain_settings(settings)) + b"\n")

# SPDX-License-Identifier: EUPL-1.2
"""Settings: whatever a file holds is either understood or told in a sentence, and the rest goes on."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.settings import (
    DAY_MIN,
    NAMES,
    QuietHours,
    Settings,
    parse_settings,
    plain_settings,
    read_settings,
    settings_of,
    write_settings,
)

KEY = "PSNo6jGLQpkPpXHn3h8rnB-dJFllH9QbRIx0KZCLYeA"
EVERYTHING = Settings(
    collector="https://collector.example:8443/net",
    collector_key=KEY,
    daily_mb=120,
    monthly_mb=0,
    quiet_hours=(QuietHours(1350, 420), QuietHours(720, 0), QuietHours(0, 0)),
    metered="no",
    declared_position="behind_router",
    hotspot=True,
    brand="Beispiel & Söhne",
    tariff="Giga 1.000",
    contract_down_mbps=1000.0,
    contract_up_mbps=12.5,
    opt_in_filters=False,
    interface="eth0.2",
    bind="192.0.2.7",
    textfile="/var/lib/node_exporter/evenlane.prom",
    login_hook="/usr/bin/hook",
    language="de",
    enabled=False,
)


def test_every_setting_survives_the_file(tmp_path: Path) -> None:
    assert all(getattr(EVERYTHING, field.name) != getattr(Settings(), field.name) for field in fields(Settings))
    path = tmp_path / "settings.json"
    write_settings(path, EVERYTHING)
    assert read_settings(path) == (EVERYTHING, ())
    write_settings(path, Settings())
    assert (path.read_text(), read_settings(path)) == ("{}\n", (Settings(), ()))
    assert [one.name for one in tmp_path.iterdir()] == ["settings.json"]


def test_texts_do_for_every_value_because_routers_know_nothing_else() -> None:
    plain = plain_settings(EVERYTHING)
    as_texts = {name: value if isinstance(value, str) else str(value) for name, value in plain.items()}
    as_texts |= {"hotspot": "1", "enabled": "0", "opt_in_filters": "no", "quiet_hours": ",".join(plain["quiet_hours"])}
    assert settings_of(as_texts) == (EVERYTHING, ())


@pytest.mark.parametrize("nothing", ["", "  ", None, []])
def test_nothing_told_is_the_default(nothing: object) -> None:
    assert settings_of(dict.fromkeys(NAMES, nothing)) == (Settings(), ())


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("enabled", "off", False),
        ("hotspot", True, True),
        ("hotspot", "Yes", True),
        ("metered", True, "yes"),
        ("metered", "0", "no"),
        ("daily_mb", 12.0, 12),
        ("daily_mb", "007", 7),
        ("monthly_mb", 10_000_000, 10_000_000),
        ("contract_down_mbps", "1000000", 1_000_000.0),
        ("contract_up_mbps", "0.256", 0.256),
        ("quiet_hours", ["22:59-23:00"] * 16, (QuietHours(1379, 1380),) * 16),
        ("contract_down_mbps", "12,5", 12.5),
        ("contract_down_mbps", 100, 100.0),
        ("brand", 3, "3"),
        ("brand", "x" * 64, "x" * 64),
        ("brand", " Big\u00a0Net\n ", "Big Net"),
        ("quiet_hours", "22:30-07:00", (QuietHours(1350, 420),)),
        ("quiet_hours", "7:00 - 8:00,22:00-24:00", (QuietHours(420, 480), QuietHours(1320, 0))),
        ("quiet_hours", ["00:00-24:00"], (QuietHours(0, 0),)),
        ("language", "NL", "nl"),
        ("bind", "2001:db8::7", "2001:db8::7"),
        ("collector", "http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("collector", "https://c.example#sha256=" + "aB" * 32, "https://c.example#sha256=" + "aB" * 32),
    ],
)
def test_what_is_understood(key: str, value: object, read: object) -> None:
    settings, problems = settings_of({key: value})
    assert problems == ()
    assert getattr(settings, key) == read


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("collector", "collector.example", "an address like https://"),
        ("collector", "https://a b", "an address like https://"),
        ("collector", "ftp://a.example", "an address like https://"),
        ("collector", "https://" + "a" * 505, "an address like https://"),
        ("collector_key", "short", "a key id of 43 characters"),
        ("daily_mb", "lots", "a whole number of megabytes"),
        ("daily_mb", -1, "a whole number of megabytes"),
        ("daily_mb", 1.5, "a whole number of megabytes"),
        ("daily_mb", True, "a whole number of megabytes"),
        ("monthly_mb", "99999999999", "a whole number of megabytes"),
        ("monthly_mb", 10_000_001, "a whole number of megabytes"),
        ("quiet_hours", "22:30", "times of the day"),
        ("quiet_hours", "22:60-07:00", "times of the day"),
        ("quiet_hours", "24:00-07:00", "times of the day"),
        ("quiet_hours", "22:00-24:01", "times of the day"),
        ("quiet_hours", "22:00-07:00,", "times of the day"),
        ("quiet_hours", "08:00-08:00", "an end that differs from the start"),
        ("quiet_hours", "00:00-00:00", "an end that differs from the start"),
        ("quiet_hours", ["22:00-23:00"] * 17, "times of the day"),
        ("quiet_hours", [7], "times of the day"),
        ("quiet_hours", {"from": "22:00"}, "times of the day"),
        ("metered", "maybe", "auto, yes or no"),
        ("metered", 1.0, "auto, yes or no"),
        ("declared_position", "cellar", "router, behind_router or hotspot"),
        ("hotspot", "perhaps", "yes or no"),
        ("enabled", 2, "yes or no"),
        ("enabled", 1.0, "yes or no"),
        ("brand", "x" * 65, "at most 64 characters"),
        ("brand", "at 192.0.2.1", "without an IP or MAC address"),
        ("tariff", "00:1b:44:11:3a:b7", "without an IP or MAC address"),
        ("tariff", "turned \u202e around", "at most 64 characters"),
        ("tariff", ["list"], "at most 64 characters"),
        ("contract_down_mbps", 0, "a speed in Mbit/s"),
        ("contract_down_mbps", "fast", "a speed in Mbit/s"),
        ("contract_down_mbps", 1_000_001, "a speed in Mbit/s"),
        ("contract_up_mbps", "1e9", "a speed in Mbit/s"),
        ("contract_up_mbps", "-3", "a speed in Mbit/s"),
        ("interface", "eth0; reboot", "the name of a network interface"),
        ("bind", "localhost", "an IP address of this device"),
        ("textfile", "here.prom", "the full path of a file"),
        ("textfile", "/folder/", "the full path of a file"),
        ("login_hook", "hook", "the full path of a program"),
        ("language", "eo", "nl, fr, de or en"),
    ],
)
def test_a_wrong_value_is_one_sentence_and_the_rest_goes_on(key: str, value: object, words: str) -> None:
    beside = {"brand": "Example"} if key != "brand" else {"tariff": "Example"}
    settings, problems = settings_of({key: value, **beside})
    assert len(problems) == 1
    assert problems[0].startswith(f"{key} must be ")
    assert words in problems[0]
    assert "\n" not in problems[0]
    assert "192.0.2.1" not in problems[0]
    assert settings == replace(Settings(), **beside)  # type: ignore[arg-type]


def test_an_unknown_key_is_told_with_those_there_are() -> None:
    settings, problems = settings_of({"colector": "https://a.example", "daily_mb": 5})
    assert settings == Settings(daily_mb=5)
    assert [problem.split(";")[0] for problem in problems] == ["colector is not a setting"]
    assert "collector_key" in problems[0]
    hostile = "k\x1b[2J\n" * 40
    [problem] = settings_of({hostile: 1})[1]
    assert problem.isprintable()
    assert len(problem) < 400


def test_a_thousand_unknown_keys_are_a_few_sentences() -> None:
    _, problems = settings_of({f"k{number}": 1 for number in range(1000)})
    assert len(problems) == 25
    assert problems[-1] == "settings have 976 more problems, which are not listed"
    assert not any("more problems" in one for one in settings_of({f"k{number}": 1 for number in range(24)})[1])


def test_the_largest_file_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(b'{"daily_mb":5' + b" " * (65_536 - 14) + b"}")
    assert path.stat().st_size == 65_536
    assert read_settings(path) == (Settings(daily_mb=5), ())


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"daily_mb = 5", "cannot be understood (not json)"),
        (b"\xff\xfe", "cannot be understood (not utf8)"),
        (b'{"daily_mb":1,"daily_mb":2}', "cannot be understood (duplicate key)"),
        (b'{"daily_mb":NaN}', "cannot be understood (not finite)"),
        (b"[" * 30 + b"]" * 30, "cannot be understood (too deep)"),
        (b"[1]", "must be one JSON object"),
        (b"{" + b" " * 65_536 + b"}", "larger than 64 kB"),
    ],
)
def test_a_file_that_is_none_is_one_problem(tmp_path: Path, raw: bytes, words: str) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(raw)
    settings, problems = read_settings(path)
    assert settings == Settings()
    assert len(problems) == 1
    assert problems[0].startswith("settings.json ")
    assert words in problems[0]


def test_a_file_that_is_not_there_or_cannot_be_read(tmp_path: Path) -> None:
    assert read_settings(tmp_path / "none.json") == (Settings(), ())
    settings, problems = read_settings(tmp_path)  # a directory
    assert settings == Settings()
    assert "cannot be read" in problems[0]


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=9), inner),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_bytes_are_settings_or_problems(raw: bytes) -> None:
    settings, problems = parse_settings(raw)
    assert all(problem.isprintable() and len(problem) < 500 for problem in problems)
    # What was read is as good as what is written: it comes back.
    assert settings_of(plain_settings(settings)) == (settings, ())


def test_the_specification_lists_every_setting() -> None:
    text = (Path(__file__).parents[2] / "spec" / "volunteer.md").read_text(encoding="utf-8")
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert sorted(name.strip(" `") for cell in table for name in cell.split(",")) == sorted(NAMES)


# -- quiet hours ------------------------------------------------------------------------------------------------


def test_quiet_hours_over_midnight() -> None:
    night = QuietHours(22 * 60 + 30, 7 * 60)
    assert [night.holds(minute) for minute in (22 * 60 + 29, 22 * 60 + 30, 0, 419, 420)] == [
        False, True, True, True, False,
    ]  # fmt: skip
    noon = QuietHours(720, 780)
    assert [noon.holds(minute) for minute in (719, 720, 779, 780)] == [False, True, True, False]
    settings = Settings(quiet_hours=(night, noon, QuietHours(420, 450)))
    assert settings.quiet_left_min(22 * 60 + 30) == 9 * 60  # two windows that touch are one silence
    assert settings.quiet_left_min(450) == 0
    assert settings.quiet_left_min(779) == 1
    assert Settings(quiet_hours=(QuietHours(0, 0),)).quiet_left_min(5) == DAY_MIN
    assert Settings().quiet_left_min(0) == 0


@given(st.lists(st.tuples(st.integers(0, 1439), st.integers(0, 1439)), max_size=4), st.integers(0, 1439))
def test_the_silence_ends_when_it_says(windows: list[tuple[int, int]], minute: int) -> None:
    settings = Settings(quiet_hours=tuple(QuietHours(*window) for window in windows))
    left = settings.quiet_left_min(minute)
    quiet = [any(window.holds((minute + at) % DAY_MIN) for window in settings.quiet_hours) for at in range(left + 1)]
    assert all(quiet[:left])
    assert left == DAY_MIN or not quiet[left]


def test_a_hotspot_may_be_told_in_two_ways() -> None:
    assert Settings(hotspot=True).stands_at_hotspot
    assert Settings(declared_position="hotspot").stands_at_hotspot
    assert not Settings(declared_position="router").stands_at_hotspot

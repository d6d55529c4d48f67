# SPDX-License-Identifier: EUPL-1.2
"""When others use the line: counters of this device, and round-trip times where there is no counter."""

from __future__ import annotations

from pathlib import Path

import pytest

from probe.household import Household, find, is_inflated, is_much, on_this_device
from probe.line import Line
from probe.wire.records import Environment

WAN = Line("wan", is_wifi=False, is_vpn=False)
EDGE = Environment(position="edge", upstream_router=False)


def write(root: Path, received: int, sent: int) -> None:
    directory = root / "sys/class/net/wan/statistics"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "rx_bytes").write_text(f"{received}\n")
    (directory / "tx_bytes").write_text(f"{sent}\n")


@pytest.mark.parametrize(
    ("environment", "line", "source"),
    [
        (EDGE, WAN, "router"),
        (Environment(position="edge", upstream_router=True), WAN, None),
        (Environment(position="edge"), WAN, None),
        (Environment(position="behind_nat", upstream_router=True), WAN, None),
        (Environment(position="behind_nat", upstream_router=False), WAN, None),
        (EDGE, Line("wg0", is_wifi=False, is_vpn=True), None),
        (EDGE, None, None),
    ],
)
def test_only_the_houses_router_counts_the_house(
    tmp_path: Path, environment: Environment, line: Line | None, source: str | None
) -> None:
    write(tmp_path, 1, 2)
    house = on_this_device(environment, line, tmp_path)
    assert house.source == source
    assert house.count() == (3 if source else None)
    assert find(environment, "127.0.0.1", line, tmp_path).source == source, "there is no gateway to ask on this paper"


def test_what_is_much() -> None:
    assert not is_much(625_000, 5.0)
    assert is_much(625_001, 5.0)


def test_a_stream_is_busy_and_a_trickle_is_not() -> None:
    readings = iter([(0, 0), (10_000, 2_400), (0, 0), (100_000, 400_000)])

    def count() -> int:
        return sum(next(readings))

    house = Household("router", count)
    assert house.is_busy(0.1) is False, "12.4 kB in 0.1 s are just below 1 Mbit/s"
    assert house.is_busy(0.1) is True


def test_a_counter_that_fails_half_way_says_nothing() -> None:
    readings = iter([5, None])
    assert Household("router", lambda: next(readings)).is_busy(0.01) is None


def test_a_counter_that_lags_is_not_used_within_pairs() -> None:
    house = Household("igd", lambda: 7)
    house.check(None, 5, 1000)
    house.check(5, 505, 1000)
    house.check(5, 5, 0)
    assert house.source == "igd"
    house.check(5, 504, 1000)
    assert (house.source, house.count()) == (None, None)


@pytest.mark.parametrize(
    ("took", "smallest", "expected"),
    [
        ([20, 21, 22], 20.0, False),
        ([34, 34, 34], 20.0, False),
        ([36, 36, 36], 20.0, True),
        ([20, 21, 90], 20.0, False),
        ([20, 90, 91], 20.0, True),
        ([20, None, None], 20.0, True),
        ([None, None, None], 20.0, None),
        ([36, 36, 36], None, None),
        ([20, 60, 60], None, True),
        ([36, 36], 20.0, None),
        ([], 20.0, None),
        ([10, 12, 12], 20.0, False),
        ([10, 30, 30], 20.0, True),
    ],
)
def test_round_trips_against_the_smallest_ever_seen(
    took: list[float | None], smallest: float | None, expected: bool | None
) -> None:
    assert is_inflated(took, smallest) is expected


def test_without_a_counter_round_trips_are_looked_at_for_the_whole_window() -> None:
    asked: list[int] = []

    def ping() -> float:
        asked.append(1)
        return 60.0

    house = Household(None, None)
    assert house.is_busy(1.0, ping=ping, smallest_ms=20.0) is True
    assert 3 <= len(asked) <= 5
    assert house.is_busy(0.01) is None


def test_with_a_counter_nobody_is_pinged() -> None:
    def ping() -> float:
        raise AssertionError

    assert Household("igd", lambda: 5).is_busy(0.05, ping=ping, smallest_ms=1.0) is False

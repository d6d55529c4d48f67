# SPDX-License-Identifier: EUPL-1.2
"""How a calibration grows, and what counts as a queue."""

from __future__ import annotations

import pytest

from probe.netio.calibration import Samples
from probe.protocol.ramp import RAMP, QueueSigns, ramp_bytes, ramp_mbps


@pytest.mark.parametrize("most", [0.5, 1.0, 20.0, 0.0])
def test_what_may_have_been_sent_is_the_area_under_the_pace(most: float) -> None:
    step, total = 0.0001, 0.0
    for number in range(10_000):
        at = (number + 0.5) * step
        total += ramp_mbps(at, most) * 1e6 / 8 * step
    assert ramp_bytes(1.0, most) == pytest.approx(total, rel=1e-3)


def test_it_begins_gently_doubles_within_a_tenth_and_never_exceeds_its_limit() -> None:
    paces = [ramp_mbps(number / 100, 20.0) for number in range(101)]
    assert paces[0] == 1.0
    assert paces == sorted(paces)
    assert max(paces) == paces[round(RAMP * 100)] == 20.0
    assert all(later <= 2.2 * now for now, later in zip(paces, paces[10:], strict=False))
    assert ramp_mbps(0.2, 0.4) == 0.4, "a limit below the start"
    assert ramp_bytes(-1.0, 20.0) == 0.0
    assert ramp_mbps(RAMP * 0.5, 20.0, 0.5) == 20.0, "a shorter one grows faster"
    assert ramp_bytes(0.5, 20.0, 0.5) == pytest.approx(ramp_bytes(1.0, 20.0) / 2)


def signs(*took: float | None, idle: float = 20.0) -> bool:
    found = QueueSigns(idle)
    for ms in took:
        found.took(ms)
    return found.is_queueing


def test_two_long_round_trips_in_a_row_or_one_very_long_one_are_a_queue() -> None:
    assert not signs(20, 29, 29, 29)
    assert not signs(31, 20, 31, 20, 31)
    assert signs(31, 31)
    assert signs(20, 51)
    assert signs(None), "one that nobody waited for"
    assert not signs(120, 120, idle=100.0), "on a long line a quarter more is needed"
    assert signs(126, 126, idle=100.0)


def samples(*points: tuple[float, int]) -> Samples:
    found = Samples(points[0][0], 0.5, points[0][1])
    for at, total in points[1:]:
        found.add(at, total)
    return found


def test_what_came_first_counts_for_no_rate() -> None:
    # 16 kB at once, then 5 Mbit/s: the first record says nothing of the line.
    found = samples(*((number / 50, 16_384 + number * 12_500) for number in range(6)))
    assert found.rate_mbps(of_the_last=True) == pytest.approx(5.0)
    assert found.rate_mbps(of_the_last=False) is None, "the half is not reached"


def test_the_rate_where_a_queue_ended_it_is_that_of_the_last_moments() -> None:
    found = samples(*((number / 50, min(number, 10) * 1000 + max(0, number - 10) * 25_000) for number in range(21)))
    assert found.rate_mbps(of_the_last=True) == pytest.approx(10.0)


def test_the_rate_of_a_whole_one_is_that_of_its_second_half() -> None:
    found = samples(*((number / 50, number * 1000 + max(0, number - 25) * 24_000) for number in range(51)))
    assert found.rate_mbps(of_the_last=False) == pytest.approx(10.0, rel=0.05)


def test_nothing_that_moved_is_no_rate() -> None:
    assert samples((0.0, 0), (0.5, 0), (1.0, 0)).rate_mbps(of_the_last=True) is None
    assert samples((0.0, 0)).rate_mbps(of_the_last=False) is None

# SPDX-License-Identifier: EUPL-1.2
"""The reflector's clock: steps of the system's clock do not reach a session that is open."""

from __future__ import annotations

import itertools

import pytest

from probe.reflector.clock import SteadyClock

HOUR_NS = 3_600_000_000_000


class System:
    """A wall clock that can be set, and a monotonic one that cannot."""

    def __init__(self) -> None:
        self.set_by_ns = 1_800_000_000_000_000_000
        self.up_ns = 5_000_000_000

    def steady(self) -> SteadyClock:
        return SteadyClock(lambda: self.set_by_ns + self.up_ns, lambda: self.up_ns)

    def ms(self) -> int:
        return (self.set_by_ns + self.up_ns) // 1_000_000


@pytest.mark.parametrize("step_ns", [HOUR_NS, -HOUR_NS])
def test_a_step_is_taken_when_nobody_is_in_the_way(step_ns: int) -> None:
    system = System()
    clock = system.steady()
    told = [clock.ms()]
    system.set_by_ns += step_ns
    for _ in range(10):
        system.up_ns += 1_000_000_000
        clock.settle(is_idle=False)
        told.append(clock.ms())
    gaps = [after - before for before, after in itertools.pairwise(told)]
    assert all(950 <= gap <= 1050 for gap in gaps), "gently, and never back"
    clock.settle(is_idle=True)
    assert clock.ms() == system.ms()


def test_a_clock_that_drifts_is_followed_also_under_a_reflector_that_is_never_empty() -> None:
    system = System()
    clock = system.steady()
    for _ in range(1000):
        system.up_ns += 1_000_000_000
        system.set_by_ns += 30_000  # 30 ppm
        clock.settle(is_idle=False)
        assert clock.ms() == system.ms()

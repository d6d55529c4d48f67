# SPDX-License-Identifier: EUPL-1.2
"""Two days of a probe's life with everything that goes wrong; tests/bench/test_agent_month.py has thirty."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("agent_days", Path(__file__).with_name("agent_days.py"))
assert _spec is not None
assert _spec.loader is not None
d = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("agent_days", d)
_spec.loader.exec_module(d)


@pytest.mark.parametrize("seed", range(4))
def test_two_bad_days_lose_and_double_nothing(tmp_path: Path, seed: int) -> None:
    days = d.Days(tmp_path / "probe", seed, d.Faults(reboots_per_day=1.0), interval_s=7200)
    days.live(2)
    days.check_records()
    assert days.kills > 5
    assert days.durable_writes < 2 * 8 + 6 * days.reboots + 10
    for day, count in days.by_day.items():
        assert count <= 200e6 * (2 if day in days.skewed_days else 1)


def test_good_days_measure_at_the_plans_rate(tmp_path: Path) -> None:
    calm = d.Faults(0, 0, 0, 0, 0, 0, 0)
    days = d.Days(tmp_path / "probe", 3, calm, interval_s=14_400)
    days.live(5)
    days.check_records()
    assert 18 <= len(days.kept_ids) <= 43  # 30 expected
    assert set(days.kept_ids) == set(days.collector.records)
    assert max(days.by_day.values()) <= 200e6
    assert days.reasons["not_due"] < 24 * 5  # sleeps between


def test_a_small_budget_binds_and_holds(tmp_path: Path) -> None:
    days = d.Days(tmp_path / "probe", 5, d.Faults(0, 0, 0, 0, 0, 0, 0), interval_s=1800, daily_mb=90)
    days.live(3)
    assert days.reasons["budget_day"] > 0
    assert max(days.by_day.values()) <= 90e6
    assert sum(days.by_day.values()) > 0.4 * 3 * 90e6  # and is used
    assert days.turns < 3 * 24 * 6

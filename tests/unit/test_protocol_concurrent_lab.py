# SPDX-License-Identifier: EUPL-1.2
"""Which profiles the lab measures where a rule delays, drops or puts last: those whose small packets can show it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.classify import Match
from lab.model import Link, Rule, Scenario
from lab.run import BUNDLED, LATENCY_ACTIONS, apps_of, load_all


def scenario(*rules: Rule, expect: frozenset[tuple[str, str]] = frozenset()) -> Scenario:
    return Scenario(name="s", link=Link(), rules=rules, expect=expect)


@pytest.mark.parametrize("action", sorted(LATENCY_ACTIONS))
def test_calls_by_name_and_by_first_bytes(action: str) -> None:
    named = Rule(Match(sni=("*.teams.microsoft.com",)), action)  # type: ignore[arg-type]
    assert apps_of(scenario(named)) == ["teams+live"]
    shown = Rule(Match(payload=("rtp", "stun"), proto="udp"), action)  # type: ignore[arg-type]
    assert apps_of(scenario(shown)) == ["rtp+live", "stun+live"]


def test_where_no_profile_has_small_packets_rates_are_compared() -> None:
    assert apps_of(scenario(Rule(Match(sni=("*.googlevideo.com",)), "drop", loss=0.1))) == ["youtube"]


def test_a_throttle_is_looked_for_with_transfers() -> None:
    assert apps_of(scenario(Rule(Match(payload=("rtp",)), "police", down_mbps=1.0))) == ["rtp"]
    assert apps_of(scenario(Rule(Match(sni=("*.teams.microsoft.com",)), "shape", down_mbps=1.0))) == ["teams"]


def test_the_truth_chooses_where_it_names_the_app() -> None:
    rule = Rule(Match(payload=("rtp",)), "deprioritise")
    assert apps_of(scenario(rule, expect=frozenset({("rtp", "slowing")}))) == ["rtp"]
    assert apps_of(scenario(rule, expect=frozenset({("rtp+live", "slowing")}))) == ["rtp+live"]


@pytest.mark.parametrize("path", sorted(BUNDLED.glob("*call*.toml")), ids=lambda path: path.stem)
def test_the_bundled_scenarios_are_measured_with_live_profiles(path: Path) -> None:
    [one] = load_all([str(path)])
    assert all(app.endswith("+live") for app in apps_of(one)), apps_of(one)
    assert bool(one.expect) != one.name.startswith("neutral")

# SPDX-License-Identifier: EUPL-1.2
"""What `lab run` measures, when, and what it makes of the cells; and that bad input ends in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from lab.classify import Match
from lab.model import Rule, Scenario
from lab.run import Outcome, Plan, accused, apps_of, find, load_all, table
from lab.scenario import ScenarioError


def scenario(*rules: Rule, expect: tuple[tuple[str, str], ...] = ()) -> Scenario:
    return Scenario("x", rules=rules, expect=frozenset(expect))


def by_name(*patterns: str, hours: tuple[float, float] | None = None) -> Rule:
    return Rule(Match(sni=patterns), "block", hours=hours)


def test_apps_are_those_of_the_truth_and_of_the_rules_names() -> None:
    assert apps_of(scenario()) == ["youtube", "instagram", "signal"]
    assert apps_of(scenario(Rule(Match(payload=("opaque",)), "block"))) == ["youtube", "instagram", "signal"]
    assert apps_of(scenario(by_name("*.googlevideo.com"))) == ["youtube"]
    assert apps_of(scenario(by_name("*.nflxvideo.net"), expect=(("tiktok", "slowing"),))) == ["netflix", "tiktok"]


def test_apps_of_other_carriers_come_from_rules_about_them():
    about = {
        ("youtube+quic",): Match(quic_sni=("*.googlevideo.com",)),
        ("sip", "sip+tcp"): Match(payload=("sip",)),
        ("sip+tcp",): Match(payload=("sip",), proto="tcp"),
        ("bittorrent+udp",): Match(payload=("bittorrent",), proto="udp"),
        ("youtube",): Match(sni=("*.googlevideo.com",), proto="tcp"),
    }
    for apps, match in about.items():
        assert apps_of(scenario(Rule(match, "block"))) == list(apps)


@pytest.mark.parametrize(
    ("rules", "expect", "active"),
    [
        ([by_name("a", hours=(18, 23))], True, True),
        ([by_name("a", hours=(22, 2))], True, True),
        ([by_name("a", hours=(18, 23))], False, False),
        ([by_name("a", hours=(10, 14))], False, False),
    ],
)
def test_the_emulated_time_is_one_at_which_the_truth_holds(rules: list[Rule], expect: bool, active: bool) -> None:
    one = scenario(*rules, expect=(("signal", "blocking"),) if expect else ())
    assert [rule.active_at(Plan().hour_for(one)) for rule in rules] == [active]
    at = datetime.fromisoformat("2026-03-02T07:30")
    assert Plan(now=at).hour_for(one) == 7.5


def cell(state: str, effect: str = "slowing", **other: object) -> dict[str, object]:
    return {
        "app": "youtube", "effect": effect, "state": state, "direction": "down", "pairs": 36, "e_value": 1e9,
        "slowdown": {"estimate": 0.87, "low": 0.8, "high": 0.9}, "reasons": [], **other,
    }  # fmt: skip


def test_only_corroborated_cells_accuse() -> None:
    cells = [cell("corroborated"), cell("replicated", "blocking"), cell("indication", "prioritising")]
    assert accused(cells) == ["youtube:slowing"]
    assert accused([]) == []


def test_an_outcome_tells_truth_and_verdict() -> None:
    one = Outcome("x", "tun", ["youtube:slowing"], ["youtube:slowing"], [cell("corroborated")], 40.0, None, ["youtube"])
    assert one.as_json()["ok"] is True
    assert "ok (40 s)" in table([one])
    other = Outcome("x", "relay", [], ["a:blocking"], [], 1.0, "x was late", [], ["no loss here"])
    text = table([other])
    assert "DIFFERS" in text
    assert "void: x was late" in text
    assert "note: no loss here" in text


def test_a_cell_without_rates_or_interval_is_told_all_the_same() -> None:
    nothing = {"estimate": None, "low": None, "high": None}
    cells = [cell("not_testable", slowdown=nothing), cell("insufficient", slowdown={**nothing, "estimate": 0.5})]
    text = table([Outcome("x", "tun", [], [], [*cells, cell("indication", slowdown=None)], 1.0, None, [])])
    assert text.count("no rates") == 2
    assert "+50% (? to ?)" in text


def test_bundled_scenarios_are_found_by_name_and_files_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find("neutral-idle").name == "neutral-idle.toml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "neutral-idle").write_text('name = "mine"')
    assert load_all(["neutral-idle"])[0].name == "mine"
    (tmp_path / "bad.toml").write_text('name = "x"\n[expect]\neffects = ["gopher:slowing"]')
    with pytest.raises(ScenarioError, match="no profile of an app gopher; known are"):
        load_all(["bad.toml"])


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "evenlane.cli", "lab", "run", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name = "x"\n[[rule]]\nmatch = { snl = "a" }\naction = "block"', "rule[0].match.snl: unknown key; did you"),
        ('name = "x', "is not valid TOML"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_bad_scenario_is_a_usage_error_in_one_sentence(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "one.toml"
    if text is not None:
        path.write_text(text)
    ended = command(str(path))
    assert ended.returncode == 2
    assert says in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert ended.stdout == ""


@pytest.mark.parametrize("arguments", [["--pairs", "0"], ["--segment-s", "x"], ["--now", "late"], ["--driver", "ns3"]])
def test_bad_options_are_usage_errors(arguments: list[str]) -> None:
    assert command("neutral-idle", *arguments).returncode == 2


def test_what_a_relay_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    path.write_text('name = "x"\n[[rule]]\nmatch = { sni = "a" }\naction = "police"\ndown_mbps = 1')
    ended = command(str(path), "--driver", "relay", "--json")
    assert ended.returncode == 3
    assert "rule[0].action: the relay driver cannot police" in ended.stderr
    assert ended.stdout == ""


def test_json_of_an_outcome_has_the_agreed_keys() -> None:
    row = Outcome("x", "tun", [], [], [], 1.0, None, ["youtube"]).as_json()
    assert {"name", "driver", "expected", "found", "ok", "cells", "seconds", "void_reason"} <= set(row)
    assert json.loads(json.dumps(row)) == row

# SPDX-License-Identifier: EUPL-1.2
"""The engine `path`: the same row is the same run, coins are fair, and what comes out is what the operator does."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from analysis.pairs import Pair
from lab.accuracy import path, reading
from lab.accuracy.model import Measure, Played, Row
from lab.classify import Match
from lab.model import CrossTraffic, Link, Rule, Scenario
from lab.scenario import ScenarioError

LINK = Link(down_mbps=50, up_mbps=10, rtt_ms=20, buffer_ms=100)
VIDEO = Match(sni=("*.googlevideo.com",))
POLICE = Rule(VIDEO, "police", down_mbps=1.5, burst_kb=64)
ROWS = sorted(path.stem for path in reading.ROWS.glob("*.toml") if 'engine = "path"' in path.read_text("utf-8"))


def row(*rules: Rule, link: Link = LINK, cross: CrossTraffic | None = None, **changes: Any) -> Row:
    options = changes.pop("options", {})
    measure = Measure(**{"probes": 1, "pairs": 6, "apps": ("youtube",), **changes})
    return Row(
        name="row",
        kind="neutral",
        title="t",
        why="w",
        engine="path",
        scenario=Scenario("row", link, cross, rules),
        measure=measure,
        options=options,
    )


def pairs(of: Row, repeat: int = 0) -> list[Pair]:
    return [one.pair for one in path.play(of, repeat).played]


def measured(of: Row, repeat: int = 0) -> list[Pair]:
    return [pair for pair in pairs(of, repeat) if pair.kind == "test"]


def slower(pair: Pair) -> float:
    """log(neutral / app): positive where the app is slower."""
    ratio = pair.log_ratio()
    assert ratio is not None
    return ratio if pair.neutral_first else -ratio


def test_the_same_repeat_is_the_same_run_and_another_is_not() -> None:
    noisy = row(POLICE, link=replace(LINK, loss=0.01, jitter_ms=5))
    assert path.play(noisy, 3) == path.play(noisy, 3)
    assert path.play(noisy, 3) != path.play(noisy, 4)


def test_every_probe_measures_every_app_and_placebos_are_strewn_in() -> None:
    played = pairs(row(probes=3, pairs=10, apps=("youtube", "signal"), segment_s=0.3))
    counted = Counter((p.probe, p.cell.app) for p in played if p.kind == "test")
    assert len(counted) == 6
    assert set(counted.values()) == {10}
    assert 6 <= sum(p.kind == "placebo" for p in played) <= 9, "one in ten"
    assert len({p.id for p in played}) == len(played)
    assert [p.order for p in played] == sorted(p.order for p in played)
    assert {p.network for p in played} == {"network-0", "network-1", "network-2"}


def test_coins_are_fair() -> None:
    quick = row(pairs=150, segment_s=0.2, pace_mbps=1.0, options={"fixed_pace": True})
    coins = [p.neutral_first for repeat in range(10) for p in measured(quick, repeat)]
    assert len(coins) == 1500
    assert abs(sum(map(bool, coins)) - 750) < 3.3 * math.sqrt(1500) / 2


def test_a_neutral_line_has_no_difference_and_no_favourite_order() -> None:
    for pair in measured(row()):
        assert abs(slower(pair)) < 0.02
        assert pair.pace_mbps == 12.0
        assert pair.ended_ms is not None
        assert pair.ended_ms > pair.started_ms + 2000


def test_a_throttle_by_name_slows_the_app_and_its_placebo_not() -> None:
    for pair in pairs(row(POLICE, pairs=10)):
        if pair.kind == "test":
            assert slower(pair) > 1.5
        else:
            assert abs(slower(pair)) < 0.02, "two neutral names"


def test_bins_and_rates_agree_and_octets_are_what_was_sent() -> None:
    for one in path.play(row(POLICE, pairs=4), 0).played:
        if one.pair.kind != "test":
            continue
        neutral = one.pair.first_mbps if one.pair.neutral_first else one.pair.second_mbps
        assert statistics.fmean(one.neutral_bins_mbps[5:]) == pytest.approx(neutral, rel=0.01)
        assert statistics.fmean(one.app_bins_mbps) < statistics.fmean(one.neutral_bins_mbps)
        assert 1.4e6 < one.octets < 2.6e6


def test_the_pace_follows_the_line_unless_it_is_fixed() -> None:
    slow = replace(LINK, down_mbps=5, buffer_ms=200)
    assert {round(p.pace_mbps, 1) for p in pairs(row(link=slow))} == {2.9}
    assert {p.pace_mbps for p in pairs(row(link=slow, options={"fixed_pace": True}, pace_mbps=8.0))} == {8.0}


def test_uploads_are_throttled_by_rules_for_uploads_alone() -> None:
    up = Rule(VIDEO, "police", up_mbps=1.0, burst_kb=32)
    assert all(slower(p) > 0.8 for p in measured(row(up, direction="up")))
    assert all(abs(slower(p)) < 0.02 for p in measured(row(up)))


def test_a_share_of_the_subscribers_is_treated_and_stays_so() -> None:
    played = measured(row(replace(POLICE, share=0.34), probes=6, pairs=4))
    slowed = {p.probe for p in played if slower(p) > 1}
    assert len(slowed) == 2
    assert {p.probe for p in played if slower(p) < 0.1} == {p.probe for p in played} - slowed


def test_hours_decide_session_by_session() -> None:
    peak = replace(POLICE, hours=(18.0, 23.0))
    played = measured(row(peak, pairs=40, pace_mbps=4.0, options={"days": 10, "sessions_a_day": 4, "fixed_pace": True}))
    assert len({p.started_ms // path.DAY_MS for p in played}) == 10
    seen = {True: 0, False: 0}
    for pair in played:
        inside = 18 <= pair.started_ms % path.DAY_MS / 3_600_000 < 23
        seen[inside] += 1
        assert (slower(pair) > 0.7) == inside
    assert min(seen.values()) > 3


@pytest.mark.parametrize(("action", "seconds"), [("reset", 1.5), ("block", 4.5)])
def test_a_cut_app_is_absent_and_costs_its_time_out(action: Any, seconds: float) -> None:
    for pair in measured(row(Rule(VIDEO, action))):
        app_failed, neutral_failed = pair.first_failed, pair.second_failed
        if pair.neutral_first:
            app_failed, neutral_failed = neutral_failed, app_failed
        assert (app_failed, neutral_failed) == (True, False)
        assert pair.log_ratio() is None
        assert pair.ended_ms is not None
        assert (pair.ended_ms - pair.started_ms) / 1000 == pytest.approx(seconds, abs=0.6)


def test_a_reset_in_the_middle_ends_the_segment() -> None:
    for pair in measured(row(Rule(VIDEO, "reset", after_kb=200))):
        assert pair.first_failed != pair.second_failed


def test_heavy_loss_fails_segments_of_either_arm() -> None:
    failed: Counter[bool] = Counter()
    for repeat in range(6):
        for pair in measured(row(link=replace(LINK, loss=0.25), pairs=12), repeat):
            if pair.first_failed != pair.second_failed:
                failed[pair.first_failed == pair.neutral_first] += 1
    assert sum(failed.values()) > 8
    assert min(failed.values()) > 1


def test_lost_pairs_and_flags_and_places_are_as_asked() -> None:
    asked = {"lost": 0.5, "flags": ["captive_portal"], "access": "mobile", "cpu_mbps": 2.0}
    played = pairs(row(pairs=40, segment_s=0.2, options=asked))
    assert 8 < sum(p.lost for p in played) < 36
    assert {p.flags for p in played} == {frozenset({"captive_portal", "short_of_cpu"})}
    assert {p.cell.access for p in played} == {"mobile"}
    assert max(p.first_mbps or 0 for p in played) < 2.1
    home, cgnat = (pairs(row(probes=2, pairs=1, link=replace(LINK, nat=nat))) for nat in ("home", "cgnat"))  # type: ignore[arg-type]
    assert {p.edge for p in home} == {False}
    assert {p.network for p in cgnat} == {"carrier-nat"}


def test_household_traffic_is_told_where_it_weighs() -> None:
    quiet, busy = CrossTraffic("constant", 0.1, 0), CrossTraffic("constant", 8, 0)
    link = replace(LINK, down_mbps=30)
    assert not set().union(*(p.flags for p in pairs(row(link=link, cross=quiet))))
    assert {p.flags for p in pairs(row(link=link, cross=busy))} == {frozenset({"household_traffic"})}


@pytest.mark.parametrize("which", ["treated", "untreated"])
def test_a_session_that_moves_to_another_network_says_so(which: str) -> None:
    played = pairs(row(POLICE, options={"second_path": which}))
    assert [("path_changed" in p.flags) for p in played] == [False] + [True] * (len(played) - 1)
    assert {p.edge for p in played} == {False}
    later = [slower(p) for p in played[1:] if p.kind == "test"]
    assert all((y > 1) == (which == "treated") for y in later)


CALL = Match(payload=("rtp",), direction="down")
BUSY = replace(LINK, down_mbps=8, up_mbps=2, buffer_ms=120)


def calls(*rules: Rule, link: Link = BUSY, **options: Any) -> list[Pair]:
    asked = {"design": "concurrent", **options}
    return measured(row(*rules, link=link, apps=("rtp",), segment_s=2.0, pairs=5, options=asked))


def app_and_neutral(pair: Pair, what: str) -> tuple[float, float]:
    first, second = getattr(pair, f"first_{what}"), getattr(pair, f"second_{what}")
    return (second, first) if pair.neutral_first else (first, second)


def test_slots_of_a_concurrent_pair_wait_in_one_queue() -> None:
    for pair in calls():
        assert pair.design == "concurrent"
        assert pair.queued
        assert pair.first_mbps is None
        app, neutral = app_and_neutral(pair, "delay_ms")
        assert app == pytest.approx(neutral, abs=4)
        assert app > 50, "behind the load"


def test_a_delayed_call_waits_so_much_longer() -> None:
    for pair in calls(Rule(CALL, "delay", delay_ms=30)):
        app, neutral = app_and_neutral(pair, "delay_ms")
        assert app - neutral == pytest.approx(30, abs=4)


def test_a_dropped_call_loses_so_much_more() -> None:
    gaps = [app - neutral for app, neutral in (app_and_neutral(p, "loss") for p in calls(Rule(CALL, "drop", loss=0.2)))]
    assert statistics.fmean(gaps) == pytest.approx(0.2, abs=0.06)


def test_a_yielding_call_starves_behind_the_load_and_not_without_it() -> None:
    for pair in calls(Rule(CALL, "deprioritise")):
        app, neutral = app_and_neutral(pair, "delay_ms")
        assert app > neutral + 200
    for pair in calls(Rule(CALL, "deprioritise"), link=replace(LINK, down_mbps=100)):
        assert not pair.queued
        app, neutral = app_and_neutral(pair, "delay_ms")
        assert app == pytest.approx(neutral, abs=3)


def test_a_blocked_call_is_absent() -> None:
    for pair in calls(Rule(Match(payload=("rtp",)), "block")):
        assert pair.first_failed != pair.second_failed
        assert pair.first_failed == (not pair.neutral_first)


def test_one_after_the_other_is_not_played_over_udp() -> None:
    with pytest.raises(ScenarioError, match=r"measure\.apps: rtp is carried over UDP"):
        path.play(row(apps=("rtp",)), 0)


def test_an_option_that_nobody_reads_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"options\.cpu_mbit: unknown"):
        path.play(row(options={"cpu_mbit": 2}), 0)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_can_be_played(name: str) -> None:
    """Two pairs of each: it plays, and a neutral one is not lopsided by construction."""
    whole = reading.load(reading.ROWS / f"{name}.toml")
    assert whole.engine == "path"
    small = replace(whole, measure=replace(whole.measure, probes=1, pairs=2, segment_s=1.0))
    played: tuple[Played, ...] = path.play(small, 0).played
    apps = {one.pair.cell.app for one in played}
    assert len([one for one in played if one.pair.kind == "test"]) == 2 * len(apps)
    assert all(one.octets > 0 for one in played)
    assert {app for app, _ in whole.expected} <= apps

# SPDX-License-Identifier: EUPL-1.2
"""Real sessions over bad paths: a pair is right, void or lost, and nobody is accused of a path's faults."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.classify import Match
from lab.model import Link, Rule, Scenario
from lab.scenario import ScenarioError
from lab.stage import Stage
from probe.wire.rate import rate_mbps

_spec = importlib.util.spec_from_file_location("robust", Path(__file__).with_name("robust.py"))
assert _spec is not None
assert _spec.loader is not None
robust = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("robust", robust)
_spec.loader.exec_module(robust)

pytestmark = pytest.mark.lab

DRIVERS = ["tun", pytest.param("veth", marks=pytest.mark.slow)]
"""The second one's own tests are in test_lab_drivers.py."""
VIDEO = Match(sni=("*.googlevideo.com",))
LINE: dict[str, Any] = {"down_mbps": 20, "up_mbps": 20, "rtt_ms": 20, "buffer_ms": 100}


def stage_of(driver: str, subscribers: int = 2, **link: Any) -> Stage:
    return Stage([Scenario("x", Link(**{**LINE, **link}))], driver=robust.need(driver), subscribers=subscribers)


def run(
    driver: str, *, pairs: int = 2, segment_s: float = 0.5, direction: str = "down", subscribers: int = 2, **link: Any
):
    with stage_of(driver, subscribers, **link) as stage:
        stage.start_reflector()
        return robust.run_all(stage, pairs=pairs, segment_s=segment_s, direction=direction)


def all_right(ran: Any, within: float = 0.15) -> None:
    """Every pair complete, at its pace, both arms alike; the verdict knows no lost pair."""
    ran.need_a_machine_with_time()
    assert ran.outcomes == {"both"}
    for first, second in ran.rates():
        assert first == pytest.approx(second, rel=within)
        assert first == pytest.approx(robust.PACE, rel=within)
    assert {cell["lost_pairs"] for cell in ran.cells} == {0}
    assert [told.measurement.failure for told in ran.told] == [None] * len(ran.told)


@pytest.mark.parametrize("driver", DRIVERS)
def test_both_families_both_ways_at_one_reflector(driver: str) -> None:
    """Its pool has addresses of both families; each probe gets those that it can reach."""
    scenarios = [Scenario(f"ipv{family}", Link(**LINE, family=family)) for family in (4, 6)]
    with Stage(scenarios, driver=robust.need(driver), subscribers=1) as stage:
        stage.start_reflector()
        ran = robust.run_all(stage, pairs=2, direction="both")
    all_right(ran)
    origins = [told.receipt.origin for told in ran.told]
    assert {(origin.operator, origin.family) for origin in origins} == {("ipv4", 4), ("ipv6", 6)}
    assert {origin.edge for origin in origins} == {True}
    assert {origin.asn for origin in origins} == {64496, 64497}
    assert len({origin.network for origin in origins}) == 2
    assert {pair.direction for pair in ran.pairs()} == {"down", "up"}


@pytest.mark.parametrize("driver", DRIVERS)
def test_rules_act_on_ipv6_lines(driver: str) -> None:
    """The same classifier and middlebox, real kernel TCP: what is policed or reset by name is measured as such."""
    link = Link(**LINE, family=6)
    scenarios = [
        Scenario("slow", link, rules=(Rule(VIDEO, "police", down_mbps=1.5, burst_kb=16),)),
        Scenario("cut", link, rules=(Rule(VIDEO, "reset"),)),
    ]
    with Stage(scenarios, driver=robust.need(driver), subscribers=1) as stage:
        stage.start_reflector()
        probes = [robust.Probe(stage, one.subscribers[0], pairs=1, segment_s=1.0) for one in stage.operators]
        for probe in probes:
            probe.end()
        ran = robust.judge(stage, [probe.out for probe in probes])
    ran.need_a_machine_with_time()
    by_operator = {told.receipt.origin.operator: told.receipt for told in ran.told}
    assert {receipt.origin.family for receipt in by_operator.values()} == {6}
    [slow] = [pair for pair in by_operator["slow"].pairs if pair.kind == "test"]
    rates = {segment.arm: rate_mbps(segment, slow.segment_s) for segment in slow.segments}
    assert rates["app"] == pytest.approx(1.5, rel=0.25)
    assert rates["neutral"] == pytest.approx(robust.PACE, rel=0.1)
    [cut] = [pair for pair in by_operator["cut"].pairs if pair.kind == "test"]
    assert cut.outcome == "one_failed"
    assert {segment.arm for segment in cut.segments if segment.end != "complete"} == {"app"}


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_home_router_translates(driver: str) -> None:
    ran = run(driver, nat="home", pairs=1, direction="both")
    all_right(ran)
    assert {told.receipt.origin.edge for told in ran.told} == {False}
    assert len({told.receipt.origin.network for told in ran.told}) == 2


@pytest.mark.parametrize("driver", DRIVERS)
def test_subscribers_behind_one_address_are_one_network(driver: str) -> None:
    ran = run(driver, nat="cgnat", pairs=1, direction="both")
    all_right(ran)
    assert {told.receipt.origin.edge for told in ran.told} == {False}
    assert len({told.receipt.origin.network for told in ran.told}) == 1
    assert len({told.receipt.probe for told in ran.told}) == 2
    assert {told.receipt.origin.operator for told in ran.told} == {"x"}


def test_reordering_costs_both_arms_alike() -> None:
    ran = run("tun", reorder=0.03, reorder_ms=6)
    assert ran.path["reordered"] > 50
    all_right(ran, within=0.25)


def test_duplicates_count_once() -> None:
    ran = run("tun", duplicate=0.1)
    assert ran.path["duplicated"] > 100
    all_right(ran)  # the rate counts acknowledged bytes, not packets


def test_damage_that_the_checksum_shows_is_loss() -> None:
    ran = run("tun", corrupt=0.005)
    assert ran.path["corrupted"] > 5
    assert ran.outcomes <= {"both", "one_failed", "both_failed"}
    for rates in ran.rates():
        assert max(rates) <= robust.PACE * 1.15
    assert {told.measurement.failure for told in ran.told} == {None}


def test_damage_that_the_checksum_hides_is_caught_by_tls() -> None:
    """A wrong byte ends the connection that carried it: the segment failed, and no wrong byte was counted as right."""
    ran = run("tun", corrupt_payload=0.004, pairs=4)
    assert ran.path["corrupted_payload"] > 5
    ends = [segment.end for pair in ran.pairs() for segment in pair.segments]
    assert set(ends) - {"complete"}, "nothing failed, although packets carried wrong bytes"
    assert ran.outcomes <= {"both", "one_failed", "both_failed", "unfinished"}
    for told in ran.told:  # both ends know of it
        for pair, measured in told.pairs():
            for theirs, ours in zip(pair.segments, measured.segments if measured else (), strict=False):
                if theirs.end in {"aborted", "reset"}:
                    assert ours.failure in {"altered_bytes", "connection_reset", "connection_aborted", "end_of_stream"}


def test_a_black_hole_swallows_both_arms() -> None:
    """Larger packets vanish without a word. The kernel looks for a smaller size only after seconds (RFC 4821).

    So the control channel recovers, and the segments fail or move nothing, whichever arm they are: void pairs, or
    complete ones without a byte, which bet nothing.
    """
    with stage_of("tun", path_mtu=1200) as stage:
        stage.internet_sysctl("ipv4/tcp_mtu_probing", "1")
        stage.start_reflector()
        ran = robust.run_all(stage, pairs=1)
    assert ran.path["swallowed"] > 0
    assert ran.outcomes <= {"both", "both_failed"}
    assert {segment.bytes for pair in ran.pairs() for segment in pair.segments} == {0}
    assert {told.measurement.failure for told in ran.told} == {None}
    assert {cell["slowdown"]["estimate"] for cell in ran.cells if cell["slowdown"]} <= {None}
    assert {cell["e_value"] <= 1 for cell in ran.cells} == {True}


def test_behind_a_black_hole_that_was_noticed_both_arms_are_right() -> None:
    with stage_of("tun", path_mtu=1200, subscribers=1) as stage:
        stage.internet_sysctl("ipv4/tcp_mtu_probing", "1")
        stage.internet_sysctl("ipv4/tcp_retries1", "1")  # suspect the path after 0.6 s, so that segments can be short
        stage.start_reflector()
        ran = robust.run_all(stage, pairs=1, segment_s=3.0)
    assert ran.path["swallowed"] > 0
    ran.need_a_machine_with_time()
    assert ran.outcomes <= {"both", "both_failed"}
    for first, second in ran.rates():
        assert first == pytest.approx(second, rel=0.25)
        assert first > 0.5 * robust.PACE


@pytest.mark.slow
def test_a_black_hole_without_a_way_out() -> None:
    """Not even the receipt comes back to the probe; the reflector's own copy and the started pairs remain."""
    with stage_of("tun", path_mtu=1200) as stage:
        stage.internet_sysctl("ipv4/tcp_mtu_probing", "0")
        stage.start_reflector()
        ran = robust.run_all(stage, pairs=2)
    assert ran.outcomes <= {"both", "both_failed"}
    assert {segment.bytes for pair in ran.pairs() for segment in pair.segments} == {0}
    assert {told.measurement.failure for told in ran.told} == {"out_of_time"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "link",
    [
        {"family": 6, "loss": 0.01, "jitter_ms": 10},
        {"nat": "home", "reorder": 0.02, "reorder_ms": 15},
        {"nat": "cgnat", "duplicate": 0.05, "loss": 0.005},
        {"corrupt": 0.01, "reorder": 0.02},
        {"corrupt_payload": 0.002},
    ],
    ids=str,
)
@pytest.mark.parametrize("direction", ["down", "up"])
def test_no_bad_path_is_ever_an_accusation(link: dict[str, Any], direction: str) -> None:
    """Enough pairs and probes for a case, were one arm worse off."""
    ran = run("tun", pairs=12, subscribers=3, direction=direction, **link)
    assert sum(1 for _ in ran.pairs()) >= 36


def test_the_relay_says_by_name_what_it_cannot_do() -> None:
    for link in (
        {"family": 6}, {"nat": "home"}, {"nat": "cgnat"}, {"path_mtu": 1200}, {"reorder": 0.1}, {"duplicate": 0.1},
        {"corrupt": 0.1}, {"corrupt_payload": 0.1},
    ):  # fmt: skip
        [key] = link
        with pytest.raises(ScenarioError, match=rf"link\.{key}: the relay driver"), stage_of("relay", **link):
            pass

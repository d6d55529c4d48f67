# SPDX-License-Identifier: EUPL-1.2
"""Blocking and tampering are found as effects with evidence; what only looks like them is never called so."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lab.classify import Match
from lab.model import Link, Rule, Scenario
from lab.stage import Stage
from probe.wire.records import MeasuredPair, ReceiptPair

_spec = importlib.util.spec_from_file_location("robust", Path(__file__).with_name("robust.py"))
assert _spec is not None
assert _spec.loader is not None
robust = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("robust", robust)
_spec.loader.exec_module(robust)

pytestmark = pytest.mark.lab

LINE = Link(down_mbps=30, up_mbps=10, rtt_ms=20, buffer_ms=100)
INTERFERENCE = {"blocking", "tampering"}


def lab_run(*arguments: str) -> tuple[int, dict[str, Any]]:
    robust.need("tun")
    argv = [sys.executable, "-m", "evenlane.cli", "lab", "run", *arguments, "--driver", "tun", "--json"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=590, check=False)
    if ended.returncode == 3 and "too busy" in ended.stderr:
        pytest.skip(f"void: {ended.stderr.strip().splitlines()[-1]}")
    assert ended.returncode in {0, 1}, ended.stderr
    return ended.returncode, json.loads(ended.stdout)["scenarios"][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "altered-by-name",
        "signalling-blocked-by-name",
        "signalling-reset-by-name",
        "signalling-reset-midway",
        "signalling-blocked-half",
    ],
)
def test_interference_is_found_and_named_as_what_it_is(name: str) -> None:
    # Half of the connections give half of the evidence: twice the pairs.
    more = ["--pairs", "30"] if name.endswith("half") else []
    code, row = lab_run(name, "--segment-s", "0.7", *more)
    assert (code, row["found"]) == (0, row["expected"]), row


@pytest.mark.slow
@pytest.mark.parametrize("name", ["neutral-corrupting", "neutral-wifi-loss", "neutral-failing-connections"])
def test_what_only_looks_like_interference_is_never_called_so(name: str) -> None:
    _, row = lab_run(name, "--segment-s", "0.7")
    said = {cell["effect"]: cell["state"] for cell in row["cells"] if cell["state"] in robust.NEVER}
    assert not said.keys() & INTERFERENCE, row
    assert not [effect for effect in row["found"] if effect.partition(":")[2] in INTERFERENCE], row


def pairs_of(ran: Any) -> list[tuple[ReceiptPair, MeasuredPair]]:
    return [(pair, ours) for told in ran.told for pair, ours in told.pairs() if ours is not None]


def test_an_altering_box_is_seen_by_the_arm_that_it_means_alone() -> None:
    rule = Rule(Match(sni=("*.googlevideo.com",), direction="down"), "alter", packets=0.05, after_kb=60)
    with Stage([Scenario("x", LINE, rules=(rule,))], driver=robust.need("tun"), subscribers=1) as stage:
        stage.start_reflector()
        probe = robust.Probe(stage, stage.operators[0].subscribers[0], pairs=3, segment_s=0.7)
        probe.end()
        told = robust.read([probe.out, *stage.records])
    pairs = [(pair, ours) for one in told for pair, ours in one.pairs() if ours is not None and pair.kind == "test"]
    assert len(pairs) == 3
    for pair, ours in pairs:
        assert {segment.arm for segment in ours.segments if segment.altered} == {"app"}
        assert {segment.failure for segment in ours.segments} == {None, "altered_bytes"}
        assert pair.outcome == "one_failed"
        assert (ours.captive, ours.path_changed, pair.path_changed) == (False, False, False)


def test_a_reflector_that_dies_in_a_session_blocked_nobody() -> None:
    with Stage([Scenario("x", LINE)], driver=robust.need("tun"), subscribers=2) as stage:
        stage.start_reflector()
        homes = stage.operators[0].subscribers
        probes = [robust.Probe(stage, home, pairs=6, segment_s=0.6) for home in homes]
        probes[0].wait_for_pairs(1)
        time.sleep(0.5)
        stage.reflector.kill()
        stage.reflector.wait()
        stage.start_reflector()
        for probe in probes:
            probe.end()
        again = [robust.Probe(stage, home, pairs=3, segment_s=0.6, name="-again") for home in homes]
        for probe in again:
            probe.end()
        ran = robust.judge(stage, [probe.out for probe in (*probes, *again)])  # demands that nothing is indicated
    assert all(cell["e_value"] < 20 for cell in ran.cells if cell["effect"] in INTERFERENCE)
    altered = [
        segment for pair, ours in pairs_of(ran) for segment in (*pair.segments, *ours.segments) if segment.altered
    ]
    assert altered == []


def test_a_line_that_moves_in_a_pair_is_noticed_by_both_ends() -> None:
    with Stage([Scenario("x", LINE)], driver=robust.need("tun"), subscribers=1) as stage:
        stage.start_reflector()
        home = stage.operators[0].subscribers[0]
        probe = robust.Probe(stage, home, pairs=4, segment_s=0.8)
        probe.wait_for_pairs(1)
        time.sleep(0.3)  # inside the second pair
        stage.move(home)
        probe.end()
        ran = robust.judge(stage, [probe.out])
    [told] = ran.told
    assert told.measurement is not None
    assert told.measurement.pairs[0].path_changed is False
    assert True in {pair.path_changed for pair in told.measurement.pairs}

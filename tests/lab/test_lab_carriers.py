# SPDX-License-Identifier: EUPL-1.2
"""Each carrier through an emulated operator: what it does to one is found, and a neutral operator is not accused."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from typing import Any, Final

import pytest

from lab.drivers import refusal
from lab.run import accused, verdict
from lab.scenario import from_table
from lab.stage import Stage

pytestmark = pytest.mark.lab

PAIRS: Final = 12
SEGMENT_S: Final = 0.8
LINK: Final = {"down_mbps": 60, "up_mbps": 20, "rtt_ms": 20}


def measured(
    rules: Sequence[dict[str, Any]], apps: Sequence[str], direction: str = "down", pairs: int = PAIRS
) -> list[dict[str, Any]]:
    """The cells that three subscribers' pairs of these apps lead to."""
    if refusal("tun") and refusal("veth"):
        pytest.skip("no namespaces here, and the relay neither polices nor keeps packets apart")
    scenario = from_table({"name": "carriers", "link": LINK, "rule": list(rules)})
    options = ["--pairs", str(pairs), "--segment-s", str(SEGMENT_S), "--direction", direction, "--pace-mbps", "8"]
    with Stage([scenario], subscribers=3) as stage:
        stage.start_reflector()
        outs = [stage.directory / f"out-{subscriber.index}.jsonl" for subscriber in stage.operators[0].subscribers]
        running = [
            stage.run_probe(
                subscriber,
                ["differential", *(word for app in apps for word in ("--app", app)), *options, "--out", str(out)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for subscriber, out in zip(stage.operators[0].subscribers, outs, strict=True)
        ]
        until = time.monotonic() + 240
        for process in running:
            said = process.communicate(timeout=max(1, until - time.monotonic()))[1]
            assert process.returncode == 0, said.decode("utf-8", "replace")
        cells = verdict(outs + stage.records)
        void = stage.void_reason()
    if void:
        pytest.skip(f"void: {void}")
    assert {cell["app"] for cell in cells} == set(apps)
    assert {cell["lost_pairs"] for cell in cells} == {0}
    return cells


def slowed(cells: Sequence[dict[str, Any]], app: str) -> float:
    [cell] = [cell for cell in cells if (cell["app"], cell["effect"]) == (app, "slowing")]
    return float(cell["slowdown"]["estimate"])


@pytest.mark.parametrize("direction", ["down", pytest.param("up", marks=pytest.mark.slow)])
def test_a_rule_on_bittorrents_first_bytes_over_tcp_is_found_and_nothing_else(direction: str) -> None:
    rule = {
        "match": {"payload": "bittorrent", "proto": "tcp"},
        "action": "police",
        f"{direction}_mbps": 1.5,
        "burst_kb": 64,
    }
    cells = measured([rule], ["bittorrent", "youtube+hello"], direction)
    assert accused(cells) == ["bittorrent:slowing"], cells
    assert slowed(cells, "bittorrent") == pytest.approx(1 - 1.5 / 8, abs=0.08)
    assert abs(slowed(cells, "youtube+hello")) < 0.1


@pytest.mark.slow
def test_a_rule_on_the_name_meets_the_browser_shaped_hello_too() -> None:
    rule = {"match": {"sni": "*.googlevideo.com"}, "action": "police", "down_mbps": 1.5, "burst_kb": 64}
    cells = measured([rule], ["youtube+hello", "bittorrent"])
    assert accused(cells) == ["youtube+hello:slowing"], cells
    assert slowed(cells, "youtube+hello") == pytest.approx(1 - 1.5 / 8, abs=0.08)
    assert abs(slowed(cells, "bittorrent")) < 0.1


@pytest.mark.slow
def test_a_reset_on_first_bytes_is_blocking() -> None:
    rules = [
        {"match": {"payload": "bittorrent", "proto": "tcp"}, "action": "reset"},
        {"match": {"sni": "*.googlevideo.com"}, "action": "reset"},
    ]
    cells = measured(rules, ["bittorrent", "youtube+hello"])
    assert accused(cells) == ["bittorrent:blocking", "youtube+hello:blocking"], cells


def test_a_neutral_operator_is_not_accused() -> None:
    cells = measured([], ["bittorrent", "youtube+hello"], pairs=7)
    assert accused(cells) == [], cells
    for app in ("bittorrent", "youtube+hello"):
        assert abs(slowed(cells, app)) < 0.1

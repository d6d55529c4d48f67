# SPDX-License-Identifier: EUPL-1.2
"""Carriers over UDP through an emulated operator: its rules are found, its bad line is not taken for one."""

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
from probe.wire.envelope import from_line, open_record
from probe.wire.records import Receipt, ReceiptPair

pytestmark = pytest.mark.lab

PAIRS: Final = 14
SEGMENT_S: Final = 1.0
LINK: Final = {"down_mbps": 60, "up_mbps": 20, "rtt_ms": 20}


def measured(
    rules: Sequence[dict[str, Any]],
    apps: Sequence[str],
    direction: str = "down",
    *,
    link: dict[str, Any] = LINK,
    segment_s: float = SEGMENT_S,
    pairs: int = PAIRS,
) -> tuple[list[dict[str, Any]], list[ReceiptPair]]:
    """The cells that three subscribers' pairs of these apps lead to, and the pairs as the reflector saw them."""
    if refusal("tun") and refusal("veth"):
        pytest.skip("no namespaces here, and the relay carries TCP alone")
    scenario = from_table({"name": "datagrams", "link": link, "rule": list(rules)})
    options = ["--pairs", str(pairs), "--segment-s", str(segment_s), "--direction", direction, "--pace-mbps", "8"]
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
        until = time.monotonic() + 270
        for process in running:
            said = process.communicate(timeout=max(1, until - time.monotonic()))[1]
            assert process.returncode == 0, said.decode("utf-8", "replace")
        cells = verdict(outs + stage.records)
        receipts = [open_record(from_line(line)) for line in stage.records[0].read_bytes().splitlines()]
        void = stage.void_reason()
    if void:
        pytest.skip(f"void: {void}")
    seen = [pair for one in receipts if isinstance(one, Receipt) for pair in one.pairs]
    if sum(pair.saturated for pair in seen) > len(seen) / 3:
        pytest.skip("void: this machine was too busy to pace datagrams")
    assert {cell["app"] for cell in cells} == set(apps)
    assert {cell["lost_pairs"] for cell in cells} == {0}
    return cells, seen


def slowed(cells: Sequence[dict[str, Any]], app: str) -> float:
    [cell] = [cell for cell in cells if (cell["app"], cell["effect"]) == (app, "slowing")]
    return float(cell["slowdown"]["estimate"])


def lost(pairs: Sequence[ReceiptPair], app: str, arm: str) -> float:
    """Share of an arm's datagrams that did not arrive."""
    segments = [one for pair in pairs if pair.app == app and pair.kind == "test" for one in pair.segments]
    counts = [(one.datagrams_sent or 0, one.datagrams_received or 0) for one in segments if one.arm == arm]
    return 1 - sum(received for _, received in counts) / sum(sent for sent, _ in counts)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_rule_on_wireguards_first_bytes_is_found_and_nothing_else(direction: str) -> None:
    rule = {"match": {"payload": "wireguard"}, "action": "police", f"{direction}_mbps": 1.5, "burst_kb": 30}
    cells, pairs = measured([rule], ["wireguard", "rtp"], direction)
    assert accused(cells) == ["wireguard:slowing"], cells
    assert slowed(cells, "wireguard") == pytest.approx(1 - 1.5 * 1200 / 1228 / 8, abs=0.06)
    assert abs(slowed(cells, "rtp")) < 0.1
    assert lost(pairs, "wireguard", "app") < 0.3
    assert lost(pairs, "wireguard", "opaque") < 0.02


def test_a_rule_on_the_name_in_a_quic_initial_is_found() -> None:
    rule = {"match": {"quic_sni": "*.googlevideo.com"}, "action": "shape", "down_mbps": 2, "burst_kb": 16}
    cells, pairs = measured([rule], ["youtube+quic", "facebook+quic"])
    assert accused(cells) == ["youtube+quic:slowing"], cells
    assert slowed(cells, "youtube+quic") == pytest.approx(1 - 2 * 1200 / 1228 / 8, abs=0.06)
    assert abs(slowed(cells, "facebook+quic")) < 0.1
    assert lost(pairs, "youtube+quic", "app") < 0.1


@pytest.mark.slow
def test_a_blocked_first_datagram_is_blocking() -> None:
    rule = {"match": {"payload": ["bittorrent", "rtp"]}, "action": "block"}
    cells, pairs = measured([rule], ["bittorrent+udp", "wireguard"], segment_s=0.4)
    assert accused(cells) == ["bittorrent+udp:blocking"], cells
    ends = {(one.arm, one.end) for pair in pairs if pair.app == "bittorrent+udp" for one in pair.segments}
    assert ("app", "absent") in ends
    assert ("opaque", "absent") not in ends


def test_a_neutral_operator_with_a_bad_line_is_not_accused() -> None:
    link = {**LINK, "loss": 0.02, "jitter_ms": 5}
    cells, pairs = measured([], ["wireguard", "youtube+quic"], link=link, pairs=8)
    assert accused(cells) == [], cells
    for app in ("wireguard", "youtube+quic"):
        assert abs(slowed(cells, app)) < 0.1
        for pair in pairs:
            assert {one.end for one in pair.segments} == {"complete"}
        assert {one.datagrams_sent is not None for pair in pairs for one in pair.segments} == {True}

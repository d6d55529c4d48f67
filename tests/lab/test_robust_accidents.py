# SPDX-License-Identifier: EUPL-1.2
"""Accidents in the middle of a session: a pair is right, void or lost, never wrong, and the probe says why."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.model import Link, Scenario
from lab.stage import Stage
from probe.wire.rate import rate_mbps
from probe.wire.records import MeasuredPair, ReceiptPair

_spec = importlib.util.spec_from_file_location("robust", Path(__file__).with_name("robust.py"))
assert _spec is not None
assert _spec.loader is not None
robust = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("robust", robust)
_spec.loader.exec_module(robust)

pytestmark = pytest.mark.lab

LINE = Link(down_mbps=20, up_mbps=20, rtt_ms=20, buffer_ms=100)

# Loaded by the interpreter itself, because Linux has no wall clock of its own for a process or a namespace: when
# the file appears, the wall clock of the program named in the environment jumps. The monotonic clock does not.
CLOCK = """
import os, sys, time
step, flag = float(os.environ.get("TEST_CLOCK_STEP_S", "0")), os.environ.get("TEST_CLOCK_FLAG", "")
if os.environ.get("TEST_CLOCK_PROGRAM") in sys.orig_argv:
    open(flag + ".loaded", "w").close()
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + (step if os.path.exists(flag) else 0.0)
    time.time_ns = lambda: real_ns() + (int(step * 1e9) if os.path.exists(flag) else 0)
"""


def stage_with(subscribers: int = 1, link: Link = LINE) -> Stage:
    return Stage([Scenario("x", link)], driver=robust.need("tun"), subscribers=subscribers)


def test_a_reflector_that_dies_in_a_pair_loses_that_pair() -> None:
    with stage_with() as stage:
        stage.start_reflector()
        home = stage.operators[0].subscribers[0]
        probe = robust.Probe(stage, home, pairs=6, segment_s=0.7)
        probe.wait_for_pairs(1)
        time.sleep(0.6)  # inside the second pair's first segment
        stage.reflector.kill()
        stage.reflector.wait()
        stage.start_reflector()
        document = probe.end()
        again = robust.Probe(stage, home, pairs=1, name="-again")
        again.end()
        ran = robust.judge(stage, [probe.out, again.out])
    assert document["failure"] in {"refused_by_peer", "connection_reset", "connection_refused", "out_of_time"}
    dead, alive = ran.told
    assert dead.receipt is None
    assert dead.measurement is not None
    assert dead.measurement.failure == document["failure"]
    # each pair whose nonce was sent is on record, finished or not: none of them can vanish
    assert [one.pair for one in dead.started] == list(range(1, len(dead.measurement.pairs) + 1))
    assert len(dead.started) >= 2
    [cell] = [cell for cell in ran.cells if cell["effect"] == "slowing"]
    assert cell["lost_pairs"] == sum(one.kind == "test" for one in dead.started)
    assert alive.receipt is not None
    assert {pair.outcome for pair in alive.receipt.pairs} == {"both"}


@pytest.mark.parametrize("program", ["reflector", "probe"])
@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_a_clock_step_changes_no_rate(
    program: str, step_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    flag = tmp_path / "stepped"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TEST_CLOCK_PROGRAM", program)
    monkeypatch.setenv("TEST_CLOCK_STEP_S", str(step_s))
    monkeypatch.setenv("TEST_CLOCK_FLAG", str(flag))
    with stage_with() as stage:
        stage.start_reflector()
        probe = robust.Probe(stage, stage.operators[0].subscribers[0], pairs=3)
        began_ms = time.time() * 1000
        probe.wait_for_pairs(1)
        time.sleep(0.35)  # inside the second pair
        flag.touch()
        probe.end()
        ran = robust.judge(stage, [probe.out])
    [told] = ran.told
    record = told.receipt if program == "reflector" else told.measurement
    other = told.measurement if program == "reflector" else told.receipt
    assert record is not None
    assert other is not None
    assert (tmp_path / "stepped.loaded").exists(), "the program's clock was never ours"
    assert ran.outcomes == {"both"}, "no wall clock decides anything while a session runs"
    complete = [(pair, measured) for pair, measured in told.pairs() if pair.outcome == "both"]
    assert len(complete) >= 3
    for pair, measured in complete:
        for theirs, ours in zip(pair.segments, measured.segments, strict=True):
            # an hour would show; a loaded machine may be a little late
            assert theirs.duration_ms == pytest.approx(500, abs=250)
            assert ours.duration_ms == pytest.approx(500, abs=800)
            assert theirs.bins_ms[-1] == pytest.approx(500, abs=250)
    ran.need_a_machine_with_time()
    for rates in ran.rates():
        assert rates == pytest.approx((robust.PACE, robust.PACE), rel=0.2)
    # whose clock did not jump tells the time as it is, and a jump back never makes an end come before its start
    assert 0 <= other.started_ms - began_ms + 3000 < 6000
    assert 0 <= other.ended_ms - other.started_ms < 15_000
    assert record.ended_ms >= record.started_ms
    # and a step reaches neither record before the session is over
    assert all(0 <= pair.started_ms - told.receipt.started_ms < 15_000 for pair in told.receipt.pairs)


def test_another_address_in_the_middle_is_not_the_edge_any_more() -> None:
    with stage_with() as stage:
        stage.start_reflector()
        home = stage.operators[0].subscribers[0]
        probe = robust.Probe(stage, home, pairs=5)
        probe.wait_for_pairs(2)
        moved = stage.move(home)
        probe.end()
        again = robust.Probe(stage, moved, pairs=1, name="-again")
        again.end()
        ran = robust.judge(stage, [probe.out, again.out])
    assert moved.address != home.address
    broken, anew = ran.told
    assert ran.outcomes <= {"both", "one_failed", "both_failed", "unfinished"}
    assert broken.receipt is not None
    assert anew.receipt is not None
    assert anew.receipt.origin.edge is True
    # The session keeps its first network. Had any later data connection come from the new one, it is no edge.
    assert broken.receipt.origin.network != anew.receipt.origin.network
    moved_on = [pair for pair in broken.receipt.pairs[3:] if pair.outcome == "both"]
    assert broken.receipt.origin.edge is (not moved_on)
    ran.need_a_machine_with_time()
    for rates in ran.rates():
        assert rates[0] == pytest.approx(rates[1], rel=0.2)


BUSY = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


def test_a_machine_without_a_free_processor_says_so_or_is_right() -> None:
    """Four programs on each processor never pause; whatever comes of a pair then, its rate is not one arm's fault."""
    with stage_with(subscribers=2) as stage:
        stage.start_reflector()
        crowd = [
            stage.start([sys.executable, "-c", BUSY, str(processor)], stderr=subprocess.DEVNULL)
            for processor in sorted(os.sched_getaffinity(0))
            for _ in range(4)
        ]
        try:
            probes = [robust.Probe(stage, home, pairs=2, segment_s=1.0) for home in stage.operators[0].subscribers]
            for probe in probes:
                probe.end()
        finally:
            for busy in crowd:
                busy.kill()
                busy.wait()
        ran = robust.judge(stage, [probe.out for probe in probes])
    assert ran.outcomes <= {"both", "one_failed", "both_failed", "unfinished"}
    for told in ran.told:
        for pair, measured in told.pairs():
            assert honest(pair, measured, ran.void), (pair, measured, ran.void)


def honest(pair: ReceiptPair, measured: MeasuredPair | None, void: str | None) -> bool:
    """The pair is right, or one of those who were short of processor time says so, the lab's operator included."""
    if pair.outcome != "both":
        return True
    first, second = (rate_mbps(segment, pair.segment_s) or 0.0 for segment in pair.segments)
    right = abs(first - second) <= 0.15 * max(first, second) and max(first, second) <= 1.1 * robust.PACE
    return right or pair.saturated or bool(measured and measured.cpu_limited) or void is not None

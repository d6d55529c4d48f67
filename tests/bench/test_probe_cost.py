# SPDX-License-Identifier: EUPL-1.2
"""What a probe run costs: memory, time to the first payload byte, CPU at full speed. Figures are printed (-s)."""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from probe.wire.envelope import from_line, open_record
from probe.wire.records import Measurement, Receipt

pytestmark = pytest.mark.slow

MOST_MB = 30.0
MOST_START_S = 0.5
LEAST_MBPS = 300.0


def start(url: str, state: Path, *options: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "evenlane.cli", "probe", "run", "differential", "--reflector", url]
    argv += ["--state", str(state), "--app", "youtube", "--progress", "none", "--json", *options]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def peak_mb(process: subprocess.Popen[str]) -> float:
    """VmHWM, read until the process is gone. `ru_maxrss` would be inherited over exec."""
    peak = 0.0
    while process.poll() is None:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            found = re.search(r"VmHWM:\s+(\d+) kB", status)
            peak = max(peak, int(found[1]) / 1024) if found else peak
        time.sleep(0.005)
    return peak


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--pairs", "6", "--segment-s", "0.5", "--pace-mbps", "12", "--direction", "both"), "paced, both directions"),
        (("--pairs", "2", "--segment-s", "2", "--pace-mbps", "0", "--direction", "both"), "unlimited, both directions"),
        (("--pairs", "100", "--segment-s", "0.2", "--pace-mbps", "12"), "100 pairs and more"),
    ],
)
def test_memory_stays_below_30_mb(
    reflector, tmp_path: Path, options: tuple[str, ...], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(reflector.url, tmp_path, *options, "--out", str(tmp_path / "run.jsonl"))
    peak = peak_mb(process)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert json.loads(out)["pairs"]["finished"] >= 2
    with capsys.disabled():
        print(f"\npeak memory (VmHWM), {what}: {peak:.1f} MB")
    assert peak < MOST_MB


def first_payload_s(reflector_url: str, state: Path) -> float:
    """From exec to the first payload byte, by the run's own records: both clocks are this machine's."""
    out = state / "run.jsonl"
    begun_ms = time.time() * 1000
    options = ("--pairs", "1", "--segment-s", "0.3", "--pace-mbps", "12", "--out", str(out))
    process = start(reflector_url, state, *options)
    process.communicate(timeout=30)
    measurement, receipt = (open_record(from_line(line)) for line in out.read_bytes().splitlines())
    assert isinstance(measurement, Measurement)
    assert isinstance(receipt, Receipt)
    first_ms = min(s.started_ms for pair in receipt.pairs for s in pair.segments if s.started_ms is not None)
    return (first_ms - begun_ms) / 1000


def test_the_first_payload_byte_leaves_within_half_a_second(
    reflector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first_payload_s(reflector.url, tmp_path)  # makes the key and warms the caches
    took = [first_payload_s(reflector.url, tmp_path) for _ in range(5)]
    with capsys.disabled():
        print(f"\nstart to first payload byte: median {statistics.median(took):.3f} s of {sorted(took)}")
    assert statistics.median(took) < MOST_START_S


@pytest.mark.parametrize("direction", ["down", "up"])
def test_full_speed_is_far_above_300_mbps(
    reflector, tmp_path: Path, direction: str, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(
        reflector.url, tmp_path, "--pairs", "1", "--segment-s", "3", "--pace-mbps", "0", "--direction", direction
    )
    out, _ = process.communicate(timeout=60)
    line = json.loads(out)["apps"][0]
    with capsys.disabled():
        print(
            f"\nTLS on loopback, unlimited, {direction}: {line['app_mbps']:.0f} and {line['neutral_mbps']:.0f} Mbit/s"
        )
    assert min(line["app_mbps"], line["neutral_mbps"]) > LEAST_MBPS

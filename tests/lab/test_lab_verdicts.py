# SPDX-License-Identifier: EUPL-1.2
"""`evenlane lab run` from end to end: real reflector, real probes, the product's own verdict."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.drivers import refusal

pytestmark = pytest.mark.lab


def lab_run(*arguments: str) -> tuple[int, dict[str, Any], str]:
    argv = [sys.executable, "-m", "evenlane.cli", "lab", "run", *arguments, "--json"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=280, check=False)
    if ended.returncode == 3 and "too busy" in ended.stderr:
        pytest.skip(f"void: {ended.stderr.strip().splitlines()[-1]}")
    assert ended.returncode in {0, 1}, ended.stderr
    return ended.returncode, json.loads(ended.stdout), ended.stderr


@pytest.mark.parametrize("driver", ["tun", pytest.param("veth", marks=pytest.mark.slow), "relay"])
def test_a_blocker_is_caught_under_each_driver(driver: str) -> None:
    if why := refusal(driver):  # type: ignore[arg-type]
        pytest.skip(f"the driver {driver} does not work here: {why}")
    code, found, said = lab_run("signalling-reset-by-name", "--driver", driver)
    [row] = found["scenarios"]
    assert (code, row["ok"], row["found"]) == (0, True, ["signal:blocking"]), row
    assert (row["name"], row["driver"]) == ("signalling-reset-by-name", driver)
    assert {cell["operator"] for cell in row["cells"]} == {"signalling-reset-by-name"}
    assert {cell["asn"] for cell in row["cells"]} == {64496}
    assert {cell["probes"] for cell in row["cells"]} == {3}
    assert f"driver {driver}, 3 probes in parallel" in said


def test_a_throttler_is_caught() -> None:
    code, found, _ = lab_run("social-shaped-by-name")
    [row] = found["scenarios"]
    assert (code, row["ok"], row["found"]) == (0, True, ["instagram:slowing"]), row
    [cell] = [cell for cell in row["cells"] if cell["effect"] == "slowing"]
    assert cell["slowdown"]["estimate"] == pytest.approx(1 - 2 / 12, abs=0.06)  # 2 of 12 Mbit/s


def test_an_untruth_is_not_found(tmp_path: Path) -> None:
    files = [tmp_path / "wrong.toml", tmp_path / "right.toml"]
    files[0].write_text('name = "wrong"\n[expect]\neffects = ["youtube:slowing"]\n')
    files[1].write_text('name = "right"\n[[rule]]\nmatch = { sni = "*.example.org" }\naction = "block"\n')
    code, found, _ = lab_run(*map(str, files), "--pairs", "2", "--segment-s", "0.5", "--probes", "1")
    assert code == 1
    assert [(row["name"], row["ok"], row["found"]) for row in found["scenarios"]] == [
        ("wrong", False, []),
        ("right", True, []),
    ]


@pytest.mark.slow
def test_up_is_measured_too(tmp_path: Path) -> None:
    file = tmp_path / "up.toml"
    file.write_text(
        'name = "up"\n[link]\nup_mbps = 20\n[[rule]]\nmatch = { sni = "*.googlevideo.com" }\naction = "police"\n'
        'up_mbps = 1.5\n[expect]\neffects = ["youtube:slowing"]\n'
    )
    if refusal("tun") and refusal("veth"):
        pytest.skip("no namespaces here, and the relay cannot police")
    code, found, _ = lab_run(str(file), "--direction", "up")
    assert code == 0, found
    assert {cell["direction"] for cell in found["scenarios"][0]["cells"]} == {"up"}

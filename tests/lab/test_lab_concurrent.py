# SPDX-License-Identifier: EUPL-1.2
"""Calls that wait or lose packets by name or first bytes are found, and a full line accuses nobody: real sockets."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from lab.drivers import refusal

pytestmark = pytest.mark.lab


def lab_run(*arguments: str) -> tuple[int, dict[str, Any]]:
    for driver in ("tun", "veth"):
        if refusal(driver) is None:
            break
    else:
        pytest.skip("no namespaces here, and the relay can neither delay nor drop")
    argv = [sys.executable, "-m", "evenlane.cli", "lab", "run", *arguments, "--driver", driver, "--json"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=280, check=False)
    if ended.returncode == 3 and "too busy" in ended.stderr:
        pytest.skip(f"void: {ended.stderr.strip().splitlines()[-1]}")
    assert ended.returncode in {0, 1}, ended.stderr
    [row] = json.loads(ended.stdout)["scenarios"]
    return ended.returncode, row


@pytest.mark.parametrize("name", ["call-delayed-by-payload", "call-loss"])
def test_a_call_that_is_treated_worse_is_found(name: str) -> None:
    code, row = lab_run(name)
    assert (code, row["ok"], row["found"]) == (0, True, ["rtp+live:slowing"]), row


def test_a_full_line_accuses_nobody() -> None:
    code, row = lab_run("neutral-calls-congested", "--pairs", "8")
    assert (code, row["found"]) == (0, []), row
    assert {cell["app"] for cell in row["cells"]} == {"rtp+live"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "found"),
    [("call-delayed-by-name", "teams+live:slowing"), ("call-behind-all-else", "rtp+live:slowing")],
)
def test_over_tcp_by_name_and_where_calls_come_last(name: str, found: str) -> None:
    code, row = lab_run(name)
    assert (code, row["ok"], row["found"]) == (0, True, [found]), row


@pytest.mark.slow
def test_up_is_measured_too() -> None:
    code, row = lab_run("call-delayed-by-payload", "--direction", "up")
    assert (code, row["found"]) == (0, ["rtp+live:slowing"]), row
    assert {cell["direction"] for cell in row["cells"]} == {"up"}

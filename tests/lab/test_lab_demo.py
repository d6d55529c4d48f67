# SPDX-License-Identifier: EUPL-1.2
"""The demo, as its user runs it: three operators, truth against verdict, everything real."""

import json
import subprocess
import sys

import pytest

from analysis.rules import EFFECTS
from lab.drivers import refusal

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]
TRUTH = {"Linden Net": [], "Tollbridge": ["youtube:slowing"], "Gatehouse": ["signal:blocking"]}
ROW = {
    *("operator", "asn", "app", "direction", "access", "effect", "state", "e_value", "slowdown", "pairs"),
    *("lost_pairs", "probes", "prevalence", "detectable", "reasons"),
}


def play(*options):
    argv = [sys.executable, "-m", "evenlane.cli", "demo", "--exit", "--json", "--port", "0", *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=230)


@pytest.mark.parametrize("driver", ["tun", *(pytest.param(name, marks=pytest.mark.slow) for name in ("veth", "relay"))])
def test_throttler_and_blocker_are_caught_and_nobody_else_is_accused(driver):
    if why := refusal(driver):
        pytest.skip(f"the driver {driver} does not work here: {why}")
    done = play("--driver", driver)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert set(told) == {"operators", "seconds", "pairs", "megabytes", "driver"}
    assert told["driver"] == driver
    assert {one["operator"]: one["truth"] for one in told["operators"]} == TRUTH
    for one in told["operators"]:
        accused = [f"{c['app']}:{c['effect']}" for c in one["cells"] if c["state"] == "corroborated"]
        assert accused == one["truth"]
        assert all(set(cell) == ROW for cell in one["cells"])
        assert len(one["cells"]) == 3 * len(EFFECTS)  # three apps
    assert told["pairs"] == 3 * 3 * 3 * 12
    assert told["megabytes"] > 300


def test_a_port_in_use_is_one_sentence(reflector):
    taken = reflector.url.partition("#")[0].rpartition(":")[2].rstrip("/")
    argv = [sys.executable, "-m", "evenlane.cli", "demo", "--exit", "--port", taken, "--driver", "relay"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "is in use" in done.stderr
    assert "--port" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr

# SPDX-License-Identifier: EUPL-1.2
"""A real agent, a real collector, a real reflector: a volunteer joins, and the first session comes by itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.config import Config
from collector.identity import load as load_identity
from collector.plans import Shelf
from probe.consent import VERSION
from probe.wire.records import Plan, PlannedNettest, PlannedReflector

EVENLANE = [sys.executable, "-m", "evenlane.cli"]
MOST_IDLE_MB = 13.0
MOST_BOTH_MB = 42.0
pytestmark = pytest.mark.serial


def begin(log: Path, *options: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """A server, and the JSON object that it begins with."""
    with log.open("w") as stderr:
        process = subprocess.Popen([*EVENLANE, *options], stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, log.read_text()
    return process, json.loads(line)


class Site:
    """A reflector and a collector with a plan for it."""

    def __init__(self, directory: Path) -> None:
        ports = ("--control-port", "0", "--data-port", "0", "--portal-port", "0")
        (directory / "reflector").mkdir()
        self.reflector, there = begin(
            directory / "r.log", "reflector", "--host", "127.0.0.1", *ports, "--json",
            "--state", str(directory / "reflector"),
        )  # fmt: skip
        config = directory / "collector.toml"
        config.write_text(f'reflectors = ["{there["key"]}"]\n')
        data = directory / "data"
        self.collector, told = begin(
            directory / "c.log", "collector", "serve", "--port", "0", "--json", "--data", str(data),
            "--config", str(config),
        )  # fmt: skip
        self.url = told["url"]
        now_ms = time.time_ns() // 1_000_000
        reflector = PlannedReflector(
            url=f"{there['url']}#sha256={there['pin']}",
            key=there["key"],
            portal=f"http://127.0.0.1:{there['portal_port']}",
        )
        nettest = PlannedNettest(
            nettest="differential", apps=("youtube", "signal"), pairs=2, segment_s=0.6, most_pace_mbps=4.0
        )
        plan = Plan(
            type="plan", v=1, version=1, issued_ms=now_ms - 1000, expires_ms=now_ms + 86_400_000,
            reflectors=(reflector,), nettests=(nettest,), weights=(),
        )  # fmt: skip
        Shelf(data, load_identity(Config(data=data))).sign(plan, 1.0)

    def stored(self) -> int:
        """Measurements that the collector has on disk."""
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=10).read().decode()
        lines = [line for line in text.splitlines() if line.startswith("evenlane_collector_records_total{")]
        wanted = [line for line in lines if 'type="measurement"' in line and 'result="stored"' in line]
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in wanted)

    def close(self) -> None:
        for process in (self.collector, self.reflector):
            process.terminate()
            process.wait(20)
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    running = Site(tmp_path_factory.mktemp("site"))
    yield running
    running.close()


class Home:
    """A probe that has just joined."""

    def __init__(self, site: Site, directory: Path) -> None:
        self.state, self.run, self.log = directory / "state", directory / "run", directory / "log"
        joined = probe("enrol", "--collector", site.url, "--state", str(self.state), "--yes", VERSION, "--json")
        assert joined.returncode == 0, joined.stderr

    @property
    def where(self) -> tuple[str, ...]:
        return ("--state", str(self.state), "--run", str(self.run))

    def agent(self) -> subprocess.Popen[bytes]:
        with self.log.open("a") as stderr:
            return subprocess.Popen([*EVENLANE, "probe", "agent", *self.where], stderr=stderr)

    def turn(self) -> dict[str, Any] | None:
        with contextlib.suppress(OSError):
            found: dict[str, Any] = json.loads((self.run / "turn.json").read_text())
            return found
        return None


def probe(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*EVENLANE, "probe", *options], capture_output=True, text=True, timeout=120)


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def memory(pid: int) -> tuple[float, float]:
    """PSS and RSS in MB; zeros where the process is gone."""
    with contextlib.suppress(OSError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = [re.search(rf"^{name}:\s+(\d+) kB", rollup, re.M) for name in ("Pss", "Rss")]
        return tuple(int(one[1]) / 1024 if one else 0.0 for one in found)  # type: ignore[return-value]
    return 0.0, 0.0


def test_the_first_session_comes_by_itself_and_little_memory_is_taken(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home(site, tmp_path)
    before = site.stored()
    agent = home.agent()
    try:
        begun, most_pss, most_rss = time.monotonic(), 0.0, 0.0
        while home.turn() is None or children(agent.pid):
            assert time.monotonic() - begun < 60, home.log.read_text()
            both = [memory(pid) for pid in (agent.pid, *children(agent.pid))]
            if len(both) > 1:
                most_pss, most_rss = max(most_pss, sum(p for p, _ in both)), max(most_rss, sum(r for _, r in both))
            time.sleep(0.02)
        turn = home.turn()
        assert turn is not None
        assert turn["outcome"] == "measured", turn
        assert turn["last"]["pairs"]["finished"] >= 4
        assert turn["portal"] == "open"
        assert turn["collector"]["uploaded_ms"]
        assert turn["spool"]["sessions"] == 0
        idle = memory(agent.pid)[1]
        with capsys.disabled():
            print(
                f"\nagent idle {idle:.1f} MB RSS; with a child that measures {most_pss:.1f} MB PSS "
                f"({most_rss:.1f} MB RSS added up) at most; first session after {time.monotonic() - begun:.0f} s"
            )
        assert idle <= MOST_IDLE_MB
        assert most_pss <= MOST_BOTH_MB
    finally:
        agent.terminate()
        assert agent.wait(40) == 0
    log = home.log.read_text()
    assert re.fullmatch(r"evenlane: measured \d+ pairs, [\d.]+ MB; next in \S+ \S+\nevenlane: stopped\n", log), log
    # Identity, plan, the reservation: nothing else of a session is on flash.
    assert {path.name for path in home.state.iterdir()} <= {
        "key", "enrolment.json", "settings.json", "plan.jsonl", "life", "budget.json", "next", "lock",
    }  # fmt: skip
    assert site.stored() == before + 1
    done = probe("once", *home.where, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reason"] == "not_due"


def test_a_kill_in_the_middle_of_a_session_leaves_a_probe_that_goes_on(site: Site, tmp_path: Path) -> None:
    home = Home(site, tmp_path)
    agent = home.agent()
    end = time.monotonic() + 60
    while not (home.run / "ledger.json").exists() or '"open": null' in (home.run / "ledger.json").read_text():
        assert time.monotonic() < end, home.log.read_text()
        time.sleep(0.05)
    (child,) = children(agent.pid)
    time.sleep(1.0)  # the session is running
    os.kill(agent.pid, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    agent.wait(10)
    done = probe("once", *home.where, "--json")
    assert done.returncode == 0, done.stderr
    turn = json.loads(done.stdout)
    assert turn["reason"] == "not_due"
    assert turn["budget"]["day_mb"] > 1  # what may have been spent counts
    for _ in range(3):
        done = probe("once", *home.where, "--now", "--json")
        if json.loads(done.stdout)["outcome"] == "measured":
            break
    else:
        pytest.fail(done.stdout)


def test_once_without_having_joined_says_what_to_do(tmp_path: Path) -> None:
    done = probe("once", "--state", str(tmp_path))
    assert done.returncode == 3
    assert "evenlane probe enrol" in done.stdout + done.stderr
    assert probe("once", "--jitter-s", "soon").returncode == 2
    helped = probe("once", "--help")
    assert "*/15 * * * * evenlane probe once --jitter-s 120" in helped.stdout

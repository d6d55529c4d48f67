# SPDX-License-Identifier: EUPL-1.2
"""A real reflector delivers to a real collector, by itself and across restarts of both."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_spec = importlib.util.spec_from_file_location("reflector_client", Path(__file__).with_name("reflector_client.py"))
assert _spec is not None
assert _spec.loader is not None
c: Any = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("reflector_client", c)
_spec.loader.exec_module(c)


class Collector:
    """The collector's own program."""

    def __init__(self, directory: Path, reflectors: list[str], port: int = 0) -> None:
        config = directory / "collector.toml"
        config.write_text(f"reflectors = {json.dumps(reflectors)}\n")
        arguments = ["--config", str(config), "--data", str(directory / "data"), "--port", str(port), "--json"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "evenlane.cli", "collector", *arguments], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["url"]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def test_started_pairs_and_receipts_arrive_by_themselves(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with c.running(state) as there:
        key = there.key
    collector = Collector(tmp_path, [key])
    port = int(collector.url.rstrip("/").rpartition(":")[2])
    try:
        with c.running(state, collector=collector.url) as there:
            c.Session(there).one_pair(segment_s=0.2)
            delivered = lambda status: c.metric(there, "delivered_total", status=status)  # noqa: E731
            assert c.wait_for(lambda: delivered("accepted") == 2, 10)
            collector.stop()
            c.Session(there).one_pair(segment_s=0.2)  # measuring goes on without a collector
            assert c.wait_for(lambda: c.metric(there, "delivery_backlog_bytes") > 0)
            collector = Collector(tmp_path, [key], port)
            assert c.wait_for(lambda: delivered("accepted") == 4, 20)
            assert delivered("rejected") == 0
        (state / "delivery.json").unlink()
        with c.running(state, collector=collector.url) as there:
            assert c.wait_for(lambda: c.metric(there, "delivered_total", status="duplicate") == 4, 10)
            assert c.metric(there, "delivered_total", status="accepted") == 0
    finally:
        collector.stop()


def test_a_collector_that_does_not_know_the_key_yet_loses_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    collector = Collector(tmp_path, ["A" * 43])
    try:
        with c.running(state, collector=collector.url) as there:
            c.Session(there).one_pair(segment_s=0.2)
            assert c.wait_for(lambda: c.metric(there, "delivery_retries_total") > 0, 10)
            key = there.key
        collector.stop()
        collector = Collector(tmp_path, [key])
        with c.running(state, collector=collector.url) as there:
            assert c.wait_for(lambda: c.metric(there, "delivered_total", status="accepted") == 2, 10)
    finally:
        collector.stop()

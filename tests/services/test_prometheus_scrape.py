# SPDX-License-Identifier: EUPL-1.2
"""A real Prometheus scrapes a real collector, and every panel's PromQL finds data in it."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

from collector import series
from collector.app import create_app
from collector.config import Config, InfluxSink
from dashboards.build import boards, queries
from dashboards.parts import PROMETHEUS

pytestmark = pytest.mark.services
EXPRESSIONS = [
    target["expr"] for board in boards().values() for _, target in queries(board) if target["datasource"] == PROMETHEUS
]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
async def collector(tmp_path: Path) -> AsyncIterator[int]:
    """A collector whose time-series database is away, so that every metric of the outbox is there."""
    sink = InfluxSink(url="http://127.0.0.1:9", token="t", org="o", bucket="b")
    runner = web.AppRunner(create_app(Config(data=tmp_path / "data", influx=sink)))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


class Prometheus:
    """One Prometheus of our own, on loopback, that scrapes one collector every second."""

    def __init__(self, program: str, directory: Path, target: int) -> None:
        self.port, config = free_port(), directory / "prometheus.yml"
        config.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
                    "scrape_configs": [
                        {"job_name": "collector", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
                    ],
                }
            )
        )
        argv = [program, f"--config.file={config}", f"--storage.tsdb.path={directory}/tsdb"]
        argv += [f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=error"]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def query(self, expression: str) -> list[dict[str, Any]]:
        url = f"http://127.0.0.1:{self.port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return list(found["data"]["result"])

    async def until(self, expression: str) -> list[dict[str, Any]]:
        """What an expression gives, once it gives something."""
        for _ in range(150):
            try:
                found = await asyncio.to_thread(self.query, expression)
            except OSError:
                found = []
            if found:
                return found
            await asyncio.sleep(0.2)
        raise AssertionError(f"{expression} found nothing within 30 seconds")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


async def test_every_panel_about_the_collector_finds_data(
    collector: int, program: Callable[[str, str], str], tmp_path: Path
) -> None:
    prometheus = Prometheus(program("prometheus", "prometheus"), tmp_path, collector)
    try:
        async with ClientSession() as client:
            sent = await client.post(f"http://127.0.0.1:{collector}/v1/measurements", json={"not": "an envelope"})
            assert sent.status == 400
        assert EXPRESSIONS
        for expression in EXPRESSIONS:
            assert await prometheus.until(expression), expression
        waiting = await prometheus.until(series.METRIC_OUTBOX_WAITING)
        assert waiting[0]["value"][1] == "0"
        refused = await prometheus.until(f'{series.METRIC_RECORDS}{{result="refused"}}')
        assert refused[0]["value"][1] == "1"
    finally:
        prometheus.stop()


async def test_every_metric_we_name_is_exposed(collector: int) -> None:
    async with ClientSession() as client, client.get(f"http://127.0.0.1:{collector}/metrics") as answer:
        text = await answer.text()
    for name in series.METRICS:
        assert f"# TYPE {name.removesuffix('_total')}" in text, name


def test_the_configuration_of_the_docker_files_is_valid(program: Callable[[str, str], str]) -> None:
    file = Path(__file__).parents[2] / "deploy" / "docker" / "prometheus.yml"
    checked = subprocess.run(
        [program("promtool", "prometheus"), "check", "config", str(file)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr

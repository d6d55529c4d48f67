# SPDX-License-Identifier: EUPL-1.2
"""A real VictoriaMetrics: what the collector's outbox holds arrives through influxdb-client, and comes back.

It keeps every write and checks no line, so it proves that the client writes; idempotence and field types are
proven on InfluxDB (test_influx_panels.py), fed the very same lines: here the bytes are recorded on their way.
"""

from __future__ import annotations

import asyncio
import gzip
import http.server
import json
import logging
import random
import re
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiohttp import ClientSession, web
from prometheus_client import CollectorRegistry

from collector import series
from collector.app import create_app
from collector.config import Config, InfluxSink
from collector.influx import InfluxWriter
from collector.keys import STORE, WORKER
from collector.model import CellView, EvidencePoint, OutboxPoint
from collector.outbox import Courier, Gauges, run
from collector.pages.example import cell
from collector.rehearsal import Rehearsal, Truth, signer
from collector.sinks import Refused, Unreachable
from collector.store.sqlite import SqliteStore
from probe.wire.envelope import to_json
from probe.wire.records import Origin

pytestmark = pytest.mark.services
LOG = logging.getLogger("test")
HOUR = series.bucket_of(time.time_ns() // 1_000_000) - series.HOUR_MS
"""VictoriaMetrics keeps a month by default, so these points are of the last hours."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Victoria:
    """One VictoriaMetrics of our own, on loopback, with a directory of its own."""

    def __init__(self, program: str, directory: Path) -> None:
        self.program, self.directory, self.port = program, directory, free_port()
        self.start()

    def start(self) -> None:
        self.log = (self.directory / "log").open("ab")
        argv = [self.program, "-storageDataPath", str(self.directory / "data"), "-retentionPeriod=1y"]
        argv += ["-httpListenAddr", f"127.0.0.1:{self.port}", "-search.latencyOffset=0s"]
        self.process = subprocess.Popen(argv, stdout=self.log, stderr=self.log)
        for _ in range(300):
            try:
                self.get("/health")
            except OSError:
                assert self.process.poll() is None, (self.directory / "log").read_text()
                time.sleep(0.1)
            else:
                return
        raise AssertionError("VictoriaMetrics did not start")

    def get(self, path: str, **query: str) -> str:
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return bytes(answer.read()).decode()

    def export(self, metric: str) -> list[dict[str, Any]]:
        """What is stored under a metric, made visible first."""
        self.get("/internal/force_flush")
        lines = self.get("/api/v1/export", **{"match[]": metric}).splitlines()
        return [json.loads(line) for line in lines]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)
        self.log.close()


@pytest.fixture
def victoria(program: Callable[[str, str], str], tmp_path: Path) -> Iterator[Victoria]:
    found = Victoria(program("victoria-metrics", "victoria-metrics"), tmp_path)
    try:
        yield found
    finally:
        found.stop()


@dataclass
class Way:
    """A wire between client and database that remembers every body, unpacked."""

    port: int = 0
    target: int = 0
    bodies: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@pytest.fixture
def way(victoria: Victoria) -> Iterator[Way]:
    found = Way(target=victoria.port)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.paths.append(self.path)
            found.bodies.append(gzip.decompress(body).decode())
            url = f"http://127.0.0.1:{found.target}{self.path}"
            with urllib.request.urlopen(urllib.request.Request(url, body, dict(self.headers)), timeout=20) as answer:
                self.send_response(answer.status)
                self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def sink(port: int) -> InfluxSink:
    return InfluxSink(url=f"http://127.0.0.1:{port}", token="user:secret", org="-", bucket="evenlane/autogen")


def told(of: CellView, hours_ago: int = 0) -> OutboxPoint:
    at = HOUR - hours_ago * series.HOUR_MS
    point = EvidencePoint(bucket_ms=at, pairs=of.pairs, log10_e=of.log10_e, state=of.state, slowdown=of.slowdown)
    return OutboxPoint(cell=of, point=point)


def fill(store: SqliteStore, points: list[OutboxPoint]) -> None:
    for point in points:
        topic = f"{point.cell.key.operator}/{point.point.bucket_ms}"
        store.write(lambda book, topic=topic, point=point: book.send("point", topic, point)).result(10)


CELLS = [
    cell("heron", "youtube", "corroborated"),
    cell("Metro, Net = 1", "signal", "no_indication"),
    cell("wren", "netflix", "insufficient", slowdown=None, app_mbps=None, neutral_mbps=None),
]


def test_the_outbox_of_a_real_store_arrives_and_comes_back(victoria: Victoria, way: Way, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store")
    try:
        points = [told(of, ago) for of in CELLS for ago in range(3)]
        fill(store, points)
        writer = InfluxWriter(sink(way.port))
        result = Courier(store, LOG, points=writer).deliver()
        writer.close()
        assert (result.written, result.refused, result.away) == (9, 0, [])
        assert store.outbox_size() == 0
    finally:
        store.close()
    lines = [series.cell_point(point.cell, point.point).line() for point in points]
    assert "\n".join(way.bodies) == "\n".join(lines), "the lines that InfluxDB is tested with are those on the wire"
    assert way.paths[0].startswith("/api/v2/write?")
    assert "precision=ms" in way.paths[0]
    for name in series.CELL_FIELDS:
        found = victoria.export(f"{series.CELL}_{name}")
        wanted = {}
        for point in points:
            made = series.cell_point(point.cell, point.point)
            if name in dict(made.fields):
                wanted[dict(made.tags)["operator"], made.time_ms] = float(dict(made.fields)[name])
        stored = {
            (one["metric"]["operator"], at): float(value)
            for one in found
            for at, value in zip(one["timestamps"], one["values"], strict=True)
        }
        assert stored == pytest.approx(wanted), name
    labels = set(victoria.export(f"{series.CELL}_state")[0]["metric"]) - {"__name__"}
    assert labels - {"db"} == set(series.CELL_TAGS)


def test_it_answers_204_to_nonsense_which_is_why_points_are_checked_first(victoria: Victoria) -> None:
    writer = InfluxWriter(sink(victoria.port))
    writer.write(["this is no line at all", f"{series.CELL},operator=x state= {HOUR}"])
    writer.close()
    assert victoria.export(f'{series.CELL}_state{{operator="x"}}') == []


async def test_a_database_that_goes_and_comes_back_gets_everything(victoria: Victoria, tmp_path: Path) -> None:
    store, stop = SqliteStore(tmp_path / "store"), asyncio.Event()
    fill(store, [told(CELLS[0])])
    victoria.stop()
    courier = Courier(store, LOG, points=InfluxWriter(sink(victoria.port), timeout_ms=2000))
    gauges = Gauges(CollectorRegistry())
    delivering = run(courier, stop, gauges=gauges, log=LOG, clock_ms=lambda: HOUR, rng=random.Random(1), idle_s=0.05)
    task = asyncio.create_task(delivering)
    try:
        await asyncio.sleep(0.5)
        assert store.outbox_size() == 1
        await asyncio.to_thread(fill, store, [told(CELLS[1])])
        await asyncio.to_thread(victoria.start)
        for _ in range(200):
            if store.outbox_size() == 0:
                break
            await asyncio.sleep(0.05)
        assert store.outbox_size() == 0
    finally:
        stop.set()
        await task
        courier.close()
        store.close()
    assert len(victoria.export(f"{series.CELL}_state")) == 2


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers every write as the test says."""

    status: ClassVar[int] = 204
    seen: ClassVar[list[dict[str, str]]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(dict(self.headers))
        body = b"" if self.status == 204 else json.dumps({"message": "it says no"}).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Answering.seen.clear()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, Refused), (413, Refused), (422, Refused), (401, Unreachable), (404, Unreachable), (429, Unreachable),
     (500, Unreachable), (503, Unreachable)],
)  # fmt: skip
def test_recorded_answers_are_told_apart_and_no_secret_is_repeated(
    answering: int, status: int, kind: type[Exception]
) -> None:
    Answering.status = status
    writer = InfluxWriter(sink(answering))
    with pytest.raises(kind, match=f"{status}: it says no") as caught:
        writer.write([series.cell_point(CELLS[0], told(CELLS[0]).point).line()])
    writer.close()
    assert "secret" not in str(caught.value)
    assert len(Answering.seen) == 1, "the client itself does not retry: the outbox does"
    assert Answering.seen[0]["Authorization"] == "Token user:secret"


def test_nobody_there_is_unreachable() -> None:
    writer = InfluxWriter(sink(free_port()))
    with pytest.raises(Unreachable, match="cannot be reached"):
        writer.write(["x"])
    writer.close()


async def test_signed_records_become_points_and_pages(victoria: Victoria, tmp_path: Path) -> None:
    """The whole way with nothing pretended but the line: records signed, uploaded, judged, delivered and shown."""
    rng = random.Random(11)
    reflector, probes = signer(rng), [signer(rng) for _ in range(3)]
    rehearsal = Rehearsal(rng=rng, reflector=reflector)
    config = Config(data=tmp_path / "data", reflectors=(reflector.key_id,), influx=sink(victoria.port))
    runner = web.AppRunner(create_app(config))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with ClientSession() as client:
            for number, probe in enumerate(probes):
                origin = Origin(asn=64500, operator="Heron", country="NL", network=f"{number + 1:032x}", edge=True)
                told = rehearsal.session(
                    probe, started_ms=HOUR, pairs=14, truth=Truth(slowdown=0.5), origin=origin, app="youtube"
                )
                sent = [("receipts", [*told.started, told.receipt]), ("measurements", [told.measurement])]
                for door, envelopes in sent:
                    body = {"envelopes": [to_json(envelope) for envelope in envelopes]}
                    async with client.post(f"{url}/v1/{door}", json=body) as answer:
                        assert answer.status == 200, await answer.text()
            await runner.app[WORKER].judged()
            for _ in range(200):
                if runner.app[STORE].outbox_size() == 0:
                    break
                await asyncio.sleep(0.05)
            assert runner.app[STORE].outbox_size() == 0
            (case,) = runner.app[STORE].cases()
            async with client.get(f"{url}/case/{case.id}?lang=en") as page:
                text = re.sub("[\u202f\u00a0]", " ", await page.text())
            assert page.status == 200
            sentence = r"On the path measured at Heron, YouTube \(video\) is slower by about (4[5-9]|5[0-5]) % \("
            assert re.search(sentence, text)
            async with client.get(f"{url}/?lang=en") as page:
                assert f"/case/{case.id}" in await page.text()
    finally:
        await runner.cleanup()
    found = victoria.export(f'{series.CELL}_state{{effect="slowing"}}')
    assert [one["metric"]["operator"] for one in found] == ["Heron"]
    assert found[0]["values"][-1] == series.STATE_CODES["corroborated"]
    slowdown = victoria.export(f'{series.CELL}_slowdown{{effect="slowing"}}')
    assert slowdown[0]["values"][-1] == pytest.approx(0.5, abs=0.05)


def test_cells_below_three_probes_stay_here(victoria: Victoria, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store")
    fill(store, [told(replace(CELLS[0], probes=2))])
    courier = Courier(store, LOG, points=InfluxWriter(sink(victoria.port)))
    assert courier.deliver().refused == 1
    courier.close()
    store.close()
    assert victoria.export(f"{series.CELL}_state") == []

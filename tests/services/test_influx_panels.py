# SPDX-License-Identifier: EUPL-1.2
"""A real InfluxDB 1.6: every panel's InfluxQL finds data, writing twice gives one point, judging again rewrites it.

This old version has no /api/v2/write, so the very same lines that influxdb-client sends (held to that by
test_victoria_writes.py) go in by its own /write.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from collector import series
from collector.model import CellView, EvidencePoint, Interval
from collector.pages.example import NOW_MS, cell, queued, world
from dashboards.build import boards, queries
from dashboards.parts import INFLUX, Json, select

pytestmark = pytest.mark.services
DATABASE = "evenlane"
VALUES = {
    "operator": ".*",
    "app": ".*",
    "effect": "slowing",
    "direction": "down",
    "access": "fixed",
    "__interval": "1h",
    "timeFilter": f"time >= {NOW_MS - 7 * 86_400_000}ms and time <= {NOW_MS + 3_600_000}ms",
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Influx:
    """One InfluxDB 1.6 of our own, on loopback, with a directory of its own."""

    def __init__(self, program: str, directory: Path) -> None:
        self.port, backup = free_port(), free_port()
        config = directory / "influxdb.conf"
        config.write_text(
            f"""
            reporting-disabled = true
            bind-address = "127.0.0.1:{backup}"
            [meta]
            dir = "{directory}/meta"
            [data]
            dir = "{directory}/data"
            wal-dir = "{directory}/wal"
            query-log-enabled = false
            [http]
            bind-address = "127.0.0.1:{self.port}"
            log-enabled = false
            [monitor]
            store-enabled = false
            """
        )
        self.log = (directory / "log").open("wb")
        self.process = subprocess.Popen([program, "-config", str(config)], stdout=self.log, stderr=self.log)
        for _ in range(300):
            try:
                self.call("GET", "/ping")
            except OSError:
                assert self.process.poll() is None, (directory / "log").read_text()
                time.sleep(0.1)
            else:
                break
        self.query(f'CREATE DATABASE "{DATABASE}"', method="POST")

    def call(self, method: str, path: str, body: bytes | None = None, **query: str) -> bytes:
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(urllib.request.Request(url, body, method=method), timeout=20) as answer:
            return bytes(answer.read())

    def query(self, text: str, method: str = "GET") -> list[Json]:
        answer = json.loads(self.call(method, "/query", q=text, db=DATABASE, epoch="ms"))
        assert "error" not in json.dumps(answer), answer
        found = answer["results"][0].get("series", [])
        return [dict(one) for one in found]

    def write(self, lines: list[str]) -> None:
        self.call("POST", "/write", "\n".join(lines).encode(), db=DATABASE, precision="ms")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


@pytest.fixture(scope="module")
def influx(program: Callable[[str, str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Influx]:
    found = Influx(program("influxd", "influxdb"), tmp_path_factory.mktemp("influx"))
    try:
        yield found
    finally:
        found.stop()


@pytest.fixture
def database(influx: Influx) -> Influx:
    influx.query(f'DROP DATABASE "{DATABASE}"', method="POST")
    influx.query(f'CREATE DATABASE "{DATABASE}"', method="POST")
    return influx


def hour(of: CellView, hours_ago: int = 0, **changes: Any) -> series.Point:
    told = EvidencePoint(
        bucket_ms=NOW_MS - hours_ago * series.HOUR_MS,
        pairs=of.pairs - hours_ago,
        log10_e=of.log10_e,
        state=of.state,
        slowdown=of.slowdown,
        delay_ms=of.delay_ms,
        loss=of.loss,
    )
    point = series.cell_point(of, replace(told, **changes))
    assert series.problems(point) == ()
    return point


def filled(text: str, values: dict[str, str]) -> str:
    """A query as Grafana sends it: `$name` and `${name}` replaced, the longest names first."""
    for name in sorted(values, key=len, reverse=True):
        text = text.replace("${" + name + "}", values[name]).replace("$" + name, values[name])
    assert re.search(r"\$[\w{]", text) is None, text
    return text


PANELS = [
    pytest.param(panel, target, id=f"{panel['id']}{target['refId']}")
    for board in boards().values()
    for panel, target in queries(board)
    if target["datasource"] == INFLUX
]


@pytest.mark.parametrize(("panel", "target"), PANELS)
def test_every_panel_finds_data(database: Influx, panel: Json, target: Json) -> None:
    cells = [c for c in world().cells() if series.publishable(c)]
    database.write([hour(c, ago).line() for c in cells for ago in range(24)])
    found = database.query(filled(target["query"], VALUES))
    assert found, panel["title"]
    assert all(value is not None for one in found for row in one["values"] for value in row[:2])
    for choice in ("heron", "(heron|osprey)"):
        narrowed = database.query(filled(target["query"], {**VALUES, "operator": choice}))
        assert narrowed
        assert {one.get("tags", {}).get("operator", "heron") for one in narrowed} <= {"heron", "osprey"}
    assert database.query(filled(target["query"], {**VALUES, "operator": "nobody"})) == []


def test_the_matrix_shows_the_strongest_state_of_each_operator_and_app(database: Influx) -> None:
    weak, strong = cell("heron", "youtube", "no_indication", "blocking"), cell("heron", "youtube", "corroborated")
    database.write([hour(weak).line(), hour(strong).line(), hour(strong, 5, state="indication").line()])
    matrix = next(t for board in boards().values() for panel, t in queries(board) if panel["id"] == 2)
    found = database.query(filled(matrix["query"], VALUES))
    assert [(one["tags"], one["values"][0][1]) for one in found] == [
        ({"operator": "heron", "app": "youtube"}, series.STATE_CODES["corroborated"])
    ]


def test_the_variables_offer_what_there_is(database: Influx) -> None:
    database.write([hour(cell("heron", "youtube", "replicated")).line(), hour(cell("wren", "x", "replicated")).line()])
    variables = {v["name"]: v["query"] for board in boards().values() for v in board["templating"]["list"]}
    operators = database.query(filled(variables["operator"], VALUES))
    assert [row[1] for row in operators[0]["values"]] == ["heron", "wren"]
    apps = database.query(filled(variables["app"], {**VALUES, "operator": "wren"}))
    assert [row[1] for row in apps[0]["values"]] == ["x"]


def points(database: Influx, field: str) -> list[float]:
    found = database.query(select(f'"{field}"'))
    return [row[1] for one in found for row in one["values"]]


def test_writing_twice_gives_one_point(database: Influx) -> None:
    lines = [hour(cell("heron", "youtube", "replicated"), ago).line() for ago in range(3)]
    database.write(lines)
    database.write(lines)
    assert len(points(database, "state")) == 3


def test_judging_again_rewrites_the_point_of_its_hour(database: Influx) -> None:
    of = cell("heron", "youtube", "replicated")
    database.write([hour(of).line()])
    database.write([hour(of, log10_e=0.5, state="indication", pairs=50).line()])
    assert points(database, "log10_e") == [0.5]
    assert points(database, "state") == [series.STATE_CODES["indication"]]
    assert points(database, "pairs") == [50]


def test_every_field_and_tag_of_the_schema_arrives_as_it_was_sent(database: Influx) -> None:
    rates = cell("Metro, Net = 1", "youtube", "replicated")
    waits = queued("Metro, Net = 1", "youtube", "replicated")
    # A cell with pairs of both designs has every field there is.
    of = replace(waits, slowdown=rates.slowdown, app_mbps=rates.app_mbps, neutral_mbps=rates.neutral_mbps)
    point = hour(of)
    assert set(dict(point.fields)) == set(series.CELL_FIELDS)
    database.write([point.line()])
    kinds = database.query(f'SHOW FIELD KEYS FROM "{series.CELL}"')[0]["values"]
    assert dict(kinds) == {n: "integer" if kind == "int" else "float" for n, kind in series.CELL_FIELDS.items()}
    found = database.query(select("*"))[0]
    row = dict(zip(found["columns"], found["values"][0], strict=True))
    assert row == {"time": NOW_MS, **dict(point.tags), **dict(point.fields)}


@pytest.mark.parametrize("name", ["a b", "a,b", "a=b", "ümlaut 東", 'quo"te', "tail ", "back\\slash", "per%cent"])
def test_any_name_of_an_operator_comes_back(database: Influx, name: str) -> None:
    point = hour(cell(name, "youtube", "replicated"))
    database.write([point.line()])
    found = database.query(f'SHOW TAG VALUES FROM "{series.CELL}" WITH KEY = "operator"')
    assert [row[1] for row in found[0]["values"]] == [dict(point.tags)["operator"]]


def test_a_field_of_another_type_would_be_refused_which_is_why_types_are_fixed(database: Influx) -> None:
    of = cell("heron", "youtube", "replicated", slowdown=Interval(estimate=1, low=0, high=1))
    line = hour(of).line()
    assert "slowdown=1.0," in line
    database.write([line])
    with pytest.raises(urllib.error.HTTPError, match="400"):
        database.write([line.replace("slowdown=1.0,", "slowdown=1i,")])

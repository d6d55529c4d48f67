# SPDX-License-Identifier: EUPL-1.2
"""Delivery: at least once, in order, never stopped by one bad row, never in the way of intake."""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from collector import outbox, series
from collector.app import create_app
from collector.config import Config, ConfigError, GrafanaSink, InfluxSink
from collector.model import EvidencePoint, OutboxCase, OutboxPoint, OutboxRow
from collector.outbox import Courier, Delivery, Gauges, pause_s, run
from collector.pages.example import NOW_MS, case, cell, event
from collector.sinks import Refused, Unreachable

LOG = logging.getLogger("test")


@dataclass
class Box:
    """An outbox in memory with the store's rules: the oldest first, kept until confirmed."""

    rows: dict[int, OutboxRow] = field(default_factory=dict)
    broken: Exception | None = None

    def outbox_take(self, most: int) -> list[OutboxRow]:
        if self.broken is not None:
            raise self.broken
        return [self.rows[number] for number in sorted(self.rows)[:most]]

    def outbox_done(self, ids: Sequence[int]) -> None:
        for number in ids:
            self.rows.pop(number, None)

    def outbox_size(self) -> int:
        return len(self.rows)


@dataclass
class Lines:
    """A database that keeps lines, and fails as it is told."""

    away: bool = False
    poison: str = "\0"
    lines: list[str] = field(default_factory=list)
    calls: int = 0

    def write(self, lines: Sequence[str]) -> None:
        self.calls += 1
        if self.away:
            raise Unreachable("the database is away")
        if any(self.poison in line for line in lines):
            raise Refused("it has poison")
        self.lines += lines

    def close(self) -> None:
        self.away = True


@dataclass
class Board:
    """A board that keeps what it was told."""

    away: bool = False
    told: list[OutboxCase] = field(default_factory=list)

    def tell(self, news: OutboxCase) -> None:
        if self.away:
            raise Unreachable("the board is away")
        if news.event.reason == "bad":
            raise Refused("it is bad")
        self.told.append(news)

    def close(self) -> None:
        self.away = True


def a_point(number: int, operator: str = "heron", **changes: object) -> OutboxRow:
    told = EvidencePoint(bucket_ms=NOW_MS, pairs=48, log10_e=7.4, state="corroborated", slowdown=None)
    of = replace(cell(operator, "youtube", "corroborated"), **changes)  # type: ignore[arg-type]
    return OutboxRow(id=number, kind="point", body=OutboxPoint(cell=of, point=told))


def news(number: int, what: str = "opened", reason: str = "") -> OutboxRow:
    of = case("abc", cell("heron", "youtube", "corroborated"))
    return OutboxRow(id=number, kind="case", body=OutboxCase(case=of, event=event(what, 0, 7.4, reason=reason)))


def box(*rows: OutboxRow) -> Box:
    return Box({row.id: row for row in rows})


def test_a_batch_is_written_and_then_forgotten() -> None:
    store, lines, board = box(a_point(1), news(2), a_point(3, "wren")), Lines(), Board()
    result = Courier(store, LOG, points=lines, cases=board).deliver()
    assert (result.taken, result.written, result.refused, result.away) == (3, 3, 0, [])
    assert [line.split("operator=")[1].split()[0] for line in lines.lines] == ["heron", "wren"]
    assert lines.calls == 1
    assert len(board.told) == 1
    assert store.rows == {}


def test_what_the_database_did_not_take_waits_and_is_delivered_later() -> None:
    store, lines = box(a_point(1), a_point(2, "wren")), Lines(away=True)
    courier = Courier(store, LOG, points=lines)
    assert courier.deliver().away == ["the database is away"]
    assert sorted(store.rows) == [1, 2]
    lines.away = False
    assert courier.deliver().written == 2
    assert store.rows == {}


def test_one_refused_point_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    rows = [a_point(n, "poison" if n == 11 else f"op{n}") for n in range(1, 21)]
    store, lines = box(*rows), Lines(poison="poison")
    result = Courier(store, LOG, points=lines).deliver()
    assert (result.written, result.refused) == (19, 1)
    assert store.rows == {}
    assert len(set(lines.lines)) == 19
    assert "refused for good" in caplog.text


def test_a_database_that_dies_while_halving_loses_nothing() -> None:
    class Dying(Lines):
        def write(self, lines: Sequence[str]) -> None:
            super().write(lines)
            self.away = True

    rows = [a_point(n, "poison" if n == 3 else f"op{n}") for n in range(1, 5)]
    store, lines = box(*rows), Dying(poison="poison")
    result = Courier(store, LOG, points=lines).deliver()
    assert result.away
    assert sorted(store.rows) == [3, 4], "the half that was written is forgotten, the rest waits"


def test_cells_below_three_probes_never_leave(caplog: pytest.LogCaptureFixture) -> None:
    store, lines = box(a_point(1, probes=2)), Lines()
    assert Courier(store, LOG, points=lines).deliver().refused == 1
    assert lines.lines == []
    assert store.rows == {}
    assert "2 probes" in caplog.text


def test_a_point_that_would_be_misread_is_not_written() -> None:
    of = a_point(1)
    assert isinstance(of.body, OutboxPoint)
    wrong = replace(of, body=replace(of.body, point=replace(of.body.point, bucket_ms=-5)))
    lines = Lines()
    assert Courier(box(wrong, a_point(2)), LOG, points=lines).deliver().refused == 1
    assert len(lines.lines) == 1


def test_annotations_keep_their_order_when_the_board_is_away() -> None:
    store, board = box(news(1), a_point(2), news(3, "ended")), Board(away=True)
    lines = Lines()
    courier = Courier(store, LOG, points=lines, cases=board)
    assert courier.deliver().away == ["the board is away"]
    assert sorted(store.rows) == [1, 3]
    assert len(lines.lines) == 1, "points do not wait for the board"
    board.away = False
    courier.deliver()
    assert [told.event.what for told in board.told] == ["opened", "ended"]


def test_a_refused_annotation_is_passed_over() -> None:
    store, board = box(news(1, reason="bad"), news(2, "ended")), Board()
    assert Courier(store, LOG, cases=board).deliver().refused == 1
    assert [told.event.what for told in board.told] == ["ended"]
    assert store.rows == {}


def test_rows_for_a_system_no_longer_configured_are_let_go() -> None:
    store = box(a_point(1), news(2))
    assert Courier(store, LOG).deliver() == Delivery(taken=2)
    assert store.rows == {}


def test_a_crash_before_the_confirmation_delivers_twice_not_never() -> None:
    class Forgetful(Box):
        def outbox_done(self, ids: Sequence[int]) -> None:
            raise sqlite3.OperationalError("disk full")

    store, lines = Forgetful(box(a_point(1)).rows), Lines()
    courier = Courier(store, LOG, points=lines)
    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError):
            courier.deliver()
    assert len(lines.lines) == 2
    assert len(set(lines.lines)) == 1, "the same point at the same time: the database keeps one"


def test_pauses_grow_to_five_minutes_and_differ() -> None:
    rng = random.Random(1)
    ceilings = [max(pause_s(n, rng) for _ in range(200)) for n in (1, 2, 5, 9, 30, 10_000)]
    assert ceilings[:3] == pytest.approx([1, 2, 16], rel=0.02)
    assert ceilings[3] <= 256
    assert max(ceilings) <= 300
    assert min(pause_s(1, rng) for _ in range(200)) >= 0.5


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come about within five seconds")


async def test_the_loop_goes_on_after_failures_and_stops_when_told() -> None:
    store, lines, stop = box(a_point(1)), Lines(away=True), asyncio.Event()
    registry = CollectorRegistry()
    gauges = Gauges(registry)
    task = asyncio.create_task(
        run(
            Courier(store, LOG, points=lines),
            stop,
            gauges=gauges,
            log=LOG,
            clock_ms=lambda: NOW_MS,
            rng=random.Random(3),
            idle_s=0.01,
        )
    )
    await until(lambda: lines.calls > 0)
    lines.away = False
    await until(lambda: not store.rows)
    store.broken = sqlite3.OperationalError("locked")
    await asyncio.sleep(0.05)
    assert not task.done(), "a store that cannot be read for a moment does not end the deliveries"
    stop.set()
    async with asyncio.timeout(5):
        await task
    text = generate_latest(registry).decode()
    assert f'{series.METRIC_OUTBOX_POINTS}{{result="written"}} 1.0' in text
    assert float(text.split(f"\n{series.METRIC_OUTBOX_LAST_SUCCESS} ")[1].split()[0]) == NOW_MS / 1000
    assert float(text.split(f"\n{series.METRIC_OUTBOX_FAILURES} ")[1].split()[0]) >= 1


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(outbox.importlib, "import_module", missing)
    sink = InfluxSink(url="http://127.0.0.1:1", token="t", org="o", bucket="b")
    for config in (Config(influx=sink), Config(grafana=GrafanaSink(url="http://127.0.0.1:1", token="t"))):
        name = "influx" if config.influx else "grafana"
        with pytest.raises(ConfigError, match=rf"evenlane\[{name}\]"):
            outbox._influx(config) or outbox._grafana(config)


async def test_the_application_delivers_beside_its_work(tmp_path: Path) -> None:
    """The real store and the real application; the database is away, and everything else goes on."""
    sink = InfluxSink(url="http://127.0.0.1:9", token="secret-token", org="o", bucket="b")
    app = create_app(Config(data=tmp_path / "data", influx=sink))
    runner = web.AppRunner(app)
    async with asyncio.timeout(20):
        await runner.setup()
        assert any(task.get_name() == "outbox" for task in asyncio.all_tasks())
        await runner.cleanup()
        assert not any(task.get_name() == "outbox" for task in asyncio.all_tasks())

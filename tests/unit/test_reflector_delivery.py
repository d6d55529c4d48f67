# SPDX-License-Identifier: EUPL-1.2
"""Receipts reach the collector: in batches, once the trouble is over, across restarts, and never in anybody's way."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from probe.reflector import delivery as module
from probe.reflector.delivery import REJECTED, Delivery, next_batch
from probe.reflector.keys import NetworkKey
from probe.reflector.metrics import Metrics
from probe.reflector.receipts import ASIDE_BYTES, Journal
from probe.wire.limits import MAX_BATCH

NOW = 1_783_000_000_000


class Collector:
    """An HTTP server that answers as a test says and keeps what it took."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.bodies: list[list[Any]] = []
        self.rule: Callable[[list[Any]], web.Response | None] = lambda envelopes: None
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        assert request.path == "/v1/receipts"
        assert request.headers["Content-Encoding"] == "gzip"
        envelopes = json.loads(await request.read())["envelopes"]
        self.bodies.append(envelopes)
        answer = self.rule(envelopes)
        if answer is not None:
            return answer
        results = [{"status": "duplicate" if one in self.taken else "accepted", "id": "x"} for one in envelopes]
        self.taken += [one for one in envelopes if one not in self.taken]
        return web.json_response({"results": results})


@pytest.fixture
async def collector() -> Any:
    found = Collector()
    application = web.Application(client_max_size=16 * 1024 * 1024)
    application.router.add_post("/{tail:.*}", found.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


class Sender:
    def __init__(self, state: Path, url: str, aside_bytes: int = ASIDE_BYTES) -> None:
        self.started, self.receipts = Journal(state / "started.jsonl"), Journal(state / "receipts.jsonl")
        self.metrics = Metrics(now_ms=lambda: NOW)
        self.key = NetworkKey(state / "network.key")
        self.delivery = Delivery(
            collector=url,
            state=state,
            journals=(self.started, self.receipts),
            metrics=self.metrics,
            network_key=self.key,
            first_pause_s=0.01,
            aside_bytes=aside_bytes,
        )

    def write(self, journal: Journal, *numbers: int) -> None:
        for number in numbers:
            journal.append(json.dumps({"n": number}).encode() + b"\n")

    async def all(self) -> list[str]:
        done = []
        async with aiohttp.ClientSession() as http:
            while not done or done[-1] == "delivered":
                done.append(await self.delivery.once(http))
        return done

    def close(self) -> None:
        self.started.close()
        self.receipts.close()

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"evenlane_reflector_{name}", labels) or 0.0


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(1000):
        if is_so():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never happened")


def numbers(found: list[Any]) -> list[int]:
    return [one["n"] for one in found]


async def test_everything_is_delivered_started_pairs_first(tmp_path: Path, collector: Collector) -> None:
    sender = Sender(tmp_path, collector.url)
    sender.write(sender.receipts, 1000)
    sender.write(sender.started, *range(250))
    assert await sender.all() == ["delivered"] * 4 + ["nothing"]
    assert [len(body) for body in collector.bodies] == [100, 100, 50, 1]
    assert numbers(collector.taken) == [*range(250), 1000]
    assert sender.count("delivered_total", status="accepted") == 251
    assert sender.count("delivery_backlog_bytes") == 0
    sender.write(sender.started, 7777)
    assert await sender.all() == ["delivered", "nothing"]
    assert numbers(collector.taken)[-1] == 7777


async def test_a_restart_continues_where_it_was(tmp_path: Path, collector: Collector) -> None:
    sender = Sender(tmp_path, collector.url)
    sender.write(sender.started, 1, 2, 3)
    await sender.all()
    sender.write(sender.started, 4)
    sender.close()
    again = Sender(tmp_path, collector.url)
    await again.all()
    assert [numbers(body) for body in collector.bodies] == [[1, 2, 3], [4]]


@pytest.mark.parametrize("content", ["", "[]", '{"started.jsonl": -1}', '{"started.jsonl": 10000}', "{"])
async def test_a_bad_cursor_delivers_again(tmp_path: Path, collector: Collector, content: str) -> None:
    (tmp_path / "delivery.json").write_text(content)
    sender = Sender(tmp_path, collector.url)
    sender.write(sender.started, 1)
    await sender.all()
    assert numbers(collector.taken) == [1]


async def test_a_collector_that_is_away_loses_nothing(tmp_path: Path, collector: Collector) -> None:
    sender = Sender(tmp_path, "http://127.0.0.1:9")
    sender.write(sender.started, 1, 2)
    assert await sender.all() == ["trouble"]
    sender.close()
    again = Sender(tmp_path, collector.url)
    await again.all()
    assert numbers(collector.taken) == [1, 2]


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.Response(status=500),
        lambda: web.Response(status=503, headers={"Retry-After": "1"}),
        lambda: web.Response(status=429),
        lambda: web.Response(status=403),
        lambda: web.Response(status=302, headers={"Location": "/elsewhere"}),
        lambda: web.Response(status=200, text="<html>"),
        lambda: web.json_response({"results": []}),
        lambda: web.json_response({"results": [{"status": "accepted"}]}),
        lambda: web.json_response({"results": [{"status": "accepted"}, {}]}),
        lambda: web.json_response({"results": [{"status": "rejected", "reason": "untrusted_reflector"}] * 2}),
    ],
)
async def test_trouble_is_waited_out(tmp_path: Path, collector: Collector, answer: Any) -> None:
    sender = Sender(tmp_path, collector.url)
    sender.write(sender.started, 1, 2)
    collector.rule = lambda envelopes: answer()
    assert await sender.all() == ["trouble"]
    collector.rule = lambda envelopes: None
    assert await sender.all() == ["delivered", "nothing"]
    assert numbers(collector.taken) == [1, 2]


async def test_one_bad_record_does_not_hold_up_the_others(tmp_path: Path, collector: Collector) -> None:
    sender = Sender(tmp_path, collector.url)
    sender.write(sender.started, *range(40))

    def rule(envelopes: list[Any]) -> web.Response | None:
        return web.Response(status=400) if {"n": 13} in envelopes else None

    collector.rule = rule
    await sender.all()
    assert numbers(collector.taken) == [n for n in range(40) if n != 13]
    assert sender.count("delivered_total", status="rejected") == 1


async def test_rejected_records_are_counted_and_passed_over(tmp_path: Path, collector: Collector) -> None:
    sender = Sender(tmp_path, collector.url)
    sender.write(sender.started, 1, 2)
    collector.rule = lambda envelopes: web.json_response(
        {"results": [{"status": "rejected", "reason": "conflict"}, {"status": "duplicate"}]}
    )
    assert await sender.all() == ["delivered", "nothing"]
    assert sender.count("delivered_total", status="rejected") == 1
    assert sender.count("delivered_total", status="duplicate") == 1


async def test_a_network_key_in_the_answer_is_adopted(tmp_path: Path, collector: Collector) -> None:
    sender = Sender(tmp_path, collector.url)
    for given, expected in (
        ({"month": "2026-07", "key": "ab" * 32}, bytes.fromhex("ab" * 32)),
        ({"month": "2026-08", "key": "cd" * 32}, bytes.fromhex("ab" * 32)),
        ({"month": "2026-07", "key": "zz"}, bytes.fromhex("ab" * 32)),
        ("nonsense", bytes.fromhex("ab" * 32)),
    ):
        sender.write(sender.started, 1)
        collector.rule = lambda envelopes, given=given: web.json_response(  # type: ignore[misc]
            {"results": [{"status": "accepted"}] * len(envelopes), "network_key": given}
        )
        await sender.all()
        assert sender.key.of(NOW) == expected


async def test_it_runs_by_itself_and_stops_with_a_last_try(tmp_path: Path, collector: Collector) -> None:
    sender = Sender(tmp_path, collector.url)
    collector.rule = lambda envelopes: web.Response(status=503)
    sender.write(sender.started, 1)
    task = asyncio.create_task(sender.delivery.run())
    await until(lambda: len(collector.bodies) >= 3)
    assert sender.count("delivery_retries_total") >= 2
    collector.rule = lambda envelopes: None
    await until(lambda: bool(collector.taken))
    task.cancel()
    await asyncio.wait([task])
    sender.write(sender.receipts, 2)
    await sender.delivery.flush(5.0)
    assert numbers(collector.taken) == [1, 2]


def test_batches_stay_within_the_collectors_limits(tmp_path: Path) -> None:
    path = tmp_path / "receipts.jsonl"
    lines = [b"x" * 1_900_000 + b"\n"] * 6 + [b"y\n"] * 150
    path.write_bytes(b"".join(lines) + b"torn")
    offset, sizes = 0, []
    while (batch := next_batch(path, offset)) is not None:
        body = b'{"envelopes":[' + b",".join(batch.lines) + b"]}"
        assert len(body) <= 8 * 1024 * 1024
        assert len(batch.lines) <= MAX_BATCH
        sizes.append(len(batch.lines))
        offset = batch.end
    assert sum(sizes) == 156
    assert offset == path.stat().st_size - 4


# -- journals end -------------------------------------------------------------------------------------------------


def kept(state: Path, stem: str = "started") -> list[int]:
    """Every number in every file of a journal."""
    lines = [line for path in sorted(state.glob(f"{stem}*.jsonl")) for line in path.read_bytes().splitlines()]
    return numbers([json.loads(line) for line in lines])


async def test_a_large_journal_is_put_aside_and_deleted_once_delivered(tmp_path: Path, collector: Collector) -> None:
    sender = Sender(tmp_path, collector.url, aside_bytes=200)
    for number in range(100):
        sender.write(sender.started, number)
        await sender.all()
        assert sender.started.bytes_kept <= 200 + 20
    assert numbers(collector.taken) == list(range(100))
    assert sender.count("delivery_backlog_bytes") == 0
    assert json.loads((tmp_path / "delivery.json").read_text()).keys() <= {"started.jsonl"}


async def test_nothing_undelivered_is_deleted(tmp_path: Path, collector: Collector) -> None:
    sender = Sender(tmp_path, collector.url, aside_bytes=200)
    collector.rule = lambda envelopes: web.Response(status=503)
    for number in range(100):
        sender.write(sender.started, number)
        assert await sender.all() == ["trouble"]
    assert kept(tmp_path) == list(range(100))
    assert len(sender.started.files) == 5
    sender.close()
    again = Sender(tmp_path, collector.url, aside_bytes=200)
    collector.rule = lambda envelopes: None
    await again.all()
    assert numbers(collector.taken) == list(range(100))
    assert [len(body) for body in collector.bodies[-2:]] != [1, 1], "in batches"
    assert list(again.started.files) == [tmp_path / "started.jsonl"]


async def test_without_a_collector_a_journal_stays_one_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "started.jsonl")
    journal.append(b"x" * 1000 + b"\n")
    assert list(journal.files) == [tmp_path / "started.jsonl"]
    journal.close()


async def test_what_is_rejected_outlives_its_journal(tmp_path: Path, collector: Collector) -> None:
    sender = Sender(tmp_path, collector.url, aside_bytes=1)
    sender.write(sender.started, 1, 2, 3)
    collector.rule = lambda envelopes: web.json_response(
        {
            "results": [
                {"status": "rejected", "reason": "conflict"} if one == {"n": 2} else {"status": "accepted"}
                for one in envelopes
            ]
        }
    )
    await sender.all()
    collector.rule = lambda envelopes: web.Response(status=400)
    sender.write(sender.receipts, 4)
    await sender.all()
    assert [json.loads(line)["n"] for line in (tmp_path / REJECTED).read_bytes().splitlines()] == [2, 4]
    assert kept(tmp_path) == kept(tmp_path, "receipts") == []
    assert sender.count("delivered_total", status="rejected") == 2


async def test_a_line_that_no_upload_can_hold_does_not_stop_the_others(tmp_path: Path, collector: Collector) -> None:
    """A disk that lost a newline: never our own writing, but the records behind it are."""
    sender = Sender(tmp_path, collector.url)
    sender.started.append(b"\0" * (3 * 1024 * 1024) + b"\n")
    sender.write(sender.started, 5)
    await sender.all()
    assert numbers(collector.taken) == [5]
    assert (tmp_path / REJECTED).stat().st_size == 3 * 1024 * 1024 + 1


async def test_a_large_answer_in_pieces_is_read_to_its_end(tmp_path: Path, collector: Collector) -> None:
    sender = Sender(tmp_path, collector.url)
    sender.write(sender.started, *range(100))
    collector.rule = lambda envelopes: web.json_response(
        {"results": [{"status": "accepted", "id": "x" * 5000}] * len(envelopes)}
    )
    assert await sender.all() == ["delivered", "nothing"]


class Killed(BaseException):
    """The program died here."""


async def test_killed_at_any_step_nothing_is_lost(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies before or after one of the steps that change files, again and again, with a power cut's cursors too."""
    rng = random.Random(3)
    fuse = [0]

    def burning(target: Any, name: str) -> None:
        real = getattr(target, name)

        def step(*args: Any, **more: Any) -> Any:
            fuse[0] -= 1
            if fuse[0] == 0:
                raise Killed
            done = real(*args, **more)
            fuse[0] -= 1
            if fuse[0] == 0:
                raise Killed
            return done

        monkeypatch.setattr(target, name, step)

    burning(module, "write_private")
    burning(Journal, "drop")
    burning(Path, "rename")
    burning(Path, "unlink")
    written, kills = 0, 0
    for _ in range(150):
        fuse[0] = rng.randrange(1, 25)
        try:
            sender = Sender(tmp_path, collector.url, aside_bytes=100)
            for _ in range(4):
                fresh = range(written, written + rng.randrange(1, 12))
                written = fresh.stop
                sender.write(rng.choice([sender.started, sender.receipts]), *fresh)
                await sender.all()
        except Killed:
            kills += 1
            fuse[0] = 10**9
            if rng.random() < 0.2:
                (tmp_path / "delivery.json").write_bytes(b"")
    fuse[0] = 10**9
    last = Sender(tmp_path, collector.url, aside_bytes=100)
    await last.all()
    assert kills > 80
    assert sorted(set(numbers(collector.taken))) == list(range(written))
    assert len(last.started.files) + len(last.receipts.files) <= 4

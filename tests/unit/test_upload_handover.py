# SPDX-License-Identifier: EUPL-1.2
"""The spool into a collector that answers what a test wants: batches, one fate a session, pauses, nothing lost."""

from __future__ import annotations

import gzip
import http.server
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from probe.backoff import LEAST_MS, MOST_ASKED_MS, load
from probe.handover import SpoolSent, collector_name, sync_spool
from probe.netio.control import Url
from probe.state import State, StateError
from probe.upload import collector_url
from probe.wire.envelope import Envelope, from_json

NOW = 1_790_000_000_000


def envelope(payload: bytes = b"{}") -> Envelope:
    """Nobody here looks at its signature."""
    return Envelope(payload=payload, key=bytes(32), signature=bytes(64))


class Collector(http.server.BaseHTTPRequestHandler):
    """A stand-in, because a real one does not answer garbage: a function of door and payloads decides."""

    decide: Callable[[str, list[bytes]], Any]
    heard: list[tuple[str, list[bytes]]]
    headers_sent: dict[str, str]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(gzip.decompress(self.rfile.read(int(self.headers["Content-Length"]))))
        payloads = [from_json(item).payload for item in body["envelopes"]]
        self.heard.append((self.path.rpartition("/")[2], payloads))
        status, answer = type(self).decide(self.heard[-1][0], payloads)
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response_only(status)
        for name, value in {**self.headers_sent, "Content-Length": str(len(raw))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


def accept(_: str, payloads: list[bytes]) -> Any:
    return 200, {"results": [{"status": "accepted", "reason": "", "id": None} for _ in payloads]}


@pytest.fixture
def url() -> Iterator[Url]:
    Collector.decide, Collector.heard, Collector.headers_sent = staticmethod(accept), [], {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield collector_url(f"http://127.0.0.1:{server.server_address[1]}/base")
    server.shutdown()
    server.server_close()
    thread.join(5)


def filled(tmp_path: Path, count: int, *, receipts: bool = False, size: int = 20) -> State:
    state = State(tmp_path / "flash", tmp_path / "ram")
    state.prepare()
    for number in range(count):
        records = [envelope(b"m%d " % number + b"x" * size)]
        state.spool.put(number, f"{number:032x}", records + [envelope(b"r%d" % number)] * receipts)
    return state


def left(state: State) -> list[int]:
    return [int(entry.name.split("-")[0]) for entry in state.spool.entries()]


def sync(state: State, url: Url, now_ms: int = NOW, **options: Any) -> SpoolSent:
    return sync_spool(state, url, now_ms, random.Random(1), **options)


def heard(door: str) -> list[list[bytes]]:
    return [[payload.split()[0] for payload in payloads] for told, payloads in Collector.heard if told == door]


def test_sessions_go_together_oldest_first_and_receipts_through_the_other_door(tmp_path: Path, url: Url) -> None:
    state = filled(tmp_path, 7, receipts=True)
    sent = sync(state, url)
    assert heard("measurements") == [[b"m%d" % n for n in range(7)]]
    assert heard("receipts") == [[b"r%d" % n for n in range(7)]]
    assert (sent.sessions, sent.accepted, sent.left, sent.failure, sent.waiting_until_ms) == (7, 7, 0, None, None)
    assert 0 < sent.sent_bytes < 3000
    standing = load(state.run)
    assert (standing.collector, standing.failure) == (collector_name(url), "")
    assert NOW <= standing.uploaded_ms == standing.contact_ms < NOW + 60_000


def test_a_request_stays_within_its_limits(tmp_path: Path, url: Url) -> None:
    sync(filled(tmp_path, 120), url)
    assert [len(batch) for batch in heard("measurements")] == [50, 50, 20]
    Collector.heard.clear()
    sync(filled(tmp_path / "b", 7, size=150_000), url)
    assert [len(batch) for batch in heard("measurements")] == [2, 2, 2, 1]
    Collector.heard.clear()
    sync(filled(tmp_path / "c", 2, size=700_000), url)
    assert [len(batch) for batch in heard("measurements")] == [1, 1]


def test_each_session_has_its_own_fate(tmp_path: Path, url: Url) -> None:
    answers = {
        b"m0": {"status": "accepted"},
        b"m1": {"status": "duplicate"},
        b"m2": {"status": "rejected", "reason": "address", "http": 422, "detail": "something here"},
        b"m3": {"status": "rejected", "reason": "store_unavailable", "http": 503},
        b"m4": {"status": "accepted"},
        b"m5": {"status": "a word of the future"},
    }

    def decide(door: str, payloads: list[bytes]) -> Any:
        if door == "receipts":
            return 403, {"error": "untrusted_reflector"}
        return 200, {"results": [{"id": None, "reason": "", **answers[p.split()[0]]} for p in payloads]}

    Collector.decide = staticmethod(decide)
    state = filled(tmp_path, 6, receipts=True)
    sent = sync(state, url)
    assert left(state) == [3, 5]
    assert (sent.sessions, sent.accepted, sent.duplicates, sent.rejected) == (4, 2, 1, ("address",))
    assert (sent.failure, sent.left) == ("http_error", 2)
    assert heard("receipts") == [[b"r0", b"r1", b"r2", b"r4"]]
    standing = load(state.run)
    assert (standing.refused, standing.refused_reason) == (1, "address")
    assert standing.refused_name == f"{2:012d}-{2:032x}"
    assert standing.pause.failures == 1
    assert sent.waiting_until_ms == standing.pause.until_ms


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (200, b""),
        (200, b"<html>hello</html>"),
        (200, b"\xff\xfe"),
        (200, []),
        (200, {"results": []}),
        (200, {"results": [{"status": "accepted"}] * 2}),
        (200, {"results": [{"status": "accepted"}] * 4}),
        (200, {"results": {"status": "accepted"}}),
        (200, {"status": "accepted"}),
        (200, {"results": [{"status": "accepted", "id": "0" * 32}] * 3}),
        (201, b"[" * 5000),
        (204, b""),
        (302, b""),
        (401, b"who are you?"),
        (403, b"<html>"),
        (404, {"error": "not_found"}),
        (403, {"error": "forbidden"}),
        (418, {"errors": ["no"]}),
        (500, {"error": "internal"}),
        (503, {"error": "busy"}),
    ],
)
def test_garbage_and_refusals_of_others_remove_nothing(tmp_path: Path, url: Url, status: int, answer: object) -> None:
    Collector.decide = staticmethod(lambda *_: (status, answer))
    state = filled(tmp_path, 3)
    sent = sync(state, url)
    assert left(state) == [0, 1, 2]
    assert (sent.sessions, sent.rejected, sent.failure) == (0, (), "http_error")
    assert sent.waiting_until_ms is not None
    assert sent.waiting_until_ms >= NOW + LEAST_MS
    assert load(state.run).contact_ms == 0
    assert len(Collector.heard) == 1


def test_a_body_that_is_refused_as_a_whole_goes_again_in_parts_until_the_guilty_one_is_found(
    tmp_path: Path, url: Url
) -> None:
    def decide(door: str, payloads: list[bytes]) -> Any:
        if any(payload.startswith(b"m5 ") for payload in payloads):
            return 413, {"error": "too_large"}
        return accept(door, payloads)

    Collector.decide = staticmethod(decide)
    state = filled(tmp_path, 20)
    sent = sync(state, url)
    assert (sent.sessions, sent.accepted, sent.rejected, sent.left) == (20, 19, ("too_large",), 0)
    assert len(Collector.heard) == 7  # of 20, 10, 5 and 5, 2, 1, then the other 14 at once
    assert load(state.run).refused_name.startswith(f"{5:012d}-")


def test_while_a_pause_lasts_nothing_is_sent_unless_a_person_asks(tmp_path: Path, url: Url) -> None:
    Collector.decide = staticmethod(lambda *_: (503, {"error": "busy"}))
    state = filled(tmp_path, 2)
    first = sync(state, url)
    assert first.waiting_until_ms is not None
    again = sync(state, url, first.waiting_until_ms - 1)
    assert (again.waiting_until_ms, again.failure, again.left) == (first.waiting_until_ms, None, 2)
    assert again.detail == first.detail
    assert len(Collector.heard) == 1
    later = sync(state, url, first.waiting_until_ms)
    assert (len(Collector.heard), load(state.run).pause.failures) == (2, 2)
    Collector.decide = staticmethod(accept)
    assert sync(state, url, first.waiting_until_ms, is_asked=True).sessions == 2
    assert later.waiting_until_ms is not None
    assert load(state.run).pause.failures == 0


def test_a_pause_that_one_collector_earned_is_none_for_the_next(tmp_path: Path, url: Url) -> None:
    state = filled(tmp_path, 1)
    assert sync(state, collector_url("http://127.0.0.1:1")).failure == "connection_refused"
    assert sync(state, url).sessions == 1


@pytest.mark.parametrize("spelling", ["7200", "date"])
def test_retry_after_is_obeyed(tmp_path: Path, url: Url, spelling: str) -> None:
    two_hours = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(7200))
    date = {"Retry-After": two_hours, "Date": "Thu, 01 Jan 1970 00:00:00 GMT"}
    Collector.headers_sent = date if spelling == "date" else {"Retry-After": spelling}
    Collector.decide = staticmethod(lambda *_: (429, {"error": "slow_down"}))
    sent = sync(filled(tmp_path, 1), url)
    assert sent.waiting_until_ms is not None
    assert NOW + 7_200_000 <= sent.waiting_until_ms <= NOW + MOST_ASKED_MS


def test_a_damaged_file_holds_up_nobody(tmp_path: Path, url: Url) -> None:
    state = filled(tmp_path, 4)
    for entry in state.spool.entries()[1:3]:
        entry.path.write_bytes(entry.path.read_bytes()[:30])
    sent = sync(state, url)
    assert (sent.sessions, sent.damaged, sent.left) == (2, 2, 0)
    assert heard("measurements") == [[b"m0", b"m3"]]


def test_it_stops_when_its_time_is_up_and_goes_on_next_time(tmp_path: Path, url: Url) -> None:
    state = filled(tmp_path, 2)
    sent = sync(state, url, most_s=0)
    assert (sent.sessions, sent.left, sent.failure, Collector.heard) == (0, 2, None, [])
    assert sync(state, url).left == 0


def test_nothing_waits_nothing_is_sent(tmp_path: Path, url: Url) -> None:
    assert sync(State(tmp_path), url) == SpoolSent()
    assert (Collector.heard, list(tmp_path.iterdir())) == ([], [])


def test_a_collector_that_hangs_up_half_way_gets_all_of_it_again(tmp_path: Path, url: Url) -> None:
    def cut(*_: Any) -> Any:
        raise ConnectionError("cut")

    Collector.decide = staticmethod(cut)
    state = filled(tmp_path, 2)
    sent = sync(state, url)
    assert sent.failure in {"connection_reset", "end_of_stream"}
    assert left(state) == [0, 1]


def test_where_nothing_can_be_removed_it_is_one_sentence_and_nothing_worse(
    tmp_path: Path, url: Url, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = filled(tmp_path, 2)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(state.spool, "remove", refuse)
    with pytest.raises(StateError, match="Read-only file system"):
        sync(state, url)
    assert left(state) == [0, 1]
    assert load(state.run).uploaded_ms >= NOW

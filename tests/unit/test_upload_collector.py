# SPDX-License-Identifier: EUPL-1.2
"""Uploads against a collector that answers what a test wants: what is done, what is tried again, what never will be."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from probe.netio.control import UrlError
from probe.runner import send
from probe.upload import collector_url, upload
from probe.wire.envelope import Envelope, from_json
from probe.wire.signing import SeedSigner

SIGNER = SeedSigner(bytes(32))


def envelope(payload: bytes = b"{}") -> Envelope:
    return Envelope(payload=payload, key=SIGNER.public_key, signature=SIGNER.sign(payload))


class Collector(http.server.BaseHTTPRequestHandler):
    """Answers from a list; remembers what it was sent."""

    answers: list[tuple[int, object]]
    heard: list[tuple[str, dict[str, object]]]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Encoding"] == "gzip"
        assert self.headers["Content-Type"] == "application/json"
        self.heard.append((self.path, json.loads(gzip.decompress(body))))
        status, answer = self.answers.pop(0) if self.answers else (200, accepted(1))
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


def accepted(count: int, status: str = "accepted") -> dict[str, object]:
    return {"results": [{"status": status, "reason": "", "id": "x"} for _ in range(count)]}


@pytest.fixture
def collector() -> Iterator[http.server.ThreadingHTTPServer]:
    Collector.answers, Collector.heard = [], []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


def url_of(server: http.server.ThreadingHTTPServer, path: str = "") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def test_an_upload_is_a_gzip_batch_of_the_very_bytes(collector: http.server.ThreadingHTTPServer) -> None:
    sent = [envelope(b'{"a":1}'), envelope(b'{"b": 2}')]
    Collector.answers = [(200, accepted(2))]
    done = upload(collector_url(url_of(collector, "/base/")), sent)
    assert (done.accepted, done.duplicates, done.rejected, done.failure) == (2, 0, [], None)
    (path, body), *rest = Collector.heard
    assert (path, rest) == ("/base/v1/measurements", [])
    assert [from_json(item) for item in body["envelopes"]] == sent  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("status", "answer", "again", "rejected"),
    [
        (200, accepted(1, "duplicate"), False, []),
        (201, {"status": "accepted", "reason": "", "id": "x"}, False, []),
        (200, {"results": [{"status": "rejected", "reason": "conflict", "http": 409}]}, False, ["conflict"]),
        (200, {"results": [{"status": "rejected", "reason": "store_unavailable", "http": 503}]}, True, []),
        (400, {"error": "too_old"}, False, ["too_old"]),
        (413, {"error": "too_large"}, False, ["too_large"]),
        (408, {"error": "too_slow"}, True, []),
        (429, {"error": "slow_down"}, True, []),
        (503, {"error": "store_unavailable"}, True, []),
        (502, b"<html>bad gateway</html>", True, []),
        (302, b"", True, []),
        (200, b"not json", True, []),
        (200, [], True, []),
        (200, {"results": "many"}, True, []),
        (200, accepted(2), True, []),
        (200, accepted(0), True, []),
        (200, {"results": [{"status": "accepted", "id": "ab" * 16}]}, True, []),
        (200, {"results": [{"status": "maybe"}]}, True, []),
        (200, {"results": [7]}, True, []),
        (200, {"results": [{"status": "rejected", "reason": 7}]}, False, ["unknown"]),
        (403, b"<html>log in to our Wi-Fi</html>", True, []),
        (404, {"error": "not_found"}, True, []),
        (405, {"error": "method_not_allowed"}, True, []),
        (403, {"error": {"message": "Request blocked"}}, True, []),
        (401, {"error": "Unauthorized"}, True, []),
        (400, {"error": "cut_off"}, True, []),
    ],
)
def test_what_is_tried_again_and_what_is_not(
    collector: http.server.ThreadingHTTPServer, status: int, answer: object, again: bool, rejected: list[str]
) -> None:
    Collector.answers = [(status, answer)]
    done = upload(collector_url(url_of(collector)), [envelope()])
    assert done.is_done is not again
    assert done.rejected == rejected


def test_a_collector_that_is_not_there_is_a_named_failure_without_its_address() -> None:
    done = upload(collector_url("http://127.0.0.1:1"), [envelope()])
    assert done.failure == "connection_refused"
    assert "127.0.0.1" not in done.detail


def test_plain_http_is_for_the_house_alone() -> None:
    for good in ("http://127.0.0.1:8080", "http://collector:8080", "http://192.168.1.2", "https://collector.example"):
        collector_url(good)
    for bad in ("http://collector.example", "http://8.8.8.8", "ftp://x", "collector"):
        with pytest.raises(UrlError):
            collector_url(bad)


def test_the_receipt_goes_through_the_other_door_and_its_fate_changes_nothing(
    collector: http.server.ThreadingHTTPServer,
) -> None:
    Collector.answers = [(200, accepted(1)), (403, {"error": "untrusted_reflector"})]
    done = send(collector_url(url_of(collector)), [envelope(b"m"), envelope(b"r")])
    assert done.is_done
    assert not done.rejected
    assert [path for path, _ in Collector.heard] == ["/v1/measurements", "/v1/receipts"]
    Collector.heard.clear()
    Collector.answers = [(503, {"error": "store_unavailable"})]
    assert not send(collector_url(url_of(collector)), [envelope(b"m"), envelope(b"r")]).is_done
    assert len(Collector.heard) == 1

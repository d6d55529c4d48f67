# SPDX-License-Identifier: EUPL-1.2
"""Targets: what strangers send to the collector. Spec: spec/api.md."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import json
import random
import socket
import tempfile
import threading
import time
from functools import cache
from pathlib import Path

from fuzz_files import KEYS, sealed, stories
from fuzz_registry import golden_lines, target

from collector.config import Config
from collector.intake import Rejection, admit, inflate, take_apart
from collector.limits import RateLimit, client_of, network_of
from collector.rehearsal import Rehearsal, Truth, signer
from collector.server import Running, running
from collector.store.base import EnvelopeRow
from probe.netio.http import Response
from probe.upload import Uploaded, _take
from probe.wire.codec import WireError
from probe.wire.envelope import Envelope, to_json
from probe.wire.limits import MAX_BATCH
from probe.wire.records import Origin
from probe.wire.scrub import find_address

NOW = 1_790_000_100_000
TRUSTED = frozenset({KEYS["reflector"].key_id})
TYPES = ("application/json", "application/x-ndjson", "", "text/plain")
CODINGS = ("", "gzip", "identity", "br")


def told(found: Rejection) -> None:
    """A rejection can be told in JSON and holds no address."""
    json.dumps([found.reason, found.detail, found.path, found.id])
    assert 400 <= found.status < 500
    assert find_address(found.detail + " " + found.path) is None or found.reason == "address"


def bodies() -> list[bytes]:
    """Type and coding in the first byte; the golden lines one by one, as lines, as a batch, compressed."""
    lines = golden_lines()
    batch = b'{"envelopes":[' + b",".join(line.strip() for line in lines) + b"]}"
    return [
        *(b"\0" + line for line in lines),
        b"\1" + b"".join(lines),
        b"\0" + batch,
        b"\4" + gzip.compress(batch, mtime=0),
        b"\5" + gzip.compress(b"".join(lines), mtime=0)[:-3],
        b"\4" + gzip.compress(bytes(300_000), mtime=0) * 2,
    ]


@target(seeds=bodies, most=8000, examples=100)
def fuzz_upload(data: bytes) -> None:
    """A body is taken apart into at most a hundred items, or refused with a status below 500."""
    kind = data[0] if data else 0
    found = take_apart(data[1:], content_type=TYPES[kind % 4], encoding=CODINGS[kind // 4 % 4])
    if isinstance(found, Rejection):
        told(found)
        return
    assert 1 <= len(found.items) <= MAX_BATCH
    for item in found.items:
        answer = admit(item, door="measurements", trusted=TRUSTED, now_ms=NOW)
        if isinstance(answer, Rejection):
            told(answer)


@target(
    seeds=lambda: [gzip.compress(b"x" * n, mtime=0) for n in (0, 10, 999, 1001, 500_000)] + [b"\x1f\x8b\x08"],
    most=8000,
)
def fuzz_gzip(data: bytes) -> None:
    """Undoing gzip gives at most so many bytes, or WireError; a bomb costs no memory."""
    try:
        assert len(inflate(data, longest=1000)) <= 1000
    except WireError as error:
        assert error.reason in {"bad_gzip", "too_large"}


@target(seeds=stories, most=16000, examples=80)
def fuzz_admit(data: bytes) -> None:
    """A well-signed payload of any content becomes a row of exactly these bytes, or a rejection."""
    for line in sealed(data).splitlines():
        item = json.loads(line)
        for door in ("measurements", "receipts"):
            found = admit(item, door=door, trusted=TRUSTED, now_ms=NOW)
            if isinstance(found, Rejection):
                told(found)
            else:
                assert to_json_of(found) == item


def to_json_of(row: EnvelopeRow) -> dict[str, object]:
    """A kept row as the envelope that it was."""
    return to_json(Envelope(payload=row.payload, key=row.signer, signature=row.signature))


@target(
    seeds=lambda: [b"192.0.2.1, 10.0.0.1", b"2001:db8::1", b"unknown", b",,,", b"fe80::1%eth0, ::ffff:1.2.3.4"],
    most=400,
)
def fuzz_forwarded_for(data: bytes) -> None:
    """A forwarded address decides a bucket at most: never an error, and never believed from a stranger."""
    text = data.decode("utf-8", "surrogateescape")
    proxies = (ipaddress.ip_network("10.0.0.0/8"),)
    assert client_of("192.0.2.9", text, proxies) == "192.0.2.9"
    client = client_of("10.0.0.1", text, proxies)
    network_of(client)
    assert RateLimit(60, b"k" * 32).take(client, 0.0) == 0.0


@target(
    seeds=lambda: [
        b'\0{"results":[{"status":"accepted","id":"x"},{"status":"rejected","reason":"bad","http":400,"detail":"d"}]}',
        b'\1{"error":"slow_down"}',
        b'\0{"results":[{"status":"rejected","http":503,"reason":["a"]}]}',
        b'\0{"results":' + b"9" * 4000 + b"}",
    ],
    examples=80,
)
def fuzz_collector_answer(data: bytes) -> None:
    """Whatever a collector answers to an upload, the probe has a result: counts, or a failure of its vocabulary."""
    status = (200, 429, 400, 201, 503, 302)[data[0] % 6 if data else 0]
    done = Uploaded()
    _take(done, Response(status, {}, data[1:]))
    assert done.accepted >= 0
    assert done.failure in {None, "http_error"}
    assert all(len(reason) <= 64 for reason in done.rejected)


@cache
def port() -> int:
    """A real collector on loopback that has judged three probes."""
    ready: list[int] = []
    started = threading.Event()

    async def serve(folder: str) -> None:
        rng = random.Random(3)
        make = Rehearsal(rng, signer(rng))
        config = Config(data=Path(folder), port=0, reflectors=(make.reflector.key_id,), uploads_per_minute=0)
        async with running(config) as collector:
            await _fill(collector, make, rng)
            ready.append(collector.port)
            started.set()
            await asyncio.Event().wait()

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(serve(folder))

    threading.Thread(target=run, daemon=True).start()
    assert started.wait(60), "the collector did not start"
    return ready[0]


async def _fill(collector: Running, make: Rehearsal, rng: random.Random) -> None:
    now = time.time_ns() // 1_000_000
    rows = []
    for number in range(3):
        origin = Origin(asn=64500, operator="Example Net", country="NL", network=f"{number + 1:032x}", edge=True)
        probe = signer(rng)
        one = make.session(probe, started_ms=now - 600_000, pairs=12, truth=Truth(slowdown=0.5), origin=origin)
        for door, envelopes in (("receipts", (*one.started, one.receipt)), ("measurements", (one.measurement,))):
            for envelope in envelopes:
                trusted = frozenset({make.reflector.key_id})
                row = admit(to_json(envelope), door=door, trusted=trusted, now_ms=now)
                assert isinstance(row, EnvelopeRow), row
                rows.append(row)
    await asyncio.wrap_future(collector.store.add(rows))
    await collector.judged()


CELL = "operator=Example+Net&app=youtube&direction=down&access=fixed&effect=slowing"


@target(
    seeds=lambda: [
        b"/v1/cells?operator=Example+Net&format=csv",
        b"/v1/evidence?" + CELL.encode(),
        b"/v1/cases?status=open&state=corroborated",
        b"/v1/cases/x",
        b"/v1/operators?format=xml",
        b"/v1/cells?app=%00&app=%ED%A0%80&app=\xff\xfe",
        b"/?lang=nl", b"/case/x", b"/cell/a/b/down/fixed/slowing", b"/%2e%2e/%2e%2e/etc/passwd", b"/healthz",
    ],
    most=1500,
    examples=60,
)  # fmt: skip
def fuzz_public_api(data: bytes) -> None:
    """Any request target, any query: an answer below 500 with a body that its type promises."""
    request = data.translate(None, b"\r\n \0") or b"/"
    with socket.create_connection(("127.0.0.1", port()), 10) as sock:
        sock.sendall(b"GET " + request + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    assert status < 500, f"{status} for {request!r}: {body[:200]!r}"
    if b"json" in head and b"encoding: " not in head.lower():
        json.loads(body)

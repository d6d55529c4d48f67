# SPDX-License-Identifier: EUPL-1.2
"""How many signed measurements a second the collector makes durable, against an empty aiohttp handler.

Real server processes on real sockets. Everything is signed and packed before the clock starts; the client is one
process that writes ready bytes over a few connections, so nearly all of both cores is the server's. `tmp_path` must
be on a disk for the durability to cost what it costs.
"""

import asyncio
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass

import pytest

from collector.intake import admit, take_apart
from collector.rehearsal import Rehearsal, signer
from collector.store.sqlite import SqliteStore
from probe.wire.codec import loads
from probe.wire.envelope import from_json, read_payload, to_json
from probe.wire.records import Origin

SESSIONS = 3000
PAIRS = 10
BATCH = 50
CONNECTIONS = 8
RUNS = 3
EMPTY = """
import sys
from aiohttp import web
async def handle(request):
    await request.read()
    return web.json_response({"results": []})
app = web.Application(client_max_size=0)
app.router.add_post("/v1/measurements", handle)
async def ready(app):
    print('{"port": PORT}'.replace("PORT", sys.argv[1]), flush=True)
app.on_startup.append(ready)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
"""


@dataclass(frozen=True)
class Material:
    """Signed sessions as bodies that are ready to be sent."""

    reflector: str
    envelopes: dict[str, list]
    """By type, plain JSON values."""
    requests: dict[str, list[bytes]]
    """By type, whole HTTP requests of up to 50 envelopes."""

    @property
    def all(self):
        """Every kind as it would arrive: what was started, the receipts, the measurements."""
        started, receipts = iter(self.requests["started"]), iter(self.requests["receipt"])
        found = []
        for measurements in self.requests["measurement"]:
            found += [*itertools.islice(started, PAIRS), next(receipts), measurements]
        return found


def sessions(count):
    rng = random.Random(8)
    rehearsal = Rehearsal(rng=rng, reflector=signer(rng))
    probes = [signer(rng) for _ in range(40)]
    now_ms = time.time_ns() // 1_000_000
    envelopes = {"measurement": [], "receipt": [], "started": []}
    for number in range(count):
        # Ten operators and four apps: forty cells; each probe measures every few minutes.
        probe = number % len(probes)
        told = rehearsal.session(
            probes[probe],
            started_ms=now_ms - 80_000_000 + number * 25_000,
            pairs=PAIRS,
            app=("youtube", "netflix", "twitch", "spotify")[number // len(probes) % 4],
            origin=Origin(
                asn=64500 + probe % 10,
                operator=f"Net {probe % 10}",
                country="NL",
                network=f"{probe:02x}" * 8,
                edge=True,
            ),
        )
        envelopes["measurement"].append(to_json(told.measurement))
        envelopes["receipt"].append(to_json(told.receipt))
        envelopes["started"] += map(to_json, told.started)
    doors = {"measurement": "measurements", "receipt": "receipts", "started": "receipts"}
    requests = {
        kind: [request(doors[kind], found[start : start + BATCH]) for start in range(0, len(found), BATCH)]
        for kind, found in envelopes.items()
    }
    return Material(rehearsal.reflector.key_id, envelopes, requests)


def request(door, envelopes):
    body = json.dumps({"envelopes": envelopes}, separators=(",", ":")).encode()
    head = f"POST /v1/{door} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


async def pour(port, requests):
    """Send every request over a few connections that stay open; seconds until the last answer."""
    waiting = iter(requests)

    async def one():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for ready in waiting:
            writer.write(ready)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer[9:12] == b"200", answer
            lines = answer.lower().split(b"\r\n")
            length = next(int(line[15:]) for line in lines if line.startswith(b"content-length"))
            told = await reader.readexactly(length)
            assert b"rejected" not in told
            assert b"duplicate" not in told
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return time.perf_counter() - began


def free_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@dataclass(frozen=True)
class Run:
    """One pouring: how long it took, what it cost, and when the judge was done with it."""

    took_s: float
    server_cpu_s: float
    client_cpu_s: float
    waiting: int
    """Sessions not yet judged when the last answer came."""
    behind_s: float
    """From the last answer until all was judged."""


def cpu_s(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def served(argv, requests, *, judged=False):
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = json.loads(process.stdout.readline())["port"]
        time.sleep(0.2)
        mine, theirs = time.process_time(), cpu_s(process.pid)
        took = asyncio.run(pour(port, requests))
        mine, theirs = time.process_time() - mine, cpu_s(process.pid) - theirs
        waiting, ended = waits(port) if judged else 0, time.perf_counter()
        while judged and waits(port):
            time.sleep(0.05)
        return Run(took, theirs, mine, waiting, time.perf_counter() - ended if judged else 0.0)
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def waits(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60) as answer:
        return json.load(answer)["waiting"]


def stages(material, directory):
    """Microseconds a measurement in each stage, one after the other in this process."""
    count = 500
    some, now_ms = material.envelopes["measurement"][:count], time.time_ns() // 1_000_000
    bodies = [json.dumps({"envelopes": some[start : start + BATCH]}).encode() for start in range(0, count, BATCH)]

    def timed(call, over):
        began = time.perf_counter()
        found = [call(one) for one in over]
        return found, (time.perf_counter() - began) / count * 1e6

    known = frozenset()
    [admit(one, door="measurements", trusted=known, now_ms=now_ms) for one in some]  # the readers are made
    uploads, apart = timed(lambda body: take_apart(body, content_type="application/json"), bodies)
    opened, base64 = timed(from_json, [item for upload in uploads for item in upload.items])
    _, signature = timed(lambda envelope: envelope.is_valid(), opened)
    _, text = timed(lambda envelope: loads(envelope.payload), opened)
    _, reading = timed(lambda envelope: read_payload(envelope.payload), opened)
    rows, whole = timed(lambda one: admit(one, door="measurements", trusted=known, now_ms=now_ms), some)
    store = SqliteStore(directory)
    _, kept = timed(lambda start: store.add(rows[start : start + BATCH]).result(), range(0, count, BATCH))
    store.close()
    return {
        "body apart": apart,
        "base64, key": base64,
        "signature": signature,
        "JSON": text,
        "record": reading - text,
        "times, addresses, digest": whole - base64 - signature - reading,
        "SQLite": kept,
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_signed_measurements_per_second(tmp_path, record_property):
    material = sessions(SESSIONS)
    config = tmp_path / "c.toml"
    config.write_text(f'uploads_per_minute = 0\nreflectors = ["{material.reflector}"]\n')
    argv = [sys.executable, "-m", "evenlane.cli", "collector", "--port", "0", "--json", "--config", str(config)]
    empty, alone, whole = [], [], []
    for number in range(RUNS):
        port = str(free_port())
        empty.append(served([sys.executable, "-c", EMPTY, port], material.requests["measurement"]))
        alone.append(served([*argv, "--data", str(tmp_path / f"alone{number}")], material.requests["measurement"]))
        everything = [*argv, "--data", str(tmp_path / f"whole{number}")]
        whole.append(served(everything, material.all, judged=True))
    size = len(material.requests["measurement"][0]) // BATCH

    def rate(runs):
        return SESSIONS / statistics.median(run.took_s for run in runs)

    def told(name, runs):
        rates = ", ".join(f"{SESSIONS / run.took_s:.0f}" for run in runs)
        middle = sorted(runs, key=lambda run: run.took_s)[len(runs) // 2]
        server, client = middle.server_cpu_s / SESSIONS * 1e3, middle.client_cpu_s / SESSIONS * 1e3
        return f"{name}: {rate(runs):.0f}/s ({rates}); CPU of each: server {server:.2f} ms, client {client:.2f} ms"

    print(f"\n{size} bytes each in batches of {BATCH}, {PAIRS} pairs, {CONNECTIONS} connections, {SESSIONS} in a run")
    print(told("empty handler, the same bodies", empty))
    print(told("measurements alone", alone), f"; ratio to the empty handler {rate(alone) / rate(empty):.3f}")
    print(told(f"with receipt and {PAIRS} started pairs each, judged beside it", whole))
    for run in whole:
        print(f"  {run.waiting} of {SESSIONS} sessions unjudged at the last answer, judged {run.behind_s:.1f} s later")
    costs = stages(material, tmp_path / "stages")
    print("microseconds a measurement:", ", ".join(f"{name} {cost:.0f}" for name, cost in costs.items()))
    record_property("measurements_per_s", rate(alone))
    record_property("ratio", rate(alone) / rate(empty))
    assert rate(alone) > 500

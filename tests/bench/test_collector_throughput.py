# SPDX-License-Identifier: EUPL-1.2
"""How many signed measurements a second the collector acknowledges, against an empty aiohttp handler."""

import asyncio
import json
import random
import subprocess
import sys
import time

import pytest

from collector.rehearsal import Rehearsal, signer
from probe.wire.envelope import to_json

CONNECTIONS = 16
EMPTY = """
import sys
from aiohttp import web
async def handle(request):
    await request.read()
    return web.json_response({"status": "accepted"}, status=201)
app = web.Application(client_max_size=0)
app.router.add_post("/v1/measurements", handle)
async def ready(app):
    print('{"port": PORT}'.replace("PORT", sys.argv[1]), flush=True)
app.on_startup.append(ready)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
"""


async def pour(port, bodies):
    """Send every body over a few connections that stay open; seconds it took."""

    async def one(mine):
        for _ in range(50):
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.1)
        for body in mine:
            head = "POST /v1/measurements HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer[9:12] in {b"200", b"201"}, answer
            length = next(
                int(line[15:]) for line in answer.split(b"\r\n") if line.lower().startswith(b"content-length")
            )
            told = await reader.readexactly(length)
            assert b"rejected" not in told
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(one(bodies[index::CONNECTIONS]) for index in range(CONNECTIONS)))
    return time.perf_counter() - began


def measurements(count, pairs):
    rng = random.Random(8)
    rehearsal, probes = Rehearsal(rng=rng, reflector=signer(rng)), [signer(rng) for _ in range(20)]
    now_ms = time.time_ns() // 1_000_000
    return [
        to_json(rehearsal.session(probes[i % 20], started_ms=now_ms - 600_000, pairs=pairs).measurement)
        for i in range(count)
    ]


def free_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def served(argv, bodies):
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = json.loads(process.stdout.readline())["port"]
        return asyncio.run(pour(port, bodies))
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


@pytest.mark.slow
def test_signed_measurements_per_second(tmp_path, record_property):
    envelopes = measurements(3000, pairs=12)
    bodies = [json.dumps(envelope).encode() for envelope in envelopes]
    port = str(free_port())
    empty = len(bodies) / served([sys.executable, "-c", EMPTY, port], bodies)
    config = tmp_path / "c.toml"
    config.write_text("uploads_per_minute = 0\n")
    argv = [sys.executable, "-m", "evenlane.cli", "collector", "--port", "0", "--json", "--config", str(config)]
    single = len(bodies) / served([*argv, "--data", str(tmp_path / "one")], bodies)
    batches = [json.dumps({"envelopes": envelopes[i : i + 100]}).encode() for i in range(0, len(envelopes), 100)]
    batched = len(envelopes) / served([*argv, "--data", str(tmp_path / "many")], batches)
    size = sum(map(len, bodies)) // len(bodies)
    print(f"\n{size} bytes each: empty handler {empty:.0f}/s, one by one {single:.0f}/s, in hundreds {batched:.0f}/s")
    print(f"ratio {single / empty:.2f} one by one, {batched / empty:.2f} in hundreds")
    record_property("ratio", single / empty)
    # 100 a second are nearly nine million sessions a day; the empty handler checks no signature and keeps nothing.
    assert single > 100
    assert batched > 100

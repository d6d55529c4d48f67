# SPDX-License-Identifier: EUPL-1.2
"""Killed in the middle of its work, twenty times: what was acknowledged is there, and nothing is there twice."""

import hashlib
import http.client
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from collector.rehearsal import Rehearsal, signer
from probe.wire.envelope import to_json

KILLS = 20
CLIENTS = 4


class Running:
    """`evenlane collector serve` as its own process."""

    def __init__(self, directory, config):
        argv = [sys.executable, "-m", "evenlane.cli", "collector", "serve", "--port", "0", "--json"]
        self.log = (directory.parent / "log").open("a")
        self.process = subprocess.Popen(
            [*argv, "--data", str(directory), "--config", str(config)],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        line = self.process.stdout.readline()
        assert line, (directory.parent / "log").read_text()
        self.url = json.loads(line)["url"]
        self.port = json.loads(line)["port"]

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.close()

    def stop(self):
        self.process.terminate()
        assert self.process.wait(20) == 0
        self.close()

    def close(self):
        self.process.wait(20)
        self.process.stdout.close()
        self.log.close()

    def get(self, path):
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            return json.load(answer)


def upload(port, queue, acknowledged, enough):
    """Send batches until the other side dies; note what it said it has."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        while queue:
            batch = [queue.pop() for _ in range(min(3, len(queue)))]
            for door, chosen in (("receipts", batch), ("measurements", batch)):
                envelopes = [e for d, e in chosen if d == door]
                if not envelopes:
                    continue
                body = json.dumps({"envelopes": [to_json(e) for e in envelopes]})
                connection.request("POST", f"/v1/{door}", body, {"Content-Type": "application/json"})
                results = json.loads(connection.getresponse().read())["results"]
                acknowledged += [
                    hashlib.sha256(e.payload).digest()
                    for e, result in zip(envelopes, results, strict=True)
                    if result["status"] in {"accepted", "duplicate"}
                ]
                assert {result["status"] for result in results} <= {"accepted", "duplicate"}
                if len(acknowledged) >= enough:
                    return
    except (OSError, http.client.HTTPException):
        return  # killed
    finally:
        connection.close()


@pytest.mark.services
@pytest.mark.timeout(400)
def test_twenty_kills_lose_nothing_and_double_nothing(tmp_path):
    rng = random.Random(11)
    reflector = signer(rng)
    rehearsal = Rehearsal(rng=rng, reflector=reflector)
    probes = [signer(rng) for _ in range(3)]
    config = tmp_path / "collector.toml"
    config.write_text(f'reflectors = ["{reflector.key_id}"]\nuploads_per_minute = 0\n')
    data = tmp_path / "data"
    began = time.time_ns() // 1_000_000 - 3_600_000
    sent, acknowledged, interrupted = {}, [], 0
    for kill in range(KILLS):
        fresh = []
        for number in range(30):
            told = rehearsal.session(probes[number % 3], started_ms=began + (kill * 30 + number) * 1000, pairs=2)
            fresh += [("receipts", e) for e in (*told.started, told.receipt)] + [("measurements", told.measurement)]
        sent.update({hashlib.sha256(e.payload).digest(): (door, e) for door, e in fresh})
        # Some of what was sent before goes again: it may have been kept without our knowing.
        queue = [*fresh, *rng.sample(sorted(sent.values(), key=lambda one: one[1].digest), 10)]
        rng.shuffle(queue)
        running = Running(data, config)
        enough = len(acknowledged) + rng.randrange(1, 60)
        threads = [
            threading.Thread(target=upload, args=(running.port, queue, acknowledged, enough + 10**6))
            for _ in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        while len(acknowledged) < enough and any(thread.is_alive() for thread in threads):
            time.sleep(0.001)
        running.kill()
        interrupted += bool(queue)
        for thread in threads:
            thread.join(20)
        with sqlite3.connect(f"{(data / 'collector.sqlite3').as_uri()}?mode=ro", uri=True) as connection:
            kept = [digest for (digest,) in connection.execute("SELECT digest FROM envelope")]
            (state,) = connection.execute("PRAGMA integrity_check").fetchone()
        connection.close()
        assert state == "ok"
        assert len(kept) == len(set(kept))
        assert set(acknowledged) <= set(kept) <= set(sent)
    assert interrupted >= KILLS // 2, "most kills came after the work was done: this proved little"

    running = Running(data, config)
    for door in ("receipts", "measurements"):
        rest = [e for d, e in sent.values() if d == door]
        for start in range(0, len(rest), 100):
            body = json.dumps({"envelopes": [to_json(e) for e in rest[start : start + 100]]}).encode()
            request = urllib.request.Request(f"{running.url}/v1/{door}", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                results = json.load(answer)["results"]
            for envelope, result in zip(rest[start : start + 100], results, strict=True):
                known = hashlib.sha256(envelope.payload).digest() in set(kept)
                assert result["status"] == ("duplicate" if known else "accepted")
    while running.get("/healthz")["waiting"]:
        time.sleep(0.1)
    (cell,) = running.get("/v1/cells?effect=slowing")["cells"]
    assert (cell["pairs"], cell["lost_pairs"]) == (KILLS * 30 * 2, 0)
    running.stop()

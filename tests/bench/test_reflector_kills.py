# SPDX-License-Identifier: EUPL-1.2
"""A reflector killed a thousand times under load: whatever it acknowledged reaches the collector, once.

Clients open sessions, begin pairs, measure and close while `kill -9` comes at random moments; now and then the end of
a journal or the delivery's cursor is damaged too, as a power cut would. The reflector and the collector are the real
programs; the reflector's processes are forked from one that has imported it, so that a start takes a tenth of a
second. EVENLANE_KILLS sets the count (1000).
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import json
import os
import random
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from probe.reflector.server import Announcement
from probe.wire.envelope import from_line

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1700)]

_path = Path(__file__).parents[1] / "contract" / "reflector_client.py"
_spec = importlib.util.spec_from_file_location("reflector_client", _path)
assert _spec is not None
assert _spec.loader is not None
c: Any = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("reflector_client", c)
_spec.loader.exec_module(c)

KILLS = int(os.environ.get("EVENLANE_KILLS", "1000"))
CLIENTS = 6
ASIDE_BYTES = 40_000
"""Small, so that journals are put aside and deleted all the time."""
_NURSERY = """
import asyncio, dataclasses, json, os, sys
from pathlib import Path
from probe.protocol.accounts import Limits
from probe.reflector import logs
from probe.reflector.server import Config, Reflector

control, data, state, collector, aside = sys.argv[1:]
config = Config(
    control_port=int(control), data_port=int(data), state=Path(state), collector=collector, version="test",
    limits=Limits(openings_per_minute=10**6), aside_bytes=int(aside),
)
def announce(found):
    print(json.dumps(dataclasses.asdict(found)), flush=True)
for line in sys.stdin:
    word, _, number = line.strip().partition(" ")
    if word == "wait":
        _, status = os.waitpid(int(number), 0)
        print(json.dumps({"status": status}), flush=True)
        continue
    child = os.fork()
    if not child:
        logs.configure(30)
        try:
            asyncio.run(Reflector(config).run(announce))
            os._exit(0)
        finally:
            os._exit(1)
    print(json.dumps({"pid": child}), flush=True)
"""


class Nursery:
    """Starts real reflectors quickly, one after the other, always on the same ports and the same state."""

    def __init__(self, state: Path, collector: str, log: Path) -> None:
        ports = []
        for _ in range(2):
            with socket.create_server(("127.0.0.1", 0)) as found:
                ports.append(str(found.getsockname()[1]))
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _NURSERY, *ports, str(state), collector, str(ASIDE_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.pid = 0

    def _ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, Path(self._log.name).read_text()
        return dict(json.loads(line))

    def start(self) -> Announcement:
        self._ask("start")
        told: dict[str, Any] = {}
        while not {"pid", "url"} <= told.keys():  # two processes write, in any order
            told |= self._answer()
        self.pid = told.pop("pid")
        return Announcement(**told)

    def end(self, number: int) -> int:
        os.kill(self.pid, number)
        self._ask(f"wait {self.pid}")
        return int(self._answer()["status"])

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()
        self._log.close()


class Clients:
    """Probes that begin pairs, and write down what they were told the moment they are told."""

    def __init__(self, there: Announcement) -> None:
        self.there = there
        self.nonces: set[tuple[str, int]] = set()
        self.receipts: set[bytes] = set()
        self.measured = 0
        self.surprises: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def _run(self, number: int) -> None:
        rng = random.Random(number)
        while not self._over.is_set():
            try:
                self._session(rng)
            except (OSError, http.client.HTTPException, ssl.SSLError):
                time.sleep(0.005)  # killed
            except Exception as error:  # noqa: BLE001 (told at the end: a thread cannot fail a test)
                self.surprises.append(repr(error))

    def _session(self, rng: random.Random) -> None:
        session = c.Session.__new__(c.Session)
        session.there, session.control = self.there, c.Control(self.there.control_port)
        wish = {"v": 1, "probe": c.KEY, "nettest": "differential", "pairs": 9, "segment_s": 4, "pace_mbps": 8}
        session.granted = session.control.post("/v1/sessions", wish)
        if session.granted.status == 503:
            return
        assert session.granted.status == 201, session.granted
        session.id, session.token = session.granted.body["session"], session.granted.body["token"]
        for pair in range(1, rng.randrange(2, 5)):
            answer = session.commit(pair, segment_s=0.2)
            if answer.status != 200:
                assert answer.body["error"] == "session_closed", answer  # it is stopping
                return
            self.nonces.add((session.id, pair))
            answer = session.post(f"/pairs/{pair}/reveal", {"nonce": session.nonce.hex()})
            if answer.status == 200 and rng.random() < 0.3:
                arms = {"app": c.APP, "neutral": c.NEUTRAL}
                for ticket, arm in zip(answer.body["tickets"], answer.body["arms"], strict=True):
                    session.down(ticket, arms[arm])
                self.measured += 1
            facts = {"started": True, "bytes": 0, "duration_ms": 0}
            session.post(f"/pairs/{pair}/finish", {"segments": [facts, facts]})
        answer = session.post("/close", {"reason": "done"})
        if answer.status == 200:
            self.receipts.add(from_line(json.dumps(answer.body).encode()).payload)
        session.control.close()


class Collector:
    """The collector's own program."""

    def __init__(self, directory: Path, key: str) -> None:
        self.data = directory / "data"
        config = directory / "collector.toml"
        config.write_text(f'reflectors = ["{key}"]\nuploads_per_minute = 0\n')
        argv = [sys.executable, "-m", "evenlane.cli", "collector", "--config", str(config), "--port", "0", "--json"]
        self._process = subprocess.Popen([*argv, "--data", str(self.data)], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = json.loads(self._process.stdout.readline())["url"]

    def kept(self) -> list[tuple[str, str, bytes]]:
        """Kind, id and payload of every envelope, in order of arrival."""
        with sqlite3.connect(f"{(self.data / 'collector.sqlite3').as_uri()}?mode=ro", uri=True) as database:
            rows = database.execute("SELECT kind, ident, payload FROM envelope ORDER BY seq").fetchall()
        database.close()
        return rows

    def count(self, result: str) -> int:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = [line for line in lines if "_records_total{" in line and f'result="{result}"' in line]
        return int(sum(float(line.rpartition(" ")[2]) for line in found))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


def damage(state: Path, rng: random.Random) -> str:
    """What a power cut may leave beside a kill; empty where nothing was done."""
    what = rng.random()
    if what < 0.15:
        with (state / rng.choice(["started.jsonl", "receipts.jsonl"])).open("ab") as file:
            file.write(b'{"evenlane":1,"key":"torn' + rng.randbytes(rng.randrange(300)).replace(b"\n", b"-"))
        return "torn line"
    if what < 0.2:
        (state / "delivery.json").write_bytes(rng.choice([b"", b"{", b'{"started.jsonl":99999999}']))
        return "cursor"
    return ""


def test_a_thousand_kills_under_load(tmp_path: Path) -> None:
    rng, state = random.Random(17), tmp_path / "state"
    with c.running(state) as there:
        key = there.key
    collector = Collector(tmp_path, key)
    nursery = Nursery(state, collector.url, tmp_path / "log")
    started, damages, most_bytes = time.monotonic(), Counter[str](), 0
    clients = Clients(nursery.start())
    try:
        for _ in range(KILLS):
            time.sleep(rng.uniform(0.02, 0.25))
            assert nursery.end(signal.SIGKILL) == signal.SIGKILL, (tmp_path / "log").read_text()
            damages[damage(state, rng)] += 1
            most_bytes = max(most_bytes, sum(path.stat().st_size for path in state.glob("*.jsonl")))
            nursery.start()
        took = time.monotonic() - started
        clients.stop()
        assert c.wait_for(lambda: c.metric(clients.there, "delivery_backlog_bytes") == 0, 60)
        assert nursery.end(signal.SIGTERM) == 0, (tmp_path / "log").read_text()
        kept = collector.kept()
        duplicates = collector.count("repeated")
    finally:
        nursery.close()
        collector.stop()
    assert clients.surprises == []
    pairs = {(ident.partition("/")[0], int(ident.partition("/")[2])) for kind, ident, _ in kept if kind == "started"}
    receipts = {payload for kind, _, payload in kept if kind == "receipt"}
    print(
        f"\n{KILLS} kills in {took:.0f} s; {len(clients.nonces)} nonces told, {len(pairs)} started pairs delivered, "
        f"{len(clients.nonces - pairs)} lost; {len(clients.receipts)} receipts told, {len(receipts)} delivered, "
        f"{len(clients.receipts - receipts)} lost; {clients.measured} pairs measured; sent again and known: "
        f"{duplicates}; damaged: {damages['torn line']} torn lines, {damages['cursor']} cursors; journals at most "
        f"{most_bytes / 1000:.0f} kB of {sum(len(payload) for *_, payload in kept) / 1e6:.1f} MB of records"
    )
    assert len(clients.nonces) > 3 * KILLS, "too little load to prove anything"
    assert clients.nonces <= pairs, "a pair whose nonce was told is not known as started"
    assert clients.receipts <= receipts, "a receipt that a probe holds never reached the collector"
    assert duplicates > KILLS / 100, "no kill came between a delivery and its cursor: this proved little"
    digests = Counter(hashlib.sha256(payload).digest() for *_, payload in kept)
    assert max(digests.values()) == 1, "something is there twice"
    left = [from_line(line).payload for path in state.glob("*.jsonl") for line in path.read_bytes().splitlines()]
    assert {hashlib.sha256(payload).digest() for payload in left} <= digests.keys()
    assert not (state / "rejected.jsonl").exists()
    assert most_bytes < 10 * ASIDE_BYTES + 1_000_000, "journals are not bounded"
    assert (tmp_path / "log").read_text().count("Traceback") == 0

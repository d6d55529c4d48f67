# SPDX-License-Identifier: EUPL-1.2
"""The collector killed again and again under load: what was acknowledged is there once, and judged as if never killed.

`EVENLANE_KILLS` says how often (60), `EVENLANE_SEED` how the dice fall. Two collectors are killed side by side, each
on its own data. One kill in eight falls into the start itself, while the log of the one before is taken over. SIGKILL
shows what a crash of the program does; a power cut needs the disk to keep what fsync promised, which no test in a
process can show.
"""

import dataclasses
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from collector.config import load
from collector.judge import Judge
from collector.rehearsal import Rehearsal, Truth, signer
from collector.store.base import EnvelopeRow
from collector.store.sqlite import SqliteStore
from probe.wire.envelope import to_json
from probe.wire.records import Origin

KILLS = int(os.environ.get("EVENLANE_KILLS", "60"))
SEED = int(os.environ.get("EVENLANE_SEED", "1"))
LINES = 2
"""Collectors at once."""
CLIENTS = 3
FRESH = 6
"""New sessions between two kills: more than are usually acknowledged by then."""
PAIRS = 2
APPS = ("youtube", "netflix")


class Server:
    """`evenlane collector serve` as a process of its own."""

    def __init__(self, directory, config):
        argv = [sys.executable, "-m", "evenlane.cli", "collector", "serve", "--port", "0", "--json"]
        self.log = (directory.parent / "log").open("ab")
        self.process = subprocess.Popen(
            [*argv, "--data", str(directory), "--config", str(config)], stdout=subprocess.PIPE, stderr=self.log
        )

    def port(self):
        line = self.process.stdout.readline()
        assert line, "the collector did not start: see its log"
        return json.loads(line)["port"]

    def end(self, number):
        os.kill(self.process.pid, number)
        code = self.process.wait(60)
        self.process.stdout.close()
        self.log.close()
        return code


class Line:
    """One data directory, its collectors one after another, and what their clients were told."""

    def __init__(self, directory, seed):
        self.rng = random.Random(seed)
        self.directory = directory / "data"
        reflector = signer(self.rng)
        self.rehearsal = Rehearsal(rng=self.rng, reflector=reflector)
        self.probes = [signer(self.rng) for _ in range(4)]
        self.config = directory / "collector.toml"
        self.config.write_text(
            f'reflectors = ["{reflector.key_id}"]\nuploads_per_minute = 0\n'
            '[[operators]]\nid = "Example Net"\nasns = [64500]\ncountry = "NL"\n'
        )
        self.began_ms = time.time_ns() // 1_000_000 - 20 * 3_600_000
        self.sent = {}
        """Door and envelope by the digest of its payload."""
        self.acknowledged = set()
        self.kept = set()
        self.wrong = []
        self.starts_s = []
        self.told = {"kills": 0, "in the start": 0, "with requests open": 0, "sessions": 0}

    def material(self):
        """New records, and a few of those sent before, shuffled and in batches of one to eight."""
        fresh = {}
        for _ in range(FRESH):
            number = self.told["sessions"]
            self.told["sessions"] += 1
            who = number % len(self.probes)
            told = self.rehearsal.session(
                self.probes[who],
                started_ms=self.began_ms + number * 7_000,
                pairs=PAIRS,
                app=APPS[number // len(self.probes) % 2],
                truth=Truth(slowdown=0.1),
                origin=Origin(asn=64500, operator="Example Net", country="NL", network=f"{who:x}" * 16, edge=True),
            )
            for envelope in told.all:
                door = "measurements" if envelope is told.measurement else "receipts"
                fresh[hashlib.sha256(envelope.payload).digest()] = (door, envelope)
        again = self.rng.sample(sorted(self.sent), min(12, len(self.sent)))
        self.sent |= fresh
        batches = []
        for door in ("receipts", "measurements"):
            chosen = [digest for digest in (*fresh, *again) if self.sent[digest][0] == door]
            self.rng.shuffle(chosen)
            while chosen:
                size = self.rng.randrange(1, 9)
                batches.append((door, chosen[:size]))
                del chosen[:size]
        self.rng.shuffle(batches)
        return batches

    def send(self, connection, door, digests):
        """One batch; what its answer says against what was known before."""
        body = json.dumps({"envelopes": [to_json(self.sent[digest][1]) for digest in digests]})
        before = self.acknowledged & set(digests)
        connection.request("POST", f"/v1/{door}", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        results = json.loads(answer.read())["results"]
        for digest, result in zip(digests, results, strict=True):
            if result["status"] not in {"accepted", "duplicate"}:
                self.wrong.append(result)
            elif result["status"] == "accepted" and digest in before | self.kept:
                self.wrong.append("accepted twice")
            else:
                self.acknowledged.add(digest)

    def client(self, port, batches, open_requests):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            while batches:
                open_requests.append(1)
                self.send(connection, *batches.pop())
                open_requests.pop()
        except (OSError, http.client.HTTPException, IndexError):
            return  # killed, or another client took the last batch
        finally:
            connection.close()

    def cycle(self):
        """Start, load, kill, look."""
        batches = self.material()
        server, began = Server(self.directory, self.config), time.perf_counter()
        self.told["kills"] += 1
        if self.rng.randrange(8) == 0:
            time.sleep(self.rng.uniform(0, 1.2 * (self.starts_s[-1] if self.starts_s else 1.0)))
            self.told["in the start"] += 1
        else:
            port = server.port()
            self.starts_s.append(time.perf_counter() - began)
            open_requests = []
            clients = [
                threading.Thread(target=self.client, args=(port, batches, open_requests)) for _ in range(CLIENTS)
            ]
            enough = len(self.acknowledged) + self.rng.randrange(0, 2 * FRESH)
            for client in clients:
                client.start()
            while len(self.acknowledged) < enough and any(client.is_alive() for client in clients):
                time.sleep(0.001)
            time.sleep(self.rng.uniform(0, 0.02))
            self.told["with requests open"] += bool(open_requests)
            server.end(signal.SIGKILL)
            for client in clients:
                client.join(60)
            return self.look()
        server.end(signal.SIGKILL)
        return self.look()

    def look(self):
        """What lies on the disk after a kill, as the next collector would find it."""
        file = self.directory / "collector.sqlite3"
        if not file.exists():
            assert not self.acknowledged  # killed before it had made its file
            return
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as found:
            if found.execute("SELECT name FROM sqlite_master WHERE name = 'envelope'").fetchone() is None:
                assert not self.acknowledged  # killed before it had made its tables
                return
            rows = [digest for (digest,) in found.execute("SELECT digest FROM envelope")]
            if self.told["kills"] % 25 == 0:
                assert found.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                assert found.execute("PRAGMA foreign_key_check").fetchall() == []
            forgotten = found.execute(
                "SELECT count(*) FROM envelope e WHERE kind != 'measurement'"
                " AND NOT EXISTS (SELECT 1 FROM pending p WHERE (p.reflector, p.session) = (e.reflector, e.session))"
                " AND NOT EXISTS (SELECT 1 FROM pair p WHERE (p.reflector, p.session) = (e.reflector, e.session))"
            ).fetchone()
        assert forgotten == (0,), "kept, but neither judged nor waiting to be"
        kept = set(rows)
        assert len(rows) == len(kept), "kept twice"
        assert self.kept <= kept, "lost what lay on the disk before"
        assert self.acknowledged <= kept, "lost what was acknowledged"
        assert kept <= set(self.sent)
        assert self.wrong == []
        self.kept = kept

    def finish(self):
        """Send all of it once more, let it be judged, stop properly; seconds until all was judged."""
        server = Server(self.directory, self.config)
        connection = http.client.HTTPConnection("127.0.0.1", server.port(), timeout=120)
        for door in ("receipts", "measurements"):
            rest = [digest for digest, (where, _) in self.sent.items() if where == door]
            for start in range(0, len(rest), 100):
                self.send(connection, door, rest[start : start + 100])
        began = time.perf_counter()
        while True:
            connection.request("GET", "/healthz")
            if not json.loads(connection.getresponse().read())["waiting"]:
                break
            time.sleep(0.1)
        connection.close()
        assert server.end(signal.SIGTERM) == 0
        assert self.wrong == []
        self.look()
        assert self.kept == set(self.sent)
        return time.perf_counter() - began


def judged(store):
    """All that follows from the records, without what remembers when it was drawn or found."""
    with closing(sqlite3.connect(store._path)) as connection:
        pairs = connection.execute(
            "SELECT c.operator, c.app, c.direction, c.access, p.reflector, p.session, p.number, p.probe, p.kind,"
            " json_remove(p.body, '$.cell') FROM pair p JOIN cell c ON c.id = p.cell ORDER BY p.session, p.number"
        ).fetchall()
    cells = {}
    for cell in store.cells():
        detail = store.evidence(cell.key)
        cells[cell.key] = (
            dataclasses.replace(cell, updated_ms=0, case=None),
            [dataclasses.replace(pair, probe="p1", network="n1") for pair in detail.pairs],
            detail.evidence_by_pair,
            detail.evidence_by_hour,
        )
    return pairs, cells, store.operators()


def afresh(line, directory):
    """The same records judged by a collector that was never killed, in another order of arrival."""
    with closing(sqlite3.connect(line.directory / "collector.sqlite3")) as connection:
        columns = [field.name for field in dataclasses.fields(EnvelopeRow)]
        found = connection.execute(f"SELECT {', '.join(columns)} FROM envelope").fetchall()  # noqa: S608
    rows = [EnvelopeRow(**dict(zip(columns, row, strict=True))) for row in found]
    line.rng.shuffle(rows)
    store, judge = SqliteStore(directory), Judge(load(line.config))
    try:
        store.add(rows).result()
        while store.write(lambda book: judge.step(book, line.began_ms, 200)).result().left:
            pass
        return judged(store)
    finally:
        store.close()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_under_load_it_loses_nothing_and_doubles_nothing(tmp_path):
    lines = []
    for number in range(LINES):
        (tmp_path / str(number)).mkdir()
        lines.append(Line(tmp_path / str(number), SEED * 1000 + number))

    def run(line):
        for _ in range(KILLS // LINES):
            line.cycle()

    began = time.perf_counter()
    with ThreadPoolExecutor(LINES) as pool:
        list(pool.map(run, lines))
    took = time.perf_counter() - began
    for line in lines:
        acknowledged = len(line.acknowledged)
        behind = line.finish()
        starts = sorted(line.starts_s)
        print(f"\n{line.told}; {acknowledged} of {len(line.sent)} envelopes acknowledged between the kills, none lost")
        print(
            f"start {starts[len(starts) // 2]:.2f} s (median), {starts[-1]:.2f} s (longest); judged in {behind:.1f} s"
        )
        store = SqliteStore(line.directory)
        try:
            pairs, cells, operators = judged(store)
        finally:
            store.close()
        assert len(pairs) == len({row[5:7] for row in pairs}) == line.told["sessions"] * PAIRS
        shown = [view for key, (view, *_) in cells.items() if key.effect == "slowing"]
        assert sum(view.pairs + view.lost_pairs for view in shown) == len(pairs)
        assert sum(view.lost_pairs for view in shown) == 0
        assert (pairs, cells, operators) == afresh(line, line.directory.parent / "afresh")
        assert line.told["with requests open"] >= line.told["kills"] // 3, (
            "most kills found it idle: this proved little"
        )
    print(f"{sum(line.told['kills'] for line in lines)} kills in {took:.0f} s")

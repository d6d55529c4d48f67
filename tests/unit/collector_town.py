# SPDX-License-Identifier: EUPL-1.2
"""A small town for tests of the collector: a store, a judge, and people who measure."""

import dataclasses
import random

from collector import intake
from collector.config import Config, GrafanaSink, InfluxSink
from collector.judge import Judge
from collector.model import CellKey
from collector.rehearsal import Rehearsal, Truth, signer
from collector.store.sqlite import SqliteStore
from probe.wire.envelope import to_json
from probe.wire.records import Origin

START = 1_790_002_800_000  # 2026-09-21, 15:00 UTC, the start of an hour
HOUR = 3_600_000
SINKS = {
    "influx": InfluxSink(url="http://127.0.0.1:1", token="t", org="o", bucket="b"),
    "grafana": GrafanaSink(url="http://127.0.0.1:1", token="t"),
}


class Town:
    """A store, a judge, and people who measure."""

    def __init__(self, directory, *, seed=1, probes=3, **config):
        self.rng = random.Random(seed)
        self.reflector = signer(self.rng)
        self.rehearsal = Rehearsal(rng=self.rng, reflector=self.reflector)
        self.probes = [signer(self.rng) for _ in range(probes)]
        self.origins = [
            Origin(asn=64500, operator="Example Net", country="NL", network=f"{i + 1:032x}", edge=True)
            for i in range(probes)
        ]
        self.config = Config(reflectors=(self.reflector.key_id,), **config)
        self.store = SqliteStore(directory)
        self.judge = Judge(self.config)
        self.now = START + 6 * HOUR

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.store.close()

    def session(self, who, *, at_ms=START, **options):
        options.setdefault("origin", self.origins[who])
        return self.rehearsal.session(self.probes[who], started_ms=at_ms, **{"pairs": 8, **options})

    def send(self, *envelopes, now_ms=None):
        rows = []
        for envelope in envelopes:
            door = "receipts" if envelope.key == self.reflector.public_key else "measurements"
            row = intake.admit(
                to_json(envelope),
                door=door,
                trusted=frozenset(self.config.reflectors),
                now_ms=self.now if now_ms is None else now_ms,
            )
            assert isinstance(row, intake.EnvelopeRow), row
            rows.append(row)
        assert set(self.store.add(rows).result()) <= {"accepted"}

    def run(self, most=20, now_ms=None):
        now_ms = self.now if now_ms is None else now_ms
        while self.store.write(lambda book: self.judge.step(book, now_ms, most)).result().left:
            pass

    def rejudge(self):
        """Judge all again, from the envelopes alone: what followed from them is spoiled first."""

        def spoil(book):
            for statement in (
                "DELETE FROM pair WHERE number % 2",
                "UPDATE state SET probe = 'x' || probe",
                "UPDATE cell SET extras = '{}'",
                "UPDATE hour SET point = '{}'",
                "UPDATE verdict SET log_e = 1000",
            ):
                book._db.execute(statement)

        self.store.write(spoil).result()
        self.store.write(self.judge.rejudge).result()
        self.run(most=7)

    def cells(self):
        return {(c.key.app, c.key.direction, c.key.access, c.key.effect): c for c in self.store.cells()}

    def cell(self, app="youtube", effect="slowing", access="fixed"):
        return self.cells()[app, "down", access, effect]

    def detail(self, app="youtube", effect="slowing", access="fixed"):
        key = CellKey(operator="Example Net", asn=None, app=app, direction="down", access=access, effect=effect)
        return self.store.evidence(key)

    def states(self):
        """What is kept of each probe, also of those that are not public."""
        numbers = [row.id for row in self.store.write(lambda book: book.known()).result().cells]
        return {number: self.store.write(lambda book, n=number: book.states(n)).result() for number in numbers}

    def everything(self):
        """What a reader sees, less the moment of writing."""
        found = {}
        for cell in self.store.cells():
            detail = self.store.evidence(cell.key)
            found[cell.key] = (
                dataclasses.replace(cell, updated_ms=0),
                detail.pairs,
                detail.evidence_by_pair,
                detail.evidence_by_hour,
            )
        return found, self.store.cases(), self.store.operators()


def caught(town, *, slowdown=0.5, pairs=10):
    """Every probe measures once; the envelopes."""
    truth = Truth(slowdown=slowdown)
    sent = []
    for who in range(len(town.probes)):
        sent += town.session(who, pairs=pairs, at_ms=START + who * 60_000, truth=truth).all
    town.send(*sent)
    town.run()
    return sent

# SPDX-License-Identifier: EUPL-1.2
"""The embedded store: durable, grouped, idempotent, one at a time; and rows that come back as they went."""

import dataclasses
import math
import random
import sqlite3
import threading

import pytest

from collector import intake
from collector.model import CellKey, CellView, Interval, OutboxPoint
from collector.rehearsal import Rehearsal, signer
from collector.store.base import StoreError
from collector.store.rows import decode, encode
from collector.store.sqlite import SqliteStore
from probe.wire.envelope import to_json

NOW = 1_790_000_000_000


@pytest.fixture
def store(tmp_path):
    found = SqliteStore(tmp_path)
    yield found
    found.close()


@pytest.fixture
def row():
    rng = random.Random(1)
    rehearsal, probe = Rehearsal(rng=rng, reflector=signer(rng)), signer(rng)

    def make():
        told = rehearsal.session(probe, started_ms=NOW - 60_000, pairs=1)
        found = intake.admit(to_json(told.measurement), door="measurements", trusted=frozenset(), now_ms=NOW)
        assert isinstance(found, intake.EnvelopeRow)
        return found

    return make


def test_answers_come_in_order_and_once(store, row):
    first, second = row(), row()
    assert store.add([first, second, first]).result() == ["accepted", "accepted", "duplicate"]
    other = dataclasses.replace(first, digest=b"x" * 32)
    again = dataclasses.replace(first, ident="0" * 32)
    assert store.add([other, again]).result() == ["conflict", "session_measured"]
    assert store.waiting() == 2


def test_what_waits_is_committed_together(store, row):
    gate = threading.Event()
    store.write(lambda _: gate.wait(10))
    before = store.commits
    futures = [store.add([row()]) for _ in range(50)]
    gate.set()
    assert [future.result() for future in futures] == [["accepted"]] * 50
    assert store.commits - before <= 3


def test_what_was_answered_survives_without_a_proper_end(tmp_path, row):
    store = SqliteStore(tmp_path)
    kept = row()
    store.add([kept]).result()
    # Another process's view of the file, while the store is open and its log not yet folded in.
    with sqlite3.connect(tmp_path / "collector.sqlite3") as other:
        assert other.execute("SELECT payload, signature FROM envelope").fetchall() == [(kept.payload, kept.signature)]
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
    store.close()


def test_every_commit_is_forced_to_disk(store):
    level = store.write(lambda book: book._db.execute("PRAGMA synchronous").fetchone()[0]).result()
    assert level == 2  # FULL


def test_work_that_fails_is_undone_and_fails_alone(store, row):
    gate = threading.Event()
    store.write(lambda _: gate.wait(10))
    good = store.add([row()])

    def half(book):
        book.note("half", "done")
        raise ZeroDivisionError

    bad = store.write(half)
    after = store.write(lambda book: book.noted("half"))
    gate.set()
    assert good.result() == ["accepted"]
    with pytest.raises(ZeroDivisionError):
        bad.result()
    assert after.result() is None


def test_a_full_disk_fails_everything_that_shared_the_commit(store, row):
    pages = store.write(lambda book: book._db.execute("PRAGMA page_count").fetchone()[0]).result()
    store.write(lambda book: book._db.execute(f"PRAGMA max_page_count = {pages}").fetchone()).result()
    # max_page_count cannot be lowered below what is used, so the next pages that are needed fail: "disk is full".
    futures = [store.add([dataclasses.replace(row(), payload=bytes(100_000))]) for _ in range(3)]
    for future in futures:
        with pytest.raises(StoreError, match="cannot be written"):
            future.result()
    store.write(lambda book: book._db.execute("PRAGMA max_page_count = 1000000").fetchone()).result()
    assert store.add([row()]).result() == ["accepted"]
    assert store.waiting() == 1


def test_only_its_owner_reads_the_file(tmp_path, store, row):
    store.add([row()]).result()
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir() if path.is_file()} == {0}


def test_a_second_collector_is_kept_out(tmp_path, store):
    with pytest.raises(StoreError, match="another collector is running"):
        SqliteStore(tmp_path)
    store.close()
    SqliteStore(tmp_path).close()


def test_a_closed_store_says_so(store, row):
    store.close()
    store.close()
    for call in (store.cells, store.check, lambda: store.add([row()])):
        with pytest.raises(StoreError, match="closed"):
            call()


def test_the_history_of_a_case_cannot_be_rewritten(store):
    def tamper(statement):
        def run(book):
            db = book._db
            db.execute("PRAGMA defer_foreign_keys = ON")
            db.execute("INSERT INTO operator VALUES (1, 'x', 'x', '[]', NULL, 'UTC', 0, 0)")
            db.execute("INSERT INTO cell (id, operator, app, direction, access) VALUES (1, 1, 'a', 'down', 'fixed')")
            db.execute("INSERT INTO cases VALUES ('c', 1, 'slowing', 0, '{}', '{}')")
            db.execute("INSERT INTO case_event (id, as_of_ms, body) VALUES ('c', 0, '{}')")
            db.execute(statement)

        return run

    for statement in ("DELETE FROM case_event", "UPDATE case_event SET body = ''"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            store.write(tamper(statement)).result()


def test_labels_are_drawn_once_and_differ(store):
    def draw(book):
        db = book._db
        db.execute("INSERT OR IGNORE INTO operator VALUES (1, 'x', 'x', '[]', NULL, 'UTC', 0, 0)")
        cell = book.add_cell(1, "a", "down", "fixed").id
        for _ in range(2):
            for number in range(200):
                book.label(cell, "p", f"probe{number}")
        return db.execute("SELECT label FROM label WHERE cell = ?", (cell,)).fetchall()

    labels = [label for (label,) in store.write(draw).result()]
    assert len(set(labels)) == 200
    assert all(1 <= label < 10**9 for label in labels)


VIEW = CellView(
    key=CellKey(operator='Ünï "x"', asn=None, app="a", direction="up", access="mobile", effect="blocking"),
    country=None,
    state="indication",
    e_value=1e300,
    log10_e=-3.5,
    slowdown=Interval(estimate=0.1, low=-0.2, high=0.3),
    app_mbps=None,
    neutral_mbps=None,
    pairs=1,
    lost_pairs=0,
    placebo_pairs=0,
    failed_app=0,
    failed_neutral=0,
    probes=3,
    slowed=1,
    clear=1,
    undecided=1,
    detectable_rate_mbps=None,
    detectable_burst_kb=2.5,
    reasons=("a", "b"),
    case=None,
    updated_ms=NOW,
)


def test_rows_come_back_as_they_went():
    assert decode(CellView, encode(VIEW)) == VIEW
    with pytest.raises(ValueError, match="JSON"):
        encode(dataclasses.replace(VIEW, log10_e=math.inf))


def test_a_newer_point_takes_the_place_of_an_older_one_in_the_outbox(store):
    from collector.model import EvidencePoint

    def put(pairs):
        point = EvidencePoint(bucket_ms=NOW, pairs=pairs, log10_e=0.0, state="indication", slowdown=None)
        store.write(lambda book: book.send("point", "1/slowing/1", OutboxPoint(cell=VIEW, point=point))).result()

    put(1)
    (old,) = store.outbox_take(10)
    put(2)
    # Confirming what was delivered before must not lose what came since.
    store.outbox_done([old.id])
    (new,) = store.outbox_take(10)
    assert new.body.point.pairs == 2
    store.outbox_done([new.id])
    assert store.outbox_size() == 0

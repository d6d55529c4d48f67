# SPDX-License-Identifier: EUPL-1.2
"""A probe leaves: key and records are gone from the disk, and not one published byte changes (spec/enrolment.md)."""

import asyncio
import dataclasses
import importlib.util
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from collector.api import enrol
from collector.config import OperatorEntry
from collector.enrolment import MAX_WISH_AGE_MS
from collector.keys import STORE
from collector.rehearsal import Truth, signer
from collector.store.roll import GONE_MS, RETURN_MS
from collector.store.sqlite import FILE
from probe.wire.records import Leave

_spec = importlib.util.spec_from_file_location("enrol_site", Path(__file__).with_name("enrol_site.py"))
enrol_site = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(enrol_site)
running, NOW, DAY_MS = enrol_site.running, enrol_site.NOW, enrol_site.DAY_MS
HOUR_MS = 3_600_000


@pytest.fixture
async def site(tmp_path):
    async with running(tmp_path / "data", uploads_per_minute=0) as found:
        yield found


@pytest.mark.parametrize("who", range(4))
async def test_nothing_of_the_key_is_left_and_nothing_published_changes(site, who):
    await site.caught()
    probe = site.probes[who]
    await site.enrol(probe, brand="Lane Telecom")
    before = await site.public()
    assert b'"status":"open"' in before["/v1/cases"]
    assert site.on_disk(probe)
    assert await site.leave(probe) == (200, {"status": "left"})
    assert site.on_disk(probe) == []
    assert await site.public() == before
    await site.judged()
    assert await site.public() == before
    await site.rejudged()
    assert await site.public() == before
    assert site.on_disk(probe) == []
    assert site.app[STORE].enrolled().left == 1


@pytest.mark.parametrize("name", ["Example Net", "Renamed"])
async def test_after_a_restart_with_another_register_both_histories_are_judged_alike(tmp_path, name):
    """Days, strata and the cell itself follow the register, also for pairs of probes that left."""
    async with running(tmp_path / "with", uploads_per_minute=0) as site:
        await site.caught()
    shutil.copytree(tmp_path / "with", tmp_path / "without")  # the same labels in both
    async with running(tmp_path / "without", uploads_per_minute=0) as site:
        for who in (0, 2):
            assert (await site.leave(site.probes[who]))[0] == 200
    told = []
    changed = (OperatorEntry(id=name, asns=(64500,), country="BE", timezone="Pacific/Auckland"),)
    for folder in ("with", "without"):
        async with running(tmp_path / folder, operators=changed, uploads_per_minute=0) as site:
            await site.judged()
            told.append(await site.public())
            assert bool(site.on_disk(site.probes[0])) == (folder == "with")
    assert name.encode() in told[0]["/v1/cells"]
    assert b'"day":"2026-09-22"' in b"".join(told[0].values())  # by its new clock
    if name == "Renamed":  # new cells, with labels and case numbers drawn anew
        told = [re.sub(rb'"case":"[0-9a-f]+"', b"", one["/v1/cells"]) for one in told]
    assert told[0] == told[1]


async def test_what_had_not_been_judged_is_judged_as_if_nobody_had_left(tmp_path):
    """Leaving between upload and verdict takes nothing back."""
    told = []
    for leaves in (False, True):
        async with running(tmp_path / str(leaves), uploads_per_minute=0) as site:
            sent = [site.session(who, pairs=12, truth=Truth(slowdown=0.5)) for who in range(4)]
            worker = site.app[enrol_site.WORKER]
            await worker.stop()
            for one in sent:
                await site.upload(*one.all)
            if leaves:  # two of them, because those without any network would be one
                for who in (1, 2):
                    await site.leave(site.probes[who])
                    assert site.app[STORE].scrub()  # at once for the first of them, else within a day
                    assert site.on_disk(site.probes[who]) == []
            worker.start()
            await site.judged()
            cells = site.app[STORE].cells()
            told.append([dataclasses.replace(cell, case=None) for cell in cells])
    assert told[0] == told[1]
    assert {cell.probes for cell in told[0]} == {4}


async def test_one_home_stays_one_network_when_one_of_its_probes_leaves_and_another_comes(site):
    """Else leaving and enrolling again would make two homes of one."""
    home = "ab" * 16
    await site.upload(*(e for who in (0, 1) for e in site.session(who, network=home).all))
    await site.judged()
    for first in sorted((0, 1), key=lambda who: site.probes[who].key_id):  # the network's name-giver first
        await site.leave(site.probes[first])
    newcomer = site.session(2, network=home)
    await site.upload(*newcomer.all, *site.session(3).all)
    await site.judged()
    for _ in range(2):
        pairs = site.app[STORE].evidence(site.app[STORE].cells()[0].key).pairs
        networks = {(pair.probe, pair.network) for pair in pairs}
        assert len(networks) == 4
        assert sorted([network for _, network in networks].count(n) for n in {n for _, n in networks}) == [1, 3]
        await site.rejudged()


async def test_the_case_keeps_its_witnesses_and_its_inputs(site):
    await site.caught()
    store = site.app[STORE]

    def private(book):
        cells = [row.id for row in book.known().cells]
        witnesses = [row.case.witnesses for cell in cells for row in book.cases_of(cell, "slowing")]
        return witnesses, [sorted(book.digests(cell)) for cell in cells]

    before, inputs = store.write(private).result()
    assert before
    probe = next(probe for probe in site.probes if probe.key_id in before[0])
    await site.leave(probe)
    after, inputs_after = store.write(private).result()
    assert [len(one) for one in after] == [len(one) for one in before]
    assert len(set(before[0]) - set(after[0])) == 1
    assert inputs_after == inputs


# What comes late


async def test_a_late_measurement_is_refused_and_a_late_receipt_counts_as_lost(site):
    await site.caught()
    late = site.session(0, pairs=5, started_ms=NOW - 60_000)
    await site.upload(*late.started[:2])
    await site.judged()
    before = site.app[STORE].cells()[0]
    await site.leave(site.probes[0])
    assert await site.upload(late.measurement) == [(410, "left")]
    assert await site.upload(late.receipt, late.receipt, *late.started) == [
        (201, "accepted"),
        *[(200, "duplicate")] * 6,
    ]
    await site.judged()
    after = next(cell for cell in site.app[STORE].cells() if cell.key == before.key)
    # Two were known as started, and lost; the receipt tells of three more. None of them may vanish.
    assert (after.lost_pairs - before.lost_pairs, after.pairs, after.probes) == (3, before.pairs, before.probes)
    assert site.on_disk(site.probes[0]) == []
    await site.rejudged()
    again = next(cell for cell in site.app[STORE].cells() if cell.key == before.key)
    assert again.lost_pairs == after.lost_pairs


async def test_a_day_later_no_name_is_known_and_records_of_before_are_refused(site):
    await site.caught()
    late = site.session(0, pairs=2, started_ms=NOW - 60_000)
    await site.leave(site.probes[0])
    site.clock[0] += RETURN_MS
    site.app[STORE].roll(lambda roll: roll.tidy(site.clock[0])).result()
    assert site.app[STORE].roll(lambda roll: roll.departed(site.probes[0].key_id)).result().pseudonym
    site.clock[0] += 1
    site.app[STORE].roll(lambda roll: roll.tidy(site.clock[0])).result()
    assert site.app[STORE].roll(lambda roll: roll.departed(site.probes[0].key_id)).result().pseudonym is None
    assert {answer for answer, _ in await site.upload(*late.all)} == {410}
    assert site.on_disk(site.probes[0]) == []
    site.clock[0] += GONE_MS
    site.app[STORE].roll(lambda roll: roll.tidy(site.clock[0])).result()
    assert site.app[STORE].roll(lambda roll: roll.departed(site.probes[0].key_id)).result() is None


async def test_who_comes_back_is_somebody_new(site):
    await site.caught()
    before = site.app[STORE].cells()[0]
    old = site.session(0, pairs=2, started_ms=NOW - 60_000)
    await site.leave(site.probes[0])
    site.clock[0] += 1000
    assert (await site.enrol(site.probes[0]))[0] == 201
    fresh = site.session(0, pairs=3, started_ms=site.clock[0] + 1)
    assert await site.upload(*fresh.all) == [(201, "accepted")] * 5
    assert await site.upload(old.measurement, old.receipt) == [(410, "left"), (201, "accepted")]
    await site.judged()
    after = next(cell for cell in site.app[STORE].cells() if cell.key == before.key)
    assert (after.probes, after.pairs) == (before.probes + 1, before.pairs + 3)
    # And leaves again: what came late in between keeps its first name.
    public = await site.public()
    assert (await site.leave(site.probes[0], at_ms=site.clock[0] + 5))[0] == 200
    assert await site.upload(*old.started) == [(200, "duplicate")] * 2
    assert await site.public() == public
    await site.rejudged()
    assert site.app[STORE].scrub()  # the second time within a day
    assert site.on_disk(site.probes[0]) == []
    counts = next(cell for cell in site.app[STORE].cells() if cell.key == before.key)
    assert (counts.probes, counts.pairs, counts.lost_pairs) == (after.probes, after.pairs, after.lost_pairs)


# The wish itself


async def test_an_old_enrolment_does_not_bring_a_probe_back(site):
    old = site.wish()
    await site.post("enrol", old)
    site.clock[0] += 5000
    await site.leave()
    status, answer = await site.post("enrol", old)
    assert (status, answer["error"]) == (409, "left")
    assert (await site.enrol(at_ms=site.clock[0]))[1]["error"] == "left"
    assert site.app[STORE].enrolled().enrolled == 0
    site.clock[0] += 1
    assert (await site.enrol())[0] == 201


async def test_an_enrolment_that_never_arrived_does_not_either(site):
    old = site.wish()
    site.clock[0] += 1
    assert await site.leave() == (200, {"status": "left"})
    assert (await site.post("enrol", old))[1]["error"] == "left"


async def test_leaving_again_with_an_older_wish_opens_no_gap(site):
    old = site.wish(at_ms=NOW + 50)
    await site.leave(at_ms=NOW + 100)
    await site.leave(at_ms=NOW)
    assert (await site.post("enrol", old))[1]["error"] == "left"


async def test_until_the_last_moment_at_which_an_old_enrolment_could_come(site):
    old = site.wish(at_ms=NOW + 600_000)  # a clock that is ahead
    await site.post("enrol", old)
    assert (await site.leave(at_ms=NOW + 600_000))[0] == 200
    site.clock[0] = NOW + 600_000 + MAX_WISH_AGE_MS
    site.app[STORE].roll(lambda roll: roll.tidy(site.clock[0])).result()
    assert (await site.post("enrol", old))[1]["error"] == "left"
    site.clock[0] += 1
    assert (await site.post("enrol", old))[1]["error"] == "too_old"


async def test_a_copy_of_a_leave_does_not_throw_out_who_came_back(site):
    await site.enrol()
    site.clock[0] += 10
    copy = site.wish(of=Leave)
    assert (await site.post("leave", copy))[0] == 200
    assert (await site.post("leave", copy))[0] == 200  # asking twice is asking once
    site.clock[0] += 10
    await site.enrol()
    status, answer = await site.post("leave", copy)
    assert (status, answer["error"]) == (409, "superseded")
    assert site.app[STORE].enrolled().enrolled == 1
    assert site.app[STORE].enrolled().left == 1


async def test_a_stranger_leaves_too_and_nobody_leaves_for_somebody_else(site):
    await site.caught()
    public, counts = await site.public(), site.app[STORE].enrolled()
    assert await site.leave(signer(site.rng)) == (200, {"status": "left"})
    forged = dataclasses.replace(site.wish(of=Leave), key=site.probes[0].public_key)
    assert (await site.post("leave", forged))[0] == 401
    for told, error in (
        ({"collector": site.probes[0].key_id}, "wrong_collector"),
        ({"at_ms": NOW - MAX_WISH_AGE_MS - 1}, "too_old"),
        ({"at_ms": NOW + 600_001}, "future_dated"),
    ):
        status, answer = await site.leave(site.probes[0], **told)
        assert (status, answer["error"]) == (400, error)
    assert (await site.post("leave", site.wish(site.probes[0])))[1]["error"] == "wrong_door"
    assert site.on_disk(site.probes[0])
    assert await site.public() == public
    assert site.app[STORE].enrolled() == counts


async def test_what_is_kept_of_those_who_left_does_not_tell_who_they_were(site):
    await site.enrol()
    await site.leave()
    (mark,) = site.app[STORE].write(lambda book: book._db.execute("SELECT mark FROM departed").fetchone()).result()
    assert len(mark) == 32
    assert site.on_disk(site.probe) == []
    assert (site.data / "marks").stat().st_mode & 0o777 == 0o600


async def test_the_file_is_written_anew_so_that_no_page_keeps_remains(site):
    """Pages may hold copies of what was moved about in them; secure_delete alone does not reach those."""
    await site.enrol()
    store, key = site.app[STORE], site.probe.key_id
    assert store.write(lambda book: book._db.execute("PRAGMA secure_delete").fetchone()[0]).result() == 1
    with closing(sqlite3.connect(site.data / FILE)) as careless:
        careless.execute("PRAGMA secure_delete = OFF")
        careless.execute("INSERT INTO meta VALUES ('remains', ?)", (key,))
        careless.commit()
        careless.execute("DELETE FROM meta WHERE name = 'remains'")
        careless.commit()
    assert store.scrub()  # nothing was deleted by anybody who left: nothing to do
    assert site.on_disk(site.probe)
    await site.leave()
    assert site.on_disk(site.probe) == []


async def test_a_large_store_is_written_anew_within_a_day(site, monkeypatch):
    monkeypatch.setattr(enrol, "SMALL_BYTES", 0)
    await site.caught()
    await site.leave(site.probes[0])
    store = site.app[STORE]
    since = store.roll(lambda roll: roll.deleted_ms()).result()
    assert since == NOW
    site.clock[0] += enrol.DELETED_FOR_MS - 1
    await enrol._keep_house(site.app)
    assert store.roll(lambda roll: roll.deleted_ms()).result() == since
    site.clock[0] += 1
    await enrol._keep_house(site.app)
    assert store.roll(lambda roll: roll.deleted_ms()).result() is None
    assert site.on_disk(site.probes[0]) == []


async def test_who_is_enrolled_vetted_and_left_is_counted(site):
    token = site.token(uses=9)
    for who in range(3):
        await site.enrol(site.probes[who], token=token if who else None)
    await site.leave(site.probes[2])
    async with site.client.get("/metrics") as answer:
        text = await answer.text()
    for standing, count in (("enrolled", 2), ("vetted", 1), ("left", 1)):
        assert f'evenlane_collector_probes{{standing="{standing}"}} {count}.0' in text


# Killed in the middle

CHILD = """
import os, signal, sys
from pathlib import Path
from collector.config import Config
from collector.enrolment import Wish
from collector.judge import Judge
from collector.store import leave
from collector.store.roll import SqliteRoll
from collector.store.sqlite import SqliteStore
from probe.wire.records import Leave

def dies(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

directory, probe, where, now = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
store = SqliteStore(directory)
if where == "records":
    leave.put_kept = dies
elif where == "roll":
    SqliteRoll.tidy = dies
judge = Judge(Config())
wish = Wish(probe=probe, record=Leave(type="leave", v=1, collector="A" * 43, at_ms=now))
store.write(lambda book: judge.leave(book, wish, now)).result()
assert where == "committed"
dies()
"""


@pytest.mark.parametrize(("where", "done"), [("records", False), ("roll", False), ("committed", True)])
async def test_killed_in_the_middle_it_is_done_or_not_begun(tmp_path, where, done):
    """`committed`: before the file was written anew."""
    async with running(tmp_path / "data", uploads_per_minute=0) as site:
        await site.caught()
        await site.enrol(site.probes[2])
        before = await site.public()
    command = [sys.executable, "-c", CHILD, str(tmp_path / "data"), site.probes[2].key_id, where, str(NOW)]
    killed = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -9, killed.stderr
    async with running(tmp_path / "data", uploads_per_minute=0) as site:
        await site.judged()
        assert await site.public() == before
        assert site.app[STORE].enrolled().enrolled == (0 if done else 1)
        kept = site.app[STORE].write(lambda book: book.sessions_of(site.probes[2].key_id)).result()
        assert bool(kept) == (not done)
        if done:  # what the kill left in the file goes when it is written anew, a day later at most
            assert site.app[STORE].scrub()
            assert site.on_disk(site.probes[2]) == []
        await site.rejudged()
        assert await site.public() == before


async def test_who_joins_and_leaves_by_turns_keeps_nobody_waiting(site, monkeypatch):
    """Writing the file anew holds up every upload: once in ten minutes at most, and never for strangers."""
    written = []
    scrub = site.app[STORE].scrub
    monkeypatch.setattr(site.app[STORE], "scrub", lambda most=None: written.append(most) or scrub(most))
    for _ in range(3):
        await site.enrol()
        assert (await site.leave())[0] == 200
        site.clock[0] += 1000
    assert len(written) == 1
    assert site.app[STORE].roll(lambda roll: roll.deleted_ms()).result() is not None, "it is still to be done"
    site.clock[0] += 10 * 60_000
    await site.enrol()
    assert (await site.leave())[0] == 200
    assert len(written) == 2
    assert site.app[STORE].roll(lambda roll: roll.deleted_ms()).result() is None
    for stranger in site.probes:
        site.clock[0] += 10 * 60_000
        assert (await site.leave(stranger))[0] == 200
        assert site.app[STORE].roll(lambda roll: roll.deleted_ms()).result() is None

# SPDX-License-Identifier: EUPL-1.2
"""Cases over the years: closed ones stay, what comes back is another; one alert an event; rules that change."""

import asyncio
import dataclasses
import gzip
import importlib.util
import json
import sqlite3
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from analysis.alerts import log_detector
from analysis.rules import EFFECTS, RULES, VERSION_1
from collector.api.shape import CASE_COLUMNS, CELL_COLUMNS, case_row, cell_row, flat, pictures
from collector.config import Config
from collector.judge import Judge
from collector.pages.detail import case_page
from collector.pages.example import application
from collector.pages.language import LANGUAGES, words
from collector.pages.overview import cell_address
from collector.pages.recompute import judged
from collector.rehearsal import Truth
from collector.store.schema import MIGRATIONS
from collector.store.sqlite import FILE, SqliteStore

_spec = importlib.util.spec_from_file_location("collector_town", Path(__file__).with_name("collector_town.py"))
assert _spec is not None
assert _spec.loader is not None
town_of = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(town_of)
HOUR, SINKS, START, Town, caught = town_of.HOUR, town_of.SINKS, town_of.START, town_of.Town, town_of.caught
DAY = 24 * HOUR
TEN = 2.302585


@pytest.fixture
def town(tmp_path):
    with Town(tmp_path, **SINKS) as found:
        yield found


def days(town, first, last, *, pairs=10, **truth):
    """Everybody measures once a day, and all is judged on each day."""
    for day in range(first, last):
        at_ms = START + day * DAY
        for who in range(len(town.probes)):
            told = town.session(who, at_ms=at_ms + who * 60_000, pairs=pairs, truth=Truth(**truth))
            town.send(*told.all, now_ms=at_ms + HOUR)
        town.run(now_ms=at_ms + HOUR)


def told(town):
    """What waits for the board, in its order."""
    return [row.body.event.what for row in town.store.outbox_take(10_000) if row.kind == "case"]


def test_a_strong_case_alerts_once_and_so_does_its_ending(town):
    days(town, 0, 2, slowdown=0.5)
    (case,) = town.store.cases()
    assert [event.what for event in case.history] == ["opened", "alerted"]
    assert told(town) == ["alerted"]
    days(town, 2, 4, slowdown=0.5)
    assert told(town) == ["alerted"]
    days(town, 4, 14)
    (case,) = town.store.cases()
    assert case.status == "ended"
    assert [event.what for event in case.history].count("alerted") == 1
    assert told(town) == ["alerted", "ended"]
    town.rejudge()
    assert told(town) == ["alerted", "ended"]


def test_a_case_that_nobody_was_alerted_to_ends_in_silence(town):
    caught(town)
    (case,) = town.store.cases()
    assert [event.what for event in case.history] == ["opened"]
    days(town, 1, 12)
    (case,) = town.store.cases()
    assert case.history[-1].what == "ended"
    assert told(town) == []


def test_flapping_goes_into_the_history_and_alerts_nobody_twice(town):
    days(town, 0, 2, slowdown=0.5)
    for day in (2, 3, 4):
        # More than a tenth of the pairs withheld: no longer supported, until they come.
        withheld = [town.session(who, at_ms=START + day * DAY, pairs=30) for who in range(3)]
        for one in withheld:
            town.send(*one.started, one.receipt, now_ms=START + day * DAY + HOUR)
        town.run(now_ms=START + day * DAY + HOUR)
        for one in withheld:
            town.send(one.measurement, now_ms=START + day * DAY + 2 * HOUR)
        days(town, day, day + 1, slowdown=0.6, pairs=40)
    (case,) = town.store.cases()
    kinds = [event.what for event in case.history]
    assert kinds.count("no_longer_supported") >= 2
    assert kinds.count("supported_again") >= 2
    assert kinds.count("alerted") == 1
    assert told(town) == ["alerted"]


def test_alerts_are_counted_for_prometheus(town):
    days(town, 0, 1, slowdown=0.5)
    at_ms = START + DAY
    for who in range(3):
        town.send(*town.session(who, at_ms=at_ms, pairs=20, truth=Truth(slowdown=0.5)).all, now_ms=at_ms + HOUR)
    steps = [town.store.write(lambda book: town.judge.step(book, at_ms + HOUR, 1)).result() for _ in range(3)]
    assert [what for step in steps for what in step.alerts] == ["alerted"]


def test_what_comes_back_is_a_case_of_its_own_made_of_its_own_days(town):
    days(town, 0, 2, slowdown=0.5)
    days(town, 2, 5)
    (first,) = town.store.cases()
    assert (first.status, first.episode) == ("ended", 1)
    closed = town.store.case(first.id)
    cell = town.cell()
    # What the cell says now rests on the days after the closing alone.
    assert cell.since_day == "2026-09-24"
    assert (closed.case.cell.pairs, cell.pairs) == (90, 60)
    assert cell.log10_e < 1 < closed.case.cell.log10_e
    assert all(pair.day >= cell.since_day for pair in town.detail().pairs)
    assert all(pair.day < cell.since_day for pair in closed.pairs)
    # The old evidence is worth millions, and opens nothing.
    days(town, 5, 8)
    assert town.cell().state == "no_indication"
    assert len(town.store.cases()) == 1
    days(town, 8, 14, slowdown=0.5)
    second, same = town.store.cases()
    assert same == first
    assert (second.status, second.episode, second.cell.since_day) == ("open", 2, cell.since_day)
    assert second.onset_day == "2026-09-29"
    assert second.threshold_log10_e > first.threshold_log10_e
    assert told(town) == ["alerted", "ended", "alerted"]
    assert town.store.case(first.id).pairs == closed.pairs
    # Each case's own pairs give its own evidence again.
    found = town.store.case(second.id)
    assert judged(found.pairs, "slowing").without_one / TEN == pytest.approx(second.cell.log10_e_without_one, abs=1e-4)
    assert found.evidence_by_pair[-1].log10_e == pytest.approx(second.cell.log10_e, abs=1e-4)
    assert found.evidence_by_pair[-1].sequence == found.pairs[-1].sequence
    assert found.evidence_by_hour[0].bucket_ms > closed.evidence_by_hour[-1].bucket_ms - DAY
    everything = town.everything()
    town.now = START + 13 * DAY + HOUR
    town.rejudge()
    assert town.everything() == everything
    town.judge = Judge(town.config)  # a restart
    days(town, 14, 15, slowdown=0.5)
    assert len(town.store.cases()) == 2


def test_a_late_pair_of_the_first_case_moves_nothing_of_the_second(town):
    held = town.session(0, at_ms=START + 3 * HOUR, pairs=5, truth=Truth(slowdown=0.9))
    days(town, 0, 2, slowdown=0.5)
    days(town, 2, 9)
    (closed,) = town.store.cases()
    before = town.cell()
    town.send(*held.all, now_ms=START + 12 * HOUR)  # in time, and judged days later
    town.run(now_ms=START + 9 * DAY)
    after = town.cell()
    # The midpoint m may move by a hair, for it knows all pairs; nothing of the slowed ones is counted.
    assert (after.pairs, after.slowed, after.state) == (before.pairs, 0, before.state)
    assert after.slowdown.estimate == pytest.approx(before.slowdown.estimate, abs=0.01)
    assert after.app_mbps == before.app_mbps
    assert town.store.cases() == [closed]
    assert len(town.store.case(closed.id).pairs) == closed.cell.pairs + 5


def test_a_case_remembers_that_its_data_are_older_than_the_rule(town):
    days(town, 0, 2, slowdown=0.5)  # in September; the rule is of November
    (case,) = town.store.cases()
    assert case.retrospective
    assert "retrospective" in case.cell.reasons
    days(town, 2, 3)
    assert town.store.cases()[0].status == "ended"
    days(town, 80, 86, slowdown=0.5)
    second = town.store.cases()[0]
    assert (second.episode, second.retrospective) == (2, False)
    assert "retrospective" not in second.cell.reasons


# Another edition of the rule


def test_what_an_earlier_rule_said_stays_beside_the_new_verdict(town):
    town.judge = Judge(town.config, rules=VERSION_1)
    caught(town)
    said = town.cell()
    assert set(town.cells()) == {("youtube", "down", "fixed", effect) for effect in VERSION_1.effects}
    assert town.detail().verdicts_by_rule == ()
    assert town.detail().rule == VERSION_1.name
    at_ms = START + 40 * DAY
    town.judge = Judge(town.config)
    town.run(now_ms=at_ms)
    detail = town.detail()
    (kept,) = detail.verdicts_by_rule
    assert (kept.rule, kept.until_ms, kept.cell) == (VERSION_1.name, at_ms, said)
    assert detail.rule == RULES.name
    assert {effect for *_, effect in town.cells()} == set(EFFECTS)
    (case,) = town.store.cases()
    assert town.store.case(case.id).verdicts_by_rule == detail.verdicts_by_rule
    # Judged again by the same rule: nothing is added. Back to the old one: what the new one said is kept too.
    town.rejudge()
    assert town.detail().verdicts_by_rule == detail.verdicts_by_rule
    town.judge = Judge(town.config, rules=VERSION_1)
    town.run(now_ms=at_ms + DAY)
    assert [one.rule for one in town.detail().verdicts_by_rule] == [VERSION_1.name, RULES.name]
    assert {effect for *_, effect in town.cells()} == set(VERSION_1.effects)


def test_the_old_verdict_is_shown_until_the_new_one_is_there(town):
    town.judge = Judge(town.config, rules=VERSION_1)
    caught(town)
    said = town.cell()
    town.judge = Judge(town.config)
    step = town.store.write(lambda book: town.judge.step(book, town.now, 1)).result()
    assert step.left
    assert town.cell() == said
    assert (town.detail().rule, town.detail().verdicts_by_rule) == (VERSION_1.name, ())
    # A third edition before the second was through: what was never shown is not kept.
    third = dataclasses.replace(RULES, version=3)
    town.judge = Judge(town.config, rules=third)
    town.run()
    assert [one.rule for one in town.detail().verdicts_by_rule] == [VERSION_1.name]
    assert town.detail().rule == third.name


def test_the_history_of_verdicts_cannot_be_rewritten(town):
    town.judge = Judge(town.config, rules=VERSION_1)
    caught(town)
    town.judge = Judge(town.config)
    town.run()
    for statement in ("DELETE FROM verdict_by_rule", "UPDATE verdict_by_rule SET rule = 'x'"):
        with pytest.raises(Exception, match="append-only"):
            town.store.write(lambda book, sql=statement: book._db.execute(sql)).result()


# A file that an older program wrote

OLD = Path(__file__).with_name("stored") / "collector-1.sql.gz"
"""Written by version 1 of the store: a case of a throttled app, three probes, and one probe's pairs of another app."""
OLD_REFLECTOR = "kXzD9wB1S2mFwFhi4fo841VLjlCIeWPZYPp1TnRTab0"
OLD_CASE = "233a06d8c8f2"


def old_file(directory, *, ended=False):
    connection = sqlite3.connect(directory / FILE)
    connection.executescript(gzip.decompress(OLD.read_bytes()).decode())
    if ended:
        connection.execute("UPDATE cases SET body = json_set(body, '$.status', 'ended')")
        event = json.loads(connection.execute("SELECT body FROM case_event").fetchone()[0])
        event |= {"what": "ended", "at_ms": event["at_ms"] + HOUR, "state": "replicated"}
        connection.execute(
            "INSERT INTO case_event (id, as_of_ms, body) SELECT id, as_of_ms, ? FROM case_event", (json.dumps(event),)
        )
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.commit()
    connection.close()


def html_of(store, path):
    """A page as it is served over this store."""

    async def get():
        async with TestClient(TestServer(application(store))) as client, client.get(path) as answer:
            assert answer.status == 200
            return await answer.text()

    return asyncio.run(get())


def test_an_old_file_is_brought_up_to_date_and_judged_by_the_rule_in_force(tmp_path):
    old_file(tmp_path)
    store = SqliteStore(tmp_path)
    try:
        # Before the judge has run: everything as it was.
        (case,) = store.cases()
        assert (case.id, case.status, case.episode, case.retrospective) == (OLD_CASE, "open", 1, False)
        before = store.case(OLD_CASE)
        assert (before.rule, before.verdicts_by_rule) == (VERSION_1.name, ())
        assert before.case.cell.log10_e == 6.55306
        assert {pair.design for pair in before.pairs} == {"sequential"}
        judge = Judge(Config(reflectors=(OLD_REFLECTOR,)))
        while store.write(lambda book: judge.step(book, START + 70 * DAY, 3)).result().left:
            pass
        after = store.case(OLD_CASE)
        assert after.case.status == "open"
        assert (after.rule, [one.rule for one in after.verdicts_by_rule]) == (RULES.name, [VERSION_1.name])
        assert after.verdicts_by_rule[0].cell == before.case.cell
        # Of rates the new edition says what the old one did.
        assert after.case.cell.log10_e == before.case.cell.log10_e
        assert {pair.sequence: pair.app_mbps for pair in after.pairs} == {
            pair.sequence: pair.app_mbps for pair in before.pairs
        }
        assert "retrospective" in after.case.cell.reasons
        # What is published of both: the new counts, the old verdict as it was, and in words by which rule it was.
        assert cell_row(after.case.cell)["by_coin"] == by_coin(after.pairs)
        (said,) = pictures(after)["verdicts_by_rule"]
        assert (said["rule"], said["cell"]["state"]) == (VERSION_1.name, before.case.cell.state)
        assert set(said["cell"]["by_coin"]["app_first"].values()) == {None}
        for language in LANGUAGES:
            page = case_page(words(language), after, store.operators(), store.cases())
            assert page.before[0].rule == VERSION_1.name
            assert words(language)(f"state.{before.case.cell.state}") in page.before[0].text
            assert page.notes == (words(language)("case.sure_retrospective"),)
        assert page.before[0].text.startswith("Bis zum")
        assert html_of(store, f"/case/{OLD_CASE}?lang=en").count("Judged by rule 1 until") == 1
        assert "Judged by rule 1 until" in html_of(store, cell_address(after.case.cell.key) + "?lang=en")
        assert sqlite3.connect(tmp_path / FILE).execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    finally:
        store.close()


def test_a_case_that_an_older_program_ended_keeps_what_it_showed(tmp_path):
    old_file(tmp_path, ended=True)
    store = SqliteStore(tmp_path)
    try:
        before = store.case(OLD_CASE)
        judge = Judge(Config(reflectors=(OLD_REFLECTOR,)))
        while store.write(lambda book: judge.step(book, START + 70 * DAY, 3)).result().left:
            pass
        (case,) = store.cases()
        assert (case.id, case.status) == (OLD_CASE, "ended")
        assert case.cell == before.case.cell
        assert len(store.case(OLD_CASE).pairs) == 30
        now = store.evidence(case.cell.key)
        # All its pairs are of the day of the closing: the next episode has none yet.
        assert (now.cell.since_day, now.cell.pairs, now.cell.state) == ("2026-09-22", 0, "insufficient")
        assert now.pairs == ()
    finally:
        store.close()


# Delay, loss, tampering


def test_delay_behind_a_queue_becomes_a_case_with_its_size_in_ms(town):
    days(town, 0, 1, pairs=24, concurrent=True, delay_ms=40, noise=0.1)
    cell = town.cell()
    assert cell.state == "corroborated"
    assert cell.slowdown is None
    assert cell.app_mbps is None
    assert cell.delay_ms.low < 40 < cell.delay_ms.high
    assert cell.app_delay_ms.estimate - cell.neutral_delay_ms.estimate == pytest.approx(40, abs=8)
    assert (cell.detectable_delay_ms, cell.detectable_loss) == (RULES.delay_threshold_ms, RULES.loss_threshold)
    assert town.cell(effect="prioritising").state != "corroborated"
    detail = town.detail()
    assert {(pair.design, pair.queued) for pair in detail.pairs} == {("concurrent", True)}
    waits = [(pair.app_delay_ms, pair.neutral_delay_ms) for pair in detail.pairs]
    assert sum(app > neutral for app, neutral in waits) > 0.9 * len(waits)
    assert judged(detail.pairs, "slowing").whole / TEN == pytest.approx(cell.log10_e, abs=1e-4)
    assert detail.evidence_by_hour[-1].delay_ms == cell.delay_ms


def test_loss_behind_a_queue_has_its_size_in_shares(town):
    days(town, 0, 1, pairs=40, concurrent=True, loss=0.15, noise=0.02)
    cell = town.cell()
    assert cell.state == "corroborated"
    assert 0 < cell.loss.low < 0.15 * 0.75 < cell.loss.high  # no packet is lost in the quiet quarter of a slot
    assert cell.neutral_loss.estimate == 0.0
    assert cell.app_loss.estimate == pytest.approx(0.11, abs=0.04)


def test_a_pair_that_met_no_queue_says_nothing_of_delay(town):
    days(town, 0, 1, pairs=20, concurrent=True, queue_ms=0.0, noise=0.0)
    cell = town.cell()
    assert (cell.state, cell.reasons[0]) == ("not_testable", "not_queued")
    assert (cell.log10_e, cell.app_delay_ms) == (0.0, None)
    assert {pair.queued for pair in town.detail().pairs} == {False}


def test_altered_bytes_become_a_case_of_tampering_and_of_nothing_else(town):
    days(town, 0, 1, pairs=20, alters=True)
    states = {effect: town.cell(effect=effect).state for effect in EFFECTS}
    assert states.pop("tampering") == "corroborated"
    assert set(states.values()) <= {"no_indication", "inconclusive", "insufficient"}
    cell = town.cell(effect="tampering")
    assert (cell.altered_app, cell.altered_neutral) == (60, 0)
    assert cell.share.low > 0.8
    (case,) = town.store.cases()
    assert all(pair.app_altered and not pair.neutral_altered for pair in town.store.case(case.id).pairs)
    assert judged(town.detail(effect="tampering").pairs, "tampering").whole / TEN == pytest.approx(
        cell.log10_e, abs=1e-4
    )


def test_what_api_and_tables_say_of_all_this_has_a_column(town):
    days(town, 0, 1, pairs=20, concurrent=True, delay_ms=40)
    (case,) = town.store.cases()
    row = cell_row(case.cell)
    names = {name for name in flat(row) if name not in {"share"}}
    assert names <= set(CELL_COLUMNS)
    assert {name for name in flat(case_row(case)) if not name.startswith(("history", "cell_share"))} <= set(
        CASE_COLUMNS
    )
    assert row["delay_ms"]["estimate"] == case.cell.delay_ms.estimate
    told_of = pictures(town.store.case(case.id))
    assert (told_of["rule"], told_of["verdicts_by_rule"]) == (RULES.name, [])
    json.dumps(told_of, allow_nan=False)


# Pairs that fail, by the coin


def voided(town):
    """One home lets both transfers fail when it dislikes the coin, two measure as they should."""
    for who in range(3):
        town.send(*town.session(who, at_ms=START + who * 60_000, pairs=40, truth=Truth(voids=who == 0)).all)
    town.run()


def by_coin(pairs):
    """The same from what is published."""
    found = {}
    for name, coin in (("neutral_first", True), ("app_first", False)):
        ends = [
            (p.app_end, p.neutral_end) for p in pairs if p.kind == "test" and not p.lost and p.neutral_first == coin
        ]
        failed = [(app != "complete", neutral != "complete") for app, neutral in ends]
        found[name] = {
            "pairs": len(failed),
            "void": failed.count((True, True)),
            "failed_app": failed.count((True, False)),
            "failed_neutral": failed.count((False, True)),
        }
    return found


def test_who_lets_pairs_fail_when_he_dislikes_the_coin_shows(town):
    voided(town)
    row = cell_row(town.cell())["by_coin"]
    assert row == by_coin(town.detail().pairs)
    assert row["neutral_first"]["void"] == 0 < row["app_first"]["void"]
    assert row["app_first"]["void"] == town.cell().void_pairs > 10
    assert row["neutral_first"]["pairs"] + row["app_first"]["pairs"] == town.cell().pairs == 120
    # The other homes' pairs of that coin are there, and whole.
    assert row["app_first"]["pairs"] > row["app_first"]["void"]
    everything = town.everything()
    town.rejudge()
    assert town.everything() == everything


def test_what_blocks_fails_on_either_coin(town):
    days(town, 0, 1, pairs=20, blocks=True)
    row = cell_row(town.cell(effect="blocking"))["by_coin"]
    assert row == by_coin(town.detail(effect="blocking").pairs)
    assert all(coin["failed_app"] == coin["pairs"] > 10 for coin in row.values())
    assert town.cell(effect="blocking").void_pairs == 0


def test_a_file_in_which_less_was_counted_is_judged_again(town, monkeypatch):
    voided(town)
    right = cell_row(town.cell())["by_coin"]

    def older(book):
        body = "json_remove(extras, " + ", ".join(f"'$.counts.{c}_{n}'" for c in right for n in right[c]) + ")"
        book._db.execute(f"UPDATE cell SET extras = {body}")  # noqa: S608
        book._db.execute("UPDATE verdict SET view = json_remove(view, '$.neutral_first', '$.app_first', '$.rule')")
        with monkeypatch.context() as then:
            then.setattr("collector.judge.COUNTED", 1)
            book.note("judged_by", Judge(town.config)._judged_by())

    town.store.write(older).result()
    assert cell_row(town.cell())["by_coin"]["app_first"] == dict.fromkeys(right["app_first"])
    town.judge = Judge(town.config)
    town.run()
    assert cell_row(town.cell())["by_coin"] == right
    assert town.cell().rule == RULES.name
    # It was no other rule: nothing is kept of one.
    assert town.detail().verdicts_by_rule == ()


def test_a_case_tells_whether_people_were_told(town):
    days(town, 0, 1, pairs=12, slowdown=0.5)
    row = case_row(town.store.cases()[0])
    assert row["alerted"] == ("alerted" in [event["what"] for event in row["history"]])
    days(town, 1, 3, slowdown=0.5)
    row = case_row(town.store.cases()[0])
    assert row["alerted"] is True
    assert row["cell"]["log10_e"] > row["cell"]["log10_e_without_one"] > row["cell"]["log10_e_without_two"] > 1
    assert (row["episode"], row["retrospective"], row["cell"]["rule"]) == (1, True, RULES.name)


def test_the_detector_is_asked_of_the_case_s_own_days(town):
    """One network alone makes no alarm, however strong."""
    days(town, 0, 2, slowdown=0.5)
    mind = town.judge._mind
    cell = town.store.write(lambda book: mind.cell(book, 1)).result()
    summaries = cell.summaries(mind.networks, "slowing")
    assert log_detector(summaries, "slowing") > log_detector(summaries[:1], "slowing")
    assert log_detector(summaries[:1], "slowing") <= 2 * TEN


# Late pairs


def backlog(town, sessions=6):
    """Three hours that were judged, then one probe's sessions of the first of them, which come all at once."""
    late = [
        town.session(0, at_ms=START + 600_000 + n * 60_000, pairs=3, truth=Truth(slowdown=0.5)) for n in range(sessions)
    ]
    for hour in range(3):
        for who in range(3):
            at_ms = START + hour * HOUR + who * 60_000
            town.send(*town.session(who, at_ms=at_ms, pairs=4, truth=Truth(slowdown=0.5)).all)
    town.run()
    return [envelope for told in late for envelope in told.all]


def test_a_backlog_of_late_pairs_rewrites_the_past_once(town, monkeypatch):
    town.send(*backlog(town))
    before = town.detail()
    rewritten = []
    past = type(town.judge._publisher)._past
    monkeypatch.setattr(
        type(town.judge._publisher),
        "_past",
        lambda self, *given: (rewritten.append(given[-1]), past(self, *given))[1],
    )
    step = town.store.write(lambda book: town.judge.step(book, town.now, 1)).result()
    assert step.left
    # What is shown now is up to date at once; the hours before it wait.
    assert town.cell().pairs == before.cell.pairs + 3
    assert [point.pairs for point in town.detail().evidence_by_hour] == [12, 24, 39]
    assert rewritten == []
    town.judge = Judge(town.config)  # a restart forgets none of them
    town.run(most=1)
    assert rewritten == [START]
    assert [point.pairs for point in town.detail().evidence_by_hour] == [30, 42, 54]
    everything = town.everything()
    town.rejudge()
    assert town.everything() == everything


def test_under_lasting_load_the_past_is_written_after_a_minute(town):
    town.send(*backlog(town))
    town.store.write(lambda book: town.judge.step(book, town.now, 1)).result()
    assert town.detail().evidence_by_hour[0].pairs == 12
    step = town.store.write(lambda book: town.judge.step(book, town.now + 60_000, 1)).result()
    assert step.left
    assert town.detail().evidence_by_hour[0].pairs == 18

# SPDX-License-Identifier: EUPL-1.2
"""What a probe tells of itself: complete in four languages, careful about chance, and written whole or not at all."""

from __future__ import annotations

import json
import os
import random
import re
import string
import subprocess
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from evenlane.cli import main
from probe import kept
from probe.consent import LANGUAGES
from probe.enrol import Enrolled
from probe.profiles.model import load
from probe.sentences import ENOUGH_PAIRS, OVERDUE_MS, looks, reason_sentence, table, tell
from probe.settings import Settings
from probe.spend import Tally
from probe.state import State
from probe.status import Facts, document, gather, read, write
from probe.textfile import render
from probe.told import Outcome, Reason
from probe.wire.records import Portal

NOW = 1_790_002_800_000
REASONS = sorted(set(get_args(Reason)) - {""})
OUTCOMES = get_args(Outcome)


def turn(outcome: str = "measured", reason: str = "", **more: Any) -> dict[str, Any]:
    """As probe/turn.py writes it."""
    told: dict[str, Any] = {
        "v": 1,
        "at_ms": NOW,
        "outcome": outcome,
        "reason": reason,
        "detail": "",
        "next_ms": NOW + 3_600_000,
        "problems": [],
        "budget": {"day": "2026-09-21", "day_mb": 12.5, "daily_mb": 200, "month_mb": 700.0, "monthly_mb": 5000},
        "plan": {"version": 3, "expires_ms": NOW + 86_400_000},
        "collector": {"contact_ms": NOW - 1000, "uploaded_ms": NOW - 1000, "failure": None, "waiting_until_ms": None},
        "spool": {"sessions": 2, "bytes": 4000, "dropped": 1, "damaged": 0},
        "portal": "open",
        "last": {"session": "ab" * 16, "ended_ms": NOW - 5000, "pairs": {"finished": 4, "lost": 0}, "failure": None},
    }
    return told | more


def facts(**more: Any) -> Facts:
    joined = Enrolled(
        collector="https://collector.example", key="A" * 43, name="Measuring Club", enrolled_ms=NOW - 86_400_000
    )
    told: dict[str, Any] = {
        "key": "B" * 43,
        "joined": joined,
        "tallies": {
            "differential/youtube/down": Tally(pairs=3, slower=1, session=1),
            "differential/zoom/up": Tally(pairs=40, slower=5, faster=6, session=2),
            "differential/netflix/down": Tally(pairs=30, slower=30, session=3),
        },
        "titles": {"youtube": {language: getattr(load("youtube").title, language) for language in LANGUAGES}},
    }
    return Facts(**told | more)


# -- words ------------------------------------------------------------------------------------------------------


def leaves(found: dict[str, Any], path: str = "") -> dict[str, dict[str, str]]:
    """Every sentence of the table by its path."""
    if set(found) & set(LANGUAGES):
        return {path: found}
    return {name: row for key, below in found.items() for name, row in leaves(below, f"{path}.{key}").items()}


@pytest.mark.parametrize("key", sorted(leaves(table())))
def test_each_sentence_has_the_same_places_in_each_language(key: str) -> None:
    row = leaves(table())[key]
    assert set(row) == set(LANGUAGES)
    places = {
        language: sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)
        for language, text in row.items()
    }
    assert len({tuple(names) for names in places.values()}) == 1, places
    assert len(set(row.values())) == len(LANGUAGES), "one language was copied from another"


def test_each_reason_of_a_turn_has_a_sentence_and_none_is_left_over() -> None:
    assert sorted(table()["reason"]) == REASONS


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_way_in_which_a_turn_can_end_is_told(language: Any) -> None:
    for outcome in OUTCOMES:
        for reason in ["", *REASONS]:
            told = document(facts(), Settings(), turn(outcome, reason), NOW)["sentences"][language]
            assert len(told) >= 8
            assert all(sentence.strip() and not set("{}") & set(sentence) for sentence in told)
            if outcome not in {"measured", "synced"} and reason:
                assert told[0] == table()["reason"][reason][language]


def test_a_reason_that_a_newer_turn_may_give_is_named() -> None:
    assert "moon phase" in reason_sentence("moon_phase", "en")


def test_nothing_is_claimed_that_one_line_cannot_carry() -> None:
    avoided = re.compile(
        r"throttl|violat|guilty|proof|proven|illegal|operator (slows|blocks)|your operator|bewijs|preuve|Beweis"
    )
    for key, row in leaves(table()).items():
        for text in row.values():
            assert not avoided.search(text), key
    for key in ("slower", "faster"):
        assert "at most one line in 20" in table()[key]["en"]


def test_few_pairs_say_nothing_and_a_look_that_says_more_comes_with_its_caution() -> None:
    told = document(facts(), Settings(), turn(), NOW)["sentences"]
    few = next(sentence for sentence in told["en"] if sentence.startswith("YouTube"))
    assert few == "YouTube (video), download: too few pairs to say anything (3 of about 14)."
    assert any(
        one.endswith(", Herunterladen: zu wenige Paare, um etwas zu sagen (3 von etwa 14).") for one in told["de"]
    )
    assert any(sentence.startswith("zoom, upload: no difference beyond what chance") for sentence in told["en"])
    assert any(sentence.startswith("netflix, download: slower than its neutral twin") for sentence in told["en"])
    for language in LANGUAGES:
        assert table()["caution"][language] in told[language]
    only_few = facts(tallies={"differential/youtube/down": Tally(pairs=3, slower=3, session=1)})
    told = document(only_few, Settings(), turn(), NOW)["sentences"]
    assert table()["caution"]["en"] not in told["en"]


def test_a_fair_coin_is_told_as_one_sided_on_at_most_one_line_in_twenty() -> None:
    """Whoever looks after every pair, at four apps for 200 pairs each, and is told once, counts."""
    rng = random.Random(20261123)
    homes, misled = 300, 0
    for _ in range(homes):
        tallies = [[0, 0] for _ in range(4)]
        misled += any(
            _adds(tally, rng) and looks(n, tally[0], tally[1], 4) in {"slower", "faster"}
            for tally in tallies
            for n in range(1, 201)
        )
    assert misled <= homes / 20 + 3 * (homes / 20) ** 0.5  # three standard errors


def _adds(tally: list[int], rng: random.Random) -> bool:
    tally[rng.random() < 0.5] += 1
    return True


def test_what_is_one_sided_is_said_after_about_as_many_pairs_as_promised() -> None:
    assert looks(ENOUGH_PAIRS - 1, ENOUGH_PAIRS - 1, 0, 1) == "few"
    assert looks(ENOUGH_PAIRS, ENOUGH_PAIRS, 0, 3) == "slower"
    assert looks(ENOUGH_PAIRS, 0, ENOUGH_PAIRS, 3) == "faster"
    assert looks(40, 20, 20, 1) == looks(400, 210, 190, 1) == looks(20, 0, 0, 1) == "even"
    assert looks(1_000_000, 1_000_000, 0, 64) == "slower"  # no overflow


def test_a_turn_that_never_came_is_told() -> None:
    found = document(facts(), Settings(), turn(), NOW)
    assert not any("Start the service" in one for one in tell(found, "en", NOW + 3_600_000 + OVERDUE_MS - 1))
    assert any("Start the service" in one for one in tell(found, "en", NOW + 3_600_000 + OVERDUE_MS + 1))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=8), below, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*turn(), "apps", "enrolled_ms", "counts"]), JSON))
def test_whatever_stands_in_a_damaged_file_something_is_told(damaged: dict[str, Any]) -> None:
    assert tell(damaged, "fr", NOW)
    render(damaged)
    document(facts(before=damaged), Settings(), damaged, NOW)


# -- files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path / "state", tmp_path / "run")
    made.prepare()
    made.signer()
    held = kept.Kept(sessions=3, tallies={"differential/youtube+quic/down": Tally(pairs=3, slower=1, session=1)})
    kept.save(made, held)
    return made


def test_status_json_holds_the_turn_and_what_else_is_known(state: State) -> None:
    assert write(state, Settings(language="nl"), turn()) == ()
    found = json.loads((state.run / "status.json").read_text())
    assert {name: found[name] for name in turn()} == turn()
    assert (found["probe"], found["language"]) == (state.known_key(), "nl")
    assert found["apps"][0] | {"title": None} == {
        "app": "youtube+quic", "direction": "down", "title": None, "pairs": 3, "slower": 1, "faster": 0
    }  # fmt: skip
    assert set(found["sentences"]) == set(LANGUAGES)
    assert any("YouTube" in sentence and "(3 van ongeveer 14)" in sentence for sentence in found["sentences"]["nl"])


def test_turns_are_counted_until_the_ram_is_lost(state: State) -> None:
    for outcome, reason in (("measured", ""), ("postponed", "household"), ("postponed", "household"), ("waiting", "x")):
        write(state, Settings(), turn(outcome, reason))
    found = read(state)
    assert found is not None
    assert found["counts"] == {"turns": {"measured": 1, "postponed": 2, "waiting": 1}, "postponed": {"household": 2}}
    (state.run / "status.json").write_text("{broken")
    write(state, Settings(), turn())
    assert (read(state) or {})["counts"] == {"turns": {"measured": 1}, "postponed": {}}


def test_the_textfile_is_what_prometheus_reads_and_names_nobody(state: State, tmp_path: Path) -> None:
    target = tmp_path / "evenlane.prom"
    before = os.umask(0o077)
    try:
        for _ in range(2):
            told = turn("postponed", "household", portal="captive")
            assert write(state, Settings(textfile=str(target), brand="Brandname", tariff="Tariffname"), told) == ()
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == 0o644  # node_exporter has a user of its own
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["evenlane.prom"]
    text = target.read_text()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert all(name.startswith("evenlane_probe_") for name in families)
    assert all(family.documentation and family.type in {"gauge", "counter"} for family in families.values())
    counters = re.findall(r"^# TYPE (\S+) counter", text, re.MULTILINE)
    assert len(counters) == 4
    assert all(name.endswith("_total") for name in counters)
    assert samples["evenlane_probe_last_turn_outcome", ("postponed",)] == 1
    assert samples["evenlane_probe_last_turn_outcome", ("measured",)] == 0
    assert samples["evenlane_probe_postponed_total", ("household",)] == 2
    assert samples["evenlane_probe_budget_spent_bytes", ("month",)] == 700_000_000
    assert samples["evenlane_probe_budget_limit_bytes", ("day",)] == 200_000_000
    assert samples["evenlane_probe_next_turn_time_seconds", ()] == pytest.approx((NOW + 3_600_000) / 1000)
    assert samples["evenlane_probe_plan_version", ()] == 3
    assert samples["evenlane_probe_spool_dropped_total", ()] == 1
    assert {state_ for (name, (state_,)) in [key for key in samples if "portal" in key[0]]} == set(get_args(Portal))
    for secret in (state.known_key() or "", "Brandname", "Tariffname", "youtube", "ab" * 16):
        assert secret not in text


def test_promtool_finds_nothing_to_say_about_the_textfile(program: Any) -> None:
    found = document(facts(), Settings(), turn("postponed", "household"), NOW)
    done = subprocess.run(
        [program("promtool", "prometheus"), "check", "metrics"], input=render(found), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_files_that_cannot_be_written_are_a_problem_and_no_failure(state: State, tmp_path: Path) -> None:
    problems = write(state, Settings(textfile=str(tmp_path / "missing" / "evenlane.prom")), turn(problems=["one"]))
    assert len(problems) == 1
    assert problems[0].startswith("textfile cannot be written")
    found = read(state)
    assert found is not None
    assert found["problems"] == ["one", *problems]
    assert table()["problems"]["en"].format(count=2) in found["sentences"]["en"]
    (state.run / "status.json").unlink()
    (state.run / "status.json").mkdir()
    (problem,) = write(state, Settings(), turn())
    assert problem.startswith("status.json cannot be written")


# -- commands ---------------------------------------------------------------------------------------------------


def ask(capsys: pytest.CaptureFixture[str], state: State, *argv: str) -> tuple[int, str, str]:
    code = main(["probe", argv[0], "--state", str(state.directory), "--run", str(state.run), *argv[1:]])
    done = capsys.readouterr()
    return code, done.out, done.err


def test_status_reads_what_the_last_turn_left(capsys: pytest.CaptureFixture[str], state: State) -> None:
    now_ms = time.time_ns() // 1_000_000
    write(
        state, Settings(), turn("postponed", "metered", at_ms=now_ms, next_ms=now_ms + 60_000, problems=["tariff is x"])
    )
    code, out, _ = ask(capsys, state, "status", "--json")
    told = json.loads(out)
    assert code == 0
    assert {"state", "run", "key", "sessions", "last", "spool"} <= set(told)  # as ever
    assert (told["outcome"], told["reason"], told["plan"]) == ("postponed", "metered", turn()["plan"])
    assert told["spool"] == {"sessions": 0, "bytes": 0, "dropped": 0, "damaged": 0}  # as it is now
    assert told["problems"] == ["tariff is x"]
    shown = " ".join(ask(capsys, state, "status", "--language", "de")[1].split())
    assert " ".join(table()["reason"]["metered"]["de"].split()) in shown
    assert "- tariff is x" in shown
    (state.directory / "settings.json").write_text('{"language": "fr"}')
    assert table()["reason"]["metered"]["fr"][:40] in ask(capsys, state, "status")[1]


def test_status_reads_turn_json_where_there_is_nothing_better(capsys: pytest.CaptureFixture[str], state: State) -> None:
    (state.run / "turn.json").write_text(json.dumps(turn("waiting", "clock")))
    assert table()["reason"]["clock"]["en"][:40] in ask(capsys, state, "status", "--language", "en")[1]
    (state.run / "turn.json").write_text("{half")
    assert ask(capsys, state, "status")[0] == 0


def test_status_makes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    nowhere = State(tmp_path / "a", tmp_path / "b")
    code, out, _ = ask(capsys, nowhere, "status")
    assert (code, list(tmp_path.iterdir())) == (0, [])
    assert "evenlane probe enrol" in out


def test_gather_reads_directories_that_are_not_there(tmp_path: Path) -> None:
    assert gather(State(tmp_path / "a", tmp_path / "b")) == Facts()

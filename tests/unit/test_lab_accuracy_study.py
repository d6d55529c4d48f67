# SPDX-License-Identifier: EUPL-1.2
"""The study's judging is the product's, its figures are what happened, and it goes on where it stopped."""

import ast
import json
import math
import random
from dataclasses import replace
from datetime import UTC

import pytest

from analysis.evidence import probe_evidence
from analysis.judge import Ledger
from analysis.plan import DEFAULT_PLAN
from analysis.rules import EFFECTS, RULES
from analysis.simulate import CELL, Line, stream
from analysis.verdict import decide
from lab.accuracy import counterfactual, expectation, overview, real, results, study
from lab.accuracy.judging import BOUNDS, Place, judge_run
from lab.accuracy.model import Measure, Played, Row, Run
from lab.accuracy.reading import from_document
from lab.accuracy.study import Plan
from lab.stage import StageError
from probe.wire.records import Segment

DOCUMENT = {
    "name": "a-row",
    "kind": "discriminating",
    "title": "Video is slowed down",
    "why": "A miss would show here.",
    "engine": "stream",
    "repeats": 3,
    "measure": {"pairs": 20},
    "expect": {"effects": ["youtube:slowing"]},
    "options": {"slowdown": 0.5},
}
ROW = from_document(DOCUMENT, digest="d1")


def run_of(line: Line, pairs: int = 20, *, probes: int = 3, seed: str = "s", change=lambda number, pair: pair) -> Run:
    found = [
        change(number, pair)
        for number in range(probes)
        for pair in stream(line, random.Random(f"{seed}/{number}"), pairs, probe=f"p{number}")
    ]
    played = tuple(Played(pair=pair, octets=1_000_000) for pair in sorted(found, key=lambda pair: pair.order))
    return Run(row="a-row", repeat=0, played=played)


def opened_by_the_product(run: Run, place: Place) -> int | None:
    """The same question without any shortcut: after every round, all verdicts."""
    found, pairs = Ledger(zones=lambda _: UTC), [one.pair for one in run.played]
    for number, pair in enumerate(pairs, start=1):
        found.put(pair)
        verdicts = decide(found.assessments(), DEFAULT_PLAN, lambda _: place.operator, order=lambda _: place.order)
        if number % 3 == 0 and any(v.is_case and v.assessment.effect == "slowing" for v in verdicts):
            return number // 3
    return None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("line", [Line(slowdown=0.3, noise=0.11), Line(slowdown=0.5, noise=0.3), Line(noise=0.6)])
def test_a_case_opens_at_the_pair_at_which_the_product_opens_it(line, seed):
    run = run_of(line, 24, seed=str(seed))
    judged = judge_run(run, Measure(pairs=24), {})
    [cell] = judged.cells["youtube:slowing"]
    assert cell.opened.get("last") == opened_by_the_product(run, Place.last(36))
    assert (cell.octets is None) == (not cell.accused)
    if cell.accused:
        assert cell.octets == 3_000_000 * cell.opened["last"]


def test_the_last_of_36_hypotheses_is_the_ninth_cell_at_the_third_operator():
    place = Place.last(36)
    assert (place.operator, place.order) == (3, 9)
    needed = {bound: place.log_needed(CELL, "slowing", bound, DEFAULT_PLAN, RULES) for bound in BOUNDS}
    gamma = 0.5 * (DEFAULT_PLAN.weights["youtube", "down", "fixed", "slowing"] * 6 / (8 * 9) + 0.45 * 6 / (14 * 15))
    assert needed["last"] == pytest.approx(math.log(1 / (0.05 * gamma)))
    assert needed["equal"] == pytest.approx(math.log(36 / 0.05))
    assert needed["first"] < needed["equal"] < needed["last"]
    assert Place.last(1) == Place(operator=1, order=1, hypotheses=1)


def test_streams_that_reached_20_are_those_of_the_product():
    run = run_of(Line(noise=2.0), 60, probes=40, seed="wild")
    judged = judge_run(run, Measure(pairs=60, probes=40), {})
    ever, found = set(), Ledger()
    for one in run.played:
        found.put(one.pair)
        for effect in EFFECTS:
            counts = found.states(CELL)[one.pair.probe].counts
            if probe_evidence(counts, effect) >= math.log(20):
                ever.add((one.pair.probe, effect))
    assert judged.streams == 40
    assert sum(n for name, n in judged.crossed.items() if name != "any") == len(ever)
    assert judged.crossed.get("any", 0) == len({probe for probe, _ in ever})
    assert len(judged.largest) == 40


def test_a_gate_left_out_shows_what_would_have_been_claimed():
    behind = run_of(Line(slowdown=0.5, noise=0.05), change=lambda _, pair: replace(pair, edge=False))
    judged = judge_run(behind, Measure(), {"without_gate": ["no_edge_probe", "lost_pairs"]})
    [cell] = judged.cells["youtube:slowing"]
    assert (cell.state, cell.accused) == ("replicated", False)
    assert cell.without == {"no_edge_probe": "corroborated", "lost_pairs": "replicated"}


def test_a_fact_left_out_is_judged_again():
    pairs = [one.pair for one in run_of(Line(slowdown=0.5, noise=0.05), 4).played]
    poor = [replace(pair, flags=frozenset({"sqm", "saturated"}), queued=False, lost=True) for pair in pairs]
    assert {pair.flags for pair in counterfactual.cleared(poor, "sqm")} == {frozenset({"saturated"})}
    assert {pair.flags for pair in counterfactual.cleared(poor, "all_flags")} == {frozenset()}
    assert counterfactual.cleared(poor, "lost") == []
    assert all(pair.queued for pair in counterfactual.cleared(poor, "queued"))
    assert all(pair.edge for pair in counterfactual.cleared(poor, "edge"))
    run = run_of(Line(slowdown=0.5, noise=0.05), change=lambda n, pair: replace(pair, lost=n == 0, received=True))
    judged = judge_run(run, Measure(), {"without_gate": ["lost"]})
    [cell] = judged.cells["youtube:slowing"]
    assert cell.state != "corroborated"
    assert cell.without["lost"] in {"replicated", "corroborated"}


def test_a_void_run_says_nothing():
    judged = judge_run(replace(run_of(Line()), void="late"), Measure(), {})
    assert (judged.void, judged.cells, judged.streams) == ("late", {}, 0)
    table = results.aggregate(ROW, [judged])
    assert (table["repeats"], table["void"], table["wrong"]["n"]) == (0, 1, 0)


def test_placebo_pairs_stay_outside_the_evidence():
    def placebo(number: int, pair):
        return replace(pair, kind="placebo", session=f"x{pair.session}")

    plain = run_of(Line(noise=0.1), 20)
    alarming = run_of(Line(slowdown=0.6, noise=0.05), 20, seed="x", change=placebo)
    both = replace(plain, played=(*plain.played, *alarming.played))
    judged = judge_run(both, Measure(), {})
    assert judged.placebo_alarm is True
    assert judge_run(plain, Measure(), {}).placebo_alarm is None
    assert judged.cells["youtube:slowing"][0].log_e == judge_run(plain, Measure(), {}).cells["youtube:slowing"][0].log_e


# -- the study ---------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(monkeypatch):
    """An engine of this test's own: the third repeat's operator is innocent."""
    plays = []

    def play(row: Row, repeat: int) -> Run:
        plays.append(repeat)
        line = Line(noise=0.05) if repeat == 2 else Line(slowdown=0.5, noise=0.05)
        return replace(run_of(line, row.measure.pairs, seed=f"{row.name}/{repeat}"), repeat=repeat)

    monkeypatch.setattr(study, "engine", lambda name: play)
    return plays


def once(row: Row, tmp_path, **options) -> study.Outcome:
    plan = Plan(tier="virtual", workers=1, directory=tmp_path, **options)
    [outcome] = study.run([row], plan, lambda words: None)
    return outcome


def test_a_row_is_played_once_and_again_only_where_something_changed(engine, tmp_path):
    first = once(ROW, tmp_path)
    assert (first.played, engine) == (("virtual",), [0, 1, 2])
    found = first.result["virtual"]["found"]
    assert (found["k"], found["n"], found["share"]) == (2, 3, 0.66667)
    assert first.differs == ["found in 2 of 3 repeats, not in 95%"]
    again = once(ROW, tmp_path)
    assert (again.played, len(engine)) == ((), 3)
    assert again.result == first.result
    assert once(replace(ROW, digest="d2"), tmp_path).played == ("virtual",)
    assert once(replace(ROW, digest="d2"), tmp_path, repeat=2).played == ("virtual",)
    assert once(replace(ROW, digest="d2"), tmp_path, repeat=2).played == ()
    assert once(replace(ROW, digest="d2"), tmp_path, repeat=2, fresh=True).played == ("virtual",)


def test_the_file_is_the_result_and_tells_what_it_follows_from(engine, tmp_path):
    outcome = once(ROW, tmp_path)
    text = (tmp_path / "rows" / "a-row.json").read_text()
    kept = json.loads(text)
    assert kept == outcome.result == results.read("a-row", tmp_path)
    assert list(tmp_path.joinpath("rows").iterdir()) == [tmp_path / "rows" / "a-row.json"]
    assert kept["digests"]["row"] == "d1"
    assert kept["place"] == {"operator": 3, "cell": 9, "plan": "default-1"}
    cell = kept["virtual"]["cells"]["youtube:slowing"]
    assert cell["expected"] is True
    assert sum(cell["opened_after"].values()) == 2
    assert cell["slowdown"]["truth"] == 0.5


def test_a_time_limit_leaves_rows_for_later(engine, tmp_path):
    rows = [ROW, replace(ROW, name="b-row")]
    said = []
    plan = Plan(tier="virtual", workers=1, directory=tmp_path, limit_minutes=0)
    assert list(study.run(rows, plan, said.append)) == []
    assert said == ["stopped after 0 minutes as asked; 2 rows are left"]


def test_processes_give_what_one_process_gives(tmp_path, monkeypatch):
    monkeypatch.setitem(study.ENGINE_MODULES, "stream", "tests_accuracy_engine")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tests_accuracy_engine.py").write_text(
        "import random\nfrom analysis.simulate import Line, stream\nfrom lab.accuracy.model import Played, Run\n"
        "def play(row, repeat):\n"
        "    rng = lambda n: random.Random(f'{repeat}/{n}')\n"
        "    pairs = [p for n in range(3) for p in stream(Line(slowdown=.4), rng(n), 14, probe=f'p{n}')]\n"
        "    return Run(row=row.name, repeat=repeat, played=tuple(Played(pair=p) for p in pairs))\n"
    )
    tables = [study.virtual(ROW, Plan(repeat=6, workers=workers), lambda words: None) for workers in (1, 2)]
    assert tables[0] == tables[1]


def test_comments_do_not_make_a_result_stale():
    def dumped(text: str) -> str:
        return ast.dump(study._bare(ast.parse(text)))

    assert dumped('"""One."""\ndef f():\n    """Two."""\n    return 1  # three') == dumped("def f():\n    return 1")
    assert dumped("def f():\n    return 1") != dumped("def f():\n    return 2")
    assert study.engine_digest("lab.links") != study.engine_digest("lab.path")


# -- what is expected ---------------------------------------------------------------------------------------------


def told(row: Row, runs: list[Run]) -> list[str]:
    judged = [judge_run(replace(run, repeat=n), row.measure, row.options) for n, run in enumerate(runs)]
    return expectation.differs(row, {"virtual": results.aggregate(row, judged)})


def test_an_innocent_operator_that_is_accused_differs():
    document = {**DOCUMENT, "kind": "neutral", "options": {}}
    del document["expect"]
    row = from_document(document)
    assert told(row, [run_of(Line(noise=0.1))]) == []
    found = told(row, [run_of(Line(slowdown=0.6, noise=0.05))])
    assert "wrongly corroborated in 1 of 1 repeats" in found
    assert told(replace(row, options={"misleads": True}), [run_of(Line(slowdown=0.6, noise=0.05))]) == []
    [why] = told(replace(row, options={"misleads": True}), [run_of(Line(noise=0.1))])
    assert why.startswith("nothing was misled")


def test_outside_the_region_nothing_is_promised():
    run = run_of(Line(noise=0.1))
    assert told(ROW, [run]) == ["found in 0 of 1 repeats, not in 95%"]
    assert told(replace(ROW, inside=False), [run]) == []


def test_a_gate_that_changes_nothing_differs():
    row = replace(ROW, options={"without_gate": ["sqm"]})
    run = run_of(Line(slowdown=0.5, noise=0.05))
    assert told(row, [run]) == ["leaving out sqm changes nothing, so the row does not show what it is for"]


# -- the real tier ------------------------------------------------------------------------------------------------


def real_and_twin(real_line: Line, twin_line: Line, pairs: int = 12):
    """What `lab.accuracy.real` says of a run through sockets that measured `real_line`."""
    row = replace(ROW, measure=Measure(pairs=pairs))
    measured = judge_run(run_of(real_line, pairs, seed="real"), row.measure, {})
    twins = [judge_run(run_of(twin_line, pairs, seed=f"twin{n}"), row.measure, {}) for n in range(5)]
    return real.compared(row, [measured], twins)


def test_tiers_that_measure_the_same_agree():
    told = real_and_twin(Line(slowdown=0.5, noise=0.1), Line(slowdown=0.5, noise=0.12))
    assert (told["agrees"], told["differs"]) == (True, [])
    assert told["apps"]["youtube"]["rates"]["real"]["y"] == pytest.approx(0.69, abs=0.1)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (Line(slowdown=0.2, noise=0.1), "youtube: median of 0.2"),
        (Line(slowdown=0.5, noise=1.2), "youtube: pair noise of "),
        (Line(noise=0.05), "youtube:slowing: real sockets say no_indication, virtual time corroborated"),
    ],
)
def test_tiers_that_do_not_are_told_apart(line, words):
    told = real_and_twin(line, Line(slowdown=0.5, noise=0.05))
    assert told["agrees"] is False
    assert any(why.startswith(words) for why in told["differs"]), told["differs"]


def test_what_is_untrue_through_real_sockets_differs():
    row = replace(ROW, scenario=replace(ROW.scenario, expect=frozenset()))
    judged = [judge_run(run_of(Line(slowdown=0.6, noise=0.05)), row.measure, {})]
    assert "youtube:slowing: accused, and it is not true" in real.compared(row, judged, judged)["differs"]


def test_a_void_real_run_neither_agrees_nor_differs():
    void = judge_run(replace(run_of(Line()), void="late"), Measure(), {})
    told = real.compared(ROW, [void, void, void], [])
    assert (told["agrees"], told["void"], told["differs"], told["voided"]) == (None, "late", [], ["late"] * 3)


def test_rows_without_a_line_say_why():
    assert real.play(ROW, driver=None, say=print) == {"skipped": real.STREAM}
    skipping = replace(ROW, engine="path", options={"real": {"skip": "twelve days of real time"}})
    assert real.play(skipping, driver=None, say=print) == {"skipped": "twelve days of real time"}


def test_a_row_whose_programs_fail_stops_no_other(engine, tmp_path, monkeypatch):
    def broken(row, **options):
        raise StageError("a probe did not start")

    monkeypatch.setattr(real, "play", broken)
    rows = [replace(ROW, options={}), replace(ROW, name="b-row", options={})]
    plan = Plan(tier="both", workers=1, directory=tmp_path)
    found = list(study.run(rows, plan, lambda words: None))
    assert [(one.failed, one.played, "real" in one.result) for one in found] == [
        ("a probe did not start", ("virtual",), False)
    ] * 2
    document = overview.of_outcomes(found, 2)
    assert document["failed"] == ["a-row", "b-row"]
    assert "real sockets could not be used: a probe did not start" in overview.table(document)


def test_bins_are_rates_over_the_time_they_took():
    segment = Segment(arm="app", end="complete", bins_ms=(100, 250, 250), bins_bytes=(125_000, 187_500, 9))
    assert real.bins_mbps(segment) == (10.0, 10.0)
    assert real.bins_mbps(None) == ()


def test_a_probe_that_cannot_begin_is_tried_again_and_said_so_if_it_never_can(monkeypatch):
    """Stands in for namespaces and programs, which no test can make fail at will."""
    said, left = [], [StageError("connect timeout"), StageError("connect timeout"), run_of(Line())]

    def measured(*_: object, **__: object) -> Run:
        found = left.pop(0)
        if isinstance(found, StageError):
            raise found
        return found

    monkeypatch.setattr(real, "_measured", measured)
    monkeypatch.setattr(real, "_driver", lambda wanted: "tun")
    monkeypatch.setattr(real, "_twins", lambda twin: [])
    row = replace(ROW, engine="path", options={})
    assert real.play(row, driver=None, say=said.append)["repeats"] == 1
    assert [words for words in said if "connect timeout" in words] == ["a-row: tried again, connect timeout"] * 2
    left.extend(StageError("connect timeout") for _ in range(1 + real.MOST_VOID))
    with pytest.raises(StageError, match="connect timeout"):
        real.play(row, driver=None, say=said.append)

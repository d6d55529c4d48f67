# SPDX-License-Identifier: EUPL-1.2
"""Figures of the study: shares with bounds, quantiles, both rules at one rate of false alarms."""

import itertools
import math
import random
from collections import Counter

import pytest

from analysis.simulate import Line, stream
from lab.accuracy import requirements, results, rival
from lab.accuracy.judging import CellResult, Judged
from lab.accuracy.model import Played, Run
from lab.accuracy.reading import from_document

ROW = from_document(
    {
        "name": "a-row",
        "kind": "discriminating",
        "title": "t",
        "why": "w",
        "engine": "stream",
        "expect": {"effects": ["youtube:slowing"]},
        "options": {"noise": {"slowdown": 0.3, "sd": 0.11}},
    }
)


def cell(opened: int | None, *, low: float | None = 0.2, high: float | None = 0.4) -> CellResult:
    found = CellResult(state="corroborated" if opened else "replicated", estimate=0.3, low=low, high=high)
    if opened:
        found.opened, found.octets = {"last": opened, "first": opened - 1, "equal": opened}, opened * 1000
    return found


def judged(repeat: int, *cells: CellResult, **more) -> Judged:
    return Judged(repeat=repeat, cells={"youtube:slowing": list(cells)}, streams=3, pairs=60, octets=1, **more)


def test_shares_have_wilsons_interval():
    assert results.share(73, 73)["low"] == pytest.approx(0.95, abs=1e-4)
    assert results.share(381, 381)["low"] == pytest.approx(0.99, abs=1e-4)
    assert results.share(0, 10_000)["high"] == pytest.approx(0.000384, abs=1e-5)
    assert results.share(0, 0)["share"] is None


def test_quantiles_count_those_that_never_opened():
    assert results.quantiles([10, 12, 14], 4) == {"50": 12, "90": None, "95": None, "99": None}
    assert results.quantiles(range(1, 101), 100) == {"50": 50, "90": 90, "95": 95, "99": 99}


def test_a_row_in_figures():
    table = results.aggregate(ROW, [judged(0, cell(10)), judged(1, cell(14)), judged(2, cell(None, low=0.31))])
    assert (table["found"]["k"], table["found"]["n"], table["wrong"]["k"]) == (2, 3, 0)
    found = table["cells"]["youtube:slowing"]
    assert found["states"] == {"corroborated": 2, "replicated": 1}
    assert found["opened_after"] == {"10": 1, "14": 1}
    assert found["pairs_to_case"]["last"]["50"] == 14
    assert found["pairs_to_case"]["first"]["50"] == 13
    assert found["octets_to_case"]["50"] == 14_000
    assert (found["slowdown"]["truth"], found["slowdown"]["covered"]["k"]) == (0.3, 2)
    assert found["slowdown"]["width"] == pytest.approx(0.2)


def test_an_unbounded_interval_holds_everything_and_has_no_width():
    found = results.aggregate(ROW, [judged(0, cell(10, low=None, high=None))])["cells"]["youtube:slowing"]["slowdown"]
    assert (found["covered"]["k"], found["bounded"], found["width"]) == (1, 0, None)


def test_several_operators_of_a_row_are_cells_of_their_own():
    table = results.aggregate(ROW, [judged(0, cell(10), cell(None)), judged(1, cell(9), cell(9))])
    assert (table["cells"]["youtube:slowing"]["corroborated"]["k"], table["found"]["k"]) == (3, 2)
    assert table["cells"]["youtube:slowing"]["corroborated"]["n"] == 4


def test_streams_by_effect_and_the_largest_evidence():
    crossed = [{"any": 1, "youtube:slowing": 1, "netflix:slowing": 1}, {"any": 2, "youtube:blocking": 2}]
    runs = [judged(n, cell(None), crossed=c, largest=[math.log(x) for x in (1, 5, 300)]) for n, c in enumerate(crossed)]
    streams = results.aggregate(ROW, runs)["streams"]
    assert {name: one["k"] for name, one in streams["by_effect"].items()} == {"blocking": 2, "slowing": 2}
    assert streams["reached_20"]["k"] == 3
    assert (streams["largest"]["2"], streams["largest"]["4"], streams["largest"]["8"]) == (4, 4, 2)
    assert (streams["largest"]["20"], streams["largest"]["256"]) == (2, 2)


def test_pair_noise_is_a_gaussians_with_these_quartiles():
    rng = random.Random("noise")
    bins = Counter(round(rng.gauss(0.3, 0.2) * 1000) for _ in range(20_000))
    assert results.noise(bins) == pytest.approx(0.2, rel=0.03)
    assert results.median(bins) == pytest.approx(0.3, abs=0.01)
    assert results.noise({0: 3}) is None


def test_a_file_is_written_whole_and_read_back(tmp_path):
    result = {"row": "a-row", "virtual": results.aggregate(ROW, [judged(0, cell(10))])}
    assert results.write(result, tmp_path) == tmp_path / "rows" / "a-row.json"
    assert results.read("a-row", tmp_path) == result
    assert results.read("b-row", tmp_path) is None


# -- Wehe's rule -------------------------------------------------------------------------------------------------


def with_bins(line: Line, pairs: int, seed: str) -> Run:
    rng, played = random.Random(seed), []
    for pair in stream(line, random.Random(f"{seed}/p"), pairs):
        bins = [tuple(rate * rng.uniform(0.9, 1.1) for _ in range(10)) for rate in (pair.first_mbps, pair.second_mbps)]
        neutral, app = bins if pair.neutral_first else reversed(bins)
        played.append(Played(pair=pair, app_bins_mbps=app, neutral_bins_mbps=neutral, octets=100))
    return Run(row="a-row", repeat=0, played=tuple(played))


def test_tests_of_treated_and_even_apps_are_counted_apart():
    strong = rival.counted(with_bins(Line(slowdown=0.7, noise=0.01), 20, "s"), {"youtube"})
    assert (strong["treated.tests"], strong["treated.positive"], strong["treated.slower"]) == (10, 10, 10)
    assert (strong["treated.octets"], strong["treated.pairs"], strong["even.tests"]) == (2000, 20, 0)
    assert (strong["treated.groups5"], strong["treated.all5"]) == (2, 2)
    quiet = rival.counted(with_bins(Line(noise=0.01), 20, "q"), {"netflix"})
    assert (quiet["even.tests"], quiet["even.positive"], quiet["treated.tests"]) == (20, 0, 0)
    assert set(rival.table([strong, quiet])) == {"treated", "even"}
    assert rival.table([Counter()]) == {}


@pytest.mark.parametrize(("times", "rate", "power"), [(1, 0.5, 0.95), (2, 0.7, 0.9), (3, 0.8, 0.95), (5, 0.9, 0.5)])
def test_positives_in_a_row_are_counted_exactly(times, rate, power):
    tests = rival.in_a_row(times, rate, power)

    def found_within(length: int) -> float:
        """By adding up all sequences of this length."""
        total = 0.0
        for outcome in itertools.product((True, False), repeat=length):
            if any(all(outcome[i : i + times]) for i in range(length - times + 1)):
                total += math.prod(rate if one else 1 - rate for one in outcome)
        return total

    if tests <= 11:
        assert found_within(tests) >= power > found_within(tests - 1)
    assert rival.in_a_row(times, 0.0, 0.5) is None


def result(name: str, *, kind: str = "neutral", engine: str = "path", positive=(0, 100), options=None, **cells):
    side = "treated" if kind == "discriminating" else "even"
    tests = {"positive": results.share(*positive), "octets_a_test": 1_000_000}
    virtual = {"peer": {side: tests}, "cells": cells, "noise": {"youtube": {"sd": 0.1, "median": 0}}}
    return {
        "row": name,
        "kind": kind,
        "engine": engine,
        "inside": True,
        "options": options or {},
        "expected": ["youtube:slowing"] if kind == "discriminating" else [],
        "virtual": virtual,
    }


def test_wehes_rule_is_repeated_until_it_errs_no_more_often():
    rows = [
        result("quiet", positive=(0, 100)),
        result("boosted", positive=(30, 100)),
        result("broken", positive=(99, 100), options={"misleads": True}),
        result("router", positive=(99, 100), options={"without_gate": ["no_edge_probe"]}),
    ]
    assert rival.worst_row(rows) == (0.3, "boosted")
    treated = result("treated", kind="discriminating", positive=(95, 100))
    treated["virtual"]["cells"] = {"youtube:slowing": {"octets_to_case": {"95": 5_000_000}}}
    told = rival.compared(treated, anywhere=0.3, matched=0.01, most_false=0.001, power=0.95)
    assert told["anywhere"]["times"] == 6  # 0.3^5 = 0.0024, 0.3^6 = 0.0007
    assert told["anywhere"]["octets"] == rival.in_a_row(6, 0.95, 0.95) * 1_000_000
    assert told["matched"] == {"times": 2, "octets": rival.in_a_row(2, 0.95, 0.95) * 1_000_000}
    assert (rival.is_fewer(told, "anywhere"), rival.is_fewer(told, "matched")) == (True, False)
    never = rival.compared(treated, anywhere=0.999, matched=0.01, most_false=0.001, power=0.95)
    assert never["anywhere"] == {"times": None, "octets": None}
    assert rival.is_fewer(never, "anywhere")
    treated["virtual"]["cells"] = {"youtube:slowing": {}}
    unfound = rival.compared(treated, anywhere=0.999, matched=0.01, most_false=0.001, power=0.95)
    assert not rival.is_fewer(unfound, "anywhere")  # what we do not find costs nothing, and is no success


def test_a_rate_at_this_noise_lies_between_its_neighbours():
    rows = [
        result(f"sd-{sd}", engine="stream", positive=(k, 100), options={"noise": {"sd": sd}})
        for sd, k in ((0.1, 0), (0.3, 10), (0.6, 40))
    ]
    assert rival.matched_rate(rows, 0.2) == pytest.approx(0.05)
    assert rival.matched_rate(rows, 0.05) == 0
    assert rival.matched_rate(rows, 2.0) == pytest.approx(0.4)
    assert rival.matched_rate([], 0.2) == 0


# -- promises ----------------------------------------------------------------------------------------------------


def whole(row, runs) -> dict:
    from lab.accuracy.study import head

    return {**head(row), "virtual": results.aggregate(row, runs), "differs": []}


def test_power_is_looked_for_where_exactly_that_was_played():
    promise = requirements.POWER[0]
    measured = from_document({**_document(), "measure": {"pairs": 14}, "options": {"noise": {"slowdown": 0.3}}})
    runs = [judged(n, cell(14 if n < 95 else None)) for n in range(100)]
    [met] = [one for one in requirements.all_of([whole(measured, runs)]) if one.promise == promise.words]
    assert (met.met, met.rows) == (True, ("a-row",))
    assert met.figure.startswith("95 of 100")
    runs = [judged(n, cell(14 if n < 94 else 15)) for n in range(100)]
    [missed] = [one for one in requirements.all_of([whole(measured, runs)]) if one.promise == promise.words]
    assert missed.met is False
    other = from_document({**_document(), "options": {"noise": {"slowdown": 0.3, "boost": 0.2, "carry": 0.5}}})
    [none] = [one for one in requirements.all_of([whole(other, runs)]) if one.promise == promise.words]
    assert none.met is None


def _document():
    return {
        "name": "a-row",
        "kind": "discriminating",
        "title": "t",
        "why": "w",
        "engine": "stream",
        "expect": {"effects": ["youtube:slowing"]},
    }


def neutral(*runs: Judged, **options) -> dict:
    document = {**_document(), "kind": "neutral", "options": options}
    del document["expect"]
    return whole(from_document(document), list(runs))


def promised(words: str, *played: dict):
    [found] = [one for one in requirements.all_of(list(played)) if words in one.promise]
    return found


def test_one_accused_innocent_breaks_the_promise():
    fine = promised("No neutral cell", neutral(*(judged(n, cell(None)) for n in range(50))))
    assert (fine.met, fine.rows) == (True, ())
    assert fine.figure.startswith("0 of 50 ")
    broken = promised("No neutral cell", neutral(judged(0, cell(None)), judged(1, cell(12))))
    assert (broken.met, broken.rows) == (False, ("a-row",))
    meant = neutral(judged(0, cell(12)), misleads=True)
    meant["kind"] = "adversarial"
    assert promised("No neutral cell", meant, neutral(judged(0, cell(None)))).met is True


def test_the_share_of_even_streams_is_held_against_its_bound():
    def streams(k: int, n: int, effect: str = "youtube:slowing") -> dict:
        crossed = {"any": k, effect: k}
        return neutral(Judged(repeat=0, cells={"youtube:slowing": [cell(None)]}, streams=n, crossed=crossed))

    assert promised("at most 1 %", streams(90, 10_000)).met is True
    assert promised("at most 1 %", streams(150, 10_000)).met is False
    assert promised("at most 1 %", streams(9, 1_000)).met is False  # too few to say so
    assert promised("at most 1 %", streams(300, 10_000, "youtube:blocking")).met is True
    assert promised("at most 5 %", streams(300, 10_000, "youtube:blocking")).met is True
    assert promised("at most 5 %", streams(501, 10_000)).met is False


def test_the_budget_of_the_last_hypothesis():
    assert requirements.most_false() == pytest.approx(0.05 / 2 * (0.065 * 0.75 * 0.7 * 0.45 * 6 / 72 + 0.45 * 6 / 210))

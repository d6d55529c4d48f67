# SPDX-License-Identifier: EUPL-1.2
"""Invented weather is what it says, streams are functions of their seed, and fast judging is the product's judging.

Few streams, and never the study's: rows here have names that no file of the study has.
"""

import dataclasses
import math
import random
import statistics
from dataclasses import replace

import pytest

from analysis.evidence import probe_evidence
from analysis.judge import Ledger
from analysis.pairs import OrderHistory, score
from analysis.rules import EFFECTS
from lab.accuracy import fast, judging
from lab.accuracy.model import Played, Run
from lab.accuracy.noise import DAY_MS, HABITS, NO_CELL, Nuisance, read, stream
from lab.accuracy.reading import ROWS, from_document, load_all
from lab.accuracy.stream import BadOptionError, campaign, play

LINES = {
    "quiet": Nuisance(),
    "noisy": Nuisance(sd=0.6),
    "wild": Nuisance(sd=2.0, losing=0.05),
    "cauchy": Nuisance(sd=0.3, cauchy=True),
    "carried": Nuisance(sd=0.2, boost=0.3, carry=0.8),
    "congested": Nuisance(sd=0.2, congestion=1.5),
    "failing": Nuisance(sd=0.2, failing=0.3, altering=0.2),
    "days": Nuisance(sd=0.6, pairs_a_day=12),
    "night": Nuisance(night_sd=1.0, night_boost=1.0, pairs_a_day=24),
    "stepping": Nuisance(step=0.7, step_share=0.4),
    "flipping": Nuisance(flip_every=3),
    "trend": Nuisance(trend=0.5),
    "calls": Nuisance(concurrent=0.5, slot_ms=8, delay_sd_ms=12, loss_sd=0.03),
    "treated": Nuisance(slowdown=0.4, sd=0.3),
    **{habit: Nuisance(habit=habit, pairs_a_day=40) for habit in HABITS},
}


def row_of(**parts):
    noise = parts.pop("noise", {})
    measure = {"probes": 3, "pairs": 20, **parts.pop("measure", {})}
    options = {"noise": noise, **parts.pop("options", {})}
    told = {"kind": "adversarial", "title": "t", "why": "w", "engine": "stream", **parts}
    return from_document({"name": "of-a-test", "measure": measure, "options": options, **told})


@pytest.mark.parametrize("name", LINES)
def test_fast_reading_is_the_products(name):
    """Midpoints, evidence at every look, and states equal those of scoring and judging pair by pair."""
    pairs = list(stream(LINES[name], random.Random(f"equal/{name}"), 150))
    found, history, ledger = fast.Stream(), OrderHistory(), Ledger()
    highest = dict.fromkeys(EFFECTS, 0.0)
    for pair in pairs:
        expected = score(history, pair)
        history.add(pair)
        assert found.put(pair) == expected
        assert ledger.put(pair) == expected
        counts = ledger.states(NO_CELL)["p1"].counts
        for effect in EFFECTS:
            log_e = probe_evidence(counts, effect)
            assert found.read(effect) == pytest.approx(log_e, rel=1e-12, abs=1e-12)
            highest[effect] = max(highest[effect], log_e)
            assert found.highest[effect] == pytest.approx(highest[effect], abs=1e-12)
    assert found.state == ledger.states(NO_CELL)["p1"]


def test_a_session_beside_another_is_scored_as_the_product_does():
    """Where pairs overlap, the running history hands over to the product's own."""
    pairs = list(stream(Nuisance(sd=0.6), random.Random("overlap"), 60))
    pairs = [replace(p, ended_ms=p.started_ms + (70_000 if n % 3 else 5_000)) for n, p in enumerate(pairs)]
    found, history = fast.Stream(), OrderHistory()
    for pair in pairs:
        expected = score(history, pair)
        history.add(pair)
        assert found.put(pair) == expected


ROWS_OF_TESTS = {
    "even": row_of(noise={"sd": 0.6}),
    "two-cells": row_of(noise={"sd": 1.0}, options={"cells": 2}, measure={"apps": ["youtube", "netflix"]}),
    "treated": row_of(noise={"sd": 0.11, "slowdown": 0.5}),
    "lost": row_of(noise={"sd": 0.6, "losing": 0.3, "failing": 0.2}),
    "calls": row_of(noise={"sd": 0.6, "concurrent": 0.5, "slot_ms": 9.0}),
    "replayed": row_of(noise={"sd": 0.4}, options={"attack": "replay"}),
    "one-liar": row_of(noise={"sd": 0.2}, options={"probe": [{"count": 1, "noise": {"slowdown": 0.5}}]}),
}


@pytest.mark.parametrize("name", ROWS_OF_TESTS)
def test_fast_judging_is_the_studys(name):
    """Everything that a result is made of is the same, whether or not anything came near a case."""
    row = ROWS_OF_TESTS[name]
    for repeat in range(6):
        run = play(row, repeat)
        slowly = judging.judge_run(run, row.measure, row.options)
        assert fast.judge_run(run, row.measure, row.options) == slowly


def test_fast_judging_asks_the_product_before_a_case_can_open():
    """No case is missed: a row whose every repeat opens one opens as many, after as many pairs."""
    row = ROWS_OF_TESTS["treated"]
    found = [fast.judge_run(play(row, n), row.measure, row.options) for n in range(4)]
    assert [len(one.cells["youtube:slowing"][0].opened) for one in found] == [3] * 4


def test_a_stream_is_a_function_of_row_and_repeat():
    row = row_of(noise={"sd": 0.6}, options={"placebo": 5, "attack": "fail_one"})
    assert play(row, 3) == play(row, 3)
    assert play(row, 3).played != play(row, 4).played
    first, second = (
        [one.pair.log_ratio() for one in play(row, 3).played if one.pair.probe == p] for p in ("p1-1", "p1-2")
    )
    assert first != second
    other = dataclasses.replace(row, name="another")
    assert play(row, 3).played != play(other, 3).played


def test_the_coin_is_drawn_after_everything_that_the_line_does():
    """With the coin taken by force, what the slots do is the same: nothing of the line can depend on it."""
    for name, line in LINES.items():
        if line.slowdown or line.habit != "none":  # treatment follows the arm, habits the *past* coins
            continue
        one = list(stream(line, random.Random(name), 40, coin=lambda: True))
        other = list(stream(line, random.Random(name), 40, coin=lambda: False))
        assert [replace(p, neutral_first=None) for p in one] == [replace(p, neutral_first=None) for p in other]


@pytest.mark.parametrize("habit", HABITS)
def test_a_habit_knows_the_past_alone(habit):
    """Whatever the next coin is, the pair before it knows nothing of it."""
    line = Nuisance(habit=habit, pairs_a_day=40)
    coins = [random.Random("coins").random() < 0.5 for _ in range(80)]
    for at in (0, 7, 30, 79):
        falls = iter([*coins[:at], True]), iter([*coins[:at], False])
        pairs = [list(stream(line, random.Random(habit), at + 1, coin=lambda f=f: next(f)))[-1] for f in falls]
        assert pairs[0].log_ratio() == pairs[1].log_ratio()


def test_habits_do_something():
    """A nuisance that reacts moves rates far beyond the line's own noise, and reacts differently each."""
    ratios = {h: [p.log_ratio() for p in stream(Nuisance(habit=h), random.Random(1), 60)] for h in HABITS}
    assert max(map(abs, ratios["none"])) < 0.6
    assert all(max(map(abs, ratios[h])) > 1 for h in HABITS if h != "none")


def ratios_of(line, count=3000):
    return [p.log_ratio() for p in stream(line, random.Random("law"), count)]


def test_the_weather_is_what_it_says():
    """Deviation, boost, treatment, failures and losses are those that were asked for."""
    assert statistics.stdev(ratios_of(Nuisance(sd=0.3))) == pytest.approx(0.3, rel=0.05)
    assert statistics.median(ratios_of(Nuisance(boost=0.2))) == pytest.approx(math.log(1.2), abs=0.01)
    assert max(map(abs, ratios_of(Nuisance(sd=0.3, cauchy=True)))) == pytest.approx(math.log(100))
    slower = [
        (p.log_ratio() or 0) * (1 if p.neutral_first else -1)
        for p in stream(Nuisance(slowdown=0.3), random.Random(2), 2000)
    ]
    assert statistics.median(slower) == pytest.approx(-math.log(0.7), abs=0.01)
    failing = list(stream(Nuisance(failing=0.3), random.Random(3), 3000))
    assert sum(p.first_failed for p in failing) / 3000 == pytest.approx(0.3, abs=0.03)
    assert sum(p.void for p in failing) / 3000 == pytest.approx(0.09, abs=0.02)
    assert sum(p.lost for p in stream(Nuisance(losing=0.2), random.Random(4), 3000)) / 3000 == pytest.approx(
        0.2, abs=0.03
    )
    blocked = list(stream(Nuisance(blocked=1.0), random.Random(5), 50))
    assert all((p.second_failed if p.neutral_first else p.first_failed) for p in blocked)
    assert not any(p.void for p in blocked)
    flips = [r > 0 for r in ratios_of(Nuisance(flip_every=5, sd=0.01), 20)]
    assert flips == [True] * 5 + [False] * 5 + [True] * 5 + [False] * 5


def test_treatment_of_calls_waits_and_loses_at_the_app():
    line = Nuisance(concurrent=1.0, delay_ms=40, loss=0.05)
    for pair in stream(line, random.Random(6), 60):
        assert pair.design == "concurrent"
        assert pair.first_mbps is None
        delays = pair.first_delay_ms, pair.second_delay_ms
        neutral, app = delays if pair.neutral_first else delays[::-1]
        assert app - neutral == pytest.approx(40, abs=25)


def test_bins_follow_the_segment_and_its_arm():
    row = row_of(noise={"slowdown": 0.5, "sd": 0.05}, measure={"segment_s": 2.0, "pairs": 40})
    for one in play(row, 0).played[:20]:
        assert len(one.app_bins_mbps) == len(one.neutral_bins_mbps) == 20
        assert statistics.median(one.app_bins_mbps) < 0.8 * statistics.median(one.neutral_bins_mbps)
        assert one.octets == pytest.approx((one.pair.first_mbps + one.pair.second_mbps) * 2 * 125_000, abs=2)
    assert play(dataclasses.replace(row, options={"bins_until": 0}), 0).played[0].app_bins_mbps == ()


def test_placebo_pairs_follow_their_pairs_and_are_not_treated():
    row = row_of(noise={"slowdown": 0.8, "sd": 0.01}, options={"placebo": 10}, measure={"pairs": 20})
    pairs = [one.pair for one in play(row, 0).played]
    placebo = [p for p in pairs if p.kind == "placebo"]
    assert len(placebo) == 6
    assert all(abs(p.log_ratio()) < 0.1 for p in placebo)
    assert {(p.started_ms - pairs[0].started_ms) // 1000 for p in placebo} == {190, 390}


def test_groups_are_told_apart():
    groups = [{"count": 2, "network": "one", "noise": {"slowdown": 0.5}}, {"count": 1, "edge": False, "pairs": 3}]
    row = row_of(options={"probe": groups}, measure={"probes": 5})
    pairs = [one.pair for one in play(row, 0).played]
    assert {p.network for p in pairs if p.probe in {"p1-1", "p1-2"}} == {"one"}
    assert {p.probe for p in pairs if p.edge is False} == {"p1-3"}
    assert sum(p.probe == "p1-3" for p in pairs) == 3
    assert len({p.probe for p in pairs}) == 5


def test_a_group_may_begin_earlier_with_all_of_its_pairs():
    row = row_of(options={"probe": [{"count": 1, "days_early": 2}], "placebo": 10}, measure={"probes": 2})
    pairs = [one.pair for one in play(row, 0).played]
    starts = {probe: [p.started_ms for p in pairs if p.probe == probe] for probe in ("p1-1", "p1-2")}
    assert [start + 2 * DAY_MS for start in starts["p1-1"]] == starts["p1-2"]
    assert all(p.ended_ms - p.started_ms <= 10_000 for p in pairs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nois": {}}, "options.nois is not known"),
        ({"attack": "magic"}, "options.attack 'magic' is not known"),
        ({"probe": [{"counts": 1}]}, r"options.probe\[1\].counts is not known"),
        ({"probe": [{"count": 9}]}, "names 9 probes"),
        ({"cells": "many"}, "options.cells must be a whole number"),
    ],
)
def test_bad_options_are_refused_by_their_path(options, words):
    with pytest.raises(BadOptionError, match=words):
        campaign(row_of(options=options))


def test_bad_weather_is_refused_by_its_path():
    with pytest.raises(ValueError, match=r"options.noise.sdd is not known"):
        read({"sdd": 1})
    with pytest.raises(ValueError, match=r"options.noise.sd must be a float"):
        read({"sd": "much"})
    with pytest.raises(ValueError, match=r"habit must be one of"):
        read({"habit": "odd"})
    assert read({"sd": 1}).sd == 1.0


def test_every_row_of_the_study_can_be_played():
    """Files are read and their options understood; a repeat is played where it is short."""
    rows = [row for row in load_all() if row.engine == "stream"]
    assert len(rows) >= 30, ROWS
    for row in rows:
        told = campaign(row)
        assert sum(group.count for group in told.groups) == row.measure.probes
        short = dataclasses.replace(row, measure=dataclasses.replace(row.measure, pairs=4))
        assert play(short, 10**9).played or row.options.get("variant")


def test_a_run_that_is_void_is_said_to_be():
    run = Run(row="x", repeat=1, played=(), void="late")
    row = ROWS_OF_TESTS["even"]
    assert fast.judge_run(run, row.measure, row.options).void == "late"


def test_played_pairs_are_in_the_order_of_starts():
    played: list[Played] = list(play(ROWS_OF_TESTS["two-cells"], 0).played)
    assert played == sorted(played, key=lambda one: one.pair.order)

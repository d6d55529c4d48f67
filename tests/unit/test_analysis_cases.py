# SPDX-License-Identifier: EUPL-1.2
"""Cases: the selection against its definition and its rate, weights that open true cases, and a case's life."""

import itertools
import math
import random
from dataclasses import replace
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.cases import Finding, case_id, end_strength, needed, onset, select, update_cases
from analysis.judge import Ledger
from analysis.pairs import CellKey
from analysis.plan import APPS, DEFAULT_PLAN, HypothesisPlan, from_weights, place_weight
from analysis.probes import summarise
from analysis.rules import RULES
from analysis.simulate import CELL, START_MS, Line, stream
from analysis.verdict import decide, paragraphs
from probe.wire.records import Weight

SLOW = Line(slowdown=0.6, noise=0.05)


@given(st.lists(st.tuples(st.floats(-5, 30), st.floats(-12, 0)), max_size=9))
def test_selection_is_the_largest_consistent_set(hypotheses):
    opened = select(hypotheses, 0.05)
    bar = [math.log(1 / 0.05) - w for _, w in hypotheses]
    best = 0
    for k in range(1, len(hypotheses) + 1):
        if sum(e >= b - math.log(k) for (e, _), b in zip(hypotheses, bar, strict=True)) >= k:
            best = k
    assert len(opened) == best
    assert all(hypotheses[i][0] >= bar[i] - math.log(best) for i in opened)


def test_nothing_is_opened_by_a_failed_gate_or_without_weight():
    assert select([(-math.inf, 0.0), (100.0, -math.inf)]) == frozenset()
    assert select([]) == frozenset()
    assert select([(needed(-5.0, 0) + 1e-9, -5.0)]) == frozenset({0})
    assert select([(needed(-5.0, 0) - 1e-9, -5.0)]) == frozenset()


def test_more_true_cases_make_each_easier():
    alone = select([(7.0, -5.0)])
    together = select([(7.0, -5.0)] * 3)
    assert (alone, together) == (frozenset(), frozenset({0, 1, 2}))


def test_false_discovery_rate_of_the_list():
    """Half of 40 hypotheses true, evidence of false ones at its very limit: at most 5 % of the lists is false."""
    rng, shares = random.Random(1), []
    for _ in range(3000):
        evidence = []
        for number in range(40):
            # A false one wins 1/p with probability p, the worst that a mean of 1 allows; p suits the threshold.
            p = 10 ** rng.uniform(-3.5, -2)
            null = -math.log(p) if rng.random() < p else -math.inf
            evidence.append((12.0 if number % 2 else null, -math.log(40)))
        opened = select(evidence)
        shares.append(sum(i % 2 == 0 for i in opened) / max(1, len(opened)))
    mean = sum(shares) / len(shares)
    assert 0.0 < mean <= 0.05


def test_weights_of_the_default_plan_are_a_budget():
    assert math.fsum(DEFAULT_PLAN.weights.values()) == pytest.approx(1.0)
    assert math.fsum(place_weight(n) for n in range(1, 100_000)) == pytest.approx(1.0, abs=1e-4)
    assert all(place_weight(n) > place_weight(n + 1) for n in range(1, 50))
    assert math.fsum(DEFAULT_PLAN.effects.values()) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="from 1"):
        place_weight(0)
    with pytest.raises(ValueError, match="at most 1"):
        HypothesisPlan(name="greedy", weights={("a", "down", "fixed", "slowing"): 1.1})


def test_a_plan_of_the_collector_weighs_what_it_names():
    plan = from_weights("signed", [Weight(app="x", direction="down", access="fixed", effect="slowing", weight=0.5)])
    assert plan.log_weight(replace(CELL, app="x"), "slowing", 1) == pytest.approx(math.log(0.5 * place_weight(1)))
    assert plan.log_weight(replace(CELL, app="y"), "slowing", 1) == -math.inf
    assert plan.log_weight(replace(CELL, app="x"), "blocking", 1) == -math.inf
    assert plan.hypotheses == 1


def test_unnamed_apps_share_the_remainder():
    strange = replace(CELL, app="never-heard-of")
    assert DEFAULT_PLAN.log_weight(strange, "slowing", 1, 4) == pytest.approx(
        DEFAULT_PLAN.log_weight(strange, "slowing", 1) - math.log(4)
    )
    assert DEFAULT_PLAN.log_weight(replace(CELL, access="hotspot"), "slowing", 1) == -math.inf


def judged(lines, *, places=1, count=12, cell=CELL, filler="other"):
    """One operator whose place in the register is `places`, three subscribers, everything else silent."""
    found = Ledger()
    for before in range(places - 1):
        early = CellKey(f"{filler}{before}", 1, "youtube", "down", "fixed")
        for pair in stream(Line(), random.Random(before), 1, probe=f"q{before}", cell=early):
            found.put(replace(pair, started_ms=pair.started_ms - 86_400_000))
    for number, line in enumerate(lines):
        for pair in stream(line, random.Random(f"{number}"), count, probe=f"p{number}", cell=cell):
            found.put(pair)
    return found


EFFECT_LINES = [("slowing", SLOW), ("blocking", Line(blocked=1.0)), ("prioritising", Line(slowdown=-2.0, noise=0.05))]


@pytest.mark.parametrize(("effect", "line"), EFFECT_LINES, ids=[e for e, _ in EFFECT_LINES])
@pytest.mark.parametrize("app", [*APPS[:2], "an-app-nobody-planned"])
def test_three_probes_of_twelve_unanimous_pairs_open_a_case_for_the_third_operator(effect, line, app):
    found = judged([line] * 3, places=3, cell=replace(CELL, app=app))
    verdicts = [v for v in found.verdicts() if v.assessment.cell.app == app]
    assert {v.assessment.effect for v in verdicts if v.state == "corroborated"} == {effect}


@pytest.mark.parametrize("access", ["fixed", "mobile"])
@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("effect", ["slowing", "blocking"])
def test_twelve_unanimous_pairs_suffice_for_every_line_of_a_planned_app(access, direction, effect):
    line = dict(EFFECT_LINES)[effect]
    found = judged([line] * 3, places=3, cell=CellKey("operator", 1, "youtube", direction, access))
    states = {v.assessment.effect: v.state for v in found.verdicts() if v.assessment.cell.operator == "operator"}
    assert states[effect] == "corroborated"


@pytest.mark.parametrize("zone", ["UTC", "Europe/Brussels", "Pacific/Auckland"])
def test_twelve_pairs_suffice_at_every_hour_of_the_day(zone):
    """Whatever the local time, also across midnight and the edges of the peak hours: 12 pairs within 3 hours."""
    for hour in range(24):
        found = Ledger(zones=lambda _: ZoneInfo(zone))
        for number in range(3):
            for step, pair in enumerate(stream(SLOW, random.Random(number), 12, probe=f"p{number}")):
                found.put(replace(pair, started_ms=pair.started_ms + hour * 3_600_000 + step * 900_000))
        slowing = next(v for v in found.verdicts() if v.assessment.effect == "slowing")
        third = DEFAULT_PLAN.log_weight(CELL, "slowing", 3, order=36)
        assert slowing.state == "corroborated"
        assert slowing.assessment.log_case_e >= needed(third, 0)


def test_a_pair_that_went_wrong_does_not_break_the_third_operators_case():
    """One pair of the 36 lost, one more without a bet."""
    lines = [SLOW] * 3
    found = judged(lines, places=3)
    spoiled = {"p0-5": {"lost": True}, "p1-9": {"second_mbps": 7.0, "first_mbps": 7.0}}
    again = Ledger()
    for cell in found.cells():
        for pair, _ in found.scores(cell):
            again.put(replace(pair, **spoiled.get(pair.session, {})))
    verdict = next(v for v in again.verdicts() if v.assessment.probes == 3 and v.assessment.effect == "slowing")
    assert verdict.state == "corroborated"
    assert verdict.reasons == ("time_zone_unknown",)


def test_a_late_place_needs_more():
    near, far = (judged([SLOW] * 3, places=n, count=8) for n in (1, 60))
    states = [
        next(v for v in found.verdicts() if v.assessment.probes == 3 and v.assessment.effect == "slowing")
        for found in (near, far)
    ]
    assert states[0].log_needed < states[1].log_needed
    assert (states[0].state, states[1].state) == ("corroborated", "replicated")
    assert states[1].reasons[0] == "below_case_threshold"


def test_opening_needs_what_it_says():
    found = judged([SLOW] * 3)
    assessments = found.assessments()
    verdict = next(v for v in found.verdicts() if v.assessment.effect == "slowing")
    slowing = next(a for a in assessments if a.effect == "slowing")
    places, orders = found.operator_order().__getitem__, found.cell_order().__getitem__
    weak = replace(slowing, strength=replace(slowing.strength, without_one=verdict.log_needed - 0.01))
    enough = replace(slowing, strength=replace(slowing.strength, without_one=verdict.log_needed + 0.01))
    assert decide([weak], DEFAULT_PLAN, places, order=orders)[0].state == "replicated"
    assert decide([enough], DEFAULT_PLAN, places, order=orders)[0].state == "corroborated"


def test_sentences_say_size_and_spread_and_never_a_verdict_of_law():
    text = " ".join(
        itertools.chain(
            paragraphs(judged([SLOW] * 3).verdicts()),
            paragraphs(judged([Line(slowdown=-2.0, noise=0.05)] * 3).verdicts()),
            paragraphs(judged([Line(blocked=1.0)] * 3).verdicts()),
            paragraphs(judged([Line()]).verdicts()),
        )
    )
    assert "Corroborated: slower than the same traffic under a neutral name by about 6" in text
    assert "at 3 of 3 probes" in text
    assert "Detectable here" in text
    for word in ("violation", "guilty", "proof", "illegal", "-inf", "nan", "None"):
        assert word not in text


def summaries(found):
    return [summarise(name, state) for name, state in found.states(CELL).items()]


def day_of(number):
    from datetime import UTC, datetime

    return datetime.fromtimestamp(START_MS / 1000, tz=UTC).date().toordinal() + number


def test_onset_is_the_day_it_began():
    found = judged([Line(slowdown=0.6, noise=0.1, pairs_a_day=4, since_day=10)] * 3, count=80)
    assert onset(summaries(found), "slowing") == day_of(10)
    assert onset(summaries(judged([SLOW] * 3)), "slowing") == day_of(0)
    assert onset([], "slowing") is None


def test_onset_is_rarely_far_off():
    off = []
    for seed in range(20):
        found = Ledger()
        line = Line(slowdown=0.4, noise=0.3, pairs_a_day=4, since_day=8)
        for number in range(3):
            for pair in stream(line, random.Random(f"{seed}/{number}"), 80, probe=f"p{number}"):
                found.put(pair)
        off.append(abs(onset(summaries(found), "slowing") - day_of(8)))
    assert sorted(off)[15] <= 2


def ending(probes_that_end=3, days=12):
    """Slowed for ten days, then let go (at so many of three probes)."""
    found = Ledger()
    for number in range(3):
        rng = random.Random(number)
        slowed = list(stream(Line(slowdown=0.6, noise=0.1, pairs_a_day=4), rng, 40, probe=f"p{number}"))
        line = (
            Line(noise=0.1, pairs_a_day=4) if number < probes_that_end else Line(slowdown=0.6, noise=0.1, pairs_a_day=4)
        )
        later = [
            replace(p, session=f"later-{p.session}", started_ms=p.started_ms + 10 * 86_400_000,
                    ended_ms=p.ended_ms + 10 * 86_400_000)
            for p in stream(line, rng, 4 * days, probe=f"p{number}")
        ]  # fmt: skip
        for pair in slowed + later:
            found.put(pair)
    return found


def test_the_end_needs_two_witnesses():
    assert end_strength(summaries(ending()), "slowing", day_of(3)) > math.log(RULES.end_evidence)
    assert end_strength(summaries(ending(probes_that_end=1)), "slowing", day_of(3)) < 0.1
    assert end_strength(summaries(ending(probes_that_end=0)), "slowing", day_of(3)) < 0.1
    assert end_strength([], "slowing", day_of(3)) == 0.0


def test_life_of_a_case():
    key = (CELL, "slowing")
    seen = Finding(supported=True, onset_day=day_of(0), witnesses=("p0", "p1", "p2"))
    steps = [
        seen,
        seen,
        replace(seen, supported=False),
        replace(seen, supported=True),
        replace(seen, supported=False, log_end=math.log(25)),
        seen,
    ]
    cases = []
    for number, finding in enumerate(steps):
        cases = update_cases(
            cases, {key: finding}, now_ms=START_MS + number, today=day_of(number), inputs=f"{number:064d}"
        )
    (case,) = cases
    assert [e.kind for e in case.history] == ["opened", "no_longer_supported", "supported_again", "ended"]
    assert [e.inputs for e in case.history] == [f"{n:064d}" for n in (0, 2, 3, 4)]
    assert {e.rule for e in case.history} == {RULES.name}
    assert (case.status, case.onset_day, case.opened_day) == ("ended", day_of(0), day_of(0))
    assert case.id == case_id(CELL, "slowing", START_MS)
    assert update_cases([replace(case, status="withdrawn")], {}, now_ms=1, today=1, inputs="")[0].status == "withdrawn"


def test_what_was_never_supported_is_no_case():
    finding = Finding(supported=False, onset_day=day_of(0), witnesses=())
    assert update_cases([], {(CELL, "slowing"): finding}, now_ms=1, today=1, inputs="") == []

# SPDX-License-Identifier: EUPL-1.2
"""Cells: mixing over probes, leaving networks out, gates that see no labels, and the ladder of states."""

import itertools
import math
import random
from dataclasses import replace
from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.cells import assess, assess_cell, detectable
from analysis.gates import Setting, strength
from analysis.judge import Ledger, judge, no_zones
from analysis.logs import log_mean, log_mixed
from analysis.networks import grouped
from analysis.pairs import CellKey
from analysis.probes import ProbeState, summarise
from analysis.rules import RULES, STATE_CODES, VERSION_1
from analysis.simulate import CELL, Line, stream

SLOW = Line(slowdown=0.5, noise=0.1)
EVEN = Line(noise=0.1)
LOG_E = st.floats(-10, 60)


def ledger(*lines, count=12, seed=1, change=lambda pair: pair, cell=CELL, rules=RULES):
    found = Ledger(zones=lambda _: UTC, rules=rules)
    for number, line in enumerate(lines):
        for pair in stream(line, random.Random(f"{seed}/{number}"), count, probe=f"p{number}", cell=cell):
            found.put(change(pair))
    return found


def verdict(found, effect="slowing", cell=CELL):
    return next(a for a in found.assessments() if a.effect == effect and a.cell == cell)


@given(st.lists(LOG_E, min_size=1, max_size=7), st.data())
def test_leaving_out_is_at_most_what_any_set_leaves(log_es, data):
    """Whatever one or two networks did, at least so much evidence remains without them."""
    labels = data.draw(st.lists(st.integers(0, 4), min_size=len(log_es), max_size=len(log_es)))
    groups = [[i for i, label in enumerate(labels) if label == one] for one in sorted(set(labels))]
    found = strength(log_es, groups, RULES)

    def whole(kept):
        return log_mean([sum(log_mixed(share, log_es[i]) for g in kept for i in g) for share in RULES.prevalences])

    assert found.whole == pytest.approx(whole(groups), abs=1e-6)
    for count, left in ((1, found.without_one), (2, found.without_two)):
        sets = [whole([g for i, g in enumerate(groups) if i not in out]) for k in range(count + 1)
                for out in itertools.combinations(range(len(groups)), min(k, len(groups)))]  # fmt: skip
        assert left <= min(sets) + 1e-9
        if all(len(g) == 1 for g in groups):
            assert left == pytest.approx(min(sets), abs=1e-6)


def test_both_ends_of_prevalence_are_found():
    """Everyone a little, and one in twenty a lot, both pass; neither does under the other's rule alone."""
    little = strength([math.log(1.6)] * 20, [[i] for i in range(20)], RULES)
    few = strength([math.log(5000)] * 3 + [math.log(0.3)] * 57, [[i] for i in range(60)], RULES)
    assert little.whole > math.log(20)
    assert few.whole > math.log(20)
    assert sum([math.log(5000)] * 3 + [math.log(0.3)] * 57) < 0


def test_coalition_is_the_fewest_networks_that_carry_it():
    assert strength([math.log(800)] * 3, [[0], [1], [2]], RULES).coalition == 3
    assert strength([math.log(800)] * 3, [[0, 1], [2]], RULES).coalition == 2
    assert strength([0.0] * 3, [[0], [1], [2]], RULES).coalition == 0


def test_probes_that_ever_share_a_network_are_one():
    def probe(name, hashes, standing="hash"):
        state = ProbeState()
        state.networks.update(hashes)
        return summarise(name, state, standing=standing)

    chain = [probe("a", ["x"]), probe("b", ["x", "y"]), probe("c", ["y"]), probe("d", ["z"])]
    assert sorted(map(len, grouped(chain))) == [1, 3]
    assert sorted(map(len, grouped([probe("a", []), probe("b", []), probe("c", ["x"])]))) == [1, 2]
    carrier = [
        probe("a", ["n1"], "shared"),
        probe("b", ["n2"], "shared"),
        probe("c", ["n1"], "own"),
        probe("d", ["n1"]),
    ]
    assert sorted(map(len, grouped(carrier))) == [1, 1, 2]


def test_three_probes_of_twelve_pairs_pass_every_gate():
    found = verdict(ledger(SLOW, SLOW, SLOW))
    assert found.gates == ()
    assert found.base == "replicated"
    assert (found.pairs, found.lost, found.probes, found.networks) == (36, 0, 3, 3)
    assert found.prevalence.slowed == 3
    assert found.interval.slowdown()[0] == pytest.approx(0.5, abs=0.05)
    assert found.log_case_e == found.strength.without_one > math.log(10_000)


@pytest.mark.parametrize(
    ("reason", "lines", "change", "cell"),
    [
        ("fewer_than_3_probes", [SLOW] * 2, lambda p: p, CELL),
        ("leave_two_out", [SLOW] * 3, lambda p: replace(p, network="same"), CELL),
        ("no_edge_probe", [SLOW] * 3, lambda p: replace(p, edge=False), CELL),
        ("no_edge_probe", [SLOW] * 3, lambda p: replace(p, edge=None), CELL),
        ("no_edge_probe", [SLOW] * 3, lambda p: replace(p, flags=frozenset({"vpn"})), CELL),
        ("lost_pairs", [SLOW] * 3, lambda p: replace(p, lost=p.session.endswith("-7")), CELL),
        ("lost_pairs", [SLOW] * 3, lambda p: replace(p, lost=p.session[3:] in {"1", "2"}), CELL),
        ("no_receipts", [SLOW] * 3, lambda p: replace(p, received=False), CELL),
        ("hotspot", [SLOW] * 3, lambda p: p, replace(CELL, access="hotspot")),
        ("could_be_few_probes", [SLOW] * 3 + [EVEN] * 8, lambda p: p, CELL),
    ],
)
def test_each_gate_holds_a_case_back(reason, lines, change, cell):
    found = verdict(ledger(*lines, change=change, cell=cell), cell=cell)
    if reason == "lost_pairs" and found.lost == 3:
        assert reason not in found.gates  # 3 of 36 are no more than a tenth
        return
    assert reason in found.gates
    assert found.log_case_e == -math.inf
    assert found.base in {"indication", "replicated"}


def test_placebo_alarm_holds_a_case_back_and_a_quiet_placebo_does_not():
    for line, alarmed in ((SLOW, True), (EVEN, False)):
        found = ledger(SLOW, SLOW, SLOW)
        for number in range(3):
            for pair in stream(line, random.Random(number), 12, probe=f"p{number}"):
                cell = replace(pair.cell, app="whatsapp")
                found.put(replace(pair, kind="placebo", session=f"placebo-{pair.session}", cell=cell))
        assert ("placebo_alarm" in verdict(found).gates) is alarmed
        assert verdict(found).pairs == 36


def _placebo(found, shaped):
    for number, line in enumerate([SLOW] * shaped + [EVEN] * (5 - shaped)):
        for pair in stream(line, random.Random(number), 12, probe=f"p{number}"):
            found.put(replace(pair, kind="placebo", session=f"placebo-{pair.session}"))
    return found


@pytest.mark.parametrize(("homes", "vetoed"), [(1, False), (2, True)])
def test_one_home_cannot_keep_the_cases_of_its_operator_shut(homes, vetoed):
    idle = {f"p{number}" for number in range(homes)}
    losing = ledger(*[SLOW] * 5, change=lambda p: replace(p, lost=p.lost or p.probe in idle))
    assert ("lost_pairs" in verdict(losing).gates) is vetoed
    assert ("placebo_alarm" in verdict(_placebo(ledger(*[SLOW] * 5), homes)).gates) is vetoed
    # The first version of the rule could be vetoed by one.
    first = ledger(*[SLOW] * 5, change=lambda p: replace(p, lost=p.lost or p.probe in idle), rules=VERSION_1)
    assert "lost_pairs" in verdict(first).gates


def test_localisation_stands_in_for_a_probe_at_the_edge():
    states = ledger(SLOW, SLOW, SLOW, change=lambda p: replace(p, edge=False)).states(CELL)
    assert "no_edge_probe" in assess_cell(CELL, states)[0].gates
    assert "no_edge_probe" not in assess_cell(CELL, states, Setting(localised=True))[0].gates


@pytest.mark.parametrize(
    ("tariff", "vetted", "held_back"),
    [
        (lambda n: None, False, True),
        (lambda n: None, True, False),
        (lambda n: "basic" if n < 3 else "plus", False, False),
        (lambda n: "basic", False, True),
        (lambda n: "basic" if n < 2 else "plus", False, True),
    ],
    ids=["unexplained", "vetted", "one tariff", "tariff of all", "two tariffs"],
)
def test_low_prevalence_needs_an_explanation(tariff, vetted, held_back):
    found = ledger(*[SLOW] * 3, *[EVEN] * 9, change=lambda p: replace(p, tariff=tariff(int(p.probe[1:]))))
    probes = [summarise(name, state, vetted=vetted) for name, state in found.states(CELL).items()]
    assert ("could_be_few_probes" in assess(CELL, "slowing", probes).gates) is held_back


def test_evidence_spread_over_many_probes_is_not_few():
    """Thirty probes with three pairs each: nobody is slowed by his own evidence, and no few could have made it."""
    found = verdict(ledger(*[SLOW] * 30, count=3))
    assert found.prevalence.slowed == 0
    assert found.strength.coalition >= 10
    assert "could_be_few_probes" not in found.gates


@pytest.mark.parametrize(
    ("lines", "count", "effect", "state", "reasons"),
    [
        ([EVEN] * 3, 14, "slowing", "no_indication", ()),
        ([EVEN] * 3, 14, "blocking", "no_indication", ()),
        ([Line(noise=0.05)] * 3, 14, "prioritising", "no_indication", ()),
        ([EVEN] * 2, 14, "slowing", "insufficient", ("fewer_than_3_probes",)),
        ([EVEN] * 3, 4, "slowing", "insufficient", ("few_pairs",)),
        ([Line(noise=0.9)] * 3, 14, "slowing", "inconclusive", ()),
        ([SLOW], 14, "slowing", "indication", ()),
        ([SLOW, SLOW], 14, "slowing", "replicated", ()),
        ([Line(blocked=1.0)] * 3, 12, "blocking", "replicated", ()),
        ([Line(blocked=1.0)] * 3, 12, "slowing", "not_testable", ("no_rates",)),
        ([Line(failing=1.0)] * 3, 12, "blocking", "not_testable", ("both_segments_fail",)),
        ([Line(slowdown=-1.0, noise=0.1)] * 3, 12, "prioritising", "replicated", ()),
    ],
)
def test_ladder(lines, count, effect, state, reasons):
    found = verdict(ledger(*lines, count=count), effect)
    assert (found.base, found.reasons) == (state, reasons)
    assert found.base in STATE_CODES


def test_busy_lines_claim_nothing_but_lose_no_pair():
    busy = ledger(EVEN, EVEN, EVEN, count=14, change=lambda p: replace(p, flags=frozenset({"household_traffic"})))
    assert verdict(busy).base == "inconclusive"
    assert verdict(busy).reasons == ("busy_lines",)
    slowed = ledger(SLOW, SLOW, SLOW, change=lambda p: replace(p, flags=frozenset({"household_traffic"})))
    assert verdict(slowed).gates == ()


def test_lost_pairs_are_counted_only_where_they_can_be_known():
    found = ledger(SLOW, SLOW, SLOW)
    found.lost_known = False
    assert verdict(found).lost is None
    assert verdict(found).reasons == ("lost_unknown",)
    found.zones = no_zones
    assert verdict(found).reasons == ("lost_unknown", "time_zone_unknown")


def test_size_is_that_of_the_slowed_where_not_all_are():
    found = verdict(ledger(SLOW, SLOW, SLOW, EVEN, EVEN))
    assert found.interval.slowdown()[0] == pytest.approx(0.5, abs=0.06)
    assert "effect_among_slowed" in found.reasons
    even = verdict(ledger(EVEN, EVEN, EVEN, EVEN))
    assert even.interval.slowdown()[0] == pytest.approx(0.0, abs=0.06)


def test_detectable_region_is_of_the_achieved_pace():
    region = detectable(list(ledger(EVEN).states(CELL).values()))
    assert region.rate_mbps == pytest.approx(0.7 * 12, rel=0.1)
    assert region.burst_kb == pytest.approx((12 - 8.4) * 1.0 / 16 * 1000, rel=0.1)
    assert detectable([]).rate_mbps is None


def test_gates_do_not_notice_swapped_labels():
    """Turn every coin's label around: evidence changes sides, nothing that gates could see does."""
    for seed in range(5):
        lines = [Line(noise=0.3, failing=0.1)] * 3
        as_is, swapped = ledger(*lines, seed=seed), ledger(*lines, seed=seed, change=lambda p: p.swapped())
        for probe in as_is.states(CELL):
            ours, theirs = as_is.states(CELL)[probe], swapped.states(CELL)[probe]
            assert (ours.tally, ours.networks, ours.paces) == (theirs.tally, theirs.networks, theirs.paces)
        ours, theirs = verdict(as_is), verdict(swapped)
        assert (ours.pairs, ours.lost, ours.probes, ours.detectable) == (
            theirs.pairs,
            theirs.lost,
            theirs.probes,
            theirs.detectable,
        )


def test_judging_does_not_depend_on_the_order_of_input():
    pairs = [p for n in range(3) for p in stream(SLOW, random.Random(n), 12, probe=f"p{n}")]
    straight = [v.row() for v in judge(pairs)]
    random.Random(9).shuffle(pairs)
    assert [v.row() for v in judge(pairs)] == straight


def test_unknown_operators_stay_apart_by_number():
    found = Ledger()
    for asn in (64500, 64501):
        for pair in stream(
            SLOW, random.Random(asn), 12, probe=f"p{asn}", cell=CellKey("unknown", asn, "x", "down", "fixed")
        ):
            found.put(pair)
    assert len(found.cells()) == 2
    assert sorted(found.operator_order().values()) == [1, 2]

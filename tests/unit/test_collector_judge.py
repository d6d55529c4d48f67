# SPDX-License-Identifier: EUPL-1.2
"""Judging is a function of what is stored: not of the order of arrival, nor of how often it is done."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.rules import EFFECTS, digest_of_inputs
from collector.config import OperatorEntry
from collector.judge import Judge
from collector.rehearsal import Truth
from probe.wire.envelope import read_payload, seal
from probe.wire.records import Environment, Origin

_spec = importlib.util.spec_from_file_location("collector_town", Path(__file__).with_name("collector_town.py"))
assert _spec is not None
assert _spec.loader is not None
town_of = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(town_of)
HOUR, SINKS, START, Town, caught = town_of.HOUR, town_of.SINKS, town_of.START, town_of.Town, town_of.caught


def unlabelled(everything):
    """The same without labels and cases, which remember when they were drawn and found."""
    cells, _, operators = everything
    return {
        key: (
            dataclasses.replace(view, case=None),
            [dataclasses.replace(pair, probe="p1", network="n1") for pair in pairs],
            by_pair,
            by_hour,
        )
        for key, (view, pairs, by_pair, by_hour) in cells.items()
    }, operators


@pytest.fixture
def town(tmp_path):
    with Town(tmp_path) as found:
        yield found


def test_a_throttled_app_becomes_a_case_with_its_story(town):
    sent = [envelope.digest for envelope in caught(town)]
    cell = town.cell()
    assert cell.state == "corroborated"
    assert cell.slowdown.low < 0.5 < cell.slowdown.high
    assert (cell.pairs, cell.lost_pairs, cell.probes, cell.slowed) == (30, 0, 3, 3)
    assert cell.app_mbps.estimate == pytest.approx(5, rel=0.1)
    assert cell.neutral_mbps.estimate == pytest.approx(10, rel=0.1)
    (case,) = town.store.cases()
    assert case.id == cell.case
    assert case.status == "open"
    assert case.onset_day == "2026-09-21"
    assert [event.what for event in case.history] == ["opened"]
    assert case.history[0].rule.startswith("evenlane-pairs@")
    assert case.history[0].inputs == digest_of_inputs(sent)
    assert cell.log10_e >= case.threshold_log10_e
    detail = town.store.case(case.id)
    assert detail.evidence_by_pair[-1].log10_e == pytest.approx(cell.log10_e, abs=1e-5)
    assert detail.evidence_by_hour[-1].state == "corroborated"
    assert [pair.sequence for pair in detail.pairs] == list(range(1, 31))


def test_an_even_lane_accuses_nobody(town):
    caught(town, slowdown=0.0, pairs=20)
    assert {cell.state for cell in town.store.cells()} <= {"no_indication", "inconclusive"}
    assert town.store.cases() == []


def test_a_blocked_app_becomes_a_case_of_blocking_alone(town):
    for who in range(3):
        town.send(*town.session(who, pairs=12, truth=Truth(blocks=True)).all)
    town.run()
    states = {effect: town.cell(effect=effect).state for effect in ("slowing", "blocking", "prioritising")}
    assert states == {"slowing": "not_testable", "blocking": "corroborated", "prioritising": "not_testable"}
    assert town.cell(effect="blocking").failed_app == 36


@pytest.mark.parametrize("missing", ["measurement", "receipt", "both"])
def test_a_started_pair_counts_as_lost_until_both_halves_are_there(town, missing):
    told = town.session(0)
    halves = {"measurement": [told.receipt], "receipt": [told.measurement], "both": []}[missing]
    town.send(*told.started, *halves)
    town.run()
    assert (town.cell().pairs, town.cell().lost_pairs) == (0, 8)
    town.send(*(e for e in (told.receipt, told.measurement) if e not in halves))
    town.run()
    assert (town.cell().pairs, town.cell().lost_pairs) == (8, 0)


def test_a_started_pair_that_contradicts_its_receipt_is_lost_and_forgotten_by_the_midpoint(town):
    told = town.session(0, pairs=12, truth=Truth(noise=0.5))
    town.send(told.receipt, told.measurement)
    town.run()
    assert town.cell().lost_pairs == 0
    other = dataclasses.replace(read_payload(told.started[2].payload), commit="0" * 64)
    town.send(seal(other, town.reflector))
    town.run()
    assert town.cell().lost_pairs == 1
    stored = town.states()
    town.rejudge()
    assert town.states() == stored


def test_a_lost_pair_speaks_against_every_effect(town):
    caught(town)
    before = town.cell()
    town.send(*town.session(0, at_ms=START + HOUR, pairs=4).started)
    town.run()
    assert town.cell().log10_e < before.log10_e
    assert town.cell(effect="prioritising").log10_e < 0


def test_what_comes_a_day_late_stays_lost(town):
    told = town.session(0)
    town.send(*told.started, told.receipt)
    # The first of the pairs started more than 24 hours before, the others less.
    town.send(told.measurement, now_ms=START + 24 * HOUR + 1)
    town.run()
    assert (town.cell().pairs, town.cell().lost_pairs) == (7, 1)
    everything = town.everything()
    town.rejudge()
    assert town.everything() == everything


def test_fewer_than_three_probes_show_how_many_and_nothing_else(tmp_path):
    with Town(tmp_path, probes=2, **SINKS) as town:
        caught(town)
        cell = town.cell()
        assert (cell.state, cell.reasons, cell.probes, cell.pairs) == ("insufficient", ("fewer_than_3_probes",), 2, 20)
        assert cell.slowdown is None
        assert cell.app_mbps is None
        assert (cell.log10_e, cell.e_value, cell.slowed, cell.clear, cell.undecided) == (0, 1, 0, 0, 0)
        detail = town.detail()
        assert (detail.pairs, detail.evidence_by_pair, detail.evidence_by_hour) == ((), (), ())
        assert town.store.outbox_size() == 0


def test_probes_that_share_a_network_are_one(tmp_path):
    with Town(tmp_path, probes=4) as town:
        town.origins[3] = town.origins[2] = town.origins[1]
        caught(town)
        assert town.cell().state != "corroborated"
        assert len({pair.network for pair in town.detail().pairs}) == 2
        assert len({pair.probe for pair in town.detail().pairs}) == 4


def test_two_networks_that_turn_out_to_be_one_were_never_two(town):
    caught(town)
    assert town.cell().state == "corroborated"
    first = town.store.cases()[0]
    labels = {pair.network for pair in town.detail().pairs}
    # Elsewhere, on another app, the first probe is seen in the second one's network.
    town.send(*town.session(0, at_ms=START + HOUR, app="signal", origin=town.origins[1]).all)
    town.run()
    assert town.cell().state != "corroborated"
    left = {pair.network for pair in town.detail().pairs}
    assert len(left) == 2
    assert left < labels
    (case,) = town.store.cases()
    assert case.id == first.id
    assert (case.status, case.supported) == ("open", False)
    assert [event.what for event in case.history] == ["opened", "no_longer_supported"]
    assert case.history[1].reason
    everything = town.everything()
    town.rejudge()
    assert town.everything() == everything


def test_labels_are_constant_in_a_cell_and_tell_nothing_between_cells(town):
    caught(town)
    before = {pair.probe for pair in town.detail().pairs}
    for who in range(3):
        town.send(*town.session(who, at_ms=START + HOUR).all, *town.session(who, at_ms=START + HOUR, app="signal").all)
    town.run()
    assert {pair.probe for pair in town.detail().pairs} == before
    assert len(before) == 3
    assert before.isdisjoint({pair.probe for pair in town.detail("signal").pairs})
    keys = {probe.key_id for probe in town.probes}
    assert not any(key in repr(town.everything()) for key in keys)
    assert not any(origin.network in repr(town.everything()) for origin in town.origins)


def test_a_network_keeps_its_label_when_it_grows_elsewhere(tmp_path):
    with Town(tmp_path, probes=4) as town:
        # Networks are named by their first probe: let the newcomer be the first of all.
        town.probes.sort(key=lambda probe: probe.key_id, reverse=True)
        for who in range(3):
            town.send(*town.session(who).all)
        town.run()
        before = {(pair.sequence, pair.probe, pair.network) for pair in town.detail().pairs}
        town.send(*town.session(3, app="signal", origin=town.origins[1]).all)
        town.run()
        assert {(pair.sequence, pair.probe, pair.network) for pair in town.detail().pairs} == before


def test_placebo_pairs_are_counted_and_published_but_bet_nothing(town):
    for who in range(3):
        town.send(*town.session(who, pairs=10, placebo=4, truth=Truth(slowdown=0.5)).all)
    town.run()
    assert (town.cell().pairs, town.cell().placebo_pairs) == (18, 12)
    kinds = [pair.kind for pair in town.detail().pairs]
    assert kinds.count("placebo") == 12


def test_a_declared_hotspot_has_its_own_cell_and_a_late_claim_moves_nothing(town):
    told = town.session(0, hotspot=True)
    town.send(*told.all)
    late = town.session(1, environment=Environment(hotspot=True))
    town.send(*late.all)
    town.run()
    assert {access for _, _, access, _ in town.cells()} == {"hotspot", "fixed"}
    assert (town.cell(access="hotspot").pairs, town.cell().pairs) == (8, 8)


def test_neutral_names_that_are_not_neutral_hold_every_case_of_the_line_back(town):
    for who in range(3):
        town.send(*town.session(who, pairs=10, truth=Truth(slowdown=0.5)).all)
    town.run()
    assert town.cell().state == "corroborated"
    # Placebo pairs of another app: they speak of the names, so they count for the whole line.
    truth = Truth(placebo_slowdown=0.5)
    states = []
    for again in range(6):
        for who in range(3):
            at_ms = START + (again + 1) * 100_000
            town.send(*town.session(who, at_ms=at_ms, app="signal", pairs=4, placebo=3, truth=truth).all)
        town.run()
        states.append(town.cell().state)
    # One home's placebo pairs are no alarm, however strong; those of the others are, once they are enough.
    assert states == sorted(states)
    assert states[0] == "corroborated"
    assert town.cell().state == "replicated"
    assert "placebo_alarm" in town.cell().reasons
    assert town.store.cases()[0].history[-1].reason == "placebo_alarm"


def test_a_late_upload_rewrites_the_hours_it_belongs_to(town):
    late = town.session(0, at_ms=START, pairs=10, truth=Truth(slowdown=0.5))
    town.send(*late.started, late.receipt)
    for hour in range(3):
        for who in (0, 1, 2):
            town.send(
                *town.session(who, at_ms=START + hour * HOUR + 100_000 * (who + 1), truth=Truth(slowdown=0.5)).all
            )
        town.run()
    before = [point.log10_e for point in town.detail().evidence_by_hour]
    town.send(late.measurement)
    town.run()
    after = town.detail().evidence_by_hour
    assert [point.bucket_ms for point in after] == [START, START + HOUR, START + 2 * HOUR]
    assert all(new.log10_e > old for new, old in zip(after, before, strict=True))
    assert after[0].pairs == 34


def test_the_outbox_holds_one_point_an_hour(tmp_path):
    with Town(tmp_path, **SINKS) as town:
        caught(town)
        town.send(*town.session(0, at_ms=START + 600_000, truth=Truth(slowdown=0.5)).all)
        town.run()
        rows = town.store.outbox_take(100)
        points = [row.body for row in rows if row.kind == "point"]
        assert sorted(point.cell.key.effect for point in points) == sorted(EFFECTS)
        assert {point.point.bucket_ms for point in points} == {START}
        assert {point.cell.pairs for point in points} == {38}
        # The case is open; nobody is woken before the detector has seen enough (test_collector_cases.py).
        assert [row.body for row in rows if row.kind == "case"] == []
        town.store.outbox_done([row.id for row in rows])
        assert town.store.outbox_take(100) == []


def test_a_sink_that_is_added_later_gets_the_hours_before(tmp_path):
    with Town(tmp_path) as town:
        caught(town)
        assert town.store.outbox_size() == 0
        town.judge = Judge(dataclasses.replace(town.config, influx=SINKS["influx"]))
        town.run()
        assert town.store.outbox_size() == len(EFFECTS)
        assert {row.body.point.bucket_ms for row in town.store.outbox_take(9)} == {START}


def test_a_changed_register_judges_everything_again_and_keeps_places(town):
    caught(town)
    entries = (OperatorEntry(id="example", brand="Example", asns=(64500,), country="BE"),)
    town.judge = Judge(dataclasses.replace(town.config, operators=entries))
    town.run()
    assert {cell.key.operator for cell in town.store.cells() if cell.pairs} == {"example"}
    assert [(o.id, o.place, o.asns, o.timezone) for o in town.store.operators()] == [
        ("Example Net", 1, (), "Europe/Amsterdam"),
        ("example", 2, (64500,), "Europe/Brussels"),
    ]


def test_a_case_ends_when_its_witnesses_see_the_end(town):
    caught(town)
    (case,) = town.store.cases()
    town.now = START + 30 * 24 * HOUR
    for day in range(1, 12):
        for who in range(3):
            town.send(
                *town.session(who, at_ms=START + day * 24 * HOUR, pairs=10).all, now_ms=START + day * 24 * HOUR + 60_000
            )
    town.run()
    (ended,) = town.store.cases()
    assert ended.id == case.id
    assert ended.status == "ended"
    assert ended.ended_ms == town.now
    assert [event.what for event in ended.history][-1] == "ended"
    assert town.cell().state != "corroborated"
    everything = town.everything()
    town.rejudge()
    assert town.everything() == everything


def mixed(town):
    """Records of every kind: throttled, even, blocked, lost, placebo, at hotspots, across hours and networks."""
    sessions = []
    for hour in range(3):
        for who in range(4):
            truth = Truth(slowdown=0.4, noise=0.2)
            at_ms = START + hour * HOUR + town.rng.randrange(HOUR)
            sessions.append(town.session(who, at_ms=at_ms, pairs=5, placebo=1, unfinished=hour % 2, truth=truth))
            if who % 2:
                sessions.append(
                    town.session(who, at_ms=at_ms + 30_000, pairs=4, app="signal", truth=Truth(blocks=True))
                )
    elsewhere = dataclasses.replace(town.origins[0], network="f" * 32)
    sessions.append(town.session(3, pairs=3, origin=elsewhere, hotspot=True))
    sessions.append(town.session(2, pairs=3, origin=elsewhere))
    # One started pair contradicts its receipt; one was started from another operator's line than the data came from.
    false = [sessions[0].started[1], sessions[3].started[2]]
    contradicting = dataclasses.replace(read_payload(false[0].payload), commit="0" * 64)
    elsewhere = dataclasses.replace(read_payload(false[1].payload), origin=Origin(asn=64999, network="e" * 32))
    withheld = {sessions[1].measurement, sessions[4].receipt, *false}
    envelopes = [envelope for told in sessions for envelope in told.all if envelope not in withheld]
    return [*envelopes, seal(contradicting, town.reflector), seal(elsewhere, town.reflector)]


OPERATORS = (OperatorEntry(id="Example Net", asns=(64500,), country="NL"), OperatorEntry(id="Other", asns=(64999,)))


def arrive(tmp_path_factory, data):
    """The same records in another order, judged in other portions, give the same cells, pairs and hours."""
    found = []
    for _ in range(2):
        with Town(tmp_path_factory.mktemp("store"), probes=4, seed=7, operators=OPERATORS) as town:
            envelopes = mixed(town)
            data.draw(st.randoms(use_true_random=False)).shuffle(envelopes)
            while envelopes:
                portion = data.draw(st.integers(1, 60))
                town.send(*envelopes[:portion])
                del envelopes[:portion]
                town.run(most=data.draw(st.integers(1, 30)))
            judged = town.everything()
            town.rejudge()
            assert town.everything() == judged
            # A judge that has forgotten everything (a restart) reads the same from the store.
            town.judge = Judge(town.config)
            town.rejudge()
            assert town.everything() == judged
            found.append(unlabelled(judged))
    assert found[0] == found[1]


@settings(max_examples=4)
@given(data=st.data())
def test_neither_the_order_of_arrival_nor_judging_again_changes_anything(tmp_path_factory, data):
    arrive(tmp_path_factory, data)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=100)
@given(data=st.data())
def test_neither_the_order_of_arrival_nor_judging_again_changes_anything_at_length(tmp_path_factory, data):
    arrive(tmp_path_factory, data)

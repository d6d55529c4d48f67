# SPDX-License-Identifier: EUPL-1.2
"""What may not be claimed, and why: each flag in the situation in which leaving it out would mislead.

Flags are said of a pair as a whole, so they may cap a claim but remove no pair and know no label.
"""

import random
from dataclasses import replace
from datetime import UTC
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.cells import assess
from analysis.gates import DISQUALIFYING, Reason, unfit
from analysis.judge import Ledger
from analysis.match import Session, pairs_of
from analysis.pairs import Flag, OrderHistory, score
from analysis.probes import ProbeState, summarise
from analysis.rules import EFFECTS, RULES, VERSION_1
from analysis.simulate import CELL, Line, Queue, queue_stream, stream
from analysis.synthetic import session_records
from analysis.verdict import _EXPLAINED, paragraphs
from probe.wire.records import Environment, MeasuredPair, Origin
from probe.wire.signing import SeedSigner

SLOW = Line(slowdown=0.5, noise=0.1)
EVEN = Line(noise=0.1)
FLAGS = get_args(Flag)


def ledger(lines, *flags, count=14, share=1.0, probes=None, rules=RULES):
    """Probes with these flags on a share of their pairs (only on the first `probes` of them where given)."""
    found = Ledger(zones=lambda _: UTC, rules=rules)
    for number, line in enumerate(lines):
        make = queue_stream if isinstance(line, Queue) else stream
        for index, pair in enumerate(make(line, random.Random(f"w/{number}"), count, probe=f"p{number}")):
            marked = index < share * count and (probes is None or number < probes)
            found.put(replace(pair, flags=frozenset(flags)) if marked else pair)
    return found


def verdict(found, effect="slowing"):
    return next(a for a in found.assessments() if a.effect == effect)


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("household_traffic", "busy_lines"),
        ("short_of_cpu", "busy_lines"),
        ("queue_limited", "busy_lines"),
        ("saturated", "reflector_saturated"),
        ("path_changed", "path_changed"),
    ],
)
def test_what_hides_a_throttle_forbids_to_say_that_there_is_none(flag, reason):
    assert verdict(ledger([EVEN] * 3)).base == "no_indication"
    held = verdict(ledger([EVEN] * 3, flag))
    assert held.base == "inconclusive"
    assert reason in held.reasons
    assert held.prevalence.clear == (3 if reason == "busy_lines" else 0)
    assert held.pairs == 42  # none is removed
    assert verdict(ledger([EVEN] * 3, flag, share=0.4)).base == "no_indication"


@pytest.mark.parametrize("flag", ["household_traffic", "short_of_cpu", "queue_limited"])
def test_what_only_blurs_keeps_nobody_from_being_seen(flag):
    """Both segments alike: it can hide a difference but make none."""
    assert verdict(ledger([SLOW] * 3, flag)).gates == ()


@pytest.mark.parametrize("flag", ["saturated", "path_changed"])
def test_a_case_needs_most_witnesses_free_of_what_accuses_another(flag):
    """Data over a second uplink accuse the wrong operator; a full reflector is everybody's bottleneck at once."""
    reason = {"saturated": "reflector_saturated", "path_changed": "path_changed"}[flag]
    assert reason in verdict(ledger([SLOW] * 3, flag)).gates
    assert reason in verdict(ledger([SLOW] * 3, flag, probes=2)).gates
    assert verdict(ledger([SLOW] * 3, flag, probes=1)).gates == ()
    assert verdict(ledger([SLOW] * 3, flag, share=0.4)).gates == ()
    held = verdict(ledger([SLOW] * 3, flag))
    assert held.strength == verdict(ledger([SLOW] * 3)).strength  # caps the claim, not the evidence


def test_the_witness_at_the_edge_must_itself_be_fit():
    """Two homes behind their own routers and one at the edge, whose data took another way: no edge witness."""
    found = Ledger(zones=lambda _: UTC)
    for number in range(3):
        for pair in stream(SLOW, random.Random(number), 14, probe=f"p{number}"):
            edge = number == 0
            found.put(replace(pair, edge=edge, flags=frozenset({"path_changed"} if edge else ())))
    assert verdict(found).gates == ("path_changed",)


@pytest.mark.parametrize("line", [Line(blocked=1.0), Line(altered=1.0)], ids=["blocking", "tampering"])
def test_a_captive_portal_is_no_operator_that_blocks_or_tampers(line):
    """It lets some names pass and answers others itself; rates behind it are as good as elsewhere."""
    effect = "blocking" if line.blocked else "tampering"
    assert verdict(ledger([line] * 3), effect).gates == ()
    assert "captive_portal" in verdict(ledger([line] * 3, "captive_portal"), effect).gates
    assert verdict(ledger([SLOW] * 3, "captive_portal")).gates == ()
    quiet = ledger([EVEN] * 3, "captive_portal")
    assert (verdict(quiet, effect).base, verdict(quiet, effect).reasons) == ("inconclusive", ("captive_portal",))
    assert verdict(quiet).base == "no_indication"


@pytest.mark.parametrize("flag", ["vpn", "filters", "sqm", "data_cap"])
def test_what_the_household_does_itself_is_named(flag):
    held = verdict(ledger([SLOW] * 3, flag))
    assert held.gates == ("no_edge_probe", "shaped_at_home")
    assert verdict(ledger([SLOW] * 3, flag, probes=2)).gates == ()
    router = Ledger(zones=lambda _: UTC)
    for number in range(3):
        for pair in stream(SLOW, random.Random(number), 14, probe=f"p{number}"):
            router.put(replace(pair, edge=False))
    assert verdict(router).gates == ("no_edge_probe",)


def test_concurrent_pairs_without_a_queue_test_nothing():
    held = verdict(ledger([Queue(idle=1.0)] * 3))
    assert (held.base, held.reasons) == ("not_testable", ("not_queued",))
    assert (held.delay.estimate, held.loss.estimate, held.detectable.delay_ms) == (None, None, None)
    # A treatment that acts on a queue cannot show where there is none; pairs that met one still tell.
    some = verdict(ledger([Queue(delay_ms=40, idle=0.5)] * 3, count=40))
    assert some.base == "replicated"
    assert verdict(ledger([Line(blocked=1.0)] * 3)).reasons == ("no_rates",)


def test_version_1_knew_none_of_these():
    for flag in ("saturated", "path_changed", "captive_portal"):
        assert verdict(ledger([SLOW] * 3, flag, rules=VERSION_1)).gates == ()
    assert verdict(ledger([EVEN] * 3, "queue_limited", rules=VERSION_1)).base == "no_indication"
    assert verdict(ledger([SLOW] * 3, "vpn", rules=VERSION_1)).gates == ("no_edge_probe",)


def test_every_reason_is_explained_in_words():
    assert set(_EXPLAINED) == set(get_args(Reason))
    text = paragraphs(ledger([SLOW] * 3, "path_changed").verdicts())[0]
    assert "took another network" in text


# -- labels ------------------------------------------------------------------------------------------------------

FIGURE = st.one_of(st.none(), st.floats(0, 500))
SHARE = st.one_of(st.none(), st.floats(0, 1))


@st.composite
def pairs(draw):
    make = draw(st.sampled_from([stream, queue_stream]))
    line = Line() if make is stream else Queue()
    one = next(iter(make(line, random.Random(draw(st.integers(0, 99))), 1)))
    changes = {"first_delay_ms": FIGURE, "second_delay_ms": FIGURE, "first_loss": SHARE, "second_loss": SHARE}
    if one.design == "sequential":
        changes = {"first_mbps": FIGURE, "second_mbps": FIGURE}
    for name in ("first_failed", "second_failed", "first_altered", "second_altered", "lost", "queued"):
        changes[name] = st.booleans()
    values = {name: draw(strategy) for name, strategy in changes.items()}
    flags = frozenset(draw(st.sets(st.sampled_from(FLAGS))))
    return replace(one, **values, flags=flags, edge=draw(st.sampled_from([True, False, None])))


@given(st.lists(pairs(), min_size=1, max_size=8))
def test_swapping_the_arms_turns_every_score_and_no_gate(found):
    """Exchange the labels of every pair: bets change sides, and nothing that a gate can see does."""
    states = ProbeState(), ProbeState()
    for rules in (RULES, VERSION_1):
        for number, drawn in enumerate(found):
            one = replace(drawn, session=f"s{number}")
            ours, theirs = (
                score(OrderHistory(rules), one, rules=rules),
                score(OrderHistory(rules), one.swapped(), rules=rules),
            )
            for name in ("y", "delay_ms", "loss", "failure", "altered"):
                value = getattr(ours, name)
                assert getattr(theirs, name) == (None if value is None else -value)
            same = ("day", "stratum", "lost", "void", "design", "touched", "midpoint")
            assert [getattr(ours, name) for name in same] == [getattr(theirs, name) for name in same]
            states[0].add(one, ours, rules)
            states[1].add(one.swapped(), theirs, rules)
    assert states[0].tally == states[1].tally
    assert (states[0].paces, states[0].networks) == (states[1].paces, states[1].networks)
    probes = [summarise("p1", state) for state in states]
    for effect in EFFECTS:
        assert unfit(probes[0], effect) == unfit(probes[1], effect)
    assert [probes[0].at_edge, probes[0].shaped_at_home] == [probes[1].at_edge, probes[1].shaped_at_home]
    kinds = [assess(CELL, "slowing", [p]) for p in probes]
    assert [(k.pairs, k.lost, k.detectable) for k in kinds[:1]] == [(k.pairs, k.lost, k.detectable) for k in kinds[1:]]


@given(pairs(), st.booleans())
def test_records_with_swapped_labels_are_the_swapped_pair(one, told):
    """From receipt and measurement: slot by slot the same, whichever arm had it; only the coin's side differs."""
    one = replace(one, lost=False, first_failed=False, second_failed=False)
    one = replace(one, first_mbps=one.first_mbps or 1.0, second_mbps=one.second_mbps or 1.0)
    read = []
    for pair in (one, one.swapped()):
        signer, rng = SeedSigner(b"p" * 32), random.Random(5)
        records = session_records(
            [pair], probe=signer.key_id, reflector="r", rng=rng, origin=Origin(), environment=Environment(sqm=told)
        )
        (measured,) = records.measurement.pairs
        marked = replace(
            measured,
            captive=told,
            queue_limited=told,
            segments=tuple(replace(s, altered=told and slot == 1) for slot, s in enumerate(measured.segments)),
        )
        assert isinstance(marked, MeasuredPair)
        measurement = replace(records.measurement, pairs=(marked,))
        read += pairs_of(Session(receipt=records.receipt, measurement=measurement, started=records.started))
    assert read[0] == replace(read[1].swapped(), session=read[0].session)
    assert read[0].second_altered is (told or one.second_altered)
    assert ("captive_portal" in read[0].flags, "queue_limited" in read[0].flags) == (told, told)


@pytest.mark.parametrize(
    ("hotspot", "portal", "flagged"),
    [
        (True, "captive", True),
        (True, "intercepted", True),
        (True, "open", False),
        (False, "captive", False),
        (False, "intercepted", False),
    ],
)
def test_a_door_that_was_not_open_sets_pairs_aside_at_hotspots_alone(hotspot, portal, flagged):
    """At home it would be a way out of every accusation: rewrite plain pages."""
    records = session_records(
        list(stream(EVEN, random.Random("door"), 1, probe="p0")),
        probe=SeedSigner(b"p" * 32).key_id,
        reflector="r",
        rng=random.Random(5),
        origin=Origin(),
        environment=Environment(hotspot=hotspot, portal=portal),
    )
    (read,) = pairs_of(Session(receipt=records.receipt, measurement=records.measurement, started=records.started))
    assert ("captive_portal" in read.flags) == flagged


def test_disqualifying_flags_are_flags_and_reasons():
    assert {flag for flag, _ in DISQUALIFYING.values()} <= set(FLAGS)
    assert set(DISQUALIFYING) <= set(get_args(Reason))

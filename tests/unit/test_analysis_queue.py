# SPDX-License-Identifier: EUPL-1.2
"""Concurrent pairs and changed bytes from signed records to verdicts; sizes with intervals that hold at every look."""

import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.effect import Share, share_interval
from analysis.judge import Ledger
from analysis.match import Session, pairs_of, queue_of
from analysis.pairs import OrderHistory, score
from analysis.probes import summarise
from analysis.rules import RULES
from analysis.simulate import CELL, Line, Queue, queue_stream, stream
from analysis.synthetic import session_records
from analysis.verdict import paragraphs
from evenlane.cli import main
from probe.wire.envelope import to_line
from probe.wire.records import MeasuredSegment, Origin, Segment
from probe.wire.signing import SeedSigner

REFLECTOR = SeedSigner(b"r" * 32)
QUIET = [20_000] * 50


def slot(*loaded_us, end="complete", quiet=QUIET):
    """A slot of one second: half of it without load, the other half with these round-trip times."""
    return Segment(arm="app", end=end, echo_us=(*quiet, *loaded_us))


@pytest.mark.parametrize(
    ("first", "second", "delays", "losses", "queued"),
    [
        ([30_000] * 50, [55_000] * 50, (30.0, 55.0), (0.0, 0.0), True),
        ([29_999] * 50, [21_000] * 50, (29.999, 21.0), (0.0, 0.0), False),
        ([30_000] * 50, [21_000] * 50, (30.0, 21.0), (0.0, 0.0), True),
        ([21_000] * 50, [21_000] * 48 + [-1] * 2, (21.0, 21.0), (0.0, 0.02), True),
        ([21_000] * 50, [-1] * 50, (21.0, None), (0.0, 0.5), True),
    ],
    ids=["both wait", "neither by 10 ms", "one by 10 ms", "one loses", "one is silent"],
)
def test_a_pair_is_queued_if_either_slot_waited_or_lost(first, second, delays, losses, queued):
    segments = (slot(*first), slot(*second))
    found = queue_of(segments, 1.0)
    assert (found.delays_ms, found.losses, found.queued) == (delays, losses, queued)
    turned = queue_of(segments[::-1], 1.0)
    assert (turned.delays_ms, turned.losses, turned.queued) == (delays[::-1], losses[::-1], queued)


def test_a_slot_that_failed_compares_nothing():
    found = queue_of((slot(*[80_000] * 50), slot(end="reset")), 1.0)
    assert (found.delays_ms, found.losses, found.queued) == ((None, None), (None, None), None)


def test_delays_and_losses_follow_the_slots_and_the_coin():
    (one,) = queue_stream(Queue(), random.Random(1), 1)
    one = replace(one, first_delay_ms=40.0, second_delay_ms=75.0, first_loss=0.0, second_loss=0.05, queued=True)
    for neutral_first, sign in ((True, 1), (False, -1)):
        found = score(OrderHistory(), replace(one, neutral_first=neutral_first))
        assert (found.delay_ms, found.loss, found.y) == (sign * 35.0, sign * 0.05, None)
    for changes in ({"queued": False}, {"queued": None}, {"first_failed": True}, {"lost": True}, {"second_loss": None}):
        found = score(OrderHistory(), replace(one, **changes))
        assert found.loss is None
        assert found.delay_ms is None or "second_loss" in changes
    clipped = score(OrderHistory(), replace(one, neutral_first=True, second_delay_ms=9000.0))
    assert clipped.delay_ms == RULES.delay_clip_ms


def session(number, pairs, *, altered=None):
    """One subscriber's session as lines of files."""
    signer, rng = SeedSigner(bytes([number + 1]) * 32), random.Random(number)
    origin = Origin(asn=64500, operator="Delayer", country="NL", network=f"{number + 1:032x}", edge=True)
    records = session_records(pairs, probe=signer.key_id, reflector=REFLECTOR.key_id, rng=rng, origin=origin)
    if altered:
        records = replace(records, measurement=altered(records.measurement))
    return records, records.sealed(signer, REFLECTOR)


def judged(tmp_path, capsys, lines, *, altered=None):
    """Rows by effect, of files with these subscribers."""
    for number, pairs in enumerate(lines):
        _, (receipt, measurement, started) = session(number, pairs, altered=altered)
        text = b"".join(map(to_line, [receipt, measurement, *started]))
        (tmp_path / f"{number}.jsonl").write_bytes(text)
    files = sorted(map(str, tmp_path.glob("*.jsonl")))
    assert main(["analysis", "verdict", *files, "--json"]) == 0
    rows = {row["effect"]: row for row in json.loads(capsys.readouterr().out)["cells"]}
    assert main(["analysis", "verdict", *files]) == 0
    return rows, " ".join(capsys.readouterr().out.split())


def test_a_delayed_app_is_slowing_in_milliseconds(tmp_path, capsys):
    lines = [list(queue_stream(Queue(delay_ms=35, lossy=0.0), random.Random(n), 14)) for n in range(3)]
    rows, text = judged(tmp_path, capsys, lines)
    row = rows["slowing"]
    assert (row["state"], row["pairs"], row["probes"]) == ("corroborated", 42, 3)
    assert row["delay_ms"]["low"] < 35 < row["delay_ms"]["high"]
    assert row["delay_ms"]["estimate"] == pytest.approx(35, abs=3)
    assert row["loss"] == {"estimate": 0.0, "low": -0.0005, "high": 0.0005}
    assert row["slowdown"] == {"estimate": None, "low": None, "high": None}
    assert row["detectable"] == {"rate_mbps": None, "burst_kb": None, "delay_ms": 10.0, "loss": 0.02}
    assert rows["prioritising"]["state"] == rows["blocking"]["state"] == "no_indication"
    assert "Corroborated: slower than the same traffic under a neutral name: under load it waits about 3" in text
    assert "Detectable here: 10 ms more delay or 2 points more loss behind a full queue." in text


def test_a_line_that_favours_the_app_is_prioritising(tmp_path, capsys):
    lines = [list(queue_stream(Queue(delay_ms=-60), random.Random(n), 14)) for n in range(3)]
    rows, text = judged(tmp_path, capsys, lines)
    assert rows["prioritising"]["state"] == "corroborated"
    assert rows["slowing"]["state"] == "no_indication"
    assert rows["prioritising"]["delay_ms"]["estimate"] == pytest.approx(-60, abs=4)
    assert "waits about 60 ms" in text or "waits about 59 ms" in text or "waits about 61 ms" in text
    assert "shorter" in text


def test_an_even_queue_is_no_indication_and_a_lossy_one_slowing(tmp_path, capsys):
    even = [list(queue_stream(Queue(), random.Random(n), 14)) for n in range(3)]
    assert judged(tmp_path, capsys, even)[0]["slowing"]["state"] == "no_indication"
    lossy = [list(queue_stream(Queue(loss=0.08, packets=400), random.Random(n), 16)) for n in range(3)]
    rows, text = judged(tmp_path, capsys, lossy)
    assert rows["slowing"]["state"] == "corroborated"
    assert rows["slowing"]["loss"]["estimate"] == pytest.approx(0.08, abs=0.015)
    assert "points (between" in text


def test_changed_bytes_are_told_by_reflector_or_probe(tmp_path, capsys):
    """Down the line only the probe can see them, up the line only the reflector."""
    changed = [list(stream(Line(altered=1.0, noise=0.05), random.Random(n), 12)) for n in range(3)]
    rows, text = judged(tmp_path, capsys, changed)
    assert rows["tampering"]["state"] == "corroborated"
    assert rows["tampering"]["share"] == {"estimate": 1.0, "low": pytest.approx(0.87, abs=0.02), "high": 1.0}
    assert rows["blocking"]["state"] == "inconclusive"
    assert rows["slowing"]["state"] == "no_indication"
    assert "changed under way where the same traffic under a neutral name is not, in about 100 %" in text

    def told(measurement):
        def marked(one: MeasuredSegment) -> MeasuredSegment:
            return replace(one, altered=one.arm == "app")

        pairs = (replace(p, segments=tuple(map(marked, p.segments))) for p in measurement.pairs)
        return replace(measurement, pairs=tuple(pairs))

    even = [list(stream(Line(noise=0.05), random.Random(n), 12)) for n in range(3)]
    assert judged(tmp_path, capsys, even)[0]["tampering"]["state"] == "no_indication"
    assert judged(tmp_path, capsys, even, altered=told)[0]["tampering"]["state"] == "corroborated"


def test_a_foreign_name_is_tampering_and_a_proxy_for_everything_is_not(tmp_path, capsys):
    (one,) = stream(Line(), random.Random(1), 1)
    records, _ = session(0, [one])
    pair = records.receipt.pairs[0]
    ends = tuple(replace(s, end="mismatch") if s.arm == "app" else s for s in pair.segments)
    receipt = replace(records.receipt, pairs=(replace(pair, segments=ends, outcome="one_failed"),))
    (found,) = pairs_of(Session(receipt=receipt, measurement=records.measurement, started=records.started))
    scored = score(OrderHistory(), found)
    assert (scored.altered, scored.failure, scored.y, scored.lost) == (1, 0, None, False)
    proxied = [list(stream(Line(altering=1.0, noise=0.05), random.Random(n), 14)) for n in range(3)]
    rows, _ = judged(tmp_path, capsys, proxied)
    assert rows["tampering"]["state"] == "inconclusive"
    assert rows["blocking"]["state"] == "inconclusive"


def test_a_started_concurrent_pair_without_receipt_loses_its_own_bets(tmp_path, capsys):
    lines = [list(queue_stream(Queue(delay_ms=35), random.Random(n), 14)) for n in range(3)]
    records, _ = session(0, lines[0])
    (first, *_) = pairs_of(Session(receipt=None, measurement=None, started=records.started))
    assert (first.design, first.lost, first.received) == ("concurrent", True, False)
    other = replace(records.receipt, pairs=tuple(replace(p, design="sequential") for p in records.receipt.pairs))
    found = list(pairs_of(Session(receipt=other, measurement=records.measurement, started=records.started)))
    assert all(p.lost for p in found)  # receipt and list of started pairs tell two designs


def test_a_changed_path_is_told_by_either_and_the_load_is_the_pairs_own_traffic():
    """The household's traffic is weighed against what the pair moved, and its load is most of that."""
    (one,) = queue_stream(Queue(), random.Random(1), 1)
    records, _ = session(0, [one])
    (seen,), (measured,) = records.receipt.pairs, records.measurement.pairs

    def flags(**changes):
        receipt = replace(records.receipt, pairs=(replace(seen, path_changed=changes.pop("witnessed", False)),))
        measurement = replace(records.measurement, pairs=(replace(measured, **changes),))
        (found,) = pairs_of(Session(receipt=receipt, measurement=measurement, started=records.started))
        return found.flags

    assert flags() == frozenset()
    assert flags(witnessed=True) == flags(path_changed=True) == {"path_changed"}
    assert seen.load_bytes == 6_000_000
    assert flags(household_kb=500) == frozenset()
    assert flags(household_kb=700) == {"household_traffic"}


# -- sizes -------------------------------------------------------------------------------------------------------


def test_shares_bound_what_they_should():
    assert share_interval(0, 0, 0) == Share(None, 0.0, 1.0)
    twelve = share_interval(12, 0, 0)
    assert (twelve.estimate, twelve.high) == (1.0, 1.0)
    half = share_interval(50, 50, 0)
    assert half.estimate == 0.5
    assert half.low == pytest.approx(1 - half.high)
    assert 0.3 < half.low < 0.37
    wider = share_interval(50, 50, 20)
    assert (wider.low < half.low, wider.high > half.high, wider.estimate) == (True, True, 0.5)
    assert share_interval(0, 0, 5).estimate is None


def test_clear_of_slowing_needs_an_even_delay_and_an_even_loss():
    def clear(queue):
        found = Ledger()
        for pair in queue_stream(queue, random.Random(3), 16):
            found.put(pair)
        return summarise("p1", found.states(CELL)["p1"]).clear

    assert clear(Queue())["slowing"]
    assert clear(Queue())["prioritising"]
    assert not clear(Queue(loss=0.05))["slowing"]
    assert not clear(Queue(delay_ms=25))["slowing"]
    assert clear(Queue(loss=0.05))["prioritising"]
    assert clear(Queue(delay_ms=25))["prioritising"]


def test_lost_pairs_widen_a_share_and_do_not_count_as_blocked():
    found = Ledger()
    for pair in stream(Line(noise=0.1), random.Random(1), 30):
        found.put(replace(pair, lost=pair.session in {"p1-3", "p1-9", "p1-20"}))
    blocking = next(a for a in found.assessments() if a.effect == "blocking")
    assert blocking.share == share_interval(0, 27, 3)
    assert (blocking.share.estimate, blocking.share.low) == (0.0, 0.0)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 10))
def test_a_share_lies_in_its_interval_whatever_was_lost(alone, others, lost):
    found = share_interval(alone, others, lost)
    for missing in {0, lost}:
        if alone + others + lost:
            true = (alone + missing) / (alone + others + lost)
            assert found.low <= true <= found.high


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_share_stays_inside_at_every_look(share):
    missed, runs = 0, 120
    for seed in range(runs):
        rng, alone, others = random.Random(f"share/{seed}"), 0, 0
        for _ in range(100):
            won = rng.random() < share
            alone, others = alone + won, others + (not won)
            found = share_interval(alone, others, 0)
            if not found.low <= share <= found.high:
                missed += 1
                break
    assert missed <= 0.05 * runs + 3 * math.sqrt(0.05 * 0.95 * runs)


def test_delay_and_loss_stay_inside_their_intervals():
    for seed in range(20):
        found = Ledger()
        for pair in queue_stream(Queue(delay_ms=30, loss=0.04, slot_ms=8), random.Random(seed), 60):
            found.put(pair)
        slowing = next(a for a in found.assessments() if a.effect == "slowing")
        assert slowing.delay.low <= 30 <= slowing.delay.high
        assert slowing.loss.low <= 0.04 <= slowing.loss.high
        assert slowing.delay.high - slowing.delay.low < 20
    assert "waits about" in paragraphs(found.verdicts())[0]
    assert found.states(CELL)["p1"].tally["queued"] == 60

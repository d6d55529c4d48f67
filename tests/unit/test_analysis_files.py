# SPDX-License-Identifier: EUPL-1.2
"""Judging files: the way from signed lines to verdicts, and every way in which lines can be wrong."""

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from analysis.match import Session, coin, is_sound, pairs_of
from analysis.simulate import CELL, Line, stream
from analysis.sources import SourceError, corpus, read_files
from analysis.synthetic import session_records
from evenlane.cli import main
from probe.wire.envelope import from_line, seal, to_json, to_line
from probe.wire.records import Environment, Origin
from probe.wire.signing import SeedSigner

SLOW = Line(slowdown=0.6, noise=0.05)
REFLECTOR = SeedSigner(b"r" * 32)
ORIGIN = Origin(asn=64500, operator="Throttler", country="NL", network="a" * 32, edge=True)


def session(number=0, line=SLOW, *, origin=ORIGIN, environment=None, hotspot=False, count=12, change=lambda p: p, at=0):
    """One subscriber's session as objects and sealed envelopes."""
    signer, rng = SeedSigner(bytes([number + 1]) * 32), random.Random(number + 1000 * at)
    origin = replace(origin, network=f"{number + 1:032x}")
    pairs = [change(p) for p in stream(line, rng, count, probe=signer.key_id, cell=CELL)]
    pairs = [replace(p, started_ms=p.started_ms + at * 3_600_000) for p in pairs]
    ends = {"probe": signer.key_id, "reflector": REFLECTOR.key_id}
    records = session_records(pairs, **ends, rng=rng, origin=origin, environment=environment, hotspot=hotspot)
    receipt, measurement, started = records.sealed(signer, REFLECTOR)
    return SimpleNamespace(signer=signer, records=records, receipt=receipt, measurement=measurement, started=started)


@pytest.fixture
def folder(tmp_path):
    """Three subscribers' files as probes and reflector write them."""
    return write(tmp_path, [session(number) for number in range(3)])


def write(path, sessions):
    for number, one in enumerate(sessions):
        (path / f"probe{number}.jsonl").write_bytes(to_line(one.measurement) + to_line(one.receipt))
    (path / "receipts.jsonl").write_bytes(b"".join(to_line(s.receipt) for s in sessions))
    (path / "started.jsonl").write_bytes(b"".join(to_line(e) for s in sessions for e in s.started))
    return path


def judged(capsys, *paths):
    """Rows by effect, and the whole object."""
    assert main(["analysis", "verdict", *map(str, paths), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    return {row["effect"]: row for row in whole["cells"]}, whole


def everything(folder):
    return sorted(folder.glob("*.jsonl"))


def test_three_probes_files_open_a_case(folder, capsys):
    rows, whole = judged(capsys, *everything(folder))
    assert list(rows) == ["blocking", "prioritising", "slowing", "tampering"]
    assert rows["slowing"] == {
        "operator": "Throttler",
        "asn": 64500,
        "app": "youtube",
        "direction": "down",
        "access": "fixed",
        "effect": "slowing",
        "state": "corroborated",
        "e_value": pytest.approx(1.5e8, rel=0.1),
        "slowdown": {
            "estimate": pytest.approx(0.6, abs=0.02),
            "low": pytest.approx(0.59, abs=0.03),
            "high": pytest.approx(0.61, abs=0.03),
        },
        "delay_ms": {"estimate": None, "low": None, "high": None},
        "loss": {"estimate": None, "low": None, "high": None},
        "share": None,
        "pairs": 36,
        "lost_pairs": 0,
        "probes": 3,
        "prevalence": {"slowed": 3, "clear": 0, "undecided": 0},
        "detectable": {
            "rate_mbps": pytest.approx(8.4, abs=0.3),
            "burst_kb": pytest.approx(225, abs=10),
            "delay_ms": None,
            "loss": None,
        },
        "reasons": [],
    }
    assert rows["blocking"]["state"] == "no_indication"
    assert rows["blocking"]["share"] == {"estimate": 0.0, "low": 0.0, "high": pytest.approx(0.13, abs=0.02)}
    assert whole["refused"] == {}
    assert any(REFLECTOR.key_id in note for note in whole["notes"])
    assert any("default" in note for note in whole["notes"])


def test_words_without_json(folder, capsys):
    assert main(["analysis", "verdict", *map(str, everything(folder))]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Throttler (AS64500), youtube, down, fixed: 36 pairs at 3 probes, 0 lost." in text
    assert "Corroborated: slower than the same traffic under a neutral name by about 60 %" in text


def test_repetition_and_order_of_files_change_nothing(folder, capsys):
    files = everything(folder)
    straight = judged(capsys, *files)[1]
    assert judged(capsys, *reversed(files), *files)[1] == straight
    assert judged(capsys, folder / "started.jsonl", *sorted(folder.glob("probe*")))[1] == straight


def test_one_probes_file_can_be_judged_alone(folder, capsys):
    rows, _ = judged(capsys, folder / "probe0.jsonl")
    assert (rows["slowing"]["state"], rows["slowing"]["lost_pairs"]) == ("indication", None)
    assert "fewer_than_3_probes" in rows["slowing"]["reasons"]
    assert "lost_unknown" in rows["slowing"]["reasons"]


def test_a_missing_measurement_is_lost_where_starts_are_known(folder, capsys):
    (folder / "probe1.jsonl").unlink()
    rows, whole = judged(capsys, *everything(folder))
    assert (rows["slowing"]["pairs"], rows["slowing"]["lost_pairs"]) == (24, 12)
    assert "fewer_than_3_probes" in rows["slowing"]["reasons"]
    assert rows["slowing"]["state"] != "corroborated"
    assert any("12 pairs have a receipt but not their probe's measurement" in note for note in whole["notes"])
    (folder / "started.jsonl").unlink()
    rows, _ = judged(capsys, *everything(folder))
    assert (rows["slowing"]["pairs"], rows["slowing"]["lost_pairs"]) == (36, None)


def test_started_pairs_without_receipt_are_lost(folder, capsys):
    rows, _ = judged(capsys, folder / "started.jsonl")
    assert (rows["slowing"]["pairs"], rows["slowing"]["lost_pairs"], rows["slowing"]["probes"]) == (0, 36, 0)
    assert rows["slowing"]["state"] == "insufficient"
    assert rows["slowing"]["e_value"] < 1


def test_a_pair_that_the_measurement_leaves_out_is_lost(folder, capsys):
    one = session(0)
    shorter = replace(one.records.measurement, pairs=one.records.measurement.pairs[:-1])
    (folder / "probe0.jsonl").write_bytes(to_line(seal(shorter, one.signer)))
    rows, _ = judged(capsys, *everything(folder))
    assert (rows["slowing"]["pairs"], rows["slowing"]["lost_pairs"]) == (35, 1)
    assert rows["slowing"]["state"] == "corroborated"


def test_a_bad_signature_is_refused_counted_and_judged_without(folder, capsys):
    one = session(0)
    forged = replace(one.receipt, signature=bytes(64))
    (folder / "receipts.jsonl").write_bytes(to_line(forged))
    rows, whole = judged(capsys, folder / "receipts.jsonl", folder / "probe1.jsonl")
    assert whole["refused"] == {"bad_signature": 1}
    assert rows["slowing"]["pairs"] == 12


def test_a_forged_copy_does_not_hide_the_true_record(folder, capsys):
    """The same payload under a bad signature first: the good one must still be read."""
    one = session(0)
    (folder / "a.jsonl").write_bytes(to_line(replace(one.receipt, signature=bytes(64))))
    rows, whole = judged(capsys, folder / "a.jsonl", *everything(folder))
    assert rows["slowing"]["pairs"] == 36
    assert whole["refused"]["bad_signature"] >= 1


def test_nobody_witnesses_for_himself(tmp_path, capsys):
    one = session(0)
    own = seal(one.records.receipt, one.signer)
    (tmp_path / "own.jsonl").write_bytes(to_line(own) + to_line(one.measurement))
    assert main(["analysis", "verdict", str(tmp_path / "own.jsonl")]) == 3
    assert "signed by its own probe" in capsys.readouterr().err


def test_another_probes_measurement_does_not_count(folder, capsys):
    stranger = seal(session(0).records.measurement, SeedSigner(b"x" * 32))
    (folder / "probe0.jsonl").write_bytes(to_line(stranger))
    rows, whole = judged(capsys, *everything(folder))
    assert rows["slowing"]["lost_pairs"] == 12
    assert whole["refused"] == {"measurement_of_another_probe": 1}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"hello\n", "line 2 is not a record"),
        (b"{}\n", "line 2 is not a record"),
        (b'{"type":"receipt"}\n', "line 2 is not a record"),
        (b"\xff\xfe\n", "line 2 is not a record"),
        (b"[" * 100 + b"\n", "line 2 is not a record"),
    ],
)
def test_what_is_no_record_is_named_by_file_and_line(folder, capsys, line, said):
    target = folder / "odd.jsonl"
    target.write_bytes(b"\n" + line)
    assert main(["analysis", "verdict", str(target)]) == 3
    error = capsys.readouterr().err
    assert f"{target}, {said}" in error
    assert len(error.splitlines()) == 1


def test_an_unknown_type_is_named(folder, capsys):
    payload = b'{"type":"weather","v":1}'
    envelope = replace(session(0).receipt, payload=payload, signature=REFLECTOR.sign(payload))
    (folder / "odd.jsonl").write_bytes(to_line(envelope))
    assert main(["analysis", "verdict", str(folder / "odd.jsonl")]) == 3
    assert "line 1 is neither a receipt, a measurement nor a started pair" in capsys.readouterr().err


def test_a_malformed_record_is_refused_by_its_reason(folder, capsys):
    payload = b'{"type":"receipt","v":1}'
    envelope = replace(session(0).receipt, payload=payload, signature=REFLECTOR.sign(payload))
    (folder / "odd.jsonl").write_bytes(to_line(envelope))
    assert judged(capsys, folder / "odd.jsonl", *everything(folder))[1]["refused"]["missing"] == 1


def test_a_line_cut_off_by_a_power_cut_is_set_aside(folder, capsys):
    started = folder / "started.jsonl"
    started.write_bytes(started.read_bytes() + to_line(session(7).started[0])[:200])
    rows, whole = judged(capsys, *everything(folder))
    assert whole["refused"] == {"cut_off_line": 1}
    assert rows["slowing"]["state"] == "corroborated"


def test_nothing_to_judge_is_said(tmp_path, capsys):
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"\n")
    assert main(["analysis", "verdict", str(empty)]) == 3
    assert "no pair to judge" in capsys.readouterr().err
    (tmp_path / "m.jsonl").write_bytes(to_line(session(0).measurement))
    assert main(["analysis", "verdict", str(tmp_path / "m.jsonl"), "--json"]) == 3
    assert "measurement without receipt" in capsys.readouterr().err
    assert main(["analysis", "verdict", str(tmp_path / "absent.jsonl")]) == 3
    assert "cannot read" in capsys.readouterr().err
    assert main(["analysis", "verdict", str(tmp_path)]) == 3
    assert "cannot read" in capsys.readouterr().err


def tampered(pair, **changes):
    return replace(pair, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": "unfinished"},
        {"neutral_first": None},
        {"probe_nonce": None},
        {"probe_nonce": "00" * 32},
        {"reflector_nonce": "11" * 32, "flip": True},
        {"segments": ()},
        {"swap": True},
    ],
)
def test_a_pair_that_does_not_hold_together_is_lost(folder, capsys, changes):
    one = session(0)
    changes = dict(changes)
    first = one.records.receipt.pairs[0]
    if changes.pop("flip", False):
        changes["neutral_first"] = not coin(
            bytes.fromhex(first.probe_nonce), b"\x11" * 32, bytes.fromhex(one.records.receipt.session), 1
        )
    if changes.pop("swap", False):
        changes["segments"] = first.segments[::-1]
    receipt = replace(one.records.receipt, pairs=(replace(first, **changes), *one.records.receipt.pairs[1:]))
    assert is_sound(one.records.receipt.session, first)
    assert not is_sound(receipt.session, receipt.pairs[0])
    (folder / "probe0.jsonl").write_bytes(to_line(one.measurement) + to_line(seal(receipt, REFLECTOR)))
    rows, _ = judged(capsys, *sorted(folder.glob("probe*")))
    assert rows["slowing"]["pairs"] == 35
    records = read_files([folder / "probe0.jsonl"])
    assert sum(p.lost for p in corpus(records).pairs) == 1


def test_a_receipt_that_disagrees_with_its_started_pair_is_lost(folder, capsys):
    one = session(0)
    other = replace(one.records.started[0], app="netflix")
    (folder / "started.jsonl").write_bytes(
        b"".join(to_line(seal(s, REFLECTOR)) for s in (other, *one.records.started[1:]))
    )
    rows, _ = judged(capsys, folder / "started.jsonl", folder / "probe0.jsonl")
    assert (rows["slowing"]["pairs"], rows["slowing"]["lost_pairs"]) == (11, 1)


def test_conflicting_receipts_are_settled_whatever_the_order(folder, capsys):
    one = session(0)
    earlier = replace(one.records.receipt, pairs=one.records.receipt.pairs[:5], ended_ms=one.records.receipt.started_ms)
    (folder / "early.jsonl").write_bytes(to_line(seal(earlier, REFLECTOR)))
    files = everything(folder)
    rows, whole = judged(capsys, *files)
    assert rows["slowing"]["pairs"] == 36
    assert whole["refused"] == {"conflicting_records": 1}
    assert judged(capsys, *reversed(files))[1] == whole


def test_an_operator_with_two_numbers_is_one_and_unknown_ones_are_several(tmp_path, capsys):
    two = [session(n, origin=replace(ORIGIN, asn=64500 + (n == 2))) for n in range(3)]
    rows, whole = judged(capsys, *everything(write(tmp_path, two)))
    assert len(whole["cells"]) == 4
    assert (rows["slowing"]["asn"], rows["slowing"]["probes"]) == (64500, 3)
    unnamed = [session(n, origin=replace(ORIGIN, operator=None, asn=64500 + n)) for n in range(2)]
    _, whole = judged(capsys, *everything(write(tmp_path, [*unnamed, session(5)])))
    assert sorted({(r["operator"], r["asn"]) for r in whole["cells"]}) == [
        ("Throttler", 64500),
        ("unknown", 64500),
        ("unknown", 64501),
    ]


def test_hotspots_are_declared_before_the_coin(tmp_path, capsys):
    hot = [session(n, hotspot=True) for n in range(3)]
    rows, _ = judged(capsys, *everything(write(tmp_path, hot)))
    assert (rows["slowing"]["access"], rows["slowing"]["state"]) == ("hotspot", "replicated")
    # What is said after the coin moves nothing: else a dishonest probe could move its losing pairs away.
    late = [session(n, environment=Environment(hotspot=True)) for n in range(3)]
    rows, _ = judged(capsys, *everything(write(tmp_path, late)))
    assert rows["slowing"]["access"] == "fixed"


def test_gates_come_from_the_measurement(tmp_path, capsys):
    tunnelled = [session(n, environment=Environment(vpn=True)) for n in range(3)]
    rows, _ = judged(capsys, *everything(write(tmp_path, tunnelled)))
    assert (rows["slowing"]["state"], rows["slowing"]["reasons"]) == ("replicated", ["no_edge_probe", "shaped_at_home"])


def test_placebo_pairs_stay_outside_the_evidence(tmp_path, capsys):
    mixed = [
        session(n, change=lambda p: replace(p, kind="placebo") if p.session.endswith("-3") else p) for n in range(3)
    ]
    rows, _ = judged(capsys, *everything(write(tmp_path, mixed)))
    assert rows["slowing"]["pairs"] == 33


def test_no_country_means_utc_and_says_so(tmp_path, capsys):
    rows, _ = judged(
        capsys, *everything(write(tmp_path, [session(n, origin=replace(ORIGIN, country=None)) for n in range(3)]))
    )
    assert rows["slowing"]["reasons"] == ["time_zone_unknown"]
    assert rows["slowing"]["state"] == "corroborated"


def test_other_nettests_and_plans_are_left_aside(folder, capsys):
    other = replace(session(9).records.receipt, nettest="ports")
    (folder / "ports.jsonl").write_bytes(to_line(seal(other, REFLECTOR)))
    rows, whole = judged(capsys, *everything(folder))
    assert whole["refused"] == {"other_nettest": 1}
    assert rows["slowing"]["pairs"] == 36


def test_a_blocked_app_is_blocking_and_nothing_else(tmp_path, capsys):
    blocked = [session(n, line=Line(blocked=1.0)) for n in range(3)]
    rows, _ = judged(capsys, *everything(write(tmp_path, blocked)))
    assert {effect: row["state"] for effect, row in rows.items()} == {
        "blocking": "corroborated",
        "slowing": "not_testable",
        "prioritising": "not_testable",
        "tampering": "not_testable",
    }
    assert rows["tampering"]["reasons"] == ["nothing_arrived"]
    assert rows["blocking"]["share"] == {"estimate": 1.0, "low": pytest.approx(0.87, abs=0.02), "high": 1.0}
    assert rows["blocking"]["slowdown"] == {"estimate": None, "low": None, "high": None}


def test_sessions_of_several_days_are_one_probe(tmp_path, capsys):
    days = [session(n, count=4, at=24 * day) for n in range(3) for day in range(3)]
    rows, _ = judged(capsys, *everything(write(tmp_path, days)))
    assert (rows["slowing"]["pairs"], rows["slowing"]["probes"]) == (36, 3)
    assert rows["slowing"]["state"] == "corroborated"


def test_rates_come_from_the_last_half():
    """A burst in the first half of the app's segment must not hide what follows."""
    receipt = session(0).records.receipt
    first = receipt.pairs[0]
    burst = replace(first.segments[0], bins_bytes=(10**6,) * 5 + (25_000,) * 5)
    burst_first = replace(receipt, pairs=(replace(first, segments=(burst, first.segments[1])),))
    (pair,) = pairs_of(Session(receipt=burst_first, measurement=None, needs_measurement=False))
    assert pair.first_mbps == pytest.approx(2.0)
    assert pair.ended_ms > pair.started_ms


def test_line_numbers_survive_bad_envelopes(folder):
    line = json.dumps({**to_json(from_line(to_line(session(0).receipt))), "sig": "short"}).encode()
    (folder / "x.jsonl").write_bytes(to_line(session(0).receipt) + line + b"\n")
    with pytest.raises(SourceError, match=r"x\.jsonl, line 2 is not a record"):
        read_files([folder / "x.jsonl"])


def test_who_sends_a_pair_through_another_operator_after_its_coin_has_lost_it_with_the_first(folder, capsys):
    one = session(0)
    moved = replace(one.records.receipt, origin=replace(one.records.receipt.origin, operator="elsewhere", asn=64510))
    (folder / "probe0.jsonl").write_bytes(to_line(one.measurement) + to_line(seal(moved, REFLECTOR)))
    pairs = corpus(read_files([folder / "probe0.jsonl", folder / "started.jsonl"])).pairs
    (mine,) = {p.cell for p in pairs if p.session == moved.session}
    assert mine.operator == one.records.started[0].origin.operator
    assert all(p.lost for p in pairs if p.session == moved.session)


def test_a_session_that_is_still_open_is_no_history_for_another():
    one = session(0)
    pairs = list(pairs_of(Session(receipt=one.records.receipt, measurement=None, started=())))
    assert {p.ended_ms for p in pairs} == {one.records.receipt.ended_ms}

# SPDX-License-Identifier: EUPL-1.2
"""Judging again: the same pairs by two rules, from published pairs and from signed records."""

import csv
import gzip
import io
import json
import math
import random
from dataclasses import replace
from datetime import UTC, date

import pytest

from analysis.archive import ArchiveError, lines
from analysis.compare import rows_of, same, side_by_side
from analysis.crew import counted
from analysis.editions import PUBLISHED, to_toml
from analysis.judge import Ledger
from analysis.opendata import Midpoints, Share, cell_of, pair_of, published
from analysis.pairs import OrderHistory, Pair
from analysis.rejudge import count, judge_published, verdicts
from analysis.rules import RULES, VERSION_1
from analysis.simulate import CELL, Line, stream
from analysis.synthetic import session_records
from analysis.synthetic_archive import line_of, records
from evenlane.cli import main
from probe.wire.envelope import to_line
from probe.wire.records import Origin, PairRecord
from probe.wire.signing import SeedSigner

BOTH = (PUBLISHED[2], PUBLISHED[1])
MANY = list(records(2000, random.Random(5), cells=4, probes=4, days=30))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    file = tmp_path_factory.mktemp("archive") / "pairs.jsonl"
    file.write_bytes(b"".join(map(line_of, MANY)))
    return file


def run(capsys, *argv):
    code = main(["analysis", "rejudge", *map(str, argv)])
    return code, capsys.readouterr()


def rows(judged, which=0):
    return [one.row() for one in judged.verdicts[which]]


# What is found


def test_counting_gives_what_the_ledger_gives(archive):
    """Pair by pair through the ledger, which keeps them all, with m from its own history."""
    judged = judge_published(counted([archive], BOTH, 1))
    for which, edition in enumerate(BOTH):
        ledger = Ledger(rules=edition.rules, zones=lambda cell: UTC)
        for number, record in enumerate(MANY):
            if record.lost:
                continue  # what its receipt told is not published: here its history is left out as well
            pair = pair_of(record, cell_of(record), edition.rules)
            ledger.put(replace(pair, started_ms=pair.started_ms + number, number=number + 1))
        found = {(v.assessment.cell, v.assessment.effect): v.assessment for v in ledger.verdicts()}
        for verdict in judged.verdicts[which]:
            a = verdict.assessment
            other = found[a.cell, a.effect]
            assert (a.pairs, a.probes) == (other.pairs, other.probes)
            assert a.detectable == other.detectable


def test_midpoints_are_computed_as_the_history_does():
    """Two ways to m, to the last digit: a window kept sorted, and medians of a list of all."""
    rng = random.Random(2)
    own, history = Midpoints(16), OrderHistory(replace(RULES, order_window=16))
    template = MANY[0]
    for number, pair in enumerate(stream(Line(noise=0.5, boost=0.2, failing=0.1), rng, 300), start=1):
        assert own.value() == history.midpoint(pair)
        record = replace(template, sequence=number, lost=False, app_end="complete", neutral_end="complete")
        own.add(pair, record, pair.log_ratio())
        history.add(pair)


def test_a_lost_pair_hides_its_part_of_the_history():
    own, record = Midpoints(3), replace(MANY[0], app_end="complete", neutral_end="complete")
    pair = Pair(cell=CELL, kind="test", probe="p1", session="s", number=1, started_ms=0, neutral_first=True)
    assert own.value() == 0.0
    own.add(replace(pair, lost=True), replace(record, lost=True, app_end="reset"), None)
    assert own.value() == 0.0  # it failed: its receipt had no ratio to tell
    own.add(replace(pair, lost=True), replace(record, lost=True), None)
    for _ in range(3):
        assert own.value() is None
        own.add(pair, record, 0.1)
    assert own.value() == 0.0


def test_published_midpoints_are_checked_and_used(archive, tmp_path):
    whole = counted([archive], BOTH[:1], 1).checked
    assert (whole.different, whole.missing, whole.first) == (0, 0, None)
    assert whole.same > 200
    assert whole.unknown > 200
    forged = tmp_path / "forged.jsonl"
    changed = [replace(r, midpoint=-0.5) if r.midpoint is not None and r.sequence == 30 else r for r in MANY]
    number = next(i for i, (a, b) in enumerate(zip(MANY, changed, strict=True), start=1) if a != b)
    forged.write_bytes(b"".join(map(line_of, changed)))
    tally = counted([forged], BOTH[:1], 1)
    assert tally.checked.first == (0, number)
    assert 1 <= tally.checked.different <= 4
    assert any(f"first: file 1, line {number}" in note for note in judge_published(tally).notes)
    without = [replace(r, midpoint=None) for r in MANY]
    forged.write_bytes(b"".join(map(line_of, without)))
    assert counted([forged], BOTH[:1], 1).checked.missing > 1000


def test_an_export_that_begins_in_the_middle_of_a_cell_is_checked_only_where_that_cannot_matter(tmp_path):
    made = list(records(2000, random.Random(4), cells=1, probes=1, days=9))
    file = tmp_path / "later.jsonl"
    file.write_bytes(b"".join(map(line_of, (replace(r, lost=False) for r in made[500:]))))
    checked = counted([file], BOTH[:1], 1).checked
    assert checked.unknown >= RULES.order_window


def test_any_number_of_processes_finds_the_same(archive, tmp_path, capsys):
    told = []
    for workers in (1, 3):
        out = tmp_path / f"{workers}.json"
        code, _ = run(capsys, archive, "--workers", workers, "--out", out)
        assert code == 1
        told.append(out.read_bytes())
    assert told[0] == told[1]


def test_two_rules_at_once_are_each_as_alone(archive):
    together = judge_published(counted([archive], BOTH, 1))
    for which, edition in enumerate(BOTH):
        assert rows(together, which) == rows(judge_published(counted([archive], [edition], 1)))
    effects = {row["effect"] for row in rows(together, 1)}
    assert effects == set(VERSION_1.effects) != set(RULES.effects)


def test_pairs_from_before_the_rule_are_marked(tmp_path, capsys, archive):
    later = replace(RULES, id="later", version=3, published="2026-09-20")
    rule = tmp_path / "later.toml"
    rule.write_text(to_toml(later))
    code, out = run(capsys, archive, "--rule", rule, "--against", 2, "--json")
    told = json.loads(out.out)
    assert code == 0, told["cells"]
    early = sum(r.day < "2026-09-20" and r.kind == "test" for r in MANY)
    assert sum(row["retrospective_pairs"] for row in told["cells"] if row["effect"] == "slowing") == early > 0
    assert all(row["retrospective"] == (row["retrospective_pairs"] > 0) for row in told["cells"])
    assert (told["rule"], told["published"]) == (later.name, "2026-09-20")
    rule.write_text(to_toml(replace(later, published="2026-01-01")))
    _, out = run(capsys, archive, "--rule", rule, "--json")
    assert not any(row["retrospective"] for row in json.loads(out.out)["cells"])


def test_a_stricter_rule_says_what_changed(tmp_path, capsys, archive):
    rule = tmp_path / "strict.toml"
    rule.write_text(to_toml(replace(RULES, id="strict", version=2, indication=1e200, alpha=1e-200)))
    code, out = run(capsys, archive, "--rule", rule)
    assert code == 1
    assert "state" in out.out
    assert "slowing [retrospective]" in out.out
    code, out = run(capsys, archive, "--rule", rule, "--json")
    changed = [row for row in json.loads(out.out)["cells"] if "state" in row["changed"]]
    assert changed
    for row in changed:
        assert row["differs"]
        assert row["old"]["state"] != row["new"]["state"]
        assert row["old"]["pairs"] == row["new"]["pairs"]


# What is compared


def test_against_a_verdict_that_was_given_before(tmp_path, capsys, archive):
    old = tmp_path / "old.json"
    assert run(capsys, archive, "--against", 1, "--out", old)[0] == 1
    assert run(capsys, archive, "--against", old)[0] == 0
    told = json.loads(old.read_text())
    row = next(row for row in told["cells"] if row["effect"] == "slowing")
    row["new"]["pairs"] += 1
    old.write_text(json.dumps(told))
    code, out = run(capsys, archive, "--against", old, "--json")
    assert code == 1
    (found,) = [one for one in json.loads(out.out)["cells"] if one["differs"]]
    assert found["changed"] == ["pairs"]
    assert (found["old"]["pairs"], found["new"]["pairs"]) == (row["new"]["pairs"], row["new"]["pairs"] - 1)


def test_old_rows_of_cells_that_were_not_given_are_left_out(tmp_path, capsys, archive):
    old = tmp_path / "old.json"
    run(capsys, archive, "--out", old)
    first = tmp_path / "first.jsonl"
    first.write_bytes(b"".join(line_of(r) for r in MANY if cell_of(r) == cell_of(MANY[0])))
    _, out = run(capsys, first, "--against", old, "--json")
    told = json.loads(out.out)
    assert len(told["cells"]) == len(RULES.effects)
    assert any("12 rows" in note for note in told["notes"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[]", "holds no verdict; give the JSON"),
        (b"{", "holds no verdict (not json)"),
        (b'{"cells":[{"operator":"a"}]}', "cell 1 is no verdict"),
        (b'{"cells":[5]}', "cell 1 is no verdict"),
        (b'{"cells":{}}', "holds no verdict; give the JSON"),
    ],
)
def test_files_that_are_no_verdict(tmp_path, capsys, archive, text, said):
    old = tmp_path / "old.json"
    old.write_bytes(text)
    code, out = run(capsys, archive, "--against", old)
    assert code == 2
    assert said in out.err


def test_rows_of_every_document_with_verdicts(tmp_path):
    row = {
        "operator": "o", "asn": None, "app": "youtube", "direction": "down", "access": "fixed", "effect": "slowing",
        "state": "replicated", "pairs": 3,
    }  # fmt: skip
    file = tmp_path / "verdict.json"
    for told in ({"cells": [row]}, {"cases": [{"id": "x", "cell": row}]}, {"cell": row, "pairs": []}, row):
        file.write_text(json.dumps(told))
        assert rows_of(file) == [row]


def test_one_side_alone_differs_only_where_it_claims():
    row = {
        "operator": "o", "asn": 1, "app": "a", "direction": "down", "access": "fixed", "effect": "tampering",
        "state": "insufficient",
    }  # fmt: skip
    (silent,) = side_by_side([], [row], {})
    (loud,) = side_by_side([], [row | {"state": "indication"}], {})
    (gone,) = side_by_side([row | {"state": "indication"}], [], {})
    assert (silent.differs, loud.differs, gone.differs) == (False, True, True)
    assert silent.changed == ("only_new",)
    assert gone.changed == ("only_old",)


def test_what_counts_as_the_same():
    assert same(["a", "b"], ["b", "a"])
    assert not same(["a"], ["b", "a"])
    nothing = {"estimate": None, "low": None, "high": None}
    assert same(nothing, {"estimate": 0.1, "low": None, "high": 0.3})
    assert not same(nothing, {"estimate": 0.1, "low": 0.0, "high": 0.3})
    assert not same({"estimate": 0.1, "low": 0.0, "high": 0.3}, {"estimate": 0.1, "low": 0.0, "high": 0.31})
    assert not same(3, None)


# What is read


def as_csv(made):
    out = io.StringIO()
    names = list(PairRecord.__dataclass_fields__)
    writer = csv.writer(out)
    writer.writerow(names)
    for record in made:
        row = json.loads(line_of(record))
        plain = {None: "", True: "true", False: "false"}
        writer.writerow(
            ";".join(v) if isinstance(v, list) else plain[v] if v is None or v is True or v is False else v
            for v in (row[name] for name in names)
        )
    return out.getvalue().encode()


FORMS = {
    "pairs.jsonl": lambda made: b"".join(map(line_of, made)),
    "sorted.jsonl": lambda made: b"".join(
        json.dumps(json.loads(line_of(r)), sort_keys=True, separators=(",", ":")).encode() + b"\n" for r in made
    ),
    "spaced.jsonl": lambda made: b"\r\n\n".join(json.dumps(json.loads(line_of(r))).encode() for r in made),
    "newer.jsonl": lambda made: b"".join(line_of(r).replace(b"{", b'{"x":{"app":"a"},', 1) for r in made),
    "packed.jsonl.gz": lambda made: (
        gzip.compress(b"".join(map(line_of, made[:700]))) + gzip.compress(b"".join(map(line_of, made[700:])))
    ),
    "pairs.csv": as_csv,
    "pairs.csv.gz": lambda made: gzip.compress(as_csv(made)),
    "case.json": lambda made: json.dumps({"id": "x", "pairs": [json.loads(line_of(r)) for r in made]}).encode(),
    "evidence.json.gz": lambda made: gzip.compress(
        json.dumps({"cell": {}, "pairs": [json.loads(line_of(r)) for r in made]}, indent=1).encode()
    ),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("parts", [1, 3])
def test_every_form_gives_the_same_pairs(tmp_path, name, parts):
    strange = replace(MANY[0], sequence=10**9, operator='-"Ü, {net}"', asn=None, edge=None, flags=("vpn", "later_flag"))
    file = tmp_path / name
    file.write_bytes(FORMS[name]([*MANY, strange]))
    shares = [[record for _, record, *_ in published(file, Share(i, parts))] for i in range(parts)]
    found = sorted((r for share in shares for r in share), key=lambda r: (repr(cell_of(r)), r.sequence))
    assert found == sorted([*MANY, strange], key=lambda r: (repr(cell_of(r)), r.sequence))
    assert parts == 1 or all(len(share) > 100 for share in shares)


def test_pairs_from_before_flags_were_published(tmp_path):
    file = tmp_path / "older.jsonl"
    new = ("design", "app_delay_ms", "neutral_delay_ms", "app_loss", "neutral_loss", "queued", "app_altered",
           "neutral_altered", "flags")  # fmt: skip
    older = [r for r in MANY if r.design == "sequential"]
    plain = [{k: v for k, v in json.loads(line_of(r)).items() if k not in new} for r in older]
    file.write_text("".join(json.dumps(one, separators=(",", ":")) + "\n" for one in plain))
    tally = counted([file], BOTH[:1], 1)
    assert tally.flagless == len(older)
    assert any("without flags" in note for note in judge_published(tally).notes)
    records_found = [record for _, record, *_ in published(file, Share())]
    assert records_found == [replace(r, flags=(), app_altered=False, neutral_altered=False) for r in older]


def test_the_same_export_twice_counts_once_and_a_different_one_is_refused(tmp_path, archive):
    again = tmp_path / "again.jsonl.gz"
    again.write_bytes(gzip.compress(archive.read_bytes()))
    for workers in (1, 2):
        tally = counted([archive, again], BOTH[:1], workers)
        assert (tally.pairs, tally.repeated) == (len(MANY), len(MANY))
        assert rows(judge_published(tally)) == rows(judge_published(counted([archive], BOTH[:1], 1)))
    other = tmp_path / "other.jsonl"
    other.write_bytes(b"".join(line_of(replace(r, edge=not r.edge) if r is MANY[7] else r) for r in MANY))
    with pytest.raises(ArchiveError, match="hold different exports"):
        counted([archive, other], BOTH[:1], 1)
    more = tmp_path / "more.jsonl"
    extra = replace(MANY[-1], sequence=MANY[-1].sequence + 1, probe="p77")
    more.write_bytes(archive.read_bytes() + line_of(extra))
    said = set()
    for workers in (1, 2):
        with pytest.raises(ArchiveError, match=r"hold different exports of operator-1 .*; give one of them") as refused:
            counted([archive, more], BOTH[:1], workers)
        said.add(str(refused.value))
    assert len(said) == 1


BAD = {
    "no json": (b"{", r"line 3 is no published pair \(not json\)"),
    "no object": (b"5", r"line 3 is no published pair \(not an object\)"),
    "nan": (line_of(MANY[9]).replace(b'"pace_mbps":12.0', b'"pace_mbps":NaN'), r"\(not finite: NaN\)"),
    "twice": (line_of(MANY[9]).replace(b'{"v":1', b'{"v":1,"v":1'), r"\(duplicate key\)"),
    "deep": (b"[" * 60_000, r"too deep"),
    "day": (line_of(MANY[9]).replace(MANY[9].day.encode(), b"2026-02-30"), r"\(day: out of range\)"),
    "rate": (line_of(MANY[9]).replace(b'"pace_mbps":12.0', b'"pace_mbps":1e9'), r"\(pace_mbps: out of range\)"),
    "label": (line_of(MANY[9]).replace(b'"network":"n', b'"network":"x'), r"\(network: bad pattern\)"),
    "missing": (line_of(MANY[9]).replace(b'"lost":false,', b""), r"\(lost: missing\)"),
    "order": (line_of(MANY[0]), r"line 3 is pair 1 of p\d in .* stands after its pair \d; give each export whole"),
    "long": (b"x" * 70_000, r"line 3 is longer than 65536 bytes"),
    "not utf8": (b'{"v":\xff}', r"\(not utf8\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_line_that_is_no_pair_stops_with_file_and_line(tmp_path, capsys, name):
    bad, said = BAD[name]
    first = [r for r in MANY if r.probe == MANY[0].probe][:2]
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(line_of(first[0]) + line_of(first[1]) + bad.rstrip(b"\n") + b"\n" + line_of(MANY[20]) + b"oops\n")
    told = set()
    for workers in (1, 2):
        with pytest.raises(ArchiveError, match=said) as refused:
            counted([file], BOTH[:1], workers)
        told.add(str(refused.value))
    assert len(told) == 1
    assert str(file) in told.pop()
    code, out = run(capsys, file)
    assert (code, out.out) == (3, "")
    assert out.err.count("\n") == 1


def test_a_file_that_was_cut_off_is_refused(tmp_path, archive):
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(ArchiveError, match="ends in the middle: the file is not whole"):
        counted([cut], BOTH[:1], 1)
    packed = tmp_path / "cut.jsonl.gz"
    packed.write_bytes(gzip.compress(archive.read_bytes())[:-40])
    with pytest.raises(ArchiveError, match="not a whole gzip file"):
        counted([packed], BOTH[:1], 1)


def test_a_bomb_is_refused_in_little_memory(tmp_path):
    bomb = tmp_path / "bomb.gz"
    with gzip.open(bomb, "wb", compresslevel=9) as file:
        for _ in range(80):
            file.write((b"x" * 49_999 + b"\n") * 20)
    with pytest.raises(ArchiveError, match="unpacks to more than 200 times its size"):
        list(lines(bomb))


def test_an_endless_line_of_signed_records_is_refused(tmp_path, capsys):
    file = tmp_path / "receipts.jsonl"
    file.write_bytes(b'{"payload":"' + b"A" * 3_000_000)
    code, out = run(capsys, file)
    assert code == 3
    assert "line 1 is longer than 2097152 bytes" in out.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is empty"),
        (b"a,b\n1,2\n", "does not name the columns of published pairs"),
        (b'{"cells":[]}', "holds no pairs"),
        (b'{"cells":', "holds neither published pairs nor signed records"),
        (b"\x1f\x8b\x08", "not a whole gzip file"),
        (b"sequence,probe\n1\n", "line 2 has 1 columns, the first line 2"),
        (b"sequence,probe\n1,p1\n", r"line 2 is no published pair \(v: missing\)"),
    ],
)
def test_files_that_hold_no_pairs(tmp_path, text, said):
    file = tmp_path / "file"
    file.write_bytes(text)
    with pytest.raises(ArchiveError, match=said):
        counted([file], BOTH[:1], 1)


def test_a_csv_with_a_value_that_is_none(tmp_path):
    file = tmp_path / "pairs.csv"
    good = as_csv(MANY[:3])
    for old, new, said in (
        (b"12.0", b"nan", "pace_mbps"),
        (b"12.0", b"", "pace_mbps"),
        (b",false,", b",no,", "(?:lost|neutral_first)"),
    ):
        head, _, rest = good.partition(b"\n")
        file.write_bytes(head + b"\n" + rest.replace(old, new, 1))
        with pytest.raises(ArchiveError, match=rf"line \d is no published pair \({said}: wrong type"):
            counted([file], BOTH[:1], 1)


def test_what_published_pairs_were_made_with_cannot_be_changed(tmp_path, capsys, archive):
    rule = tmp_path / "other.toml"
    rule.write_text(to_toml(replace(RULES, id="other", clip=1.0, peak_hours=(17, 23))))
    code, out = run(capsys, archive, "--rule", rule)
    assert code == 3
    assert "published pairs were made with the published clip and peak_hours" in out.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rule", "9"], "no version 9"),
        (["--against", "9"], "no version 9"),
        (["--rule", "none.toml"], "cannot read the rule none.toml"),
        (["--against", "none.json"], "cannot read none.json"),
    ],
)
def test_usage(capsys, archive, options, said):
    code, out = run(capsys, archive, *options)
    assert code == 2
    assert said in out.err


@pytest.mark.parametrize("workers", ["0", "65", "-1", "x", "²"])
def test_workers_is_a_number(capsys, archive, workers):
    with pytest.raises(SystemExit) as stopped:
        main(["analysis", "rejudge", str(archive), "--workers", workers])
    assert stopped.value.code == 2
    assert "is not a number from 1 to 64" in capsys.readouterr().err


def test_a_result_that_cannot_be_written(tmp_path, capsys, archive):
    code, out = run(capsys, archive, "--out", tmp_path / "none" / "out.json")
    assert code == 3
    assert "cannot write" in out.err


# Signed records


@pytest.fixture
def signed(tmp_path):
    reflector, rng = SeedSigner(b"r" * 32), random.Random(1)
    out = []
    for number in range(3):
        signer = SeedSigner(bytes([number + 1]) * 32)
        origin = Origin(asn=64500, operator="Throttler", country="NL", network=f"{number + 1:032x}", edge=True)
        pairs = list(stream(Line(slowdown=0.6, noise=0.05), rng, 12, probe=signer.key_id, cell=CELL))
        # Five of them on days (in the Netherlands) before the current rule was published.
        at = (date.fromisoformat(RULES.published) - date(1970, 1, 1)).days * 86_400_000
        pairs = [replace(p, started_ms=at + (i - 6) * 3_600_000, ended_ms=None) for i, p in enumerate(pairs)]
        made = session_records(pairs, probe=signer.key_id, reflector=reflector.key_id, rng=rng, origin=origin)
        receipt, measurement, started = made.sealed(signer, reflector)
        out += [to_line(one) for one in (receipt, measurement, *started)]
    file = tmp_path / "records.jsonl.gz"
    file.write_bytes(gzip.compress(b"".join(out)))
    return file


def test_signed_records_packed_or_not_are_judged_by_two_rules(tmp_path, capsys, signed):
    plain = tmp_path / "records.jsonl"
    plain.write_bytes(gzip.decompress(signed.read_bytes()))
    told = []
    for file in (signed, plain):
        code, out = run(capsys, file, "--json")
        found = json.loads(out.out)
        told.append((code, found["cells"], found["inputs"]))
        assert found["midpoints"] is None
    assert told[0] == told[1]
    slowing = next(row for row in told[0][1] if row["effect"] == "slowing")
    assert slowing["old"]["state"] == slowing["new"]["state"] == "corroborated"
    assert slowing["retrospective_pairs"] == 3 * 5
    assert main(["analysis", "verdict", str(plain), "--json"]) == 0
    verdict = tmp_path / "verdict.json"
    verdict.write_text(capsys.readouterr().out)
    assert run(capsys, plain, "--against", verdict)[0] == 0
    assert json.loads(verdict.read_text())["inputs"] == told[0][2]


def test_both_kinds_at_once_are_refused(capsys, archive, signed):
    code, out = run(capsys, archive, signed)
    assert code == 3
    assert "judge one kind at a time" in out.err


def test_a_share_counts_each_probe_whole(archive):
    parts = [count(archive, 0, BOTH[:1], Share(i, 3)) for i in range(3)]
    whole = count(archive, 0, BOTH[:1], Share())
    assert sum(map(len, parts)) == len(whole)
    for part in parts:
        for key, one in part.items():
            assert one == whole[key]


def test_cases_are_decided_among_all_cells(archive):
    tally = counted([archive], BOTH[:1], 1)
    found, _ = verdicts(tally, 0)
    assert {v.assessment.cell for v in found if v.is_case} == {cell_of(MANY[0])}
    assert all(math.isfinite(v.assessment.strength.whole) for v in found)

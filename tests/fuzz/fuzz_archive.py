# SPDX-License-Identifier: EUPL-1.2
"""Targets: files of open data and of rules, as anybody may have made them. Spec: spec/rejudge.md."""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from fuzz_registry import target

from analysis.archive import ArchiveError
from analysis.compare import rows_of
from analysis.editions import PUBLISHED, RuleError, from_values, read, to_toml, to_values
from analysis.opendata import LONGEST_PAIR, Share, is_published, published
from analysis.quickpairs import QuickPairs
from analysis.rules import RULES
from analysis.synthetic_archive import line_of, records
from probe.wire.codec import WireError, from_dict, loads
from probe.wire.records import PairRecord

PAIRS = list(records(24, random.Random(9), cells=2, probes=3))
LINES = [line_of(pair).strip() for pair in PAIRS]
FOLDER = tempfile.TemporaryDirectory()


def trained() -> QuickPairs:
    """A quick reader that has seen every good line: it knows all the values that may be put together wrongly."""
    quick = QuickPairs()
    for line, pair in zip(LINES, PAIRS, strict=True):
        if quick.labels(line) is not None:
            quick.learn(pair)
    return quick


def sorted_line(line: bytes) -> bytes:
    """The same with sorted members."""
    return json.dumps(json.loads(line), sort_keys=True, separators=(",", ":")).encode()


def strange(line: bytes) -> list[bytes]:
    """Spellings at the border of what is plain."""
    swaps = [
        (b'"pace_mbps":12.0', b'"pace_mbps":-0'), (b'"pace_mbps":12.0', b'"pace_mbps":-0.0'),
        (b'"pace_mbps":12.0', b'"pace_mbps":012.0'), (b'"pace_mbps":12.0', b'"pace_mbps":12.'),
        (b'"pace_mbps":12.0', b'"pace_mbps":1_2'), (b'"pace_mbps":12.0', b'"pace_mbps":12e99'),
        (b'"pace_mbps":12.0', b'"pace_mbps":Infinity'), (b'"segment_s":4.0', b'"segment_s":4'),
        (b'"sequence":1', b'"sequence":01'), (b'"sequence":1', b'"sequence":1.0'), (b'"sequence":1', b'"sequence":-1'),
        (b'"lost":false', b'"lost":"false"'), (b'"lost":false', b'"lost": false'), (b'"lost":false', b'"lost":0'),
        (b'"v":1', b'"v":true'), (b'"v":1', b'"v":1.0'), (b'"v":1', b'"v":"1"'), (b'"v":1,', b'"v":1,"v":1,'),
        (b'"flags":[]', b'"flags":["vpn","a"]'), (b'"flags":[]', b'"flags":[[]]'), (b'"flags":[]', b'"flags":[{}]'),
        (b'"app":"youtube"', b'"app":"you\\u0074ube"'), (b'"app":"youtube"', b'"app":"a","x":{"app":"youtube"}'),
        (b'"operator":"operator-1"', b'"operator":"\xc3\xa9"'), (b'"operator":"operator-1"', b'"operator":"a\x00"'),
        (b'"operator":"operator-1"', b'"operator":"x\\",\\"app\\":\\"y"'), (b"}", b",}"), (b"}", b"}}"),
    ]  # fmt: skip
    return [line.replace(old, new, 1) for old, new in swaps if old in line]


def with_care(line: bytes) -> PairRecord | None:
    """What the contract's own reader says."""
    try:
        return from_dict(PairRecord, loads(line, longest=LONGEST_PAIR))
    except WireError:
        return None


@target(seeds=lambda: [*LINES, *strange(LINES[0]), *map(sorted_line, LINES[:3])], most=2000, examples=300)
def fuzz_quick_pairs(data: bytes) -> None:
    """The quick reader takes nothing that careful reading refuses, and reads nothing otherwise than that does."""
    quick = trained()
    for _ in range(2):  # the second time it has learnt what it had not known
        labels = quick.labels(data)
        found = quick.read() if labels is not None else None
        careful = with_care(data)
        if found is not None:
            assert careful is not None, data
            assert found[0] == careful
            assert repr(found[0]) == repr(careful)
            assert found[1] == ("flags" in loads(data, longest=LONGEST_PAIR))
        if labels is not None and careful is not None:
            assert labels == (f'"{careful.app}"', f'"{careful.probe}"')
            quick.learn(careful)


def _read(path: Path, share: Share) -> tuple[list[tuple[int, PairRecord]], str]:
    found: list[tuple[int, PairRecord]] = []
    try:
        found.extend((number, record) for number, record, *_ in published(path, share))
    except ArchiveError as error:
        return found, str(error)
    return found, ""


def _csv(line: bytes) -> bytes:
    values: dict[str, Any] = json.loads(line)
    texts = [json.dumps(v) if v is not None else "" for v in values.values()]
    return (",".join(values) + "\n" + ",".join(text.replace('"', "").replace(",", ";") for text in texts)).encode()


@target(
    seeds=lambda: [
        b"\n".join(LINES[:3]), _csv(LINES[0]), gzip.compress(LINES[0]), b'{"cell":{},"pairs":[' + LINES[0] + b"]}",
        b"\n".join(strange(LINES[0])[:2]),
    ],
    most=6000,
    examples=80,
)  # fmt: skip
def fuzz_open_data(data: bytes) -> None:
    """A file gives pairs or is refused with ArchiveError; several readers find what one finds, and refuse alike."""
    path = Path(FOLDER.name, "pairs")
    path.write_bytes(data)
    try:
        is_published(path)
    except ArchiveError:
        return
    alone, why = _read(path, Share())
    shares = [_read(path, Share(index, 3)) for index in range(3)]
    if why:
        assert str(path) in why
        assert why in {said for _, said in shares}
    else:
        assert {said for _, said in shares} == {""}
        assert sorted((n for found, _ in shares for n, _ in found)) == [n for n, _ in alone]
    for number, record in (entry for found, _ in shares for entry in found):
        assert not why or number <= max((n for n, _ in alone), default=0) or (number, record) not in alone


@target(
    seeds=lambda: [*(to_toml(one.rules).encode() for one in PUBLISHED.values()), b'id = "mine"\n'],
    most=4000,
    examples=80,
)
def fuzz_rule_file(data: bytes) -> None:
    """A rule is refused with RuleError in one sentence, or complete: it says the same when written and read again."""
    path = Path(FOLDER.name, "rule.toml")
    path.write_bytes(data)
    try:
        found = read(path)
    except RuleError as error:
        assert str(path) in str(error)
        return
    assert from_values(to_values(found.rules)).rules == found.rules
    assert found.rules.id != RULES.id or found in PUBLISHED.values()


@target(
    seeds=lambda: [
        b'{"cells":[{"operator":"o","asn":1,"app":"a","direction":"down","access":"fixed","effect":"slowing",'
        b'"state":"replicated"}]}',
        b'{"cases":[{"cell":{"asn":null}}]}',
    ],
    most=4000,
)
def fuzz_old_verdict(data: bytes) -> None:
    """A verdict to compare with is refused with ArchiveError, or rows that can be."""
    path = Path(FOLDER.name, "verdict.json")
    path.write_bytes(data)
    try:
        rows = rows_of(path)
    except ArchiveError:
        return
    for row in rows:
        assert isinstance(row["state"], str)

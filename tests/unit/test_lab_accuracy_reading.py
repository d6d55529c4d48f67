# SPDX-License-Identifier: EUPL-1.2
"""Rows of the accuracy study: what is not understood is refused by its path."""

import hashlib
from pathlib import Path

import pytest

from lab.accuracy.reading import ROWS, from_document, judging_of, load, load_all, real_of
from lab.scenario import ScenarioError

WHOLE = {
    "name": "a-row",
    "kind": "discriminating",
    "title": "Video is policed",
    "why": "It would show that a policer is missed.",
    "engine": "path",
    "target": 0.9,
    "repeats": 381,
    "measure": {"probes": 4, "pairs": 14, "segment_s": 2, "direction": "up", "apps": ["netflix"], "hypotheses": 12},
    "link": {"down_mbps": 20},
    "cross_traffic": {"pattern": "web", "down_mbps": 3},
    "rule": [{"match": {"sni": "*.nflxvideo.net"}, "action": "police", "down_mbps": 2}],
    "expect": {"effects": ["netflix:slowing"]},
    "options": {"slowdown": 0.5, "without_gate": "sqm", "real": {"pairs": 6}},
}


def changed(**changes):
    return {key: value for key, value in {**WHOLE, **changes}.items() if value is not None}


def test_a_whole_row():
    row = from_document(WHOLE, digest="d")
    assert (row.name, row.kind, row.engine, row.target, row.repeats) == ("a-row", "discriminating", "path", 0.9, 381)
    assert (row.inside, row.digest) == (True, "d")
    assert row.expected == {("netflix", "slowing")}
    measure = row.measure
    assert (measure.probes, measure.pairs, measure.segment_s, measure.direction) == (4, 14, 2.0, "up")
    assert (measure.apps, measure.hypotheses, measure.pace_mbps) == (("netflix",), 12, 12.0)
    assert row.scenario.link.down_mbps == 20
    assert row.scenario.cross_traffic is not None
    assert row.scenario.rules[0].action == "police"
    assert judging_of(row.options) == ("sqm",)
    assert (real_of(row.options).pairs, real_of(row.options).segment_s, real_of({}).pairs) == (6, 0.7, 12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kin": "neutral"}, "kin: unknown key; did you mean kind?"),
        ({"kind": "honest"}, "kind: must be one of neutral"),
        ({"engine": None}, "engine: is missing; choose one of path, stream"),
        ({"why": None}, "why: is missing"),
        ({"measure": {"pair": 3}}, "measure.pair: unknown key; did you mean pairs?"),
        ({"measure": {"pairs": 2.5}}, "measure.pairs: must be a whole number"),
        ({"measure": {"pairs": 0}}, "measure.pairs: must be between 1"),
        ({"measure": {"apps": ["nosuchapp"]}}, "measure.apps: there is no profile of an app nosuchapp"),
        ({"link": {"down": 3}}, "link.down: unknown key"),
        ({"rule": [{"action": "polce"}]}, r"rule\[0\].action: must be one of"),
        ({"options": {"without_gate": "sqn"}}, "options.without_gate: must be one of .* did you mean sqm?"),
        ({"options": {"real": {"pair": 2}}}, "options.real.pair: unknown key; did you mean pairs?"),
        ({"options": {"misleads": 1}}, "options.misleads: must be true or false"),
        ({"kind": "neutral"}, "expect: a neutral operator is never accused"),
        ({"expect": None}, "expect: is missing"),
        ({"repeats": 10**9}, "repeats: must be between 1"),
    ],
)
def test_what_is_not_understood_is_refused_by_its_path(changes, words):
    with pytest.raises(ScenarioError, match=words):
        from_document(changed(**changes))


def test_a_file_is_named_after_its_row_and_its_digest_is_of_its_bytes(tmp_path: Path):
    text = 'name = "one"\nkind = "neutral"\ntitle = "t"\nwhy = "w"\nengine = "stream"\n'
    right, wrong = tmp_path / "one.toml", tmp_path / "two.toml"
    for file in (right, wrong):
        file.write_text(text)
    assert load(right).digest == hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(ScenarioError, match=r'two.toml: name: must be the file\'s, "two", not "one"'):
        load(wrong)
    right.write_text(text + "[")
    with pytest.raises(ScenarioError, match=r"one\.toml: is not valid TOML"):
        load(right)
    with pytest.raises(ScenarioError, match="cannot be read"):
        load(tmp_path / "none.toml")


def test_rows_are_chosen_by_patterns_and_paths(tmp_path: Path):
    for name in ("neutral-a", "neutral-b", "police-c"):
        text = f'name = "{name}"\nkind = "neutral"\ntitle = "t"\nwhy = "w"\nengine = "stream"\n'
        (tmp_path / f"{name}.toml").write_text(text)
    names = lambda *patterns: [row.name for row in load_all(patterns, tmp_path)]  # noqa: E731
    assert names() == ["neutral-a", "neutral-b", "police-c"]
    assert names("neutral-*", "*-b") == ["neutral-a", "neutral-b"]
    assert names(str(tmp_path / "police-c.toml")) == ["police-c"]
    with pytest.raises(ScenarioError, match="no row is called shape"):
        names("shape-*")


@pytest.mark.parametrize("path", sorted(ROWS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_bundled_row_can_be_read_and_says_what_it_is_for(path: Path):
    row = load(path)
    assert row.why.endswith(".")
    assert len(row.title) <= 90

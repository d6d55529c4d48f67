# SPDX-License-Identifier: EUPL-1.2
"""The report says what the committed results say, and is the same wherever it is made."""

import json
import random
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.simulate import Line, stream
from lab.accuracy import results
from lab.accuracy.judging import judge_run
from lab.accuracy.model import Played, Run
from lab.accuracy.reading import ROWS, from_document, load_all
from lab.accuracy.study import head

pytest.importorskip("matplotlib", reason="the report is drawn with the extra `report`")

from lab.accuracy import figures, report

COMMITTED = Path(__file__).parents[2] / "docs" / "accuracy"
SVG = "{http://www.w3.org/2000/svg}"


def row_of(name, kind, line, **options):
    document = {"name": name, "kind": kind, "title": f"Row | {name}", "why": "w", "engine": "stream"}
    noise = {"sd": line.noise, **({"slowdown": line.slowdown} if line.slowdown else {})}
    document |= {"measure": {"pairs": 16}, "options": {"noise": noise, **options}}
    if kind == "discriminating":
        document["expect"] = {"effects": ["youtube:slowing"]}
    return from_document(document, digest=name)


def played(row, line, repeats=12, edge=True):
    judged = []
    for repeat in range(repeats):
        rng, found = random.Random(f"{row.name}/{repeat}"), []
        for probe in range(3):
            for pair in stream(line, random.Random(f"{row.name}/{repeat}/{probe}"), 16, probe=f"p{probe}"):
                rates = (pair.first_mbps, pair.second_mbps)
                bins = [tuple(rate * rng.uniform(0.8, 1.2) for _ in range(10)) for rate in rates]
                neutral, app = bins if pair.neutral_first else reversed(bins)
                placed = replace(pair, edge=edge)
                found.append(Played(pair=placed, app_bins_mbps=app, neutral_bins_mbps=neutral, octets=3_000_000))
        run = Run(row=row.name, repeat=repeat, played=tuple(found))
        judged.append(judge_run(run, row.measure, row.options, expected=row.expected))
    return {**head(row), "date": "2026-11-22", "virtual": results.aggregate(row, judged), "differs": []}


@pytest.fixture(scope="module")
def known():
    lines = {
        "even": ("neutral", Line(noise=0.3), {}),
        "slowed": ("discriminating", Line(slowdown=0.5, noise=0.1), {}),
        "hidden": ("discriminating", Line(slowdown=0.6, noise=0.05), {"without_gate": ["no_edge_probe"]}),
    }
    rows = {name: row_of(name, kind, line, **options) for name, (kind, line, options) in lines.items()}
    found = [played(rows[name], line, edge=name != "hidden") for name, (_, line, _) in lines.items()]
    size = {"y": 0.7, "sd": 0.1, "pairs": 30}
    apps = {"youtube": {"rates": {"real": size, "virtual": size}}}
    real = {"driver": "tun", "pairs": 12, "segment_s": 0.7, "apps": apps}
    found[1]["real"] = {**real, "agrees": True, "differs": [], "repeats": 1}
    found[0]["real"] = {"skipped": "there is no line"}
    return [*found, {**head(row_of("later", "neutral", Line())), "differs": []}]


@pytest.fixture(scope="module")
def built(known):
    return report.build(known)


def test_the_same_results_give_the_same_bytes(known, built):
    assert built == report.build(json.loads(json.dumps(known)))
    assert set(built) == {"README.md", "bytes.svg", "evidence-of-neutral-streams.svg", "pairs-to-case.svg", "tiers.svg"}


def test_what_is_said_is_what_was_found(known, built):
    text = built["README.md"]
    slowed = next(one for one in known if one["row"] == "slowed")
    found = slowed["virtual"]["cells"]["youtube:slowing"]["corroborated"]
    assert found["k"] == 12
    assert "found in 12 of 24 runs" in text
    assert "Wrongly accused at any look, there or anywhere else: 0." in text
    assert "| no edge probe | hidden | youtube, slowing | replicated 12 | corroborated 12 |" in text
    assert "Row \\| even" in text
    assert "agrees" in text
    assert "Not played, there is no line: even." in text
    assert "later" in text  # a row without a result is not passed over
    assert "| at least 45 rows" in text.lower()
    assert re.search(r"\| No neutral cell .* \| 0 of 12 \(0\.000 to .* \| yes \|", text)


def test_nothing_known_is_a_report_too():
    text = report.build([])["README.md"]
    assert "None yet." in text
    assert set(report.build([])) == {"README.md"}


def test_pictures_say_what_they_show_to_whoever_does_not_see_them(built):
    readme = built["README.md"]
    for name, text in built.items():
        if name.endswith(".svg"):
            root = ET.fromstring(text)  # noqa: S314 - our own document
            title, told = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
            assert len(title.text) > 30, name
            assert len(told.text) > 60, name
            assert not root.findall(f"{SVG}metadata")
            assert "2026" not in text
            assert f"## {title.text}" in readme
            assert f"]({name})" in readme


def test_curves_are_the_shares_that_were_counted(known):
    [figure] = [
        one for one in figures.all_of([one for one in known if "virtual" in one]) if one.name == "pairs-to-case"
    ]
    [curve] = [one for one in figure.series if one.label == "slowed"]
    opened = {int(k): v for k, v in known[1]["virtual"]["cells"]["youtube:slowing"]["opened_after"].items()}
    for at in range(17):
        share = max((y for x, y in curve.points if x <= at), default=0)
        assert share == pytest.approx(sum(n for pairs, n in opened.items() if pairs <= at) / 12)


def test_the_summary_names_what_is_unmet(known, tmp_path):
    for one in known:
        if "virtual" in one:
            results.write(one, tmp_path)
    rows = [row_of("even", "neutral", Line(noise=0.3)), row_of("nobody", "neutral", Line())]
    written = report.write(rows, tmp_path)
    assert written["ok"] is False
    assert (tmp_path / "README.md").exists()
    assert "not known" in report.summary(written)
    assert any(line.startswith("no ") for line in report.summary(written).splitlines())


def test_the_committed_report_is_what_the_committed_results_give():
    """After a change of results or words: `evenlane lab accuracy --report`."""
    if not (COMMITTED / "README.md").exists():
        pytest.skip("no study is committed yet")
    made = report.build(report.gather(load_all(directory=ROWS), COMMITTED))
    assert made["README.md"] == (COMMITTED / "README.md").read_text("utf-8")
    assert {name for name in made if name.endswith(".svg")} == {path.name for path in COMMITTED.glob("*.svg")}
    for name, text in made.items():
        if name.endswith(".svg"):  # the strokes are matplotlib's, and another version of it may draw them otherwise
            kept = (COMMITTED / name).read_text("utf-8")
            words = lambda svg: re.findall(r"<(?:title|desc|text)[^>]*>([^<]*)<", svg)  # noqa: E731
            assert words(text) == words(kept), name

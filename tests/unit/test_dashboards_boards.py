# SPDX-License-Identifier: EUPL-1.2
"""Boards: what is known of Grafana's JSON model holds, names are those of the series, files are up to date."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from collector import series
from dashboards.build import GENERATED, PANELS, all_panels, boards, build, check, problems, queries, rendered
from dashboards.parts import INFLUX, PROMETHEUS, Json
from evenlane.cli import main

BOARD = boards()["overview"]


def test_the_generated_files_are_up_to_date() -> None:
    assert check() == []
    assert (GENERATED / "overview.json").exists()


def test_building_is_byte_for_byte_alike(tmp_path: Path) -> None:
    first = [file.read_bytes() for file in build(tmp_path)]
    assert first == [file.read_bytes() for file in build(tmp_path)]
    assert json.loads(first[0]) == BOARD


def test_every_panel_has_one_sentence_and_a_unit() -> None:
    shown = [p for p in all_panels(BOARD) if p["type"] not in {"row", "text"}]
    assert len(shown) >= 8
    for panel in shown:
        assert re.fullmatch(r"[A-Z][^.]*(?:\.\d[^.]*)*\.", panel["description"]), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_what_must_be_shown_is_asked_for() -> None:
    asked = " ".join(target.get("query", "") for _, target in queries(BOARD))
    for name in ("state", "slowdown", "slowdown_low", "slowdown_high", "log10_e", "pairs", "lost", "probes", "slowed"):
        assert f'"{name}"' in asked
    assert {t["datasource"]["uid"] for _, t in queries(BOARD)} == {INFLUX["uid"], PROMETHEUS["uid"]}


def test_states_are_mapped_to_word_sign_and_colour_everywhere() -> None:
    mappings = re.findall(r'\[\{"type": "value".*?\}\]', json.dumps(BOARD))
    assert len(mappings) == 3
    for found in mappings:
        options = json.loads(found)[0]["options"]
        assert set(options) == {str(code) for code in series.STATE_CODES.values()}
        for state, code in series.STATE_CODES.items():
            look = series.STATE_LOOKS[state]
            shown = options[str(code)]
            assert shown["text"] == f"{look.sign} {look.word}"
            assert shown["color"] == look.colour


def test_only_colours_that_every_eye_tells_apart() -> None:
    """Okabe and Ito's palette, greys, and white."""
    allowed = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
    allowed |= {"#999999", "#DDDDDD", "#FFFFFF"}
    assert set(re.findall(r"#[0-9A-Fa-f]{6}\b", json.dumps(BOARD))) <= allowed
    assert not re.search(r'"(?:red|green|dark-red|semi-dark-\w+)"', json.dumps(BOARD))


def test_a_cell_leads_to_its_page() -> None:
    links = re.findall(r'"url": "([^"]+)"', json.dumps(BOARD))
    assert links
    parts = "/".join(
        "${__data.fields." + tag + ":percentencode}" for tag in ("operator", "app", "direction", "access", "effect")
    )
    assert set(links) == {"${collector}/cell/" + parts}


def test_cases_are_shown_as_annotations_by_their_tag() -> None:
    (annotations,) = BOARD["annotations"]["list"]
    assert annotations["target"]["tags"] == [series.ANNOTATION_TAG]
    assert annotations["target"]["type"] == "tags"


def test_the_interval_is_drawn_as_a_band() -> None:
    panel = next(p for p in all_panels(BOARD) if p["id"] == 8)
    names = [target["alias"] for target in panel["targets"]]
    band = [p for o in panel["fieldConfig"]["overrides"] for p in o["properties"] if p["id"] == "custom.fillBelowTo"]
    assert band[0]["value"] in names


def broken(change: Callable[[Json], Any]) -> list[str]:
    board = deepcopy(BOARD)
    change(board)
    return problems(board)


def panel_of(board: Json, ident: int) -> Json:
    return next(panel for panel in all_panels(board) if panel["id"] == ident)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda b: panel_of(b, 3).update(id=2), "used twice"),
        (lambda b: panel_of(b, 3).update(type="gauge"), "gauge is not one of ours"),
        (lambda b: panel_of(b, 3).update(description=""), "sentence is missing"),
        (lambda b: panel_of(b, 3)["fieldConfig"]["defaults"].pop("unit"), "unit is missing"),
        (lambda b: panel_of(b, 3).update(targets=[]), "asks for nothing"),
        (lambda b: panel_of(b, 3)["targets"][0].update(datasource={"uid": "other"}), "no data source"),
        (lambda b: panel_of(b, 5)["targets"][0].update(query='SELECT last("slowdwn") FROM "evenlane_cell"'), "slowdwn"),
        (lambda b: panel_of(b, 5)["targets"][0].update(query='SELECT last("state") FROM "evenlane_sell"'), "sell"),
        (lambda b: panel_of(b, 5)["targets"][0].update(query='SELECT last("state") WHERE "probe" =~ /x/'), "tag probe"),
        (lambda b: panel_of(b, 5)["targets"][0].update(query='SELECT last("state") GROUP BY "probe"'), "tag probe"),
        (lambda b: panel_of(b, 10)["targets"][0].update(expr="evenlane_collector_unheard_of"), "unheard_of"),
        (lambda b: panel_of(b, 8)["targets"][0].update(refId="B"), "one name"),
        (lambda b: panel_of(b, 3)["gridPos"].update(y=4), "lies on another"),
        (lambda b: panel_of(b, 3)["gridPos"].update(x=5), "wider than the board"),
        (lambda b: b["templating"]["list"].pop(0), "variable operator is used"),
        (lambda b: b.update(uid="not a uid!"), "the uid"),
    ],
)
def test_a_mistake_in_a_board_is_found(change: Callable[[Json], Any], complaint: str) -> None:
    assert problems(BOARD) == []
    found = broken(change)
    assert any(complaint in problem for problem in found), found


def test_no_panel_is_a_gauge_or_a_pie() -> None:
    assert not {"gauge", "bargauge", "piechart"} & PANELS


def test_check_finds_missing_stale_and_leftover_files(tmp_path: Path) -> None:
    assert any("is missing" in problem for problem in check(tmp_path))
    build(tmp_path)
    assert check(tmp_path) == []
    (tmp_path / "overview.json").write_text(rendered({**BOARD, "title": "old"}))
    (tmp_path / "other.json").write_text("{}")
    assert len(check(tmp_path)) == 2


def test_the_command_builds_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboards", "check", "--out", str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"]
    assert main(["dashboards", "build", "--out", str(tmp_path)]) == 0
    assert main(["dashboards", "check", "--out", str(tmp_path)]) == 0
    assert "up to date" in capsys.readouterr().out


def test_pushing_without_a_token_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EVENLANE_GRAFANA_TOKEN", raising=False)
    assert main(["dashboards", "push"]) == 3
    assert "EVENLANE_GRAFANA_TOKEN" in capsys.readouterr().err
    assert main(["dashboards", "push", "--token-file", str(tmp_path / "none")]) == 3
    assert "cannot be read" in capsys.readouterr().err
    assert main(["dashboards", "push", "--url", "ftp://x"]) == 2


def test_what_cannot_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["dashboards", "build", "--out", str(tmp_path / "file")]) == 3
    assert "choose another --out" in capsys.readouterr().err

# SPDX-License-Identifier: EUPL-1.2
"""Writes the boards as JSON for file provisioning, always byte for byte alike, and checks them.

No Grafana is needed for either; what a Grafana alone can say is not claimed here. Spec: spec/series.md,
section "Grafana".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from collector import series
from dashboards.boards import overview
from dashboards.parts import GRAFANA, INFLUX, PROMETHEUS, WIDTH, Json

BOARDS: Final = {"overview": overview.board}
GENERATED: Final = Path(__file__).parent / "generated"
PANELS: Final = {"row", "stat", "state-timeline", "table", "text", "timeseries"}
"""Panel types that come with Grafana, that we use; no gauge and no pie among them."""
_BUILT_IN: Final = {"__all", "__data", "__interval", "tag_app", "tag_operator", "timeFilter"}
_FIELD = re.compile(r'\b(?:last|mean|max|min|sum|count)\("([a-z0-9_]+)"\)')
_TAG = re.compile(r'"([a-z0-9_]+)" =~|GROUP BY ([^)]*?)(?:fill|$|\))')
_METRIC = re.compile(r"\bevenlane_[a-z0-9_]+\b")


def boards() -> dict[str, Json]:
    """Every board by the name of its file."""
    return {name: make() for name, make in BOARDS.items()}


def rendered(board: Json) -> str:
    """A board as it is written to its file."""
    return json.dumps(board, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def build(directory: Path = GENERATED) -> list[Path]:
    """Write all boards; gives the files."""
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for name, board in boards().items():
        file = directory / f"{name}.json"
        file.write_text(rendered(board), encoding="utf-8")
        files.append(file)
    return files


def check(directory: Path = GENERATED) -> list[str]:
    """Everything that is wrong with the boards or out of date in their files, one sentence each."""
    found = []
    for name, board in boards().items():
        found += [f"{name}: {problem}" for problem in problems(board)]
        file = directory / f"{name}.json"
        if not file.exists():
            found.append(f"{file.name} is missing: run `evenlane dashboards build`")
        elif file.read_text(encoding="utf-8") != rendered(board):
            found.append(f"{file.name} is out of date: run `evenlane dashboards build`")
    extra = {file.name for file in directory.glob("*.json")} - {f"{name}.json" for name in BOARDS}
    return found + [f"{name} belongs to no board: delete it" for name in sorted(extra)]


def problems(board: Json) -> list[str]:
    """What is wrong with one board."""
    panels = list(all_panels(board))
    idents = [panel["id"] for panel in panels]
    found = [f"panel id {ident} is used twice" for ident in sorted({i for i in idents if idents.count(i) > 1})]
    if not re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", str(board.get("uid", ""))):
        found.append("the uid is not one that Grafana takes")
    for panel in panels:
        found += [f"panel {panel['id']} ({panel['title']}): {problem}" for problem in _panel_problems(panel)]
    found += _overlaps([panel for panel in panels if "gridPos" in panel])
    declared = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?([A-Za-z_]+)", json.dumps(board))) - _BUILT_IN
    return found + [f"variable {name} is used and not declared" for name in sorted(used - declared)]


def all_panels(board: Json) -> Iterator[Json]:
    """Panels, and those inside closed rows."""
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels", ())


def queries(board: Json) -> Iterator[tuple[Json, Json]]:
    """Every query with its panel."""
    for panel in all_panels(board):
        for target in panel.get("targets", ()):
            yield panel, target


def _panel_problems(panel: Json) -> Iterator[str]:
    if panel["type"] not in PANELS:
        yield f"type {panel['type']} is not one of ours"
    if panel["type"] in {"row", "text"}:
        return
    if not re.fullmatch(r"[A-Z].+\.", panel.get("description", "")):
        yield "its sentence is missing"
    if not panel["fieldConfig"]["defaults"].get("unit"):
        yield "its unit is missing"
    if not panel.get("targets"):
        yield "it asks for nothing"
    references = [target["refId"] for target in panel.get("targets", ())]
    if len(set(references)) != len(references):
        yield "two queries have one name"
    for target in panel.get("targets", ()):
        yield from _query_problems(target)


def _query_problems(target: Json) -> Iterator[str]:
    if target.get("datasource") not in (INFLUX, PROMETHEUS, GRAFANA):
        yield "a query has no data source of ours"
    for metric in set(_METRIC.findall(target.get("query", "") + target.get("expr", ""))):
        if metric != series.CELL and metric not in series.METRICS:
            yield f"{metric} is not in collector/series.py"
    query = target.get("query", "")
    known: set[str] = set(series.CELL_FIELDS)
    for name in set(_FIELD.findall(query)) - known:
        yield f"field {name} is not in collector/series.py"
    for equal, grouped in _TAG.findall(query):
        for name in [equal] if equal else re.findall(r'"([a-z0-9_]+)"', grouped):
            if name not in series.CELL_TAGS:
                yield f"tag {name} is not in collector/series.py"


def _overlaps(panels: list[Json]) -> Iterator[str]:
    taken: dict[tuple[int, int], Any] = {}
    for panel in panels:
        place = panel["gridPos"]
        if place["x"] + place["w"] > WIDTH:
            yield f"panel {panel['id']} is wider than the board"
        cells = [
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        if any(cell in taken for cell in cells):
            yield f"panel {panel['id']} lies on another"
        taken.update(dict.fromkeys(cells, panel["id"]))

# SPDX-License-Identifier: EUPL-1.2
"""The pieces that boards are made of: variables, queries, panels, and the look of a state.

Pure functions to plain JSON values. Names of measurements, fields and metrics come from collector/series.py,
the look of a state too, so that pages and boards cannot drift apart. Spec: spec/series.md, section "Grafana".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from collector.series import CELL, STATE_CODES, STATE_LOOKS

Json = dict[str, Any]

SCHEMA_VERSION: Final = 39
"""Grafana 11 and later read it, and bring it up to date themselves."""
INFLUX: Final[Json] = {"type": "influxdb", "uid": "evenlane-influx"}
PROMETHEUS: Final[Json] = {"type": "prometheus", "uid": "evenlane-prometheus"}
GRAFANA: Final[Json] = {"type": "grafana", "uid": "-- Grafana --"}
BLUE: Final = "#0072B2"
GREY: Final = "#999999"
VERMILION: Final = "#D55E00"
WIDTH: Final = 24
"""Columns of Grafana's grid."""


def state_mappings() -> list[Json]:
    """Codes to words, signs and colours; never colour alone."""
    options = {
        str(code): {"color": STATE_LOOKS[state].colour, "index": index, "text": f"{look.sign} {look.word}"}
        for index, (state, code) in enumerate(sorted(STATE_CODES.items(), key=lambda item: item[1]))
        for look in [STATE_LOOKS[state]]
    }
    return [{"type": "value", "options": options}]


def where(*names: str) -> str:
    """The condition on the time range and on variables named like their tags."""
    return " AND ".join(["$timeFilter", *(f'"{name}" =~ /^${name}$/' for name in names)])


def select(what: str, *, source: str = f'"{CELL}"', on: str = "", by: Sequence[str] = (), fill: str = "") -> str:
    """An InfluxQL SELECT; `by` holds tags, quoted here, and `time(…)` as it is."""
    groups = ", ".join(group if group.startswith("time(") else f'"{group}"' for group in by)
    parts = ("SELECT", what, "FROM", source, on and f"WHERE {on}", groups and f"GROUP BY {groups}", fill)
    return " ".join(part for part in parts if part)


def last(*fields: str) -> str:
    """The newest value of each field, under the field's name."""
    return ", ".join(f'last("{field}") AS "{field}"' for field in fields)


def influx(query: str, *, ref: str = "A", alias: str = "", table: bool = False) -> Json:
    """A query in InfluxQL."""
    return {
        "datasource": INFLUX,
        "refId": ref,
        "rawQuery": True,
        "query": query,
        "resultFormat": "table" if table else "time_series",
        "alias": alias,
    }


def prometheus(expression: str, *, ref: str = "A", legend: str = "__auto", instant: bool = False) -> Json:
    """A query in PromQL."""
    return {
        "datasource": PROMETHEUS,
        "refId": ref,
        "expr": expression,
        "legendFormat": legend,
        "instant": instant,
        "range": not instant,
    }


def tag_values(tag: str, *, given: Sequence[str] = ()) -> str:
    """The query for a variable: all values of a tag, given the choices of other variables."""
    condition = " AND ".join(f'"{name}" =~ /^${name}$/' for name in given)
    query = f'SHOW TAG VALUES FROM "{CELL}" WITH KEY = "{tag}"'
    return f"{query} WHERE {condition}" if condition else query


def many(name: str, label: str, *, given: Sequence[str] = ()) -> Json:
    """A variable with several values, all of them at first."""
    query = tag_values(name, given=given)
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": INFLUX,
        "query": query,
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "hide": 0,
        "skipUrlSync": False,
    }


def one(name: str, label: str, values: Sequence[str]) -> Json:
    """A variable with one of a few known values."""
    options = [{"selected": value == values[0], "text": value, "value": value} for value in values]
    return {
        "name": name,
        "label": label,
        "type": "custom",
        "query": ",".join(values),
        "multi": False,
        "includeAll": False,
        "current": options[0],
        "options": options,
        "hide": 0,
        "skipUrlSync": False,
    }


def text_box(name: str, label: str, value: str) -> Json:
    """A variable that people type."""
    current = {"selected": True, "text": value, "value": value}
    return {
        "name": name,
        "label": label,
        "type": "textbox",
        "query": value,
        "current": current,
        "options": [current],
        "hide": 0,
        "skipUrlSync": False,
    }


def panel(
    ident: int,
    kind: str,
    title: str,
    description: str,
    *,
    at: tuple[int, int, int, int],
    targets: Sequence[Json],
    unit: str,
    defaults: Json | None = None,
    overrides: Sequence[Json] = (),
    options: Json | None = None,
    transformations: Sequence[Json] = (),
    **more: Any,
) -> Json:
    """A panel. `at` is x, y, width, height; `description` is the one sentence that says what it shows."""
    x, y, width, height = at
    return {
        "id": ident,
        "type": kind,
        "title": title,
        "description": description,
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "datasource": targets[0]["datasource"],
        "targets": list(targets),
        "fieldConfig": {"defaults": {"unit": unit, **(defaults or {})}, "overrides": list(overrides)},
        "options": options or {},
        "transformations": list(transformations),
        **more,
    }


def row(ident: int, title: str, y: int, **more: Any) -> Json:
    """A heading over the panels below it."""
    place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
    return {"id": ident, "type": "row", "title": title, "gridPos": place, "collapsed": False, "panels": [], **more}


def text(ident: int, title: str, words: str, *, at: tuple[int, int, int, int]) -> Json:
    """A few words in Markdown."""
    x, y, width, height = at
    return {
        "id": ident,
        "type": "text",
        "title": title,
        "description": "",
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "options": {"mode": "markdown", "content": words},
    }


def override(field: str, **properties: Any) -> Json:
    """Properties of one field by its name; `custom__x` is written `custom.x`."""
    found = [{"id": name.replace("__", "."), "value": value} for name, value in properties.items()]
    return {"matcher": {"id": "byName", "options": field}, "properties": found}


def line_look(**more: Any) -> Json:
    """How a line is drawn: thin, with points, gaps left open for a day and no longer."""
    return {
        "drawStyle": "line",
        "lineWidth": 2,
        "fillOpacity": 0,
        "showPoints": "auto",
        "pointSize": 5,
        "spanNulls": 86_400_000,
        **more,
    }

# SPDX-License-Identifier: EUPL-1.2
"""The board of operators × apps: state now, every cell with its interval, and both over time.

For regulators: what is shown to the public, over time and with filters. Spec: spec/series.md, section "Grafana".
"""

from __future__ import annotations

from typing import Final

from collector.series import (
    ANNOTATION_TAG,
    METRIC_CASES,
    METRIC_OUTBOX_LAST_SUCCESS,
    METRIC_OUTBOX_WAITING,
    METRIC_RECORDS,
)
from dashboards.parts import (
    BLUE,
    GRAFANA,
    GREY,
    SCHEMA_VERSION,
    VERMILION,
    Json,
    influx,
    last,
    line_look,
    many,
    one,
    override,
    panel,
    prometheus,
    row,
    select,
    state_mappings,
    text,
    text_box,
    where,
)

UID: Final = "evenlane-overview"
_CELL_TAGS: Final = ("operator", "app", "direction", "access", "effect")
_TIME: Final = "time($__interval)"
_HOUR: Final = "1h"
"""There is one point an hour; asking more finely only leaves gaps."""
_ALL: Final = where("operator", "app")
_PICKED: Final = where("operator", "app", "direction", "access", "effect")
_INTRO: Final = (
    "evenlane shows suspected violations of net neutrality, here called **cases**: places where traffic is treated "
    "differently by name or first bytes, with the evidence for it. Whether a rule was broken is for the regulator to "
    "say. Cells with fewer than three probes are not shown. [Public pages](${collector}/) · "
    "[What the words mean](${collector}/glossary)"
)
_CELL_PAGE: Final = "${collector}/cell/" + "/".join("${__data.fields." + tag + ":percentencode}" for tag in _CELL_TAGS)


def board() -> Json:
    """The board as Grafana's JSON model."""
    return {
        "uid": UID,
        "id": None,
        "title": "evenlane: operators and apps",
        "description": "State, size and evidence of every operator and app, now and over time.",
        "tags": [ANNOTATION_TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "utc",
        "time": {"from": "now-30d", "to": "now"},
        "refresh": "5m",
        "weekStart": "monday",
        "links": [],
        "annotations": {"list": [_case_annotations()]},
        "templating": {"list": _variables()},
        "panels": [*_now(), *_over_time(), *_each_operator(), *_collector()],
    }


def _case_annotations() -> Json:
    return {
        "name": "Cases",
        "datasource": GRAFANA,
        "enable": True,
        "hide": False,
        "iconColor": BLUE,
        "target": {"type": "tags", "tags": [ANNOTATION_TAG], "matchAny": True, "limit": 200},
    }


def _variables() -> list[Json]:
    return [
        many("operator", "Operator"),
        many("app", "App", given=("operator",)),
        one("effect", "Effect", ("slowing", "blocking", "prioritising", "tampering")),
        one("direction", "Direction", ("down", "up")),
        one("access", "Access", ("fixed", "mobile", "hotspot")),
        text_box("collector", "Collector's address", "http://localhost:8080"),
    ]


def _now() -> list[Json]:
    newest = select(last("state"), on=_ALL, by=_CELL_TAGS)
    strongest = select('max("state") AS "state"', source=f"({newest})", by=("operator", "app"))
    fields = (
        *("state", "slowdown", "slowdown_low", "slowdown_high", "delay_ms", "loss"),
        *("log10_e", "pairs", "lost", "probes", "slowed"),
    )
    each = select(last(*fields), on=_ALL, by=_CELL_TAGS)
    links = [{"title": "Open the page of this cell", "url": _CELL_PAGE, "targetBlank": True}]
    return [
        text(1, "", _INTRO, at=(0, 0, 24, 3)),
        panel(
            2,
            "table",
            "Operators × apps: the strongest state now",
            "Each place shows the strongest state among all effects, directions and kinds of access.",
            at=(0, 3, 24, 8),
            targets=[influx(strongest, table=True)],
            unit="none",
            defaults={
                "mappings": state_mappings(),
                "noValue": "not measured",
                "custom": {"cellOptions": {"type": "color-background", "mode": "basic"}, "align": "left"},
            },
            overrides=[override("operator\\app", custom__cellOptions={"type": "auto"}, displayName="Operator")],
            options={"showHeader": True, "cellHeight": "sm"},
            transformations=[
                {
                    "id": "groupingToMatrix",
                    "options": {"rowField": "operator", "columnField": "app", "valueField": "state"},
                }
            ],
        ),
        panel(
            3,
            "table",
            "Every cell and effect now",
            "One line per operator, app, direction, access and effect, with the slowdown that the data allow (95 %).",
            at=(0, 11, 24, 10),
            targets=[influx(each, table=True)],
            unit="none",
            defaults={"custom": {"align": "auto", "filterable": True}},
            overrides=[
                override("Time", custom__hidden=True),
                override("operator", links=links, displayName="Operator"),
                override("app", links=links, displayName="App"),
                override(
                    "state",
                    mappings=state_mappings(),
                    custom__cellOptions={"type": "color-background", "mode": "basic"},
                    displayName="State",
                ),
                override("slowdown", unit="percentunit", decimals=0, displayName="Slower by"),
                override("slowdown_low", unit="percentunit", decimals=0, displayName="at least"),
                override("slowdown_high", unit="percentunit", decimals=0, displayName="at most"),
                override("delay_ms", unit="ms", decimals=0, displayName="Waits longer by"),
                override("loss", unit="percentunit", decimals=1, displayName="Loses more by"),
                override("log10_e", decimals=1, displayName="Evidence (powers of ten)"),
                override("pairs", displayName="Pairs"),
                override("lost", displayName="Lost pairs"),
                override("probes", displayName="Probes"),
                override("slowed", displayName="Probes that show it"),
            ],
            options={"showHeader": True, "cellHeight": "sm", "sortBy": [{"displayName": "State", "desc": True}]},
        ),
    ]


def _over_time() -> list[Json]:
    def over_time(field: str) -> Json:
        query = select(last(field), on=_PICKED, by=(_TIME, "operator", "app"), fill="fill(none)")
        return influx(query, alias="$tag_operator · $tag_app")

    return [
        row(4, "Over time: $effect, $direction, $access", 21),
        panel(
            5,
            "state-timeline",
            "State of the chosen effect over time",
            "Each bar is one operator and app; a state holds until the next measurement changes it.",
            at=(0, 22, 24, 8),
            targets=[over_time("state")],
            unit="none",
            defaults={"mappings": state_mappings(), "custom": {"fillOpacity": 90, "lineWidth": 0, "spanNulls": True}},
            options={"showValue": "auto", "mergeValues": True, "rowHeight": 0.85, "legend": {"showLegend": False}},
            interval=_HOUR,
        ),
        panel(
            6,
            "timeseries",
            "Strength of the evidence for the chosen effect",
            "Evidence in powers of ten; above the line at 1.3 (20 to 1) a cell counts as an indication.",
            at=(0, 30, 24, 8),
            targets=[over_time("log10_e")],
            unit="none",
            defaults={
                "custom": line_look(lineInterpolation="stepAfter", thresholdsStyle={"mode": "dashed"}),
                "thresholds": {
                    "mode": "absolute",
                    "steps": [{"color": "transparent", "value": None}, {"color": VERMILION, "value": 1.30103}],
                },
                "decimals": 1,
            },
            options={"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
            interval=_HOUR,
        ),
    ]


def _each_operator() -> list[Json]:
    targets = [
        influx(select(last(field), on=_PICKED, by=(_TIME,), fill="fill(none)"), ref=ref, alias=alias)
        for ref, field, alias in (
            ("A", "slowdown_low", "at least"),
            ("B", "slowdown_high", "at most"),
            ("C", "slowdown", "slower by"),
        )
    ]
    return [
        row(7, "$operator", 38, repeat="operator"),
        panel(
            8,
            "timeseries",
            "$app: slower by how much",
            "How much slower the app is than the same traffic under another name, with what the data allow (95 %).",
            at=(0, 39, 8, 8),
            targets=targets,
            unit="percentunit",
            defaults={"custom": line_look(), "decimals": 0, "color": {"mode": "fixed", "fixedColor": BLUE}},
            overrides=[
                override("at least", color={"mode": "fixed", "fixedColor": GREY}, custom__lineWidth=1),
                override(
                    "at most",
                    color={"mode": "fixed", "fixedColor": GREY},
                    custom__lineWidth=1,
                    custom__fillBelowTo="at least",
                    custom__fillOpacity=25,
                ),
            ],
            options={"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
            interval=_HOUR,
            repeat="app",
            repeatDirection="h",
            maxPerRow=3,
        ),
    ]


def _collector() -> list[Json]:
    return [
        row(9, "The collector itself", 47),
        panel(
            10,
            "timeseries",
            "Records received",
            "Signed records a second, by what became of them.",
            at=(0, 48, 8, 7),
            targets=[prometheus(f"sum by (result) (rate({METRIC_RECORDS}[5m]))", legend="{{result}}")],
            unit="cps",
            defaults={"custom": line_look()},
        ),
        panel(
            11,
            "timeseries",
            "Points waiting for this database",
            "How many results are not yet in this database; it should return to nought.",
            at=(8, 48, 8, 7),
            targets=[prometheus(METRIC_OUTBOX_WAITING, legend="waiting")],
            unit="short",
            defaults={"custom": line_look(), "min": 0},
        ),
        panel(
            12,
            "stat",
            "Last delivery",
            "How long ago everything waiting was last delivered; beyond some minutes this board is out of date.",
            at=(16, 48, 4, 7),
            targets=[prometheus(f"time() - {METRIC_OUTBOX_LAST_SUCCESS}", instant=True)],
            unit="s",
            options={"colorMode": "none", "graphMode": "none", "reduceOptions": {"calcs": ["lastNotNull"]}},
        ),
        panel(
            13,
            "stat",
            "Cases",
            "Cases by status, as the collector counts them.",
            at=(20, 48, 4, 7),
            targets=[prometheus(METRIC_CASES, legend="{{status}}", instant=True)],
            unit="none",
            options={"colorMode": "none", "graphMode": "none", "reduceOptions": {"calcs": ["lastNotNull"]}},
        ),
    ]

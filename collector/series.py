# SPDX-License-Identifier: EUPL-1.2
"""The names of every measurement, tag, field and metric, and the pure way from a cell to a line.

Whoever writes a point, draws a board or scrapes the collector takes the names from here, so that a renamed
field cannot leave an empty panel behind. Spec: spec/series.md.

One point per cell, effect and hour; its time is the start of the hour, so that judging again rewrites the
point instead of adding one. No probe, network or pair is ever a tag, and cells with fewer than three probes
have no points at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from analysis import rules
from collector.model import CellView, EvidencePoint, Interval, State

HOUR_MS: Final = 3_600_000
LEAST_PROBES: Final = 3
"""Fewer probes than this are never published."""
LOG10_E_LIMIT: Final = 300.0
"""Evidence is written within ±300 decades, as `e_value` is capped at 1e300."""

CELL: Final = "evenlane_cell"
"""The measurement. VictoriaMetrics makes of it the metrics evenlane_cell_state, evenlane_cell_log10_e, …"""
CELL_TAGS: Final = ("access", "app", "asn", "country", "direction", "effect", "operator")
"""In the order in which they are written: sorted, as InfluxDB wants them for speed."""
UNKNOWN: Final = "unknown"
"""The value of a tag that is not known. An absent tag would be another series once it becomes known."""

FieldType = Literal["int", "float"]
CELL_FIELDS: Final[Mapping[str, FieldType]] = {
    "state": "int",
    "log10_e": "float",
    "slowdown": "float",
    "slowdown_low": "float",
    "slowdown_high": "float",
    "app_mbps": "float",
    "neutral_mbps": "float",
    "pairs": "int",
    "lost": "int",
    "placebo": "int",
    "failed_app": "int",
    "failed_neutral": "int",
    "probes": "int",
    "slowed": "int",
    "clear": "int",
    "undecided": "int",
    "delay_ms": "float",
    "delay_ms_low": "float",
    "delay_ms_high": "float",
    "loss": "float",
    "loss_low": "float",
    "loss_high": "float",
    "app_delay_ms": "float",
    "neutral_delay_ms": "float",
    "app_loss": "float",
    "neutral_loss": "float",
    "altered_app": "int",
    "altered_neutral": "int",
}
"""Types are fixed for ever: InfluxDB refuses a point whose field has another type than before."""

STATE_CODES: Final[Mapping[State, int]] = rules.STATE_CODES
"""The field `state`: a higher code is a stronger claim. Codes are added, never given to another state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a state looks wherever it is shown; the colours are Okabe and Ito's, told apart by every eye."""

    word: str
    """In English; the pages have it in four languages."""
    colour: str
    sign: str
    """Never colour alone."""


STATE_LOOKS: Final[Mapping[State, Look]] = {
    "insufficient": Look(word="not enough data", colour="#999999", sign="·"),
    "no_indication": Look(word="no indication", colour="#009E73", sign="="),
    "indication": Look(word="indication", colour="#F0E442", sign="?"),
    "replicated": Look(word="replicated", colour="#E69F00", sign="≠"),
    "corroborated": Look(word="corroborated", colour="#D55E00", sign="≠"),
    "not_testable": Look(word="not testable", colour="#FFFFFF", sign="–"),
    "inconclusive": Look(word="inconclusive", colour="#DDDDDD", sign="~"),
}

ANNOTATION_TAG: Final = "evenlane"
"""On every annotation of a case; the boards ask for it."""

# Metrics of the collector itself, for Prometheus.
METRIC_RECORDS: Final = "evenlane_collector_records_total"
"""Counter: envelopes by `type` (measurement, receipt, started) and `result` (stored, repeated, refused)."""
METRIC_INTAKE_SECONDS: Final = "evenlane_collector_intake_seconds"
"""Histogram: from the request's body to the durable acknowledgement."""
METRIC_PAIRS: Final = "evenlane_collector_pairs_total"
"""Counter: pairs scored, by `kind` (test, placebo)."""
METRIC_JUDGE_SECONDS: Final = "evenlane_collector_judge_seconds"
"""Histogram: one run of the judge."""
METRIC_CELLS: Final = "evenlane_collector_cells"
"""Gauge: public cells by `state`."""
METRIC_CASES: Final = "evenlane_collector_cases"
"""Gauge: cases by `status`."""
METRIC_PROBES: Final = "evenlane_collector_probes"
"""Gauge: probes by `standing` (enrolled; vetted: of these by a token; left: ever)."""
METRIC_ALERTS: Final = "evenlane_collector_alerts_total"
"""Counter: alerts by `what` (alerted: a case; ended, withdrawn, corrected: how it was closed). One each a case."""
METRIC_OUTBOX_WAITING: Final = "evenlane_collector_outbox_waiting"
"""Gauge: points not yet in the time-series database."""
METRIC_OUTBOX_POINTS: Final = "evenlane_collector_outbox_points_total"
"""Counter: points by `result` (written, refused)."""
METRIC_OUTBOX_FAILURES: Final = "evenlane_collector_outbox_failures_total"
"""Counter: batches that the time-series database did not take."""
METRIC_OUTBOX_LAST_SUCCESS: Final = "evenlane_collector_outbox_last_success_timestamp_seconds"
"""Gauge: when the last batch was written, Unix seconds."""

METRICS: Final = (
    METRIC_RECORDS,
    METRIC_INTAKE_SECONDS,
    METRIC_PAIRS,
    METRIC_JUDGE_SECONDS,
    METRIC_CELLS,
    METRIC_CASES,
    METRIC_PROBES,
    METRIC_ALERTS,
    METRIC_OUTBOX_WAITING,
    METRIC_OUTBOX_POINTS,
    METRIC_OUTBOX_FAILURES,
    METRIC_OUTBOX_LAST_SUCCESS,
)

FieldValue = int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point as it will be written. `time_ms` is Unix ms and the start of an hour."""

    measurement: str
    tags: tuple[tuple[str, str], ...]
    fields: tuple[tuple[str, FieldValue], ...]
    time_ms: int

    def line(self) -> str:
        """The point in InfluxDB's line protocol, time in milliseconds."""
        tags = "".join(f",{_escaped(name)}={_escaped(value)}" for name, value in self.tags)
        fields = ",".join(f"{_escaped(name)}={_number(value)}" for name, value in self.fields)
        return f"{_escaped(self.measurement)}{tags} {fields} {self.time_ms}"


def bucket_of(time_ms: int) -> int:
    """Start of the hour that holds the time, both Unix ms."""
    return time_ms - time_ms % HOUR_MS


def publishable(cell: CellView) -> bool:
    """Whether the cell may have points at all (statistics.md, "Trust and privacy": three distinct probes)."""
    return cell.probes >= LEAST_PROBES


def cell_point(cell: CellView, evidence: EvidencePoint) -> Point:
    """The cell at the end of one hour: what `evidence` says of the hour, the rest from the cell as it was then."""
    fields: dict[str, FieldValue | None] = {
        "state": STATE_CODES[evidence.state],
        "log10_e": _limited(evidence.log10_e),
        **_interval("slowdown", evidence.slowdown),
        **_interval("delay_ms", evidence.delay_ms),
        **_interval("loss", evidence.loss),
        **{
            name: None if found is None else float(found.estimate)
            for name, found in (
                ("app_mbps", cell.app_mbps),
                ("neutral_mbps", cell.neutral_mbps),
                ("app_delay_ms", cell.app_delay_ms),
                ("neutral_delay_ms", cell.neutral_delay_ms),
                ("app_loss", cell.app_loss),
                ("neutral_loss", cell.neutral_loss),
            )
        },
        "pairs": evidence.pairs,
        "lost": cell.lost_pairs,
        "placebo": cell.placebo_pairs,
        "failed_app": cell.failed_app,
        "failed_neutral": cell.failed_neutral,
        "probes": cell.probes,
        "slowed": cell.slowed,
        "clear": cell.clear,
        "undecided": cell.undecided,
        "altered_app": cell.altered_app,
        "altered_neutral": cell.altered_neutral,
    }
    tags = {
        "access": cell.key.access,
        "app": cell.key.app,
        "asn": UNKNOWN if cell.key.asn is None else str(cell.key.asn),
        "country": cell.country or UNKNOWN,
        "direction": cell.key.direction,
        "effect": cell.key.effect,
        "operator": cell.key.operator,
    }
    return Point(
        measurement=CELL,
        tags=tuple((name, _tag_value(tags[name])) for name in CELL_TAGS),
        fields=tuple((name, value) for name in CELL_FIELDS if (value := fields[name]) is not None),
        time_ms=bucket_of(evidence.bucket_ms),
    )


def problems(point: Point) -> tuple[str, ...]:
    """Why the point must not be written; empty where it may.

    Checked here because not every database checks: VictoriaMetrics answers 204 to a malformed line and
    turns text into 0.
    """
    return (*_name_problems(point), *_field_problems(point), *_time_problems(point))


_TAG_LONGEST: Final = 128
_TAG_REFUSED = re.compile(r"[\x00-\x1f\x7f\\]")
"""Control characters, and the backslash, which InfluxDB keeps doubled where VictoriaMetrics halves it."""


def _name_problems(point: Point) -> tuple[str, ...]:
    found = []
    if point.measurement != CELL:
        found.append(f"measurement {point.measurement!r} is not in collector/series.py")
    if tuple(name for name, _ in point.tags) != CELL_TAGS:
        found.append("the tags are not exactly those of collector/series.py, in their order")
    found += [
        f"tag {name} is empty, too long or has a character that databases read differently"
        for name, value in point.tags
        if not 0 < len(value) <= _TAG_LONGEST or _TAG_REFUSED.search(value) or value != value.strip()
    ]
    return tuple(found)


def _field_problems(point: Point) -> tuple[str, ...]:
    found = [] if point.fields else ["the point has no field"]
    names = [name for name, _ in point.fields]
    if len(set(names)) != len(names):
        found.append("a field stands twice")
    for name, value in point.fields:
        wanted = CELL_FIELDS.get(name)
        if wanted is None:
            found.append(f"field {name!r} is not in collector/series.py")
        elif type(value) is not (int if wanted == "int" else float):
            found.append(f"field {name} is {type(value).__name__} instead of {wanted}")
        elif not math.isfinite(value) or abs(value) >= 2**63:
            found.append(f"field {name} is not a finite number within 64 bits")
        elif name == "state" and value not in STATE_CODES.values():
            found.append(f"state {value} has no meaning")
    return tuple(found)


def _time_problems(point: Point) -> tuple[str, ...]:
    if point.time_ms <= 0 or point.time_ms % HOUR_MS:
        return ("the time is not the start of an hour",)
    return ()


def _tag_value(text: str) -> str:
    """The text as every database reads it alike: names of operators come from registers written by people."""
    return _TAG_REFUSED.sub(" ", text)[:_TAG_LONGEST].strip() or UNKNOWN


def _interval(name: str, interval: Interval | None) -> dict[str, FieldValue | None]:
    """A size with its interval as three fields; none of them while it is unbounded."""
    if interval is None or not all(map(math.isfinite, (interval.estimate, interval.low, interval.high))):
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return {
        name: float(interval.estimate),
        f"{name}_low": float(interval.low),
        f"{name}_high": float(interval.high),
    }


def _limited(log10_e: float) -> float:
    """Within the limits; an impossible claim (E = 0) is minus infinity in logs and still deserves a point."""
    return max(-LOG10_E_LIMIT, min(LOG10_E_LIMIT, float(log10_e)))


def _escaped(text: str) -> str:
    return text.replace(",", r"\,").replace("=", r"\=").replace(" ", r"\ ")


def _number(value: FieldValue) -> str:
    return f"{value}i" if isinstance(value, int) else repr(value)

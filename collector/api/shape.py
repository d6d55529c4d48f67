# SPDX-License-Identifier: EUPL-1.2
"""How cells, cases and pairs look in JSON and CSV. Pure.

A cell's row has the members of `evenlane analysis verdict --json`, and what the collector knows beside them.
Spec: spec/api.md, sections "Cells", "Cases" and "Open data".
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any, Final

from collector.model import CaseView, CellView, EvidencePoint, Interval, OperatorView, PairEvidence
from collector.store.rows import plain
from probe.wire.codec import fields_of
from probe.wire.records import PairRecord


def _interval(interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {"estimate": None, "low": None, "high": None}
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def cell_row(cell: CellView) -> dict[str, Any]:
    """One cell and effect."""
    key = cell.key
    return {
        "operator": key.operator,
        "asn": key.asn,
        "country": cell.country,
        "app": key.app,
        "direction": key.direction,
        "access": key.access,
        "effect": key.effect,
        "state": cell.state,
        "e_value": cell.e_value,
        "log10_e": cell.log10_e,
        "slowdown": _interval(cell.slowdown),
        "app_mbps": _interval(cell.app_mbps),
        "neutral_mbps": _interval(cell.neutral_mbps),
        "pairs": cell.pairs,
        "lost_pairs": cell.lost_pairs,
        "placebo_pairs": cell.placebo_pairs,
        "failed_app": cell.failed_app,
        "failed_neutral": cell.failed_neutral,
        "probes": cell.probes,
        "prevalence": {"slowed": cell.slowed, "clear": cell.clear, "undecided": cell.undecided},
        "detectable": {"rate_mbps": cell.detectable_rate_mbps, "burst_kb": cell.detectable_burst_kb},
        "reasons": list(cell.reasons),
        "case": cell.case,
        "updated_ms": cell.updated_ms,
        "log10_e_without_one": cell.log10_e_without_one,
    }


def case_row(case: CaseView) -> dict[str, Any]:
    """One case without its pairs."""
    return {**plain(case), "cell": cell_row(case.cell)}


def operator_row(operator: OperatorView) -> dict[str, Any]:
    """One entry of the register."""
    row: dict[str, Any] = plain(operator)
    return row


def pictures(
    pairs: Iterable[PairRecord], by_pair: Iterable[PairEvidence], by_hour: Iterable[EvidencePoint]
) -> dict[str, Any]:
    """What a detail adds: everything from which the verdict can be recomputed."""
    return {
        "pairs": [plain(pair) for pair in pairs],
        "evidence_by_pair": [plain(point) for point in by_pair],
        "evidence_by_hour": [plain(point) for point in by_hour],
    }


def flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as `a_b`, lists joined by semicolons: one line of CSV."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{name}_"))
        else:
            found[prefix + name] = ";".join(str(item) for item in value) if isinstance(value, list) else value
    return found


PAIR_COLUMNS: Final = tuple(name for name, *_ in fields_of(PairRecord))


def to_csv(rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> str:
    """CSV by RFC 4180, UTF-8, with a header line; nothing for None, lower-case booleans."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows([_csv_value(row.get(name)) for name in columns] for row in rows)
    return out.getvalue()


def _csv_value(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"}:
        # A spreadsheet would run it as a formula; names of operators come from other people's tables.
        return f"'{value}"
    return value


_EMPTY_CELL: Final = (
    "operator asn country app direction access effect state e_value log10_e"
    " slowdown_estimate slowdown_low slowdown_high app_mbps_estimate app_mbps_low app_mbps_high"
    " neutral_mbps_estimate neutral_mbps_low neutral_mbps_high pairs lost_pairs placebo_pairs failed_app"
    " failed_neutral probes prevalence_slowed prevalence_clear prevalence_undecided detectable_rate_mbps"
    " detectable_burst_kb reasons case updated_ms log10_e_without_one"
)
CELL_COLUMNS: Final = tuple(_EMPTY_CELL.split())
CASE_COLUMNS: Final = (
    "id",
    "status",
    "supported",
    "opened_ms",
    "onset_day",
    "ended_ms",
    "smallest_coalition",
    "hypotheses",
    "threshold_log10_e",
    *(f"cell_{name}" for name in CELL_COLUMNS),
)

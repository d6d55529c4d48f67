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

from collector.model import CaseDetail, CaseView, CellDetail, CellView, CoinCounts, Interval, OperatorView
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
        "detectable": {
            "rate_mbps": cell.detectable_rate_mbps,
            "burst_kb": cell.detectable_burst_kb,
            "delay_ms": cell.detectable_delay_ms,
            "loss": cell.detectable_loss,
        },
        "reasons": list(cell.reasons),
        "case": cell.case,
        "updated_ms": cell.updated_ms,
        "log10_e_without_one": cell.log10_e_without_one,
        "delay_ms": _interval(cell.delay_ms),
        "loss": _interval(cell.loss),
        "share": None if cell.share is None else _interval(cell.share),
        "app_delay_ms": _interval(cell.app_delay_ms),
        "neutral_delay_ms": _interval(cell.neutral_delay_ms),
        "app_loss": _interval(cell.app_loss),
        "neutral_loss": _interval(cell.neutral_loss),
        "altered_app": cell.altered_app,
        "altered_neutral": cell.altered_neutral,
        "since_day": cell.since_day,
        "log10_e_without_two": cell.log10_e_without_two,
        "rule": cell.rule or None,
        "altered_both": cell.altered_both,
        "by_coin": {"neutral_first": _coin(cell.neutral_first), "app_first": _coin(cell.app_first)},
    }


def _coin(counts: CoinCounts | None) -> dict[str, int | None]:
    if counts is None:
        return dict.fromkeys(("pairs", "void", "failed_app", "failed_neutral"))
    return {
        "pairs": counts.pairs,
        "void": counts.void,
        "failed_app": counts.failed_app,
        "failed_neutral": counts.failed_neutral,
    }


def case_row(case: CaseView) -> dict[str, Any]:
    """One case without its pairs."""
    return {**plain(case), "cell": cell_row(case.cell), "alerted": case.alerted}


def operator_row(operator: OperatorView) -> dict[str, Any]:
    """One entry of the register."""
    row: dict[str, Any] = plain(operator)
    return row


def pictures(detail: CaseDetail | CellDetail) -> dict[str, Any]:
    """What a detail adds: everything from which the verdict can be recomputed, and what earlier rules had said."""
    return {
        "pairs": [plain(pair) for pair in detail.pairs],
        "evidence_by_pair": [plain(point) for point in detail.evidence_by_pair],
        "evidence_by_hour": [plain(point) for point in detail.evidence_by_hour],
        "rule": detail.rule,
        "verdicts_by_rule": [
            {"rule": said.rule, "until_ms": said.until_ms, "cell": cell_row(said.cell)}
            for said in detail.verdicts_by_rule
        ],
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
    if isinstance(value, list | tuple):
        value = ";".join(str(item) for item in value)
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
    " delay_ms_estimate delay_ms_low delay_ms_high loss_estimate loss_low loss_high"
    " share_estimate share_low share_high app_delay_ms_estimate app_delay_ms_low app_delay_ms_high"
    " neutral_delay_ms_estimate neutral_delay_ms_low neutral_delay_ms_high app_loss_estimate app_loss_low app_loss_high"
    " neutral_loss_estimate neutral_loss_low neutral_loss_high altered_app altered_neutral"
    " detectable_delay_ms detectable_loss since_day log10_e_without_two rule altered_both"
    " by_coin_neutral_first_pairs by_coin_neutral_first_void by_coin_neutral_first_failed_app"
    " by_coin_neutral_first_failed_neutral by_coin_app_first_pairs by_coin_app_first_void"
    " by_coin_app_first_failed_app by_coin_app_first_failed_neutral"
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
    "episode",
    "retrospective",
    "alerted",
    *(f"cell_{name}" for name in CELL_COLUMNS),
)

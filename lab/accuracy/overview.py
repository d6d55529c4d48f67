# SPDX-License-Identifier: EUPL-1.2
"""The study on a terminal: one line a row. spec/accuracy.md section 1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lab.accuracy import results
from lab.accuracy.expectation import differs
from lab.accuracy.model import Row
from lab.accuracy.study import Outcome


def of_outcomes(outcomes: Iterable[Outcome], asked: int) -> dict[str, Any]:
    """What was just played, as the one object of `--json`."""
    rows = []
    for one in outcomes:
        now = {"played": list(one.played), "seconds": one.seconds, "failed": one.failed}
        rows.append({**one.result, **now})
    return _document(rows, asked)


def of(rows: Sequence[Row], directory: Path) -> dict[str, Any]:
    """What is known of rows without playing any."""
    shown = []
    for row in rows:
        kept = results.read(row.name, directory)
        known = {"row": row.name, "kind": row.kind, "engine": row.engine, "title": row.title}
        shown.append({**known, "differs": []} if kept is None else {**kept, "differs": differs(row, kept)})
    return _document(shown, len(rows))


def _document(rows: list[dict[str, Any]], asked: int) -> dict[str, Any]:
    failed = [row["row"] for row in rows if row.get("failed")]
    return {"rows": rows, "left": asked - len(rows), "failed": failed, "ok": not any(row["differs"] for row in rows)}


def table(document: dict[str, Any]) -> str:
    """The document for people."""
    lines = [f"{'row':<34} {'kind':<14} {'found':<10} {'wrong':<10} {'E >= 20':<12} {'real':<10}"]
    for row in document["rows"]:
        virtual, real = row.get("virtual"), row.get("real")
        found = _of(virtual["found"]) if virtual and virtual["found"] else "-"
        wrong = _of(virtual["wrong"]) if virtual else "-"
        crossed = _of(virtual["streams"]["reached_20"]) if virtual else "-"
        mark = "ok" if not row["differs"] else "DIFFERS"
        told = "not played" if virtual is None and real is None else mark
        lines.append(
            f"{row['row']:<34} {row['kind']:<14} {found:<10} {wrong:<10} {crossed:<12} {_real(real):<10} {told}"
        )
        lines += [f"    {what}" for what in row["differs"]]
        lines += [f"    real sockets could not be used: {row['failed']}"] if row.get("failed") else []
    if document["left"]:
        lines.append(f"{document['left']} rows are left; the same command goes on with them")
    return "\n".join(lines)


def _of(share: dict[str, Any]) -> str:
    return f"{share['k']}/{share['n']}"


def _real(real: dict[str, Any] | None) -> str:
    if real is None:
        return "-"
    if real.get("skipped"):
        return "not played"
    if real.get("void"):
        return "void"
    return "agrees" if real["agrees"] else "differs"

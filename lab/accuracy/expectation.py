# SPDX-License-Identifier: EUPL-1.2
"""Is a row as it must be? One list of sentences, empty where everything is. spec/accuracy.md section 7."""

from __future__ import annotations

from typing import Any, Final

from lab.accuracy import results
from lab.accuracy.model import Row

MOST_CROSSING: Final = 0.05
"""Ville's bound: under no noise may more streams than these ever reach 20."""


def differs(row: Row, result: dict[str, Any]) -> list[str]:
    """In what a row's result is not as its file says."""
    found: list[str] = []
    if "virtual" in result:
        found += _virtual(row, result["virtual"])
    real = result.get("real")
    if real is not None and not real.get("skipped") and real.get("differs"):
        found += [f"real sockets: {what}" for what in real["differs"]]
    return found


def worst_effect(virtual: dict[str, Any]) -> dict[str, Any]:
    """Of the effects, the one that most streams reached 20 for: Ville's bound holds for each by itself."""
    streams = virtual["streams"]
    shares: list[dict[str, Any]] = list(streams["by_effect"].values())
    return max(shares, key=lambda one: one["k"], default=results.share(0, streams["count"]))


def _virtual(row: Row, virtual: dict[str, Any]) -> list[str]:
    found: list[str] = []
    wrong = virtual["wrong"]
    if row.options.get("misleads"):
        # What is broken on purpose has to show, or the row proves nothing.
        if not wrong["k"] and (worst_effect(virtual)["low"] or 0) <= MOST_CROSSING:
            found.append("nothing was misled, so the row does not show what it is for")
        return found
    if wrong["k"]:
        found.append(f"wrongly corroborated in {wrong['k']} of {wrong['n']} repeats")
    seen = virtual["found"]
    if row.inside and seen is not None and seen["n"] and seen["share"] < row.target:
        found.append(f"found in {seen['k']} of {seen['n']} repeats, not in {row.target:.0%}")
    if (row.kind == "neutral" and not row.options.get("without_gate")) or "most_crossing" in row.options:
        most = float(row.options.get("most_crossing", MOST_CROSSING))
        crossed = worst_effect(virtual)
        # Chance alone may carry a share a little above its bound; the interval must reach down to it.
        if crossed["n"] and crossed["low"] > most:
            found.append(f"{crossed['k']} of {crossed['n']} streams reached 20, more than {most:.0%}")
    return found + _idle_gates(virtual)


def _idle_gates(virtual: dict[str, Any]) -> list[str]:
    """Gates that the row leaves out and that made no difference to it."""
    moved: dict[str, bool] = {}
    for cell in virtual["cells"].values():
        for gate, states in cell.get("without", {}).items():
            moved[gate] = moved.get(gate, False) or states != cell["states"]
    why = "changes nothing, so the row does not show what it is for"
    return [f"leaving out {gate} {why}" for gate, has_moved in moved.items() if not has_moved]

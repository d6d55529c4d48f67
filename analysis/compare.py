# SPDX-License-Identifier: EUPL-1.2
"""Two verdicts side by side, row by row: what changed, and what one of them does not speak of.

The old one may be another rule's, or what somebody published. Pure but for `rows_of`. Spec: spec/rejudge.md,
section "Side by side".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from analysis.archive import ArchiveError, whole
from analysis.pairs import CellKey
from probe.wire.codec import WireError, loads

CLAIMS: Final = frozenset({"indication", "replicated", "corroborated"})
MOST_VERDICT: Final = 64_000_000

Identity = tuple[str, int | None, str, str, str, str]
IDENTITY: Final = ("operator", "asn", "app", "direction", "access", "effect")
COMPARED: Final = (
    "state",
    "e_value",
    "slowdown",
    "pairs",
    "lost_pairs",
    "probes",
    "prevalence",
    "reasons",
)
SHOWN: Final = (*COMPARED, "detectable")
"""Beside the verdict stands what could have been seen at all, which is no part of it."""


def identity(row: Mapping[str, Any]) -> Identity:
    """What a row is about."""
    return tuple(row.get(name) for name in IDENTITY)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One cell and effect, before and now."""

    about: Mapping[str, Any]
    old: Mapping[str, Any] | None
    new: Mapping[str, Any] | None
    changed: tuple[str, ...]
    """Members that differ, of those that both have; `only_old`, `only_new` where one side lacks it."""
    retrospective_pairs: int
    """Pairs from before the new rule's publication: its guarantee does not hold for what it says of them."""

    @property
    def differs(self) -> bool:
        """Whether the verdicts are not the same. One side's silence is a difference only beside a claim."""
        if self.old is None or self.new is None:
            return (self.new or self.old or {}).get("state") in CLAIMS
        return bool(self.changed)

    def row(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **self.about,
            "old": self.old,
            "new": self.new,
            "changed": list(self.changed),
            "differs": self.differs,
            "retrospective": self.retrospective_pairs > 0,
            "retrospective_pairs": self.retrospective_pairs,
        }


def side_by_side(
    old: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]], early: Mapping[CellKey, int]
) -> list[Compared]:
    """Two verdicts, row by row, in a fixed order."""
    before, now = ({identity(row): row for row in rows} for rows in (old, new))
    retrospective = {cell.order: count for cell, count in early.items()}
    found = []
    for key in sorted(before.keys() | now.keys(), key=_order):
        one, other = before.get(key), now.get(key)
        found.append(
            Compared(
                about=dict(zip(IDENTITY, key, strict=True)),
                old=_without_identity(one),
                new=_without_identity(other),
                changed=_changed(one, other),
                retrospective_pairs=retrospective.get(_order(key)[:5], 0) if other is not None else 0,
            )
        )
    return found


def _order(key: Identity) -> tuple[str, int, str, str, str, str]:
    operator, asn, app, direction, access, effect = key
    return (operator, -1 if asn is None else asn, app, direction, access, effect)


def _without_identity(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if row is None else {name: row[name] for name in SHOWN if name in row}


def _changed(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> tuple[str, ...]:
    if old is None or new is None:
        return ("only_new",) if old is None else ("only_old",)
    return tuple(n for n in COMPARED if n in old and n in new and not same(old[n], new[n]))


def same(old: Any, new: Any) -> bool:
    """Whether two plain values say the same: lists as sets, an open interval with or without its middle."""
    if isinstance(old, dict) and isinstance(new, dict) and "low" in old and "low" in new:
        unbounded = [None in (one.get("low"), one.get("high")) for one in (old, new)]
        if any(unbounded) and None in (old.get("estimate"), new.get("estimate")):
            return all(unbounded)
    if isinstance(old, list) and isinstance(new, list):
        return {repr(one) for one in old} == {repr(one) for one in new}
    return bool(old == new)


def absent(compared: Sequence[Compared]) -> tuple[list[Compared], int]:
    """Without the old rows of cells of which nothing was given, and how many those are."""
    here = {_order(identity(one.about))[:5] for one in compared if one.new is not None}
    kept = [one for one in compared if one.new is not None or _order(identity(one.about))[:5] in here]
    return kept, len(compared) - len(kept)


def rows_of(path: Path) -> list[Mapping[str, Any]]:
    """Rows of a verdict that was given before: of `verdict --json`, of `rejudge`, of /v1/cells, /v1/cases or a case.

    Raises ArchiveError.
    """
    try:
        told = loads(whole(path, MOST_VERDICT), longest=MOST_VERDICT)
    except WireError as error:
        raise ArchiveError(f"{path} holds no verdict ({error})") from None
    listed = told.get("cells", told.get("cases", [told])) if isinstance(told, dict) else None
    if not isinstance(listed, list):
        raise ArchiveError(f"{path} holds no verdict; give the JSON of /v1/cells, of a case, or of `verdict --json`")
    found: list[Mapping[str, Any]] = []
    for number, one in enumerate(listed, start=1):
        row = one.get("cell", one) if isinstance(one, dict) else None
        if isinstance(row, dict) and isinstance(row.get("new"), dict):
            row = {**row, **row["new"]}
        if not isinstance(row, dict) or not _is_row(row):
            raise ArchiveError(f"{path}, cell {number} is no verdict: it needs {', '.join(IDENTITY)} and state")
        found.append(row)
    return found


def _is_row(row: Mapping[str, Any]) -> bool:
    texts = all(isinstance(row.get(name), str) for name in (*IDENTITY, "state") if name != "asn")
    return texts and "asn" in row and (row["asn"] is None or type(row["asn"]) is int)

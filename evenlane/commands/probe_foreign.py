# SPDX-License-Identifier: EUPL-1.2
"""Finds somebody else's packages that bear the names of ours, and says how to get them out of the way.

`probe`, `analysis`, `collector` and `lab` are everyday names: a student's folder or another distribution may come
first on the path, and then nothing here works. So this module imports nothing of ours, and every command that cannot
find its own modules may ask it. See docs/adr/0001-one-distribution-flat-packages.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

OURS: Final = ("probe", "analysis", "collector", "lab", "dashboards")


@dataclass(frozen=True, slots=True)
class Foreign:
    """A package that is not ours."""

    name: str
    entry: str
    """The entry of the path that it is found below."""
    advice: str


def home() -> Path:
    """The directory in which our own packages lie, side by side: that of `evenlane`."""
    return Path(__file__).resolve().parents[2]


def foreign(path: Sequence[str] | None = None, where: Path | None = None) -> list[Foreign]:
    """Packages of our names that Python would take from elsewhere, and such as another distribution put among ours."""
    path = sys.path if path is None else path
    where = where or home()
    found = [one for name in OURS if (one := _shadowing(name, path, where))]
    return found + [one for one in _mixed(where) if one.name not in {other.name for other in found}]


def sentence(found: Iterable[Foreign]) -> str:
    """One sentence about all of them."""
    listed = list(found)
    names = ", ".join(f"`{one.name}`" for one in listed)
    entries = ", ".join(dict.fromkeys(one.entry or "the working directory" for one in listed))
    return f"another package {names} stands in the way, in {entries}: {listed[0].advice}"


def _shadowing(name: str, path: Sequence[str], where: Path) -> Foreign | None:
    """Whoever wins the search for a name, where it is not ours."""
    spec = PathFinder.find_spec(name, list(path))
    if spec is None:
        return None  # a router has no collector
    folders = list(spec.submodule_search_locations or ())
    # A package's folder, with __init__ or without; else a single file.
    place = folders[0] if folders else spec.origin
    if place is None or Path(place).resolve().parent == where:
        return None
    parent = Path(place).resolve().parent
    return Foreign(name, _entry_of(parent, path), _advice(parent, path))


def _entry_of(parent: Path, path: Sequence[str]) -> str:
    return next((entry for entry in path if Path(entry or ".").resolve() == parent), str(parent))


def _advice(parent: Path, path: Sequence[str]) -> str:
    """How to get an entry of the path out of the way."""
    told = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if any(entry and Path(entry).resolve() == parent for entry in told):
        return "take that directory out of the variable PYTHONPATH"
    first = path[0] if path else ""
    if Path(first or ".").resolve() == parent:
        return (
            "call evenlane from another directory, or keep that one off the path (`python -P`, or PYTHONSAFEPATH=1 in "
            "the environment)"
        )
    return "install evenlane into an environment of its own (pipx, or python3 -m venv)"


def _mixed(where: Path) -> list[Foreign]:
    """Distributions that installed the same names into our own directory: each overwrites the other's files."""
    found = []
    for info in sorted(where.glob("*.dist-info")):
        if info.name.startswith("evenlane-"):
            continue
        names = set(_lines(info / "top_level.txt")) | _recorded(info / "RECORD")
        found += [
            Foreign(
                name,
                str(where),
                f"{info.name.partition('-')[0]} installed it over ours; give evenlane an environment of its own (pipx, "
                "or python3 -m venv)",
            )
            for name in OURS
            if name in names
        ]
    return found


def _recorded(record: Path) -> set[str]:
    """Packages whose `__init__` a distribution installed at the top."""
    rows = (row.partition(",")[0] for row in _lines(record))
    return {row.partition("/")[0] for row in rows if row.endswith("/__init__.py") and row.count("/") == 1}


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []

# SPDX-License-Identifier: EUPL-1.2
"""`evenlane analysis rejudge`: the same pairs judged by another rule, beside the old verdict. Spec: spec/rejudge.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evenlane.extras import CannotRun

if TYPE_CHECKING:
    from analysis.editions import Edition
    from analysis.rejudge import Judged

ALONE_BYTES: Final = 4_000_000
"""Below this, starting a second process takes longer than it saves."""
MOST_WORKERS: Final = 64
MOST_FIGURES: Final = 20


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the action's parser."""
    parser = actions.add_parser(
        "rejudge",
        help="judge again, by another version of the rule or to check a published verdict",
        description="Judge pairs again and show the new verdict beside the old one. FILE is open data of a collector "
        "(JSON lines, CSV, or the JSON of a case or of /v1/evidence) or signed records as for `verdict`; each may be "
        "packed with gzip. Exit code 0: the same, 1: something differs.",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path)
    parser.add_argument(
        "--rule", metavar="VERSION|FILE", help="judge by this version of the rule, or by a rule in TOML or JSON"
    )
    parser.add_argument(
        "--against",
        metavar="VERSION|FILE",
        help="compare with this rule, or with a verdict as JSON (/v1/cells, a case, `verdict --json`, --out)",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the result as JSON")
    parser.add_argument("--workers", metavar="N", type=_workers, help="processes that read pairs (default: one a core)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def add_rule(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of `analysis rule`."""
    parser = actions.add_parser(
        "rule",
        help="print an edition of the rule",
        description="Print an edition of the rule: every number that a verdict depends on. Changed and under an id of "
        "its own, it can be given to `rejudge --rule`.",
    )
    parser.add_argument("version", metavar="VERSION|FILE", nargs="?", help="which (default: the one in force)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run_rule)


def run_rule(args: argparse.Namespace) -> int:
    """Print a rule."""
    from analysis.editions import RuleError, edition, to_toml, to_values

    try:
        found = edition(args.version or _current())
    except RuleError as error:
        print(f"evenlane: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps({"rule": found.rules.name, "digest": found.digest, "values": to_values(found.rules)}))
    else:
        print(f"# {found.rules.name}, SHA-256 {found.digest}\n{to_toml(found.rules)}", end="")
    return 0


def _workers(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MOST_WORKERS:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to {MOST_WORKERS}")


@dataclass(frozen=True, slots=True)
class _Against:
    """What the new verdict is compared with: a rule that judges too, or rows that were given."""

    name: str
    edition: Edition | None
    rows: Sequence[Mapping[str, Any]]


def run(args: argparse.Namespace) -> int:
    """Judge again and compare."""
    from analysis.archive import ArchiveError
    from analysis.editions import RuleError, edition
    from analysis.sources import SourceError

    try:
        new, against = edition(args.rule or _current()), _against(args.against, args.rule)
    except (RuleError, ArchiveError) as error:
        print(f"evenlane: {error}", file=sys.stderr)
        return 2
    editions = [new] if against.edition is None else [new, against.edition]
    try:
        judged = _judged(args.files, editions, args.workers)
    except (ArchiveError, SourceError) as error:
        raise CannotRun(str(error)) from None
    told = _told(judged, new, against, args.files)
    if args.out is not None:
        try:
            args.out.write_text(json.dumps(told, allow_nan=False, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise CannotRun(f"cannot write {args.out}: {error.strerror or error}") from None
    if args.json:
        print(json.dumps(told, allow_nan=False))
    else:
        _print(told)
    return 1 if told["differs"] else 0


def _current() -> str:
    from analysis.editions import CURRENT

    return str(CURRENT)


def _against(given: str | None, rule: str | None) -> _Against:
    """A version or a TOML file is a rule; any other file holds a verdict. By default the version before."""
    from analysis.compare import rows_of
    from analysis.editions import CURRENT, edition

    if given is None:
        given = str(CURRENT - 1 if rule in (None, str(CURRENT)) else CURRENT)
    if given.isdigit() or given.endswith(".toml"):
        found = edition(given)
        return _Against(found.rules.name, found, ())
    return _Against(given, None, rows_of(Path(given)))


def _judged(files: Sequence[Path], editions: Sequence[Edition], workers: int | None) -> Judged:
    from analysis.archive import ArchiveError
    from analysis.crew import counted
    from analysis.opendata import is_published
    from analysis.rejudge import judge_published, judge_signed, unusable

    kinds = {is_published(path) for path in files}
    if len(kinds) > 1:
        raise ArchiveError(
            "the files are published pairs and signed records; judge one kind at a time, lest pairs count twice"
        )
    told = _progress if sys.stderr.isatty() else None
    if kinds == {False}:
        return judge_signed(files, editions)
    for edition in editions:
        why = unusable(edition.rules)
        if why is not None:
            raise ArchiveError(why)
    size = sum(path.stat().st_size for path in files)
    tally = counted(files, editions, workers or (_cores() if size > ALONE_BYTES else 1), told)
    if told:
        print("\r\033[K", end="", file=sys.stderr)
    return judge_published(tally)


def _cores() -> int:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, MOST_WORKERS)


def _progress(share: float) -> None:
    print(f"\rcounting pairs: {share:.0%}", end="", file=sys.stderr, flush=True)


def _told(judged: Judged, new: Edition, against: _Against, files: Sequence[Path]) -> dict[str, Any]:
    """The result as plain values."""
    from analysis.archive import sha256
    from analysis.compare import absent, side_by_side
    from analysis.plan import DEFAULT_PLAN

    early = judged.early
    old = against.rows if against.edition is None else [v.row() for v in judged.verdicts[1]]
    compared, left_out = absent(side_by_side(old, [v.row() for v in judged.verdicts[0]], early[0]))
    notes = list(judged.notes)
    if left_out:
        notes.append(f"{left_out} rows of {against.name} are of cells of which the files hold no pair.")
    return {
        "rule": new.rules.name,
        "published": new.rules.published,
        "against": against.name,
        "plan": DEFAULT_PLAN.name,
        "cells": [one.row() for one in compared],
        "differs": sum(one.differs for one in compared),
        "pairs": judged.pairs,
        "files": [{"file": str(path), "sha256": sha256(path)} for path in files],
        "inputs": judged.inputs,
        "midpoints": judged.midpoints,
        "refused": dict(judged.refused),
        "notes": notes,
    }


# Words


def _print(told: Mapping[str, Any]) -> None:
    rows = told["cells"]
    changed = [row for row in rows if row["differs"]]
    silent = sum(bool(row["changed"]) for row in rows) - len(changed)
    # What is claimed differently first; of figures alone not more than one reads.
    claimed = [row for row in changed if {"state", "only_old", "only_new"} & set(row["changed"])]
    figures = [row for row in changed if row not in claimed]
    for row in [*claimed, *figures[:MOST_FIGURES]]:
        print(_filled(_sentence(row), "  "))
    if len(figures) > MOST_FIGURES:
        print(f"{len(figures) - MOST_FIGURES} more differ in figures alone; --json has them all.")
    print(
        _filled(
            f"{told['pairs']} pairs, {len(rows)} cells and effects judged by {told['rule']}: {len(changed)} not as by "
            f"{told['against']}, {len(rows) - len(changed) - silent} the same"
            + (f", {silent} spoken of by one of the two alone, which claims nothing." if silent else ".")
        ),
        end="\n\n",
    )
    for note in [*_retrospective(told), *told["notes"]]:
        print(_filled(note), end="\n\n")


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 100, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def _retrospective(told: Mapping[str, Any]) -> Iterator[str]:
    cells = {tuple(row[name] for name in _CELL): row["retrospective_pairs"] for row in told["cells"]}
    early = sum(cells.values())
    if early:
        yield (
            f"{early} test pairs are from before {told['published']}, when this rule was published: what it says of "
            "them is retrospective, and its promise on false cases does not hold there."
        )


_CELL: Final = ("operator", "asn", "app", "direction", "access")


def _sentence(row: Mapping[str, Any]) -> str:
    where = row["operator"] if row["asn"] is None else f"{row['operator']} (AS{row['asn']})"
    head = f"{where}, {row['app']}, {row['direction']}, {row['access']}, {row['effect']}"
    if row["retrospective"]:
        head += " [retrospective]"
    if row["old"] is None or row["new"] is None:
        side = row["new"] or row["old"]
        return f"{head}: {_words(side['state'])} by the {'new' if row['old'] is None else 'old'} rule only."
    return f"{head}: {'; '.join(_changes(row))}."


def _changes(row: Mapping[str, Any]) -> Iterator[str]:
    old, new = row["old"], row["new"]
    if "state" not in row["changed"]:
        yield f"{_words(new['state'])} as before"
    for name in row["changed"]:
        if name == "reasons":
            gone, come = sorted(set(old[name]) - set(new[name])), sorted(set(new[name]) - set(old[name]))
            yield ", ".join([*(f"no longer: {_words(r)}" for r in gone), *(f"now: {_words(r)}" for r in come)])
        else:
            yield f"{_words(name)} {_figure(old[name])} -> {_figure(new[name])}"


def _words(code: str) -> str:
    return code.replace("_", " ")


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(_figure(one) for one in value.values())
    return "unknown" if value is None else _words(value) if isinstance(value, str) else f"{value:g}"

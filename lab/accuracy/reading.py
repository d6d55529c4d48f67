# SPDX-License-Identifier: EUPL-1.2
"""Rows of the accuracy study as TOML, read strictly into lab.accuracy.model.

A key that nobody understands is refused by its path: a row whose switch is silently ignored would prove something
that was never played. The operator's tables are those of scenario files (lab.scenario). spec/accuracy.md section 2.
"""

from __future__ import annotations

import fnmatch
import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, cast

from lab.accuracy.model import ENGINES, KINDS, Engine, Kind, Measure, Row
from lab.scenario import ScenarioError, Table, from_table
from probe.profiles import model as profiles
from probe.wire.limits import MAX_PACE_MBPS, MAX_SEGMENT_S, MIN_SEGMENT_S

ROWS: Final = Path(__file__).with_name("rows")
MOST_REPEATS: Final = 100_000
MOST_PROBES: Final = 1000
MOST_PAIRS: Final = 20_000
_DEFAULTS: Final[dict[str, Any]] = {field.name: field.default for field in fields(Row)}
_SCENARIO: Final = ("name", "link", "cross_traffic", "rule", "expect")
_DIRECTIONS: Final = ("down", "up")


@dataclass(frozen=True, slots=True, kw_only=True)
class RealMeasure:
    """How a row is played through real sockets: few pairs, because each takes its time."""

    pairs: int = 12
    segment_s: float = 0.7
    repeats: int = 1
    skip: str = ""
    """Why real sockets cannot play this row; empty where they can."""


def load(path: str | Path) -> Row:
    """Read one row; raises ScenarioError with one sentence that names file and key."""
    path = Path(path)
    try:
        octets = path.read_bytes()
        row = from_document(tomllib.loads(octets.decode("utf-8")), digest=hashlib.sha256(octets).hexdigest())
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ScenarioError(f"{path}: is not valid TOML ({error})") from error
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from error
    if row.name != path.stem:
        raise ScenarioError(f'{path}: name: must be the file\'s, "{path.stem}", not "{row.name}"')
    return row


def load_all(patterns: Sequence[str] = (), directory: Path = ROWS) -> list[Row]:
    """All rows whose name fits one of the shell patterns (or all), by name. A path to a file is taken as it is."""
    bundled = {path.stem: path for path in sorted(directory.glob("*.toml"))}
    chosen: dict[str, Path] = {}
    for pattern in patterns or ("*",):
        if pattern.endswith(".toml") and Path(pattern).is_file():
            chosen[Path(pattern).stem] = Path(pattern)
            continue
        names = [name for name in bundled if fnmatch.fnmatchcase(name, pattern)]
        if not names and patterns:
            raise ScenarioError(f"no row is called {pattern}; `evenlane lab accuracy --list` shows them")
        chosen |= {name: bundled[name] for name in names}
    return [load(chosen[name]) for name in sorted(chosen)]


def from_document(document: Mapping[str, Any], *, digest: str = "") -> Row:
    """A row from a parsed TOML document."""
    top = Table(document, "")
    scenario = from_table({key: top.get(key) for key in _SCENARIO if top.has(key)})
    kind = _needed(top, "kind", KINDS)
    engine = _needed(top, "engine", ENGINES)
    row = Row(
        name=scenario.name,
        kind=cast("Kind", kind),
        title=_needed(top, "title"),
        why=_needed(top, "why"),
        engine=cast("Engine", engine),
        scenario=scenario,
        measure=_measure(Table(top.get("measure") or {}, "measure")),
        inside=top.flag("inside") if top.has("inside") else True,
        target=top.number("target", _DEFAULTS["target"], 0, 1),
        repeats=_whole(top, "repeats", _DEFAULTS["repeats"], 1, MOST_REPEATS),
        options=_options(top),
        digest=digest,
    )
    top.finish()
    if kind == "neutral" and scenario.expect:
        raise top.refuse("expect", "a neutral operator is never accused, so nothing can be expected of it")
    if kind == "discriminating" and not scenario.expect:
        raise top.refuse("expect", "is missing; say which app and effect must be found")
    return row


def _needed(top: Table, key: str, choices: tuple[str, ...] = ()) -> str:
    value = top.text(key, choices)
    if value is None:
        raise top.refuse(key, f"is missing{'; choose one of ' + ', '.join(choices) if choices else ''}")
    return value


def _whole(table: Table, key: str, default: int, low: int, high: int) -> int:
    number = float(table.number(key, default, low, high))
    if not number.is_integer():
        raise table.refuse(key, f"must be a whole number, not {number:g}")
    return int(number)


def _measure(table: Table) -> Measure:
    default = Measure()
    direction = table.text("direction", _DIRECTIONS) or default.direction
    apps = table.texts("apps") or ()
    known = profiles.every()
    for app in apps:
        if app not in known:
            raise table.refuse("apps", f"there is no profile of an app {app}; known are {', '.join(sorted(known))}")
    measure = Measure(
        probes=_whole(table, "probes", default.probes, 1, MOST_PROBES),
        pairs=_whole(table, "pairs", default.pairs, 1, MOST_PAIRS),
        segment_s=table.number("segment_s", default.segment_s, MIN_SEGMENT_S, MAX_SEGMENT_S),
        pace_mbps=table.number("pace_mbps", default.pace_mbps, 0.1, MAX_PACE_MBPS),
        direction=cast("Any", direction),
        apps=apps,
        hypotheses=_whole(table, "hypotheses", default.hypotheses, 1, 1_000_000),
    )
    table.finish()
    return measure


def _options(top: Table) -> Mapping[str, Any]:
    """The engine reads its own keys; those of the study are checked here (`Judging`, `Real`)."""
    value = top.get("options")
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise top.refuse("options", "must be a table")
    judging_of(value)
    real_of(value)
    return dict(value)


STUDY_OPTIONS: Final = ("real", "without_gate", "misleads", "slowdown", "most_crossing")
"""Keys of `[options]` that the study itself reads; all others are the engine's."""


def judging_of(options: Mapping[str, Any]) -> tuple[str, ...]:
    """`without_gate`: names of gates, flags or pair facts, each left out in a judging of its own."""
    from lab.accuracy.counterfactual import KNOWN  # noqa: PLC0415 - it knows the analysis' vocabulary

    table = Table(options, "options")
    table.number("slowdown", 0.0, -100, 1)
    table.number("most_crossing", 0.05, 0, 1)
    table.flag("misleads")
    return table.texts("without_gate", KNOWN) or ()


def real_of(options: Mapping[str, Any]) -> RealMeasure:
    """`real`: how the row is played through real sockets, or why it cannot be."""
    if "real" not in options:
        return RealMeasure()
    table = Table(options["real"], "options.real")
    default = RealMeasure()
    found = RealMeasure(
        pairs=_whole(table, "pairs", default.pairs, 1, 400),
        segment_s=table.number("segment_s", default.segment_s, MIN_SEGMENT_S, 30),
        repeats=_whole(table, "repeats", default.repeats, 1, 100),
        skip=table.text("skip") or "",
    )
    table.finish()
    return found

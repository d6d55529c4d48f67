# SPDX-License-Identifier: EUPL-1.2
"""`evenlane lab accuracy`: plays the rows of the study, judges every repeat, and keeps one result a row.

A row is skipped where nothing that its result follows from has changed; its result is written as soon as it is
done, so that a study of hours can be stopped and resumed. spec/accuracy.md sections 1 and 6.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from analysis.plan import DEFAULT_PLAN
from analysis.rules import RULES
from lab.accuracy import results
from lab.accuracy.fast import judge_run
from lab.accuracy.judging import Judged, Place
from lab.accuracy.model import Row, Run
from lab.stage import StageError

Tier = Literal["virtual", "real", "both"]
ENGINE_MODULES: Final = {"path": "lab.accuracy.path", "stream": "lab.accuracy.stream"}
CHUNKS_A_WORKER: Final = 8
SEEDS: Final = "every generator is seeded with the row's name and the repeat's number"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The options of `evenlane lab accuracy`."""

    repeat: int | None = None
    tier: Tier = "both"
    fresh: bool = False
    limit_minutes: float | None = None
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    driver: str | None = None
    directory: Path = results.DIRECTORY


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one row."""

    row: str
    result: dict[str, Any]
    played: tuple[str, ...]
    """The tiers that were played now; those that were not are as they were."""
    seconds: float
    failed: str = ""
    """Why the real tier could not be played; its earlier result, if any, is kept."""

    @property
    def differs(self) -> list[str]:
        """In what the row is not as expected, in words."""
        return list(self.result["differs"])


Say = Callable[[str], None]


def run(rows: Sequence[Row], plan: Plan, say: Say) -> Iterator[Outcome]:
    """Play the rows one after the other; yields each row when it is done and written."""
    began = time.monotonic()
    for number, row in enumerate(rows, start=1):
        spent = time.monotonic() - began
        if plan.limit_minutes is not None and spent > 60 * plan.limit_minutes:
            say(f"stopped after {spent / 60:.0f} minutes as asked; {len(rows) - number + 1} rows are left")
            return
        yield _play_row(row, plan, lambda words, n=number: say(f"[{n}/{len(rows)}] {words}"))  # type: ignore[misc]


def _play_row(row: Row, plan: Plan, say: Say) -> Outcome:
    from lab.accuracy import expectation, real  # noqa: PLC0415 - the real tier needs the whole lab

    began = time.monotonic()
    before = results.read(row.name, plan.directory) or {}
    result: dict[str, Any] = head(row)
    kept = before.get("digests", {})
    for tier in ("virtual", "real"):
        if tier in before:
            result[tier] = before[tier]
            result["digests"][tier] = kept.get(tier)
    played = []
    if plan.tier in {"virtual", "both"} and _is_due(row, "virtual", before, plan):
        result["virtual"] = virtual(row, plan, say)
        result["digests"]["virtual"] = digest_of(row, "virtual")
        played.append("virtual")
        result["differs"] = expectation.differs(row, result)
        results.write(result, plan.directory)
    failed = ""
    if plan.tier in {"real", "both"} and _is_due(row, "real", before, plan):
        try:
            result["real"] = real.play(row, driver=plan.driver, say=say)
        except StageError as error:  # one row's programs did not run: the others are played all the same
            failed = str(error)
            say(f"{row.name}: real sockets could not be used: {failed}")
        else:
            result["digests"]["real"] = digest_of(row, "real")
            played.append("real")
    result["differs"] = expectation.differs(row, result)
    if played:
        result["date"] = datetime.now(UTC).date().isoformat()
        results.write(result, plan.directory)
    else:
        result["date"] = before.get("date", result["date"])
        say(f"{row.name}: unchanged since {result['date']}")
    seconds = round(time.monotonic() - began, 1)
    return Outcome(row=row.name, result=result, played=tuple(played), seconds=seconds, failed=failed)


def _is_due(row: Row, tier: str, before: dict[str, Any], plan: Plan) -> bool:
    """Whether a tier has to be played: no result, another one asked for, or something behind it has changed."""
    if plan.fresh or tier not in before:
        return True
    if before["digests"].get(tier) != digest_of(row, tier):
        return True
    wanted = plan.repeat or row.repeats
    return tier == "virtual" and before["virtual"]["asked"] != wanted


def head(row: Row) -> dict[str, Any]:
    """What a result says of its row and of what played it; nothing in it depends on the machine."""
    place = Place.last(row.measure.hypotheses)
    return {
        "v": results.VERSION,
        "row": row.name,
        "kind": row.kind,
        "title": row.title,
        "why": row.why,
        "engine": row.engine,
        "inside": row.inside,
        "target": row.target,
        "expected": row.scenario.expected,
        "measure": {**dataclasses.asdict(row.measure), "apps": list(row.measure.apps)},
        "options": dict(row.options),
        "place": {"operator": place.operator, "cell": place.order, "plan": DEFAULT_PLAN.name},
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {
            "evenlane": metadata.version("evenlane"),
            "python": platform.python_version(),
            "rule": RULES.name,
        },
        "seeds": SEEDS,
        "digests": {"row": row.digest},
    }


# -- what a result follows from -----------------------------------------------------------------------------------


def digest_of(row: Row, tier: str) -> str:
    """Digest over the row's file, the rule and, in virtual time, the engine's code."""
    parts = [row.digest, RULES.digest()]
    if tier == "virtual":
        parts.append(engine_digest(ENGINE_MODULES[row.engine]))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@lru_cache(maxsize=8)
def engine_digest(module: str) -> str:
    """Digest of the code of an engine and of the modules of the lab it is made of; comments do not count."""
    seen: set[str] = set()
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or not name.startswith("lab."):
            continue
        seen.add(name)
        file = Path(__file__).parents[2].joinpath(*name.split(".")).with_suffix(".py")
        if not file.exists():
            continue
        tree = ast.parse(file.read_text("utf-8"))
        waiting += _imported(tree)
        found[name] = hashlib.sha256(ast.dump(_bare(tree)).encode()).hexdigest()
    return hashlib.sha256("\n".join(f"{name} {found[name]}" for name in sorted(found)).encode()).hexdigest()


def _imported(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


def _bare(tree: ast.Module) -> ast.Module:
    """Without docstrings and other free-standing texts."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return tree


# -- virtual time -------------------------------------------------------------------------------------------------


def virtual(row: Row, plan: Plan, say: Say) -> dict[str, Any]:
    """All repeats of a row in virtual time, judged; on several processes."""
    wanted = plan.repeat or row.repeats
    judged: list[Judged] = []
    began = shown = time.monotonic()
    for part in _parts(row, wanted, plan.workers):
        judged += part
        now = time.monotonic()
        if now - shown > 5:
            shown = now
            left = (now - began) / len(judged) * (wanted - len(judged))
            say(f"{row.name}: {len(judged)} of {wanted} repeats, about {left:.0f} s left")
    say(f"{row.name}: {wanted} repeats in {time.monotonic() - began:.0f} s")
    return {"asked": wanted, **results.aggregate(row, judged)}


def _parts(row: Row, wanted: int, workers: int) -> Iterator[list[Judged]]:
    """The judged repeats as they come; chunks are long enough to be worth a message and short enough to end alike."""
    size = max(1, min(50, wanted // (workers * CHUNKS_A_WORKER)))
    chunks = [range(first, min(wanted, first + size)) for first in range(0, wanted, size)]
    if workers == 1 or len(chunks) == 1:
        for chunk in chunks:
            yield play_chunk(row, chunk)
        return
    with ProcessPoolExecutor(workers) as pool:
        waiting: list[Future[list[Judged]]] = [pool.submit(play_chunk, row, chunk) for chunk in chunks]
        try:
            for done in as_completed(waiting):
                yield done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def play_chunk(row: Row, repeats: range) -> list[Judged]:
    """Play and judge these repeats here."""
    play = engine(row.engine)
    return [judge_run(play(row, repeat), row.measure, row.options, expected=row.expected) for repeat in repeats]


def engine(name: str) -> Callable[[Row, int], Run]:
    """`play(row, repeat)` of an engine."""
    play: Callable[[Row, int], Run] = importlib.import_module(ENGINE_MODULES[name]).play
    return play


def stderr(words: str) -> None:
    """Progress goes to standard error."""
    print(words, file=sys.stderr, flush=True)

# SPDX-License-Identifier: EUPL-1.2
"""The demo: three operators, nine subscribers, one reflector and one collector, everything real.

Only the network between the programs is emulated. Rules, gates and thresholds are production's; what is smaller
is said: download only, three apps, segments of 1 s and buckets that such segments can empty, twelve pairs.
spec/lab.md, section "The demo".
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from collector.config import Config, OperatorEntry
from collector.server import Running, ServeError, serve
from collector.store.base import StoreError
from lab.drivers import NoDriver
from lab.model import Scenario
from lab.scenario import load
from lab.stage import COUNTRY, Stage, StageError, Subscriber

SCENARIOS: Final = Path(__file__).parent / "scenarios" / "demo"
APPS: Final = ("youtube", "instagram", "signal")
PAIRS: Final = 12
SEGMENT_S: Final = 1.0
SUBSCRIBERS: Final = 3
SETTLE_S: Final = 20.0
"""How long the collector may take to judge the last record."""
VERDICT_KEYS: Final = (
    *("operator", "asn", "app", "direction", "access", "effect", "state", "e_value", "slowdown", "pairs"),
    *("lost_pairs", "probes", "prevalence", "detectable", "reasons"),
)


@dataclass
class Run:
    """One probe at work."""

    subscriber: Subscriber
    process: subprocess.Popen[bytes]
    log: Path
    done: int = 0
    of: int = 0
    megabytes: float = 0.0
    last: dict[str, Any] = field(default_factory=dict)


class DemoError(Exception):
    """The demo could not be played to its end."""


CANNOT_RUN: Final = (NoDriver, StageError, DemoError)
"""What `main` raises where the demo could not run; the message is one sentence."""


def main(args: argparse.Namespace) -> int:
    """Run the demo; 0 when the corroborated effects equal the truth, else 1. Raises CANNOT_RUN."""
    with contextlib.ExitStack() as undo:
        data = args.data or Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="evenlane-demo-")))
        stage = undo.enter_context(Stage(scenarios(args.driver), driver=args.driver, subscribers=SUBSCRIBERS))
        return _play(stage, args, data, undo)


def scenarios(driver: str | None) -> list[Scenario]:
    """The demo's operators. A relay terminates TCP and cannot police: there the operator shapes."""
    from lab.drivers import choose_driver  # noqa: PLC0415  (tries the drivers for real)

    found = [load(path) for path in sorted(SCENARIOS.glob("*.toml"))]
    if choose_driver(driver) != "relay":
        return found
    return [
        replace(one, rules=tuple(replace(r, action="shape") if r.action == "police" else r for r in one.rules))
        for one in found
    ]


def _play(stage: Stage, args: argparse.Namespace, data: Path, undo: contextlib.ExitStack) -> int:
    started = time.monotonic()
    say(
        f"driver {stage.driver}: {len(stage.operators)} emulated operators, {SUBSCRIBERS} subscribers each; "
        f"download only, {len(APPS)} apps, {PAIRS} pairs of {SEGMENT_S:g} s an app; production's rules and gates"
    )
    for note in stage.notes:
        say(f"note: {note}")
    listener, inside = stage.collector_socket(0)
    undo.callback(listener.close)
    stage.start_reflector("--collector", inside)
    config = Config(
        data=data,
        port=args.port,
        reflectors=(stage.reflector_key,),
        operators=tuple(OperatorEntry(id=o.name, asns=(o.asn,), country=COUNTRY) for o in stage.operators),
    )
    url = undo.enter_context(collector(config, listener))
    runs = [_start(stage, subscriber, inside) for o in stage.operators for subscriber in o.subscribers]
    _watch(runs)
    expected = sum(1 for run in runs for _ in APPS) * PAIRS
    cells = _settled(url, expected)
    seconds = time.monotonic() - started
    result = summary(stage, runs, cells, seconds)
    void = stage.void_reason()
    if void:
        say(f"note: this machine was too busy to emulate well: {void}")
    found = accused(cells)
    good = all(found.get(o.name, set()) == set(o.scenario.expected) for o in stage.operators)
    if args.json:
        print(json.dumps(result))
    else:
        print(table(stage, cells, found))
        print(f"\n{result['pairs']} pairs, {result['megabytes']:.0f} MB, {seconds:.0f} s, driver {stage.driver}")
        print("The verdicts equal the truth." if good else "The verdicts DIFFER from the truth.")
    sys.stdout.flush()
    if not args.exit:
        _serve(url)
    return 0 if good else 1


@contextlib.contextmanager
def collector(config: Config, listener: socket.socket) -> Iterator[str]:
    """The real collector in a thread of its own; gives its URL on the host's loopback."""
    stop: list[Callable[[], object]] = []
    ready: Future[str] = Future()

    async def main() -> None:
        until = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(until.set))

        def started(running: Running) -> None:
            ready.set_result(running.url)

        await serve(config, extra_sockets=(listener,), started=started, until=until)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            # Whatever ends this thread before it serves must reach the one who waits for it.
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=run, name="collector")
    thread.start()
    try:
        yield ready.result()
    except (ServeError, StoreError) as error:
        raise DemoError(str(error)) from error
    finally:
        for call in stop:
            # The loop is closed already where the collector could not start.
            with contextlib.suppress(RuntimeError):
                call()
        thread.join()


def _start(stage: Stage, subscriber: Subscriber, collector: str) -> Run:
    log = stage.directory / f"probe-{subscriber.operator.number}-{subscriber.index}.log"
    argv = ["differential", "--pairs", str(PAIRS), "--segment-s", str(SEGMENT_S), "--direction", "down"]
    argv += [word for app in APPS for word in ("--app", app)]
    argv += ["--collector", collector, "--progress", "json", "--json"]
    with log.open("wb") as errors:
        process = stage.run_probe(subscriber, argv, stdout=subprocess.PIPE, stderr=errors)
    return Run(subscriber, process, log)


def _watch(runs: Sequence[Run]) -> None:
    """Show progress until every probe has ended; raise DemoError with a probe's own words where one failed."""
    shown = 0.0
    while any(run.process.poll() is None for run in runs):
        for run in runs:
            _read_progress(run)
        done, of = sum(run.done for run in runs), sum(run.of for run in runs)
        if sys.stderr.isatty():
            print(f"\r{bar(done, of)} {done} of {of or '?'} pairs", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - shown >= 10:
            shown = time.monotonic()
            say(f"{done} of {of or '?'} pairs")
        time.sleep(0.5)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    for run in runs:
        _read_progress(run)
        if run.process.returncode != 0:
            words = run.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
            raise DemoError(f"a probe at {run.subscriber.operator.name} failed: {words[-1]}")


def _read_progress(run: Run) -> None:
    for line in run.log.read_bytes().splitlines():
        if line.startswith(b"{"):
            with contextlib.suppress(json.JSONDecodeError):
                run.last = json.loads(line)
    run.done, run.of = int(run.last.get("done", 0)), int(run.last.get("of", 0))


def _settled(url: str, expected: int) -> list[dict[str, Any]]:
    """The collector's cells once every pair is judged; what it has after SETTLE_S otherwise."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        cells = _cells(url)
        judged = sum(c["pairs"] for c in cells if c["effect"] == "slowing")
        waiting = sum(c["lost_pairs"] or 0 for c in cells)
        if (judged >= expected and not waiting) or time.monotonic() > deadline:
            return cells
        time.sleep(0.25)


def _cells(url: str) -> list[dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{url}/v1/cells", timeout=10) as answer:  # noqa: S310  (our own loopback)
            found: list[dict[str, Any]] = json.load(answer)["cells"]
    except (urllib.error.URLError, TimeoutError) as error:
        raise DemoError(f"the collector does not answer: {error}") from error
    return found


def accused(cells: Sequence[dict[str, Any]]) -> dict[str, set[str]]:
    """What each operator is accused of: `app:effect` of its corroborated cells."""
    found: dict[str, set[str]] = {}
    for cell in cells:
        if cell["state"] == "corroborated":
            found.setdefault(cell["operator"], set()).add(f"{cell['app']}:{cell['effect']}")
    return found


def summary(stage: Stage, runs: Sequence[Run], cells: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """The object that `--json` prints."""
    results = [json.loads(run.process.stdout.read()) for run in runs if run.process.stdout is not None]
    return {
        "operators": [
            {
                "operator": operator.name,
                "asn": operator.asn,
                "truth": operator.scenario.expected,
                "cells": [
                    {key: cell[key] for key in VERDICT_KEYS} for cell in cells if cell["operator"] == operator.name
                ],
            }
            for operator in stage.operators
        ],
        "seconds": round(seconds, 1),
        "pairs": sum(cell["pairs"] for cell in cells if cell["effect"] == "slowing"),
        "megabytes": round(sum(result.get("megabytes", 0.0) for result in results), 1),
        "driver": stage.driver,
    }


def table(stage: Stage, cells: Sequence[dict[str, Any]], found: dict[str, set[str]]) -> str:
    """Truth against verdict, one line an operator, then each app's slowdown."""
    lines = [f"{'operator':<14} {'truth':<20} {'verdict':<20}"]
    for operator in stage.operators:
        truth, verdict = set(operator.scenario.expected), found.get(operator.name, set())
        mark = "ok" if truth == verdict else "DIFFERS"
        lines.append(f"{operator.name:<14} {_words(truth):<20} {_words(verdict):<20} {mark}")
        for cell in cells:
            if cell["operator"] == operator.name and cell["effect"] == "slowing":
                lines.append(f"  {cell['app']:<12} {_size(cell)}; {_state(cell, cells)}")
    return "\n".join(lines)


def _words(effects: set[str]) -> str:
    return ", ".join(sorted(effects)) or "none"


def _size(cell: dict[str, Any]) -> str:
    size = cell["slowdown"] or {}
    if size.get("estimate") is None:
        return "no rates to compare"
    low, high = (f"{size[end]:+.0%}" if size.get(end) is not None else "?" for end in ("low", "high"))
    return f"slower by {size['estimate']:+.0%} (between {low} and {high})"


def _state(cell: dict[str, Any], cells: Sequence[dict[str, Any]]) -> str:
    """Both effects that the demo's operators may have, so that the table says what the pages say."""
    same = [c for c in cells if (c["operator"], c["app"]) == (cell["operator"], cell["app"])]
    shown = sorted((c for c in same if c["effect"] in {"slowing", "blocking"}), key=lambda c: -c["e_value"])
    return ", ".join(f"{c['effect']} {c['state'].replace('_', ' ')} (E = {c['e_value']:.3g})" for c in shown)


def bar(done: int, of: int, width: int = 30) -> str:
    """A plain progress bar."""
    filled = width * done // of if of else 0
    return f"[{'#' * filled}{'.' * (width - filled)}]"


def say(words: str) -> None:
    """Progress goes to standard error."""
    print(words, file=sys.stderr, flush=True)


def _serve(url: str) -> None:
    say(f"pages and API: {url}/  (Ctrl-C ends)")
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()

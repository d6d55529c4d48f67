# SPDX-License-Identifier: EUPL-1.2
"""A probe's figures for Prometheus, as a file that node_exporter's textfile collector reads.

No key, no operator and no app: whoever sees a household's Prometheus learns how the probe fares, not what it found.
Counters count since the device was switched on. Spec: spec/probe.md, section "Seeing it"; the format is Prometheus's
text exposition format 0.0.4.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

OUTCOMES: Final = ("measured", "synced", "waiting", "postponed", "failed")
PORTALS: Final = ("open", "captive", "offline", "intercepted")
_MB: Final = 1_000_000
Sample = tuple[dict[str, str], float]


def render(document: Mapping[str, Any]) -> str:
    """The file for a `status.json`; pure. What is not known has no line."""
    return "".join(f"{text}\n" for family in _families(document) for text in family)


def _families(document: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, kind, text, samples in (*_turn(document), *_stores(document)):
        lines = [
            f"evenlane_probe_{name}{_labels(labels)} {_figure(value)}" for labels, value in samples if value is not None
        ]
        if lines:
            yield [f"# HELP evenlane_probe_{name} {text}", f"# TYPE evenlane_probe_{name} {kind}", *lines]


_Family = tuple[str, str, str, list[tuple[dict[str, str], Any]]]


def _turn(document: Mapping[str, Any]) -> Iterator[_Family]:
    outcome, last = document.get("outcome"), _object(document, "last")
    counts = _object(document, "counts")
    turns, postponed = _object(counts, "turns"), _object(counts, "postponed")
    yield "last_turn_time_seconds", "gauge", "When the last turn was (Unix time).", _one(_s(document.get("at_ms")))
    yield "next_turn_time_seconds", "gauge", "When the next turn is due (Unix time).", _one(_s(document.get("next_ms")))
    yield (
        "last_turn_outcome",
        "gauge",
        "1 for how the last turn ended.",
        [({"outcome": name}, int(name == outcome)) for name in OUTCOMES],
    )
    yield (
        "turns_total",
        "counter",
        "Turns by how they ended.",
        [({"outcome": name}, _count(turns.get(name)) or 0) for name in OUTCOMES],
    )
    yield (
        "postponed_total",
        "counter",
        "Sessions that were due and were postponed, by reason.",
        [({"reason": name}, _count(n)) for name, n in sorted(postponed.items())],
    )
    yield "last_session_time_seconds", "gauge", "When the last session ended.", _one(_s(last.get("ended_ms")))
    finished = _count(_object(last, "pairs").get("finished"))
    yield "last_session_pairs", "gauge", "Pairs that the last session finished.", _one(finished)
    portal = document.get("portal")
    known = [({"state": name}, int(name == portal)) for name in PORTALS] if portal in PORTALS else []
    yield "portal", "gauge", "1 for what stood between this device and the internet when last looked.", known
    problems = document.get("problems")
    yield "problems", "gauge", "Things to be mended.", _one(len(problems) if isinstance(problems, list) else None)


def _stores(document: Mapping[str, Any]) -> Iterator[_Family]:
    budget, plan, spool = (_object(document, name) for name in ("budget", "plan", "spool"))
    collector = _object(document, "collector")
    yield (
        "budget_spent_bytes",
        "gauge",
        "Bytes spent in this period, both directions.",
        [({"period": "day"}, _bytes(budget.get("day_mb"))), ({"period": "month"}, _bytes(budget.get("month_mb")))],
    )
    yield (
        "budget_limit_bytes",
        "gauge",
        "Bytes that may be spent in this period.",
        [({"period": "day"}, _bytes(budget.get("daily_mb"))), ({"period": "month"}, _bytes(budget.get("monthly_mb")))],
    )
    yield "spool_sessions", "gauge", "Sessions that wait to be sent.", _one(_count(spool.get("sessions")))
    yield "spool_bytes", "gauge", "Size of what waits to be sent.", _one(_count(spool.get("bytes")))
    for name, text in (("dropped", "had to make room for newer ones"), ("damaged", "could not be read")):
        yield f"spool_{name}_total", "counter", f"Sessions that {text}.", _one(_count(spool.get(name)))
    yield "plan_version", "gauge", "Version of the plan that is followed.", _one(_count(plan.get("version")))
    yield "plan_expiry_time_seconds", "gauge", "When the plan expires.", _one(_s(plan.get("expires_ms")))
    enrolled = int(document.get("enrolled_ms") is not None)
    yield "enrolled", "gauge", "1 where the probe takes part somewhere.", _one(enrolled)
    failing = int(bool(collector.get("failure"))) if collector else None
    yield "collector_failing", "gauge", "1 where the collector could not be reached the last time.", _one(failing)
    for name, text in (("contact", "the collector last answered"), ("uploaded", "it last took a record")):
        yield f"collector_{name}_time_seconds", "gauge", f"When {text}.", _one(_s(collector.get(f"{name}_ms")))


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Replace the file in one step, readable to everybody: node_exporter has a user of its own. Raises OSError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    try:
        # O_EXCL: where the directory is everybody's, nobody has laid a link in our way.
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(render(document))
            os.fchmod(file.fileno(), 0o644)  # whatever the umask
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def _one(value: float | None) -> list[tuple[dict[str, str], Any]]:
    return [({}, value)]


def _labels(labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _s(ms: object) -> float | None:
    return ms / 1000 if isinstance(ms, int) and not isinstance(ms, bool) and ms > 0 else None


def _bytes(megabytes: object) -> int | None:
    is_amount = isinstance(megabytes, int | float) and not isinstance(megabytes, bool)
    return round(megabytes * _MB) if is_amount else None  # type: ignore[operator]


def _object(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = found.get(name)
    return value if isinstance(value, dict) else {}

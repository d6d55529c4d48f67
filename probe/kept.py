# SPDX-License-Identifier: EUPL-1.2
"""What one turn leaves to the next, in the run's directory: when a session is due, what was measured where.

Two small files in RAM, `schedule.json` and `spend.json`. Losing them costs nothing but the order of the apps: a
Poisson process has no memory, and whatever stands in them is believed only as far as it makes sense.
Spec: spec/probe.md, section "The turn".
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from probe.files import read_object, write_small
from probe.schedule import Due, due_from
from probe.spend import Tally, tally_from
from probe.state import State, StateError
from probe.wire.limits import MAX_INT

_MOST_LINES: Final = 512
_MOST_REFLECTORS: Final = 64
_SCHEDULE: Final = "schedule.json"
_SPEND: Final = "spend.json"


@dataclass(slots=True)
class Kept:
    """Changed by a turn and kept by `save`."""

    due: Due | None = None
    plan_next_ms: int = 0
    """When the collector is asked for its plan again."""
    avoid: str = ""
    """Key id of the reflector at which the last session failed."""
    smallest_ms: dict[str, float] = field(default_factory=dict)
    """The smallest round-trip time ever seen to each reflector."""
    sessions: int = 0
    """Counted here, for the order of the apps."""
    tallies: dict[str, Tally] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Sentences about files that were damaged."""


def load(state: State) -> Kept:
    """What the turn before left; what is damaged is begun anew and told."""
    kept = Kept()
    schedule, spend = _read(state, _SCHEDULE, kept), _read(state, _SPEND, kept)
    kept.due = due_from(schedule.get("due"))
    kept.plan_next_ms = _count(schedule.get("plan_next_ms"))
    avoid = schedule.get("avoid")
    kept.avoid = avoid[:64] if isinstance(avoid, str) else ""
    for key, ms in _items(schedule.get("smallest_ms"), _MOST_REFLECTORS):
        if isinstance(ms, int | float) and not isinstance(ms, bool) and 0 < ms < 60_000:
            kept.smallest_ms[key] = float(ms)
    kept.sessions = _count(spend.get("sessions")) % 1_000_000
    for key, plain in _items(spend.get("lines"), _MOST_LINES):
        tally = tally_from(plain)
        # One that claims to be of a session to come would be taken for the newest for ever.
        if tally is not None and tally.session <= kept.sessions:
            kept.tallies[key] = tally
    return kept


def save(state: State, kept: Kept) -> None:
    """Keep it. Raises StateError."""
    schedule = {
        "v": 1,
        "due": None if kept.due is None else kept.due.plain(),
        "plan_next_ms": kept.plan_next_ms,
        "avoid": kept.avoid,
        "smallest_ms": kept.smallest_ms,
    }
    spend = {"v": 1, "sessions": kept.sessions, "lines": {key: one.plain() for key, one in kept.tallies.items()}}
    write(state, _SCHEDULE, schedule)
    write(state, _SPEND, spend)


def write(state: State, name: str, document: dict[str, Any]) -> None:
    """One file of the run's directory, never brought to a medium: it is worth nothing after a power cut."""
    try:
        write_small(state.run / name, json.dumps(document, sort_keys=True).encode() + b"\n", durable=False)
    except OSError as error:
        raise StateError(f"{state.run / name} cannot be written ({error.strerror}): make room there") from None


def _read(state: State, name: str, kept: Kept) -> dict[str, Any]:
    try:
        return read_object(state.run / name) or {}
    except (OSError, ValueError):
        kept.problems.append(f"{name} was damaged and is begun anew")
        return {}


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value <= MAX_INT else 0


def _items(value: object, most: int) -> list[tuple[str, Any]]:
    return [(str(key)[:160], one) for key, one in list(value.items())[:most]] if isinstance(value, dict) else []

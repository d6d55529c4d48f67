# SPDX-License-Identifier: EUPL-1.2
"""What a turn leaves for those who look: `status.json`, and figures for Prometheus where the owner wants some.

Both are looked at by others while a turn may write them anew, so each appears whole or not at all. That they cannot be
written is a problem to be told, never a reason for a turn to fail. Spec: spec/probe.md, section "Seeing it".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from probe import kept, textfile
from probe.consent import LANGUAGES
from probe.enrol import EnrolError, Enrolled, enrolled
from probe.files import read_object, write_small
from probe.profiles.model import ProfileError, load
from probe.sentences import all_languages
from probe.settings import Settings
from probe.spend import Tally
from probe.state import State, StateError
from probe.wire.limits import MAX_INT

STATUS: Final = "status.json"
_MOST_APPS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the probe's directories know beside the turn."""

    key: str | None = None
    """This probe's key id."""
    joined: Enrolled | None = None
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    """Pairs so far, by line."""
    titles: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What apps are called, by app and language."""
    before: Mapping[str, Any] = field(default_factory=dict)
    """The `status.json` of the turn before."""


def gather(state: State) -> Facts:
    """Read them. What cannot be read is not known here; the turn and the doctor say why."""
    tallies = kept.load(state).tallies
    apps = sorted({_app_of(key)[0] for key in tallies})[:_MOST_APPS]
    return Facts(
        key=_key(state),
        joined=_joined(state),
        tallies=tallies,
        titles={app: _titles(app) for app in apps},
        before=read(state) or {},
    )


def read(state: State) -> dict[str, Any] | None:
    """The `status.json` that the last turn left; None where there is none or it was damaged."""
    try:
        return read_object(state.run / STATUS)
    except (OSError, ValueError):
        return None


def document(facts: Facts, settings: Settings, turn: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """The content of `status.json`: the turn's own facts and what else is known, in figures and in sentences. Pure."""
    joined = facts.joined
    collector = turn.get("collector")
    found: dict[str, Any] = {
        **turn,
        "v": 1,
        "written_ms": now_ms,
        "probe": facts.key,
        "enrolled_ms": joined.enrolled_ms if joined else None,
        "language": settings.language or (joined.language if joined else None),
        "apps": [_app(key, tally, facts.titles) for key, tally in sorted(facts.tallies.items())[:_MOST_APPS]],
        "counts": _counted(facts.before, turn),
    }
    if joined is not None:
        told = collector if isinstance(collector, dict) else {}
        found["collector"] = {**told, "name": joined.name or joined.collector, "url": joined.collector}
    return {**found, "sentences": all_languages(found, now_ms)}


def write(state: State, settings: Settings, turn: Mapping[str, Any]) -> tuple[str, ...]:
    """Write both files after a turn; sentences about what could not be. Raises nothing that a full disk could cause."""
    problems: list[str] = []
    found = document(gather(state), settings, turn, int(turn.get("at_ms") or 0))
    if settings.textfile is not None:
        try:
            textfile.write(Path(settings.textfile), found)
        except OSError as error:
            problems.append(_unwritten("textfile", settings.textfile, error))
    if problems:
        told = turn.get("problems")
        turn = {**turn, "problems": [*(told if isinstance(told, list) else []), *problems]}
        found = {**found, "problems": turn["problems"]}
        found["sentences"] = all_languages(found, found["written_ms"])
    try:
        write_small(state.run / STATUS, json.dumps(found, ensure_ascii=False).encode() + b"\n", durable=False)
    except OSError as error:
        problems.append(_unwritten(STATUS, str(state.run / STATUS), error))
    return tuple(problems)


def _unwritten(name: str, path: str, error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    return f"{name} cannot be written to {path} ({reason}): see to the directory's permissions, or name another one"


def _counted(before: Mapping[str, Any], turn: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """How many turns ended how, this one included, since the RAM was lost last."""
    old = before.get("counts")
    counts = {name: _counts(old.get(name) if isinstance(old, dict) else None) for name in ("turns", "postponed")}
    outcome, reason = str(turn.get("outcome") or ""), str(turn.get("reason") or "")
    if outcome:
        counts["turns"][outcome] = counts["turns"].get(outcome, 0) + 1
    if outcome == "postponed" and reason:
        counts["postponed"][reason] = counts["postponed"].get(reason, 0) + 1
    return counts


def _counts(found: object) -> dict[str, int]:
    """What a former turn counted, as far as it makes sense."""
    rows = list(found.items())[:_MOST_APPS] if isinstance(found, dict) else []
    return {str(name)[:40]: n for name, n in rows if type(n) is int and 0 <= n <= MAX_INT}


def _app(key: str, tally: Tally, titles: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    app, direction = _app_of(key)
    return {
        "app": app,
        "direction": direction,
        "title": dict(titles.get(app, {})),
        "pairs": tally.pairs,
        "slower": tally.slower,
        "faster": tally.faster,
    }


def _app_of(key: str) -> tuple[str, str]:
    """App and direction of a line (`Line.key`)."""
    _, _, rest = key.partition("/")
    app, _, direction = rest.rpartition("/")
    return app, direction


def _titles(app: str) -> dict[str, str]:
    """What an app is called; empty for one that only a plan knows."""
    try:
        title = load(app).title
    except (ProfileError, OSError):
        return {}
    return {language: getattr(title, language) for language in LANGUAGES}


def _key(state: State) -> str | None:
    try:
        return state.known_key()
    except StateError:
        return None


def _joined(state: State) -> Enrolled | None:
    try:
        return enrolled(state)
    except EnrolError:
        return None

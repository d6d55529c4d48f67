# SPDX-License-Identifier: EUPL-1.2
"""`evenlane probe status`: how this probe stands, for people and as one JSON object. Makes nothing.

From the `status.json` that the last turn left; what changes without a turn (the spool, a key, a plan that was fetched
by hand) is looked at anew. Spec: spec/probe.md, section "Seeing it".
"""

from __future__ import annotations

import argparse
import json
import os
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from probe.settings import Language
    from probe.state import State

_COLUMNS: Final = 78
_FACTS: Final = (
    "at_ms", "next_ms", "outcome", "reason", "detail", "budget", "collector", "portal", "apps", "counts", "enrolled_ms",
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print it."""
    from evenlane.extras import CannotRun
    from probe.state import State, StateError, default_directories

    state = State(*default_directories(args.state, args.run))
    now_ms = time.time_ns() // 1_000_000
    try:
        found = status(state, args.settings or state.directory / "settings.json", now_ms)
    except StateError as error:
        raise CannotRun(str(error)) from None
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print("\n".join(lines(found, _language(args, found), now_ms)))
    return 0


def status(state: State, settings_file: Path, now_ms: int) -> dict[str, Any]:
    """Key, sessions, last run, spool as ever; with them what the last turn told. Raises StateError."""
    from probe.consent import LANGUAGES
    from probe.sentences import tell
    from probe.settings import read_settings
    from probe.spool import Counts
    from probe.status import STATUS, document, gather, read

    key = state.known_key()
    written = read(state)
    settings, problems = read_settings(settings_file)
    if written is None:  # no turn was ever made, or the RAM was lost: what the directories know
        written = document(gather(state), settings, _turn(state), now_ms)
    entries, counts = state.spool.entries(), _counts(state, Counts())
    spool = {
        "sessions": len(entries),
        "bytes": sum(entry.size for entry in entries),
        "dropped": counts.dropped,
        "damaged": counts.damaged,
    }
    told = written.get("problems")
    named = [str(one) for one in told] if isinstance(told, list) else []
    found: dict[str, Any] = {
        "state": str(state.directory),
        "run": str(state.run),
        "key": key,
        "sessions": state.sessions(),
        "last": state.last() or written.get("last"),
        "spool": spool,
        **{name: written.get(name) for name in _FACTS},
        "plan": _plan(state) or written.get("plan"),
        "problems": list(dict.fromkeys([*problems, *named])),
        "language": settings.language,
        "status_file": str(state.run / STATUS) if (state.run / STATUS).exists() else None,
    }
    return found | {"sentences": {language: tell(found, language, now_ms) for language in LANGUAGES}}


def _turn(state: State) -> dict[str, Any]:
    """What the last turn wrote by itself; empty where it did not, or it was damaged."""
    from probe.files import read_object

    try:
        return read_object(state.run / "turn.json") or {}
    except (OSError, ValueError):
        return {}


def _counts(state: State, unknown: Any) -> Any:
    try:
        return state.spool.counts()
    except OSError:
        return unknown


def _plan(state: State) -> dict[str, Any] | None:
    """The plan that is kept, whoever fetched it."""
    from probe.enrol import EnrolError, enrolled, plan_file
    from probe.plan import stored

    try:
        joined = enrolled(state)
    except EnrolError:
        return None
    found = stored(plan_file(state), joined.key) if joined else None
    return {"version": found.plan.version, "expires_ms": found.plan.expires_ms} if found else None


def _language(args: argparse.Namespace, found: dict[str, Any]) -> Language:
    from probe.consent import language_of

    told: Language | None = args.language or found["language"]
    return told or language_of(os.environ)


def lines(found: dict[str, Any], language: Language, now_ms: int) -> list[str]:
    """For people: sentences first, then the facts that a helper asks for."""
    from probe.sentences import tell

    shown = [_wrapped(sentence) for sentence in tell(found, language, now_ms)]
    shown += [_wrapped(f"- {problem}") for problem in found["problems"]]
    shown.append("")
    shown += [
        f"state directory  {found['state']}",
        f"run directory    {found['run']}",
        f"key              {found['key'] or 'none yet: made by the first run'}",
    ]
    collector = found["collector"]
    if isinstance(collector, dict) and collector.get("url"):
        shown.append(f"collector        {collector['url']}")
    if found["plan"]:
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(found["plan"]["expires_ms"] / 1000))
        shown.append(f"plan             {found['plan']['version']}, expires {day}")
    shown.append(f"sessions         {found['sessions']}")
    last = found["last"]
    if last:
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(last["ended_ms"] / 1000))
        ending = f", ended early ({last['failure']})" if last["failure"] else ""
        shown.append(f"last run         {day}, {last['pairs']['finished']} pairs{ending}")
    shown.append(f"spool            {found['spool']['sessions']} sessions, {found['spool']['bytes']} bytes")
    return shown


def _wrapped(sentence: str) -> str:
    return textwrap.fill(sentence, _COLUMNS, break_long_words=False, break_on_hyphens=False)

# SPDX-License-Identifier: EUPL-1.2
"""`evenlane probe spool`: what waits for a collector, how it fares, and sending or throwing it away by hand.

Spec: spec/probe.md, sections "Spool" and "Uploads".
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probe.handover import SpoolSent
    from probe.netio.control import Url
    from probe.spool import Entry
    from probe.state import State


def run(args: argparse.Namespace) -> int:
    """List, send or clear."""
    from evenlane.extras import CannotRun
    from probe.netio.control import UrlError
    from probe.state import State, StateError, default_directories

    state = State(*default_directories(args.state, args.run))
    if args.clear and (args.send or args.collector):
        print("evenlane: --clear throws away what --send and --collector send: say one of them", file=sys.stderr)
        return 2
    if args.clear and not args.yes and not sys.stdin.isatty():
        print("evenlane: nobody can be asked here: say --clear --yes", file=sys.stderr)
        return 2
    sent: SpoolSent | None = None
    try:
        if args.clear:
            return _clear(args, state)
        url = _target(args, state)
        if url is not None:
            sent = _send(state, url)
    except UrlError as error:
        print(f"evenlane: {error}", file=sys.stderr)
        return 2
    except StateError as error:
        raise CannotRun(str(error)) from None
    report = spool_report(state, sent)
    print(json.dumps(report) if args.json else "\n".join(spool_lines(report)))
    if sent is not None and sent.failure:
        raise CannotRun(f"the collector did not take everything ({sent.detail or sent.failure}); try again later")
    return 0


def _target(args: argparse.Namespace, state: State) -> Url | None:
    """Where to send, if anywhere. Raises UrlError, CannotRun."""
    from evenlane.extras import CannotRun
    from probe.enrol import EnrolError, enrolled
    from probe.upload import collector_url

    if args.collector:
        return collector_url(args.collector)
    if not args.send:
        return None
    try:
        joined = enrolled(state)
    except EnrolError as error:
        raise CannotRun(str(error)) from None
    if joined is None:
        raise CannotRun("this probe works for nobody: join with `evenlane probe enrol`, or name one with --collector")
    return joined.url


def _send(state: State, collector: Url) -> SpoolSent:
    """Send what waits, oldest first; stops at the first failure that may pass. A person asked: no pause is kept.

    Under the lock, so that no measurement is disturbed.
    """
    from probe.handover import sync_spool

    now_ms = time.time_ns() // 1_000_000
    with state.exclusive() if state.run.is_dir() else nullcontext():
        return sync_spool(state, collector, now_ms, random.Random(), is_asked=True, most_s=math.inf)


def _clear(args: argparse.Namespace, state: State) -> int:
    """Throw away what waits, set-aside files too. Raises StateError."""
    from probe.consent.strings import YES

    entries = state.spool.entries()
    if entries and not args.yes:
        print(f"{len(entries)} measurements were not sent yet. Throw them away? (yes or no)", file=sys.stderr)
        if sys.stdin.readline(64).strip().lower() not in YES:
            print("evenlane: nothing was thrown away", file=sys.stderr)
            return 1
    gone = 0
    if entries or _bad(state):
        with state.exclusive():
            gone = _remove(state)
    report = spool_report(state, None) | {"cleared": gone}
    print(json.dumps(report) if args.json else f"thrown away: {gone} measurements")
    return 0


def _remove(state: State) -> int:
    from probe.state import StateError

    entries = state.spool.entries()
    try:
        for entry in entries:
            state.spool.remove(entry)
        for path in _bad(state):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StateError(
            f"{state.spool.directory} cannot be emptied ({error.strerror}); see to its permissions"
        ) from None
    return len(entries)


def _bad(state: State) -> list[Path]:
    """Files that were set aside because they could not be read."""
    found: list[Path] = []
    for directory in (state.spool.directory, *state.spool.older):
        try:
            found += sorted(path for path in (directory / "bad").iterdir() if path.is_file())
        except OSError:
            continue
    return found


def spool_report(state: State, sent: SpoolSent | None) -> dict[str, Any]:
    """What still waits, what was lost, when it is tried again, and what was sent just now."""
    from probe.backoff import load, waits_until_ms

    now_ms = time.time_ns() // 1_000_000
    entries, counts, standing = state.spool.entries(), state.spool.counts(), load(state.run)
    report: dict[str, Any] = {
        "directory": str(state.spool.directory),
        "sessions": [entry.name for entry in entries],
        "bytes": sum(entry.size for entry in entries),
        "sent": None,
        "entries": [
            {"name": entry.name, "bytes": entry.size, "age_s": _age_s(entry, now_ms / 1000)} for entry in entries
        ],
        "bad": [str(path) for path in _bad(state)],
        "dropped": counts.dropped,
        "damaged": counts.damaged,
        "refused": standing.refused,
        "refused_reason": standing.refused_reason or None,
        "collector": standing.collector or None,
        "contact_ms": standing.contact_ms or None,
        "uploaded_ms": standing.uploaded_ms or None,
        "failure": standing.failure or None,
        "detail": standing.detail or None,
        "next_attempt_ms": waits_until_ms(standing.pause, now_ms),
    }
    if sent is not None:
        report["sent"] = {
            "accepted": sent.accepted,
            "duplicates": sent.duplicates,
            "rejected": list(sent.rejected),
            "failure": sent.failure,
        }
    return report


def _age_s(entry: Entry, now_s: float) -> int | None:
    """Since it was written, as the file's own time says."""
    try:
        return max(0, round(now_s - entry.path.stat().st_mtime))
    except OSError:
        return None


def spool_lines(report: dict[str, Any]) -> list[str]:
    """For people."""
    lines = []
    sent = report["sent"]
    if sent is not None:
        lines.append(
            f"sent: {sent['accepted']} accepted, {sent['duplicates']} known already, {len(sent['rejected'])} refused"
        )
    lines.append(f"waiting in {report['directory']}: {len(report['sessions'])} sessions, {report['bytes']} bytes")
    lines += [f"  {one['name']:<52} {one['bytes']:>8} bytes  {_age(one['age_s'])}" for one in report["entries"]]
    if report["next_attempt_ms"]:
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime(report["next_attempt_ms"] / 1000))
        lines.append(f"the last attempt failed ({report['detail'] or report['failure']}); the next is not before {at}")
    if report["refused"]:
        lines.append(f"refused by the collector for good: {report['refused']} (last: {report['refused_reason']})")
    if report["dropped"]:
        lines.append(f"dropped to make room for newer ones: {report['dropped']}")
    if report["damaged"]:
        lines.append(f"could not be read: {report['damaged']}")
    lines += [f"  set aside: {path}" for path in report["bad"]]
    return lines


def _age(seconds: int | None) -> str:
    if seconds is None:
        return ""
    if seconds < 5400:
        return f"{seconds // 60} min old"
    return f"{seconds // 3600} h old" if seconds < 172_800 else f"{seconds // 86_400} days old"

# SPDX-License-Identifier: EUPL-1.2
"""`evenlane probe doctor`: looks at everything that a probe needs, and says of each thing what to do.

It only looks: no key, no directory and no file is made, and what it sends is what a browser would. Each check is fine,
a remark, or bad (nothing, or nothing true, can be measured until it is mended). What is asked of the machine is in
probe_doctor_here.py, what is asked of the network in probe_doctor_net.py. Spec: spec/probe.md, section "Seeing it".
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from evenlane.commands.probe_doctor_here import Finding, Level, checks_of_the_machine
from evenlane.commands.probe_foreign import foreign, sentence

if TYPE_CHECKING:
    from probe.enrol import Enrolled
    from probe.plan import SignedPlan
    from probe.settings import Settings
    from probe.state import State

_MARKS: Final[dict[Level, str]] = {"ok": "ok ", "warn": "(!)", "bad": "BAD"}
_MINUTE_MS: Final = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is looked at."""

    state: State
    settings: Settings
    problems: tuple[str, ...]
    """Of the settings."""
    now_ms: int
    reflector: str | None = None
    bind: str | None = None

    def joined(self) -> Enrolled | None:
        """Whom it works for; None also where the file is spoilt, which a check of its own tells."""
        from probe.enrol import EnrolError, enrolled

        try:
            return enrolled(self.state)
        except EnrolError:
            return None

    def plan(self) -> SignedPlan | None:
        """The kept plan, whether or not it may be followed."""
        from probe.enrol import plan_file
        from probe.plan import stored

        joined = self.joined()
        return stored(plan_file(self.state), joined.key) if joined else None


def run(args: argparse.Namespace) -> int:
    """Every check, and whether this machine can measure."""
    strangers = foreign()
    if any(one.name == "probe" for one in strangers):
        # Nothing of ours can be imported, so this is all that can be said.
        report = report_of([_row("packages", ("bad", sentence(strangers)))])
    else:
        report = doctor_report(subject_of(args), is_offline=args.offline)
    print(json.dumps(report, ensure_ascii=False) if args.json else "\n".join(doctor_lines(report)))
    return 0 if report["ok"] else 1


def subject_of(args: argparse.Namespace) -> Subject:
    """From the command line."""
    from probe.settings import read_settings
    from probe.state import State, default_directories

    state = State(*default_directories(args.state, args.run))
    settings, problems = read_settings(args.settings or state.directory / "settings.json")
    return Subject(
        state=state,
        settings=settings,
        problems=problems,
        now_ms=time.time_ns() // 1_000_000,
        reflector=args.reflector,
        bind=args.bind or settings.bind,
    )


def doctor_report(subject: Subject, *, is_offline: bool = False) -> dict[str, Any]:
    """Every check with its finding; `ok` is false where one is bad."""
    from evenlane.commands.probe_doctor_net import checks_of_the_network

    rows = [_row(name, check()) for name, check in _checks(subject)]
    if not is_offline:
        rows += [_row(name, finding) for name, finding in checks_of_the_network(subject)]
    return report_of(rows)


def report_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The one object that `--json` prints. Keys are stable."""
    return {"ok": all(row["ok"] for row in rows), "checks": rows}


def _row(name: str, finding: Finding) -> dict[str, Any]:
    level, text = finding
    return {"check": name, "ok": level != "bad", "level": level, "finding": text}


def doctor_lines(report: dict[str, Any]) -> list[str]:
    """For people."""
    lines = [f"{_MARKS[row['level']]} {row['check']:<11} {row['finding']}" for row in report["checks"]]
    if not report["ok"]:
        return [*lines, "what is marked BAD must be mended first"]
    remarks = any(row["level"] == "warn" for row in report["checks"])
    return [*lines, "this machine can measure" + ("; what is marked (!) is worth a look" if remarks else "")]


def _checks(subject: Subject) -> Iterator[tuple[str, Callable[[], Finding]]]:
    yield from checks_of_the_machine(subject.state, subject.settings)
    yield "settings", lambda: _settings(subject)
    yield "enrolment", lambda: _enrolment(subject)
    yield "plan", lambda: _plan(subject)
    yield "turns", lambda: _turns(subject)
    yield "spool", lambda: _spool(subject)


# -- taking part ------------------------------------------------------------------------------------------------


def _settings(subject: Subject) -> Finding:
    settings = subject.settings
    if subject.problems:
        return "warn", f"{'; '.join(subject.problems)} (what is wrong has its default)"
    if not settings.enabled:
        return "warn", "enabled is off, so nothing is measured"
    if settings.quiet_left_min(0) == 1440:
        return "warn", "quiet_hours fill the whole day, so nothing is ever measured"
    if settings.daily_mb == 0 or settings.monthly_mb == 0:
        return "warn", "the budget is 0, so nothing is ever measured"
    return "ok", "understood"


def _enrolment(subject: Subject) -> Finding:
    from probe.enrol import EnrolError, enrolled, is_leaving

    try:
        joined = enrolled(subject.state)
    except EnrolError as error:
        return "bad", str(error)
    if is_leaving(subject.state):
        return "warn", "leaving: the collector was not told yet; run `evenlane probe leave` again"
    if joined is None:
        return "warn", "takes part nowhere yet: evenlane probe enrol --collector URL"
    if not subject.state.key_file.exists():
        return (
            "bad",
            "the key is gone, so nobody knows this probe any more: join again with `evenlane probe enrol --again`",
        )
    return "ok", f"{joined.name or 'takes part'} ({joined.collector})"


def _plan(subject: Subject) -> Finding:
    from probe.enrol import plan_file
    from probe.plan import PlanError, usable

    joined = subject.joined()
    if joined is None:
        return "ok", "none without a collector"
    found = subject.plan()
    if found is None:
        if plan_file(subject.state).exists():
            return "warn", "the kept plan was spoilt; the next turn fetches another"
        return "warn", "none yet: the next turn asks for it (evenlane probe once)"
    until = time.strftime("%Y-%m-%d", time.gmtime(found.plan.expires_ms / 1000))
    try:
        usable(found, joined.key, subject.now_ms)
    except PlanError as error:
        return "bad", f"version {found.plan.version} is not followed: {error}"
    return "ok", f"version {found.plan.version}, valid until {until}"


def _turns(subject: Subject) -> Finding:
    """Does anything run?"""
    from probe.files import read_object

    try:
        turn = read_object(subject.state.run / "turn.json")
    except (OSError, ValueError):
        return "warn", "turn.json was damaged; the next turn writes it anew"
    if turn is None:
        if subject.joined() is None:
            return "ok", "none yet"
        return "warn", "none yet: start the service, or try `evenlane probe once`"
    next_ms, at_ms = turn.get("next_ms"), turn.get("at_ms")
    if not isinstance(next_ms, int) or not isinstance(at_ms, int):
        return "warn", "turn.json cannot be understood; the next turn writes it anew"
    if subject.now_ms - next_ms > 60 * _MINUTE_MS:
        hours = (subject.now_ms - next_ms) / 3_600_000
        return "warn", f"the next turn was due {hours:.0f} h ago: start the service again (see `evenlane probe status`)"
    told = turn.get("detail") or turn.get("reason") or turn.get("outcome")
    minutes = max(0, subject.now_ms - at_ms) / _MINUTE_MS
    is_bad = turn.get("outcome") == "failed"
    return "warn" if is_bad else "ok", f"last one {minutes:.0f} min ago: {told}"


def _spool(subject: Subject) -> Finding:
    from probe.backoff import load

    spool = subject.state.spool
    entries, counts = spool.entries(), spool.counts()
    text = f"{len(entries)} sessions wait"
    failure = load(subject.state.run).failure
    if counts.damaged:
        return (
            "warn",
            f"{text}; {counts.damaged} could not be read and were set aside (`evenlane probe spool` lists them)",
        )
    if counts.dropped:
        return (
            "warn",
            f"{text}; {counts.dropped} had to make room: is the collector out of reach? (`evenlane probe spool`)",
        )
    if failure and entries:
        return "warn", f"{text}; the collector could not be reached ({failure.replace('_', ' ')}): it is tried again"
    return "ok", text

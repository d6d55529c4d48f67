# SPDX-License-Identifier: EUPL-1.2
"""`evenlane probe enrol` and `evenlane probe leave`: what a volunteer is asked, and what is told afterwards.

On a terminal it is a conversation in the volunteer's language; elsewhere each answer is an option, and the version of
the consent text stands for having read it. Spec: spec/volunteer.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from evenlane.commands.probe_talk import Talk
    from probe.about import About
    from probe.enrol import Enrolled, Joined
    from probe.plan import Budgets
    from probe.settings import Language, Settings
    from probe.state import State

_MOST_URL: Final = 512
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_ANSWERS: Final = (
    ("brand", "NAME", "the operator on the bill"),
    ("tariff", "NAME", "what the tariff is called"),
    ("contract-down-mbps", "R", "speed by contract, downwards"),
    ("contract-up-mbps", "R", "speed by contract, upwards"),
    ("declared-position", "WHERE", "router, behind_router or hotspot"),
    ("opt-in-filters", "YES|NO", "whether you ordered a filter from the operator"),
    ("quiet-hours", "HOURS", 'when nothing is measured: "22:30-07:00", several with commas'),
    ("metered", "AUTO|YES|NO", "whether the line is paid by volume"),
    ("daily-mb", "N", "at most so much a day"),
    ("monthly-mb", "N", "at most so much a month"),
)
_EXAMPLES: Final = """\
Each answer may be left out; an empty text takes an earlier one back.

examples:
  evenlane probe enrol --collector https://collector.example
  evenlane probe enrol --collector URL --show
  evenlane probe enrol --collector URL --yes VERSION --brand Example --declared-position behind_router
"""


class _Wrong(Exception):
    """The command line cannot be followed; one sentence."""


def register(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    common: Callable[[argparse.ArgumentParser, Callable[[argparse.Namespace], int]], None],
) -> None:
    """Add both commands; `common` adds the options that each command of the probe has."""
    text = "join a collector's network, after reading what that means"
    enrol = commands.add_parser(
        "enrol", help=text, description=text, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    enrol.add_argument("--collector", metavar="URL", help="whom to join (default: as in the settings)")
    enrol.add_argument("--collector-key", metavar="KEYID", help="refuse a collector that has another key than this")
    enrol.add_argument("--token", metavar="TOKEN", help="from an organiser who knows you")
    enrol.add_argument("--language", choices=("en", "nl", "fr", "de"), help="(default: the terminal's)")
    enrol.add_argument("--yes", metavar="VERSION", help="I have read and agree to the consent text of this version")
    enrol.add_argument("--show", action="store_true", help="show the consent text and stop; nothing is sent")
    enrol.add_argument("--again", action="store_true", help="forget another collector here first, its key and all")
    enrol.add_argument(
        "--settings", metavar="FILE", type=Path, help="answers come from here, and this file is not written"
    )
    for name, metavar, what in _ANSWERS:
        enrol.add_argument(f"--{name}", metavar=metavar, help=what)
    common(enrol, _enrol)

    text = "leave: erase this device's data there and here"
    leave = commands.add_parser("leave", help=text, description=text)
    leave.add_argument("--yes", action="store_true", help="do not ask")
    leave.add_argument("--here-only", action="store_true", help="erase here without telling the collector")
    leave.add_argument("--language", choices=("en", "nl", "fr", "de"), help="(default: as when joining)")
    common(leave, _leave)


# -- enrol ------------------------------------------------------------------------------------------------------


def _enrol(args: argparse.Namespace) -> int:
    from evenlane.extras import CannotRun
    from probe.enrol import EnrolError
    from probe.netio.control import UrlError
    from probe.state import StateError
    from probe.wire.signing import prefer

    prefer("python")  # one signature, against 7 MB of memory
    try:
        return _join(args)
    except (_Wrong, UrlError) as error:
        print(f"evenlane: {error}", file=sys.stderr)
        return 2
    except (EnrolError, StateError) as error:
        raise CannotRun(str(error)) from None


def _join(args: argparse.Namespace) -> int:
    from evenlane.commands.probe_talk import Talk, interview
    from probe.about import about, check_about, check_taken
    from probe.consent import VERSION
    from probe.enrol import check_free
    from probe.plan import ceiling
    from probe.state import StateError
    from probe.upload import collector_url

    state = _state(args)
    settings, problems = _settings(args, state)
    language = _language(args, settings, None)
    talk = Talk(language, sys.stderr if args.json else sys.stdout)
    _check_line(args, VERSION)
    collector = args.collector or settings.collector or _former(state)
    if collector is None:
        raise _Wrong("name the collector with --collector URL")
    if len(collector) > _MOST_URL:
        raise _Wrong(f"the collector's address is longer than {_MOST_URL} characters")
    for problem in problems:
        print(f"evenlane: {problem}", file=sys.stderr)
    found = about(collector_url(collector))
    check_about(found, expected_key=args.collector_key or settings.collector_key, now_ms=_now_ms())
    text = _consent(language, found, ceiling(settings))
    if args.show:
        return _show(args, talk, found, text, ceiling(settings))
    before = None if args.again else check_free(state, found, collector)
    check_taken(found, is_known=before is not None, token=args.token)
    if args.yes is None:
        talk.page(text)
        if not talk.agrees("agree"):
            talk.tell("declined")
            return 1
        asked = interview(talk, settings, _told(args))
        if asked is None:
            talk.tell("declined")
            return 1
        settings = asked
    settings = replace(settings, language=language, collector=collector)
    joined = _send(args, state, collector, found, settings)
    if args.settings is None:
        try:
            _keep_settings(state, settings)
        except OSError as error:
            raise StateError(f"{state.directory}/settings.json cannot be written ({error.strerror})") from None
    return _tell_joined(args, talk, joined, settings, problems)


def _check_line(args: argparse.Namespace, version: str) -> None:
    """What is wrong with the options, before anybody is asked anything."""
    if args.token is not None and not _TOKEN.fullmatch(args.token):
        raise _Wrong("--token must be as it was given to you: letters, digits, - and _ alone, at most 128")
    if args.show:
        return
    if args.yes is None and not sys.stdin.isatty():
        raise _Wrong(f"nobody can be asked here: read the text with --show, then agree to it with --yes {version}")
    if args.yes is not None and args.yes != version:
        raise _Wrong(f"this program has the consent text of {version}, not of {args.yes!r}: read it with --show")


def _settings(args: argparse.Namespace, state: State) -> tuple[Settings, tuple[str, ...]]:
    """The file's settings with the options' answers over them, and the file's problems."""
    from probe.settings import Settings, read_settings, settings_of

    settings, problems = read_settings(args.settings or state.directory / "settings.json")
    told = _told(args)
    answers, wrong = settings_of(told)
    if wrong:
        raise _Wrong("; ".join("--" + _with_dashes(one) for one in wrong))
    usual = Settings()
    changed: dict[str, Any] = {name: getattr(answers, name) or getattr(usual, name) for name in told}
    for name in ("daily_mb", "monthly_mb", "opt_in_filters"):  # where 0 and no are answers
        if name in told:
            changed[name] = getattr(answers, name)
    return replace(settings, **changed), problems


def _with_dashes(problem: str) -> str:
    key, _, rest = problem.partition(" ")
    return f"{key.replace('_', '-')} {rest}"


def _told(args: argparse.Namespace) -> dict[str, str]:
    """The answers that stand on the command line."""
    names = (name.replace("-", "_") for name, _, _ in _ANSWERS)
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _language(args: argparse.Namespace, settings: Settings | None, kept: Enrolled | None) -> Language:
    from probe.consent import language_of

    told: Language | None = args.language
    return told or (settings.language if settings else None) or (kept.language if kept else language_of(os.environ))


def _former(state: State) -> str | None:
    from probe.enrol import enrolled

    before = enrolled(state)
    return before.collector if before else None


def _consent(language: Language, found: About, most: Budgets) -> str:
    from probe.consent import consent_text

    return consent_text(
        language, name=found.name, contact=found.contact, daily_mb=most.daily_mb, monthly_mb=most.monthly_mb
    )


def _send(args: argparse.Namespace, state: State, collector: str, found: About, settings: Settings) -> Joined:
    from evenlane.commands.probe import _version
    from probe.enrol import enrolled, erase, is_leaving, join
    from probe.shell import software

    assert settings.language is not None  # noqa: S101  (set by the caller)
    if args.again and _works_for_another(state, found, enrolled, is_leaving):
        state.prepare()
        erase(state)
    return join(
        state,
        collector,
        found,
        settings,
        language=settings.language,
        token=args.token,
        software=software(_version()),
        now_ms=_now_ms(),
    )


def _works_for_another(
    state: State, found: About, enrolled: Callable[[State], Enrolled | None], is_leaving: Callable[[State], bool]
) -> bool:
    """Whether the key that is here is known to somebody else: at a second collector it would link the two."""
    from probe.enrol import EnrolError

    try:
        before = enrolled(state)
    except EnrolError:
        return True
    return is_leaving(state) or (before is not None and before.key != found.key)


def _keep_settings(state: State, settings: Settings) -> None:
    from probe.settings import read_settings, write_settings

    path = state.directory / "settings.json"
    if read_settings(path) != (settings, ()):  # flash is not written where nothing changed
        write_settings(path, settings)


def _show(args: argparse.Namespace, talk: Talk, found: About, text: str, most: Budgets) -> int:
    from probe.consent import VERSION

    if args.json:
        document = {
            "consent": VERSION,
            "language": talk.language,
            "text": text,
            "collector": {"name": found.name, "contact": found.contact, "key": found.key},
            "budget": {"daily_mb": most.daily_mb, "monthly_mb": most.monthly_mb},
        }
        print(json.dumps(document))
    else:
        talk.page(text)
    return 0


def _tell_joined(
    args: argparse.Namespace, talk: Talk, joined: Joined, settings: Settings, problems: tuple[str, ...]
) -> int:
    from probe.consent import VERSION, amount
    from probe.plan import budgets

    fetched = joined.fetched
    plan = fetched.found.plan if fetched.found else None
    most = budgets(plan, settings)
    if args.json:
        document = {
            "status": joined.status,
            "vetted": joined.vetted,
            "probe": joined.probe,
            "collector": {"url": joined.enrolled.collector, "name": joined.enrolled.name, "key": joined.enrolled.key},
            "consent": VERSION,
            "language": talk.language,
            "plan": {"version": plan.version, "expires_ms": plan.expires_ms} if plan else None,
            "plan_status": fetched.status,
            "plan_detail": fetched.detail,
            "budget": {"daily_mb": most.daily_mb, "monthly_mb": most.monthly_mb},
            "problems": list(problems),
        }
        print(json.dumps(document))
        return 0
    talk.tell("joined" if joined.status == "enrolled" else "renewed", name=joined.enrolled.name)
    if plan is not None:
        daily, monthly = amount(talk.language, most.daily_mb), amount(talk.language, most.monthly_mb)
        talk.tell("plan", daily=daily, monthly=monthly)
    elif fetched.status == "none":
        talk.tell("no_plan")
    else:
        talk.tell("bad_plan", why=fetched.detail)
    talk.tell("next")
    return 0


# -- leave ------------------------------------------------------------------------------------------------------


def _leave(args: argparse.Namespace) -> int:
    from evenlane.extras import CannotRun
    from probe.enrol import EnrolError
    from probe.state import StateError
    from probe.wire.signing import prefer

    prefer("python")
    if not args.yes and not sys.stdin.isatty():
        print("evenlane: nobody can be asked here: say --yes", file=sys.stderr)
        return 2
    try:
        return _go(args)
    except (EnrolError, StateError) as error:
        raise CannotRun(str(error)) from None


def _go(args: argparse.Namespace) -> int:
    from evenlane.commands.probe_talk import Talk
    from probe.enrol import EnrolError, enrolled, erase, leave
    from probe.settings import read_settings

    state = _state(args)
    try:
        kept = enrolled(state)
    except EnrolError:
        if not args.here_only:
            raise
        kept = None
    settings, _ = read_settings(state.directory / "settings.json")
    talk = Talk(_language(args, settings, kept), sys.stderr if args.json else sys.stdout)
    name = (kept.name or kept.collector) if kept else "evenlane"
    places = {"name": name, "file": str(state.directory / "settings.json")}
    must_ask = not args.yes and (kept is not None or args.here_only)
    if must_ask and not talk.agrees("leave_here" if args.here_only else "leave", name=name):
        talk.tell("stayed")
        return 1
    if args.here_only:
        if state.directory.is_dir():
            erase(state)
        return _tell_left(args, talk, "left_here", "", places)
    left = leave(state, _now_ms())
    return _tell_left(args, talk, left.status, left.detail, places)


def _tell_left(args: argparse.Namespace, talk: Talk, status: str, detail: str, places: Mapping[str, str]) -> int:
    if args.json:
        print(json.dumps({"status": status, "detail": detail}))
    else:
        talk.tell(status, why=detail, **places)
    return 3 if status == "pending" else 0


def _state(args: argparse.Namespace) -> State:
    from evenlane.commands.probe import _state as state_of

    return state_of(args)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

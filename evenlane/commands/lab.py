# SPDX-License-Identifier: EUPL-1.2
"""`evenlane lab`: emulated operators with known behaviour, to see whether the product finds the truth."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime
from pathlib import Path

_EXAMPLES = """\
examples:
  evenlane lab run video-policed-by-name
  evenlane lab run my-operator.toml another.toml --pairs 20 --json

Scenario files are described in spec/lab.md. A name without a file means a bundled scenario.
Exit codes: 0 exactly the truth was found, 1 something else was, 2 usage, 3 could not run.
"""


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `lab` and its actions; imports nothing heavy."""
    parser = sub.add_parser("lab", help="emulate operators and measure them", description="Emulated operators.")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "measure emulated operators with real probes and compare the verdict with the scenario's truth"
    run_parser = actions.add_parser(
        "run", help=text, description=text, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    run_parser.add_argument("scenarios", metavar="SCENARIO.toml", nargs="+")
    run_parser.add_argument(
        "--driver", choices=("tun", "veth", "relay"), help="how to emulate (default: the first that works here)"
    )
    run_parser.add_argument("--probes", metavar="N", type=_count, default=3, help="subscribers, in parallel (3)")
    run_parser.add_argument("--pairs", metavar="N", type=_count, default=12, help="pairs of each app (12)")
    run_parser.add_argument("--segment-s", metavar="S", type=_seconds, default=1.0, help="length of a transfer (1)")
    run_parser.add_argument("--direction", choices=("down", "up", "both"), default="down", help="(down)")
    run_parser.add_argument(
        "--now",
        metavar="ISO",
        type=_time,
        help="emulated local time for rules with hours (default: when the truth holds)",
    )
    run_parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    run_parser.set_defaults(func=run)
    _register_nulls(actions)
    _register_accuracy(actions)


def _register_accuracy(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "the accuracy study: how often the verdict is right about operators whose truth is known"
    study = actions.add_parser(
        "accuracy",
        help=text,
        description=text[0].upper() + text[1:] + ". Rows are data (spec/accuracy.md); each one's result is written to "
        "docs/accuracy/rows as soon as it is done, and a row whose result is still true is not played again.",
        epilog="Exit codes: 0 all as expected, 1 something differs, 2 usage, 3 could not run.",
    )
    study.add_argument("--rows", metavar="GLOB", action="append", default=[], help="only these rows; may be repeated")
    study.add_argument("--list", action="store_true", help="show the rows and what is known of each; plays nothing")
    study.add_argument("--repeat", metavar="N", type=_repeats, help="repeats in virtual time (default: the row's)")
    study.add_argument("--tier", choices=("virtual", "real", "both"), default="both", help="(both)")
    study.add_argument("--driver", choices=("tun", "veth"), help="for real sockets (default: the first that works)")
    study.add_argument("--fresh", action="store_true", help="play rows again whose result is still true")
    study.add_argument("--limit-minutes", metavar="M", type=float, help="begin no further row after so long")
    study.add_argument("--workers", metavar="N", type=_count, help="processes (default: one a processor)")
    study.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("docs/accuracy"), help="where results are kept (docs/accuracy)"
    )
    study.add_argument("--report", action="store_true", help="play nothing; write the report from the results kept")
    study.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    study.set_defaults(func=run_accuracy)


def _repeats(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 100_000:
        raise argparse.ArgumentTypeError("must lie between 1 and 100000")
    return number


def _register_nulls(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "check the machinery itself: pairs over an even operator must come out even"
    nulls = actions.add_parser(
        "nulls",
        help=text,
        description=text + ". As many placebo pairs (two neutral names) run besides.",
        epilog="Exit codes: 0 everything is even, 1 something is not, 2 usage, 3 could not run.",
    )
    nulls.add_argument(
        "--driver", choices=("tun", "veth", "relay"), help="how to emulate (default: the first that works here)"
    )
    nulls.add_argument("--pairs", metavar="N", type=_many, default=400, help="test pairs in all, at least (400)")
    nulls.add_argument("--probes", metavar="N", type=_count, default=4, help="subscribers, in parallel (4)")
    nulls.add_argument("--segment-s", metavar="S", type=_seconds, default=0.5, help="length of a transfer (0.5)")
    nulls.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    nulls.set_defaults(func=run_nulls)


def _many(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 20_000:
        raise argparse.ArgumentTypeError("must lie between 1 and 20000")
    return number


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 200:
        raise argparse.ArgumentTypeError("must lie between 1 and 200")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0.2 <= number <= 120:
        raise argparse.ArgumentTypeError("must lie between 0.2 and 120 seconds")
    return number


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("must be a time such as 2026-03-02T20:00") from error


def run(args: argparse.Namespace) -> int:
    """Run the scenarios; 0 when each one's corroborated effects are exactly its truth."""
    from evenlane.extras import CannotRun, load

    lab = load("lab.run", extra="lab")
    from lab.drivers import NoDriver
    from lab.scenario import ScenarioError
    from lab.stage import StageError

    try:
        scenarios = lab.load_all(args.scenarios)
    except ScenarioError as error:
        print(f"evenlane: {error}", file=sys.stderr)
        return 2
    plan = lab.Plan(
        probes=args.probes,
        pairs=args.pairs,
        segment_s=args.segment_s,
        direction=args.direction,
        driver=args.driver,
        now=args.now,
    )
    try:
        outcomes = lab.run_all(scenarios, plan)
    except (NoDriver, ScenarioError, StageError) as error:
        raise CannotRun(str(error)) from error
    if args.json:
        print(json.dumps({"scenarios": [outcome.as_json() for outcome in outcomes]}, allow_nan=False))
    else:
        print(lab.table(outcomes))
    wrong = [outcome for outcome in outcomes if not outcome.ok]
    void = next((outcome.void_reason for outcome in wrong if outcome.void_reason), None)
    if void and all(outcome.void_reason for outcome in wrong):
        raise CannotRun(f"this machine was too busy for a verdict ({void}); try again when it is idle")
    return 1 if wrong else 0


def run_nulls(args: argparse.Namespace) -> int:
    """The A/A check; 0 when nothing speaks for a difference that nobody made."""
    from evenlane.extras import CannotRun, load

    nulls = load("lab.nulls", extra="lab")
    from lab.drivers import NoDriver
    from lab.stage import StageError

    try:
        found = nulls.run(args.pairs, probes=args.probes, segment_s=args.segment_s, driver=args.driver)
    except (NoDriver, StageError) as error:
        raise CannotRun(str(error)) from error
    print(json.dumps(found.as_json(), allow_nan=False) if args.json else nulls.table(found))
    if found.wrong and found.void_reason:
        raise CannotRun(f"this machine was too busy for a verdict ({found.void_reason}); try again when it is idle")
    return 1 if found.wrong else 0


def run_accuracy(args: argparse.Namespace) -> int:
    """The accuracy study; 0 when every row played or kept is as its file says."""
    from evenlane.extras import CannotRun, load

    study = load("lab.accuracy.study", extra="lab")
    from lab.accuracy import overview, reading
    from lab.drivers import NoDriver
    from lab.scenario import ScenarioError

    try:
        rows = reading.load_all(args.rows)
    except ScenarioError as error:
        print(f"evenlane: {error}", file=sys.stderr)
        return 2
    if args.report:
        report = load("lab.accuracy.report", extra="report")
        written = report.write(rows, args.out)
        print(json.dumps(written, allow_nan=False) if args.json else report.summary(written))
        return 0 if written["ok"] else 1
    if args.list:
        shown = overview.of(rows, args.out)
    else:
        options = {"repeat": args.repeat, "tier": args.tier, "fresh": args.fresh, "limit_minutes": args.limit_minutes}
        options |= {"driver": args.driver, "directory": args.out}
        plan = study.Plan(**options, **({"workers": args.workers} if args.workers else {}))
        try:
            shown = overview.of_outcomes(study.run(rows, plan, study.stderr), len(rows))
        except NoDriver as error:
            raise CannotRun(str(error)) from error
    print(json.dumps(shown, allow_nan=False) if args.json else overview.table(shown))
    if shown["ok"] and shown["failed"]:
        raise CannotRun(f"real sockets could not be used on {', '.join(shown['failed'])}; the reasons are above")
    return 0 if shown["ok"] else 1

# SPDX-License-Identifier: EUPL-1.2
"""`evenlane dashboards`: builds, checks and pushes the Grafana boards."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

TOKEN = "EVENLANE_GRAFANA_TOKEN"  # noqa: S105 - the name of a variable, not a secret


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command; imports nothing heavy."""
    parser = sub.add_parser(
        "dashboards",
        help="build, check or push the Grafana boards",
        description=(
            "build writes the boards as JSON for file provisioning; check says what is wrong or out of date in them; "
            f"push puts them into a running Grafana, with a service account's token from {TOKEN} or --token-file."
        ),
        epilog="Exit codes: 0 done, 1 check found something, 2 usage, 3 could not run.",
    )
    parser.add_argument("action", choices=("build", "check", "push"), help="what to do")
    parser.add_argument("--out", metavar="DIR", type=Path, help="build, check: where the JSON files are")
    parser.add_argument("--url", metavar="URL", default="http://localhost:3000", help="push: Grafana's address")
    parser.add_argument("--token-file", metavar="FILE", type=Path, help="push: file with the token")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    if args.action == "build":
        return _build(args)
    return _check(args) if args.action == "check" else _push(args)


def _build(args: argparse.Namespace) -> int:
    from dashboards.build import GENERATED, build
    from evenlane.cli import CannotRun

    try:
        files = build(args.out or GENERATED)
    except OSError as error:
        raise CannotRun(f"the boards cannot be written ({error.strerror}): choose another --out") from None
    _tell(args, {"files": [str(file) for file in files]}, [f"wrote {file}" for file in files])
    return 0


def _check(args: argparse.Namespace) -> int:
    from dashboards.build import GENERATED, check

    found = check(args.out or GENERATED)
    _tell(args, {"problems": found}, found or ["the boards are complete and up to date"])
    return 1 if found else 0


def _push(args: argparse.Namespace) -> int:
    from collector.sinks import Refused, Unreachable
    from evenlane.cli import CannotRun
    from evenlane.extras import load

    push = load("dashboards.push", extra="grafana").push
    if not args.url.startswith(("http://", "https://")):
        print("evenlane: --url must begin with http:// or https://", file=sys.stderr)
        return 2
    try:
        addresses = push(args.url, _token(args))
    except (Refused, Unreachable) as error:
        raise CannotRun(f"the boards were not pushed to {args.url}: {error}") from None
    _tell(args, {"boards": addresses}, addresses)
    return 0


def _token(args: argparse.Namespace) -> str:
    from evenlane.cli import CannotRun

    if args.token_file is None:
        token = os.environ.get(TOKEN, "").strip()
    else:
        try:
            token = args.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise CannotRun(f"the token cannot be read from {args.token_file}") from None
    if not token:
        raise CannotRun(f"a service account's token is needed: set {TOKEN} or give --token-file")
    return token


def _tell(args: argparse.Namespace, found: dict[str, list[str]], lines: list[str]) -> None:
    print(json.dumps(found) if args.json else "\n".join(lines))

# SPDX-License-Identifier: EUPL-1.2
"""`evenlane demo`: the whole way, small and real, on one machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from evenlane.arguments import port


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command; imports nothing heavy."""
    parser = sub.add_parser(
        "demo",
        help="emulate three operators, measure them, show what was found",
        description=(
            "Starts three emulated operators (one neutral but congested, one that slows an app by name, one that "
            "resets an app), three subscribers each, a reflector and a collector; measures with production's rules "
            "and thresholds (download only, three apps, segments of 1 s, 12 pairs an app); prints truth against "
            "verdict and then serves the pages until Ctrl-C."
        ),
        epilog="Exit codes: 0 the verdicts equal the truth, 1 they differ, 2 usage, 3 could not run.",
    )
    parser.add_argument("--exit", action="store_true", help="stop after the table instead of serving the pages")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--port", type=port, default=8080, help="port of the pages and the API on 127.0.0.1 (8080)")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="keep the collector's data here (default: thrown away)"
    )
    parser.add_argument(
        "--driver",
        choices=("tun", "veth", "relay"),
        help="how to emulate the operators (default: the first that works)",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 when the corroborated effects equal the truth."""
    from evenlane.extras import CannotRun, load

    demo = load("lab.demo", extra="lab")
    try:
        return int(demo.main(args))
    except demo.CANNOT_RUN as error:
        raise CannotRun(str(error)) from None

# SPDX-License-Identifier: EUPL-1.2
"""`evenlane reflector`: the server that probes measure against."""

from __future__ import annotations

import argparse
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from evenlane.arguments import port

if TYPE_CHECKING:
    from probe.reflector.server import Announcement


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command; imports nothing heavy."""
    parser = sub.add_parser(
        "reflector",
        help="serve probes: exchange traffic with them and witness what arrived",
        description=(
            "Runs a reflector until Ctrl-C. Prints one line when it is ready: the URL for `probe run --reflector`, "
            "with the pin of its certificate. Every session leaves a signed receipt in receipts.jsonl, every pair "
            "that began a line in started.jsonl; both go to the collector by themselves. No address is written down."
        ),
        epilog="Exit codes: 0 stopped on request, 2 usage, 3 could not run.",
    )
    parser.add_argument(
        "--host",
        action="append",
        metavar="H",
        help="address to listen on; repeat for a pool that pairs are spread over (127.0.0.1)",
    )
    parser.add_argument("--control-port", type=port, default=8443, metavar="N", help="HTTPS; 0 picks one (8443)")
    parser.add_argument("--data-port", type=port, default=8444, metavar="N", help="measurements; 0 picks one (8444)")
    parser.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="keys, receipts.jsonl and started.jsonl (default: $XDG_STATE_HOME/evenlane/reflector)",
    )
    parser.add_argument(
        "--asn-db",
        action="append",
        type=Path,
        metavar="FILE",
        help="MaxMind file, or CSV prefix,asn,country,operator,access; may be repeated, later ones fill gaps",
    )
    parser.add_argument("--collector", type=_url, metavar="URL", help="bring receipts and started pairs there")
    parser.add_argument(
        "--most-pace-mbps", type=_amount, default=0.0, metavar="R", help="highest pace of a segment; 0 is unlimited (0)"
    )
    parser.add_argument(
        "--session-mb", type=_amount, default=20_000.0, metavar="MB", help="most traffic of one session (20000)"
    )
    parser.add_argument("--sessions", type=_count, default=500, metavar="N", help="most sessions open at once (500)")
    parser.add_argument(
        "--sessions-per-network",
        type=_count,
        default=64,
        metavar="N",
        help="most sessions open at once from one /32 or /48 (64)",
    )
    parser.add_argument("--json", action="store_true", help="print the start line as one JSON object")
    parser.add_argument("--verbose", action="store_true", help="log more on standard error")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    import asyncio

    from evenlane.cli import CannotRun, version
    from evenlane.extras import load

    server = load("probe.reflector.server", extra="reflector")
    logs = load("probe.reflector.logs", extra="reflector")
    accounts = load("probe.protocol.accounts", extra="reflector")
    for path in args.asn_db or []:
        if path.suffix == ".mmdb":
            load("maxminddb", extra="reflector")
    logs.configure(logging.INFO if args.verbose else logging.WARNING)
    config = server.Config(
        hosts=tuple(dict.fromkeys(args.host or ["127.0.0.1"])),
        control_port=args.control_port,
        data_port=args.data_port,
        state=args.state or default_state(),
        asn_tables=tuple(args.asn_db or ()),
        collector=args.collector,
        limits=accounts.Limits(
            sessions=args.sessions,
            sessions_per_prefix=args.sessions_per_network,
            session_bytes=round(args.session_mb * 1_000_000),
            most_pace_mbps=args.most_pace_mbps,
        ),
        version=version(),
    )

    def announce(found: Announcement) -> None:
        print(json.dumps(asdict(found)) if args.json else server.announce_line(found), flush=True)

    try:
        asyncio.run(server.Reflector(config).run(announce))
    except server.ReflectorError as error:
        raise CannotRun(str(error)) from None
    return 0


def default_state() -> Path:
    """$XDG_STATE_HOME/evenlane/reflector, else ~/.local/state/evenlane/reflector."""
    base = os.environ.get("XDG_STATE_HOME", "")
    home = Path(base) if base.startswith("/") else Path(os.environ.get("HOME") or "/") / ".local/state"
    return home / "evenlane" / "reflector"


def _count(value: str) -> int:
    if not (value.isascii() and value.isdigit() and 0 < int(value) < 1_000_000):
        raise argparse.ArgumentTypeError(f"'{value}' is not a number above 0")
    return int(value)


def _amount(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1e9:
        raise argparse.ArgumentTypeError(f"'{value}' is not a number of 0 or more")
    return number


def _url(value: str) -> str:
    if not value.startswith(("http://", "https://")) or any(char.isspace() for char in value):
        raise argparse.ArgumentTypeError(f"'{value}' is not a URL such as https://collector.example.org")
    return value

# SPDX-License-Identifier: EUPL-1.2
"""`evenlane reflector`: the server that probes measure against."""

from __future__ import annotations

import argparse
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from evenlane.arguments import port

if TYPE_CHECKING:
    from probe.reflector.server import Announcement


_EPILOG = """\
limits:
  On addresses that strangers reach, the defaults are --capacity-mbps 500,
  --most-pace-mbps 50 and --session-mb 2000; on loopback and on documentation
  addresses there is no bound. Set --capacity-mbps to what your line carries each
  way: sessions book slots of it and are refused (503, Retry-After) when it is
  taken, so that your line is never what slows a measurement.

new keys:
  1. evenlane reflector --state DIR --rotate-key prepare
     prints the next key's id
  2. add that id to `reflectors` in the collector's configuration, beside the
     present one, and restart the collector
  3. evenlane reflector --state DIR --rotate-key now
     then send the running reflector SIGHUP, or restart it
  4. take the old id out of the collector's configuration once nothing that was
     signed with it is waiting any more (a day)
  Sessions that are open keep the key that they began with. To renew a
  certificate, replace or move away control.pem or data.pem under --state and send
  SIGHUP; the data port changes over in the first moment without a session. A new
  control.pem is a new pin.

journals:
  A record is with the operating system before anything that depends on it is
  answered, and on the disk within a second. With --collector, a journal that
  reaches 64 MB is put aside and deleted once it is delivered to its last line;
  what the collector will never take is kept in rejected.jsonl. Nothing else is
  ever deleted: at --journal-mb the reflector opens no more sessions.

Exit codes: 0 stopped on request, 2 usage, 3 could not run."""


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command; imports nothing heavy."""
    parser = sub.add_parser(
        "reflector",
        help="serve probes: exchange traffic with them and witness what arrived",
        description=(
            "Runs a reflector until Ctrl-C. Prints one line when it is ready: the URL for\n"
            "`probe run --reflector`, with the pin of its certificate. Every session leaves a\n"
            "signed receipt in receipts.jsonl, every pair that began a line in started.jsonl;\n"
            "both go to the collector by themselves. No address is written down."
        ),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
        "--portal-port",
        type=port,
        metavar="N",
        help="plain HTTP, one signed page by which probes notice captive portals; best 80, 0 picks one (none)",
    )
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
        "--capacity-mbps",
        type=_amount,
        metavar="R",
        help="what this machine's line carries each way, for sessions to book; 0 books nothing (500, see below)",
    )
    parser.add_argument(
        "--most-pace-mbps", type=_amount, metavar="R", help="highest pace of a segment; 0 is unlimited (50, see below)"
    )
    parser.add_argument("--session-mb", type=_amount, metavar="MB", help="most traffic of a session (2000, see below)")
    parser.add_argument("--sessions", type=_count, default=500, metavar="N", help="most sessions open at once (500)")
    parser.add_argument(
        "--sessions-per-network",
        type=_count,
        default=256,
        metavar="N",
        help="most sessions open at once from one /32 or /48 (256)",
    )
    parser.add_argument(
        "--journal-mb",
        type=_amount,
        default=2000.0,
        metavar="MB",
        help="most records to keep for the collector before no more sessions are opened; 0 is no bound (2000)",
    )
    parser.add_argument(
        "--rotate-key",
        choices=("prepare", "now"),
        help="make the next signing key and print its id, or take it into use; then end (see below)",
    )
    parser.add_argument("--json", action="store_true", help="print the start line as one JSON object")
    parser.add_argument("--verbose", action="store_true", help="log more on standard error")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM, or change the signing key."""
    if args.rotate_key:
        return _rotate_key(args)
    return _serve(args)


def _serve(args: argparse.Namespace) -> int:
    import asyncio
    from dataclasses import asdict, replace

    from evenlane.cli import CannotRun, version
    from evenlane.extras import load

    server = load("probe.reflector.server", extra="reflector")
    logs = load("probe.reflector.logs", extra="reflector")
    for path in args.asn_db or []:
        if path.suffix == ".mmdb":
            load("maxminddb", extra="reflector")
    logs.configure(logging.INFO if args.verbose else logging.WARNING)
    hosts = tuple(dict.fromkeys(args.host or ["127.0.0.1"]))
    limits = server.default_limits(hosts)
    config = server.Config(
        hosts=hosts,
        control_port=args.control_port,
        data_port=args.data_port,
        portal_port=args.portal_port,
        state=args.state or default_state(),
        asn_tables=tuple(args.asn_db or ()),
        collector=args.collector,
        limits=replace(
            limits,
            sessions=args.sessions,
            sessions_per_prefix=args.sessions_per_network,
            session_bytes=limits.session_bytes if args.session_mb is None else round(args.session_mb * 1_000_000),
            most_pace_mbps=limits.most_pace_mbps if args.most_pace_mbps is None else args.most_pace_mbps,
            capacity_mbps=limits.capacity_mbps if args.capacity_mbps is None else args.capacity_mbps,
        ),
        journal_bytes=round(args.journal_mb * 1_000_000),
        version=version(),
    )

    def announce(found: Announcement) -> None:
        print(json.dumps(asdict(found)) if args.json else server.announce_line(found), flush=True)

    try:
        asyncio.run(server.Reflector(config).run(announce))
    except server.ReflectorError as error:
        raise CannotRun(str(error)) from None
    return 0


def _rotate_key(args: argparse.Namespace) -> int:
    from evenlane.cli import CannotRun
    from evenlane.extras import load

    keys = load("probe.reflector.keys", extra="reflector")
    state: Path = args.state or default_state()
    if not state.is_dir():
        raise CannotRun(f"{state} is not the --state of a reflector; start one there first")
    try:
        key_id = keys.prepare_key(state) if args.rotate_key == "prepare" else keys.use_next_key(state)
    except ValueError as error:
        raise CannotRun(str(error)) from None
    except OSError as error:
        raise CannotRun(f"{error.filename or state} cannot be used ({error.strerror})") from None
    if args.json:
        print(json.dumps({"key": key_id, "state": args.rotate_key}))
    elif args.rotate_key == "prepare":
        print(f"{key_id} is the next key: add it to `reflectors` in the collector's configuration first")
    else:
        print(f"{key_id} is the key from the next start or SIGHUP on")
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

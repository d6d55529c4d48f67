# SPDX-License-Identifier: EUPL-1.2
"""`evenlane collector`: keeps signed records, judges them, shows what follows."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenlane.arguments import port
from evenlane.commands import collector_plan, collector_token

if TYPE_CHECKING:
    from collector.config import Config
    from collector.server import Running


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command; imports nothing heavy."""
    parser = sub.add_parser(
        "collector",
        help="receive measurements and receipts, judge them, serve the API and the pages",
        description=(
            "serve (the default) receives signed records, keeps them, judges them and serves the API and the pages; "
            "check reads the configuration and tries the data directory, and changes nothing; "
            "plan says what probes are asked to do, token invites volunteers."
        ),
        epilog="Exit codes: 0 done, 1 a plan has problems, 2 usage, 3 could not run.",
    )
    _options(parser)
    parser.set_defaults(func=run, action="serve")
    actions = parser.add_subparsers(metavar="ACTION", required=False)
    for name, told in (("serve", "what is done where no action is named"), ("check", "look, and change nothing")):
        action = actions.add_parser(name, help=told)
        # Without defaults of their own, so that an option before the action is not forgotten.
        _options(action, default=argparse.SUPPRESS)
        action.set_defaults(action=name)
    collector_plan.add(actions)
    collector_token.add(actions)


def _options(parser: argparse.ArgumentParser, default: Any = None) -> None:
    flag = default if default is argparse.SUPPRESS else False
    parser.add_argument("--host", metavar="H", default=default, help="address to listen on (127.0.0.1)")
    parser.add_argument(
        "--port", metavar="N", type=port, default=default, help="port to listen on (8080; 0: any that is free)"
    )
    parser.add_argument(
        "--data", metavar="DIR", type=Path, default=default, help="directory of everything kept (collector-data)"
    )
    parser.add_argument(
        "--config", metavar="FILE.toml", type=Path, default=default, help="configuration; the options win over it"
    )
    parser.add_argument("--json", action="store_true", default=flag, help="print one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Serve until stopped, or check."""
    from evenlane.extras import load

    # aiohttp and prometheus-client are the extra; the configuration itself needs neither.
    load("collector.server", extra="collector")
    config = config_of(args)
    return _check(config, as_json=args.json) if args.action == "check" else _serve(config, as_json=args.json)


def config_of(args: argparse.Namespace) -> Config:
    """The configuration, with the options of the command line before it."""
    from collector.config import Config, ConfigError, load
    from evenlane.extras import CannotRun

    try:
        config = Config() if args.config is None else load(args.config)
    except ConfigError as error:
        raise CannotRun(str(error)) from None
    given = {name: getattr(args, name) for name in ("host", "port", "data") if getattr(args, name) is not None}
    return dataclasses.replace(config, **given)


def _check(config: Config, *, as_json: bool) -> int:
    from collector.config import ConfigError
    from collector.identity import told as told_of
    from collector.store.base import StoreError
    from collector.store.sqlite import check_directory
    from evenlane.extras import CannotRun

    try:
        state = check_directory(config.data)
        key_id, key = told_of(config)
    except (StoreError, ConfigError) as error:
        raise CannotRun(str(error)) from None
    told = {
        "ok": True,
        "data": str(config.data),
        "state": state,
        "key": key_id,
        "name": config.name,
        "contact": config.contact,
        "enrolment": config.enrolment,
        "listen": f"{config.host}:{config.port}",
        "reflectors": len(config.reflectors),
        "operators": len(config.operators),
        "publish": config.publish,
        "influx": config.influx is not None,
        "grafana": config.grafana is not None,
    }
    if as_json:
        print(json.dumps(told))
        return 0
    print(f"configuration is good: {told['reflectors']} trusted reflectors, {told['operators']} operators")
    print(f"data directory {config.data}: {state}")
    print(key)
    print(f"volunteers see: {config.name}; contact: {config.contact}; enrolment: {config.enrolment}")
    if not config.reflectors:
        print("no reflector is trusted: receipts will be refused until `reflectors` lists their keys", file=sys.stderr)
    return 0


def _serve(config: Config, *, as_json: bool) -> int:
    import asyncio
    import signal

    from collector.config import ConfigError
    from collector.logs import to_stderr
    from collector.server import ServeError, serve
    from collector.store.base import StoreError
    from evenlane.extras import CannotRun

    to_stderr()

    def started(running: Running) -> None:
        if as_json:
            told = {"url": running.url, "port": running.port, "data": str(config.data)}
            print(json.dumps(told), flush=True)
        print(f"evenlane collector: {running.url}, data in {config.data}; Ctrl-C stops", file=sys.stderr)
        if not config.reflectors:
            print("evenlane collector: no reflector is trusted yet, so receipts are refused", file=sys.stderr)

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await serve(config, started=started, until=stop)

    try:
        asyncio.run(main())
    except (ConfigError, StoreError, ServeError) as error:
        raise CannotRun(str(error)) from None
    return 0

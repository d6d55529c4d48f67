# SPDX-License-Identifier: EUPL-1.2
"""`evenlane collector`: keeps signed records, judges them, shows what follows."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from evenlane.arguments import port

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
            "check reads the configuration and tries the data directory, and changes nothing."
        ),
        epilog="Exit codes: 0 done, 2 usage, 3 could not run.",
    )
    parser.add_argument("action", nargs="?", choices=("serve", "check"), default="serve", help="what to do (serve)")
    parser.add_argument("--host", metavar="H", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", metavar="N", type=port, help="port to listen on (8080; 0: any that is free)")
    parser.add_argument("--data", metavar="DIR", type=Path, help="directory of everything kept (collector-data)")
    parser.add_argument("--config", metavar="FILE.toml", type=Path, help="configuration; the options above win")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Serve until stopped, or check."""
    from evenlane.extras import load

    # aiohttp and prometheus-client are the extra; the configuration itself needs neither.
    load("collector.server", extra="collector")
    config = _config(args)
    return _check(config, as_json=args.json) if args.action == "check" else _serve(config, as_json=args.json)


def _config(args: argparse.Namespace) -> Config:
    from collector.config import Config, ConfigError, load
    from evenlane.extras import CannotRun

    try:
        config = Config() if args.config is None else load(args.config)
    except ConfigError as error:
        raise CannotRun(str(error)) from None
    given = {name: getattr(args, name) for name in ("host", "port", "data") if getattr(args, name) is not None}
    return dataclasses.replace(config, **given)


def _check(config: Config, *, as_json: bool) -> int:
    from collector.store.base import StoreError
    from collector.store.sqlite import check_directory
    from evenlane.extras import CannotRun

    try:
        state = check_directory(config.data)
    except StoreError as error:
        raise CannotRun(str(error)) from None
    told = {
        "ok": True,
        "data": str(config.data),
        "state": state,
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

# SPDX-License-Identifier: EUPL-1.2
"""The one console script: parses, hands over to a command, turns errors into exit codes.

Exit codes: 0 done, 1 the result differs from what was expected, 2 usage, 3 could not run.
Each command lives in evenlane/commands and imports its rooms only when it runs, so that the probe's
base install never needs another room's extra.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from evenlane.extras import CannotRun, MissingExtra

__all__ = ["CannotRun", "MissingExtra", "main"]

COMMANDS = ("demo", "probe", "reflector", "collector", "analysis", "lab", "dashboards")


class _Version(argparse.Action):
    """Prints the installed version; looked up only when asked for, because the look-up costs memory."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        print(f"evenlane {version()}")
        parser.exit()


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The command line. `only` registers that one command, so that a probe loads nothing of the others."""
    parser = argparse.ArgumentParser(
        prog="evenlane",
        description="Measures whether an internet operator treats applications differently.",
        epilog="Exit codes: 0 done, 1 the result differs from what was expected, 2 usage, 3 could not run.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    sub = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS if only is None else (only,):
        _add(sub, name)
    return parser


def _add(sub: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    """One command; a router has the probe's alone, and says so of the others."""
    module = f"evenlane.commands.{name}"
    try:
        importlib.import_module(module).register(sub)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        absent = sub.add_parser(name, help="not part of this installation", add_help=False)
        absent.add_argument("rest", nargs=argparse.REMAINDER)
        absent.set_defaults(func=lambda _: _absent(name))


def _absent(name: str) -> int:
    raise CannotRun(f"this installation has no `evenlane {name}`: pip install evenlane brings all commands")


def _who_stands_in_the_way() -> str | None:
    """A sentence, where one of our packages could not be imported because another one bears its name."""
    from evenlane.commands.probe_foreign import foreign, sentence

    found = foreign()
    return sentence(found) if found else None


def version() -> str:
    """The installed version, or the one a source tree without metadata runs as."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("evenlane")
    except PackageNotFoundError:
        return "0+unknown"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    only = argv[0] if argv and argv[0] in COMMANDS else None
    try:
        args = build_parser(only).parse_args(argv)
        run: Callable[[argparse.Namespace], int] = args.func
        return run(args)
    except ImportError as error:
        told = _who_stands_in_the_way()
        if told is None:
            raise
        print(f"evenlane: {told} ({error})", file=sys.stderr)
        return 3
    except (CannotRun, MissingExtra) as error:
        print(f"evenlane: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("evenlane: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


if __name__ == "__main__":
    sys.exit(main())

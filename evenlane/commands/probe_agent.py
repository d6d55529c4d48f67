# SPDX-License-Identifier: EUPL-1.2
"""`evenlane probe once` and `evenlane probe agent`: a turn, and the process that waits for the next one.

Spec: spec/probe.md, sections "The turn" and "Agent".
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from probe.settings import Settings
    from probe.state import State
    from probe.told import Turn

_COULD_NOT: Final = frozenset({"not_enrolled", "busy"})
_GRACE_S: Final = 30
_DEATH_S: Final = 3600
_ONCE: Final = "make one turn: upload, fetch the plan, measure if a session is due"
_AGENT: Final = "stay and make a turn whenever one is due"
_CRON: Final = """\
For small devices without the agent, a line in the crontab (every 15 minutes; nothing is measured unless a session is
due by the plan's random schedule, and each start waits up to two minutes so that probes do not meet):

  */15 * * * * evenlane probe once --jitter-s 120

Exit codes: 0 done, or nothing was due; 2 usage; 3 could not run (the sentence on stderr says why).
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `once` and `agent`."""
    once = commands.add_parser(
        "once", help=_ONCE, description=_ONCE, epilog=_CRON, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _common(once)
    once.add_argument("--json", action="store_true", help="print turn.json's object on stdout")
    once.add_argument(
        "--now", action="store_true", help="whatever the schedule says; budgets, quiet hours and the household hold"
    )
    once.add_argument(
        "--jitter-s", metavar="S", type=_seconds, default=0.0, help="wait a random time up to this first (for cron)"
    )
    once.add_argument("--most-mb", metavar="N", type=_megabytes, help="spend no more than this on a session")
    once.add_argument("--for-agent", action="store_true", help=argparse.SUPPRESS)
    once.set_defaults(func=_once)
    agent = commands.add_parser("agent", help=_AGENT, description=_AGENT)
    _common(agent)
    agent.add_argument(
        "--memory-mb",
        metavar="N",
        type=_megabytes,
        default=64,
        help="most memory of a turn's child (default 64; 0: any)",
    )
    agent.add_argument("--most-mb", metavar="N", type=_megabytes, help="spend no more than this on one session")
    agent.set_defaults(func=_agent)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state", metavar="DIR", type=Path, help="key, enrolment, plan (default: $XDG_STATE_HOME/evenlane/probe)"
    )
    parser.add_argument("--run", metavar="DIR", type=Path, help="spool and counters; may be lost at a restart (RAM)")
    parser.add_argument("--settings", metavar="FILE", type=Path, help="(default: settings.json in the state directory)")


def _seconds(text: str) -> float:
    if not text.isdecimal() or int(text) > 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds (0 to 3600)")
    return float(text)


def _megabytes(text: str) -> int:
    if not text.isdecimal() or int(text) > 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of megabytes")
    return int(text)


# -- once -------------------------------------------------------------------------------------------------------


class _Stop:
    """What asks this process to end: the first signal after the pair that is open, the second at once."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if number == signal.SIGALRM:
            signal.alarm(_GRACE_S)

    def within(self, seconds: float) -> None:
        """The time that this turn may take from now on: also where no agent looks after it."""
        signal.alarm(max(1, round(seconds)))

    def sleep(self, seconds: float) -> None:
        """Until the time is over or a signal came."""
        end = time.monotonic() + seconds
        while not self.asked and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))


def _once(args: argparse.Namespace) -> int:
    from evenlane.extras import CannotRun

    stop = _Stop()
    if args.jitter_s:
        stop.sleep(random.SystemRandom().uniform(0, args.jitter_s))
        if stop.asked:
            raise CannotRun("stopped before the turn began")
    began_s = time.monotonic()

    def lasts(seconds: float) -> None:
        stop.within(seconds)
        if args.for_agent:
            print(f"limit {round(time.monotonic() - began_s + seconds + _GRACE_S)}", flush=True)

    try:
        turn = _turn(args, stop, lasts)
    except MemoryError:
        text = "the turn ran out of memory: free some, or raise --memory-mb"
        if args.for_agent:
            print(f"told {text}\nnext {round((time.time() + _DEATH_S) * 1000)}", flush=True)
            return 3
        raise CannotRun(text) from None
    return _say(args, turn)


def _turn(args: argparse.Namespace, stop: _Stop, lasts: Any) -> Turn:
    from evenlane.commands.probe import _version
    from probe.state import State, default_directories
    from probe.turn import Asked, take_turn
    from probe.wire.signing import prefer
    from probe.world import Here

    prefer("python")  # 10 ms once a session, against 7 MB of memory
    state = State(*default_directories(args.state, args.run))
    asked = Asked(
        settings=args.settings or state.directory / "settings.json",
        version=_version(),
        now=args.now,
        most_bytes=None if args.most_mb is None else args.most_mb * 1_000_000,
        should_stop=lambda: stop.asked,
        lasts=lasts,
    )
    turn, settings = take_turn(state, Here(), asked)
    _show(state, settings, turn)
    return turn


def _show(state: State, settings: Settings, turn: Turn) -> None:
    """What `evenlane probe status`, Prometheus and OpenWrt's page read."""
    if turn.reason == "busy":
        return
    from probe.status import write

    write(state, settings, turn.plain())


def _say(args: argparse.Namespace, turn: Turn) -> int:
    from probe.wire.scrub import scrub

    text = scrub(_sentence(turn))
    if args.for_agent:
        print(f"told {text}\nnext {turn.next_ms}", flush=True)
    elif args.json:
        print(json.dumps(turn.plain(), ensure_ascii=False))
    else:
        print(f"{text}; next turn {time.strftime('%Y-%m-%d %H:%M', time.localtime(turn.next_ms / 1000))}")
    if not args.for_agent:
        for problem in turn.problems:
            print(f"evenlane: {scrub(problem)}", file=sys.stderr)
    return 3 if turn.outcome == "failed" or turn.reason in _COULD_NOT else 0


def _sentence(turn: Turn) -> str:
    """How a turn went, on one line."""
    if turn.outcome == "measured" and turn.last:
        pairs = turn.last["pairs"]["finished"]
        return f"measured {pairs} {'pair' if pairs == 1 else 'pairs'}, {turn.last['megabytes']:.1f} MB"
    if turn.reason == "not_due":
        return "synced, no session is due" if turn.outcome == "synced" else "no session is due"
    return f"{turn.outcome}: {turn.detail or turn.reason}"


# -- agent ------------------------------------------------------------------------------------------------------


def _agent(args: argparse.Namespace) -> int:
    """Become the small process: this one has imported too much."""
    from evenlane.extras import CannotRun
    from probe.state import default_directories

    found = importlib.util.find_spec("probe.agent")
    if found is None or found.origin is None or not sys.executable:
        raise CannotRun("this installation cannot find its own files: install evenlane again")
    state, run = default_directories(args.state, args.run)
    settings = args.settings or state / "settings.json"
    state, run, settings = (Path(os.path.abspath(path)) for path in (state, run, settings))
    child = [sys.executable, "-P", "-m", "evenlane.cli", "probe", "once", "--for-agent"]
    child += ["--state", str(state), "--run", str(run), "--settings", str(settings)]
    if args.most_mb is not None:
        child += ["--most-mb", str(args.most_mb)]
    argv = [sys.executable, "-I", "-S", found.origin, "--run", str(run), "--data-mb", str(args.memory_mb)]
    argv += ["--watch", str(settings), "--watch", str(state / "enrolment.json"), "--", *child]
    try:
        os.execv(sys.executable, argv)  # noqa: S606  (no shell is the point)
    except OSError as error:
        raise CannotRun(f"{sys.executable} cannot be started ({error.strerror})") from None

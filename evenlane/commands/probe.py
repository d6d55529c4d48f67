# SPDX-License-Identifier: EUPL-1.2
"""`evenlane probe`: what a volunteer runs. Parses, composes the probe's rooms and analysis, prints.

Nothing of ours is imported before a subcommand runs. Spec: spec/nettests/differential.md, section "Output".
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from evenlane.commands import probe_agent, probe_enrol

if TYPE_CHECKING:
    from probe.nettests.base import Cost, Progress
    from probe.plan import SignedPlan
    from probe.runner import Ran, Request
    from probe.state import State

DEFAULT_PAIRS = 3
_EXAMPLES = """\
examples:
  evenlane probe run differential --reflector https://reflector.example:8443#sha256=HEX
  evenlane probe run differential --reflector URL --app youtube --pairs 12 --out run.jsonl
"""


def register(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `probe` and its subcommands."""
    parser = sub.add_parser("probe", help="measure this line, and what belongs to it")
    parser.set_defaults(func=lambda _: _usage(parser))
    commands = parser.add_subparsers(dest="probe_command", metavar="COMMAND")
    _add_list(commands)
    _add_profile(commands)
    _add_run(commands)
    probe_enrol.register(commands, _common)
    probe_agent.register(commands)
    _add_status(commands)
    _add_spool(commands)
    _add_doctor(commands)


def _usage(parser: argparse.ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    return 2


def _common(parser: argparse.ArgumentParser, func: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument(
        "--state", metavar="DIR", type=Path, help="what lasts: key, settings (default: $XDG_STATE_HOME/evenlane/probe)"
    )
    parser.add_argument(
        "--run",
        metavar="DIR",
        type=Path,
        help="what may be lost, in RAM: counter, spool, lock (default: $RUNTIME_DIRECTORY, else with --state the same "
        "directory, else $XDG_RUNTIME_DIR/evenlane/probe)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.set_defaults(func=func)


def _add_list(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "list the nettests and the app profiles"
    _common(commands.add_parser("list", help=text, description=text), _list)


def _add_profile(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "print an app profile as a plan delivers it: canonical JSON"
    profile = commands.add_parser("profile", help=text, description=text)
    profile.add_argument("app", metavar="APP", help="which one (see `evenlane probe list`), or `neutral`")
    _common(profile, _profile)


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "run one nettest against a reflector"
    run = commands.add_parser(
        "run", help=text, description=text, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    run.add_argument("nettest", metavar="NETTEST", help="which one (see `evenlane probe list`)")
    run.add_argument(
        "--reflector", metavar="URL", required=True, help="https://HOST:PORT, optionally with a #sha256= pin"
    )
    run.add_argument("--app", metavar="NAME", action="append", default=[], help="repeatable (default: three apps)")
    run.add_argument(
        "--pairs",
        metavar="N",
        type=int,
        default=DEFAULT_PAIRS,
        help=f"pairs of each app and direction (default {DEFAULT_PAIRS}; one extra in ten compares two neutral names)",
    )
    run.add_argument(
        "--pace-mbps", metavar="R", type=float, help="send no faster (default: calibrate, at most 12; 0: unlimited)"
    )
    run.add_argument("--segment-s", metavar="S", type=float, default=4.0, help="length of one transfer (default 4)")
    run.add_argument("--direction", choices=("down", "up", "both"), default="down", help="(default down)")
    run.add_argument("--out", metavar="FILE", type=Path, help="write the signed records here, one a line (replaced)")
    run.add_argument("--collector", metavar="URL", help="upload the measurement there; kept in the spool if that fails")
    run.add_argument("--bind", metavar="ADDR", help="local address to connect from")
    run.add_argument("--hotspot", action="store_true", help="this line is a public hotspot: judged apart from homes")
    run.add_argument(
        "--plan", metavar="FILE", type=Path, help="take app profiles from this signed plan before the installed ones"
    )
    run.add_argument("--plan-key", metavar="KEYID", help="the collector's key id, which must have signed the plan")
    run.add_argument(
        "--progress",
        choices=("auto", "lines", "json", "none"),
        default="auto",
        help="on stderr (default: one updating line on a terminal, else a line a pair)",
    )
    _common(run, _run)


def _add_status(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "tell how this probe stands, in plain words"
    status = commands.add_parser("status", help=text, description=text)
    status.add_argument(
        "--language", choices=("en", "nl", "fr", "de"), help="(default: as in the settings, else the terminal's)"
    )
    _add_settings(status)
    _common(status, _status)


def _add_spool(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "list, send or clear the records that no collector has yet"
    spool = commands.add_parser("spool", help=text, description=text)
    spool.add_argument("--collector", metavar="URL", help="send them there, oldest first")
    spool.add_argument("--send", action="store_true", help="send them to the collector that this probe works for")
    spool.add_argument("--clear", action="store_true", help="throw them away unsent (asks first)")
    spool.add_argument("--yes", action="store_true", help="do not ask")
    _common(spool, _spool)


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "check everything that a probe needs, and say what to do"
    doctor = commands.add_parser("doctor", help=text, description=text)
    doctor.add_argument("--reflector", metavar="URL", help="also try to reach this reflector")
    doctor.add_argument("--bind", metavar="ADDR", help="local address to connect from")
    doctor.add_argument("--offline", action="store_true", help="ask nothing of the network")
    _add_settings(doctor)
    _common(doctor, _doctor)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--settings", metavar="FILE", type=Path, help="(default: settings.json in the state directory)")


def _state(args: argparse.Namespace) -> State:
    from probe.state import State, default_directories

    return State(*default_directories(args.state, args.run))


# -- run --------------------------------------------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    from evenlane.extras import CannotRun
    from probe.netio.control import UrlError
    from probe.nettests.base import OptionError, Options
    from probe.plan import PlanError
    from probe.profiles.model import ProfileError
    from probe.runner import RunError, request_of, run
    from probe.state import StateError, default_directories
    from probe.wire.signing import prefer

    prefer("python")  # 10 ms once a session, against 7 MB of memory
    durable, volatile = default_directories(args.state, args.run)
    try:
        plan = _plan(args)
        options = Options(
            apps=tuple(args.app),
            pairs=args.pairs,
            direction=args.direction,
            pace_mbps=args.pace_mbps,
            segment_s=args.segment_s,
            hotspot=args.hotspot,
            delivered=plan.profiles if plan else (),
        )
        request = request_of(
            args.nettest,
            options,
            reflector=args.reflector,
            state=durable,
            run=volatile,
            out=args.out,
            collector=args.collector,
            bind=args.bind,
            plan=plan.digest if plan else None,
            version=_version(),
        )
    except (OptionError, PlanError, ProfileError, UrlError) as error:
        print(f"evenlane: {error}", file=sys.stderr)
        return 2
    show = _Show(args.progress)
    show.begin(request.cost)
    try:
        ran = run(request, on_progress=show.pair, should_stop=_soft_stop(show))
    except (RunError, StateError) as error:
        show.end()
        raise CannotRun(str(error)) from None
    show.end()
    return _tell(args, request, ran)


def _plan(args: argparse.Namespace) -> SignedPlan | None:
    """The plan that was named. Raises PlanError."""
    from probe.plan import PlanError, read_plan

    if args.plan is None and args.plan_key is None:
        return None
    if args.plan is None or args.plan_key is None:
        raise PlanError("--plan FILE and --plan-key KEYID go together: a plan counts only by its collector's signature")
    return read_plan(args.plan, args.plan_key, time.time_ns() // 1_000_000)


def _version() -> str:
    """The installed version by its directory's name: importlib.metadata would cost 3 MB of memory."""
    for entry in sys.path:
        for found in sorted(Path(entry).glob("evenlane-*.dist-info")):
            return found.name.removeprefix("evenlane-").removesuffix(".dist-info")
    return "0+unknown"


def _tell(args: argparse.Namespace, request: Request, ran: Ran) -> int:
    from evenlane.commands.probe_summary import plain, sentences, summary_of

    summary = summary_of(ran)
    document = plain(ran, summary, request)
    request.state.remember({k: document[k] for k in ("session", "ended_ms", "pairs", "failure")})
    if args.json:
        print(json.dumps(document, ensure_ascii=False))
    else:
        print("\n".join(sentences(ran, summary, request)))
    if not ran.session.results:
        why = ran.session.complaint or (ran.measurement.failure or "stopped").replace("_", " ")
        print(f"evenlane: no pair was finished ({why}); check the reflector and try again", file=sys.stderr)
        return 3
    return 0


def _soft_stop(show: _Show) -> Callable[[], bool]:
    """The first signal ends the run after the pair that is open, a second Ctrl-C at once."""
    wanted: list[int] = []

    def handler(number: int, _: FrameType | None) -> None:
        if wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        wanted.append(number)
        show.say("stopping after this pair (Ctrl-C again: at once)")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    return lambda: bool(wanted)


class _Show:
    """Progress on stderr."""

    def __init__(self, mode: str) -> None:
        self._tty = mode == "auto" and sys.stderr.isatty()
        self._mode = "lines" if mode == "auto" else mode
        self._open = False

    def begin(self, cost: Cost) -> None:
        """What the run will take at most."""
        megabytes = None if cost.bytes is None else round(cost.bytes / 1e6, 1)
        if self._mode == "json":
            self._json({"event": "start", "pairs": cost.pairs, "megabytes": megabytes, "seconds": round(cost.seconds)})
            return
        size = "as many bytes as the line carries" if megabytes is None else f"at most {megabytes:g} MB"
        self.say(f"up to {cost.pairs} pairs, {size}, about {cost.seconds:.0f} s")

    def pair(self, at: Progress) -> None:
        """One pair is over."""
        if self._mode == "json":
            self._json(
                {
                    "event": "pair",
                    "pair": at.pair,
                    "app": at.app,
                    "direction": at.direction,
                    "kind": at.kind,
                    "done": at.done,
                    "of": at.of,
                    "outcome": at.outcome,
                    "app_mbps": None if at.app_mbps is None else round(at.app_mbps, 3),
                    "neutral_mbps": None if at.neutral_mbps is None else round(at.neutral_mbps, 3),
                    "design": at.design,
                    "app_delay_ms": at.app_delay_ms,
                    "neutral_delay_ms": at.neutral_delay_ms,
                    "app_loss": at.app_loss,
                    "neutral_loss": at.neutral_loss,
                }
            )
            return
        names = (at.app, "neutral") if at.kind == "test" else ("one neutral name", "another")
        if at.design == "concurrent":
            told = [_delay(at.app_delay_ms, at.app_loss), _delay(at.neutral_delay_ms, at.neutral_loss)]
        else:
            told = ["failed" if rate is None else f"{rate:.2f} Mbit/s" for rate in (at.app_mbps, at.neutral_mbps)]
        seen = ", ".join(f"{name} {one}" for name, one in zip(names, told, strict=True))
        text = f"pair {at.done} of {at.of}, {at.direction}: {seen}"
        if self._tty:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            self.say(text)

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._mode == "none":
            return
        self.end()
        if self._mode == "json":
            self._json({"event": "note", "text": text})
        else:
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the updating line."""
        if self._open:
            print(file=sys.stderr)
            self._open = False

    @staticmethod
    def _json(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=sys.stderr, flush=True)


def _delay(ms: float | None, loss: float | None) -> str:
    """What is shown of a slot of a concurrent pair."""
    if loss is None:
        return "failed"
    lost = f", {loss:.0%} lost" if loss else ""
    return f"{'no answer' if ms is None else f'{ms:.1f} ms'}{lost}"


# -- the others -------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    from evenlane.commands.probe_about import catalogue, catalogue_lines

    found = catalogue()
    print(json.dumps(found, ensure_ascii=False) if args.json else "\n".join(catalogue_lines(found)))
    return 0


def _profile(args: argparse.Namespace) -> int:
    from evenlane.commands.probe_about import document
    from probe.profiles.model import ProfileError

    try:
        found = document(args.app)
    except ProfileError as error:
        print(f"evenlane: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"id": args.app.partition("+")[0], "document": found}) if args.json else found)
    return 0


def _status(args: argparse.Namespace) -> int:
    from evenlane.commands.probe_status import run

    return run(args)


def _spool(args: argparse.Namespace) -> int:
    from evenlane.commands.probe_spool import run

    return run(args)


def _doctor(args: argparse.Namespace) -> int:
    from evenlane.commands.probe_doctor import run

    return run(args)

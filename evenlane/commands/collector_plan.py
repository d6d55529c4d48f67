# SPDX-License-Identifier: EUPL-1.2
"""`evenlane collector plan`: what probes are asked to do, from a file that people write to a signed plan that is rolled
out to some of them first. Spec: spec/enrolment.md, section "Plans"."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenlane.extras import CannotRun

if TYPE_CHECKING:
    from collector.config import Config
    from collector.drafts import Cost, Draft
    from collector.plans import Shelf, Shelved
    from probe.wire.records import Plan, PlannedProfile


def add(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `plan` to the collector's actions."""
    parser = sub.add_parser(
        "plan",
        help="what probes are asked to do: check, sign, roll out, withdraw",
        description="A plan is a file that people write. Signed, a share of the probes gets it first, then all.",
        epilog="Exit codes: 0 done, 1 the plan has problems, 2 usage, 3 could not run.",
    )
    actions = parser.add_subparsers(dest="what", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="every problem of a file at once, and what it costs a probe")
    sign = actions.add_parser("sign", help="check, sign and roll out to a share of the probes")
    for action in (check, sign):
        action.add_argument("file", metavar="FILE.toml", type=Path)
    sign.add_argument("--share", metavar="S", type=_share, default=0.1, help="of the probes, 0 to 1 (0.1)")
    share = actions.add_parser("share", help="roll a signed plan out further")
    share.add_argument("version", metavar="VERSION", type=_version)
    share.add_argument("share", metavar="S", type=_share, help="of the probes; 1: all")
    gone = actions.add_parser("withdraw", help="give nobody this plan any more, and the former content again")
    gone.add_argument("version", metavar="VERSION", type=_version)
    for action in (check, sign, share, gone, actions.add_parser("list", help="those that were signed")):
        action.add_argument("--data", metavar="DIR", type=Path, default=argparse.SUPPRESS, help="collector's directory")
        action.add_argument("--config", metavar="FILE.toml", type=Path, default=argparse.SUPPRESS)
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
        action.set_defaults(func=run)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:  # NaN too
        raise argparse.ArgumentTypeError(f"{text!r} is not a share (0 to 1)")
    return share


def _version(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not the version of a plan")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    from evenlane.extras import load

    load("collector.plans", extra="collector")
    from collector.config import ConfigError
    from collector.plans import PlansError
    from evenlane.commands.collector import config_of

    config = config_of(args)
    actions = {"check": _check, "sign": _sign, "share": _roll_out, "list": _list, "withdraw": _withdraw}
    try:
        return actions[args.what](args, config)
    except (PlansError, ConfigError) as error:
        raise CannotRun(str(error)) from None
    except OSError as error:
        raise CannotRun(f"{error.filename or config.data} cannot be used ({(error.strerror or '').lower()})") from None


def _shelf(config: Config) -> Shelf:
    from collector.identity import load
    from collector.plans import Shelf

    return Shelf(config.data, load(config))


# Reading and checking


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    problems: tuple[str, ...]
    plan: Plan | None
    cost: Cost | None


def _checked(path: Path, config: Config, newest: int) -> _Checked:
    from collector.drafts import against, cost, read

    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CannotRun(f"{path} cannot be read ({(error.strerror or 'unknown reason').lower()})") from None
    except UnicodeDecodeError:
        raise CannotRun(f"{path} is not a text in UTF-8") from None
    draft = read(content)
    profiles, problems = _profiles(draft, path.parent)
    problems = [*draft.problems, *problems]
    if draft.problems:
        return _Checked(problems=tuple(problems), plan=None, cost=None)
    plan = draft.plan(now_ms=_now_ms(), profiles=profiles)
    found = cost(plan.nettests, plan.interval_s, _session_bytes)
    problems += _unknown(plan)
    problems += against(plan, found=found, trusted=config.reflectors, newest=newest)
    problems += [] if problems else _refused_by_probes(plan)
    return _Checked(problems=tuple(problems), plan=plan, cost=found)


def _session_bytes(nettest: Any) -> int:
    from probe.plan import session_bytes

    return session_bytes(nettest)


def _profiles(draft: Draft, folder: Path) -> tuple[list[PlannedProfile], list[str]]:
    """The app profiles that a draft names, as a plan delivers them."""
    from probe.profiles.model import ProfileError
    from probe.profiles.reading import document_of
    from probe.wire.records import PlannedProfile

    found: list[PlannedProfile] = []
    problems: list[str] = []
    for index, name in enumerate(draft.profiles):
        where = f"profiles[{index}].file"
        try:
            document = document_of((folder / name).read_text(encoding="utf-8"), name)
            found.append(PlannedProfile(id=Path(name).stem, document=document))
        except OSError as error:
            problems.append(f"{where} cannot be read ({(error.strerror or 'unknown reason').lower()})")
        except (ProfileError, ValueError) as error:
            problems.append(f"{where} is no app profile: {error}")
    return found, problems


def _unknown(plan: Plan) -> list[str]:
    """Nettests and apps that no probe of this version knows, and profiles that it would refuse."""
    from probe.nettests.base import OptionError
    from probe.nettests.registry import get
    from probe.profiles.model import ProfileError, Shelf

    problems: list[str] = []
    try:
        shelf = Shelf(delivered=plan.profiles)
    except ProfileError as error:
        return [f"profiles: {error}"]
    for index, nettest in enumerate(plan.nettests):
        try:
            get(nettest.nettest)
        except OptionError as error:
            problems.append(f"nettests[{index}].nettest: {error}")
        for app in nettest.apps:
            try:
                shelf.load(app)
            except ProfileError as error:
                problems.append(f"nettests[{index}].apps: {error}")
    return problems


def _refused_by_probes(plan: Plan) -> list[str]:
    """What a probe would say of it, asked of the probe's own code."""
    from probe.plan import PlanError, accept
    from probe.wire.envelope import seal
    from probe.wire.signing import SeedSigner

    signer = SeedSigner(bytes(32))  # any key does: it is asked about the content
    try:
        accept(seal(plan, signer), signer.key_id, plan.issued_ms)
    except PlanError as error:
        return [f"probes would refuse it: {error}"]
    return []


def _tell(checked: _Checked, *, as_json: bool, more: dict[str, Any] | None = None) -> int:
    cost = checked.cost
    if as_json:
        told: dict[str, Any] = {
            "ok": not checked.problems,
            "problems": list(checked.problems),
            "version": None if checked.plan is None else checked.plan.version,
            "cost": None
            if cost is None
            else {
                "session_mb": round(cost.session_mb, 1),
                "daily_mb": round(cost.daily_mb, 1),
                "monthly_mb": round(cost.monthly_mb, 1),
            },
        }
        print(json.dumps(told | (more or {})))
        return 1 if checked.problems else 0
    for problem in checked.problems:
        print(problem)
    if cost is not None:
        print(
            f"a probe on a fast line, one app a session: at most {cost.session_mb:.0f} MB a session, about "
            f"{cost.daily_mb:.0f} MB a day, {cost.monthly_mb:.0f} MB a month; with budget left, apps share one"
        )
    if checked.plan is not None and checked.plan.weights:
        print("note: this collector judges by its bundled weights; those of the plan are published only")
    return 1 if checked.problems else 0


def _check(args: argparse.Namespace, config: Config) -> int:
    from collector.identity import told

    # Nothing is changed by looking: where there is no key yet, there are no plans either.
    key_id, _ = told(config)
    newest = _shelf(config).newest if key_id is not None else 0
    checked = _checked(args.file, config, newest)
    code = _tell(checked, as_json=args.json)
    if code == 0 and not args.json:
        print("the plan is good")
    return code


def _sign(args: argparse.Namespace, config: Config) -> int:
    shelf = _shelf(config)
    checked = _checked(args.file, config, shelf.newest)
    if checked.problems or checked.plan is None:
        return _tell(checked, as_json=args.json)
    signed = shelf.sign(checked.plan, args.share)
    if args.json:
        return _tell(checked, as_json=True, more=_row(signed))
    _tell(checked, as_json=False)
    print(_in_words(signed))
    return 0


# Rolling out


def _roll_out(args: argparse.Namespace, config: Config) -> int:
    after = _shelf(config).set_share(args.version, args.share)
    print(json.dumps(_row(after)) if args.json else _in_words(after))
    return 0


def _list(args: argparse.Namespace, config: Config) -> int:
    shelf = _shelf(config)
    shelved = shelf.all()
    for problem in shelf.problems:
        print(f"evenlane collector: {problem}", file=sys.stderr)
    if args.json:
        print(json.dumps({"plans": [_row(one) for one in shelved], "problems": list(shelf.problems)}))
        return 0
    for one in shelved:
        print(_in_words(one))
    if not shelved:
        print("no plans yet: `evenlane collector plan sign FILE.toml` makes one", file=sys.stderr)
    return 0


def _withdraw(args: argparse.Namespace, config: Config) -> int:
    shelf = _shelf(config)
    again = shelf.withdraw(args.version, _now_ms())
    bad = shelf.known(args.version)
    if args.json:
        print(json.dumps({"withdrawn": _row(bad), "instead": None if again is None else _row(again)}))
        return 0
    print(_in_words(bad))
    if again is not None:
        print(f"the former content is plan {again.version} now, for all probes (versions only rise at a probe)")
        return 0
    newer = [one.version for one in shelf.all() if one.version > args.version and one.share >= 1]
    if newer:
        print(f"plan {max(newer)} is rolled out to all anyway")
    else:
        print(f"there is no former plan: probes that have it follow it until {_day(bad)}; sign a better one")
    return 0


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _day(one: Shelved) -> str:
    return f"{datetime.fromtimestamp(one.plan.expires_ms / 1000, UTC):%Y-%m-%d}"


def _state(one: Shelved) -> str:
    if one.withdrawn:
        return "withdrawn"
    return "expired" if one.plan.expires_ms <= _now_ms() else "in force"


def _in_words(one: Shelved) -> str:
    state = _state(one)
    end = "" if one.withdrawn else f", {'expired' if state == 'expired' else 'until'} {_day(one)}"
    share = "given to nobody any more" if one.withdrawn else f"for {one.share:.0%} of the probes"
    return f"plan {one.version}: {'withdrawn, ' if one.withdrawn else ''}{share}{end}"


def _row(one: Shelved) -> dict[str, Any]:
    return {
        "version": one.version,
        "share": one.share,
        "state": _state(one),
        "issued_ms": one.plan.issued_ms,
        "expires_ms": one.plan.expires_ms,
        "digest": one.envelope.digest,
    }

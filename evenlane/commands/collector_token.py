# SPDX-License-Identifier: EUPL-1.2
"""`evenlane collector token`: invitations for volunteers whom an organiser knows. Spec: spec/enrolment.md, "Tokens"."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenlane.extras import CannotRun

if TYPE_CHECKING:
    from collector.members import Token

MOST_USES = 100_000
MOST_DAYS = 3650


def add(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `token` to the collector's actions."""
    parser = sub.add_parser(
        "token",
        help="invitations: make, list, revoke",
        description="A token makes the probes that enrol with it vetted: somebody knows who stands behind them.",
    )
    actions = parser.add_subparsers(dest="what", metavar="ACTION", required=True)
    new = actions.add_parser("new", help="make one; its text is shown once and kept nowhere")
    new.add_argument("--label", metavar="TEXT", type=_label, required=True, help="whom it is for, for your own list")
    new.add_argument("--uses", metavar="N", type=_uses, default=1, help="how many probes may enrol with it (1)")
    new.add_argument("--expires", metavar="DAYS", type=_days, default=None, help="valid for so long (no end)")
    listed = actions.add_parser("list", help="those there are, without their texts")
    gone = actions.add_parser("revoke", help="nobody may enrol with it any more; who has, stays")
    gone.add_argument("id", metavar="ID", help="as `token list` shows it")
    for action in (new, listed, gone):
        _common(action)
        action.set_defaults(func=run)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", type=Path, default=argparse.SUPPRESS, help="the collector's directory")
    parser.add_argument("--config", metavar="FILE.toml", type=Path, default=argparse.SUPPRESS, help="its configuration")
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")


def _label(text: str) -> str:
    if not text.strip() or len(text) > 128 or not text.isprintable():
        raise argparse.ArgumentTypeError("a label has 1 to 128 printable characters")
    return text.strip()


def _uses(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_USES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of uses (1 to {MOST_USES})")
    return int(text)


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 0 < days <= MOST_DAYS:  # NaN too
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days (up to {MOST_DAYS})")
    return days


def run(args: argparse.Namespace) -> int:
    """Make, list or revoke."""
    from evenlane.extras import load

    load("collector.invitations", extra="collector")
    from collector.store.base import StoreError
    from evenlane.commands.collector import config_of

    data = config_of(args).data
    try:
        return {"new": _new, "list": _list, "revoke": _revoke}[args.what](args, data)
    except StoreError as error:
        raise CannotRun(str(error)) from None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _new(args: argparse.Namespace, data: Path) -> int:
    from collector.enrolment import TOKEN_BYTES, new_token
    from collector.invitations import on_roll

    text, token = new_token(
        args.label, drawn=secrets.token_bytes(TOKEN_BYTES), uses=args.uses, days=args.expires, now_ms=_now_ms()
    )
    on_roll(data, lambda roll: roll.put_token(token))
    if args.json:
        print(json.dumps({"token": text, **_row(token)}))
        return 0
    print(text)
    print(f"token {token.id} for {token.label}: {_in_words(token)}. It is shown this once.", file=sys.stderr)
    return 0


def _list(args: argparse.Namespace, data: Path) -> int:
    from collector.invitations import on_roll

    tokens = on_roll(data, lambda roll: roll.tokens())
    if args.json:
        print(json.dumps({"tokens": [_row(token) for token in tokens]}))
        return 0
    for token in tokens:
        print(f"{token.id}  {token.label}: {_in_words(token)}")
    if not tokens:
        print("no tokens yet: `evenlane collector token new --label TEXT` makes one", file=sys.stderr)
    return 0


def _revoke(args: argparse.Namespace, data: Path) -> int:
    from collector.invitations import revoke

    token = revoke(data, args.id, _now_ms())
    if token is None:
        raise CannotRun(f"there is no token {args.id}: `evenlane collector token list` shows those there are")
    if args.json:
        print(json.dumps(_row(token)))
        return 0
    print(f"token {token.id} for {token.label}: {_in_words(token)}")
    return 0


def _row(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "label": token.label,
        "state": token.state(_now_ms()),
        "uses": token.uses,
        "used": token.used,
        "created_ms": token.created_ms,
        "expires_ms": token.expires_ms,
        "revoked_ms": token.revoked_ms,
    }


def _in_words(token: Token) -> str:
    end = "" if token.expires_ms is None else f", until {datetime.fromtimestamp(token.expires_ms / 1000, UTC):%Y-%m-%d}"
    return f"{token.state(_now_ms())}, used {token.used} of {token.uses}{end}"

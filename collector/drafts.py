# SPDX-License-Identifier: EUPL-1.2
"""A plan as people write it (TOML): read whole, with every problem at once, each by the path of its key.

Pure. What an app profile is and what a session costs, the probe's room knows; the command line hands both in.
Spec: spec/enrolment.md, section "Plans".
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from probe.wire.codec import Bounds, WireError, fields_of, from_dict
from probe.wire.records import Plan, PlannedNettest, PlannedProfile, PlannedReflector, Weight

MOST_DAYS: Final = 30
DEFAULT_DAYS: Final = 14
DAY_S: Final = 86_400
DAY_MS: Final = 86_400_000
_PLAIN: Final = ("version", "interval_s", "daily_mb", "monthly_mb", "hotspot_daily_mb", "hotspot_monthly_mb")
_KEY: Final = "A" * 43
# One of each that is good: a key is checked by putting its value in.
_GOOD: Final[dict[type, dict[str, Any]]] = {
    Plan: {
        "type": "plan",
        "v": 1,
        "version": 1,
        "issued_ms": 1_800_000_000_000,
        "expires_ms": 1_800_000_000_000,
        "reflectors": [],
        "nettests": [],
        "weights": [],
    },
    PlannedReflector: {"url": "https://a", "key": _KEY},
    PlannedNettest: {"nettest": "differential"},
    Weight: {"app": "*", "direction": "down", "access": "fixed", "effect": "slowing", "weight": 0.0},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A plan before it is signed; `problems` are sentences that begin with the path of a key."""

    told: Mapping[str, Any]
    """Plain values of the record's fields, as far as they are good."""
    days: int
    profiles: tuple[str, ...]
    """Files of app profiles that it delivers, relative to its own."""
    problems: tuple[str, ...]

    def plan(self, *, now_ms: int, profiles: Sequence[PlannedProfile] = ()) -> Plan:
        """The record, issued now. Only of a draft without problems."""
        about = {
            "type": "plan",
            "v": 1,
            "issued_ms": now_ms,
            "expires_ms": now_ms + self.days * DAY_MS,
            "profiles": [{"id": one.id, "document": one.document} for one in profiles],
        }
        return from_dict(Plan, {**self.told, **about})


def read(content: str) -> Draft:
    """Read a draft."""
    try:
        value = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        return Draft(told={}, days=DEFAULT_DAYS, profiles=(), problems=(f"it is not TOML ({error})",))
    problems: list[str] = []
    told: dict[str, Any] = {name: value.pop(name) for name in _PLAIN if name in value}
    told = _checked(Plan, told, "", problems, known=_PLAIN)
    if "version" not in told and not any(problem.startswith("version ") for problem in problems):
        problems.append("version is missing")
    days = value.pop("valid_days", DEFAULT_DAYS)
    if type(days) is not int or not 1 <= days <= MOST_DAYS:
        problems.append(f"valid_days must be a whole number from 1 to {MOST_DAYS}")
        days = DEFAULT_DAYS
    for name, cls in (("reflectors", PlannedReflector), ("nettests", PlannedNettest), ("weights", Weight)):
        told[name] = [
            _checked(cls, table, f"{name}[{index}]", problems, required=True)
            for index, table in enumerate(_tables(value.pop(name, []), name, problems))
        ]
    profiles = [
        _file(table, f"profiles[{index}]", problems)
        for index, table in enumerate(_tables(value.pop("profiles", []), "profiles", problems))
    ]
    problems += [f"{name} is not a key that is known here" for name in value]
    _check_whole(told, problems)
    return Draft(told=told, days=days, profiles=tuple(one for one in profiles if one), problems=tuple(problems))


def _tables(value: Any, name: str, problems: list[str]) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        problems.append(f"{name} must be tables, [[{name}]]")
        return []
    return value


def _file(table: dict[str, Any], path: str, problems: list[str]) -> str:
    named = table.pop("file", None)
    problems += [f"{path}.{name} is not a key that is known here" for name in table]
    if not isinstance(named, str) or not named:
        problems.append(f"{path}.file must name a file")
        return ""
    return named


def _checked(
    cls: type,
    table: dict[str, Any],
    path: str,
    problems: list[str],
    *,
    known: Sequence[str] | None = None,
    required: bool = False,
) -> dict[str, Any]:
    """The keys of a table that are good; the rest is told."""
    fields = {name: (hint, bounds, needed) for name, hint, bounds, needed in fields_of(cls)}
    good: dict[str, Any] = {}
    for name, value in table.items():
        where = f"{path}.{name}" if path else name
        if name not in (fields if known is None else known):
            problems.append(f"{where} is not a key that is known here")
            continue
        try:
            from_dict(cls, {**_GOOD[cls], name: value})
        except WireError as error:
            hint, bounds, _ = fields[name]
            problems.append(f"{where} {_must(error, hint, bounds)}")
        else:
            good[name] = value
    if required:
        missing = [name for name, (_, _, needed) in fields.items() if needed and name not in table]
        problems += [f"{path}.{name} is missing" for name in missing]
    return good


def _must(error: WireError, hint: Any, bounds: Bounds) -> str:
    """What a value must be, for people."""
    if error.reason == "not_allowed":
        return f"must be one of {', '.join(map(str, get_args(hint)))}"
    if error.reason == "out_of_range":
        return f"must be from {bounds.low:g} to {bounds.high:g}"
    if error.reason == "wrong_type":
        names = {int: "a whole number", float: "a number", str: "a text"}
        return f"must be {names.get(hint, 'a list of texts')}"
    if error.reason == "too_long":
        return "is too long"
    return "is not written as it must be (spec/records.md)"


def _check_whole(told: dict[str, Any], problems: list[str]) -> None:
    """What no key says alone."""
    weights = told["weights"]
    total = math.fsum(one["weight"] for one in weights if "weight" in one)
    if total > 1 + 1e-9:
        problems.append(f"weights sum to {total:.6g}; they may sum to at most 1")
    families = [tuple(one.get(name) for name in ("app", "direction", "access", "effect")) for one in weights]
    for index, family in enumerate(families):
        if family in families[:index]:
            problems.append(f"weights[{index}] is there twice")
    urls = [one.get("url") for one in told["reflectors"]]
    for index, url in enumerate(urls):
        if url is not None and url in urls[:index]:
            problems.append(f"reflectors[{index}].url is there twice")
    if told["nettests"] and not told["reflectors"]:
        problems.append("reflectors must name one at least, where there are nettests")


# What it asks of a probe


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a plan may cost one probe at most, in MB (10^6 bytes), both directions together."""

    session_mb: float
    """The dearest session."""
    daily_mb: float
    """All sessions of a day, before budgets."""
    monthly_mb: float


def cost(nettests: Sequence[PlannedNettest], interval_s: int, session_bytes: Callable[[PlannedNettest], int]) -> Cost:
    """Reckon it: one app a session, apps in turn, one session an interval on average, 30 days a month."""
    apps = [max(1, len(nettest.apps)) for nettest in nettests]
    each = [session_bytes(nettest) / 1e6 for nettest in nettests]
    mean = math.fsum(a * b for a, b in zip(apps, each, strict=True)) / max(1, sum(apps))
    daily = mean * DAY_S / interval_s
    return Cost(session_mb=max(each, default=0.0), daily_mb=daily, monthly_mb=30 * daily)


def against(plan: Plan, *, found: Cost, trusted: Sequence[str], newest: int) -> list[str]:
    """What stands against signing a plan that is well written: at this collector, and by its cost."""
    problems = [
        f"reflectors[{index}].key is not in this collector's configuration, so its receipts would be refused: "
        f"add it to `reflectors` there, or name the configuration with --config"
        for index, one in enumerate(plan.reflectors)
        if one.key not in trusted
    ]
    if plan.version <= newest:
        problems.append(f"version must be higher than {newest}, the newest one that was signed: probes refuse others")
    if plan.daily_mb and found.session_mb > plan.daily_mb:
        problems.append(
            f"daily_mb is {plan.daily_mb}, and one session may take {found.session_mb:.0f} MB: no probe would measure"
        )
    for name, most, wanted in (
        ("daily_mb", plan.daily_mb, found.daily_mb),
        ("monthly_mb", plan.monthly_mb, found.monthly_mb),
    ):
        # A budget that ends every day at the same hour would hide what happens in the evening.
        if most and wanted > most:
            problems.append(
                f"{name} is {most}, and the sessions may take {wanted:.0f} MB: raise interval_s or plan smaller "
                "ones, else the budget ends before the day or the month does and its last hours are never measured"
            )
    return problems

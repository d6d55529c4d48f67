# SPDX-License-Identifier: EUPL-1.2
"""The editions of the rule that were ever published, and rules of one's own from a file.

Whoever doubts a threshold may change it and judge the same pairs again; nobody may change one and keep the name.
Published editions are pinned by their digests for ever (tests/unit/test_editions.py). Spec: spec/rejudge.md,
section "Rules".
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from analysis.rules import EFFECTS, RULES, VERSION_1, Rules

MOST_BYTES: Final = 100_000
"""A file with a rule in it is no larger."""


class RuleError(ValueError):
    """There is no such rule, or the file is none; the message is one sentence that says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edition:
    """A rule as it was published, and since when its guarantee holds."""

    rules: Rules
    digest: str
    """SHA-256 (hex) of the rule's canonical JSON, as pinned at publication."""

    @property
    def published(self) -> date:
        """What it says of pairs from before this day is retrospective."""
        return date.fromisoformat(self.rules.published)


PUBLISHED: Final[Mapping[int, Edition]] = {
    1: Edition(rules=VERSION_1, digest="c2629c8a9046bb68b1e76db02404115430b377427013f5311d8de0211b5faba0"),
    2: Edition(rules=RULES, digest="d8488d6a7bd5bdbd7f9da604dfdb1e32435ac3a9d03060530d614399afd0f0a9"),
}
"""Every edition by its version. A new one is added; none is ever changed or taken away."""
CURRENT: Final = max(PUBLISHED)


def edition(name: str) -> Edition:
    """The rule by its version, or from the file of that name. Raises RuleError."""
    if re.fullmatch(r"[0-9]+", name):
        found = PUBLISHED.get(int(name)) if len(name) < 10 else None
        if found is None:
            known = ", ".join(map(str, PUBLISHED))
            raise RuleError(f"there is no version {name} of the rule; published are {known}")
        return found
    return read(Path(name))


def read(path: Path) -> Edition:
    """A rule from a file of TOML or JSON. Raises RuleError."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise RuleError(f"cannot read the rule {path}: {error.strerror or error}") from None
    if len(text) > MOST_BYTES:
        raise RuleError(f"{path} is longer than {MOST_BYTES} bytes, which no rule is")
    try:
        decoded = text.decode("utf-8")
        values = json.loads(decoded) if path.suffix == ".json" else tomllib.loads(decoded)
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise RuleError(f"{path} is no {kind}: {error}") from None
    if not isinstance(values, dict):
        raise RuleError(f"{path} must hold one table with the rule's keys")
    try:
        return from_values(values)
    except RuleError as error:
        raise RuleError(f"{path}: {error}") from None


def from_values(values: Mapping[str, Any]) -> Edition:
    """A rule from plain values: all of its keys, and no other. Raises RuleError that names the key.

    A published edition may be given this way too; then it must be that edition to the last digit.
    """
    same = _published_as(values)
    needed = {name: kind for name, (kind, since) in fields().items() if same is None or since <= same.rules.version}
    unknown, missing = sorted(values.keys() - needed.keys()), sorted(needed.keys() - values.keys())
    if unknown:
        raise RuleError(f"the rule has no key {', '.join(unknown)}")
    if missing:
        raise RuleError(f"the rule lacks {', '.join(missing)}; each key must be there, also one left as it was")
    read_values = {name: _value(name, kind, values[name]) for name, kind in needed.items()}
    _check(read_values)
    if same is not None:
        # What a version did not have yet keeps the value at which it does nothing.
        if dataclasses.replace(same.rules, **read_values) != same.rules:
            raise RuleError(
                f"{same.rules.id} version {same.rules.version} is published and says otherwise; use an id of your own"
            )
        return same
    if read_values["id"] == RULES.id:
        raise RuleError(f"{RULES.id} has no version {read_values['version']}; use an id of your own")
    if read_values["version"] < CURRENT:
        # Fields that later versions brought are no part of the digest of earlier ones.
        raise RuleError(f"version must be {CURRENT} or more: earlier ones do not have all of these keys")
    rules = Rules(**read_values)
    return Edition(rules=rules, digest=rules.digest())


def to_values(rules: Rules) -> dict[str, Any]:
    """The rule as plain values, as a file has them."""
    known = {name for name, (_, since) in fields().items() if since <= rules.version}
    return {name: value for name, value in json.loads(json.dumps(dataclasses.asdict(rules))).items() if name in known}


def to_toml(rules: Rules) -> str:
    """The rule as TOML, to be changed and given back."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in to_values(rules).items())


def _published_as(values: Mapping[str, Any]) -> Edition | None:
    version = values.get("version")
    if values.get("id") != RULES.id or not isinstance(version, int):
        return None
    return PUBLISHED.get(version)


@cache
def fields() -> Mapping[str, tuple[Any, int]]:
    """Type of each key of a rule, and the version that brought it."""
    hints = typing.get_type_hints(Rules)
    return {f.name: (hints[f.name], f.metadata.get("since", 1)) for f in dataclasses.fields(Rules)}


def _value(name: str, kind: Any, value: Any) -> Any:
    """A plain value as the field's type. Raises RuleError."""
    if get_origin(kind) is tuple:
        arms = get_args(kind)
        if not isinstance(value, list):
            raise RuleError(f"{name} must be a list")
        if arms[-1] is not Ellipsis and len(value) != len(arms):
            raise RuleError(f"{name} must be a list of {len(arms)}")
        if not 1 <= len(value) <= 64:
            raise RuleError(f"{name} must have 1 to 64 items")
        return tuple(_value(name, arms[0], one) for one in value)
    if get_origin(kind) is typing.Literal:
        if value not in get_args(kind):
            raise RuleError(f"{name} must be of {', '.join(get_args(kind))}")
        return value
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise RuleError(f"{name} must be {_WORDS[kind]}")
    if kind is float and not math.isfinite(value):
        raise RuleError(f"{name} must be a finite number")
    return value


_WORDS: Final = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}


def _within(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: low < value < high


def _each(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: all(holds(value) for value in values)


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_CHECKS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "id": (lambda text: _NAME.fullmatch(text) is not None, "lower-case letters, digits, dots and hyphens"),
    "version": (lambda version: 1 <= version < 10**9, "1 or more"),
    "published": (_is_date, "a date like 2026-11-22"),
    "effects": (lambda effects: len(set(effects)) == len(effects), f"different ones of {', '.join(EFFECTS)}"),
    "order_window": (lambda window: 1 <= window <= 100_000, "from 1 to 100000"),
    "lambdas": (_each(_within(0, 1)), "between 0 and 1, so that no bet can lose more than there is"),
    "interval_lambdas": (_each(_within(0, 1)), "between 0 and 1, so that no bet can lose more than there is"),
    "first_day_weight": (_within(0, 1), "between 0 and 1"),
    "hour_weights": (
        lambda weights: min(weights) > 0 and math.isclose(math.fsum(weights), 1, abs_tol=1e-9),
        "above 0 and sum to 1, else the bets have more money than there was",
    ),
    "peak_hours": (lambda hours: 0 <= hours[0] < hours[1] <= 24 and hours != (0, 24), "two hours of a day"),
    "interval_level": (_within(0, 1), "between 0 and 1"),
    "alpha": (_within(0, 1), "between 0 and 1"),
    "prevalences": (_each(lambda share: 0 < share <= 1), "above 0 and at most 1"),
    "material_slowdown": (_within(0, 1), "between 0 and 1"),
    "clear_failure_share": (_within(0, 1), "between 0 and 1"),
    "clear_failure_guesses": (_each(lambda share: 0 <= share < 1), "from 0 to below 1"),
    "indication": (lambda e: e >= 1, "at least 1"),
    "end_evidence": (lambda e: e >= 1, "at least 1"),
    "clip": (lambda clip: clip > 0, "above 0"),
}


def _check(values: Mapping[str, Any]) -> None:
    """Refuse numbers with which evidence would be none."""
    for name, value in values.items():
        holds, said = _CHECKS.get(name, (_not_negative, "0 or more"))
        if not holds(value):
            raise RuleError(f"{name} must be {said}")


def _not_negative(value: Any) -> bool:
    return not isinstance(value, int | float) or value >= 0

# SPDX-License-Identifier: EUPL-1.2
"""Readers generated from the record classes: quick to accept what is right, silent about what is not.

A collector reads thousands of records a second, nearly all of them right. Such a reader is one function a class,
written out from its type hints and bounds. It accepts only what `probe.wire.codec` accepts too, with the same
result; at any doubt it gives up, and the careful reading there says what is wrong and where. So each rule is decided
in one place, and nothing here can let through what that place refuses. Spec: spec/records.md, section "Encoding".
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final, Literal, Union, get_args, get_origin

from probe.wire.codec import Bounds, fields_of
from probe.wire.limits import MAX_INT


class Doubt(Exception):
    """Not plainly right: read it with care."""


_MISSING: Final = object()
"""Stands for a field that is not there; no check accepts it."""
_STEP: Final = "    "


@cache
def reader(cls: type) -> Callable[[Any], Any]:
    """A function from plain JSON values to `cls`, which raises Doubt wherever it is not sure."""
    made = _Source(cls)
    namespace: dict[str, Any] = dict(made.names)
    # Its text comes from our own classes: names of fields, and constants under names of its own making.
    exec(compile(made.text, f"<reader of {cls.__name__}>", "exec"), namespace)  # noqa: S102
    read: Callable[[Any], Any] = namespace["read"]
    return read


class _Source:
    """The text of one reader, and the constants that it names."""

    def __init__(self, cls: type) -> None:
        self._names: dict[str, Any] = {"Doubt": Doubt, "MISSING": _MISSING, "cls": cls}
        self._lines = ["def read(value):", f"{_STEP}if type(value) is not dict: raise Doubt", f"{_STEP}get = value.get"]
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name, hint, bounds, _ in fields_of(cls):
            self._field(name, hint, bounds, fields[name].default)
        self._add(1, f"return cls({', '.join(f'{name}=_{name}' for name in fields)})")

    @property
    def text(self) -> str:
        """The function `read`."""
        return "\n".join(self._lines) + "\n"

    @property
    def names(self) -> Mapping[str, Any]:
        """What the text refers to."""
        return self._names

    def _add(self, depth: int, line: str) -> None:
        self._lines.append(_STEP * depth + line)

    def _constant(self, value: Any) -> str:
        name = f"K{len(self._names)}"
        self._names[name] = value
        return name

    def _field(self, name: str, hint: Any, bounds: Bounds, default: Any) -> None:
        variable = f"_{name}"
        optional, bare = _bare(hint)
        # A default is checked like any other value; one that no JSON value could be is taken as it is.
        plain = default is None or isinstance(default, str | int | float)
        fallback = self._constant(default) if plain else "MISSING"
        self._add(1, f"{variable} = get({name!r}, {fallback})")
        depth = 1
        if not plain and default is not dataclasses.MISSING:
            self._add(1, f"if {variable} is MISSING: {variable} = {self._constant(default)}")
            self._add(1, "else:")
            depth = 2
        self._value(variable, bare, bounds, depth=depth, optional=optional)

    def _value(self, variable: str, hint: Any, bounds: Bounds, *, depth: int, optional: bool) -> None:
        if optional:
            self._add(depth, f"if {variable} is not None:")
            depth += 1
        origin = get_origin(hint)
        if origin is Literal:
            self._literal(variable, get_args(hint), depth)
        elif origin is tuple:
            self._items(variable, get_args(hint)[0], bounds, depth)
        elif dataclasses.is_dataclass(hint):
            read = self._constant(reader(hint))  # type: ignore[arg-type]
            self._add(depth, f"{variable} = {read}({variable})")
        elif hint is str:
            self._text(variable, bounds, depth)
        elif hint is bool:
            self._add(depth, f"if {variable} is not True and {variable} is not False: raise Doubt")
        elif hint in (int, float):
            self._number(variable, hint, bounds, depth)
        else:
            self._add(depth, "raise Doubt")  # no type that a record has

    def _literal(self, variable: str, allowed: tuple[Any, ...], depth: int) -> None:
        kinds = {type(one) for one in allowed}
        if len(kinds) != 1:
            self._add(depth, "raise Doubt")
            return
        kind, known = self._constant(kinds.pop()), self._constant(frozenset(allowed))
        self._add(depth, f"if type({variable}) is not {kind} or {variable} not in {known}: raise Doubt")

    def _number(self, variable: str, hint: type, bounds: Bounds, depth: int) -> None:
        low, high = self._range(bounds)
        kinds = "int" if hint is int else f"int and type({variable}) is not float"
        self._add(depth, f"if type({variable}) is not {kinds} or not {low} <= {variable} <= {high}: raise Doubt")
        if hint is float:
            self._add(depth, f"{variable} = float({variable})")

    def _range(self, bounds: Bounds) -> tuple[str, str]:
        low = -MAX_INT if bounds.low is None else bounds.low
        high = MAX_INT if bounds.high is None else bounds.high
        return self._constant(low), self._constant(high)

    def _text(self, variable: str, bounds: Bounds, depth: int) -> None:
        # Printable is more than free of control characters: what is not is looked at with care.
        wrong = f"type({variable}) is not str or len({variable}) > {bounds.longest}"
        if bounds.pattern is not None:
            wrong += f" or {self._constant(re.compile(bounds.pattern).fullmatch)}({variable}) is None"
        if bounds.pattern is None or not is_printable(bounds.pattern):
            wrong += f" or not {variable}.isprintable()"
        self._add(depth, f"if {wrong}: raise Doubt")

    def _items(self, variable: str, hint: Any, bounds: Bounds, depth: int) -> None:
        if bounds.most is None:
            self._add(depth, "raise Doubt")  # a defect of the class, which careful reading names
            return
        self._add(depth, f"if type({variable}) is not list or len({variable}) > {bounds.most}: raise Doubt")
        if hint is int:
            # Hundreds of bins: looked at all at once.
            low, high = self._range(bounds)
            kinds = self._constant({int})
            self._add(depth, f"if {variable} and (set(map(type, {variable})) != {kinds}")
            self._add(depth + 1, f"or min({variable}) < {low} or max({variable}) > {high}): raise Doubt")
            self._add(depth, f"{variable} = tuple({variable})")
            return
        one, found = f"{variable}__one", f"{variable}__all"
        optional, bare = _bare(hint)
        self._add(depth, f"{found} = []")
        self._add(depth, f"for {one} in {variable}:")
        self._value(one, bare, bounds, depth=depth + 1, optional=optional)
        self._add(depth + 1, f"{found}.append({one})")
        self._add(depth, f"{variable} = tuple({found})")


def _bare(hint: Any) -> tuple[bool, Any]:
    """Whether None is allowed, and the type without it; what may be of several types stays as it is."""
    if get_origin(hint) not in (types.UnionType, Union):
        return False, hint
    arms = [arm for arm in get_args(hint) if arm is not type(None)]
    return len(arms) < len(get_args(hint)), arms[0] if len(arms) == 1 else hint


_CLASS: Final = re.compile(r"\[[^\]\\^][^\]\\]*\]")
"""A set of characters that are named one by one or as ranges."""
_OPEN: Final = re.compile(r"[.\[^]|\\[^d*]")
"""What may stand for a character that the pattern does not name."""


def is_printable(pattern: str) -> bool:
    """Whether all that the pattern matches is surely printable, because it names each character that it allows."""
    return pattern.isascii() and pattern.isprintable() and _OPEN.search(_CLASS.sub("", pattern)) is None

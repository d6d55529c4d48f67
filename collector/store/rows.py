# SPDX-License-Identifier: EUPL-1.2
"""Our own dataclasses to JSON text and back, by their type hints.

For what this program wrote itself: a stranger's input goes through `probe.wire.codec`. A field that an older file
lacks takes its default. Spec: spec/api.md, section "Store".
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
"""What is JSON as it is. Looked up first: nearly every value is one of these."""


@cache
def _names(kind: type) -> tuple[str, ...] | None:
    """The fields of a dataclass; None for anything else."""
    return tuple(f.name for f in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


def plain(value: Any) -> Any:
    """Plain JSON values; sets become sorted lists."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    names = _names(kind)  # type: ignore[arg-type]
    if names is not None:
        return {name: one if type(one := getattr(value, name)) in _SCALARS else plain(one) for name in names}
    if isinstance(value, tuple | list):
        return [one if type(one) in _SCALARS else plain(one) for one in value]
    if isinstance(value, frozenset | set):
        return sorted(plain(item) for item in value)
    if isinstance(value, dict):
        return {key: one if type(one) in _SCALARS else plain(one) for key, one in value.items()}
    return value


def encode(value: Any) -> str:
    """JSON text without blanks; refuses NaN and infinities."""
    return json.dumps(plain(value), separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def decode(cls: type[T], text: str) -> T:
    """Inverse of `encode`."""
    built: T = _builder(cls)(json.loads(text))
    return built


def build(cls: type[T], value: Any) -> T:
    """A dataclass from plain values."""
    built: T = _builder(cls)(value)
    return built


_BUILDERS: dict[Any, Callable[[Any], Any]] = {}


def _builder(hint: Any) -> Callable[[Any], Any]:
    if hint not in _BUILDERS:
        _BUILDERS[hint] = _make_builder(hint)
    return _BUILDERS[hint]


def _make_builder(hint: Any) -> Callable[[Any], Any]:
    origin = get_origin(hint)
    if origin is typing.Annotated:
        return _builder(get_args(hint)[0])
    if origin in (types.UnionType, Union):
        inner = [_builder(arm) for arm in get_args(hint) if arm is not type(None)]
        if len(inner) != 1:
            raise TypeError(f"{hint}: a union of several types cannot be told apart in JSON")
        return lambda value: None if value is None else inner[0](value)
    if origin in (tuple, frozenset, list):
        item = _builder(get_args(hint)[0])
        return lambda value: origin(item(one) for one in value)
    if origin is dict:
        of = _builder(get_args(hint)[1])
        return lambda value: {key: of(one) for key, one in value.items()}
    if hint is float:
        return float
    if origin is Literal or hint in (str, int, bool, Any):
        return _same
    if dataclasses.is_dataclass(hint):
        return _dataclass(typing.cast("type[Any]", hint))
    raise TypeError(f"{hint} cannot be read from JSON")


def _same(value: Any) -> Any:
    return value


def _dataclass(cls: type[Any]) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    builders = {f.name: _builder(hints[f.name]) for f in dataclasses.fields(cls)}

    def build_one(value: Any) -> Any:
        return cls(
            **{
                name: value[name] if built is _same else built(value[name])
                for name, built in builders.items()
                if name in value
            }
        )

    return build_one

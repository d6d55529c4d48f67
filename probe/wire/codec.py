# SPDX-License-Identifier: EUPL-1.2
"""Bytes to frozen dataclasses and back: strict where it decides, tolerant to fields it does not know.

Input is hostile. JSON is read with depth, size and number limits, duplicate keys and NaN are refused, and
each field is checked against the type and the bounds that its dataclass declares. An unknown field is
ignored here and lives on in the signed bytes. Spec: spec/records.md, section "Encoding".
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

from probe.wire.limits import MAX_DEPTH, MAX_INT, MAX_PAYLOAD_BYTES, MAX_TEXT

T = TypeVar("T")

HEX_16: Final = r"[0-9a-f]{32}"
HEX_32: Final = r"[0-9a-f]{64}"
KEY_ID: Final = r"[A-Za-z0-9_-]{43}"
SLUG: Final = r"[a-z0-9][a-z0-9._+-]{0,63}"


class WireError(ValueError):
    """A record or message is not acceptable; `reason` is a stable machine-readable code, `path` names the field."""

    def __init__(self, reason: str, path: str = "", detail: str = "") -> None:
        self.reason = reason
        self.path = path
        self.detail = detail
        super().__init__(": ".join(part for part in (path, reason.replace("_", " "), detail) if part))


@dataclasses.dataclass(frozen=True, slots=True)
class Bounds:
    """What a field's value, or each of its items, must satisfy; stands in `Annotated`."""

    low: float | None = None
    high: float | None = None
    longest: int = MAX_TEXT
    pattern: str | None = None
    most: int | None = None


_NO_BOUNDS: Final = Bounds()


def bounded(*, low: float | None = None, high: float | None = None) -> Bounds:
    """A number with inclusive bounds."""
    return Bounds(low=low, high=high)


def text(*, longest: int = MAX_TEXT, pattern: str | None = None) -> Bounds:
    """A string with a longest length and, where given, a pattern that the whole of it must match."""
    return Bounds(longest=longest, pattern=pattern)


def items(
    *,
    most: int,
    low: float | None = None,
    high: float | None = None,
    longest: int = MAX_TEXT,
    pattern: str | None = None,
) -> Bounds:
    """A tuple with a largest length; the other bounds hold for each of its items."""
    return Bounds(low=low, high=high, longest=longest, pattern=pattern, most=most)


def dumps(value: Any) -> bytes:
    """Canonical bytes: UTF-8 JSON, keys sorted, no blanks, no NaN. Signed once and then kept as they are."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def loads(data: bytes, *, longest: int = MAX_PAYLOAD_BYTES) -> Any:
    """Read JSON from a stranger.

    Raises WireError: too_large, not_utf8, not_json, too_deep, duplicate_key, not_finite, number_too_large.
    """
    if len(data) > longest:
        raise WireError("too_large", detail=f"{len(data)} bytes, at most {longest}")
    try:
        decoded = data.decode("utf-8")
    except UnicodeDecodeError:
        raise WireError("not_utf8") from None
    if not _is_shallow(data):
        _check_depth(decoded)
    try:
        return json.loads(
            decoded,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_integer,
            parse_float=_finite,
        )
    except WireError:
        raise
    except (ValueError, RecursionError):
        raise WireError("not_json") from None


_STRUCTURE: Final = bytes(sorted(b'"\\[]{}'))
_OTHERS: Final = bytes(set(range(256)) - set(_STRUCTURE))


def _is_shallow(data: bytes) -> bool:
    """Whether it is plainly not nested too deep; False says nothing.

    Ten times quicker than looking at each string. Without its other bytes a text without brackets and backslashes
    in its strings is pairs of quotes and brackets. An opening quote is odd in number, so no text with a bracket in a
    string loses all its quotes here. Each pass takes away at most one level, so what is empty in the end had at most
    as many levels as there were passes.
    """
    rest = data.translate(None, _OTHERS).replace(b'""', b"")
    for number in range(MAX_DEPTH):
        if not rest:
            return True
        rest = rest.replace(b"[]" if number % 2 else b"{}", b"")
    return not rest


# A string is one match, closed or not, and never looked at twice: possessive, so constant memory and linear time.
_BRACKETS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


def _check_depth(decoded: str) -> None:
    # Counted before json sees it: the C scanner's own limit depends on the Python version.
    depth = 0
    for match in _BRACKETS.finditer(decoded):
        first = match.group()[0]
        if first in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise WireError("too_deep", detail=f"at most {MAX_DEPTH} levels")
        elif first in "]}":
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise WireError("duplicate_key")
    return found


def _no_constant(name: str) -> Any:
    raise WireError("not_finite", detail=name)


def _integer(digits: str) -> int:
    if len(digits) < 16:
        return int(digits)
    if len(digits) > 17 or abs(int(digits)) > MAX_INT:
        raise WireError("number_too_large")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits) if len(digits) <= 40 else math.inf
    if not math.isfinite(value):
        raise WireError("not_finite")
    return value


def to_dict(record: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values."""
    return {f.name: _plain(getattr(record, f.name)) for f in dataclasses.fields(record)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


@cache
def fields_of(cls: type) -> tuple[tuple[str, Any, Bounds, bool], ...]:
    """Name, bare type, bounds and whether it is required, of each field of a record."""
    found = []
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint, bounds = hints[field.name], _NO_BOUNDS
        if get_origin(hint) is Annotated:
            hint, bounds = get_args(hint)[:2]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        found.append((field.name, hint, bounds, required))
    return tuple(found)


QUICK_AFTER: Final = 64
"""Readings of a class after which a reader is made for it: who reads few records, a probe, would pay for nothing."""
_readings: dict[type, int] = {}


def from_dict(cls: type[T], value: Any, path: str = "") -> T:
    """Build `cls` from plain JSON values; unknown fields are ignored.

    Raises WireError (not_an_object, missing, wrong_type, out_of_range, too_long, bad_pattern, not_allowed) with
    the path of the field.
    """
    count = _readings.get(cls, 0)
    if count < QUICK_AFTER:
        _readings[cls] = count + 1
        return _with_care(cls, value, path)
    from probe.wire import quick  # noqa: PLC0415 - not before it pays, and it imports this module

    try:
        read: Callable[[Any], T] = quick.reader(cls)  # type: ignore[arg-type]
        return read(value)
    except quick.Doubt:
        return _with_care(cls, value, path)


def _with_care(cls: type[T], value: Any, path: str) -> T:
    """Field by field, knowing the path of each."""
    if not isinstance(value, dict):
        raise WireError("not_an_object", path)
    arguments: dict[str, Any] = {}
    for name, hint, bounds, required in fields_of(cls):  # type: ignore[arg-type]
        here = f"{path}.{name}" if path else name
        if name in value:
            arguments[name] = _convert(hint, value[name], bounds, here)
        elif required:
            raise WireError("missing", here)
    return cls(**arguments)


def _convert(hint: Any, value: Any, bounds: Bounds, path: str) -> Any:
    origin = get_origin(hint)
    if origin in (types.UnionType, Union):
        if value is None and type(None) in get_args(hint):
            return None
        (hint,) = (arm for arm in get_args(hint) if arm is not type(None))
        return _convert(hint, value, bounds, path)
    if origin is Literal:
        # `type` too, because True == 1 and 1.0 == 1.
        if any(value == allowed and type(value) is type(allowed) for allowed in get_args(hint)):
            return value
        raise WireError("not_allowed", path)
    if origin is tuple:
        return _convert_items(hint, value, bounds, path)
    if dataclasses.is_dataclass(hint):
        return _with_care(typing.cast("type[Any]", hint), value, path)
    return _convert_scalar(hint, value, bounds, path)


def _convert_items(hint: Any, value: Any, bounds: Bounds, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise WireError("wrong_type", path, "expected a list")
    if bounds.most is None:
        raise TypeError(f"{path}: a tuple field must declare `most`")
    if len(value) > bounds.most:
        raise WireError("too_long", path, f"at most {bounds.most} items")
    item = get_args(hint)[0]
    return tuple(_convert(item, one, bounds, f"{path}[{i}]") for i, one in enumerate(value))


def _convert_scalar(hint: Any, value: Any, bounds: Bounds, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise WireError("wrong_type", path, f"expected {hint.__name__}")
    if hint is str:
        _check_text(value, bounds, path)
    elif hint in (int, float):
        low, high = bounds.low, bounds.high
        # A number that declares no bound may still not be absurd.
        if value < (-MAX_INT if low is None else low) or value > (MAX_INT if high is None else high):
            raise WireError("out_of_range", path)
    return value


_UNPRINTABLE: Final = re.compile("[\x00-\x1f\ud800-\udfff]")
"""Control characters and lone surrogates. One search: this runs over whole payloads in base64."""


def _check_text(value: str, bounds: Bounds, path: str) -> None:
    if len(value) > bounds.longest:
        raise WireError("too_long", path)
    if bounds.pattern is not None and re.fullmatch(bounds.pattern, value) is None:
        raise WireError("bad_pattern", path)
    if _UNPRINTABLE.search(value):
        raise WireError("bad_pattern", path, "control characters")

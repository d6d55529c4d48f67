# SPDX-License-Identifier: EUPL-1.2
"""A reader of published pairs as a collector writes them: three times as quick as JSON, silent about all else.

One regular expression, generated from `PairRecord`, takes a line apart if it has the members in the record's order (or
sorted), nothing more, and no escapes. Numbers are converted and held to their bounds; every other value must be one
that careful reading has accepted in this field before. So nothing passes here that `probe.wire.codec` would refuse,
and what does not pass is read with care. Spec: spec/rejudge.md, section "Speed".
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Callable, Sequence
from typing import Any, Final, Union, get_args, get_origin

from probe.wire.codec import Bounds, fields_of
from probe.wire.limits import MAX_INT
from probe.wire.records import PairRecord

MOST_KNOWN: Final = 4096
"""So many values of a field are remembered; others are read with care each time."""
# Short enough that no conversion can overflow or lose what JSON would keep.
_WHOLE: Final = r"-?(?:0|[1-9][0-9]{0,14})"
# -0 is an integer in JSON, hence 0, and not the float of that name.
_FLOAT: Final = r"(?!-0[,}])-?(?:0|[1-9][0-9]{0,9})(?:\.[0-9]{1,22})?(?:[eE][-+]?[0-9]{1,2})?"
_OTHER: Final = r'"[^"\\]*"|[^"\\,:\[\]{}]+|\[[^\\\[\]{}]*\]'
"""Where a value ends, for all that is looked up: whether it is acceptable was decided with care."""
_STEP: Final = "    "


class QuickPairs:
    """Reads lines; `learn` tells it what careful reading made of one that it did not know."""

    def __init__(self) -> None:
        names = [name for name, *_ in fields_of(PairRecord)]
        self._layouts = [_Layout(names), _Layout(sorted(names))]

    def labels(self, line: bytes) -> tuple[str, str] | None:
        """App and probe, in quotes, of a line that has one of the two layouts; None for any other."""
        if not line.isascii():
            return None
        text = line.decode("ascii")
        layout = self._layouts[0]
        found = layout.match(text)
        if found is None:
            # The other one is tried first from now on: a file is written in one way.
            self._layouts.reverse()
            layout = self._layouts[0]
            found = layout.match(text)
            if found is None:
                return None
        return found[layout.app], found[layout.probe]

    def read(self) -> tuple[PairRecord, bool] | None:
        """The line whose labels were asked for last, and whether it tells of flags; None: read it with care."""
        return self._layouts[0].read()

    def learn(self, record: PairRecord) -> None:
        """That line is acceptable, and this is what it says."""
        self._layouts[0].learn(record)


class _Layout:
    """Lines with their members in one order."""

    def __init__(self, order: Sequence[str]) -> None:
        about = {name: (hint, bounds, required) for name, hint, bounds, required in fields_of(PairRecord)}
        self._tokens: Sequence[Any] = ()
        self._known: dict[str, dict[str | None, Any]] = {}
        self.app, self.probe = order.index("app"), order.index("probe")
        self._order = order
        parts: list[str] = []
        lines: list[str] = []
        defaults = {field.name: field.default for field in dataclasses.fields(PairRecord)}
        names: dict[str, Any] = {"cls": PairRecord}
        for name in order:
            hint, bounds, required = about[name]
            number, optional = _number(hint)
            token = _OTHER if number is None else f"{_FLOAT if number is float else _WHOLE}{'|null' * optional}"
            member = f'"{name}":({token})'
            parts.append(f"{',' if parts else ''}{member}" if required else f"(?:,{member})?")
            if number is None:
                self._known[name] = {} if required else {None: defaults[name]}
                names[f"known_{name}"] = self._known[name]
                lines.append(f"{name} = known_{name}[{name}]")
            else:
                names[f"default_{name}"] = defaults[name]
                lines += _converted(name, number, bounds, required=required, optional=optional)
        self._pattern: Final = re.compile("\\{" + "".join(parts) + "\\}", re.ASCII)
        text = ["def read(tokens):", f"{_STEP}{', '.join(order)} = tokens"]
        text += [_STEP + line for line in lines]
        text.append(f"{_STEP}return cls({', '.join(f'{name}={name}' for name in order)})")
        # Its text comes from our own class: names of fields, and constants.
        exec(compile("\n".join(text), "<reader of published pairs>", "exec"), names)  # noqa: S102
        self._read: Callable[[Sequence[Any]], PairRecord | None] = names["read"]
        self._flags = order.index("flags")

    def match(self, line: str) -> Sequence[Any] | None:
        found = self._pattern.fullmatch(line)
        if found is None:
            return None
        self._tokens = found.groups()
        return self._tokens

    def read(self) -> tuple[PairRecord, bool] | None:
        try:
            record = self._read(self._tokens)
        except KeyError:
            return None
        return None if record is None else (record, self._tokens[self._flags] is not None)

    def learn(self, record: PairRecord) -> None:
        for name, token in zip(self._order, self._tokens, strict=True):
            known = self._known.get(name)
            if known is not None and len(known) < MOST_KNOWN:
                known[token] = getattr(record, name)


def _number(hint: Any) -> tuple[type | None, bool]:
    """int or float where a field holds numbers of many values, and whether it may be null."""
    optional = get_origin(hint) in (types.UnionType, Union)
    if optional:
        arms = [arm for arm in get_args(hint) if arm is not type(None)]
        hint = arms[0] if len(arms) == 1 else None
    return (hint if hint in (int, float) else None), optional


def _converted(name: str, number: type, bounds: Bounds, *, required: bool, optional: bool) -> list[str]:
    """Lines that turn a token into a number within its bounds."""
    low = -MAX_INT if bounds.low is None else bounds.low
    high = MAX_INT if bounds.high is None else bounds.high
    convert = [f"{name} = {number.__name__}({name})", f"if not {low!r} <= {name} <= {high!r}: return None"]
    if not optional and required:
        return convert
    found = []
    if not required:
        found.append(f"if {name} is None: {name} = default_{name}")
    if optional:
        found.append(f"{'elif' if found else 'if'} {name} == 'null': {name} = None")
    return [*found, "else:", *(_STEP + line for line in convert)]

# SPDX-License-Identifier: EUPL-1.2
"""Finds what looks like a network address, so that none is ever stored or logged.

Used at three doors: failures on the probe, logs on the reflector, uploads at the collector (which refuses
such a payload with 422 rather than editing what was signed). Input is hostile and may be megabytes long: every
search here is one pass. Spec: spec/records.md, section "No addresses".
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Any, Final

_V4: Final = re.compile(r"(?<![0-9])(?<![0-9]\.)(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9]|\.[0-9])")
_RUN: Final = re.compile(r"[0-9A-Fa-f:.]*+")
"""Possessive: a long run that is no address is looked at once."""
_MAC: Final = re.compile(
    r"(?<![0-9A-Fa-f])(?<![0-9A-Fa-f][:-])(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f]|[:-][0-9A-Fa-f])"
)
_HEX_OR_DOT: Final = frozenset("0123456789abcdefABCDEF.")
_LONGEST: Final = 64
"""No IPv6 address is longer, with a word or punctuation left on it."""
REPLACEMENT: Final = "[address]"


def _is_address(candidate: str) -> bool:
    try:
        ipaddress.ip_address(candidate)
    except ValueError:
        return False
    return True


def _v6(value: str) -> Iterator[tuple[int, int]]:
    """Where IPv6 addresses stand, without the words and punctuation that touch them ("peer:2001:db8::1: refused")."""
    at = value.find(":")
    while at >= 0:
        start = at
        while start and at - start < _LONGEST and value[start - 1] in _HEX_OR_DOT:
            start -= 1
        match = _RUN.match(value, start)
        end = match.end() if match else start
        if end - start <= _LONGEST:
            found = _trimmed(value, start, end)
            if found is not None:
                yield found
        at = value.find(":", end)


def _trimmed(value: str, start: int, end: int) -> tuple[int, int] | None:
    colon = value.index(":", start, end)
    dot = value.rfind(".", start, colon)
    if dot >= 0:
        start = dot + 1  # the end of a sentence or of a label
    elif start and value[start - 1].isalnum():
        # The run began within a word: what belongs to it ends at the first colon.
        start = colon
        while start < end and value[start] == ":":
            start += 1
    if end < len(value) and value[end].isalnum():
        end = max(start, value.rfind(":", start, end))
    while end > start and (value[end - 1] == "." or (value[end - 1] == ":" and not value.endswith("::", start, end))):
        end -= 1
    candidate = value[start:end]
    # "::" alone is punctuation far more often than the unspecified address.
    if candidate.count(":") < 2 or len(candidate) <= 2:
        return None
    return (start, end) if _is_address(candidate) else None


def _spans(value: str) -> Iterator[tuple[int, int]]:
    """Where addresses stand, of one kind after the other."""
    if value.count(":") >= 2 or value.count("-") >= 5:
        for match in _MAC.finditer(value):
            yield match.span()
    if value.count(":") >= 2:
        yield from _v6(value)
    if value.count(".") >= 3:
        for match in _V4.finditer(value):
            if _is_address(match.group()):
                yield match.span()


def find_address(value: str) -> str | None:
    """The first thing in `value` that is an IPv4, IPv6 or MAC address, or None."""
    for start, end in _spans(value):
        return value[start:end]
    return None


def scrub(value: str) -> str:
    """`value` with each address replaced, for logs and messages."""
    while spans := sorted(_spans(value)):
        pieces, at = [], 0
        for start, end in spans:
            if start >= at:
                pieces += [value[at:start], REPLACEMENT]
                at = end
        value = "".join((*pieces, value[at:]))
    return value


def address_path(value: Any, path: str = "") -> str | None:
    """The path of the first address-looking string in plain JSON values, keys included, or None."""
    if isinstance(value, str):
        return (path or ".") if find_address(value) else None
    if isinstance(value, dict):
        for key, item in value.items():
            here = f"{path}.{key}" if path else str(key)
            found = (here if find_address(str(key)) else None) or address_path(item, here)
            if found:
                return found
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            found = address_path(item, f"{path}[{index}]")
            if found:
                return found
    return None

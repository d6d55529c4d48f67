# SPDX-License-Identifier: EUPL-1.2
"""Finds what looks like a network address, so that none is ever stored or logged.

Used at three doors: failures on the probe, logs on the reflector, uploads at the collector (which refuses
such a payload with 422 rather than editing what was signed). Spec: spec/records.md, section "No addresses".
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final

_V4: Final = re.compile(r"(?<![0-9.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9])(?!\.[0-9])")
_V6: Final = re.compile(r"(?<![0-9A-Za-z:.])[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(?![0-9A-Za-z:])")
_MAC: Final = re.compile(r"(?<![0-9A-Fa-f:-])(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:-])")
REPLACEMENT: Final = "[address]"


def _is_address(candidate: str) -> bool:
    try:
        ipaddress.ip_address(candidate)
    except ValueError:
        return False
    return True


def find_address(value: str) -> str | None:
    """The first thing in `value` that is an IPv4, IPv6 or MAC address, or None."""
    mac = _MAC.search(value)
    if mac:
        return mac.group()
    if value.count(".") >= 3:
        for match in _V4.finditer(value):
            if _is_address(match.group()):
                return match.group()
    if value.count(":") >= 2:
        for match in _V6.finditer(value):
            candidate = match.group().rstrip(".")
            # "::" alone is punctuation far more often than the unspecified address.
            if len(candidate) > 2 and _is_address(candidate):
                return candidate
    return None


def scrub(value: str) -> str:
    """`value` with each address replaced, for logs and messages."""
    found = find_address(value)
    while found is not None:
        value = value.replace(found, REPLACEMENT)
        found = find_address(value)
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

# SPDX-License-Identifier: EUPL-1.2
"""What else could explain a difference, as far as this device can see it. None always means "not known".

Looked at when a session begins and again when it ends. No SSID, no BSSID and no address leaves this module.
Spec: spec/probe.md, section "Environment"; spec/records.md, section "Measurement".
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from probe.clock import Ask, is_synchronised, output_of
from probe.line import ROOT, AddressOf, Line, has_upstream_router, position_of
from probe.settings import Settings
from probe.shaping import is_shaped
from probe.wire.records import Environment

_MOBILE: Final = ("wwan", "rmnet", "ccmni", "wwp", "mhi_")
"""Interfaces of modems; many contracts of theirs are paid by volume."""
_LOOKED_AT_AGAIN: Final = (
    "position",
    "wifi",
    "vpn",
    "sqm",
    "upstream_router",
    "family",
    "clock_synchronised",
    "metered",
)


@dataclass(frozen=True, slots=True)
class Asks:
    """Where the answers come from; the tests' machines on paper take other places."""

    root: Path = ROOT
    address_of: AddressOf | None = None
    program: Ask = output_of
    is_shaped: Callable[[str], bool | None] = is_shaped


def observe(
    local: str, peer: str, line: Line | None, *, declared: Settings | None = None, asks: Asks | None = None
) -> Environment:
    """The environment at the start of a session. The addresses (text, without scope) are compared and forgotten.

    `declared` is what the owner told; None where nobody did.
    """
    asks = asks or Asks()
    told = declared or Settings()
    upstream = has_upstream_router(local, peer, line, asks.root, asks.address_of)
    return Environment(
        position=position_of(local, peer, line),
        hotspot=told.stands_at_hotspot,
        wifi=None if line is None else line.is_wifi,
        vpn=None if line is None else line.is_vpn,
        sqm=_has_sqm(asks, line, upstream),
        upstream_router=upstream,
        brand=told.brand,
        tariff=told.tariff,
        contract_down_mbps=told.contract_down_mbps,
        contract_up_mbps=told.contract_up_mbps,
        opt_in_filters=told.opt_in_filters,
        load=_load(),
        family=6 if ":" in local else 4,
        declared_position=told.declared_position,
        clock_synchronised=is_synchronised(asks.root, asks.program),
        metered=is_metered(line, told, asks),
    )


def look_again(
    before: Environment,
    local: str,
    peer: str,
    line: Line | None,
    *,
    declared: Settings | None = None,
    asks: Asks | None = None,
) -> Environment:
    """The environment of the session's start, with the names of what is different now that it ends in `changed`.

    What became unknown, or known, counts as different too. An empty `local`: there is no way to the peer any more,
    so nothing is looked at.
    """
    if not local:
        return before
    now = observe(local, peer, line, declared=declared, asks=asks)
    different = tuple(name for name in _LOOKED_AT_AGAIN if getattr(before, name) != getattr(now, name))
    return replace(before, changed=tuple(dict.fromkeys((*before.changed, *different))))


def is_metered(line: Line | None, declared: Settings | None = None, asks: Asks | None = None) -> bool | None:
    """Whether the line is paid by volume: as the owner says, else NetworkManager, else by the interface's name.

    False is only said where somebody says so; an ordinary line about which nobody says anything is None.
    """
    told = declared or Settings()
    if told.metered != "auto":
        return told.metered == "yes"
    if line is None:
        return None
    asks = asks or Asks()
    said = asks.program(["nmcli", "--terse", "--get-values", "GENERAL.METERED", "device", "show", line.name]) or ""
    word = said.strip().partition(" ")[0]  # "yes", "no", "yes (guessed)", "no (guessed)", "unknown"
    if word in {"yes", "no"}:
        return word == "yes"
    return True if line.name.startswith(_MOBILE) else None


def _has_sqm(asks: Asks, line: Line | None, upstream: bool | None) -> bool | None:
    """Whether our line is shaped here; behind another router a "no" says nothing of that one, so it is None."""
    if line is None:
        return None
    if (asks.root / "var/run/sqm" / f"{line.name}.state").exists():  # OpenWrt's sqm-scripts
        return True
    shaped = asks.is_shaped(line.name)
    if shaped or (asks.root / "etc/config/sqm").exists():
        return bool(shaped)
    return None if upstream is not False else shaped


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0] / (os.cpu_count() or 1), 3)
    except OSError:
        return None

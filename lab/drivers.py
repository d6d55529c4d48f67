# SPDX-License-Identifier: EUPL-1.2
"""Which driver works here: tun, veth or relay, found by trying. spec/lab.md section 4."""

from __future__ import annotations

from typing import Final, Literal, cast

from lab.namespaces import Warden
from lab.network import Lines
from lab.tun import TunLines
from lab.veth import VethLines

DriverName = Literal["tun", "veth", "relay"]
DRIVERS: Final = ("tun", "veth", "relay")


class NoDriver(Exception):
    """The driver asked for does not work on this machine; the message says why and what to do."""


def lines(name: DriverName, warden: Warden) -> Lines:
    """What makes the lines of a namespace driver."""
    return TunLines(warden) if name == "tun" else VethLines(warden)


def refusal(name: DriverName) -> str | None:
    """Why a driver does not work here, None where it does; really makes a line and throws it away."""
    if name == "relay":
        return None
    try:
        with Warden() as warden:
            import os  # noqa: PLC0415

            os.close(lines(name, warden).line(warden.namespace(), "try").descriptor)
    except OSError as error:
        return str(error.strerror or error)
    return None


def choose_driver(wanted: str | None = None) -> DriverName:
    """The driver asked for, or the first of tun, veth and relay that works here."""
    if wanted is not None:
        if wanted not in DRIVERS:
            raise NoDriver(f"there is no driver {wanted}; choose one of {', '.join(DRIVERS)}")
        why = refusal(cast("DriverName", wanted))
        if why is not None:
            raise NoDriver(f"the driver {wanted} does not work here ({why}); leave --driver out to use what does")
        return cast("DriverName", wanted)
    for name in DRIVERS:
        if refusal(name) is None:
            return name
    raise NoDriver("no driver works here")

# SPDX-License-Identifier: EUPL-1.2
"""What else could explain a difference, as far as this device can see it. None always means "not known".

No SSID, no BSSID and no address leaves this module. Spec: spec/records.md, section "Environment".
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from probe.netio.dial import is_public
from probe.wire.records import Environment, Position

_ROOT: Final = Path("/")
_TUNNELS: Final = (
    "tun",
    "tap",
    "utun",
    "wg",
    "ipsec",
    "xfrm",
    "nordlynx",
    "nordtun",
    "proton",
    "mullvad",
    "zt",
    "tailscale",
)
_NOT_PHYSICAL: Final = ("lo", "dummy", "docker", "br-", "veth", "ifb", *_TUNNELS)
_SIOCGIFADDR: Final = 0x8915


@dataclass(frozen=True, slots=True)
class Line:
    """The interface that carries our connections."""

    name: str
    is_wifi: bool
    is_vpn: bool


def line_of(local: str, root: Path = _ROOT, address_of: Callable[[str], str | None] | None = None) -> Line | None:
    """The interface that owns the socket's local address (text, without scope); None where it cannot be seen.

    Asked by address, because VPN clients route by policy and leave the default route of the main table alone.
    """
    interfaces = root / "sys/class/net"
    try:
        names = sorted(path.name for path in interfaces.iterdir())
    except OSError:
        return None
    ask = address_of or _ipv4_of
    name = _owner_v6(local, root) if ":" in local else next((n for n in names if ask(n) == local), None)
    if name is None:
        return None
    interface = interfaces / name
    is_wifi = (interface / "wireless").exists() or (interface / "phy80211").exists()
    # A tunnel by name, beside a line that could carry it: alone it is a modem's or a namespace's own device.
    carriers = [n for n in names if n != name and not n.startswith(_NOT_PHYSICAL) and _is_up(interfaces / n)]
    return Line(name=name, is_wifi=is_wifi, is_vpn=name.startswith(_TUNNELS) and bool(carriers))


def _ipv4_of(name: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def _owner_v6(local: str, root: Path) -> str | None:
    try:
        wanted = ipaddress.IPv6Address(local).packed.hex()
        rows = (root / "proc/net/if_inet6").read_text(encoding="ascii").split("\n")
    except (OSError, ValueError):
        return None
    return next((row.split()[-1] for row in rows if row.startswith(wanted)), None)


def _is_up(interface: Path) -> bool:
    try:
        return (interface / "operstate").read_text(encoding="ascii").strip() == "up"
    except OSError:
        return False


def position_of(local: str, peer: str, line: Line | None) -> Position:
    """Where this device stands, from its own socket address and the reflector's (text, without scope).

    edge: our address is one of the public internet, so nothing translates it. In a network of private addresses
    alone (a lab) nothing is known but Wi-Fi. Whether the reflector saw the same address stands in its receipt.
    """
    if line is not None and line.is_wifi:
        return "wifi"
    if is_public(local):
        return "edge"
    return "behind_nat" if is_public(peer) else "unknown"


def observe(local: str, peer: str, line: Line | None, root: Path = _ROOT) -> Environment:
    """The environment at the start of a session. The addresses are compared and forgotten."""
    return Environment(
        position=position_of(local, peer, line),
        wifi=None if line is None else line.is_wifi,
        vpn=None if line is None else line.is_vpn,
        sqm=_has_sqm(root, line),
        load=_load(),
    )


class PathWatch:
    """Notices another address, interface or gateway on the way to a peer. What it compares never leaves memory.

    The kernel is asked which address it would use now, which sends nothing; gateways are those of the default routes.
    """

    def __init__(self, peer: str, bind: str | None = None, root: Path = _ROOT) -> None:
        self._family = socket.AF_INET6 if ":" in peer else socket.AF_INET
        self._peer = peer
        self._bind = bind
        self._root = root
        self._known = self._look()

    def begin(self) -> None:
        """A pair begins: what is the case now is what it is compared with."""
        self._known = self._look()

    def has_changed(self) -> bool | None:
        """Whether it is another path than at the beginning of the pair; None where nothing can be seen."""
        now = self._look()
        if now == (None, None) or self._known == (None, None):
            return None
        return now != self._known

    def _look(self) -> tuple[str | None, frozenset[str] | None]:
        return self._source(), default_routes(self._family, self._root)

    def _source(self) -> str | None:
        """The address from which packets to the peer would leave; empty where there is no way to it any more."""
        if self._bind is not None:
            return self._bind
        with socket.socket(self._family, socket.SOCK_DGRAM) as sock:
            try:
                sock.connect((self._peer, 9))  # nothing is sent; 9 is the port that discards
            except OSError:
                return ""
            return str(sock.getsockname()[0])


def default_routes(family: int, root: Path = _ROOT) -> frozenset[str] | None:
    """Interface and gateway of each default route, as the kernel writes them; None where it does not say."""
    try:
        if family == socket.AF_INET6:
            rows = [row.split() for row in (root / "proc/net/ipv6_route").read_text(encoding="ascii").splitlines()]
            # destination, prefix, source, prefix, next hop, metric, references, use, flags, interface
            return frozenset(f"{r[9]} {r[4]}" for r in rows if len(r) > 9 and r[1] == "00" and r[9] != "lo")
        rows = [row.split() for row in (root / "proc/net/route").read_text(encoding="ascii").splitlines()[1:]]
        # interface, destination, gateway, flags, references, use, metric, mask
        return frozenset(f"{r[0]} {r[2]}" for r in rows if len(r) > 7 and r[1] == r[7] == "00000000")
    except (OSError, UnicodeError):
        return None


def _has_sqm(root: Path, line: Line | None) -> bool | None:
    """Whether OpenWrt's traffic shaper runs on our line; None elsewhere, where we cannot tell."""
    if line is None or not (root / "etc/config/sqm").exists():
        return None
    return (root / "var/run/sqm" / f"{line.name}.state").exists()


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0] / (os.cpu_count() or 1), 3)
    except OSError:
        return None


def household_counter(position: Position, line: Line | None, root: Path = _ROOT) -> Callable[[], int | None] | None:
    """Bytes through our line, both ways, where this device carries the whole household: at the edge.

    None elsewhere: behind a router the counters show this device alone.
    """
    if position != "edge" or line is None:
        return None
    statistics = root / "sys/class/net" / line.name / "statistics"

    def count() -> int | None:
        try:
            return sum(int((statistics / name).read_text(encoding="ascii")) for name in ("rx_bytes", "tx_bytes"))
        except (OSError, ValueError):
            return None

    return count

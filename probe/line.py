# SPDX-License-Identifier: EUPL-1.2
"""The line that carries our connections: its interface, where this device stands on it, and whether the path changes.

Nothing here sends a packet, and no address or name of an interface leaves memory.
Spec: spec/probe.md, section "Environment".
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from probe.netio.dial import is_public
from probe.wire.records import Position

ROOT: Final = Path("/")
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
_SHARED: Final = ipaddress.IPv4Network("100.64.0.0/10")
"""Between an operator's own NAT and its customers (RFC 6598)."""
_DS_LITE: Final = ipaddress.IPv4Network("192.0.0.0/29")
"""The inner end of an operator's IPv4 tunnel (RFC 6333, section 5.7)."""
_HOUSE: Final = tuple(ipaddress.IPv4Network(net) for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
"""RFC 1918."""
_ANYWHERE: Final = "198.51.100.1"
"""For documentation (RFC 5737): where the default route leads is all that is asked of it."""
AddressOf = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Line:
    """The interface that carries our connections."""

    name: str
    is_wifi: bool
    is_vpn: bool


def line_of(local: str, root: Path = ROOT, address_of: AddressOf | None = None) -> Line | None:
    """The interface that owns the socket's local address (text, without scope); None where it cannot be seen.

    Asked by address, because VPN clients route by policy and leave the default route of the main table alone.
    """
    interfaces = root / "sys/class/net"
    try:
        names = sorted(path.name for path in interfaces.iterdir())
    except OSError:
        return None
    ask = address_of or ipv4_of
    name = _owner_v6(local, root) if ":" in local else next((n for n in names if ask(n) == local), None)
    if name is None:
        return None
    interface = interfaces / name
    is_wifi = (interface / "wireless").exists() or (interface / "phy80211").exists()
    # A tunnel by name, beside a line that could carry it: alone it is a modem's or a namespace's own device.
    carriers = [n for n in names if n != name and not n.startswith(_NOT_PHYSICAL) and _is_up(interfaces / n)]
    return Line(name=name, is_wifi=is_wifi, is_vpn=name.startswith(_TUNNELS) and bool(carriers))


def ipv4_of(name: str, *, request: int = _SIOCGIFADDR) -> str | None:
    """An interface's first IPv4 address (or what another request of netdevice(7) asks for); None where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, request, struct.pack("256s", name.encode()[:15]))
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


def has_upstream_router(
    local: str, peer: str, line: Line | None, root: Path = ROOT, address_of: AddressOf | None = None
) -> bool | None:
    """Whether a router of the house stands between this device and the operator; None where that cannot be seen.

    An address of RFC 1918 comes from such a router, also where this device is a router itself. One of RFC 6598 or of
    the public internet comes from the operator. IPv6 addresses are public on every device of a house: there the
    interface's IPv4 address decides, and where it has none, whether this device forwards for others.
    """
    if line is not None and line.is_vpn:
        return None
    if ":" not in local:
        return _says_v4(local, peer)
    if not is_public(local):
        return None
    beside = None if line is None else (address_of or ipv4_of)(line.name)
    if beside is not None:
        return _says_v4(beside, "")
    return False if _forwards_v6(root) else None


def _says_v4(local: str, peer: str) -> bool | None:
    address = ipaddress.IPv4Address(local)
    if address in _SHARED or address in _DS_LITE or address.is_global:
        return False
    if any(address in net for net in _HOUSE):
        # Where the peer is private too, it may be all one house, or a lab.
        return True if not peer or is_public(peer) else None
    return None


def _forwards_v6(root: Path) -> bool:
    try:
        return (root / "proc/sys/net/ipv6/conf/all/forwarding").read_text(encoding="ascii").strip() == "1"
    except OSError:
        return False


class PathWatch:
    """Notices another address, interface or gateway on the way to a peer. What it compares never leaves memory.

    The kernel is asked which address it would use now, which sends nothing; gateways are those of the default routes.
    """

    def __init__(self, peer: str, bind: str | None = None, root: Path = ROOT) -> None:
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
        return source_towards(self._peer, self._bind)


def source_towards(peer: str, bind: str | None = None) -> str:
    """The address from which packets to a peer would leave now; empty where there is no way to it. Sends nothing."""
    if bind is not None:
        return bind
    with socket.socket(socket.AF_INET6 if ":" in peer else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((peer, 9))  # nothing is sent; 9 is the port that discards
        except OSError:
            return ""
        return str(sock.getsockname()[0]).partition("%")[0]


def line_outwards(bind: str | None = None) -> Line | None:
    """The interface that leads to the internet, before any peer's address is known; None where none does."""
    local = source_towards(_ANYWHERE, bind)
    return line_of(local) if local else None


def default_routes(family: int, root: Path = ROOT) -> frozenset[str] | None:
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


def gateway_of(line: Line, root: Path = ROOT) -> str | None:
    """The IPv4 address of the router that a line's default route leads to; None where there is none."""
    for route in default_routes(socket.AF_INET, root) or ():
        name, _, word = route.partition(" ")
        if name == line.name and word != "00000000":
            # The kernel writes the address as a number in its own byte order.
            return socket.inet_ntoa(struct.pack("=I", int(word, 16)))
    return None

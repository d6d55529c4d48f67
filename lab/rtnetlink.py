# SPDX-License-Identifier: EUPL-1.2
"""A few rtnetlink and ethtool requests, so that namespaces can be set up where iproute2 is absent.

Only what the drivers need: bring a link up, make a veth pair with one end in another namespace, add an
address or a route, switch offloads off (rtnetlink(7), netlink(7), packet(7)). Standard library alone, so
that a lab runs on a machine with nothing but Python. spec/lab.md section 4.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator

_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_RTM_NEWLINK, _RTM_NEWADDR, _RTM_DELADDR, _RTM_NEWROUTE = 16, 20, 21, 24
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_TXQLEN, _IFLA_NET_NS_FD = 1, 3, 4, 18, 13, 28
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_METRICS = 1, 4, 5, 7, 8
_RTAX_CC_ALGO = 16
_IFF_UP, _IFF_NOARP = 0x1, 0x80
_SIOCETHTOOL = 0x8946
# Set commands of ethtool: receive checksum, transmit checksum, scatter-gather, TSO, GSO, GRO.
_OFFLOADS = (0x15, 0x17, 0x19, 0x1F, 0x24, 0x2C)


def _attr(kind: int, value: bytes) -> bytes:
    padding = -len(value) % 4
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * padding


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise OSError(errno.ENODEV, f"there is no link {name} in the namespace") from error


class Netlink:
    """One rtnetlink socket in the namespace the caller is in when it is made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def _ask(self, kind: int, flags: int, body: bytes, what: str) -> None:
        """Send one request and wait for the kernel's answer; an error raises OSError naming the request."""
        self._sequence += 1
        flags |= _NLM_F_REQUEST | _NLM_F_ACK
        header = struct.pack("=IHHII", 16 + len(body), kind, flags, self._sequence, 0)
        self._socket.send(header + body)
        code: int = struct.unpack_from("=i", self._socket.recv(65536), 16)[0]
        if code:
            raise OSError(-code, f"{what}: {os.strerror(-code)}")

    def set_link(
        self, name: str, *, up: bool = True, mtu: int = 0, queue: int = 0, arp: bool = True, mac: bytes = b""
    ) -> None:
        """Bring a link up; `mtu` in bytes and `queue` (txqueuelen) in packets, 0 leaves them alone."""
        flags = (_IFF_UP if up else 0) | (0 if arp else _IFF_NOARP)
        mask = _IFF_UP | (0 if arp else _IFF_NOARP)
        body = struct.pack("=BxHiII", 0, 0, _index(name), flags, mask)
        for kind, value in ((_IFLA_MTU, mtu), (_IFLA_TXQLEN, queue)):
            body += _attr(kind, _u32(value)) if value else b""
        body += _attr(_IFLA_ADDRESS, mac) if mac else b""
        self._ask(_RTM_NEWLINK, 0, body, f"setting up {name}")

    def add_veth(self, name: str, peer: str, peer_namespace: int) -> None:
        """Make a veth pair: `name` here, `peer` in the namespace of the open descriptor."""
        link = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
        other = link + _attr(_IFLA_IFNAME, peer.encode() + b"\0") + _attr(_IFLA_NET_NS_FD, _u32(peer_namespace))
        info = _attr(_INFO_KIND, b"veth") + _attr(_INFO_DATA, _attr(_VETH_PEER, other))
        body = link + _attr(_IFLA_IFNAME, name.encode() + b"\0") + _attr(_IFLA_LINKINFO, info)
        self._ask(_RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, body, f"making the veth pair {name}/{peer}")

    def add_address(self, name: str, address: str, prefix: int = 0) -> None:
        """Give a link an IPv4 or IPv6 address, usable at once; `prefix` bits of it are on the link (0: all)."""
        body = _address_body(name, address, prefix)
        self._ask(_RTM_NEWADDR, _NLM_F_CREATE | _NLM_F_EXCL, body, f"giving {name} the address {address}")

    def drop_address(self, name: str, address: str) -> None:
        """Take an address from a link, and with it the routes that prefer it as their source."""
        self._ask(_RTM_DELADDR, 0, _address_body(name, address, 0), f"taking the address {address} from {name}")

    def add_route(self, prefix: str, name: str, *, source: str = "", gateway: str = "", congestion: str = "") -> None:
        """Send an IPv4 or IPv6 prefix ("0.0.0.0/0" or "::/0" for everything) out of a link.

        `congestion` makes that algorithm the default of TCP connections over this route. It is how an
        ordinary user's namespace gets cubic where the machine's default is another one: the sysctl
        accepts only algorithms on the machine's list of unrestricted ones, a route accepts any.
        """
        network = ipaddress.ip_network(prefix)
        family = socket.AF_INET if network.version == 4 else socket.AF_INET6
        # scope link (253) or, behind a gateway, universe (0); protocol static (4), table main (254), unicast (1)
        scope = 0 if gateway or family == socket.AF_INET6 else 253
        body = struct.pack("=BBBBBBBBI", family, network.prefixlen, 0, 0, 254, 4, scope, 1, 0)
        body += _attr(_RTA_DST, network.network_address.packed) + _attr(_RTA_OIF, _u32(_index(name)))
        body += _attr(_RTA_GATEWAY, ipaddress.ip_address(gateway).packed) if gateway else b""
        body += _attr(_RTA_PREFSRC, ipaddress.ip_address(source).packed) if source else b""
        if congestion:
            body += _attr(_RTA_METRICS, _attr(_RTAX_CC_ALGO, congestion.encode() + b"\0"))
        self._ask(_RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_EXCL, body, f"routing {prefix} over {name}")


def _address_body(name: str, address: str, prefix: int) -> bytes:
    """The message about one address of a link; IPv6 skips duplicate detection, which nobody could answer."""
    parsed = ipaddress.ip_address(address)
    family = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
    flags = 0 if parsed.version == 4 else _IFA_F_NODAD
    body = struct.pack("=BBBBI", family, prefix or parsed.max_prefixlen, flags, 0, _index(name))
    return body + _attr(_IFA_LOCAL, parsed.packed) + _attr(_IFA_ADDRESS, parsed.packed)


@contextlib.contextmanager
def netlink() -> Iterator[Netlink]:
    """An rtnetlink socket in the current namespace, closed at the end."""
    connection = Netlink()
    try:
        yield connection
    finally:
        connection.close()


def offloads_off(name: str) -> None:
    """Switch checksum and segmentation offloads off, so that every packet is whole and correct on the wire.

    A veth end leaves checksums to the far end and hands over super-packets; an operator that reads them
    with AF_PACKET would see neither real checksums nor real packet sizes.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in _OFFLOADS:
            value = array.array("B", struct.pack("=II", command, 0))
            request = struct.pack("16sP16x", name.encode(), value.buffer_info()[0])
            try:
                fcntl.ioctl(control, _SIOCETHTOOL, request)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise

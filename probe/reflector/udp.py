# SPDX-License-Identifier: EUPL-1.2
"""One UDP socket of the reflector, and the answers that leave it from the address that was asked.

A socket bound to a wildcard would answer from whatever address the routing prefers, and the probe's connected socket
would never see it; so it is told the address of each datagram and names it again. Spec: spec/carriers.md.
"""

from __future__ import annotations

import array
import contextlib
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from probe.reflector.logs import LOG

_LONGEST: Final = 2048
"""Nobody sends us more than 1232 bytes; the rest of a longer datagram is cut off."""
_BUFFER_BYTES: Final = 4 * 1024 * 1024
"""A tenth of a second of 200 Mbit/s with the kernel's own bytes: the loop may be elsewhere for so long."""
_IP_PKTINFO: Final = 8
_IPV6_RECVPKTINFO: Final = getattr(socket, "IPV6_RECVPKTINFO", 49)
_IPV6_PKTINFO: Final = getattr(socket, "IPV6_PKTINFO", 50)
_SO_MEMINFO: Final = 55
_DROPS_AT: Final = 8
"""Linux: the ninth number of SO_MEMINFO counts the datagrams that found the buffer full."""


class Peer(NamedTuple):
    """Where datagrams of a flow come from and go to."""

    address: tuple[Any, ...]
    """As the socket module tells it."""
    local: bytes = b""
    """Control data that names our own address; empty where the socket has only one."""

    @property
    def host(self) -> str:
        """The peer's address."""
        return str(self.address[0])


class UdpPort:
    """A bound socket that never blocks."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)
        is_v6 = sock.family == socket.AF_INET6
        self._level, self._kind = (socket.IPPROTO_IPV6, _IPV6_PKTINFO) if is_v6 else (socket.IPPROTO_IP, _IP_PKTINFO)
        self._is_wild = sock.getsockname()[0] in {"0.0.0.0", "::"}  # noqa: S104 (asks, does not bind)
        if self._is_wild:
            sock.setsockopt(self._level, _IPV6_RECVPKTINFO if is_v6 else _IP_PKTINFO, 1)

    def receive(self) -> tuple[bytes, Peer] | None:
        """The next datagram; None where there is none."""
        try:
            if not self._is_wild:
                raw, address = self.socket.recvfrom(_LONGEST)
                return raw, Peer(address)
            raw, ancillary, _, address = self.socket.recvmsg(_LONGEST, 64)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return None  # an ICMP error of some earlier datagram: whom it concerns will fall silent
        found = [data for level, kind, data in ancillary if (level, kind) == (self._level, self._kind)]
        return raw, Peer(address, self._source(found[0]) if found else b"")

    def send(self, raw: bytes, peer: Peer) -> bool:
        """Send a datagram; False where the kernel refused it, which is a loss like any other."""
        try:
            if peer.local:
                self.socket.sendmsg([raw], [(self._level, self._kind, peer.local)], 0, peer.address)
            else:
                self.socket.sendto(raw, peer.address)
        except OSError:
            return False
        return True

    def dropped(self) -> int:
        """Datagrams that arrived and found the buffer full, since the socket was made; 0 where nobody counts."""
        try:
            counts = array.array("I", self.socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 64))
        except OSError:
            return 0
        return counts[_DROPS_AT] if len(counts) > _DROPS_AT else 0

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def _source(self, info: bytes) -> bytes:
        """The received control data as it names a source when sending: the address without the interface."""
        if self._kind == _IP_PKTINFO:
            _, _, ours = struct.unpack("=I4s4s", info[:12])
            return struct.pack("=I4s4s", 0, ours, bytes(4))
        is_link_local = info[0] == 0xFE and info[1] & 0xC0 == 0x80
        return info[:20] if is_link_local else info[:16] + bytes(4)


def open_port(like: socket.socket) -> UdpPort:
    """A UDP socket on the address and port of a listening TCP socket. Raises OSError."""
    sock = socket.socket(like.family, socket.SOCK_DGRAM)
    try:
        if like.family == socket.AF_INET6:
            only = like.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        _widen(sock)
        sock.bind(like.getsockname())
        return UdpPort(sock)
    except BaseException:
        sock.close()
        raise


def adopt_ports(sockets: Sequence[socket.socket]) -> list[UdpPort]:
    """UDP sockets that somebody else bound."""
    for sock in sockets:
        _widen(sock)
    return [UdpPort(sock) for sock in sockets]


def _widen(sock: socket.socket) -> None:
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)


def open_ports(listeners: Sequence[socket.socket]) -> list[UdpPort]:
    """A UDP socket for each listening TCP socket; none at all where one port is taken, and the log says so."""
    opened: list[UdpPort] = []
    for listener in listeners:
        try:
            opened.append(open_port(listener))
        except OSError as error:
            LOG.warning(
                "UDP port %d cannot be used (%s): this reflector carries TCP alone; free the port or choose another "
                "with --data-port",
                listener.getsockname()[1],
                error.strerror,
            )
            for port in opened:
                port.close()
            return []
    return opened

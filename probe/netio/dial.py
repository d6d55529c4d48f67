# SPDX-License-Identifier: EUPL-1.2
"""Connecting and opening TLS, with one address per host for the whole session.

Both segments of a pair must take the same path, so a name is resolved once. Host names travel as bytes: text
would load the IDNA tables, which a router's Python may lack. Spec: spec/protocol.md, "Data connection".
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import socket
import ssl
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

SO_MAX_PACING_RATE: Final = getattr(socket, "SO_MAX_PACING_RATE", 47)
"""Linux 3.13; Python names it from 3.14 on. bytes/s."""
TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
TCP_CONGESTION: Final = getattr(socket, "TCP_CONGESTION", 13)
TCP_INFO: Final = getattr(socket, "TCP_INFO", 11)
NOTSENT_BYTES: Final = 64 * 1024
LOOPBACK_SEGMENT: Final = 1400
CONGESTION: Final = (b"cubic", b"reno")
"""Tried in this order: an ordinary user may be refused cubic where it is not the default."""


_Candidate = tuple[int, Any]
"""Address family and what `connect` takes."""


class WrongCertificate(Exception):
    """The peer's certificate is not the one that was announced."""


class Dialer:
    """Connects, always to the same address of a host, optionally from a given local address."""

    def __init__(self, bind: str | None = None) -> None:
        self._bind = bind
        self._chosen: dict[tuple[str, int], _Candidate] = {}
        self._contexts: dict[tuple[str, ...], ssl.SSLContext] = {}

    def connect(self, host: str, port: int, timeout_s: float) -> socket.socket:
        """A connected TCP socket. Raises OSError (gaierror where the name does not resolve)."""
        known = self._chosen.get((host, port))
        candidates = [known] if known else self._resolve(host, port)
        failure: OSError = OSError(errno.EHOSTUNREACH, "no address to connect to")
        deadline = time.monotonic() + timeout_s
        for tried, (family, address) in enumerate(candidates):
            # Each gets its share of what is left, so that a dead IPv6 route leaves time for IPv4.
            share = (deadline - time.monotonic()) / (len(candidates) - tried)
            if share <= 0:
                raise TimeoutError("the deadline passed")
            try:
                sock = self._open(family, address, share)
            except OSError as error:
                failure = error
                continue
            self._chosen[(host, port)] = (family, address)
            return sock
        raise failure

    def connect_datagrams(self, host: str, port: int) -> socket.socket:
        """A UDP socket connected to the address at which this host answered over TCP; every call has a new port.

        Raises OSError (gaierror where the name does not resolve).
        """
        known = self._chosen.get((host, port))
        if known is None:
            # Nothing over TCP to this port yet: the address of another port of the host will do.
            known = next((found for (name, _), found in self._chosen.items() if name == host), None)
        family, address = known or self._resolve(host, port)[0]
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            if self._bind is not None:
                sock.bind((self._bind, 0))
            sock.connect((address[0], port, *address[2:]))
        except BaseException:
            sock.close()
            raise
        return sock

    def _resolve(self, host: str, port: int) -> list[_Candidate]:
        family = socket.AF_UNSPEC
        if self._bind is not None:
            family = socket.AF_INET6 if ":" in self._bind else socket.AF_INET
        found = socket.getaddrinfo(host.encode("ascii"), port, family, socket.SOCK_STREAM)
        return [(int(entry[0]), entry[4]) for entry in found]

    def _open(self, family: int, address: Any, timeout_s: float) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            if not is_beyond_host(str(address[0])):
                # Loopback's 64 kB packets would make a rate of few, coarse steps; no real line has them.
                _try_option(sock, socket.IPPROTO_TCP, socket.TCP_MAXSEG, struct.pack("=i", LOOPBACK_SEGMENT))
            if self._bind is not None:
                sock.bind((self._bind, 0))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        return sock

    def data_context(self, alpn: Sequence[str]) -> ssl.SSLContext:
        """TLS 1.3 alone and the given ALPN; one context for both arms, so that their hellos are alike."""
        key = tuple(alpn)
        if key not in self._contexts:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # the certificate is known by its digest instead
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.set_alpn_protocols(list(alpn))
            self._contexts[key] = context
        return self._contexts[key]

    def open_tls(
        self, sock: socket.socket, name: str, *, alpn: Sequence[str], certificate: str, timeout_s: float
    ) -> ssl.SSLSocket:
        """TLS on a connected socket, which this call takes over. Raises OSError, WrongCertificate."""
        sock.settimeout(timeout_s)
        wrapped = self.data_context(alpn).wrap_socket(
            sock, server_hostname=name.encode("ascii"), do_handshake_on_connect=False
        )
        try:
            wrapped.do_handshake()
            if certificate_digest(wrapped) != certificate:
                raise WrongCertificate("the data certificate is not the one the reflector announced")
        except BaseException:
            wrapped.close()
            raise
        return wrapped


def certificate_digest(sock: ssl.SSLSocket) -> str:
    """SHA-256 of the peer certificate's DER, hex; empty where there is none."""
    der = sock.getpeercert(binary_form=True)
    return hashlib.sha256(der).hexdigest() if der else ""


def local_address(sock: socket.socket) -> str:
    """The socket's own address, without port and scope."""
    return str(sock.getsockname()[0]).partition("%")[0]


def is_beyond_host(address: str) -> bool:
    """Whether packets to an address leave this machine."""
    return not ipaddress.ip_address(address.partition("%")[0]).is_loopback


def is_public(address: str) -> bool:
    """Whether an address (without scope) is one of the public internet."""
    return ipaddress.ip_address(address).is_global


@dataclass(frozen=True, slots=True)
class SenderOptions:
    """What the kernel granted."""

    paced: bool
    congestion: str | None


def prepare_sender(sock: socket.socket, pace_mbps: float) -> SenderOptions:
    """Kernel pacing, a small unsent queue and a congestion control that is the same on every probe.

    No call for a pace of 0 (unlimited).
    """
    paced = False
    if pace_mbps > 0:
        rate = max(1, min(2**32 - 2, round(pace_mbps * 1e6 / 8)))
        paced = _try_option(sock, socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("=I", rate))
    _try_option(sock, socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, struct.pack("=i", NOTSENT_BYTES))
    for name in CONGESTION:
        if _try_option(sock, socket.IPPROTO_TCP, TCP_CONGESTION, name):
            break
    return SenderOptions(paced=paced, congestion=_congestion(sock))


def _try_option(sock: socket.socket, level: int, option: int, value: bytes) -> bool:
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True


def _congestion(sock: socket.socket) -> str | None:
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, TCP_CONGESTION, 16)
    except OSError:
        return None
    return raw.split(b"\0")[0].decode("ascii", "replace") or None


def reset(sock: socket.socket) -> None:
    """Close with a TCP reset, discarding what is unsent (SO_LINGER 0)."""
    _try_option(sock, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    sock.close()


_INFO_BYTES: Final = 192
_TCP_CLOSE: Final = 7


def was_reset(sock: socket.socket) -> bool:
    """Whether the connection ended by a reset rather than by the peer's FIN.

    Asked of the kernel, because Python's ssl before 3.12 reports both as an end of stream.
    """
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, _INFO_BYTES)[0] == _TCP_CLOSE
    except (OSError, IndexError):
        return False


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """What Linux says of a connection (include/uapi/linux/tcp.h)."""

    retransmits: int
    rtt_min_ms: float | None
    acked_bytes: int
    """Sent and acknowledged by the peer, TLS included."""
    wire_bytes: int
    """Bytes both ways with TCP and IP headers, retransmissions left out."""
    limited_ms: int | None
    """Milliseconds for which the peer's window or our own send buffer held us back (Linux 4.10); None: not told."""


def tcp_info(sock: socket.socket) -> TcpInfo | None:
    """None where the kernel tells less than Linux 4.9 does."""
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, _INFO_BYTES)
    except OSError:
        return None
    if len(raw) < 152:
        return None
    (retransmits,) = struct.unpack_from("=I", raw, 100)
    acked, received, segs_out, segs_in = struct.unpack_from("=QQII", raw, 120)
    (rtt_us,) = struct.unpack_from("=I", raw, 148)
    headers = 52 if sock.family == socket.AF_INET else 72
    return TcpInfo(
        retransmits=retransmits,
        rtt_min_ms=None if rtt_us in {0, 2**32 - 1} else rtt_us / 1000,
        acked_bytes=acked,
        wire_bytes=acked + received + headers * (segs_out + segs_in),
        limited_ms=sum(struct.unpack_from("=QQ", raw, 176)) // 1000 if len(raw) >= 192 else None,
    )


_SO_MEMINFO: Final = 55
"""Linux 4.12 (include/uapi/asm-generic/socket.h); numbers of 32 bits (include/uapi/linux/sock_diag.h)."""
_MEMINFO_BYTES: Final = 36


def receive_fill(sock: socket.socket) -> float | None:
    """How full the kernel's receive buffer is, 0 to 1 and a little more; None where it does not say."""
    found = _meminfo(sock)
    return found[0] / found[1] if found is not None and found[1] else None


def receive_drops(sock: socket.socket) -> int | None:
    """Datagrams that the kernel dropped because nobody had read the earlier ones; None where it does not say."""
    found = _meminfo(sock)
    return found[8] if found is not None else None


def _meminfo(sock: socket.socket) -> tuple[int, ...] | None:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO_BYTES)
    except OSError:
        return None
    return struct.unpack("=9I", raw) if len(raw) == _MEMINFO_BYTES else None

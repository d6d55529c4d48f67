# SPDX-License-Identifier: EUPL-1.2
"""What the kernel counted on one TCP connection; the reflector's bins are made of it.

Offsets are those of `struct tcp_info` (include/uapi/linux/tcp.h), which only ever grew: only the fields that
the kernel returned are decoded. Spec: spec/protocol.md, section "Data connection", "Bins".
"""

from __future__ import annotations

import array
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final

TCP_INFO: Final = getattr(socket, "TCP_INFO", 11)
_LONGEST: Final = 256
_FIONREAD: Final = 0x541B
_UNKNOWN_RTT: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """None is a field that this kernel does not have."""

    bytes_acked: int
    bytes_received: int
    rtt_ms: float | None
    rtt_min_ms: float | None
    retransmits: int
    rwnd_limited_ms: int | None


def decode(raw: bytes) -> TcpInfo | None:
    """Decode what the kernel returned; None where it has no byte counters (before Linux 4.1)."""
    if len(raw) < 136:
        return None
    (rtt_us,) = struct.unpack_from("=I", raw, 68)
    (retransmits,) = struct.unpack_from("=I", raw, 100)
    acked, received = struct.unpack_from("=QQ", raw, 120)
    min_rtt_us = struct.unpack_from("=I", raw, 148)[0] if len(raw) >= 152 else _UNKNOWN_RTT
    limited_us = struct.unpack_from("=Q", raw, 176)[0] if len(raw) >= 184 else None
    return TcpInfo(
        # The kernel counts the SYN's acknowledgement in; it cancels out in differences.
        bytes_acked=acked,
        bytes_received=received,
        rtt_ms=rtt_us / 1000 if rtt_us else None,
        rtt_min_ms=None if min_rtt_us in {0, _UNKNOWN_RTT} else min_rtt_us / 1000,
        retransmits=retransmits,
        rwnd_limited_ms=None if limited_us is None else limited_us // 1000,
    )


def read(sock: socket.socket) -> TcpInfo | None:
    """The counters of a connection; None on systems that have none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return decode(sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, _LONGEST))
    except OSError:
        return None


def unread_bytes(sock: socket.socket) -> int:
    """Bytes that the kernel holds and nobody read yet; 0 where it does not say."""
    try:
        import fcntl  # noqa: PLC0415 (absent outside Unix)

        count = array.array("i", [0])
        fcntl.ioctl(sock.fileno(), _FIONREAD, count)
    except (ImportError, OSError):
        return 0
    return max(0, count[0])

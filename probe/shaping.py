# SPDX-License-Identifier: EUPL-1.2
"""Whether this device itself shapes the traffic of an interface (SQM), which looks like an operator's throttle.

The kernel is asked for its queueing disciplines over rtnetlink (RFC 3549), as `tc qdisc show` does; it tells anybody.
Spec: spec/probe.md, section "Environment".
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final

_RTM_GETQDISC, _RTM_NEWQDISC = 38, 36
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_CAKE_BASE_RATE64: Final = 2
_SHAPERS: Final = frozenset({"cake", "htb", "hfsc", "tbf", "cbq"})
"""Disciplines that hold traffic below a rate; fq_codel, fq, mq, pfifo_fast and the like only order it."""
_TIMEOUT_S: Final = 1.0
_READ_BYTES: Final = 64 * 1024
_MOST_READS: Final = 64


def is_shaped(name: str) -> bool | None:
    """Whether a shaper is at work on an interface, outgoing or (through its ifb device) incoming; None: not told."""
    try:
        index = socket.if_nametoindex(name)
        # sqm-scripts calls the device that the incoming traffic is led through after the interface.
        incoming = _index_or_none(f"ifb4{name}"[:15])
        messages = b"".join(_dump())
    except (OSError, AttributeError):
        return None
    return any(at in {index, incoming} and _holds_back(kind, options) for at, kind, options in parse(messages))


def _index_or_none(name: str) -> int | None:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def _dump() -> Iterator[bytes]:
    """The kernel's answer to "all queueing disciplines". Raises OSError."""
    request = struct.pack("=BxxxiIII", socket.AF_UNSPEC, 0, 0, 0, 0)
    header = struct.pack("=IHHII", 16 + len(request), _RTM_GETQDISC, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(_TIMEOUT_S)
        sock.send(header + request)
        for _ in range(_MOST_READS):
            piece = sock.recv(_READ_BYTES)
            yield piece
            if any(kind in {_NLMSG_DONE, _NLMSG_ERROR} for kind, _ in _messages(piece)):
                return


def parse(messages: bytes) -> Iterator[tuple[int, str, bytes]]:
    """Interface, kind and options of each discipline in an answer."""
    for kind, body in _messages(messages):
        if kind != _RTM_NEWQDISC or len(body) < 20:
            continue
        (index,) = struct.unpack_from("=i", body, 4)
        attributes = dict(_attributes(body[20:]))
        name = attributes.get(_TCA_KIND, b"").rstrip(b"\0").decode("ascii", "replace")
        yield index, name, attributes.get(_TCA_OPTIONS, b"")


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if length < 16:
            return
        yield kind, data[at + 16 : at + length]
        at += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def _holds_back(kind: str, options: bytes) -> bool:
    if kind != "cake":
        return kind in _SHAPERS
    rate = dict(_attributes(options)).get(_TCA_CAKE_BASE_RATE64, b"")
    # Without a rate it is a fair queue alone.
    return len(rate) == 8 and struct.unpack("=Q", rate)[0] > 0

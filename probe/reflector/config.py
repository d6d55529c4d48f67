# SPDX-License-Identifier: EUPL-1.2
"""What an operator decides of a reflector, what it allows unless told otherwise, and what stands under --state.

Spec: spec/protocol.md, sections "Room" and "Journals".
"""

from __future__ import annotations

import ipaddress
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from probe.protocol.accounts import PUBLIC_CAPACITY_MBPS, PUBLIC_PACE_MBPS, PUBLIC_SESSION_BYTES, Limits
from probe.reflector.data import DataLimits
from probe.reflector.datagrams import DatagramLimits
from probe.reflector.keys import SIGNING_KEY, Certificate, NetworkKey, load_signer
from probe.reflector.origin import Table, TableError, read_table
from probe.reflector.receipts import ASIDE_BYTES, Receipts
from probe.reflector.renewal import DataContexts, load_control_certificate, load_data_certificate
from probe.wire.signing import SeedSigner

CONTROL_PORT: Final = 8443
DATA_PORT: Final = 8444
_FILES: Final = 16_384
"""Descriptors: each session has a control connection and at times a data connection."""


class ReflectorError(Exception):
    """The reflector cannot start; the message is one sentence that says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What an operator of a reflector decides."""

    hosts: tuple[str, ...] = ("127.0.0.1",)
    control_port: int = CONTROL_PORT
    """0 picks a free one."""
    data_port: int = DATA_PORT
    portal_port: int | None = None
    """Where the page by which captive portals are noticed is served; None: nowhere. 0 picks a free one."""
    state: Path
    asn_tables: tuple[Path, ...] = ()
    collector: str | None = None
    limits: Limits = field(default_factory=Limits)
    data_limits: DataLimits = field(default_factory=lambda: DataLimits(handshakes=1024, handshakes_per_prefix=256))
    """As many handshakes from one network as it may have sessions: a neighbour's must never look like blocking."""
    datagram_limits: DatagramLimits = field(default_factory=DatagramLimits)
    journal_bytes: int = 2_000_000_000
    """With so many bytes of records kept no session is opened, because none may be lost; 0 is no bound."""
    aside_bytes: int = ASIDE_BYTES
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What somebody must know to use this reflector."""

    url: str
    pin: str
    key: str
    control_port: int
    data_port: int
    portal_port: int | None = None


def announce_line(found: Announcement) -> str:
    """The one line that a reflector prints when it is ready."""
    return f"{found.url}#sha256={found.pin}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What was found or made under --state."""

    signer: SeedSigner
    control_certificate: Certificate
    data_certificate: Certificate
    contexts: DataContexts
    network_key: NetworkKey
    receipts: Receipts


def open_state(state: Path) -> Opened:
    """Read what is there and make what is missing. Raises ReflectorError."""
    try:
        signer = load_signer(state / SIGNING_KEY)
        return Opened(
            signer=signer,
            control_certificate=load_control_certificate(state),
            data_certificate=load_data_certificate(state),
            contexts=DataContexts(state),
            network_key=NetworkKey(state / "network.key"),
            receipts=Receipts(state, signer),
        )
    except ValueError as error:
        raise ReflectorError(str(error)) from None
    except OSError as error:
        raise ReflectorError(f"{error.filename or state} cannot be used ({error.strerror})") from None


def allow_files() -> None:
    """As many open files as the system grants without asking: the usual 1024 are 500 sessions."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def default_limits(hosts: Sequence[str]) -> Limits:
    """What a reflector on these addresses allows unless told otherwise.

    Loopback and the addresses kept for documentation (RFC 5737, RFC 3849), which laboratories use, are nobody's
    uplink: no bound there. Everywhere else strangers may come.
    """
    if all(_is_private_ground(host) for host in hosts):
        return Limits()
    return Limits(
        most_pace_mbps=PUBLIC_PACE_MBPS, session_bytes=PUBLIC_SESSION_BYTES, capacity_mbps=PUBLIC_CAPACITY_MBPS
    )


_DOCUMENTATION: Final = tuple(
    ipaddress.ip_network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
)


def _is_private_ground(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or any(address in net for net in _DOCUMENTATION if net.version == address.version)


def read_tables(paths: Sequence[Path]) -> list[Table]:
    """The tables of --asn-db. Raises ReflectorError."""
    try:
        return [read_table(path) for path in paths]
    except TableError as error:
        raise ReflectorError(str(error)) from None
    except OSError as error:
        raise ReflectorError(f"the table {error.filename} cannot be read ({error.strerror}): see --asn-db") from None

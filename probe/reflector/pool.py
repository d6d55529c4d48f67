# SPDX-License-Identifier: EUPL-1.2
"""The addresses that pairs are spread over, as one particular probe can reach them.

Spec: spec/protocol.md, section "Pool"; `Endpoint` in probe/wire/messages.py.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from probe.wire.messages import Endpoint


@dataclass(frozen=True, slots=True)
class Pool:
    """The hosts that --host named, in that order."""

    hosts: tuple[str, ...]
    control_port: int
    data_port: int

    def seen_from(self, *, host_header: str, local_address: str) -> tuple[Endpoint, ...]:
        """The endpoints for a probe that asked `host_header` and arrived at `local_address`.

        Of the family in which it came, because only this one is known to reach it. Where it came another way than
        straight to one of our hosts (a relay, a forwarded port, a wildcard), our addresses may mean nothing to it: one
        endpoint, at the host that it knows.
        """
        asked_host, asked_port = split_host(host_header)
        arrived = _plain(local_address)
        if asked_port != self.control_port or not self._is_straight(_plain(asked_host), arrived):
            return (Endpoint(host=None, port=self.data_port),)
        family = family_of(arrived)
        same = [host for host in self.hosts if family_of(host) in {family, None}]
        return tuple(Endpoint(host=None if is_wildcard(host) else host, port=self.data_port) for host in same)

    def _is_straight(self, asked: str, arrived: str) -> bool:
        """Whether nothing stands between: it dialled one of our addresses, or a name for an address of the internet.

        A name for a private address may be that of a router or a cloud in front of us, which translates.
        """
        if arrived not in self._plain_hosts:
            return False
        return asked == arrived or (family_of(asked) is None and ipaddress.ip_address(arrived).is_global)

    @property
    def _plain_hosts(self) -> set[str]:
        return {_plain(host) for host in self.hosts}


def split_host(header: str) -> tuple[str, int]:
    """Host and port of a Host header; 443 where it names none, 0 where it cannot be read."""
    host, colon, port = header.rpartition(":")
    if not colon or header.endswith("]"):
        host, port = header, "443"
    host = host.strip().removeprefix("[").removesuffix("]")
    return host, int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0


def is_wildcard(host: str) -> bool:
    """Whether `host` means every address of this machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def family_of(host: str) -> Literal[4, 6] | None:
    """The family of an address; None for a name."""
    try:
        return 4 if ipaddress.ip_address(host.partition("%")[0]).version == 4 else 6
    except ValueError:
        return None


def _plain(host: str) -> str:
    """One spelling of an address; a name in small letters."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.lower()
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def url_host(hosts: Sequence[str]) -> str:
    """The host of the URL that is printed at the start: the first one, loopback for a wildcard."""
    host = hosts[0]
    if is_wildcard(host):
        host = "::1" if ":" in host else "127.0.0.1"
    return f"[{host}]" if ":" in host else host

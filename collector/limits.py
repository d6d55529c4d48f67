# SPDX-License-Identifier: EUPL-1.2
"""Who may upload how often and how much at once: a bucket per client network, in memory alone.

Pure but for the key, which is drawn at the start and dies with the process, so that nothing in memory is an
address. Spec: spec/api.md, section "Limits".
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from collector.config import Network

MOST_IN_FLIGHT: Final = 256 * 1024 * 1024
"""Bytes of bodies in memory at once; beyond this uploads are asked to come back."""
MOST_CLIENTS: Final = 20_000
"""Beyond this the client that was heard longest ago is forgotten."""


class RateLimit:
    """A token bucket per client: `per_minute` tokens a minute, at most as many at once; 0 means no limit."""

    def __init__(self, per_minute: int, key: bytes) -> None:
        self._per_s = per_minute / 60
        self._burst = float(per_minute)
        self._key = key
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()
        """Tokens left, and when that was (seconds)."""

    def take(self, client: str | None, now_s: float) -> float:
        """Take one token; 0 if there was one, else the seconds until there is."""
        if self._per_s == 0:
            return 0.0
        name = self._name(client)
        left, since = self._buckets.pop(name, (self._burst, now_s))
        left = min(self._burst, left + (now_s - since) * self._per_s)
        wait = 0.0 if left >= 1 else (1 - left) / self._per_s
        self._buckets[name] = (left if wait else left - 1, now_s)
        if len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return wait

    def _name(self, client: str | None) -> bytes:
        return hashlib.blake2b(network_of(client).encode(), key=self._key, digest_size=16).digest()


class InFlight:
    """Bytes of bodies that are being read or kept, over all clients: what many of them together may ask for."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.bytes = 0

    def add(self, count: int) -> bool:
        """Count bytes in; whether there is room for them. They are counted either way, until `remove`."""
        self.bytes += count
        return self.bytes <= self._most

    def remove(self, count: int) -> None:
        """Count them out."""
        self.bytes -= count


def network_of(client: str | None) -> str:
    """The /32 (IPv4) or /48 (IPv6) of an address; one for all whose address is none."""
    try:
        address = ipaddress.ip_address((client or "").partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 48), strict=False))
    return str(address)


def client_of(peer: str | None, forwarded_for: str | None, trusted: Sequence[Network]) -> str | None:
    """Whom a request comes from: the last address of `X-Forwarded-For` that is not a trusted proxy's.

    The header is believed only as far as trusted proxies wrote it, read from its end.
    """
    client = peer
    hops = [hop.strip() for hop in (forwarded_for or "").split(",") if hop.strip()]
    while hops and _is_trusted(client, trusted):
        client = hops.pop()
    return client


def _is_trusted(client: str | None, trusted: Sequence[Network]) -> bool:
    try:
        address = ipaddress.ip_address(client or "")
    except ValueError:
        return False
    return any(address in network for network in trusted if network.version == address.version)

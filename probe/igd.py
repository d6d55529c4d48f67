# SPDX-License-Identifier: EUPL-1.2
"""Asks the home router how many bytes passed its line, where it offers that (UPnP Internet Gateway Device).

Everybody in the house may answer a question by multicast, so everything here is hostile: only the router that our
default route leads to is believed, its description and its answers are bounded and scanned, never parsed as XML
(no entities, no recursion), and nothing but two counters is asked. UPnP Device Architecture 1.1, sections 1 and 3;
WANCommonInterfaceConfig:1, section 2.4. Spec: spec/probe.md, section "Household".
"""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
import time
from dataclasses import dataclass
from typing import Final

from probe.netio.dial import Dialer
from probe.netio.oneshot import fetch, request_head

GROUP: Final = ("239.255.255.250", 1900)
SEARCH_S: Final = 2.0
MOST_DESCRIPTION_BYTES: Final = 128 * 1024
"""A home router with many services needs about 20 kB."""
MOST_ANSWER_BYTES: Final = 8 * 1024
_MOST_DATAGRAMS: Final = 64
_MOST_DATAGRAM_BYTES: Final = 2048
_CONNECT_S: Final = 1.0
_DESCRIPTION_S: Final = 2.0
_ANSWER_S: Final = 0.5
_SERVICES: Final = tuple(f"urn:schemas-upnp-org:service:WANCommonInterfaceConfig:{version}" for version in (1, 2))
_TARGETS: Final = (_SERVICES[0], *(f"urn:schemas-upnp-org:device:InternetGatewayDevice:{v}" for v in (1, 2)))
_LOCATION: Final = re.compile(rb"\r\nlocation:[ \t]*(\S{1,500})[ \t]*\r\n", re.IGNORECASE)
_HTTP_URL: Final = re.compile(r"http://([0-9.]{7,15})(?::([0-9]{1,5}))?(/[!-~]{0,400})?")
_PATH: Final = re.compile(r"/?[!-~]{1,400}")
_WRAP: Final = 2**32
"""The counters have 32 bits (ui4)."""
_MOST_BYTES_PER_S: Final = 2.5e9 / 8
"""A step beyond 2.5 Gbit/s is no traffic but a router that began anew."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is on the home router."""

    host: str
    port: int
    path: str


class Igd:
    """A home router's two counters. `sent_and_received` gives their sum so far, from the first reading on."""

    def __init__(self, place: Place, service: str, dialer: Dialer) -> None:
        self._place = place
        self._service = service
        self._dialer = dialer
        self._last: tuple[float, tuple[int, int]] | None = None
        self._total = 0

    def total(self) -> int | None:
        """Bytes both ways since the first call, wraps of 32 bits undone; None where it does not answer now."""
        sent, received = self._ask("Sent"), self._ask("Received")
        now = time.monotonic()
        if sent is None or received is None:
            return None
        if self._last is not None:
            steps = [step(before, after) for before, after in zip(self._last[1], (sent, received), strict=True)]
            if min(steps) < 0 or max(steps) > _MOST_BYTES_PER_S * max(1.0, now - self._last[0]):
                self._last = (now, (sent, received))
                return None
            self._total += sum(steps)
        self._last = (now, (sent, received))
        return self._total

    def _ask(self, which: str) -> int | None:
        action = f"GetTotalBytes{which}"
        body = (
            '<?xml version="1.0"?>\n'
            '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
            's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
            f'<u:{action} xmlns:u="{self._service}"></u:{action}></s:Body></s:Envelope>\n'
        ).encode()
        headers = {"Content-Type": 'text/xml; charset="utf-8"', "SOAPAction": f'"{self._service}#{action}"'}
        place = self._place
        head = request_head("POST", place.path, f"{place.host}:{place.port}", headers, len(body))
        reply = fetch(
            self._dialer,
            place.host,
            place.port,
            head + body,
            connect_s=_ANSWER_S,
            timeout_s=_ANSWER_S,
            most=MOST_ANSWER_BYTES,
        )
        if reply is None or reply.status != 200:
            return None
        return counter_in(reply.body, f"NewTotalBytes{which}")


def step(before: int, after: int) -> int:
    """Bytes between two readings of a counter that may have wrapped; below 0 where one of 64 bits began anew."""
    return after - before if after >= before or max(before, after) >= _WRAP else after - before + _WRAP


def find(local: str, gateway: str | None, netmask: str | None, group: tuple[str, int] = GROUP) -> Igd | None:
    """The home router's counters, if it offers them within about 2 s; None otherwise. IPv4 alone.

    `local` is our own address, `gateway` where the default route leads, `netmask` that of the interface.
    """
    if gateway is None or netmask is None or not is_neighbour(gateway, local, netmask):
        return None
    place = search(local, gateway, group)
    if place is None:
        return None
    dialer = Dialer(local)
    head = request_head("GET", place.path, f"{place.host}:{place.port}", {"Accept": "text/xml"})
    reply = fetch(
        dialer,
        place.host,
        place.port,
        head,
        connect_s=_CONNECT_S,
        timeout_s=_DESCRIPTION_S,
        most=MOST_DESCRIPTION_BYTES,
    )
    if reply is None or reply.status != 200:
        return None
    found = service_in(reply.body)
    if found is None:
        return None
    service, url = found
    control = resolve(url, place)
    return None if control is None else Igd(control, service, dialer)


def search(local: str, gateway: str, group: tuple[str, int] = GROUP, wait_s: float = SEARCH_S) -> Place | None:
    """Ask the local network for a gateway (SSDP) and take the one answer that comes from our own router."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(local))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, struct.pack("=i", 1))
            sock.bind((local, 0))
            for target in _TARGETS:
                sock.sendto(_question(target), group)
        except OSError:
            return None
        deadline = time.monotonic() + wait_s
        for _ in range(_MOST_DATAGRAMS):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            sock.settimeout(left)
            try:
                data, (host, _port) = sock.recvfrom(_MOST_DATAGRAM_BYTES)
            except OSError:
                break
            place = location_in(data, gateway) if host == gateway else None
            if place is not None:
                return place
    return None


def _question(target: str) -> bytes:
    host, port = GROUP
    return (
        f'M-SEARCH * HTTP/1.1\r\nHOST: {host}:{port}\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: {target}\r\n\r\n'
    ).encode()


def is_neighbour(address: str, local: str, netmask: str) -> bool:
    """Whether an address is a private one (RFC 1918) of our own subnet and not our own."""
    try:
        subnet = ipaddress.IPv4Network(f"{local}/{netmask}", strict=False)
        them = ipaddress.IPv4Address(address)
    except ValueError:
        return False
    ends = {subnet.network_address, subnet.broadcast_address}
    return them.is_private and not them.is_loopback and them in subnet and address != local and them not in ends


def location_in(answer: bytes, gateway: str) -> Place | None:
    """Where an SSDP answer says that the description is, if that is on the router itself."""
    found = _LOCATION.search(answer) if answer.startswith(b"HTTP/1.1 200 ") else None
    return place_of(found[1].decode("latin-1"), gateway) if found else None


def place_of(url: str, host: str) -> Place | None:
    """An http URL taken apart, if it leads to this very host."""
    parts = _HTTP_URL.fullmatch(url)
    if parts is None or parts[1] != host or not 0 < int(parts[2] or 80) < 65536:
        return None
    return Place(host, int(parts[2] or 80), parts[3] or "/")


def resolve(url: str, description: Place) -> Place | None:
    """A control URL, which may be relative to the description's, if it stays on the same host."""
    if "://" in url:
        return place_of(url, description.host)
    if not _PATH.fullmatch(url) or url.startswith("//"):
        return None
    base = "" if url.startswith("/") else description.path.rpartition("/")[0] + "/"
    return Place(description.host, description.port, base + url)


def service_in(description: bytes) -> tuple[str, str] | None:
    """Type and control URL of the service with the counters. One pass over at most 128 kB, no entity but &amp;."""
    for rest in description.split(b"<service>")[1:]:
        block = rest.partition(b"</service>")[0]
        kind, url = _text(block, b"serviceType"), _text(block, b"controlURL")
        if kind in _SERVICES and url:
            return kind, url.replace("&amp;", "&")
    return None


def counter_in(answer: bytes, name: str) -> int | None:
    """The number in an element of an answer; None where there is none, or more than 64 bits."""
    text = _text(answer, name.encode())
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        return None
    return int(text) if int(text) < 2**64 else None


def _text(block: bytes, name: bytes) -> str:
    """What stands in the first element of this name; empty where there is none."""
    _, begun, rest = block.partition(b"<" + name + b">")
    inside, ended, _ = rest.partition(b"</" + name + b">")
    return inside.decode("utf-8", "replace").strip() if begun and ended and len(inside) <= 1000 else ""

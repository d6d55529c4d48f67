# SPDX-License-Identifier: EUPL-1.2
"""What a network says of itself: the address of its captive-portal API (RFC 8910) and that API's answer (RFC 8908).

DHCP option 114 is read from where the system keeps its lease; nothing is asked of the DHCP server. The address comes
from strangers: it must be HTTPS, whose certificate an authority vouches for, and one small answer is read.
Spec: spec/probe.md, section "Portal".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from probe.clock import Ask, output_of
from probe.line import ROOT, Line
from probe.netio.control import Url, open_https
from probe.netio.dial import Dialer, WrongCertificate
from probe.netio.http import HttpError
from probe.wire.codec import WireError, loads

MOST_ANSWER_BYTES: Final = 4096
_TIMEOUT_S: Final = 3.0
_MOST_LEASE_BYTES: Final = 256 * 1024
_OPTION: Final = 114
_DHCP_HEAD: Final = 240
"""Fixed part of a DHCP message and the magic cookie (RFC 2131, section 2)."""
_UNRESTRICTED: Final = "urn:ietf:params:capport:unrestricted"
"""Said by a network without a portal (RFC 8910, section 2)."""
_URI: Final = re.compile(r"https://([A-Za-z0-9.-]{1,253})(?::([0-9]{1,5}))?(/[!-~]{0,500})?")


def announced(dialer: Dialer, line: Line | None, root: Path = ROOT, program: Ask = output_of) -> bool | None:
    """Whether the network says that this device is held captive; None where it says nothing."""
    for uri in addresses(line, root, program):
        if uri == _UNRESTRICTED:
            return False
        said = ask(dialer, uri)
        if said is not None:
            return said
    return None


def addresses(line: Line | None, root: Path = ROOT, program: Ask = output_of) -> list[str]:
    """What option 114 said, from the leases that can be read: each address once."""
    if line is None:
        return []
    found = [*_networkd(line, root), *_dhclient(line, root), *_dhcpcd(line, root), *_network_manager(line, program)]
    return list(dict.fromkeys(found))


def ask(dialer: Dialer, uri: str) -> bool | None:
    """What the API at this address says; None where it is no such API, or nobody vouches for it."""
    parts = _URI.fullmatch(uri)
    if parts is None or not 0 < int(parts[2] or 443) < 65536:
        return None
    url = Url("https", parts[1], int(parts[2] or 443), parts[3] or "/", None)
    connection = None
    try:
        connection = open_https(dialer, url, connect_s=_TIMEOUT_S)
        headers = {"Accept": "application/captive+json", "Connection": "close"}
        answer = connection.request("GET", url.path, headers=headers, timeout_s=_TIMEOUT_S, most=MOST_ANSWER_BYTES)
    except (OSError, EOFError, HttpError, WrongCertificate):
        return None
    finally:
        if connection is not None:
            connection.close()
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if answer.status != 200 or kind != "application/captive+json":
        return None
    try:
        document = loads(answer.body, longest=MOST_ANSWER_BYTES)
    except WireError:
        return None
    captive = document.get("captive") if isinstance(document, dict) else None
    return captive if isinstance(captive, bool) else None


def _networkd(line: Line, root: Path) -> Iterable[str]:
    index = _read(root / "sys/class/net" / line.name / "ifindex").decode("ascii", "replace").strip()
    if not index.isdigit():
        return
    for place in ("links", "leases"):
        text = _read(root / "run/systemd/netif" / place / index).decode("utf-8", "replace")
        yield from re.findall(r"(?m)^CAPTIVE_PORTAL=(\S{1,600})$", text)


def _dhclient(line: Line, root: Path) -> Iterable[str]:
    """ISC's client calls option 114 by its older name; the last lease in its file is the present one."""
    for path in sorted((root / "var/lib/dhcp").glob("dhclient*.leases")):
        leases = [lease for lease in _read(path).decode("utf-8", "replace").split("lease {") if _is_of(lease, line)]
        yield from re.findall(r'option (?:default-url|v4-captive-portal) "(\S{1,600})";', "".join(leases[-1:]))


def _is_of(lease: str, line: Line) -> bool:
    return f'interface "{line.name}";' in lease


def _dhcpcd(line: Line, root: Path) -> Iterable[str]:
    """This client keeps the server's last message as it came."""
    message = _read(root / "var/lib/dhcpcd" / f"{line.name}.lease")
    at = _DHCP_HEAD
    while at + 2 <= len(message) and message[at] != 255:
        if message[at] == 0:
            at += 1
            continue
        length = message[at + 1]
        if message[at] == _OPTION:
            yield message[at + 2 : at + 2 + length].decode("ascii", "replace").rstrip("\0")
        at += 2 + length


def _network_manager(line: Line, program: Ask) -> Iterable[str]:
    said = program(["nmcli", "--terse", "--escape", "no", "--fields", "DHCP4", "device", "show", line.name]) or ""
    yield from re.findall(r"(?m)^DHCP4\.OPTION\[[0-9]+\]:(?:default_url|captive_portal) = (\S{1,600})$", said)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_LEASE_BYTES)
    except OSError:
        return b""

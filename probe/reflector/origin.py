# SPDX-License-Identifier: EUPL-1.2
"""Where a connection comes from, said without its address.

A table gives operator, ASN, country and access; the network is a keyed hash of the /32 (IPv4) or /48 (IPv6) whose
key is destroyed every month. Addresses live in local variables only. Spec: spec/protocol.md, section "Origin".
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import ipaddress
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol, cast

from probe.wire.records import Origin
from probe.wire.scrub import scrub

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
COLUMNS: Final = ("prefix", "asn", "country", "operator", "access")
_NETWORK_BITS: Final = {4: 32, 6: 48}
_LONGEST_OPERATOR: Final = 128


class TableError(ValueError):
    """The table of prefixes cannot be used; the message says why and where."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a prefix; None is not known."""

    asn: int | None = None
    country: str | None = None
    operator: str | None = None
    access: Literal["fixed", "mobile"] = "fixed"


class Table(Protocol):
    """Answers which entry an address belongs to."""

    def find(self, address: Address) -> Entry | None:
        """The entry of the longest prefix that holds `address`."""
        ...


def parse_address(value: str) -> Address:
    """An address as the kernel gives it: scope dropped, an IPv4 address that came over an IPv6 socket unwrapped."""
    address = ipaddress.ip_address(value.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


class PrefixTable:
    """Longest-prefix match over a CSV of `prefix,asn,country,operator,access`."""

    def __init__(self, entries: Iterable[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, Entry]]) -> None:
        # One dictionary a prefix length: a look-up tries the longest first, at most 33 or 129 of them.
        self._levels: dict[int, dict[int, dict[int, Entry]]] = {4: {}, 6: {}}
        self._count = 0
        for network, entry in entries:
            level = self._levels[network.version].setdefault(network.prefixlen, {})
            level[int(network.network_address)] = entry
            self._count += 1
        self._lengths = {version: sorted(levels, reverse=True) for version, levels in self._levels.items()}

    def __len__(self) -> int:
        return self._count

    def find(self, address: Address) -> Entry | None:
        """The entry of the longest prefix that holds `address`."""
        value = int(address)
        for length in self._lengths[address.version]:
            host_bits = address.max_prefixlen - length
            entry = self._levels[address.version][length].get(value >> host_bits << host_bits)
            if entry is not None:
                return entry
        return None


def read_prefix_table(path: Path) -> PrefixTable:
    """Load a CSV file, with or without a header line; `#` begins a comment line. Raises TableError, OSError."""
    entries = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                cells = [cell.strip() for cell in row]
                if not any(cells) or cells[0].startswith("#") or (number == 1 and cells[0].lower() == "prefix"):
                    continue
                entries.append(_read_row(cells, f"{path}, line {number}"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path} is neither a CSV table ({','.join(COLUMNS)}) nor a MaxMind file: {error}") from None
    if not entries:
        raise TableError(f"{path} has no prefix; each line is {','.join(COLUMNS)}")
    return PrefixTable(entries)


def _read_row(cells: list[str], where: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, Entry]:
    if not 2 <= len(cells) <= len(COLUMNS):
        raise TableError(f"{where}: expected {','.join(COLUMNS)}")
    prefix, asn, country, operator, access = (*cells, *[""] * (len(COLUMNS) - len(cells)))
    try:
        network = ipaddress.ip_network(prefix)
    except ValueError:
        raise TableError(f"{where}: '{prefix}' is not a prefix such as 192.0.2.0/24") from None
    number = _as_number(asn)
    if asn and number is None:
        raise TableError(f"{where}: '{asn}' is not an AS number")
    if country and not (len(country) == 2 and country.isascii() and country.isalpha()):
        raise TableError(f"{where}: '{country}' is not a country of two letters")
    if access not in {"", "fixed", "mobile"}:
        raise TableError(f"{where}: access is fixed or mobile, not '{access}'")
    return network, Entry(
        asn=number,
        country=country.upper() or None,
        operator=_operator(operator) or None,
        access=cast("Literal['fixed', 'mobile']", access or "fixed"),
    )


def _as_number(text: str) -> int | None:
    """An AS number, with or without AS before it. Its length is bounded because `int` bounds it, too."""
    digits = text.upper().removeprefix("AS")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 10):
        return None
    return int(digits) if int(digits) < 2**32 else None


def _operator(name: str) -> str:
    """A name that a record may carry: no control characters, no addresses, short.

    Cut before it is scrubbed, because a cut can make an address of what was none.
    """
    name = "".join(char if char.isprintable() else " " for char in name[:_LONGEST_OPERATOR])
    name = scrub(name)
    while len(name) > _LONGEST_OPERATOR:
        name = scrub(name[:_LONGEST_OPERATOR])
    return name


class MaxMindTable:
    """A MaxMind file (.mmdb): GeoLite2-ASN and -Country, and the spellings of DB-IP and IPinfo."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def find(self, address: Address) -> Entry | None:
        """The entry of the longest prefix that holds `address`."""
        if address.version == 6 and self._reader.metadata().ip_version == 4:
            return None
        try:
            found = self._reader.get(str(address))
        except _damaged():
            return None  # what cannot be read is not known
        return entry_of(found) if isinstance(found, dict) else None


def entry_of(found: dict[str, Any]) -> Entry:
    """Read one MaxMind entry, whichever of the usual spellings it has."""
    number = found.get("autonomous_system_number", found.get("asn"))
    operator = found.get("autonomous_system_organization") or found.get("as_name") or found.get("name")
    country = found.get("country_code") or found.get("country")
    if isinstance(country, dict):
        country = country.get("iso_code")
    is_code = isinstance(country, str) and len(country) == 2 and country.isascii() and country.isalpha()
    return Entry(
        asn=_as_number(str(number or "")),
        country=country.upper() if is_code and isinstance(country, str) else None,
        operator=_operator(str(operator)) if operator else None,
    )


def _damaged() -> tuple[type[Exception], ...]:
    """What maxminddb raises from a file that is cut off or changed: its decoder trusts types and offsets."""
    import maxminddb  # noqa: PLC0415 (an extra)

    return (
        maxminddb.InvalidDatabaseError, ValueError, TypeError, LookupError, AttributeError, OverflowError,
        RecursionError, struct.error,
    )  # fmt: skip


def read_maxmind_table(path: Path) -> MaxMindTable:
    """Load a .mmdb file into memory. Raises TableError, OSError."""
    import maxminddb  # noqa: PLC0415 (an extra)

    try:
        return MaxMindTable(maxminddb.open_database(path, maxminddb.MODE_MEMORY))
    except _damaged() as error:
        raise TableError(f"{path} is not a MaxMind file: {error}") from None


def read_table(path: Path) -> Table:
    """Load a MaxMind file or a CSV table, whichever it is. Raises TableError, OSError."""
    with path.open("rb") as file:
        file.seek(0, 2)
        size = file.tell()
        file.seek(max(0, size - 128 * 1024))
        is_maxmind = b"\xab\xcd\xefMaxMind.com" in file.read()
    return read_maxmind_table(path) if is_maxmind or path.suffix == ".mmdb" else read_prefix_table(path)


class Origins:
    """Turns addresses into origins. Tables are asked in order; a later one fills what an earlier one left open."""

    def __init__(self, tables: Iterable[Table]) -> None:
        self._tables = tuple(tables)

    def find(self, address: Address, key: bytes, told: str | None = None) -> Origin:
        """The origin of `address` under the month's `key`.

        `told` is the probe's own socket address: equal means no translation in between (`edge`).
        """
        entry = Entry()
        for table in self._tables:
            found = table.find(address)
            if found is not None:
                entry = Entry(
                    asn=entry.asn if entry.asn is not None else found.asn,
                    country=entry.country or found.country,
                    operator=entry.operator or found.operator,
                    access=found.access if entry == Entry() else entry.access,
                )
        return replace(
            Origin(asn=entry.asn, operator=entry.operator, country=entry.country, access=entry.access),
            family=address.version,
            network=network_hash(address, key),
            edge=_is_edge(address, told),
        )


def prefix_of(address: Address) -> str:
    """The /32 or /48 of an address, for quotas in memory."""
    bits = _NETWORK_BITS[address.version]
    return str(ipaddress.ip_network((address, bits), strict=False))


def network_hash(address: Address, key: bytes) -> str:
    """Keyed hash of the address's network: 32 hex characters, worth nothing once the key is gone."""
    return hmac.new(key, prefix_of(address).encode(), hashlib.sha256).hexdigest()[:32]


def _is_edge(address: Address, told: str | None) -> bool | None:
    if told is None:
        return None
    try:
        return parse_address(told) == address
    except ValueError:
        return None

# SPDX-License-Identifier: EUPL-1.2
"""Where a connection comes from: tables, network hashes, the edge, and the key that dies monthly."""

from __future__ import annotations

import ipaddress
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.reflector.keys import NetworkKey, month_of
from probe.reflector.origin import (
    Entry,
    MaxMindTable,
    Origins,
    PrefixTable,
    TableError,
    entry_of,
    network_hash,
    parse_address,
    prefix_of,
    read_prefix_table,
    read_table,
)

KEY = b"k" * 32
JULY = 1_783_000_000_000  # 2026-07-02
AUGUST = JULY + 32 * 86_400_000


def test_reads_a_table_with_and_without_a_header(tmp_path: Path) -> None:
    lines = "# comment\n\n192.0.2.0/24, AS64500 , nl, Meadow, mobile\n2001:db8::/32,64501\n"
    for head in ("", "prefix,asn,country,operator,access\n"):
        path = tmp_path / "t.csv"
        path.write_text(head + lines)
        table = read_prefix_table(path)
        assert len(table) == 2
        assert table.find(parse_address("192.0.2.9")) == Entry(64500, "NL", "Meadow", "mobile")
        assert table.find(parse_address("2001:db8:1::1")) == Entry(64501, None, None, "fixed")
        assert table.find(parse_address("198.51.100.1")) is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("10.0.0.1/8,1,NL,x,fixed", "line 1: '10.0.0.1/8' is not a prefix"),
        ("10.0.0.0/8,ASx,NL,x,fixed", "is not an AS number"),
        ("10.0.0.0/8,4294967296,NL,x,fixed", "is not an AS number"),
        ("10.0.0.0/8,1,N1,x,fixed", "two letters"),
        ("10.0.0.0/8,1,NL,x,cable", "fixed or mobile"),
        ("10.0.0.0/8", "expected prefix,asn"),
        ("10.0.0.0/8,1,NL,x,fixed,more", "expected prefix,asn"),
        ("", "no prefix"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(line + "\n")
    with pytest.raises(TableError, match=words):
        read_table(path)


@given(data=st.data())
def test_longest_prefix_wins(data: Any) -> None:
    """Against a search through all prefixes."""
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    entries = []
    for asn in range(60):
        base = ipaddress.ip_address((10 << 24) | rng.getrandbits(24)) if rng.random() < 0.6 else None
        if base is None:
            value = ipaddress.ip_address((0x20010DB8 << 96) | rng.getrandbits(96))
            network: Any = ipaddress.ip_network((value, rng.randrange(32, 129)), strict=False)
        else:
            network = ipaddress.ip_network((base, rng.randrange(8, 33)), strict=False)
        entries.append((network, Entry(asn=asn)))
    table = PrefixTable(entries)
    last = dict(entries)
    for _ in range(30):
        network = rng.choice(entries)[0]
        address = network[rng.randrange(min(network.num_addresses, 2**32))]
        holding = [one for one in last if one.version == address.version and address in one]
        assert table.find(address) == last[max(holding, key=lambda one: one.prefixlen)]


@pytest.mark.parametrize(
    ("found", "entry"),
    [
        (
            {"autonomous_system_number": 64500, "autonomous_system_organization": "Meadow"},
            Entry(64500, None, "Meadow"),
        ),
        ({"country": {"iso_code": "NL", "names": {"en": "x"}}}, Entry(None, "NL", None)),
        ({"asn": "AS64500", "as_name": "Meadow", "country_code": "nl"}, Entry(64500, "NL", "Meadow")),
        ({"asn": "ASx", "country": "Netherlands", "name": "10.0.0.1 Ltd"}, Entry(None, None, "[address] Ltd")),
        ({}, Entry()),
    ],
)
def test_maxmind_spellings(found: dict[str, Any], entry: Entry) -> None:
    assert entry_of(found) == entry


def test_a_maxmind_file(tmp_path: Path) -> None:
    path = tmp_path / "asn.mmdb"
    path.write_bytes(maxmind_file({"autonomous_system_number": 64500, "autonomous_system_organization": "Lane"}))
    table = read_table(path)
    assert isinstance(table, MaxMindTable)
    assert table.find(parse_address("1.2.3.4")) == Entry(64500, None, "Lane")
    assert table.find(parse_address("200.2.3.4")) is None
    assert table.find(parse_address("2001:db8::1")) is None
    (tmp_path / "no-suffix").write_bytes(path.read_bytes())
    assert isinstance(read_table(tmp_path / "no-suffix"), MaxMindTable)


def maxmind_file(entry: dict[str, Any]) -> bytes:
    """The smallest MaxMind DB (format 2.0): one node, 0/1 has `entry`, 1/1 has nothing."""

    def value(v: Any) -> bytes:
        if isinstance(v, dict):
            return bytes([7 << 5 | len(v)]) + b"".join(value(k) + value(x) for k, x in v.items())
        if isinstance(v, str):
            raw = v.encode()
            size = bytes([2 << 5 | len(raw)]) if len(raw) < 29 else bytes([2 << 5 | 29, len(raw) - 29])
            return size + raw
        if isinstance(v, list):
            return bytes([len(v), 4]) + b"".join(value(x) for x in v)
        raw = v.to_bytes((v.bit_length() + 7) // 8, "big")
        return bytes([6 << 5 | len(raw)]) + raw

    nodes = 1
    tree = (nodes + 16).to_bytes(3, "big") + nodes.to_bytes(3, "big")
    metadata = {
        "binary_format_major_version": 2,
        "binary_format_minor_version": 0,
        "build_epoch": 1,
        "database_type": "x",
        "description": {"en": "x"},
        "ip_version": 4,
        "languages": ["en"],
        "node_count": nodes,
        "record_size": 24,
    }
    return tree + b"\0" * 16 + value(entry) + b"\xab\xcd\xefMaxMind.com" + value(metadata)


def test_later_tables_fill_what_earlier_ones_left_open() -> None:
    address = parse_address("192.0.2.1")
    network = ipaddress.ip_network("192.0.2.0/24")
    asn = PrefixTable([(network, Entry(asn=1, operator="Lane", access="mobile"))])
    country = PrefixTable([(network, Entry(asn=2, country="BE"))])
    found = Origins([asn, country]).find(address, KEY)
    assert (found.asn, found.operator, found.country, found.access) == (1, "Lane", "BE", "mobile")
    found = Origins([country, asn]).find(address, KEY)
    assert (found.asn, found.operator, found.country, found.access) == (2, "Lane", "BE", "fixed")
    nothing = Origins([]).find(address, KEY)
    assert (nothing.asn, nothing.operator, nothing.country, nothing.access) == (None, None, None, "fixed")


def test_networks_are_a_32_or_a_48() -> None:
    assert prefix_of(parse_address("192.0.2.1")) == "192.0.2.1/32"
    assert prefix_of(parse_address("2001:db8:1:2:3::4")) == "2001:db8:1::/48"
    same = [network_hash(parse_address(a), KEY) for a in ("2001:db8:1::1", "2001:db8:1:ffff::9")]
    other = network_hash(parse_address("2001:db8:2::1"), KEY)
    assert same[0] == same[1] != other
    assert network_hash(parse_address("192.0.2.1"), KEY) != network_hash(parse_address("192.0.2.1"), b"j" * 32)
    assert len(other) == 32


def test_addresses_of_both_families_over_one_socket() -> None:
    assert parse_address("::ffff:192.0.2.1") == parse_address("192.0.2.1")
    assert parse_address("fe80::1%eth0").version == 6


@pytest.mark.parametrize(
    ("told", "edge"),
    [("192.0.2.1", True), ("::ffff:192.0.2.1", True), ("192.168.0.7", False), (None, None), ("my address", None)],
)
def test_edge(told: str | None, edge: bool | None) -> None:
    assert Origins([]).find(parse_address("192.0.2.1"), KEY, told).edge is edge


def test_the_network_key_lives_a_month_and_survives_restarts(tmp_path: Path) -> None:
    path = tmp_path / "network.key"
    key = NetworkKey(path)
    july = key.of(JULY)
    assert key.of(JULY + 1000) == july == NetworkKey(path).of(JULY)
    assert path.stat().st_mode & 0o077 == 0
    august = key.of(AUGUST)
    assert august != july
    assert july.hex() not in path.read_text()
    assert NetworkKey(path).of(AUGUST) == august
    assert (month_of(JULY), month_of(AUGUST)) == ("2026-07", "2026-08")


def test_the_collectors_key_is_adopted_for_its_month(tmp_path: Path) -> None:
    key = NetworkKey(tmp_path / "network.key")
    own = key.of(JULY)
    assert not key.adopt("2026-06", KEY, JULY)
    assert not key.adopt("2026-07", b"short", JULY)
    assert key.of(JULY) == own
    assert key.adopt("2026-07", KEY, JULY)
    assert key.of(JULY) == KEY == NetworkKey(tmp_path / "network.key").of(JULY)
    assert key.of(AUGUST) != KEY


def test_a_network_key_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "network.key"
    for content in ("", "[]", '{"month": "2026-07"}', '{"month": "2026-07", "key": "xy"}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="move it away"):
            NetworkKey(path)

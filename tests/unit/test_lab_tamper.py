# SPDX-License-Identifier: EUPL-1.2
"""A header put into a request never breaks the connection it is put into, however its segments are cut and repeated."""

from __future__ import annotations

import itertools
import random
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lab.classify import Match
from lab.middlebox import INTERNET, Middlebox
from lab.model import Link, Rule
from lab.packets import ACK, SYN, segment, transport_checksum, with_checksum, with_payload
from lab.tamper import MTU, HeaderInsertion

HOME, SERVER = bytes([198, 18, 1, 11]), bytes([192, 0, 2, 10])
HOME6, SERVER6 = bytes(15) + b"\1", bytes(15) + b"\2"
HEADER = "X-Subscriber: 4711"
ADDED = len(HEADER) + 2
REQUEST = b"POST /a HTTP/1.1\r\nHost: www.example.org\r\nContent-Length: 3000\r\n\r\n" + bytes(3000)
MARKED = REQUEST.replace(b"\r\n", b"\r\n" + HEADER.encode() + b"\r\n", 1)


def tcp(
    up: bool, sequence: int, ack: int, payload: bytes, *, flags: int = ACK, options: bytes = b"", six: bool = False
):  # type: ignore[no-untyped-def]
    ports = (40_000, 80) if up else (80, 40_000)
    offset = (20 + len(options)) // 4 << 4
    body = struct.pack("!HHIIBBHHH", *ports, sequence % 2**32, ack % 2**32, offset, flags, 500, 0, 0) + options
    if six:
        ends = HOME6 + SERVER6 if up else SERVER6 + HOME6
        head = struct.pack("!IHBB", 6 << 28, 20, 6, 64) + ends
    else:
        ends = HOME + SERVER if up else SERVER + HOME
        head = b"\x45\0\0\0" + b"\0\7\x40\0\x40\x06\0\0" + ends
    return with_payload(with_checksum(head + body), payload)


def joined(isn: int, packets: list[bytes]) -> bytes:
    """The stream that a receiver makes of segments; overlapping ones must agree."""
    stream: dict[int, int] = {}
    for one in packets:
        part = segment(one)
        for at, byte in enumerate(part.payload):
            place = (part.sequence + at - isn - 1) % 2**32
            assert stream.setdefault(place, byte) == byte, "two segments say different things of one byte"
    assert sorted(stream) == list(range(len(stream)))
    return bytes(stream[at] for at in range(len(stream)))


@settings(max_examples=150, deadline=None)
@given(
    st.sets(st.integers(1, len(REQUEST) - 1), max_size=8),
    st.lists(st.tuples(st.integers(0, len(REQUEST) - 1), st.integers(1, 1400)), max_size=6),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_the_server_gets_one_request_with_the_header(
    cuts: set[int], again: list[tuple[int, int]], isn: int, six: bool
) -> None:
    first = tcp(True, isn + 1, 9, REQUEST[:1400], six=six)
    insertion = HeaderInsertion.into(first, HEADER)
    assert insertion is not None
    edges = sorted({0, len(REQUEST), *cuts, *range(0, len(REQUEST), 1400)})
    pieces = list(itertools.pairwise(edges))
    pieces += [(at, min(len(REQUEST), at + size)) for at, size in again]
    out = [
        one
        for a, b in pieces
        for one in insertion.onward(tcp(True, isn + 1 + a, 9, REQUEST[a:b], six=six))
    ]  # fmt: skip
    assert joined(isn, out) == MARKED
    for one in out:
        assert transport_checksum(one) == 0
        assert len(one) <= MTU
    after = insertion.onward(tcp(True, isn + 1 + len(REQUEST), 77, b"", six=six))
    assert [segment(one).sequence for one in after] == [(isn + 1 + len(MARKED)) % 2**32]


@given(st.integers(0, 2**32 - 1), st.integers(0, 60) | st.integers(0, len(MARKED)), st.integers(0, 2000))
@example(isn=2**32 - 10, got=MARKED.index(b"4711"), sack=0)  # in the middle of what was put in
def test_what_the_server_acknowledges_is_what_the_client_sent(isn: int, got: int, sack: int) -> None:
    insertion = HeaderInsertion.into(tcp(True, isn + 1, 9, REQUEST[:1400]), HEADER)
    assert insertion is not None
    edges = [(isn + 1 + ADDED + 1000 + sack + add) % 2**32 for add in (0, 500)]
    options = b"\x01\x01\x05\x0a" + struct.pack("!II", *edges)
    back = insertion.back(tcp(False, 9, isn + 1 + got, b"answer", options=options))
    line = REQUEST.index(b"\r\n") + 2
    told = (segment(back).acknowledgement - isn - 1) % 2**32
    assert told == (got if got <= line else max(line, got - ADDED))
    assert MARKED[:got].replace(HEADER.encode() + b"\r\n", b"") [:line] == REQUEST[:told][:line]  # fmt: skip
    blocks = struct.unpack("!II", back[44:52])
    assert blocks == tuple((edge - ADDED) % 2**32 for edge in edges)
    assert (segment(back).payload, transport_checksum(back)) == (b"answer", 0)


@pytest.mark.parametrize("host", ["www.example.org", "www.example.net"])
def test_the_operator_marks_the_requests_that_a_rule_means(host: str) -> None:
    box = Middlebox([HOME], Link(rtt_ms=2), [Rule(Match(http_host=("*.example.org",)), "http_header", header=HEADER)])
    request = REQUEST[:200].replace(b"www.example.org", host.encode())
    rng = random.Random(3)
    cut = rng.randrange(30, 60)
    box.from_subscriber(0, tcp(True, 99, 0, b"", flags=SYN), 0.0)
    box.from_internet(tcp(False, 8, 100, b"", flags=SYN | ACK), 0.0)
    for a, b in ((0, cut), (cut, 200)):
        box.from_subscriber(0, tcp(True, 100 + a, 9, request[a:b]), 0.0)
    box.from_internet(tcp(False, 9, 100 + 200 + ADDED, b""), 0.1)
    out = box.poll(1.0)[0]
    stream = joined(99, [body for port, body in out if port == INTERNET and segment(body).payload])
    acked = [segment(body).acknowledgement for port, body in out if port == 0][-1]
    if host.endswith("net"):
        assert (stream, acked, box.stats.treated) == (request, 300 + ADDED, {})
        return
    assert stream.replace(HEADER.encode() + b"\r\n", b"") == request
    assert HEADER.encode() in stream.split(b"\r\n")
    assert (acked, box.stats.treated) == (300, {"http_header": 1})


def test_what_has_no_line_is_left_alone() -> None:
    for payload in (b"", b"GET / HT", b"\r\nGET"):
        assert HeaderInsertion.into(tcp(True, 1, 1, payload), HEADER) is None

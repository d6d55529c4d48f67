# SPDX-License-Identifier: EUPL-1.2
"""Everything the emulated operator does to IPv4 it does to IPv6, with checksums over the right pseudo-header."""

from __future__ import annotations

import socket
import ssl
import struct

import pytest

from lab.classify import Match, dns_question
from lab.middlebox import INTERNET, Middlebox
from lab.model import Link, Rule
from lab.packets import ACK, RST, SYN, datagram, segment, transport_checksum, with_checksum

SERVER = socket.inet_pton(socket.AF_INET6, "2001:db8:0:1::10")
HOME = socket.inet_pton(socket.AF_INET6, "2001:db8:111::11")
LINE = Link(down_mbps=100, up_mbps=100, rtt_ms=20, buffer_ms=100, family=6)
NAME = "rr1---sn-4g5e6nzz.googlevideo.com"
VIDEO = Match(sni=("*.googlevideo.com",))
ISN = 4_294_967_000


def hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=NAME).do_handshake()
    return outgoing.read()


def packet(up: bool, proto: int, body: bytes) -> bytes:
    ends = HOME + SERVER if up else SERVER + HOME
    return with_checksum(struct.pack("!IHBB", 6 << 28, len(body), proto, 64) + ends + body)


def tcp(up: bool, sequence: int, ack: int, flags: int, payload: bytes = b"", *, options: bytes = b"") -> bytes:
    ports = (40_000, 443) if up else (443, 40_000)
    offset = (20 + len(options)) // 4 << 4
    head = struct.pack("!HHIIBBHHH", *ports, sequence % 2**32, ack % 2**32, offset, flags, 500, 0, 0)
    return packet(up, 6, head + options + payload)


def drained(box: Middlebox, now: float = 0.0) -> list[tuple[float, int, bytes]]:
    out: list[tuple[float, int, bytes]] = []
    while True:
        due, upcoming = box.poll(now)
        out += [(now, port, body) for port, body in due]
        if upcoming is None:
            return out
        now = upcoming


def opened(*rules: Rule) -> Middlebox:
    """A connection whose hello was sent in two segments, out of order."""
    box = Middlebox([HOME], LINE, rules)
    box.from_subscriber(0, tcp(True, ISN, 0, SYN), 0.0)
    box.from_internet(tcp(False, 77, ISN + 1, SYN | ACK), 0.0)
    box.from_subscriber(0, tcp(True, ISN + 1, 78, ACK), 0.0)
    drained(box)
    said = hello()
    box.from_subscriber(0, tcp(True, ISN + 1 + 200, 78, ACK, said[200:]), 0.1)
    box.from_subscriber(0, tcp(True, ISN + 1, 78, ACK, said[:200]), 0.1)
    return box


def correct(body: bytes) -> bool:
    """Length and checksum, the latter summed here once more as RFC 8200 section 8.1 lays the pseudo-header out."""
    size = int.from_bytes(body[4:6], "big")
    laid_out = body[8:40] + struct.pack("!II", size, body[6]) + body[40:] + bytes(size % 2)
    total = sum(struct.unpack(f"!{len(laid_out) // 2}H", laid_out))
    fits = total % 0xFFFF == 0  # ones' complement: the sum of everything is all ones
    return body[0] >> 4 == 6 and 40 + size == len(body) and fits and transport_checksum(body) == 0


def test_neutral_packets_pass_unchanged() -> None:
    box = opened()
    assert [port for _, port, _ in drained(box, 0.1)] == [INTERNET, INTERNET]
    box.from_subscriber(0, b"\x60" + bytes(7) + SERVER + HOME, 0.2)  # not his address
    assert box.stats.foreign == 1


def test_a_name_is_policed() -> None:
    box = opened(Rule(VIDEO, "police", down_mbps=1, burst_kb=16))
    for number in range(100):
        box.from_internet(tcp(False, 78 + number * 1000, 0, ACK, bytes(1000)), 0.2)
    arrived = [body for _, port, body in drained(box, 0.2) if port == 0]
    assert len(arrived) == 16_000 // 1060
    other = Middlebox([HOME], LINE, [Rule(Match(sni=("*.example.org",)), "police", down_mbps=1, burst_kb=16)])
    for number in range(50):
        other.from_internet(tcp(False, 78 + number * 1000, 0, ACK, bytes(1000)), 0.2)
    assert len(drained(other, 0.2)) == 50


def test_a_name_is_reset_at_both_ends_with_the_right_numbers() -> None:
    out = drained(opened(Rule(VIDEO, "reset")), 0.1)
    to_home = [body for _, port, body in out if port == 0]
    onward = [body for _, port, body in out if port == INTERNET and segment(body).flags & RST]
    assert to_home
    assert onward
    for body in (*to_home, *onward):
        assert correct(body)
        assert segment(body).flags & RST
    assert {segment(body).sequence for body in to_home} == {78}
    assert onward[0][8:40] == HOME + SERVER
    assert to_home[0][8:40] == SERVER + HOME
    assert segment(onward[0]).sequence == ISN + 1


def test_a_name_is_blocked_or_dropped() -> None:
    for rule in (Rule(VIDEO, "block"), Rule(VIDEO, "drop", loss=1.0)):
        box = opened(rule)
        drained(box, 0.1)
        box.from_internet(tcp(False, 78, 0, ACK, bytes(500)), 0.2)
        assert drained(box, 0.2) == []


def test_the_traffic_class_and_syn_options_are_rewritten() -> None:
    box = Middlebox([HOME], LINE, [Rule(Match(), "dscp", dscp=46)])
    marked = bytearray(tcp(False, 1, 2, ACK, b"x"))
    marked[1] = 0x10 | 0x0A  # the lowest two bits of the class are ECN, the rest of the byte the flow label
    box.from_internet(bytes(marked), 0.0)
    [(_, _, body)] = drained(box)
    word = int.from_bytes(body[:4], "big")
    assert (word >> 28, word >> 22 & 63, word >> 20 & 3, word & 0xFFFFF) == (6, 46, 1, 0xA0000)
    assert correct(body)
    box = Middlebox([HOME], LINE, [Rule(Match(), "strip_option", option="wscale")])
    box.from_subscriber(0, tcp(True, ISN, 0, SYN, options=b"\x02\x04\x05\xa0\x01\x03\x03\x07"), 0.0)
    [(_, _, body)] = drained(box)
    assert body[60:] == b"\x02\x04\x05\xa0\x01\x01\x01\x01"
    assert correct(body)


def test_dns_is_answered_by_kind_of_question() -> None:
    for kind, answer, ends in (
        (28, "2001:db8::99", socket.inet_pton(socket.AF_INET6, "2001:db8::99")),
        (1, "192.0.2.99", bytes([192, 0, 2, 99])),
        (28, "192.0.2.99", b"\0\x1c\0\1"),  # an address of the other kind: an empty answer
    ):
        box = Middlebox([HOME], LINE, [Rule(Match(dns=("*.example.org",)), "dns", answer=answer)])
        question = b"\5video\7example\3org\0" + kind.to_bytes(2, "big") + b"\0\1"
        query = b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + question
        box.from_subscriber(0, packet(True, 17, struct.pack("!HHHH", 5353, 53, 8 + len(query), 0) + query), 0.0)
        [(_, port, body)] = drained(box)
        assert port == 0
        assert correct(body)
        assert dns_question(datagram(body)) == "video.example.org"
        assert datagram(body).endswith(ends)


def test_extension_headers_are_carried_unclassified() -> None:
    box = Middlebox([HOME], LINE, [Rule(Match(), "drop", loss=1.0), Rule(Match(proto="tcp"), "block")])
    box.from_internet(struct.pack("!IHBB", 6 << 28, 40, 44, 64) + SERVER + HOME + bytes(40), 0.0)
    assert [port for _, port, _ in drained(box)] == [0]

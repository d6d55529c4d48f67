# SPDX-License-Identifier: EUPL-1.2
"""Targets: the emulated operator, which looks into whatever goes through it. Spec: spec/lab.md."""

from __future__ import annotations

import socket
import struct

from fuzz_hello_oracle import hellos
from fuzz_registry import target

from lab.classify import MAX_STREAM, TCP, UDP, FlowFacts, Match, name_matches
from lab.middlebox import Middlebox
from lab.model import Link, Rule
from lab.packets import checksum

HOME, SERVER = socket.inet_aton("198.18.1.11"), socket.inet_aton("192.0.2.10")
STREAMS = (
    b"GET /x HTTP/1.1\r\nHost: Example.org:80\r\nA: b\r\n\r\n",
    b"\x13BitTorrent protocol" + bytes(48),
    b"INVITE sip:a@b SIP/2.0\r\n\r\n",
    b"\x17opaque",
)
DATAGRAMS = (
    struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + b"\x03www\x07example\x03org\0\0\x01\0\x01",
    struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + b"\x04w\xffw\xe9\x03org\0\0\x01\0\x01",
    b"\x01\0\0\0" + bytes(144),
    b"\x80\x60" + bytes(20),
    b"\0\x01\0\0\x21\x12\xa4\x42" + bytes(12),
    b"\xc3\0\0\0\x01\x08" + bytes(1200),
    b"d1:ad2:id20:" + bytes(20),
)


@target(seeds=lambda: [b"\x05" + seed for seed in (*hellos(), *STREAMS)], most=24_000, examples=100)
def fuzz_stream(data: bytes) -> None:
    """What is learned of a TCP flow does not depend on how its bytes were cut, nor on repetitions."""
    cut, stream = (data[0] % 64 + 1 if data else 1), data[1:]
    whole, pieces = (FlowFacts(proto=TCP, server_port=443) for _ in range(2))
    for facts in (whole, pieces):
        facts.syn(0xFFFFFF00)
    at = 0
    while at < min(len(stream), MAX_STREAM) and not pieces.complete:
        pieces.client_segment((0xFFFFFF01 + at) & 0xFFFFFFFF, stream[at : at + cut])
        pieces.client_segment((0xFFFFFF01 + at) & 0xFFFFFFFF, stream[at : at + cut])
        at += cut
        cut = min(cut * 2, 1460)
    if stream:
        whole.client_segment(0xFFFFFF01, stream)
    assert (whole.payload, whole.sni, whole.http_host) == (pieces.payload, pieces.sni, pieces.http_host)


@target(seeds=lambda: DATAGRAMS, most=1500, examples=80)
def fuzz_datagram(data: bytes) -> None:
    """One datagram is always of some class, to or from any port."""
    for port in (53, 443, 5060):
        facts = FlowFacts(proto=UDP, server_port=port)
        facts.datagram(data, "up")
        facts.datagram(data, "down")
        assert facts.dns is None or (port == 53 and facts.dns == facts.dns.lower())


@target(seeds=lambda: [b"*.example.org|a.example.org", b"*a*a*a*b|" + b"a" * 60, b"|", b"a.|A", b"**|"], most=400)
def fuzz_name_pattern(data: bytes) -> None:
    """Matching a name is linear however many stars there are, and every name matches itself and a star."""
    pattern, _, name = data.decode("latin-1").partition("|")
    name_matches(pattern, name)
    if "*" not in name:
        assert name_matches(name, name)


RULES = tuple(
    Rule(match=match, action=action, **options)
    for match, action, options in (
        (Match(dns=("*.example.org",)), "dns", {"answer": "203.0.113.5"}),
        (Match(sni=("*.googlevideo.com",)), "reset", {}),
        (Match(proto="tcp", port=((80, 81),)), "strip_option", {"option": "sack"}),
        (Match(proto="udp", payload=("rtp", "sip")), "dscp", {"dscp": 8}),
        (Match(proto="udp", payload=("wireguard",)), "block", {}),
        (Match(proto="tcp", port=((22, 22),)), "reset", {}),
    )
)


def ip(body: bytes, proto: int, way: str) -> bytes:
    """An IPv4 packet of the subscriber's."""
    ends = HOME + SERVER if way == "up" else SERVER + HOME
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 7, 0x4000, 64, proto, 0) + ends
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def packets() -> list[bytes]:
    """Lists of packets, each with its length before it (2 bytes)."""

    def tcp(flags: int, payload: bytes = b"", port: int = 443, options: bytes = b"") -> bytes:
        size = 20 + len(options)
        return ip(
            struct.pack("!HHIIBBHHH", 40000, port, 7, 9, size // 4 << 4, flags, 500, 0, 0) + options + payload, 6, "up"
        )

    def udp(payload: bytes, port: int) -> bytes:
        return ip(struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload, 17, "up")

    flows = [
        [tcp(2), tcp(16), tcp(24, hellos()[0])],
        [tcp(2, port=80, options=b"\x02\x04\x05\xb4\x04\x02\x01\x01"), tcp(24, STREAMS[0], port=80)],
        [tcp(2, port=22), tcp(16, b"SSH-2.0", port=22)],
        [udp(DATAGRAMS[0], 53)],
        [udp(payload, 5060) for payload in DATAGRAMS],
    ]
    return [b"".join(struct.pack("!H", len(one)) + one for one in flow) for flow in flows]


@target(seeds=packets, most=4000, examples=80)
def fuzz_middlebox(data: bytes) -> None:
    """Any packets, whole or broken, go through or are dropped; headers that the operator wrote have right checksums."""
    box = Middlebox([HOME], Link(down_mbps=100, up_mbps=100, rtt_ms=2, buffer_ms=100), RULES)
    at, now = 0, 0.0
    while at + 2 <= len(data) and now < 0.1:
        size = data[at] << 8 | data[at + 1]
        packet = data[at + 2 : at + 2 + size]
        at, now = at + 2 + size, now + 0.001
        if len(packet) < 20:  # the kernel hands over nothing shorter than a header
            continue
        box.from_subscriber(0, packet, now)
        box.from_internet(packet, now)
        box.poll(now)
    out, _ = box.poll(now + 10)
    for _, packet in out:
        if packet[0] == 0x45 and packet[:20] not in data:
            assert checksum(packet[:20]) in {0, 0xFFFF}, "a forged or changed packet has a wrong header checksum"

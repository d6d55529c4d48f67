# SPDX-License-Identifier: EUPL-1.2
"""Reading and writing the IPv4 and IPv6 packets that a middlebox forges or changes, with correct checksums.

Packets that are only forwarded are never parsed further than their flow key. spec/lab.md section 3;
RFC 791 (IPv4), RFC 8200 (IPv6), RFC 9293 (TCP; section 3.5.2 says what a valid reset is), RFC 1071 (checksum).
"""

from __future__ import annotations

import array
import ipaddress
import struct
import sys
from typing import Final, NamedTuple

from lab.classify import TCP, UDP

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
ACK: Final = 0x10

_LITTLE = sys.byteorder == "little"


class Segment(NamedTuple):
    """The TCP fields a middlebox looks at."""

    sequence: int
    acknowledgement: int
    flags: int
    payload: bytes


def checksum(data: bytes, start: int = 0) -> int:
    """The internet checksum (RFC 1071) of data, added to a partial sum."""
    if len(data) % 2:
        data += b"\0"
    words = array.array("H", data)
    if _LITTLE:
        words.byteswap()
    total = start + sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def header_size(packet: bytes) -> int:
    """Bytes before the transport header; IPv6 extension headers count as transport."""
    return 40 if packet[0] >> 4 == 6 else (packet[0] & 15) * 4


def proto_of(packet: bytes) -> int:
    """The transport protocol's number."""
    return packet[6] if packet[0] >> 4 == 6 else packet[9]


def tcp_flags(packet: bytes) -> int:
    """The flags of a TCP packet."""
    return packet[header_size(packet) + 13]


def transport_checksum(packet: bytes) -> int:
    """What a TCP or UDP packet's checksum field would have to be if that field were zero.

    The sum over the pseudo-header of RFC 9293 section 3.1 (IPv4) or RFC 8200 section 8.1 (IPv6).
    """
    header = header_size(packet)
    addresses = packet[8:40] if packet[0] >> 4 == 6 else packet[12:20]
    words = struct.unpack(f"!{len(addresses) // 2}H", addresses)
    return checksum(packet[header:], sum(words) + proto_of(packet) + len(packet) - header)


def with_checksum(packet: bytes) -> bytes:
    """The TCP or UDP packet with the transport checksum that it should have."""
    udp = proto_of(packet) == UDP
    at = header_size(packet) + (6 if udp else 16)
    zeroed = packet[:at] + b"\0\0" + packet[at + 2 :]
    found = transport_checksum(zeroed)
    return zeroed[:at] + struct.pack("!H", found or 0xFFFF if udp else found) + zeroed[at + 2 :]


def with_payload(packet: bytes, payload: bytes) -> bytes:
    """The TCP packet with other bytes in it; lengths and checksums are right again."""
    start = header_size(packet)
    whole = packet[: start + (packet[start + 12] >> 4) * 4] + payload
    if packet[0] >> 4 == 6:
        whole = whole[:4] + struct.pack("!H", len(whole) - 40) + whole[6:]
    else:
        head = whole[:2] + struct.pack("!H", len(whole)) + whole[4:10] + b"\0\0" + whole[12:start]
        whole = head[:10] + struct.pack("!H", checksum(head)) + head[12:] + whole[start:]
    return with_checksum(whole)


def _end(packet: bytes) -> int:
    """The packet's length by its IP header, not by the buffer."""
    return 40 + (packet[4] << 8 | packet[5]) if packet[0] >> 4 == 6 else packet[2] << 8 | packet[3]


def segment(packet: bytes) -> Segment:
    """The TCP segment in a packet."""
    at = header_size(packet)
    sequence, acknowledgement = struct.unpack_from("!II", packet, at + 4)
    return Segment(sequence, acknowledgement, packet[at + 13], packet[at + (packet[at + 12] >> 4) * 4 : _end(packet)])


def datagram(packet: bytes) -> bytes:
    """The UDP payload in a packet."""
    return packet[header_size(packet) + 8 : _end(packet)]


def _ip_packet(like: bytes, body: bytes, *, back: bool) -> bytes:
    """A packet with a transport body, between the addresses of another, swapped when it goes back; checksum right."""
    proto = proto_of(like)
    if like[0] >> 4 == 6:
        source, destination = like[8:24], like[24:40]
        head = struct.pack("!IHBB", 6 << 28, len(body), proto, 64)
    else:
        source, destination = like[12:16], like[16:20]
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, proto, 0)
    ends = destination + source if back else source + destination
    if like[0] >> 4 != 6:
        head = head[:10] + struct.pack("!H", checksum(head + ends))
    return with_checksum(head + ends + body)


def _reset(packet: bytes, sequence: int, acknowledgement: int, flags: int, *, back: bool) -> bytes:
    """A RST with the packet's addresses and ports, swapped when it goes back to its sender."""
    at = header_size(packet)
    ports = packet[at : at + 4]
    if back:
        ports = ports[2:] + ports[:2]
    body = ports + struct.pack("!IIBBHHH", sequence, acknowledgement, 0x50, flags, 0, 0, 0)
    return _ip_packet(packet, body, back=back)


def resets(packet: bytes) -> tuple[bytes | None, bytes]:
    """The resets an injector sends instead of a packet: (onward to its receiver, back to its sender).

    Onward: the sequence number is the dropped packet's own, the next one its receiver waits for. Back: it is
    what the sender acknowledged last, so it is exactly the next one the sender waits for (RFC 5961 accepts
    nothing else). A SYN is answered as a closed port answers it (RFC 9293 section 3.10.7.1) and nothing goes
    onward, since the receiver knows of no connection.
    """
    tcp = segment(packet)
    length = len(tcp.payload) + bool(tcp.flags & SYN) + bool(tcp.flags & FIN)
    after = (tcp.sequence + length) & 0xFFFFFFFF
    back = _reset(packet, tcp.acknowledgement, after, RST | ACK, back=True)
    if not tcp.flags & ACK:
        return None, back
    return _reset(packet, tcp.sequence, tcp.acknowledgement, RST | ACK, back=False), back


def payload_start(packet: bytes) -> int:
    """Where the payload of a TCP or UDP packet begins; the packet's length where it has none, or is neither."""
    at, proto = header_size(packet), proto_of(packet)
    if proto not in {TCP, UDP} or (at + 12 >= len(packet) and proto == TCP):
        return len(packet)
    return min(at + ((packet[at + 12] >> 4) * 4 if proto == TCP else 8), len(packet))


def with_wrong_byte(packet: bytes, where: float) -> bytes:
    """A TCP or UDP packet with another byte in its payload, `where` from 0 to 1 of it, and a checksum that fits."""
    start, end = payload_start(packet), min(_end(packet), len(packet))
    if start >= end:
        return packet
    changed = bytearray(packet)
    changed[start + min(int(where * (end - start)), end - start - 1)] ^= 0xFF
    return with_checksum(bytes(changed))


def with_dscp(packet: bytes, dscp: int) -> bytes:
    """The packet with another DSCP (0 to 63); ECN bits stay; an IPv4 header's checksum is right again."""
    if packet[0] >> 4 == 6:
        word = int.from_bytes(packet[:4], "big") & ~(0x3F << 22) | dscp << 22
        return word.to_bytes(4, "big") + packet[4:]
    head = bytearray(packet[:20])
    head[1] = dscp << 2 | head[1] & 3
    head[10:12] = b"\0\0"
    head[10:12] = struct.pack("!H", checksum(bytes(head)))
    return bytes(head) + packet[20:]


def without_option(packet: bytes, kind: int) -> bytes:
    """A SYN with one TCP option overwritten by padding (NOP), as option-stripping boxes do."""
    changed = bytearray(packet)
    start = header_size(packet)
    at, end = start + 20, min(start + (packet[start + 12] >> 4) * 4, len(packet))
    found = False
    while at < end and packet[at] != 0:
        if packet[at] == 1:
            at += 1
            continue
        length = packet[at + 1] if at + 1 < end else 0
        if length < 2 or at + length > end:
            break
        if packet[at] == kind:
            changed[at : at + length] = b"\x01" * length
            found = True
        at += length
    return with_checksum(bytes(changed)) if found else packet


_RECORD_OF: Final = {b"\0\x01": 4, b"\0\x1c": 6}  # question types A and AAAA, and the address family of their answer


def dns_answer(query: bytes, answer: str) -> bytes:
    """The forged answer to a DNS query packet: `nxdomain`, `refused`, or an address for a question of its kind."""
    message = datagram(query)
    at = 12
    while at < len(message) and message[at]:
        at += 1 + message[at]
    question = message[12 : at + 5]
    records, code = b"", {"nxdomain": 3, "refused": 5}.get(answer, 0)
    asked = message[at + 1 : at + 3]
    if code == 0 and (address := ipaddress.ip_address(answer)).version == _RECORD_OF.get(asked):
        raw = address.packed
        records = b"\xc0\x0c" + asked + b"\0\x01" + struct.pack("!IH", 60, len(raw)) + raw
    flags = 0x8080 | (message[2] & 0x01) << 8 | code  # QR, recursion desired as asked, recursion available
    body = message[:2] + struct.pack("!HHHHH", flags, 1, 1 if records else 0, 0, 0) + question + records
    start = header_size(query)
    ports = query[start + 2 : start + 4] + query[start : start + 2]
    return _ip_packet(query, ports + struct.pack("!HH", 8 + len(body), 0) + body, back=True)

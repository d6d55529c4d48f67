# SPDX-License-Identifier: EUPL-1.2
"""Reading and writing the IPv4 packets that a middlebox forges or changes, with correct checksums.

Packets that are only forwarded are never parsed further than their flow key. spec/lab.md section 3;
RFC 791 (IPv4), RFC 9293 (TCP; section 3.5.2 says what a valid reset is), RFC 1624 (checksum updates).
"""

from __future__ import annotations

import array
import struct
import sys
from typing import Final, NamedTuple

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


def transport_checksum(packet: bytes) -> int:
    """What a TCP or UDP packet's checksum field would have to be if that field were zero (RFC 9293, 768)."""
    header = (packet[0] & 15) * 4
    pseudo = sum(struct.unpack("!4H", packet[12:20])) + packet[9] + len(packet) - header
    return checksum(packet[header:], pseudo)


def segment(packet: bytes) -> Segment:
    """The TCP segment in an IPv4 packet without options; its length is the IP header's, not the buffer's."""
    sequence, acknowledgement = struct.unpack_from("!II", packet, 24)
    end = packet[2] << 8 | packet[3]
    return Segment(sequence, acknowledgement, packet[33], packet[20 + (packet[32] >> 4) * 4 : end])


def datagram(packet: bytes) -> bytes:
    """The UDP payload of an IPv4 packet without options."""
    return packet[28 : packet[2] << 8 | packet[3]]


def _ip_header(source: bytes, destination: bytes, proto: int, size: int) -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + size, 0, 0x4000, 64, proto, 0, source, destination)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:]


def _reset(packet: bytes, sequence: int, acknowledgement: int, flags: int, *, back: bool) -> bytes:
    """A RST with the packet's addresses and ports, swapped when it goes back to its sender."""
    source, destination = packet[12:16], packet[16:20]
    ports = packet[20:24]
    if back:
        source, destination = destination, source
        ports = ports[2:] + ports[:2]
    body = ports + struct.pack("!IIBBHHH", sequence, acknowledgement, 0x50, flags, 0, 0, 0)
    whole = _ip_header(source, destination, 6, 20) + body
    return whole[:36] + struct.pack("!H", transport_checksum(whole)) + whole[38:]


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


def with_dscp(packet: bytes, dscp: int) -> bytes:
    """The packet with another DSCP (0 to 63); ECN bits stay; the header checksum is right again."""
    head = bytearray(packet[:20])
    head[1] = dscp << 2 | head[1] & 3
    head[10:12] = b"\0\0"
    head[10:12] = struct.pack("!H", checksum(bytes(head)))
    return bytes(head) + packet[20:]


def without_option(packet: bytes, kind: int) -> bytes:
    """A SYN with one TCP option overwritten by padding (NOP), as option-stripping boxes do."""
    changed = bytearray(packet)
    at, end = 40, 20 + (packet[32] >> 4) * 4
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
    if not found:
        return packet
    changed[36:38] = b"\0\0"
    changed[36:38] = struct.pack("!H", transport_checksum(bytes(changed)))
    return bytes(changed)


def dns_answer(query: bytes, answer: str) -> bytes:
    """The forged answer to a DNS query packet: `nxdomain`, `refused`, or an IPv4 address for its A question."""
    message = datagram(query)
    at = 12
    while at < len(message) and message[at]:
        at += 1 + message[at]
    question = message[12 : at + 5]
    records, code = b"", {"nxdomain": 3, "refused": 5}.get(answer, 0)
    if code == 0 and message[at + 1 : at + 3] == b"\0\x01":
        address = bytes(int(part) for part in answer.split("."))
        records = b"\xc0\x0c\0\x01\0\x01" + struct.pack("!IH", 60, 4) + address
    flags = 0x8080 | (message[2] & 0x01) << 8 | code  # QR, recursion desired as asked, recursion available
    body = message[:2] + struct.pack("!HHHHH", flags, 1, 1 if records else 0, 0, 0) + question + records
    ports = query[22:24] + query[20:22]
    whole = _ip_header(query[16:20], query[12:16], 17, 8 + len(body))
    whole += ports + struct.pack("!HH", 8 + len(body), 0) + body
    return whole[:26] + struct.pack("!H", transport_checksum(whole) or 0xFFFF) + whole[28:]

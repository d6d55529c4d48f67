# SPDX-License-Identifier: EUPL-1.2
"""Forged and changed packets have the checksums and numbers that real TCP insists on."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from lab.classify import dns_question
from lab.packets import (
    ACK,
    RST,
    SYN,
    checksum,
    datagram,
    dns_answer,
    resets,
    segment,
    transport_checksum,
    with_dscp,
    without_option,
)

CLIENT, SERVER = bytes([198, 18, 1, 11]), bytes([192, 0, 2, 10])


def tcp_packet(sequence: int, ack: int, flags: int, payload: bytes = b"", options: bytes = b"") -> bytes:
    """A correct IPv4/TCP packet from the client to port 443 of the server."""
    size = 40 + len(options) + len(payload)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, size, 7, 0x4000, 64, 6, 0, CLIENT, SERVER)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    offset = (20 + len(options)) // 4 << 4
    body = struct.pack("!HHIIBBHHH", 40000, 443, sequence, ack, offset, flags, 500, 0, 0) + options + payload
    whole = head + body
    return whole[:36] + struct.pack("!H", transport_checksum(whole)) + whole[38:]


def udp_packet(payload: bytes, port: int = 53) -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(payload), 7, 0, 64, 17, 0, CLIENT, SERVER)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return head + struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload


def correct(packet: bytes) -> bool:
    """Whether both checksums sum up to what RFC 1071 asks for, and the length is true."""
    length = packet[2] << 8 | packet[3]
    return checksum(packet[:20]) == 0 and transport_checksum(packet) == 0 and length == len(packet)


def test_checksum_of_rfc_1071() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2
    assert checksum(b"\xff") == 0x00FF


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=100))
def test_resets_hit_the_very_next_byte_of_both_ends(sequence: int, ack: int, payload: bytes) -> None:
    packet = tcp_packet(sequence, ack, ACK, payload)
    assert correct(packet)
    onward, back = resets(packet)
    assert onward is not None
    assert correct(onward)
    assert correct(back)
    assert (onward[12:20], back[12:20]) == (CLIENT + SERVER, SERVER + CLIENT)
    assert (onward[20:24], back[20:24]) == (struct.pack("!HH", 40000, 443), struct.pack("!HH", 443, 40000))
    assert segment(onward).sequence == sequence
    assert segment(back).sequence == ack
    assert segment(back).acknowledgement == (sequence + len(payload)) % 2**32
    assert segment(onward).flags & segment(back).flags & RST


def test_a_syn_is_reset_as_by_a_closed_port() -> None:
    onward, back = resets(tcp_packet(1000, 0, SYN))
    assert onward is None
    assert (segment(back).sequence, segment(back).acknowledgement) == (0, 1001)


@given(st.integers(0, 63), st.binary(max_size=50))
def test_dscp_is_rewritten_with_a_correct_header(dscp: int, payload: bytes) -> None:
    packet = tcp_packet(1, 2, ACK, payload)
    changed = with_dscp(packet, dscp)
    assert changed[1] >> 2 == dscp
    assert correct(changed)
    assert changed[20:] == packet[20:]


def test_one_option_is_padded_over() -> None:
    options = b"\x02\x04\x05\xb4" + b"\x04\x02" + b"\x08\x0a" + bytes(8) + b"\x01" + b"\x03\x03\x07"
    packet = tcp_packet(1, 0, SYN, options=options)
    changed = without_option(packet, 3)
    assert correct(changed)
    assert changed[40:] == options[:-3] + b"\x01\x01\x01"
    assert without_option(packet, 34) is packet
    broken = tcp_packet(1, 0, SYN, options=b"\x02\x00\x00\x00")
    assert without_option(broken, 3) is broken


def test_dns_answers_are_forged() -> None:
    question = b"\5video\7example\3org\0\0\1\0\1"
    query = udp_packet(b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + question)
    forged = dns_answer(query, "192.0.2.99")
    assert correct(forged)
    message = datagram(forged)
    assert (message[:2], dns_question(message)) == (b"\x12\x34", "video.example.org")
    assert message[2] & 0x81 == 0x81
    assert message[-4:] == bytes([192, 0, 2, 99])
    assert forged[12:20] == SERVER + CLIENT
    assert datagram(dns_answer(query, "nxdomain"))[3] & 15 == 3
    assert datagram(dns_answer(query, "refused"))[3] & 15 == 5

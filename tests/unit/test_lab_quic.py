# SPDX-License-Identifier: EUPL-1.2
"""The emulated operator reads names in QUIC Initials, however the hello is cut, and is not confused by others."""

from __future__ import annotations

import itertools
import random
import ssl

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.classify import FlowFacts, Match, datagram_class, stream_class
from lab.quic import MAX_DATAGRAMS, InitialReader, Keys, NotInitial
from probe.profiles import quic as product

NAME = "rr1---sn-4g5e6nzz.googlevideo.com"
CONNECTION = bytes.fromhex("8394c8f03e515708")


def hello() -> bytes:
    """A real ClientHello message (without the record around it)."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=NAME).do_handshake()
    return outgoing.read()[5:]


HELLO = hello()


def crypto(offset: int, piece: bytes) -> bytes:
    return b"\x06" + (0x80000000 | offset).to_bytes(4, "big") + (0x4000 | len(piece)).to_bytes(2, "big") + piece


def initial(frames: bytes, number: int, *, connection: bytes = CONNECTION, keys: bytes = CONNECTION) -> bytes:
    """A protected Initial, built by RFC 9001 section 5.3 and 5.4, padded to 1200 bytes where it is shorter."""
    secret = Keys(keys)
    width = 1 if number < 256 else 2
    raw = number.to_bytes(width, "big")
    head = bytes([0xC0 | width - 1]) + b"\0\0\0\1" + bytes([len(connection)]) + connection + b"\0" + b"\x01t"
    frames = frames.ljust(max(4, 1200 - len(head) - 2 - width - 16), b"\0")
    head += (0x4000 | width + len(frames) + 16).to_bytes(2, "big") + raw
    nonce = (int.from_bytes(secret.iv, "big") ^ number).to_bytes(12, "big")
    sealed = AESGCM(secret.key).encrypt(nonce, frames, head)
    at = len(head) - width
    mask = secret.mask((head + sealed)[at + 4 : at + 20])
    hidden = bytes(a ^ b for a, b in zip(raw, mask[1:], strict=False))
    return bytes([head[0] ^ mask[0] & 15]) + head[1:at] + hidden + sealed


def test_the_keys_are_those_of_the_rfc() -> None:
    """RFC 9001, appendix A.1."""
    keys = Keys(CONNECTION)
    assert keys.key.hex() == "1f369613dd76d5467730efcbe3b1a22d"
    assert keys.iv.hex() == "fa044b2f42a3fd3b46fb255c"
    assert keys.header.hex() == "9f50449e04a0e810283a1e9933adedd2"
    assert keys.mask(bytes.fromhex("d1b1c98dd7689fb8ec11d242b123dc9b")).hex() == "437b9aec36"  # appendix A.2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, len(HELLO) - 1), max_size=7),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
    st.sampled_from([0, 200, 300]),
)
def test_a_hello_cannot_hide_by_being_cut(cuts: list[int], packets: int, rng: random.Random, first: int) -> None:
    edges = sorted({0, len(HELLO), *cuts})
    frames = [crypto(a, HELLO[a:b]) for a, b in itertools.pairwise(edges)]
    frames.append(crypto(0, HELLO[: rng.randint(1, len(HELLO))]))  # retransmitted
    rng.shuffle(frames)
    parts = [b"\x01" + b"\0" * rng.randint(0, 9) + b"".join(frames[i::packets]) for i in range(packets)]
    facts = FlowFacts(proto=17, server_port=443)
    for number, part in enumerate(parts):
        assert facts.complete is (facts.quic_sni is not None)
        facts.datagram(initial(part, first + number), "up")
        facts.datagram(b"\xcd" * 1200, "down")  # the server's answer says nothing of the name
    assert (facts.payload, facts.quic_sni, facts.sni, facts.complete) == ("quic", NAME, None, True)
    assert Match(quic_sni=("*.googlevideo.com",), proto="udp").fits(facts)
    assert not Match(quic_sni=("*.example.org",)).fits(facts)
    assert not Match(sni=("*.googlevideo.com",)).fits(facts)


def test_later_initials_have_the_keys_of_the_first_and_coalesced_packets_are_read() -> None:
    reader = InitialReader()
    half = len(HELLO) // 2
    ack = b"\x02\x00\x00\x00\x00"
    assert reader.add(initial(crypto(half, HELLO[half:]), 0)) is None
    # The client answers with the connection id that the server chose, under the old keys.
    second = initial(ack + crypto(0, HELLO[:half]), 1, connection=b"server's")
    assert reader.add(second + b"\xe0\0\0\0\1" + bytes(40)) == HELLO[4:]
    whole = InitialReader()
    assert whole.add(initial(crypto(0, HELLO[:half]), 0) + initial(crypto(half, HELLO[half:]), 1)) == HELLO[4:]


def test_the_products_own_initials_are_read() -> None:
    rng = random.Random(1)
    [opening] = product.openings(rng, 1)
    flight = product.initial(opening, "quic", NAME, alpn=("h3",), random_bytes=rng.randbytes)
    facts = FlowFacts(proto=17, server_port=443)
    facts.datagram(flight, "up")
    assert facts.quic_sni == NAME


def test_what_is_no_initial_of_a_client_ends_the_search() -> None:
    good = initial(crypto(0, HELLO), 0)
    for bad in (
        good[:1000],
        b"\xc0\0\0\0\2" + good[5:],  # another version
        good[:-1] + bytes([good[-1] ^ 1]),  # the tag is wrong
        initial(crypto(0, HELLO), 0, keys=b"others"),
        initial(crypto(0, b"\2" + HELLO[1:]), 0),  # a ServerHello
    ):
        facts = FlowFacts(proto=17, server_port=443)
        facts.datagram(bad.ljust(1200, b"\0"), "up")
        assert (facts.quic_sni, facts.complete) == (None, True)
    with pytest.raises(NotInitial):
        InitialReader().add(b"\xc0\0\0\0\1" + bytes([21]) + bytes(1200))


def test_memory_is_bounded() -> None:
    facts = FlowFacts(proto=17, server_port=443)
    for number in range(MAX_DATAGRAMS):
        assert not facts.complete
        facts.datagram(initial(crypto(2 + number * 900, bytes(900)), number), "up")  # never the first byte
    assert facts.complete
    assert facts.quic_sni is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=200), st.integers(0, 1300))
def test_arbitrary_bytes_never_break_it(head: bytes, frames: bytes, cut: int) -> None:
    for datagram in (b"\xc0\0\0\0\1" + head, initial(frames, 0)[:cut], initial(frames, 0)):
        facts = FlowFacts(proto=17, server_port=443)
        facts.datagram(datagram.ljust(1200, b"\0"), "up")
        facts.datagram(datagram, "up")


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"\x38" + bytes(41), "openvpn"),
        (b"\x38" + bytes(8), "opaque"),  # too short for a reset
        (b"\x50" + bytes(300), "openvpn"),
        (b"\x00\x01\x00\x08\x21\x12\xa4\x42" + bytes(20), "stun"),
        (b"\x00\x01\x00\x08\x21\x12\xa4\x43" + bytes(20), "opaque"),
    ],
)
def test_datagrams_of_tunnels_and_calls(payload: bytes, expected: str) -> None:
    assert datagram_class(payload) == expected


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"\x00\x2a\x38" + bytes(41), "openvpn"),
        (b"\x00\x02\x38" + bytes(41), "opaque"),
        (b"\x00\x01\x00\x08\x21\x12\xa4\x42" + bytes(20), "stun"),
        (b"\x00\xac\x80\x60" + bytes(20), "rtp"),  # RFC 4571
        (b"\x00\xac\x80\xc8" + bytes(20), "opaque"),
        (b"\x9a" + bytes(15), "opaque"),
    ],
)
def test_the_same_over_tcp(stream: bytes, expected: str) -> None:
    assert stream_class(stream) == expected
    facts = FlowFacts(proto=6, server_port=443)
    facts.syn(9)
    for at in range(len(stream)):
        facts.client_segment(10 + at, stream[at : at + 1])
    assert facts.payload == expected

# SPDX-License-Identifier: EUPL-1.2
"""The classifier must name a flow however its ClientHello is cut, ordered and repeated."""

from __future__ import annotations

import itertools
import random
import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.classify import (
    MAX_STREAM,
    FlowFacts,
    Incomplete,
    Match,
    client_hello,
    datagram_class,
    dns_question,
    http_host,
    name_matches,
    server_name,
    stream_class,
)

NAME = "rr1---sn-4g5e6nzz.googlevideo.com"


def real_hello(name: str = NAME) -> bytes:
    """The first flight of this Python's own TLS client."""
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


HELLO = real_hello()


def facts(**known: object) -> FlowFacts:
    return FlowFacts(proto=6, server_port=443, **known)  # type: ignore[arg-type]


def rerecorded(hello: bytes, sizes: list[int]) -> bytes:
    """The same handshake message cut into several TLS records."""
    body, out, turn = hello[5:], b"", 0
    while body:
        size = max(1, sizes[turn % len(sizes)])
        piece, body = body[:size], body[size:]
        out += b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece
        turn += 1
    return out


def test_the_name_is_found_when_the_hello_is_split_at_any_byte() -> None:
    for cut in range(1, len(HELLO)):
        flow = facts()
        flow.syn(999)
        flow.client_segment(1000, HELLO[:cut])
        assert (flow.sni, flow.complete) == (None, False)
        assert flow.client_segment(1000 + cut, HELLO[cut:])
        assert vars(flow).items() >= {"sni": NAME, "complete": True, "payload": "tls"}.items()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=6),
    st.lists(st.integers(1, len(HELLO) - 1), max_size=12),
    st.integers(0, 2**32 - 1),
    st.randoms(use_true_random=False),
)
def test_order_repetition_records_and_sequence_wrap_do_not_matter(
    records: list[int], cuts: list[int], isn: int, rng: random.Random
) -> None:
    stream = rerecorded(HELLO, records)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [(a, stream[a:b]) for a, b in itertools.pairwise(edges)]
    pieces += [(a, stream[a : a + rng.randint(1, 700)]) for a, _ in rng.choices(pieces, k=3)]  # retransmissions
    rng.shuffle(pieces)
    flow = facts()
    flow.syn(isn)
    for offset, piece in pieces:
        flow.client_segment((isn + 1 + offset) & 0xFFFFFFFF, piece)
    assert flow.sni == NAME
    assert flow.complete


def test_a_flow_seen_from_its_middle_is_classified_by_what_comes() -> None:
    flow = facts()
    assert flow.client_segment(77, HELLO)
    assert flow.sni == NAME


def test_a_hello_without_name_completes_without_one() -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    flow = facts()
    flow.client_segment(0, outgoing.read())
    assert (flow.sni, flow.complete, flow.payload) == (None, True, "tls")


def test_memory_is_bounded_and_an_endless_hello_ends_the_search() -> None:
    flow = facts()
    flow.syn(0)
    for index in range(5000):  # never the first byte
        flow.client_segment(2 + index * 7, b"x" * 7)
    assert len(flow._pending) <= 32
    endless = b"\x16\x03\x01\xff\xff\x01\xff\xff\xff" + bytes(MAX_STREAM)
    flow = facts()
    for at in range(0, len(endless), 1000):
        flow.client_segment(at, endless[at : at + 1000])
    assert flow.complete
    assert flow.sni is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_break_the_classifier(data: bytes) -> None:
    for start in (b"", b"\x16\x03\x01", b"GET ", HELLO[:60]):
        flow = facts()
        flow.client_segment(1, start + data)
        flow = FlowFacts(proto=17, server_port=53)
        flow.datagram(data, "up")
        datagram_class(data)
        dns_question(data)
        server_name(data)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (HELLO, "tls"),
        (b"GET / HTTP/1.1\r\n", "http"),
        (b"\x13BitTorrent protocol" + bytes(48), "bittorrent"),
        (b"INVITE sip:a@b SIP/2.0\r\n", "sip"),
        (b"\x9a\x01\x02", "opaque"),
        (b"hello", "opaque"),
    ],
)
def test_stream_classes(stream: bytes, expected: str) -> None:
    assert stream_class(stream) == expected


def test_a_stream_whose_class_is_open_waits_for_more() -> None:
    for start in (b"\x16", b"G", b"\x13Bit", b"SIP"):
        with pytest.raises(Incomplete):
            stream_class(start)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"\x01\0\0\0" + bytes(144), "wireguard"),
        (b"\x02\0\0\0" + bytes(88), "wireguard"),
        (b"\x41\x00" + bytes(18), "bittorrent"),
        (b"d1:ad2:id20:" + bytes(30), "bittorrent"),
        (b"REGISTER sip:x SIP/2.0\r\n", "sip"),
        (b"\x80\x60" + bytes(170), "rtp"),
        (b"\x80\xc8" + bytes(170), "opaque"),  # RTCP
        (b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12), "stun"),
        (b"\xc3\0\0\0\1" + bytes(1195), "quic"),
        (b"\x16\xfe\xfd" + bytes(50), "dtls"),
        (bytes(range(40, 90)), "opaque"),
        (b"", "opaque"),
    ],
)
def test_datagram_classes(payload: bytes, expected: str) -> None:
    assert datagram_class(payload) == expected


def test_http_hosts_and_dns_names_are_read() -> None:
    assert http_host(b"GET / HTTP/1.1\r\nHost: Video.Example.org:8080\r\n\r\n") == "video.example.org"
    assert http_host(b"GET / HTTP/1.1\r\nA: b\r\n\r\nHost: no") is None
    with pytest.raises(Incomplete):
        http_host(b"GET / HTTP/1.1\r\nHost: video.exam")
    query = b"\x12\x34\1\0\0\1\0\0\0\0\0\0\5video\7example\3org\0\0\1\0\1"
    assert dns_question(query) == "video.example.org"
    assert dns_question(query[:-2]) is None
    flow = FlowFacts(proto=17, server_port=53)
    assert flow.datagram(query, "up")
    assert flow.dns == "video.example.org"
    assert not flow.datagram(query, "up"), "the same name again is nothing new"


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("*.googlevideo.com", NAME, True),
        ("*.googlevideo.com", "googlevideo.com", False),
        ("*.googlevideo.com", "evilgooglevideo.com", False),
        ("*.googlevideo.com", "a.googlevideo.com.example.org", False),
        ("example.org", "Example.ORG.", True),
        ("example.org", "www.example.org", False),
        ("rr*.google*.com", NAME, True),
        ("rr*x*.com", NAME, False),
        ("*", "anything", True),
        ("a*a", "a", False),
    ],
)
def test_name_patterns(pattern: str, name: str, fits: bool) -> None:
    assert name_matches(pattern, name) is fits


def test_all_keys_of_a_match_must_hold() -> None:
    match = Match(sni=("*.googlevideo.com",), port=((443, 443),), proto="tcp", established_only=True)
    assert match.fits(facts(sni=NAME, established=True))
    assert not match.fits(facts(sni=NAME))
    assert not match.fits(facts(sni="a.example.org", established=True))
    assert not match.fits(FlowFacts(proto=17, server_port=443, sni=NAME, established=True))
    assert not match.fits(FlowFacts(proto=6, server_port=80, sni=NAME, established=True))
    assert Match(payload=("opaque",)).fits(facts(payload="opaque"))
    assert not Match(payload=("opaque",)).fits(facts())
    assert Match().fits(facts())


def test_client_hello_refuses_other_records() -> None:
    for wrong in (b"\x17\x03\x03\0\1x", b"\x16\x04\x03\0\1\1", b"\x16\x03\x03\0\4\x02\0\0\0"):
        with pytest.raises(ValueError, match="not a"):
            client_hello(wrong)

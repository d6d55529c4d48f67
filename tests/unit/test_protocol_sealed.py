# SPDX-License-Identifier: EUPL-1.2
"""The shapes of the TCP carriers without TLS, checked against what TLS says and against every spoiled byte."""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.protocol import sealed
from probe.protocol.session import decode_hello, encode_hello
from probe.reflector.clienthello import peek
from probe.wire.codec import WireError
from probe.wire.messages import DataHello

HELLO = encode_hello(
    DataHello(v=1, ticket="ab" * 16, purpose="segment", direction="down", address="2001:db8::1234:5678:9abc:def0")
)
SESSION_ID = bytes(range(32))


def noise(seed: int = 1) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


@given(st.integers())
def test_a_sealed_hello_opens_again_and_shows_nothing_of_it(seed: int) -> None:
    closed = sealed.seal(HELLO, noise(seed))
    assert len(closed) == sealed.SEALED_BYTES == 528
    assert decode_hello(sealed.unseal(closed)).ticket == "ab" * 16
    assert not any(HELLO[at : at + 6] in closed for at in range(0, 500, 3))
    assert closed.count(b" ") < 20  # the hello's padding is blanks; here they are as rare as any byte


def test_the_example_of_the_specification() -> None:
    written = (Path(__file__).parents[2] / "spec" / "carriers.md").read_text(encoding="utf-8")
    made = sealed.seal(b'{"address":null,'.ljust(512), lambda count: bytes(range(count)))
    assert f"`{made[:32].hex()}`" in written
    assert "| reflector | 43, 2843, 102, 58 |" in written
    assert f"has {sealed.SERVER_FLIGHT_BYTES} bytes" in written


@given(st.binary(min_size=528, max_size=528))
def test_what_nobody_sealed_is_refused(raw: bytes) -> None:
    with pytest.raises(WireError):
        decode_hello(sealed.unseal(raw))


@pytest.mark.parametrize("length", [1, 68, 1199, 1200])
def test_the_hello_of_a_stream_stands_at_one_place_whatever_the_flight(length: int) -> None:
    behind = sealed.behind_flight(length, HELLO, noise())
    assert length + len(behind) == sealed.STREAM_OPENING_BYTES == 1728
    assert sealed.unseal(behind[-528:]) == HELLO


def test_a_ticket_is_read_back_from_the_session_id() -> None:
    shown = sealed.session_id("ab" * 16, noise())
    assert len(shown) == 32
    assert sealed.shown_ticket(shown) == "ab" * 16
    for other in (b"", shown[:31], shown + b"x"):
        assert sealed.shown_ticket(other) is None


class TlsReader:
    """Walks records and messages as RFC 8446 describes them, knowing nothing of the module under test."""

    def __init__(self, raw: bytes) -> None:
        self.records: list[tuple[int, bytes]] = []
        while raw:
            kind, version, length = raw[0], raw[1:3], int.from_bytes(raw[3:5], "big")
            assert version == b"\x03\x03"
            assert 0 < length <= 2**14 + 256
            assert len(raw) >= 5 + length
            self.records.append((kind, raw[5 : 5 + length]))
            raw = raw[5 + length :]


def test_the_server_flight_reads_as_tls_1_3_and_always_has_one_size() -> None:
    flight = sealed.server_flight(SESSION_ID, noise())
    assert len(flight) == sealed.SERVER_FLIGHT_BYTES
    assert sealed.is_server_flight(flight, SESSION_ID)
    found = TlsReader(flight).records
    assert [kind for kind, _ in found] == [22, 20, 23, 23, 23, 23]
    assert found[1][1] == b"\x01"
    hello = found[0][1]
    assert hello[0] == 2
    assert int.from_bytes(hello[1:4], "big") == len(hello) - 4
    assert hello[4:6] == b"\x03\x03"
    assert hello[38:71] == b"\x20" + SESSION_ID
    assert hello[71:74] == b"\x13\x01\x00"
    extensions, at, seen = hello[76:], 0, {}
    assert int.from_bytes(hello[74:76], "big") == len(extensions)
    while at < len(extensions):
        length = int.from_bytes(extensions[at + 2 : at + 4], "big")
        seen[int.from_bytes(extensions[at : at + 2], "big")] = extensions[at + 4 : at + 4 + length]
        at += 4 + length
    assert at == len(extensions)
    assert seen[43] == b"\x03\x04"
    assert seen[51][:4] == b"\x00\x1d\x00\x20"
    assert len(seen[51]) == 36


def test_openssl_takes_the_server_flight_for_a_servers_until_it_must_decrypt() -> None:
    """It parses ServerHello, agrees on keys and fails no sooner than at the first ciphertext."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="video.example.net")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    found = peek(outgoing.read())
    assert not isinstance(found, int)
    incoming.write(sealed.server_flight(found.session_id, noise()))
    with pytest.raises(ssl.SSLError, match=r"(?i)decryption failed or bad record mac"):
        client.do_handshake()


@given(st.integers(0, sealed.SERVER_FLIGHT_BYTES - 1), st.integers(1, 255))
def test_a_server_flight_of_another_shape_is_noticed(at: int, flip: int) -> None:
    flight = bytearray(sealed.server_flight(SESSION_ID, noise()))
    flight[at] ^= flip
    # Headers and the echoed session id must be right; random and ciphertext may be anything.
    structure = {*range(5), *range(43, 76), *range(127, 133)}
    start = 133
    for length in (38, 2838, 97, 53):
        structure |= set(range(start, start + 5))
        start += 5 + length
    assert sealed.is_server_flight(bytes(flight), SESSION_ID) == (at not in structure)


def test_a_server_flight_for_another_session_or_length_is_noticed() -> None:
    flight = sealed.server_flight(SESSION_ID, noise())
    assert not sealed.is_server_flight(flight, bytes(32))
    assert not sealed.is_server_flight(flight[:-1], SESSION_ID)
    assert not sealed.is_server_flight(flight + b"x", SESSION_ID)


def test_the_clients_last_flight_reads_as_tls_1_3_and_holds_the_hello() -> None:
    finish = sealed.client_finish(HELLO, noise())
    assert len(finish) == sealed.CLIENT_FINISH_BYTES
    assert [(kind, len(body)) for kind, body in TlsReader(finish).records] == [(20, 1), (23, 53), (23, 528)]
    assert sealed.hello_in_finish(finish) == HELLO


@given(st.integers(0, sealed.CLIENT_FINISH_BYTES - 1), st.integers(1, 255))
def test_a_spoiled_last_flight_is_refused_or_still_a_hello(at: int, flip: int) -> None:
    finish = bytearray(sealed.client_finish(HELLO, noise()))
    finish[at] ^= flip
    is_structure = at < 11 or 64 <= at < 85  # ChangeCipherSpec, record headers, salt
    try:
        found = decode_hello(sealed.hello_in_finish(bytes(finish)))
    except WireError:
        assert not 11 <= at < 64, "what stands for the Finished may be anything"
        return
    assert not is_structure
    assert isinstance(found, DataHello)


@given(st.binary(max_size=700))
def test_garbage_never_breaks_the_reader_of_the_last_flight(raw: bytes) -> None:
    with pytest.raises(WireError):
        decode_hello(sealed.hello_in_finish(raw))


def test_payload_is_framed_into_full_records() -> None:
    content = noise()(3 * sealed.RECORD_BODY_BYTES)
    framed = sealed.framed(content)
    assert len(framed) == 3 * sealed.RECORD_BYTES
    found = TlsReader(framed).records
    assert [kind for kind, _ in found] == [23, 23, 23]
    assert b"".join(body for _, body in found) == content

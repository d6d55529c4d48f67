# SPDX-License-Identifier: EUPL-1.2
"""The bytes of the TCP carriers that use no TLS: the sealed hello, TLS-shaped records, the opening of a stream.

Every part has a fixed length, so that both ends know how much to read and nobody searches for anything. Nothing here
is a secret or protects one: it only keeps a classifier from seeing our JSON where the application would have
ciphertext. Spec: spec/carriers.md, sections "hello" and "stream".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from probe.wire.codec import WireError
from probe.wire.limits import MAX_FLIGHT
from probe.wire.messages import DATA_HELLO_BYTES

RandomBytes = Callable[[int], bytes]

_SALT_BYTES: Final = 16
SEALED_BYTES: Final = _SALT_BYTES + DATA_HELLO_BYTES

TLS_HANDSHAKE: Final = 0x16
"""First byte of every TLS connection (RFC 8446, section 5.1), and so of no stream's flight."""
STREAM_OPENING_BYTES: Final = MAX_FLIGHT + SEALED_BYTES
"""Flight, filler and sealed hello together, whatever the flight's length."""

SESSION_ID_BYTES: Final = 32
TICKET_BYTES: Final = 16
"""The legacy session id begins with the ticket, as raw bytes."""

RECORD_HEADER_BYTES: Final = 5
RECORD_BODY_BYTES: Final = 16 * 1024 + 17
"""A full record of TLS 1.3: content type and authentication tag included (RFC 8446, section 5.2)."""
RECORD_BYTES: Final = RECORD_HEADER_BYTES + RECORD_BODY_BYTES

_CHANGE_CIPHER_SPEC: Final = bytes.fromhex("140303000101")
_FINISHED_BYTES: Final = 4 + 32 + 17
_SERVER_RECORDS: Final = (38, 2_838, 97, _FINISHED_BYTES)
"""EncryptedExtensions with ALPN, two ECDSA certificates, CertificateVerify, Finished: what big servers send."""
_SERVER_HELLO_BYTES: Final = RECORD_HEADER_BYTES + 122
SERVER_FLIGHT_BYTES: Final = (
    _SERVER_HELLO_BYTES + len(_CHANGE_CIPHER_SPEC) + sum(RECORD_HEADER_BYTES + body for body in _SERVER_RECORDS)
)
CLIENT_FINISH_BYTES: Final = (
    len(_CHANGE_CIPHER_SPEC) + RECORD_HEADER_BYTES + _FINISHED_BYTES + RECORD_HEADER_BYTES + SEALED_BYTES
)


def seal(hello: bytes, random_bytes: RandomBytes) -> bytes:
    """The 512 bytes of a DataHello as 528 that look random: a salt, and the hello XOR SHAKE-256 of the salt."""
    salt = random_bytes(_SALT_BYTES)
    return salt + _mask(hello, salt)


def unseal(sealed: bytes) -> bytes:
    """The 512 bytes again. Whether they are a hello is for `decode_hello` to say."""
    return _mask(sealed[_SALT_BYTES:], sealed[:_SALT_BYTES])


def _mask(data: bytes, salt: bytes) -> bytes:
    # As two numbers: one operation instead of one for each byte.
    stream = hashlib.shake_256(salt).digest(len(data))
    return (int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(data), "big")


# -- stream ---------------------------------------------------------------------------------------------------------


def behind_flight(flight_bytes: int, hello: bytes, random_bytes: RandomBytes) -> bytes:
    """What follows a flight of this length: filler up to the longest flight, then the sealed hello."""
    return random_bytes(MAX_FLIGHT - flight_bytes) + seal(hello, random_bytes)


def is_stream(first: int) -> bool:
    """Whether a connection whose first byte is this one is a stream; else it is TLS, or looks so."""
    return first != TLS_HANDSHAKE


# -- hello ----------------------------------------------------------------------------------------------------------


def session_id(ticket: str, random_bytes: RandomBytes) -> bytes:
    """The legacy session id that shows a ticket."""
    return bytes.fromhex(ticket) + random_bytes(SESSION_ID_BYTES - TICKET_BYTES)


def shown_ticket(found: bytes) -> str | None:
    """The ticket in a session id, if it is one; the booking knows whether it is."""
    return found[:TICKET_BYTES].hex() if len(found) == SESSION_ID_BYTES else None


def server_flight(found: bytes, random_bytes: RandomBytes) -> bytes:
    """A TLS 1.3 server's first flight in answer to the session id `found`: its shape, with noise for ciphertext."""
    key_share = bytes.fromhex("00330024001d0020") + random_bytes(32)  # x25519: any 32 bytes are a key
    extensions = bytes.fromhex("002b00020304") + key_share
    suite = bytes.fromhex("130100")  # TLS_AES_128_GCM_SHA256, which every browser offers; no compression
    body = b"\x03\x03" + random_bytes(32) + bytes([len(found)]) + found + suite
    body += len(extensions).to_bytes(2, "big") + extensions
    message = b"\x02" + len(body).to_bytes(3, "big") + body
    flight = b"\x16\x03\x03" + len(message).to_bytes(2, "big") + message + _CHANGE_CIPHER_SPEC
    return flight + b"".join(record(random_bytes(length)) for length in _SERVER_RECORDS)


def is_server_flight(raw: bytes, sent: bytes) -> bool:
    """Whether this is the shape of `server_flight` for the session id that was sent."""
    head = _SERVER_HELLO_BYTES - 122
    at = head + 4 + 2 + 32  # record header, message header, version, random
    return (
        len(raw) == SERVER_FLIGHT_BYTES
        and raw[:head] == b"\x16\x03\x03\x00\x7a"
        and raw[at : at + 1 + SESSION_ID_BYTES] == bytes([SESSION_ID_BYTES]) + sent
        and raw[_SERVER_HELLO_BYTES:].startswith(_CHANGE_CIPHER_SPEC)
        and _bodies(raw[_SERVER_HELLO_BYTES + len(_CHANGE_CIPHER_SPEC) :], _SERVER_RECORDS) is not None
    )


def client_finish(hello: bytes, random_bytes: RandomBytes) -> bytes:
    """What a TLS 1.3 client ends its handshake with, and a record that is the sealed hello."""
    return _CHANGE_CIPHER_SPEC + record(random_bytes(_FINISHED_BYTES)) + record(seal(hello, random_bytes))


def hello_in_finish(raw: bytes) -> bytes:
    """The hello in `client_finish`. Raises WireError."""
    start = len(_CHANGE_CIPHER_SPEC)
    bodies = _bodies(raw[start:], (_FINISHED_BYTES, SEALED_BYTES))
    if not raw.startswith(_CHANGE_CIPHER_SPEC) or bodies is None:
        raise WireError("bad_hello", detail="the records of the hello have not the shape they must have")
    return unseal(bodies[1])


def framed(noise: bytes) -> bytes:
    """Whole records of application data with this content: `noise` holds a multiple of a record's body."""
    return b"".join(
        record(noise[start : start + RECORD_BODY_BYTES]) for start in range(0, len(noise), RECORD_BODY_BYTES)
    )


def record(body: bytes) -> bytes:
    """A record of application data, as TLS frames it."""
    return b"\x17\x03\x03" + len(body).to_bytes(2, "big") + body


def _bodies(raw: bytes, lengths: tuple[int, ...]) -> list[bytes] | None:
    """What is in records of exactly these lengths; None where these are not they."""
    found, at = [], 0
    for length in lengths:
        if raw[at : at + RECORD_HEADER_BYTES] != b"\x17\x03\x03" + length.to_bytes(2, "big"):
            return None
        at += RECORD_HEADER_BYTES
        found.append(raw[at : at + length])
        at += length
    return found if at == len(raw) else None

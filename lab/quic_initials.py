# SPDX-License-Identifier: EUPL-1.2
"""Computes what the probe needs to make QUIC Initials without a crypto library, and opens them again for tests.

`python -m lab.quic_initials` writes probe/profiles/quic_openings.txt. Connection ids come from a fixed seed, so that
a test can tell that the file is this program's work. RFC 9001, sections 5.2 to 5.4 and appendix A.
Spec: spec/profiles.md, section "QUIC".
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lab.quic import Keys
from probe.profiles import quic

OPENINGS: Final = 64
"""More make it harder to list them and rarer that one comes twice, and the probe larger: 1.6 kB each."""
_SEED: Final = b"evenlane QUIC openings 1"
_TITLE: Final = """\
# SPDX-License-Identifier: EUPL-1.2
# Written by `python -m lab.quic_initials`; probe/profiles/quic.py reads it. A line is base64 of: connection id (8),
# header mask (2), GHASH key (16), tag mask (16), key stream (the rest).
"""


def client_keys(connection: bytes) -> tuple[bytes, bytes, bytes]:
    """Key, IV and header-protection key of the client's Initials (RFC 9001, section 5.2)."""
    keys = Keys(connection)
    return keys.key, keys.iv, keys.header


def opening(connection: bytes) -> quic.Opening:
    """Everything that follows from a connection id."""
    key, iv, hp = client_keys(connection)
    nonce = iv  # the packet number is 0
    stream = AESGCM(key).encrypt(nonce, bytes(quic.PAYLOAD_BYTES), None)[: quic.PAYLOAD_BYTES]
    # The sample begins 4 bytes after the packet number's first byte and lies within the leading padding.
    return quic.Opening(
        connection=connection,
        mask=_block(hp, stream[3:19])[:2],
        hash_key=_block(key, bytes(16)),
        tag_mask=_block(key, iv + b"\x00\x00\x00\x01"),
        stream=stream,
    )


def _block(key: bytes, block: bytes) -> bytes:
    # One block of AES is what header protection is defined with (RFC 9001, section 5.4.3); nothing is kept secret.
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305
    return encryptor.update(block)


def open_initial(datagram: bytes) -> bytes:
    """The frames of a client's Initial, by the rules of RFC 9001 alone. Raises InvalidTag, ValueError."""
    if datagram[0] & 0xF0 != 0xC0 or datagram[1:5] != b"\x00\x00\x00\x01":
        raise ValueError("not a QUIC version 1 Initial")
    at = 6 + datagram[5]
    connection = datagram[6:at]
    at += 1 + datagram[at]  # source connection id
    at += 1 + datagram[at]  # token, shorter than 64 bytes
    length = int.from_bytes(datagram[at : at + 2], "big") & 0x3FFF
    at += 2
    key, iv, hp = client_keys(connection)
    mask = _block(hp, datagram[at + 4 : at + 20])
    flags = datagram[0] ^ mask[0] & 0x0F
    size = (flags & 3) + 1
    number = bytes(one ^ other for one, other in zip(datagram[at : at + size], mask[1:], strict=False))
    head = bytes([flags]) + datagram[1:at] + number
    nonce = (int.from_bytes(iv, "big") ^ int.from_bytes(number, "big")).to_bytes(12, "big")
    return AESGCM(key).decrypt(nonce, datagram[at + size : at + length], head)


def connection_ids(count: int = OPENINGS) -> list[bytes]:
    """Those of the file: random-looking and always the same."""
    drawn = (hashlib.sha256(_SEED + number.to_bytes(4, "big")).digest() for number in range(count))
    return [digest[: quic.CONNECTION_ID_BYTES] for digest in drawn]


def content() -> str:
    """The whole file."""
    return _TITLE + "".join(opening(connection).line() + "\n" for connection in connection_ids())


if __name__ == "__main__":
    quic.OPENINGS_FILE.write_text(content(), encoding="ascii")

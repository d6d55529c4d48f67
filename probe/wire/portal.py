# SPDX-License-Identifier: EUPL-1.2
"""The page by which a probe notices that somebody stands between it and a reflector: both ends' idea of it.

The signature covers a prefix of its own, so that it is worth nothing in place of a record's.
Spec: spec/protocol.md, section "Portal page".
"""

from __future__ import annotations

import base64
import re
from typing import Final

NONCE_BYTES: Final = 16
MOST_PAGE_BYTES: Final = 4096
"""Of the whole answer, head included."""
_PREFIX: Final = b"evenlane-portal\n"
_PAGE: Final = re.compile(rb"evenlane-portal ([0-9a-f]{32}) ([A-Za-z0-9_-]{86})\n?")


def path_of(nonce: bytes) -> str:
    """What is asked for."""
    return f"/portal/{nonce.hex()}"


def signed_bytes(nonce: bytes) -> bytes:
    """What the reflector signs."""
    return _PREFIX + nonce


def page_of(nonce: bytes, signature: bytes) -> bytes:
    """The page."""
    return b"evenlane-portal " + nonce.hex().encode() + b" " + base64.urlsafe_b64encode(signature).rstrip(b"=") + b"\n"


def read_page(page: bytes) -> tuple[bytes, bytes] | None:
    """Nonce and signature of what looks like such a page; None for anything else. Nothing is verified."""
    found = _PAGE.fullmatch(page)
    if found is None:
        return None
    return bytes.fromhex(found[1].decode("ascii")), base64.urlsafe_b64decode(found[2] + b"==")

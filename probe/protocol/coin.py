# SPDX-License-Identifier: EUPL-1.2
"""The coin that orders the two arms of a pair, so that neither probe nor reflector can choose or foresee it.

Coin tossing by commitment (M. Blum, "Coin flipping by telephone", 1981): one side is bound before the other
speaks, and the result is uniform if either side's nonce is. Spec: spec/protocol.md, section "One pair".
"""

from __future__ import annotations

import hashlib
from typing import Final

from probe.wire.records import Arm

NONCE_BYTES: Final = 32
_SESSION_BYTES: Final = 16


def commitment(nonce: bytes) -> str:
    """SHA-256 of a 32-byte nonce, hex: binds to it without telling it."""
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
    return hashlib.sha256(nonce).hexdigest()


def neutral_first(probe_nonce: bytes, reflector_nonce: bytes, session: str, pair: int) -> bool:
    """The coin of one pair: True means the neutral arm runs first.

    `session` is the session id in hex (16 bytes), `pair` its number from 1. Session and number are in the hash so
    that a pair of nonces seen once decides nothing anywhere else.
    """
    raw_session = bytes.fromhex(session)
    if len(probe_nonce) != NONCE_BYTES or len(reflector_nonce) != NONCE_BYTES or len(raw_session) != _SESSION_BYTES:
        raise ValueError("the coin needs two nonces of 32 bytes and a session id of 16")
    digest = hashlib.sha256(probe_nonce + reflector_nonce + raw_session + pair.to_bytes(4, "big")).digest()
    return bool(digest[-1] & 1)


def arms_in_order(is_neutral_first: bool, control: Arm = "neutral") -> tuple[Arm, Arm]:
    """The two arms as they run; `control` is the carrier's (`records.CONTROL_ARMS`).

    In a placebo pair "app" stands for the first of the two neutral twins.
    """
    return (control, "app") if is_neutral_first else ("app", control)

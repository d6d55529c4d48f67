# SPDX-License-Identifier: EUPL-1.2
"""How much of a receipt a pair may take, however long its numbers: a receipt that is too large could not be kept.

Spec: spec/records.md, section "Limits".
"""

from __future__ import annotations

from typing import Final

from probe.protocol.session import BIN_MS
from probe.wire.limits import MAX_PAYLOAD_BYTES

ROOM_BYTES: Final = MAX_PAYLOAD_BYTES - 2000
"""For pairs, beside what a receipt says of its session."""
_PAIR: Final = 1200
_SEGMENT: Final = 800
_BIN: Final = 20
_ECHO: Final = 9


def sequential_bytes(segment_s: float) -> float:
    """A pair of two timed transfers, with their bins."""
    return _PAIR + 2 * (_SEGMENT + _BIN * (segment_s * 1000 / BIN_MS + 1))


def concurrent_bytes(echoes: int) -> float:
    """A pair of two slots with so many echoes each."""
    return _PAIR + 2 * (_SEGMENT + _ECHO * echoes)

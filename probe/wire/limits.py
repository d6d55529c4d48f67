# SPDX-License-Identifier: EUPL-1.2
"""Every size a record or message may have, in one place, so that both ends refuse the same things.

Spec: spec/records.md, section "Limits".
"""

from __future__ import annotations

from typing import Final

MAX_ENVELOPE_BYTES: Final = 2 * 1024 * 1024
"""Largest encoded envelope that a reader accepts (one JSON line)."""
MAX_PAYLOAD_BYTES: Final = 1_500_000
"""Largest signed payload."""
MAX_BATCH: Final = 100
"""Most envelopes in one upload."""
MAX_BODY_BYTES: Final = 8 * 1024 * 1024
"""Largest upload body, after decompression."""
MAX_MESSAGE_BYTES: Final = 64 * 1024
"""Largest control message body."""
MAX_DEPTH: Final = 12
"""Deepest nesting of a JSON document."""
MAX_PAIRS: Final = 512
"""Most pairs in one session."""
MAX_BINS: Final = 700
"""Most 100 ms bins in one segment (70 s)."""
MAX_ECHOES: Final = 1200
"""Most small packets in one segment of a concurrent pair (60 s of 20 a second, 24 s of 50)."""
LEAST_PACKET_BYTES: Final = 80
"""Smallest small packet of a concurrent pair: the longest head and what it must hold (spec/carriers.md)."""
MAX_PACKET_BYTES: Final = 1200
LEAST_PACKET_INTERVAL_MS: Final = 5
"""Of the small packets: 200 a second at most."""
MAX_PACKET_INTERVAL_MS: Final = 200
"""Five a second at least, so that a median of half a second means something."""
MAX_TEXT: Final = 256
"""Longest free text."""
MAX_NAME: Final = 253
"""Longest DNS name (RFC 1035, section 2.3.4)."""
MAX_PROFILE: Final = 32_000
"""Longest app profile in a plan, as canonical JSON."""
MAX_FLIGHT: Final = 1200
"""Longest first flight of an arm, in bytes: one datagram that fits every path of QUIC (RFC 9000, section 14)."""
MAX_ANSWER: Final = 512
"""Longest first answer of the reflector, in bytes."""
MAX_HEAD: Final = 32
"""Longest beginning of each later datagram, in bytes."""
MAX_ENDPOINTS: Final = 64
MAX_SEGMENT_S: Final = 60.0
MIN_SEGMENT_S: Final = 0.2
MAX_PACE_MBPS: Final = 10_000.0
MAX_TIME_MS: Final = 4_102_444_800_000
"""2100-01-01: a later time is a wrong clock or an attack."""
MIN_TIME_MS: Final = 1_735_689_600_000
"""2025-01-01: an earlier one is a clock that was never set."""
MAX_INT: Final = 2**53 - 1
"""Largest integer that every JSON reader keeps exact (RFC 8259, section 6)."""

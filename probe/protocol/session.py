# SPDX-License-Identifier: EUPL-1.2
"""What both roles of a session share: time-outs, the data connection's hello, the guard, the outcome of a pair.

Everything here is the same for every arm. Spec: spec/protocol.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

from probe.wire.codec import WireError, dumps, from_dict, loads, to_dict
from probe.wire.limits import MAX_MESSAGE_BYTES
from probe.wire.messages import DATA_HELLO_BYTES, DataHello
from probe.wire.records import PairOutcome, SegmentEnd

M = TypeVar("M")

CONNECT_TIMEOUT_S: Final = 3.0
TLS_TIMEOUT_S: Final = 3.0
TRANSFER_GRACE_S: Final = 2.0
"""The probe waits for a segment's end until `segment_s` plus this."""
UP_GRACE_S: Final = 0.5
"""A sender on the probe goes on this much beyond its own clock: the reflector's clock, which starts later, ends it."""
TICKET_WINDOW_S: Final = 10.0
HELLO_WAIT_S: Final = 3.0
GUARD_LIMIT_MS: Final = 500
GUARD_FACTOR: Final = 1.25
GUARD_SLACK_MS: Final = 5.0
BIN_MS: Final = 100
MOST_CALIBRATIONS: Final = 2
"""A direction and session."""
MOST_CALIBRATION_S: Final = 1.0

FAILED_ENDS: Final[frozenset[SegmentEnd]] = frozenset({"reset", "aborted", "absent", "mismatch"})


def encode_message(message: Any) -> bytes:
    """A control message's body."""
    return dumps(to_dict(message))


def decode_message(cls: type[M], body: bytes) -> M:
    """Read a control message's body. Raises WireError."""
    return from_dict(cls, loads(body, longest=MAX_MESSAGE_BYTES))


def encode_hello(hello: DataHello) -> bytes:
    """The 512 bytes at the head of a data connection: JSON, newline, spaces."""
    raw = dumps(to_dict(hello)) + b"\n"
    if len(raw) > DATA_HELLO_BYTES:
        raise ValueError("the hello does not fit its 512 bytes")
    return raw.ljust(DATA_HELLO_BYTES, b" ")


def decode_hello(raw: bytes) -> DataHello:
    """Read the head of a data connection. Raises WireError, also where the padding is not blank."""
    head, newline, padding = raw.partition(b"\n")
    if len(raw) != DATA_HELLO_BYTES or not newline or padding.strip(b" "):
        raise WireError("bad_hello", detail=f"expected JSON, a newline and spaces, {DATA_HELLO_BYTES} bytes")
    return from_dict(DataHello, loads(head, longest=DATA_HELLO_BYTES))


def is_line_quiet(ping_ms: float, smallest_ping_ms: float) -> bool:
    """Whether a control ping says that the previous segment's queue has drained (end of the guard gap)."""
    return ping_ms <= GUARD_FACTOR * smallest_ping_ms + GUARD_SLACK_MS


def outcome_of(ends: Sequence[SegmentEnd]) -> PairOutcome:
    """The outcome of a pair that was finished, from how its segments ended."""
    if len(ends) != 2 or "control_lost" in ends:
        return "unfinished"
    by_failures: tuple[PairOutcome, ...] = ("both", "one_failed", "both_failed")
    return by_failures[sum(end in FAILED_ENDS for end in ends)]

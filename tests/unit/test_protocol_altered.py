# SPDX-License-Identifier: EUPL-1.2
"""What was changed under way is told, by whoever can see it, and nothing else is."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.protocol import sealed
from probe.protocol.accounts import Counted
from probe.protocol.payload import Check, payload
from probe.protocol.reflector_pair import Slot
from probe.wire.messages import ArmBytes

TICKET = bytes(range(16)).hex()


def repeated(carrier: str, count: int, ticket: str = TICKET) -> bytes:
    one = payload(carrier, ticket)  # type: ignore[arg-type]
    return (one * (count // len(one) + 2))[:count]


def checked(carrier: str, raw: bytes, cuts: list[int]) -> bool:
    check, at = Check(carrier, TICKET), 0  # type: ignore[arg-type]
    for cut in cuts:
        check.take(memoryview(raw)[at : at + cut])
        at += cut
    check.take(memoryview(raw)[at:])
    return check.is_altered


def test_the_payload_is_the_one_of_the_specification() -> None:
    expected = hashlib.shake_256(b"evenlane payload" + bytes(range(16))).digest(65_604)
    assert payload("stream", TICKET) == expected[:65_536]
    records = payload("hello", TICKET)
    assert len(records) == 4 * sealed.RECORD_BYTES
    bodies = [records[at + 5 : at + sealed.RECORD_BYTES] for at in range(0, len(records), sealed.RECORD_BYTES)]
    assert b"".join(bodies) == expected
    assert payload("stream", "ff" * 16) != payload("stream", TICKET)


@pytest.mark.parametrize("carrier", ["stream", "hello"])
@given(st.lists(st.integers(0, 70_000), max_size=6), st.integers(1, 200_000), st.data())
def test_a_changed_byte_is_found_wherever_it_is_and_however_reads_cut(
    carrier: str, cuts: list[int], size: int, data: st.DataObject
) -> None:
    raw = repeated(carrier, size)
    assert not checked(carrier, raw, cuts)
    at = data.draw(st.integers(0, size - 1))
    assert checked(carrier, raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :], cuts)


@pytest.mark.parametrize("carrier", ["stream", "hello"])
def test_bytes_put_in_or_left_out_are_found(carrier: str) -> None:
    raw = repeated(carrier, 100_000)
    assert checked(carrier, raw[:777] + b"x" + raw[777:], [])
    assert checked(carrier, raw[:777] + raw[778:], [])
    assert not checked(carrier, raw[:777], []), "a cut is not a change"


def test_once_altered_nothing_more_is_compared() -> None:
    check = Check("stream", TICKET)
    check.take(memoryview(b"other"))
    assert check.is_altered
    check.take(memoryview(payload("stream", TICKET)))
    assert check.is_altered


def test_the_payload_has_no_byte_that_a_classifier_could_know() -> None:
    first = {payload("stream", random.Random(n).randbytes(16).hex())[:2] for n in range(200)}
    assert len(first) > 190


ANNOUNCED = ArmBytes(flight="ab" * 32, flight_bytes=100)


def test_another_flight_is_altered_and_another_name_is_a_mismatch_alone() -> None:
    slot = Slot(TICKET, "app", "app.example", bytes=ANNOUNCED)
    assert slot.is_flight_altered("cd" * 32)
    assert not slot.is_flight_altered("ab" * 32)
    named = Slot(TICKET, "app", "app.example")
    assert not named.is_as_announced("other.example", None, "tls")
    assert not named.is_flight_altered(None)


def test_the_receipt_tells_what_was_counted() -> None:
    slot = Slot(TICKET, "app", "app.example")
    assert slot.segment("absent").altered is False
    slot.counted = Counted(end="aborted", altered=True)
    assert slot.segment("absent").altered is True

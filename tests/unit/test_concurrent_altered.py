# SPDX-License-Identifier: EUPL-1.2
"""Small packets of concurrent pairs that were changed on the way are told, over TCP as over UDP."""

from __future__ import annotations

import random

import pytest

from probe.protocol.concurrent_probe import Frames
from probe.protocol.datagram import PING, Codec, Packet
from probe.protocol.datagram_flow import Filler

POOL = memoryview(random.Random(1).randbytes(70_000))
TICKET = "ab" * 16


def frames(carrier: str) -> tuple[bytes, Frames]:
    """Twenty frames of the reflector, and who reads them."""
    made = Frames(carrier, Codec(TICKET, "reflector", b""), 172)  # type: ignore[arg-type]
    raw = b"".join(made.make(Packet(PING, number, number), Filler(POOL)) for number in range(1, 21))
    return raw, Frames(carrier, Codec(TICKET, "probe", b""), 172)  # type: ignore[arg-type]


@pytest.mark.parametrize("carrier", ["stream", "hello"])
@pytest.mark.parametrize("cut", [1, 100, 1448])
def test_frames_that_come_as_they_were_sent_are_not_altered(carrier: str, cut: int) -> None:
    raw, reader = frames(carrier)
    found = [packet for at in range(0, len(raw), cut) for packet in reader.take(raw[at : at + cut])]
    assert [packet.sequence for packet in found] == list(range(1, 21))
    assert not reader.is_altered


@pytest.mark.parametrize("carrier", ["stream", "hello"])
def test_a_wrong_header_or_a_byte_too_many_is_altered(carrier: str) -> None:
    raw, reader = frames(carrier)
    at = 3 * reader.wire_bytes + reader.wire_bytes - 172 + 10
    found = reader.take(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    assert len(found) == 19
    assert reader.is_altered
    raw, reader = frames(carrier)
    assert len(reader.take(raw[:500] + b"x" + raw[500:])) < 19
    assert reader.is_altered


def test_a_frame_that_is_not_whole_yet_is_none() -> None:
    raw, reader = frames("stream")
    assert reader.take(raw[:100]) == []
    assert not reader.is_altered

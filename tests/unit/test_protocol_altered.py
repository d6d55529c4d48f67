# SPDX-License-Identifier: EUPL-1.2
"""What was changed under way is told, by whoever can see it, and nothing else is."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.protocol import sealed
from probe.protocol.accounts import Counted, Job
from probe.protocol.datagram import DATA, Codec, Packet, challenge, opening
from probe.protocol.datagram_flow import Filler
from probe.protocol.datagram_probe import ProbeFlow
from probe.protocol.datagram_reflector import Flow, flow_for
from probe.protocol.memory import MemoryReflector, VirtualClock, drive
from probe.protocol.payload import Check, payload
from probe.protocol.probe_pair import ProbePair, measured
from probe.protocol.probe_role import ProbeSession
from probe.protocol.reflector_pair import Slot
from probe.protocol.session import encode_hello
from probe.protocol.steps import PlannedPair, RunSegment, SegmentFacts, WireBytes
from probe.wire.envelope import open_record
from probe.wire.messages import ArmBytes, DataHello, Endpoint, PairResult, SessionRequest
from probe.wire.records import MeasuredPair, Origin, Receipt, Segment
from probe.wire.signing import SeedSigner

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


# -- datagrams ----------------------------------------------------------------------------------------------------

POOL = memoryview(random.Random(1).randbytes(70_000))
WIRE = WireBytes(flight=b"\x01\0\0\0" + bytes(144), answer=b"\x02\0\0\0" + bytes(88), head=b"\x04\0\0\0")
HELLO = encode_hello(DataHello(v=1, ticket=TICKET, purpose="segment", direction="up"))


def reflector_flow(direction: str) -> Flow:
    job = Job(
        session="cd" * 16,
        ticket=TICKET,
        direction=direction,  # type: ignore[arg-type]
        pace_mbps=8.0,
        duration_s=1.0,
        carrier="datagram",
        head=WIRE.head,
        flight=hashlib.sha256(WIRE.flight).hexdigest(),
    )
    return flow_for(job, Codec(TICKET, "reflector", WIRE.head), Filler(POOL), 100.0, 0)


def told(direction: str, *datagrams: bytes) -> bool:
    """Whether the receipt calls the segment altered, to which these datagrams came."""
    flow = reflector_flow(direction)
    for raw in datagrams:
        flow.receive(raw, 100.1)
    flow.stop(100.2)
    assert flow.counted is not None
    return flow.counted.altered


DATA_UP = Codec(TICKET, "probe", WIRE.head).seal(Packet(DATA, 1, 5), POOL[:1200])


@pytest.mark.parametrize("direction", ["down", "up"])
def test_the_reflector_knows_what_a_probe_may_send_twice(direction: str) -> None:
    hello = opening(WIRE.head, HELLO, random.Random(2).randbytes)
    assert not told(direction, WIRE.flight, hello, DATA_UP, DATA_UP)


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("at", [0, 3, 4, 11, 12, 43])
def test_a_wrong_byte_in_head_tag_or_header_is_told(direction: str, at: int) -> None:
    assert told(direction, DATA_UP[:at] + bytes([DATA_UP[at] ^ 1]) + DATA_UP[at + 1 :])


def test_a_changed_repetition_of_the_flight_is_told() -> None:
    assert told("up", WIRE.flight[:-1] + b"x")


def probe_flow() -> ProbeFlow:
    step = RunSegment(
        pair=1,
        slot=0,
        endpoint=Endpoint(host=None, port=443),
        name="wireguard",
        ticket=TICKET,
        certificate="0" * 64,
        app="wireguard",
        profile="wireguard@1:0",
        direction="down",
        pace_mbps=8.0,
        segment_s=1.0,
        carrier="datagram",
        wire=WIRE,
    )
    return ProbeFlow(step, HELLO, Filler(POOL), random.Random(3).randbytes, 100.0)


def test_the_probe_tells_a_datagram_that_the_reflector_cannot_have_sent() -> None:
    codec = Codec(TICKET, "reflector", WIRE.head)
    good = codec.seal(challenge(b"c" * 16), POOL[:96])
    flow = probe_flow()
    for raw in (WIRE.answer, good, WIRE.answer):
        flow.receive(raw, 100.1)
    assert not flow.altered
    flow.receive(good[:20] + bytes([good[20] ^ 1]) + good[21:], 100.2)
    assert flow.altered


def test_what_comes_behind_the_end_is_not_looked_at() -> None:
    flow = probe_flow()
    flow.broke("connection_refused", 100.1)
    flow.receive(b"stray", 100.2)
    assert not flow.altered


# -- of a pair as a whole -----------------------------------------------------------------------------------------

facts = st.builds(
    SegmentFacts,
    hello_sent=st.booleans(),
    failure=st.sampled_from([None, "connection_reset", "altered_bytes", "tls_wrong_certificate", "stalled"]),
    bytes=st.integers(0, 10**7),
    duration_ms=st.integers(0, 8000),
    household_kb=st.none() | st.integers(0, 10**6),
    cpu_limited=st.none() | st.booleans(),
    queue_limited=st.none() | st.booleans(),
    captive=st.none() | st.booleans(),
    path_changed=st.none() | st.booleans(),
    altered=st.booleans(),
)
WHOLE = ("household_kb", "cpu_limited", "queue_limited", "captive", "path_changed")
PLANNED = PlannedPair(
    kind="test",
    app="youtube",
    profile="youtube@1:0",
    direction="down",
    pace_mbps=8.0,
    segment_s=1.0,
    app_name="app.example",
    neutral_name="neutral.example",
)


def pair_with(arms: tuple[str, str], told: list[SegmentFacts], waited: list[int | None]) -> MeasuredPair:
    pair = ProbePair(number=1, planned=PLANNED, nonce=bytes(32), arms=arms, facts=told)  # type: ignore[arg-type]
    segments = tuple(
        Segment(arm=arm, end="complete", duration_ms=1000, rwnd_limited_ms=ms)  # type: ignore[arg-type]
        for arm, ms in zip(arms, waited, strict=True)
    )
    pair.result = PairResult(pair=1, outcome="both", segments=segments)
    return measured(pair)


@given(facts, facts, st.lists(st.none() | st.integers(0, 1000), min_size=2, max_size=2))
def test_what_is_said_of_a_pair_is_the_same_whichever_arm_was_which(
    one: SegmentFacts, other: SegmentFacts, waited: list[int | None]
) -> None:
    def whole(pair: MeasuredPair) -> list[object]:
        return [getattr(pair, key) for key in WHOLE]

    app_first = pair_with(("app", "neutral"), [one, other], waited)
    neutral_first = pair_with(("neutral", "app"), [one, other], waited)
    assert whole(app_first) == whole(neutral_first), "the coin fell the other way"
    turned = pair_with(("app", "neutral"), [other, one], waited[::-1])
    assert whole(app_first) == whole(turned), "the segments came in the other order"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ([True, None], True),
        ([False, True], True),
        ([False, False], False),
        ([False, None], None),
        ([None, None], None),
        ([], None),
    ],
)
def test_either_segment_is_enough_and_silence_is_not_a_no(told: list[bool | None], said: bool | None) -> None:
    segments = [SegmentFacts(hello_sent=True, path_changed=one, cpu_limited=one) for one in told]
    pair = ProbePair(number=1, planned=PLANNED, nonce=bytes(32), arms=("app", "neutral"), facts=segments)
    found = measured(pair)
    assert (found.path_changed, found.cpu_limited) == (said, said)


def test_a_window_that_held_the_reflector_back_for_more_than_a_tenth_counts() -> None:
    quiet = [SegmentFacts(hello_sent=True, queue_limited=False)] * 2
    assert pair_with(("app", "neutral"), quiet, [0, 100]).queue_limited is False
    assert pair_with(("app", "neutral"), quiet, [0, 101]).queue_limited is True
    assert pair_with(("app", "neutral"), quiet, [None, None]).queue_limited is False


@pytest.mark.parametrize(
    ("facts", "altered"),
    [
        (SegmentFacts(hello_sent=True), False),
        (SegmentFacts(hello_sent=True, altered=True), True),
        (SegmentFacts(hello_sent=True, failure="altered_bytes"), True),
        (SegmentFacts(hello_sent=False, failure="tls_wrong_certificate"), True),
        (SegmentFacts(hello_sent=True, failure="connection_reset"), False),
        (SegmentFacts(hello_sent=False, failure="tls_failed"), False),
    ],
)
def test_a_failure_alone_is_not_altered(facts: SegmentFacts, altered: bool) -> None:
    assert pair_with(("app", "neutral"), [facts, SegmentFacts(hello_sent=True)], [None, None]).segments[0].altered is (
        altered
    )


# -- the receipt ----------------------------------------------------------------------------------------------------

HOME = Origin(asn=1, network="0" * 16)
ELSEWHERE = Origin(asn=1, network="1" * 16)
OTHER_OPERATOR = Origin(asn=2, network="0" * 16)


def receipt_with(origins: list[Origin], flights: Callable[[RunSegment], str | None], planned: PlannedPair) -> Receipt:
    """One pair whose data connections come from these places and show these flights."""
    there = MemoryReflector(
        signer=SeedSigner(b"\x02" * 32, "cryptography"),
        clock=VirtualClock(1_800_000_000_000),
        random_bytes=random.Random(1).randbytes,
        origin=HOME,
    )
    key = SeedSigner(b"\x01" * 32, "cryptography").key_id
    request = SessionRequest(v=1, probe=key, nettest="differential", pairs=4, segment_s=4.0, pace_mbps=12.0)
    here, left = ProbeSession(request, random_bytes=random.Random(2).randbytes), iter(origins)

    def transfer(step: RunSegment, at: MemoryReflector) -> SegmentFacts:
        job = at.connect(step.hello(None), step.name, next(left), carrier=step.carrier, flight=flights(step))
        at.clock.advance(1000)
        if isinstance(job, Job):
            at.count(job, Counted(end="complete", duration_ms=1000, bytes=1000))
        return SegmentFacts(hello_sent=True, bytes=1000, duration_ms=1000)

    drive(here, there, [planned], transfer)
    assert here.receipt is not None
    record = open_record(here.receipt)
    assert isinstance(record, Receipt)
    return record


@pytest.mark.parametrize(
    ("origins", "changed"),
    [
        ([HOME, HOME], False),
        ([HOME, ELSEWHERE], True),
        ([ELSEWHERE, HOME], True),
        ([ELSEWHERE, ELSEWHERE], True),
        ([HOME, OTHER_OPERATOR], True),
    ],
)
def test_a_pair_whose_data_came_from_elsewhere_than_its_control_channel_says_so(
    origins: list[Origin], changed: bool
) -> None:
    [pair] = receipt_with(origins, lambda _: None, PLANNED).pairs
    assert (pair.outcome, pair.path_changed) == ("both", changed)


STREAM = replace(
    PLANNED, carrier="stream", app_wire=WireBytes(flight=b"\x13BitTorrent"), neutral_wire=WireBytes(flight=b"\xd9" * 11)
)


@pytest.mark.parametrize("arm", ["app", "opaque"])
def test_the_receipt_calls_the_arm_altered_whose_flight_came_as_another(arm: str) -> None:
    def shown(step: RunSegment) -> str:
        assert step.wire is not None
        flight = step.wire.flight
        is_meant = (flight == b"\xd9" * 11) == (arm == "opaque")
        return hashlib.sha256(flight + b"?" * is_meant).hexdigest()

    [pair] = receipt_with([HOME, HOME], shown, STREAM).pairs
    told = {segment.arm: (segment.end, segment.altered) for segment in pair.segments}
    assert told.pop(arm) == ("mismatch", True)  # type: ignore[arg-type]
    assert set(told.values()) == {("complete", False)}

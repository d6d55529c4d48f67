# SPDX-License-Identifier: EUPL-1.2
"""Bytes changed on the way, over real sockets: each carrier's ends tell what they can see, and only that."""

from __future__ import annotations

import dataclasses
import importlib.util
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from probe.netio import held, transfer
from probe.netio.dial import Dialer
from probe.netio.transfer import Transfers
from probe.protocol.probe_pair import ProbePair, measured
from probe.protocol.steps import PlannedPair, RunSegment, SegmentFacts
from probe.reflector.server import Announcement
from probe.wire.messages import Endpoint
from probe.wire.records import MeasuredPair, ReceiptPair

_spec = importlib.util.spec_from_file_location("carriers_tcp", Path(__file__).with_name("test_carriers_tcp.py"))
assert _spec is not None
assert _spec.loader is not None
t: Any = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("carriers_tcp", t)
_spec.loader.exec_module(t)

CARRIERS = ["tls", "hello", "stream"]
AFTER = 20_000
"""Bytes of the sender behind which a byte is changed: every handshake is over."""


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Announcement]:
    with t.c.running(tmp_path_factory.mktemp("state")) as announcement:
        yield announcement


def pair_over(carrier: str, direction: str) -> PlannedPair:
    made: PlannedPair = t.planned(carrier, direction, segment_s=1.0)
    return dataclasses.replace(made, app_name=t.c.APP, neutral_name=t.TWIN) if carrier == "tls" else made


class Box:
    """Changes one byte of a side (0: what the probe sends), once in each connection that it means."""

    def __init__(self, side: int, meant: Callable[[bytes], bool] = lambda _: True) -> None:
        self.side, self.meant = side, meant
        self._state = threading.local()  # the tap serves each connection in a thread of its own
        self.changed = 0

    def __call__(self, side: int, data: bytes) -> bytes:
        own = self._state.__dict__
        own["first"] = own.get("first") or (data if side == 0 else b"")
        if side != self.side:
            return data
        before = own.get("passed", 0)
        own["passed"] = before + len(data)
        if before > AFTER or own["passed"] <= AFTER or not self.meant(own["first"]):
            return data
        self.changed += 1
        at = AFTER - before
        return data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :]


def run(there: Announcement, carrier: str, direction: str, box: Any) -> tuple[MeasuredPair, ReceiptPair]:
    planned = pair_over(carrier, direction)
    with t.tapped(there.data_port, box) as tap:
        _, seen, receipt = t.measure(there, [planned], tap.port)
    [pair] = receipt.pairs
    arms = tuple(segment.arm for segment in pair.segments)
    return measured(ProbePair(number=1, planned=planned, nonce=bytes(32), arms=arms, facts=seen)), pair


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_line_that_changes_nothing_is_not_said_to(there: Announcement, carrier: str, direction: str) -> None:
    ours, theirs = run(there, carrier, direction, lambda _, data: data)
    assert theirs.outcome == "both"
    assert [segment.altered for segment in (*ours.segments, *theirs.segments)] == [False] * 4
    assert [segment.failure for segment in ours.segments] == [None] * 2
    assert theirs.path_changed is False
    assert ours.queue_limited in {False, None}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_changed_byte_is_told_by_who_receives_it(there: Announcement, carrier: str, direction: str) -> None:
    box = Box(side=1 if direction == "down" else 0)
    ours, theirs = run(there, carrier, direction, box)
    assert box.changed == 2
    if direction == "down":
        assert [segment.altered for segment in ours.segments] == [True] * 2
    else:
        assert [segment.altered for segment in theirs.segments] == [True] * 2
    if carrier == "tls":
        assert theirs.outcome == "both_failed"
        assert {segment.end for segment in theirs.segments} <= {"aborted", "reset"}
        failures = {segment.failure for segment in ours.segments}
        assert (
            failures == {"altered_bytes"} if direction == "down" else failures <= {"connection_reset", "altered_bytes"}
        )
    else:
        assert theirs.outcome == "both", "nothing breaks by it, so the transfer goes on"
        assert [segment.failure for segment in ours.segments] == [None] * 2


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_box_that_means_one_arm_is_told_of_that_arm_alone(there: Announcement, carrier: str) -> None:
    sign = t.c.FLIGHTS["app"] if carrier == "stream" else t.c.APP.encode()
    ours, theirs = run(there, carrier, "up", Box(side=0, meant=lambda first: sign in first))
    assert {segment.arm for segment in theirs.segments if segment.altered} == {"app"}
    assert {segment.arm for segment in ours.segments if segment.altered} <= {"app"}


def test_a_rewritten_flight_is_a_mismatch_that_is_altered(there: Announcement) -> None:
    def rewrite(side: int, data: bytes) -> bytes:
        return data.replace(t.c.FLIGHTS["app"], t.c.FLIGHTS["app"][:-1] + b"?") if side == 0 else data

    _, theirs = run(there, "stream", "down", rewrite)
    by_arm = {segment.arm: segment for segment in theirs.segments}
    assert (by_arm["app"].end, by_arm["app"].altered) == ("mismatch", True)
    assert (by_arm["opaque"].end, by_arm["opaque"].altered) == ("complete", False)


def test_a_rewritten_name_is_a_mismatch_alone(there: Announcement) -> None:
    def rewrite(side: int, data: bytes) -> bytes:
        return data.replace(t.c.APP.encode(), b"x" * len(t.c.APP)) if side == 0 else data

    _, theirs = run(there, "hello", "down", rewrite)
    by_arm = {segment.arm: segment for segment in theirs.segments}
    assert (by_arm["app"].end, by_arm["app"].altered) == ("mismatch", False)


def test_a_changed_answer_is_told_by_the_probe(there: Announcement) -> None:
    def rewrite(side: int, data: bytes) -> bytes:
        return data.replace(t.c.ANSWERS["app"], t.c.ANSWERS["app"][:-1] + b"?") if side == 1 else data

    ours, _ = run(there, "stream", "down", rewrite)
    assert {segment.arm for segment in ours.segments if segment.altered} == {"app"}


def test_a_reset_in_the_middle_is_a_failure_and_not_altered(there: Announcement) -> None:
    class Cut:
        def __init__(self) -> None:
            self.passed = threading.local()

        def __call__(self, side: int, data: bytes) -> bytes:
            own = self.passed.__dict__
            own["bytes"] = own.get("bytes", 0) + len(data)
            if own["bytes"] > AFTER:
                raise ConnectionResetError
            return data

    ours, theirs = run(there, "tls", "down", Cut())
    assert theirs.outcome == "both_failed"
    assert [segment.altered for segment in (*ours.segments, *theirs.segments)] == [False] * 4
    assert {segment.failure for segment in ours.segments} == {"connection_reset"}


def test_another_certificate_is_altered(there: Announcement) -> None:
    step = RunSegment(
        pair=1,
        slot=0,
        endpoint=Endpoint(host=None, port=there.data_port),
        name=t.c.APP,
        ticket="ab" * 16,
        certificate="0" * 64,
        app="video",
        profile="video@1:0",
        direction="down",
        pace_mbps=8.0,
        segment_s=0.3,
    )
    facts = Transfers(Dialer(), "127.0.0.1").run_segment(step, ("h2",))
    assert facts.failure == "tls_wrong_certificate"
    found = measured(ProbePair(1, pair_over("tls", "down"), bytes(32), arms=("app", "neutral"), facts=[facts, facts]))
    assert [segment.altered for segment in found.segments] == [True, True]


# -- held back by the probe itself ---------------------------------------------------------------------------------


def sender(port_ready: Callable[[int], None], seconds: float) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port_ready(listener.getsockname()[1])
    sock, _ = listener.accept()
    sock.setblocking(True)
    sock.settimeout(0.1)
    end, piece = time.monotonic() + seconds, bytes(16_384)
    while time.monotonic() < end:
        try:
            sock.send(piece)
            time.sleep(0.005)  # 26 Mbit/s at most
        except TimeoutError:
            continue
        except OSError:
            break
    t.c.reset(sock)
    listener.close()


@pytest.mark.parametrize(("pause_s", "limited"), [(0.0, False), (0.03, True)])
def test_a_probe_that_does_not_read_in_time_says_so(
    pause_s: float, limited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports: list[int] = []
    thread = threading.Thread(target=sender, args=(ports.append, 0.6), daemon=True)
    thread.start()
    while not ports:
        time.sleep(0.01)
    sock = socket.create_connection(("127.0.0.1", ports[0]))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
    real = time.monotonic

    class Slow:
        """A program that is kept from reading: it falls asleep before each read."""

        @staticmethod
        def monotonic() -> float:
            if pause_s:
                time.sleep(pause_s)
            return real()

    if held.receive_fill(sock) is None:
        pytest.skip("this kernel does not tell how full a receive buffer is")
    monkeypatch.setattr(transfer, "time", Slow)
    moved, start = transfer._Moved(), real()
    transfer._receive(sock, memoryview(bytearray(16_384)), moved, transfer._Clock(start, 0.6, start + 2))
    thread.join(5)
    sock.close()
    assert held.was_held_back(moved.full_s, real() - start) is limited


def test_facts_of_a_transfer_tell_whether_it_was_held_back(there: Announcement) -> None:
    _, seen, _ = t.measure(there, [pair_over("tls", "up"), pair_over("tls", "down")])
    assert [isinstance(facts, SegmentFacts) and facts.queue_limited for facts in seen] == [False] * 4

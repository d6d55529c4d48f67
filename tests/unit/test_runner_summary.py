# SPDX-License-Identifier: EUPL-1.2
"""What a run tells people, from sessions run in memory and in virtual time on lines of known behaviour."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from evenlane.commands.probe_summary import plain, sentences, summary_of
from probe.nettests.base import Options
from probe.protocol.memory import MemoryReflector, VirtualClock, drive, even_transfer
from probe.protocol.probe_role import ProbeSession
from probe.protocol.steps import PlannedPair, RunSegment, SegmentFacts
from probe.runner import Ran, Request, request_of
from probe.upload import Uploaded
from probe.wire.envelope import seal
from probe.wire.messages import SessionRequest
from probe.wire.records import Environment, PairKind
from probe.wire.signing import SeedSigner

PROBE, REFLECTOR = SeedSigner(bytes(32)), SeedSigner(b"\1" * 32)
Transfer = Callable[[RunSegment, MemoryReflector], SegmentFacts]


def pair(kind: PairKind = "test", app: str = "youtube") -> PlannedPair:
    return PlannedPair(
        kind=kind,
        app=app,
        profile="youtube@1:0",
        direction="down",
        pace_mbps=8.0,
        segment_s=1.0,
        app_name="app.example" if kind == "test" else "two.example",
        neutral_name="one.example",
    )


def ran(plan: list[PlannedPair], transfer: Transfer) -> Ran:
    rng = random.Random(7)
    there = MemoryReflector(signer=REFLECTOR, clock=VirtualClock(1_800_000_000_000), random_bytes=rng.randbytes)
    session = ProbeSession(
        SessionRequest(v=1, probe=PROBE.key_id, nettest="differential", pairs=len(plan), segment_s=1.0, pace_mbps=8.0),
        random_bytes=rng.randbytes,
    )
    drive(session, there, plan, transfer)
    measurement = session.measurement(record_id="ab" * 16, sequence=4, environment=Environment())
    envelopes = (seal(measurement, PROBE), *([session.receipt] if session.receipt else []))
    paces = {p.pair: 8.0 for p in measurement.pairs}
    return Ran(session=session, measurement=measurement, envelopes=envelopes, segment_s=1.0, paces=paces)


def by_name(app: float, neutral: float = 8.0) -> Transfer:
    return even_transfer(lambda step: app if step.name == "app.example" else neutral)


def failing_app(step: RunSegment, at: MemoryReflector) -> SegmentFacts:
    if step.name == "app.example":
        return SegmentFacts(hello_sent=False, failure="connection_reset")
    return even_transfer(lambda _: 8.0)(step, at)


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return request_of("differential", Options(), reflector="https://127.0.0.1:1", state=tmp_path)


def test_a_slowed_app(request_: Request) -> None:
    done = ran([pair()] * 10, by_name(2.0))
    (line,) = summary_of(done)
    assert (line.pairs, line.lost, line.app_failed, line.neutral_failed) == (10, 0, 0, 0)
    told = plain(done, [line], request_)["apps"][0]
    assert told["slowdown"]["estimate"] == pytest.approx(0.75, abs=0.01)
    assert told["app_mbps"] == pytest.approx(2.0)
    assert told["neutral_mbps"] == pytest.approx(8.0)
    assert told["state"] == "indication"
    assert told["evidence"]["slowing"] > 20
    assert told["evidence"]["prioritising"] < 1
    assert told["detectable"] == {"rate_mbps": 5.6, "burst_kb": 150.0, "after_kb": 500.0}
    text = " ".join(sentences(done, [line], request_))
    assert "youtube, down: about 75 % slower than its neutral twin (2 against 8 Mbit/s, median of 10 pairs)" in text
    assert "an indication on this line" in text
    assert "violation" not in text


def test_the_coin_is_accounted_for_and_not_only_first_against_second(request_: Request) -> None:
    faster = summary_of(ran([pair()] * 10, by_name(8.0, neutral=4.0)))[0]
    assert faster.summary.interval.slowdown()[0] == pytest.approx(-1.0, abs=0.01)
    assert faster.app_mbps == pytest.approx(8.0)
    assert (
        "faster than its neutral twin"
        in sentences(ran([pair()] * 10, by_name(8.0, neutral=4.0)), [faster], request_)[0]
    )


def test_even_lanes(request_: Request) -> None:
    done = ran([pair()] * 12, by_name(8.0))
    (line,) = summary_of(done)
    assert line.state == "no_indication"
    text = sentences(done, [line], request_)
    assert "about as fast as its neutral twin" in text[0]
    assert "No indication" in text[0]
    early = ran([pair()] * 2, by_name(8.0))
    assert "No evidence either way yet" in sentences(early, summary_of(early), request_)[0]


def test_a_blocked_app(request_: Request) -> None:
    done = ran([pair()] * 10, failing_app)
    (line,) = summary_of(done)
    assert (line.app_failed, line.neutral_failed, line.app_mbps) == (10, 0, None)
    told = plain(done, [line], request_)["apps"][0]
    assert told["evidence"]["blocking"] > 20
    assert told["slowdown"]["estimate"] is None
    text = sentences(done, [line], request_)[0]
    assert "no rates to compare. In 10 pairs, the app failed 10 and the neutral twin 0 times." in text
    assert "for blocking: an indication on this line" in text


def test_placebo_pairs_stay_outside(request_: Request) -> None:
    plan = [pair(), pair("placebo")] * 6
    done = ran(plan, even_transfer(lambda step: 2.0 if step.name == "two.example" else 8.0))
    (line,) = summary_of(done)
    assert line.pairs == 6
    assert abs(line.summary.interval.estimate or 0) < 0.01
    assert plain(done, [line], request_)["pairs"] == {"finished": 12, "lost": 0, "placebo": 6}


def test_apps_are_told_in_the_order_in_which_they_were_measured() -> None:
    done = ran([pair(app="youtube"), pair(app="signal")] * 2, by_name(8.0))
    assert [line.app for line in summary_of(done)] == ["youtube", "signal"]


def test_upload_words(request_: Request, tmp_path: Path) -> None:
    done = ran([pair()], by_name(8.0))
    lines = summary_of(done)
    for uploaded, spooled, words in (
        (Uploaded(accepted=1), False, "The collector has the measurement."),
        (Uploaded(rejected=["conflict"]), False, "refused the measurement (conflict)"),
        (Uploaded(failure="connection_refused", detail="connection refused"), True, str(tmp_path / "spool")),
    ):
        told = dataclasses.replace(done, uploaded=uploaded, spooled=spooled)
        assert words in sentences(told, lines, request_)[-1]
        assert plain(told, lines, request_)["upload"]["spooled"] is spooled

# SPDX-License-Identifier: EUPL-1.2
"""What a run of concurrent pairs costs and tells: delay and loss of both lanes instead of rates."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from evenlane.commands.probe_summary import plain, sentences, summary_of
from probe.nettests.base import OptionError, Options
from probe.nettests.differential import Differential, carried, most_pace, packets_of
from probe.profiles.dress import dress
from probe.profiles.model import ProfileError, every, load, load_neutral, parse
from probe.profiles.schema import AppFile
from probe.protocol.concurrent import concurrent_pair_bytes
from probe.protocol.memory import MemoryReflector, Together, VirtualClock, drive, even_together, even_transfer
from probe.protocol.pacing import pair_bytes, segment_bytes
from probe.protocol.probe_role import ProbeSession
from probe.protocol.steps import PlannedPair
from probe.runner import Ran, Request, request_of
from probe.wire.envelope import seal
from probe.wire.messages import SessionRequest, SmallPackets
from probe.wire.records import Environment
from probe.wire.signing import SeedSigner

PROBE, REFLECTOR = SeedSigner(bytes(32)), SeedSigner(b"\1" * 32)
APP = "app.example"
PAIR = PlannedPair(
    kind="test", app="teams+live", profile="teams+live@2:0", direction="down", pace_mbps=20.0, segment_s=1.0,
    app_name=APP, neutral_name="one.example", design="concurrent",
    packets=SmallPackets(bytes=160, interval_ms=20, load_name="load.example"),
)  # fmt: skip
LIBRARY = Path(__file__).parents[2] / "probe" / "profiles" / "library"


def ran(plan: list[PlannedPair], together: Together) -> Ran:
    rng = random.Random(7)
    there = MemoryReflector(signer=REFLECTOR, clock=VirtualClock(1_800_000_000_000), random_bytes=rng.randbytes)
    session = ProbeSession(
        SessionRequest(v=1, probe=PROBE.key_id, nettest="differential", pairs=len(plan), segment_s=1.0, pace_mbps=20.0),
        random_bytes=rng.randbytes,
    )
    drive(session, there, plan, even_transfer(lambda _: 8.0), together=together)
    measurement = session.measurement(record_id="ab" * 16, sequence=4, environment=Environment())
    envelopes = (seal(measurement, PROBE), *([session.receipt] if session.receipt else []))
    paces = {p.pair: 20.0 for p in measurement.pairs}
    return Ran(session=session, measurement=measurement, envelopes=envelopes, segment_s=1.0, paces=paces)


def line_of(app_us: int, neutral_us: int, *, lost_every: int = 0) -> Together:
    """20 ms without load; then each arm its own, and the app loses every so manieth packet."""

    def echo(is_app: bool, place: int) -> int:
        if is_app and lost_every and place % lost_every == 0:
            return -1
        return 20_000 + place if place < 25 else (app_us if is_app else neutral_us) + place

    return even_together(lambda step, place: echo(step.name == APP, place))


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return request_of("differential", Options(), reflector="https://127.0.0.1:1", state=tmp_path)


def test_an_app_that_waits(request_: Request) -> None:
    done = ran([PAIR] * 10, line_of(90_000, 50_000))
    (line,) = summary_of(done)
    assert (line.app_mbps, line.neutral_mbps, line.detectable, line.state) == (None, None, None, "indication")
    told = plain(done, [line], request_)["apps"][0]
    assert told["design"] == "concurrent"
    assert told["delay"]["app_ms"] == pytest.approx(90.037)
    assert told["delay"]["neutral_ms"] == pytest.approx(50.037)
    assert told["delay"]["difference_ms"]["estimate"] == pytest.approx(40.0, abs=0.1)
    assert told["loss"]["app"] == told["loss"]["neutral"] == 0.0
    assert told["queued_pairs"] == 10
    assert told["evidence"]["slowing"] > 20
    assert told["evidence"]["prioritising"] < 1
    text = " ".join(sentences(done, [line], request_))
    assert "teams+live, down: about 40 ms later than its neutral twin (90 against 50 ms behind the load" in text
    assert "hardly a packet lost" in text
    assert "Mbit/s" not in text
    assert f"{10 * 10e6 / 8 * 0.5 / 1e6 + 10 * 2 * 50 * 160 / 1e6:.1f} MB" in text, "the load is told too"


def test_an_app_whose_packets_are_lost(request_: Request) -> None:
    done = ran([PAIR] * 12, line_of(50_000, 50_000, lost_every=10))
    (line,) = summary_of(done)
    told = plain(done, [line], request_)["apps"][0]
    assert told["loss"]["app"] == pytest.approx(0.1)
    assert told["loss"]["difference"]["estimate"] == pytest.approx(0.1, abs=0.01)
    assert "10.0% of its packets lost against 0.0%" in sentences(done, [line], request_)[0]


def test_an_app_that_is_favoured_is_told_so(request_: Request) -> None:
    done = ran([PAIR] * 10, line_of(25_000, 90_000))
    (line,) = summary_of(done)
    assert "about 65 ms earlier than its neutral twin" in sentences(done, [line], request_)[0]
    assert plain(done, [line], request_)["apps"][0]["evidence"]["prioritising"] > 20


def test_a_line_that_the_load_did_not_fill_bets_nothing(request_: Request) -> None:
    done = ran([PAIR] * 10, line_of(20_000, 20_000))
    (line,) = summary_of(done)
    assert line.delays is not None
    assert line.delays.queued == 0
    text = sentences(done, [line], request_)[0]
    assert "about as quick as its neutral twin" in text
    assert "Only 0 of 10 pairs met a queue; the others bet nothing" in text
    assert plain(done, [line], request_)["apps"][0]["evidence"]["slowing"] == 1.0


def test_rates_are_told_as_before(request_: Request) -> None:
    done = ran([replace(PAIR, app="teams", design="sequential", packets=None)] * 4, line_of(0, 0))
    (line,) = summary_of(done)
    told = plain(done, [line], request_)["apps"][0]
    assert (told["design"], told["delay"], told["loss"], told["queued_pairs"]) == ("sequential", None, None, None)
    assert told["app_mbps"] == pytest.approx(8.0)


# -- what it costs, and what it asks for ---------------------------------------------------------------------------

LIVE = [app for app in every() if load(app).live is not None]


def test_the_estimate_holds_the_load() -> None:
    options = Options(apps=("rtp+live",), pairs=10, segment_s=2.0, pace_mbps=30.0)
    cost, packets = Differential().cost(options), packets_of(load("rtp+live"), "")
    assert packets is not None
    assert cost.pairs == 11
    assert cost.bytes == 11 * concurrent_pair_bytes(30.0, 2.0, packets)
    assert cost.bytes > 11 * 30e6 / 8 * 1.5
    assert Differential().cost(replace(options, pace_mbps=0.0)).bytes is None


def test_the_estimate_of_a_mixed_run_reckons_with_the_dearest_placebo() -> None:
    options = Options(apps=("teams", "teams+live"), pairs=5, segment_s=1.0)
    packets = packets_of(load("teams+live"), "")
    assert packets is not None
    each = [pair_bytes(12.0, 1.0), concurrent_pair_bytes(20.0, 1.0, packets)]
    calibrations = 2 * segment_bytes(20.0 / 0.6, 1.0)
    assert Differential().cost(options).bytes == 5 * sum(each) + max(each) + calibrations


def test_a_session_with_a_load_asks_for_the_pace_of_its_calibration() -> None:
    assert most_pace(Options(), [load("teams")]) == 12.0
    assert most_pace(Options(), [load("teams"), load("teams+live")]) == 20.0
    assert most_pace(Options(pace_mbps=7.0), [load("teams+live")]) == 7.0


def test_half_a_second_is_too_short() -> None:
    with pytest.raises(OptionError, match=r"rtp\+live needs segments of at least 1 s"):
        Differential().cost(Options(apps=("rtp+live",), segment_s=0.9))


def test_a_reflector_without_concurrent_pairs_is_not_asked_for_them() -> None:
    kept, left_out = carried([load("teams"), load("teams+live")], ("tls",), ("sequential",))
    assert kept == [load("teams")]
    assert left_out == "this reflector does not carry concurrent pairs, so teams+live is left out"


# -- profiles ------------------------------------------------------------------------------------------------------


def test_there_are_calls_and_a_game_over_udp_and_a_call_over_tcp() -> None:
    kinds = {(load(app).kind, load(app).carrier) for app in LIVE}
    assert {("call_media", "datagram"), ("call_signalling", "datagram"), ("game", "datagram")} <= kinds
    assert ("call_signalling", "tls") in kinds
    for app in LIVE:
        profile = load(app)
        assert profile.live is not None
        assert profile.design == "concurrent"
        assert profile.id == f"{profile.app}+live"
        assert profile.title.en.endswith(", delay and loss")
        kbps = profile.live.packet_bytes * 8 / profile.live.interval_ms
        assert 20 <= kbps <= 100, "as much as speech or a game takes"


@pytest.mark.parametrize("app", LIVE)
def test_the_loads_name_is_nobody_elses(app: str) -> None:
    for seed in range(20):
        arms = dress(load(app), load_neutral(), random.Random(seed), random.Random(seed).randbytes)
        assert arms.load not in {"", arms.app.name, arms.control.name, arms.placebo.name}
        assert not any(arms.load.endswith(name.partition(".")[2]) for name in load(app).names)


def test_a_profile_without_a_live_table_has_no_load() -> None:
    assert dress(load("teams"), load_neutral(), random.Random(1), random.Random(1).randbytes).load == ""


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('carrier = "quic"\npacket_bytes = 160\ninterval_ms = 20', "live.carrier: the app has no carrier quic"),
        ('carrier = "tls"\npacket_bytes = 79\ninterval_ms = 20', "live.packet_bytes"),
        ('carrier = "tls"\npacket_bytes = 160\ninterval_ms = 4', "live.interval_ms"),
        ('carrier = "tls"\npacket_bytes = 160', "live.interval_ms"),
        ('carrier = "tls"\npacket_bytes = 160\ninterval_ms = 20\nrate = 1', "live.rate: unknown key"),
    ],
)
def test_a_wrong_live_table_is_refused_by_its_path(line: str, why: str) -> None:
    content = (LIBRARY / "zoom.toml").read_text() + f"\n[live]\n{line}\n"
    with pytest.raises(ProfileError, match=why):
        parse(AppFile, content, "zoom.toml")

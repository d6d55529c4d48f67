# SPDX-License-Identifier: EUPL-1.2
"""Order of the pairs, names, cost: everything the differential nettest fixes before a coin."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from random import Random
from types import MappingProxyType
from typing import get_args

import pytest

from probe.nettests.base import OptionError, Options
from probe.nettests.differential import Differential, Slot, carried, planned, schedule
from probe.nettests.registry import NETTESTS, get
from probe.profiles.dress import dress
from probe.profiles.model import ProfileError, Shelf, every, load, load_neutral
from probe.protocol.accounts import Limits
from probe.protocol.booking import Booking, Identity
from probe.protocol.memory import MemoryReflector, VirtualClock, drive, even_together, even_transfer, send
from probe.protocol.pacing import pair_bytes
from probe.protocol.probe_role import ProbeSession
from probe.protocol.steps import AwaitPlan, Finished, Send
from probe.wire.envelope import open_record
from probe.wire.messages import SessionRequest
from probe.wire.records import CONTROL_ARMS, Carrier, Direction, PlannedProfile, Receipt, Software
from probe.wire.signing import SeedSigner

APPS = ("youtube", "instagram", "signal")


def without_placebo(slots: list[Slot]) -> list[Slot]:
    return [slot for slot in slots if slot.kind == "test"]


def test_apps_rotate_pair_by_pair() -> None:
    slots = without_placebo(schedule(APPS, Options(pairs=4), Random(1)))
    assert [slot.app for slot in slots] == list(APPS) * 4
    both = without_placebo(schedule(APPS, Options(pairs=2, direction="both"), Random(1)))
    assert [(slot.direction, slot.app) for slot in both[:6]] == [(d, a) for d in ("down", "up") for a in APPS]
    assert len(both) == 12


@pytest.mark.parametrize("pairs", [1, 3, 10, 20])
def test_one_extra_pair_in_ten_is_a_placebo_wherever_it_falls(pairs: int) -> None:
    counts, places = [], Counter[int]()
    for seed in range(2000):
        slots = schedule(APPS, Options(pairs=pairs), Random(seed))
        assert len(without_placebo(slots)) == 3 * pairs
        placebo = [i for i, slot in enumerate(slots) if slot.kind == "placebo"]
        counts.append(len(placebo))
        places.update(placebo)
    expected = 3 * pairs / 10
    assert sum(counts) / len(counts) == pytest.approx(expected, rel=0.12)
    assert max(counts) - min(counts) <= 1
    assert len(places) >= min(10, 3 * pairs)  # no place is certain to be free of one


def test_the_names_of_a_session() -> None:
    profile = load("youtube")
    arms = dress(profile, load_neutral(), Random(2), Random(2).randbytes)
    app, control, placebo = arms.app.name, arms.control.name, arms.placebo.name
    assert app in profile.names
    assert len({app, control, placebo}) == 3
    assert len(app) == len(control) == len(placebo)

    test = planned(Slot("test", "youtube", "down"), profile, arms, pace=5.0, segment_s=1.0)
    assert (test.app_name, test.neutral_name, test.profile) == (app, control, profile.reference)
    assert (test.carrier, test.app_wire, test.neutral_wire) == ("tls", None, None)
    void = planned(Slot("placebo", "youtube", "down"), profile, arms, pace=5.0, segment_s=1.0)
    assert (void.app_name, void.neutral_name) == (placebo, control)


def test_sessions_draw_other_names() -> None:
    profile, pool = load("youtube"), load_neutral()
    drawn = [dress(profile, pool, Random(seed), Random(seed).randbytes) for seed in range(60)]
    assert {arms.app.name for arms in drawn} == set(profile.names)
    assert len({arms.control.name for arms in drawn}) > 40


def test_the_cost_is_told_before_and_is_an_upper_bound() -> None:
    nettest = Differential()
    for seed in range(200):
        options = Options(pairs=7, pace_mbps=5.0, segment_s=2.0)
        slots = schedule(APPS, options, Random(seed))
        cost = nettest.cost(options)
        assert cost.pairs >= len(slots)
        assert cost.bytes is not None
        assert cost.bytes >= len(slots) * pair_bytes(5.0, 2.0)
        assert cost.seconds >= len(slots) * 4.0
    calibrated = nettest.cost(Options(pairs=7, segment_s=2.0))
    assert calibrated.bytes is not None
    assert calibrated.bytes > nettest.cost(Options(pairs=7, segment_s=2.0, pace_mbps=12.0)).bytes  # type: ignore[operator]
    assert nettest.cost(Options(pace_mbps=0)).bytes is None


@pytest.mark.parametrize(
    "options",
    [
        Options(pairs=0),
        Options(pairs=513),
        Options(pairs=200),
        Options(segment_s=0.1),
        Options(segment_s=61.0),
        Options(segment_s=float("nan")),
        Options(pace_mbps=-1.0),
        Options(pace_mbps=0.05),
        Options(pace_mbps=float("nan")),
        Options(pace_mbps=1e9),
    ],
)
def test_options_that_cannot_be_run_are_refused_in_one_sentence(options: Options) -> None:
    with pytest.raises(OptionError) as caught:
        Differential().cost(options)
    assert "\n" not in str(caught.value)


def test_unknown_apps_and_nettests_are_refused_and_doubles_counted_once() -> None:
    with pytest.raises(ProfileError, match="yuotube"):
        Differential().cost(Options(apps=("yuotube",)))
    with pytest.raises(OptionError, match="known are differential"):
        get("diferential")
    once = Differential().cost(Options(apps=("youtube",), pairs=10))
    assert Differential().cost(Options(apps=("youtube", "youtube"), pairs=10)) == once


def test_the_registry_names_each_nettest_as_it_calls_itself() -> None:
    assert all(name == nettest.id for name, nettest in NETTESTS.items())


# -- carriers ---------------------------------------------------------------------------------------------------------

ALL: tuple[Carrier, ...] = get_args(Carrier)


class MemoryTools:
    """What the runner lends a nettest, with both ends of the protocol in this process."""

    probe_key = SeedSigner(b"\x01" * 32, "cryptography").key_id
    software = Software(version="1")

    def __init__(self, carriers: tuple[Carrier, ...] = ALL) -> None:
        signer = SeedSigner(b"\x02" * 32, "cryptography")
        clock = VirtualClock(1_750_000_000_000)
        self.reflector = MemoryReflector(signer=signer, clock=clock, random_bytes=os.urandom)
        identity = Identity(key_id=signer.key_id, data_certificate="0" * 64, carriers=carriers)
        self.reflector.booking = Booking(identity=identity, limits=Limits(), random_bytes=os.urandom)
        self.calibrated: list[str] = []
        self.alpn: Mapping[str, tuple[str, ...]] = {}
        self.shapes: Mapping[str, str] = {}

    def open(self, request: SessionRequest) -> ProbeSession:
        session = ProbeSession(request, random_bytes=os.urandom)
        while not isinstance(step := session.next(self.reflector.clock.now_ms), AwaitPlan | Finished):
            assert isinstance(step, Send)
            found = send(step, self.reflector)
            session.answered(found.status, found.body, self.reflector.clock.now_ms)
        return session

    def calibrate(
        self, session: ProbeSession, *, name: str, alpn: tuple[str, ...], direction: Direction
    ) -> float | None:
        session.calibration(name=name, direction=direction)
        self.calibrated.append(name)
        assert alpn
        return 10.0

    def drive(
        self,
        session: ProbeSession,
        *,
        alpn: Mapping[str, tuple[str, ...]],
        shapes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.alpn, self.shapes = alpn, shapes
        together = even_together(lambda _, place: 20_000 + place)
        drive(session, self.reflector, [], even_transfer(lambda _: 5.0), together=together)


def receipt_of(session: ProbeSession) -> Receipt:
    assert session.receipt is not None
    record = open_record(session.receipt)
    assert isinstance(record, Receipt)
    return record


def test_every_profile_can_be_measured_by_its_carrier() -> None:
    tools = MemoryTools()
    session = Differential().run(tools, Options(apps=every(), pairs=1, segment_s=1.0, pace_mbps=2.0))
    assert (session.failure, session.complaint) == (None, "")
    pairs = receipt_of(session).pairs
    assert {pair.app for pair in pairs} == set(every())
    assert all(pair.outcome == "both" for pair in pairs)
    for pair in pairs:
        profile = load(pair.app)
        assert (pair.carrier, pair.profile, pair.design) == (profile.carrier, profile.reference, profile.design)
        assert all(bool(segment.echo_us) == (profile.live is not None) for segment in pair.segments)
        assert {segment.arm for segment in pair.segments} == {"app", CONTROL_ARMS[profile.carrier]}
        flights = {pair.app_flight, pair.neutral_flight}
        assert len(flights) == (1 if profile.carrier in {"tls", "hello"} else 2)
        assert {segment.flight_seen for segment in pair.segments} == flights
    assert tools.shapes == {app: load(app).shape for app in every() if load(app).carrier == "hello"}
    assert tools.alpn["youtube+quic"] == ("h3",)


def test_a_placebo_pair_of_first_bytes_compares_two_that_say_nothing() -> None:
    profile = load("wireguard")
    arms = dress(profile, load_neutral(), Random(2), Random(2).randbytes)
    test = planned(Slot("test", "wireguard", "down"), profile, arms, pace=5.0, segment_s=1.0)
    placebo = planned(Slot("placebo", "wireguard", "down"), profile, arms, pace=5.0, segment_s=1.0)
    assert test.app_wire is not None
    assert placebo.app_wire is not None
    assert placebo.neutral_wire == test.neutral_wire
    assert (test.app_name, test.neutral_name) == ("wireguard", "opaque")
    assert (placebo.app_name, placebo.neutral_name) == ("opaque-2", "opaque")
    assert test.app_wire.flight[:4] == b"\1\0\0\0" != placebo.app_wire.flight[:4]
    assert len({len(w.flight) for w in (test.app_wire, placebo.app_wire) if w}) == 1


def test_what_a_reflector_cannot_carry_is_left_out_and_said() -> None:
    apps = ("youtube", "youtube+quic", "netflix+hello", "wireguard")
    tools = MemoryTools(("tls", "hello"))
    session = Differential().run(tools, Options(apps=apps, pairs=10, segment_s=0.2, pace_mbps=2.0))
    assert session.failure is None
    assert session.complaint == (
        "this reflector does not carry quic, datagram, so youtube+quic, wireguard are left out"
    )
    pairs = receipt_of(session).pairs
    counts = Counter(pair.app for pair in pairs if pair.kind == "test")
    assert counts == {"youtube": 10, "netflix+hello": 10}
    assert [pair.kind for pair in pairs].count("placebo") == 2


def test_a_run_of_nothing_that_can_be_carried_ends_and_says_why() -> None:
    tools = MemoryTools(("tls",))
    session = Differential().run(tools, Options(apps=("wireguard",), segment_s=0.2))
    assert session.results == ()
    assert session.failure == "refused_by_peer"
    assert session.complaint == "this reflector does not carry datagram, so wireguard is left out"
    assert receipt_of(session).pairs == ()
    assert tools.calibrated == []
    assert carried([load("youtube")], ("tls",)) == ([load("youtube")], "")


def test_calibration_is_under_a_neutral_name_whatever_is_measured() -> None:
    domains = load_neutral().domains
    for apps in (("wireguard",), ("youtube+quic",), ("bittorrent", "netflix"), ("signal+hello",)):
        tools = MemoryTools()
        session = Differential().run(tools, Options(apps=apps, pairs=1, segment_s=0.2))
        assert session.failure is None
        (name,) = tools.calibrated
        assert name.endswith(domains)
        assert {pair.pace_mbps for pair in receipt_of(session).pairs} == {6.0}


def test_a_plans_profile_is_what_is_measured() -> None:
    document = Shelf().document("youtube").replace('"version":1', '"version":7')
    options = Options(
        apps=("youtube+quic",),
        pairs=1,
        segment_s=0.2,
        pace_mbps=2.0,
        delivered=(PlannedProfile(id="youtube", document=document),),
    )
    Differential().cost(options)
    pairs = receipt_of(Differential().run(MemoryTools(), options)).pairs
    assert {pair.profile.partition(":")[0] for pair in pairs} == {"youtube+quic@7"}

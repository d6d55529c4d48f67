# SPDX-License-Identifier: EUPL-1.2
"""Slots of the line, quotas by token and then by network, and refusals that cost the same however full it is."""

from __future__ import annotations

import gc
import json
import random
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.protocol import coin
from probe.protocol.accounts import Limits, Refusal
from probe.protocol.memory import MemoryReflector, VirtualClock, drive, even_transfer
from probe.protocol.probe_role import ProbeSession
from probe.protocol.quota import LEAST_OFFER, Room, line_mbps
from probe.protocol.session import decode_message, encode_message
from probe.protocol.steps import PlannedPair, RunSegment, SegmentFacts
from probe.wire.envelope import open_record
from probe.wire.messages import PairCommit, PairNonce, PairOrder, PairReveal, SessionGrant, SessionRequest
from probe.wire.records import Receipt
from probe.wire.signing import SeedSigner

NOW = 1_800_000_000_000
KEY = SeedSigner(b"\x01" * 32).key_id
MARGIN = 0.01


class Crowd:
    """Sessions from many networks against one reflector in memory."""

    def __init__(self, endpoints: int = 1, **limits: Any) -> None:
        self.clock = VirtualClock(NOW)
        self.there = MemoryReflector(
            signer=SeedSigner(b"\x02" * 32),
            clock=self.clock,
            random_bytes=random.Random(7).randbytes,
            limits=Limits(**limits),
            endpoints=endpoints,
        )
        self.rng = random.Random(8)

    def open(self, prefix: str = "home", pace: float = 12.0) -> SessionGrant | tuple[int, str]:
        wish = SessionRequest(v=1, probe=KEY, nettest="differential", pairs=512, segment_s=4, pace_mbps=pace)
        found = self.there.request("POST", "/v1/sessions", encode_message(wish), prefix=prefix)
        if found.status == 201:
            return decode_message(SessionGrant, found.body)
        assert found.retry_after_s
        return found.status, found.error

    def granted(self, prefix: str = "home", pace: float = 12.0) -> SessionGrant:
        found = self.open(prefix, pace)
        assert isinstance(found, SessionGrant), found
        return found

    def post(self, grant: SessionGrant, path: str, body: Any) -> Any:
        return self.there.request("POST", f"/v1/sessions/{grant.session}{path}", encode_message(body), grant.token)

    def begin(self, grant: SessionGrant, pair: int = 1, **other: Any) -> tuple[PairNonce, PairOrder]:
        nonce = self.rng.randbytes(32)
        fields = {"pair": pair, "commit": coin.commitment(nonce), "kind": "test", "app": "a", "profile": "p"}
        fields |= {"direction": "down", "pace_mbps": grant.most_pace_mbps, "segment_s": 4}
        fields |= {"app_name": "a.net", "neutral_name": "b.net", **other}
        found = self.post(grant, "/pairs", PairCommit(**fields))  # type: ignore[arg-type]
        assert found.status == 200, found.body
        order = self.post(grant, f"/pairs/{pair}/reveal", PairReveal(nonce=nonce.hex()))
        return decode_message(PairNonce, found.body), decode_message(PairOrder, order.body)

    def close(self, grant: SessionGrant) -> None:
        path = f"/v1/sessions/{grant.session}/close"
        assert self.there.request("POST", path, b'{"reason":"done"}', grant.token).status == 200

    @property
    def booked(self) -> float:
        return self.there.booking.booked_mbps


# -- slots of the line --------------------------------------------------------------------------------------------


def test_a_session_books_its_pace_and_more_until_its_first_pair() -> None:
    crowd = Crowd(capacity_mbps=100)
    grant = crowd.granted(pace=10)
    assert crowd.booked == pytest.approx(10 * 1.06 / 0.6, abs=MARGIN)
    crowd.begin(grant)
    assert crowd.booked == pytest.approx(10.6, abs=MARGIN)
    crowd.close(grant)
    assert crowd.booked == 0


def test_what_is_promised_never_exceeds_the_line() -> None:
    crowd = Crowd(capacity_mbps=100, newcomers=0)
    grants = []
    while isinstance(found := crowd.open(pace=12), SessionGrant):
        grants.append(found)
    assert found == (503, "busy")
    paces = [grant.most_pace_mbps for grant in grants]
    assert paces[:4] == [12, 12, 12, 12]
    assert LEAST_OFFER * 12 <= paces[4] < 12, "the last one is offered what is left"
    assert len(paces) == 5
    assert sum(line_mbps(pace, calibrating=True) for pace in paces) <= 100
    crowd.close(grants[0])
    assert crowd.granted(pace=12).most_pace_mbps == 12


def test_a_small_line_serves_one_at_the_pace_it_has() -> None:
    crowd = Crowd(capacity_mbps=10)
    assert crowd.granted(pace=12).most_pace_mbps == pytest.approx(10 * 0.6 / 1.06)
    assert crowd.open("elsewhere", pace=12) == (503, "busy")
    assert Crowd(capacity_mbps=10).granted(pace=0).most_pace_mbps == pytest.approx(10 * 0.6 / 1.06)
    assert Crowd(capacity_mbps=1000, most_pace_mbps=50).granted(pace=0).most_pace_mbps == 50
    assert Crowd().granted(pace=0).most_pace_mbps == 0


@given(
    events=st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 0.5, 4.0, 12.0, 80.0]), st.integers(0, 2)),
        max_size=60,
    ),
    capacity=st.sampled_from([5.0, 60.0, 333.3]),
    newcomers=st.sampled_from([0.0, 0.25, 1.0]),
)
def test_booking_adds_up_whatever_happens(events: Any, capacity: float, newcomers: float) -> None:
    room, open_sessions, now = Room(Limits(capacity_mbps=capacity, newcomers=newcomers)), {}, NOW
    for number, (prefix, pace, what) in enumerate(events):
        now += 100
        if what == 0 or not open_sessions:
            offer = room.offer(pace, prefix)
            if not isinstance(offer, Refusal):
                assert offer > 0
                room.take(str(number), prefix, offer, now)
                open_sessions[str(number)] = (offer, True)
        elif what == 1:
            first = next(iter(open_sessions))
            room.calibrated(first, open_sessions[first][0])
            open_sessions[first] = (open_sessions[first][0], False)
        else:
            room.give_back(next(iter(open_sessions)))
            del open_sessions[next(iter(open_sessions))]
        expected = sum(line_mbps(pace, calibrating=young) for pace, young in open_sessions.values())
        assert room.booked_mbps == pytest.approx(expected, abs=0.001 * (len(open_sessions) + 1))
        assert room.booked_mbps <= capacity + 0.001 * (len(open_sessions) + 1)
    for session in list(open_sessions):
        room.give_back(session)
    assert room.booked_mbps == 0
    room.tick(now + 120_000)
    assert room.networks_known == 0


# -- networks -----------------------------------------------------------------------------------------------------


def test_two_hundred_neighbours_behind_one_address_are_all_served() -> None:
    crowd = Crowd()
    grants = [crowd.granted("one address") for _ in range(200)]
    for grant in grants:
        crowd.begin(grant)
    assert crowd.there.booking.sessions_open == 200


def test_neighbours_are_served_as_long_as_the_line_has_room() -> None:
    """At the defaults of a public reflector, and a third of the pace of the usual pairs."""
    crowd = Crowd(capacity_mbps=500.0, most_pace_mbps=50.0)
    served = 0
    while isinstance(found := crowd.open("one address", pace=4.0), SessionGrant):
        crowd.begin(found)
        served += 1
    assert served >= 80


def test_a_greedy_network_leaves_room_for_the_others() -> None:
    crowd = Crowd(capacity_mbps=200.0)
    while not isinstance(crowd.open("greedy"), tuple):
        assert crowd.booked <= 150
    assert [crowd.granted(f"home {n}").most_pace_mbps for n in range(2)] == [12, 12]
    assert crowd.booked <= 200
    crowd = Crowd(sessions=500, sessions_per_prefix=256)
    assert [type(crowd.open("greedy")) for _ in range(256)] == [SessionGrant] * 256
    assert crowd.open("greedy") == (429, "quota")
    assert all(isinstance(crowd.open(f"home {n}"), SessionGrant) for n in range(244))
    assert crowd.open("home 244") == (503, "busy")


def test_a_network_that_opens_and_closes_for_ever_is_slowed_down() -> None:
    crowd = Crowd(openings_per_minute=30)
    for _ in range(30):
        crowd.close(crowd.granted("restless"))
    assert crowd.open("restless") == (429, "quota")
    crowd.close(crowd.granted("calm"))
    crowd.clock.advance(2000)
    crowd.close(crowd.granted("restless"))
    assert crowd.open("restless") == (429, "quota")
    crowd.clock.now_ms -= 3_600_000
    crowd.close(crowd.granted("calm"))
    crowd.clock.now_ms += 3_600_000 + 60_000
    crowd.close(crowd.granted("restless"))


def test_a_clock_that_is_set_back_locks_nobody_out() -> None:
    crowd = Crowd(openings_per_minute=1)
    crowd.close(crowd.granted())
    crowd.clock.now_ms -= 3_600_000
    assert crowd.open() == (429, "quota")
    crowd.there.tick()
    crowd.clock.now_ms += 61_000
    assert isinstance(crowd.open(), SessionGrant)


def test_a_token_that_is_used_up_harms_nobody_else() -> None:
    crowd = Crowd(session_bytes=30_000_000)
    spender, neighbour = crowd.granted("cgnat"), crowd.granted("cgnat")
    for pair in (1, 2):
        crowd.begin(spender, pair)
        facts = {"started": True, "bytes": 0, "duration_ms": 0}
        body = json.dumps({"segments": [facts, facts]}).encode()
        path = f"/v1/sessions/{spender.session}/pairs/{pair}/finish"
        assert crowd.there.request("POST", path, body, spender.token).status == 200
    fields = {"pair": 3, "commit": "0" * 64, "kind": "test", "app": "a", "profile": "p", "direction": "down"}
    fields |= {"pace_mbps": 12.0, "segment_s": 4, "app_name": "a.net", "neutral_name": "b.net"}
    found = crowd.post(spender, "/pairs", PairCommit(**fields))  # type: ignore[arg-type]
    assert (found.status, found.error) == (429, "quota")
    crowd.begin(neighbour)
    assert isinstance(crowd.open("cgnat"), SessionGrant)


def test_a_place_that_is_only_held_is_given_free() -> None:
    """Asking the same again keeps the control channel awake, but begins no pair."""
    crowd = Crowd(capacity_mbps=100)
    holder, worker = crowd.granted("holder"), crowd.granted("worker")
    crowd.begin(holder)
    finish = {"started": True, "bytes": 0, "duration_ms": 0}
    body = json.dumps({"segments": [finish, finish]}).encode()
    for step in range(14):
        crowd.clock.advance(10_000)
        for grant, pair in ((holder, 1), (worker, step + 1)):
            if grant is worker:
                crowd.begin(worker, pair)
            path = f"/v1/sessions/{grant.session}/pairs/{pair}/finish"
            status = crowd.there.request("POST", path, body, grant.token).status
            assert status == (200 if grant is worker or step < 13 else 409)
        crowd.there.tick()
    assert list(crowd.there.receipts) == [holder.session]
    assert crowd.there.booking.sessions_open == 1
    assert crowd.booked == pytest.approx(12 * 1.06, abs=MARGIN)


def calls(what: Any) -> int:
    """How many Python functions run."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    gc.disable()  # whoever listens to the collector would be counted when it happens to run
    sys.setprofile(note)
    try:
        what()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


@pytest.mark.parametrize("full", ["sessions", "prefix", "line", "stopping"])
def test_a_refusal_costs_the_same_however_many_are_open(full: str) -> None:
    def cost(count: int) -> int:
        limits: dict[str, Any] = {"sessions": count, "sessions_per_prefix": count}
        limits |= {
            "prefix": {"sessions": 10 * count},
            "line": {"sessions": 10 * count, "sessions_per_prefix": count * 2},
        }.get(full, {})
        if full == "line":
            limits |= {"capacity_mbps": count * line_mbps(1.0, calibrating=True), "newcomers": 0}
        crowd = Crowd(openings_per_minute=10_000, **limits)
        for _ in range(count):
            crowd.granted(pace=1.0)
        if full == "stopping":
            crowd.there.stop()
        refused: list[Any] = []
        found = calls(lambda: refused.append(crowd.open(pace=1.0)))
        assert refused[0] in {(503, "busy"), (429, "quota"), (503, "stopping")}
        return found

    assert cost(400) <= cost(4) + 2


# -- endpoints ----------------------------------------------------------------------------------------------------


def test_endpoints_are_drawn_evenly_and_apart_from_the_coin() -> None:
    """Endpoint and coin together are uniform over their eight values; the draws are seeded: no lottery."""
    crowd = Crowd(endpoints=4, openings_per_minute=10_000)
    drawn: Counter[tuple[int, bool]] = Counter()
    finish = json.dumps({"segments": []}).encode()
    for _ in range(20):
        grant = crowd.granted(pace=0.1)
        for pair in range(1, 201):
            nonce, order = crowd.begin(grant, pair, segment_s=0.2)
            drawn[nonce.endpoint, order.neutral_first] += 1
            path = f"/v1/sessions/{grant.session}/pairs/{pair}/finish"
            assert crowd.there.request("POST", path, finish, grant.token).status == 200
        crowd.close(grant)
    assert len(drawn) == 8
    expected = 4000 / 8
    chi_square = sum((count - expected) ** 2 / expected for count in drawn.values())
    assert chi_square < 29.9, "7 degrees of freedom: a fair draw exceeds this once in ten thousand"


def test_both_segments_of_a_pair_go_to_its_endpoint() -> None:
    crowd = Crowd(endpoints=4)
    here = ProbeSession(
        request=SessionRequest(v=1, probe=KEY, nettest="differential", pairs=30, segment_s=1, pace_mbps=8),
        random_bytes=random.Random(5).randbytes,
    )
    even, steps = even_transfer(lambda step: 8.0), []

    def transfer(step: RunSegment, reflector: MemoryReflector) -> SegmentFacts:
        steps.append(step)
        return even(step, reflector)

    planned = PlannedPair(
        kind="test",
        app="a",
        profile="p",
        direction="down",
        pace_mbps=8,
        segment_s=1,
        app_name="app.example.net",
        neutral_name="two.example.org",
    )
    assert drive(here, crowd.there, [planned] * 30, transfer).failure is None
    ports = {(step.pair, step.slot): step.endpoint.port for step in steps}
    assert len(ports) == 60
    assert all(ports[pair, 0] == ports[pair, 1] for pair in range(1, 31))
    assert len(set(ports.values())) == 4
    (envelope,) = crowd.there.receipts.values()
    receipt = open_record(envelope)
    assert isinstance(receipt, Receipt)
    assert [443 + pair.endpoint for pair in receipt.pairs] == [ports[pair.pair, 0] for pair in receipt.pairs]

# SPDX-License-Identifier: EUPL-1.2
"""The modelled sender behaves as TCP does, and the virtual box as the lab's own middlebox with real packets."""

from __future__ import annotations

import itertools
import math
import random
import socket
import ssl
import statistics
import struct
from dataclasses import replace
from typing import Any

import pytest

from lab.accuracy import tcp
from lab.accuracy.home import HELD, INFINITY, Home, Told
from lab.accuracy.lines import Boosted, Fair, Line, Way, line
from lab.accuracy.tcp import MSS, PACKET, Transfer, received_bins
from lab.classify import TCP, FlowFacts, Match
from lab.links import LinkQueue
from lab.middlebox import INTERNET, Middlebox
from lab.model import CrossTraffic, Link, Rule, Scenario
from lab.packets import ACK, SYN, checksum
from lab.scenario import ScenarioError
from lab.subscriber import RuleFlow

NAME = "rr1---sn-4g5e6nzz.googlevideo.com"
VIDEO = Match(sni=("*.googlevideo.com",))
LINK = Link(down_mbps=50, up_mbps=10, rtt_ms=20, buffer_ms=100)
SERVER, HOME = socket.inet_aton("192.0.2.10"), socket.inet_aton("198.18.1.11")


def home_of(link: Link = LINK, rules: tuple[Rule, ...] = (), cross: CrossTraffic | None = None, **options: Any) -> Home:
    return Home(line(Scenario("x", link, cross, rules), options, "s/0"), list(rules), "s/0")


def video(home: Home) -> RuleFlow:
    flow = home.open(TCP, 443)
    flow.facts = FlowFacts(proto=TCP, server_port=443, sni=NAME, payload="tls", established=True, complete=True)
    home.learn(flow)
    return flow


def rate(home: Home, *, pace: float = 12.0, segment_s: float = 1.0, way: Way = "down", **how: Any) -> float:
    """Mbit/s in the last half of a transfer."""
    transfer = Transfer(home, video(home), way, pace_mbps=pace, rtt_s=0.02, **how)
    transfer.run(0.0, segment_s)
    bins = received_bins(transfer.progress, 0.0, segment_s)
    return sum(bins[len(bins) // 2 :]) * 8 / (segment_s / 2) / 1e6


# -- as TCP does -------------------------------------------------------------------------------------------------


def test_an_idle_line_carries_the_pace() -> None:
    assert rate(home_of()) == pytest.approx(12.0, rel=0.01)
    assert rate(home_of(), pace=3.0, way="up") == pytest.approx(3.0, rel=0.02)


def test_a_slow_line_carries_its_own_rate_less_headers() -> None:
    slow = replace(LINK, down_mbps=6, buffer_ms=300)
    assert rate(home_of(slow), segment_s=4.0) == pytest.approx(6 * MSS / PACKET, rel=0.03)


def test_a_throttle_is_met_at_its_own_rate() -> None:
    for action in ("shape", "police"):
        rule = Rule(VIDEO, action, down_mbps=4, burst_kb=32)  # type: ignore[arg-type]
        assert rate(home_of(rules=(rule,)), segment_s=4.0) == pytest.approx(4 * MSS / PACKET, rel=0.08), action


def test_random_loss_costs_what_the_square_root_law_says() -> None:
    """Mathis et al., CCR 27(3), 1997: MSS/RTT · sqrt(3/2p); cubic keeps to it on short paths (RFC 9438, 4.3)."""
    rates = []
    for seed in range(12):
        link = replace(LINK, loss=0.01, rtt_ms=40)
        home = Home(line(Scenario("x", link), {}, f"loss/{seed}"), [], "s")
        rates.append(rate(home, pace=50.0, segment_s=8.0))
    # Loss meets acknowledgements too, but they are cumulative.
    expected = MSS * 8 / 0.04 * math.sqrt(1.5 / 0.01) / 1e6
    assert 0.7 * expected < statistics.fmean(rates) < 1.6 * expected


def test_what_was_lost_is_sent_again_and_counted_once() -> None:
    home = home_of(replace(LINK, loss=0.05))
    transfer = Transfer(home, video(home), "down", pace_mbps=8.0, rtt_s=0.02)
    transfer.run(0.0, 3.0)
    places = [place for _, place in transfer.progress]
    moved = sum(received_bins(transfer.progress, 0.0, 3.0)) // MSS
    assert transfer.lost > 10
    assert moved <= len(set(places))
    assert moved > 0.8 * len(set(places)), "holes are filled"
    assert transfer.sent >= len(set(places)) + transfer.lost // 2


def test_a_total_loss_is_survived_by_backing_off() -> None:
    home = home_of(rules=(Rule(VIDEO, "drop", loss=1.0),))
    transfer = Transfer(home, video(home), "down", pace_mbps=8.0, rtt_s=0.02)
    transfer.run(0.0, 10.0)
    assert not transfer.progress
    assert transfer.sent < 30, "time-outs double"


def test_gaps_hold_back_what_follows_them() -> None:
    progress = [(0.05, 0), (0.06, 2), (0.15, 3), (0.25, 1), (0.26, 1)]
    assert received_bins(progress, 0.0, 0.3) == [MSS, 0, 3 * MSS]
    assert received_bins([(0.2, 1), (0.31, 0)], 0.0, 0.3) == [0, 0, 0], "what comes after the clock does not count"


def test_a_small_receive_window_limits_the_rate() -> None:
    slow = rate(home_of(replace(LINK, rtt_ms=40)), window_segments=8000 / MSS)
    assert slow == pytest.approx(8000 * 8 / 0.041 / 1e6, rel=0.25)


@pytest.mark.parametrize(
    ("link", "rules", "segment_s"),
    [
        (LINK, (), 1.0),
        (replace(LINK, down_mbps=8), (), 2.0),
        (LINK, (Rule(VIDEO, "police", down_mbps=6, burst_kb=64),), 2.0),
        (LINK, (Rule(VIDEO, "shape", down_mbps=6, burst_kb=64),), 2.0),
    ],
)
def test_bursts_of_two_change_no_rate(
    link: Link, rules: tuple[Rule, ...], segment_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = rate(home_of(link, rules), segment_s=segment_s)
    monkeypatch.setattr(tcp, "BURST", 1)
    assert pairs == pytest.approx(rate(home_of(link, rules), segment_s=segment_s), rel=0.06)


# -- as the middlebox does ---------------------------------------------------------------------------------------


def hello() -> bytes:
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=NAME).do_handshake()
    return outgoing.read()


def packet(way: Way, sequence: int, flags: int, payload: bytes) -> bytes:
    ends = (SERVER, HOME, 443, 40_000) if way == "down" else (HOME, SERVER, 40_000, 443)
    body = struct.pack("!HHIIBBHHH", *ends[2:], sequence, 7, 0x50, flags, 500, 0, 0) + payload
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 7, 0x4000, 64, 6, 0, *ends[:2])
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


class Boxed(Home):
    """The same subscriber, but what goes down are real packets through the lab's middlebox."""

    def __init__(self, link: Link, rules: tuple[Rule, ...], cross: CrossTraffic | None = None) -> None:
        super().__init__(line(Scenario("x", link), {}, "other"), [], "other")
        self.middlebox = Middlebox([HOME], link, rules, cross, seed="s")
        self._waiting: dict[int, Told] = {}
        self._numbers = itertools.count(1)
        opening = ((SYN, b""), (ACK, b""), (ACK, hello()))
        for flags, payload in opening:
            self.middlebox.from_subscriber(0, packet("up", 100 + bool(not flags & SYN), flags, payload), 0.0)
            if flags & SYN:
                self.middlebox.from_internet(packet("down", 10**6, SYN | ACK, b""), 0.0)
        self._poll(0.0)

    def plain(self, flow: RuleFlow, way: Way) -> LinkQueue | None:
        return super().plain(flow, way) if way == "up" else None

    def carry(self, flow: RuleFlow, way: Way, size: int, now: float, told: Told | None = None) -> float | None:
        if way == "up":
            return super().carry(flow, way, size, now, told)
        assert told is not None
        number = next(self._numbers)
        self._waiting[number] = told
        self.middlebox.from_internet(packet("down", number, ACK, bytes(size - 40)), now)
        self._poll(now)
        return HELD

    def work(self, now: float) -> None:
        self._poll(now)

    def _poll(self, now: float) -> None:
        out, upcoming = self.middlebox.poll(now)
        for port, raw in out:
            told = None if port == INTERNET else self._waiting.pop(struct.unpack_from("!I", raw, 24)[0], None)
            if told is not None:
                told(now)
        self.due = INFINITY if upcoming is None else max(now, upcoming)


RULES = {
    "none": (),
    "police": (Rule(VIDEO, "police", down_mbps=5, burst_kb=64),),
    "shape": (Rule(VIDEO, "shape", down_mbps=3, burst_kb=32),),
    "delay": (Rule(replace(VIDEO, direction="down"), "delay", delay_ms=40),),
    "after": (Rule(VIDEO, "police", down_mbps=2, burst_kb=16, after_kb=300),),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    "link", [LINK, replace(LINK, down_mbps=9, loss=0.005, jitter_ms=3)], ids=["quiet", "lossy, slow"]
)
def test_each_packet_arrives_when_the_middlebox_says(name: str, link: Link) -> None:
    """Packets of all sizes at random times, through both: the same are lost, the others arrive at the same moment."""
    rng, rules = random.Random(f"{name}"), RULES[name]
    boxed, home = Boxed(link, rules), home_of(link, rules)
    flow = video(home)
    home._line(home.down, "down", 40, 0.0)  # the answer to the SYN, which the middlebox has carried too
    if home._counts:
        flow.moved = len(hello())
    found: tuple[dict[int, float], dict[int, float]] = ({}, {})
    now = 0.01
    for number in range(1500):
        now += rng.expovariate(1200)
        size = rng.choice((60, 600, PACKET))
        for into, one in zip(found, (boxed, home), strict=True):
            while one.due <= now:
                one.work(one.due)

            def told(when: float | None, into: dict[int, float] = into, number: int = number) -> None:
                if when is not None:
                    into[number] = when

            # A middlebox counts payload by the real headers, the virtual one by those with time stamps.
            arrival = one.carry(flow, "down", size, now, told)
            if arrival not in {None, HELD}:
                told(arrival)
    for one in (boxed, home):
        while one.due < INFINITY:
            one.work(one.due)
    real, virtual = found
    if name == "after":  # headers of 40 and 52 bytes: the rule begins a few packets apart
        assert len(virtual) == pytest.approx(len(real), rel=0.03)
        return
    assert 300 < len(virtual) <= 1500
    assert set(real) == set(virtual)
    assert max(abs(real[n] - virtual[n]) for n in real) < 1e-4


@pytest.mark.parametrize("name", RULES)
def test_a_transfer_runs_through_real_packets_as_through_sizes(name: str) -> None:
    rules = RULES[name]
    real, virtual = rate(Boxed(LINK, rules), segment_s=2.0), rate(home_of(LINK, rules), segment_s=2.0)
    assert virtual == pytest.approx(real, rel=0.08)


def test_household_traffic_takes_the_same_room() -> None:
    cross, link = CrossTraffic("onoff", 15, 0), replace(LINK, down_mbps=20)
    real, virtual = rate(Boxed(link, (), cross), segment_s=4.0), rate(home_of(link, (), cross), segment_s=4.0)
    assert virtual == pytest.approx(real, rel=0.15)
    assert virtual < 11.5


# -- the box -----------------------------------------------------------------------------------------------------


def test_what_a_shaper_holds_back_delays_no_other_flow() -> None:
    """A segment's left-over waits in its own shaper; a neutral packet behind it finds the line free."""
    home = home_of(rules=(Rule(VIDEO, "shape", down_mbps=1, burst_kb=16, buffer_ms=1000),))
    Transfer(home, video(home), "down", pace_mbps=12.0, rtt_s=0.02).run(0.0, 1.0)
    assert home.due < INFINITY, "something waits"
    home.work(1.001)
    arrival = home.carry(home.open(TCP, 8443), "down", 300, 1.001)
    assert arrival == pytest.approx(1.011, abs=0.001)


def test_low_priority_waits_while_the_line_is_busy() -> None:
    cross = CrossTraffic("constant", 9.9, 0)
    home = home_of(replace(LINK, down_mbps=10), (Rule(VIDEO, "deprioritise"),), cross)
    told: list[float | None] = []
    flow = video(home)
    for index in range(20):
        now = 0.1 + index * 0.001
        home.work(now)
        home.carry(home.open(TCP, 9), "down", PACKET, now)
        assert home.carry(flow, "down", PACKET, now, told.append) in {HELD, None}
    while home.due < 1.0:
        home.work(home.due)
    assert not told, "the household leaves no room for it"


def test_a_lingering_rule_meets_the_whole_line_and_ends() -> None:
    home = home_of(rules=(Rule(VIDEO, "police", down_mbps=0.1, burst_kb=3, linger_s=1.0),))
    other = home.open(TCP, 443)
    assert home.carry(other, "down", PACKET, 0.0) is not None
    for index in range(5):
        home.carry(video(home), "down", PACKET, 0.1 + index * 1e-3)
    assert home.carry(other, "down", PACKET, 0.2) is None
    assert home.carry(other, "down", PACKET, 1.4) is not None


def test_blocked_and_reset_flows_are_dead_and_others_are_not() -> None:
    for action in ("block", "reset"):
        home = home_of(rules=(Rule(VIDEO, action),))  # type: ignore[arg-type]
        flow = video(home)
        assert home.carry(flow, "up", 600, 0.0) is None
        assert flow.dead == action
        assert home.carry(flow, "down", 600, 0.1) is None
        assert home.carry(home.open(TCP, 443), "down", 600, 0.1) is not None


def test_what_changes_contents_is_refused() -> None:
    with pytest.raises(ScenarioError, match="cannot play alter"):
        home_of(rules=(Rule(VIDEO, "alter", packets=0.1),))


# -- lines -------------------------------------------------------------------------------------------------------


def test_a_boosted_line_carries_its_boost_and_then_its_rate() -> None:
    home = home_of(replace(LINK, down_mbps=6), boost_mbps=30, boost_kb=500)
    assert isinstance(home.down, Boosted)
    transfer = Transfer(home, video(home), "down", pace_mbps=20.0, rtt_s=0.02)
    transfer.run(0.0, 3.0)
    bins = received_bins(transfer.progress, 0.0, 3.0)
    assert sum(bins[1:3]) * 8 / 0.2 / 1e6 > 15
    assert sum(bins[15:]) * 8 / 1.5 / 1e6 == pytest.approx(6 * MSS / PACKET, rel=0.05)
    total = sum(bins) * PACKET / MSS
    assert total <= 500e3 + 3.0 * 6e6 / 8 + 50e3


def test_a_fair_queue_leaves_half_of_the_line() -> None:
    cross = CrossTraffic("constant", 19, 0)
    home = home_of(replace(LINK, down_mbps=20), (), cross, sqm=True)
    assert isinstance(home.down, Fair)
    assert rate(home, pace=18.0, segment_s=3.0) == pytest.approx(10 * MSS / PACKET, rel=0.05)
    plain = rate(home_of(replace(LINK, down_mbps=20), (), cross), pace=18.0, segment_s=3.0)
    assert plain < 5


def test_household_traffic_is_counted() -> None:
    made: Line = line(Scenario("x", LINK, CrossTraffic("constant", 8, 0)), {}, "s")
    made.down.carry(100, 0.5)
    assert made.household_kb(2.0) == pytest.approx(2000)
    onoff = line(Scenario("x", LINK, CrossTraffic("onoff", 8, 0)), {}, "s")
    for step in range(10_000):
        onoff.down.carry(100, step * 0.02)
    assert onoff.household_kb(200.0) == pytest.approx(100_000, rel=0.3), "active half of the time"

# SPDX-License-Identifier: EUPL-1.2
"""One segment of a pair in virtual time: connect, name, hello, transfer, end, guard gap, as spec/protocol.md has them.

What the reflector would have written into its receipt comes out, so that the rate is the product's own
(`probe.wire.rate`). spec/accuracy.md section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from lab.accuracy.home import HELD, INFINITY, Home
from lab.accuracy.lines import Way
from lab.accuracy.tcp import MSS, PACKET, Transfer, received_bins
from lab.classify import TCP, FlowFacts
from lab.subscriber import RuleFlow
from probe.protocol.pacing import SHARE_OF_LINE, pace_mbps
from probe.protocol.session import (
    CONNECT_TIMEOUT_S,
    GUARD_LIMIT_MS,
    MOST_CALIBRATION_S,
    TLS_TIMEOUT_S,
    TRANSFER_GRACE_S,
    is_line_quiet,
)
from probe.wire.rate import rate_mbps
from probe.wire.records import Arm, Segment, SegmentEnd

PORT: Final = 443
_SYN: Final = (60,)
_HELLO: Final = (569,)
_FLIGHT: Final = (PACKET, PACKET, 400)
_FINISH: Final = (110, 620)
SPLIT_HELLO: Final[tuple[int, ...]] = (PACKET, 400)
"""A browser's ClientHello with a post-quantum key share does not fit one segment."""
_PING_UP, _PING_DOWN = 180, 320
_PING_EVERY_S: Final = 0.02
_BINS_A_SECOND: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How an arm looks to the operator's box: what its first packets teach."""

    arm: Arm
    sni: str | None = None
    payload: str = "tls"
    hello: tuple[int, ...] = _HELLO
    """Sizes of the packets that carry the first flight."""

    def facts(self) -> FlowFacts:
        """What is known of the flow once the first flight has passed."""
        return FlowFacts(
            proto=TCP,
            server_port=PORT,
            sni=self.sni,
            payload=self.payload,
            established=True,
            complete=True,
            split=len(self.hello) > 1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One played segment."""

    segment: Segment
    mbps: float | None
    bins_mbps: tuple[float, ...] = ()
    octets: int = 0
    ended: float = 0.0
    """When the next thing can begin, guard gap included."""


@dataclass(slots=True)
class Wire:
    """A subscriber's line and what a session knows of it."""

    home: Home
    rtt_s: float
    smallest_ping_ms: float = INFINITY
    limits: Mapping[str, Any] = field(default_factory=dict)
    """`cpu_mbps`, `reflector_mbps`: what probe or reflector can do; `window_kb`: the receiver's window."""

    @property
    def most_mbps(self) -> float:
        """What the two ends can do, whatever the line could."""
        return float(min(self.limits.get("cpu_mbps", INFINITY), self.limits.get("reflector_mbps", INFINITY)))

    def ping(self, now: float) -> float | None:
        """A control message and its answer: seconds, None where one of them is lost."""
        self.home.work(now)
        control = self.home.open(TCP, 8443)
        up = self.home.carry(control, "up", _PING_UP, now)
        if up is None or up == HELD:
            return None
        self.home.work(up)
        down = self.home.carry(control, "down", _PING_DOWN, up)
        if down is None or down == HELD:
            return None
        self.smallest_ping_ms = min(self.smallest_ping_ms, (down - now) * 1000)
        return down - now

    def guard(self, now: float) -> float:
        """When the guard gap that begins now is over."""
        limit = now + GUARD_LIMIT_MS / 1000
        while now < limit:
            took = self.ping(now)
            if took is None:
                now += 0.2  # the control connection sends again
                continue
            now += took
            if is_line_quiet(took * 1000, self.smallest_ping_ms):
                break
            now += _PING_EVERY_S
        return min(now, limit)


class Refused(Exception):
    """The connection never came to its hello: how the segment ends, and when the probe gives up."""

    def __init__(self, end: SegmentEnd, at: float) -> None:
        super().__init__(end)
        self.end, self.at = end, at


def _exchange(
    wire: Wire,
    flow: RuleFlow,
    sizes: tuple[tuple[int, ...], tuple[int, ...]],
    now: float,
    *,
    rto_s: float,
    limit: float,
) -> tuple[float, float]:
    """A question and its answer, sent again until both came; (when, round-trip time). Raises Refused."""
    since, tries = now, 0
    while now < limit:
        there = deliver(wire, flow, "up", sizes[0], now)
        back = None if there is None else deliver(wire, flow, "down", sizes[1], there)
        if back is not None and back <= limit:
            return back, back - now
        if flow.dead == "reset":
            raise Refused("absent", now + wire.rtt_s)
        now = since + rto_s * (2 ** (tries + 1) - 1)
        tries += 1
    raise Refused("absent", limit)


def deliver(wire: Wire, flow: RuleFlow, way: Way, sizes: tuple[int, ...], now: float) -> float | None:
    """When the last packet of a message that is sent now arrives; None where one is lost."""
    arrivals: list[float | None] = []
    home = wire.home
    for size in sizes:
        home.work(now)
        arrival = home.carry(flow, way, size, now, arrivals.append)
        if arrival != HELD:
            arrivals.append(arrival)
    while len(arrivals) < len(sizes) and home.due < INFINITY:
        home.work(home.due)
    if len(arrivals) < len(sizes):
        return None
    return None if any(a is None for a in arrivals) else max(a for a in arrivals if a is not None)


def connect(wire: Wire, look: Look, now: float) -> tuple[RuleFlow, float, float]:
    """Open a data connection as the probe does; (flow, when the reflector accepts its hello, RTT). Raises Refused."""
    home = wire.home
    flow = home.open(TCP, PORT)
    limit = now + CONNECT_TIMEOUT_S
    opened, rtt = _exchange(wire, flow, (_SYN, _SYN), now, rto_s=1.0, limit=limit)
    flow.facts = look.facts()
    home.learn(flow)
    limit = opened + TLS_TIMEOUT_S
    rto = max(0.2, 3 * rtt)
    secured, rtt = _exchange(wire, flow, (look.hello, _FLIGHT), opened, rto_s=rto, limit=limit)
    accepted, at = None, secured
    while accepted is None:
        accepted = deliver(wire, flow, "up", _FINISH, at)
        at += rto
        if at > limit:
            raise Refused("absent", limit)
    return flow, accepted, rtt


def play_segment(wire: Wire, look: Look, way: Way, *, pace: float, segment_s: float, now: float) -> Outcome:
    """One segment from `now` on: down from the reflector's clock at its hello, up from the first payload byte."""
    try:
        flow, start, rtt = connect(wire, look, now)
    except Refused as refused:
        ended = wire.guard(max(refused.at, now))
        return Outcome(segment=Segment(arm=look.arm, end=refused.end), mbps=None, octets=2000, ended=ended)
    transfer = Transfer(
        wire.home,
        flow,
        way,
        pace_mbps=min(pace, wire.most_mbps),
        rtt_s=max(rtt, wire.rtt_s),
        window_segments=wire.limits.get("window_kb", INFINITY) * 1000 / MSS,
    )
    began = start
    if way == "up":
        # The probe begins right behind its hello; the reflector's clock starts with the first byte.
        transfer.run(start, start + segment_s + wire.rtt_s)
        began = transfer.progress[0][0] if transfer.progress else start
    else:
        transfer.run(start, start + segment_s)
    died = flow.dead == "reset"
    end: SegmentEnd = "reset" if died else "complete"
    bins = received_bins(transfer.progress, began, segment_s)
    segment = _segment(look.arm, end, bins, segment_s, transfer.lost)
    stopped = began + segment_s
    if flow.dead == "block":
        stopped += TRANSFER_GRACE_S  # the reset that ends the segment is swallowed too: the probe's own clock ends it
    width = segment_s / len(bins)
    return Outcome(
        segment=segment,
        mbps=rate_mbps(segment, segment_s),
        bins_mbps=tuple(count * 8 / width / 1e6 for count in bins),
        octets=transfer.sent * PACKET,
        ended=wire.guard(stopped),
    )


def _segment(arm: Arm, end: SegmentEnd, bins: list[int], segment_s: float, lost: int) -> Segment:
    whole = round(segment_s * 1000)
    return Segment(
        arm=arm,
        end=end,
        started_ms=None,
        duration_ms=whole,
        bytes=sum(bins),
        bins_ms=tuple(min(whole, (index + 1) * 1000 // _BINS_A_SECOND) for index in range(len(bins))),
        bins_bytes=tuple(bins),
        retransmits=lost,
        congestion="cubic",
        paced=True,
    )


def calibrate(wire: Wire, look: Look, way: Way, *, most_mbps: float, now: float) -> tuple[float, float]:
    """The pace for a session as the product finds it: (Mbit/s, when it is known)."""
    unlimited = Wire(wire.home, wire.rtt_s, wire.smallest_ping_ms)
    reached = play_segment(unlimited, look, way, pace=most_mbps / SHARE_OF_LINE, segment_s=MOST_CALIBRATION_S, now=now)
    if reached.mbps is None:
        again = play_segment(
            unlimited, look, way, pace=most_mbps / SHARE_OF_LINE, segment_s=MOST_CALIBRATION_S, now=now + 3
        )
        reached = again
    return pace_mbps(reached.mbps, most_mbps), reached.ended

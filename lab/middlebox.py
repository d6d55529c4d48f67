# SPDX-License-Identifier: EUPL-1.2
"""An emulated operator without any I/O: packets in with `now`, packets out when they are due.

Every subscriber has an access line of his own; what arrives for or from him is classified, treated by the
first rule that matches its flow, and carried over the line. Drivers feed it real packets (lab.tun, lab.veth);
simulations feed it packets of a model in virtual time. Rule state (buckets, queues, lingering) is kept per
subscriber. spec/lab.md section 3.

    internet --> [rule: police, shape, ...] --> [line down] --> subscriber
    internet <-- [rule: police, shape, ...] <-- [line up]   <-- subscriber

What a bad path does besides (lab.path) happens last, at the hand-over.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Sequence
from typing import Final

from lab.classify import TCP, UDP, Direction, dns_question
from lab.flows import payload_size
from lab.links import LinkQueue
from lab.model import TCP_OPTIONS, CrossTraffic, Link, Rule, affected
from lab.packets import (
    RST,
    SYN,
    datagram,
    dns_answer,
    proto_of,
    resets,
    tcp_flags,
    with_dscp,
    with_wrong_byte,
    without_option,
)
from lab.path import FAULTS, Out
from lab.subscriber import LATENESS_BINS, RuleFlow, RuleState, Stats, Subscriber
from lab.tamper import HeaderInsertion

INTERNET: Final = -1  # the port of packets that leave towards the internet; subscribers are 0, 1, ...
_IPV4: Final = (slice(12, 16), slice(16, 20))  # where the addresses stand: source, destination


class Middlebox:
    """The operator's box. `addresses` are the subscribers' own, 4 bytes each, or 16 on an IPv6 line.

    `day_s` is the local time of day in seconds when `now` was `start`; rules' hours follow it. `seed` fixes
    loss, jitter, household traffic and the choice of subscribers that a rule's `share` names.
    """

    def __init__(
        self,
        addresses: Sequence[bytes],
        link: Link,
        rules: Sequence[Rule] = (),
        cross_traffic: CrossTraffic | None = None,
        *,
        seed: str = "0",
        start: float = 0.0,
        day_s: float = 12 * 3600.0,
    ) -> None:
        self.stats = Stats()
        self._subscribers = [Subscriber(i, link, cross_traffic, seed) for i in range(len(addresses))]
        self._by_address = dict(zip(addresses, self._subscribers, strict=True))
        self._source, self._destination = (slice(8, 24), slice(24, 40)) if link.family == 6 else _IPV4
        self._events: list[tuple[float, int, int, bytes]] = []
        self._count = itertools.count()
        self._random = random.Random(f"{seed}/rules").random
        self._day_offset = day_s - start
        self._hours = sorted({h for rule in rules for h in rule.hours or ()})
        self._epoch = 0
        self._epoch_ends = float("inf")
        for number, rule in enumerate(rules):
            chosen = list(range(len(addresses)))
            random.Random(f"{seed}/share/{number}").shuffle(chosen)
            for index in chosen[: affected(rule.share, len(addresses))]:
                self._subscribers[index].rules.append(RuleState(rule, f"{seed}/flows/{number}"))
        for subscriber in self._subscribers:
            subscriber.counts_bytes = any(state.rule.after_kb for state in subscriber.rules)
        self._new_epoch(start)

    def move(self, index: int, address: bytes) -> None:
        """From now on the subscriber is reached at another address too, as after a reconnection of his line."""
        self._by_address[address] = self._subscribers[index]

    def from_internet(self, packet: bytes, now: float) -> None:
        """A packet arrives from the internet's side."""
        subscriber = self._by_address.get(packet[self._destination])
        if subscriber is None:
            self.stats.foreign += 1
            return
        self.stats.packets["down"] += 1
        self.stats.octets["down"] += len(packet)
        if subscriber.rules:
            self._treat(subscriber, packet, "down", now)
        else:
            subscriber.down.offer(packet, now)

    def from_subscriber(self, index: int, packet: bytes, now: float) -> None:
        """A packet arrives from a subscriber's side."""
        subscriber = self._subscribers[index]
        if self._by_address.get(packet[self._source]) is not subscriber:
            self.stats.foreign += 1  # neighbour discovery, or a source address that is not his
            return
        self.stats.packets["up"] += 1
        self.stats.octets["up"] += len(packet)
        if subscriber.rules:
            self._treat(subscriber, packet, "up", now)
        else:
            subscriber.up.offer(packet, now)

    def poll(self, now: float) -> tuple[list[Out], float | None]:
        """Everything due by now, in order per port, and when to call again (None: when a packet arrives)."""
        if now >= self._epoch_ends:
            self._new_epoch(now)
        out: list[Out] = []
        upcoming = float("inf")
        for subscriber in self._subscribers:
            upcoming = min(upcoming, self._poll_up(subscriber, now, out), self._poll_down(subscriber, now, out))
        while self._events and self._events[0][0] <= now:
            when, _, port, packet = heapq.heappop(self._events)
            if port == INTERNET:
                out.append((INTERNET, packet))
            else:
                subscriber = self._subscribers[port]
                subscriber.down.offer(packet, when)
                upcoming = min(upcoming, self._poll_down(subscriber, now, out))
        if self._events:
            upcoming = min(upcoming, self._events[0][0])
        return out, upcoming if upcoming != float("inf") else None

    def snapshot(self) -> dict[str, object]:
        """Counters and lateness so far, ready for JSON."""
        lines = [line for s in self._subscribers for line in (s.down, s.up)]
        paths = [path for s in self._subscribers for path in (s.path_down, s.path_up) if path is not None]
        return {
            "packets": dict(self.stats.packets),
            "bytes": dict(self.stats.octets),
            "treated": dict(self.stats.treated),
            "link_dropped": sum(line.dropped for line in lines),
            "link_lost": sum(line.lost for line in lines),
            "foreign": self.stats.foreign,
            "path": {fault: sum(path.counted[fault] for path in paths) for fault in FAULTS},
            "late_ms": {"p50": self.stats.late_ms(0.5), "p99": self.stats.late_ms(0.99)},
        }

    def _poll_up(self, subscriber: Subscriber, now: float, out: list[Out]) -> float:
        """Hand over what leaves towards the internet by now; when the next packet does."""
        start, upcoming = len(out), float("inf")
        if subscriber.rules:
            upcoming = self._poll_rules(subscriber, now, out)
        upcoming = min(upcoming, self._poll_line(subscriber.up, INTERNET, now, out))
        path = subscriber.path_up
        return upcoming if path is None else min(upcoming, path.carry(out, start, now))

    def _poll_down(self, subscriber: Subscriber, now: float, out: list[Out]) -> float:
        """Hand over what reaches the subscriber by now; when the next packet does."""
        start, path = len(out), subscriber.path_down
        upcoming = self._poll_line(subscriber.down, subscriber.index, now, out)
        return upcoming if path is None else min(upcoming, path.carry(out, start, now))

    def _poll_line(self, line: LinkQueue, port: int, now: float, out: list[Out]) -> float:
        """Hand over what has come through a line by now; when the next packet does."""
        low = line.low_due
        if low is not None:
            line.serve_low(now)
            low = line.low_due
        queue = line.out
        if queue and queue[0][0] <= now:
            late, before = now - queue[0][0], len(out)
            while queue and queue[0][0] <= now:
                out.append((port, queue.popleft()[1]))
            self.stats.lateness[min(int(late * 1e4), LATENESS_BINS - 1)] += len(out) - before
        upcoming = queue[0][0] if queue else float("inf")
        return upcoming if low is None else min(upcoming, low)

    def _poll_rules(self, subscriber: Subscriber, now: float, out: list[Out]) -> float:
        """Move on the packets whose waiting in a shaper or delay is over; when the next one's is."""
        upcoming = float("inf")
        for state in subscriber.rules:
            down, up = state.waiting["down"], state.waiting["up"]
            while down and down[0][0] <= now:
                release, packet = down.popleft()
                subscriber.down.offer(packet, release)
            while up and up[0][0] <= now:
                out.append((INTERNET, up.popleft()[1]))
            for queue in (down, up):
                if queue and queue[0][0] < upcoming:
                    upcoming = queue[0][0]
        return upcoming

    def _new_epoch(self, now: float) -> None:
        """Choose the rules whose hours include the local time, until the next hour that any rule names."""
        self._epoch += 1
        day = (now + self._day_offset) % 86400
        for subscriber in self._subscribers:
            subscriber.active = [s for s in subscriber.rules if s.rule.active_at(day / 3600)]
        waits = [((h * 3600 - day) % 86400) or 86400.0 for h in self._hours]
        self._epoch_ends = now + min(waits) if waits else float("inf")

    def _treat(self, subscriber: Subscriber, packet: bytes, way: Direction, now: float) -> None:
        """Classify a packet's flow and do to it what the first matching rule says."""
        flow = subscriber.flows.find(packet, way)
        state = None
        if flow is not None:
            if flow.dead:
                self._answer_dead(subscriber, flow, packet, way, now)
                return
            state = self._rule_for(subscriber, flow, packet, way)
        if state is not None:
            if state.rule.linger_s:
                self._linger(subscriber, state, now)
        elif subscriber.lingering:
            state = next((s for s in subscriber.lingering if now < s.lingers_until), None)
        marks = state is not None and state.rule.action == "http_header"
        if flow is not None and (marks or flow.insertion is not None):
            for changed in self._marked(flow, state.rule.header if state is not None else "", packet, way):
                (subscriber.down if way == "down" else subscriber.up).offer(changed, now)
        elif state is None or marks:
            (subscriber.down if way == "down" else subscriber.up).offer(packet, now)
        else:
            self._act(subscriber, state, flow, (packet, way, now))

    def _rule_for(self, subscriber: Subscriber, flow: RuleFlow, packet: bytes, way: Direction) -> RuleState | None:
        """Learn from a packet; the rule that acts on it, None where none does or not yet."""
        if flow.learning:
            flow.inspect(packet, way)
        if flow.epoch != self._epoch:
            subscriber.match(flow, self._epoch)
        if subscriber.counts_bytes:
            flow.moved += payload_size(packet)
        state = flow.down if way == "down" else flow.up
        if state is not None and state.rule.after_kb and flow.moved < state.rule.after_kb * 1e3:
            return None
        return state

    def _marked(self, flow: RuleFlow, header: str, packet: bytes, way: Direction) -> list[bytes]:
        """The packet of an HTTP flow into whose first request a header is put, or was: what goes on instead of it."""
        if proto_of(packet) != TCP:
            return [packet]
        if way != flow.client:
            return [packet if flow.insertion is None else flow.insertion.back(packet)]
        if flow.insertion is None and header and flow.facts.payload == "http":
            flow.insertion = HeaderInsertion.into(packet, header)
            if flow.insertion is not None:
                self._count_treated("http_header")
        return [packet] if flow.insertion is None else flow.insertion.onward(packet)

    def _linger(self, subscriber: Subscriber, state: RuleState, now: float) -> None:
        """From now on the rule treats the whole line until it has not been triggered for its linger time."""
        state.lingers_until = now + state.rule.linger_s
        if state not in subscriber.lingering:
            subscriber.lingering.append(state)

    def _act(
        self,
        subscriber: Subscriber,
        state: RuleState,
        flow: RuleFlow | None,
        arrival: tuple[bytes, Direction, float],
    ) -> None:
        """Do to a packet what a rule says. Upstream packets meet the rule after the line, at `then`."""
        packet, way, now = arrival
        action = state.rule.action
        if action == "deprioritise":
            self._count_treated(action)
            (subscriber.down if way == "down" else subscriber.up).offer_low(packet, now)
            return
        then = now if way == "down" else subscriber.up.carry(len(packet), now)
        if then is None:
            return
        if action in {"block", "reset"}:
            self._end_flow(subscriber, flow, (packet, way, then), action)
            return
        if action == "dns" and way == "up" and proto_of(packet) == UDP and flow and dns_question(datagram(packet)):
            self._count_treated(action)
            self._later(then, subscriber.index, dns_answer(packet, state.rule.answer))
            return
        changed, release = self._treated(state, packet, way, then)
        if changed is not packet or release > then:
            self._count_treated(action)
        if changed is None:
            return
        if release > then:
            state.waiting[way].append((release, changed))
        elif way == "down":
            subscriber.down.offer(changed, then)
        else:
            subscriber.up.out.append((then, changed))

    def _treated(self, state: RuleState, packet: bytes, way: Direction, now: float) -> tuple[bytes | None, float]:
        """The packet as the rule leaves it (None: dropped) and when it may go on."""
        rule = state.rule
        bucket = state.bucket.get(way)
        changed: bytes | None = packet
        release = now
        if rule.action == "police":
            changed = packet if bucket is None or bucket.take(len(packet), now) else None
        elif rule.action == "shape" and bucket is not None:
            wait = bucket.delay(len(packet), now, rule.buffer_ms / 1e3)
            changed = None if wait is None else packet
            release = now + (wait or 0.0)
        elif rule.action == "delay":
            release = now + rule.delay_ms / 1e3
        elif rule.action == "drop":
            changed = None if self._random() < rule.loss else packet
        elif rule.action == "dscp":
            changed = with_dscp(packet, rule.dscp)
        elif rule.action == "strip_option" and proto_of(packet) == TCP and tcp_flags(packet) & SYN:
            changed = without_option(packet, TCP_OPTIONS[rule.option])
        elif rule.action == "alter" and self._random() < rule.packets:
            changed = with_wrong_byte(packet, self._random())
        return changed, release

    def _end_flow(
        self,
        subscriber: Subscriber,
        flow: RuleFlow | None,
        arrival: tuple[bytes, Direction, float],
        action: str,
    ) -> None:
        """Block or reset: this packet and everything after it goes no further."""
        packet, way, then = arrival
        self._count_treated(action)
        if flow is None:
            return
        flow.dead = "reset" if action == "reset" else "block"
        if action == "reset" and proto_of(packet) == TCP and not tcp_flags(packet) & RST:
            onward, back = resets(packet)
            sender, receiver = _ends(subscriber, way)
            self._later(then, sender, back)
            if onward is not None:
                self._later(then, receiver, onward)

    def _answer_dead(self, subscriber: Subscriber, flow: RuleFlow, packet: bytes, way: Direction, now: float) -> None:
        """Silence for what was blocked; a valid reset for whatever still comes of a flow that was reset.

        Data that was under way when the first resets were sent makes their sequence numbers stale; the next
        packet of either side carries the right one.
        """
        then = now if way == "down" else subscriber.up.carry(len(packet), now)
        if then is not None and flow.dead == "reset" and proto_of(packet) == TCP and not tcp_flags(packet) & RST:
            self._later(then, _ends(subscriber, way)[0], resets(packet)[1])

    def _later(self, when: float, port: int, packet: bytes) -> None:
        heapq.heappush(self._events, (when, next(self._count), port, packet))

    def _count_treated(self, action: str) -> None:
        self.stats.treated[action] = self.stats.treated.get(action, 0) + 1


def _ends(subscriber: Subscriber, way: Direction) -> tuple[int, int]:
    """The ports of a packet's sender and of its receiver."""
    return (INTERNET, subscriber.index) if way == "down" else (subscriber.index, INTERNET)

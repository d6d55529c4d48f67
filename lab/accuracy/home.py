# SPDX-License-Identifier: EUPL-1.2
"""One subscriber of an emulated operator in virtual time: sizes go in, times of arrival come out.

The same rules, buckets and queues as in lab.middlebox, moved by sizes instead of packets, so that a thousand runs
take a minute: down, the rule and then the line; up, the line and then the rule. A test plays the same arrivals
through both. spec/lab.md section 3; spec/accuracy.md section 3.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Final

from lab.accuracy.lines import Line, Way
from lab.classify import FlowFacts
from lab.flows import Flow
from lab.links import LinkQueue
from lab.model import Link, Rule
from lab.scenario import ScenarioError
from lab.subscriber import RuleFlow, RuleState, Subscriber

HELD: Final = -1.0
"""The packet waits in the operator's box: when it arrives is told later."""
INFINITY: Final = float("inf")
PLAYED: Final = frozenset({"shape", "police", "delay", "drop", "block", "reset", "deprioritise", "pass"})
"""What the virtual box does; other actions change contents, of which there are none here."""
_LOOK_S: Final = 5e-4  # how often the queue of low priority looks whether the line has become idle
Told = Callable[[float | None], None]
"""Tells when a packet that was held arrives (None: it never does)."""


class _Ghost(bytes):
    """A packet without content in the queue of low priority: it knows whom to tell."""

    told: Told | None


_NO_LINE: Final = Link()


class Home:
    """One subscriber's line with the operator's box before it. Calls must come in the order of time."""

    def __init__(self, line: Line, rules: list[Rule], seed: str) -> None:
        if unknown := {rule.action for rule in rules} - PLAYED:
            raise ScenarioError(f"rule.action: the engine path cannot play {', '.join(sorted(unknown))}")
        # The lab's own subscriber keeps rules, buckets and lingering; its queues give way to the row's.
        self.box = Subscriber(0, _NO_LINE, None, seed)
        self.box.down, self.box.up = line.down, line.up
        self.box.rules = [RuleState(rule, f"{seed}/flows/{number}") for number, rule in enumerate(rules)]
        self.box.active = list(self.box.rules)
        self.line = line
        self.down, self.up = line.down, line.up
        self.due = INFINITY
        """When `work` has to be called next."""
        self._counts = any(rule.after_kb for rule in rules)
        self._random = random.Random(f"{seed}/rules").random
        self._held: list[tuple[float, int, int, Told | None]] = []
        self._order = itertools.count()
        self._ports = itertools.count()
        self._last: dict[Way, float] = {"down": 0.0, "up": 0.0}
        self._low: deque[Way] = deque()

    def at(self, hour: float) -> None:
        """It is this local hour of the day (0 to 24): which rules are active."""
        self.box.active = [state for state in self.box.rules if state.rule.active_at(hour)]

    def open(self, proto: int, port: int) -> RuleFlow:
        """A new flow of which nothing is known but its transport and port."""
        key = next(self._ports).to_bytes(8, "big")
        flow: RuleFlow = Flow(FlowFacts(proto=proto, server_port=port), client="up", key=key)
        self.box.match(flow, 0)
        return flow

    def learn(self, flow: RuleFlow) -> None:
        """The flow's facts have grown."""
        self.box.match(flow, 0)

    # -- moving -------------------------------------------------------------------------------------------------

    def plain(self, flow: RuleFlow, way: Way) -> LinkQueue | None:
        """The line itself where nothing but it can touch this flow, so that a hot loop may ask it directly."""
        touched = self._counts or self.box.lingering or getattr(flow, way) is not None
        queue = self.down if way == "down" else self.up
        return None if touched or flow.dead or queue._jitter_s or self._held or queue._low else queue

    def carry(self, flow: RuleFlow, way: Way, size: int, now: float, told: Told | None = None) -> float | None:
        """When a packet of the flow that sets off now arrives; None: never; HELD: `told` will say."""
        state = self._rule_for(flow, way, size, now)
        if way == "up":
            then = self._line(self.up, "up", size, now) if not self._is_low(state) else now
            if then is None or flow.dead:
                return None
            return then if state is None else self._act(state, flow, way, size, then, told=told)
        if flow.dead:
            return None
        if state is None:
            return self._line(self.down, "down", size, now)
        return self._act(state, flow, way, size, now, told=told)

    @staticmethod
    def _is_low(state: RuleState | None) -> bool:
        return state is not None and state.rule.action == "deprioritise"

    def _rule_for(self, flow: RuleFlow, way: Way, size: int, now: float) -> RuleState | None:
        """The rule that acts on this packet; it may linger on the whole line."""
        state = flow.down if way == "down" else flow.up
        if state is not None and state.rule.action == "pass":
            state = None
        if self._counts:
            flow.moved += max(0, size - 52)
            if state is not None and state.rule.after_kb and flow.moved < state.rule.after_kb * 1e3:
                state = None
        if state is None:
            lingering = self.box.lingering
            return next((s for s in lingering if now < s.lingers_until), None) if lingering else None
        if state.rule.linger_s:
            state.lingers_until = now + state.rule.linger_s
            if state not in self.box.lingering:
                self.box.lingering.append(state)
        return state

    def _line(self, queue: LinkQueue, way: Way, size: int, now: float) -> float | None:
        arrival = queue.carry(size, now)
        if arrival is not None and queue._jitter_s:  # packets never overtake one another
            arrival = self._last[way] = max(self._last[way], arrival)
        return arrival

    def _act(
        self, state: RuleState, flow: RuleFlow, way: Way, size: int, now: float, *, told: Told | None
    ) -> float | None:
        """Do to a packet what the rule says."""
        rule, release = state.rule, now
        bucket = state.bucket.get(way)
        if rule.action == "deprioritise":
            return self._offer_low(way, size, now, told)
        if rule.action in {"block", "reset"}:
            flow.dead = "reset" if rule.action == "reset" else "block"
            return None
        if rule.action == "police" and bucket is not None and not bucket.take(size, now):
            return None
        if rule.action == "shape" and bucket is not None:
            wait = bucket.delay(size, now, rule.buffer_ms / 1e3)
            if wait is None:
                return None
            release = now + wait
        elif rule.action == "delay":
            release = now + rule.delay_ms / 1e3
        elif rule.action == "drop" and self._random() < rule.loss:
            return None
        if way == "up":
            return release  # behind the line there is nothing that it could wait for
        if release <= now:
            return self._line(self.down, "down", size, now)
        heapq.heappush(self._held, (release, next(self._order), size, told))
        self.due = min(self.due, release)
        return HELD

    def _offer_low(self, way: Way, size: int, now: float, told: Told | None) -> float | None:
        ghost = _Ghost(size)
        ghost.told = told
        queue = self.down if way == "down" else self.up
        before = queue.dropped
        queue.offer_low(ghost, now)
        if way not in self._low:
            self._low.append(way)
        self._collect(queue)
        self._plan(now)
        return None if queue.dropped > before else HELD

    def work(self, now: float) -> None:
        """Move on what has waited long enough."""
        while self._held and self._held[0][0] <= now:
            release, _, size, told = heapq.heappop(self._held)
            arrival = self._line(self.down, "down", size, release)
            if told is not None:
                told(arrival)
        for way in self._low:
            queue = self.down if way == "down" else self.up
            queue.serve_low(now)
            self._collect(queue)
        self._plan(now)

    def _collect(self, queue: LinkQueue) -> None:
        while queue.out:
            release, packet = queue.out.popleft()
            if isinstance(packet, _Ghost) and packet.told is not None:
                packet.told(release)

    def _plan(self, now: float) -> None:
        self.due = self._held[0][0] if self._held else INFINITY
        for way in self._low:
            low = (self.down if way == "down" else self.up).low_due
            if low is not None:
                self.due = min(self.due, max(low, now + _LOOK_S))

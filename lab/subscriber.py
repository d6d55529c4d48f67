# SPDX-License-Identifier: EUPL-1.2
"""What an emulated operator keeps of each subscriber: his line, the rules that may touch it, his flows.

Without any I/O and without a clock, like lab.middlebox, which moves packets through it. spec/lab.md section 3.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from lab.classify import Direction
from lab.flows import Flow, FlowTable
from lab.links import LinkQueue, TokenBucket, cross_load
from lab.model import CrossTraffic, Link, Rule
from lab.path import path_of

LATENESS_BINS: Final = 2000  # of 100 microseconds: lateness up to 0.2 s is told apart


@dataclass
class Stats:
    """What happened so far; drivers add what they lost themselves. Lateness is release time to hand-over."""

    packets: dict[str, int] = field(default_factory=lambda: {"down": 0, "up": 0})
    octets: dict[str, int] = field(default_factory=lambda: {"down": 0, "up": 0})
    treated: dict[str, int] = field(default_factory=dict)
    foreign: int = 0
    lateness: list[int] = field(default_factory=lambda: [0] * LATENESS_BINS)

    def late_ms(self, quantile: float) -> float:
        """The lateness (upper edge of its bin, ms) that this share of the packets did not exceed."""
        left = quantile * sum(self.lateness)
        for index, count in enumerate(self.lateness):
            left -= count
            if count and left <= 0:
                return (index + 1) / 10
        return 0.0


class RuleState:
    """One rule at one subscriber: its buckets, its waiting packets, and how long it lingers."""

    def __init__(self, rule: Rule, salt: str = "") -> None:
        self.rule = rule
        self._salt = salt.encode()
        self.lingers_until = float("-inf")
        self.bucket: dict[Direction, TokenBucket] = {}
        if rule.down_mbps is not None:
            self.bucket["down"] = TokenBucket(rule.down_mbps * 1e6, rule.burst_kb * 1e3)
        if rule.up_mbps is not None:
            self.bucket["up"] = TokenBucket(rule.up_mbps * 1e6, rule.burst_kb * 1e3)
        self.waiting: dict[Direction, deque[tuple[float, bytes]]] = {"down": deque(), "up": deque()}

    def takes(self, flow: RuleFlow) -> bool:
        """Whether the rule means this flow. A flow's hash decides for a rule that means a share of them."""
        if not self.rule.match.fits(flow.facts):
            return False
        if self.rule.flows >= 1:
            return True
        drawn = int.from_bytes(hashlib.blake2s(self._salt + flow.key, digest_size=4).digest(), "big")
        return drawn < self.rule.flows * 2**32


RuleFlow = Flow[RuleState]


class Subscriber:
    """One line: its queues, the rules that may touch it, its flows."""

    def __init__(self, index: int, link: Link, cross: CrossTraffic | None, seed: str) -> None:
        def queue(direction: str, mbps: float, load: float) -> LinkQueue:
            return LinkQueue(
                mbps=mbps,
                buffer_ms=link.buffer_ms,
                delay_ms=link.rtt_ms / 2,
                jitter_ms=link.jitter_ms,
                loss=link.loss,
                loss_burst=link.loss_burst,
                vary=(link.vary, link.vary_s),
                rng=random.Random(f"{seed}/{index}/{direction}"),
                cross=cross_load(cross, load, random.Random(f"{seed}/{index}/{direction}/cross")),
            )

        self.index = index
        self.path_down = path_of(link, random.Random(f"{seed}/{index}/down/path"))
        self.path_up = path_of(link, random.Random(f"{seed}/{index}/up/path"))
        self.down = queue("down", link.down_mbps, cross.down_mbps if cross else 0)
        self.up = queue("up", link.up_mbps, cross.up_mbps if cross else 0)
        self.rules: list[RuleState] = []
        self.active: list[RuleState] = []
        self.lingering: list[RuleState] = []
        self.counts_bytes = False
        self.flows: FlowTable[RuleState] = FlowTable()

    def match(self, flow: RuleFlow, epoch: int) -> None:
        """Find the first active rule for each direction of a flow."""
        flow.epoch = epoch
        flow.down = flow.up = None
        for state in reversed(self.active):
            if state.takes(flow):
                if state.rule.match.direction != "up":
                    flow.down = state
                if state.rule.match.direction != "down":
                    flow.up = state

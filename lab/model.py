# SPDX-License-Identifier: EUPL-1.2
"""What an emulated operator is: its access line, the household's other traffic, its rules, the truth.

Frozen data that scenario files are read into (lab.scenario), drivers are built from and the middlebox
obeys. Rates are Mbit/s of IP packets, kb are 1000 bytes, times carry their unit in the name.
spec/lab.md sections 1 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from lab.classify import Match

Action = Literal[
    "shape", "police", "delay", "drop", "block", "reset", "dns", "http_header", "dscp", "strip_option", "deprioritise",
    "alter", "pass",
]  # fmt: skip
Pattern = Literal["constant", "onoff", "web"]
Nat = Literal["none", "home", "cgnat"]
Family = Literal[4, 6]

ACTIONS: Final[tuple[str, ...]] = get_args(Action)
NATS: Final = ("none", "home", "cgnat")
PATTERNS: Final = ("constant", "onoff", "web")
EFFECTS: Final = ("slowing", "blocking", "prioritising", "tampering")
TCP_OPTIONS: Final = {"mss": 2, "wscale": 3, "sackok": 4, "sack": 5, "timestamp": 8, "mptcp": 30, "tfo": 34}


@dataclass(frozen=True)
class Link:
    """One subscriber's access line; each subscriber has one of his own."""

    down_mbps: float = 50.0
    up_mbps: float = 10.0
    rtt_ms: float = 20.0
    buffer_ms: float = 100.0
    loss: float = 0.0
    jitter_ms: float = 0.0
    family: Family = 4
    nat: Nat = "none"
    path_mtu: int = 0
    """Larger packets vanish without a word (bytes of IP packet); 0: none do."""
    reorder: float = 0.0
    reorder_ms: float = 5.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    """Share of the packets with a wrong bit, and so a wrong checksum: the receiver's kernel drops them."""
    corrupt_payload: float = 0.0
    """Share of the packets with a wrong bit in their payload and a checksum that fits."""
    loss_burst: float = 1.0
    """How many packets in a row a loss takes, on average (Gilbert's model); 1: each by itself."""
    vary: float = 0.0
    """How far the rate falls below `down_mbps` and `up_mbps`: uniform from (1 - vary) to 1 of them, drawn anew."""
    vary_s: float = 1.0
    """How long a drawn rate holds, on average (exponential times)."""


@dataclass(frozen=True)
class CrossTraffic:
    """Other people in the house, as a load on the line's queue: the rates hold while it is active."""

    pattern: Pattern
    down_mbps: float = 0.0
    up_mbps: float = 0.0


@dataclass(frozen=True)
class Rule:
    """What the operator does to the flows that match; the first rule that matches a flow applies."""

    match: Match
    action: Action
    down_mbps: float | None = None
    up_mbps: float | None = None
    burst_kb: float = 32.0
    buffer_ms: float = 200.0
    delay_ms: float = 0.0
    loss: float = 0.0
    dscp: int = 0
    option: str = ""
    answer: str = ""
    header: str = ""
    packets: float = 0.0
    """Share of the packets with payload that `alter` changes."""
    after_kb: float = 0.0
    linger_s: float = 0.0
    hours: tuple[float, float] | None = None
    share: float = 1.0
    """Of the subscribers."""
    flows: float = 1.0
    """Of the flows that match, by a hash of addresses and ports: the others are as if nothing matched."""

    def active_at(self, hour: float) -> bool:
        """Whether the rule acts at this local hour of the day (0 to 24); `hours` may pass midnight."""
        if self.hours is None:
            return True
        start, end = self.hours
        return start <= hour < end if start <= end else hour >= start or hour < end


@dataclass(frozen=True)
class Scenario:
    """One emulated operator and what should be found of it, as (app, effect)."""

    name: str
    link: Link = field(default_factory=Link)
    cross_traffic: CrossTraffic | None = None
    rules: tuple[Rule, ...] = ()
    expect: frozenset[tuple[str, str]] = frozenset()

    @property
    def expected(self) -> list[str]:
        """The truth as sorted "app:effect" texts."""
        return sorted(f"{app}:{effect}" for app, effect in self.expect)


def affected(share: float, subscribers: int) -> int:
    """How many of the subscribers a rule with this share treats: the nearest number, at least one of them."""
    return max(1, min(subscribers, round(share * subscribers))) if share > 0 else 0

# SPDX-License-Identifier: EUPL-1.2
"""What a row of the accuracy study is, and what playing it once yields.

A row is data (`lab/accuracy/rows/*.toml`): an operator with known behaviour, how it is measured, and what must be
found. An engine plays it: `path` moves modelled TCP segments through the lab's own queues in virtual time, `stream`
draws pairs from a noise model for what needs ten thousand streams or liars instead of lines. spec/accuracy.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from analysis.pairs import Pair
from lab.model import Scenario

Kind = Literal["neutral", "discriminating", "adversarial"]
Engine = Literal["path", "stream"]
KINDS: Final = get_args(Kind)
ENGINES: Final = get_args(Engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """How a row is measured; the same in both tiers, except for the number of pairs in the real one."""

    probes: int = 3
    pairs: int = 20
    """Of each app by each probe."""
    segment_s: float = 1.0
    pace_mbps: float = 12.0
    direction: Literal["down", "up"] = "down"
    apps: tuple[str, ...] = ()
    """Empty: those that `lab run` would measure."""
    hypotheses: int = 36
    """How many hypotheses share the error budget: the row's own cells stand at the worst place among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the study."""

    name: str
    kind: Kind
    title: str
    why: str
    """One sentence: what the row would show if the product were wrong."""
    engine: Engine
    scenario: Scenario
    """For the engine `stream` only its name and truth."""
    measure: Measure = field(default_factory=Measure)
    inside: bool = True
    """Inside the detectable region: the truth must be found in `target` of the repeats. Outside nothing is promised."""
    target: float = 0.95
    repeats: int = 73
    """Cells played in virtual time; 73 of 73 give 95 % by Wilson's bound, 381 of 381 give 99 %."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What an engine or a variant of the judging needs besides (documented beside the reader)."""
    digest: str = ""
    """SHA-256 (hex) of the row's file: a result is stale where it, the rule's or the engine's changed."""

    @property
    def expected(self) -> frozenset[tuple[str, str]]:
        """The truth as (app, effect)."""
        return self.scenario.expect


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One pair with what Wehe's rule needs of the very same segments."""

    pair: Pair
    app_bins_mbps: tuple[float, ...] = ()
    """Rates of the app segment's 100 ms bins."""
    neutral_bins_mbps: tuple[float, ...] = ()
    octets: int = 0
    """Bytes that both segments together cost the volunteer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One repeat of a row: everything that one cell's probes measured, in the order of starts."""

    row: str
    repeat: int
    played: tuple[Played, ...]
    lost_known: bool = True
    void: str | None = None
    """Why it may not count (the real tier: the middlebox was late, or the processor short)."""

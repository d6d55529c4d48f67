# SPDX-License-Identifier: EUPL-1.2
"""What is kept of one probe in one cell, and what a cell needs to know of it.

`ProbeState` is integers that a pair adds to and can be taken back from; `summarise` reads it. Whoever stores
states (the collector) and whoever replays files use the same two. Spec: spec/statistics.md, section "Cell".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from analysis.effect import Interval, Sample, interval, is_clear, is_clear_of_blocking, is_within
from analysis.evidence import END_TEST, ProbeCounts, probe_evidence
from analysis.logs import log_mean
from analysis.pairs import Flag, Pair, Scored
from analysis.rules import RULES, Rules
from probe.wire.records import Effect

Standing = Literal["hash", "own", "shared"]
"""How a probe's network is told: by its hashes; or, in a CGNAT or mobile range of the operators register, as one of
its own where it is enrolled by token, else as one shared with all others there."""
POOR = "poor"
"""Tally of pairs during which the household, the probe or the reflector was busy: said of both segments."""
SHAPED = "shaped"
"""Tally of pairs with any flag of NOT_AT_EDGE."""
QUEUED = "queued"
"""Tally of concurrent pairs that met a queue, so that delay and loss could be compared."""
NOT_AT_EDGE: Final[tuple[Flag, ...]] = ("vpn", "filters", "sqm", "data_cap")
"""What the household itself does to its traffic."""
_NOT_AT_EDGE = frozenset(NOT_AT_EDGE)
_POOR = frozenset({"household_traffic", "short_of_cpu", "saturated"})
_POOR_NOW = _POOR | {"queue_limited"}
DELAY_UNIT_MS: Final = 100.0
"""Delays are kept in steps of a thousandth of this: 0.1 ms."""


@dataclass(slots=True)
class ProbeState:
    """One probe in one cell (test pairs and placebo pairs are two states). Mutable; every change is reversible."""

    counts: ProbeCounts = field(default_factory=ProbeCounts)
    sample: Sample = field(default_factory=Sample)
    """y of rates."""
    delays: Sample = field(default_factory=Sample)
    """y of delays, in units of DELAY_UNIT_MS."""
    losses: Sample = field(default_factory=Sample)
    """y of losses, as shares."""
    tally: Counter[str] = field(default_factory=Counter)
    """Integers by name: pairs, lost, void, failed (of one arm), rated, edge, inside, poor, unreceived, concurrent,
    queued, touched, whole (unchanged, of both arms), shaped, and one for each flag."""
    networks: Counter[str] = field(default_factory=Counter)
    tariffs: Counter[str] = field(default_factory=Counter)
    paces: Counter[str] = field(default_factory=Counter)
    """Achieved pace in hundredths of Mbit/s and segment length in ms, as `PACE:MS`."""

    def add(self, pair: Pair, scored: Scored, rules: Rules = RULES) -> None:
        """Count one scored pair. O(1)."""
        self.counts.add(scored, rules)
        self._change(pair, scored, 1, rules)

    def remove(self, pair: Pair, scored: Scored, rules: Rules = RULES) -> None:
        """Take back a pair exactly as it was added."""
        self.counts.remove(scored, rules)
        self._change(pair, scored, -1, rules)

    def _change(self, pair: Pair, scored: Scored, by: int, rules: Rules) -> None:
        if scored.design == "sequential" or not rules.concurrent:
            self.sample.add(scored.y, lost=scored.lost, times=by)
        else:
            delay = None if scored.delay_ms is None else scored.delay_ms / DELAY_UNIT_MS
            self.delays.add(delay, lost=scored.lost, times=by)
            self.losses.add(scored.loss, lost=scored.lost, times=by)
        for name in _tallies(pair, scored, rules):
            _bump(self.tally, name, by)
        if pair.network is not None:
            _bump(self.networks, pair.network, by)
        if pair.tariff is not None:
            _bump(self.tariffs, pair.tariff, by)
        # A concurrent pair compares small packets: what its load reached says nothing of a throttle.
        achieved = pair.achieved_mbps() if pair.design == "sequential" else None
        if not scored.lost and achieved is not None:
            _bump(self.paces, f"{round(achieved * 100)}:{round(pair.segment_s * 1000)}", by)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for storage."""
        return {
            "counts": self.counts.to_dict(),
            "sample": self.sample.to_dict(),
            "delays": self.delays.to_dict(),
            "losses": self.losses.to_dict(),
            "tally": dict(self.tally),
            "networks": dict(self.networks),
            "tariffs": dict(self.tariffs),
            "paces": dict(self.paces),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> ProbeState:
        """Inverse of `to_dict`. What version 1 stored has no delays and losses."""
        return cls(
            counts=ProbeCounts.from_dict(stored["counts"]),
            sample=Sample.from_dict(stored["sample"]),
            delays=Sample.from_dict(stored["delays"]) if "delays" in stored else Sample(),
            losses=Sample.from_dict(stored["losses"]) if "losses" in stored else Sample(),
            tally=Counter(stored["tally"]),
            networks=Counter(stored["networks"]),
            tariffs=Counter(stored["tariffs"]),
            paces=Counter(stored["paces"]),
        )


def _bump(counter: Counter[str], name: str, by: int) -> None:
    counter[name] += by
    if counter[name] == 0:
        del counter[name]


def _tallies(pair: Pair, scored: Scored, rules: Rules) -> list[str]:
    """Which tallies a pair enters. All are the same for a pair and its swapped twin."""
    if scored.lost:
        return ["lost"]
    names = ["pairs"]
    if scored.void:
        names.append("void")
    elif scored.failure:
        names.append("failed")
    if scored.y is not None:
        names.append("rated")
    if not pair.received:
        names.append("unreceived")
    if pair.edge is not None:
        # A tunnel, a filter or a shaper of the household's own is not the operator: no witness at the edge.
        names.append("edge" if pair.edge and not pair.flags & _NOT_AT_EDGE else "inside")
    if pair.flags & (_POOR_NOW if rules.witness_gates else _POOR):
        names.append(POOR)
    return names + (_new_tallies(pair, scored) if rules.witness_gates else [])


def _new_tallies(pair: Pair, scored: Scored) -> list[str]:
    """What version 1 of the rule did not count."""
    names: list[str] = list(pair.flags)
    if pair.flags & _NOT_AT_EDGE:
        names.append(SHAPED)
    if scored.touched:
        names.append("touched")
    elif not scored.void and not scored.failure:
        names.append("whole")
    if pair.design == "concurrent":
        names.append("concurrent")
        if scored.delay_ms is not None or scored.loss is not None:
            names.append(QUEUED)
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSummary:
    """One probe in one cell, read: what evidence, intervals and gates are made of."""

    probe: str
    log_e: Mapping[Effect, float]
    interval: Interval
    """Of y of rates."""
    clear: Mapping[Effect, bool]
    state: ProbeState
    networks: frozenset[str]
    vetted: bool = False
    """Enrolled with a token at least 30 days ago; only the collector knows."""
    standing: Standing = "hash"

    def slowed(self, effect: Effect, rules: Rules = RULES) -> bool:
        """Whether its own evidence reaches the threshold."""
        return self.log_e.get(effect, 0.0) >= math.log(rules.indication)

    def mostly(self, flag: Flag, rules: Rules = RULES) -> bool:
        """Whether more than the share `most_flagged_share` of its pairs have this flag. Label-blind, as flags are."""
        return self.state.tally[flag] > rules.most_flagged_share * self.state.tally["pairs"]

    @property
    def at_edge(self) -> bool:
        """Whether most of its pairs were measured at the network's edge, outside any NAT, tunnel or filter."""
        return self.state.tally["edge"] > self.state.tally["inside"]

    @property
    def shaped_at_home(self) -> bool:
        """Whether a tunnel, filter or shaper of the household's own, or an exhausted cap, acted in most pairs."""
        return 2 * self.state.tally[SHAPED] > self.state.tally["pairs"]

    @property
    def tariff(self) -> str | None:
        """The tariff it declared most often."""
        return min(self.state.tariffs, key=lambda t: (-self.state.tariffs[t], t), default=None)


def summarise(
    probe: str, state: ProbeState, *, vetted: bool = False, standing: Standing = "hash", rules: Rules = RULES
) -> ProbeSummary:
    """Read a state. O(days) and O(distinct y); worth keeping until the state changes."""
    return ProbeSummary(
        probe=probe,
        log_e={effect: probe_evidence(state.counts, effect, rules) for effect in rules.effects},
        interval=interval(state.sample, rules),
        clear={effect: _is_clear(state, effect, rules) for effect in rules.effects},
        state=state,
        networks=frozenset(state.networks),
        vetted=vetted,
        standing=standing,
    )


def _is_clear(state: ProbeState, effect: Effect, rules: Rules) -> bool:
    """Whether a material effect is refuted, in each measure of which the probe has pairs (in rates if in none)."""
    if effect in {"blocking", "tampering"}:
        alone, others = state.counts.totals(END_TEST[effect])[::-1]
        return is_clear_of_blocking(alone, others, rules)
    slower = effect == "slowing"
    if not state.delays.size and not state.losses.size:
        return is_clear(state.sample, slower=slower, rules=rules)
    limits = (
        (state.delays, rules.delay_threshold_ms / DELAY_UNIT_MS),
        (state.losses, rules.loss_threshold),
        *(((state.sample, -math.log1p(-rules.material_slowdown)),) if state.sample.size else ()),
    )
    return all(is_within(sample, limit, slower=slower, rules=rules) for sample, limit in limits)


def placebo_evidence(states: Iterable[ProbeState], rules: Rules = RULES) -> list[float]:
    """log E of each probe that two neutral names are treated differently, either way round.

    Its mean of the effects' evidence is an e-process too; an alarm says that the neutral names are not neutral.
    """
    return [log_mean([probe_evidence(state.counts, effect, rules) for effect in rules.effects]) for state in states]

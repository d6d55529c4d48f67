# SPDX-License-Identifier: EUPL-1.2
"""One cell's evidence after one more pair, without counting anything else again.

`summarise` and `strength` read a cell from its counts: O(days) for each probe, then O(probes). Whoever follows a cell
pair by pair keeps it here instead: one pair changes its probe's bets, its network's factor and one sum for each π.
Sums are exact (J. R. Shewchuk, "Adaptive precision floating-point arithmetic", 1997), so they equal the full
computation after any number of changes. Spec: spec/statistics.md, sections "A probe" and "Cell".
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from dataclasses import dataclass, field

from analysis.evidence import QUEUE_TESTS_OF, TESTS, TESTS_OF, ProbeCounts, Test, log_bet, outcomes
from analysis.gates import Strength
from analysis.logs import log_mean, log_mixed, log_sum
from analysis.networks import SHARED
from analysis.pairs import Pair, Scored
from analysis.rules import RULES, Rules
from probe.wire.records import Effect

_QUEUE_TESTS = frozenset(test for measures in QUEUE_TESTS_OF.values() for tests in measures for test in tests)
_COLUMNS = ((1, 3), (1,), (3,))
"""Of a slot: all hours, peak, the rest."""


@dataclass(slots=True)
class ExactSum:
    """A sum of floats to which one can be added, or taken back, without ever losing a digit."""

    _parts: list[float] = field(default_factory=list)
    """Do not overlap; their sum is exact. A handful, however many were added."""

    def add(self, value: float) -> None:
        """Add a value; its negative takes it back exactly."""
        kept = []
        for part in self._parts:
            if abs(value) < abs(part):
                value, part = part, value  # noqa: PLW2901 (the larger first)
            total = value + part
            rest = part - (total - value)
            if rest:
                kept.append(rest)
            value = total
        kept.append(value)
        self._parts = kept

    @property
    def value(self) -> float:
        """The sum, rounded once."""
        return math.fsum(self._parts)


@dataclass(slots=True)
class _Bets:
    """One test of one probe: for each of all hours, peak, rest and each λ, log Σ over start days of weight · bet."""

    sums: list[list[float]]

    def bet(self, peak: bool, s: int, by: int, rules: Rules) -> None:
        """A pair of the newest day won or lost (`by=-1`: takes that back): every start day so far bet on it."""
        for column in (0, 1 if peak else 2):
            row = self.sums[column]
            for index, lam in enumerate(rules.lambdas):
                row[index] += by * math.log1p(s * lam)

    def start(self, log_weight: float) -> None:
        """A new start day."""
        self.sums = [[log_sum((old, log_weight)) for old in row] for row in self.sums]

    def log_e(self, log_unspent: float, rules: Rules) -> float:
        """The same as `analysis.evidence.log_evidence`."""
        return log_sum(
            math.log(share) + log_sum((log_mean(row), log_unspent))
            for share, row in zip(rules.hour_weights, self.sums, strict=True)
        )


@dataclass(slots=True)
class RunningProbe:
    """One probe's evidence, updated by a pair of its newest day in constant time.

    A pair of an earlier day makes the next reading go over the probe's days once; the number of pairs never matters.
    """

    rules: Rules = RULES
    counts: ProbeCounts = field(default_factory=ProbeCounts)
    rebuilt: int = 0
    """How often the days were gone over."""
    _bets: dict[Test, _Bets] = field(default_factory=dict)
    _first: int | None = None
    _last: int | None = None
    """First and newest day with pairs; None before the first reading and after a change in the past."""
    _newest: int = 0
    """How many pairs the newest day holds."""
    _queued: int = 0
    """How many pairs bet on delay or loss."""

    def add(self, scored: Scored) -> None:
        """Count a pair."""
        self.counts.add(scored, self.rules)
        self._queued += self._bets_on_queue(scored)
        if self._first is None or self._last is None or scored.day < self._last:
            self._last = None
            return
        if scored.day > self._last:
            before, now = self._last - self._first + 1, scored.day - self._first + 1
            weight = math.log((1 - self.rules.first_day_weight) * (1 / before - 1 / now))
            for bets in self._bets.values():
                bets.start(weight)
            self._last, self._newest = scored.day, 0
        self._newest += 1
        self._bet(scored, 1)

    def remove(self, scored: Scored) -> None:
        """Take a pair back."""
        self.counts.remove(scored, self.rules)
        self._queued -= self._bets_on_queue(scored)
        if scored.day != self._last or self._newest == 1:
            self._last = None
            return
        self._newest -= 1
        self._bet(scored, -1)

    def _bets_on_queue(self, scored: Scored) -> bool:
        found = zip(TESTS, outcomes(scored, self.rules), strict=True)
        return any(s and test in _QUEUE_TESTS for test, s in found)

    def _bet(self, scored: Scored, by: int) -> None:
        for test, s in zip(TESTS, outcomes(scored, self.rules), strict=True):
            if s and test in self._bets:
                self._bets[test].bet(scored.stratum == "peak", s, by, self.rules)

    def log_e(self, effect: Effect) -> float:
        """The same as `analysis.evidence.probe_evidence`."""
        if effect not in self.rules.effects:
            return 0.0
        if self._last is None:
            self._rebuild()
        if self._first is None or self._last is None:
            return 0.0
        unspent = math.log((1 - self.rules.first_day_weight) / (self._last - self._first + 1))

        def smallest(tests: tuple[Test, ...]) -> float:
            return min(self._bets[test].log_e(unspent, self.rules) for test in tests)

        rates = smallest(TESTS_OF[effect])
        measures = QUEUE_TESTS_OF.get(effect, ())
        return rates + log_mean([smallest(tests) for tests in measures]) if measures and self._queued else rates

    def _rebuild(self) -> None:
        self.rebuilt += 1
        days = sorted({day for day, _ in self.counts.slots})
        if not days:
            self._first = None
            return
        self._first, self._last = days[0], days[-1]
        self._newest = sum(count for (day, _), count in self.counts.pairs.items() if day == self._last)
        needed = {test for effect in self.rules.effects for test in TESTS_OF[effect]}
        self._bets = {test: self._read(test) for test in needed | _QUEUE_TESTS}

    def _read(self, test: Test) -> _Bets:
        """From the counts, as `analysis.evidence` mixes them, but kept apart by λ."""
        slots, rules = self.counts.of(test), self.rules
        sums = []
        for columns in _COLUMNS:
            wins = losses = 0
            terms: list[list[float]] = [[] for _ in rules.lambdas]
            for index in reversed(range(len(slots))):
                wins += sum(slots[index][c] for c in columns)
                losses += sum(slots[index][c + 1] for c in columns)
                number, before = slots[index][0] - slots[0][0] + 1, slots[index - 1][0] - slots[0][0] + 1
                later = 1 - rules.first_day_weight
                weight = math.log(later * (1 / before - 1 / number) if index else rules.first_day_weight)
                for at, lam in enumerate(rules.lambdas):
                    terms[at].append(weight + log_bet(wins, losses, (lam,)))
            sums.append([log_sum(found) for found in terms])
        return _Bets(sums)


@dataclass(slots=True)
class RunningStrength:
    """`analysis.gates.strength` of one cell and effect, updated by one probe at a time.

    A change costs O(log networks) comparisons and four exact sums; no other probe is looked at.
    """

    rules: Rules = RULES
    _probes: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Network and log E."""
    _factors: dict[str, list[ExactSum]] = field(default_factory=dict)
    """By network: log of its factor for each π."""
    _members: Counter[str] = field(default_factory=Counter)
    _totals: list[ExactSum] = field(default_factory=list)
    _ranked: list[list[float]] = field(default_factory=list)
    """For each π: the networks' factors that help, ascending."""

    def __post_init__(self) -> None:
        self._totals = [ExactSum() for _ in self.rules.prevalences]
        self._ranked = [[] for _ in self.rules.prevalences]

    def put(self, probe: str, network: str, log_e: float) -> None:
        """A probe's evidence is now this, and its network that."""
        if self._probes.get(probe) == (network, log_e):
            return
        self.drop(probe)
        self._probes[probe] = (network, log_e)
        self._members[network] += 1
        self._shift(network, log_e, 1)

    def drop(self, probe: str) -> None:
        """A probe has no pairs any more."""
        if probe not in self._probes:
            return
        network, log_e = self._probes.pop(probe)
        self._members[network] -= 1
        self._shift(network, log_e, -1)
        if not self._members[network]:
            del self._members[network], self._factors[network]

    def _shift(self, network: str, log_e: float, by: int) -> None:
        factors = self._factors.setdefault(network, [ExactSum() for _ in self.rules.prevalences])
        for share, factor, total, ranked in zip(
            self.rules.prevalences, factors, self._totals, self._ranked, strict=True
        ):
            before = factor.value
            factor.add(by * log_mixed(share, log_e))
            after = factor.value
            total.add(-before)
            total.add(after)
            if before > 0:
                del ranked[bisect.bisect_left(ranked, before)]
            if after > 0:
                bisect.insort(ranked, after)

    def without(self, count: int) -> float:
        """log E of the cell without its `count` strongest networks. O(count)."""
        return log_mean(
            [
                total.value - math.fsum(ranked[max(0, len(ranked) - count) :])
                for total, ranked in zip(self._totals, self._ranked, strict=True)
            ]
        )

    @property
    def strength(self) -> Strength:
        """As `analysis.gates.strength` computes it. The coalition is found by halving: O(networks) at worst."""
        limit = math.log(self.rules.indication)
        low, high = 0, len(self._factors)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.without(middle) < limit else (middle + 1, high)
        return Strength(whole=self.without(0), without_one=self.without(1), without_two=self.without(2), coalition=low)


@dataclass(slots=True)
class RunningCell:
    """Every effect of one cell, pair by pair. Networks are told by their hashes, as on files."""

    rules: Rules = RULES
    probes: dict[str, RunningProbe] = field(default_factory=dict)
    _hashes: dict[str, Counter[str]] = field(default_factory=dict)
    _pairs: Counter[str] = field(default_factory=Counter)
    _strengths: dict[Effect, RunningStrength] = field(default_factory=dict)
    _component: dict[str, str] = field(default_factory=dict)
    """Of each probe: the network that it shares with others."""
    _members: dict[str, set[str]] = field(default_factory=dict)
    """Of each network: its probes."""
    _seen: dict[str, str] = field(default_factory=dict)
    """Of each hash: a probe that has it."""

    def __post_init__(self) -> None:
        self._strengths = {effect: RunningStrength(self.rules) for effect in self.rules.effects}

    def add(self, pair: Pair, scored: Scored) -> None:
        """Count a scored pair."""
        name, network = pair.probe, pair.network
        self.probes.setdefault(name, RunningProbe(self.rules)).add(scored)
        self._pairs[name] += 1
        hashes = self._hashes.setdefault(name, Counter())
        first, fresh = not hashes, network is not None and network not in hashes
        if network is not None:
            hashes[network] += 1
        if fresh and first and name in self._component:
            self._regroup()  # until now nothing told it from others without a hash
        elif fresh or name not in self._component:
            self._join(name)
        self._refresh(name)

    def remove(self, pair: Pair, scored: Scored) -> None:
        """Take a pair back exactly as it was counted."""
        name, network = pair.probe, pair.network
        self.probes[name].remove(scored)
        self._pairs[name] -= 1
        if network is not None:
            self._hashes[name][network] -= 1
        if not self._pairs[name]:
            del self.probes[name], self._pairs[name], self._hashes[name]
            for strength in self._strengths.values():
                strength.drop(name)
            self._regroup()
        elif network is not None and not self._hashes[name][network]:
            del self._hashes[name][network]
            self._regroup()
        else:
            self._refresh(name)

    def strength(self, effect: Effect) -> Strength:
        """The cell's evidence as it stands."""
        return self._strengths[effect].strength

    def _refresh(self, name: str) -> None:
        for effect, strength in self._strengths.items():
            strength.put(name, self._component[name], self.probes[name].log_e(effect))

    def _join(self, name: str) -> None:
        """Those that share a hash with this probe are one network with it from now on; O(probes concerned)."""
        ties = [*self._hashes[name]] or [SHARED]
        joined = {
            self._component[other] for other in (self._seen.setdefault(tie, name) for tie in ties) if other != name
        }
        if name in self._component:
            joined.add(self._component[name])
        members = {name}.union(*(self._members.pop(component) for component in joined))
        component = min(members)
        self._members[component] = members
        for member in members:
            if self._component.get(member) != component:
                self._component[member] = component
                self._refresh(member)

    def _regroup(self) -> None:
        """A tie is gone, which may part a network: all of them are told anew."""
        self._component.clear()
        self._members.clear()
        self._seen.clear()
        for name in self.probes:
            self._join(name)
        for name in self.probes:
            self._refresh(name)

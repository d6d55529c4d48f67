# SPDX-License-Identifier: EUPL-1.2
"""What a cell's evidence must pass before it may become a case, and how strong it is without its strongest.

All gates come before the selection of cases: a gate can only set a cell's evidence to nothing, which keeps it
valid; taking a case away afterwards would void the rate. No gate removes a pair, and each is the same when the
two segments of a pair swap their labels. Spec: spec/statistics.md, sections "Cell" and "Gates".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from analysis.logs import log_mean, log_mixed
from analysis.pairs import CellKey, Flag
from analysis.probes import ProbeState, ProbeSummary, placebo_evidence
from analysis.rules import EFFECTS, RULES, Rules
from probe.wire.records import Effect

Reason = Literal[
    "fewer_than_3_probes",
    "few_pairs",
    "no_rates",
    "not_queued",
    "both_segments_fail",
    "nothing_arrived",
    "busy_lines",
    "reflector_saturated",
    "path_changed",
    "captive_portal",
    "leave_two_out",
    "no_receipts",
    "no_edge_probe",
    "shaped_at_home",
    "placebo_alarm",
    "lost_pairs",
    "hotspot",
    "could_be_few_probes",
    "below_case_threshold",
    "lost_unknown",
    "time_zone_unknown",
    "effect_among_slowed",
    "retrospective",
]
"""Closed vocabulary: gates that hold a cell back, why nothing is claimed, and notes (the last four)."""

DISQUALIFYING: Final[dict[Reason, tuple[Flag, tuple[Effect, ...]]]] = {
    "reflector_saturated": ("saturated", EFFECTS),
    "path_changed": ("path_changed", EFFECTS),
    "captive_portal": ("captive_portal", ("blocking", "tampering")),
}
"""What makes a probe no witness, for which effects, if most of its pairs have the flag.

reflector_saturated: one short of bandwidth or CPU is the bottleneck of all its probes at once. A throttle above
what it had left is not seen ("no indication" would be wrong), and a difference would be its own network's as
easily as the operator's, at every home together, so that leaving networks out does not help.
path_changed: the data came from another network than the session, as with two uplinks or a tunnel of some apps.
The cell's operator is that of the receipt's origin; the other one would have to answer, for good or ill.
captive_portal: a portal answers some names itself and lets others pass, before anything reaches the operator.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strength:
    """Evidence of one effect in one cell, as natural logarithms of e-values."""

    whole: float
    without_one: float
    """Whatever one network did, this much remains."""
    without_two: float
    coalition: int
    """g: the fewest networks without which less than the threshold of an indication remains; 0 below it."""


def strength(log_es: Sequence[float], groups: Sequence[Sequence[int]], rules: Rules = RULES) -> Strength:
    """Mean over π of Π over probes (1 - π + π·E), and the same without the strongest one, two networks.

    `log_es` are the probes', `groups` the indices of each network's probes. Which networks are strongest may
    differ between the π. Leaving out the strongest for *each* π gives at most what leaving out any one set
    gives, and is the same wherever networks have one probe.
    """
    totals = []
    strongest: list[list[float]] = []
    for share in rules.prevalences:
        factors = [math.fsum(log_mixed(share, log_es[i]) for i in group) for group in groups]
        totals.append(math.fsum(factors))
        strongest.append(sorted((max(0.0, f) for f in factors), reverse=True))

    def without(count: int) -> float:
        return log_mean([total - math.fsum(top[:count]) for total, top in zip(totals, strongest, strict=True)])

    coalition = 0
    while coalition < len(groups) and without(coalition) >= math.log(rules.indication):
        coalition += 1
    return Strength(whole=without(0), without_one=without(1), without_two=without(2), coalition=coalition)


def strength_of_placebo(states: Sequence[ProbeState], rules: Rules = RULES) -> float:
    """log E over probes that neutral names are not treated alike; 0 without placebo pairs."""
    return mixed_placebo(placebo_evidence(states, rules), rules)


def mixed_placebo(evidence: Sequence[float], rules: Rules = RULES) -> float:
    """The same from the probes' own evidence, as `placebo_evidence` computes it.

    Without the strongest probe: which pairs are placebo is known before the coin, so one home could shape two neutral
    names and keep every case of its operator shut. Leaving evidence out is valid, and a gate only takes away.
    """
    if not evidence:
        return 0.0
    totals = []
    for share in rules.prevalences:
        factors = [log_mixed(share, e) for e in evidence]
        totals.append(math.fsum(factors) - (max(0.0, *factors) if rules.one_cannot_veto else 0.0))
    return log_mean(totals)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prevalence:
    """How many of the participating probes see the effect, see none, or cannot tell."""

    slowed: int
    clear: int
    undecided: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is known of a cell besides its probes."""

    placebo: tuple[ProbeState, ...] = ()
    """Placebo pairs of the same operator, direction and access, one state a probe."""
    lost_known: bool = True
    """False on files without a list of started pairs."""
    zone_known: bool = True
    localised: bool = False
    """The difference was placed beyond the first public hop, which stands in for a probe at the edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One effect in one cell, as the gates see it."""

    cell: CellKey
    effect: Effect
    probes: tuple[ProbeSummary, ...]
    groups: tuple[tuple[int, ...], ...]
    """Indices of the probes of each network."""
    setting: Setting
    strength: Strength

    @property
    def present(self) -> list[ProbeSummary]:
        """Probes with at least one pair that is not lost."""
        return [p for p in self.probes if p.state.tally["pairs"]]

    def slowed(self, rules: Rules = RULES) -> list[ProbeSummary]:
        """Probes whose own evidence shows the effect."""
        return [p for p in self.present if p.slowed(self.effect, rules)]

    def total(self, name: str) -> int:
        """Sum of a tally over all probes."""
        return sum(p.state.tally[name] for p in self.probes)

    def prevalence(self, rules: Rules = RULES) -> Prevalence:
        """Slowed, clear and undecided among the present probes. One that is no witness is clear of nothing."""
        slowed = len(self.slowed(rules))
        others = [p for p in self.present if p.clear[self.effect] and not p.slowed(self.effect, rules)]
        clear = sum(not unfit(p, self.effect, rules) for p in others)
        return Prevalence(slowed=slowed, clear=clear, undecided=len(self.present) - slowed - clear)


def unfit(probe: ProbeSummary, effect: Effect, rules: Rules = RULES) -> tuple[Reason, ...]:
    """Why this probe is no witness for or against the effect; empty where it is one.

    Flags are said of both segments together, so which probes are witnesses is known without any coin: a cap by it
    can take a claim away but never make one.
    """
    if not rules.witness_gates:
        return ()
    return tuple(
        reason for reason, (flag, effects) in DISQUALIFYING.items() if effect in effects and probe.mostly(flag, rules)
    )


def _unfit_gates(view: View, rules: Rules) -> list[tuple[bool, Reason]]:
    """A case needs witnesses: most of the probes that see it, and one at the edge if any stands there.

    Most rather than one, because what the others say would make up the evidence; most rather than all, so that
    one home with two uplinks hides nothing.
    """
    slowed = view.slowed(rules)
    found: list[tuple[bool, Reason]] = []
    for reason in DISQUALIFYING:
        fit = [p for p in slowed if reason not in unfit(p, view.effect, rules)]
        few = 2 * len(fit) <= len(slowed)
        no_edge = any(p.at_edge for p in slowed) and not any(p.at_edge for p in fit)
        found.append((bool(slowed) and (few or no_edge), reason))
    return found


def failed_gates(view: View, rules: Rules = RULES) -> tuple[Reason, ...]:
    """Everything that keeps the cell from being a case, in the order in which it is best explained.

    What each is for stands in spec/statistics.md, "Gates". Household traffic and a probe short of CPU or of buffers
    are no gates here: they blur both segments alike and can hide a difference, not make one (`busy_lines`).
    """
    threshold = math.log(rules.indication)
    no_edge = not view.setting.localised and not any(p.at_edge for p in view.slowed(rules))
    checks: tuple[tuple[bool, Reason], ...] = (
        (len(view.present) < rules.least_probes, "fewer_than_3_probes"),
        (view.strength.without_two < threshold, "leave_two_out"),
        (view.total("unreceived") > 0, "no_receipts"),
        (no_edge, "no_edge_probe"),
        (no_edge and rules.witness_gates and any(p.shaped_at_home for p in view.slowed(rules)), "shaped_at_home"),
        *_unfit_gates(view, rules),
        (strength_of_placebo(view.setting.placebo, rules) >= threshold, "placebo_alarm"),
        (_too_many_lost(view, rules), "lost_pairs"),
        (view.cell.access == "hotspot", "hotspot"),
        (_could_be_few(view, rules), "could_be_few_probes"),
    )
    return tuple(reason for failed, reason in checks if failed)


def _too_many_lost(view: View, rules: Rules) -> bool:
    """Whether more than a tenth of the started pairs are lost, also without any one network's.

    A lost pair has lost its bets already; the gate is for what is missing at many homes. One home that abandons what
    it starts would otherwise keep every case of its operator shut.
    """

    def exceeds(lost: int, pairs: int) -> bool:
        return lost > rules.most_lost_share * (pairs + lost)

    lost, pairs = view.total("lost"), view.total("pairs")
    if not exceeds(lost, pairs) or not rules.one_cannot_veto:
        return exceeds(lost, pairs)
    tallies = [[view.probes[i].state.tally for i in group] for group in view.groups]
    return all(exceeds(lost - sum(t["lost"] for t in one), pairs - sum(t["pairs"] for t in one)) for one in tallies)


def _could_be_few(view: View, rules: Rules) -> bool:
    """Whether less than a third of the probes, were they dishonest, could have made this evidence.

    A third of the probes slowed by their own evidence suffices; so does evidence spread so evenly that less
    than a third of the networks could not have made it. Else the slowed must all be vetted, or form one declared
    tariff: they alone declare one and the same, and at least a third of those who declare it are slowed.
    """
    share, slowed = rules.few_probes_share, view.slowed(rules)
    if len(slowed) >= share * len(view.present) or view.strength.coalition >= share * len(view.groups):
        return False
    if not slowed or all(p.vetted for p in slowed):
        return not slowed
    tariff = slowed[0].tariff
    if tariff is None or any(p.tariff != tariff for p in slowed):
        return True
    return len(slowed) < share * sum(p.tariff == tariff for p in view.present)

# SPDX-License-Identifier: EUPL-1.2
"""When to wake people: at most one false alert a decade, over every hypothesis of the register together.

The list of open cases may be wrong in one case of twenty; whoever is alerted wants to know how *often* that happens.
So an alert needs an open case and an e-detector besides (Shin, Ramdas, Rinaldo, "E-detectors: a nonparametric
framework for sequential change detection", New England Journal of Statistics in Data Science 2, 2024).

**Detector.** For each start day s on which the cell has pairs let Λ(s) be E₋₁ of the bets that begin on s, without the
weights over start days. M = Σ Λ(s) over the start days of the episode so far. Alert when γ·M ≥ c, γ the weight of the
hypothesis (without any share of an episode), c = 3652.5 days.

**Frequency.** Let nothing be treated differently. Λ(s) is an e-process begun at the first pair of day s: given what was
known then, E[Λ(s) at τ] ≤ 1 for any stopping time τ. So within one episode E[M at τ] ≤ E[start days until τ] ≤
E[days until τ]. An episode alerts once at most, and when it does, M ≥ c/γ; stop it then, or when its case is closed,
or after T days, whichever is first. Episodes of one hypothesis do not overlap, and each begins at a stopping time, so
summing over them: (c/γ)·E[alerts of the hypothesis within T days] ≤ Σ over episodes of E[M at its stop] ≤ T. Over all
hypotheses E[false alerts within T days] ≤ Σ γ·T/c ≤ T/c: one in 3652.5 days, however they depend on each other, and
however many hypotheses there are, because Σ γ ≤ 1. (The time to the first false alert is at least c on average by the
same sum: the average run length of the detectors together.) That a case must be open besides makes alerts rarer still.
The other alert of an event, its ending, comes only where the first one came.
What it costs: against the first case of a list, a factor of 3652.5/20, about eight unanimous pairs over all networks
less what the sum over start days gains. Spec: spec/statistics.md, section "Alerts".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from analysis.evidence import start_terms
from analysis.logs import log_mean, log_mixed, log_sum
from analysis.networks import grouped
from analysis.probes import ProbeSummary
from analysis.rules import RULES, Rules
from probe.wire.records import Effect

DAYS_BETWEEN: Final = 3652.5
"""c: a decade."""


def log_needed(log_weight: float, days_between: float = DAYS_BETWEEN) -> float:
    """log M that a hypothesis of weight γ needs to alert: c/γ."""
    return math.log(days_between) - log_weight


def log_detector(probes: Sequence[ProbeSummary], effect: Effect, rules: Rules = RULES) -> float:
    """log M of a cell's episode, whose pairs alone the probes' states hold; -inf without pairs. O(days · probes)."""
    terms = [start_terms(p.state.counts, effect, rules) for p in probes]
    return over_start_days(terms, grouped(probes), rules)


def over_start_days(
    terms: Sequence[Mapping[int, float]],
    groups: Sequence[Sequence[int]],
    rules: Rules = RULES,
    *,
    without: int = 1,
) -> float:
    """log Σ over start days of the cell's evidence without its `without` strongest networks.

    `terms` has for each probe log E of the bets begun on each of its days; on a day without pairs of its own a probe
    has the bets of its next day with some, after its last day none.
    """
    days = sorted({day for term in terms for day in term}, reverse=True)
    upcoming = [0.0] * len(terms)
    found = []
    for day in days:
        for index, term in enumerate(terms):
            upcoming[index] = term.get(day, upcoming[index])
        found.append(_evidence(upcoming, groups, without, rules))
    return log_sum(found)


def _evidence(log_es: Sequence[float], groups: Sequence[Sequence[int]], without: int, rules: Rules) -> float:
    """As `gates.strength` computes it, of which only one number is wanted here."""
    totals = []
    for share in rules.prevalences:
        factors = sorted(math.fsum(log_mixed(share, log_es[i]) for i in group) for group in groups)
        kept = math.fsum(factors)
        totals.append(kept - math.fsum(max(0.0, f) for f in factors[len(factors) - without :]))
    return log_mean(totals)

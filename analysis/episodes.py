# SPDX-License-Identifier: EUPL-1.2
"""The same hypothesis again, after its case was closed: a new episode with evidence and a share of its own.

A case that has ended, or was taken back, stays as it is. Whoever shapes traffic again half a year later must be
found again, but not by what was known before: the next episode counts pairs from the day after the closing on.

**The rate holds.** Number the episodes of a hypothesis 1, 2, …; the k-th has the weight γ·s(k), γ the weight of the
hypothesis. s(1) = 0.9 and s(k) = 0.1/(k(k - 1)) for k ≥ 2. As 1/(k(k - 1)) = 1/(k - 1) - 1/k, the sum of s(2) … s(K)
is 0.1·(1 - 1/K), so Σ s(k) ≤ 1 and Σ over hypotheses and episodes of γ·s(k) ≤ Σ γ ≤ 1. s(k) is a function of k, so it
is settled before the episode's data. The day on which episode k begins is a stopping time D: it is decided by what was
known the day before. Given all that was known at D, the coins of later pairs are fair under "nothing is treated
differently from D on", so the product of bets on these pairs is an e-process that starts at 1 at D, and E of it at any
later stopping time is at most 1; where the episode never begins its e-value is 0. An episode that was closed has
e = 0 from then on, which only lowers it. So (hypothesis, episode) are hypotheses with e-values and weights that sum to
at most 1, and weighted e-BH over them keeps FDR ≤ α for the list open at any time one looks (Wang and Ramdas, "False
discovery rate control with e-values", JRSS B 84, 2022). The midpoint m and what is counted need no change: m is
known before the pair's coin, whichever episode the pair belongs to.
The price: a first case needs 1/0.9 times the evidence, a second one 18 times that of a first one (about five unanimous
pairs in all). Spec: spec/statistics.md, section "Episodes".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FIRST_SHARE: Final = 0.9
"""Of a hypothesis' weight goes to its first episode."""


def share(number: int) -> float:
    """s(k): the share of the hypothesis' weight that its k-th episode has, k = 1, 2, …; they sum to 1."""
    if number < 1:
        raise ValueError("episodes are counted from 1")
    return FIRST_SHARE if number == 1 else (1 - FIRST_SHARE) / (number * (number - 1))


def log_share(number: int) -> float:
    """log s(k), to be added to log γ."""
    return math.log(share(number))


@dataclass(frozen=True, slots=True)
class Episode:
    """One stretch of a hypothesis' life."""

    number: int = 1
    since: int | None = None
    """First day (proleptic ordinal, operator's local time) whose pairs count; None = all of them."""

    def counts(self, day: int) -> bool:
        """Whether a pair of this day belongs to it."""
        return self.since is None or day >= self.since


def after(closed: Sequence[int]) -> Episode:
    """The episode after cases of this hypothesis were closed on these days (none: the first episode)."""
    return Episode() if not closed else Episode(number=len(closed) + 1, since=max(closed) + 1)

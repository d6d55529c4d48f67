# SPDX-License-Identifier: EUPL-1.2
"""Sums of evidence without overflow: every e-value is kept as its natural logarithm.

Spec: spec/statistics.md, section "Evidence in logs".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

LARGEST_E = 1e300
"""Printed e-values stop here; inside, logarithms go on."""


def log_sum(values: Iterable[float]) -> float:
    """log Σ exp(v); -inf for nothing."""
    kept = [v for v in values if v != -math.inf]
    if not kept:
        return -math.inf
    top = max(kept)
    return top + math.log(math.fsum(math.exp(v - top) for v in kept))


def log_mean(values: Sequence[float]) -> float:
    """log of the mean of exp(v)."""
    return log_sum(values) - math.log(len(values))


def log_mixed(share: float, log_e: float) -> float:
    """log(1 - share + share·E): a bet with `share` of the money, the rest kept."""
    if share >= 1.0:
        return log_e
    return log_sum((math.log1p(-share), math.log(share) + log_e))


def e_value(log_e: float) -> float:
    """exp(log_e), capped at 1e300 for printing."""
    return LARGEST_E if log_e >= math.log(LARGEST_E) else math.exp(log_e)

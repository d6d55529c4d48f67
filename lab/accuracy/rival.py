# SPDX-License-Identifier: EUPL-1.2
"""Our rule and Wehe's on one ground: what each costs until it says what is true, at the same rate of false alarms.

Wehe's client answers after one test (with its confirmation run). To err no more often than ours may, it has to be
repeated; this module counts its answers on the very same segments and says how often. spec/accuracy.md section 5.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final

from lab.accuracy import peer
from lab.accuracy.model import Played, Run

MOST_TIMES: Final = 200
"""Repeated more often than this, a test is no longer one: it counts as never."""
GROUPS: Final = (2, 3, 5)
"""How often so many tests in a row were all positive on one line: whether they err independently."""


def counted(run: Run, treated: Set[str]) -> Counter[str]:
    """The answers of all tests that a run's segments make, as counts that can be added up.

    `treated`: the apps of which something is true; tests of the others are counted apart, as tests of an even line.
    """
    streams: dict[tuple[Any, str], list[Played]] = defaultdict(list)
    for one in sorted(run.played, key=lambda played: played.pair.order):
        pair = one.pair
        if pair.kind == "test" and pair.design == "sequential" and not pair.lost and one.app_bins_mbps:
            streams[pair.cell, pair.probe].append(one)
    total: Counter[str] = Counter()
    for (cell, _), played in streams.items():
        found = list(peer.tests(played))
        side = "treated" if cell.app in treated else "even"
        total[f"{side}.tests"] += len(found)
        total[f"{side}.positive"] += sum(map(peer.is_positive, found))
        total[f"{side}.slower"] += sum(peer.is_positive(test) and test.app_slower is True for test in found)
        total[f"{side}.inconclusive"] += sum(test.answer == "inconclusive" for test in found)
        total[f"{side}.octets"] += sum(test.octets for test in found)
        total[f"{side}.pairs"] += sum(test.pairs for test in found)
        for times in GROUPS:
            groups = peer.repeated(found, times)
            total[f"{side}.groups{times}"] += len(groups)
            total[f"{side}.all{times}"] += sum(groups)
    return total


def table(counts: Iterable[Counter[str]]) -> dict[str, Any]:
    """The same for a row's result; without tests of one kind that kind is absent."""
    from lab.accuracy.results import share  # noqa: PLC0415 - results are made of this

    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    found: dict[str, Any] = {}
    for side in ("treated", "even"):
        tests = total[f"{side}.tests"]
        if tests:
            found[side] = {
                "positive": share(total[f"{side}.positive"], tests),
                "slower": share(total[f"{side}.slower"], tests),
                "inconclusive": total[f"{side}.inconclusive"],
                "octets_a_test": round(total[f"{side}.octets"] / tests),
                "pairs_a_test": round(total[f"{side}.pairs"] / tests, 3),
                "in_a_row": {
                    str(times): share(total[f"{side}.all{times}"], total[f"{side}.groups{times}"]) for times in GROUPS
                },
            }
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """Wehe's rule repeated: positive where at least `least` of `times` tests are."""

    times: int
    least: int


def repeated(false_rate: float, true_rate: float, *, most_false: float, power: float) -> Repeated | None:
    """The fewest tests that err at most so often and find so much; None where no number up to MOST_TIMES does.

    Any threshold between one and all of the tests is allowed, and the tests are taken to be independent: both are in
    Wehe's favour. Binomial tails are exact.
    """
    for times in range(1, MOST_TIMES + 1):
        for least in range(1, times + 1):
            if tail(times, least, false_rate) <= most_false:
                if tail(times, least, true_rate) >= power:
                    return Repeated(times=times, least=least)
                break
    return None


def tail(n: int, k: int, p: float) -> float:
    """P of at least k of n."""
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


def false_rate(results: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """How often one test errs on the neutral row on which it errs most, and that row.

    Our bound holds whatever the line is like, and nobody is told in advance what it is like: a rule that is repeated
    often enough on quiet lines alone accuses the others.
    """
    told = [
        (one["virtual"]["peer"]["even"]["positive"]["share"], one["row"])
        for one in results
        if one["kind"] == "neutral" and not one["options"].get("misleads") and "even" in one["virtual"]["peer"]
    ]
    return max(told, default=(0.0, "none"))

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
from itertools import pairwise
from typing import Any, Final

from lab.accuracy import peer
from lab.accuracy.model import Played, Run

MOST_TIMES: Final = 200
"""Repeated more often than this, a test is no longer one: it counts as never."""
MOST_TESTS: Final = 5000
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


# -- at the same rate of false alarms -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """Wehe's rule repeated: positive where at least `least` of `times` tests are."""

    times: int
    least: int


def tuned(false_rate: float, true_rate: float, *, most_false: float, power: float) -> Repeated | None:
    """The fewest tests, and the best threshold, that err at most so often and find so much; None where none do.

    What nobody could use: it is told how noisy the line is and how strong the treatment. Tests are taken to be
    independent. Binomial tails are exact.
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


def in_a_row(times: int, rate: float, power: float) -> float | None:
    """Tests until `times` in a row are positive, in this share of tries; None beyond MOST_TESTS.

    Exact: the states are how many positives stand at the end. Wehe's user may go on for ever and be right at last;
    that he may also be wrong at last, at some time, is in Wehe's favour and not counted.
    """
    states = [1.0, *[0.0] * (times - 1)]
    found = 0.0
    for tests in range(1, MOST_TESTS + 1):
        found += rate * states[-1]
        states = [(1 - rate) * sum(states), *(rate * state for state in states[:-1])]
        if found >= power:
            return tests
    return None


def even_tests(result: dict[str, Any]) -> dict[str, Any] | None:
    """A row's tests of apps of which nothing is true, where its operator is neutral."""
    is_even = result["kind"] == "neutral" and not result["options"].get("misleads")
    found: dict[str, Any] | None = result["virtual"]["peer"].get("even") if is_even else None
    return found


def worst_line(results: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """How often one test errs on the neutral access line on which it errs most, and that row.

    Only lines that an engine moved packets over, no invented weather. Our own bound holds whatever the line is like,
    and nobody is told beforehand: a rule that is repeated often enough for quiet lines accuses the others.
    """
    told = [
        (tests["positive"]["share"], one["row"])
        for one in results
        if one["engine"] == "path" and (tests := even_tests(one)) is not None
    ]
    return max(told, default=(0.0, "none"))


def matched_rate(results: Sequence[dict[str, Any]], sd: float) -> float:
    """How often one test errs on even streams of about this pair noise: those of the noise model, interpolated."""
    known = sorted(
        (noise["sd"], tests["positive"]["share"])
        for one in results
        if set(noise := one["options"].get("noise", {})) == {"sd"} and (tests := even_tests(one)) is not None
    )
    for (low, below), (high, above) in pairwise(known):
        if low <= sd <= high:
            return float(below + (above - below) * (sd - low) / (high - low))
    if not known:
        return 0.0
    return float(known[0][1] if sd < known[0][0] else known[-1][1])


def compared(
    result: dict[str, Any], *, worst: float, matched: float, most_false: float, power: float
) -> dict[str, Any] | None:
    """What both rules cost on one row until they say what is true; None where that is not asked."""
    treated = result["virtual"]["peer"].get("treated")
    if treated is None or not result["inside"]:
        return None
    ours = result["virtual"]["cells"][result["expected"][0]].get("octets_to_case", {}).get(f"{power * 100:g}")
    true_rate, each = treated["positive"]["share"], treated["octets_a_test"]
    times = peer.repeats_needed(worst, most_false)
    tests = None if times > MOST_TIMES else in_a_row(int(times), true_rate, power)
    best = tuned(matched, true_rate, most_false=most_false, power=power)
    theirs = None if tests is None else round(tests * each)
    return {
        "octets": ours,
        "peer_positive": treated["positive"],
        "times": None if times > MOST_TIMES else int(times),
        "peer_octets": theirs,
        "fewer": ours is not None and (theirs is None or ours < theirs),
        "tuned": None if best is None else {"times": best.times, "least": best.least, "octets": best.times * each},
    }

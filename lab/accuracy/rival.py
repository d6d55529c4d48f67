# SPDX-License-Identifier: EUPL-1.2
"""Our rule and Wehe's on one ground: what each costs until it says what is true, at the same rate of false alarms.

Wehe's client answers after one test (with its confirmation run). To err no more often than ours may, it has to be
repeated; this module counts its answers on the very same segments and says how often. spec/accuracy.md section 5.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
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


def is_even(result: dict[str, Any]) -> bool:
    """Whether a row's streams are fair coins: a neutral operator, and nobody else who treats the name either.

    Rows that show what a gate is for have a router at home, a portal or another network that does treat it.
    """
    options = result["options"]
    return result["kind"] == "neutral" and not options.get("misleads") and not options.get("without_gate")


def even_tests(result: dict[str, Any]) -> dict[str, Any] | None:
    """A row's tests, where each positive one is a false flag."""
    found: dict[str, Any] | None = result["virtual"]["peer"].get("even") if is_even(result) else None
    return found


def worst_row(results: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """How often one test errs on the neutral row on which it errs most, and that row."""
    told = [
        (float(tests["positive"]["share"]), str(one["row"]))
        for one in results
        if (tests := even_tests(one)) is not None
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
    result: dict[str, Any], *, anywhere: float, matched: float, most_false: float, power: float
) -> dict[str, Any] | None:
    """What both rules cost on one row until they say what is true; None where that is not asked.

    `anywhere`: the rate of false flags on the worst neutral row, `matched`: at this row's own noise.
    """
    treated = result["virtual"]["peer"].get("treated")
    if treated is None or not result["inside"]:
        return None
    ours = result["virtual"]["cells"][result["expected"][0]].get("octets_to_case", {}).get(f"{power * 100:g}")
    return {
        "octets": ours,
        "positive": treated["positive"],
        "anywhere": _repeated(treated, anywhere, most_false, power),
        "matched": _repeated(treated, matched, most_false, power),
    }


def _repeated(treated: dict[str, Any], false_rate: float, most_false: float, power: float) -> dict[str, Any]:
    """So many positives in a row, and the bytes until they are there."""
    times = peer.repeats_needed(false_rate, most_false)
    if times > MOST_TIMES:
        return {"times": None, "octets": None}
    tests = in_a_row(int(times), treated["positive"]["share"], power)
    return {"times": int(times), "octets": None if tests is None else round(tests * treated["octets_a_test"])}


def is_fewer(told: dict[str, Any], reading: str) -> bool:
    """Whether our case costs fewer bytes than Wehe's rule, repeated as this reading asks."""
    ours, theirs = told["octets"], told[reading]["octets"]
    return ours is not None and (theirs is None or ours < theirs)

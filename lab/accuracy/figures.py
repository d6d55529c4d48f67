# SPDX-License-Identifier: EUPL-1.2
"""What the report's pictures show, as data: a title that states the finding, a description, points and a table.

Nothing here draws; `lab.accuracy.drawing` does. spec/accuracy.md section 9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from analysis.effect import fraction
from lab.accuracy import rival
from lab.accuracy.requirements import comparisons, has_one_size, is_attack, noise_of

Result = dict[str, Any]
NOISES: Final = ((0.15, "pair noise up to 0.15"), (0.6, "0.15 to 0.6"), (float("inf"), "above 0.6"))
MOST_CURVES: Final = 6
Look = Literal["ours", "theirs", "bound", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points that belong together."""

    label: str
    points: tuple[tuple[float, float], ...]
    look: Look = "ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One picture with everything that a reader who cannot see it needs."""

    name: str
    title: str
    description: str
    kind: Literal["curves", "dots", "scatter"]
    x: str
    y: str
    series: tuple[Series, ...]
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    log_x: bool = False
    log_y: bool = False
    labels: tuple[str, ...] = ()
    """Of the rows of dots, from the top."""


def all_of(played: Sequence[Result]) -> list[Figure]:
    """The report's figures; one without data is left out."""
    found = [_pairs(played), _sizes(played), _bytes(played), _tiers(played)]
    return [one for one in found if one is not None]


def percent(share: float | None, digits: int = 0) -> str:
    """A share as a percentage with a thin space."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def megabytes(octets: float | None) -> str:
    """Bytes in MB (10^6)."""
    return "–" if octets is None else f"{octets / 1e6:.0f} MB"


def _pairs(played: Sequence[Result]) -> Figure | None:
    told = [one for one in played if has_one_size(one) and one["inside"] and _opened(one)]
    if not told:
        return None
    told.sort(key=lambda one: (_median_pairs(one), noise_of(one), one["row"]))
    # Lines without noise open all at the same pair: those of the noise model show what noise costs.
    chosen = _spread([one for one in told if one["engine"] == "stream"] or told)
    series = tuple(Series(label=one["row"], points=tuple(_curve(one))) for one in chosen)
    times = [_median_pairs(one) for one in told]
    rows = tuple(
        (one["row"], percent(_truth(one)), f"{noise_of(one):.2f}", *_quantiles(one), percent(_wehe(one)))
        for one in told
    )
    return Figure(
        name="pairs-to-case",
        title=f"Half of the cases are open after {min(times)} to {max(times)} pairs of each of three probes",
        description="For rows of the study, the share of repeats in which the case was open, against the number of "
        "pairs that each probe had measured, as the last of 36 hypotheses. The dashed line is the largest share of "
        "single tests that Wehe's client rule, its confirmation run included, flags on the rows shown: it does not "
        "grow with the number of pairs.",
        kind="curves",
        x="pairs of each probe",
        y="share of repeats with an open case",
        series=(*series, _single_tests(chosen)),
        head=("row", "slowdown", "pair noise", "50 %", "90 %", "95 %", "99 %", "Wehe flags, one test"),
        rows=rows,
    )


def _spread(told: Sequence[Result]) -> list[Result]:
    """At most MOST_CURVES of them, from the fastest to the slowest."""
    if len(told) <= MOST_CURVES:
        return list(told)
    return [told[round(i * (len(told) - 1) / (MOST_CURVES - 1))] for i in range(MOST_CURVES)]


def _opened(result: Result) -> dict[str, int]:
    cell = result["virtual"]["cells"].get(result["expected"][0], {})
    found: dict[str, int] = cell.get("opened_after", {})
    return found


def _median_pairs(result: Result) -> int:
    value = result["virtual"]["cells"][result["expected"][0]]["pairs_to_case"]["last"]["50"]
    return int(value) if value is not None else int(result["measure"]["pairs"])


def _curve(result: Result) -> list[tuple[float, float]]:
    """Share open after each number of pairs; a step function as points."""
    n = result["virtual"]["cells"][result["expected"][0]]["corroborated"]["n"]
    points, total = [(0.0, 0.0)], 0
    for number, count in sorted(((int(k), v) for k, v in _opened(result).items())):
        points.append((float(number), total / n))
        total += count
        points.append((float(number), total / n))
    return [*points, (float(result["measure"]["pairs"]), total / n)]


def _single_tests(chosen: Sequence[Result]) -> Series:
    most = max((_wehe(one) or 0.0 for one in chosen), default=0.0)
    longest = max(one["measure"]["pairs"] for one in chosen)
    return Series(label="Wehe, one test", points=((0.0, most), (float(longest), most)), look="theirs")


def _wehe(result: Result) -> float | None:
    treated = result["virtual"]["peer"].get("treated")
    return None if treated is None else float(treated["positive"]["share"])


def _truth(result: Result) -> float | None:
    size = result["virtual"]["cells"][result["expected"][0]].get("slowdown")
    return None if size is None else float(size["estimate"])


def _quantiles(result: Result) -> list[str]:
    told = result["virtual"]["cells"][result["expected"][0]]["pairs_to_case"]["last"]
    return ["–" if told[q] is None else f"{told[q]:.0f}" for q in ("50", "90", "95", "99")]


def _sizes(played: Sequence[Result]) -> Figure | None:
    """How often neutral streams ever reached an evidence, by noise, under Ville's bound."""
    groups: dict[str, list[Result]] = {name: [] for _, name in NOISES}
    for one in played:
        if rival.is_even(one) and one["virtual"]["streams"]["count"]:
            name = next(name for most, name in NOISES if noise_of(one) <= most)
            groups[name].append(one)
    series, rows = [], []
    for name, found in groups.items():
        n = sum(one["virtual"]["streams"]["count"] for one in found)
        if not n:
            continue
        steps = sorted({int(step) for one in found for step in one["virtual"]["streams"]["largest"]})
        reached = {step: sum(one["virtual"]["streams"]["largest"].get(str(step), 0) for one in found) for step in steps}
        points = tuple((float(step), reached[step] / n) for step in steps if reached[step])
        series.append(Series(label=name, points=points, look="ours"))
        rows.append((name, f"{len(found)}", f"{n:,}".replace(",", " "), *(percent(reached[s] / n, 3) for s in steps)))
    if not series:
        return None
    steps = sorted({int(step) for one in played for step in one["virtual"]["streams"]["largest"]})
    bound = Series(label="Ville: 1/E", points=tuple((float(s), 1 / s) for s in steps), look="bound")
    above = [step for one in series for step, reached in one.points if reached > 1 / step]
    within = "stays below the bound 1/E" if not above else f"reaches the bound 1/E at E = {max(above):g} at most"
    return Figure(
        name="evidence-of-neutral-streams",
        title=f"Evidence on even lines {within}, whatever the noise",
        description="Share of neutral streams (one probe, one app) whose evidence of any effect ever reached E, at any "
        "look, by the noise of their pairs; both axes logarithmic. The bound holds for each effect; the curves count a "
        "stream for whichever of its four effects grew most, so they may lie above it where evidence is small.",
        kind="curves",
        x="evidence E",
        y="share of streams that ever reached it",
        series=(*series, bound),
        head=("streams", "rows", "number", *(f"E ≥ {step}" for step in steps)),
        rows=tuple(rows),
        log_x=True,
        log_y=True,
    )


def _bytes(played: Sequence[Result]) -> Figure | None:
    told = comparisons(played)
    if not told:
        return None
    ranked = sorted(told, key=lambda row: (told[row]["octets"] or float("inf"), row))
    rate, row_name = rival.worst_row(played)
    dearer = sum(not rival.is_fewer(one, "matched") for one in told.values())
    count = len(ranked)

    def dots(octets: Callable[[dict[str, Any]], float | None]) -> tuple[tuple[float, float], ...]:
        found = [(octets(told[row]), float(count - at)) for at, row in enumerate(ranked)]
        return tuple((cost / 1e6, y) for cost, y in found if cost is not None)

    return Figure(
        name="bytes",
        title=f"Repeated for a line's own noise, Wehe's rule costs less than a case on {dearer} of {count} rows: those "
        "where the slowdown is plain",
        description="Bytes of all probes until 95 % of the repeats have said what is true. Wehe's rule is repeated "
        "until so many tests in a row are positive that it errs no more often than we may at this row's noise; where "
        "its mark is missing it does not get there. To hold on every neutral row of the study, as our rule does, it "
        f"would have to be repeated for {row_name}, where {percent(rate)} of single tests are false flags (the column "
        "for all lines). Where the slowdown is plain and the line is quiet, Wehe's rule is cheaper: our case asks for "
        "three networks, and for evidence without the strongest of them.",
        kind="dots",
        x="MB (logarithmic)",
        y="",
        series=(
            Series(label="evenlane, three probes", points=dots(lambda one: one["octets"])),
            Series(label="Wehe, for this noise", points=dots(lambda one: one["matched"]["octets"]), look="theirs"),
            Series(label="Wehe, for all lines", points=dots(lambda one: one["anywhere"]["octets"]), look="other"),
        ),
        head=("row", "evenlane", "Wehe flags, one test", "for this noise", "for all lines"),
        rows=tuple(_bytes_row(row, told[row]) for row in ranked),
        log_x=True,
        labels=tuple(ranked),
    )


def _bytes_row(row: str, told: dict[str, Any]) -> tuple[str, ...]:
    return (
        row,
        megabytes(told["octets"]),
        percent(told["positive"]["share"]),
        *(_repeated(told[reading]) for reading in ("matched", "anywhere")),
    )


def _repeated(one: dict[str, Any]) -> str:
    if one["times"] is None:
        return "never enough"
    return f"{one['times']} in a row: {'never' if one['octets'] is None else megabytes(one['octets'])}"


def sizes_of(real: dict[str, Any], what: str) -> list[tuple[str, dict[str, Any]]]:
    """What both tiers measured of each app: `rates` (log ratios) or `delays` (ms)."""
    return [(app, told[what]) for app, told in sorted(real.get("apps", {}).items()) if what in told]


def _tiers(results: Sequence[Result]) -> Figure | None:
    """Medians of y in both tiers."""
    points: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    rows = []
    for one in results:
        real = one.get("real") or {}
        for app, told in sizes_of(real, "rates"):
            virtual, measured = (fraction(told[tier]["y"]) for tier in ("virtual", "real"))
            points[bool(real["agrees"])].append((-told["virtual"]["y"], -told["real"]["y"]))
            noises = (f"{told[tier]['sd']:.2f}" for tier in ("virtual", "real"))
            rows.append((one["row"], app, percent(virtual, 1), percent(measured, 1), *noises, _word(real["agrees"])))
    if not rows:
        return None
    count, agree = len(rows), len(points[True])
    ends = [value for found in points.values() for point in found for value in point]
    line = ((min(0.0, *ends), min(0.0, *ends)), (max(0.0, *ends), max(0.0, *ends)))
    return Figure(
        name="tiers",
        title=f"Kernel TCP over the emulated line shows what virtual time shows: {agree} of {count} agree",
        description="Rate of each app on each row in per cent of its control's, in virtual time (across) and through "
        "real sockets (up), medians, both axes logarithmic; on the line both are equal.",
        kind="scatter",
        x="in virtual time, % of the control's rate",
        y="through real sockets, % of the control's rate",
        series=(
            Series(label="agrees", points=tuple(points[True])),
            Series(label="differs", points=tuple(points[False]), look="theirs"),
            Series(label="equal", points=line, look="bound"),
        ),
        head=("row", "app", "virtual", "real", "noise, virtual", "noise, real", ""),
        rows=tuple(rows),
    )


def _word(agrees: bool) -> str:
    return "agrees" if agrees else "differs"


def attacks_of(played: Sequence[Result]) -> list[Result]:
    """Rows in which somebody cheats, or something is broken on purpose."""
    return [one for one in played if one["kind"] == "adversarial" or is_attack(one)]

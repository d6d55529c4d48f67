# SPDX-License-Identifier: EUPL-1.2
"""What the product promises of its verdicts, each with the figure that the study found. spec/accuracy.md section 8.

Rows are found by what they are (their truth, their noise), not by their names: a row that is added takes part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from analysis.pairs import CellKey
from analysis.plan import DEFAULT_PLAN
from analysis.rules import RULES
from lab.accuracy import rival
from lab.accuracy.expectation import worst_effect
from lab.accuracy.judging import Place
from lab.accuracy.results import share

Result = dict[str, Any]
LEAST_ROWS: Final = 45
LEAST_STREAMS: Final = 10_000
RATES: Final = ("slowing", "prioritising")
QUIET_SD: Final = 0.6
"""Up to this pair noise the share of neutral streams that ever reach 20 is to stay below 1 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """One promise and what was found."""

    promise: str
    figure: str
    met: bool | None
    """None: nothing was played that could tell."""
    rows: tuple[str, ...] = ()


def all_of(results: Sequence[Result]) -> list[Promise]:
    """Every promise, in the order in which a reader asks."""
    played = [one for one in results if "virtual" in one]
    return [
        _enough(results),
        _nobody_accused(played),
        _quiet_streams(played),
        _quiet_rows(played),
        _any_streams(played),
        *(_power(played, wanted) for wanted in POWER),
        _fewer_bytes(played),
        _gates(played),
        _real(results),
    ]


def noise_of(result: Result) -> float:
    """The largest pair noise of a row's apps; 0 where no pair had rates."""
    return max((one["sd"] or 0.0 for one in result["virtual"]["noise"].values()), default=0.0)


def is_attack(result: Result) -> bool:
    """Rows in which a protection is broken on purpose: they show why it is there and prove nothing of the product."""
    return bool(result["options"].get("misleads"))


def has_one_size(result: Result) -> bool:
    """Whether one app's rates are treated and nothing else is true."""
    return (
        result["kind"] == "discriminating"
        and not is_attack(result)
        and len(result["expected"]) == 1
        and result["expected"][0].endswith((":slowing", ":prioritising"))
    )


def _enough(results: Sequence[Result]) -> Promise:
    kinds = {kind: sum(one["kind"] == kind for one in results) for kind in ("neutral", "discriminating", "adversarial")}
    figure = f"{len(results)} rows: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    missing = [one["row"] for one in results if "virtual" not in one]
    figure += f"; not played yet: {len(missing)}" if missing else ""
    met = len(results) >= LEAST_ROWS and all(kinds.values()) and not missing
    return Promise(promise=f"At least {LEAST_ROWS} rows, of all three kinds", figure=figure, met=met)


def of(one: dict[str, Any], digits: int = 2) -> str:
    """k of n with its Wilson interval, for people."""
    if not one["n"]:
        return "none played"
    low, high = (f"{100 * one[end]:.{digits}f}" for end in ("low", "high"))
    return f"{one['k']:,} of {one['n']:,} ({low} to {high} %)".replace(",", " ")


def _nobody_accused(played: Sequence[Result]) -> Promise:
    """Cells of neutral operators, each in every repeat; a cell counts once for all of its effects."""
    neutral = [one for one in played if one["kind"] == "neutral"]
    k = n = 0
    for one in neutral:
        for _, effects in cells_by_app(one).items():
            n += max(effect["corroborated"]["n"] for effect in effects)
            k += sum(effect["corroborated"]["k"] for effect in effects)
    elsewhere = [one for one in played if one["kind"] != "neutral" and not is_attack(one)]
    others = sum(one["virtual"]["wrong"]["k"] for one in elsewhere)
    figure = f"{of(share(k, n), 3)} neutral cells corroborated at any look"
    figure += f"; untrue effects on other rows: {others} of {sum(one['virtual']['wrong']['n'] for one in elsewhere)}"
    met = None if not n else k == 0 and others == 0
    rows = tuple(one["row"] for one in (*neutral, *elsewhere) if one["virtual"]["wrong"]["k"])
    return Promise(promise="No neutral cell corroborated in the whole study", figure=figure, met=met, rows=rows)


def cells_by_app(result: Result) -> dict[str, list[dict[str, Any]]]:
    """A row's effects, by app."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, cell in result["virtual"]["cells"].items():
        found.setdefault(name.partition(":")[0], []).append(cell)
    return found


def _quiet(played: Sequence[Result]) -> list[Result]:
    """Even rows at pair noise up to QUIET_SD."""
    return [one for one in played if rival.is_even(one) and noise_of(one) <= QUIET_SD]


def _quiet_streams(played: Sequence[Result]) -> Promise:
    """Of rates: pair noise says nothing of how often transfers fail, so blocking has Ville's bound alone."""
    rows = _quiet(played)
    n = sum(one["virtual"]["streams"]["count"] for one in rows)
    counted = {
        effect: share(sum(one["virtual"]["streams"]["by_effect"].get(effect, {"k": 0})["k"] for one in rows), n)
        for effect in ("slowing", "prioritising", "blocking", "tampering")
    }
    figure = "; ".join(f"{effect} {of(found)}" for effect, found in counted.items()) + f"; {len(rows)} rows"
    met = None if not n else n >= LEAST_STREAMS and all(counted[e]["share"] <= 0.01 for e in RATES)
    least = f"{LEAST_STREAMS:,}".replace(",", " ")
    return Promise(
        promise=f"E ≥ 20 for slowing or prioritising ever in at most 1 % of {least} and more neutral streams at pair "
        f"noise up to {QUIET_SD:g}, all rows together",
        figure=figure,
        met=met,
    )


def _quiet_rows(played: Sequence[Result]) -> Promise:
    """The same of every row for itself, which is more: many rows without noise cannot hide a bad one."""
    told = [
        (found["share"], found["low"] or 0, one["row"], effect)
        for one in _quiet(played)
        for effect in RATES
        if (found := one["virtual"]["streams"]["by_effect"].get(effect))
    ]
    above = tuple(sorted({row for _, low, row, _ in told if low > 0.01}))
    most = max(told, default=None)
    figure = "none ever" if most is None else f"worst row: {100 * most[0]:.1f} % ({most[2]}, {most[3]})"
    met = None if not _quiet(played) else not above
    return Promise(promise="The same on each of these rows alone", figure=figure, met=met, rows=above)


def _is_above(found: dict[str, Any]) -> bool:
    """Above Ville's bound where so many streams were played that chance does not explain it."""
    return bool(found["n"] >= LEAST_STREAMS and found["share"] > 0.05)


def _any_streams(played: Sequence[Result]) -> Promise:
    rows = [one for one in played if rival.is_even(one)]
    told = sorted(
        ((worst_effect(one["virtual"]), one["row"], noise_of(one)) for one in rows),
        key=lambda entry: (-(entry[0]["share"] or 0), entry[1]),
    )
    above = tuple(name for found, name, _ in told if (found["low"] or 0) > 0.05 or _is_above(found))
    if not told:
        return Promise(promise="E ≥ 20 ever in at most 5 % under any noise", figure="none played", met=None)
    found, name, sd = told[0]
    figure = f"worst row: {of(found)} streams ({name}, noise {sd:.2g})"
    return Promise(promise="E ≥ 20 ever in at most 5 % under any noise", figure=figure, met=not above, rows=above)


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """So many pairs open so many of these slowdowns, at this pair noise."""

    slowdown: float
    sd: float
    pairs: int
    share: float
    boost: bool = False

    @property
    def words(self) -> str:
        boosted = ", first segment faster by 20 %" if self.boost else ""
        return (
            f"{self.pairs} pairs open {100 * self.share:.0f} % of {100 * self.slowdown:.0f} % slowdowns "
            f"at pair noise {self.sd:g}{boosted}"
        )


POWER: Final = (
    Power(slowdown=0.3, sd=0.11, pairs=14, share=0.95),
    Power(slowdown=0.3, sd=0.11, pairs=16, share=0.95, boost=True),
    Power(slowdown=0.5, sd=0.3, pairs=20, share=0.99),
    Power(slowdown=0.3, sd=0.3, pairs=65, share=0.95),
)


def _is_of(result: Result, wanted: Power) -> bool:
    """A row of the noise model with exactly this truth: three probes, one cell, nothing else at work."""
    noise = result["options"].get("noise", {})
    extras = {"boost", "slowdown", "sd"}
    return (
        result["engine"] == "stream"
        and result["kind"] == "discriminating"
        and result["measure"]["probes"] == 3
        and not {"probe", "attack", "variant"} & set(result["options"])
        and not set(noise) - extras
        and noise.get("slowdown") == wanted.slowdown
        and noise.get("sd", 0.11) == wanted.sd
        and noise.get("boost", 0.0) == (0.2 if wanted.boost else 0.0)
        and result["measure"]["pairs"] >= wanted.pairs
    )


def opened_by(result: Result, pairs: int) -> dict[str, Any]:
    """In how many repeats everything true was a case by this pair (of one expected effect)."""
    [name] = result["expected"]
    cell = result["virtual"]["cells"][name]
    k = sum(count for number, count in cell.get("opened_after", {}).items() if int(number) <= pairs)
    return share(k, cell["corroborated"]["n"])


def _power(played: Sequence[Result], wanted: Power) -> Promise:
    rows = [one for one in played if _is_of(one, wanted)]
    if not rows:
        return Promise(promise=wanted.words, figure="no row of this kind was played", met=None)
    found = [opened_by(one, wanted.pairs) for one in rows]
    total = share(sum(one["k"] for one in found), sum(one["n"] for one in found))
    shown = "" if total["low"] is None or total["low"] < wanted.share else ", the bound included"
    return Promise(
        promise=wanted.words,
        figure=f"{of(total)} open as the last of {rows[0]['measure']['hypotheses']} hypotheses{shown}",
        met=total["share"] >= wanted.share,
        rows=tuple(one["row"] for one in rows),
    )


def comparisons(played: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Both rules' bytes on every row where one treatment of rates is true and can be found."""
    worst, _ = rival.worst_row(played)
    found = {}
    for one in played:
        if not has_one_size(one):
            continue
        matched = rival.matched_rate(played, noise_of(one))
        told = rival.compared(one, anywhere=worst, matched=matched, most_false=most_false(), power=0.95)
        if told is not None:
            found[one["row"]] = told
    return found


def most_false(hypotheses: int = 36) -> float:
    """How often our own rule may open a case for the last hypothesis although nothing is treated: α·γ."""
    cell = CellKey("operator", None, "youtube", "down", "fixed")
    return math.exp(-Place.last(hypotheses).log_needed(cell, "slowing", "last", DEFAULT_PLAN, RULES))


def _fewer_bytes(played: Sequence[Result]) -> Promise:
    promise = "Fewer bytes than Wehe's rule, repeated until its false flags are no more frequent than ours"
    told = comparisons(played)
    if not told:
        return Promise(promise=promise, figure="none played", met=None)
    rate, row = rival.worst_row(played)
    dearer, quiet = (
        tuple(name for name, one in told.items() if not rival.is_fewer(one, reading))
        for reading in ("anywhere", "matched")
    )
    figure = (
        f"{len(told) - len(dearer)} of {len(told)} rows, where it has to hold on every neutral row of the study as "
        f"ours does (one test errs in {100 * rate:.0f} % on {row}). Repeated for the row's own noise alone, as if that "
        f"were known beforehand: {len(told) - len(quiet)} of {len(told)}"
    )
    figure += f"; cheaper than ours on {', '.join(quiet)}" if quiet else ""
    return Promise(promise=promise, figure=figure, met=not dearer, rows=dearer)


def _gates(played: Sequence[Result]) -> Promise:
    told: dict[str, list[str]] = {}
    for one in played:
        for gate in gates_left_out(one):
            told.setdefault(gate, []).append(one["row"])
    idle = [one["row"] for one in played if any("changes nothing" in why for why in one["differs"])]
    figure = ", ".join(sorted(told)) or "none left out"
    met = None if not told else not idle
    return Promise(promise="Each gate has a row that it saves", figure=figure, met=met, rows=tuple(idle))


def gates_left_out(result: Result) -> list[str]:
    """The gates that a row was judged without."""
    return sorted({gate for cell in result["virtual"]["cells"].values() for gate in cell.get("without", {})})


def _real(results: Sequence[Result]) -> Promise:
    promise = "Every row that has a line was played through real sockets, and agrees"
    told = [one for one in results if "real" in one and not one["real"].get("skipped")]
    apart = tuple(one["row"] for one in told if not one["real"]["agrees"])
    skipped = sum(bool(one.get("real", {}).get("skipped")) for one in results)
    left = sum("real" not in one for one in results)
    figure = f"{len(told) - len(apart)} of {len(told)} agree; {skipped} have no line or say why; {left} not played yet"
    return Promise(promise=promise, figure=figure, met=None if not told else not apart and not left, rows=apart)


def unmet(promises: Iterable[Promise]) -> list[Promise]:
    """Those that failed; a promise about which nothing is known is not met either."""
    is_unmet: Callable[[Promise], bool] = lambda one: one.met is not True  # noqa: E731
    return [one for one in promises if is_unmet(one)]

# SPDX-License-Identifier: EUPL-1.2
"""How large an effect is, and the one sentence that a newspaper may print.

Always with size, interval, spread and date; never with a verdict of law. The sentences themselves are data
(`words/*.toml`), this module says which figures go into them. Spec: spec/series.md, section "Words and figures".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, cast

from analysis.rules import RULES
from collector.model import CaseView, CellView, EvidencePoint, Interval
from collector.pages.apps import app_name
from collector.pages.language import Words

LEAST_PROBES: Final = 3
"""Below this a page shows no figure of a cell."""


Unit = Literal["share", "ms", "points"]
Measure = Literal["rate", "delay", "loss"]
_MATERIAL: Final[dict[Measure, float]] = {
    "rate": RULES.material_slowdown,
    "delay": RULES.delay_threshold_ms,
    "loss": RULES.loss_threshold,
}


@dataclass(frozen=True, slots=True)
class Size:
    """How large an effect is, counted in its own direction: 0.3 is 30 % slower, faster, failing or altered."""

    estimate: float
    low: float
    high: float
    unit: Unit = "share"
    """ms: of waiting; points: 0.02 is 2 percentage points more of the packets lost."""


def measure(cell: CellView) -> Measure:
    """In what a cell's difference shows most: its rates, or (concurrent pairs) the delay or the loss behind a queue.

    The one whose interval lies furthest beyond what is material, in the direction of the effect.
    """
    sign = -1 if cell.key.effect == "prioritising" else 1
    known: list[tuple[float, Measure]] = []
    for kind, interval in (("rate", cell.slowdown), ("delay", cell.delay_ms), ("loss", cell.loss)):
        if interval is not None:
            nearest = min(sign * interval.low, sign * interval.high)
            known.append((nearest / _MATERIAL[cast("Measure", kind)], cast("Measure", kind)))
    # Of equal ones the first: rates are what most cells have.
    best = max((value for value, _ in known), default=0.0)
    none: Measure = "delay" if cell.app_mbps is None and cell.app_delay_ms is not None else "rate"
    return next((kind for value, kind in known if value == best), none)


def size(cell: CellView) -> Size | None:
    """The size of the cell's effect, or None where it is not known or must not be shown."""
    if cell.probes < LEAST_PROBES:
        return None
    if cell.key.effect in {"blocking", "tampering"}:
        return _share(cell)
    found, unit = _difference(cell)
    if found is None or not all(map(math.isfinite, (found.estimate, found.low, found.high))):
        return None
    if cell.key.effect == "prioritising":
        return Size(-found.estimate, -found.high, -found.low, unit)
    return Size(found.estimate, found.low, found.high, unit)


def _share(cell: CellView) -> Size | None:
    """Blocking and tampering: in what share of the pairs it was the app alone, as judged; views that an older version
    wrote have no share, but the counts."""
    if cell.share is not None:
        return Size(cell.share.estimate, cell.share.low, cell.share.high)
    alone, other = (
        (cell.altered_app, cell.altered_neutral)
        if cell.key.effect == "tampering"
        else (cell.failed_app, cell.failed_neutral)
    )
    return share_failed(alone, cell.pairs - other)


def reaches_below_material(cell: CellView) -> bool:
    """Whether the range of a difference reaches to sizes about which nothing is promised."""
    found = size(cell) if cell.key.effect in {"slowing", "prioritising"} else None
    return found is not None and found.low < _MATERIAL[measure(cell)] - 1e-9


def _difference(cell: CellView) -> tuple[Interval | None, Unit]:
    """The difference in the cell's measure, the app's slowness (waiting, loss) counted positive."""
    kind = measure(cell)
    if kind == "rate":
        return cell.slowdown, "share"
    return (cell.delay_ms, "ms") if kind == "delay" else (cell.loss, "points")


def in_unit(words: Words, found: Size) -> str:
    """The estimate in words: 30 %, 34 ms, 6.2 percentage points."""
    if found.unit == "ms":
        return words.delay(found.estimate)
    return words.points(found.estimate) if found.unit == "points" else words.percent(found.estimate)


def ends(words: Words, found: Size) -> tuple[str, str]:
    """Both ends of the interval, the first without its unit."""
    if found.unit == "ms":
        return words.delays(found.low, found.high)
    if found.unit == "points":
        return words.both_points(found.low, found.high)
    return words.percents(found.low, found.high)


def kind_of(cell: CellView) -> str:
    """What a text's key has behind the effect where the difference is one of delay or loss."""
    kind = measure(cell)
    return f"_{kind}" if kind != "rate" and cell.key.effect in {"slowing", "prioritising"} else ""


def share_failed(failed: int, of: int) -> Size | None:
    """Share of pairs in which one arm failed, with a 95 % confidence sequence; None without pairs.

    The sequence inverts the mixture martingale ∫q^k(1-q)^(n-k)dq / (p^k(1-p)^(n-k)) (Robbins, Annals of
    Mathematical Statistics 41, 1970), so it holds at every moment, like the other intervals of the pages.
    """
    if of <= 0 or not 0 <= failed <= of:
        return None
    estimate = failed / of
    return Size(estimate, _end(failed, of, 0.0, estimate), _end(failed, of, 1.0, estimate))


def _end(k: int, n: int, outside: float, inside: float) -> float:
    """Where the sequence ends, between a share that may be outside and the estimate, which never is."""
    mixed = math.lgamma(k + 1) + math.lgamma(n - k + 1) - math.lgamma(n + 2)

    def excluded(p: float) -> bool:
        likelihood = (k * math.log(p) if k else 0.0) + ((n - k) * math.log(1 - p) if n > k else 0.0)
        return mixed - likelihood >= math.log(20)

    if (outside == 0.0 and k == 0) or (outside == 1.0 and k == n):
        return outside
    for _ in range(50):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if excluded(middle) else (outside, middle)
    return outside


def spread(cell: CellView) -> float:
    """Share of the participating probes that show the effect by their own evidence."""
    return cell.slowed / cell.probes if cell.probes else 0.0


def sentence(words: Words, case: CaseView, operator: str, hours: Sequence[EvidencePoint] = ()) -> str:
    """The sentence of a case. `operator` is the brand as the register has it.

    What is no longer so is told as past: an ended case with the size it had while it was open, which is that of the
    last of `hours` in which it was; a case that lost its support, or was taken back, with what it had said.
    """
    text = _present(words, case, operator) if case.status == "open" and case.supported else ""
    if case.status == "ended":
        text = _ended(words, case, operator, hours)
    elif not text:
        text = _taken_back(words, case, operator)
    return words("sentence.hotspot", operator=operator) + text if case.cell.key.access == "hotspot" else text


def _figures(words: Words, found: Size | None) -> dict[str, str]:
    low, high = ("–", "–") if found is None else ends(words, found)
    x = words("sentence.size_unknown") if found is None else in_unit(words, found)
    return {"x": x, "lo": low, "hi": high}


def _present(words: Words, case: CaseView, operator: str) -> str:
    return words(
        f"sentence.{case.cell.key.effect}{kind_of(case.cell)}",
        operator=operator,
        app=app_name(words, case.cell.key.app),
        p=words.percent(spread(case.cell)),
        date=words.day(case.onset_day),
        **_figures(words, size(case.cell)),
    )


def _ended(words: Words, case: CaseView, operator: str, hours: Sequence[EvidencePoint]) -> str:
    cell = case.cell
    listed = [hour for hour in reversed(hours) if hour.state == "corroborated"]
    then = next((hour for hour in listed if hour.slowdown or hour.delay_ms or hour.loss), None)
    if then is not None and cell.key.effect in {"slowing", "prioritising"}:
        cell = replace(cell, slowdown=then.slowdown, delay_ms=then.delay_ms, loss=then.loss)
    return words(
        f"sentence.ended_{cell.key.effect}{kind_of(cell)}",
        operator=operator,
        app=app_name(words, cell.key.app),
        date=words.day(case.onset_day),
        end=words.day_of(_since(case)),
        **_figures(words, size(cell)),
    )


def _taken_back(words: Words, case: CaseView, operator: str) -> str:
    claim = words(f"claim.{case.cell.key.effect}", app=app_name(words, case.cell.key.app), operator=operator)
    if case.status != "open":
        return words("sentence.taken_back", claim=claim)
    opened, end = words.day_of(case.opened_ms), words.day_of(_since(case))
    return words("sentence.unsupported", opened=opened, end=end, claim=claim)


def _since(case: CaseView) -> int:
    """When a case became what it is now, Unix ms."""
    if case.ended_ms is not None:
        return case.ended_ms
    falls = [event.at_ms for event in case.history if event.what == "no_longer_supported"]
    if case.status == "open":
        return falls[-1] if falls else case.cell.updated_ms
    return case.history[-1].at_ms if case.history else case.opened_ms


def status_note(words: Words, case: CaseView) -> str | None:
    """What follows the sentence when the case is no longer simply open."""
    if case.status == "open" and case.supported:
        return None
    kind = "not_supported" if case.status == "open" else case.status
    return words(f"status.{kind}", date=words.day_of(_since(case)))


def short_size(words: Words, cell: CellView) -> tuple[str, str] | None:
    """Size and range for a table: ("45 % slower", "40 to 50 %"); None where no figure may be shown."""
    found = size(cell)
    if found is None:
        return None
    kind = {"slowing": "slower", "prioritising": "faster", "blocking": "fails", "tampering": "altered"}[cell.key.effect]
    if cell.state in {"indication", "replicated", "corroborated"} or kind in {"fails", "altered"}:
        low, high = ends(words, found)
        return words(f"size.{kind}{kind_of(cell)}", x=in_unit(words, found)), words("size.range", lo=low, hi=high)
    # Without a claim the difference is given as it is, the app's slowness counted positive.
    interval, unit = _difference(cell)
    plain = Size(0, 0, 0, unit) if interval is None else Size(interval.estimate, interval.low, interval.high, unit)
    low, high = ends(words, plain)
    return words(f"size.even{kind_of(cell)}", x=in_unit(words, plain)), words("size.range", lo=low, hi=high)

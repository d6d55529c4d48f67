# SPDX-License-Identifier: EUPL-1.2
"""A small invented world in which every state occurs: for tests, pictures of the pages, and translators.

`python -m collector.pages.example [PORT]` serves the pages with it on loopback. Nothing here was measured, the
operators do not exist, and no running collector imports this. Spec: spec/series.md, section "Pages".
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from aiohttp import web

from analysis.rules import RULES, VERSION_1
from collector.config import Config
from collector.keys import CONFIG, STORE
from collector.model import (
    CaseDetail,
    CaseEvent,
    CaseView,
    CellDetail,
    CellKey,
    CellView,
    EvidencePoint,
    Interval,
    OperatorView,
    PairEvidence,
    RuleVerdict,
    State,
)
from collector.pages.recompute import curve, judged
from collector.series import HOUR_MS
from collector.store.base import Store
from probe.wire.records import Effect, PairRecord

NOW_MS: Final = 1_795_352_400_000 - 1_795_352_400_000 % HOUR_MS
"""A Sunday in November 2026, on the hour."""
DAY: Final = "2026-11-01"
"""The first of a month, which French writes differently from other days."""
LATER: Final = "2026-11-02"


def key(operator: str, app: str, effect: Effect = "slowing", **changes: Any) -> CellKey:
    """The key of a cell on a fixed line, download."""
    plain = CellKey(operator=operator, asn=64500, app=app, direction="down", access="fixed", effect=effect)
    return replace(plain, **changes)


def cell(operator: str, app: str, state: State, effect: Effect = "slowing", **changes: Any) -> CellView:
    """A cell whose figures suit its state; `changes` replaces what matters to a test."""
    claim = state in {"indication", "replicated", "corroborated"}
    log10_e = {"indication": 1.6, "replicated": 2.9, "corroborated": 7.4}.get(state, -0.8)
    slow = Interval(estimate=0.62, low=0.551, high=0.688) if claim else Interval(estimate=0.01, low=-0.04, high=0.06)
    if effect == "prioritising" and claim:
        slow = Interval(estimate=-0.45, low=-0.61, high=-0.3)
    rate = 10.2 * (1 - slow.estimate)
    plain = CellView(
        key=key(operator, app, effect),
        country="NL",
        state=state,
        e_value=10.0**log10_e,
        log10_e=log10_e,
        slowdown=slow,
        app_mbps=Interval(estimate=rate, low=rate * 0.93, high=rate * 1.06),
        neutral_mbps=Interval(estimate=10.2, low=9.4, high=10.9),
        pairs=48,
        lost_pairs=2,
        placebo_pairs=6,
        failed_app=0,
        failed_neutral=0,
        probes=4,
        slowed=3 if claim else 0,
        clear=1 if claim else 4,
        undecided=0,
        detectable_rate_mbps=8.4,
        detectable_burst_kb=1500.0,
        reasons=("effect_among_slowed", "time_zone_unknown") if claim else (),
        case=None,
        updated_ms=NOW_MS,
        log10_e_without_one=log10_e * 0.7 if log10_e > 0 else log10_e,
    )
    return replace(plain, **changes)


def blocked(operator: str, app: str, state: State = "corroborated", **changes: Any) -> CellView:
    """A cell in which the app alone fails."""
    plain = cell(operator, app, state, "blocking", failed_app=44, failed_neutral=1, slowdown=None, app_mbps=None)
    return replace(plain, neutral_mbps=None, **changes)


def queued(operator: str, app: str, state: State = "corroborated", **changes: Any) -> CellView:
    """A cell of concurrent pairs: the app waits 38 ms longer behind a full queue, or loses more where told so."""
    waits, loses = Interval(estimate=38.2, low=31.4, high=44.9), Interval(estimate=0.004, low=-0.01, high=0.02)
    plain = cell(operator, app, state, slowdown=None, app_mbps=None, neutral_mbps=None, delay_ms=waits, loss=loses)
    plain = replace(
        plain,
        app_delay_ms=Interval(estimate=118.0, low=109.0, high=127.0),
        neutral_delay_ms=Interval(estimate=80.0, low=74.0, high=87.0),
        app_loss=Interval(estimate=0.012, low=0.0, high=0.02),
        neutral_loss=Interval(estimate=0.008, low=0.0, high=0.02),
        detectable_rate_mbps=None,
        detectable_burst_kb=None,
        detectable_delay_ms=10.0,
        detectable_loss=0.02,
    )
    return replace(plain, **changes)


def altered(operator: str, app: str, state: State = "corroborated", **changes: Any) -> CellView:
    """A cell in which what the app arm sends arrives changed."""
    plain = cell(operator, app, state, "tampering", altered_app=41, altered_neutral=0)
    even = Interval(estimate=0.01, low=-0.04, high=0.06)
    share = Interval(estimate=0.85, low=0.66, high=0.95)
    return replace(plain, slowdown=even, app_mbps=plain.neutral_mbps, share=share, **changes)


def case(ident: str, of: CellView, **changes: Any) -> CaseView:
    """A case with the history that goes with its status."""
    plain = CaseView(
        id=ident,
        cell=replace(of, case=ident),
        status="open",
        opened_ms=NOW_MS - 5 * 24 * HOUR_MS,
        onset_day=DAY,
        ended_ms=None,
        smallest_coalition=3,
        hypotheses=1890,
        threshold_log10_e=4.6,
        history=(event("opened", 5, 4.7), event("alerted", 4, 6.1), event("changed", 1, of.log10_e)),
    )
    return replace(plain, **changes)


def event(what: Any, days_ago: int, log10_e: float, state: State = "corroborated", reason: str = "") -> CaseEvent:
    """One line of a history."""
    return CaseEvent(
        at_ms=NOW_MS - days_ago * 24 * HOUR_MS,
        what=what,
        state=state,
        log10_e=log10_e,
        rule="evenlane-pairs@1:8c1f0e5a90d2b7c4",
        inputs="7d9f2c41b0e85a63" * 4,
        reason=reason,
    )


def pairs(of: CellView, seed: int = 1, until: int | None = None) -> tuple[PairRecord, ...]:
    """As many pairs as the cell counts, with its rates or its failures, some lost and some placebo pairs.

    From pair `until` on, where it is given, both names are treated alike.
    """
    rng = random.Random(seed)
    ratio = 1 - (of.slowdown.estimate if of.slowdown else 0)
    made = []
    for sequence in range(1, of.pairs + of.lost_pairs + of.placebo_pairs + 1):
        neutral = 10.2 * math.exp(rng.gauss(0, 0.12))
        kind, lost = ("placebo", False) if sequence % 9 == 0 else ("test", sequence in {14, 31})
        treated = kind == "test" and (until is None or sequence < until)
        app = neutral * (ratio if treated else 1) * math.exp(rng.gauss(0, 0.1))
        fails = of.key.effect == "blocking" and treated and sequence % 12 != 5
        changed = of.key.effect == "tampering" and treated and sequence % 7 != 5
        waits = of.delay_ms is not None
        made.append(
            PairRecord(
                v=1,
                sequence=sequence,
                kind=cast("Any", kind),
                operator=of.key.operator,
                asn=of.key.asn,
                app=of.key.app,
                direction=of.key.direction,
                access=of.key.access,
                day=DAY if sequence <= of.pairs // 2 else LATER,
                stratum="peak" if sequence % 3 else "rest",
                probe=f"p{sequence % 4 + 1}",
                network=f"n{sequence % 4 + 1}",
                neutral_first=None if lost else rng.random() < 0.5,
                lost=lost,
                app_mbps=None if lost or fails or waits else round(app, 3),
                neutral_mbps=None if lost or waits else round(neutral, 3),
                app_end=None if lost else "reset" if fails else "complete",
                neutral_end=None if lost else "complete",
                pace_mbps=12.0,
                segment_s=4.0,
                edge=sequence % 4 == 0,
                app_altered=changed and not lost,
            )
        )
        if waits:
            made[-1] = _waiting(made[-1], of, rng, treated=treated)
    return tuple(made)


def _waiting(pair: PairRecord, of: CellView, rng: random.Random, *, treated: bool) -> PairRecord:
    """The pair as one of two slots at once behind a full queue."""
    neutral = 80.0 * math.exp(rng.gauss(0, 0.08))
    extra = (of.delay_ms.estimate if of.delay_ms else 0.0, of.loss.estimate if of.loss else 0.0)
    delay, loss = extra if treated else (0.0, 0.0)
    lost = (round(max(0.0, rng.gauss(0.01 + of_arm, 0.01)), 3) for of_arm in (loss, 0.0))
    return replace(
        pair,
        design="concurrent",
        queued=True,
        app_delay_ms=None if pair.lost else round(neutral * math.exp(rng.gauss(0, 0.06)) + delay, 1),
        neutral_delay_ms=None if pair.lost else round(neutral, 1),
        app_loss=None if pair.lost else next(lost),
        neutral_loss=None if pair.lost else next(lost),
    )


def by_pair(of: CellView, made: tuple[PairRecord, ...]) -> tuple[PairEvidence, ...]:
    """The evidence after each pair."""
    return tuple(PairEvidence(sequence=p.sequence, log10_e=p.whole) for p in curve(made, of.key.effect))


def by_hour(of: CellView, hours: int) -> tuple[EvidencePoint, ...]:
    """The same over hours, one every three."""
    return tuple(
        EvidencePoint(
            bucket_ms=NOW_MS - (hours - i) * 3 * HOUR_MS,
            pairs=of.pairs * (i + 1) // hours,
            log10_e=of.log10_e * (i + 1) / hours + 0.2 * math.sin(i),
            state=of.state,
            slowdown=of.slowdown,
            delay_ms=of.delay_ms,
            loss=of.loss,
            log10_e_without_one=(of.log10_e_without_one or 0.0) * (i + 1) / hours + 0.2 * math.sin(i),
        )
        for i in range(hours)
    )


def weighed(of: CellView, from_pairs: Sequence[PairRecord]) -> CellView:
    """The cell with the strength that its pairs have, as a judge would write it."""
    found = judged(from_pairs, of.key.effect)
    whole, one = found.whole / math.log(10), found.without_one / math.log(10)
    return replace(of, log10_e=whole, e_value=10.0 ** min(whole, 300), log10_e_without_one=one)


def detail(of: CaseView, hours: int = 0, until: int | None = None) -> CaseDetail:
    """A case with its pictures; over pairs, or over time where `hours` is given. `until`: see `pairs`."""
    made = pairs(of.cell, until=until)
    of = replace(of, cell=weighed(of.cell, made))
    return CaseDetail(
        case=of,
        pairs=made,
        evidence_by_pair=by_pair(of.cell, made),
        evidence_by_hour=by_hour(of.cell, hours),
        rule=RULES.name,
    )


def judged_before(of: CaseDetail) -> CaseDetail:
    """The same after the rule has changed: what version 1 had said last stands beside it."""
    before = replace(of.case.cell, state="replicated", log10_e=3.1, slowdown=Interval(estimate=0.6, low=0.5, high=0.7))
    said = RuleVerdict(rule=VERSION_1.name, until_ms=NOW_MS - 30 * 24 * HOUR_MS, cell=before)
    reasons = (*of.case.cell.reasons, "retrospective")
    shown = replace(of.case, cell=replace(of.case.cell, reasons=reasons), retrospective=True)
    return replace(of, case=shown, verdicts_by_rule=(said,))


@dataclass
class ExampleStore:
    """The reading half of a store, over a few invented cases."""

    details: list[CaseDetail] = field(default_factory=list)
    plain: list[CellView] = field(default_factory=list)
    register: list[OperatorView] = field(default_factory=list)

    def cells(self) -> list[CellView]:
        """Those of the cases and those without."""
        return [*(d.case.cell for d in self.details), *self.plain]

    def cases(self) -> list[CaseView]:
        """All cases."""
        return [d.case for d in self.details]

    def case(self, case_id: str) -> CaseDetail | None:
        """One case."""
        return next((d for d in self.details if d.case.id == case_id), None)

    def evidence(self, key: CellKey) -> CellDetail | None:
        """One cell."""
        found = next((c for c in self.cells() if replace(c.key, asn=None) == replace(key, asn=None)), None)
        if found is None:
            return None
        if found.probes < 3:
            return CellDetail(cell=found, pairs=(), evidence_by_pair=(), evidence_by_hour=())
        made = pairs(found)
        return CellDetail(cell=found, pairs=made, evidence_by_pair=by_pair(found, made), evidence_by_hour=())

    def operators(self) -> list[OperatorView]:
        """The register."""
        return self.register


def operator(ident: str, place: int, brand: str) -> OperatorView:
    """An entry of the register."""
    return OperatorView(
        id=ident, place=place, brand=brand, asns=(64499 + place,), country="NL", timezone="UTC", configured=True
    )


LONG_OPERATOR: Final = "Nordwestfälische Breitband- und Telekommunikationsgesellschaft mbH & Co. KG"
LONG_APP: Final = "an-app-with-a-name-that-nobody-would-want-to-type-on-a-telephone"


def _flapping() -> CaseView:
    """A case whose evidence fell below its threshold twice and came back."""
    of = case("flap000001", cell("plover", "youtube+quic", "corroborated"), threshold_log10_e=5.6)
    reason = "below_case_threshold"
    return replace(
        of,
        history=(
            event("opened", 9, 5.9),
            event("no_longer_supported", 8, 5.2, "replicated", reason),
            event("supported_again", 6, 5.8),
            event("no_longer_supported", 5, 5.4, "replicated", reason),
            event("supported_again", 1, 6.6),
        ),
    )


def _losing() -> CellView:
    """A game that loses packets and waits no longer than others; an ended one of delay is in `_past`."""
    return queued(
        "plover",
        "game",
        delay_ms=Interval(estimate=0.8, low=-2.0, high=3.4),
        loss=Interval(estimate=0.062, low=0.041, high=0.083),
        app_loss=Interval(estimate=0.07, low=0.05, high=0.09),
    )


def _past() -> tuple[CaseDetail, CaseDetail]:
    """An ended case, and one that is no longer supported."""
    over = case("ended00001", cell("osprey", "youtube", "replicated"), status="ended", ended_ms=NOW_MS)
    over = replace(over, history=(*over.history, event("ended", 0, 5.1, "replicated")))
    weak = case("weak000001", cell("plover", "signal", "replicated", reasons=("below_case_threshold",)))
    reason = "below_case_threshold"
    fell = event("no_longer_supported", 0, 2.9, "replicated", reason)
    weak = replace(weak, supported=False, threshold_log10_e=2.5, history=(*weak.history, fell))
    return detail(over, until=50), detail(weak, until=30)


def world() -> ExampleStore:
    """Every state, a case of each kind, ended, not supported, to and fro; hotspots, few probes, very long names."""
    slowed = case("slow000001", cell("heron", "youtube", "corroborated"))
    blocking = case("block00001", blocked("heron", "signal"))
    faster = case("fast000001", cell("osprey", "netflix", "corroborated", "prioritising"))
    few = cell("plover", "youtube", "insufficient", probes=1, slowdown=None, app_mbps=None, neutral_mbps=None)
    wide = Interval(estimate=-0.32, low=-1.9, high=0.18)
    hotspot = cell("heron", "youtube", "replicated", reasons=("hotspot",))
    return ExampleStore(
        details=[
            judged_before(detail(slowed)),
            detail(blocking),
            detail(faster, hours=24),
            *_past(),
            detail(_flapping()),
            detail(case("wait000001", queued("osprey", "signal-call"))),
            detail(case("loss000001", _losing())),
            detail(case("alter00001", altered("heron", "http-plain"))),
        ],
        plain=[
            cell("heron", "youtube", "no_indication", "blocking"),
            cell("heron", "netflix", "no_indication"),
            replace(hotspot, key=key("heron", "youtube", access="hotspot")),
            cell("osprey", "signal", "indication", reasons=("leave_two_out",)),
            cell("plover", "netflix", "inconclusive", slowdown=wide),
            replace(few, pairs=5, reasons=("fewer_than_3_probes",)),
            cell("wren", "youtube", "not_testable", slowdown=None, reasons=("busy_lines",)),
            replace(cell("wren", "netflix", "insufficient"), reasons=("few_pairs",)),
            cell("stork", LONG_APP, "replicated", reasons=("could_be_few_probes",)),
            cell("stork", "bittorrent+udp", "no_indication"),
            queued("stork", "signal-call", "no_indication", delay_ms=Interval(estimate=1.2, low=-3.1, high=5.6)),
            queued("heron", "whatsapp-call", "not_testable", delay_ms=None, loss=None, reasons=("not_queued",)),
            replace(cell("heron", "zoom", "no_indication"), since_day=LATER, reasons=("retrospective",)),
        ],
        register=[
            operator("heron", 1, "Heron Telecom"),
            operator("osprey", 2, "Osprey Mobiel"),
            operator("plover", 3, "Plover & Zonen <Kabel>"),
            operator("stork", 4, LONG_OPERATOR),
        ],
    )


def application(store: ExampleStore) -> web.Application:
    """The pages alone, over an invented store."""
    from collector.pages.routes import setup  # noqa: PLC0415 - only who serves the example needs the routes

    app = web.Application()
    app[STORE] = cast("Store", store)
    app[CONFIG] = Config()
    setup(app)
    return app


if __name__ == "__main__":
    web.run_app(application(world()), host="127.0.0.1", port=int(sys.argv[1]) if len(sys.argv) > 1 else 8099)

# SPDX-License-Identifier: EUPL-1.2
"""A small invented world in which every state occurs: for tests, pictures of the pages, and translators.

`python -m collector.pages.example [PORT]` serves the pages with it on loopback. Nothing here was measured, the
operators do not exist, and no running collector imports this. Spec: spec/series.md, section "Pages".
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from aiohttp import web

from analysis.effect import share_interval
from analysis.rules import RULES, VERSION_1
from collector.config import Config
from collector.keys import CONFIG, LOG, STORE
from collector.logs import logger
from collector.model import (
    CaseDetail,
    CaseEvent,
    CaseView,
    CellDetail,
    CellKey,
    CellView,
    CoinCounts,
    EvidencePoint,
    Interval,
    OperatorView,
    PairEvidence,
    RuleVerdict,
    State,
)
from collector.pages.recompute import curve, judged
from collector.pages.sentence import LEAST_PROBES
from collector.series import HOUR_MS
from collector.store.base import Store
from probe.wire.records import Effect, PairRecord

NOW_MS: Final = 1_797_166_800_000
"""A Sunday in December 2026, on the hour; three weeks after the rule in force was published."""
DAY: Final = "2026-12-01"
"""The first of a month, which French writes differently from other days."""
LATER: Final = "2026-12-02"
BEFORE: Final = ("2026-11-01", "2026-11-02")
"""Days before the rule in force."""
RULE_CHANGED_MS: Final = NOW_MS - 21 * 24 * HOUR_MS


def key(operator: str, app: str, effect: Effect = "slowing", **changes: Any) -> CellKey:
    """The key of a cell on a fixed line, download."""
    asn = {"heron": 64500, "osprey": 64501, "plover": 64502, "stork": 64503, "tern": 64504}.get(operator, 64500)
    plain = CellKey(operator=operator, asn=asn, app=app, direction="down", access="fixed", effect=effect)
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
        reasons=("effect_among_slowed",) if claim else (),
        case=None,
        updated_ms=NOW_MS,
        log10_e_without_one=log10_e * 0.7 if log10_e > 0 else log10_e,
        log10_e_without_two=log10_e * 0.4 if log10_e > 0 else log10_e,
        rule=RULES.name,
        neutral_first=CoinCounts(pairs=27),
        app_first=CoinCounts(pairs=21),
    )
    return replace(plain, **changes)


def blocked(operator: str, app: str, state: State = "corroborated", **changes: Any) -> CellView:
    """A cell in which the app alone fails."""
    plain = cell(operator, app, state, "blocking", failed_app=42, failed_neutral=1, slowdown=None, app_mbps=None)
    plain = replace(
        plain,
        neutral_mbps=None,
        share=Interval(estimate=0.8936, low=0.6538, high=0.9838),
        neutral_first=CoinCounts(pairs=27, void=1, failed_app=23, failed_neutral=1),
        app_first=CoinCounts(pairs=21, failed_app=19),
    )
    return replace(plain, **changes)


def queued(operator: str, app: str, state: State = "corroborated", **changes: Any) -> CellView:
    """A cell of concurrent pairs: the app waits 38 ms longer behind a full queue, or loses more where told so."""
    waits, loses = Interval(estimate=38.2, low=31.4, high=44.9), Interval(estimate=0.004, low=-0.01, high=0.02)
    plain = cell(operator, app, state, slowdown=None, app_mbps=None, neutral_mbps=None, delay_ms=waits, loss=loses)
    longer = 0.0
    if (told := changes.get("delay_ms", waits)) is not None:
        longer = told.estimate
    plain = replace(
        plain,
        app_delay_ms=Interval(estimate=80.0 + longer, low=73.0 + longer, high=89.0 + longer),
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
        history=(event("opened", 5, 6.8), event("alerted", 4, 8.7)),
    )
    return replace(plain, **changes)


def event(what: Any, days_ago: int, log10_e: float, state: State = "corroborated", reason: str = "") -> CaseEvent:
    """One line of a history."""
    return CaseEvent(
        at_ms=NOW_MS - days_ago * 24 * HOUR_MS,
        what=what,
        state=state,
        log10_e=log10_e,
        rule=RULES.name,
        inputs="7d9f2c41b0e85a63" * 4,
        reason=reason,
        log10_e_without_one=log10_e * 0.7,
    )


_LOST: Final = (14, 31, 4, 11, 20, 25, 34, 41, 47)
"""Which pairs are lost: as many of these as the cell counts."""


def pairs(
    of: CellView,
    seed: int = 1,
    until: int | None = None,
    days: tuple[str, str] = (DAY, LATER),
    treated_probes: int | None = None,
) -> tuple[PairRecord, ...]:
    """As many pairs as the cell counts, with its rates or its failures, some lost and some placebo pairs.

    From pair `until` on, where it is given, both names are treated alike; so they are at all probes but the first
    `treated_probes`.
    """
    rng = random.Random(seed)
    ratio = 1 - (of.slowdown.estimate if of.slowdown else 0)
    made = []
    for sequence in range(1, of.pairs + of.lost_pairs + of.placebo_pairs + 1):
        neutral = 10.2 * math.exp(rng.gauss(0, 0.12))
        kind, lost = ("placebo", False) if sequence % 9 == 0 else ("test", sequence in _LOST[: of.lost_pairs])
        who = sequence % max(of.probes, 4)
        treated = kind == "test" and (until is None or sequence < until)
        treated = treated and (treated_probes is None or who < treated_probes)
        app = neutral * (ratio if treated else 1) * math.exp(rng.gauss(0, 0.1))
        neutral_first = rng.random() < 0.5
        fails = of.key.effect == "blocking" and of.slowed > 0 and treated and sequence % 12 != 5
        other_fails = of.key.effect == "blocking" and of.slowed > 0 and sequence in {17, 24}
        if "no_rates" in of.reasons:
            fails, other_fails = neutral_first, not neutral_first
        changed = of.key.effect == "tampering" and treated and sequence % 7 != 5
        waits = of.delay_ms is not None or "not_queued" in of.reasons
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
                day=days[0] if sequence <= of.pairs // 2 else days[1],
                stratum="peak" if sequence % 3 else "rest",
                probe=f"p{who + 1}",
                network=f"n{who + 1}",
                neutral_first=None if lost else neutral_first,
                lost=lost,
                app_mbps=None if lost or fails or waits else round(app, 3),
                neutral_mbps=None if lost or other_fails or waits else round(neutral, 3),
                app_end=None if lost else "reset" if fails else "complete",
                neutral_end=None if lost else "reset" if other_fails else "complete",
                pace_mbps=12.0,
                segment_s=4.0,
                edge=who == 0,
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
        queued="not_queued" not in of.reasons,
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
    """The cell with the strength and the counts that its pairs have, as a judge would write it."""
    found = judged(from_pairs, of.key.effect)
    whole, one, two = (e / math.log(10) for e in (found.whole, found.without_one, found.without_two))
    counts = {first: _coin(from_pairs, neutral_first=first) for first in (True, False)}
    of = replace(
        of,
        log10_e=whole,
        e_value=10.0 ** min(whole, 300),
        log10_e_without_one=one,
        log10_e_without_two=two,
        neutral_first=counts[True],
        app_first=counts[False],
        failed_app=sum(c.failed_app for c in counts.values()),
        failed_neutral=sum(c.failed_neutral for c in counts.values()),
        altered_app=sum(p.app_altered and not p.neutral_altered for p in _tests(from_pairs)),
    )
    if of.key.effect not in {"blocking", "tampering"}:
        return of
    alone = of.failed_app if of.key.effect == "blocking" else of.altered_app
    lost = sum(p.lost for p in from_pairs if p.kind == "test")
    share = share_interval(alone, len(_tests(from_pairs)) - of.void_pairs - alone, lost)
    return replace(of, share=Interval(estimate=share.estimate or 0.0, low=share.low, high=share.high))


def _tests(of: Sequence[PairRecord]) -> list[PairRecord]:
    return [pair for pair in of if pair.kind == "test" and not pair.lost]


def _coin(of: Sequence[PairRecord], *, neutral_first: bool) -> CoinCounts:
    ends = [
        (pair.app_end != "complete", pair.neutral_end != "complete")
        for pair in _tests(of)
        if pair.neutral_first == neutral_first
    ]
    return CoinCounts(
        pairs=len(ends),
        void=ends.count((True, True)),
        failed_app=ends.count((True, False)),
        failed_neutral=ends.count((False, True)),
    )


def detail(of: CaseView, hours: int = 0, until: int | None = None, days: tuple[str, str] = (DAY, LATER)) -> CaseDetail:
    """A case with its pictures; over pairs, or over time where `hours` is given. `until`, `days`: see `pairs`."""
    made = pairs(of.cell, until=until, days=days)
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
    said = RuleVerdict(rule=VERSION_1.name, until_ms=RULE_CHANGED_MS, cell=replace(before, rule=VERSION_1.name))
    reasons = (*of.case.cell.reasons, "retrospective")
    shown = replace(of.case, cell=replace(of.case.cell, reasons=reasons), retrospective=True)
    return replace(of, case=shown, verdicts_by_rule=(said,))


def _plain_pairs(of: CellView) -> tuple[PairRecord, ...]:
    """The pairs of a cell without a case; where few probes decide, only those are treated differently."""
    few = of.reasons[:1] in {("leave_two_out",), ("could_be_few_probes",)}
    return pairs(of, treated_probes=of.slowed if few else None)


@dataclass
class ExampleStore:
    """The reading half of a store, over a few invented cases."""

    details: list[CaseDetail] = field(default_factory=list)
    plain: list[CellView] = field(default_factory=list)
    register: list[OperatorView] = field(default_factory=list)

    def cells(self) -> list[CellView]:
        """Those of the cases and those without; of a question's cases the newest tells what its cell is now."""
        newest = {replace(d.case.cell.key, asn=None): d.case.cell for d in self.details}
        return [*newest.values(), *self.plain]

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
        made = _plain_pairs(found)
        evidence = by_pair(found, made)
        return CellDetail(cell=found, pairs=made, evidence_by_pair=evidence, evidence_by_hour=(), rule=RULES.name)

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
            event("opened", 9, 8.5),
            event("no_longer_supported", 8, 7.4, "replicated", reason),
            event("supported_again", 6, 8.2),
            event("no_longer_supported", 5, 7.6, "replicated", reason),
            event("supported_again", 1, 9.4),
        ),
    )


def _losing() -> CellView:
    """A game that loses packets and waits no longer than others."""
    return queued(
        "plover",
        "source-engine",
        delay_ms=Interval(estimate=0.8, low=-2.0, high=3.4),
        loss=Interval(estimate=0.062, low=0.041, high=0.083),
        app_loss=Interval(estimate=0.07, low=0.05, high=0.09),
    )


def _past() -> tuple[CaseDetail, CaseDetail]:
    """An ended case, and one that is no longer supported."""
    over = case("ended00001", cell("osprey", "youtube", "replicated"), status="ended", ended_ms=NOW_MS)
    over = replace(over, history=(*over.history, event("ended", 0, 5.1, "replicated")))
    weak = case("weak000001", cell("plover", "signal", "inconclusive"))
    reason = "below_case_threshold"
    fell = event("no_longer_supported", 0, 0.2, "inconclusive", reason)
    weak = replace(weak, supported=False, threshold_log10_e=2.5, history=(*weak.history, fell))
    return detail(over, until=50), detail(weak, until=30)


def _returned() -> tuple[CaseDetail, CaseDetail]:
    """A case that ended, and the next one of the same question."""
    asked = cell("osprey", "zoom", "corroborated", since_day="2026-11-25")
    first = case("first00001", cell("osprey", "zoom", "replicated"), status="ended", onset_day=BEFORE[0])
    closed_ms = RULE_CHANGED_MS + 2 * 24 * HOUR_MS
    lines = (event("opened", 20, 6.9), event("alerted", 20, 8.8), event("ended", 19, 5.0, "replicated"))
    first = replace(first, opened_ms=NOW_MS - 20 * 24 * HOUR_MS, ended_ms=closed_ms, history=lines)
    return detail(first, until=50, days=BEFORE), detail(case("again00001", asked, episode=2))


def _looking_back() -> CaseDetail:
    """A case opened by data that are older than the rule: the new rule found it when it judged the archive again."""
    of = case("retro00001", cell("heron", "bittorrent+udp", "corroborated"), onset_day=BEFORE[0])
    of = replace(of, opened_ms=RULE_CHANGED_MS, history=(event("opened", 21, 6.8),))
    return judged_before(detail(of, days=BEFORE))


def _held_back() -> list[CellView]:
    """Cells whose evidence would do for a case, each held back by another check."""
    reasons = {
        "youtube": "no_edge_probe",
        "zoom": "shaped_at_home",
        "netflix": "reflector_saturated",
        "signal": "path_changed",
        "bittorrent+udp": "placebo_alarm",
        "youtube+quic": "lost_pairs",
        "rtp": "no_receipts",
        "source-engine": "below_case_threshold",
    }
    cells = [cell("tern", app, "replicated", reasons=(reason,)) for app, reason in reasons.items()]
    lost = [replace(c, lost_pairs=9) if "lost_pairs" in c.reasons else c for c in cells]
    return [*lost, blocked("tern", "steam", "replicated", reasons=("captive_portal",))]


def world() -> ExampleStore:
    """Every state, a case of each kind, ended, come back, looking back, not supported, to and fro; each check that can
    hold a case back; hotspots, few probes, very long names."""
    slowed = case("slow000001", cell("heron", "youtube", "corroborated"))
    blocking = case("block00001", blocked("heron", "signal"), threshold_log10_e=3.9)
    faster = case("fast000001", cell("osprey", "netflix", "corroborated", "prioritising"))
    few = cell("plover", "youtube", "insufficient", probes=1, slowdown=None, app_mbps=None, neutral_mbps=None)
    wide = Interval(estimate=-0.32, low=-1.9, high=0.18)
    hotspot = cell("heron", "youtube", "replicated", reasons=("hotspot",))
    level = Interval(estimate=1.2, low=-3.1, high=5.6)
    scarce = cell("stork", LONG_APP, "replicated", probes=10, slowed=3, clear=7)
    idle = queued("heron", "source-engine", "not_testable", delay_ms=None, loss=None, reasons=("not_queued",))
    busy = cell("wren", "youtube", "not_testable", slowdown=None, app_mbps=None, neutral_mbps=None)
    plain = [
        cell("heron", "youtube", "no_indication", "blocking"),
        cell("heron", "netflix", "no_indication"),
        replace(hotspot, key=key("heron", "youtube", access="hotspot")),
        cell("osprey", "signal", "indication", slowed=1, clear=3, reasons=("leave_two_out",)),
        cell("plover", "netflix", "inconclusive", slowdown=wide),
        replace(few, pairs=5, reasons=("fewer_than_3_probes",)),
        replace(busy, reasons=("no_rates",)),
        replace(cell("wren", "netflix", "insufficient"), reasons=("few_pairs",)),
        replace(scarce, pairs=120, reasons=("could_be_few_probes",)),
        cell("stork", "bittorrent+udp", "no_indication"),
        queued("stork", "rtp", "no_indication", delay_ms=level),
        replace(idle, app_delay_ms=None, neutral_delay_ms=None, app_loss=None, neutral_loss=None),
        replace(cell("heron", "zoom", "no_indication"), since_day=DAY, reasons=("retrospective",)),
        *_held_back(),
    ]
    return ExampleStore(
        details=[
            detail(slowed),
            detail(blocking),
            detail(faster, hours=24),
            *_past(),
            *_returned(),
            _looking_back(),
            detail(_flapping()),
            detail(case("wait000001", queued("osprey", "rtp"))),
            detail(case("loss000001", _losing())),
            detail(case("alter00001", altered("heron", "steam"))),
        ],
        plain=[weighed(c, _plain_pairs(c)) if c.probes >= LEAST_PROBES else c for c in plain],
        register=[
            operator("heron", 1, "Heron Telecom"),
            operator("osprey", 2, "Osprey Mobiel"),
            operator("plover", 3, "Plover & Zonen <Kabel>"),
            operator("stork", 4, LONG_OPERATOR),
            operator("tern", 5, "Tern Glasvezel"),
        ],
    )


def application(store: ExampleStore) -> web.Application:
    """The pages and the open data that they link to, over an invented store; nothing can be uploaded."""
    # Only who serves the example needs the routes.
    from collector.api import problem, public  # noqa: PLC0415
    from collector.pages import routes  # noqa: PLC0415

    app = web.Application(middlewares=[problem.problems])
    app[STORE] = cast("Store", store)
    app[CONFIG] = Config()
    app[LOG] = logger()
    public.setup(app)
    routes.setup(app)
    app.on_response_prepare.append(problem.prepare)
    return app


def main() -> None:
    """Serve the invented world until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m collector.pages.example", description=__doc__)
    parser.add_argument("port", type=int, nargs="?", default=8099, help="port on 127.0.0.1 (default: 8099)")
    web.run_app(application(world()), host="127.0.0.1", port=parser.parse_args().port)


if __name__ == "__main__":
    main()

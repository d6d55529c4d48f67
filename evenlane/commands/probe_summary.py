# SPDX-License-Identifier: EUPL-1.2
"""What one run shows, in numbers and in plain words: differences, the evidence so far, what could be seen at all.

One line of one household is never a case, and nothing here says what the law says.
Spec: spec/nettests/differential.md, section "Output".
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any, Final

from analysis.judge import Ledger
from analysis.logs import e_value
from analysis.match import NO_QUEUE, queue_of
from analysis.pairs import CellKey, Pair
from analysis.probes import ProbeSummary, summarise
from analysis.rules import EFFECTS, RULES
from evenlane.commands.probe_delays import Delays, delay_words, delays_of, plain_delays
from probe.protocol.pacing import DetectableRegion, detectable_region
from probe.runner import Ran, Request
from probe.wire.messages import PairResult
from probe.wire.rate import rate_mbps
from probe.wire.records import Direction, MeasuredPair

_PROBE: Final = "this probe"
_SOME_EVIDENCE: Final = 1.2
_SAME: Final = 0.05
"""A median difference below 5 % is told as about the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineResult:
    """One app in one direction."""

    app: str
    direction: Direction
    pairs: int
    """Finished pairs."""
    lost: int
    app_failed: int
    neutral_failed: int
    app_mbps: float | None
    """Median over the pairs, of the last half of each segment."""
    neutral_mbps: float | None
    summary: ProbeSummary
    detectable: DetectableRegion | None
    delays: Delays | None = None
    """Set where delay and loss were compared instead of rates."""
    control: str = "its neutral twin"
    """What the app is compared with, for people."""

    @property
    def state(self) -> str:
        """As far as one probe can say: indication, no_indication or insufficient."""
        if any(self.summary.slowed(effect) for effect in EFFECTS):
            return "indication"
        clear = self.summary.clear
        return "no_indication" if clear["slowing"] and clear["blocking"] else "insufficient"


def summary_of(ran: Ran) -> list[LineResult]:
    """Every app and direction of the run, in the order in which they were first measured."""
    results = {result.pair: result for result in ran.session.results}
    ledger = Ledger()
    rows: dict[CellKey, list[tuple[MeasuredPair, Pair]]] = {}
    for measured in ran.measurement.pairs:
        pair = _pair(ran, measured, results.get(measured.pair))
        ledger.put(pair)
        if measured.kind == "test":
            rows.setdefault(pair.cell, []).append((measured, pair))
    return [_line(ran, cell, pairs, ledger) for cell, pairs in rows.items()]


def _pair(ran: Ran, measured: MeasuredPair, result: PairResult | None) -> Pair:
    cell = CellKey("this line", None, measured.app, measured.direction, "fixed")
    started = ran.measurement.started_ms + measured.pair
    if result is None or len(result.segments) != 2 or result.outcome == "unfinished":
        return Pair(
            cell=cell,
            kind=measured.kind,
            probe=_PROBE,
            session=ran.measurement.session,
            number=measured.pair,
            started_ms=started,
            lost=True,
            received=False,
        )
    first, second = result.segments
    is_concurrent = ran.session.design_of(measured.pair) == "concurrent"
    queue = queue_of((first, second), ran.segment_s) if is_concurrent else NO_QUEUE
    return Pair(
        cell=cell,
        kind=measured.kind,
        probe=_PROBE,
        session=ran.measurement.session,
        number=measured.pair,
        # The order of the pairs is all that counts here, and the session's numbers give it.
        started_ms=started,
        ended_ms=started,
        neutral_first=first.arm != "app",
        first_mbps=None if is_concurrent else rate_mbps(first, ran.segment_s),
        second_mbps=None if is_concurrent else rate_mbps(second, ran.segment_s),
        design="concurrent" if is_concurrent else "sequential",
        first_delay_ms=queue.delays_ms[0],
        second_delay_ms=queue.delays_ms[1],
        first_loss=queue.losses[0],
        second_loss=queue.losses[1],
        queued=queue.queued,
        first_failed=first.end != "complete",
        second_failed=second.end != "complete",
        pace_mbps=ran.paces.get(measured.pair, 0.0),
        segment_s=ran.segment_s,
    )


def _line(ran: Ran, cell: CellKey, rows: list[tuple[MeasuredPair, Pair]], ledger: Ledger) -> LineResult:
    pairs = [pair for _, pair in rows]
    finished = [pair for pair in pairs if not pair.lost]
    sides = [_by_arm(pair) for pair in finished]
    app = [side[0] for side in sides if side[0] is not None]
    neutral = [side[1] for side in sides if side[1] is not None]
    neutral_mbps = statistics.median(neutral) if neutral else None
    state = ledger.states(cell)[_PROBE]
    return LineResult(
        app=cell.app,
        direction=cell.direction,
        pairs=len(finished),
        lost=len(pairs) - len(finished),
        app_failed=sum(side[2] for side in sides),
        neutral_failed=sum(side[3] for side in sides),
        app_mbps=statistics.median(app) if app else None,
        neutral_mbps=neutral_mbps,
        summary=summarise(_PROBE, state),
        detectable=_detectable(finished, ran.segment_s),
        delays=delays_of(finished, state),
        control=_control([measured for measured, _ in rows]),
    )


def _control(pairs: list[MeasuredPair]) -> str:
    arms = {segment.arm for pair in pairs for segment in pair.segments}
    return "random bytes" if "opaque" in arms else "its neutral twin"


def _by_arm(pair: Pair) -> tuple[float | None, float | None, bool, bool]:
    """Rate of the app and of its twin, and whether each failed."""
    if pair.neutral_first:
        return pair.second_mbps, pair.first_mbps, pair.second_failed, pair.first_failed
    return pair.first_mbps, pair.second_mbps, pair.first_failed, pair.second_failed


def _detectable(pairs: list[Pair], segment_s: float) -> DetectableRegion | None:
    rated = [pair for pair in pairs if pair.design == "sequential"]
    achieved = [rate for pair in rated if (rate := pair.achieved_mbps()) is not None]
    if not achieved:
        return None
    pace = statistics.median(achieved)
    # The share that verdicts use, so that both tell the same.
    return detectable_region(pace, segment_s, rate=RULES.visible_share * pace)


# -- JSON -------------------------------------------------------------------------------------------------------


def plain(ran: Ran, lines: list[LineResult], request: Request) -> dict[str, Any]:
    """The one object that `--json` prints. Keys are stable."""
    measurement = ran.measurement
    return {
        "session": measurement.session,
        "nettest": measurement.nettest,
        "probe": ran.envelopes[0].key_id,
        "reflector": measurement.reflector,
        "sequence": measurement.sequence,
        "started_ms": measurement.started_ms,
        "ended_ms": measurement.ended_ms,
        "pairs": {
            "finished": len(ran.session.results),
            "lost": len(measurement.pairs) - len(ran.session.results),
            "placebo": sum(pair.kind == "placebo" for pair in measurement.pairs),
        },
        "megabytes": round(_moved(ran) / 1e6, 3),
        "calibration_mbps": _round(measurement.calibration_mbps),
        "failure": measurement.failure,
        "complaint": ran.session.complaint or None,
        "apps": [_plain_line(line) for line in lines],
        "receipt": len(ran.envelopes) > 1,
        "out": str(request.out) if request.out else None,
        "upload": _plain_upload(ran),
    }


def _plain_line(line: LineResult) -> dict[str, Any]:
    estimate, low, high = line.summary.interval.slowdown()
    region = line.detectable
    return {
        "app": line.app,
        "direction": line.direction,
        "pairs": line.pairs,
        "lost_pairs": line.lost,
        "failed": {"app": line.app_failed, "neutral": line.neutral_failed},
        "app_mbps": _round(line.app_mbps),
        "neutral_mbps": _round(line.neutral_mbps),
        "slowdown": {"estimate": _round(estimate), "low": _round(low), "high": _round(high)},
        "evidence": {effect: float(f"{e_value(line.summary.log_e[effect]):.6g}") for effect in EFFECTS},
        "state": line.state,
        "detectable": None
        if region is None
        else {
            "rate_mbps": _round(region.rate_mbps),
            "burst_kb": _round(region.burst_kb),
            "after_kb": _round(region.after_kb),
        },
        **plain_delays(line.delays),
    }


def _plain_upload(ran: Ran) -> dict[str, Any] | None:
    done = ran.uploaded
    if done is None:
        return None
    return {
        "accepted": done.accepted,
        "duplicates": done.duplicates,
        "rejected": done.rejected,
        "failure": done.failure,
        "spooled": ran.spooled,
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _moved(ran: Ran) -> int:
    loads = sum(result.load_bytes for result in ran.session.results)
    return loads + sum(segment.bytes for pair in ran.measurement.pairs for segment in pair.segments)


# -- words ------------------------------------------------------------------------------------------------------


def sentences(ran: Ran, lines: list[LineResult], request: Request) -> list[str]:
    """The summary for people."""
    measurement = ran.measurement
    seconds = (measurement.ended_ms - measurement.started_ms) / 1000
    finished, begun = len(ran.session.results), len(measurement.pairs)
    text = [_difference(line) for line in lines]
    text.append(f"{finished} of {begun} pairs finished, {_moved(ran) / 1e6:.1f} MB in {seconds:.0f} s.")
    if measurement.failure:
        why = ran.session.complaint or measurement.failure.replace("_", " ")
        text.append(f"The session ended early ({why}); what was measured is signed.")
    elif ran.session.complaint:
        text.append(f"{ran.session.complaint[0].upper()}{ran.session.complaint[1:]}.")
    if lines:
        text.append("One line is never a case: that takes several homes and a collector that sees them all.")
    if request.out:
        text.append(f"The signed records are in {request.out}.")
    return text + _upload_words(ran, request)


def _difference(line: LineResult) -> str:
    parts = [f"{line.app}, {line.direction}: {_size(line)}"]
    strongest = max(EFFECTS, key=lambda effect: line.summary.log_e[effect])
    e = e_value(line.summary.log_e[strongest])
    scale = f"{RULES.indication:g} to 1 is an indication"
    if line.state == "indication":
        parts.append(f"Evidence {e:.3g} to 1 for {strongest}: an indication on this line.")
    elif line.state == "no_indication":
        what = "10 ms or 2 % of loss" if line.delays else "20 %"
        parts.append(f"No indication: a slowdown of {what} or more is ruled out here.")
    elif e < _SOME_EVIDENCE:
        parts.append(f"No evidence either way yet ({scale}).")
    else:
        parts.append(f"Evidence {e:.3g} to 1 for {strongest}: not enough data yet ({scale}).")
    if line.detectable:
        region = line.detectable
        parts.append(
            f"Such pairs can show a throttle to {_rate(region.rate_mbps)} Mbit/s or less "
            f"behind a burst of at most {region.burst_kb:.0f} kB."
        )
    return " ".join(parts)


def _size(line: LineResult) -> str:
    estimate = line.summary.interval.slowdown()[0]
    pairs = f"{line.pairs} {'pair' if line.pairs == 1 else 'pairs'}"
    failed = ""
    if line.app_failed or line.neutral_failed:
        other = line.control.replace("its ", "the ")
        failed = f" In {pairs}, the app failed {line.app_failed} and {other} {line.neutral_failed} times."
    if line.delays is not None:
        return f"{delay_words(line.delays, line.control)}{failed}"
    if estimate is None or not math.isfinite(estimate) or line.app_mbps is None or line.neutral_mbps is None:
        return f"no rates to compare.{failed}" if line.pairs else "no pair was finished."
    rates = f"{_rate(line.app_mbps)} against {_rate(line.neutral_mbps)} Mbit/s, median of {pairs}"
    if abs(estimate) < _SAME:
        return f"about as fast as {line.control} ({rates}).{failed}"
    word = "slower" if estimate > 0 else "faster"
    return f"about {abs(estimate) * 100:.0f} % {word} than {line.control} ({rates}).{failed}"


def _rate(mbps: float) -> str:
    return f"{mbps:.0f}" if mbps >= 100 else f"{mbps:.3g}"


def _upload_words(ran: Ran, request: Request) -> list[str]:
    done = ran.uploaded
    if done is None:
        return []
    if done.failure:
        waits = f"The upload failed ({done.detail or done.failure}); it waits in {request.state.spool.directory}."
        gone = f" {ran.dropped} older sessions had to leave the spool." if ran.dropped else ""
        return [f"{waits} `evenlane probe spool --collector URL` sends them.{gone}"]
    if done.rejected:
        return [f"The collector refused the measurement ({', '.join(done.rejected)}); sending it again would not help."]
    return ["The collector has the measurement."]

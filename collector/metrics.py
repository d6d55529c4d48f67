# SPDX-License-Identifier: EUPL-1.2
"""What the collector counts of itself, for Prometheus.

Invariant, tested: received = stored + repeated + refused + failed, over all types. No metric has a label that
leads to a probe. Spec: spec/api.md, section "Metrics"; names are those of collector/series.py.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from collector import series
from collector.eras import CLOSINGS
from collector.members import Enrolled
from collector.model import CaseView, CellView

METRIC_RECEIVED: Final = "evenlane_collector_received_total"
METRIC_SET_ASIDE: Final = "evenlane_collector_sessions_set_aside_total"
METRIC_WAITING: Final = "evenlane_collector_sessions_waiting"

Result = Literal["stored", "repeated", "refused", "failed"]
_CASE_STATUSES: Final = ("open", "ended", "withdrawn", "corrected")


class Metrics:
    """One registry per application, so that two of them in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.received = Counter(METRIC_RECEIVED, "Envelopes received, whatever became of them.", registry=self.registry)
        self.records = Counter(
            series.METRIC_RECORDS,
            "Envelopes by type and result; refused: 4xx, failed: the store could not be written.",
            ["type", "result"],
            registry=self.registry,
        )
        self.intake_seconds = Histogram(
            series.METRIC_INTAKE_SECONDS, "From an upload's body to its durable answer.", registry=self.registry
        )
        self.judge_seconds = Histogram(series.METRIC_JUDGE_SECONDS, "One step of the judge.", registry=self.registry)
        self.pairs = Counter(series.METRIC_PAIRS, "Pairs scored, by kind.", ["kind"], registry=self.registry)
        self.alerts = Counter(
            series.METRIC_ALERTS, "Alerts: one for each case, and one for its ending.", ["what"], registry=self.registry
        )
        for what in ("alerted", *sorted(CLOSINGS)):
            self.alerts.labels(what=what)  # a counter that does not exist yet cannot be seen to rise
        self.set_aside = Counter(
            METRIC_SET_ASIDE, "Sessions that the judge could not judge and set aside.", registry=self.registry
        )
        self._waiting = Gauge(METRIC_WAITING, "Sessions that wait to be judged.", registry=self.registry)
        self._cells = Gauge(series.METRIC_CELLS, "Public cells by state.", ["state"], registry=self.registry)
        self._cases = Gauge(series.METRIC_CASES, "Cases by status.", ["status"], registry=self.registry)
        self._probes = Gauge(
            series.METRIC_PROBES,
            "Probes by standing: enrolled, of these vetted by a token, and left ever.",
            ["standing"],
            registry=self.registry,
        )
        self._outbox = Gauge(
            series.METRIC_OUTBOX_WAITING, "Rows not yet delivered to other systems.", registry=self.registry
        )

    def count(self, kind: str, result: Result, number: int = 1) -> None:
        """Count what became of envelopes; each was counted as received before."""
        self.records.labels(type=kind, result=result).inc(number)

    def page(
        self, cells: Iterable[CellView], cases: Iterable[CaseView], *, waiting: int, outbox: int, probes: Enrolled
    ) -> bytes:
        """The exposition text, with gauges set to what the store shows now."""
        states = Tally(cell.state for cell in cells)
        for state in series.STATE_CODES:
            self._cells.labels(state=state).set(states[state])
        statuses = Tally(case.status for case in cases)
        for status in _CASE_STATUSES:
            self._cases.labels(status=status).set(statuses[status])
        for standing in ("enrolled", "vetted", "left"):
            self._probes.labels(standing=standing).set(getattr(probes, standing))
        self._waiting.set(waiting)
        self._outbox.set(outbox)
        return generate_latest(self.registry)

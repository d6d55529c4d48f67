# SPDX-License-Identifier: EUPL-1.2
"""What the reflector tells Prometheus: counts only, no label with a probe, a name or an address.

Invariants that a monitor can check: sessions started = ended + open; pairs started = sum of outcomes + open;
data connections accepted = sum of their ends + open. Spec: spec/protocol.md, section "Control channel".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One registry a reflector, so that several can live in one process."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"evenlane_reflector_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"evenlane_reflector_{name}", text, labels, registry=self.registry)

        self.sessions_started = counter("sessions_started", "Sessions granted.")
        self.sessions_ended = counter("sessions_ended", "Sessions that have a receipt, by how they ended.", "end")
        self.sessions_open = gauge("sessions_open", "Sessions granted and not ended.")
        self.pairs_started = counter("pairs_started", "Pairs whose nonce was given out.")
        self.pairs_ended = counter("pairs_ended", "Pairs of ended sessions, by outcome.", "outcome")
        self.pairs_open = gauge("pairs_open", "Pairs of sessions that are open.")
        self.requests = counter("requests", "Control requests, by status.", "status")
        self.refusals = counter("refusals", "Control requests refused, by error.", "error")
        self.data_accepted = counter("data_connections_accepted", "Data connections accepted.")
        self.data_ended = counter("data_connections_ended", "Data connections over, by how.", "end")
        self.data_open = gauge("data_connections_open", "Data connections open.")
        self.data_bytes = counter("data_bytes", "Bytes counted in segments and calibrations.", "direction")
        self.datagram_knocks = counter(
            "datagram_knocks", "UDP datagrams of no segment, by what became of them.", "verdict"
        )
        self.datagram_flows_ended = counter("datagram_segments_ended", "UDP segments over, by how they ended.", "end")
        self.datagram_flows_open = gauge("datagram_segments_open", "UDP segments running.")
        self.saturated = counter("segments_saturated", "Segments during which this reflector was short of CPU.")
        self.capacity = gauge("capacity_mbps", "What the line is said to carry each way; 0 is not booked.")
        self.booked = gauge("booked_mbps", "What open sessions have booked of it, headers included.")
        self.used = gauge("used_mbps", "What running data connections may send or receive now.", "direction")
        self.delivered = counter("delivered", "Records handed to the collector, by its answer.", "status")
        self.delivery_retries = counter("delivery_retries", "Uploads that did not succeed.")
        self.delivery_backlog = gauge("delivery_backlog_bytes", "Journal bytes not delivered yet.")
        self.journal_bytes = gauge("journal_bytes", "Size of all journals, those put aside too.")
        self.write_errors = counter("write_errors", "Journal lines that could not be written.")

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

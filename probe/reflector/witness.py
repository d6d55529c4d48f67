# SPDX-License-Identifier: EUPL-1.2
"""Writes down what the booking says must be on disk, before the answer that depends on it leaves.

A receipt that could not be written (a full disk) is tried again until it can. Spec: spec/protocol.md, "One pair".
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

from probe.protocol.reflector_role import ReflectorSession
from probe.reflector.logs import LOG
from probe.reflector.metrics import Metrics
from probe.reflector.receipts import Receipts
from probe.wire.envelope import Envelope
from probe.wire.records import Started


class Witness:
    """Keeps each ended session's sealed receipt for as long as the booking remembers the session."""

    def __init__(self, receipts: Receipts, metrics: Metrics) -> None:
        self._receipts = receipts
        self._metrics = metrics
        self._sealed: WeakKeyDictionary[ReflectorSession, Envelope] = WeakKeyDictionary()
        self._unwritten: list[ReflectorSession] = []

    def begin(self, session: ReflectorSession, started: Started) -> bool:
        """Write a started pair. False: it could not be written, and its nonce must not leave."""
        try:
            self._receipts.write_started(started, session.grant.reflector)
        except OSError as error:
            self._complain(error)
            return False
        session.written()
        self._metrics.pairs_started.inc()
        return True

    def end(self, session: ReflectorSession) -> Envelope | None:
        """Write the receipt of an ended session, once. None: it could not be written yet."""
        known = self._sealed.get(session)
        if known is not None or session.receipt is None:
            return known
        try:
            envelope = self._receipts.write_receipt(session.receipt, session.grant.reflector)
        except OSError as error:
            self._complain(error)
            if session not in self._unwritten:
                self._unwritten.append(session)
            return None
        self._sealed[session] = envelope
        self._metrics.sessions_ended.labels(end=session.receipt.end).inc()
        for pair in session.receipt.pairs:
            self._metrics.pairs_ended.labels(outcome=pair.outcome).inc()
        return envelope

    def catch_up(self, ended: Iterable[ReflectorSession] = ()) -> None:
        """Write the receipts of these sessions and of those that could not be written before."""
        waiting, self._unwritten = self._unwritten, []
        for session in [*waiting, *ended]:
            self.end(session)

    def _complain(self, error: OSError) -> None:
        self._metrics.write_errors.inc()
        LOG.error("a record cannot be written under --state (%s); make room or repair the disk", error.strerror)

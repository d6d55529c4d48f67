# SPDX-License-Identifier: EUPL-1.2
"""Both roles of the protocol in one process and in virtual time, without a network.

For tests that try to cheat and for studies of thousands of sessions: what is left out is exactly HTTP, TLS and
TCP. Spec: spec/protocol.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from probe.protocol.accounts import Counted, Job, Limits, NoJob, StillRunning
from probe.protocol.booking import Booking, Identity
from probe.protocol.desk import Answer, ControlRequest, answer
from probe.protocol.probe_role import ProbeSession
from probe.protocol.reflector_role import ReflectorSession
from probe.protocol.session import decode_hello
from probe.protocol.steps import (
    AwaitPlan,
    Finished,
    Guard,
    PlannedPair,
    RunSegment,
    RunTogether,
    SegmentFacts,
    Send,
    Wait,
)
from probe.wire.envelope import Envelope, seal, to_line
from probe.wire.messages import Endpoint
from probe.wire.records import Carrier, Origin
from probe.wire.signing import Signer


@dataclass(slots=True)
class VirtualClock:
    """Milliseconds that pass only when told to."""

    now_ms: int

    def advance(self, ms: float) -> None:
        """Let time pass."""
        self.now_ms += max(0, round(ms))


class MemoryReflector:
    """A reflector without sockets: what it would have written to disk is in `started` and `receipts`."""

    def __init__(
        self,
        *,
        signer: Signer,
        clock: VirtualClock,
        random_bytes: Callable[[int], bytes],
        limits: Limits | None = None,
        origin: Origin | None = None,
        endpoints: int = 1,
    ) -> None:
        self._signer = signer
        self.clock = clock
        self.origin = origin or Origin()
        self.endpoints = tuple(Endpoint(host=None, port=443 + i) for i in range(endpoints))
        self.started: list[Envelope] = []
        self.receipts: dict[str, Envelope] = {}
        self.booking = Booking(
            identity=Identity(key_id=signer.key_id, data_certificate="0" * 64, carriers=get_args(Carrier)),
            limits=limits or Limits(),
            random_bytes=random_bytes,
        )

    def request(self, method: str, path: str, body: bytes, token: str = "", prefix: str = "here") -> Answer:
        """Answer one control request; a receipt is in the body of the answer to close."""
        asked = ControlRequest(
            method=method,
            path=path,
            body=body,
            token=token,
            prefix=prefix,
            origin=self.origin,
            endpoints=self.endpoints,
        )
        found = answer(self.booking, asked, self.clock.now_ms)
        if isinstance(found, StillRunning):
            found = answer(self.booking, asked, self.clock.now_ms, force=True)
        if isinstance(found, StillRunning):
            raise AssertionError("a forced finish does not wait")
        if found.started is not None and found.session is not None:
            self.started.append(seal(found.started, self._signer))
            found.session.written()
        if found.ended is not None:
            envelope = self._write(found.ended)
            if found.wants_receipt:
                return Answer(status=found.status, body=to_line(envelope), session=found.session)
        return found

    def connect(
        self,
        hello: bytes,
        name: str | None,
        origin: Origin | None = None,
        *,
        carrier: Carrier = "tls",
        flight: str | None = None,
    ) -> Job | NoJob:
        """A data connection under `name` whose first 512 bytes are `hello`."""
        return self.booking.opened(
            decode_hello(hello), name, origin or self.origin, self.clock.now_ms, carrier=carrier, flight=flight
        )

    def count(self, job: Job, counted: Counted) -> None:
        """The data connection of `job` is over."""
        self.booking.ended(job, counted, self.clock.now_ms)

    def tick(self) -> None:
        """Time-outs."""
        for session in self.booking.tick(self.clock.now_ms):
            self._write(session)

    def stop(self) -> None:
        """Shut down."""
        for session in self.booking.stop(self.clock.now_ms):
            self._write(session)

    def _write(self, session: ReflectorSession) -> Envelope:
        if session.receipt is None:
            raise AssertionError("an ended session has a receipt")
        return self.receipts.setdefault(session.grant.session, seal(session.receipt, self._signer))


Transfer = Callable[[RunSegment, MemoryReflector], SegmentFacts]
"""Runs one segment: connects, lets time pass, counts, and says what the probe saw."""
Together = Callable[[RunTogether, MemoryReflector], tuple[SegmentFacts, SegmentFacts]]
"""The same of a concurrent pair's two slots and their load."""


def even_transfer(mbps: Callable[[RunSegment], float], bin_ms: int = 100) -> Transfer:
    """A transfer at a constant rate (Mbit/s) that may depend on the step."""

    def transfer(step: RunSegment, reflector: MemoryReflector) -> SegmentFacts:
        flight = step.wire.announced().flight if step.wire else None
        job = reflector.connect(step.hello(None), step.name, carrier=step.carrier, flight=flight)
        if isinstance(job, NoJob):
            return SegmentFacts(hello_sent=True, failure="connection_reset")
        started_ms, bins = reflector.clock.now_ms, max(1, round(job.duration_s * 1000 / bin_ms))
        each = round(mbps(step) * 1e6 / 8 * bin_ms / 1000)
        reflector.clock.advance(job.duration_s * 1000)
        counted = Counted(
            end="complete",
            started_ms=started_ms,
            duration_ms=round(job.duration_s * 1000),
            bytes=each * bins,
            bins_ms=tuple(bin_ms * (i + 1) for i in range(bins)),
            bins_bytes=(each,) * bins,
        )
        reflector.count(job, counted)
        return SegmentFacts(hello_sent=True, bytes=each * bins, duration_ms=counted.duration_ms)

    return transfer


def even_together(echo_us: Callable[[RunSegment, int], int], load_mbps: float = 10.0) -> Together:
    """A concurrent pair whose round-trip times (µs, −1 unanswered) depend on the slot's step and the packet's place."""

    def together(step: RunTogether, reflector: MemoryReflector) -> tuple[SegmentFacts, SegmentFacts]:
        jobs: list[tuple[RunSegment, Job | NoJob]] = []
        for one in step.slots:
            flight = one.wire.announced().flight if one.wire else None
            jobs.append((one, reflector.connect(one.hello(None), one.name, carrier=one.carrier, flight=flight)))
        load = reflector.connect(step.load.hello(None), step.load.name)
        started_ms = reflector.clock.now_ms
        reflector.clock.advance(step.load.segment_s * 1000)
        facts = [_count_echoes(one, job, echo_us, started_ms, reflector) for one, job in jobs]
        if isinstance(load, Job):
            reflector.count(load, Counted(end="complete", bytes=round(load_mbps * 1e6 / 8 * load.duration_s)))
        return facts[0], facts[1]

    return together


def _count_echoes(
    step: RunSegment,
    job: Job | NoJob,
    echo_us: Callable[[RunSegment, int], int],
    started_ms: int,
    reflector: MemoryReflector,
) -> SegmentFacts:
    if isinstance(job, NoJob) or job.echo is None:
        return SegmentFacts(hello_sent=True, failure="connection_reset")
    times = tuple(echo_us(step, place) for place in range(job.echo.count))
    moved = job.echo.size * sum(us >= 0 for us in times)
    duration_ms = round(step.segment_s * 1000)
    reflector.count(
        job, Counted(end="complete", started_ms=started_ms, duration_ms=duration_ms, bytes=moved, echo_us=times)
    )
    return SegmentFacts(hello_sent=True, bytes=moved, duration_ms=duration_ms)


def drive(
    session: ProbeSession,
    reflector: MemoryReflector,
    plan: list[PlannedPair],
    transfer: Transfer,
    *,
    guard_ms: int = 20,
    together: Together | None = None,
) -> Finished:
    """Run a whole session in memory and in virtual time; `together` is for concurrent pairs."""
    clock = reflector.clock
    while True:
        step = session.next(clock.now_ms)
        if isinstance(step, Finished):
            return step
        if isinstance(step, AwaitPlan):
            session.plan(plan)
        elif isinstance(step, Wait):
            clock.advance(step.ms)
        elif isinstance(step, RunSegment):
            session.segment_ended(transfer(step, reflector), clock.now_ms)
        elif isinstance(step, RunTogether):
            if together is None:
                raise ValueError("a plan with concurrent pairs needs somebody who runs them")
            session.together_ended(together(step, reflector), clock.now_ms)
        elif isinstance(step, Guard):
            clock.advance(guard_ms)
            session.guard_ended(guard_ms, clock.now_ms)
        else:
            found = send(step, reflector)
            session.answered(found.status, found.body, clock.now_ms, found.retry_after_s)


def send(step: Send, reflector: MemoryReflector) -> Answer:
    """Hand a probe's request to the reflector."""
    return reflector.request(step.method, step.path, step.body, step.token or "")

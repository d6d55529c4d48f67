# SPDX-License-Identifier: EUPL-1.2
"""All sessions of one reflector: who may open one, which session a token or a ticket belongs to, what has ended.

Refusals cost a few dictionary look-ups. Prefixes are opaque strings that live little longer than their sessions.
Not thread-safe: the shell takes a lock. Spec: spec/protocol.md, sections "Control channel" and "Not a weapon".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from probe.protocol.accounts import RETRY_AFTER_S, Awaited, Counted, Job, Limits, NoJob, Refusal, refuse
from probe.protocol.concurrent import datagram_mbps
from probe.protocol.datagram import UDP_CARRIERS
from probe.protocol.quota import Room, line_mbps
from probe.protocol.receipt_size import ROOM_BYTES, sequential_bytes
from probe.protocol.reflector_role import ReceiptEnd, ReflectorSession
from probe.wire.messages import (
    DataHello,
    Endpoint,
    PairCommit,
    PairNonce,
    PairOrder,
    PairReveal,
    SessionGrant,
    SessionRequest,
)
from probe.wire.records import Carrier, Design, Direction, Origin, Receipt, Software, Started
from probe.wire.scrub import address_path

RECEIPT_KEPT_MS: Final = 600_000
"""So long a closed session's receipt can be asked for again."""
_MOST_KEPT: Final = 500
_PATIENCE: Final = 4
"""Silences and two segments that a session has for its next pair: a place that is only held is given free."""


def pairs_that_fit(segment_s: float) -> int:
    """How many pairs of this segment length fit into one receipt's largest payload, however long their numbers."""
    return max(1, int(ROOM_BYTES // sequential_bytes(segment_s)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a reflector says of itself in every grant."""

    key_id: str
    data_certificate: str
    software: Software | None = None
    carriers: tuple[Carrier, ...] = ("tls",)
    """What its data planes can carry."""
    designs: tuple[Design, ...] = ("sequential", "concurrent")


class Booking:
    """The sessions of one reflector."""

    def __init__(self, *, identity: Identity, limits: Limits, random_bytes: Callable[[int], bytes]) -> None:
        self._identity = identity
        self._limits = limits
        self._random = random_bytes
        self._open: dict[str, ReflectorSession] = {}
        self._ended: dict[str, ReflectorSession] = {}
        self._room = Room(limits)
        self._running: dict[str, dict[str, Job]] = {}  # session -> its data connections by their tickets
        self._progress_ms: dict[str, int] = {}  # session -> when it was opened or last began a pair
        self._tickets: dict[str, str] = {}  # ticket -> session, for the open pair of each
        self._flights: dict[str, set[str]] = {}  # first flights that are answered at once -> their sessions
        self._closed_for: Refusal | None = None
        self._stopping = False
        self.sessions_started = 0

    @property
    def sessions_open(self) -> int:
        """How many sessions are open."""
        return len(self._open)

    @property
    def pairs_open(self) -> int:
        """How many pairs the open sessions have begun."""
        return sum(session.pairs_started for session in self._open.values())

    @property
    def booked_mbps(self) -> float:
        """What the open sessions have booked of the line, headers included."""
        return self._room.booked_mbps

    def used_mbps(self, direction: Direction) -> float:
        """What the running data connections may put on the line now; those without a pace count as 0."""
        jobs = (job for running in self._running.values() for job in running.values() if job.direction == direction)
        return sum(line_mbps(job.pace_mbps, calibrating=False) for job in jobs if job.echo is None)

    @property
    def identity(self) -> Identity:
        """What grants say from now on."""
        return self._identity

    def renew(self, *, key_id: str | None = None, data_certificate: str | None = None) -> None:
        """Sign with another key, or serve another certificate, from the next session on."""
        now = self._identity
        self._identity = replace(
            now, key_id=key_id or now.key_id, data_certificate=data_certificate or now.data_certificate
        )

    def close_for(self, refusal: Refusal | None) -> None:
        """Open no more sessions for this reason; None opens them again. Sessions that are open go on."""
        self._closed_for = refusal

    def refuse_more(self, prefix: str, now_ms: int) -> Refusal | None:
        """Why nobody from `prefix` may open a session now, before the request is even read."""
        if self._stopping:
            return refuse(503, "stopping", "this reflector is shutting down", RETRY_AFTER_S)
        return self._closed_for or self._room.refuse(prefix, now_ms)

    def open(
        self,
        request: SessionRequest,
        *,
        prefix: str,
        origin: Origin,
        endpoints: tuple[Endpoint, ...],
        now_ms: int,
    ) -> SessionGrant | Refusal:
        """Open a session for somebody from `prefix`, whose control connection's origin is `origin`."""
        refusal = self.refuse_more(prefix, now_ms) or self._check_request(request)
        if refusal is not None:
            return refusal
        pace = self._room.offer(request.pace_mbps, prefix)
        if isinstance(pace, Refusal):
            return pace
        grant = SessionGrant(
            v=1,
            session=self._random(16).hex(),
            token=self._random(32).hex(),
            reflector=self._identity.key_id,
            endpoints=endpoints,
            data_certificate=self._identity.data_certificate,
            pairs=min(request.pairs, self._limits.pairs, pairs_that_fit(request.segment_s)),
            most_pace_mbps=pace,
            idle_timeout_s=self._limits.idle_timeout_s,
            clock_ms=now_ms,
            carriers=self._identity.carriers,
            designs=self._identity.designs,
        )
        self._open[grant.session] = ReflectorSession(
            request=request,
            grant=grant,
            limits=self._limits,
            random_bytes=self._random,
            origin=origin,
            now_ms=now_ms,
            software=self._identity.software,
        )
        self._room.take(grant.session, prefix, pace, now_ms)
        self._progress_ms[grant.session] = now_ms
        self.sessions_started += 1
        return grant

    def find(self, session: str, token: str, now_ms: int) -> ReflectorSession | Refusal:
        """The session, open or ended not long ago, of a request that carries its token."""
        found = self._open.get(session) or self._ended.get(session)
        if found is None:
            return refuse(404, "unknown_session", "there is no such session; it may have timed out")
        if not found.is_token(token):
            return refuse(401, "bad_token", "the request does not carry this session's token")
        found.heard(now_ms)
        return found

    def commit(
        self, session: ReflectorSession, message: PairCommit, now_ms: int
    ) -> tuple[PairNonce, Started | None] | Refusal:
        """Begin a pair of a session. From its first one on there is no calibration, and its slot is smaller."""
        refusal = self._refuse_datagrams(session, message)
        if refusal is not None:
            return refusal
        before = session.pairs_started
        answer = session.commit(message, now_ms)
        if session.pairs_started > before:
            self._progress_ms[session.grant.session] = now_ms
            self._room.calibrated(session.grant.session, session.grant.most_pace_mbps)
        return answer

    def reveal(self, session: ReflectorSession, number: int, message: PairReveal, now_ms: int) -> PairOrder | Refusal:
        """Toss a pair's coin; its tickets are good from here. A wrong nonce ends the session."""
        answer = session.reveal(number, message, now_ms)
        if isinstance(answer, PairOrder):
            given = (*answer.tickets, *([answer.load_ticket] if answer.load_ticket else []))
            self._tickets.update((ticket, session.grant.session) for ticket in given)
            for flight in session.flights:
                self._flights.setdefault(flight, set()).add(session.grant.session)
        else:
            self._settle(session)
        return answer

    def awaited(self, ticket: str) -> Awaited | None:
        """What a ticket is good for; None where no open session gave it out. Costs two dictionary look-ups."""
        session = self._open.get(self._tickets.get(ticket, ""))
        return None if session is None else session.awaited(ticket)

    def awaited_flight(self, flight: str) -> Awaited | None:
        """The segment that waits for a first flight (SHA-256) with an answer; None where several sessions might."""
        sessions = self._flights.get(flight, ())
        return self._open[next(iter(sessions))].awaited_flight(flight) if len(sessions) == 1 else None

    def opened(
        self,
        hello: DataHello,
        name: str | None,
        origin: Origin,
        now_ms: int,
        *,
        carrier: Carrier = "tls",
        flight: str | None = None,
    ) -> Job | NoJob:
        """A data connection said hello."""
        is_calibration = hello.purpose == "calibration"
        session = self._open.get(hello.ticket if is_calibration else self._tickets.get(hello.ticket, ""))
        if session is None:
            return NoJob(reason="unknown_ticket")
        job = session.opened(hello, name, origin, now_ms, carrier=carrier, flight=flight)
        if isinstance(job, Job):
            self._running.setdefault(job.session, {})[job.ticket] = job
        return job

    def ended(self, job: Job, counted: Counted, now_ms: int) -> None:
        """A data connection that had a job is over."""
        running = self._running.get(job.session, {})
        if running.get(job.ticket) is job:
            del running[job.ticket]
            if not running:
                del self._running[job.session]
        session = self._open.get(job.session)
        if session is not None and job.ticket:
            session.ended(job.ticket, counted, now_ms)

    def end(self, session: ReflectorSession, how: ReceiptEnd, now_ms: int) -> Receipt:
        """End a session and give its place free. Ending again gives the same receipt."""
        receipt = session.end(how, now_ms)
        self._settle(session)
        return receipt

    def _settle(self, session: ReflectorSession) -> None:
        key = session.grant.session
        if session.receipt is None or self._open.pop(key, None) is None:
            return
        self._ended[key] = session
        for ticket in session.tickets:
            self._tickets.pop(ticket, None)
        for flight in session.flights:
            sessions = self._flights.get(flight, set())
            sessions.discard(key)
            if not sessions:
                self._flights.pop(flight, None)
        self._running.pop(key, None)
        del self._progress_ms[key]
        self._room.give_back(key)

    def tick(self, now_ms: int) -> list[ReflectorSession]:
        """End the sessions that fell silent or only hold their place; call about once a second.

        Receipts that nobody will ask for are forgotten.
        """
        silent = [s for s in self._open.values() if s.is_silent(now_ms) or self._is_idle(s, now_ms)]
        for session in silent:
            self.end(session, "timed_out", now_ms)
        for key, session in list(self._ended.items()):
            is_old = session.receipt is not None and now_ms - session.receipt.ended_ms > RECEIPT_KEPT_MS
            if is_old or len(self._ended) > _MOST_KEPT:
                del self._ended[key]
        self._room.tick(now_ms)
        return silent

    def _is_idle(self, session: ReflectorSession, now_ms: int) -> bool:
        allowed_s = _PATIENCE * self._limits.idle_timeout_s + 2 * session.request.segment_s
        return now_ms - self._progress_ms[session.grant.session] > allowed_s * 1000

    def stop(self, now_ms: int) -> list[ReflectorSession]:
        """Open no more sessions and end those that are open."""
        self._stopping = True
        sessions = list(self._open.values())
        for session in sessions:
            self.end(session, "stopped", now_ms)
        return sessions

    def _refuse_datagrams(self, session: ReflectorSession, message: PairCommit) -> Refusal | None:
        """Whether one more pair over UDP is more than this machine can pace; one alone never is."""
        if message.carrier not in UDP_CARRIERS or session.datagram_mbps:
            return None
        taken = sum(one.datagram_mbps for one in self._open.values())
        if not taken or taken + datagram_mbps(message) <= self._limits.datagram_mbps:
            return None
        return refuse(503, "busy", "all that this reflector carries over UDP is taken", RETRY_AFTER_S)

    def _check_request(self, request: SessionRequest) -> Refusal | None:
        if request.segment_s > self._limits.segment_s:
            return refuse(400, "not_granted", f"segments here last at most {self._limits.segment_s:g} s")
        if address_path(request.nettest):
            return refuse(400, "address", "the nettest looks like a network address")
        return None

# SPDX-License-Identifier: EUPL-1.2
"""The reflector's side of one session, without sockets and without a clock.

It takes control messages and what the data plane counted, and says what to answer and what to write down first.
A pair counts from the nonce on: nothing a probe does afterwards can take it back. Spec: spec/protocol.md.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from probe.protocol import coin, pacing
from probe.protocol.accounts import Awaited, Counted, EchoPlan, Job, Limits, NoJob, Refusal, StillRunning, refuse
from probe.protocol.concurrent import (
    LOAD_WINDOW_S,
    datagram_mbps,
    echo_plan,
    load_s,
    receipt_bytes,
    wanted_bytes,
    why_not_concurrent,
)
from probe.protocol.datagram import UDP_CARRIERS
from probe.protocol.receipt_size import ROOM_BYTES
from probe.protocol.reflector_pair import NAMED_CARRIERS, LoadSlot, ReflectorPair, Slot, receipt_pair, seen_name
from probe.protocol.session import MOST_CALIBRATION_S, MOST_CALIBRATIONS, TICKET_WINDOW_S, outcome_of
from probe.wire.messages import (
    DataHello,
    PairCommit,
    PairFinish,
    PairNonce,
    PairOrder,
    PairResult,
    PairReveal,
    SessionGrant,
    SessionRequest,
)
from probe.wire.records import (
    CONTROL_ARMS,
    Arm,
    Carrier,
    Direction,
    Origin,
    PairOutcome,
    Receipt,
    Software,
    Started,
)
from probe.wire.scrub import address_path

ReceiptEnd = Literal["closed", "timed_out", "stopped"]


class ReflectorSession:
    """One session as the reflector sees it; made by `booking.Booking`, which routes to it."""

    def __init__(
        self,
        *,
        request: SessionRequest,
        grant: SessionGrant,
        limits: Limits,
        random_bytes: Callable[[int], bytes],
        origin: Origin,
        now_ms: int,
        software: Software | None = None,
    ) -> None:
        self.request = request
        self.grant = grant
        self.receipt: Receipt | None = None
        """Set once the session has ended, however it did."""
        self._limits = limits
        self._random = random_bytes
        self._software = software
        self._origin = self._control_origin = origin
        self._has_data_origin = False
        self._started_ms = now_ms
        self._heard_ms = now_ms
        self._pairs: list[ReflectorPair] = []
        self._booked_bytes = 0
        self._receipt_bytes = 0.0
        self._calibrations: dict[Direction, int] = {"down": 0, "up": 0}

    # -- control channel ----------------------------------------------------------------------------------------

    def is_token(self, token: str) -> bool:
        """Whether `token` is this session's; takes the same time for every wrong one."""
        return hmac.compare_digest(token.encode(), self.grant.token.encode())

    def heard(self, now_ms: int) -> None:
        """A request with the session's token came."""
        self._heard_ms = max(self._heard_ms, now_ms)

    def commit(self, message: PairCommit, now_ms: int) -> tuple[PairNonce, Started | None] | Refusal:
        """Begin a pair. A `Started` that comes back MUST be on disk before the answer is sent; then call `written`."""
        if self.receipt is not None:
            return _closed()
        if self._pairs and not self._pairs[-1].is_over:
            if message != self._pairs[-1].commit:
                return refuse(409, "pair_open", "finish the open pair first")
        else:
            refusal = self._check_commit(message)
            if refusal is not None:
                return refusal
            self._begin(message, now_ms)
        pair = self._pairs[-1]
        answer = PairNonce(pair=message.pair, nonce=pair.nonce.hex(), endpoint=pair.endpoint)
        return answer, None if pair.is_written else self._started(pair)

    def written(self) -> None:
        """The open pair's `Started` is on disk."""
        self._pairs[-1].is_written = True

    def reveal(self, number: int, message: PairReveal, now_ms: int) -> PairOrder | Refusal:
        """Toss the coin. A nonce that is not the committed one ends the session."""
        pair = self._open_pair(number)
        if isinstance(pair, Refusal):
            return pair
        if pair.order is not None:
            if message.nonce != pair.probe_nonce:
                return refuse(409, "already_revealed", "another nonce was revealed before")
            return pair.order
        nonce = bytes.fromhex(message.nonce)
        if not hmac.compare_digest(coin.commitment(nonce), pair.commit.commit):
            self.end("closed", now_ms)
            return refuse(409, "commitment_mismatch", "this nonce is not the committed one; the session is over")
        first = coin.neutral_first(nonce, pair.nonce, self.grant.session, number)
        arms = coin.arms_in_order(first, CONTROL_ARMS[pair.commit.carrier])
        tickets = (self._random(16).hex(), self._random(16).hex())
        pair.probe_nonce, pair.revealed_ms = message.nonce, now_ms
        load = LoadSlot(self._random(16).hex(), pair.commit.packets.load_name) if pair.commit.packets else None
        pair.order = PairOrder(
            pair=number,
            neutral_first=first,
            arms=arms,
            tickets=tickets,
            load_ticket=load.ticket if load is not None else None,
        )
        pair.load = load
        pair.slots = [_slot(ticket, arm, pair.commit) for ticket, arm in zip(tickets, arms, strict=True)]
        return pair.order

    def finish(
        self, number: int, message: PairFinish, now_ms: int, *, force: bool = False
    ) -> PairResult | Refusal | StillRunning:
        """End both segments' accounts. With `force`, what still runs is taken as aborted.

        What the probe reports is not used: the receipt says what the reflector counted.
        """
        last = self._pairs[-1] if self._pairs else None
        if last is not None and last.is_over and last.commit.pair == number and self.receipt is None:
            if message != last.finish or last.result is None:
                return refuse(409, "already_finished", "this pair was finished with another report")
            return last.result
        pair = self._open_pair(number)
        if isinstance(pair, Refusal):
            return pair
        if pair.order is None:
            return refuse(409, "pair_out_of_order", "reveal the nonce before finishing the pair")
        if pair.running and not force:
            return StillRunning(tickets=pair.running)
        segments = tuple(slot.segment("aborted" if slot.state == "running" else "absent") for slot in pair.slots)
        for slot in pair.slots:
            slot.state = "over"
        if pair.load is not None:
            pair.load.state = "over"
        pair.finish = message
        pair.result = PairResult(
            pair=number,
            outcome=outcome_of([segment.end for segment in segments]),
            segments=segments,
            load_bytes=pair.load_bytes,
        )
        return pair.result

    def end(self, how: ReceiptEnd, now_ms: int) -> Receipt:
        """End the session, whatever its state, and say what it was. Ending again gives the same receipt."""
        if self.receipt is None:
            self.receipt = Receipt(
                type="receipt",
                v=1,
                session=self.grant.session,
                probe=self.request.probe,
                nettest=self.request.nettest,
                started_ms=self._started_ms,
                ended_ms=max(now_ms, self._started_ms),
                end=how,
                origin=self._origin,
                pairs=tuple(receipt_pair(pair) for pair in self._pairs),
                software=self._software,
                hotspot=self.request.hotspot,
            )
        return self.receipt

    # -- time and accounts --------------------------------------------------------------------------------------

    def is_silent(self, now_ms: int) -> bool:
        """Whether the control channel has been silent for too long."""
        allowed_s = self._limits.idle_timeout_s
        if self._pairs and self._pairs[-1].running:
            allowed_s += self._pairs[-1].commit.segment_s
        return now_ms - self._heard_ms > allowed_s * 1000

    @property
    def tickets(self) -> tuple[str, ...]:
        """Every ticket that this session gave out."""
        loads = tuple(pair.load.ticket for pair in self._pairs if pair.load is not None)
        return tuple(slot.ticket for pair in self._pairs for slot in pair.slots) + loads

    @property
    def datagram_mbps(self) -> float:
        """Pace of the open pair, where it goes over UDP; else 0."""
        pair = self._pairs[-1] if self._pairs and self.receipt is None else None
        if pair is None or pair.is_over or pair.commit.carrier not in UDP_CARRIERS:
            return 0.0
        return datagram_mbps(pair.commit)

    @property
    def pairs_started(self) -> int:
        """How many pairs began."""
        return len(self._pairs)

    @property
    def outcomes(self) -> tuple[PairOutcome, ...]:
        """Outcome of each pair as of now."""
        return tuple(pair.result.outcome if pair.result else "unfinished" for pair in self._pairs)

    # -- data connections ---------------------------------------------------------------------------------------

    def awaited(self, ticket: str) -> Awaited | None:
        """What a ticket of the open pair is good for, before anything is done with it."""
        pair = self._pairs[-1] if self._pairs else None
        slot = next((slot for slot in pair.slots if slot.ticket == ticket), None) if pair else None
        if pair is None or slot is None:
            return None
        return Awaited(
            carrier=pair.commit.carrier,
            is_waiting=slot.state == "waiting" and not pair.is_over,
            flight_bytes=slot.bytes.flight_bytes if slot.bytes else 0,
            answer=bytes.fromhex(slot.bytes.answer) if slot.bytes else b"",
            head=bytes.fromhex(slot.bytes.head) if slot.bytes else b"",
        )

    @property
    def flights(self) -> tuple[str, ...]:
        """SHA-256 of every flight that a pair of this session announced with an answer to it."""
        sides = [side for pair in self._pairs for side in (pair.commit.app_bytes, pair.commit.neutral_bytes)]
        return tuple({side.flight for side in sides if side is not None and side.answer})

    def awaited_flight(self, flight: str) -> Awaited | None:
        """The segment of the open pair that waits for this flight."""
        slots = self._pairs[-1].slots if self._pairs else []
        found = next((slot for slot in slots if slot.bytes is not None and slot.bytes.flight == flight), None)
        return self.awaited(found.ticket) if found else None

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
        """A data connection said hello. A ticket opens one connection, in its turn and in its time.

        `flight` is the SHA-256 of its first bytes, for carriers that announce them.
        """
        if self.receipt is not None:
            return NoJob(reason="unknown_ticket")
        if hello.purpose == "calibration":
            return self._open_calibration(hello, origin)
        if hello.purpose == "load":
            return self._open_load(hello, name, origin, now_ms)
        pair = self._pairs[-1] if self._pairs else None
        slot = next((slot for slot in pair.slots if slot.ticket == hello.ticket), None) if pair else None
        if pair is None or slot is None:
            return NoJob(reason="unknown_ticket")
        refused = self._refuse_ticket(pair, slot, hello, carrier, now_ms)
        if refused is not None:
            return refused
        self._take_origin(origin)
        pair.path_changed = pair.path_changed or _is_elsewhere(origin, self._control_origin)
        slot.name_seen, slot.flight_seen = seen_name(name), flight
        if slot is pair.slots[1] and pair.slots[0].state == "waiting":
            pair.slots[0].state = "over"  # its turn has passed: absent, for good
        if not slot.is_as_announced(name, flight, carrier):
            slot.state, slot.ended_ms = "over", now_ms
            slot.counted = Counted(end="mismatch", altered=slot.is_flight_altered(flight))
            return NoJob(reason="mismatch")
        slot.state = "running"
        self.heard(now_ms)  # the segment's length is allowed for from here
        return Job(
            session=self.grant.session,
            ticket=slot.ticket,
            direction=pair.commit.direction,
            pace_mbps=pair.commit.pace_mbps,
            duration_s=pair.commit.segment_s,
            carrier=carrier,
            flight=flight or "",
            answer=bytes.fromhex(slot.bytes.answer) if slot.bytes else b"",
            head=bytes.fromhex(slot.bytes.head) if slot.bytes else b"",
            echo=self._echo_plan(pair, slot),
        )

    def ended(self, ticket: str, counted: Counted, now_ms: int) -> None:
        """The data plane closed a segment's account. One that nobody waits for any more is dropped."""
        for slot in self._pairs[-1].slots if self._pairs and self.receipt is None else ():
            if slot.ticket == ticket and slot.state == "running":
                slot.state, slot.counted, slot.ended_ms = "over", counted, now_ms
                self._booked_bytes += counted.bytes if self._pairs[-1].commit.pace_mbps == 0 else 0
                self.heard(now_ms)
        load = self._pairs[-1].load if self._pairs and self.receipt is None else None
        if load is not None and load.ticket == ticket and load.state == "running":
            load.state, load.counted = "over", counted
            self._booked_bytes += counted.bytes if self._pairs[-1].commit.pace_mbps == 0 else 0

    # -- inside -------------------------------------------------------------------------------------------------

    def _check_commit(self, message: PairCommit) -> Refusal | None:
        if message.pair != len(self._pairs) + 1:
            return refuse(409, "pair_out_of_order", f"the next pair is number {len(self._pairs) + 1}")
        if message.pair > self.grant.pairs:
            return refuse(429, "quota", f"this session was granted {self.grant.pairs} pairs")
        most = self.grant.most_pace_mbps
        if most and not 0 < message.pace_mbps <= most:
            return refuse(400, "not_granted", f"the pace must be above 0 and at most {most:g} Mbit/s")
        if message.segment_s > self.request.segment_s:
            return refuse(400, "not_granted", "the segment is longer than the session asked for")
        load_name = message.packets.load_name if message.packets else ""
        if address_path([message.app, message.profile, message.app_name, message.neutral_name, load_name]):
            return refuse(400, "address", "a name looks like a network address")
        unequal = _unequal_arms(message, self.grant.carriers) or why_not_concurrent(message)
        if unequal:
            return refuse(400, "not_granted", unequal)
        wanted, written = wanted_bytes(message), receipt_bytes(message)
        is_full = self._receipt_bytes + written > ROOM_BYTES
        if is_full or self._booked_bytes + wanted > self._limits.session_bytes:
            return refuse(429, "quota", f"this session has used up its {'receipt' if is_full else 'bytes'}")
        self._booked_bytes += wanted
        self._receipt_bytes += written
        return None

    def _begin(self, message: PairCommit, now_ms: int) -> None:
        draw = int.from_bytes(self._random(8), "big")
        self._pairs.append(
            ReflectorPair(
                commit=message,
                started_ms=now_ms,
                nonce=self._random(coin.NONCE_BYTES),
                endpoint=draw % len(self.grant.endpoints),
            )
        )

    def _started(self, pair: ReflectorPair) -> Started:
        return Started(
            type="started",
            v=1,
            session=self.grant.session,
            probe=self.request.probe,
            nettest=self.request.nettest,
            pair=pair.commit.pair,
            kind=pair.commit.kind,
            app=pair.commit.app,
            direction=pair.commit.direction,
            started_ms=pair.started_ms,
            commit=pair.commit.commit,
            reflector_nonce=pair.nonce.hex(),
            origin=self._origin,
            hotspot=self.request.hotspot,
            carrier=pair.commit.carrier,
            design=pair.commit.design,
        )

    def _open_pair(self, number: int) -> ReflectorPair | Refusal:
        if self.receipt is not None:
            return _closed()
        if not self._pairs or self._pairs[-1].is_over or self._pairs[-1].commit.pair != number:
            return refuse(409, "pair_out_of_order", "this is not the open pair")
        return self._pairs[-1]

    @staticmethod
    def _good_until_ms(pair: ReflectorPair, slot: Slot) -> float:
        first = pair.slots[0]
        if pair.load is not None and pair.load.state != "waiting":
            return -1  # the pair's clock has started without this slot
        if slot is first:
            return pair.revealed_ms + TICKET_WINDOW_S * 1000
        if pair.is_concurrent:
            return pair.revealed_ms + 2 * TICKET_WINDOW_S * 1000
        if first.state == "running":
            return -1  # one at a time, in the coin's order
        if first.ended_ms is None:
            return pair.revealed_ms + 2 * TICKET_WINDOW_S * 1000
        return first.ended_ms + TICKET_WINDOW_S * 1000

    def _refuse_ticket(
        self, pair: ReflectorPair, slot: Slot, hello: DataHello, carrier: Carrier, now_ms: int
    ) -> NoJob | None:
        if slot.state != "waiting" or pair.is_over:
            return NoJob(reason="used_ticket")
        if hello.direction != pair.commit.direction:
            return NoJob(reason="wrong_direction")
        if carrier != pair.commit.carrier:
            return NoJob(reason="wrong_carrier")
        return NoJob(reason="late_ticket") if now_ms > self._good_until_ms(pair, slot) else None

    def _open_calibration(self, hello: DataHello, origin: Origin) -> Job | NoJob:
        seconds = hello.duration_s or MOST_CALIBRATION_S
        allowed = (
            hello.token is not None
            and self.is_token(hello.token)
            and not self._pairs
            and seconds <= MOST_CALIBRATION_S
            and self._calibrations[hello.direction] < MOST_CALIBRATIONS
        )
        if not allowed:
            return NoJob(reason="no_calibration")
        self._calibrations[hello.direction] += 1
        self._take_origin(origin)
        pace = self.grant.most_pace_mbps / pacing.SHARE_OF_LINE
        self._booked_bytes += pacing.segment_bytes(pace, seconds)
        return Job(session=self.grant.session, ticket="", direction=hello.direction, pace_mbps=pace, duration_s=seconds)

    def _open_load(self, hello: DataHello, name: str | None, origin: Origin, now_ms: int) -> Job | NoJob:
        """The load of the open pair: its hello starts the clock of the slots that are open, and of no other."""
        pair = self._pairs[-1] if self._pairs else None
        load = pair.load if pair is not None else None
        if pair is None or load is None or load.ticket != hello.ticket:
            return NoJob(reason="unknown_ticket")
        if load.state != "waiting" or pair.is_over:
            return NoJob(reason="used_ticket")
        if hello.direction != pair.commit.direction:
            return NoJob(reason="wrong_direction")
        if now_ms > pair.revealed_ms + LOAD_WINDOW_S * 1000:
            return NoJob(reason="late_ticket")
        slots = tuple(slot.ticket for slot in pair.slots if slot.state == "running")
        if not slots:
            return NoJob(reason="no_load")
        self._take_origin(origin)
        if name is None or name.lower() != load.name.lower():
            load.state = "over"
            return NoJob(reason="mismatch")
        load.state = "running"
        for slot in pair.slots:
            slot.state = "over" if slot.state == "waiting" else slot.state  # absent: its turn has passed
        self.heard(now_ms)
        return Job(
            session=self.grant.session,
            ticket=load.ticket,
            direction=pair.commit.direction,
            pace_mbps=pair.commit.pace_mbps,
            duration_s=load_s(pair.commit.segment_s),
            begins=slots,
            after_s=pair.commit.segment_s - load_s(pair.commit.segment_s),
        )

    def _echo_plan(self, pair: ReflectorPair, slot: Slot) -> EchoPlan | None:
        if not pair.is_concurrent:
            return None
        return echo_plan(pair.commit, 0 if slot is pair.slots[0] else 1, self._random(16))

    def _take_origin(self, origin: Origin) -> None:
        if not self._has_data_origin:
            self._origin, self._has_data_origin = origin, True
        elif origin.network != self._origin.network or origin.edge is False:
            self._origin = replace(self._origin, edge=False)


def _slot(ticket: str, arm: Arm, commit: PairCommit) -> Slot:
    if arm == "app":
        return Slot(ticket, arm, commit.app_name, bytes=commit.app_bytes)
    return Slot(ticket, arm, commit.neutral_name, bytes=commit.neutral_bytes)


def _is_elsewhere(origin: Origin, other: Origin) -> bool:
    """Whether two connections came from different networks or operators."""
    return origin.network != other.network or origin.asn != other.asn


def _unequal_arms(message: PairCommit, carriers: tuple[Carrier, ...]) -> str:
    """What keeps the two arms from being a fair pair; empty where nothing does."""
    if message.app_name.lower() == message.neutral_name.lower():
        return "the two arms need two names"
    if message.carrier not in carriers:
        return f"this reflector does not carry {message.carrier}"
    app, neutral = message.app_bytes, message.neutral_bytes
    if message.carrier in NAMED_CARRIERS:
        return "" if app is None and neutral is None else f"the carrier {message.carrier} announces no bytes"
    if app is None or neutral is None:
        return f"the carrier {message.carrier} needs the first bytes of both arms"
    if app.flight == neutral.flight:
        return "the two arms need two flights"
    lengths = [(arm.flight_bytes, len(arm.answer), len(arm.head)) for arm in (app, neutral)]
    return "" if lengths[0] == lengths[1] else "the two arms' bytes must be equally long"


def _closed() -> Refusal:
    return refuse(409, "session_closed", "this session is over; ask for its receipt with close")

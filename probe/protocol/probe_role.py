# SPDX-License-Identifier: EUPL-1.2
"""The probe's side of a session, without sockets and without a clock.

Ask `next` for a step, do it, tell what came of it; repeat until `Finished`. The machine draws nonces, checks the
coin itself, and treats both arms alike: nothing it decides looks at an arm's label. Spec: spec/protocol.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Literal, TypeVar

from probe.protocol import coin
from probe.protocol.pacing import allowed_pace_mbps
from probe.protocol.probe_pair import ProbePair, begins_like_tls, commit_message, finish_message, measured
from probe.protocol.session import MOST_CALIBRATION_S, decode_message, encode_message
from probe.protocol.steps import (
    AwaitPlan,
    Calibrate,
    Finished,
    Guard,
    Load,
    PlannedPair,
    RunSegment,
    RunTogether,
    SegmentFacts,
    Send,
    Step,
    Wait,
)
from probe.wire.codec import WireError
from probe.wire.envelope import Envelope, from_line, open_record
from probe.wire.failure import Failure
from probe.wire.limits import MAX_TIME_MS, MIN_TIME_MS
from probe.wire.messages import (
    PairNonce,
    PairOrder,
    PairResult,
    PairReveal,
    Problem,
    SessionEnd,
    SessionGrant,
    SessionRequest,
)
from probe.wire.records import (
    CONTROL_ARMS,
    Design,
    Direction,
    Environment,
    MeasuredPair,
    Measurement,
    Receipt,
    Software,
)

REQUEST_TIMEOUT_S: Final = 5.0
RETRY_WAITS_MS: Final = (200, 1000)
"""A request whose answer was lost is repeated after these waits; repeating is harmless (section "Control channel")."""
M = TypeVar("M")
_Phase = Literal[
    "opening", "unplanned", "between", "committing", "revealing", "segment", "guard", "finishing", "closing", "finished"
]


def _correction_ms(offset_ms: int | None, *times_ms: int) -> int:
    """What to add to this probe's times to tell them by the reflector's clock; 0 where that gives no possible time.

    A router starts in 1970, and some clock somewhere is a day ahead: such a record would be refused, its pairs lost.
    """
    shift = offset_ms or 0
    return shift if all(MIN_TIME_MS <= time + shift <= MAX_TIME_MS for time in times_ms) else 0


class _Misbehaved(Exception):
    """The reflector said something the protocol does not allow."""


class ProbeSession:
    """One session of a probe. `random_bytes(n)` must be unpredictable (`secrets.token_bytes` in production)."""

    def __init__(
        self,
        request: SessionRequest,
        *,
        random_bytes: Callable[[int], bytes],
        expected_reflector: str | None = None,
    ) -> None:
        self._request = request
        self._random = random_bytes
        self._expected = expected_reflector
        self._phase: _Phase = "opening"
        self._pairs: list[ProbePair] = []
        self._planned: list[PlannedPair] = []
        self._attempts = 0
        self._retry_at_ms: int | None = None
        self._asked_ms: int | None = None
        self._ending: Literal["done", "early", "failed"] | None = None
        self.grant: SessionGrant | None = None
        self.receipt: Envelope | None = None
        """The reflector's receipt, verified; None where none came."""
        self.failure: Failure | None = None
        self.complaint = ""
        self.problem: Problem | None = None
        self.retry_after_s: int | None = None
        self.clock_offset_ms: int | None = None
        self.calibration_mbps: float | None = None
        self.started_ms: int | None = None
        self.ended_ms: int | None = None

    # -- what the shell asks ------------------------------------------------------------------------------------

    def next(self, now_ms: int) -> Step:
        """The next thing to do. Asking again before an answer gives the same step."""
        if self._retry_at_ms is not None:
            if now_ms < self._retry_at_ms:
                return Wait(ms=self._retry_at_ms - now_ms)
            self._retry_at_ms = None
        if self._phase == "between":
            self._begin_pair_or_close()
        if self.started_ms is None:
            self.started_ms = now_ms
        if self._phase == "finished":
            self.ended_ms = self.ended_ms or now_ms
            return Finished(failure=self.failure, complaint=self.complaint)
        if self._phase == "unplanned":
            return AwaitPlan()
        if self._phase == "segment":
            if self._is_concurrent:
                return self._together_step()
            return self._segment_step(1 if self._pairs[-1].facts else 0)
        if self._phase == "guard":
            pair = self._pairs[-1]
            return Guard(pair=pair.number, slot=0 if len(pair.facts) == 1 else 1)
        if self._asked_ms is None:
            self._asked_ms = now_ms
        return self._request_step()

    @property
    def is_between_pairs(self) -> bool:
        """Whether no pair is open: the only time to stop early or to plan more."""
        return self._phase in {"unplanned", "between"}

    @property
    def results(self) -> tuple[PairResult, ...]:
        """What the reflector said of each finished pair, in order."""
        return tuple(pair.result for pair in self._pairs if pair.result is not None)

    def design_of(self, pair: int) -> Design:
        """How the two segments of a pair share the time."""
        return self._pairs[pair - 1].planned.design

    @property
    def pairs_left(self) -> int:
        """Planned pairs not begun yet, within what the reflector granted."""
        granted = self.grant.pairs - len(self._pairs) if self.grant else 0
        return max(0, min(len(self._planned), granted))

    # -- what the shell tells -----------------------------------------------------------------------------------

    def plan(self, pairs: Sequence[PlannedPair]) -> None:
        """Add pairs to be run. An empty plan on a fresh session closes it.

        A pace above the grant is lowered to it, before the pair's coin. Raises ValueError while a pair is open, for a
        stream that would be taken for TLS, and for a design that the reflector cannot witness.
        """
        if not self.is_between_pairs or self.grant is None:
            raise ValueError("pairs are planned between pairs of a granted session")
        if any((pair.design == "concurrent") != (pair.packets is not None) for pair in pairs):
            raise ValueError("a concurrent pair, and no other, has small packets")
        if any(begins_like_tls(pair) for pair in pairs):
            raise ValueError("a flight of the carrier stream must not begin with 0x16: choose other first bytes")
        if any(pair.design not in self.grant.designs for pair in pairs):
            raise ValueError("this reflector knows no concurrent pairs: leave such profiles out")
        most = self.grant.most_pace_mbps
        self._planned += [replace(pair, pace_mbps=allowed_pace_mbps(pair.pace_mbps, most)) for pair in pairs]
        self._phase = "between"

    def stop(self, failure: Failure | None = None) -> None:
        """Stop early: takes effect between pairs, never within one. `failure` says why, e.g. out_of_budget."""
        self._ending = self._ending or "early"
        self.failure = self.failure or failure
        if self._phase == "unplanned":
            self._phase = "between"

    def abandon(self, failure: Failure) -> None:
        """Give up at once; a pair that is open stays lost. The reflector is still asked for its receipt."""
        self._give_up(failure)

    def calibration(self, *, name: str, direction: Direction, duration_s: float = MOST_CALIBRATION_S) -> Calibrate:
        """A calibration to run while no pair was begun; at most two a direction. Raises ValueError otherwise."""
        if self.grant is None or self._pairs or not self.is_between_pairs:
            raise ValueError("calibration comes before the first pair of a granted session")
        most = self.grant.most_pace_mbps
        return Calibrate(
            endpoint=self.grant.endpoints[0],
            name=name,
            certificate=self.grant.data_certificate,
            session=self.grant.session,
            token=self.grant.token,
            direction=direction,
            duration_s=min(duration_s, MOST_CALIBRATION_S),
            most_mbps=most / 0.6,
        )

    def calibrated(self, mbps: float | None) -> None:
        """What the calibration reached; None where it failed. The lowest of several is kept."""
        if mbps is not None:
            self.calibration_mbps = mbps if self.calibration_mbps is None else min(mbps, self.calibration_mbps)

    def answered(self, status: int, body: bytes, now_ms: int, retry_after_s: int | None = None) -> None:
        """The answer to the last `Send`."""
        asked_ms, self._asked_ms = self._asked_ms, None
        if status not in {200, 201}:
            self._refused(status, body, retry_after_s)
            return
        self._attempts = 0
        try:
            self._take_answer(body, asked_ms if asked_ms is not None else now_ms, now_ms)
        except WireError as error:
            self._break_off("http_error", f"the reflector's answer cannot be read: {error}")
        except _Misbehaved as error:
            self._break_off("refused_by_peer", str(error))

    def control_failed(self, failure: Failure, now_ms: int) -> None:
        """The last `Send` got no answer. It is repeated twice, except the first of a session."""
        self._asked_ms = None
        may_repeat = self._phase != "opening" and failure != "tls_wrong_certificate"
        if may_repeat and self._attempts < len(RETRY_WAITS_MS):
            self._retry_at_ms = now_ms + RETRY_WAITS_MS[self._attempts]
            self._attempts += 1
            return
        self.failure = self.failure or failure
        self._phase = "finished"

    def segment_ended(self, facts: SegmentFacts, now_ms: int) -> None:
        """How the segment went. A failure is data: the pair goes on whatever it says."""
        if self._phase != "segment" or self._is_concurrent:
            raise ValueError("no segment is running")
        self._pairs[-1].facts.append(facts)
        self._phase = "guard"

    def together_ended(self, facts: tuple[SegmentFacts, SegmentFacts], now_ms: int) -> None:
        """How the two slots of a concurrent pair went; one guard gap follows, after both."""
        if self._phase != "segment" or not self._is_concurrent:
            raise ValueError("no concurrent pair is running")
        self._pairs[-1].facts += facts
        self._phase = "guard"

    def guard_ended(self, guard_ms: int, now_ms: int) -> None:
        """The line is quiet, or the guard's limit is over."""
        if self._phase != "guard":
            raise ValueError("no guard gap is running")
        pair = self._pairs[-1]
        pair.guards_ms += [guard_ms] * (2 if self._is_concurrent else 1)
        self._phase = "segment" if len(pair.facts) < len(pair.arms) else "finishing"

    # -- what comes out -----------------------------------------------------------------------------------------

    @property
    def measured(self) -> tuple[MeasuredPair, ...]:
        """Every pair whose commitment was sent, the unfinished ones too: none may vanish."""
        return tuple(measured(pair) for pair in self._pairs)

    def measurement(
        self,
        *,
        record_id: str,
        sequence: int,
        environment: Environment,
        software: Software | None = None,
        plan: str | None = None,
    ) -> Measurement:
        """The record to sign. Raises ValueError where the session was never granted or is not over."""
        if self.grant is None or self.started_ms is None or self.ended_ms is None:
            raise ValueError("there is a measurement only once a granted session is finished")
        ahead_ms = _correction_ms(self.clock_offset_ms, self.started_ms, self.ended_ms)
        return Measurement(
            type="measurement",
            v=1,
            id=record_id,
            session=self.grant.session,
            sequence=sequence,
            reflector=self.grant.reflector,
            nettest=self._request.nettest,
            started_ms=self.started_ms + ahead_ms,
            ended_ms=self.ended_ms + ahead_ms,
            environment=replace(environment, clock_offset_ms=self.clock_offset_ms),
            pairs=self.measured,
            software=software,
            plan=plan,
            calibration_mbps=self.calibration_mbps,
            failure=self.failure,
        )

    # -- steps --------------------------------------------------------------------------------------------------

    def _begin_pair_or_close(self) -> None:
        if self._ending is None and self.pairs_left:
            planned = self._planned.pop(0)
            nonce = self._random(coin.NONCE_BYTES)
            self._pairs.append(ProbePair(number=len(self._pairs) + 1, planned=planned, nonce=nonce))
            self._phase = "committing"
            return
        self._ending = self._ending or "done"
        self._phase = "closing"

    @property
    def _is_concurrent(self) -> bool:
        return self._pairs[-1].planned.design == "concurrent"

    def _together_step(self) -> RunTogether:
        pair, grant = self._pairs[-1], self._granted
        planned = pair.planned
        if planned.packets is None or pair.load_ticket is None:
            raise AssertionError("checked when the pair was planned and when its order came")
        return RunTogether(
            slots=(self._segment_step(0), self._segment_step(1)),
            load=Load(
                endpoint=grant.endpoints[pair.endpoint],
                name=planned.packets.load_name,
                ticket=pair.load_ticket,
                certificate=grant.data_certificate,
                direction=planned.direction,
                pace_mbps=planned.pace_mbps,
                segment_s=planned.segment_s,
            ),
        )

    def _segment_step(self, slot: Literal[0, 1]) -> RunSegment:
        pair, grant = self._pairs[-1], self._granted
        return RunSegment(
            pair=pair.number,
            slot=slot,
            endpoint=grant.endpoints[pair.endpoint],
            name=pair.name_of(pair.arms[slot]),
            carrier=pair.planned.carrier,
            wire=pair.wire_of(pair.arms[slot]),
            ticket=pair.tickets[slot],
            certificate=grant.data_certificate,
            app=pair.planned.app,
            profile=pair.planned.profile,
            direction=pair.planned.direction,
            pace_mbps=pair.planned.pace_mbps,
            segment_s=pair.planned.segment_s,
            packet_bytes=pair.planned.packets.bytes if pair.planned.packets else 0,
        )

    def _request_step(self) -> Send:
        if self._phase == "opening":
            return self._send("/v1/sessions", self._request)
        base = f"/v1/sessions/{self._granted.session}"
        if self._phase == "closing":
            return self._send(f"{base}/close", SessionEnd(reason=self._ending or "failed"))
        pair = self._pairs[-1]
        if self._phase == "committing":
            return self._send(f"{base}/pairs", commit_message(pair))
        if self._phase == "revealing":
            return self._send(f"{base}/pairs/{pair.number}/reveal", PairReveal(nonce=pair.nonce.hex()))
        return self._send(f"{base}/pairs/{pair.number}/finish", finish_message(pair))

    def _send(self, path: str, message: object) -> Send:
        token = self.grant.token if self.grant else None
        return Send(method="POST", path=path, body=encode_message(message), token=token, timeout_s=REQUEST_TIMEOUT_S)

    @property
    def _granted(self) -> SessionGrant:
        if self.grant is None:
            raise ValueError("the session is not granted yet")
        return self.grant

    # -- answers ------------------------------------------------------------------------------------------------

    def _take_answer(self, body: bytes, asked_ms: int, now_ms: int) -> None:
        if self._phase == "opening":
            self._take_grant(decode_message(SessionGrant, body), asked_ms, now_ms)
        elif self._phase == "committing":
            self._take_nonce(decode_message(PairNonce, body))
        elif self._phase == "revealing":
            self._take_order(decode_message(PairOrder, body))
        elif self._phase == "finishing":
            result = decode_message(PairResult, body)
            self._expect(result.pair == self._pairs[-1].number, "the reflector answered for another pair")
            self._pairs[-1].result = result
            self._phase = "between"
        elif self._phase == "closing":
            self._take_receipt(body)

    def _take_grant(self, grant: SessionGrant, asked_ms: int, now_ms: int) -> None:
        self._expect(bool(grant.endpoints), "the reflector named no address to measure against")
        self._expect(self._expected in {None, grant.reflector}, "the reflector has another key than the plan says")
        self.grant = grant
        self.clock_offset_ms = grant.clock_ms - (asked_ms + now_ms) // 2
        self._phase = "between" if self._ending else "unplanned"

    def _take_nonce(self, answer: PairNonce) -> None:
        pair = self._pairs[-1]
        self._expect(answer.pair == pair.number, "the reflector answered for another pair")
        self._expect(answer.endpoint < len(self._granted.endpoints), "the reflector chose an address it never named")
        pair.reflector_nonce, pair.endpoint = bytes.fromhex(answer.nonce), answer.endpoint
        self._phase = "revealing"

    def _take_order(self, answer: PairOrder) -> None:
        pair = self._pairs[-1]
        first = coin.neutral_first(pair.nonce, pair.reflector_nonce, self._granted.session, pair.number)
        arms = coin.arms_in_order(first, CONTROL_ARMS[pair.planned.carrier])
        self._expect(answer.pair == pair.number, "the reflector answered for another pair")
        self._expect(
            answer.neutral_first == first and answer.arms == arms,
            "the reflector announced another order than the coin gives",
        )
        self._expect(
            len(answer.tickets) == 2 and answer.tickets[0] != answer.tickets[1],
            "the reflector gave no two tickets",
        )
        self._expect(
            (answer.load_ticket is not None) == self._is_concurrent and answer.load_ticket not in answer.tickets,
            "the reflector's tickets are not those of this kind of pair",
        )
        pair.arms, pair.tickets, pair.load_ticket = arms, answer.tickets, answer.load_ticket
        self._phase = "segment"

    def _take_receipt(self, body: bytes) -> None:
        self._phase = "finished"
        envelope = from_line(body)
        record = open_record(envelope)
        self._expect(
            isinstance(record, Receipt)
            and record.session == self._granted.session
            and envelope.key_id == self._granted.reflector,
            "the receipt is not of this session",
        )
        self.receipt = envelope

    @staticmethod
    def _expect(holds: bool, complaint: str) -> None:
        if not holds:
            raise _Misbehaved(complaint)

    # -- trouble ------------------------------------------------------------------------------------------------

    def _refused(self, status: int, body: bytes, retry_after_s: int | None) -> None:
        try:
            self.problem = decode_message(Problem, body)
        except WireError:
            self._break_off("http_error", f"the reflector answered with status {status}")
            return
        self.retry_after_s = retry_after_s
        if self._phase == "committing" and self._attempts == 0:
            # Refused before its nonce was drawn: it never began. After a lost answer that is not certain.
            self._pairs.pop()
        self._break_off("refused_by_peer", f"the reflector refused ({self.problem.error}): {self.problem.detail}")

    def _break_off(self, failure: Failure, complaint: str) -> None:
        self.complaint = self.complaint or complaint
        self._give_up(failure)

    def _give_up(self, failure: Failure) -> None:
        self.failure = self.failure or failure
        self._asked_ms = self._retry_at_ms = None
        if self.grant is None or self._phase in {"closing", "finished"}:
            self._phase = "finished"
        else:
            self._ending, self._phase, self._attempts = "failed", "closing", 0

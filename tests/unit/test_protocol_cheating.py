# SPDX-License-Identifier: EUPL-1.2
"""Either side tries to bias pairs, to make them vanish, or to get more than a ticket allows."""

from __future__ import annotations

import random
from typing import Any

import pytest

from probe.protocol import coin
from probe.protocol.accounts import Counted, Job, Limits, NoJob
from probe.protocol.memory import MemoryReflector, VirtualClock, drive, even_transfer, send
from probe.protocol.probe_role import ProbeSession
from probe.protocol.session import decode_message, encode_hello, encode_message
from probe.protocol.steps import AwaitPlan, Finished, PlannedPair, RunSegment, SegmentFacts, Send
from probe.wire.envelope import open_record, seal, to_line
from probe.wire.messages import (
    DataHello,
    PairCommit,
    PairFinish,
    PairNonce,
    PairOrder,
    PairResult,
    PairReveal,
    Problem,
    SegmentReport,
    SessionEnd,
    SessionGrant,
    SessionRequest,
)
from probe.wire.records import Receipt, ReceiptPair, Started
from probe.wire.signing import SeedSigner

NOW = 1_800_000_000_000
REFLECTOR = SeedSigner(b"\x02" * 32, "cryptography")
PROBE = SeedSigner(b"\x01" * 32, "cryptography")
APP, NEUTRAL = "r1.googlevideo.com", "cdn3.meadowline.net"


class Cheat:
    """A probe that says whatever it likes."""

    def __init__(self, seed: int = 1, **limits: Any) -> None:
        self.clock = VirtualClock(NOW)
        self.rng = random.Random(seed)
        self.there = MemoryReflector(
            signer=REFLECTOR,
            clock=self.clock,
            random_bytes=random.Random(seed + 1000).randbytes,
            limits=Limits(**limits),
        )
        self.grant = self.open()
        self.nonce = b""

    def open(self, prefix: str = "here") -> SessionGrant:
        wish = SessionRequest(v=1, probe=PROBE.key_id, nettest="differential", pairs=9, segment_s=2.0, pace_mbps=12.0)
        found = self.there.request("POST", "/v1/sessions", encode_message(wish), prefix=prefix)
        assert found.status == 201, found.body
        return decode_message(SessionGrant, found.body)

    def post(self, path: str, message: Any, expected: Any = None, token: str | None = None) -> Any:
        base = f"/v1/sessions/{self.grant.session}"
        found = self.there.request("POST", base + path, encode_message(message), token or self.grant.token)
        if expected is not None:
            assert found.status == 200, found.body
            return decode_message(expected, found.body)
        return found.status, decode_message(Problem, found.body).error

    def commit(self, pair: int = 1, **other: Any) -> PairCommit:
        self.nonce = other.pop("nonce", None) or self.rng.randbytes(32)
        fields = {
            "pair": pair,
            "commit": coin.commitment(self.nonce),
            "kind": "test",
            "app": "youtube",
            "profile": "youtube@1:0123456789abcdef",
            "direction": "down",
            "pace_mbps": 8.0,
            "segment_s": 1.0,
            "app_name": APP,
            "neutral_name": NEUTRAL,
        }
        return PairCommit(**{**fields, **other})

    def begin(self, pair: int = 1, **other: Any) -> PairOrder:
        self.post("/pairs", self.commit(pair, **other), PairNonce)
        order = self.post(f"/pairs/{pair}/reveal", PairReveal(nonce=self.nonce.hex()), PairOrder)
        assert isinstance(order, PairOrder)
        return order

    def connect(self, ticket: str, name: str, direction: str = "down") -> Job | NoJob:
        hello = DataHello(v=1, ticket=ticket, purpose="segment", direction=direction)  # type: ignore[arg-type]
        return self.there.connect(encode_hello(hello), name)

    def run(self, ticket: str, name: str, bytes_: int = 1000) -> None:
        job = self.connect(ticket, name)
        assert isinstance(job, Job), job
        self.clock.advance(1000)
        self.there.count(job, Counted(end="complete", bytes=bytes_, duration_ms=1000))

    def run_both(self, order: PairOrder) -> None:
        for ticket, arm in zip(order.tickets, order.arms, strict=True):
            self.run(ticket, NEUTRAL if arm == "neutral" else APP)

    def finish(self, pair: int = 1, bytes_: int = 0) -> PairResult:
        report = SegmentReport(started=True, bytes=bytes_, duration_ms=1000)
        result = self.post(f"/pairs/{pair}/finish", PairFinish(segments=(report, report)), PairResult)
        assert isinstance(result, PairResult)
        return result

    def receipt(self) -> Receipt:
        found = self.there.request(
            "POST",
            f"/v1/sessions/{self.grant.session}/close",
            encode_message(SessionEnd(reason="done")),
            self.grant.token,
        )
        assert found.status == 200
        record = open_record(self.there.receipts[self.grant.session])
        assert isinstance(record, Receipt)
        return record

    def only_pair(self) -> ReceiptPair:
        (pair,) = self.receipt().pairs
        return pair


def names(order: PairOrder) -> list[str]:
    return [NEUTRAL if arm == "neutral" else APP for arm in order.arms]


# -- the order ----------------------------------------------------------------------------------------------------


def test_grinding_own_nonces_wins_no_order() -> None:
    """A probe that picks its nonce by everything it has seen of this reflector still gets a fair coin."""
    wins, rounds = 0, 400
    seen: list[bytes] = []
    for session in range(rounds // 8):
        cheat = Cheat(seed=session)
        for pair in range(1, 9):
            options = [cheat.rng.randbytes(32) for _ in range(16)]
            best = max(
                options,
                key=lambda mine: sum(coin.neutral_first(mine, r, cheat.grant.session, pair) for r in seen[-3:]),
            )
            cheat.post("/pairs", cheat.commit(pair, nonce=best), PairNonce)
            order = cheat.post(f"/pairs/{pair}/reveal", PairReveal(nonce=best.hex()), PairOrder)
            wins += order.neutral_first
            seen.append(bytes.fromhex(decode_started(cheat)[-1].reflector_nonce))
            cheat.finish(pair)
    assert abs(wins / rounds - 0.5) < 4 * 0.5 / rounds**0.5


def decode_started(cheat: Cheat) -> list[Started]:
    records = [open_record(envelope) for envelope in cheat.there.started]
    return [record for record in records if isinstance(record, Started)]


def test_another_nonce_than_the_committed_one_ends_the_session() -> None:
    """Grinding after the reflector's nonce is known: the commitment binds."""
    cheat = Cheat()
    answer = cheat.post("/pairs", cheat.commit(), PairNonce)
    other = next(
        nonce
        for nonce in iter(lambda: cheat.rng.randbytes(32), b"")
        if coin.neutral_first(nonce, bytes.fromhex(answer.nonce), cheat.grant.session, 1)
    )
    assert cheat.post("/pairs/1/reveal", PairReveal(nonce=other.hex())) == (409, "commitment_mismatch")
    assert cheat.post("/pairs", cheat.commit(2)) == (409, "session_closed")
    pair = cheat.only_pair()
    assert (pair.outcome, pair.neutral_first, pair.probe_nonce) == ("unfinished", None, None)
    assert len(cheat.there.started) == 1
    assert cheat.there.booking.sessions_open == 0


def test_committing_again_after_seeing_the_nonce_draws_no_new_one() -> None:
    cheat = Cheat()
    message = cheat.commit()
    first = cheat.post("/pairs", message, PairNonce)
    assert cheat.post("/pairs", message, PairNonce) == first
    assert cheat.post("/pairs", cheat.commit()) == (409, "pair_open")
    assert cheat.post("/pairs", cheat.commit(2)) == (409, "pair_open")
    assert len(cheat.there.started) == 1


@pytest.mark.parametrize(
    "change",
    [{"app": "netflix"}, {"pace_mbps": 1.0}, {"direction": "up"}, {"kind": "placebo"}, {"app_name": "other.net"}],
)
def test_nothing_of_a_pair_can_be_changed_once_the_nonce_is_known(change: dict[str, Any]) -> None:
    cheat = Cheat()
    cheat.post("/pairs", cheat.commit(), PairNonce)
    assert cheat.post("/pairs", cheat.commit(nonce=cheat.nonce, **change)) == (409, "pair_open")


def test_withholding_the_nonce_loses_the_pair() -> None:
    """Seeing an order one does not like and staying silent: started is on disk, the pair is unfinished."""
    cheat = Cheat()
    cheat.post("/pairs", cheat.commit(), PairNonce)
    (started,) = decode_started(cheat)
    cheat.clock.advance(31_000)
    cheat.there.tick()
    receipt = open_record(cheat.there.receipts[cheat.grant.session])
    assert isinstance(receipt, Receipt)
    assert receipt.end == "timed_out"
    (pair,) = receipt.pairs
    assert (pair.outcome, pair.probe_nonce, pair.neutral_first) == ("unfinished", None, None)
    assert pair.reflector_nonce == started.reflector_nonce
    assert cheat.post("/pairs/1/reveal", PairReveal(nonce=cheat.nonce.hex())) == (409, "session_closed")


@pytest.mark.parametrize("how_far", ["revealed", "one_segment", "two_segments"])
def test_going_away_after_the_reveal_loses_the_pair(how_far: str) -> None:
    cheat = Cheat()
    order = cheat.begin()
    if how_far != "revealed":
        cheat.run(order.tickets[0], names(order)[0])
    if how_far == "two_segments":
        cheat.run(order.tickets[1], names(order)[1])
    pair = cheat.only_pair()  # by closing within the pair
    assert pair.outcome == "unfinished"
    assert pair.neutral_first is order.neutral_first
    expected = {"revealed": 0, "one_segment": 1, "two_segments": 2}[how_far]
    assert [segment.end for segment in pair.segments].count("complete") == expected


def test_a_pair_given_up_cannot_be_done_again() -> None:
    cheat = Cheat()
    cheat.begin()
    cheat.finish()
    assert cheat.post("/pairs", cheat.commit(1)) == (409, "pair_out_of_order")
    assert cheat.post("/pairs/1/reveal", PairReveal(nonce=cheat.nonce.hex())) == (409, "pair_out_of_order")


@pytest.mark.parametrize("number", [2, 3, 9])
def test_numbers_have_no_gaps(number: int) -> None:
    cheat = Cheat()
    assert cheat.post("/pairs", cheat.commit(number)) == (409, "pair_out_of_order")
    assert not cheat.there.started


def test_finishing_before_the_reveal_is_refused() -> None:
    cheat = Cheat()
    cheat.post("/pairs", cheat.commit(), PairNonce)
    assert cheat.post("/pairs/1/finish", PairFinish(segments=())) == (409, "pair_out_of_order")
    assert cheat.only_pair().outcome == "unfinished"


def test_revealing_twice() -> None:
    cheat = Cheat()
    order = cheat.begin()
    again = cheat.post("/pairs/1/reveal", PairReveal(nonce=cheat.nonce.hex()), PairOrder)
    assert again == order
    assert cheat.post("/pairs/1/reveal", PairReveal(nonce="0" * 64)) == (409, "already_revealed")


# -- tickets ------------------------------------------------------------------------------------------------------


def test_a_ticket_is_good_once() -> None:
    cheat = Cheat()
    order = cheat.begin()
    cheat.run(order.tickets[0], names(order)[0])
    assert cheat.connect(order.tickets[0], names(order)[0]) == NoJob(reason="used_ticket")
    job = cheat.connect(order.tickets[1], names(order)[1])
    assert isinstance(job, Job)
    assert cheat.connect(order.tickets[1], names(order)[1]) == NoJob(reason="used_ticket")


def test_the_second_ticket_waits_for_the_first_segment() -> None:
    """Both arms at once would let one arm's queue hide the other's."""
    cheat = Cheat()
    order = cheat.begin()
    assert isinstance(cheat.connect(order.tickets[0], names(order)[0]), Job)
    assert cheat.connect(order.tickets[1], names(order)[1]) == NoJob(reason="late_ticket")


def test_the_wrong_order_forfeits_the_first_segment() -> None:
    cheat = Cheat()
    order = cheat.begin()
    cheat.run(order.tickets[1], names(order)[1])
    assert cheat.connect(order.tickets[0], names(order)[0]) == NoJob(reason="used_ticket")
    result = cheat.finish()
    assert [segment.end for segment in result.segments] == ["absent", "complete"]
    assert [segment.arm for segment in result.segments] == list(order.arms)
    assert result.outcome == "one_failed"


def test_tickets_end_with_their_time_their_pair_and_their_session() -> None:
    cheat = Cheat()
    order = cheat.begin()
    cheat.clock.advance(10_001)
    assert cheat.connect(order.tickets[0], names(order)[0]) == NoJob(reason="late_ticket")
    cheat.run(order.tickets[1], names(order)[1])
    cheat.finish()
    second = cheat.begin(2)
    assert cheat.connect(order.tickets[1], names(order)[1]).reason == "unknown_ticket"  # type: ignore[union-attr]
    cheat.run(second.tickets[0], names(second)[0])
    cheat.clock.advance(10_001)
    assert cheat.connect(second.tickets[1], names(second)[1]) == NoJob(reason="late_ticket")
    cheat.receipt()
    assert cheat.connect(second.tickets[1], names(second)[1]) == NoJob(reason="unknown_ticket")


@pytest.mark.parametrize("shown", ["other.net", None, NEUTRAL + "x", "10.11.12.13", "a\x00b", "x" * 300])
def test_another_name_gets_no_byte_and_is_written_down(shown: str | None) -> None:
    cheat = Cheat()
    order = cheat.begin()
    assert cheat.connect(order.tickets[0], shown) == NoJob(reason="mismatch")  # type: ignore[arg-type]
    assert cheat.connect(order.tickets[0], names(order)[0]) == NoJob(reason="used_ticket")
    cheat.run(order.tickets[1], names(order)[1])
    result = cheat.finish()
    assert result.outcome == "one_failed"
    assert result.segments[0].end == "mismatch"
    seen = result.segments[0].name_seen
    assert seen == {"other.net": "other.net", None: None, "10.11.12.13": "[address]"}.get(
        shown, "(unprintable)" if shown and not shown.startswith(NEUTRAL) else shown
    )
    cheat.receipt()  # and the receipt can be read back


def test_the_arms_names_cannot_be_swapped() -> None:
    cheat = Cheat()
    order = cheat.begin()
    first, second = names(order)
    assert cheat.connect(order.tickets[0], second) == NoJob(reason="mismatch")
    assert cheat.connect(order.tickets[1], first) == NoJob(reason="mismatch")
    assert cheat.finish().outcome == "both_failed"


def test_names_compare_without_case_and_the_direction_is_fixed() -> None:
    cheat = Cheat()
    order = cheat.begin()
    assert cheat.connect(order.tickets[0], names(order)[0], "up") == NoJob(reason="wrong_direction")
    assert isinstance(cheat.connect(order.tickets[0], names(order)[0].upper()), Job)


def test_tickets_of_strangers_are_unknown() -> None:
    cheat = Cheat()
    cheat.begin()
    assert cheat.connect("0" * 32, APP) == NoJob(reason="unknown_ticket")


# -- accounts -----------------------------------------------------------------------------------------------------


def test_lying_about_size_and_time_changes_nothing() -> None:
    cheat = Cheat()
    order = cheat.begin()
    cheat.run_both(order)
    lie = SegmentReport(started=False, bytes=2**50, duration_ms=1)
    result = cheat.post("/pairs/1/finish", PairFinish(segments=(lie, lie)), PairResult)
    assert [(s.bytes, s.duration_ms, s.end) for s in result.segments] == [(1000, 1000, "complete")] * 2
    assert cheat.only_pair().segments == result.segments


def test_finish_says_the_same_twice_and_takes_no_other_report() -> None:
    cheat = Cheat()
    cheat.run_both(cheat.begin())
    first = cheat.finish(bytes_=5)
    assert cheat.finish(bytes_=5) == first
    other = PairFinish(segments=())
    assert cheat.post("/pairs/1/finish", other) == (409, "already_finished")


def test_finishing_while_a_segment_runs_makes_it_aborted() -> None:
    cheat = Cheat()
    order = cheat.begin()
    cheat.run(order.tickets[0], names(order)[0])
    job = cheat.connect(order.tickets[1], names(order)[1])
    assert isinstance(job, Job)
    result = cheat.finish()
    assert [segment.end for segment in result.segments] == ["complete", "aborted"]
    cheat.there.count(job, Counted(end="complete", bytes=10**9))  # too late
    assert cheat.only_pair().segments == result.segments


def test_claims_beyond_the_grant_are_refused() -> None:
    cheat = Cheat(most_pace_mbps=10.0)
    for change in ({"pace_mbps": 10.1}, {"pace_mbps": 0.0}, {"segment_s": 2.1}, {"app_name": NEUTRAL.upper()}):
        assert cheat.post("/pairs", cheat.commit(**change)) == (400, "not_granted")
    for change in ({"app": "10.1.2.3"}, {"profile": "2001:db8::1"}, {"app_name": "192.0.2.1"}):
        assert cheat.post("/pairs", cheat.commit(**change)) == (400, "address")
    assert not cheat.there.started


def test_bytes_of_a_session_are_bounded_also_without_a_pace() -> None:
    cheat = Cheat(session_bytes=3000)
    wish = SessionRequest(v=1, probe=PROBE.key_id, nettest="differential", pairs=9, segment_s=2.0, pace_mbps=0)
    found = cheat.there.request("POST", "/v1/sessions", encode_message(wish))
    cheat.grant = decode_message(SessionGrant, found.body)
    for pair in (1, 2):
        cheat.run_both(cheat.begin(pair, pace_mbps=0.0))
        cheat.finish(pair)
    assert cheat.post("/pairs", cheat.commit(3, pace_mbps=0.0)) == (429, "quota")


def test_quota_of_open_sessions() -> None:
    cheat = Cheat(sessions=3, sessions_per_prefix=2)
    wish = encode_message(
        SessionRequest(v=1, probe=PROBE.key_id, nettest="differential", pairs=1, segment_s=1, pace_mbps=1)
    )
    cheat.open("here")
    found = cheat.there.request("POST", "/v1/sessions", wish, prefix="here")
    assert (found.status, found.error, found.retry_after_s) == (429, "quota", 30)
    cheat.open("there")
    found = cheat.there.request("POST", "/v1/sessions", wish, prefix="elsewhere")
    assert (found.status, found.error, found.retry_after_s) == (503, "busy", 30)
    cheat.receipt()  # closing gives the place free
    cheat.open("here")


def test_a_foreign_token_opens_nothing() -> None:
    cheat = Cheat()
    for token in ("0" * 64, "x", "é", ""):
        base = f"/v1/sessions/{cheat.grant.session}/pairs"
        found = cheat.there.request("POST", base, encode_message(cheat.commit()), token)
        assert (found.status, found.error) == (401, "bad_token")
    found = cheat.there.request("POST", f"/v1/sessions/{'0' * 32}/close", b"{}", cheat.grant.token)
    assert (found.status, found.error) == (404, "unknown_session")


def test_receipts_can_be_asked_for_again_and_are_the_same_bytes() -> None:
    cheat = Cheat()
    cheat.run_both(cheat.begin())
    cheat.finish()
    path = f"/v1/sessions/{cheat.grant.session}/close"
    bodies = []
    for reason in ("done", "failed"):
        cheat.clock.advance(5000)
        body = encode_message(SessionEnd(reason=reason))  # type: ignore[arg-type]
        bodies.append(cheat.there.request("POST", path, body, cheat.grant.token).body)
    assert bodies[0] == bodies[1]
    cheat.clock.advance(600_001)
    cheat.there.tick()
    found = cheat.there.request("POST", path, encode_message(SessionEnd(reason="done")), cheat.grant.token)
    assert found.error == "unknown_session"


# -- a reflector that cheats --------------------------------------------------------------------------------------


def cheated(tamper: dict[str, Any], *, receipts: Any = None) -> tuple[Finished, ProbeSession]:
    """Run an honest probe against a reflector whose answers are tampered with on the way."""
    clock = VirtualClock(NOW)
    there = MemoryReflector(signer=REFLECTOR, clock=clock, random_bytes=random.Random(4).randbytes)
    wish = SessionRequest(v=1, probe=PROBE.key_id, nettest="differential", pairs=9, segment_s=2.0, pace_mbps=12.0)
    here = ProbeSession(wish, random_bytes=random.Random(9).randbytes)
    pair = PlannedPair(
        kind="test",
        app="youtube",
        profile="p",
        direction="down",
        pace_mbps=8,
        segment_s=1,
        app_name=APP,
        neutral_name=NEUTRAL,
    )
    while True:
        step = here.next(clock.now_ms)
        if isinstance(step, Finished):
            return step, here
        if isinstance(step, AwaitPlan):
            here.plan([pair] * 2)
        elif isinstance(step, RunSegment):
            here.segment_ended(even_transfer(lambda _: 8)(step, there), clock.now_ms)
        elif isinstance(step, Send):
            found = send(step, there)
            verb = step.path.rsplit("/", 1)[-1]
            body = tamper[verb](found.body) if verb in tamper else found.body
            here.answered(found.status, body, clock.now_ms)
        else:
            here.guard_ended(1, clock.now_ms)


def edit(cls: Any, **changes: Any) -> Any:
    def change(body: bytes) -> bytes:
        message = decode_message(cls, body)
        values = {k: v(getattr(message, k)) if callable(v) else v for k, v in changes.items()}
        return encode_message(type(message)(**{**{f: getattr(message, f) for f in cls.__slots__}, **values}))

    return change


@pytest.mark.parametrize(
    ("verb", "change", "word"),
    [
        ("reveal", edit(PairOrder, neutral_first=lambda v: not v), "another order"),
        ("reveal", edit(PairOrder, arms=lambda v: v[::-1]), "another order"),
        ("reveal", edit(PairOrder, neutral_first=lambda v: not v, arms=lambda v: v[::-1]), "another order"),
        ("reveal", edit(PairOrder, arms=("app", "opaque")), "another order"),
        ("reveal", edit(PairOrder, tickets=lambda v: v[:1]), "two tickets"),
        ("reveal", edit(PairOrder, tickets=lambda v: (v[0], v[0])), "two tickets"),
        ("reveal", edit(PairOrder, pair=2), "another pair"),
        ("pairs", edit(PairNonce, pair=2), "another pair"),
        ("pairs", edit(PairNonce, endpoint=1), "never named"),
        ("finish", edit(PairResult, pair=7), "another pair"),
        ("sessions", edit(SessionGrant, endpoints=()), "no address"),
    ],
)
def test_a_reflector_that_breaks_the_protocol_is_left_and_told_on(verb: str, change: Any, word: str) -> None:
    end, here = cheated({verb: change})
    assert end.failure == "refused_by_peer"
    assert word in end.complaint
    if verb == "sessions":
        assert here.grant is None
    else:
        assert len(here.measured) == 1  # the pair began and is not hidden
        assert here.receipt is not None


def test_another_nonce_told_to_the_probe_shows_in_the_order() -> None:
    """The reflector commits itself too: the nonce it sends decides the coin that the probe checks."""
    complaints = 0
    for flip in range(8):
        other = bytes([flip]) * 32
        end, _ = cheated({"pairs": edit(PairNonce, nonce=other.hex())})
        complaints += "another order" in end.complaint
    assert complaints >= 2  # half of the wrong nonces give the same coin


def test_a_receipt_of_somebody_else_is_not_taken() -> None:
    stranger = SeedSigner(b"\x07" * 32, "cryptography")

    def resign(body: bytes) -> bytes:
        from probe.wire.envelope import from_line

        return to_line(seal(open_record(from_line(body)), stranger))

    end, here = cheated({"close": resign})
    assert "receipt" in end.complaint
    assert here.receipt is None

    def garble(body: bytes) -> bytes:
        return body.replace(b'"sig":"', b'"sig":"A', 1)

    end, here = cheated({"close": garble})
    assert end.failure == "http_error"
    assert here.receipt is None


def test_a_withheld_receipt_leaves_a_started_record() -> None:
    """A probe that keeps its measurement and a reflector that stays honest: the pair is known to have begun."""
    cheat = Cheat()
    cheat.begin()
    (started,) = decode_started(cheat)
    assert (started.session, started.pair, started.app) == (cheat.grant.session, 1, "youtube")


def test_drive_helper_really_runs_transfers() -> None:
    clock = VirtualClock(NOW)
    there = MemoryReflector(signer=REFLECTOR, clock=clock, random_bytes=random.Random(4).randbytes)
    wish = SessionRequest(v=1, probe=PROBE.key_id, nettest="differential", pairs=9, segment_s=2.0, pace_mbps=12.0)
    here = ProbeSession(wish, random_bytes=random.Random(9).randbytes)
    ran: list[int] = []

    def transfer(step: RunSegment, at: MemoryReflector) -> SegmentFacts:
        ran.append(step.slot)
        return even_transfer(lambda _: 8)(step, at)

    pair = PlannedPair(
        kind="placebo",
        app="none",
        profile="p",
        direction="up",
        pace_mbps=8,
        segment_s=1,
        app_name="a.net",
        neutral_name="b.net",
    )
    drive(here, there, [pair], transfer)
    assert ran == [0, 1]
    assert here.measured[0].kind == "placebo"

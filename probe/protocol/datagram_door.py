# SPDX-License-Identifier: EUPL-1.2
"""Who may start a segment over UDP: the flight, the hello with a ticket, the echoed cookie, in this order.

Before the echo no address gets more than three times the bytes that came from it, whoever wrote it on the envelope;
a refused ticket gets silence. Spec: spec/carriers.md, section "Opening over UDP".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

from probe.protocol.accounts import Awaited, Job, NoJob
from probe.protocol.datagram import SIGNAL_BYTES, UDP_CARRIERS, Codec, Cookies, Opening, challenge, read_opening
from probe.protocol.datagram_flow import Filler
from probe.protocol.session import HELLO_WAIT_S
from probe.wire.messages import DataHello
from probe.wire.records import Carrier

MOST_AMPLIFICATION: Final = 3
"""RFC 9000, section 8.1, has the same bound."""

Verdict = Literal[
    "first", "no_hello", "no_flight", "no_room", "refused", "too_much", "challenged", "bad_cookie", "opened"
]


class Keeper(Protocol):
    """The booking, as the door needs it."""

    def awaited(self, ticket: str) -> Awaited | None:
        """What a ticket is good for; asking uses nothing up."""
        ...

    def awaited_flight(self, flight: str) -> Awaited | None:
        """The segment that waits for a first datagram with this SHA-256, where it has an answer."""
        ...

    def open(self, hello: DataHello, carrier: Carrier, flight: str) -> Job | NoJob | None:
        """Use the ticket. None: there is no room at the moment, and the ticket is as good as before."""
        ...


@dataclass(slots=True)
class _Knock:
    """A 5-tuple that has sent its first datagram."""

    flight: str
    """SHA-256 of it."""
    prefix: str
    at: float
    received: int
    sent: int = 0
    is_answered: bool = False
    """The arm's answer has been sent."""


class Entered(NamedTuple):
    """What came of a datagram at the door."""

    verdict: Verdict
    send: list[bytes]
    job: Job | None = None
    """Set with the verdict `opened`."""


class Door:
    """The bounded memory of who has knocked, oldest first to be forgotten. A datagram costs constant work."""

    def __init__(
        self, keeper: Keeper, secret: bytes, filler: Filler, *, most: int = 8192, per_prefix: int = 256
    ) -> None:
        self._keeper = keeper
        self._cookies = Cookies(secret)
        self._filler = filler
        self._most = most
        self._per_prefix = per_prefix
        self._knocks: dict[bytes, _Knock] = {}  # in the order of their first datagrams
        self._by_prefix: dict[str, dict[bytes, None]] = {}  # each in the same order

    def __len__(self) -> int:
        return len(self._knocks)

    def take(self, flow: bytes, prefix: Callable[[], str], raw: bytes, now: float) -> Entered:
        """A datagram of a flow (any bytes that stand for its 5-tuple) that has no segment."""
        self._forget(now)
        knock = self._knocks.get(flow)
        opening = read_opening(raw)
        if knock is not None:
            knock.received += len(raw)
        if opening is None:
            return Entered("no_hello", []) if knock is not None else self._first(flow, prefix(), raw, now)
        if knock is None:
            return Entered("no_flight", [])  # lost or overtaken: the probe will send both again
        if opening.hello.purpose != "segment":
            return Entered("refused", [])
        if opening.has_cookie:
            return self._enter(flow, knock, opening, now)
        return self._challenge(flow, knock, opening, now)

    def _first(self, flow: bytes, prefix: str, raw: bytes, now: float) -> Entered:
        neighbours = self._by_prefix.get(prefix, ())
        if len(neighbours) >= self._per_prefix:
            # The newest stays: whoever has a ticket shows it right behind his flight, so neighbours shut nobody out.
            self._drop(next(iter(neighbours)))
        elif len(self._knocks) >= self._most:
            self._drop(next(iter(self._knocks)))
        knock = _Knock(hashlib.sha256(raw).hexdigest(), prefix, now, len(raw))
        self._knocks[flow] = knock
        self._by_prefix.setdefault(prefix, {})[flow] = None
        return Entered("first", self._answer_at_once(knock))

    def _answer_at_once(self, knock: _Knock) -> list[bytes]:
        """Some engines believe a protocol only where the server's first message is the very next packet."""
        found = self._keeper.awaited_flight(knock.flight)
        if found is None or not found.is_waiting or found.carrier not in UDP_CARRIERS or not found.answer:
            return []
        if len(found.answer) > MOST_AMPLIFICATION * knock.received:
            return []
        knock.sent, knock.is_answered = len(found.answer), True
        return [found.answer]

    def _challenge(self, flow: bytes, knock: _Knock, opening: Opening, now: float) -> Entered:
        expected = self._expected(opening)
        if expected is None:
            return Entered("refused", [])
        ticket = opening.hello.ticket
        codec = Codec(ticket, "reflector", expected.head)
        cookie = self._cookies.make(flow, ticket, now)
        send = [expected.answer] if expected.answer and not knock.is_answered else []
        send.append(codec.seal(challenge(cookie), self._filler.next(SIGNAL_BYTES)))
        size = sum(map(len, send))
        if knock.sent + size > MOST_AMPLIFICATION * knock.received:
            return Entered("too_much", [])
        knock.sent += size
        return Entered("challenged", send)

    def _enter(self, flow: bytes, knock: _Knock, opening: Opening, now: float) -> Entered:
        if not self._cookies.is_good(opening.cookie, flow, opening.hello.ticket, now):
            return Entered("bad_cookie", [])
        expected = self._expected(opening)
        if expected is None:
            return Entered("refused", [])
        job = self._keeper.open(opening.hello, expected.carrier, knock.flight)
        if job is None:
            return Entered("no_room", [])  # the probe asks again
        self._drop(flow)
        return Entered("refused", []) if isinstance(job, NoJob) else Entered("opened", [], job)

    def _expected(self, opening: Opening) -> Awaited | None:
        found = self._keeper.awaited(opening.hello.ticket)
        if found is None or not found.is_waiting or found.carrier not in UDP_CARRIERS or found.head != opening.head:
            return None
        return found

    def _forget(self, now: float) -> None:
        """Drop what is too old; amortised constant, because knocks are in the order of their time."""
        while self._knocks:
            oldest = next(iter(self._knocks))
            if now - self._knocks[oldest].at <= HELLO_WAIT_S:
                return
            self._drop(oldest)

    def _drop(self, flow: bytes) -> None:
        knock = self._knocks.pop(flow)
        neighbours = self._by_prefix[knock.prefix]
        del neighbours[flow]
        if not neighbours:
            del self._by_prefix[knock.prefix]

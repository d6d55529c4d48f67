# SPDX-License-Identifier: EUPL-1.2
"""From a control request's path and body to what the reflector answers and must write down first.

Between HTTP and the session machines, so that everything a stranger can send is decided without a socket.
Spec: spec/protocol.md, section "Control channel".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from probe.protocol.accounts import Refusal, StillRunning, refuse
from probe.protocol.booking import Booking
from probe.protocol.reflector_role import ReflectorSession
from probe.protocol.session import decode_message, encode_message
from probe.wire.codec import WireError
from probe.wire.messages import Endpoint, PairCommit, PairFinish, PairReveal, Problem, SessionEnd, SessionRequest
from probe.wire.records import Origin, Started

_SESSION: Final = re.compile(
    r"/v1/sessions/(?P<session>[0-9a-f]{32})/(?:(?P<close>close)|pairs(?:/(?P<pair>[1-9][0-9]{0,2})/(?P<verb>reveal|finish))?)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRequest:
    """One request on the control channel."""

    method: str
    path: str
    body: bytes
    token: str
    """From `Authorization: Bearer`; empty where there is none."""
    prefix: str
    """Opaque: where the request comes from, for quotas."""
    origin: Origin
    """Of the control connection, until there is a data connection."""
    endpoints: tuple[Endpoint, ...]
    """The pool, as seen from where the request arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What to answer. `started` and the receipt of `ended` MUST be on disk before it is sent."""

    status: int
    body: bytes
    retry_after_s: int | None = None
    error: str = ""
    """The problem's code, where it is a refusal."""
    session: ReflectorSession | None = None
    started: Started | None = None
    ended: ReflectorSession | None = None
    wants_receipt: bool = False
    """The body is the sealed receipt of `ended`, which only the shell can sign."""


def refusal_answer(refusal: Refusal, ended: ReflectorSession | None = None) -> Answer:
    """A refusal as an answer."""
    return Answer(
        status=refusal.status,
        body=encode_message(refusal.problem),
        retry_after_s=refusal.retry_after_s,
        error=refusal.problem.error,
        ended=ended,
    )


def malformed(error: WireError) -> Answer:
    """The answer to a body that cannot be read."""
    status = 413 if error.reason == "too_large" else 400
    problem = Problem(error=error.reason, detail=str(error)[:512], path=error.path[:256])
    return Answer(status=status, body=encode_message(problem), error=error.reason)


def answer(booking: Booking, request: ControlRequest, now_ms: int, *, force: bool = False) -> Answer | StillRunning:
    """Decide one request. `StillRunning`: end these data connections first, then ask again (`force` at the last)."""
    try:
        return _answer(booking, request, now_ms, force=force)
    except WireError as error:
        return malformed(error)


def _answer(booking: Booking, request: ControlRequest, now_ms: int, *, force: bool) -> Answer | StillRunning:
    if request.path == "/v1/sessions":
        return _refuse_method(request) or _open(booking, request, now_ms)
    match = _SESSION.fullmatch(request.path)
    if match is None:
        return refusal_answer(refuse(404, "not_found", "there is nothing under this path"))
    wrong_method = _refuse_method(request)
    if wrong_method is not None:
        return wrong_method
    session = booking.find(match["session"], request.token, now_ms)
    if isinstance(session, Refusal):
        return refusal_answer(session)
    return _in_session(booking, session, match, request.body, now_ms, force=force)


def _in_session(
    booking: Booking, session: ReflectorSession, match: re.Match[str], body: bytes, now_ms: int, *, force: bool
) -> Answer | StillRunning:
    if match["close"]:
        decode_message(SessionEnd, body)
        booking.end(session, "closed", now_ms)
        return Answer(status=200, body=b"", session=session, ended=session, wants_receipt=True)
    if match["verb"] is None:
        return _commit(booking, session, decode_message(PairCommit, body), now_ms)
    number = int(match["pair"])
    if match["verb"] == "reveal":
        result: Any = booking.reveal(session, number, decode_message(PairReveal, body), now_ms)
    else:
        result = session.finish(number, decode_message(PairFinish, body), now_ms, force=force)
    if isinstance(result, StillRunning):
        return result
    if isinstance(result, Refusal):
        return refusal_answer(result, ended=session if session.receipt is not None else None)
    return Answer(status=200, body=encode_message(result), session=session)


def _refuse_method(request: ControlRequest) -> Answer | None:
    if request.method == "POST":
        return None
    return refusal_answer(refuse(405, "method_not_allowed", "this path takes POST"))


def _open(booking: Booking, request: ControlRequest, now_ms: int) -> Answer:
    refusal = booking.refuse_more(request.prefix, now_ms)
    if refusal is not None:
        return refusal_answer(refusal)  # its body is not even parsed
    grant = booking.open(
        decode_message(SessionRequest, request.body),
        prefix=request.prefix,
        origin=request.origin,
        endpoints=request.endpoints,
        now_ms=now_ms,
    )
    if isinstance(grant, Refusal):
        return refusal_answer(grant)
    return Answer(status=201, body=encode_message(grant))


def _commit(booking: Booking, session: ReflectorSession, message: PairCommit, now_ms: int) -> Answer:
    result = booking.commit(session, message, now_ms)
    if isinstance(result, Refusal):
        return refusal_answer(result)
    nonce, started = result
    return Answer(status=200, body=encode_message(nonce), session=session, started=started)

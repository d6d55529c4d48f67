# SPDX-License-Identifier: EUPL-1.2
"""One question to a collector: its answer, or why there is none, as data.

Whatever comes back is a stranger's: its size and time are limited, redirects are not followed, and no exception of the
network's leaves this module. Spec: spec/enrolment.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from probe.netio.control import Url, open_https
from probe.netio.dial import Dialer, WrongCertificate
from probe.netio.http import HttpError
from probe.wire.codec import WireError, loads
from probe.wire.failure import Failure, classify
from probe.wire.limits import MAX_MESSAGE_BYTES
from probe.wire.scrub import scrub

TIMEOUT_S: Final = 30.0
"""For the whole answer, however slowly it drips."""
_LATER: Final = frozenset({408, 425, 429})
"""Statuses besides 5xx after which the same question may be answered."""
_MOST_WORDS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a collector said. `failure` is set where asking again later may help."""

    status: int = 0
    plain: Mapping[str, Any] = field(default_factory=dict)
    """The JSON object of the body; empty where it was none."""
    failure: Failure | None = None
    error: str = ""
    """A refusal's stable code (RFC 9457's extension member `error`)."""
    detail: str = ""
    """One sentence for people: short, one line, without addresses."""
    retry_after_s: int | None = None


def ask(
    url: Url,
    path: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    most: int = MAX_MESSAGE_BYTES,
    timeout_s: float = TIMEOUT_S,
    dialer: Dialer | None = None,
) -> Answer:
    """GET `path` below the collector's address, or POST a JSON body to it. Never raises for what a peer does."""
    sent = {"Content-Type": "application/json"} if body is not None else {}
    try:
        connection = open_https(dialer or Dialer(), url)
        try:
            method = "GET" if body is None else "POST"
            answer = connection.request(
                method, url.path + path, body=body, headers=sent | dict(headers or {}), timeout_s=timeout_s, most=most
            )
        finally:
            connection.close()
    except WrongCertificate as error:
        return Answer(failure="tls_wrong_certificate", detail=f"the collector is not who it should be: {error}")
    except HttpError as error:
        return Answer(failure="http_error", detail=f"the collector's answer cannot be read ({words(error)})")
    except (OSError, EOFError) as error:
        failure = classify(error, during="control")
        return Answer(failure=failure, detail=f"the collector cannot be reached ({failure.replace('_', ' ')})")
    return read_answer(answer.status, answer.body, most, answer.retry_after_s)


def read_answer(status: int, body: bytes, most: int = MAX_MESSAGE_BYTES, retry_after_s: int | None = None) -> Answer:
    """What a status and a body mean; pure, for whatever bytes."""
    plain: dict[str, Any] = {}
    try:
        found = loads(body, longest=most) if body else {}
        plain = found if isinstance(found, dict) else {}
    except WireError:
        pass
    if status in {200, 201}:
        if plain:
            return Answer(status=status, plain=plain)
        return Answer(status=status, failure="http_error", detail="the collector's answer cannot be read")
    if status == 304:
        return Answer(status=status)
    error = words(plain.get("error", ""), 64)
    if status in _LATER or status >= 500:
        detail = f"the collector asks to come back later ({status}{' ' + error if error else ''})"
        return Answer(status=status, failure="http_error", error=error, detail=detail, retry_after_s=retry_after_s)
    if status < 400:
        detail = f"the collector sends us elsewhere ({status}), which is not followed: use its own address"
        return Answer(status=status, failure="http_error", error="", detail=detail)
    told = words(plain.get("detail", ""))
    detail = f"the collector refuses ({error or status}){': ' + told if told else ''}"
    return Answer(status=status, plain=plain, error=error or f"status_{status}", detail=detail)


def words(value: Any, most: int = _MOST_WORDS) -> str:
    """A stranger's text in one of our sentences: one line, short, without addresses; empty where it is no text."""
    if isinstance(value, Exception):
        value = str(value)
    if not isinstance(value, str):
        return ""
    # What does not print could turn the rest of a line around (Unicode, bidirectional controls).
    line = "".join(letter if letter.isprintable() else " " for letter in value[: most * 4])
    return scrub(line)[:most].strip()

# SPDX-License-Identifier: EUPL-1.2
"""Hands signed records to a collector, which acknowledges what it has on disk.

Uploading twice is harmless: a record has an id. A probe's own address is used for nothing at the collector.
Spec: spec/api.md, section "Uploads"; spec/probe.md, section "Uploads".
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from probe.backoff import retry_after_ms
from probe.netio.control import Url, UrlError, is_house_name, open_https, parse_url
from probe.netio.dial import Dialer, WrongCertificate
from probe.netio.http import HttpError, Response
from probe.wire.codec import WireError, loads
from probe.wire.envelope import Envelope, to_line
from probe.wire.failure import Failure, classify
from probe.wire.limits import MAX_BODY_BYTES

_TIMEOUT_S: Final = 30.0
_GZIP: Final = 16 + zlib.MAX_WBITS
_LATER: Final = frozenset({408, 425, 429})
"""Statuses besides 5xx after which the same upload may succeed."""
_FOR_GOOD: Final = re.compile(
    "missing|wrong_type|out_of_range|too_long|bad_pattern|not_allowed|not_an_object|too_deep|duplicate_key|not_finite|"
    "number_too_large|bad_base64|bad_key|unknown_version|unknown_type|wrong_door|future_dated|too_old|"
    "ends_before_start|duplicate_pair|bad_signature|conflict|session_measured|too_large|too_many|address"
)
"""Refusals of a whole body that speak of the records in it. What else is refused is the fault of somebody between:
a gateway that answers 403 for an hour must not cost a spool. Refusals of single records may have any code."""
_CODE: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_ID: Final = re.compile(r"[0-9a-f]{32}")

Fate = Literal["kept", "refused", "later"]
"""The collector has it on disk; will never take it; may take it later."""


@dataclass(slots=True)
class Uploaded:
    """What became of an upload."""

    accepted: int = 0
    duplicates: int = 0
    rejected: list[str] = field(default_factory=list)
    """Stable codes: these will never be taken."""
    failure: Failure | None = None
    """Why it should be tried again later; None where every record was answered for."""
    detail: str = ""
    fates: tuple[Fate, ...] = ()
    """Of each record, in the order sent; empty where there was no answer to each."""
    retry_after_ms: int | None = None
    sent_bytes: int = 0
    """Of the compressed body."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to send again."""
        return self.failure is None


def collector_url(url: str) -> Url:
    """Where to upload. Plain HTTP is for this machine and its house alone. Raises UrlError."""
    parsed = parse_url(url, schemes=("https", "http"))
    if parsed.scheme == "http" and not is_house_name(parsed.host):
        raise UrlError(f"{url!r} would travel unencrypted; use https")
    return parsed


def upload(
    url: Url, envelopes: list[Envelope], *, door: str = "measurements", dialer: Dialer | None = None
) -> Uploaded:
    """Send records to `/v1/measurements` or `/v1/receipts`. A network failure is in the answer."""
    done = Uploaded()
    body = _gzip(b'{"envelopes":[' + b",".join(to_line(envelope)[:-1] for envelope in envelopes) + b"]}")
    done.sent_bytes = len(body)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    try:
        connection = open_https(dialer or Dialer(), url)
        try:
            answer = connection.request(
                "POST", f"{url.path}/v1/{door}", body=body, headers=headers, timeout_s=_TIMEOUT_S, most=1 << 20
            )
        finally:
            connection.close()
    except WrongCertificate as error:
        done.failure, done.detail = "tls_wrong_certificate", str(error)
    except HttpError as error:
        done.failure, done.detail = "http_error", str(error)
    except (OSError, EOFError) as error:
        done.failure = classify(error, during="control")
        done.detail = done.failure.replace("_", " ")
    else:
        _take(done, answer, envelopes)
    return done


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
    return packer.compress(body) + packer.flush()


def _take(done: Uploaded, answer: Response, sent: Sequence[Envelope] | None = None) -> None:
    """Read an answer: a fate for each record, or a failure under which all of them are kept."""
    plain = _object(answer.body)
    if answer.status not in {200, 201}:
        _take_refusal(done, answer, plain)
        return
    results = plain.get("results", [plain])
    if not isinstance(results, list) or (sent is not None and not _fits(results, sent)):
        done.failure, done.detail = "http_error", "the collector's answer cannot be read"
        return
    done.fates = tuple(_take_result(done, result if isinstance(result, dict) else {}) for result in results)
    if not done.fates:
        done.failure, done.detail = "http_error", "the collector's answer cannot be read"


def _fits(results: list[Any], sent: Sequence[Envelope]) -> bool:
    """Whether these are answers to what was sent: as many, and no record's id in another one's place."""
    if len(results) != len(sent):
        return False
    for result, envelope in zip(results, sent, strict=True):
        told = result.get("id") if isinstance(result, dict) else None
        if isinstance(told, str) and _ID.fullmatch(told) and told.encode() not in envelope.payload:
            return False
    return True


def _take_refusal(done: Uploaded, answer: Response, plain: dict[str, Any]) -> None:
    code = plain.get("error")
    error = code if isinstance(code, str) and _CODE.fullmatch(code) else f"status_{answer.status}"
    done.detail = f"the collector answered {answer.status} ({error})"
    if _FOR_GOOD.fullmatch(error) and 400 <= answer.status < 500 and answer.status not in _LATER:
        done.rejected.append(error)
    else:
        done.failure = "http_error"
        done.retry_after_ms = retry_after_ms(answer.headers, time.time_ns() // 1_000_000)


def _take_result(done: Uploaded, result: dict[str, Any]) -> Fate:
    status, http = result.get("status"), result.get("http")
    if status == "accepted":
        done.accepted += 1
        return "kept"
    if status == "duplicate":
        done.duplicates += 1
        return "kept"
    done.detail = str(result.get("detail", ""))[:256]
    if status == "rejected" and not (isinstance(http, int) and (http in _LATER or http >= 500)):
        reason = result.get("reason")
        done.rejected.append(reason if isinstance(reason, str) and _CODE.fullmatch(reason) else "unknown")
        return "refused"
    done.failure = "http_error"
    return "later"


def _object(body: bytes) -> dict[str, Any]:
    try:
        plain = loads(body, longest=MAX_BODY_BYTES)
    except WireError:
        return {}
    return plain if isinstance(plain, dict) else {}

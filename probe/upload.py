# SPDX-License-Identifier: EUPL-1.2
"""Hands signed records to a collector, which acknowledges what it has on disk.

Uploading twice is harmless: a record has an id. A probe's own address is used for nothing at the collector.
Spec: spec/api.md, section "Uploads".
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any, Final

from probe.netio.control import Url, UrlError, is_house_name, open_https, parse_url
from probe.netio.dial import Dialer, WrongCertificate
from probe.netio.http import HttpError, Response
from probe.wire.codec import WireError, dumps, loads
from probe.wire.envelope import Envelope, to_json
from probe.wire.failure import Failure, classify
from probe.wire.limits import MAX_BODY_BYTES

_TIMEOUT_S: Final = 30.0
_GZIP: Final = 16 + zlib.MAX_WBITS
_LATER: Final = frozenset({408, 425, 429})
"""Statuses besides 5xx after which the same upload may succeed."""


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
    body = _gzip(dumps({"envelopes": [to_json(envelope) for envelope in envelopes]}))
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
        _take(done, answer)
    return done


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
    return packer.compress(body) + packer.flush()


def _take(done: Uploaded, answer: Response) -> None:
    plain = _object(answer.body)
    if answer.status not in {200, 201}:
        error = str(plain.get("error", f"status_{answer.status}"))[:64]
        done.detail = f"the collector answered {answer.status} ({error})"
        if answer.status in _LATER or answer.status >= 500 or answer.status < 400:
            done.failure = "http_error"
        else:
            done.rejected.append(error)
        return
    results = plain.get("results", [plain])
    for result in results if isinstance(results, list) else []:
        status = result.get("status") if isinstance(result, dict) else None
        if status == "accepted":
            done.accepted += 1
        elif status == "duplicate":
            done.duplicates += 1
        elif status == "rejected":
            _take_rejected(done, result)
    if not done.accepted + done.duplicates + len(done.rejected) and done.failure is None:
        done.failure, done.detail = "http_error", "the collector's answer cannot be read"


def _take_rejected(done: Uploaded, result: dict[str, Any]) -> None:
    status = result.get("http")
    if isinstance(status, int) and (status in _LATER or status >= 500):
        done.failure = "http_error"
    else:
        done.rejected.append(str(result.get("reason", "unknown"))[:64])
    done.detail = str(result.get("detail", ""))[:256]


def _object(body: bytes) -> dict[str, Any]:
    try:
        plain = loads(body, longest=MAX_BODY_BYTES)
    except WireError:
        return {}
    return plain if isinstance(plain, dict) else {}

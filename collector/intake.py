# SPDX-License-Identifier: EUPL-1.2
"""Bytes from strangers become verified envelopes, or a rejection with a reason that a machine can read.

Pure: no clock, no store, no network. Nothing is repaired and nothing is encoded again: what is kept are the bytes
as they were signed. Spec: spec/api.md, section "Uploads".
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from collector.store.base import EnvelopeRow, Kind
from probe.wire.codec import WireError, from_dict, loads
from probe.wire.envelope import Envelope, from_json
from probe.wire.limits import MAX_BATCH, MAX_BODY_BYTES, MAX_ENVELOPE_BYTES
from probe.wire.records import RECORD_TYPES, VERSION, Measurement, Receipt, Started
from probe.wire.scrub import address_path, scrub

Door = Literal["measurements", "receipts"]
Uploaded = Measurement | Receipt | Started
DOORS: Final[dict[Door, dict[str, type[Uploaded]]]] = {
    "measurements": {"measurement": Measurement},
    "receipts": {"receipt": Receipt, "started": Started},
}
MAX_AHEAD_MS: Final = 10 * 60 * 1000
"""A record may be so far ahead of the collector's clock."""
MAX_AGE_MS: Final = 90 * 86_400_000
"""And so old: a spool is sent within days, an archive is imported, not uploaded."""

_STATUS: Final = {
    "bad_signature": 401,
    "untrusted_reflector": 403,
    "too_large": 413,
    "too_many": 413,
    "unsupported_encoding": 415,
    "address": 422,
}
"""Every other reason is 400."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why something was refused: HTTP status, stable code, a sentence, the path of the field."""

    status: int
    reason: str
    detail: str = ""
    path: str = ""
    id: str | None = None
    kind: Kind | None = None
    """Id and type, as far as they could be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A body taken apart: plain JSON values of envelopes, or the reason why one of the lines is none."""

    single: bool
    items: tuple[Any | Rejection, ...]


def refused(error: WireError) -> Rejection:
    """A codec's complaint as an answer."""
    # A field's name is the sender's text: it is shown to the sender alone, and still without addresses.
    return Rejection(
        status=_STATUS.get(error.reason, 400),
        reason=error.reason,
        detail=scrub(error.detail)[:256],
        path=scrub(error.path)[:256],
    )


def inflate(raw: bytes, *, longest: int = MAX_BODY_BYTES) -> bytes:
    """Undo gzip, never producing more than `longest` bytes. Raises WireError bad_gzip or too_large."""
    stream = zlib.decompressobj(wbits=31)
    try:
        found = stream.decompress(raw, longest + 1)
    except zlib.error:
        raise WireError("bad_gzip") from None
    if len(found) > longest:
        raise WireError("too_large", detail=f"more than {longest} bytes after decompression")
    if not stream.eof or stream.unused_data:
        raise WireError("bad_gzip", detail="truncated, or followed by something else")
    return found


def take_apart(
    raw: bytes, *, content_type: str, encoding: str = "", longest: int = MAX_BODY_BYTES
) -> Upload | Rejection:
    """Read an upload's body: one envelope, `{"envelopes": [...]}`, or JSON lines; plain or gzip."""
    try:
        if encoding == "gzip":
            raw = inflate(raw, longest=longest)
        elif encoding not in ("", "identity"):
            raise WireError("unsupported_encoding", detail="send it plain or with gzip")
        if len(raw) > longest:
            raise WireError("too_large", detail=f"at most {longest} bytes")
        if content_type == "application/json":
            return _from_object(loads(raw, longest=longest))
        if content_type == "application/x-ndjson":
            return _limited(tuple(_lines(raw)), single=False)
    except WireError as error:
        return refused(error)
    return Rejection(
        status=415, reason="unsupported_type", detail="send application/json or, for JSON lines, application/x-ndjson"
    )


def _from_object(value: Any) -> Upload | Rejection:
    if not isinstance(value, dict) or "envelopes" not in value:
        return Upload(single=True, items=(value,))
    listed = value["envelopes"]
    if not isinstance(listed, list):
        raise WireError("wrong_type", "envelopes", "expected a list")
    return _limited(tuple(listed), single=False)


def _lines(raw: bytes) -> Iterator[Any | Rejection]:
    for count, line in enumerate(part for part in raw.split(b"\n") if part.strip()):
        if count > MAX_BATCH:  # enough to know that there are too many
            return
        try:
            yield loads(line, longest=MAX_ENVELOPE_BYTES)
        except WireError as error:
            yield refused(error)


def _limited(items: tuple[Any | Rejection, ...], *, single: bool) -> Upload:
    if not items:
        raise WireError("empty", detail="there is no envelope in it")
    if len(items) > MAX_BATCH:
        raise WireError("too_many", detail=f"at most {MAX_BATCH} envelopes in one upload")
    return Upload(single=single, items=items)


def admit(value: Any | Rejection, *, door: Door, trusted: frozenset[str], now_ms: int) -> EnvelopeRow | Rejection:
    """Verify one envelope; `trusted` are the key ids of reflectors, `now_ms` the collector's clock."""
    if isinstance(value, Rejection):
        return value
    record: Uploaded | None = None
    try:
        envelope = from_json(value)
        if not envelope.is_valid():
            raise WireError("bad_signature", "sig")
        plain = loads(envelope.payload)
        record = _record(plain, door)
        if not isinstance(record, Measurement) and envelope.key_id not in trusted:
            raise WireError("untrusted_reflector", "key", "its key is not in this collector's configuration")
        _check_times(record, now_ms)
        _check_pairs(record)
        found = address_path(plain) if may_hold_address(envelope.payload) else None
        if found is not None:
            raise WireError("address", found, "something here looks like a network address; none is ever stored")
    except WireError as error:
        rejection = refused(error)
        return rejection if record is None else replace(rejection, id=ident_of(record), kind=record.type)
    return _row(envelope, record, now_ms)


_HEX: Final = b"0123456789abcdefABCDEF"
_DASH_AS_COLON: Final = bytes.maketrans(b"-", b":")


def may_hold_address(payload: bytes) -> bool:
    """Whether a text somewhere in this JSON could look like a network address; where not, none does.

    Without escapes each text stands in the bytes as it is. An IPv4 address is four groups of digits around three
    dots, an IPv6 address has two colons with nothing but hexadecimal digits between them, and a MAC address five
    colons or dashes: without its digits the text shows these side by side. JSON's own colons follow a quote.
    """
    if b"\\" in payload or b"..." in payload.translate(None, b"0123456789"):
        return True
    rest = payload.translate(None, _HEX)
    return b"::" in rest or b":::::" in rest.translate(_DASH_AS_COLON)


def _record(plain: Any, door: Door) -> Uploaded:
    if not isinstance(plain, dict):
        raise WireError("not_an_object", "payload")
    kind = plain.get("type")
    if not isinstance(kind, str) or kind not in RECORD_TYPES:
        raise WireError("unknown_type", "type")
    if type(plain.get("v")) is not int or plain["v"] != VERSION:
        raise WireError("unknown_version", "v", f"this program reads version {VERSION}")
    cls = DOORS[door].get(kind)
    if cls is None:
        raise WireError("wrong_door", "type", f"a {kind} does not belong here")
    return from_dict(cls, plain)


def ident_of(record: Uploaded) -> str:
    """What makes a record one for its signer."""
    if isinstance(record, Measurement):
        return record.id
    return record.session if isinstance(record, Receipt) else f"{record.session}/{record.pair}"


def _times(record: Uploaded) -> Iterator[tuple[str, int]]:
    yield "started_ms", record.started_ms
    if isinstance(record, Started):
        return
    yield "ended_ms", record.ended_ms
    if isinstance(record, Receipt):
        for i, pair in enumerate(record.pairs):
            yield f"pairs[{i}].started_ms", pair.started_ms
            for j, segment in enumerate(pair.segments):
                if segment.started_ms is not None:
                    yield f"pairs[{i}].segments[{j}].started_ms", segment.started_ms


def _check_times(record: Uploaded, now_ms: int) -> None:
    for path, at_ms in _times(record):
        if at_ms > now_ms + MAX_AHEAD_MS:
            raise WireError("future_dated", path, "more than 10 minutes ahead of this collector's clock")
        if at_ms < now_ms - MAX_AGE_MS:
            raise WireError("too_old", path, "more than 90 days old")
    if not isinstance(record, Started) and record.ended_ms < record.started_ms:
        raise WireError("ends_before_start", "ended_ms")


def _check_pairs(record: Uploaded) -> None:
    if isinstance(record, Started):
        return
    numbers = [pair.pair for pair in record.pairs]
    if len(set(numbers)) != len(numbers):
        raise WireError("duplicate_pair", "pairs")


def _row(envelope: Envelope, record: Uploaded, now_ms: int) -> EnvelopeRow:
    kind: Kind = record.type
    return EnvelopeRow(
        kind=kind,
        ident=ident_of(record),
        signer=envelope.key,
        digest=hashlib.sha256(envelope.payload).digest(),
        session=record.session,
        probe=envelope.key_id if isinstance(record, Measurement) else record.probe,
        reflector=record.reflector if isinstance(record, Measurement) else envelope.key_id,
        payload=envelope.payload,
        signature=envelope.signature,
        received_ms=now_ms,
    )

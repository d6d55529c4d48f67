# SPDX-License-Identifier: EUPL-1.2
"""A payload's bytes, the key that signed them, and the signature over exactly these bytes.

The bytes are what is kept and what is verified; nothing is ever encoded again. One envelope is one JSON line:
`{"evenlane":1,"key":KEY,"payload":BASE64URL,"sig":BASE64URL}`. Spec: spec/records.md, section "Envelope".
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, Final

from probe.wire.codec import KEY_ID, WireError, dumps, from_dict, loads, text, to_dict
from probe.wire.limits import MAX_ENVELOPE_BYTES, MAX_PAYLOAD_BYTES
from probe.wire.records import RECORD_TYPES, VERSION, Enrolment, Leave, Measurement, Plan, Receipt, Started
from probe.wire.signing import Signer, key_bytes, verify

Record = Measurement | Receipt | Started | Plan | Enrolment | Leave


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outer:
    evenlane: int
    key: Annotated[str, text(pattern=KEY_ID)]
    payload: Annotated[str, text(longest=MAX_ENVELOPE_BYTES, pattern=r"[A-Za-z0-9_-]+")]
    sig: Annotated[str, text(pattern=r"[A-Za-z0-9_-]{86}")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """Signed bytes. `payload` is raw; `key` is the signer's public key (32 bytes), `signature` 64 bytes."""

    payload: bytes
    key: bytes
    signature: bytes

    @property
    def key_id(self) -> str:
        """Public key in base64url without padding (43 characters)."""
        return encode(self.key)

    @property
    def digest(self) -> str:
        """SHA-256 of the payload, hex."""
        return hashlib.sha256(self.payload).hexdigest()

    def is_valid(self) -> bool:
        """Whether the signature is the key's over exactly the payload (RFC 8032)."""
        return verify(self.key, self.payload, self.signature)


def encode(raw: bytes) -> str:
    """base64url without padding (RFC 4648, section 5)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


_TO_STANDARD: Final = bytes.maketrans(b"-_+/=", b"+/!!!")


def decode(value: str, path: str) -> bytes:
    """Inverse of `encode`; raises WireError bad_base64, also for a non-canonical spelling."""
    whole = len(value) // 4 * 4
    head = _decode_groups(value[:whole])
    if head is not None:
        with contextlib.suppress(WireError):
            return head + _decode_with_care(value[whole:], path)
    return _decode_with_care(value, path)


def _decode_groups(value: str) -> bytes | None:
    """Whole groups of four characters, which have but one spelling; None where something else is among them."""
    try:
        return binascii.a2b_base64(value.encode("ascii").translate(_TO_STANDARD), strict_mode=True)
    except ValueError:
        return None


def _decode_with_care(value: str, path: str) -> bytes:
    try:
        raw = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise WireError("bad_base64", path) from None
    if encode(raw) != value:
        raise WireError("bad_base64", path, "not canonical")
    return raw


def seal(record: Record, signer: Signer) -> Envelope:
    """Encode a record once and sign these bytes."""
    payload = dumps(to_dict(record))
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise WireError("too_large", detail=f"{len(payload)} bytes, at most {MAX_PAYLOAD_BYTES}")
    return Envelope(payload=payload, key=signer.public_key, signature=signer.sign(payload))


def to_json(envelope: Envelope) -> dict[str, Any]:
    """The envelope as a JSON object."""
    return {
        "evenlane": VERSION,
        "key": envelope.key_id,
        "payload": encode(envelope.payload),
        "sig": encode(envelope.signature),
    }


def to_line(envelope: Envelope) -> bytes:
    """The envelope as one line of JSON, newline included."""
    return dumps(to_json(envelope)) + b"\n"


def from_json(value: Any) -> Envelope:
    """Read an envelope from plain JSON values; the signature is not checked yet.

    Raises WireError, also `unknown_version`.
    """
    outer = from_dict(_Outer, value)
    if outer.evenlane != VERSION:
        raise WireError("unknown_version", "evenlane", f"this program reads version {VERSION}")
    return Envelope(
        payload=decode(outer.payload, "payload"),
        key=key_bytes(outer.key),
        signature=decode(outer.sig, "sig"),
    )


def from_line(line: bytes) -> Envelope:
    """Read one line; the signature is not checked yet. Raises WireError."""
    return from_json(loads(line, longest=MAX_ENVELOPE_BYTES))


def open_record(envelope: Envelope) -> Record:
    """Verify the signature, then read the payload.

    Raises WireError: bad_signature, unknown_type, unknown_version, or what the codec finds.
    """
    if not envelope.is_valid():
        raise WireError("bad_signature", "sig")
    return read_payload(envelope.payload)


def read_payload(payload: bytes) -> Record:
    """Read a payload whose signature is already known to be good. Raises WireError."""
    value = loads(payload)
    if not isinstance(value, dict):
        raise WireError("not_an_object", "payload")
    kind = value.get("type")
    cls = RECORD_TYPES.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise WireError("unknown_type", "type")
    if value.get("v") != VERSION:
        raise WireError("unknown_version", "v", f"this program reads version {VERSION}")
    record: Record = from_dict(cls, value)
    return record

# SPDX-License-Identifier: EUPL-1.2
"""Who may take part, and who wants to be forgotten: what stands in such a wish, and what becomes of it.

Pure: the clock, what is known of the probe and the token it names are arguments. Spec: spec/enrolment.md.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from collector.intake import MAX_AHEAD_MS, Rejection, Upload, may_hold_address, refused, take_apart
from collector.members import Departed, Member, Token
from probe.wire.codec import WireError, from_dict, loads
from probe.wire.envelope import encode, from_json
from probe.wire.records import VERSION, Enrolment, Leave
from probe.wire.scrub import address_path

CONSENT: Final = "2026-11-23"
"""Version of the oldest text that still tells all of what happens to a volunteer's data."""
MAX_WISH_BYTES: Final = 64 * 1024
MAX_WISH_AGE_MS: Final = 24 * 3_600_000
"""An older wish may be somebody else's copy of it."""
Who = Literal["open", "token", "closed"]
Status = Literal["enrolled", "known"]

_KINDS: Final[dict[str, type[Enrolment] | type[Leave]]] = {"enrolment": Enrolment, "leave": Leave}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a probe signed, verified."""

    probe: str
    """Key id."""
    record: Enrolment | Leave


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of an enrolment: the entry, whether it is to be written, and the token with this use counted."""

    status: Status
    member: Member
    write: bool
    spent: Token | None = None


def read(raw: bytes, *, content_type: str, encoding: str, kind: str, own: str, now_ms: int) -> Wish | Rejection:
    """Verify one wish; `own` is the collector's key id, `now_ms` its clock."""
    upload = take_apart(raw, content_type=content_type, encoding=encoding, longest=MAX_WISH_BYTES)
    if not isinstance(upload, Upload):
        return upload
    if len(upload.items) != 1:
        return Rejection(status=413, reason="too_many", detail="one envelope at a time")
    item = upload.items[0]
    try:
        return item if isinstance(item, Rejection) else _verified(item, kind=kind, own=own, now_ms=now_ms)
    except WireError as error:
        return refused(error)


def _verified(value: Any, *, kind: str, own: str, now_ms: int) -> Wish:
    envelope = from_json(value)
    if not envelope.is_valid():
        raise WireError("bad_signature", "sig")
    plain = loads(envelope.payload)
    if not isinstance(plain, dict):
        raise WireError("not_an_object", "payload")
    if plain.get("type") != kind:
        raise WireError("wrong_door", "type", f"only an envelope of type {kind} belongs here")
    if type(plain.get("v")) is not int or plain["v"] != VERSION:
        raise WireError("unknown_version", "v", f"this program reads version {VERSION}")
    record = from_dict(_KINDS[kind], plain)
    if record.collector != own:
        raise WireError(
            "wrong_collector", "collector", "it names another collector's key; ask /v1/about for this one's"
        )
    if record.at_ms > now_ms + MAX_AHEAD_MS:
        raise WireError("future_dated", "at_ms", "more than 10 minutes ahead of this collector's clock (/v1/about)")
    if record.at_ms < now_ms - MAX_WISH_AGE_MS:
        raise WireError("too_old", "at_ms", "more than 24 hours old: sign a new one")
    found = address_path(plain) if may_hold_address(envelope.payload) else None
    if found is not None:
        raise WireError("address", found, "something here looks like a network address; none is ever stored")
    return Wish(probe=envelope.key_id, record=record)


def decide(
    wish: Wish, *, member: Member | None, departed: Departed | None, token: Token | None, who: Who, now_ms: int
) -> Decision | Rejection:
    """What becomes of an enrolment. `token` is the one whose id the wish names, if there is such a one."""
    record = wish.record
    if not isinstance(record, Enrolment):
        raise TypeError("only an enrolment can be decided on")
    if departed is not None and record.at_ms <= departed.at_ms:
        return Rejection(status=409, reason="left", detail="this probe has left since it signed this: sign a new one")
    if record.consent < CONSENT:
        return Rejection(
            status=409, reason="old_consent", detail=f"read and agree to the text of {CONSENT}: update evenlane"
        )
    vetted = member is not None and member.vetted_ms is not None
    spent: Token | None = None
    if record.token is not None and not vetted:
        reason = _against(record.token, token, now_ms)
        if reason or token is None:
            return Rejection(status=403, reason="bad_token", detail=reason, path="token")
        spent = replace(token, used=token.used + 1)
    if member is not None:
        return _again(member, record, spent, now_ms)
    return _closed(who, spent) or _new(wish.probe, record, spent, now_ms)


def _closed(who: Who, spent: Token | None) -> Rejection | None:
    if who == "closed":
        return Rejection(status=403, reason="closed", detail="this collector takes nobody new at present")
    if who == "token" and spent is None:
        return Rejection(
            status=403, reason="token_required", detail="this collector takes whoever has a token of its organisers"
        )
    return None


def _new(probe: str, record: Enrolment, spent: Token | None, now_ms: int) -> Decision:
    member = Member(
        probe=probe,
        at_ms=record.at_ms,
        enrolled_ms=now_ms,
        consent=record.consent,
        language=record.language,
        hotspot=record.hotspot,
        token=None if spent is None else spent.id,
        vetted_ms=None if spent is None else now_ms,
    )
    return Decision(status="enrolled", member=member, write=True, spent=spent)


def _again(member: Member, record: Enrolment, spent: Token | None, now_ms: int) -> Decision:
    """A probe that is known: the newest of what it signed counts, in whichever order it arrives."""
    after = member
    if record.at_ms > member.at_ms:
        after = replace(
            after,
            at_ms=record.at_ms,
            consent=record.consent,
            language=record.language,
            hotspot=record.hotspot,
        )
    if spent is not None:
        after = replace(after, token=spent.id, vetted_ms=now_ms)
    return Decision(status="known", member=after, write=after != member, spent=spent)


# Tokens

ID_CHARS: Final = 8
TOKEN_BYTES: Final = 36
NO_DIGEST: Final = bytes(32)


def new_token(label: str, *, drawn: bytes, uses: int, days: float | None, now_ms: int) -> tuple[str, Token]:
    """A token's text, which is shown once, and what is kept of it. `drawn`: TOKEN_BYTES random bytes."""
    ident, secret = drawn[: ID_CHARS // 2].hex(), encode(drawn[ID_CHARS // 2 :])
    return f"{ident}-{secret}", Token(
        id=ident,
        digest=hashlib.sha256(secret.encode()).digest(),
        label=label,
        uses=uses,
        created_ms=now_ms,
        expires_ms=None if days is None else now_ms + round(days * 86_400_000),
    )


def token_id(text: str) -> str:
    """The public part of a token."""
    return text[:ID_CHARS]


def _against(text: str, token: Token | None, now_ms: int) -> str:
    """What stands against a token; empty if nothing does. Only who has its secret learns why it is not good."""
    ident, _, secret = text.partition("-")
    digest = hashlib.sha256(secret.encode()).digest()
    # Compared also where there is no such token, so that time does not tell which ids there are.
    same = hmac.compare_digest(digest, NO_DIGEST if token is None else token.digest)
    if token is None or not same or ident != token.id:
        return "no such token: check it for typing mistakes"
    state = token.state(now_ms)
    return "" if state == "good" else f"this token is {state}: ask whoever gave it to you for another"


# Leaving


SUPERSEDED: Final = Rejection(
    status=409, reason="superseded", detail="this probe has enrolled since it signed this: sign a new one"
)


def superseded(wish: Wish, member: Member | None) -> bool:
    """Whether a leave was signed before the probe enrolled (again): then it is a copy of an older wish."""
    return member is not None and wish.record.at_ms < member.at_ms

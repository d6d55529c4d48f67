# SPDX-License-Identifier: EUPL-1.2
"""Who a collector says that it is, and whether one can join there at all: known before a volunteer is asked anything.

Its name and contact are a stranger's words until they are made fit to be shown. Spec: spec/enrolment.md, section "The
collector"; spec/volunteer.md, section "Consent".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from probe.ask import Answer, ask, words
from probe.consent import VERSION
from probe.netio.control import Url
from probe.netio.dial import Dialer
from probe.wire.codec import KEY_ID, WireError, bounded, from_dict, text
from probe.wire.limits import MAX_TIME_MS, MIN_TIME_MS
from probe.wire.signing import key_bytes

CLOCKS_DIFFER_MS: Final = 600_000
"""A record from a clock that is further off would be refused (spec/api.md, `future_dated`)."""
INVITED: Final = "ask its people for one and join with --token TOKEN"


class EnrolError(Exception):
    """Joining or leaving did not come about; the message is one sentence that says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a collector says of itself, made fit to be shown."""

    name: str
    contact: str
    key: str
    """Its key id: signs plans."""
    consent: str
    """Version of the consent text that it asks for at least."""
    time_ms: int
    """Its clock."""
    takes: Literal["open", "token", "closed"] = "open"
    """Whom it takes: anybody, whoever has a token, nobody new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _ToldAbout:
    v: Literal[1]
    key: Annotated[str, text(pattern=KEY_ID)]
    consent: Annotated[str, text(longest=32, pattern=r"[0-9]{4}-[0-9]{2}-[0-9]{2}")]
    time_ms: Annotated[int, bounded(low=MIN_TIME_MS, high=MAX_TIME_MS)]
    name: str = ""
    contact: str = ""
    enrolment: str = "open"


def about(url: Url, dialer: Dialer | None = None) -> About:
    """Ask a collector who it is. Raises EnrolError."""
    return read_about(ask(url, "/v1/about", dialer=dialer), url.authority)


def read_about(answer: Answer, authority: str) -> About:
    """What its answer says; pure. Raises EnrolError."""
    if answer.failure is not None:
        raise EnrolError(f"{answer.detail}: check the address {authority} and try again")
    try:
        if answer.status != 200:
            raise WireError("wrong_type", "", f"status {answer.status}")
        told = from_dict(_ToldAbout, dict(answer.plain))
        key_bytes(told.key)
    except WireError as error:
        raise EnrolError(f"{authority} is no collector that this program understands ({words(error)})") from None
    return About(
        name=words(told.name, 80) or authority,
        contact=words(told.contact, 160) or authority,
        key=told.key,
        consent=told.consent,
        time_ms=told.time_ms,
        takes="token" if told.enrolment == "token" else "closed" if told.enrolment == "closed" else "open",
    )


def check_about(found: About, *, expected_key: str | None, now_ms: int) -> None:
    """Whether one can join here at all. Raises EnrolError."""
    if expected_key is not None and found.key != expected_key:
        raise EnrolError(
            f"this is not the collector that you named: its key is {found.key}, not {expected_key}; "
            "ask its people for the right address and key"
        )
    if found.consent > VERSION:
        raise EnrolError(
            f"the collector asks for the consent text of {found.consent}, and this program has that of {VERSION}: "
            "update evenlane"
        )
    apart = abs(found.time_ms - now_ms)
    if apart > CLOCKS_DIFFER_MS:
        raise EnrolError(
            f"this device's clock and the collector's are {_span(apart)} apart: set the clock and try again"
        )


def _span(ms: int) -> str:
    minutes = ms // 60_000
    return f"{minutes} minutes" if minutes < 2880 else f"{minutes // 1440} days"


def check_taken(found: About, *, is_known: bool, token: str | None) -> None:
    """Whether this collector takes us, asked before the volunteer is. Raises EnrolError."""
    if is_known or found.takes == "open" or (found.takes == "token" and token is not None):
        return
    if found.takes == "token":
        raise EnrolError(f"{found.name} takes only volunteers with a token: {INVITED}")
    raise EnrolError(f"{found.name} takes nobody new at present; ask its people ({found.contact}) when it will")

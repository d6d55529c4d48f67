# SPDX-License-Identifier: EUPL-1.2
"""What the arms of one app look like in one session: names drawn, first bytes made, all of one length.

The three are exchangeable but for what the carrier compares: the app's name or first bytes in the first one,
neutral names or random bytes in the others. Spec: spec/profiles.md, sections "Neutral names" and "First bytes".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from probe.profiles import firstbytes, quic
from probe.profiles.schema import NAMED, BytesCarrier, NeutralPool, Profile
from probe.profiles.twins import twins
from probe.wire.records import Carrier

OPAQUE_LABELS: Final = ("opaque", "opaque-2")
"""Names in records of an arm that has no name on the wire: the control's, and the second one's in placebo pairs."""
ANNOUNCED: Final[tuple[Carrier, ...]] = ("stream", "quic", "datagram")
"""Carriers whose first bytes are made here and announced before the coin."""


LOAD_LIKE: Final = "media-files.example.com"
"""As long as this is the load's name where the arms have none."""


@dataclass(frozen=True, slots=True)
class Dressed:
    """One arm."""

    name: str
    """Its server name, or a label where the carrier has no names."""
    flight: bytes = b""
    answer: bytes = b""
    head: bytes = b""


@dataclass(frozen=True, slots=True)
class Arms:
    """The arms of one app in one session. All parts are equally long."""

    app: Dressed
    control: Dressed
    placebo: Dressed
    """A second control, which takes the app's place in a placebo pair."""
    load: str = ""
    """A neutral name that none of them has, for the load of a concurrent pair."""


def dress(profile: Profile, pool: NeutralPool, rng: Random, random_bytes: firstbytes.RandomBytes) -> Arms:
    """Draw the arms of one session. Both generators must be unpredictable. Raises ProfileError."""
    arms = _arms(profile, pool, rng, random_bytes)
    if profile.live is None:
        return arms
    taken = {arms.app.name, arms.control.name, arms.placebo.name}
    # As many as there are arms, and one more: one of them is none of theirs.
    like = arms.control.name if profile.carrier in NAMED else LOAD_LIKE
    return replace(arms, load=next(name for name in twins(like, pool, rng, count=4) if name not in taken))


def _arms(profile: Profile, pool: NeutralPool, rng: Random, random_bytes: firstbytes.RandomBytes) -> Arms:
    if profile.carrier in NAMED:
        app = rng.choice(profile.names)
        neutral, placebo = twins(app, pool, rng, count=2)
        names = (app, neutral, placebo)
        if profile.carrier != "quic":
            return _three([Dressed(name) for name in names])
        openings = quic.openings(rng, count=3)
        return _three(
            [_quic(profile, name, opening, random_bytes) for name, opening in zip(names, openings, strict=True)]
        )
    words = profile.bytes or BytesCarrier(flight=())
    shown = _make(words, profile.id, random_bytes)
    stream = profile.carrier == "stream"
    return _three([shown, *(_opaque(shown, label, random_bytes, stream=stream) for label in OPAQUE_LABELS)])


def _three(arms: Sequence[Dressed]) -> Arms:
    app, control, placebo = arms
    return Arms(app, control, placebo)


def _make(words: BytesCarrier, label: str, random_bytes: firstbytes.RandomBytes) -> Dressed:
    known: dict[str, int] = {}
    drawn: dict[str, bytes] = {}
    made = [
        firstbytes.make(firstbytes.read(part, known), drawn, random_bytes)
        for part in (words.flight, words.answer, words.head)
    ]
    return Dressed(label, *made)


def _opaque(like: Dressed, label: str, random_bytes: firstbytes.RandomBytes, *, stream: bool) -> Dressed:
    parts = (like.flight, like.answer, like.head)
    return Dressed(label, *(firstbytes.opaque(len(part), random_bytes, stream=stream) for part in parts))


def _quic(profile: Profile, name: str, opening: quic.Opening, random_bytes: firstbytes.RandomBytes) -> Dressed:
    connection = random_bytes(quic.CONNECTION_ID_BYTES)
    return Dressed(
        name,
        quic.initial(opening, profile.shape or "quic", name, alpn=profile.alpn, random_bytes=random_bytes),
        quic.answer(connection, random_bytes),
        quic.short_header(connection, random_bytes),
    )

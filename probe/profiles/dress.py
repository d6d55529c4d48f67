# SPDX-License-Identifier: EUPL-1.2
"""What the arms of one app look like in one session: names drawn, first bytes made, all of one length.

The three are exchangeable but for what the carrier compares: the app's name or first bytes in the first one,
neutral names or random bytes in the others. Spec: spec/profiles.md, sections "Neutral names" and "First bytes".
"""

from __future__ import annotations

from dataclasses import dataclass
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


def dress(profile: Profile, pool: NeutralPool, rng: Random, random_bytes: firstbytes.RandomBytes) -> Arms:
    """Draw the arms of one session. Both generators must be unpredictable. Raises ProfileError."""
    if profile.carrier in NAMED:
        app = rng.choice(profile.names)
        neutral, placebo = twins(app, pool, rng, count=2)
        names = (app, neutral, placebo)
        if profile.carrier != "quic":
            return Arms(*(Dressed(name) for name in names))
        openings = quic.openings(rng, count=3)
        return Arms(
            *(_quic(profile, name, opening, random_bytes) for name, opening in zip(names, openings, strict=True))
        )
    words = profile.bytes or BytesCarrier(flight=())
    shown = _make(words, profile.id, random_bytes)
    stream = profile.carrier == "stream"
    return Arms(shown, *(_opaque(shown, label, random_bytes, stream=stream) for label in OPAQUE_LABELS))


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

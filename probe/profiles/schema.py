# SPDX-License-Identifier: EUPL-1.2
"""App profiles as data: what a file may say, and the profiles that come of it.

A file (or a document that a plan delivers) describes one app and every carrier that it can be sent by; each of them
is a profile of its own: `youtube`, `youtube+hello`, `youtube+quic`. The digest stands in every pair's record, so
that a verdict can always be traced to the exact facts that were imitated. Spec: spec/profiles.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from probe.wire.codec import SLUG, bounded, items, text
from probe.wire.limits import (
    LEAST_PACKET_BYTES,
    LEAST_PACKET_INTERVAL_MS,
    MAX_NAME,
    MAX_PACE_MBPS,
    MAX_PACKET_BYTES,
    MAX_PACKET_INTERVAL_MS,
)
from probe.wire.records import Carrier, Design

NEUTRAL: Final = "neutral"
SUFFIXES: Final[dict[Carrier, str]] = {
    "tls": "+tls",
    "hello": "+hello",
    "quic": "+quic",
    "stream": "+tcp",
    "datagram": "+udp",
}
"""What stands behind an app's id for a carrier that is not the app's first one."""
NAMED: Final[tuple[Carrier, ...]] = ("tls", "hello", "quic")
"""Carriers whose arms differ in a name; the others' differ in their first bytes."""

Kind = Literal[
    "video", "music", "social", "messaging", "call_signalling", "call_media", "download", "file_sharing", "vpn", "game"
]
LIVE: Final = "+live"
"""What stands behind an app's id for the profile whose delay and loss are compared instead of its rate."""

_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME: Final = rf"(?:{_LABEL}\.){{2,}}[a-z]{{2,24}}"
_DOMAIN: Final = rf"{_LABEL}\.[a-z]{{2,24}}"
_ALPN: Final = r"[a-z0-9./-]+"


class ProfileError(ValueError):
    """A profile is missing or wrong; the message is one sentence that names the file and the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Titles:
    """What people read, in each language of the pages."""

    en: Annotated[str, text(longest=64)]
    nl: Annotated[str, text(longest=64)]
    fr: Annotated[str, text(longest=64)]
    de: Annotated[str, text(longest=64)]


_VARIANT_TITLES: Final[dict[Carrier, Titles]] = {
    "tls": Titles(en="over TLS", nl="via TLS", fr="sur TLS", de="über TLS"),
    "hello": Titles(en="as browsers do", nl="zoals browsers", fr="comme les navigateurs", de="wie Browser"),
    "quic": Titles(en="over QUIC", nl="via QUIC", fr="sur QUIC", de="über QUIC"),
    "stream": Titles(en="over TCP", nl="via TCP", fr="sur TCP", de="über TCP"),
    "datagram": Titles(en="over UDP", nl="via UDP", fr="sur UDP", de="über UDP"),
}


_LIVE_TITLES: Final = Titles(
    en="delay and loss", nl="vertraging en verlies", fr="délai et pertes", de="Verzögerung und Verlust"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedCarrier:
    """How an app is sent by a carrier whose arms differ in a name. What is absent is the app's own."""

    shape: Annotated[str | None, text(pattern=SLUG)] = None
    """A browser of shapes.toml; for `hello` and `quic`."""
    names: Annotated[tuple[str, ...], items(most=64, longest=MAX_NAME, pattern=_HOST_NAME)] = ()
    alpn: Annotated[tuple[str, ...], items(most=4, longest=16, pattern=_ALPN)] = ()
    ndpi: Annotated[str | None, text(longest=64)] = None
    sources: Annotated[tuple[str, ...], items(most=8, longest=200)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesCarrier:
    """How an app is sent by a carrier whose arms differ in the first bytes: words of probe/profiles/firstbytes.py."""

    flight: Annotated[tuple[str, ...], items(most=64, longest=2600)]
    """What the probe sends first."""
    answer: Annotated[tuple[str, ...], items(most=64, longest=1100)] = ()
    """What the reflector sends first."""
    head: Annotated[tuple[str, ...], items(most=16, longest=70)] = ()
    """What each later datagram begins with."""
    ndpi: Annotated[str | None, text(longest=64)] = None
    sources: Annotated[tuple[str, ...], items(most=8, longest=200)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Carriers:
    """Every carrier that an app can be sent by."""

    tls: NamedCarrier | None = None
    hello: NamedCarrier | None = None
    quic: NamedCarrier | None = None
    stream: BytesCarrier | None = None
    datagram: BytesCarrier | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The app's small regular packets, for concurrent pairs: what a call or a game sends while it lasts."""

    carrier: Carrier
    """Which of the app's carriers."""
    packet_bytes: Annotated[int, bounded(low=LEAST_PACKET_BYTES, high=MAX_PACKET_BYTES)]
    interval_ms: Annotated[int, bounded(low=LEAST_PACKET_INTERVAL_MS, high=MAX_PACKET_INTERVAL_MS)]
    sources: Annotated[tuple[str, ...], items(most=8, longest=200)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AppFile:
    """What a file of the library, or a document of a plan, says of one app."""

    id: Annotated[str, text(pattern=r"[a-z0-9][a-z0-9._-]{0,47}")]
    version: Annotated[int, bounded(low=1, high=9999)]
    """Rises with every change of what goes over the wire."""
    kind: Kind
    component: Annotated[str, text(longest=200)]
    """Which part of the application is imitated, and so what a finding is about."""
    title: Titles
    direction: Literal["down", "up"]
    """The direction in which the component mostly moves bytes."""
    pace_mbps: Annotated[float, bounded(low=0.01, high=MAX_PACE_MBPS)]
    """What one user of it typically takes."""
    sources: Annotated[tuple[str, ...], items(most=8, longest=200)]
    """Where these facts come from."""
    carrier: Carrier = "tls"
    """Which one the bare id means."""
    names: Annotated[tuple[str, ...], items(most=64, longest=MAX_NAME, pattern=_HOST_NAME)] = ()
    """Real host names of the component; one is drawn per session."""
    alpn: Annotated[tuple[str, ...], items(most=4, longest=16, pattern=_ALPN)] = ()
    ndpi: Annotated[str | None, text(longest=64)] = None
    """What nDPI calls such a flow; None where it does not know it."""
    carriers: Carriers = Carriers()
    live: Live | None = None
    digest: str = ""
    """SHA-256 of the content as canonical JSON; computed on reading."""

    def profiles(self) -> dict[str, Profile]:
        """Every profile that the file describes, by its id, the bare one first."""
        offered: list[Carrier] = [self.carrier]
        offered += [way for way in SUFFIXES if getattr(self.carriers, way) is not None and way != self.carrier]
        found = [_profile(self, way) for way in offered]
        found += [_live_profile(self, self.live)] if self.live is not None else []
        return {profile.id: profile for profile in found}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One component of one application by one carrier."""

    id: str
    app: str
    """The id of the file; several profiles may share it."""
    version: int
    kind: Kind
    component: str
    title: Titles
    carrier: Carrier
    names: tuple[str, ...]
    """Empty where the carrier has no names in it."""
    alpn: tuple[str, ...]
    shape: str | None
    """Which browser the ClientHello looks like; None where the probe's own TLS makes it or there is none."""
    bytes: BytesCarrier | None
    """The first bytes, where the arms differ in them."""
    direction: Literal["down", "up"]
    pace_mbps: float
    sources: tuple[str, ...]
    ndpi: str | None
    digest: str
    live: Live | None = None
    """Set where delay and loss are compared (concurrent pairs), None where rates are."""

    @property
    def design(self) -> Design:
        """How a pair's two arms share the time."""
        return "sequential" if self.live is None else "concurrent"

    @property
    def reference(self) -> str:
        """`id@version:hex16`, as it stands in records."""
        return f"{self.id}@{self.version}:{self.digest[:16]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NeutralPool:
    """What neutral names are made of: registered domains, and words for the labels before them."""

    id: Literal["neutral"]
    version: Annotated[int, bounded(low=1, high=9999)]
    title: Titles
    domains: Annotated[tuple[str, ...], items(most=128, longest=64, pattern=_DOMAIN)]
    words: Annotated[tuple[str, ...], items(most=1024, longest=16, pattern=r"[a-z]{2,16}")]
    sources: Annotated[tuple[str, ...], items(most=8, longest=200)]
    digest: str = ""

    @property
    def reference(self) -> str:
        """`neutral@version:hex16`."""
        return f"{self.id}@{self.version}:{self.digest[:16]}"


def _profile(file: AppFile, carrier: Carrier) -> Profile:
    special = getattr(file.carriers, carrier)
    named = special if isinstance(special, NamedCarrier) else NamedCarrier()
    first = carrier == file.carrier
    has_names = carrier in NAMED
    return Profile(
        id=file.id if first else file.id + SUFFIXES[carrier],
        app=file.id,
        version=file.version,
        kind=file.kind,
        component=file.component,
        title=file.title if first else _variant_title(file.title, carrier),
        carrier=carrier,
        names=(named.names or file.names) if has_names else (),
        alpn=(named.alpn or file.alpn) if has_names else (),
        shape=named.shape,
        bytes=special if isinstance(special, BytesCarrier) else None,
        direction=file.direction,
        pace_mbps=file.pace_mbps,
        sources=file.sources + (special.sources if special else ()),
        ndpi=(special.ndpi if special and special.ndpi else file.ndpi),
        digest=file.digest,
    )


def _live_profile(file: AppFile, live: Live) -> Profile:
    like = _profile(file, live.carrier)
    return dataclasses.replace(
        like,
        id=file.id + LIVE,
        title=_behind(file.title, _LIVE_TITLES),
        sources=like.sources + live.sources,
        live=live,
    )


def _variant_title(title: Titles, carrier: Carrier) -> Titles:
    return _behind(title, _VARIANT_TITLES[carrier])


def _behind(title: Titles, behind: Titles) -> Titles:
    return Titles(
        **{
            field.name: f"{getattr(title, field.name)}, {getattr(behind, field.name)}"
            for field in dataclasses.fields(Titles)
        }
    )

# SPDX-License-Identifier: EUPL-1.2
"""App profiles as data: what one component of an application looks like on the wire.

A profile is a TOML file in library/. Its digest stands in every pair's record, so that a verdict can always be
traced to the exact facts that were imitated. Spec: spec/profiles.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

from probe.wire.codec import SLUG, WireError, bounded, dumps, from_dict, items, text
from probe.wire.limits import MAX_NAME, MAX_PACE_MBPS

LIBRARY: Final = Path(__file__).with_name("library")
DEFAULT_APPS: Final = ("youtube", "instagram", "signal")
"""Measured where nobody names an app: one video, one social, one call-signalling component."""
NEUTRAL: Final = "neutral"

Kind = Literal["video", "social", "messaging", "call_signalling"]
T = TypeVar("T")

_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME: Final = rf"(?:{_LABEL}\.){{2,}}[a-z]{{2,24}}"
_DOMAIN: Final = rf"{_LABEL}\.[a-z]{{2,24}}"


class ProfileError(ValueError):
    """A profile is missing or wrong; the message is one sentence that names the file and the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Titles:
    """What people read, in each language of the pages."""

    en: Annotated[str, text(longest=64)]
    nl: Annotated[str, text(longest=64)]
    fr: Annotated[str, text(longest=64)]
    de: Annotated[str, text(longest=64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One component of one application."""

    id: Annotated[str, text(pattern=SLUG)]
    version: Annotated[int, bounded(low=1, high=9999)]
    """Rises with every change of what goes over the wire."""
    kind: Kind
    component: Annotated[str, text(longest=200)]
    """Which part of the application is imitated, and so what a finding is about."""
    title: Titles
    names: Annotated[tuple[str, ...], items(most=64, longest=MAX_NAME, pattern=_HOST_NAME)]
    """Real host names of the component; one is drawn per session."""
    alpn: Annotated[tuple[str, ...], items(most=4, longest=16, pattern=r"[a-z0-9./-]+")]
    direction: Literal["down", "up"]
    """The direction in which the component mostly moves bytes."""
    pace_mbps: Annotated[float, bounded(low=0.01, high=MAX_PACE_MBPS)]
    """What one user of it typically takes."""
    sources: Annotated[tuple[str, ...], items(most=8, longest=200)]
    """Where these facts come from."""
    ndpi: Annotated[str | None, text(longest=64)] = None
    """What nDPI calls a flow to these names; None where it does not know them."""
    digest: str = ""
    """SHA-256 of the file's content as canonical JSON; computed on loading."""

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


def available(library: Path = LIBRARY) -> tuple[str, ...]:
    """The ids of all app profiles, sorted."""
    return tuple(sorted(path.stem for path in library.glob("*.toml") if path.stem != NEUTRAL))


def load(app: str, library: Path = LIBRARY) -> Profile:
    """The profile of one app. Raises ProfileError."""
    known = available(library)
    if app not in known:
        raise ProfileError(f"there is no app profile {app!r}; known are {', '.join(known)}")
    path = library / f"{app}.toml"
    profile = parse(Profile, path.read_text(encoding="utf-8"), path.name)
    if profile.id != app:
        raise ProfileError(f"{path.name}: id: must equal the file's name, {app!r}")
    return profile


def load_neutral(library: Path = LIBRARY) -> NeutralPool:
    """The pool of neutral names. Raises ProfileError."""
    path = library / f"{NEUTRAL}.toml"
    return parse(NeutralPool, path.read_text(encoding="utf-8"), path.name)


def parse(cls: type[T], content: str, source: str) -> T:
    """Read a Profile or NeutralPool from TOML; each wrong key is named by its path. Raises ProfileError."""
    try:
        document = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{source}: not TOML: {error}") from None
    stray = _unknown_key(cls, document, "")
    if stray:
        raise ProfileError(f"{source}: {stray}: unknown key")
    for key, value in document.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ProfileError(f"{source}: {key}: must be a finite number")
    if "digest" in document:
        raise ProfileError(f"{source}: digest: is computed and cannot be set")
    try:
        record = from_dict(cls, document)
    except WireError as error:
        raise ProfileError(f"{source}: {error}") from None
    _refuse_empty_and_double(record, source)
    return dataclasses.replace(record, digest=hashlib.sha256(dumps(document)).hexdigest())  # type: ignore[type-var]


def _unknown_key(cls: type, document: dict[str, Any], path: str) -> str | None:
    # The wire's codec tolerates unknown fields on purpose; in a file written by hand they are typing errors.
    hints = get_type_hints(cls)
    for key, value in document.items():
        here = f"{path}.{key}" if path else key
        if key not in hints:
            return here
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            found = _unknown_key(hints[key], value, here)
            if found:
                return found
    return None


def _refuse_empty_and_double(record: Any, source: str) -> None:
    for name, hint in get_type_hints(type(record)).items():
        if get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis:
            values = getattr(record, name)
            if not values:
                raise ProfileError(f"{source}: {name}: must not be empty")
            if len(set(values)) != len(values):
                raise ProfileError(f"{source}: {name}: holds an item twice")

# SPDX-License-Identifier: EUPL-1.2
"""The app profiles there are: those that were installed, and those of a plan in their place.

A file of library/ describes one app and every carrier that it can be sent by; `load("youtube")`,
`load("youtube+quic")`. Spec: spec/profiles.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeVar

from probe.profiles.reading import document_of, parse, parse_document
from probe.profiles.schema import NEUTRAL, AppFile, NeutralPool, Profile, ProfileError
from probe.wire.records import PlannedProfile

__all__ = [
    "DEFAULT_APPS",
    "LIBRARY",
    "NEUTRAL",
    "AppFile",
    "NeutralPool",
    "Profile",
    "ProfileError",
    "Shelf",
    "available",
    "every",
    "load",
    "load_neutral",
    "parse",
    "parse_document",
]

LIBRARY: Final = Path(__file__).with_name("library")
F = TypeVar("F", AppFile, NeutralPool)

DEFAULT_APPS: Final = ("youtube", "instagram", "signal")
"""Measured where nobody names an app: one video, one social, one call-signalling component."""


class Shelf:
    """Installed profiles, with a plan's own before them."""

    def __init__(self, library: Path = LIBRARY, delivered: Iterable[PlannedProfile] = ()) -> None:
        """Raises ProfileError where a delivered profile is wrong, or older than the installed one."""
        self._library = library
        self._delivered: dict[str, AppFile | NeutralPool] = {}
        for planned in delivered:
            self._take(planned)

    def apps(self) -> tuple[str, ...]:
        """The ids of all apps, sorted: one for each file."""
        installed = {path.stem for path in self._library.glob("*.toml")}
        return tuple(sorted((installed | set(self._delivered)) - {NEUTRAL}))

    def every(self) -> tuple[str, ...]:
        """The ids of all profiles: each app's, and behind it those of its other carriers."""
        return tuple(profile for app in self.apps() for profile in self._file(app).profiles())

    def load(self, app: str) -> Profile:
        """One profile. Raises ProfileError."""
        base = app.partition("+")[0]
        known = self._file(base).profiles() if base in self.apps() else {}
        if app not in known:
            near = ", ".join(known or self.apps())
            raise ProfileError(f"there is no app profile {app!r}; known are {near}")
        return known[app]

    def neutral(self) -> NeutralPool:
        """The pool of neutral names. Raises ProfileError."""
        delivered = self._delivered.get(NEUTRAL)
        return delivered if isinstance(delivered, NeutralPool) else self._read(NeutralPool, NEUTRAL)

    def document(self, app: str) -> str:
        """An installed file as a plan delivers it (`PlannedProfile.document`). Raises ProfileError."""
        self.load(app) if app != NEUTRAL else self.neutral()
        path = self._library / f"{app.partition('+')[0]}.toml"
        return document_of(path.read_text(encoding="utf-8"), path.name)

    def _file(self, app: str) -> AppFile:
        delivered = self._delivered.get(app)
        if isinstance(delivered, AppFile):
            return delivered
        return self._read(AppFile, app)

    def _read(self, cls: type[F], name: str) -> F:
        path = self._library / f"{name}.toml"
        found = parse(cls, path.read_text(encoding="utf-8"), path.name)
        if found.id != name:
            raise ProfileError(f"{path.name}: id: must equal the file's name, {name!r}")
        return found

    def _take(self, planned: PlannedProfile) -> None:
        where = f"plan: profiles: {planned.id}"
        found: AppFile | NeutralPool
        if planned.id == NEUTRAL:
            found = parse_document(NeutralPool, planned.document, where)
        else:
            found = parse_document(AppFile, planned.document, where)
        if found.id != planned.id:
            raise ProfileError(f"{where}: id: the document is of {found.id!r}")
        if planned.id in self._delivered:
            raise ProfileError(f"{where}: is there twice")
        if (self._library / f"{planned.id}.toml").exists():
            installed = self.neutral() if planned.id == NEUTRAL else self._file(planned.id)
            if found.version < installed.version:
                raise ProfileError(f"{where}: version: {found.version} is older than the installed {installed.version}")
        self._delivered[planned.id] = found


def available(library: Path = LIBRARY) -> tuple[str, ...]:
    """The ids of all installed apps, sorted; `every` has their other carriers too."""
    return Shelf(library).apps()


def every(library: Path = LIBRARY) -> tuple[str, ...]:
    """The ids of all installed profiles, those of the apps' other carriers included."""
    return Shelf(library).every()


def load(app: str, library: Path = LIBRARY) -> Profile:
    """An installed profile. Raises ProfileError."""
    return Shelf(library).load(app)


def load_neutral(library: Path = LIBRARY) -> NeutralPool:
    """The installed pool of neutral names. Raises ProfileError."""
    return Shelf(library).neutral()

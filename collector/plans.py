# SPDX-License-Identifier: EUPL-1.2
"""Signed plans on disk, and which of them a probe is given: `plans/VERSION.jsonl` with `plans/VERSION.share` beside it.

Written by the command line while a collector runs, so every file appears whole, under its name, at once; a running
collector sees the new one at the next request. Spec: spec/enrolment.md, section "Plans".
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from collector.identity import Identity
from probe.wire.codec import WireError, dumps
from probe.wire.envelope import Envelope, from_line, open_record, seal, to_json, to_line
from probe.wire.limits import MAX_ENVELOPE_BYTES
from probe.wire.records import Plan

FOLDER: Final = "plans"
SETTLED_NS: Final = 2_000_000_000
"""A directory that changed less long ago may change again without another time stamp: it is read again."""
_NAME: Final = re.compile(r"([1-9][0-9]{0,15})\.jsonl")


class PlansError(Exception):
    """Plans cannot be read or written; the message is one sentence that says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelved:
    """A signed plan and how far it is rolled out."""

    plan: Plan
    envelope: Envelope
    share: float
    """Of the probes: 0 to 1."""
    withdrawn: bool = False

    @property
    def version(self) -> int:
        """The plan's."""
        return self.plan.version

    @property
    def tag(self) -> str:
        """SHA-256 of the payload in quotes: the entity tag (RFC 9110, section 8.8.3)."""
        return f'"{self.envelope.digest}"'

    @property
    def answer(self) -> bytes:
        """The body of `GET /v1/plan`."""
        return dumps({"envelope": to_json(self.envelope)})


def choose(shelved: Iterable[Shelved], identity: Identity, probe: str, now_ms: int) -> Shelved | None:
    """The newest plan that is rolled out to this probe and has not expired.

    Whether a probe belongs to the share is drawn once for key and version, so that it keeps its side, and nobody
    can find a key that is always among the first.
    """
    fitting = [
        one for one in shelved if one.plan.expires_ms > now_ms and identity.draw(str(one.version), probe) < one.share
    ]
    return max(fitting, key=lambda one: one.version, default=None)


class Shelf:
    """The plans in a data directory. Thread-safe for reading."""

    def __init__(self, data: Path, identity: Identity) -> None:
        self.folder = data / FOLDER
        self._identity = identity
        self._guard = threading.Lock()
        self._seen: tuple[int, int] | None = None
        """Time stamp of the directory when it was read, and whether it had settled by then."""
        self._shelved: tuple[Shelved, ...] = ()
        self.problems: tuple[str, ...] = ()
        """Files that are no plans of this collector, one sentence each."""

    def all(self) -> tuple[Shelved, ...]:
        """Every good plan, the oldest first; read again only where something may have changed."""
        with self._guard:
            try:
                changed_ns = self.folder.stat().st_mtime_ns
            except FileNotFoundError:
                self._seen, self._shelved, self.problems = None, (), ()
                return ()
            settled = int(time.time_ns() - changed_ns > SETTLED_NS)
            if self._seen != (changed_ns, 1):
                self._read()
                self._seen = (changed_ns, settled)
            return self._shelved

    def for_probe(self, probe: str, now_ms: int) -> Shelved | None:
        """The plan that a probe is given."""
        return choose(self.all(), self._identity, probe, now_ms)

    @property
    def newest(self) -> int:
        """The highest version that was ever signed here, also of a file that cannot be read; 0: none."""
        names = [_NAME.fullmatch(name) for name in os.listdir(self.folder)] if self.folder.is_dir() else []
        return max((int(name.group(1)) for name in names if name), default=0)

    def _read(self) -> None:
        found: list[Shelved] = []
        problems: list[str] = []
        for path in sorted(self.folder.iterdir()):
            name = _NAME.fullmatch(path.name)
            if name is None:
                continue
            try:
                found.append(self._one(path, int(name.group(1))))
            except (PlansError, WireError, OSError) as error:
                problems.append(f"{path.name} is left aside: {error}")
        self._shelved = tuple(sorted(found, key=lambda one: one.version))
        self.problems = tuple(problems)

    def _one(self, path: Path, version: int) -> Shelved:
        if path.stat().st_size > MAX_ENVELOPE_BYTES:
            raise PlansError("it is too large for a plan")
        envelope = from_line(path.read_bytes())
        record = open_record(envelope)
        if not isinstance(record, Plan) or record.version != version:
            raise PlansError(f"it does not hold plan {version}")
        if envelope.key_id != self._identity.key_id:
            raise PlansError("another key signed it, so probes would refuse it")
        share, withdrawn = _read_share(path.with_suffix(".share"))
        return Shelved(plan=record, envelope=envelope, share=share, withdrawn=withdrawn)

    # Writing: by the command line, one at a time

    def sign(self, plan: Plan, share: float) -> Shelved:
        """Sign a plan and roll it out to a share of the probes. Its version must be higher than all before."""
        with self._alone():
            return self._sign(plan, share)

    def _sign(self, plan: Plan, share: float) -> Shelved:
        if plan.version <= self.newest:
            raise PlansError(f"version {plan.version} is not higher than {self.newest}, the newest: probes refuse it")
        shelved = Shelved(plan=plan, envelope=seal(plan, self._identity.signer), share=share)
        # The share first: a plan without one would be nobody's.
        self._write_share(plan.version, share, withdrawn=False)
        _write(self.folder / f"{plan.version}.jsonl", to_line(shelved.envelope))
        return shelved

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two people who sign at once do so one after the other."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def known(self, version: int) -> Shelved:
        """One plan. Raises PlansError where there is no such one."""
        for one in self.all():
            if one.version == version:
                return one
        raise PlansError(f"there is no plan {version} in {self.folder}")

    def set_share(self, version: int, share: float) -> Shelved:
        """Roll a plan out further."""
        with self._alone():
            return self._set_share(version, share)

    def _set_share(self, version: int, share: float) -> Shelved:
        one = self.known(version)
        if one.withdrawn:
            raise PlansError(f"plan {version} was withdrawn: sign its content under a new version")
        if share < one.share:
            raise PlansError(
                f"plan {version} has a share of {one.share:g} already, and who has it goes back to no older one: "
                f"`plan withdraw {version}` gives them the former content"
            )
        self._write_share(version, share, withdrawn=False)
        return replace(one, share=share)

    def withdraw(self, version: int, now_ms: int) -> Shelved | None:
        """Give nobody this plan any more; the former content under a new version, rolled out to all.

        Versions only rise at the probes, so going back is going on. None where there is no former plan, or where a
        newer one is rolled out to all anyway.
        """
        with self._alone():
            return self._withdraw(version, now_ms)

    def _withdraw(self, version: int, now_ms: int) -> Shelved | None:
        bad = self.known(version)
        others = [one for one in self.all() if not one.withdrawn]
        covered = any(one.version > version and one.share >= 1 for one in others)
        former = former_of([one for one in others if one.version < version])
        self._write_share(version, 0.0, withdrawn=True)
        if covered or former is None or bad.withdrawn:
            return None
        valid_ms = former.plan.expires_ms - former.plan.issued_ms
        again = replace(former.plan, version=self.newest + 1, issued_ms=now_ms, expires_ms=now_ms + valid_ms)
        return self._sign(again, 1.0)

    def _write_share(self, version: int, share: float, *, withdrawn: bool) -> None:
        told = json.dumps({"share": share, "withdrawn": withdrawn}) + "\n"
        _write(self.folder / f"{version}.share", told.encode())


def former_of(older: Iterable[Shelved]) -> Shelved | None:
    """What held before a plan: the newest that all had, else the newest that some had."""
    return max(older, key=lambda one: (one.share >= 1, one.version), default=None)


def _read_share(path: Path) -> tuple[float, bool]:
    try:
        told: Any = json.loads(path.read_bytes())
        share, withdrawn = told["share"], told["withdrawn"]
    except (OSError, ValueError, KeyError, TypeError):
        raise PlansError(f"{path.name} beside it does not tell its share") from None
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise PlansError(f"{path.name} beside it has no share from 0 to 1")
    return float(share), withdrawn is True


def _write(path: Path, content: bytes) -> None:
    """Write beside and rename, durably."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

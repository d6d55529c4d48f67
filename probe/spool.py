# SPDX-License-Identifier: EUPL-1.2
"""Records that no collector has yet, in a bounded directory.

One file a session, written beside and renamed, so that a crash leaves whole files only. When it is full the
oldest goes: newer measurements say more about what is the case now. What is damaged is set aside, counted, and
holds up nobody. Spec: spec/probe.md, section "Spool"; spec/api.md, section "Uploads".
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from probe.files import FULL, read_object, write_small, write_whole
from probe.wire.codec import WireError
from probe.wire.envelope import Envelope, from_line, to_line

MOST_BYTES: Final = 8 * 1024 * 1024
"""Fits a router's RAM; about 400 sessions of nine pairs."""
MOST_BAD: Final = 3
MOST_BAD_BYTES: Final = 256 * 1024
"""So many damaged files are kept, and so much of each: enough to see what happened."""
_SUFFIX: Final = ".jsonl"
_NAME: Final = re.compile(r"([0-9]{1,16})-[A-Za-z0-9]{1,64}\.jsonl")
_STRAY: Final = re.compile(r"\..+\.([0-9]{1,10})\.tmp")


@dataclass(frozen=True, slots=True)
class Entry:
    """One session's records."""

    path: Path
    size: int

    @property
    def name(self) -> str:
        """Sequence number and session."""
        return self.path.name.removesuffix(_SUFFIX)

    @property
    def age(self) -> tuple[int, str]:
        """Sorts the oldest first."""
        return int(self.name.partition("-")[0]), self.name

    def envelopes(self) -> list[Envelope]:
        """The records; empty where the file is gone or cannot be read."""
        try:
            return _parse(self.path.read_bytes())
        except (OSError, WireError):
            return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of sessions that no collector got, since the directory was made."""

    dropped: int = 0
    """Had to make room for newer ones."""
    damaged: int = 0
    """Could not be read."""


class Spool:
    """The directory. Raises OSError where it cannot be written.

    `durable`: it is on a medium, and what was put survives a power cut. `older` are directories of earlier versions:
    what waits there is sent and makes room like the rest, and nothing new is put there.
    """

    def __init__(
        self, directory: Path, most_bytes: int = MOST_BYTES, *, durable: bool = True, older: tuple[Path, ...] = ()
    ) -> None:
        self.directory = directory
        self.most_bytes = most_bytes
        self.durable = durable
        self.older = older

    def put(self, sequence: int, session: str, envelopes: list[Envelope]) -> int:
        """Keep a session's records; returns how many older sessions had to go to make room.

        Where it raises, older sessions are still there: they go only where that makes room enough.
        """
        content = b"".join(to_line(envelope) for envelope in envelopes)
        if len(content) > self.most_bytes:
            raise OSError(errno.EFBIG, "the session's records are larger than the spool")
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sweep()
        path = self.directory / f"{sequence:012d}-{session}{_SUFFIX}"
        entries = self.entries()
        held, dropped = sum(entry.size for entry in entries), 0
        while entries and held + len(content) > self.most_bytes:
            held -= entries[0].size
            dropped += self._drop(entries.pop(0))
        while True:
            try:
                write_whole(path, content, durable=self.durable)
            except OSError as error:
                if error.errno not in FULL or not entries or not self._would_fit(len(content), entries):
                    raise
                dropped += self._drop(entries.pop(0))
            else:
                return dropped

    def entries(self) -> list[Entry]:
        """Oldest first. What a crash left half-written is not among them, nor what vanishes while one looks."""
        found = [entry for directory in (self.directory, *self.older) for entry in _listed(directory)]
        return sorted(found, key=lambda entry: entry.age)

    def take(self, entry: Entry) -> list[Envelope]:
        """A session's records. Empty where the file is gone; a damaged one is set aside and counted."""
        try:
            envelopes = _parse(entry.path.read_bytes()) if entry.size <= self.most_bytes else []
        except OSError:
            return []
        except WireError:
            envelopes = []
        if not envelopes:
            self._set_aside(entry)
        return envelopes

    def remove(self, entry: Entry) -> None:
        """Forget a session: a collector has it, or will never take it."""
        entry.path.unlink(missing_ok=True)

    def counts(self) -> Counts:
        """What was lost on the way; zeros where nothing is known."""
        try:
            found = read_object(self.directory / "counts.json") or {}
        except (OSError, ValueError):
            return Counts()
        told = {name: found.get(name) for name in ("dropped", "damaged")}
        return Counts(**{name: n for name, n in told.items() if type(n) is int and n >= 0})

    def _drop(self, entry: Entry) -> int:
        # Counted first: after a kill between the two the count is one too high rather than one too low.
        counts = replace(self.counts(), dropped=self.counts().dropped + 1)
        is_counted = self._count(counts)
        self.remove(entry)
        if not is_counted:
            self._count(counts)  # on a full disk there is room for it now
        return 1

    def _count(self, counts: Counts) -> bool:
        content = json.dumps(asdict(counts)).encode() + b"\n"
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_small(self.directory / "counts.json", content, durable=False)
        except OSError:
            return False  # nothing is given up for a count
        return True

    def _would_fit(self, needed: int, entries: list[Entry]) -> bool:
        """Whether the disk has room once all of `entries` are gone: where others fill it, dropping is in vain."""
        disk = os.statvfs(self.directory)
        block = disk.f_frsize or 4096
        ours = sum(-(-entry.size // block) * block for entry in entries if entry.path.parent == self.directory)
        return disk.f_bavail * block + ours >= -(-needed // block) * block

    def _sweep(self) -> None:
        """Take away what killed processes left half-written."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.directory):
                match = _STRAY.fullmatch(name)
                if match and not _is_alive(int(match[1])):
                    (self.directory / name).unlink(missing_ok=True)

    def _set_aside(self, entry: Entry) -> None:
        bad = entry.path.parent / "bad"
        try:
            bad.mkdir(parents=True, exist_ok=True, mode=0o700)
            target = bad / entry.path.name
            if entry.size > MOST_BAD_BYTES:
                os.truncate(entry.path, MOST_BAD_BYTES)
            entry.path.replace(target)
            others = sorted((path for path in bad.iterdir() if path != target), key=lambda path: path.name)
            for path in others[: len(others) - MOST_BAD + 1]:
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            return
        except OSError:
            self.remove(entry)  # no room to keep it: it must not be looked at for ever
        self._count(replace(self.counts(), damaged=self.counts().damaged + 1))


def _parse(content: bytes) -> list[Envelope]:
    """Every line an envelope. Raises WireError."""
    return [from_line(line) for line in content.splitlines() if line]


def _listed(directory: Path) -> list[Entry]:
    entries = []
    with contextlib.suppress(OSError), os.scandir(directory) as found:
        for one in found:
            if _NAME.fullmatch(one.name):
                with contextlib.suppress(OSError):
                    told = one.stat(follow_symlinks=False)
                    if stat.S_ISREG(told.st_mode):
                        entries.append(Entry(Path(one.path), told.st_size))
    return entries


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True

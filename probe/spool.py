# SPDX-License-Identifier: EUPL-1.2
"""Records that no collector has yet, in a bounded directory.

One file a session, written beside and renamed, so that a crash leaves whole files only. When it is full the
oldest goes: newer measurements say more about what is the case now. Spec: spec/api.md, section "Uploads".
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from probe.wire.codec import WireError
from probe.wire.envelope import Envelope, from_line, to_line

MOST_BYTES: Final = 8 * 1024 * 1024
"""Fits a router's RAM; about 400 sessions of nine pairs."""
_SUFFIX: Final = ".jsonl"


@dataclass(frozen=True, slots=True)
class Entry:
    """One session's records."""

    path: Path
    size: int

    @property
    def name(self) -> str:
        """Sequence number and session: sorts by age."""
        return self.path.name.removesuffix(_SUFFIX)

    def envelopes(self) -> list[Envelope]:
        """The records; empty where the file is gone or cannot be read."""
        try:
            return [from_line(line) for line in self.path.read_bytes().splitlines() if line]
        except (OSError, WireError):
            return []


class Spool:
    """The directory. Raises OSError where it cannot be written."""

    def __init__(self, directory: Path, most_bytes: int = MOST_BYTES) -> None:
        self.directory = directory
        self.most_bytes = most_bytes

    def put(self, sequence: int, session: str, envelopes: list[Envelope]) -> int:
        """Keep a session's records; returns how many older sessions had to go to make room."""
        content = b"".join(to_line(envelope) for envelope in envelopes)
        if len(content) > self.most_bytes:
            raise OSError(27, "the session's records are larger than the spool")
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        dropped = self._make_room(len(content))
        path = self.directory / f"{sequence:012d}-{session}{_SUFFIX}"
        beside = self.directory / f".{path.name}.{os.getpid()}.tmp"
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        return dropped

    def entries(self) -> list[Entry]:
        """Oldest first. What a crash left half-written is not among them."""
        try:
            paths = sorted(self.directory.glob(f"[0-9]*{_SUFFIX}"))
        except OSError:
            return []
        return [Entry(path, path.stat().st_size) for path in paths if path.is_file()]

    def remove(self, entry: Entry) -> None:
        """Forget a session: a collector has it, or will never take it."""
        entry.path.unlink(missing_ok=True)

    def _make_room(self, needed: int) -> int:
        for stray in self.directory.glob(".*.tmp"):
            stray.unlink(missing_ok=True)
        entries = self.entries()
        held = sum(entry.size for entry in entries)
        dropped = 0
        while entries and held + needed > self.most_bytes:
            oldest = entries.pop(0)
            self.remove(oldest)
            held -= oldest.size
            dropped += 1
        return dropped

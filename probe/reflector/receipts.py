# SPDX-License-Identifier: EUPL-1.2
"""What a reflector has witnessed, on disk before anybody is told: started.jsonl and receipts.jsonl.

One signed envelope a line. A line is handed to the operating system before the answer that depends on it leaves, so
that the program may be killed at any moment and no pair vanishes; once a second what was written is flushed to the
disk, so that a power cut takes a second at most. Spec: spec/protocol.md, "One pair", step 2, and "Journals".
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from probe.wire.envelope import Envelope, seal, to_line
from probe.wire.records import Receipt, Started
from probe.wire.signing import Signer

STARTED: Final = "started.jsonl"
RECEIPTS: Final = "receipts.jsonl"
ASIDE_BYTES: Final = 64_000_000
"""A journal of this size is put aside under a number, and deleted once the collector has all of it."""


class Journal:
    """One append-only file of lines. A torn last line, from a kill in the middle of a write, is cut off at opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.size = _whole_lines(self._file)
        os.ftruncate(self._file, self.size)
        os.lseek(self._file, self.size, os.SEEK_SET)
        self._aside = {found: found.stat().st_size for found in _put_aside(path)}
        self._is_dirty = False

    def append(self, line: bytes) -> None:
        """Hand a whole line to the operating system. Raises OSError and leaves the file as it was."""
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            os.ftruncate(self._file, self.size)
            os.lseek(self._file, self.size, os.SEEK_SET)
            raise
        self.size += len(line)
        self._is_dirty = True

    @property
    def files(self) -> dict[Path, int]:
        """Everything that is kept, oldest first, with its size; the last is the one that grows."""
        return {**self._aside, self.path: self.size}

    @property
    def bytes_kept(self) -> int:
        """Size of all of it."""
        return sum(self._aside.values()) + self.size

    def next_aside(self) -> Path:
        """The name under which `put_aside` would put this file."""
        last = max((_number(found) for found in self._aside), default=0)
        return self.path.with_name(f"{self.path.stem}-{last + 1:06d}{self.path.suffix}")

    def put_aside(self) -> Path:
        """Give the file a number and begin a new one. Raises OSError and leaves everything as it was."""
        os.fdatasync(self._file)
        name = self.next_aside()
        self.path.rename(name)
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            name.rename(self.path)
            raise
        os.close(self._file)
        self._aside[name] = self.size
        self._file, self.size, self._is_dirty = file, 0, False
        return name

    def drop(self, path: Path) -> None:
        """Delete a file that was put aside. Raises OSError."""
        size = self._aside.pop(path)
        try:
            path.unlink(missing_ok=True)
        except OSError:
            self._aside = {**self._aside, path: size}
            raise

    def sync(self) -> None:
        """Flush to the disk what was appended since the last time. May be called from another thread."""
        if not self._is_dirty:
            return
        self._is_dirty = False
        file = os.dup(self._file)  # its own: this one may be put aside meanwhile
        try:
            os.fdatasync(file)
        finally:
            os.close(file)

    def close(self) -> None:
        """Flush to the disk and close."""
        os.fsync(self._file)
        os.close(self._file)


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _put_aside(path: Path) -> list[Path]:
    name = re.compile(re.escape(path.stem) + r"-[0-9]{6,}" + re.escape(path.suffix))
    return sorted((found for found in path.parent.iterdir() if name.fullmatch(found.name)), key=_number)


def _whole_lines(file: int) -> int:
    """Length of the file up to its last newline."""
    size = os.fstat(file).st_size
    block = 64 * 1024
    while size > 0:
        start = max(0, size - block)
        found = os.pread(file, size - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = start
    return 0


class Receipts:
    """Signs and keeps what the reflector has witnessed.

    A session's records are all signed with the key that its grant named, also when another one has come since.
    """

    def __init__(self, state: Path, signer: Signer) -> None:
        self._signers = {signer.key_id: signer}
        self.started = Journal(state / STARTED)
        self.receipts = Journal(state / RECEIPTS)

    def add(self, signer: Signer) -> None:
        """One more key to sign with, for sessions whose grant names it."""
        self._signers[signer.key_id] = signer

    def sign(self, key_id: str, message: bytes) -> bytes:
        """A signature outside the journals, with one of the keys that are known."""
        return self._signers[key_id].sign(message)

    @property
    def journals(self) -> tuple[Journal, Journal]:
        """In the order of delivery: a pair is known as started before its receipt comes."""
        return (self.started, self.receipts)

    @property
    def bytes_kept(self) -> int:
        """Size of all journals."""
        return sum(journal.bytes_kept for journal in self.journals)

    def write_started(self, record: Started, key_id: str) -> None:
        """Sign and append. Raises OSError."""
        self.started.append(to_line(seal(record, self._signers[key_id])))

    def write_receipt(self, record: Receipt, key_id: str) -> Envelope:
        """Sign and append. Raises OSError."""
        envelope = seal(record, self._signers[key_id])
        self.receipts.append(to_line(envelope))
        return envelope

    def sync(self) -> None:
        """Flush both to the disk."""
        for journal in self.journals:
            journal.sync()

    def close(self) -> None:
        """Flush both to the disk and close them."""
        for journal in self.journals:
            journal.close()

# SPDX-License-Identifier: EUPL-1.2
"""What a reflector has witnessed, on disk before anybody is told: started.jsonl and receipts.jsonl.

One signed envelope a line. A line is handed to the operating system before the answer that depends on it leaves, so
that the program may be killed at any moment and no pair vanishes. Spec: spec/protocol.md, "One pair", step 2.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from probe.wire.envelope import Envelope, seal, to_line
from probe.wire.records import Receipt, Started
from probe.wire.signing import Signer

STARTED: Final = "started.jsonl"
RECEIPTS: Final = "receipts.jsonl"


class Journal:
    """One append-only file of lines. A torn last line, from a kill in the middle of a write, is cut off at opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.size = _whole_lines(self._file)
        os.ftruncate(self._file, self.size)
        os.lseek(self._file, self.size, os.SEEK_SET)

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

    def close(self) -> None:
        """Flush to the disk and close."""
        os.fsync(self._file)
        os.close(self._file)


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
    """Signs and keeps what the reflector has witnessed."""

    def __init__(self, state: Path, signer: Signer) -> None:
        self._signer = signer
        self.started = Journal(state / STARTED)
        self.receipts = Journal(state / RECEIPTS)

    def write_started(self, record: Started) -> None:
        """Sign and append. Raises OSError."""
        self.started.append(to_line(seal(record, self._signer)))

    def write_receipt(self, record: Receipt) -> Envelope:
        """Sign and append. Raises OSError."""
        envelope = seal(record, self._signer)
        self.receipts.append(to_line(envelope))
        return envelope

    def close(self) -> None:
        """Flush both to the disk and close them."""
        self.started.close()
        self.receipts.close()

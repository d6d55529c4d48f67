# SPDX-License-Identifier: EUPL-1.2
"""Lines of files that strangers made, plain or gzip: in constant memory, whatever they hold.

An archive of pairs may be larger than memory, a line may never end, and a few kilobytes of gzip may unpack to more
than a disk: each has a limit here, and the refusal names file and line. Spec: spec/rejudge.md, section "Files".
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, cast

from probe.wire.limits import MAX_ENVELOPE_BYTES

LONGEST_LINE: Final = MAX_ENVELOPE_BYTES
"""No record that is written as one line is longer (spec/records.md, "Limits")."""
MOST_RATIO: Final = 200
"""Records unpack to 10 to 30 times their size; what unpacks to more than this was made to fill memory or disk."""
FREE_BYTES: Final = 64 * 1024 * 1024
"""So much may come out of any file before its ratio is looked at."""
_GZIP: Final = b"\x1f\x8b"
_BLOCK: Final = 1 << 18

Line = tuple[int, bytes, bool]
"""Number from 1, the text without the blanks around it, and whether it was written to its end."""


class ArchiveError(Exception):
    """A file cannot be read; the message is one sentence that says where and why."""


class _Bounded(io.RawIOBase):
    """What a gzip file unpacks to, refused as soon as it is plainly a bomb."""

    def __init__(self, packed: IO[bytes], path: Path) -> None:
        self._packed, self._path = packed, path
        self._unpacked = cast("IO[bytes]", gzip.GzipFile(fileobj=packed, mode="rb"))
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, into: bytearray | memoryview) -> int:  # type: ignore[override]
        try:
            block = self._unpacked.read(len(into))
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise ArchiveError(f"{self._path} is not a whole gzip file; fetch or pack it again") from None
        into[: len(block)] = block
        self._count += len(block)
        if self._count > max(FREE_BYTES, MOST_RATIO * self._packed.tell()):
            raise ArchiveError(
                f"{self._path} unpacks to more than {MOST_RATIO} times its size, which no file of records does"
            )
        return len(block)


@contextmanager
def opened(path: Path, progress: Callable[[int], None] | None = None) -> Iterator[io.BufferedReader]:
    """A file's bytes, unpacked where it begins as gzip does. Raises ArchiveError.

    `progress` is told now and then how many bytes of the file itself were read.
    """
    try:
        with path.open("rb") as file:
            counted = _Counted(file, progress) if progress else file
            packed = file.read(2) == _GZIP
            file.seek(0)
            raw = _Bounded(cast("IO[bytes]", counted), path) if packed else counted
            yield io.BufferedReader(cast("io.RawIOBase", raw), _BLOCK)
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror or error}") from None


class _Counted(io.RawIOBase):
    """A file that tells how far it was read."""

    def __init__(self, file: io.BufferedReader, progress: Callable[[int], None]) -> None:
        self._file, self._progress = file, progress

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, into: bytearray | memoryview) -> int:  # type: ignore[override]
        count = self._file.readinto(into)
        self._progress(self._file.tell())
        return count


def lines(path: Path, *, longest: int = LONGEST_LINE, progress: Callable[[int], None] | None = None) -> Iterator[Line]:
    """The lines of a file, blank ones left out. Raises ArchiveError at one that is longer than `longest` bytes."""
    with opened(path, progress) as file:
        readline = file.readline
        number = 0
        while line := readline(longest + 2):
            number += 1
            if len(line) > longest and not line.endswith(b"\n"):
                raise ArchiveError(f"{path}, line {number} is longer than {longest} bytes, which no record is")
            if text := line.strip():
                yield number, text, line.endswith(b"\n")


def head(path: Path, count: int = 4096) -> bytes:
    """The first bytes of what a file holds, unpacked."""
    with opened(path) as file:
        return file.read(count)


def whole(path: Path, most: int) -> bytes:
    """All that a file holds, unpacked, if that is at most `most` bytes. Raises ArchiveError."""
    with opened(path) as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise ArchiveError(f"{path} holds more than {most // 1_000_000} MB in one piece; give it as lines or CSV")
    return found


def sha256(path: Path) -> str:
    """SHA-256 (hex) of the file as it lies there: what `sha256sum` prints."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror or error}") from None

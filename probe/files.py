# SPDX-License-Identifier: EUPL-1.2
"""How a probe writes what it keeps: beside and renamed, so that a kill or a power cut leaves the old or the new.

What stands on flash is also brought to the medium before one goes on. What stands in RAM dies with the power
anyway; there the danger is a full disk, so a small file that is there already can be written over where it stands.
Spec: spec/probe.md, section "What a probe keeps".
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any, Final

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What a full disk or a used-up quota says."""
_LONGEST_BYTES: Final = 256 * 1024
"""No small file of ours comes near it; a longer one is not ours."""


def write_whole(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace a file in one step; `durable` ones survive a power cut from the return on. Raises OSError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        # A medium that has just become read-only keeps even what lies beside.
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    if durable:
        _settle(path.parent)


def write_small(path: Path, content: bytes, *, durable: bool) -> None:
    """Replace a small text file; in RAM also where the disk is full, as long as the file is there. Raises OSError.

    A page that the file has already needs no room. It is written by one system call, which a kill cannot cut, and
    padded with blanks to its former length, so that nothing of the old text stays behind the new.
    """
    try:
        write_whole(path, content, durable=durable)
    except OSError as error:
        if durable or error.errno not in FULL or not _write_over(path, content):
            raise


def _write_over(path: Path, content: bytes) -> bool:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        told = os.fstat(handle)
        padded = content.ljust(told.st_size)
        # Beyond the pages that it has there is no room, and half a text is worse than the old one.
        return len(padded) <= told.st_blocks * 512 and os.pwrite(handle, padded, 0) == len(padded)
    except OSError:
        return False
    finally:
        os.close(handle)


def _settle(directory: Path) -> None:
    """Bring a rename to the medium. Some file systems know no such thing, and a directory may be unreadable."""
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(handle)


def read_small(path: Path) -> bytes | None:
    """A small file's content; None where there is none. Raises OSError."""
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST_BYTES)
    except FileNotFoundError:
        return None


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a small file; None where there is no file. Raises ValueError for garbage, OSError."""
    content = read_small(path)
    if content is None:
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError(f"{path} does not hold a JSON object") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return found

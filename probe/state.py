# SPDX-License-Identifier: EUPL-1.2
"""What a probe keeps between runs: its key, the number of its last session, what waits to be uploaded.

Everything is written beside and renamed, so that a power cut leaves the old or the new. One measurement at a
time: two on one line would disturb each other. Spec: spec/records.md, sections "Keys" and "Measurement".
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probe.spool import Spool
from probe.wire.signing import Signer, load_or_create


class StateError(Exception):
    """The state directory cannot be used; the message is one sentence that says what to do."""


def default_directory(environ: dict[str, str] | None = None) -> Path:
    """$XDG_STATE_HOME/evenlane/probe, else ~/.local/state/evenlane/probe."""
    environ = dict(os.environ) if environ is None else environ
    base = environ.get("XDG_STATE_HOME", "")
    home = Path(base) if base.startswith("/") else Path(environ.get("HOME") or "/").joinpath(".local/state")
    return home / "evenlane" / "probe"


class State:
    """One state directory. Raises StateError from everything that touches it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.spool = Spool(directory / "spool")

    @property
    def key_file(self) -> Path:
        """The probe's identity."""
        return self.directory / "key"

    def prepare(self) -> None:
        """Make the directory, readable to its owner alone, and see whether it can be written."""
        with self._readable_errors():
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            trial = self.directory / f".trial.{os.getpid()}"
            trial.write_bytes(b"")
            trial.unlink()

    def signer(self) -> Signer:
        """The probe's signer; its key is made on first use."""
        with self._readable_errors():
            try:
                return load_or_create(self.key_file)
            except ValueError as error:
                raise StateError(str(error)) from None

    def known_key(self) -> str | None:
        """The key id; None where no run has made a key yet."""
        with self._readable_errors():
            if not self.key_file.exists():
                return None
        return self.signer().key_id

    def next_sequence(self) -> int:
        """The number of a new session's measurement: one more than the last, kept before it is used."""
        with self._readable_errors():
            number = self.last_sequence() + 1
            self._write("sequence", f"{number}\n")
            return number

    def last_sequence(self) -> int:
        """The number of the last session; -1 where there was none."""
        path = self.directory / "sequence"
        with self._readable_errors():
            if not path.exists():
                return -1
            content = path.read_text(encoding="ascii", errors="replace").strip()
        if not content.isdigit() or len(content) > 15:
            raise StateError(f"{path} does not hold a number; move the state directory away to begin anew")
        return int(content)

    def remember(self, summary: dict[str, Any]) -> None:
        """Keep what `status` tells of the last run."""
        with self._readable_errors():
            self._write("last.json", json.dumps(summary, sort_keys=True) + "\n")

    def last(self) -> dict[str, Any] | None:
        """What `remember` kept; None where there is nothing or it cannot be read."""
        try:
            found = json.loads((self.directory / "last.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the line for one measurement."""
        with self._readable_errors():
            handle = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StateError(f"another measurement is running with {self.directory}; wait for its end") from None
            yield
        finally:
            os.close(handle)

    def _write(self, name: str, content: str) -> None:
        write_whole(self.directory / name, content.encode())

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StateError(
                f"the state directory {self.directory} cannot be used ({reason}); name another one with --state"
            ) from None


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file in one step that survives a power cut. Raises OSError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise

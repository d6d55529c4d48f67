# SPDX-License-Identifier: EUPL-1.2
"""What a probe keeps between runs: its key, the number of its last session, what waits to be uploaded.

Two directories. The durable one (flash) holds identity and configuration and is left alone by a measurement; the
one of the run (RAM) holds everything that changes with each. Without a second one both are the same, as in earlier
versions. One measurement at a time: two on one line would disturb each other.
Spec: spec/probe.md, section "What a probe keeps"; spec/records.md, sections "Keys" and "Measurement".
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from probe.files import read_object, read_small, write_small, write_whole
from probe.spool import Spool
from probe.wire.limits import MAX_INT
from probe.wire.signing import Signer, load_or_create

__all__ = ["LIFE_BITS", "State", "StateError", "default_directories", "default_directory", "write_whole"]

LIFE_BITS: Final = 20
"""A session's number = life * 2**20 + how many came before it in this life of the RAM."""
_LEAP: Final = 1 << 16
"""More restarts than a probe sees: where a life that cannot be read is taken up again."""


class StateError(Exception):
    """A directory of the probe's cannot be used; the message is one sentence that says what to do."""


def default_directory(environ: Mapping[str, str] | None = None) -> Path:
    """$XDG_STATE_HOME/evenlane/probe, else ~/.local/state/evenlane/probe."""
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_STATE_HOME", "")
    home = Path(base) if base.startswith("/") else Path(environ.get("HOME") or "/").joinpath(".local/state")
    return home / "evenlane" / "probe"


def default_directories(
    state: Path | None, run: Path | None, environ: Mapping[str, str] | None = None, users: Path = Path("/run/user")
) -> tuple[Path, Path]:
    """The durable directory and that of the run, from `--state`, `--run` and the environment.

    Without `--run`: what systemd made for the service, else the state directory where one was named, else RAM where
    the desktop has some ($XDG_RUNTIME_DIR, usually a directory below `users`), else the state directory.
    """
    environ = os.environ if environ is None else environ
    durable = state or default_directory(environ)
    if run is not None:
        return durable, run
    service = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if service.startswith("/"):
        return durable, Path(service)
    # Cron tells nobody of the desktop's directory: without asking for it by its usual name too, a turn by cron and
    # `probe status` by hand would not see each other.
    desktop = environ.get("XDG_RUNTIME_DIR") or str(users / str(os.getuid()))
    if state is None and desktop.startswith("/") and os.access(desktop, os.W_OK | os.X_OK):
        return durable, Path(desktop) / "evenlane" / "probe"
    return durable, durable


class State:
    """A probe's directories. Raises StateError from everything that touches them.

    `run` is volatile where it is another directory: nothing in it is brought to a medium, and losing it is noticed.
    """

    def __init__(self, directory: Path, run: Path | None = None) -> None:
        self.directory = directory
        self.run = run or directory
        self.is_split = self.run != directory
        older = (directory / "spool",) if self.is_split else ()
        self.spool = Spool(self.run / "spool", durable=not self.is_split, older=older)

    @property
    def key_file(self) -> Path:
        """The probe's identity."""
        return self.directory / "key"

    def prepare(self) -> None:
        """Make the directories, readable to their owner alone, and see whether a session's number can be kept."""
        with self._readable_errors():
            if not self.directory.is_dir():
                self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._readable_errors(self.run):
            self.run.mkdir(parents=True, exist_ok=True, mode=0o700)
            trial = self.run / f".trial.{os.getpid()}"
            trial.write_bytes(b"")
            trial.unlink()
        self._claim()

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
        """The number of a new session's measurement, kept before it is used: higher than every earlier one.

        One more than the last, or the first of a new life where the RAM was lost: a gap within a life shows a lost
        upload, a new life does not.
        """
        number = self._claim()
        self._keep("next", f"{number + 1}\n".encode())
        return number

    def last_sequence(self) -> int:
        """The number of the last session; -1 where none is known of."""
        with self._readable_errors():
            following = _number(self.run / "next")
            if following is not None:
                return following - 1
            last = _number(self.directory / "sequence")
            return -1 if last is None else last

    def sessions(self) -> int:
        """How many sessions there were since the RAM was lost last; in one directory, ever."""
        return (self.last_sequence() + 1) & ((1 << LIFE_BITS) - 1)

    def remember(self, summary: dict[str, Any]) -> None:
        """Keep what `status` tells of the last run."""
        self._keep("last.json", json.dumps(summary, sort_keys=True).encode() + b"\n")

    def last(self) -> dict[str, Any] | None:
        """What `remember` kept; None where there is nothing or it cannot be read."""
        try:
            return read_object(self.run / "last.json")
        except (OSError, ValueError):
            return None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the line for one measurement.

        The lock is in the run's directory. The durable one is locked too, which writes nothing: a run by hand that
        names another `--run` measures on the same line.
        """
        with self._readable_errors(self.run):
            handles = [os.open(self.run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)]
        try:
            # Who may not read the durable directory will be told so when the key is wanted.
            with suppress(OSError):
                handles.append(os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            for handle in handles:
                self._lock(handle)
            yield
        finally:
            for handle in handles:
                os.close(handle)

    def _lock(self, handle: int) -> None:
        with self._readable_errors(self.run):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(f"another measurement is running with {self.directory}; wait for its end") from None

    def _claim(self) -> int:
        """The number that the next session will have, with its life on flash; writes only where the RAM was lost."""
        with self._readable_errors():
            known, life = _number(self.run / "next"), _number(self.directory / "life")
            last = _number(self.directory / "sequence")  # of an earlier version, which knew no lives
            if known is not None and (life is None or known >> LIFE_BITS >= life):
                number = known
            elif life is not None:
                number = (life + 1) << LIFE_BITS
            elif (self.directory / "life").exists():
                number = (_LEAP + secrets.randbits(31)) << LIFE_BITS
            else:
                number = 1 << LIFE_BITS if last is None and (self.directory / "sequence").exists() else 0
            number = max(number, -1 if last is None else last + 1)
            if number >> LIFE_BITS != life:
                # Before the RAM part: a power cut between the two costs a life, the reverse would use numbers twice.
                write_whole(self.directory / "life", f"{number >> LIFE_BITS}\n".encode())
        if number != known:
            self._keep("next", f"{number}\n".encode())
        return number

    def _keep(self, name: str, content: bytes) -> None:
        with self._readable_errors(self.run):
            write_small(self.run / name, content, durable=not self.is_split)

    @contextmanager
    def _readable_errors(self, directory: Path | None = None) -> Iterator[None]:
        option = "--run" if self.is_split and directory == self.run else "--state"
        kind = "directory of the run" if option == "--run" else "state directory"
        try:
            yield
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StateError(
                f"the {kind} {directory or self.directory} cannot be used ({reason}); "
                f"make room and see to its permissions, or name another one with {option}"
            ) from None


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none or something else. Raises OSError."""
    content = (read_small(path) or b"").strip()
    if not content.isdigit() or len(content) > 16:
        return None
    number = int(content)
    return number if number <= MAX_INT else None

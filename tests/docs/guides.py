# SPDX-License-Identifier: EUPL-1.2
"""What the guides' tests share: the blocks that are to be run, and a shell that runs them as their reader would.

A block that begins with ```sh run is run; one that begins with ```sh needs what a test must not touch (root, a router,
Docker). Names that stand for something are replaced: the collector's address by that of a real one on loopback, and
`pipx install evenlane` by what pipx does, from the wheel built here instead of the package index.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
COLLECTOR = "https://collector.example.org"
_BLOCK = re.compile(r"^```sh( run)?\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(name: str, *, run: bool | None = True) -> list[str]:
    """The shell blocks of a guide: those to be run, those not, or all (None)."""
    text = (GUIDES / name).read_text(encoding="utf-8")
    return [body for told, body in _BLOCK.findall(text) if run is None or bool(told) == run]


@dataclass(frozen=True)
class Ran:
    """What a block printed, and how it ended."""

    code: int
    out: str


@dataclass(frozen=True)
class Reader:
    """Somebody at a terminal who has a home directory and nothing else."""

    home: Path
    wheel: Path
    names: dict[str, str]

    def environment(self) -> dict[str, str]:
        runtime = self.home / "runtime"
        runtime.mkdir(exist_ok=True, mode=0o700)
        return {
            "HOME": str(self.home),
            "PATH": f"{self.home}/.local/bin:{os.environ['PATH']}",
            "XDG_RUNTIME_DIR": str(runtime),
            "LC_ALL": "C.UTF-8",
            "TERM": "dumb",
        }

    def prelude(self, terminal: str) -> str:
        """What a reader's shell brings along: the programs above, and a terminal whose Ctrl-C reaches what runs."""
        venv = f"{self.home}/.local/pipx/venvs/evenlane"
        return f"""
: < {terminal}
trap : INT
pipx() {{
  case "$1" in
    install) "{sys.executable}" -m venv "{venv}" &&
      "{venv}/bin/python" -m pip install -q --disable-pip-version-check --no-index --no-deps "{self.wheel}" &&
      mkdir -p ~/.local/bin && ln -sf "{venv}/bin/$2" ~/.local/bin/ ;;
    uninstall) rm -rf "{venv}" ~/.local/bin/"$2" ;;
  esac
}}
systemctl() {{ echo "systemctl $*" >> ~/asked; }}
loginctl() {{ echo "loginctl $*" >> ~/asked; }}
"""

    def run(self, block: str, typed: str = "", until: str = "", seconds: float = 120.0) -> Ran:
        """Run a block at a terminal, on which `typed` is waiting, or is typed when `until` has been shown."""
        for name, real in self.names.items():
            block = block.replace(name, real)
        ours, theirs = pty.openpty()
        try:
            process = subprocess.Popen(
                ["sh", "-c", self.prelude(os.ttyname(theirs)) + block],
                cwd=self.home,
                env=self.environment(),
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                start_new_session=True,
            )
            os.close(theirs)
            if not until:
                os.write(ours, typed.encode())
            out = _read(ours, process, time.monotonic() + seconds, typed if until else "", until)
            return Ran(process.wait(10), out.replace("\r\n", "\n"))
        finally:
            os.close(ours)


def _read(ours: int, process: subprocess.Popen[bytes], end_s: float, typed: str, awaited: str) -> str:
    pieces: list[bytes] = []
    while True:
        if time.monotonic() > end_s:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"the block did not end: {b''.join(pieces).decode(errors='replace')}")
        if typed and awaited.encode() in b"".join(pieces):
            os.write(ours, typed.encode())
            typed = ""
        ready, _, _ = select.select([ours], [], [], 0.2)
        if ready:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the last process has closed the terminal
                break
            pieces.append(piece)
        elif process.poll() is not None:
            break
    return b"".join(pieces).decode(errors="replace")

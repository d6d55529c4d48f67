# SPDX-License-Identifier: EUPL-1.2
"""What the doctor looks at on the machine itself: the program, its directories, memory, the kernel's part in sending.

Nothing of ours is imported before a check runs, because the first of them finds out whether that is possible.
Spec: spec/probe.md, section "Seeing it".
"""

from __future__ import annotations

import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from evenlane.commands.probe_foreign import foreign, sentence

if TYPE_CHECKING:
    from probe.settings import Settings
    from probe.state import State

Level = Literal["ok", "warn", "bad"]
Finding = tuple[Level, str]
_IN_RAM: Final = frozenset({"tmpfs", "ramfs", "rootfs"})
_FLASH: Final = frozenset({"jffs2", "ubifs", "yaffs2", "f2fs", "overlay", "squashfs"})
"""What routers have. A card of a small computer is known by its device's name."""
_STATE_BYTES: Final = 256 * 1024
_RUN_BYTES: Final = 10_000_000
"""The spool's most, and the small files beside it."""
_MEMORY_KB: Final = 48 * 1024
"""Agent and child together (docs/architecture.md, section "Footprint"), and some air."""


def checks_of_the_machine(state: State, settings: Settings) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """Their names and what carries them out."""
    yield "packages", _packages
    yield "python", _python
    yield "tls", _tls
    yield "version", _version
    yield "clock", _clock
    yield "profiles", _profiles
    yield "state", lambda: _state(state)
    yield "key", lambda: _key(state)
    yield "run", lambda: _run(state)
    yield "textfile", lambda: _textfile(settings)
    yield "memory", _memory
    yield "sender", _sender
    yield "congestion", _congestion


# -- the program ------------------------------------------------------------------------------------------------


def _packages() -> Finding:
    strangers = foreign()
    return ("bad", sentence(strangers)) if strangers else ("ok", "our packages are the ones that Python finds")


def _python() -> Finding:
    # An older one could not even read these lines.
    return "ok", ".".join(str(part) for part in sys.version_info[:3])


def _tls() -> Finding:
    try:
        import ssl
    except ImportError:
        return "bad", "the ssl module is missing: install your system's package of it (OpenWrt: python3-openssl)"
    if not ssl.HAS_TLSv1_3:
        return "bad", f"{ssl.OPENSSL_VERSION} knows no TLS 1.3: update it"
    return "ok", ssl.OPENSSL_VERSION


def _version() -> Finding:
    from evenlane.commands.probe import _version as installed

    version = installed()
    if version.startswith("0+"):
        return "warn", "runs from a folder that was never installed, so records cannot name its version"
    return "ok", version


def _clock() -> Finding:
    from probe.clock import is_synchronised
    from probe.wire.limits import MIN_TIME_MS

    text = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if time.time() * 1000 <= MIN_TIME_MS:
        return "bad", f"{text}: the clock was never set; let it be set over the internet (NTP)"
    synchronised = is_synchronised()
    if synchronised is False:
        return "warn", f"{text}, and nothing keeps it right: switch on NTP (timedatectl set-ntp true)"
    return "ok", text + (", kept by the system" if synchronised else "")


def _profiles() -> Finding:
    from probe.profiles.model import ProfileError, available, every, load, load_neutral

    try:
        names = [load(name).id for name in every()]
        load_neutral()
    except (ProfileError, OSError) as error:
        return "bad", f"{error}: install evenlane again"
    return "ok", f"{len(available())} apps, {len(names)} profiles"


# -- directories ------------------------------------------------------------------------------------------------


def _state(state: State) -> Finding:
    """Durable directory: there or makeable, ours alone, not in RAM."""
    found = _directory(state.directory, "--state")
    if found is not None:
        return found
    directory = _nearest(state.directory)
    if directory == state.directory:
        told = directory.stat()
        if told.st_mode & 0o077 and state.key_file.exists():
            others = f"{state.directory} can be read by others: chmod 700 {state.directory}"
            return "warn", others
    kind, _ = file_system(directory)
    if kind in _IN_RAM:
        return (
            "warn",
            f"{state.directory} is in memory and lost at a restart, the key with it: name another with --state",
        )
    if _free(directory) < _STATE_BYTES:
        return "bad", f"{state.directory} has no room: free some"
    there = "" if directory == state.directory else " (made by the first use)"
    return "ok", f"{state.directory}{there}"


def _run(state: State) -> Finding:
    """What changes with each session: in RAM on small devices."""
    found = _directory(state.run, "--run")
    if found is not None:
        return found
    directory = _nearest(state.run)
    kind, source = file_system(directory)
    if _free(directory) < _RUN_BYTES:
        return "warn", f"{state.run} has little room: the spool holds up to 8 MB of what could not be sent yet"
    if kind in _FLASH or source.startswith(("/dev/mmcblk", "/dev/mtdblock", "/dev/ubi")):
        return (
            "warn",
            f"{state.run} is on flash, which each session wears: name a directory in RAM with --run (/run, /tmp)",
        )
    return "ok", f"{state.run}{' (in memory)' if kind in _IN_RAM else ''}"


def _directory(directory: Path, option: str) -> Finding | None:
    """What is wrong with a directory's place and permissions."""
    nearest = _nearest(directory)
    if not nearest.is_dir():
        return "bad", f"{nearest} is not a directory: name another one with {option}"
    if not os.access(nearest, os.R_OK | os.W_OK | os.X_OK):
        whose = "it belongs to another user" if nearest.stat().st_uid != os.geteuid() else "its permissions forbid it"
        return (
            "bad",
            f"{nearest} cannot be written ({whose}): run this as the probe's user, or name another with {option}",
        )
    return None


def _nearest(path: Path) -> Path:
    """The path itself or the nearest one above it that exists."""
    for one in (path, *path.absolute().parents):
        try:
            one.lstat()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        return one
    return Path("/")


def _free(directory: Path) -> int:
    disk = os.statvfs(directory)
    return disk.f_bavail * (disk.f_frsize or 4096)


def file_system(directory: Path, mounts: Path = Path("/proc/self/mounts")) -> tuple[str, str]:
    """Kind and device of the file system that holds a directory; empty where the system does not say."""
    wanted, best, found = str(directory.resolve()), -1, ("", "")
    try:
        rows = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for row in rows:
        source, place, kind, *_ = [*row.split(), "", "", ""]
        place = place.replace("\\040", " ")
        is_above = place in {"/", wanted} or wanted.startswith(place.rstrip("/") + "/")
        if is_above and len(place) >= best:  # a later mount hides an earlier one at the same place
            best, found = len(place), (kind, source)
    return found


def _key(state: State) -> Finding:
    """Looked at, never made."""
    from probe.state import StateError

    path = state.key_file
    try:
        told = path.lstat()
    except FileNotFoundError:
        return "ok", "none yet: made when this probe joins, or by its first run"
    except OSError as error:
        return "bad", f"{path} cannot be looked at ({error.strerror}): run this as the probe's user"
    if not stat.S_ISREG(told.st_mode):
        return "bad", f"{path} is not a file: take it away"
    if told.st_uid != os.geteuid():
        return "bad", f"{path} belongs to another user: run this as that user (sudo -u …), or chown it"
    if told.st_mode & 0o077:
        return "bad", f"others can read {path} and pass for this probe: chmod 600 {path}"
    try:
        return "ok", state.known_key() or "none"
    except StateError as error:
        return "bad", str(error)


def _textfile(settings: Settings) -> Finding:
    if settings.textfile is None:
        return "ok", "none wanted"
    path = Path(settings.textfile)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        return "warn", f"{path.parent} cannot be written: make it, or give it to the probe's user"
    if path.suffix != ".prom":
        return "warn", f"{path} is not read by node_exporter: its name must end in .prom"
    return "ok", str(path)


# -- the machine ------------------------------------------------------------------------------------------------


def _memory() -> Finding:
    try:
        rows = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(row.split()[1]) for row in rows if row.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return "ok", "the system does not tell"
    if available < _MEMORY_KB:
        return "warn", f"{available // 1024} MB are free and a session takes about 42 MB: end what is not needed"
    return "ok", f"{available // 1024} MB are free"


def _sender() -> Finding:
    from probe.netio.dial import prepare_sender

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        options = prepare_sender(sock, 1.0)
    # Without kernel pacing uploads are paced by sleeping, which is coarser but measures.
    return "ok", "the kernel paces" if options.paced else "no kernel pacing: uploads are paced by sleeping"


def _congestion() -> Finding:
    from probe.netio.dial import prepare_sender

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        granted = prepare_sender(sock, 0).congestion
    if granted not in {"cubic", "reno", None}:
        return (
            "bad",
            f"{granted}: neither cubic nor reno may be chosen here, so an upload would run into the next one "
            "(sysctl net.ipv4.tcp_allowed_congestion_control)",
        )
    return "ok", granted or "the kernel does not tell"

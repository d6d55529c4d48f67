# SPDX-License-Identifier: EUPL-1.2
"""Whether this device's clock is disciplined, as whoever disciplines it says.

The kernel knows (adjtimex(2), STA_UNSYNC), but Python reaches that call through ctypes alone, which a router's
Python lacks. So the files and programs of those who set the clock are asked. Spec: spec/probe.md, "Environment".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path("/")
_SYNCHRONISED: Final = (
    "run/systemd/timesync/synchronized",  # systemd-timesyncd, since the first answer after boot
    "var/etc/evenlane/clock",  # our own hotplug script under OpenWrt's ntpd, gone again when ntpd says "unsync"
    "var/state/dnsmasqsec",  # OpenWrt's own one, since the first answer after boot
    "var/ntpd/sync",  # another edition's
)
_PROGRAM_S: Final = 2.0
_PROGRAMS: Final = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
_MOST_OUTPUT: Final = 64 * 1024
_YES_NO: Final = {"yes": True, "no": False}
Ask = Callable[[Sequence[str]], str | None]


def is_synchronised(root: Path = ROOT, ask: Ask | None = None) -> bool | None:
    """True or False as the system says; None where nobody says anything, which is no bad sign."""
    if any((root / name).exists() for name in _SYNCHRONISED):
        return True
    ask = ask or output_of
    # systemd asks the kernel: this is adjtimex itself, whoever disciplines the clock.
    said = ask(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    if said is not None and said.strip() in _YES_NO:
        return _YES_NO[said.strip()]
    said = ask(["adjtimex"])  # busybox's, which prints the kernel's status and changes nothing without options
    if said is not None and "status:" in said:
        return "UNSYNC" not in said
    return None


def output_of(command: Sequence[str], timeout_s: float = _PROGRAM_S) -> str | None:
    """What a program of the system printed (its first 64 kB); None where it is not there or takes too long.

    Whether it succeeded is not asked: busybox's adjtimex fails with a status when the clock is not synchronised.
    """
    places = (os.path.join(place, command[0]) for place in _PROGRAMS)
    program = next((place for place in places if os.access(place, os.X_OK)), None)
    if program is None:
        return None
    import subprocess  # noqa: PLC0415 (memory: only where there is such a program)

    try:
        ran = subprocess.run(  # noqa: S603  (a fixed word of ours and an interface's name, no shell)
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
            env={"PATH": ":".join(_PROGRAMS), "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout[:_MOST_OUTPUT].decode("utf-8", "replace")

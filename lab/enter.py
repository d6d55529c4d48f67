# SPDX-License-Identifier: EUPL-1.2
"""Joins namespaces and becomes another program: `enter.py USER_FD|- NET_FD PROGRAM ARGS...`.

A program of its own, because setns(2) into a user namespace is allowed to single-threaded processes only and
code between fork and exec is unsafe in a threaded parent. It is started with the bare interpreter, so it may
import the standard library alone. spec/lab.md section 4.
"""

from __future__ import annotations

import ctypes
import os
import sys

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000


def libc_call(name: str, *arguments: int) -> None:
    """Call a C library function that returns 0; raise OSError where it does not (Python 3.11 lacks these)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def main() -> None:
    """Join the namespaces of the descriptors given and execute the program."""
    user, net, *command = sys.argv[1:]
    if user != "-":
        libc_call("setns", int(user), CLONE_NEWUSER)
        os.close(int(user))
    libc_call("setns", int(net), CLONE_NEWNET)
    os.close(int(net))
    os.execvp(command[0], command)  # noqa: S606  (no shell, on purpose)


if __name__ == "__main__":
    main()

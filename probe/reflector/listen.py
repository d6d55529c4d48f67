# SPDX-License-Identifier: EUPL-1.2
"""The reflector's listening sockets: one port on every address of the pool.

Spec: spec/protocol.md, section "Pool".
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Final

from probe.reflector.data import open_listener

_FREE_PORT_TRIES: Final = 20


class CannotListen(Exception):
    """The message is one sentence that says what to do."""


def listen(hosts: Sequence[str], control_port: int, data_port: int) -> tuple[list[socket.socket], list[socket.socket]]:
    """Listening sockets of the control port and of the data port, one a host each. Raises CannotListen."""
    opened: list[socket.socket] = []
    try:
        control = _listen_on_all(hosts, control_port, opened)
        data = _listen_on_all(hosts, data_port, opened)
    except CannotListen:
        for listener in opened:
            listener.close()
        raise
    return control, data


def _listen_on_all(hosts: Sequence[str], port: int, opened: list[socket.socket]) -> list[socket.socket]:
    """One listener a host, all on one port; a free one is looked for until every host has it."""
    tries = _FREE_PORT_TRIES if port == 0 and len(hosts) > 1 else 1
    while True:
        tries -= 1
        listeners: list[socket.socket] = []
        host = ""
        try:
            for host in hosts:
                taken = listeners[0].getsockname()[1] if listeners else port
                listeners.append(open_listener(host, taken))
        except OSError as error:
            for listener in listeners:
                listener.close()
            if tries > 0:
                continue
            raise CannotListen(why_not_listening(host, port, error)) from None
        opened += listeners
        return listeners


def why_not_listening(host: str, port: int, error: OSError) -> str:
    """One sentence that says what to do."""
    if isinstance(error, socket.gaierror):
        return f"--host {host} is not an address of this machine"
    if isinstance(error, PermissionError):
        return f"port {port} needs more rights than this user has; choose one above 1023"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken; choose another with --control-port or --data-port"
    return f"cannot listen on port {port} of {host} ({error.strerror})"

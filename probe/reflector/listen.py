# SPDX-License-Identifier: EUPL-1.2
"""The reflector's listening sockets: one port on every address of the pool, opened here or handed over by systemd.

Ports below 1024 are the system's: systemd opens them and starts the reflector as a user without any right (the protocol
of sd_listen_fds(3): LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES). Spec: spec/protocol.md, section "Pool".
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from probe.reflector.data import open_listener, tune_listener

_FREE_PORT_TRIES: Final = 20
_FIRST_HANDED: Final = 3
"""SD_LISTEN_FDS_START of systemd."""
_MOST_HANDED: Final = 64
_KINDS: Final = {
    "control": socket.SOCK_STREAM,
    "data": socket.SOCK_STREAM,
    "data-udp": socket.SOCK_DGRAM,
    "portal": socket.SOCK_STREAM,
}
"""What the names in FileDescriptorName= mean."""


class CannotListen(Exception):
    """The message is one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Handed:
    """The sockets that systemd opened for us, by what they are for; an empty list is "open your own"."""

    control: list[socket.socket] = field(default_factory=list)
    data: list[socket.socket] = field(default_factory=list)
    data_udp: list[socket.socket] = field(default_factory=list)
    portal: list[socket.socket] = field(default_factory=list)


def handed_over(environ: MutableMapping[str, str], pid: int) -> Handed:
    """Take over what LISTEN_FDS promises to this process; the variables are deleted, so that no child believes them.

    Raises CannotListen where something was handed over that is not what its name says.
    """
    told = {name: environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if told["LISTEN_PID"] != str(pid):
        return Handed()
    count = told["LISTEN_FDS"]
    if not (count.isascii() and count.isdigit() and len(count) <= 3 and int(count) <= _MOST_HANDED):
        raise CannotListen(f"LISTEN_FDS={count[:20]!r} is not a number of sockets up to {_MOST_HANDED}")
    names = told["LISTEN_FDNAMES"].split(":") if told["LISTEN_FDNAMES"] else []
    if len(names) != int(count):
        raise CannotListen(
            f"{count} sockets were handed over with {len(names)} names; give each socket unit a FileDescriptorName= of "
            f"{', '.join(_KINDS)}"
        )
    found: dict[str, list[socket.socket]] = {name: [] for name in _KINDS}
    for number, name in enumerate(names, _FIRST_HANDED):
        if name not in _KINDS:
            raise CannotListen(
                f"a socket was handed over as {name[:40]!r}; FileDescriptorName= is one of {', '.join(_KINDS)}"
            )
        found[name].append(_taken(number, name))
    return Handed(found["control"], found["data"], found["data-udp"], found["portal"])


def _taken(number: int, name: str) -> socket.socket:
    """The socket of a descriptor, where it is what its name says. Raises CannotListen."""
    try:
        is_socket = stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:
        is_socket = False
    if not is_socket:
        raise CannotListen(f"descriptor {number} was handed over as {name}, and is no socket")
    sock = socket.socket(fileno=number)
    is_inet = sock.family in {socket.AF_INET, socket.AF_INET6}
    is_stream = _KINDS[name] == socket.SOCK_STREAM
    listens = is_inet and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    if not is_inet or sock.type != _KINDS[name] or listens != is_stream:
        sock.detach()
        wanted = "ListenStream=" if is_stream else "ListenDatagram="
        raise CannotListen(
            f"the socket handed over as {name} is of another kind; its unit must say {wanted} and a port"
        )
    os.set_inheritable(number, False)
    sock.setblocking(True)
    if is_stream:
        tune_listener(sock)
    return sock


def listen(
    hosts: Sequence[str], control_port: int, data_port: int, handed: Handed | None = None
) -> tuple[list[socket.socket], list[socket.socket]]:
    """Listening sockets of the control port and of the data port, one a host each. Raises CannotListen."""
    handed = handed or Handed()
    for name, sockets in (("control", handed.control), ("data", handed.data), ("data-udp", handed.data_udp)):
        if sockets:
            _same_hosts(name, sockets, hosts)
    opened: list[socket.socket] = []
    try:
        control = handed.control or _listen_on_all(hosts, control_port, opened)
        data = handed.data or _listen_on_all(hosts, data_port, opened)
    except CannotListen:
        for listener in opened:
            listener.close()
        raise
    port = data[0].getsockname()[1]
    if any(sock.getsockname()[1] != port for sock in handed.data_udp):
        raise CannotListen(f"the socket handed over as data-udp must have the data port, {port}")
    return control, data


def _same_hosts(name: str, sockets: Sequence[socket.socket], hosts: Sequence[str]) -> None:
    """The limits that hold and the addresses that probes are told come from --host: it must tell the truth."""
    bound = {str(ipaddress.ip_address(sock.getsockname()[0].partition("%")[0])) for sock in sockets}
    told = {_plain(host) for host in hosts}
    if bound != told:
        wanted = " ".join(f"--host {one}" for one in sorted(bound))
        raise CannotListen(
            f"systemd listens for {name} on {', '.join(sorted(bound))}: start the reflector with {wanted}"
        )
    if len({sock.getsockname()[1] for sock in sockets}) > 1:
        raise CannotListen(f"the sockets handed over as {name} must all have one port")


def _plain(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return host


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

# SPDX-License-Identifier: EUPL-1.2
"""The helper process that makes namespaces and devices, and ends everything when its parent is gone.

Namespaces exist only as its open descriptors and those it hands out, so they vanish with the processes: there
is nothing to delete, also after SIGKILL. It answers one JSON request at a time on a socket, passing
descriptors beside the answers (unix(7)). As root it makes network namespaces directly; as an ordinary user it
first becomes root of a user namespace of its own (user_namespaces(7)). spec/lab.md section 4.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from lab.enter import CLONE_NEWNET, CLONE_NEWUSER, libc_call
from lab.rtnetlink import netlink, offloads_off

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_ETH_P = {4: 0x0800, 6: 0x86DD}
_PR_SET_DUMPABLE = 4
_SYSCTLS = (
    ("net/ipv4/tcp_no_metrics_save", ("1",)),  # or a throttled transfer teaches the next one its cwnd
    ("net/ipv4/ip_unprivileged_port_start", ("0",)),
    ("net/ipv4/conf/all/rp_filter", ("0",)),
    ("net/ipv4/conf/default/rp_filter", ("0",)),
    ("net/ipv6/conf/all/disable_ipv6", ("0",)),
    ("net/ipv6/conf/default/disable_ipv6", ("1",)),  # devices get it with their first IPv6 address
    ("net/ipv4/tcp_congestion_control", ("cubic", "reno")),
)

Answer = tuple[dict[str, Any], list[int]]


class Warden:
    """Holds the namespaces and carries out requests."""

    def __init__(self) -> None:
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY)
        self._namespaces: list[int] = []
        self._watched: dict[int, int] = {}
        self._discarded: list[str] = []

    def become_root(self) -> Answer:
        """Get the right to make network namespaces; answers with the user namespace that took, if one did."""
        try:
            libc_call("unshare", CLONE_NEWNET)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
            self._enter_user_namespace()
            return {}, [os.open("/proc/self/ns/user", os.O_RDONLY)]
        return {}, []

    def _enter_user_namespace(self) -> None:
        uid, gid = os.getuid(), os.getgid()
        # without it the files below belong to root in a process that changed its user id
        libc_call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)
        libc_call("unshare", CLONE_NEWUSER | CLONE_NEWNET)
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            _write(f"/proc/self/{file}", text)

    def namespace(self) -> Answer:
        """Make a network namespace with its loopback up and the settings a fair measurement needs."""
        libc_call("unshare", CLONE_NEWNET)
        self._namespaces.append(os.open("/proc/self/ns/net", os.O_RDONLY))
        refused = []
        for key, values in _SYSCTLS:
            for value in values:
                with contextlib.suppress(OSError):
                    _write(f"/proc/sys/{key}", value)
                    break
            else:
                refused.append(key)
        with netlink() as link:
            link.set_link("lo")
        return {"index": len(self._namespaces) - 1, "refused": refused}, [self._namespaces[-1]]

    def _go(self, index: int) -> None:
        libc_call("setns", self._namespaces[index], CLONE_NEWNET)

    def tun(self, *, index: int, name: str, mtu: int, queue: int) -> Answer:
        """A TUN device in a namespace; the descriptor is the operator's end of the line."""
        self._go(index)
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_NO_PI))
            with netlink() as link:
                link.set_link(name, mtu=mtu, queue=queue)
        except OSError:
            os.close(device)
            raise
        return {}, [device]

    def cable(self, *, index: int, name: str, far: int, far_name: str) -> Answer:
        """A veth pair between two namespaces, with the kernel's own stack on both ends."""
        self._go(index)
        with netlink() as link:
            link.add_veth(name, far_name, self._namespaces[far])
            link.set_link(name)
        self._go(far)
        with netlink() as link:
            link.set_link(far_name)
        return {}, []

    def veth(self, *, index: int, name: str, far: int, far_name: str, mtu: int, queue: int, family: int) -> Answer:
        """A veth pair from a namespace to the operator's; the descriptor is a packet socket on his end."""
        self._go(index)
        with netlink() as link:
            link.add_veth(name, far_name, self._namespaces[far])
            link.set_link(name, mtu=mtu, queue=queue, arp=False)
        offloads_off(name)
        near_mac = _mac(name)
        self._go(far)
        with netlink() as link:
            link.set_link(far_name, mtu=mtu, queue=queue, arp=False)
        offloads_off(far_name)
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 26)
        raw.bind((far_name, _ETH_P[family]))
        return {"mac": near_mac.hex(), "far_mac": _mac(far_name).hex()}, [raw.detach()]

    def configure(self, index: int, name: str, addresses: list[str], routes: list[list[str]]) -> Answer:
        """Addresses ("A" or "A/BITS") for a link, and routes over it: [prefix, source or "", gateway or ""]."""
        self._go(index)
        if any(":" in address for address in (*addresses, *(route[0] for route in routes))):
            _write(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "0")
        with netlink() as link:
            for address in addresses:
                alone, _, prefix = address.partition("/")
                link.add_address(name, alone, int(prefix or 0))
            for prefix, source, gateway in routes:
                try:
                    link.add_route(prefix, name, source=source, gateway=gateway, congestion="cubic")
                except OSError:  # a kernel without cubic; programs record what they got
                    link.add_route(prefix, name, source=source, gateway=gateway)
        return {}, []

    def drop_address(self, index: int, name: str, address: str) -> Answer:
        """Take an address from a link."""
        self._go(index)
        with netlink() as link:
            link.drop_address(name, address)
        return {}, []

    def sysctl(self, index: int, key: str, value: str) -> Answer:
        """Write a setting below /proc/sys/net of a namespace."""
        self._go(index)
        _write(f"/proc/sys/net/{key}", value)
        return {}, []

    def socket(self, index: int, family: int, kind: int) -> Answer:
        """A socket that lives in a namespace, for a process outside it."""
        self._go(index)
        made = socket.socket(family, kind)
        return {}, [made.detach()]

    def watch(self, pid: int) -> Answer:
        """End this process (and its process group) when the parent is gone."""
        with contextlib.suppress(ProcessLookupError):
            self._watched[pid] = os.pidfd_open(pid)
        return {}, []

    def forget(self, pid: int) -> Answer:
        """The process has been waited for: its id may be somebody else's from now on."""
        descriptor = self._watched.pop(pid, None)
        if descriptor is not None:
            os.close(descriptor)
        return {}, []

    def discard(self, *, path: str) -> Answer:
        """Remove this directory when the parent is gone."""
        self._discarded.append(path)
        return {}, []

    def end_all(self) -> None:
        """Kill every watched process that still runs, and remove what was to be discarded."""
        for pid, descriptor in self._watched.items():
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(pid) == pid:
                    os.killpg(pid, signal.SIGKILL)
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        for path in self._discarded:
            shutil.rmtree(path, ignore_errors=True)
            if os.path.exists(path):  # something was still being written by a process about to die
                time.sleep(0.2)
                shutil.rmtree(path, ignore_errors=True)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _mac(name: str) -> bytes:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
        link.bind((name, 0))
        address: bytes = link.getsockname()[4]
        return address


def serve(channel: socket.socket) -> None:
    """Answer requests until the parent closes its end, whatever way it ends."""
    warden = Warden()
    operations: dict[str, Callable[..., Answer]] = {
        operation.__name__: operation
        for operation in (
            warden.become_root,
            warden.namespace,
            warden.tun,
            warden.veth,
            warden.cable,
            warden.configure,
            warden.drop_address,
            warden.sysctl,
            warden.socket,
            warden.watch,
            warden.forget,
            warden.discard,
        )
    }
    try:
        while request := channel.recv(65536):
            call: dict[str, Any] = json.loads(request)
            passed: list[int] = []
            try:
                answer, passed = operations[call.pop("op")](**call)
            except OSError as error:
                answer = {"errno": error.errno or errno.EIO, "error": error.strerror or str(error)}
            channel.sendmsg(
                [json.dumps(answer).encode()],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", passed))] if passed else [],
            )
            for descriptor in passed:
                if descriptor not in warden._namespaces:
                    os.close(descriptor)
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        warden.end_all()


def main() -> None:
    """Serve on the inherited socket; a Ctrl-C is the parent's to handle, its end is what counts."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()

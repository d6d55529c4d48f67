# SPDX-License-Identifier: EUPL-1.2
"""Network namespaces for the lab: make them, start programs in them, get sockets out of them.

    with Warden() as warden:
        home = warden.namespace()
        line = home.tun("line", addresses=["198.18.0.11"], routes=[("0.0.0.0/0", "")])
        program = home.popen([sys.executable, "-m", "http.server"])

Everything is undone when the `with` ends, and also when this process is killed: lab.warden holds the
namespaces, notices, and ends what was started. spec/lab.md section 4.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
MTU = 1500
QUEUE = 5000  # packets a device holds while the middlebox is not scheduled; the kernel's 500 lose bursts
GRACE_S = 3.0


class NamespaceError(OSError):
    """Namespaces or devices are not to be had here; the message says which step was refused."""


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs one of our modules with this very interpreter."""
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment in which our modules are found, installed or not, whatever the directory."""
    known = os.environ.get("PYTHONPATH")
    path = f"{ROOT}{os.pathsep}{known}" if known else str(ROOT)
    return {**os.environ, "PYTHONPATH": path, **(extra or {})}


class Warden:
    """A running helper process and what it made; without namespaces it only ends what was adopted."""

    def __init__(self, *, namespaces: bool = True) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = ours
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._descriptors: list[int] = []
        with theirs:
            self._helper = subprocess.Popen(
                module_command("lab.warden", str(theirs.fileno())),
                env=module_environment(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.user_descriptor: int | None = None
        if not namespaces:
            return
        try:
            _, passed = self.ask("become_root")
        except OSError:
            self.close()
            raise
        if passed:  # an ordinary user: the namespaces belong to a user namespace
            self.user_descriptor = passed[0]
        self._descriptors += passed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, operation: str, **arguments: Any) -> tuple[dict[str, Any], list[int]]:
        """One request to the helper: its answer and the descriptors that came with it."""
        with self._lock:
            try:
                self._channel.send(json.dumps({"op": operation, **arguments}).encode())
                data, ancillary, _, _ = self._channel.recvmsg(65536, socket.CMSG_SPACE(16 * 4), socket.MSG_CMSG_CLOEXEC)
            except (BrokenPipeError, ConnectionResetError):
                data, ancillary = b"", []
        if not data:
            raise NamespaceError(f"the namespace helper ended while asked for {operation}")
        passed = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                passed.frombytes(content[: len(content) - len(content) % passed.itemsize])
        answer: dict[str, Any] = json.loads(data)
        if "error" in answer:
            raise NamespaceError(answer["errno"], f"{operation}: {answer['error']}")
        return answer, list(passed)

    def namespace(self) -> Namespace:
        """A new network namespace, its loopback up."""
        answer, (descriptor,) = self.ask("namespace")
        self._descriptors.append(descriptor)
        return Namespace(self, answer["index"], descriptor)

    def adopt(self, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """See to it that a process ends with the lab, also when this process is killed."""
        self._processes.append(process)
        self.ask("watch", pid=process.pid)
        return process

    def discard(self, directory: Path) -> None:
        """Remove a directory when the lab ends, in whatever way."""
        self.ask("discard", path=str(directory))

    def close(self) -> None:
        """End every process, then the helper; namespaces and devices go with them."""
        end_processes(self._processes)
        for process in self._processes:
            with contextlib.suppress(OSError):
                self.ask("forget", pid=process.pid)
        self._processes.clear()
        self._channel.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._helper.wait()


def end_processes(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Ask processes to end, and make them after a while."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + GRACE_S
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Namespace:
    """One network namespace."""

    def __init__(self, warden: Warden, index: int, descriptor: int) -> None:
        self._warden = warden
        self.index = index
        self._descriptor = descriptor

    def configure(
        self, link: str, *, addresses: Sequence[str] = (), routes: Sequence[tuple[str, str] | tuple[str, str, str]] = ()
    ) -> None:
        """Give a link addresses ("A" or "A/BITS"), and send prefixes over it.

        Each route is (prefix, source address or "") or (prefix, source address or "", gateway).
        """
        self._warden.ask(
            "configure",
            index=self.index,
            name=link,
            addresses=list(addresses),
            routes=[[*route, ""][:3] for route in routes],
        )

    def drop_address(self, link: str, address: str) -> None:
        """Take an address from a link; the routes that prefer it go with it."""
        self._warden.ask("drop_address", index=self.index, name=link, address=address)

    def sysctl(self, key: str, value: str) -> None:
        """Write a setting below /proc/sys/net, such as `ipv4/ip_forward`."""
        self._warden.ask("sysctl", index=self.index, key=key, value=value)

    def masquerade(self, link: str) -> None:
        """Forward packets, and give those that leave over a link its address (nftables)."""
        nft = shutil.which("nft") or shutil.which("nft", path="/usr/sbin:/sbin")
        if nft is None:
            raise NamespaceError(errno.ENOENT, "address translation needs nft, install it (Debian package nftables)")
        rules = f'type nat hook postrouting priority srcnat; oifname "{link}" masquerade;'
        made = self.popen([nft, f"table ip nat {{ chain out {{ {rules} }}; }}"], stderr=subprocess.PIPE)
        _, said = made.communicate()
        if made.returncode:
            why = said.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
            raise NamespaceError(errno.EPERM, f"address translation was refused by nft: {why[0]}")
        self.sysctl("ipv4/ip_forward", "1")

    def tun(self, name: str, *, mtu: int = MTU) -> int:
        """A TUN device that is up; the descriptor is its other side, to be closed by the caller."""
        _, (device,) = self._warden.ask("tun", index=self.index, name=name, mtu=mtu, queue=QUEUE)
        return device

    def veth(
        self, name: str, far: Namespace, far_name: str, *, mtu: int = MTU, family: int = 4
    ) -> tuple[int, str, str]:
        """A veth pair into another namespace: a packet socket on the far end, our MAC, the far one's."""
        answer, (raw,) = self._warden.ask(
            "veth", index=self.index, name=name, far=far.index, far_name=far_name, mtu=mtu, queue=QUEUE, family=family
        )
        return raw, answer["mac"], answer["far_mac"]

    def cable(self, name: str, far: Namespace, far_name: str) -> None:
        """A link between two namespaces with nothing in between."""
        self._warden.ask("cable", index=self.index, name=name, far=far.index, far_name=far_name)

    def new_socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket that lives in this namespace and belongs to this process."""
        _, (descriptor,) = self._warden.ask("socket", index=self.index, family=int(family), kind=int(kind))
        return socket.socket(fileno=descriptor)

    def listen(self, host: str, port: int, *, backlog: int = 128) -> socket.socket:
        """A listening TCP socket inside the namespace, for a server that runs outside it."""
        made = self.new_socket()
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((host, port))
            made.listen(backlog)
        except OSError:
            made.close()
            raise
        return made

    def command(self, argv: Sequence[str]) -> tuple[list[str], tuple[int, ...]]:
        """The command that runs `argv` in here, and the descriptors it needs (`pass_fds`)."""
        user = self._warden.user_descriptor
        descriptors = (self._descriptor,) if user is None else (user, self._descriptor)
        enter = [sys.executable, "-I", "-S", str(Path(__file__).with_name("enter.py"))]
        return [*enter, "-" if user is None else str(user), str(self._descriptor), *argv], descriptors

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program in here; `options` as for subprocess.Popen. It ends with the lab at the latest."""
        command, descriptors = self.command(argv)
        passed = (*options.pop("pass_fds", ()), *descriptors)
        options.setdefault("start_new_session", True)
        return self._warden.adopt(subprocess.Popen(command, pass_fds=passed, **options))

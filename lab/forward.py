# SPDX-License-Identifier: EUPL-1.2
"""The process of one emulated operator: moves packets between descriptors as its middlebox says.

Started by lab.stage with the devices' descriptors inherited, its configuration as one JSON line on stdin. Each
further line asks for the counters, answered by one JSON line on stdout, and may say that a subscriber gets another
address; the end of stdin ends it. It says how
late packets were and how long it waited for a processor, so that a run on a machine too busy can be called
void. spec/lab.md section 4.
"""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from lab.middlebox import INTERNET, Middlebox
from lab.scenario import from_table

BATCH: Final = 64  # packets read from one descriptor before the others have their turn
PACKET_MAX: Final = 2048
QUANTUM_S: Final = 0.0002  # packets due within it leave together, as network cards do, for a third of the work
_ETHERNET: Final = 14
_SO_PACKET_STATISTICS: Final = (263, 6)  # SOL_PACKET, PACKET_STATISTICS


@dataclass(frozen=True)
class Port:
    """One descriptor that carries IP packets."""

    descriptor: int
    read: Callable[[], bytes]  # raises BlockingIOError where nothing waits
    write: Callable[[bytes], object]
    lost: Callable[[], int]  # packets the kernel could not queue for us


def tun_port(descriptor: int) -> Port:
    """A TUN device: one packet a read, one a write."""
    os.set_blocking(descriptor, False)
    read, write = os.read, os.write
    return Port(
        descriptor,
        lambda: read(descriptor, PACKET_MAX),
        lambda packet: write(descriptor, packet),
        lambda: 0,
    )


_ETHERTYPE: Final = {4: b"\x08\x00", 6: b"\x86\xdd"}


def packet_port(descriptor: int, mac: str, far_mac: str, family: int) -> Port:
    """A packet socket on a veth end; frames for the other end get its MAC address (packet(7))."""
    raw = socket.socket(fileno=descriptor)
    raw.setblocking(False)
    header = bytes.fromhex(mac) + bytes.fromhex(far_mac) + _ETHERTYPE[family]
    receive, send = raw.recv, raw.send

    def lost() -> int:
        counted = raw.getsockopt(*_SO_PACKET_STATISTICS, 8)
        return int.from_bytes(counted[4:8], sys.byteorder)

    return Port(
        descriptor,
        lambda: receive(PACKET_MAX)[_ETHERNET:],
        lambda packet: send(header + packet),
        lost,
    )


def open_port(description: dict[str, Any]) -> Port:
    """A port as the configuration describes it."""
    if description["kind"] == "tun":
        return tun_port(description["fd"])
    return packet_port(description["fd"], description["mac"], description["far_mac"], description["family"])


class Forwarder:
    """Reads, lets the middlebox decide, writes."""

    def __init__(self, box: Middlebox, subscribers: list[Port], internet: Port) -> None:
        self._box = box
        self._ports = dict(enumerate(subscribers)) | {INTERNET: internet}
        self._by_descriptor = {port.descriptor: index for index, port in self._ports.items()}
        self._unwritten = 0
        self._lost = 0
        self._cpu_at_start = time.process_time()
        self._wait_at_start = processor_wait_s()
        self._began = time.monotonic()

    def run(self, control: int, on_control: Callable[[], bool]) -> None:
        """Forward until `on_control`, called when the control descriptor is readable, returns False."""
        descriptors = [*self._by_descriptor, control]
        poll, clock, wait = self._box.poll, time.monotonic, select.select
        writers = {index: port.write for index, port in self._ports.items()}
        while True:
            out, upcoming = poll(clock())
            for index, packet in out:
                try:
                    writers[index](packet)
                except OSError:  # the far end is full or gone: a lost packet, as on any wire
                    self._unwritten += 1
            pause = None if upcoming is None else max(QUANTUM_S, upcoming - clock())
            for descriptor in wait(descriptors, (), (), pause)[0]:
                if descriptor != control:
                    self._drain(self._by_descriptor[descriptor])
                elif not on_control():
                    return

    def _drain(self, index: int) -> None:
        """Hand what waits at a port to the middlebox, up to a batch."""
        read, now = self._ports[index].read, time.monotonic()
        box = self._box
        try:
            if index == INTERNET:
                for _ in range(BATCH):
                    box.from_internet(read(), now)
            else:
                for _ in range(BATCH):
                    box.from_subscriber(index, read(), now)
        except BlockingIOError:
            return

    def snapshot(self) -> dict[str, object]:
        """The middlebox's counters and what only this process knows."""
        self._lost += sum(port.lost() for port in self._ports.values())
        return {
            **self._box.snapshot(),
            "unread": self._lost,
            "unwritten": self._unwritten,
            "seconds": round(time.monotonic() - self._began, 3),
            "cpu_s": round(time.process_time() - self._cpu_at_start, 3),
            "processor_wait_s": round(processor_wait_s() - self._wait_at_start, 3),
        }


def processor_wait_s() -> float:
    """Seconds this process has been ready to run without a processor; 0 where the kernel does not count."""
    try:
        with open("/proc/self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def main() -> None:
    """Run one operator as its configuration says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    config = json.loads(sys.stdin.buffer.readline())
    scenario = from_table(config["scenario"])
    box = Middlebox(
        [ipaddress.ip_address(subscriber["address"]).packed for subscriber in config["subscribers"]],
        scenario.link,
        scenario.rules,
        scenario.cross_traffic,
        seed=config["seed"],
        start=time.monotonic(),
        day_s=config["day_s"],
    )
    ports = [open_port(subscriber["port"]) for subscriber in config["subscribers"]]
    forwarder = Forwarder(box, ports, open_port(config["internet"]))

    def on_control() -> bool:
        requests = os.read(0, 65536)
        for request in requests.splitlines():
            for index, address in json.loads(request).get("move", ()):
                box.move(index, ipaddress.ip_address(address).packed)
            os.write(1, json.dumps(forwarder.snapshot()).encode() + b"\n")
        return bool(requests)

    with contextlib.suppress(OSError):
        os.nice(-5)  # an ordinary user may not, and need not
    gc.collect()
    gc.freeze()
    gc.disable()  # no cycles are made; a collection would only make packets late
    os.write(1, b"ready\n")
    forwarder.run(0, on_control)


if __name__ == "__main__":
    main()

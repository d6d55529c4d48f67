# SPDX-License-Identifier: EUPL-1.2
"""Capture files for an inspection engine, and what it says of them. Loaded by test_probe_ndpi.py.

Every flow gets addresses of its own: engines remember endpoints, and one flow must not speak for another.
"""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROBE_PORT = 50_123
"""Of every written flow: no protocol's port, so that nothing is guessed from it."""
_PACKETS = 40
"""Of a flow: more than the engine looks at."""
_SILENCE_S = 2.0
_LINE = 1400
Flights = Iterable[tuple[int, bytes]]
"""What each side sent, 0 = probe."""


@dataclass(frozen=True)
class Seen:
    """What nDPI says of one flow."""

    protocol: str
    confidence: str
    risks: str


class Capture:
    """A pcap file (draft-ietf-opsawg-pcap) of flows between benchmarking addresses (RFC 2544)."""

    def __init__(self) -> None:
        self.data = bytearray(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        self.flows = 0
        self._micros = 1_700_000_000_000_000

    def tcp(self, flights: Flights, port: int = 443, endpoint: int | None = None) -> int:
        """Returns the flow's number, which tells it apart. `endpoint`: of which earlier flow the server is."""
        flow, sequence = self._next(endpoint), [1000, 5000]
        self._segment(flow, port, sequence, 0, 0x02)
        self._segment(flow, port, sequence, 1, 0x12)
        self._segment(flow, port, sequence, 0, 0x10)
        for side, data in flights:
            for start in range(0, len(data), 1400):
                self._segment(flow, port, sequence, side, 0x18, data[start : start + 1400])
        self._segment(flow, port, sequence, 1, 0x04)
        return flow

    def udp(self, flights: Flights, port: int = 443) -> int:
        """Each flight is a datagram."""
        flow, ports = self._next(), (PROBE_PORT, port)
        for side, data in flights:
            head = struct.pack("!HHHH", ports[side], ports[1 - side], 8 + len(data), 0)
            self._packet(flow, side, socket.IPPROTO_UDP, head + data)
        return flow

    def frames(self, packets: Iterable[tuple[int, int, bytes]], port: int = 443) -> int:
        """Sniffed packets of one flow: side, IP protocol, transport header and payload; the ports are replaced."""
        flow, ports = self._next(), (PROBE_PORT, port)
        cut = [(side, protocol, piece) for side, protocol, content in packets for piece in _cut(protocol, content)]
        for side, protocol, content in cut[:_PACKETS]:
            self._packet(flow, side, protocol, struct.pack("!HH", ports[side], ports[1 - side]) + content[4:])
        return flow

    def _next(self, endpoint: int | None = None) -> int:
        self.flows += 1
        self._endpoint = endpoint or self.flows
        return self.flows

    def _segment(  # noqa: PLR0917
        self, flow: int, port: int, sequence: list[int], side: int, flags: int, data: bytes = b""
    ) -> None:
        ports = (PROBE_PORT, port)
        acknowledged = 0 if flags == 0x02 else sequence[1 - side]
        head = struct.pack(
            "!HHIIBBHHH", ports[side], ports[1 - side], sequence[side], acknowledged, 0x50, flags, 64000, 0, 0
        )
        sequence[side] += len(data) + (1 if flags & 0x03 else 0)
        self._packet(flow, side, socket.IPPROTO_TCP, head + data)

    def _packet(self, flow: int, side: int, protocol: int, content: bytes) -> None:
        addresses = [bytes([198, 18 + end, n >> 8, n & 255]) for end, n in enumerate((flow, self._endpoint))]
        own, peer = addresses[side], addresses[1 - side]
        content = _with_checksum(own + peer, protocol, content)
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(content), 1, 0x4000, 64, protocol, 0, own, peer)
        ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
        frame = b"\2" * 6 + b"\4" * 6 + b"\x08\0" + ip + content
        self._micros += 1000
        self.data += struct.pack("<IIII", *divmod(self._micros, 1_000_000), len(frame), len(frame)) + frame


def _cut(protocol: int, content: bytes) -> list[bytes]:
    """Loopback's long TCP packets as a line would carry them."""
    head = (content[12] >> 4) * 4 if protocol == socket.IPPROTO_TCP else len(content)
    if len(content) - head <= _LINE:
        return [content]
    (sequence,) = struct.unpack_from("!I", content, 4)
    starts = range(0, len(content) - head, _LINE)
    return [
        content[:4]
        + struct.pack("!I", (sequence + start) % 2**32)
        + content[8:head]
        + content[head + start : head + start + _LINE]
        for start in starts
    ]


def _with_checksum(addresses: bytes, protocol: int, content: bytes) -> bytes:
    at = 16 if protocol == socket.IPPROTO_TCP else 6
    content = content[:at] + b"\0\0" + content[at + 2 :]
    pseudo = addresses + struct.pack("!BBH", 0, protocol, len(content))
    return content[:at] + struct.pack("!H", checksum(pseudo + content)) + content[at + 2 :]


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def ask_ndpi(program: str, capture: Capture, path: Path) -> dict[int, Seen]:
    """What the engine says, by the flow's number."""
    path.write_bytes(bytes(capture.data))
    out = subprocess.run([program, "-v", "2", "-i", str(path)], check=True, capture_output=True, text=True).stdout
    found: dict[int, Seen] = {}
    for line in out.splitlines():
        flow = re.search(r"(?:TCP|UDP) .*?\b198\.18\.(\d+)\.(\d+):.*?\[proto: [0-9.]+/([^\]]+)\]", line)
        if flow:
            confidence = re.search(r"\[Confidence: ([^\]]+)\]", line)
            risks = re.search(r"\[Risk: ([^\]]+)\]", line)
            number = int(flow[1]) * 256 + int(flow[2])
            found[number] = Seen(flow[3], confidence[1] if confidence else "", risks[1] if risks else "")
    return found


_SO_RCVBUFFORCE = 33


class Sniffer:
    """Takes the first packets of every flow to a port off the loopback interface. Raises PermissionError."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        # Beyond the system's limit, as only root may: a busy machine reads late, and a flow would be missing.
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 * 2**20)
        self._socket.bind(("lo", 0x0800))
        self._socket.settimeout(0.2)
        self._flows: list[list[tuple[int, int, bytes]]] = []
        self._open: dict[tuple[int, int], tuple[float, list[tuple[int, int, bytes]]]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def flows(self) -> list[list[tuple[int, int, bytes]]]:
        """Stop, and give every flow's packets, in the order in which the flows began."""
        self._stopped.set()
        self._thread.join()
        self._socket.close()
        return self._flows

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                packet, address = self._socket.recvfrom(65_536)
            except TimeoutError:
                continue
            if address[2] != socket.PACKET_OUTGOING:  # loopback shows each packet twice
                self._take(packet)

    def _take(self, packet: bytes) -> None:
        protocol, content = packet[9], packet[(packet[0] & 15) * 4 :]
        if protocol not in {socket.IPPROTO_TCP, socket.IPPROTO_UDP}:
            return
        source, destination = struct.unpack("!HH", content[:4])
        if self._port not in {source, destination}:
            return
        side = int(source == self._port)
        key, now = (protocol, destination if side else source), time.monotonic()
        last, flow = self._open.get(key, (0.0, []))
        if now - last > _SILENCE_S:  # a port may be taken again
            flow = []
            self._flows.append(flow)
        self._open[key] = (now, flow)
        if len(flow) < _PACKETS:
            flow.append((side, protocol, content))

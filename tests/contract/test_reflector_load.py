# SPDX-License-Identifier: EUPL-1.2
"""How much one reflector carries: fifty paced senders at once, and one without a pace."""

from __future__ import annotations

import importlib.util
import os
import selectors
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from probe.reflector.server import Announcement
from probe.wire.codec import from_dict
from probe.wire.rate import rate_mbps
from probe.wire.records import Segment

pytestmark = [pytest.mark.slow, pytest.mark.lab]

_spec = importlib.util.spec_from_file_location("reflector_client", Path(__file__).with_name("reflector_client.py"))
assert _spec is not None
assert _spec.loader is not None
c: Any = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("reflector_client", c)
_spec.loader.exec_module(c)

_RUN = """
import argparse, sys
from evenlane.commands import reflector
parser = argparse.ArgumentParser()
reflector.register(parser.add_subparsers(required=True))
args = parser.parse_args(["reflector", "--json", "--control-port", "0", "--data-port", "0", "--state", sys.argv[1]])
sys.exit(args.func(args))
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Announcement]]:
    import json

    process = subprocess.Popen([sys.executable, "-c", _RUN, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, Announcement(**json.loads(process.stdout.readline()))
    process.terminate()
    process.wait(10)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("direction", ["down", "up"])
def test_fifty_connections_of_four_mbits_keep_their_pace_on_one_core(
    program: tuple[subprocess.Popen[str], Announcement], direction: str
) -> None:
    process, there = program
    count, pace, seconds = 50, 4.0, 4.0
    sessions = [c.Session(there) for _ in range(count)]
    begun = [session.begin(pace_mbps=pace, segment_s=seconds, direction=direction)[0] for session in sessions]
    sockets = [c.tls(c.connect(there.data_port), name) for _, name in begun]
    before, start = cpu_seconds(process.pid), time.monotonic()
    for sock, (ticket, _) in zip(sockets, begun, strict=True):
        sock.sendall(c.hello(ticket, direction))
    if direction == "down":
        _drain(sockets, seconds + 1)
    else:
        _fill(sockets, pace, seconds)
    spent, wall = cpu_seconds(process.pid) - before, time.monotonic() - start
    rates = []
    for session, sock in zip(sessions, sockets, strict=True):
        segment = from_dict(Segment, session.finish()["segments"][0])
        rate = rate_mbps(segment, seconds)
        assert rate is not None
        rates.append(rate)
        sock.close()
        session.control.close()
    print(
        f"{direction}: {sum(rates):.0f} Mbit/s over {count} connections, slowest {min(rates):.2f}, "
        f"fastest {max(rates):.2f}; {100 * spent / wall:.0f} % of one core"
    )
    assert min(rates) > 0.95 * pace
    assert statistics.pstdev(rates) < 0.03 * pace
    assert spent / wall < 0.9


def _drain(sockets: list[Any], seconds: float) -> None:
    """Read and forget, without decrypting: the client must not be what is measured."""
    import socket as plain

    selector = selectors.DefaultSelector()
    for sock in sockets:
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
    buffer = bytearray(256 * 1024)
    end = time.monotonic() + seconds
    while selector.get_map() and time.monotonic() < end:
        for key, _ in selector.select(0.1):
            try:
                if not plain.socket.recv_into(key.fileobj, buffer):  # type: ignore[arg-type]
                    selector.unregister(key.fileobj)
            except ConnectionResetError:
                selector.unregister(key.fileobj)


def _fill(sockets: list[Any], pace: float, seconds: float) -> None:
    import socket as plain
    import ssl
    import struct

    for sock in sockets:
        sock.setsockopt(plain.SOL_SOCKET, 47, struct.pack("=I", round(pace * 1e6 / 8)))
        sock.setsockopt(plain.IPPROTO_TCP, 25, 64 * 1024)
        sock.setblocking(False)
    selector = selectors.DefaultSelector()
    for sock in sockets:
        selector.register(sock, selectors.EVENT_WRITE)
    piece = b"x" * 16384
    end = time.monotonic() + seconds + 0.5
    while selector.get_map() and time.monotonic() < end:
        for key, _ in selector.select(0.1):
            try:
                key.fileobj.send(piece)  # type: ignore[union-attr]
            except ssl.SSLWantWriteError:
                pass
            except OSError:
                selector.unregister(key.fileobj)


def test_one_unpaced_connection(program: tuple[subprocess.Popen[str], Announcement]) -> None:
    _, there = program
    session = c.Session(there, pace_mbps=0)
    (ticket, name), _ = session.begin(pace_mbps=0, segment_s=2.0)
    sock = session.open(ticket, name)
    _drain([sock], 3.0)
    rate = rate_mbps(from_dict(Segment, session.finish()["segments"][0]), 2.0)
    sock.close()
    assert rate is not None
    print(f"unpaced: {rate:.0f} Mbit/s")
    assert rate > 600

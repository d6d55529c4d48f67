# SPDX-License-Identifier: EUPL-1.2
"""Somebody in the house is on the telephone while the probe measures: he must not notice.

A real session with its calibration runs beside a call of 3 Mbit/s each way on a line of 20 and 5 Mbit/s. Both ends of
the call have one clock, so each packet's delay is known each way. spec/probe.md, "Household".
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.model import Link, Scenario
from lab.stage import Stage
from lab.witnesses import read

_spec = importlib.util.spec_from_file_location("robust", Path(__file__).with_name("robust.py"))
assert _spec is not None
assert _spec.loader is not None
robust = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("robust", robust)
_spec.loader.exec_module(robust)

pytestmark = [pytest.mark.lab, pytest.mark.serial]

LINE = Link(down_mbps=20, up_mbps=5, rtt_ms=20, buffer_ms=100)
PORT, MBPS, PACKET_BYTES = 5004, 3.0, 1200
"""312 packets a second each way; a call's 50 a second would be too large for a line's packets at this rate."""
ALONE_S, SESSION_S = 3.0, 12.5
MOST_LOSS, MOST_GAIN_MS = 0.01, 20.0

CALL = """
import json, select, socket, struct, sys, time
role, host, port, mbps, size, seconds = sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
peer, begun = (host, int(port)), time.time()
if role == "callee":
    sock.bind(peer); print("ready", flush=True)
    sock.settimeout(30); _, peer = sock.recvfrom(2048); begun = time.time()
sock.setblocking(False)
gap, rest = size * 8 / (mbps * 1e6), bytes(int(size) - 28 - 12)
sent, got = [], []
while (now := time.time()) < begun + seconds + 1:
    due = begun + len(sent) * gap
    if due > begun + seconds:
        due = now + 0.05
    elif now >= due:
        sent.append(now)
        try: sock.sendto(struct.pack("!Id", len(sent) - 1, now) + rest, peer)
        except BlockingIOError: pass
        continue
    select.select([sock], [], [], max(0, min(0.05, due - now)))
    while True:
        try: packet = sock.recv(2048)
        except BlockingIOError: break
        got.append((*struct.unpack_from("!Id", packet), time.time()))
print(json.dumps({"sent": sent, "got": got}), flush=True)
"""


@dataclass(frozen=True)
class Heard:
    """One way of the call in a stretch of time."""

    loss: float
    p50_ms: float
    p95_ms: float

    @classmethod
    def between(cls, sent: list[float], got: list[list[float]], start: float, end: float) -> Heard:
        """Of the packets that left in this stretch. A lost one's delay is endless, not left out."""
        arrived = {int(number): (at - then) * 1000 for number, then, at in got}
        delays = sorted(arrived.get(number, float("inf")) for number, then in enumerate(sent) if start <= then < end)
        assert len(delays) > 300, "too few packets to say anything"
        lost = sum(delay == float("inf") for delay in delays)
        return cls(lost / len(delays), delays[len(delays) // 2], delays[int(0.95 * len(delays))])


def call(stage: Stage, home: Any, seconds: float) -> list[subprocess.Popen[bytes]]:
    def start(role: str, place: Any) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-c", CALL, role, stage.server_address, *map(str, (PORT, MBPS, PACKET_BYTES, seconds))]
        return stage.start(argv, place, stdout=subprocess.PIPE)

    callee = start("callee", None)
    assert callee.stdout is not None
    assert callee.stdout.readline() == b"ready\n"
    return [start("caller", home), callee]


@pytest.mark.parametrize("direction", ["down", pytest.param("up", marks=pytest.mark.slow)])
def test_a_call_beside_a_session_is_not_disturbed(direction: str) -> None:
    with Stage([Scenario("home", LINE)], driver=robust.need("tun"), subscribers=1) as stage:
        stage.start_reflector()
        home = stage.operators[0].subscribers[0]
        begun = time.time()
        ends = call(stage, home, ALONE_S + SESSION_S)
        printed: dict[int, bytes] = {}
        readers = [
            threading.Thread(target=lambda at=at: printed.update({at: ends[at].communicate(timeout=60)[0]}))  # type: ignore[misc]
            for at in (0, 1)
        ]
        for reader in readers:
            reader.start()
        time.sleep(ALONE_S)
        out = stage.directory / "out.jsonl"
        arguments = ["differential", "--app", "youtube", "--pairs", "2", "--segment-s", "1.5", "--direction", direction]
        probe = stage.run_probe(home, [*arguments, "--out", str(out)], stdout=subprocess.DEVNULL)
        assert probe.wait(60) == 0
        for reader in readers:
            reader.join(60)
        [told] = read([out, *stage.records])
        void = stage.void_reason()
    assert told.measurement is not None
    session = told.measurement
    start, end = session.started_ms / 1000, session.ended_ms / 1000
    assert end < begun + ALONE_S + SESSION_S, "the call ended before the session did"
    caller, callee = (json.loads(printed[at]) for at in (0, 1))
    ways = {"up": (caller["sent"], callee["got"]), "down": (callee["sent"], caller["got"])}
    figures = {
        way: (Heard.between(*both, begun + 0.5, begun + ALONE_S), Heard.between(*both, start, end))
        for way, both in ways.items()
    }
    print(json.dumps({way: [vars_of(one) for one in pair] for way, pair in figures.items()}), session.calibration_mbps)
    if void is not None:
        pytest.skip(f"void: {void}")
    # The line was really measured, not spared into silence: what the call leaves free, within a half.
    free = LINE.down_mbps - MBPS if direction == "down" else LINE.up_mbps - MBPS
    assert session.calibration_mbps == pytest.approx(free, rel=0.5)
    assert all(segment.failure is None for pair in session.pairs for segment in pair.segments)
    for way, (alone, beside) in figures.items():
        assert beside.loss < MOST_LOSS, (way, beside)
        assert beside.p95_ms - alone.p95_ms < MOST_GAIN_MS, (way, alone, beside)


def vars_of(heard: Heard) -> dict[str, float]:
    return {"loss": round(heard.loss, 4), "p50_ms": round(heard.p50_ms, 1), "p95_ms": round(heard.p95_ms, 1)}

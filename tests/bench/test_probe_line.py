# SPDX-License-Identifier: EUPL-1.2
"""A probe on an emulated line: its goodput beside iperf3's, and what a policed arm leaves in the next segment."""

import contextlib
import json
import socket
import struct
import subprocess
import threading
import time

import pytest

from lab.classify import Match
from lab.drivers import refusal
from lab.model import Link, Rule, Scenario
from lab.stage import DATA_PORT, Stage
from probe.wire.envelope import from_line, open_record
from probe.wire.rate import rate_mbps
from probe.wire.records import Receipt

pytestmark = [pytest.mark.slow, pytest.mark.lab]
TLS_SHARE = 16384 / (16384 + 22)  # a full record's payload (RFC 8446, section 5.2)
SECONDS = 5
ETH_P_ALL = 0x0003


@pytest.fixture(autouse=True)
def _needs_tun():
    if why := refusal("tun"):
        pytest.skip(f"the driver tun does not work here: {why}")


def receipt_of(path) -> Receipt:
    records = [open_record(from_line(line)) for line in path.read_bytes().splitlines()]
    return next(record for record in records if isinstance(record, Receipt))


def iperf(stage, program):
    server = stage.start([program, "-s", "-1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    home = stage.operators[0].subscribers[0]
    argv = [program, "-c", stage.address_for(home.operator), "-t", str(SECONDS), "-O", "2", "-R", "-J", "-C", "cubic"]
    out, _ = stage.start(argv, home, stdout=subprocess.PIPE).communicate(timeout=SECONDS + 20)
    server.wait(10)
    return float(json.loads(out)["end"]["sum_received"]["bits_per_second"]) / 1e6


def probe_mbps(stage, tmp_path, name):
    """Application Mbit/s over the last half of each segment."""
    out = tmp_path / f"{name}.jsonl"
    argv = ["differential", "--app", "youtube", "--pairs", "1", "--pace-mbps", "0", "--segment-s", str(SECONDS)]
    process = stage.run_probe(stage.operators[0].subscribers[0], [*argv, "--out", str(out)], stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    segments = [s for pair in receipt_of(out).pairs for s in pair.segments]
    return [TLS_SHARE * rate_mbps(segment, SECONDS) for segment in segments]


@pytest.mark.parametrize("mbps", [100, 300])
def test_goodput_beside_iperf3(mbps, program, tmp_path):
    """At least 0.95 of iperf3 in the same run, pace unlimited, TLS. Runs alternate; the ratio is of medians."""
    iperf3 = program("iperf3", "iperf3")
    link = Link(down_mbps=mbps, up_mbps=mbps, rtt_ms=20, buffer_ms=100)
    peer, ours = [], []
    with Stage([Scenario("x", link)], driver="tun", subscribers=1) as stage:
        stage.start_reflector()
        for attempt in range(3):
            peer.append(iperf(stage, iperf3))
            ours += probe_mbps(stage, tmp_path, str(attempt))
    ratio = sorted(ours)[len(ours) // 2] / sorted(peer)[len(peer) // 2]
    print(
        f"\n{mbps} Mbit/s line: iperf3 {' '.join(f'{x:.1f}' for x in peer)}; "
        f"probe {' '.join(f'{x:.1f}' for x in ours)} Mbit/s; ratio of medians {ratio:.3f}"
    )
    assert ratio >= 0.95


class Listener(threading.Thread):
    """Notes every TCP packet with payload that reaches a subscriber from the data port: time, its port, bytes."""

    def __init__(self, home):
        super().__init__(daemon=True)
        self.seen = []
        self._raw = home.new_socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self._raw.bind(("line", ETH_P_ALL))
        self._raw.settimeout(0.2)
        self._ended = threading.Event()

    def run(self):
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                packet, (_, _, kind, *_) = self._raw.recvfrom(65536)
                if kind == socket.PACKET_OUTGOING or packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
                    continue
                head = 4 * (packet[0] & 15)
                source, target = struct.unpack_from("!HH", packet, head)
                payload = struct.unpack_from("!H", packet, 2)[0] - head - 4 * (packet[head + 12] >> 4)
                if source == DATA_PORT and payload > 0:
                    self.seen.append((time.monotonic(), target, payload))

    def close(self):
        self._ended.set()
        self.join()
        self._raw.close()


@pytest.mark.parametrize("rate", [1.5, 0.5])
def test_a_policed_arm_leaves_nothing_in_the_next_segment(rate, tmp_path):
    """Bytes of older connections that arrive after a segment's first payload byte: under 1 % of its own bytes."""
    rule = Rule(Match(sni=("*.googlevideo.com",)), "police", down_mbps=rate, burst_kb=64)
    link = Link(down_mbps=50, up_mbps=10, rtt_ms=20, buffer_ms=100)
    with Stage([Scenario("x", link, rules=(rule,))], driver="tun", subscribers=1) as stage:
        stage.start_reflector()
        listener = Listener(stage.operators[0].subscribers[0].home)
        listener.start()
        argv = ["differential", "--app", "youtube", "--pairs", "8", "--pace-mbps", "12", "--segment-s", "1"]
        process = stage.run_probe(stage.operators[0].subscribers[0], argv, stderr=subprocess.PIPE)
        _, errors = process.communicate(timeout=90)
        listener.close()
    assert process.returncode == 0, errors
    shares = leftovers(listener.seen)
    print(f"\npoliced to {rate} Mbit/s: left over, share of the next segment's bytes: "
          f"worst {max(shares):.5f} of {len(shares)} segments")  # fmt: skip
    assert len(shares) >= 15
    assert max(shares) < 0.01


def leftovers(seen):
    """For each connection but the first: bytes of earlier ones during it, as a share of its own."""
    ports = list(dict.fromkeys(port for _, port, _ in seen))
    begin = {port: next(at for at, p, _ in seen if p == port) for port in ports}
    shares = []
    for index, port in enumerate(ports[1:], start=1):
        end = begin[ports[index + 1]] if index + 1 < len(ports) else float("inf")
        during = [(p, size) for at, p, size in seen if begin[port] <= at < end]
        own = sum(size for p, size in during if p == port)
        shares.append(sum(size for p, size in during if p != port) / own)
    return shares

# SPDX-License-Identifier: EUPL-1.2
"""How much the emulated operators carry: a lab that is slower than the line it claims would lie."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable

import pytest

from lab.classify import Match
from lab.drivers import refusal
from lab.middlebox import Middlebox
from lab.model import Link, Rule, Scenario
from lab.stage import Stage

pytestmark = pytest.mark.slow

PAYLOAD_SHARE = 1448 / 1500
SECONDS = 5


def iperf(stage: Stage, program: str) -> float:
    """Mbit/s that iperf3 moves down to the first subscriber, one TCP connection, cubic."""
    server = stage.start([program, "-s", "-1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    home = stage.operators[0].subscribers[0]
    argv = [program, "-c", stage.address_for(home.operator), "-t", str(SECONDS), "-O", "1", "-R", "-J", "-C", "cubic"]
    client = stage.start(argv, home, stdout=subprocess.PIPE)
    out, _ = client.communicate(timeout=SECONDS + 20)
    server.wait(10)
    return float(json.loads(out)["end"]["sum_received"]["bits_per_second"]) / 1e6


@pytest.mark.lab
@pytest.mark.parametrize("driver", ["tun", "veth"])
@pytest.mark.parametrize("mbps", [100, 300])
def test_a_neutral_operator_fills_its_line(
    driver: str, mbps: int, program: Callable[[str, str], str], record_property: Callable[[str, object], None]
) -> None:
    iperf3 = program("iperf3", "iperf3")
    if why := refusal(driver):  # type: ignore[arg-type]
        pytest.skip(f"the driver {driver} does not work here: {why}")
    link = Link(down_mbps=mbps, up_mbps=mbps, rtt_ms=20, buffer_ms=100)
    rules = (Rule(Match(sni=("*.googlevideo.com",)), "police", down_mbps=1.5),)  # of others: classification is on
    with Stage([Scenario("x", link, rules=rules)], driver=driver, subscribers=1) as stage:
        reached = iperf(stage, iperf3)
        counted, void = stage.snapshots()["x"], stage.void_reason()
    record_property("mbps", round(reached, 1))
    print(f"{driver} {mbps} Mbit/s: iperf3 {reached:.1f} Mbit/s, {counted['cpu_s']} s CPU, {counted['late_ms']}")
    if void:
        pytest.skip(f"void: {void}")
    assert reached >= 0.97 * mbps * PAYLOAD_SHARE


@pytest.mark.lab
def test_the_capacity_of_one_operator(program: Callable[[str, str], str]) -> None:
    iperf3 = program("iperf3", "iperf3")
    if why := refusal("tun"):
        pytest.skip(f"the driver tun does not work here: {why}")
    link = Link(down_mbps=10_000, up_mbps=10_000, rtt_ms=2, buffer_ms=50)
    with Stage([Scenario("x", link)], driver="tun", subscribers=1) as stage:
        reached = iperf(stage, iperf3)
    print(f"tun, no limit: iperf3 {reached:.0f} Mbit/s")
    assert reached >= 400


def test_packets_a_second_in_virtual_time() -> None:
    """The bare middlebox, without any system call: classification on, a policer for other flows."""
    home, server = bytes([198, 18, 1, 11]), bytes([192, 0, 2, 10])
    rules = [Rule(Match(sni=("*.googlevideo.com",)), "police", down_mbps=1.5)]
    box = Middlebox([home], Link(down_mbps=1000, rtt_ms=20), rules)
    head = bytes([0x45, 0, 5, 0xDC, 0, 0, 0x40, 0, 64, 6, 0, 0]) + server + home + b"\x01\xbb\x9c\x40"
    packet = head + bytes(8) + b"\x50\x10" + bytes(1500 - 34)
    count, began = 200_000, time.process_time()
    now, left = 0.0, 0
    for index in range(count):
        now += 1.2e-5
        box.from_internet(packet, now)
        if index % 16 == 0:
            left += len(box.poll(now)[0])
    rate = count / (time.process_time() - began)
    print(f"{rate:.0f} packets/s of 1500 bytes, {rate * 12000 / 1e6:.0f} Mbit/s a core")
    assert left > count * 0.9
    assert rate >= 100_000

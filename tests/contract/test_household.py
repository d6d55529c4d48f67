# SPDX-License-Identifier: EUPL-1.2
"""The home router's counters, asked of a real server: on loopback, and by multicast between two namespaces."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lab.namespaces import Warden, module_environment
from probe import igd
from probe.household import Household
from probe.netio.dial import Dialer

_spec = importlib.util.spec_from_file_location("igd_server", Path(__file__).with_name("igd_server.py"))
assert _spec is not None
assert _spec.loader is not None
s: ModuleType = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("igd_server", s)
_spec.loader.exec_module(s)

HOME = "127.0.0.1"


class Box:
    """A router of loopback whose counters the test turns."""

    def __init__(self) -> None:
        self.sent = self.received = 0
        self._routers: list[Any] = []

    def serve(self, **more: Any) -> Any:
        self._routers.append(s.Router(HOME, lambda: (self.sent, self.received), **more))
        return self._routers[-1]

    def client(self, **more: Any) -> igd.Igd:
        router = self.serve(**more)
        return igd.Igd(igd.Place(HOME, router.port, "/ctl/CmnIfCfg"), s.SERVICE, Dialer())

    def close(self) -> None:
        for router in self._routers:
            router.close()


@pytest.fixture
def box() -> Iterator[Box]:
    made = Box()
    yield made
    made.close()


def place(router: Any, gateway: str = HOME, wait_s: float = 5.0) -> igd.Place | None:
    return igd.search(HOME, gateway, group=router.udp_address, wait_s=wait_s)


def test_a_router_is_found_and_counts_both_ways(box: Box) -> None:
    router = box.serve()
    found = place(router)
    assert found == igd.Place(HOME, router.port, "/rootDesc.xml")
    client = box.client()
    assert client.total() == 0
    box.sent, box.received = 1000, 20_000
    assert client.total() == 21_000


def test_counters_of_32_bits_wrap_and_nothing_is_lost(box: Box) -> None:
    box.sent, box.received = 2**32 - 100, 5
    client = box.client()
    assert client.total() == 0
    box.sent += 300
    assert client.total() == 300
    box.received += 7
    assert client.total() == 307


def test_counters_of_64_bits_are_taken_as_they_are(box: Box) -> None:
    box.sent, box.received = 2**40, 2**41
    client = box.client(wraps=False)
    client.total()
    box.sent += 10**6
    assert client.total() == 10**6


def test_a_router_that_began_anew_is_no_traffic(box: Box) -> None:
    box.sent = box.received = 10**9
    client = box.client()
    client.total()
    box.sent, box.received = 500, 900
    assert client.total() is None
    box.sent += 42
    assert client.total() == 42


def test_a_counter_of_64_bits_that_began_anew_is_no_traffic(box: Box) -> None:
    box.sent, box.received = 2**40, 2**41
    client = box.client(wraps=False)
    client.total()
    box.sent, box.received = 500, 2**41 + 10
    assert client.total() is None
    box.sent += 42
    assert client.total() == 42


def test_what_has_more_than_32_bits_does_not_wrap() -> None:
    assert igd.step(2**32 - 10, 5) == 15
    assert igd.step(2**32 + 3, 2**32 + 100) == 97
    assert igd.step(2**32 + 3, 100) < 0, "it began anew"


def test_an_answer_that_is_cut_off_is_no_number() -> None:
    name = "NewTotalBytesSent"
    assert igd.counter_in(b"<NewTotalBytesSent>123</NewTotalBytesSent>", name) == 123
    assert igd.counter_in(b"<NewTotalBytesSent>123", name) is None
    assert igd.counter_in(b"<NewTotalBytesSent>" + b" " * 2000 + b"123</NewTotalBytesSent>", name) is None


def test_a_router_that_went_away_says_nothing(box: Box) -> None:
    client = box.client()
    assert client.total() == 0
    box.close()
    box._routers.clear()
    assert client.total() is None


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2:80/rootDesc.xml",
        "https://127.0.0.1/rootDesc.xml",
        "http://localhost:1/x",
        "http://127.0.0.1@198.51.100.7/x",
        "http://127.0.0.1:99999/x",
        "file:///etc/passwd",
    ],
)
def test_an_answer_that_leads_elsewhere_is_not_followed(box: Box, location: str) -> None:
    assert place(box.serve(location=location), wait_s=0.4) is None


def test_an_answer_of_somebody_else_in_the_house_is_not_believed(box: Box) -> None:
    assert place(box.serve(), gateway="127.0.0.2", wait_s=0.4) is None
    for_the_router = box.serve(location="http://127.0.0.2:5000/chosen/by/somebody/else")
    assert place(for_the_router, gateway="127.0.0.2", wait_s=0.4) is None


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        ("/ctl/CmnIfCfg", "/ctl/CmnIfCfg"),
        ("ctl/CmnIfCfg", "/a/ctl/CmnIfCfg"),
        ("/ctl?a=1&amp;b=2", "/ctl?a=1&b=2"),
        ("http://127.0.0.1:8080/ctl", "/ctl"),
        ("http://127.0.0.9/ctl", None),
        ("//127.0.0.9/ctl", None),
        ("gopher://127.0.0.1/", None),
        ("/ctl HTTP/1.1\r\nX: y", None),
        ("", None),
    ],
)
def test_the_control_address_stays_on_the_router(control: str, expected: str | None) -> None:
    found = igd.service_in(s.DESCRIPTION.format(service=s.SERVICE, control=control).encode())
    where = igd.resolve(found[1], igd.Place(HOME, 5000, "/a/root.xml")) if found else None
    assert (where.path if where else None) == expected
    assert where is None or where.host == HOME


@pytest.mark.parametrize(
    "description",
    [
        b"",
        b"<service>" * 14_000,
        b"<service><serviceType>" + s.SERVICE.encode() + b"</serviceType><controlURL>" + b"x" * 120_000,
        b'<!DOCTYPE x [<!ENTITY a "' + b"a" * 5000 + b'">]><service><serviceType>&a;</serviceType></service>',
        b"\xff\xfe" * 60_000,
        s.DESCRIPTION.format(service="urn:schemas-upnp-org:service:WANIPConnection:1", control="/x").encode(),
    ],
)
def test_a_hostile_description_names_no_service_and_takes_no_time(description: bytes) -> None:
    begun = time.process_time()
    assert igd.service_in(description) is None
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.168.1.1", True),
        ("192.168.1.2", False),
        ("192.168.1.0", False),
        ("192.168.1.255", False),
        ("192.168.2.1", False),
        ("193.190.0.1", False),
        ("router", False),
    ],
)
def test_only_a_neighbour_is_asked(address: str, expected: bool) -> None:
    assert igd.is_neighbour(address, "192.168.1.2", "255.255.255.0") is expected
    assert not igd.is_neighbour("127.0.0.1", "127.0.0.2", "255.0.0.0")
    assert not igd.is_neighbour("193.190.0.1", "193.190.0.2", "255.255.255.0"), "a public subnet is no house"


@pytest.mark.parametrize("value", ["", "-1", "1e9", "0x10", "9" * 21, str(2**64), "\u0663", "1 2", "<b>1</b>"])
def test_a_counter_that_is_no_number_is_none(value: str) -> None:
    answer = s.ANSWER.format(action="GetTotalBytesSent", service=s.SERVICE, what="TotalBytesSent", value=value)
    assert igd.counter_in(answer.encode(), "NewTotalBytesSent") is None


def test_somebody_who_streams_is_noticed_and_an_idle_house_is_not(box: Box) -> None:
    client = box.client()
    assert client.total() == 0
    house = Household("igd", client.total)
    assert house.is_busy(0.5) is False
    stop = threading.Event()

    def stream() -> None:
        while not stop.wait(0.01):
            box.received += 20_000  # 16 Mbit/s

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        assert house.is_busy(0.5) is True
    finally:
        stop.set()
        thread.join()


IN_THE_HOME = """
import json, sys
from pathlib import Path
from probe import igd
from probe.environment import observe
from probe.household import Household, find
from probe.line import gateway_of, ipv4_of, Line
line = Line("lan", is_wifi=False, is_vpn=False)
root = Path(sys.argv[1])
house = find(observe("192.168.1.2", "193.190.0.1", line), "192.168.1.2", line, root)
before = house.count()
print(json.dumps({"source": house.source, "before": before}), flush=True)
sys.stdin.readline()
print(json.dumps({"after": house.count()}), flush=True)
"""


def test_by_multicast_in_a_house_of_namespaces(tmp_path: Path) -> None:
    """The whole way: route, question to the group, answer, description, counters of a real interface."""
    try:
        warden = Warden()
    except OSError as error:
        pytest.skip(f"network namespaces are not to be had here: {error}")
    with warden:
        router, home = warden.namespace(), warden.namespace()
        router.cable("lan", home, "lan")
        router.configure("lan", addresses=["192.168.1.1/24"])
        home.configure("lan", addresses=["192.168.1.2/24"], routes=[("0.0.0.0/0", "192.168.1.2", "192.168.1.1")])
        server = router.popen(
            [sys.executable, str(Path(__file__).with_name("igd_server.py")), "192.168.1.1", "lan"],
            stdout=subprocess.PIPE,
        )
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        client = home.popen(
            [sys.executable, "-c", IN_THE_HOME, "/"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=module_environment(),
        )
        assert client.stdin is not None
        assert client.stdout is not None
        first = json.loads(client.stdout.readline())
        assert first["source"] == "igd"
        ping = home.popen(
            [sys.executable, "-c", "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
             "for _ in range(100): s.sendto(bytes(1000), ('192.168.1.1', 9))"],
        )  # fmt: skip
        assert ping.wait(20) == 0
        client.stdin.write(b"\n")
        client.stdin.flush()
        after = json.loads(client.stdout.readline())["after"]
        assert 100_000 <= after - first["before"] < 200_000
        assert client.wait(20) == 0
        server.terminate()
        server.wait(20)

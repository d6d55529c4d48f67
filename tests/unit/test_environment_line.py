# SPDX-License-Identifier: EUPL-1.2
"""What a probe tells of its surroundings, from made-up /proc and /sys trees."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from probe.environment import Asks, observe
from probe.household import on_this_device
from probe.line import Line, PathWatch, default_routes, line_of, position_of
from probe.wire.codec import to_dict
from probe.wire.records import Environment
from probe.wire.scrub import address_path

PRIVATE, PUBLIC, PEER = "192.168.1.7", "81.83.0.9", "193.190.0.1"


class Tree:
    """A machine on paper."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.addresses: dict[str, str] = {}

    def interface(self, name: str, address: str, *, wifi: bool = False, up: bool = True) -> None:
        directory = self.root / "sys/class/net" / name
        (directory / "statistics").mkdir(parents=True)
        (directory / "operstate").write_text("up\n" if up else "down\n")
        (directory / "statistics/rx_bytes").write_text("700\n")
        (directory / "statistics/tx_bytes").write_text("50\n")
        if wifi:
            (directory / "phy80211").mkdir()
        self.addresses[name] = address

    def line(self, local: str) -> Line | None:
        return line_of(local, self.root, self.addresses.get)

    def asks(self, *, said: dict[str, str] | None = None, shaped: bool | None = None) -> Asks:
        """This machine's answers; `said` is what its programs print, by their first word."""
        return Asks(
            root=self.root,
            address_of=self.addresses.get,
            program=lambda command: (said or {}).get(command[0]),
            is_shaped=lambda _: shaped,
        )

    def observe(self, local: str, peer: str = PEER, **answers: Any) -> Environment:
        declared = answers.pop("declared", None)
        return observe(local, peer, self.line(local), declared=declared, asks=self.asks(**answers))

    def write(self, name: str, content: str = "") -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path)
    made.interface("lo", "127.0.0.1")
    return made


def test_a_wired_host_behind_a_router(tree: Tree) -> None:
    tree.interface("eth0", PRIVATE)
    seen = tree.observe(PRIVATE, shaped=False)
    assert (seen.position, seen.wifi, seen.vpn, seen.sqm) == ("behind_nat", False, False, None)
    assert (seen.upstream_router, seen.family) == (True, 4)
    assert on_this_device(seen, tree.line(PRIVATE), tree.root).source is None


def test_wifi_is_told_and_nothing_that_names_it(tree: Tree) -> None:
    tree.interface("wlan0", PRIVATE, wifi=True)
    seen = tree.observe(PRIVATE)
    assert (seen.position, seen.wifi) == ("wifi", True)
    plain = to_dict(seen)
    assert address_path(plain) is None
    assert "wlan0" not in str(plain)


def test_a_router_counts_the_household(tree: Tree) -> None:
    tree.interface("pppoe-wan", PUBLIC)
    line = tree.line(PUBLIC)
    household = on_this_device(tree.observe(PUBLIC), line, tree.root)
    assert household.source == "router"
    assert household.count() == 750
    (tree.root / "sys/class/net/pppoe-wan/statistics/rx_bytes").unlink()
    assert household.count() is None


def test_a_tunnel_beside_a_line_is_a_vpn_and_one_alone_is_a_modems_or_a_namespaces(tree: Tree) -> None:
    tree.interface("wg0", "10.64.0.2")
    assert tree.line("10.64.0.2") == Line("wg0", is_wifi=False, is_vpn=False)
    tree.interface("eth0", PRIVATE)
    assert tree.line("10.64.0.2") == Line("wg0", is_wifi=False, is_vpn=True)
    assert tree.line(PRIVATE) == Line("eth0", is_wifi=False, is_vpn=False)


def test_a_line_that_is_down_carries_no_vpn(tree: Tree) -> None:
    tree.interface("tun0", "10.8.0.2")
    tree.interface("eth0", PRIVATE, up=False)
    assert tree.line("10.8.0.2") == Line("tun0", is_wifi=False, is_vpn=False)


def test_an_ipv6_address_finds_its_interface(tree: Tree) -> None:
    tree.interface("eth0", PRIVATE)
    (tree.root / "proc/net").mkdir(parents=True)
    (tree.root / "proc/net/if_inet6").write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\n2a0220a8000000000000000000000042 02 40 00 00     eth0\n"
    )
    assert tree.line("2a02:20a8::42") == Line("eth0", is_wifi=False, is_vpn=False)
    assert tree.line("2a02:20a8::43") is None


def test_openwrts_shaper_is_seen_where_it_can_be(tree: Tree) -> None:
    tree.interface("eth0", PUBLIC)
    (tree.root / "etc/config").mkdir(parents=True)
    (tree.root / "etc/config/sqm").write_text("")
    assert tree.observe(PUBLIC).sqm is False
    (tree.root / "var/run/sqm").mkdir(parents=True)
    (tree.root / "var/run/sqm/eth0.state").write_text("")
    assert tree.observe(PUBLIC).sqm is True


def test_what_cannot_be_seen_is_not_known(tmp_path: Path) -> None:
    assert line_of(PRIVATE, tmp_path / "nothing") is None
    seen = observe(PRIVATE, "198.18.0.1", None, asks=Asks(root=tmp_path, program=lambda _: None))
    assert (seen.position, seen.wifi, seen.vpn, seen.sqm) == ("unknown", None, None, None)


@pytest.mark.parametrize(
    ("local", "peer", "position"),
    [
        (PUBLIC, PEER, "edge"),
        ("2a02:20a8::42", "2a02:20a8::1", "edge"),
        (PRIVATE, PEER, "behind_nat"),
        ("100.64.0.9", PEER, "behind_nat"),
        ("198.18.0.9", "198.18.0.1", "unknown"),
        ("127.0.0.1", "127.0.0.1", "unknown"),
    ],
)
def test_position_from_the_socket_addresses(local: str, peer: str, position: str) -> None:
    assert position_of(local, peer, None) == position


def test_this_machine_can_be_looked_at() -> None:
    line = line_of("127.0.0.1")
    assert line is None or line.name == "lo"
    assert observe("127.0.0.1", "127.0.0.1", line).load is not None


ROUTES = """Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
{iface}\t00000000\t{gateway}\t0003\t0\t0\t100\t00000000\t0\t0\t0
{iface}\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""
ROUTES_V6 = """\
20010db8000000000000000000000000 20 {zero} 00 {zero} 00000100 00000001 00000000 00000001 {iface}
{zero} 00 {zero} 00 fe80000000000000000000000000{gateway} 00000064 00000001 00000000 00000003 {iface}
{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo
"""


def routes(root: Path, iface: str = "eth0", gateway: str = "0101A8C0", v6: bool = False) -> None:
    (root / "proc/net").mkdir(parents=True, exist_ok=True)
    if v6:
        text = ROUTES_V6.format(iface=iface, gateway=gateway[:4].lower(), zero="0" * 32)
        (root / "proc/net/ipv6_route").write_text(text)
    else:
        (root / "proc/net/route").write_text(ROUTES.format(iface=iface, gateway=gateway))


def test_default_routes_are_interface_and_gateway_alone(tmp_path: Path) -> None:
    assert default_routes(socket.AF_INET, tmp_path) is None
    routes(tmp_path)
    routes(tmp_path, v6=True)
    assert default_routes(socket.AF_INET, tmp_path) == {"eth0 0101A8C0"}
    assert default_routes(socket.AF_INET6, tmp_path) == {"eth0 fe800000000000000000000000000101"}


def test_this_machines_own_routes_can_be_read() -> None:
    assert default_routes(socket.AF_INET) is not None


@pytest.mark.parametrize("change", [{"iface": "wwan0"}, {"gateway": "FE01A8C0"}])
@pytest.mark.parametrize("v6", [False, True])
def test_another_interface_or_gateway_is_another_path(tmp_path: Path, change: dict[str, str], v6: bool) -> None:
    routes(tmp_path, v6=v6)
    watch = PathWatch("::1" if v6 else "127.0.0.1", root=tmp_path)
    watch.begin()
    assert watch.has_changed() is False
    routes(tmp_path, v6=v6, **change)  # type: ignore[arg-type]
    assert watch.has_changed() is True
    watch.begin()
    assert watch.has_changed() is False, "the next pair begins on the new path"


def test_another_address_is_another_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    routes(tmp_path)
    watch = PathWatch("127.0.0.1", root=tmp_path)
    monkeypatch.setattr(watch, "_peer", "127.9.9.9")
    assert watch.has_changed() is False, "loopback answers to both from one address"
    monkeypatch.setattr(watch, "_bind", "127.0.0.7")
    assert watch.has_changed() is True


def test_no_way_at_all_is_another_path_too(tmp_path: Path) -> None:
    watch = PathWatch("127.0.0.1", root=tmp_path)
    watch._peer = "255.255.255.255"  # refused without broadcast permission: as when the interface is gone
    assert watch.has_changed() is True

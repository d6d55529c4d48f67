# SPDX-License-Identifier: EUPL-1.2
"""What a probe tells of its surroundings, from made-up /proc and /sys trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from probe.environment import Line, household_counter, line_of, observe, position_of
from probe.wire.codec import to_dict
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


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path)
    made.interface("lo", "127.0.0.1")
    return made


def test_a_wired_host_behind_a_router(tree: Tree) -> None:
    tree.interface("eth0", PRIVATE)
    line = tree.line(PRIVATE)
    seen = observe(PRIVATE, PEER, line, tree.root)
    assert (seen.position, seen.wifi, seen.vpn, seen.sqm) == ("behind_nat", False, False, None)
    assert household_counter(seen.position, line, tree.root) is None


def test_wifi_is_told_and_nothing_that_names_it(tree: Tree) -> None:
    tree.interface("wlan0", PRIVATE, wifi=True)
    seen = observe(PRIVATE, PEER, tree.line(PRIVATE), tree.root)
    assert (seen.position, seen.wifi) == ("wifi", True)
    plain = to_dict(seen)
    assert address_path(plain) is None
    assert "wlan0" not in str(plain)


def test_a_router_counts_the_household(tree: Tree) -> None:
    tree.interface("pppoe-wan", PUBLIC)
    line = tree.line(PUBLIC)
    count = household_counter(position_of(PUBLIC, PEER, line), line, tree.root)
    assert count is not None
    assert count() == 750
    (tree.root / "sys/class/net/pppoe-wan/statistics/rx_bytes").unlink()
    assert count() is None


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
    assert observe(PUBLIC, PEER, tree.line(PUBLIC), tree.root).sqm is False
    (tree.root / "var/run/sqm").mkdir(parents=True)
    (tree.root / "var/run/sqm/eth0.state").write_text("")
    assert observe(PUBLIC, PEER, tree.line(PUBLIC), tree.root).sqm is True


def test_what_cannot_be_seen_is_not_known(tmp_path: Path) -> None:
    assert line_of(PRIVATE, tmp_path / "nothing") is None
    seen = observe(PRIVATE, "198.18.0.1", None, tmp_path)
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

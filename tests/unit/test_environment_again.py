# SPDX-License-Identifier: EUPL-1.2
"""What an owner tells, what the system says, and what is different at the end of a session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from probe.clock import is_synchronised, output_of
from probe.environment import Asks, is_metered, look_again, observe
from probe.line import Line, gateway_of, has_upstream_router, source_towards
from probe.settings import Settings
from probe.wire.codec import to_dict
from probe.wire.records import Environment
from probe.wire.scrub import address_path

PRIVATE, PUBLIC, PEER = "192.168.1.7", "81.83.0.9", "193.190.0.1"
PUBLIC6, PEER6 = "2a02:20a8::42", "2a02:20a8:1::1"
WIRED = Line("eth0", is_wifi=False, is_vpn=False)


def asks(
    root: Path, said: dict[str, str] | None = None, *, shaped: bool | None = None, beside: str | None = None
) -> Asks:
    return Asks(
        root=root,
        address_of=lambda _: beside,
        program=lambda command: (said or {}).get(command[0]),
        is_shaped=lambda _: shaped,
    )


@pytest.mark.parametrize(
    ("local", "peer", "expected"),
    [
        (PRIVATE, PEER, True),
        ("10.1.2.3", PEER, True),
        ("172.31.255.1", PEER, True),
        ("172.32.0.1", PEER, False),
        ("100.64.3.4", PEER, False),
        ("192.0.0.2", PEER, False),
        (PUBLIC, PEER, False),
        (PRIVATE, "192.168.9.9", None),
        ("198.18.1.11", "192.0.2.10", None),
        ("127.0.0.1", "127.0.0.1", None),
        ("fd00::1", PEER6, None),
    ],
)
def test_a_router_before_us_is_seen_by_our_address(
    tmp_path: Path, local: str, peer: str, expected: bool | None
) -> None:
    assert has_upstream_router(local, peer, WIRED, tmp_path, lambda _: None) is expected


def test_behind_ipv6_the_interfaces_other_address_decides_or_whether_we_forward(tmp_path: Path) -> None:
    def told(beside: str | None) -> bool | None:
        return has_upstream_router(PUBLIC6, PEER6, WIRED, tmp_path, lambda _: beside)

    assert (told(PRIVATE), told(PUBLIC), told("100.64.0.9"), told(None)) == (True, False, False, None)
    forwarding = tmp_path / "proc/sys/net/ipv6/conf/all/forwarding"
    forwarding.parent.mkdir(parents=True)
    forwarding.write_text("0\n")
    assert told(None) is None
    forwarding.write_text("1\n")
    assert (told(None), told(PRIVATE)) == (False, True)


def test_inside_a_tunnel_nothing_is_known_of_the_house(tmp_path: Path) -> None:
    assert has_upstream_router("10.8.0.2", PEER, replace(WIRED, name="wg0", is_vpn=True), tmp_path) is None


def test_what_the_owner_told_is_in_the_record_and_no_address(tmp_path: Path) -> None:
    told = Settings(
        brand="Proximity",
        tariff="Flex 100",
        contract_down_mbps=100.0,
        contract_up_mbps=20.0,
        opt_in_filters=False,
        declared_position="behind_router",
        metered="no",
    )
    seen = observe(PRIVATE, PEER, WIRED, declared=told, asks=asks(tmp_path))
    assert (seen.brand, seen.tariff, seen.contract_down_mbps, seen.contract_up_mbps) == (
        "Proximity",
        "Flex 100",
        100,
        20,
    )
    assert (seen.opt_in_filters, seen.declared_position, seen.metered, seen.hotspot) == (
        False,
        "behind_router",
        False,
        False,
    )
    assert observe(PRIVATE, PEER, WIRED, declared=Settings(declared_position="hotspot"), asks=asks(tmp_path)).hotspot
    assert address_path(to_dict(seen)) is None
    assert observe(PUBLIC6, PEER6, WIRED, asks=asks(tmp_path)).family == 6


@pytest.mark.parametrize(
    ("name", "said", "told", "expected"),
    [
        ("eth0", None, "auto", None),
        ("eth0", "no (guessed)\n", "auto", False),
        ("eth0", "yes\n", "auto", True),
        ("eth0", "yes (guessed)\n", "auto", True),
        ("eth0", "unknown\n", "auto", None),
        ("wwan0", None, "auto", True),
        ("rmnet_data0", "", "auto", True),
        ("wwan0", "no\n", "auto", False),
        ("wwan0", "yes\n", "no", False),
        ("eth0", "no\n", "yes", True),
    ],
)
def test_who_says_that_a_line_is_metered(
    tmp_path: Path, name: str, said: str | None, told: str, expected: bool | None
) -> None:
    line = replace(WIRED, name=name)
    declared = Settings(metered=told)  # type: ignore[arg-type]
    assert is_metered(line, declared, asks(tmp_path, {"nmcli": said} if said is not None else {})) is expected
    assert is_metered(None, Settings(), asks(tmp_path)) is None


@pytest.mark.parametrize(
    "name", ["run/systemd/timesync/synchronized", "var/etc/evenlane/clock", "var/state/dnsmasqsec"]
)
def test_whoever_sets_the_clock_leaves_a_file(tmp_path: Path, name: str) -> None:
    assert is_synchronised(tmp_path, lambda _: None) is None
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("")
    assert is_synchronised(tmp_path, lambda _: None) is True


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"timedatectl": "yes\n"}, True),
        ({"timedatectl": "no\n"}, False),
        ({"timedatectl": ""}, None),
        ({"timedatectl": "", "adjtimex": "    status:       64 (UNSYNC)\n"}, False),
        ({"adjtimex": "    status:       8193 (PLL)\n"}, True),
        ({"adjtimex": "Usage: adjtimex\n"}, None),
    ],
)
def test_else_the_kernel_is_asked_through_a_program(
    tmp_path: Path, said: dict[str, str], expected: bool | None
) -> None:
    assert is_synchronised(tmp_path, lambda command: said.get(command[0])) is expected


def test_a_program_that_is_not_there_or_takes_too_long_says_nothing() -> None:
    assert output_of(["no-such-program-of-evenlane"]) is None
    assert output_of(["sleep", "20"], timeout_s=0.05) is None
    assert output_of(["echo", "hello"]) == "hello\n"


def test_programs_see_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENLANE_SECRET", "x")
    assert {row.partition("=")[0] for row in (output_of(["env"]) or "").split()} - {"_", "PWD", "SHLVL"} == {
        "PATH",
        "LC_ALL",
    }


@pytest.mark.parametrize(
    ("local", "shaped", "has_sqm_scripts", "expected"),
    [
        (PRIVATE, True, False, True),
        (PRIVATE, False, False, None),
        (PUBLIC, False, False, False),
        (PUBLIC, None, False, None),
        (PUBLIC, True, False, True),
        (PRIVATE, None, True, False),
        (PRIVATE, True, True, True),
    ],
)
def test_a_shaper_here_is_told_and_one_further_up_is_not_known(
    tmp_path: Path, local: str, shaped: bool | None, has_sqm_scripts: bool, expected: bool | None
) -> None:
    if has_sqm_scripts:
        (tmp_path / "etc/config").mkdir(parents=True)
        (tmp_path / "etc/config/sqm").write_text("")
    assert observe(local, PEER, WIRED, asks=asks(tmp_path, shaped=shaped)).sqm is expected


def again(before: Environment, root: Path, local: str, line: Line | None, **more: object) -> Environment:
    return look_again(before, local, PEER, line, asks=asks(root, **more))  # type: ignore[arg-type]


def test_at_the_end_only_what_is_different_is_named_and_the_beginning_stays(tmp_path: Path) -> None:
    before = observe(PRIVATE, PEER, WIRED, asks=asks(tmp_path))
    assert again(before, tmp_path, PRIVATE, WIRED) == before
    moved = again(before, tmp_path, "10.8.0.2", Line("wg0", is_wifi=False, is_vpn=True))
    assert moved.changed == ("vpn", "upstream_router")
    assert replace(moved, changed=()) == before
    roamed = again(before, tmp_path, "100.70.0.1", Line("wlan0", is_wifi=True, is_vpn=False), shaped=False)
    assert set(roamed.changed) == {"position", "wifi", "upstream_router", "sqm"}
    to_mobile = again(before, tmp_path, "100.70.0.1", replace(WIRED, name="wwan0"))
    assert set(to_mobile.changed) == {"upstream_router", "metered"}
    set_right = again(before, tmp_path, PRIVATE, WIRED, said={"timedatectl": "yes"})
    assert set_right.changed == ("clock_synchronised",)


def test_where_there_is_no_way_any_more_nothing_is_claimed(tmp_path: Path) -> None:
    before = observe(PRIVATE, PEER, WIRED, asks=asks(tmp_path))
    assert again(before, tmp_path, "", None) == before


def test_the_load_of_the_machine_is_no_change(tmp_path: Path) -> None:
    before = replace(observe(PRIVATE, PEER, WIRED, asks=asks(tmp_path)), load=99.0, clock_offset_ms=5)
    assert again(before, tmp_path, PRIVATE, WIRED) == before


def test_the_gateway_is_that_of_the_lines_own_default_route(tmp_path: Path) -> None:
    (tmp_path / "proc/net").mkdir(parents=True)
    rows = ["Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT"]
    rows += [
        f"{name}\t00000000\t{word}\t3\t0\t0\t0\t00000000\t0\t0\t0"
        for name, word in (("eth1", "01020304"), ("eth0", "0101A8C0"), ("tun0", "00000000"))
    ]
    (tmp_path / "proc/net/route").write_text("\n".join(rows) + "\n")
    assert gateway_of(WIRED, tmp_path) == "192.168.1.1"
    assert gateway_of(replace(WIRED, name="tun0"), tmp_path) is None
    assert gateway_of(replace(WIRED, name="eth9"), tmp_path) is None


def test_the_kernel_tells_the_source_and_nothing_is_sent() -> None:
    assert source_towards("127.0.0.1") == "127.0.0.1"
    assert source_towards("::1") in {"::1", ""}
    assert source_towards("255.255.255.255") == ""
    assert source_towards("127.0.0.1", bind="127.0.0.7") == "127.0.0.7"

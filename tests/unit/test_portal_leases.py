# SPDX-License-Identifier: EUPL-1.2
"""Where a network says that it has a portal, the owner's own program, and the weight of several looks."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path

import pytest

from probe.capport import addresses, announced
from probe.line import Line
from probe.netio.dial import Dialer
from probe.netio.oneshot import Reply
from probe.portal import has_address, judge_page, run_login_hook, with_portal, worst
from probe.wire.portal import page_of, read_page, signed_bytes
from probe.wire.records import Environment
from probe.wire.signing import SeedSigner

WLAN = Line("wlan0", is_wifi=True, is_vpn=False)
API = "https://portal.example/api?x=1"


def write(root: Path, name: str, content: bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)


def dhcp_message(options: bytes) -> bytes:
    return bytes(236) + bytes((99, 130, 83, 99)) + options


def found(root: Path, said: str = "") -> list[str]:
    return addresses(WLAN, root, lambda command: said if command[0] == "nmcli" else None)


def test_systemd_networkd(tmp_path: Path) -> None:
    write(tmp_path, "sys/class/net/wlan0/ifindex", b"3\n")
    write(
        tmp_path, "run/systemd/netif/links/3", f"ADMIN_STATE=configured\nCAPTIVE_PORTAL={API}\nDNS=192.0.2.1\n".encode()
    )
    write(tmp_path, "run/systemd/netif/links/4", b"CAPTIVE_PORTAL=https://other.example/\n")
    assert found(tmp_path) == [API]


def test_iscs_client_and_its_last_lease_of_this_interface(tmp_path: Path) -> None:
    def lease(name: str, url: str) -> str:
        return f'lease {{\n  interface "{name}";\n  fixed-address 192.0.2.9;\n  option default-url "{url}";\n}}\n'

    text = lease("wlan0", "https://old.example/") + lease("wlan0", API) + lease("eth0", "https://other.example/")
    write(tmp_path, "var/lib/dhcp/dhclient.wlan0.leases", text.encode())
    assert found(tmp_path) == [API]


@pytest.mark.parametrize(
    "options",
    [
        bytes((53, 1, 5, 0, 0, 114, len(API))) + API.encode() + b"\xff",
        bytes((114, len(API))) + API.encode(),
        bytes((114, len(API) + 1)) + API.encode() + b"\0\xff",
    ],
)
def test_dhcpcd_keeps_the_servers_message(tmp_path: Path, options: bytes) -> None:
    write(tmp_path, "var/lib/dhcpcd/wlan0.lease", dhcp_message(options))
    assert found(tmp_path) == [API]


@pytest.mark.parametrize("options", [b"", b"\x72", b"\xff" + bytes((114, 3)) + b"abc", b"\x35\xff", b"\0" * 5000])
def test_a_broken_message_says_nothing(tmp_path: Path, options: bytes) -> None:
    write(tmp_path, "var/lib/dhcpcd/wlan0.lease", dhcp_message(options))
    assert found(tmp_path) == []


def test_network_manager(tmp_path: Path) -> None:
    said = f"DHCP4.OPTION[1]:broadcast_address = 192.0.2.255\nDHCP4.OPTION[2]:default_url = {API}\n"
    assert found(tmp_path, said) == [API]


def test_the_same_address_from_several_places_is_one_and_without_a_line_there_is_none(tmp_path: Path) -> None:
    write(tmp_path, "var/lib/dhcpcd/wlan0.lease", dhcp_message(bytes((114, len(API))) + API.encode()))
    assert found(tmp_path, f"DHCP4.OPTION[2]:default_url = {API}\n") == [API]
    assert addresses(None, tmp_path) == []


def test_a_network_that_says_that_it_has_none_is_believed(tmp_path: Path) -> None:
    said = b"urn:ietf:params:capport:unrestricted"
    write(tmp_path, "var/lib/dhcpcd/wlan0.lease", dhcp_message(bytes((114, len(said))) + said))
    assert announced(Dialer(), WLAN, tmp_path, lambda _: None) is False
    assert announced(Dialer(), WLAN, tmp_path / "nothing", lambda _: None) is None


def test_the_worst_of_several_looks_counts() -> None:
    assert worst() is None
    assert worst(None, None) is None
    assert worst("open", None) == "open"
    assert worst("open", "offline") == "offline"
    assert worst("intercepted", "offline", "open") == "intercepted"
    assert worst("open", "captive", "intercepted") == "captive"
    assert with_portal(Environment(portal="captive"), "open").portal == "captive"
    assert with_portal(Environment(), "open", None).portal == "open"


NONCE = bytes(range(16))
KEY = SeedSigner(bytes(range(32)))
PAGE = page_of(NONCE, KEY.sign(signed_bytes(NONCE)))


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(200, {}, PAGE), "signed"),
        (Reply(200, {}, PAGE[:-1]), "signed"),
        (Reply(200, {}, PAGE + b"\n"), "foreign"),
        (Reply(200, {}, b" " + PAGE), "foreign"),
        (Reply(203, {}, PAGE), "foreign"),
        (Reply(200, {}, page_of(bytes(16), KEY.sign(signed_bytes(bytes(16))))), "forged"),
        (Reply(200, {}, page_of(NONCE, KEY.sign(NONCE))), "forged"),
        (Reply(200, {}, page_of(bytes(16), KEY.sign(signed_bytes(NONCE)))), "forged"),
        (Reply(200, {}, page_of(NONCE, bytes(64))), "forged"),
        (Reply(None, {}, PAGE), "foreign"),
        (Reply(301), "login"),
        (Reply(399), "login"),
        (Reply(511), "login"),
        (Reply(400), "error"),
        (Reply(500), "error"),
        (Reply(429), "absent"),
        (Reply(503), "absent"),
    ],
)
def test_what_an_answer_is(reply: Reply, expected: str) -> None:
    assert judge_page(reply, NONCE, KEY.public_key) == expected


def test_a_page_goes_there_and_back() -> None:
    assert read_page(PAGE) == (NONCE, KEY.sign(signed_bytes(NONCE)))
    assert read_page(PAGE.upper()) is None


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_owners_program_gets_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENLANE_SECRET", "x")
    told = tmp_path / "told"
    assert run_login_hook(script(tmp_path / "hook", f'(env; echo "arguments: $*"; cat; pwd) > {told}'))
    names = {row.partition("=")[0] for row in told.read_text().splitlines()}
    assert names <= {"PATH", "LANG", "PWD", "OLDPWD", "SHLVL", "_", "arguments: ", "/"}
    assert "arguments: \n/\n" in told.read_text(), "no argument, nothing to read, the root directory"


def test_the_owners_program_may_fail_or_be_missing(tmp_path: Path) -> None:
    assert not run_login_hook(script(tmp_path / "hook", "exit 3"))
    assert not run_login_hook(str(tmp_path / "missing"))
    assert not run_login_hook("true")


def test_the_owners_program_and_its_children_are_ended_when_the_time_is_over(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    hook = script(tmp_path / "hook", f"sleep 60 & echo $! > {pids}\necho $$ >> {pids}\nwait")
    begun = time.monotonic()
    assert not run_login_hook(hook, timeout_s=1.0)
    assert time.monotonic() - begun < 30, "ended, not waited for"
    for pid in map(int, pids.read_text().split()):
        deadline = time.monotonic() + 10
        while _is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIG_DFL)  # signal 0 only asks
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_names_are_asked_of_the_system() -> None:
    assert has_address("localhost")
    assert not has_address("evenlane-no-such-name.invalid.")

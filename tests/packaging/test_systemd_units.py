# SPDX-License-Identifier: EUPL-1.2
"""The systemd units: parsed and judged by systemd itself, and every command line in them is one that evenlane has."""

import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from probe.reflector.listen import _KINDS as SOCKET_KINDS

UNITS = Path(__file__).parents[2] / "deploy/systemd"
SERVICES = sorted(UNITS.glob("*.service"))
MOST_EXPOSURE = 2.0


def read(path):
    """The sections of a unit; of several values of a key the last."""
    parser = configparser.RawConfigParser(strict=False, comment_prefixes=("#", ";"), delimiters=("=",))
    parser.optionxform = str
    parser.read_string(path.read_text(encoding="utf-8"))
    return parser


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_the_exposure_is_below_two(path, program):
    analyze = program("systemd-analyze", "systemd")
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", str(path)], capture_output=True, text=True
    )
    figure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    if figure is None and "offline" in done.stderr:
        pytest.skip("this systemd cannot judge files that are not installed (before 250)")
    assert figure, done.stdout + done.stderr
    print(f"{path.name}: {figure[1]}")
    assert float(figure[1]) < MOST_EXPOSURE


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_no_single_line_is_left_out(path):
    """One missing line costs so few points that the sum above would not tell."""
    lines = path.read_text().splitlines()
    wanted = {
        *("NoNewPrivileges=yes", "CapabilityBoundingSet=", "AmbientCapabilities=", "ProtectSystem=strict"),
        *("ProtectHome=yes", "PrivateDevices=yes", "PrivateUsers=yes", "MemoryDenyWriteExecute=yes"),
        *("SystemCallFilter=@system-service", "SystemCallFilter=~@privileged", "RestrictNamespaces=yes"),
        *("RestrictSUIDSGID=yes", "UMask=0077"),
    }
    assert wanted - set(lines) == set()


def test_systemd_understands_every_line(program, tmp_path):
    analyze = program("systemd-analyze", "systemd")
    units = sorted(str(path) for path in UNITS.iterdir() if path.suffix in {".service", ".socket", ".timer"})
    done = subprocess.run([analyze, "verify", "--man=no", *units], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_line_that_systemd_does_not_know_would_be_seen(program, tmp_path):
    """That the test above can fail: systemd only warns of an unknown key."""
    analyze = program("systemd-analyze", "systemd")
    bad = tmp_path / "evenlane-bad.service"
    bad.write_text((UNITS / "evenlane-probe.service").read_text().replace("ProtectHome=", "ProtectHoem="))
    done = subprocess.run([analyze, "verify", "--man=no", str(bad)], capture_output=True, text=True)
    assert "ProtectHoem" in done.stderr


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_every_command_and_option_exists(path):
    line = read(path)["Service"]["ExecStart"].replace("$EVENLANE_REFLECTOR_OPTIONS", "")
    argv = shlex.split(line)
    assert argv[:2] == ["/usr/bin/env", "evenlane"]
    command = [part for part in argv[2:4] if not part.startswith("-")]
    done = subprocess.run([sys.executable, "-m", "evenlane.cli", *command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    known = set(re.findall(r"--[a-z][a-z-]+", done.stdout))
    assert {part for part in argv if part.startswith("--")} <= known


def test_services_write_only_where_their_options_say():
    for path in SERVICES:
        service = read(path)["Service"]
        argv = shlex.split(service["ExecStart"])
        for option, key, base in (("--state", "StateDirectory", "/var/lib/"), ("--run", "RuntimeDirectory", "/run/")):
            if option in argv:
                assert argv[argv.index(option) + 1] == base + service[key], path.name
        assert service["User"] in (UNITS / "evenlane.sysusers.conf").read_text().split(), path.name


def test_the_sockets_have_names_that_the_reflector_knows():
    sockets = sorted(UNITS.glob("*.socket"))
    found = {}
    for path in sockets:
        section = read(path)["Socket"]
        is_stream = "ListenStream" in section
        found[section["FileDescriptorName"]] = is_stream, section.get("ListenStream") or section["ListenDatagram"]
        assert section["Service"] == "evenlane-reflector.service"
    assert {name: kind == 1 for name, kind in SOCKET_KINDS.items()} == {name: one[0] for name, one in found.items()}
    assert found["data"][1] == found["data-udp"][1] == "443"
    assert found["portal"][1] == "80"
    service = read(UNITS / "evenlane-reflector.service")["Service"]
    assert set(service["Sockets"].split()) == {path.name for path in sockets}


def test_the_readme_names_files_that_are_there():
    text = (UNITS / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"evenlane[a-z-]*\.(?:service|socket|timer|sysusers\.conf)", text))
    assert named
    assert {name for name in named if not (UNITS / name).exists()} == set()

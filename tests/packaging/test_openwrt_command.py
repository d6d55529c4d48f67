# SPDX-License-Identifier: EUPL-1.2
"""`evenlane` as root types it on a router: the probe's own user does it, and answers end in UCI."""

import importlib.util
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).parents[2] / "deploy/openwrt/evenlane/files/router.py"


@pytest.fixture
def router(tmp_path, monkeypatch):
    """The command's module with a state directory here, and a stub of uci that writes down what it hears."""
    spec = importlib.util.spec_from_file_location("router_command", COMMAND)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.STATE, module.RUN = str(tmp_path / "state"), str(tmp_path / "run")
    module.RENDERED = str(tmp_path / "rendered.json")
    (tmp_path / "state").mkdir()
    stub = tmp_path / "bin/uci"
    stub.parent.mkdir()
    stub.write_text(
        f"#!/bin/sh\n# STUB\nprintf '%s\\037' \"$@\" >>{tmp_path}/heard\nprintf '\\036' >>{tmp_path}/heard\n"
    )
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    module.heard = lambda: [
        one.split("\x1f")[2:-1] if one.split("\x1f")[1] == "set" else one.split("\x1f")[1:-1]
        for one in (tmp_path / "heard").read_text().split("\x1e")[:-1]
    ] if (tmp_path / "heard").exists() else []  # fmt: skip
    return module


def test_answers_go_into_uci_and_nowhere_twice(router, tmp_path):
    path = tmp_path / "state/settings.json"
    answers = {
        "collector": "https://collector.example.org",
        "brand": 'Käse & "Söhne"; reboot $(id)',
        "hotspot": True,
        "opt_in_filters": False,
        "contract_down_mbps": 100.5,
        "quiet_hours": ["22:30-07:00", "12:00-13:00"],
    }
    path.write_text(json.dumps(answers))
    router.keep_answers(str(path), os.getuid())
    assert sorted(router.heard()) == sorted([
        ["evenlane.main.collector=https://collector.example.org"],
        ['evenlane.main.brand=Käse & "Söhne"; reboot $(id)'],
        ["evenlane.main.hotspot=1"],
        ["evenlane.main.opt_in_filters=0"],
        ["evenlane.main.contract_down_mbps=100.5"],
        ["evenlane.main.quiet_hours=22:30-07:00,12:00-13:00"],
        ["commit", "evenlane"],
    ])  # fmt: skip
    assert not path.exists()


def test_what_the_probes_user_wrote_names_no_program_and_no_path(router, tmp_path):
    """Root reads this file, and the service's user may have written anything into it."""
    path = tmp_path / "state/settings.json"
    path.write_text(
        json.dumps(
            {"login_hook": "/root/evil", "textfile": "/etc/shadow", "bind": "::1", "brand": "a\nb", "tariff": {}}
        )
    )
    router.keep_answers(str(path), os.getuid())
    assert router.heard() == [["commit", "evenlane"]]


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 70_000])
def test_a_spoilt_file_changes_nothing(router, tmp_path, content):
    path = tmp_path / "state/settings.json"
    path.write_bytes(content)
    router.keep_answers(str(path), os.getuid())
    assert router.heard() == []
    assert path.exists()


def test_a_link_or_anothers_file_is_not_read(router, tmp_path):
    other = tmp_path / "other.json"
    other.write_text('{"brand": "x"}')
    (tmp_path / "state/settings.json").symlink_to(other)
    router.keep_answers(str(tmp_path / "state/settings.json"), os.getuid())
    router.keep_answers(str(other), os.getuid() + 1)
    router.keep_answers(str(tmp_path / "absent"), os.getuid())
    os.mkfifo(tmp_path / "fifo")
    router.keep_answers(str(tmp_path / "fifo"), os.getuid())  # would hang if it waited for a writer
    assert router.heard() == []
    assert other.exists()


@pytest.mark.parametrize(("ends", "kept"), [((0, 0), True), ((1, 0), False), ((0, 3), False)])
def test_answers_are_moved_only_where_the_service_reads_them(router, tmp_path, monkeypatch, ends, kept):
    enabled, code = ends
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    init = tmp_path / "init"
    init.write_text(f'#!/bin/sh\n# STUB\n[ "$1" = enabled ] && exit {enabled}\n')
    init.chmod(0o755)
    path = tmp_path / "state/settings.json"
    path.write_text('{"brand": "x"}')
    path.chmod(0o644)
    router.USER, router.INIT = "root", str(init)
    router.run = lambda argv: code
    monkeypatch.setattr(sys, "argv", ["evenlane", "probe", "enrol", "--collector", "https://c.example"])
    assert router.main() == code
    assert path.exists() != kept
    assert bool(router.heard()) == kept


def test_root_becomes_the_probes_user(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    code = f"""
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("router_command", {str(COMMAND)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.USER, module.STATE, module.RUN = "nobody", "{tmp_path}/state", "{tmp_path}/run"
def run(argv):
    print(os.getuid(), os.geteuid(), os.getgid(), os.getgroups(), os.environ["RUNTIME_DIRECTORY"], *argv, flush=True)
    return 5
module.run = run
sys.argv = ["evenlane", *sys.argv[1:]]
sys.exit(module.main())
"""
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code, "probe", "status", "--json"], capture_output=True, text=True, timeout=60
    )
    nobody = pwd.getpwnam("nobody")
    assert done.returncode == 5, done.stderr
    ids = f"{nobody.pw_uid} {nobody.pw_uid} {nobody.pw_gid} []"
    assert done.stdout == f"{ids} {tmp_path}/run probe status --json --state {tmp_path}/state\n"
    assert (tmp_path / "state").stat().st_uid == nobody.pw_uid


def test_without_the_user_it_says_what_to_do():
    if os.geteuid() != 0:
        pytest.skip("only root looks for the user")
    done = subprocess.run([sys.executable, str(COMMAND), "probe", "status"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert done.stderr == "evenlane: the user evenlane is missing; install the package again\n"


def test_other_commands_are_the_same_as_everywhere():
    done = subprocess.run([sys.executable, str(COMMAND), "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("evenlane ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["once"], True),
        (["status", "--json"], True),
        (["spool"], False),
        (["once", "--settings=/mine"], False),
        (["once", "--state", "/elsewhere"], False),
    ],
)
def test_a_command_by_hand_follows_the_routers_configuration(router, tmp_path, monkeypatch, words, told):
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    heard = tmp_path / "argv"
    router.USER, router.run = "root", lambda argv: heard.write_text(" ".join(argv)) and 0
    monkeypatch.setattr(sys, "argv", ["evenlane", "probe", *words])
    router.main()
    assert "rendered.json" not in heard.read_text(), "nothing is rendered where the service never ran"
    (tmp_path / "rendered.json").write_text("{}")
    router.main()
    assert heard.read_text().endswith(f"--settings {tmp_path}/rendered.json") == told


def test_who_joins_again_finds_the_answers_of_the_routers_configuration(router, tmp_path):
    mine = tmp_path / "state/settings.json"
    router.lend_answers(str(mine))
    assert not mine.exists()
    (tmp_path / "rendered.json").write_text('{"brand": "Lane Telecom"}')
    router.lend_answers(str(mine))
    assert mine.read_text() == '{"brand": "Lane Telecom"}'
    mine.write_text("newer")
    router.lend_answers(str(mine))
    assert mine.read_text() == "newer"

# SPDX-License-Identifier: EUPL-1.2
"""`evenlane probe doctor`: finds what hinders a probe, says what to do, and leaves everything as it was."""

from __future__ import annotations

import http.server
import json
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evenlane.commands import probe_doctor_net
from evenlane.commands.probe_doctor import Subject, _plan, _settings, _spool, _turns, doctor_report
from evenlane.commands.probe_doctor_here import Finding, _key, _run, _state, _textfile, file_system
from evenlane.commands.probe_foreign import foreign, home
from probe import backoff
from probe.enrol import Enrolled
from probe.settings import Settings, settings_of
from probe.state import State
from probe.wire.codec import dumps
from probe.wire.envelope import seal, to_line
from probe.wire.records import Plan, PlannedNettest, PlannedReflector
from probe.wire.signing import SeedSigner

ROOT = Path(__file__).parents[2]
DAY_MS = 86_400_000
COLLECTOR = SeedSigner(b"\x05" * 32)


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path / "state", tmp_path / "run")
    made.prepare()
    return made


def subject(state: State, **told: Any) -> Subject:
    settings, problems = settings_of(told)
    return Subject(state=state, settings=settings, problems=problems, now_ms=time.time_ns() // 1_000_000)


def join(state: State) -> Enrolled:
    joined = Enrolled(collector="https://collector.example", key=COLLECTOR.key_id, name="Club", enrolled_ms=1)
    plain = {name: getattr(joined, name) for name in Enrolled.__slots__}
    (state.directory / "enrolment.json").write_bytes(dumps(plain))
    state.signer()
    return joined


def keep_plan(state: State, days: float, issued_days: float = -20) -> None:
    now_ms = time.time_ns() // 1_000_000
    plan = Plan(
        type="plan",
        v=1,
        version=7,
        issued_ms=now_ms + round(issued_days * DAY_MS),
        expires_ms=now_ms + round(days * DAY_MS),
        reflectors=(PlannedReflector(url="https://reflector.example:8443", key=SeedSigner(b"\x0e" * 32).key_id),),
        nettests=(PlannedNettest(nettest="differential", apps=("youtube",)),),
        weights=(),
    )
    (state.directory / "plan.jsonl").write_bytes(to_line(seal(plan, COLLECTOR)))


def tree(directory: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.stat().st_mode)
        for path in [directory, *directory.rglob("*")]
    }


def row(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [check for check in report["checks"] if check["check"] == name]
    return found


# -- somebody else's packages -----------------------------------------------------------------------------------


def doctor(cwd: Path, *python: str, **environ: str) -> tuple[int, dict[str, Any], str]:
    """The command as a person calls it from a directory."""
    argv = [sys.executable, *python, "-m", "evenlane.cli", "probe", "doctor", "--offline", "--json"]
    done = subprocess.run(
        [*argv, "--state", str(cwd / "state")],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd)} | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def shadow(folder: Path, name: str = "probe") -> Path:
    made = folder / name
    made.mkdir(parents=True)
    (made / "__init__.py").write_text("NOT_OURS = True\n")
    return folder


def test_a_folder_probe_where_one_stands_is_found_and_how_to_get_around_it(tmp_path: Path) -> None:
    shadow(tmp_path)
    code, report, err = doctor(tmp_path)
    assert (code, report["ok"], err) == (1, False, "")
    assert [check["check"] for check in report["checks"]] == ["packages"]  # nothing of ours can be imported
    finding = report["checks"][0]["finding"]
    assert "`probe`" in finding
    assert "python -P" in finding
    assert str(tmp_path) in finding or "the working directory" in finding
    code, report, _ = doctor(tmp_path, "-P")
    assert row(report, "packages")["ok"]
    code, report, _ = doctor(tmp_path, PYTHONSAFEPATH="1")
    assert row(report, "packages")["ok"]


def test_a_package_on_pythonpath_is_named_with_its_directory(tmp_path: Path) -> None:
    elsewhere = shadow(tmp_path / "lib", "collector")
    shadow(elsewhere / "x", "evenlane_is_not_here")
    code, report, _ = doctor(tmp_path, PYTHONPATH=str(elsewhere))
    finding = row(report, "packages")["finding"]
    assert code == 1
    assert "`collector`" in finding
    assert str(elsewhere) in finding
    assert "PYTHONPATH" in finding
    assert row(report, "python")["ok"]  # `probe` is ours, so the rest is looked at as well


def test_modules_and_folders_of_our_names_are_told_apart(tmp_path: Path) -> None:
    ours = str(home())
    assert foreign([ours]) == []
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "lab.py").write_text("")
    assert [one.name for one in foreign([str(tmp_path / "file"), ours])] == ["lab"]
    assert foreign([ours, str(tmp_path / "file")]) == []  # ours come first
    # A folder without __init__ loses against a package, wherever it stands.
    (tmp_path / "data" / "probe").mkdir(parents=True)
    assert foreign([str(tmp_path / "data"), ours]) == []


def test_a_distribution_that_overwrote_ours_is_named(tmp_path: Path) -> None:
    for name in ("probe", "evenlane"):
        shadow(tmp_path, name)
    for info, record in (
        ("evenlane-0.1.0", "probe/__init__.py,,\n"),
        ("space_probe-2.0", "probe/__init__.py,,\nspace/probe/__init__.py,,\n"),
        ("harmless-1.0", "harmless/__init__.py,,\nharmless/lab/__init__.py,,\n"),
    ):
        (tmp_path / f"{info}.dist-info").mkdir()
        (tmp_path / f"{info}.dist-info" / "RECORD").write_text(record)
    (found,) = foreign([str(tmp_path)], tmp_path)
    assert found.name == "probe"
    assert "space_probe installed it over ours" in found.advice
    assert "pipx" in found.advice


# -- it only looks ----------------------------------------------------------------------------------------------


def test_nothing_is_made_or_changed_anywhere(state: State, tmp_path: Path) -> None:
    for make in (lambda: None, lambda: join(state), lambda: keep_plan(state, 5)):
        make()
        before = tree(tmp_path)
        report = doctor_report(subject(state), is_offline=True)
        assert tree(tmp_path) == before
        assert report["ok"], [check for check in report["checks"] if not check["ok"]]
    assert doctor_report(subject(State(tmp_path / "x", tmp_path / "y")), is_offline=True)["ok"]
    assert tree(tmp_path) == before


def test_the_json_of_each_check_is_the_same_four_keys(state: State) -> None:
    report = doctor_report(subject(state), is_offline=True)
    assert set(report) == {"ok", "checks"}
    for check in report["checks"]:
        assert set(check) == {"check", "ok", "level", "finding"}
        assert check["ok"] == (check["level"] != "bad")
        assert check["finding"]
    names = [check["check"] for check in report["checks"]]
    assert len(set(names)) == len(names)


# -- directories and the key ------------------------------------------------------------------------------------


def said(finding: Finding, level: str, *words: str) -> None:
    assert finding[0] == level, finding
    assert all(word in finding[1] for word in words), finding


def test_a_key_that_others_can_read_is_bad(state: State) -> None:
    said(_key(state), "ok", "none yet")
    state.signer()
    said(_key(state), "ok", state.known_key() or "?")
    state.key_file.chmod(0o640)
    said(_key(state), "bad", f"chmod 600 {state.key_file}")
    state.key_file.chmod(0o600)
    state.key_file.write_text("rubbish")
    said(_key(state), "bad", "is not a key file")
    state.key_file.unlink()
    state.key_file.symlink_to("/dev/null")
    said(_key(state), "bad", "is not a file")


def test_the_key_of_another_user_is_bad(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    state.signer()
    me = os.geteuid()
    # Stands in for another user's file, which only root could make.
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    said(_key(state), "bad", "belongs to another user")


def test_directories_say_what_to_do(state: State, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said(_state(State(tmp_path / "file" / "state")), "bad", "not a directory", "--state")
    said(_run(State(tmp_path / "state", tmp_path / "file")), "bad", "not a directory", "--run")
    state.signer()
    state.directory.chmod(0o755)
    said(_state(state), "warn", "chmod 700")


MOUNTS = """\
/dev/root / squashfs ro 0 0
overlayfs:/overlay / overlay rw 0 0
tmpfs /mnt tmpfs rw 0 0
/dev/mmcblk0p2 /srv/with\\040blank ext4 rw 0 0
"""


def test_the_file_system_of_a_directory_is_the_innermost_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert file_system(Path("/etc/evenlane"), mounts) == ("overlay", "overlayfs:/overlay")
    assert file_system(Path("/mnt"), mounts) == ("tmpfs", "tmpfs")
    assert file_system(Path("/mntfile"), mounts)[0] == "overlay"
    assert file_system(Path("/srv/with blank/x"), mounts) == ("ext4", "/dev/mmcblk0p2")
    assert file_system(Path("/"), tmp_path / "missing") == ("", "")


@pytest.mark.parametrize(
    ("kind", "source", "level"),
    [("tmpfs", "tmpfs", "ok"), ("overlay", "overlayfs:/overlay", "warn"), ("ext4", "/dev/mmcblk0p2", "warn")],
)
def test_what_changes_with_each_session_does_not_belong_on_flash(
    state: State, monkeypatch: pytest.MonkeyPatch, kind: str, source: str, level: str
) -> None:
    # Stands in for mounts that only root could make.
    monkeypatch.setattr("evenlane.commands.probe_doctor_here.file_system", lambda _: (kind, source))
    assert _run(state)[0] == level
    assert _state(state)[0] == ("warn" if kind == "tmpfs" else "ok")


def test_the_textfile_is_where_node_exporter_looks(tmp_path: Path) -> None:
    said(_textfile(Settings()), "ok")
    said(_textfile(Settings(textfile=str(tmp_path / "x.prom"))), "ok")
    said(_textfile(Settings(textfile=str(tmp_path / "x.txt"))), "warn", ".prom")
    said(_textfile(Settings(textfile=str(tmp_path / "no" / "x.prom"))), "warn", "cannot be written")


# -- settings, plan, turns, spool -------------------------------------------------------------------------------


def test_settings_that_stop_a_probe_are_told(state: State) -> None:
    said(_settings(subject(state)), "ok")
    said(_settings(subject(state, daily_mb="many")), "warn", "daily_mb must be")
    said(_settings(subject(state, enabled="0")), "warn", "enabled")
    said(_settings(subject(state, monthly_mb="0")), "warn", "budget")
    said(_settings(subject(state, quiet_hours="00:00-12:00,12:00-24:00")), "warn", "whole day")


def test_the_plan_is_looked_at_as_a_turn_would(state: State) -> None:
    said(_plan(subject(state)), "ok", "without a collector")
    join(state)
    said(_plan(subject(state)), "warn", "none yet")
    keep_plan(state, 5)
    said(_plan(subject(state)), "ok", "version 7")
    keep_plan(state, -1)
    said(_plan(subject(state)), "bad", "version 7 is not followed", "expired")
    (state.directory / "plan.jsonl").write_text("{half")
    said(_plan(subject(state)), "warn", "spoilt")


def test_an_agent_that_stands_still_is_noticed(state: State) -> None:
    said(_turns(subject(state)), "ok")
    join(state)
    said(_turns(subject(state)), "warn", "evenlane probe once")
    now_ms = subject(state).now_ms
    fine = {"at_ms": now_ms - 120_000, "next_ms": now_ms + 60_000, "outcome": "waiting", "reason": "not_due"}
    for turn, level, word in (
        (fine, "ok", "2 min ago"),
        (fine | {"next_ms": now_ms - 5 * 3_600_000}, "warn", "due 5 h ago"),
        (fine | {"outcome": "failed", "detail": "no room"}, "warn", "no room"),
        ({"next_ms": "soon"}, "warn", "cannot be understood"),
    ):
        (state.run / "turn.json").write_text(json.dumps(turn))
        said(_turns(subject(state)), level, word)
    (state.run / "turn.json").write_text("[")
    said(_turns(subject(state)), "warn", "damaged")


def test_a_spool_that_lost_something_is_told(state: State) -> None:
    said(_spool(subject(state)), "ok", "0 sessions")
    (state.spool.directory).mkdir()
    state.spool.put(1, "ab" * 16, [seal_nothing()])
    standing = backoff.Standing().failed(1, random.Random(1), failure="timeout")
    backoff.save(state.run, standing)
    said(_spool(subject(state)), "warn", "timeout")
    (state.spool.directory / "counts.json").write_text('{"dropped": 3, "damaged": 0}')
    said(_spool(subject(state)), "warn", "3 had to make room")


def seal_nothing() -> Any:
    from probe.wire.envelope import Envelope

    return Envelope(payload=b"{}", key=COLLECTOR.public_key, signature=COLLECTOR.sign(b"{}"))


# -- the network ------------------------------------------------------------------------------------------------


def test_names_that_lie_are_told(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of names stands in for the name servers, which here are nobody's to change."""
    known: set[str] = set()
    monkeypatch.setattr(probe_doctor_net, "has_address", lambda name: any(name.endswith(one) for one in known))
    join(state)
    said(probe_doctor_net._dns(subject(state)), "bad", "no address for collector.example")
    known.add("collector.example")
    said(probe_doctor_net._dns(subject(state)), "ok", "collector.example")
    known.add(".invalid.")
    said(probe_doctor_net._dns(subject(state)), "bad", "a name that cannot exist was given an address")


class _About(http.server.BaseHTTPRequestHandler):
    """A collector's `GET /v1/about`, as somebody else's or with a wrong clock."""

    key = COLLECTOR.key_id
    ahead_ms = 0
    consent = "2026-01-01"

    def do_GET(self) -> None:
        now_ms = time.time_ns() // 1_000_000 + self.ahead_ms
        told = {"v": 1, "name": "Club", "contact": "x", "key": self.key, "consent": self.consent, "time_ms": now_ms}
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("changed", "level", "word"),
    [
        ({}, "ok", "our clocks agree"),
        ({"ahead_ms": 150_000}, "warn", "switch on NTP"),
        ({"ahead_ms": 3_600_000}, "bad", "set the clock"),
        ({"key": SeedSigner(b"\x06" * 32).key_id}, "bad", "its key is"),
        ({"consent": "2099-01-01"}, "bad", "update evenlane"),
    ],
)
def test_a_collector_is_asked_who_it_is_and_what_time_it_has(
    state: State, changed: dict[str, Any], level: str, word: str
) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), type("Changed", (_About,), changed)) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        plain = {name: getattr(join(state), name) for name in Enrolled.__slots__}
        plain |= {"collector": f"http://127.0.0.1:{server.server_port}"}
        (state.directory / "enrolment.json").write_bytes(dumps(plain))
        said(probe_doctor_net._collector(subject(state)), level, word)
        server.shutdown()


def test_a_collector_that_is_gone_is_a_remark_and_a_wrong_reflector_is_bad(state: State) -> None:
    joined = join(state)
    plain = {name: getattr(joined, name) for name in Enrolled.__slots__} | {"collector": "http://127.0.0.1:1"}
    (state.directory / "enrolment.json").write_bytes(dumps(plain))
    said(probe_doctor_net._collector(subject(state)), "warn", "waits here until it is back")
    wrong = replace(subject(state), reflector="nonsense")
    rows = dict(probe_doctor_net.checks_of_the_network(wrong))
    said(rows["reflector"], "bad", "is not an address")


def test_every_command_says_who_stands_in_its_way(tmp_path):
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe/__init__.py").write_text("")
    argv = [sys.executable, "-m", "evenlane.cli", "probe", "run", "differential", "--reflector", "https://r.example:1"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "another package `probe` stands in the way" in done.stderr

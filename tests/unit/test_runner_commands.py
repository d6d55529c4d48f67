# SPDX-License-Identifier: EUPL-1.2
"""`evenlane probe list|status|spool|doctor`: what they print and when they refuse."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from evenlane.cli import main
from probe.profiles.model import DEFAULT_APPS, every, load
from probe.spool import Spool
from probe.wire.envelope import Envelope
from probe.wire.signing import SeedSigner


def ask(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["probe", *argv])
    done = capsys.readouterr()
    return code, done.out, done.err


def test_list_tells_all_that_an_emulator_needs_to_know(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "list", "--json")
    assert code == 0
    found = json.loads(out)
    assert [nettest["id"] for nettest in found["nettests"]] == ["differential"]
    apps = {app["id"]: app for app in found["apps"]}
    assert set(apps) == set(every())
    assert {name for name, app in apps.items() if app["default"]} == set(DEFAULT_APPS)
    assert all(set(app["title"]) == {"en", "nl", "fr", "de"} for app in apps.values())
    assert all(bool(app["names"]) == (app["carrier"] in {"tls", "hello", "quic"}) for app in apps.values())
    assert apps["youtube+quic"]["carrier"] == "quic"
    assert apps["steam"]["pace_mbps"] == 25.0
    code, out, _ = ask(capsys, "list")
    assert code == 0
    assert "*youtube" in out
    assert " netflix" in out
    (line,) = [line for line in out.splitlines() if " bittorrent+udp " in line]
    assert line.split() == ["bittorrent+udp", "datagram", "down", "12", "Mbit/s", "exchange", "between", "peers"]


def test_a_profile_is_printed_as_a_plan_delivers_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, plain, _ = ask(capsys, "profile", "youtube+quic")
    assert (code, hashlib.sha256(plain.rstrip("\n").encode()).hexdigest()) == (0, load("youtube").digest)
    code, out, _ = ask(capsys, "profile", "youtube+quic", "--json")
    assert (code, json.loads(out)) == (0, {"id": "youtube", "document": plain.rstrip("\n")})
    code, out, err = ask(capsys, "profile", "yuotube")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_status_and_spool_of_a_probe_that_never_ran(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    state = str(tmp_path / "none")
    code, out, _ = ask(capsys, "status", "--state", state, "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["key"], told["sessions"], told["last"]) == (None, 0, None)
    assert "made by the first run" in ask(capsys, "status", "--state", state)[1]
    code, out, _ = ask(capsys, "spool", "--state", state, "--json")
    assert code == 0
    empty = {"directory": f"{state}/spool", "sessions": [], "bytes": 0, "sent": None, "entries": [], "bad": []}
    assert json.loads(out) | empty == json.loads(out)
    assert not (tmp_path / "none").exists()


def test_status_of_a_broken_state_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("rubbish")
    code, out, err = ask(capsys, "status", "--state", str(tmp_path))
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "is not a key file" in err


def test_doctor_finds_this_machine_fit_and_a_missing_reflector(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = ask(capsys, "doctor", "--state", str(tmp_path), "--offline", "--json")
    report = json.loads(out)
    assert (code, report["ok"]) == (0, True), [check for check in report["checks"] if not check["ok"]]
    assert {check["check"] for check in report["checks"]} >= {"python", "tls", "clock", "state", "sender"}
    assert not list(tmp_path.iterdir())  # it looks and makes nothing
    code, out, _ = ask(capsys, "doctor", "--state", str(tmp_path), "--reflector", "https://127.0.0.1:1")
    assert code == 1
    assert "BAD reflector   cannot be reached (connection refused)" in out
    (tmp_path / "file").write_text("")
    code, out, _ = ask(capsys, "doctor", "--state", str(tmp_path / "file"), "--offline")
    assert code == 1
    assert "BAD state" in out


def test_sending_the_spool_to_nobody_keeps_it_and_is_code_3(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    nobody = ("spool", "--state", str(tmp_path), "--collector", "http://127.0.0.1:1")
    assert ask(capsys, "spool", "--state", str(tmp_path), "--collector", "http://collector.example")[0] == 2
    assert ask(capsys, *nobody)[0] == 0  # nothing waits
    signer = SeedSigner(bytes(32))
    Spool(tmp_path / "spool").put(
        1, "ab" * 16, [Envelope(payload=b"{}", key=signer.public_key, signature=signer.sign(b"{}"))]
    )
    code, out, err = ask(capsys, *nobody)
    assert code == 3
    assert "1 sessions" in out
    assert "try again later" in err


def test_probe_alone_prints_its_help_and_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ask(capsys)
    assert code == 2
    assert "doctor" in err

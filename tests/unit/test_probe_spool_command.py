# SPDX-License-Identifier: EUPL-1.2
"""`evenlane probe spool`: what waits, since when, what was lost; sent or thrown away only when asked."""

from __future__ import annotations

import io
import json
import os
import random
import sys
import time
from pathlib import Path

import pytest

from evenlane.cli import main
from probe import backoff
from probe.state import State
from probe.wire.envelope import Envelope
from probe.wire.signing import SeedSigner


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path)
    signer = SeedSigner(bytes(32))
    for number in (1, 2):
        envelope = Envelope(payload=b"{}", key=signer.public_key, signature=signer.sign(b"{}"))
        made.spool.put(number, f"{number:02x}" * 16, [envelope])
    hours_ago = time.time() - 3 * 3600
    os.utime(made.spool.entries()[0].path, (hours_ago, hours_ago))
    return made


def ask(capsys: pytest.CaptureFixture[str], state: State, *argv: str) -> tuple[int, str, str]:
    code = main(["probe", "spool", "--state", str(state.directory), *argv])
    done = capsys.readouterr()
    return code, done.out, done.err


def test_it_lists_ages_sizes_losses_and_the_next_attempt(capsys: pytest.CaptureFixture[str], state: State) -> None:
    path = state.spool.entries()[1].path
    (path.parent / "000000000003-cc.jsonl").write_text("{half")
    assert state.spool.take(state.spool.entries()[2]) == []  # sets it aside
    now_ms = time.time_ns() // 1_000_000
    standing = backoff.Standing(collector="collector.example:443")
    standing = standing.failed(now_ms, random.Random(1), failure="timeout", detail="the collector cannot be reached")
    backoff.save(state.run, standing)
    code, out, _ = ask(capsys, state, "--json")
    told = json.loads(out)
    assert (code, told["sessions"]) == (0, ["000000000001-" + "01" * 16, "000000000002-" + "02" * 16])
    assert [entry["age_s"] // 60 for entry in told["entries"]] == [180, 0]
    assert sum(entry["bytes"] for entry in told["entries"]) == told["bytes"]
    assert told["damaged"] == 1
    assert told["bad"] == [str(path.parent / "bad" / "000000000003-cc.jsonl")]
    assert told["next_attempt_ms"] == standing.pause.until_ms
    shown = ask(capsys, state)[1]
    assert "3 h old" in shown
    assert "the last attempt failed (the collector cannot be reached)" in shown
    assert "set aside: " in shown


def test_to_send_it_needs_somebody_to_send_to(capsys: pytest.CaptureFixture[str], state: State) -> None:
    code, _, err = ask(capsys, state, "--send")
    assert (code, err.count("\n")) == (3, 1)
    assert "evenlane probe enrol" in err
    assert len(state.spool.entries()) == 2


def test_while_a_measurement_runs_nothing_is_sent(capsys: pytest.CaptureFixture[str], state: State) -> None:
    with state.exclusive():
        code, _, err = ask(capsys, state, "--collector", "http://127.0.0.1:1")
    assert code == 3
    assert "another measurement is running" in err


def test_it_is_thrown_away_only_by_somebody_who_says_so(
    capsys: pytest.CaptureFixture[str], state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert ask(capsys, state, "--clear", "--send")[0] == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, _, err = ask(capsys, state, "--clear")
    assert (code, "--yes" in err) == (2, True)
    monkeypatch.setattr(sys, "stdin", Terminal("no\n"))
    assert ask(capsys, state, "--clear")[0] == 1
    assert len(state.spool.entries()) == 2
    monkeypatch.setattr(sys, "stdin", Terminal("ja\n"))
    (state.spool.directory / "bad").mkdir()
    (state.spool.directory / "bad" / "x.jsonl").write_text("?")
    code, out, _ = ask(capsys, state, "--clear", "--json")
    assert (code, json.loads(out)["cleared"]) == (0, 2)
    assert state.spool.entries() == []
    assert not list((state.spool.directory / "bad").iterdir())

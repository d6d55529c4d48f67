# SPDX-License-Identifier: EUPL-1.2
"""`evenlane probe run differential` against a real reflector on loopback: what is written, said and survived."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from probe.profiles.model import load
from probe.wire.envelope import from_line, open_record
from probe.wire.rate import rate_mbps
from probe.wire.records import Measurement, Receipt

FAST = ("--segment-s", "0.4", "--pace-mbps", "20")


@dataclass
class Own:
    """A reflector that a test may kill."""

    process: subprocess.Popen[str]
    url: str


@pytest.fixture
def own_reflector(tmp_path: Path) -> Iterator[Callable[..., Own]]:
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> Own:
        argv = [sys.executable, "-m", "evenlane.cli", "reflector", "--control-port", "0", "--data-port", "0", "--json"]
        argv += ["--state", str(tmp_path / f"reflector{len(started)}"), *(options or ("--host", "127.0.0.1"))]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        started.append(process)
        assert process.stdout is not None
        return Own(process, json.loads(process.stdout.readline())["url"])

    yield start
    for process in started:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


@dataclass
class Run:
    """A finished `probe run`."""

    code: int
    out: str
    err: str
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


def command(url: str, state: Path, *options: str) -> list[str]:
    head = [sys.executable, "-m", "evenlane.cli", "probe", "run", "differential", "--reflector", url]
    return [*head, "--state", str(state), "--progress", "json", "--json", *options]


def finish(process: subprocess.Popen[str], timeout: float = 60) -> Run:
    out, err = process.communicate(timeout=timeout)
    events = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    return Run(process.returncode, out, err, events)


def begin(url: str, state: Path, *options: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(url, state, *options), text=True, **pipes)  # type: ignore[call-overload, no-any-return]


def run(url: str, state: Path, *options: str) -> Run:
    return finish(begin(url, state, *options))


def records(path: Path) -> tuple[Measurement, Receipt | None]:
    """The signed records of an --out file, each verified."""
    found = [open_record(from_line(line)) for line in path.read_bytes().splitlines()]
    measurement = found[0]
    assert isinstance(measurement, Measurement)
    if len(found) == 1:
        return measurement, None
    (receipt,) = found[1:]
    assert isinstance(receipt, Receipt)
    assert receipt.session == measurement.session
    return measurement, receipt


def read_until(process: subprocess.Popen[str], wanted: str, count: int = 1) -> None:
    """Read progress lines until one event came `count` times."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("{") and json.loads(line)["event"] == wanted:
            count -= 1
            if not count:
                return
    pytest.fail("the run ended before it got there")


@pytest.mark.serial
def test_both_directions_at_their_pace_and_signed_records_of_all_of_it(reflector, tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    options = ("--app", "youtube", "--app", "signal", "--pairs", "2", "--direction", "both", "--out", str(out))
    done = run(reflector.url, tmp_path / "state", *options, "--segment-s", "0.6", "--pace-mbps", "20")
    assert done.code == 0, done.err
    measurement, receipt = records(out)
    assert receipt is not None
    assert measurement.failure is None
    assert measurement.reflector == reflector.key
    assert done.json["session"] == measurement.session
    assert done.json["receipt"] is True

    tests = [pair for pair in receipt.pairs if pair.kind == "test"]
    assert [(p.direction, p.app) for p in tests] == [(d, a) for d in ("down", "up") for a in ("youtube", "signal")] * 2
    for told, seen in zip(measurement.pairs, receipt.pairs, strict=True):
        assert told.nonce == seen.probe_nonce
        assert seen.outcome == "both"
        assert [s.arm for s in told.segments] == [s.arm for s in seen.segments]
        assert [s.name for s in told.segments] == [s.name_seen for s in seen.segments]
        assert len({len(s.name) for s in told.segments}) == 1
        assert seen.profile == load(seen.app).reference
        for mine, counted in zip(told.segments, seen.segments, strict=True):
            assert mine.failure is None
            assert rate_mbps(counted, seen.segment_s) == pytest.approx(20, rel=0.05)
            assert mine.bytes == pytest.approx(counted.bytes, rel=0.1)
            assert mine.guard_ms is not None
            assert mine.guard_ms <= 550
            assert mine.paced is (True if told.direction == "up" else None)
            assert mine.congestion in ({"cubic", "reno"} if told.direction == "up" else {None})

    lines = {(line["app"], line["direction"]): line for line in done.json["apps"]}
    assert set(lines) == {(a, d) for a in ("youtube", "signal") for d in ("down", "up")}
    for line in lines.values():
        assert line["pairs"] == 2
        assert line["lost_pairs"] == 0
        assert line["app_mbps"] == pytest.approx(20, rel=0.05)
        assert abs(line["slowdown"]["estimate"]) < 0.1
        assert line["state"] == "insufficient"
        assert line["detectable"]["rate_mbps"] == pytest.approx(0.7 * 20, rel=0.05)
    ends = [event for event in done.events if event["event"] == "pair"]
    assert [event["done"] for event in ends] == list(range(1, len(receipt.pairs) + 1))
    assert ends[-1]["done"] == ends[-1]["of"]


@pytest.mark.serial
def test_without_a_pace_a_calibration_finds_one_below_the_line_and_the_limit(reflector, tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    done = run(reflector.url, tmp_path, "--app", "youtube", "--pairs", "1", "--segment-s", "0.4", "--out", str(out))
    assert done.code == 0, done.err
    measurement, receipt = records(out)
    assert receipt is not None
    assert measurement.calibration_mbps == pytest.approx(20, rel=0.15)  # the calibration itself goes no faster
    assert receipt.pairs[0].pace_mbps == pytest.approx(min(12, 0.6 * measurement.calibration_mbps), abs=0.01)


def test_sessions_are_counted_and_status_tells_of_the_last(reflector, tmp_path: Path) -> None:
    for expected in (0, 1):
        done = run(reflector.url, tmp_path, "--app", "signal", "--pairs", "1", *FAST)
        assert done.json["sequence"] == expected
    argv = [sys.executable, "-m", "evenlane.cli", "probe", "status", "--state", str(tmp_path), "--json"]
    status = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    assert status["sessions"] == 2
    assert status["key"] == done.json["probe"]
    assert status["last"]["session"] == done.json["session"]
    assert status["spool"]["sessions"] == 0


def test_an_older_file_is_replaced_and_nothing_else_is_left_beside_it(reflector, tmp_path: Path) -> None:
    out = tmp_path / "out" / "run.jsonl"
    out.parent.mkdir()
    out.write_bytes(b"older\n" * 1000)
    assert run(reflector.url, tmp_path, "--app", "signal", "--pairs", "1", "--out", str(out), *FAST).code == 0
    records(out)
    assert [path.name for path in out.parent.iterdir()] == ["run.jsonl"]


def test_what_failed_to_upload_waits_in_the_spool(reflector, tmp_path: Path) -> None:
    options = ("--app", "signal", "--pairs", "1", "--collector", "http://127.0.0.1:1", *FAST)
    done = run(reflector.url, tmp_path, *options)
    assert done.code == 0
    assert done.json["upload"]["spooled"] is True
    assert done.json["upload"]["failure"] == "connection_refused"
    (kept,) = (tmp_path / "spool").iterdir()
    assert records(kept)[0].session == done.json["session"]


def test_a_reflector_that_dies_within_a_pair_loses_that_pair_alone(own_reflector, tmp_path: Path) -> None:
    own, out = own_reflector(), tmp_path / "run.jsonl"
    process = begin(own.url, tmp_path, "--app", "youtube", "--pairs", "5", "--out", str(out), *FAST)
    read_until(process, "pair", 2)
    time.sleep(0.3)
    own.process.kill()
    done = finish(process)
    assert done.code == 0
    measurement, receipt = records(out)
    assert receipt is None
    assert measurement.failure in {"connection_refused", "connection_reset", "end_of_stream", "out_of_time"}
    assert done.json["failure"] == measurement.failure
    assert done.json["pairs"]["finished"] == 2
    assert len(measurement.pairs) == 3
    assert done.json["pairs"]["lost"] == 1
    if measurement.pairs[2].kind == "test":
        assert done.json["apps"][0]["lost_pairs"] == 1


def test_a_reflector_that_dies_before_any_pair_is_finished_leaves_a_signed_record_and_code_3(
    own_reflector, tmp_path: Path
) -> None:
    own, out = own_reflector(), tmp_path / "run.jsonl"
    process = begin(
        own.url, tmp_path, "--app", "youtube", "--pairs", "2", "--out", str(out), "--segment-s", "2", "--pace-mbps", "5"
    )
    read_until(process, "start")
    time.sleep(1.2)
    own.process.kill()
    done = finish(process)
    assert done.code == 3
    assert "no pair was finished" in done.err
    assert records(out)[0].failure is not None


def test_a_signal_ends_the_run_after_the_pair_that_is_open(reflector, tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    process = begin(reflector.url, tmp_path, "--app", "youtube", "--pairs", "50", "--out", str(out), *FAST)
    read_until(process, "pair")
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.code == 0
    measurement, receipt = records(out)
    assert receipt is not None
    assert 1 <= len(receipt.pairs) <= 4
    assert {pair.outcome for pair in receipt.pairs} == {"both"}
    assert measurement.failure is None


def test_a_second_ctrl_c_ends_it_at_once_and_the_open_pair_is_lost(reflector, tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    process = begin(
        reflector.url,
        tmp_path,
        "--app",
        "youtube",
        "--pairs",
        "5",
        "--out",
        str(out),
        "--segment-s",
        "3",
        "--pace-mbps",
        "5",
    )
    read_until(process, "start")
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert time.monotonic() - start < 2.5
    assert done.code == 3
    measurement, receipt = records(out)
    assert receipt is not None
    assert measurement.failure == "out_of_time"
    assert [pair.outcome for pair in receipt.pairs] == ["unfinished"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--app", "yuotube"), 2, "there is no app profile 'yuotube'"),
        (("--pairs", "0"), 2, "number of pairs"),
        (("--pairs", "400"), 2, "ask for fewer"),
        (("--segment-s", "0.01"), 2, "a segment lasts"),
        (("--pace-mbps", "-3"), 2, "the pace must be"),
        (("--collector", "http://collector.example"), 2, "unencrypted"),
        (("--bind", "eth0"), 2, "not an address"),
        (("--out", "/nowhere/run.jsonl"), 3, "/nowhere/run.jsonl cannot be written"),
    ],
)
def test_bad_options_are_one_sentence_and_the_right_code(
    reflector, tmp_path: Path, options: tuple[str, ...], code: int, words: str
) -> None:
    argv = [sys.executable, "-m", "evenlane.cli", "probe", "run", "differential", "--reflector", reflector.url]
    done = subprocess.run(
        [*argv, "--state", str(tmp_path), "--progress", "none", *options], capture_output=True, text=True
    )
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_missing_reflector_a_wrong_pin_and_a_state_that_cannot_be(reflector, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wrong_pin = reflector.url.split("#")[0] + "#sha256=" + "0" * 64
    for url, state, words in (
        ("https://127.0.0.1:1", tmp_path / "s", "cannot be reached (connection refused)"),
        (wrong_pin, tmp_path / "s", "is not the one you named"),
        (reflector.url, tmp_path / "file", "name another one with --state"),
    ):
        done = run(url, state, *FAST)
        assert done.code == 3
        said = [line for line in done.err.splitlines() if not line.startswith("{")]
        assert len(said) == 1
        assert words in said[0]
    bad = subprocess.run(
        [sys.executable, "-m", "evenlane.cli", "probe", "run", "nothing", "--reflector", reflector.url],
        capture_output=True,
        text=True,
    )
    assert bad.returncode == 2
    assert "there is no nettest 'nothing'" in bad.stderr


def test_ipv6_works_like_ipv4(own_reflector, tmp_path: Path) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    own = own_reflector("--host", "::1")
    out = tmp_path / "run.jsonl"
    done = run(own.url, tmp_path, "--app", "signal", "--pairs", "1", "--out", str(out), *FAST)
    assert done.code == 0, done.err
    receipt = records(out)[1]
    assert receipt is not None
    assert receipt.origin.family == 6


def test_the_local_address_can_be_chosen(own_reflector, tmp_path: Path) -> None:
    own = own_reflector()
    assert run(own.url, tmp_path, "--app", "signal", "--pairs", "1", "--bind", "127.0.0.77", *FAST).code == 0
    nowhere = run(own.url, tmp_path, "--app", "signal", "--pairs", "1", "--bind", "203.0.113.9", *FAST)
    assert nowhere.code == 3


def test_a_hotspot_is_declared_before_the_coin_and_stands_in_both_records(reflector, tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    done = run(reflector.url, tmp_path, "--app", "signal", "--pairs", "1", "--hotspot", "--out", str(out), *FAST)
    assert done.code == 0
    measurement, receipt = records(out)
    assert receipt is not None
    assert measurement.environment.hotspot is True
    assert receipt.hotspot is True


def test_the_summary_for_people(reflector, tmp_path: Path) -> None:
    argv = [a for a in command(reflector.url, tmp_path, "--app", "youtube", "--pairs", "1", *FAST) if a != "--json"]
    argv[argv.index("json")] = "lines"
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0
    assert "youtube, down: about as fast as its neutral twin (" in done.stdout
    assert "Such pairs can show a throttle to" in done.stdout
    assert "One line is never a case" in done.stdout
    assert done.stderr.startswith("up to 2 pairs, at most ")
    assert "violation" not in done.stdout + done.stderr

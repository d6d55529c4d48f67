# SPDX-License-Identifier: EUPL-1.2
"""What a probe keeps, by real processes: flash that a measurement leaves alone, and kills that lose nothing."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.rehearsal import Rehearsal, signer
from probe.spool import Counts
from probe.state import LIFE_BITS, State
from probe.wire.envelope import Envelope, from_line, open_record
from probe.wire.records import Measurement

KILLS = 22
ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


# -- flash ------------------------------------------------------------------------------------------------------


def measured(url: str, state: Path, ram: Path, *before: str) -> dict[str, Any]:
    """A real session whose upload fails, so that the spool is written as well."""
    argv = [*before, sys.executable, "-m", "evenlane.cli", "probe", "run", "differential", "--reflector", url]
    argv += ["--state", str(state), "--run", str(ram), "--app", "signal", "--pairs", "1", "--segment-s", "0.3"]
    argv += ["--pace-mbps", "8", "--collector", "http://127.0.0.1:1", "--progress", "none", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def snapshot(directory: Path) -> dict[str, tuple[int, ...]]:
    """Whatever a write would change of every file and directory: inode, size, times of content and of inode."""
    found = {}
    for path in (directory, *directory.rglob("*")):
        told = path.lstat()
        found[str(path)] = (told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns, told.st_nlink, told.st_mode)
    return found


def test_no_measurement_writes_to_flash_after_the_first(reflector, tmp_path: Path) -> None:
    state, ram = tmp_path / "flash", tmp_path / "ram"
    assert measured(reflector.url, state, ram)["sequence"] == 0
    before = snapshot(state)
    assert {Path(name).name for name in before} == {"flash", "key", "life"}
    for expected in (1, 2):
        assert measured(reflector.url, state, ram)["sequence"] == expected
    assert snapshot(state) == before
    assert len(list((ram / "spool").iterdir())) == 3

    for path in sorted(ram.rglob("*"), reverse=True):  # the power fails
        path.rmdir() if path.is_dir() else path.unlink()
    assert measured(reflector.url, state, ram)["sequence"] == 1 << LIFE_BITS
    changed = {name for name, told in snapshot(state).items() if told != before[name]}
    assert changed == {str(state), str(state / "life")}


CALLS = "open,openat,creat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,symlink,symlinkat"
CALLS += ",truncate,ftruncate,utimensat,chmod,fchmod,fchmodat,chown,fchownat,fsync,fdatasync,write,pwrite64,fallocate"


def test_the_kernel_is_asked_for_no_write_to_flash(reflector, tmp_path: Path, program: Callable[..., str]) -> None:
    state, ram, trace = tmp_path / "flash", tmp_path / "ram", tmp_path / "trace"
    strace = program("strace", "strace")
    if subprocess.run([strace, "-qq", "-e", "trace=none", "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here (ptrace is refused)")
    measured(reflector.url, state, ram)
    measured(reflector.url, state, ram, strace, "-f", "-qq", "-y", "-e", f"trace={CALLS}", "-o", str(trace))
    ours = [line for line in trace.read_text(errors="replace").splitlines() if str(state) in line]
    assert any("/flash/key" in line for line in ours), "the trace shows nothing: this proved nothing"
    assert any(f'"{ram}/' in line and "O_CREAT" in line for line in trace.read_text(errors="replace").splitlines())
    for line in ours:
        assert re.search(r"\bopen(at)?\(", line), line
        assert not re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC)", line), line


# -- kills ------------------------------------------------------------------------------------------------------

PUTTER = """
import secrets, sys
from pathlib import Path
from probe.state import State
from probe.wire.envelope import Envelope
state = State(Path(sys.argv[1]), Path(sys.argv[2]))
state.prepare()
while True:
    sequence, session = state.next_sequence(), secrets.token_hex(16)
    payload = session.encode() * secrets.choice((1, 50, 2000))
    state.spool.put(sequence, session, [Envelope(payload=payload, key=bytes(32), signature=bytes(64))])
    print(sequence, session, flush=True)
"""


def killed(argv: list[str], pause_s: float) -> str:
    """What a process printed until it was killed, so long after its first line."""
    process = subprocess.Popen([sys.executable, *argv], stdout=subprocess.PIPE, text=True, env=ENVIRON)
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(pause_s)
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read()
    process.stdout.close()
    assert process.wait(20) == -signal.SIGKILL
    return first + rest


@pytest.mark.parametrize("layout", ["split", "single"])
def test_kills_in_the_middle_of_writing_lose_nothing_that_was_kept(tmp_path: Path, layout: str) -> None:
    rng = random.Random(4)
    flash, ram = tmp_path / "flash", tmp_path / ("ram" if layout == "split" else "flash")
    state, acknowledged, strays = State(flash, ram), set(), 0
    for _ in range(KILLS if layout == "split" else 5):
        out = killed(["-c", PUTTER, str(flash), str(ram)], rng.uniform(0, 0.03))
        whole = out[: out.rfind("\n") + 1].splitlines()
        numbers = [int(line.split()[0]) for line in whole]
        assert numbers
        assert not set(numbers) & {number for number, _ in acknowledged}
        acknowledged |= {(int(line.split()[0]), line.split()[1]) for line in whole}
        strays += len(list(state.spool.directory.glob(".*.tmp")))
        held = {entry.age[0]: entry for entry in state.spool.entries()}
        dropped = state.spool.counts().dropped
        oldest = min(held)
        for number, session in acknowledged:
            if number in held:
                (envelope,) = state.spool.take(held[number])
                assert envelope.payload.startswith(session.encode())
            else:
                assert number < oldest, "a session is gone that did not have to make room"
        assert len(held) + dropped >= len(acknowledged)
        for entry in state.spool.entries()[:-20]:  # keeps the test quick; nobody else writes now
            acknowledged.discard((entry.age[0], entry.name.partition("-")[2]))
            state.spool.remove(entry)
    assert state.spool.counts() == Counts()
    assert state.last_sequence() >= max(number for number, _ in acknowledged)
    print(f"{layout}: {strays} half-written files were left by kills")


UPLOADER = """
import random, sys, time
from pathlib import Path
import probe.handover
from probe.state import State
from probe.upload import collector_url
probe.handover._BATCH = 4
state = State(Path(sys.argv[1]), Path(sys.argv[2]))
print("begins", flush=True)
sent = probe.handover.sync_spool(state, collector_url(sys.argv[3]), time.time_ns() // 10**6, random.Random())
print(sent, flush=True)
time.sleep(60)
"""


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Starts a real collector that trusts a reflector; gives its address."""
    started: list[subprocess.Popen[str]] = []

    def start(trusted: str) -> str:
        config = tmp_path / "collector.toml"
        config.write_text(f'reflectors = ["{trusted}"]\nuploads_per_minute = 0\n')
        argv = [sys.executable, "-m", "evenlane.cli", "collector", "serve", "--port", "0", "--json"]
        argv += ["--data", str(tmp_path / "data"), "--config", str(config)]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        started.append(process)
        assert process.stdout is not None
        url: str = json.loads(process.stdout.readline())["url"]
        return url

    yield start
    for process in started:
        process.terminate()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def stored(data: Path) -> list[bytes]:
    """Digests of the measurements in the collector's store."""
    with sqlite3.connect(f"{(data / 'collector.sqlite3').as_uri()}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT digest FROM envelope WHERE kind = 'measurement'").fetchall()
    connection.close()
    return [digest for (digest,) in rows]


def digest(envelope: Envelope) -> bytes:
    return hashlib.sha256(envelope.payload).digest()


def test_kills_in_the_middle_of_uploading_lose_nothing_and_double_nothing(
    tmp_path: Path, collector: Callable[[str], str]
) -> None:
    rng = random.Random(8)
    make, probe = Rehearsal(rng, signer(rng)), signer(rng)
    url = collector(make.reflector.key_id)
    state = State(tmp_path / "flash", tmp_path / "ram")
    state.prepare()
    began, made = time.time_ns() // 1_000_000 - 3_600_000, set()
    again, interrupted = 0, 0
    for kill in range(KILLS):
        for number in range(12):
            told = make.session(probe, started_ms=began + (kill * 12 + number) * 1000, pairs=1)
            state.spool.put(state.next_sequence(), told_session(told.measurement), [told.measurement, told.receipt])
            made.add(digest(told.measurement))
        out = killed(["-c", UPLOADER, str(state.directory), str(state.run), url], rng.uniform(0, 0.12))
        interrupted += "SpoolSent" not in out
        waiting = {digest(state.spool.take(entry)[0]) for entry in state.spool.entries()}
        kept = stored(tmp_path / "data")
        assert len(kept) == len(set(kept))
        assert made - waiting <= set(kept), "a session left the spool that the collector does not have"
        assert set(kept) <= made
        again += len(set(kept) & waiting)
    assert interrupted >= KILLS // 3, "most kills came after the work was done: this proved little"

    argv = [sys.executable, "-m", "evenlane.cli", "probe", "spool", "--state", str(state.directory)]
    argv += ["--run", str(state.run), "--collector", url, "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sessions"] == []
    kept = stored(tmp_path / "data")
    assert (len(kept), set(kept)) == (len(made), made)
    assert state.spool.counts() == Counts()
    print(f"{interrupted} of {KILLS} kills interrupted an upload; {again} sessions had to be sent twice")


def told_session(envelope: Envelope) -> str:
    record = open_record(envelope)
    assert isinstance(record, Measurement)
    return record.session


def test_a_session_is_in_the_spool_before_its_upload_begins(reflector, tmp_path: Path) -> None:
    """Killed while a collector that never answers has its records: they are there still, whole."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        state = State(tmp_path / "flash", tmp_path / "ram")
        argv = [sys.executable, "-m", "evenlane.cli", "probe", "run", "differential", "--reflector", reflector.url]
        argv += ["--state", str(state.directory), "--run", str(state.run), "--app", "signal", "--pairs", "1"]
        argv += ["--segment-s", "0.3", "--pace-mbps", "8", "--progress", "none"]
        argv += ["--collector", f"http://127.0.0.1:{listener.getsockname()[1]}"]
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        listener.settimeout(60)
        connection, _ = listener.accept()
        assert connection.recv(10)
        process.kill()
        process.wait(20)
        connection.close()
    (entry,) = state.spool.entries()
    assert all(from_line(line).is_valid() for line in entry.path.read_bytes().splitlines())
    assert len(state.spool.take(entry)) == 2

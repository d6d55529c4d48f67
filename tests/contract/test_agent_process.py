# SPDX-License-Identifier: EUPL-1.2
"""The agent as a process, with children that behave in every way a child can: it stays, it is small, it limits them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

AGENT = Path(__file__).parents[2] / "probe" / "agent.py"
MOST_MB = 13.0
Start = Callable[..., "Running"]


class Running:
    """An agent whose child is a small Python program of the test's."""

    def __init__(
        self, directory: Path, program: str, *options: str, watch: Path | None = None, quick: bool = True
    ) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        child = directory / "child.py"
        child.write_text(f"import os, sys, time, signal\nRUN = {str(directory)!r}\n{program}")
        agent = directory / "agent.py"
        source = AGENT.read_text()
        # Pauses that a test can wait for; nothing else is changed.
        quick_ones = {"LEAST_PAUSE_S = 15.0": "LEAST_PAUSE_S = 0.1", "FIRST_CRASH_S = 60.0": "FIRST_CRASH_S = 0.2"}
        quick_ones |= {"GRACE_S = 30.0": "GRACE_S = 1.0", "LONGEST_NAP_S = 600.0": "LONGEST_NAP_S = 0.2"}
        for old, new in quick_ones.items():
            assert source.count(f"\n{old}\n") == 1
            source = source.replace(f"\n{old}\n", f"\n{new}\n")
        agent.write_text(source)
        self.log = directory / "log"
        watched = ["--watch", str(watch)] if watch else []
        argv = [sys.executable, "-I", "-S", str(agent), "--run", str(directory / "run"), *watched, *options, "--"]
        self.process = subprocess.Popen([*argv, sys.executable, "-I", "-S", str(child)], stderr=self.log.open("w"))

    def lines(self, wanted: str, count: int = 1, within_s: float = 120.0) -> list[str]:
        """Log lines with this text, as soon as there are so many."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            found = [line for line in self.log.read_text().splitlines() if wanted in line]
            if len(found) >= count:
                return found
            time.sleep(0.02)
        pytest.fail(f"{wanted!r} did not come {count} times: {self.log.read_text()}")

    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) / 1024

    def turns(self) -> int:
        path = self.directory / "turns"
        return len(path.read_text()) if path.exists() else 0

    def wait_turns(self, count: int) -> None:
        end = time.monotonic() + 120
        while self.turns() < count:
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Running] = []

    def begin(program: str, *options: str, **more: object) -> Running:
        started.append(Running(tmp_path / f"a{len(started)}", program, *options, **more))  # type: ignore[arg-type]
        return started[-1]

    yield begin
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait(10)


def is_gone(pid: int) -> bool:
    """Whether a process ended, within a minute; a zombie waits for init to see it and counts."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


COUNT = "open(RUN + '/turns', 'a').write('x')\n"
SOON = COUNT + "print('told fine'); print('next', int(time.time() * 1000))\n"
LATER = COUNT + "print('told fine'); print('next', int(time.time() * 1000) + 3600_000)\n"


def test_it_stays_small_after_many_children(start: Start) -> None:
    agent = start(LATER)
    for turn in range(1, 41):
        agent.lines("fine", turn)  # the turn is over, so that the next call is one more turn
        agent.process.send_signal(signal.SIGHUP)
    agent.wait_turns(41)
    rss = agent.rss_mb()
    print(f"\nagent after {agent.turns()} children: {rss:.1f} MB RSS")
    assert rss <= MOST_MB


def test_it_sleeps_until_it_is_time(start: Start) -> None:
    agent = start(LATER)
    assert agent.lines("fine; next in 60 min") == ["evenlane: fine; next in 60 min"]
    time.sleep(0.6)
    assert agent.turns() == 1


def test_sighup_means_a_turn_now_and_sigterm_the_end(start: Start) -> None:
    agent = start(LATER)
    agent.lines("fine")
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_turns(2)
    agent.lines("fine", 2)
    agent.process.terminate()
    assert agent.process.wait(10) == 0
    assert agent.lines("stopped")


def test_changed_settings_mean_a_turn(start: Start, tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    agent = start(LATER, watch=settings)
    agent.lines("fine")
    settings.write_text("{}")
    agent.wait_turns(2)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (COUNT + "os.kill(os.getpid(), signal.SIGSEGV)", "ended by signal 11"),
        (COUNT + "sys.exit(7)", "without a word (exit code 7)"),
        (COUNT + "print('next never'); print('next -5'); print('next 9' + '9' * 40)", "without a word"),
        (COUNT + "raise RuntimeError", "without a word (exit code 1)"),
        (COUNT + "os.write(1, b'\\xff\\x00next 5\\n' * 100)", "without a word"),
    ],
)
def test_a_child_that_fails_is_tried_again_after_growing_pauses(start: Start, program: str, said: str) -> None:
    agent = start(program)
    found = agent.lines(said, 4)
    pauses = [float(line.rsplit(" ", 2)[1]) for line in found]
    assert pauses == [0, 0, 1, 2]  # 0.2, 0.4, 0.8, 1.6 s, told in whole seconds
    assert agent.process.poll() is None


def test_a_child_that_always_wants_to_go_on_is_slowed_down(start: Start) -> None:
    agent = start(SOON)
    agent.wait_turns(5)
    time.sleep(2.0)
    # 0.1 s four times, then 0.2, 0.4, 0.8, 1.6 …: never a loop.
    assert agent.turns() <= 11


def test_a_child_that_hangs_is_ended_and_whom_it_started_too(start: Start) -> None:
    program = COUNT + (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pid = os.fork()\n"
        "if pid: open(RUN + '/pids', 'w').write(f'{os.getpid()} {pid}')\n"
        "time.sleep(600)\n"
    )
    agent = start(program, "--turn-s", "1")
    agent.lines("took too long")
    agent.lines("ended by signal 9")
    for pid in map(int, (agent.directory / "pids").read_text().split()):
        assert is_gone(pid)


def test_a_turn_may_say_that_it_needs_longer(start: Start) -> None:
    agent = start(COUNT + "print('limit 60', flush=True); time.sleep(2.5)\n" + LATER, "--turn-s", "1")
    agent.lines("fine")
    assert "too long" not in agent.log.read_text()


def test_a_stop_lets_the_child_finish_its_pair(start: Start) -> None:
    program = COUNT + (
        "def stop(*_):\n    time.sleep(0.3); open(RUN + '/whole', 'w').write('x'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\ntime.sleep(600)\n"
    )
    agent = start(program)
    agent.wait_turns(1)
    time.sleep(0.3)
    agent.process.terminate()
    assert agent.process.wait(20) == 0
    assert (agent.directory / "whole").exists()


def test_the_childs_limits(start: Start) -> None:
    program = (
        "import resource\n"
        "handle = os.open('/dev/null', os.O_RDONLY)\n"
        "limit = resource.getrlimit\n"
        "facts = [os.nice(0), limit(resource.RLIMIT_CORE)[1], limit(resource.RLIMIT_DATA)[0]]\n"
        "facts += [handle, os.getpgid(0) == os.getpid(), os.read(0, 1)]\n"
        "try:\n    hold = bytearray(60_000_000); facts.append('got it')\n"
        "except MemoryError:\n    facts.append('MemoryError')\n"
        "open(RUN + '/facts', 'w').write(repr(facts))\n"
    )
    agent = start(program + LATER, "--data-mb", "50")
    agent.lines("fine")
    nice = min(19, os.nice(0) + 10)
    assert (agent.directory / "facts").read_text() == repr([nice, 0, 50_000_000, 3, True, b"", "MemoryError"])


def test_only_one_agent_for_one_directory(start: Start) -> None:
    agent = start(LATER)
    agent.lines("fine")
    argv = [sys.executable, "-I", "-S", str(AGENT), "--run", str(agent.directory / "run"), "--", "/bin/true"]
    second = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert second.returncode == 3
    assert "another agent is running" in second.stderr
    agent.process.kill()
    agent.process.wait(10)
    third = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    assert third.stderr is not None
    assert "without a word" in third.stderr.readline()  # the lock died with its owner
    third.terminate()
    assert third.wait(10) == 0
    third.stderr.close()


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    argv = [sys.executable, "-I", "-S", str(AGENT), "--run", str(tmp_path), "--", "/nonexistent/python"]
    running = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    assert "cannot be started (No such file" in running.stderr.readline()
    running.terminate()
    assert running.wait(10) == 0
    running.stderr.close()
    file = tmp_path / "file"
    file.write_text("")
    broken = subprocess.run([*argv[:5], str(file / "run"), *argv[6:]], capture_output=True, text=True, timeout=20)
    assert broken.returncode == 3
    assert "--run" in broken.stderr


def test_what_it_says_is_one_printable_line(start: Start) -> None:
    agent = start("os.write(1, b'told a\\x1b[31mred\\rline\\n'); print('next', int(time.time() * 1000) + 3600_000)")
    assert agent.lines("red") == ["evenlane: a?[31mred?line; next in 60 min"]

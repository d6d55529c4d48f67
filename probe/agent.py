# SPDX-License-Identifier: EUPL-1.2
"""The process that stays: sleeps until a turn is due and lets a child do it, within limits.

It runs as a program of its own (`python -I -S agent.py`) and imports nothing of ours, no json and no typing, so that
a router lends it as little memory as a Python takes. It knows neither plans nor networks: the child (`evenlane probe
once --for-agent`) says on its standard output when the next turn is due. Whatever becomes of a child, the agent goes
on. Spec: spec/probe.md, section "Agent".

    agent.py --run DIR [--watch FILE]... [--data-mb N] [--turn-s N] -- CHILD...
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import sys
import time

LONGEST_NAP_S = 600.0
"""To notice a suspend, a clock that was set, changed settings."""
LEAST_PAUSE_S = 15.0
MOST_PAUSE_S = 3600.0
FIRST_CRASH_S = 60.0
"""After a child that ended without a word; doubled with each that follows."""
MANY_TURNS = 4
"""So many in a row that ask to be followed at once are let go; after that pauses grow."""
CLOCK_STEP_S = 60.0
GRACE_S = 30.0
"""From SIGTERM to SIGKILL: a pair lasts ten seconds."""
TURN_S = 300.0
"""For a turn that does not say that it needs longer."""
MOST_TURN_S = 7200.0
DATA_MB = 64
NICE = 10
MOST_SAID = 16_384
_DIED_UNSPOKEN = "the turn ended without a word"


class Said:
    """What a child wrote on its standard output: one fact a line. Everything else is not listened to."""

    def __init__(self) -> None:
        self.next_ms: int | None = None
        self.limit_s: float | None = None
        self.told = ""
        self._rest = b""
        self._taken = 0

    def hear(self, piece: bytes) -> None:
        """More bytes."""
        self._taken += len(piece)
        if self._taken > MOST_SAID:
            return
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            word, _, value = line.decode("utf-8", "replace").partition(" ")
            if word == "next" and value.isascii() and value.isdigit() and len(value) < 16:
                self.next_ms = int(value)
            elif word == "limit" and value.isascii() and value.isdigit() and len(value) < 8:
                self.limit_s = min(float(value), MOST_TURN_S)
            elif word == "told":
                self.told = "".join(c if c.isprintable() else "?" for c in value)[:400]


class Agent:
    """One agent. `child` is the command of a turn."""

    def __init__(self, run: str, child: list[str], watch: list[str], data_mb: int, turn_s: float) -> None:
        self.run = run
        self.child = child
        self.watch = watch
        self.data_mb = data_mb
        self.turn_s = turn_s
        self.stopping = False
        self.called = False
        self.crashes = 0
        self.hasty = 0
        self.pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, self._signalled)
        signal.set_wakeup_fd(self.pipe[1], warn_on_full_buffer=False)

    def _signalled(self, number: int, _: object) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self.stopping = True
        elif number == signal.SIGHUP:
            self.called = True

    def serve(self) -> int:
        """Turn after turn until a signal says stop."""
        while not self.stopping:
            before = stamps(self.watch)
            self.called = False
            said, code = self._turn()
            self._sleep(self._pause(said, code), before)
        say("stopped")
        return 0

    # -- waiting ------------------------------------------------------------------------------------------------

    def _pause(self, said: Said, code: int) -> float:
        """Seconds until the next turn."""
        if self.stopping:
            return 0.0
        if said.next_ms is None:
            self.crashes += 1
            pause_s = min(MOST_PAUSE_S, FIRST_CRASH_S * float(2 ** min(self.crashes - 1, 10)))
            say(f"{said.told or ending(code)}; again in {pause_s:.0f} s")
            return pause_s
        self.crashes = 0
        pause_s = said.next_ms / 1000 - time.time()
        self.hasty = self.hasty + 1 if pause_s < LEAST_PAUSE_S else 0
        least_s = LEAST_PAUSE_S * float(2 ** min(max(0, self.hasty - MANY_TURNS), 10))
        # A time that only a wrong clock explains is looked at again within a day.
        pause_s = min(max(pause_s, min(least_s, MOST_PAUSE_S)), 86_400.0)
        say(f"{said.told or 'a turn'}; next in {words(pause_s)}")
        return pause_s

    def _sleep(self, pause_s: float, before: list[int]) -> None:
        """Until it is time, a signal calls, a watched file changed or a clock was set."""
        due_s = steady_s() + pause_s
        apart_s = time.time() - steady_s()
        while not self.stopping and not self.called:
            left_s = due_s - steady_s()
            if left_s <= 0 or stamps(self.watch) != before:
                return
            if abs(time.time() - steady_s() - apart_s) > CLOCK_STEP_S:
                say("the clock was set: looking again")
                return
            self._nap(min(left_s, LONGEST_NAP_S))

    def _nap(self, seconds: float, also: list[int] | None = None) -> list[int]:
        """Wait for a signal or one of the descriptors; which of these can be read."""
        ready, _, _ = select.select([self.pipe[0], *(also or ())], [], [], max(0.0, seconds))
        if self.pipe[0] in ready:
            os.read(self.pipe[0], 4096)
        return ready

    # -- a turn -------------------------------------------------------------------------------------------------

    def _turn(self) -> tuple[Said, int]:
        """Run the child to its end, or to ours. Its exit code, negative for a signal."""
        try:
            pid, out = self._spawn()
        except OSError as error:
            said = Said()
            said.told = f"no child could be started ({error.strerror})"
            return said, 0
        said = Said()
        began_s = steady_s()
        terminated_s = killed_s = 0.0
        try:
            while True:
                # Not reaped yet, so that its number is nobody else's when those whom it left behind are ended.
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                    break
                now_s = steady_s()
                late_s = began_s + (said.limit_s or self.turn_s)
                if (self.stopping or now_s > late_s) and not terminated_s:
                    if not self.stopping:
                        say("the turn took too long and is ended")
                    terminated_s = now_s
                    signal_group(pid, signal.SIGTERM)
                elif terminated_s and now_s - terminated_s > GRACE_S and not killed_s:
                    killed_s = now_s
                    signal_group(pid, signal.SIGKILL)
                left_s = terminated_s + GRACE_S - now_s if terminated_s else late_s - now_s
                if out in self._nap(min(max(left_s, 0.05), LONGEST_NAP_S), [out] if out >= 0 else []):
                    out = hear(out, said)
            while out >= 0 and select.select([out], [], [], 0)[0]:
                out = hear(out, said)
        finally:
            if out >= 0:
                os.close(out)
            signal_group(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        return said, os.waitstatus_to_exitcode(status)

    def _spawn(self) -> tuple[int, int]:
        """Fork, set the limits, become the child's program. Raises OSError."""
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
        except OSError:
            os.close(read)
            os.close(write)
            raise
        if pid == 0:
            try:
                self._become(write)
            except OSError as error:
                say(f"{self.child[0]} cannot be started ({error.strerror})")
            finally:
                os._exit(127)  # whatever happened: there must never be two agents
        os.close(write)
        return pid, read

    def _become(self, write: int) -> None:
        os.setpgid(0, 0)  # so that its own children end with it, and Ctrl-C reaches the agent alone
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(write, 1)
        os.closerange(3, max(64, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 4096)))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold the key
        most = self.data_mb * 1_000_000
        if most:
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        os.nice(NICE)
        os.execv(self.child[0], self.child)  # noqa: S606  (no shell is the point)


def hear(out: int, said: Said) -> int:
    """One piece from a child; the descriptor, or -1 where it is closed."""
    piece = os.read(out, 4096)
    if piece:
        said.hear(piece)
        return out
    os.close(out)
    return -1


def signal_group(pid: int, number: int) -> None:
    """To the child and whom it started."""
    try:  # noqa: SIM105  (contextlib would cost memory)
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # nobody is left


def steady_s() -> float:
    """Seconds since the machine started, a suspend included."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def stamps(files: list[str]) -> list[int]:
    """When each was written; 0 for what is not there."""
    found = []
    for name in files:
        try:
            found.append(os.stat(name).st_mtime_ns)
        except OSError:
            found.append(0)
    return found


def words(seconds: float) -> str:
    """A span of time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def ending(code: int) -> str:
    """How a child that said nothing ended."""
    if code < 0:
        return f"the turn was ended by signal {-code}"
    return f"{_DIED_UNSPOKEN} (exit code {code})"


def say(text: str) -> None:
    """One plain line to the journal."""
    try:  # noqa: SIM105
        os.write(2, f"evenlane: {text}\n".encode())
    except OSError:
        pass  # nobody listens; the work goes on


def locked(run: str) -> int:
    """The lock that keeps a second agent out; -1 where one runs. Raises OSError."""
    os.makedirs(run, mode=0o700, exist_ok=True)
    handle = os.open(os.path.join(run, "agent.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return -1
    return handle


def main(argv: list[str]) -> int:
    """Read the arguments, which evenlane/commands/probe_agent.py wrote, and serve."""
    split = argv.index("--")
    options, child = argv[:split], argv[split + 1 :]
    told = [(options[i], options[i + 1]) for i in range(0, len(options), 2)]
    one = dict(told)
    try:
        lock = locked(one["--run"])
    except OSError as error:
        say(f"{one['--run']} cannot be used ({error.strerror}); name another directory with --run")
        return 3
    if lock < 0:
        say(f"another agent is running with {one['--run']}; end it first")
        return 3
    watch = [value for name, value in told if name == "--watch"]
    data_mb, turn_s = int(one.get("--data-mb", DATA_MB)), float(one.get("--turn-s", TURN_S))
    return Agent(one["--run"], child, watch, data_mb, turn_s).serve()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: EUPL-1.2
"""What `make test` runs: first what may run side by side, in several processes, then what must run alone.

Why two passes, and what belongs into which: docs/adr/0012-tests-in-two-passes.md. Arguments go to both passes, so that
one test, one file or `-k` work. `-m` replaces "not slow"; `-n0` runs the first pass in one process too (for `-s`).
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time

PASSED, FAILED, NOTHING = 0, 1, 5  # pytest's exit codes; after any other one the second pass is not begun


def commands(arguments: list[str], *, xdist: bool) -> list[tuple[str, list[str]]]:
    """A name and pytest's arguments for each pass; without pytest-xdist one process runs both."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-m", dest="marks", default="not slow")
    parser.add_argument("-n", "--numprocesses", dest="processes", default="auto")
    ours, rest = parser.parse_known_args(arguments)
    beside = ["-n", ours.processes, "--dist", "worksteal"] if xdist else []
    return [
        ("first pass: side by side" if xdist else "first pass: in one process, for want of pytest-xdist",
         ["-m", f"({ours.marks}) and not serial", *beside, *rest]),
        ("second pass: one at a time", ["-m", f"({ours.marks}) and serial", *rest]),
    ]  # fmt: skip


def outcome(codes: list[int]) -> int:
    """Exit code of all passes: the first failure's. Selecting nothing is one only if no pass selected anything."""
    told = [code for code in codes if code != NOTHING]
    return next((code for code in told if code != PASSED), PASSED if told else NOTHING)


def main(arguments: list[str]) -> int:
    """Runs both passes; the exit code is pytest's."""
    # Tests start some hundred Pythons, and each worker imports every test: without bytecode on disk each compiles all.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    codes: list[int] = []
    for name, options in commands(arguments, xdist=importlib.util.find_spec("xdist") is not None):
        print(f"== {name}", flush=True)
        began = time.monotonic()
        codes.append(subprocess.run([sys.executable, "-m", "pytest", *options], env=environment).returncode)
        told = "nothing to run" if codes[-1] == NOTHING else f"exit code {codes[-1]}"
        print(f"== {name}: {told} after {time.monotonic() - began:.0f} s", flush=True)
        stop = {"-x", "--exitfirst"} & set(arguments)
        if codes[-1] not in ({PASSED, NOTHING} if stop else {PASSED, FAILED, NOTHING}):
            break
    return outcome(codes)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(2)

# SPDX-License-Identifier: EUPL-1.2
"""The OpenWrt package's own tree on other processors: the agent waits, a child makes a turn and measures.

Runs Debian's Python for armhf, arm64 and mipsel under qemu-user, from packages unpacked below build/emulated-probe (as
an ordinary user; nothing is installed, no binfmt is registered), with what the .ipk installs, against a real reflector
on this machine. `make emulated` prints a table; the last one stands in docs/footprint.md.

Memory is what the emulated program has mapped, read from /proc/PID/smaps of the emulator without what is the emulator's
own (its binary, its heap, its translated code). The first row says how far that can be trusted: the same on this
machine's processor, without an emulator and with one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
TURN_S = 420.0


def load(path: Path) -> ModuleType:
    """A module by its file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


sys.path.insert(0, str(ROOT))
signer = load(ROOT / "tests/bench/emulated_signer.py")
signer.WORK = ROOT / "build/emulated-probe"
signer.PACKAGES = (*signer.PACKAGES, "libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libuuid1", "libatomic1")
joined = load(ROOT / "tests/packaging/joined.py")
pack = load(ROOT / "deploy/openwrt/evenlane/pack.py")
conftest = load(ROOT / "tests/conftest.py")


@dataclass(frozen=True)
class Python:
    """A Python with the package's tree in it; `emulator` is the name of the emulator's file, empty without one."""

    name: str
    executable: Path
    emulator: str = ""


@dataclass
class Memory:
    """Of one agent and its children, in kB."""

    idle_rss: int = 0
    idle_pss: int = 0
    most_pss: int = 0
    most_child_rss: int = 0
    samples: int = field(default=0)


def emulated(machine: signer.Machine, tree: Path) -> Python:
    """Python for another processor, started by a script that names the emulator. Raises Absent."""
    root, emulator = signer.sysroot(machine), signer.qemu(machine)
    packages = root / "usr/local/lib/python3.11/dist-packages"
    shutil.rmtree(packages, ignore_errors=True)
    shutil.copytree(tree, packages)
    return Python(machine.debian, script(emulator, root, root / "usr/bin/python3.11"), emulator.name)


def script(emulator: Path, root: Path, python: Path) -> Path:
    """A program that is that Python: whoever starts `sys.executable` starts it in the emulator again."""
    program = python.with_name("python-emulated")
    program.write_text(f'#!/bin/sh\nexec {emulator} -L {root} -0 {program} {python} "$@"\n')
    program.chmod(0o755)
    return program


def native(tree: Path, folder: Path) -> Python:
    """This machine's own Python, with the tree instead of the checkout."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python3.*/site-packages")
    shutil.copytree(tree, packages, dirs_exist_ok=True)
    return Python("this machine", folder / "bin/python")


def of(pid: int, emulator: str) -> tuple[int, int]:
    """RSS and PSS in kB of what the program in a process has mapped, without an emulator's own."""
    rss = pss = 0
    is_own = False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        head = line.split(maxsplit=5)
        if "-" in head[0] and not head[0].endswith(":"):
            path = head[5] if len(head) > 5 else ""
            is_own = bool(emulator) and _is_emulators(int(head[0].partition("-")[0], 16), head[1], path, emulator)
        elif not is_own and head[0] in {"Rss:", "Pss:"}:
            size = int(head[1])
            rss, pss = (rss + size, pss) if head[0] == "Rss:" else (rss, pss + size)
    return rss, pss


def _is_emulators(start: int, rights: str, path: str, emulator: str) -> bool:
    """qemu-user's own: its file, heap and stack, what it translated, what it allocated high above its guest."""
    if path.endswith(emulator) or path in {"[heap]", "[stack]", "[vdso]", "[vvar]"} or ("x" in rights and not path):
        return True
    return not path and start >= 0x7000_0000_0000


def children(pid: int) -> list[int]:
    """All below a process."""
    try:
        own = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [one for child in own for one in (int(child), *children(int(child)))]


def run(python: Python, reflector: conftest.Reflector, folder: Path) -> dict[str, object]:
    """Idle, one session below it, idle again; gives figures, or says what went wrong."""
    state, run_dir = folder / "state", folder / "run"
    joined.join(state, reflector.url, reflector.key, segment_s=1.0)
    program = str(python.executable)
    found = subprocess.run(
        [program, "-c", "import importlib.util as u, os; print(u.find_spec('probe.agent').origin, os.uname().machine)"],
        capture_output=True, text=True, timeout=120, cwd=folder,
    )  # fmt: skip
    if found.returncode:
        return {"python": python.name, "failed": found.stderr[-400:]}
    agent, processor = found.stdout.split()
    turn = [program, "-P", "-m", "evenlane.cli", "probe", "once", "--for-agent", "--now"]
    turn += ["--state", str(state), "--run", str(run_dir), "--settings", str(state / "settings.json")]
    run_dir.mkdir()
    log = (folder / "log").open("w+")
    process = subprocess.Popen(
        [program, "-I", "-S", agent, "--run", str(run_dir), "--data-mb", "0", "--turn-s", str(TURN_S), "--", *turn],
        cwd=folder, stdout=log, stderr=log,
    )  # fmt: skip
    memory, done = Memory(), threading.Event()
    watcher = threading.Thread(target=watch, args=(process.pid, python.emulator, memory, done), daemon=True)
    watcher.start()
    last = run_dir / "last.json"
    try:
        seconds = follow(process, folder / "log")
        time.sleep(0.5)
        memory.idle_rss, memory.idle_pss = of(process.pid, python.emulator) if process.poll() is None else (0, 0)
    finally:
        done.set()
        watcher.join()
        process.terminate()
        process.wait(60)
    log.seek(0)
    said = log.read()
    if not last.exists():
        return {"python": python.name, "failed": said[-600:] or "nothing was measured"}
    told = json.loads(last.read_text())
    return {
        "python": python.name,
        "processor": processor,
        "turn_s": round(seconds, 1),
        "pairs": told["pairs"]["finished"],
        "idle_rss_mb": round(memory.idle_rss / 1000, 1),
        "idle_pss_mb": round(memory.idle_pss / 1000, 1),
        "most_pss_mb": round(memory.most_pss / 1000, 1),
        "most_child_rss_mb": round(memory.most_child_rss / 1000, 1),
        "samples": memory.samples,
    }


def follow(process: subprocess.Popen[bytes], log: Path) -> float:
    """Wait for the end of the first turn; how long it took, in seconds. The agent says something when one is over."""
    began = time.monotonic()
    while time.monotonic() - began < TURN_S and process.poll() is None:
        if log.stat().st_size and not children(process.pid):
            break
        time.sleep(0.1)
    return time.monotonic() - began


def watch(pid: int, emulator: str, memory: Memory, done: threading.Event) -> None:
    """Look at the agent and everything below it, ten times a second."""
    while not done.wait(0.1):
        try:
            below = children(pid)
            found = [of(one, emulator) for one in (pid, *below)]
        except OSError:
            continue  # one of them ended while we looked
        memory.samples += 1
        memory.most_pss = max(memory.most_pss, sum(pss for _, pss in found))
        memory.most_child_rss = max([memory.most_child_rss, *(rss for rss, _ in found[1:])])


def pythons(tree: Path, scratch: Path, only: list[str]) -> list[Python]:
    """This machine's, the same in an emulator, and those of other processors; what is absent is told."""
    own = native(tree, scratch / "native")
    found = [own]
    emulator = shutil.which(f"qemu-{os.uname().machine}-static")
    if emulator:
        program = own.executable.with_name("python-emulated")
        program.write_text(f'#!/bin/sh\nexec {emulator} -0 {own.executable} {own.executable.resolve()} "$@"\n')
        program.chmod(0o755)
        found.append(Python("this machine, emulated", program, Path(emulator).name))
    for machine in signer.MACHINES:
        try:
            found.append(emulated(machine, tree))
        except signer.Absent as reason:
            print(f"{machine.debian}: {reason}", file=sys.stderr)
    return [one for one in found if not only or one.name in only]


def main() -> int:
    """Print the table; 3 where no other processor could be tried, 1 where a turn failed."""
    rows = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended then, too
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        tree = scratch / "tree"
        pack.pack(ROOT, "0.1.0", tree, form="bytecode")
        (scratch / "reflector").mkdir()
        with conftest.Reflector(scratch / "reflector") as reflector:
            for number, python in enumerate(pythons(tree, scratch, sys.argv[1:])):
                folder = scratch / f"run{number}"
                folder.mkdir()
                rows.append(run(python, reflector, folder))
                print(json.dumps(rows[-1]), file=sys.stderr)
    print("| where | processor | idle agent RSS | agent and child PSS, most | child RSS, most | turn |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        if "failed" in row:
            print(f"| {row['python']} | failed: {row['failed']} |")
            continue
        print(
            f"| {row['python']} | {row['processor']} | {row['idle_rss_mb']} MB | {row['most_pss_mb']} MB | "
            f"{row['most_child_rss_mb']} MB | {row['turn_s']} s |"
        )
    if any("failed" in row for row in rows):
        return 1
    return 0 if any(row["python"] in {one.debian for one in signer.MACHINES} for row in rows) else 3


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: EUPL-1.2
"""The pure-Python signer on other processors: right everywhere, and how much it costs beside the same code here.

Runs Debian's own Python for armhf, mipsel and arm64 under qemu-user, from packages unpacked below build/emulated (as
an ordinary user, nothing is installed). Needs apt-get, dpkg-deb and a Debian mirror as the machine has it configured.
`make emulated-signer` prints one JSON object; tests/bench/test_signer_emulated.py asks the same. What the figures can
and cannot tell stands in docs/footprint.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build/emulated"
PACKAGES = (
    "libc6",
    "libgcc-s1",
    "zlib1g",
    "libexpat1",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "python3.11-minimal",
)
"""OpenSSL is left out on purpose: the signer must do with what a router has."""
ROUNDS = 7


@dataclass(frozen=True)
class Machine:
    """One kind of processor by Debian's and by qemu's name."""

    debian: str
    qemu: str
    like: str


MACHINES = (
    Machine("armhf", "arm", "32-bit ARM routers and boards"),
    Machine("mipsel", "mipsel", "the smallest OpenWrt routers"),
    Machine("arm64", "aarch64", "newer routers"),
)


class Absent(Exception):
    """Something that this needs is not on the machine; the message says what."""


# Runs in the other Python, which has the standard library's core and probe/wire/ed25519.py alone.
PROGRAM = """
import json, sys, time, tracemalloc
sys.path.insert(0, sys.argv[1])
tracemalloc.start()
from probe.wire import ed25519
kept, _ = tracemalloc.get_traced_memory()
tracemalloc.reset_peak()
vectors = json.loads(sys.argv[2])
for seed, public, message, signature in ([bytes.fromhex(part) for part in one] for one in vectors):
    assert ed25519.public_key(seed) == public and ed25519.sign(seed, message, public) == signature
    assert ed25519.verify(public, message, signature)
    assert not ed25519.verify(public, message + b"x", signature)
peak = tracemalloc.get_traced_memory()[1] - kept
tracemalloc.stop()
message, (seed, public) = bytes(20_000), [bytes.fromhex(part) for part in vectors[0][:2]]
signature = ed25519.sign(seed, message, public)
def best(work):
    times = []
    for _ in range(int(sys.argv[3])):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times) * 1000
print(json.dumps({
    "python": ".".join(map(str, sys.version_info[:3])), "digit_bits": sys.int_info.bits_per_digit,
    "word_bits": sys.maxsize.bit_length() + 1, "byteorder": sys.byteorder,
    "sign_ms": round(best(lambda: ed25519.sign(seed, message, public)), 2),
    "verify_ms": round(best(lambda: ed25519.verify(public, message, signature)), 2),
    "key_ms": round(best(lambda: ed25519.public_key(seed)), 2),
    "kept_kb": round(kept / 1000), "signing_kb": round(peak / 1000),
}))
"""


def vectors() -> list[list[str]]:
    """Of RFC 8032, as the unit tests have them."""
    names: dict[str, Any] = {}
    text = (ROOT / "tests/unit/test_wire_signing.py").read_text(encoding="utf-8")
    start = text.index("VECTORS = [")
    exec(text[start : text.index("\n]\n", start) + 3], names)  # noqa: S102 - our own file, and only the table of it
    return [list(one) for one in names["VECTORS"]]


def qemu(machine: Machine) -> Path:
    """The emulator: installed, or unpacked from its package."""
    name = f"qemu-{machine.qemu}-static"
    installed = shutil.which(name)
    if installed:
        return Path(installed)
    unpacked = WORK / "qemu/usr/bin" / name
    if not unpacked.exists():
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise Absent(f"{name} is not here (Debian package qemu-user-static), and {tool} is not either")
        folder = WORK / "qemu"
        folder.mkdir(parents=True, exist_ok=True)
        run(["apt-get", "download", "qemu-user-static"], cwd=folder)
        unpack(folder.glob("qemu-user-static_*.deb"), folder)
    return unpacked


def sysroot(machine: Machine) -> Path:
    """Python for the machine, unpacked. apt works in directories of its own, and the system's are only read."""
    base = WORK / machine.debian
    root, python = base / "root", base / "root/usr/bin/python3.11"
    if python.exists():
        return root
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Absent(f"{tool} is not on this machine (Debian packages apt and dpkg)")
    for folder in ("lists/partial", "cache", "archives/partial", "sources", "root"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    (base / "status").touch()
    for source in Path("/etc/apt/sources.list.d").glob("debian.sources"):
        shutil.copy(source, base / "sources")
    options = {
        "APT::Architecture": machine.debian, "APT::Architectures::": machine.debian,
        "Dir::State::status": base / "status",
        "Dir::State::lists": base / "lists", "Dir::Cache": base / "cache", "Dir::Cache::archives": base / "archives",
        "Dir::Etc::sourceparts": base / "sources", "Debug::NoLocking": 1,
    }  # fmt: skip
    apt = ["apt-get", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
    subprocess.run([*apt, "update"], capture_output=True)  # one part of it may fail; the next line shows
    run([*apt, "install", "-y", "--no-install-recommends", "--download-only", *PACKAGES])
    unpack((one for name in PACKAGES for one in (base / "archives").glob(f"{name}_*.deb")), root)
    return root


def unpack(packages: Any, folder: Path) -> None:
    """The files of .deb packages."""
    for package in packages:
        run(["dpkg-deb", "-x", str(package), str(folder)])


def run(argv: list[str], **options: Any) -> str:
    """What a program prints; Absent where it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, **options)
    if done.returncode:
        raise Absent(f"{' '.join(argv[:2])} failed: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")
    return done.stdout


def measure(python: list[str], rounds: int) -> dict[str, Any]:
    """The figures of one Python."""
    argv = [*python, "-I", "-S", "-B", "-c", PROGRAM, str(ROOT), json.dumps(vectors()), str(rounds)]
    done = subprocess.run(argv, capture_output=True, text=True, env={"PATH": os.environ.get("PATH", "")})
    if done.returncode:
        raise RuntimeError(f"the signer fails there: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def on(machine: Machine, rounds: int = ROUNDS) -> dict[str, Any]:
    """The machine's figures and, from just before and just after, those of this one. Raises Absent."""
    root, emulator = sysroot(machine), qemu(machine)
    here = [measure([sys.executable], rounds)]
    there = measure([str(emulator), "-L", str(root), str(root / "usr/bin/python3.11")], rounds)
    here.append(measure([sys.executable], rounds))
    ratios = {
        name: round(there[f"{name}_ms"] / min(one[f"{name}_ms"] for one in here), 1)
        for name in ("sign", "verify", "key")
    }
    return {"machine": machine.debian, "like": machine.like, "emulated": there, "host": here, "times_host": ratios}


def main() -> int:
    """Print what was found; 3 where nothing could be measured."""
    found = []
    for machine in MACHINES:
        try:
            found.append(on(machine))
        except Absent as reason:
            print(f"{machine.debian}: {reason}", file=sys.stderr)
    print(json.dumps({"signer": found}, indent=1))
    return 0 if found else 3


if __name__ == "__main__":
    sys.exit(main())

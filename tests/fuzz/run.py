# SPDX-License-Identifier: EUPL-1.2
"""`make fuzz`: every target for some seconds under atheris, which keeps what reaches new code.

Each target runs in a process of its own (libFuzzer does not return). Prints executions, speed, coverage and findings;
exit code 1 where there is one, and its input is written to build/fuzz/findings/NAME-HASH. Exit code 3 without atheris.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORK = ROOT / "build/fuzz"
ROOMS = ["probe", "collector", "analysis", "lab"]
MOST_MB = 1024
SLOWEST_S = 10


@dataclass(frozen=True)
class Result:
    """What one target's run came to."""

    name: str
    executions: int
    seconds: float
    coverage: int
    features: int
    corpus: int
    findings: tuple[Path, ...]
    log: str

    @property
    def row(self) -> str:
        """One line of the table."""
        found = f"{len(self.findings)} FOUND" if self.findings else "none"
        speed = self.executions / max(self.seconds, 0.001)
        return (
            f"{self.name:<18}{self.executions:>11,}{speed:>10,.0f}/s{self.coverage:>10}{self.features:>10}"
            f"{self.corpus:>8}  {found}"
        )


HEAD = f"{'target':<18}{'executions':>11}{'speed':>12}{'coverage':>10}{'features':>10}{'corpus':>8}  findings"


def fuzz_one(name: str, arguments: list[str]) -> None:
    """In the child: instrument our rooms, import the target, hand over to libFuzzer."""
    import atheris

    sys.path.insert(0, str(HERE))
    with atheris.instrument_imports(include=ROOMS, enable_loader_override=False):
        import fuzz_targets
    run = fuzz_targets.TARGETS[name].run
    atheris.Setup([name, *arguments], run)
    atheris.Fuzz()


def run_target(name: str, seconds: int) -> Result:
    """In the parent: one child, its corpus, its log."""
    from fuzz_targets import TARGETS

    target, corpus = TARGETS[name], WORK / "corpus" / name
    seeds, found = WORK / "seeds" / name, WORK / "findings"
    for folder in (corpus, seeds, found):
        folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.inputs()):
        (seeds / f"{number:04d}").write_bytes(data)
    before = set(found.glob(f"{name}-*"))
    argv = [sys.executable, str(Path(__file__)), "--child", name, "--"]
    argv += [f"-max_total_time={seconds}", f"-max_len={target.most}", f"-timeout={SLOWEST_S}"]
    argv += [
        f"-rss_limit_mb={MOST_MB}",
        f"-artifact_prefix={found}/{name}-",
        "-print_final_stats=1",
        "-use_value_profile=1",
    ]
    argv += [str(corpus), str(seeds)]
    start = time.monotonic()
    child = subprocess.run(
        argv, cwd=ROOT, capture_output=True, text=True, errors="replace", env=os.environ | {"PYTHONHASHSEED": "0"}
    )
    took = time.monotonic() - start
    log = child.stdout + child.stderr
    (WORK / f"{name}.log").write_text(log, encoding="utf-8")
    findings = tuple(sorted(path for path in set(found.glob(f"{name}-*")) - before))
    executions = _last(r"stat::number_of_executed_units:\s+(\d+)", log) or _last(r"#(\d+)\s", log)
    if child.returncode and not findings:
        raise SystemExit(f"{name} did not run:\n{log[-3000:]}")
    return Result(
        name=name,
        executions=executions,
        seconds=took,
        coverage=_last(r"cov: (\d+)", log),
        features=_last(r"ft: (\d+)", log),
        corpus=_last(r"corp: (\d+)", log),
        findings=findings,
        log=log,
    )


def _last(pattern: str, log: str) -> int:
    found = re.findall(pattern, log)
    return int(found[-1]) if found else 0


def why(result: Result) -> str:
    """The exception of a finding, from the log."""
    lines = [line for line in result.log.splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if "Uncaught Python exception" in line or "ERROR: libFuzzer" in line]
    return "\n".join(lines[starts[0] : starts[0] + 25]) if starts else "\n".join(lines[-10:])


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="names; all where none is given")
    parser.add_argument("--seconds", type=int, default=30, help="for each target (default 30)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args()
    if args.child:
        fuzz_one(args.child, [part for part in (*args.targets, *rest) if part != "--"])
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("make fuzz needs atheris, which has wheels for CPython on Linux and macOS", file=sys.stderr)
        return 3
    sys.path.insert(0, str(HERE))
    from fuzz_targets import TARGETS

    unknown = sorted(set(args.targets) - set(TARGETS))
    if unknown:
        print(f"there is no target {unknown[0]}; known are {', '.join(sorted(TARGETS))}", file=sys.stderr)
        return 2
    names = args.targets or sorted(TARGETS)
    print(f"{len(names)} targets, {args.seconds} s each\n{HEAD}", flush=True)
    results = []
    for name in names:
        results.append(run_target(name, args.seconds))
        print(results[-1].row, flush=True)
    bad = [result for result in results if result.findings]
    for result in bad:
        print(f"\n{result.name}: {', '.join(str(path.relative_to(ROOT)) for path in result.findings)}\n{why(result)}")
    total = sum(result.executions for result in results)
    print(f"\n{total:,} executions, {sum(len(r.findings) for r in bad)} findings")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

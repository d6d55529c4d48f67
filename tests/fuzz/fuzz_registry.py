# SPDX-License-Identifier: EUPL-1.2
"""What a fuzz target is, and the list of them.

A target is one function of bytes that states its parser's properties with `assert` and lets no exception through but
the documented one. `@target` enters it; hypothesis (test_fuzz_parsers.py) and atheris (run.py) both read the list.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
GOLDEN = ROOT / "tests/contract/golden"
LONGEST_CPU_S = 2.0
"""No input of a few kilobytes may cost more CPU time than this, on any machine."""


@dataclass(frozen=True)
class Target:
    """One parser under test."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    most: int
    """Longest input that is tried."""
    examples: int
    """How many hypothesis tries in an ordinary test run."""

    def check(self, data: bytes) -> None:
        """Run once; a bound on CPU time is a property of every parser."""
        start = time.process_time()
        self.run(data)
        took = time.process_time() - start
        assert took < LONGEST_CPU_S, f"{took:.1f} s of CPU for {len(data)} bytes"

    def inputs(self) -> list[bytes]:
        """Seeds and everything that was ever a finding."""
        return [*self.corpus(), *self.findings()]

    def corpus(self) -> list[bytes]:
        """What mutation begins with: from the target itself, and files in corpus/NAME."""
        return [seed[: self.most] for seed in self.seeds()] + _files(HERE / "corpus" / self.name)

    def findings(self) -> list[bytes]:
        """Inputs that once broke a property; each stays a test for ever."""
        return _files(HERE / "findings" / self.name)


TARGETS: dict[str, Target] = {}


def target(
    *, seeds: Callable[[], Iterable[bytes]] = tuple, most: int = 4096, examples: int = 60
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Enter `fuzz_NAME` into the list as NAME."""

    def enter(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        name = run.__name__.removeprefix("fuzz_")
        TARGETS[name] = Target(name, run, seeds, most, examples)
        return run

    return enter


def _files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*")) if path.is_file()]


def golden_lines() -> list[bytes]:
    """Every signed line that is kept as an example, old ones too."""
    return [path.read_bytes() for path in sorted(GOLDEN.rglob("*.jsonl"))]

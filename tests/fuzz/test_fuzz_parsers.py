# SPDX-License-Identifier: EUPL-1.2
"""Every fuzz target holds on its seeds, on every past finding, and on what hypothesis makes of them.

`make fuzz` runs the same functions guided by coverage.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_targets import TARGETS, Target

# CPython reports a server name that is not ASCII as unraisable, before OpenSSL refuses the hello.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

BLOCKS = [
    b"",
    b"\0",
    b"\xff",
    b"\r\n",
    b"\n",
    b'"',
    b"[",
    b"{",
    b"9" * 40,
    "²".encode(),
    b"\xb2",
    b"::",
    b".",
    b"e400",
    b"\\ud800",
]


@st.composite
def changed(draw: st.DrawFn, target: Target) -> bytes:
    """A seed with a few pieces cut out, doubled or replaced; now and then bytes from nothing."""
    seeds = target.corpus()
    if not seeds or draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = draw(st.sampled_from(seeds))
    rng = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.integers(1, 4))):
        at, size = rng.randrange(len(data) + 1), rng.choice([0, 1, 2, 4, 16])
        piece = rng.choice(
            [rng.choice(BLOCKS), rng.randbytes(size), data[at : at + size] * 2, rng.choice(seeds)[at : at + 30]]
        )
        data = data[:at] + piece + data[at + size :]
    return data[: target.most]


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_seeds_and_past_findings(name: str) -> None:
    for data in TARGETS[name].inputs():
        TARGETS[name].check(data)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_what_hypothesis_makes_of_them(name: str) -> None:
    target = TARGETS[name]

    @settings(
        max_examples=20_000 if os.environ.get("EVENLANE_FUZZ") else target.examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(changed(target))
    def holds(data: bytes) -> None:
        target.check(data)

    holds()


def test_every_function_named_so_is_a_target() -> None:
    """A target without its decorator would never run."""
    written = {
        line.removeprefix("def fuzz_").partition("(")[0]
        for path in Path(__file__).parent.glob("fuzz_*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("def fuzz_")
    }
    assert written == set(TARGETS)


def test_findings_belong_to_targets() -> None:
    here = Path(__file__).parent
    assert {path.name for folder in ("findings", "corpus") for path in (here / folder).glob("*")} <= set(TARGETS)

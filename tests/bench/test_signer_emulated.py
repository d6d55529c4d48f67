# SPDX-License-Identifier: EUPL-1.2
"""The pure-Python signer gives RFC 8032's bytes on other processors too, at a price that is printed (-s)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

_spec = importlib.util.spec_from_file_location("emulated_signer", Path(__file__).with_name("emulated_signer.py"))
assert _spec is not None
assert _spec.loader is not None
emulated = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("emulated_signer", emulated)
_spec.loader.exec_module(emulated)

MOST_TIMES_HOST = 60
"""Emulation costs about 10 to 30 times; far more would mean another algorithm."""
MOST_SIGNING_KB = 200


@pytest.mark.parametrize("machine", emulated.MACHINES, ids=lambda machine: machine.debian)
def test_signs_and_verifies_there(machine, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        found = emulated.on(machine)
    except emulated.Absent as reason:
        pytest.skip(str(reason))
    there = found["emulated"]
    with capsys.disabled():
        print(
            f"\n{machine.debian}: sign {there['sign_ms']} ms, verify {there['verify_ms']} ms emulated"
            f" ({found['times_host']['sign']} and {found['times_host']['verify']} times this host),"
            f" {there['kept_kb']} kB for the modules and {there['signing_kb']} kB more while signing,"
            f" {there['digit_bits']}-bit digits"
        )
    assert there["word_bits"] == (64 if machine.debian == "arm64" else 32)
    assert found["times_host"]["sign"] < MOST_TIMES_HOST
    assert there["signing_kb"] < MOST_SIGNING_KB

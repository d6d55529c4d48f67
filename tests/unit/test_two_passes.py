# SPDX-License-Identifier: EUPL-1.2
"""`make test` in two passes: each test is in exactly one, and a failure in either is a failure of both."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("two_passes", TESTS / "two_passes.py")
two_passes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(two_passes)


@pytest.mark.parametrize(
    ("codes", "outcome"),
    [([0, 0], 0), ([1, 0], 1), ([0, 1], 1), ([5, 0], 0), ([0, 5], 0), ([5, 1], 1), ([5, 5], 5), ([4], 4), ([-9], -9)],
)
def test_any_failure_counts_and_an_empty_pass_does_not(codes, outcome):
    assert two_passes.outcome(codes) == outcome


def test_workers_are_for_the_first_pass_alone():
    (_, first), (_, second) = two_passes.commands(["-n3", "-k", "coin"], xdist=True)
    assert first == ["-m", "(not slow) and not serial", "-n", "3", "--dist", "worksteal", "-k", "coin"]
    assert second == ["-m", "(not slow) and serial", "-k", "coin"]


def test_without_xdist_nothing_asks_for_workers():
    for _, options in two_passes.commands(["-n0", "-m", "lab or slow", "tests/lab"], xdist=False):
        assert not any(option.startswith("-n") for option in options)
        assert options[1].startswith("(lab or slow) and ")


SUITE = {
    "unit/test_a.py": "import pytest\ndef test_plain(): pass\n@pytest.mark.serial\ndef test_rate(): pass\n"
    "@pytest.mark.slow\ndef test_study(): pass\n@pytest.mark.lab\ndef test_line(): pass\n",
    "lab/test_b.py": "def test_operator(): pass\n",
    "services/test_c.py": "def test_server(): assert False\n",
}


@pytest.fixture
def suite(tmp_path):
    """A tests folder of its own with the real configuration, and what says which tests ran in it."""
    for name, text in SUITE.items():
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / name).write_text(text)
    shutil.copy(TESTS / "conftest.py", tmp_path / "tests")
    shutil.copy(TESTS.parent / "pyproject.toml", tmp_path)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}

    def run(*arguments):
        argv = [sys.executable, str(TESTS / "two_passes.py"), "-v", *arguments]
        done = subprocess.run(argv, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=120)
        first, second = done.stdout.split("== second pass", 1)
        return done, *(sorted(re.findall(r"::(test_\w+) (?:PASSED|FAILED)", part)) for part in (first, second))

    return run


def test_each_test_is_in_exactly_one_pass_and_a_failure_is_told(suite):
    done, first, second = suite("-n0")
    assert (first, second) == (["test_plain"], ["test_line", "test_operator", "test_rate", "test_server"])
    assert done.returncode == 1


def test_one_file_whose_tests_are_all_in_one_pass_is_no_failure(suite):
    done, first, second = suite("-n0", "tests/lab/test_b.py")
    assert (done.returncode, first, second) == (0, [], ["test_operator"])

# SPDX-License-Identifier: EUPL-1.2
"""What all tests share: hypothesis profiles, who runs beside whom, and the one way to skip for a missing part."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fuzz", parent=settings.get_profile("default"), max_examples=20_000)
settings.load_profile("fuzz" if os.environ.get("EVENLANE_FUZZ") else "default")

TESTS = Path(__file__).parent
SERIAL_FOLDERS = {"lab", "services", "browser", "bench"}
SERIAL_MARKS = ("lab", "browser", "packaging")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks `serial` what must not run beside other tests (docs/adr/0012-tests-in-two-passes.md).

    First of all hooks, because `-m` looks at the marks in the same hook.
    """
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if folder in SERIAL_FOLDERS or any(item.get_closest_marker(name) for name in SERIAL_MARKS):
            item.add_marker("serial")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """`-n auto`: two processes a core, because half of the tests' time is waiting for sockets; at most eight."""
    return max(2, min(8, 2 * (os.cpu_count() or 1)))


@pytest.fixture(scope="session")
def program():
    """Path of a program, or a skip that says which Debian package has it."""

    def find(name: str, package: str) -> str:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
        if path is None:
            pytest.skip(f"{name} is not on this machine (Debian package {package})")
        return path

    return find


@pytest.fixture(scope="session")
def reflector(tmp_path_factory):
    """A real reflector on loopback for the whole run: `.url` (with pin), `.state`, `.key`."""
    state = tmp_path_factory.mktemp("reflector")
    with Reflector(state) as running:
        yield running


class Reflector:
    """Starts `evenlane reflector` as its own process and stops it by its id."""

    def __init__(self, state, *options):
        self.state = state
        argv = [sys.executable, "-m", "evenlane.cli", "reflector", "--host", "127.0.0.1"]
        argv += ["--control-port", "0", "--data-port", "0", "--state", str(state), "--json", *options]
        self.log = (state / "log").open("w")
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        assert line, f"the reflector did not start: {(state / 'log').read_text()}"
        started = json.loads(line)
        self.url, self.key = f"{started['url']}#sha256={started['pin']}", started["key"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
        self.process.stdout.close()
        self.log.close()

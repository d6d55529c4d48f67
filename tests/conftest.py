# SPDX-License-Identifier: EUPL-1.2
"""What all tests share: hypothesis profiles, and the one way to skip for a missing part."""

import os
import shutil

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fuzz", parent=settings.get_profile("default"), max_examples=20_000)
settings.load_profile("fuzz" if os.environ.get("EVENLANE_FUZZ") else "default")


@pytest.fixture(scope="session")
def program():
    """Path of a program, or a skip that says which Debian package has it."""

    def find(name: str, package: str) -> str:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
        if path is None:
            pytest.skip(f"{name} is not on this machine (Debian package {package})")
        return path

    return find

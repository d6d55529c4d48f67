# SPDX-License-Identifier: EUPL-1.2
"""A real shaper of the kernel is seen through rtnetlink, and what only orders packets is taken for none."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from lab.namespaces import Warden, module_environment

LOOK = "from probe.shaping import is_shaped; print(is_shaped('lo'), is_shaped('no-such-line'))"


def test_shapers_are_told_from_queues() -> None:
    tc = shutil.which("tc", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if tc is None:
        pytest.skip("tc is not installed (iproute2)")
    try:
        warden = Warden()
    except OSError as error:
        pytest.skip(f"network namespaces are not to be had here: {error}")
    with warden:
        home = warden.namespace()

        def shaped(*discipline: str) -> str | None:
            if home.popen([tc, "qdisc", "replace", "dev", "lo", "root", *discipline], stderr=subprocess.PIPE).wait(20):
                return None  # this kernel lacks it
            looked = home.popen([sys.executable, "-c", LOOK], stdout=subprocess.PIPE, env=module_environment())
            return looked.communicate(timeout=20)[0].decode().strip()

        plain = [shaped("pfifo"), shaped("fq_codel"), shaped("cake", "unlimited")]
        held = [
            shaped("tbf", "rate", "5mbit", "burst", "32kb", "latency", "100ms"),
            shaped("htb"),
            shaped("cake", "bandwidth", "10mbit"),
        ]
        if held == [None] * 3:
            pytest.skip("this kernel has no shaper")
        assert set(plain) <= {"False None", None}
        assert set(held) <= {"True None", None}

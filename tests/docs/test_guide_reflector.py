# SPDX-License-Identifier: EUPL-1.2
"""The guides for hotspots and for operators of the network do what they say: their commands are run."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from probe.protocol.pacing import pair_bytes
from probe.reflector.metrics import Metrics

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/guides/reflector.md").read_text(encoding="utf-8")
TOML = re.findall(r"^```toml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def _guides() -> Any:
    spec = importlib.util.spec_from_file_location("guides", Path(__file__).with_name("guides.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["guides"] = module
    spec.loader.exec_module(module)
    return module


guides = _guides()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A home whose `evenlane` is the checkout's: the extra's packages come from this environment, not the index."""
    home = tmp_path_factory.mktemp("operator")
    ports = {}
    for port in ("8443", "8444", "8080"):  # free ones instead: others may have these here
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            ports[f"-port {port}"] = f"-port {sock.getsockname()[1]}"
    command = f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m evenlane.cli "$@"\n'
    for folder in (home / ".local/bin", home / "evenlane/bin"):
        folder.mkdir(parents=True)
        (folder / "evenlane").write_text(command)
        (folder / "evenlane").chmod(0o755)
    pip = home / "evenlane/bin/pip"
    pip.write_text('#!/bin/sh\n[ "$*" = "install evenlane[reflector]" ]\n')
    pip.chmod(0o755)
    return guides.Reader(home, Path(), {"python3 -m venv evenlane": "true", **ports})


@pytest.mark.packaging
def test_the_commands_of_the_reflector_guide(reader: Any) -> None:
    start, register, rotate = guides.blocks("reflector.md")
    ran = reader.run(start, until='"portal_port"', typed="\x03")
    assert ran.code == 0, ran.out
    told = json.loads(ran.out[ran.out.index("{") : ran.out.index("}") + 1])
    assert {"url", "pin", "key", "control_port", "data_port", "portal_port"} <= set(told)

    mine, theirs = TOML
    shown = re.findall(r'"([A-Za-z0-9_-]{43})"', TEXT)
    assert len(set(shown)) == 1
    (reader.home / "collector.toml").write_text(mine.replace(shown[0], told["key"]))
    example = (ROOT / "deploy/plan.example.toml").read_text()
    planned = re.sub(r"\[\[reflectors\]\].*?(?=\[\[nettests)", theirs, example, flags=re.DOTALL)
    (reader.home / "plan.toml").write_text(planned.replace("PIN", told["pin"]).replace(shown[0], told["key"]))
    ran = reader.run("set -e\n" + register)
    assert ran.code == 0, ran.out
    assert "1 trusted reflectors" in ran.out
    assert "the plan is good" in ran.out

    ran = reader.run("set -e\n" + rotate)
    assert ran.code == 0, ran.out
    assert "is the next key" in ran.out
    assert "from the next start or SIGHUP on" in ran.out


def test_the_figures_of_the_sizing_table_follow_from_each_other() -> None:
    rows = re.findall(r"^\| ([\d,]+) \| ([\d.]+) TB \| ([\d.]+) Mbit/s \|", TEXT, re.MULTILINE)
    assert len(rows) == 3
    for probes, terabytes, mean in rows:
        count = int(probes.replace(",", ""))
        assert float(terabytes) == count * 5e9 / 1e12
        assert float(mean) == pytest.approx(count * 5e9 * 8 / (30 * 86_400) / 1e6, rel=0.05)
    # "for about a minute": what 5 GB a month leave for one of four sessions a day, at 12 Mbit/s.
    assert 5e9 / (4 * 30) / (12e6 / 8) < 60
    assert pair_bytes(12.0, 4.0) * 3 < 5e9 / (4 * 30)


def test_every_metric_that_is_to_be_watched_exists() -> None:
    known = Metrics(lambda: 0).text().decode()
    named = set(re.findall(r"`(evenlane_reflector_[a-z_]+)`", TEXT))
    assert len(named) == 5
    for name in named:
        assert re.search(rf"^{name}(?:{{.*}})? ", known, re.MULTILINE), name


def test_the_states_of_the_door_are_all_explained() -> None:
    from typing import get_args

    from probe.wire.records import Portal

    text = (ROOT / "docs/guides/hotspot.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(get_args(Portal))

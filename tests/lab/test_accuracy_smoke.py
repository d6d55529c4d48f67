# SPDX-License-Identifier: EUPL-1.2
"""`evenlane lab accuracy` from end to end: a few rows, few repeats, and one row through real sockets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.accuracy.reading import load_all
from lab.drivers import refusal

pytestmark = pytest.mark.lab


def accuracy(*arguments: str, codes: tuple[int, ...] = (0, 1)) -> tuple[int, dict[str, Any], str]:
    argv = [sys.executable, "-m", "evenlane.cli", "lab", "accuracy", *arguments, "--json"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode in codes, ended.stderr
    return ended.returncode, json.loads(ended.stdout) if ended.stdout else {}, ended.stderr


def test_a_study_in_virtual_time_is_written_and_not_played_twice(tmp_path: Path) -> None:
    chosen = ["--rows", "neutral-idle", "--rows", "police-50", "--rows", "power-50-sd-011", "--rows", "null-sd-06"]
    options = [*chosen, "--tier", "virtual", "--repeat", "3", "--workers", "2", "--out", str(tmp_path)]
    code, found, said = accuracy(*options)
    rows = {row["row"]: row for row in found["rows"]}
    assert (code, found["ok"], found["left"]) == (0, True, 0), said
    assert rows["neutral-idle"]["virtual"]["wrong"]["k"] == 0
    assert rows["police-50"]["virtual"]["found"]["k"] == 3
    assert rows["police-50"]["virtual"]["peer"]["treated"]["positive"]["n"] > 0
    code, again, said = accuracy(*options)
    assert [row["played"] for row in again["rows"]] == [[], [], [], []]
    assert "unchanged since" in said


def test_an_untruth_is_told(tmp_path: Path) -> None:
    file = tmp_path / "untrue.toml"
    text = 'name = "untrue"\nkind = "discriminating"\ntitle = "t"\nwhy = "w."\nengine = "stream"\nrepeats = 4\n'
    file.write_text(f'{text}[expect]\neffects = ["youtube:slowing"]\n[options]\nnoise = {{ sd = 0.1 }}\n')
    code, found, _ = accuracy("--rows", str(file), "--tier", "virtual", "--out", str(tmp_path))
    assert (code, found["rows"][0]["differs"]) == (1, ["found in 0 of 4 repeats, not in 95%"])
    file.write_text(f"{text}[measure]\npair = 3\n")
    code, _, said = accuracy("--rows", str(file), codes=(2,))
    assert "measure.pair: unknown key; did you mean pairs?" in said


def test_the_list_plays_nothing(tmp_path: Path) -> None:
    code, found, _ = accuracy("--list", "--out", str(tmp_path))
    assert code == 0
    assert [row["row"] for row in found["rows"]] == [row.name for row in load_all()]
    assert list(tmp_path.iterdir()) == []


def test_a_row_through_real_sockets(tmp_path: Path) -> None:
    driver = next((name for name in ("tun", "veth") if refusal(name) is None), None)  # type: ignore[arg-type]
    if driver is None:
        pytest.skip("neither tun nor veth works here, and the relay never counts")
    options = ["--rows", "police-50", "--tier", "real", "--driver", driver, "--out", str(tmp_path)]
    code, found, said = accuracy(*options)
    [row] = found["rows"]
    real = row["real"]
    if real.get("void"):
        pytest.skip(f"void: {real['void']}")
    assert (code, real["agrees"], real["driver"]) == (0, True, driver), said
    sizes = real["apps"]["youtube"]["rates"]
    assert sizes["real"]["y"] == pytest.approx(sizes["virtual"]["y"], abs=0.15)

# SPDX-License-Identifier: EUPL-1.2
"""What docs/accuracy keeps of the study comes out again: nothing here waits for a clock, so it runs beside others."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.accuracy import results
from lab.accuracy.fast import judge_run
from lab.accuracy.reading import load, load_all
from lab.accuracy.study import digest_of, engine

COMMITTED = Path(__file__).parents[2] / "docs" / "accuracy"


@pytest.mark.parametrize("name", sorted(path.stem for path in COMMITTED.glob("rows/*.json")))
def test_committed_results_come_out_again(name: str) -> None:
    """The first repeat of each row, wherever it is played: what the study keeps is no accident."""
    kept = results.read(name, COMMITTED)
    assert kept is not None
    [row] = load_all([name])
    if kept["digests"].get("virtual") != digest_of(row, "virtual"):
        pytest.skip("something behind this result has changed; `make accuracy` plays it again")
    for first in kept["virtual"]["first"][:1]:
        run = engine(row.engine)(row, first["repeat"])
        judged = judge_run(run, row.measure, row.options, expected=row.expected)
        assert judged.pairs == first["pairs"]
        for cell, log_es in first["log_e"].items():
            assert [one.log_e for one in judged.cells[cell]] == pytest.approx(log_es, abs=1e-3), cell


def test_every_row_that_is_committed_has_its_file() -> None:
    for path in COMMITTED.glob("rows/*.json"):
        assert load(path.parents[3] / "lab" / "accuracy" / "rows" / f"{path.stem}.toml").name == path.stem

# SPDX-License-Identifier: EUPL-1.2
"""docs/guides/recompute.md does what it says: its commands are run, against open data of a collector made here."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from collector.api.shape import PAIR_COLUMNS, cell_row, pictures, to_csv
from collector.config import Config
from collector.intake import Door, admit
from collector.judge import Judge
from collector.rehearsal import Rehearsal, Truth, signer
from collector.store.base import EnvelopeRow
from collector.store.sqlite import SqliteStore
from probe.wire.envelope import to_json
from probe.wire.records import Origin

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/guides/recompute.md").read_text(), re.DOTALL)
START = 1_790_002_800_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guide's two downloads would have left: three probes at a slowed app."""
    made = tmp_path_factory.mktemp("guide")
    rng = random.Random(4)
    reflector = signer(rng)
    rehearsal = Rehearsal(rng=rng, reflector=reflector)
    config = Config(reflectors=(reflector.key_id,))
    store, judge = SqliteStore(made / "collector"), Judge(config)
    rows: list[EnvelopeRow] = []
    for who in range(3):
        at_ms = START + who * 3_600_000
        origin = Origin(asn=64500, operator="Example Net", country="NL", network=f"{who + 1:032x}", edge=True)
        told = rehearsal.session(
            signer(rng), started_ms=at_ms, pairs=16, truth=Truth(slowdown=0.5), placebo=2, origin=origin
        )
        for envelope in told.all:
            door: Door = "receipts" if envelope.key == reflector.public_key else "measurements"
            row = admit(to_json(envelope), door=door, trusted=frozenset(config.reflectors), now_ms=at_ms + 3_600_000)
            assert isinstance(row, EnvelopeRow), row
            rows.append(row)
    store.add(rows).result()
    while store.write(lambda book: judge.step(book, START + 86_400_000, 20)).result().left:
        pass
    views = store.cells()
    slowing = next(view for view in views if view.key.effect == "slowing")
    detail = store.evidence(slowing.key)
    assert detail is not None
    (made / "pairs.csv").write_text(to_csv(pictures(detail)["pairs"], PAIR_COLUMNS), encoding="utf-8")
    (made / "cells.json").write_text(json.dumps({"cells": [cell_row(view) for view in views]}), encoding="utf-8")
    store.close()
    return made


def test_the_guide_fetches_before_it_judges() -> None:
    assert [block.split()[0] for block in BLOCKS] == ["curl", "evenlane", "evenlane", "evenlane"]
    assert re.findall(r"-o (\S+)", BLOCKS[0]) == ["pairs.csv", "cells.json"]


@pytest.mark.parametrize(("block", "code"), [(1, 0), (2, 0), (3, 0)])
def test_commands_of_the_guide(folder: Path, block: int, code: int) -> None:
    program = f'evenlane() {{ "{sys.executable}" -m evenlane.cli "$@"; }}\n'
    ran = subprocess.run(
        ["sh", "-c", program + BLOCKS[block]],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    if block == 1:
        assert "0 not as by cells.json" in " ".join(ran.stdout.split())
    if block == 3:
        told = json.loads((folder / "mine.json").read_text())
        assert told["rule"].startswith("mine@2:")
        assert told["against"].startswith("evenlane-pairs@2:")

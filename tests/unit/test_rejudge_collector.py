# SPDX-License-Identifier: EUPL-1.2
"""Open data against the collector that published it: judged again, it says the same to the last digit."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.rules import RULES
from collector.api.shape import PAIR_COLUMNS, cell_row, pictures, to_csv
from collector.config import Config
from collector.intake import Door, admit
from collector.judge import Judge
from collector.model import CellDetail
from collector.rehearsal import Rehearsal, Truth, signer
from collector.store.base import EnvelopeRow
from collector.store.rows import plain
from collector.store.sqlite import SqliteStore
from evenlane.cli import main
from probe.wire.envelope import to_json
from probe.wire.records import Origin

START = 1_790_002_800_000
NOW = START + 3 * 86_400_000
TRUTHS = {"youtube": Truth(slowdown=0.45, noise=0.15), "whatsapp": Truth(noise=0.2), "signal": Truth(blocks=True)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteStore]:
    """Four probes in three networks, three apps, two days; lost, placebo, unfinished and blocked pairs."""
    rng = random.Random(11)
    reflector = signer(rng)
    rehearsal = Rehearsal(rng=rng, reflector=reflector)
    config = Config(reflectors=(reflector.key_id,))
    opened, judge = SqliteStore(tmp_path_factory.mktemp("collector")), Judge(config)
    rows: list[EnvelopeRow] = []
    for who in range(4):
        probe = signer(rng)
        origin = Origin(asn=64500, operator="Example Net", country="NL", network=f"{min(who, 2) + 1:032x}", edge=True)
        for number, (app, truth) in enumerate(TRUTHS.items()):
            for day in range(2):
                at_ms = START + day * 86_400_000 + who * 7_200_000 + number * 600_000
                told = rehearsal.session(
                    probe,
                    started_ms=at_ms,
                    pairs=12,
                    truth=truth,
                    placebo=2,
                    unfinished=who % 2,
                    origin=origin,
                    app=app,
                )
                for envelope in told.all:
                    mine: Door = "receipts" if envelope.key == reflector.public_key else "measurements"
                    if mine == "measurements" and who == 3 and day == 1 and app == "whatsapp":
                        continue  # withheld: its pairs are lost, though their receipts stay in the order history
                    row = admit(
                        to_json(envelope), door=mine, trusted=frozenset(config.reflectors), now_ms=at_ms + 3_600_000
                    )
                    assert isinstance(row, EnvelopeRow), row
                    rows.append(row)
    opened.add(rows).result()
    while opened.write(lambda book: judge.step(book, NOW, 20)).result().left:
        pass
    yield opened
    opened.close()


def exported(store: SqliteStore, folder: Path, form: str) -> list[Path]:
    """Each cell's pairs as the collector gives them out; the same for each of its effects."""
    files = []
    for view in store.cells():
        if view.key.effect != "slowing":
            continue
        detail = store.evidence(view.key)
        assert isinstance(detail, CellDetail)
        more = pictures(detail)
        file = folder / f"{view.key.app}.{form}"
        if form == "csv":
            file.write_text(to_csv(more["pairs"], PAIR_COLUMNS), encoding="utf-8")
        elif form == "json":
            file.write_text(json.dumps({"cell": cell_row(detail.cell), **more}), encoding="utf-8")
        else:
            lines = (json.dumps(plain(pair), separators=(",", ":")) for pair in detail.pairs)
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        files.append(file)
    assert len(files) == len(TRUTHS)
    return files


def rejudged(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict[str, Any]]:
    code = main(["analysis", "rejudge", *map(str, argv), "--json"])
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, told


@pytest.mark.parametrize("form", ["jsonl", "csv", "json"])
def test_recomputation_gives_what_the_collector_published(
    store: SqliteStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    old = tmp_path / "cells.json"
    old.write_text(json.dumps({"cells": [cell_row(view) for view in store.cells()]}))
    code, told = rejudged(capsys, *exported(store, tmp_path, form), "--against", old)
    differing = {
        (row["app"], row["effect"]): (row["changed"], row["old"], row["new"]) for row in told["cells"] if row["differs"]
    }
    assert differing == {}
    assert code == 0
    assert len(told["cells"]) == len(TRUTHS) * len(RULES.effects)
    states = {(row["app"], row["effect"]): row["new"]["state"] for row in told["cells"]}
    assert states["youtube", "slowing"] == states["signal", "blocking"] == "corroborated"


def test_published_midpoints_follow_from_published_pairs(
    store: SqliteStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, told = rejudged(capsys, *exported(store, tmp_path, "jsonl"))
    assert told["midpoints"]["different"] == told["midpoints"]["missing"] == 0
    assert told["midpoints"]["same"] > 100
    assert not any("flags" in note for note in told["notes"])

# SPDX-License-Identifier: EUPL-1.2
"""Evidence from the published pairs alone: the same as the judge's, by program and by the steps that the page gives."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.rules import EFFECTS
from collector.api.shape import PAIR_COLUMNS, cell_row, to_csv
from collector.config import Config
from collector.intake import Door, EnvelopeRow, admit
from collector.judge import Judge
from collector.pages.example import blocked, cell, pairs
from collector.pages.recompute import MOST_POINTS, curve, judged, main, read_csv
from collector.rehearsal import Rehearsal, Truth, signer
from collector.store.rows import plain
from collector.store.sqlite import SqliteStore
from probe.wire.envelope import to_json
from probe.wire.records import Origin, PairRecord

START = 1_790_002_800_000
NOW = START + 3 * 86_400_000

SLOW = pairs(cell("heron", "youtube", "corroborated"))


def csv_of(made: tuple[PairRecord, ...]) -> str:
    return to_csv([plain(pair) for pair in made], PAIR_COLUMNS)


def test_pairs_survive_the_csv_to_the_last_digit() -> None:
    strange = replace(SLOW[3], app_mbps=1 / 3, midpoint=-0.123456789012345, edge=None, asn=None, operator="-x")
    assert tuple(read_csv(csv_of((*SLOW, strange)).splitlines())) == (*SLOW, strange)


def test_by_hand_as_the_page_says_for_one_probe_on_one_day() -> None:
    # Ten pairs of one probe, all won: the steps of the page, without the program.
    wins = [
        replace(p, probe="p1", network="n1", day="2026-11-01", stratum="rest", lost=False, kind="test",
                neutral_first=True, app_mbps=4.0, neutral_mbps=10.0, app_end="complete", neutral_end="complete",
                midpoint=None)
        for p in SLOW[:10]
    ]  # fmt: skip
    purse = sum((1 + bet) ** 10 for bet in (0.4, 0.6, 0.8, 0.95)) / 4
    # Starts on the first day with weight 0.8, the rest of the weight counts as 1; hours: all 0.8, peak 0.1, rest 0.1.
    of_day = 0.8 * purse + 0.2
    probe = 0.8 * of_day + 0.1 * 1 + 0.1 * of_day
    whole = sum(1 - share + share * probe for share in (0.05, 0.2, 0.5, 1.0)) / 4
    found = judged(wins, "slowing")
    assert found.whole == pytest.approx(math.log(whole), abs=1e-9)
    assert found.without_one == pytest.approx(0, abs=1e-12)


def test_each_effect_reads_its_own_bets() -> None:
    refused = pairs(blocked("heron", "signal"))
    assert judged(refused, "blocking").without_one > math.log(20)
    assert judged(refused, "slowing").whole <= 0
    assert judged(SLOW, "slowing").without_one > math.log(20)
    assert judged(SLOW, "prioritising").whole < 0
    assert judged((), "slowing").whole == 0


def test_a_pair_that_was_lost_and_placebo_pairs_count_as_they_must() -> None:
    tested = tuple(p for p in SLOW if p.kind == "test")
    assert judged(tested, "slowing") == judged(SLOW, "slowing")
    withheld = tuple(replace(p, lost=True) if p.sequence == 5 else p for p in tested)
    assert judged(withheld, "slowing").whole < judged(tested, "slowing").whole


def test_the_curve_ends_where_the_judgement_does_and_is_thinned_where_long() -> None:
    many = pairs(cell("heron", "youtube", "corroborated", pairs=900, lost_pairs=0))
    points = curve(many, "slowing")
    assert len(points) <= MOST_POINTS
    assert points[-1].sequence == many[-1].sequence
    found = judged(many, "slowing")
    assert points[-1].whole == pytest.approx(found.whole / math.log(10))
    assert points[-1].decides == pytest.approx(found.without_one / math.log(10))
    assert all(point.decides <= point.whole + 1e-9 for point in points)


def test_the_program_prints_what_follows_and_refuses_what_is_no_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text(csv_of(SLOW), encoding="utf-8")
    assert main([str(file)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["effect"] for row in rows] == list(EFFECTS)
    found = judged(SLOW, "slowing")
    told = next(row for row in rows if row["effect"] == "slowing")
    assert told["log10_e_without_one"] == round(found.without_one / math.log(10), 6)
    file.write_text("sequence,kind\n1,test\n", encoding="utf-8")
    assert main([str(file)]) == 3
    assert "line 2 is no published pair" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere.csv")]) == 3


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """What a real collector judged: four probes in three networks, two of them on two days, some pairs unfinished."""
    rng = random.Random(7)
    reflector = signer(rng)
    rehearsal = Rehearsal(rng=rng, reflector=reflector)
    config = Config(reflectors=(reflector.key_id,))
    opened, judge = SqliteStore(tmp_path), Judge(config)
    rows: list[EnvelopeRow] = []
    for who in range(4):
        probe = signer(rng)
        origin = Origin(asn=64500, operator="Example Net", country="NL", network=f"{min(who, 2) + 1:032x}", edge=True)
        for day in range(1 + who % 2):
            at_ms = START + day * 86_400_000 + who * 7_200_000
            told = rehearsal.session(
                probe,
                started_ms=at_ms,
                pairs=9,
                truth=Truth(slowdown=0.45, noise=0.15, blocks=who == 3 and day == 1),
                placebo=1,
                unfinished=who % 2,
                origin=origin,
            )
            for envelope in told.all:
                door: Door = "receipts" if envelope.key == reflector.public_key else "measurements"
                row = admit(
                    to_json(envelope), door=door, trusted=frozenset(config.reflectors), now_ms=at_ms + 3_600_000
                )
                assert isinstance(row, EnvelopeRow), row
                rows.append(row)
    opened.add(rows).result()
    while opened.write(lambda book: judge.step(book, NOW, 20)).result().left:
        pass
    yield opened
    opened.close()


def test_what_the_collector_judged_follows_from_what_it_published(store: SqliteStore) -> None:
    told = {cell.key.effect: cell for cell in store.cells()}
    assert set(told) == set(EFFECTS)
    for effect, of in told.items():
        detail = store.evidence(of.key)
        assert detail is not None
        assert len({pair.network for pair in detail.pairs}) == 3
        assert any(pair.lost for pair in detail.pairs)
        found = judged(read_csv(csv_of(detail.pairs).splitlines()), effect)
        assert round(found.whole / math.log(10), 6) == of.log10_e
        assert round(found.without_one / math.log(10), 6) == cell_row(of)["log10_e_without_one"]
        by_pair = {point.sequence: point.log10_e for point in detail.evidence_by_pair}
        assert {p.sequence: p.whole for p in curve(detail.pairs, effect)} == pytest.approx(by_pair)
    assert told["slowing"].log10_e_without_one is not None
    assert told["slowing"].log10_e > told["slowing"].log10_e_without_one > 1


def test_every_hour_tells_the_strength_without_the_strongest_network(store: SqliteStore) -> None:
    slowing = next(cell for cell in store.cells() if cell.key.effect == "slowing")
    detail = store.evidence(slowing.key)
    assert detail is not None
    hours = detail.evidence_by_hour
    assert len(hours) > 3
    assert hours[-1].log10_e_without_one == slowing.log10_e_without_one
    assert all(hour.log10_e_without_one is not None for hour in hours)

# SPDX-License-Identifier: EUPL-1.2
"""The A/A check tells an even machinery from one that is not, and sees where two witnesses contradict each other."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.sources import corpus, read_files
from evenlane.cli import main
from lab.nulls import ENOUGH, Nulls, Share, Shift, median_shift, rate_effects, scored, share_of, size_effects, table

from lab.nulls import mean_shift, wilson  # isort: skip
from lab.witnesses import Told, contradictions, read
from probe.protocol.memory import MemoryReflector, VirtualClock, drive, even_transfer
from probe.protocol.probe_role import ProbeSession
from probe.protocol.steps import PlannedPair, RunSegment
from probe.wire.envelope import seal, to_line
from probe.wire.messages import SessionRequest
from probe.wire.records import Environment
from probe.wire.signing import SeedSigner

HERE, THERE = SeedSigner(b"\x04" * 32, "cryptography"), SeedSigner(b"\x05" * 32, "cryptography")
APP, TWIN = "app.example.net", "twin.example.org"


def session(file: Path, mbps: Callable[[RunSegment], float], pairs: int, kind: str = "test") -> Told:
    """A session in virtual time, written as the programs write it, and read again."""
    draw = random.Random(file.name).randbytes
    there = MemoryReflector(signer=THERE, clock=VirtualClock(1_800_000_000_000), random_bytes=draw)
    wish = SessionRequest(v=1, probe=HERE.key_id, nettest="differential", pairs=pairs, segment_s=1, pace_mbps=12)
    here = ProbeSession(wish, random_bytes=draw)
    pair = PlannedPair(
        kind=kind, app="youtube", profile="p", direction="down", pace_mbps=8, segment_s=1, app_name=APP,  # type: ignore[arg-type]
        neutral_name=TWIN,
    )  # fmt: skip
    drive(here, there, [pair] * pairs, even_transfer(mbps))
    measurement = here.measurement(record_id=draw(16).hex(), sequence=1, environment=Environment())
    envelopes = [*there.started, *there.receipts.values(), seal(measurement, HERE)]
    file.write_bytes(b"".join(line + b"\n" for line in map(_line, envelopes)))
    [told] = read([file])
    return told


def _line(envelope: Any) -> bytes:
    return to_line(envelope).rstrip(b"\n")


def test_two_true_accounts_do_not_contradict_each_other(tmp_path: Path) -> None:
    told = session(tmp_path / "r", lambda _: 8.0, 5)
    assert contradictions(told) == []
    assert len(list(told.pairs())) == 5


def edited(told: Told, **changes: Any) -> Told:
    """The receipt's first pair says something else."""
    assert told.receipt is not None
    first, *others = told.receipt.pairs
    return replace(told, receipt=replace(told.receipt, pairs=(replace(first, **changes), *others)))


def test_every_untruth_is_seen(tmp_path: Path) -> None:
    told = session(tmp_path / "r", lambda _: 8.0, 3)
    assert told.receipt is not None
    assert told.measurement is not None
    pair, measured = told.receipt.pairs[0], told.measurement.pairs[0]
    one, two = pair.segments

    def reported(**changes: Any) -> Told:
        assert told.measurement is not None
        rest = told.measurement.pairs[1:]
        return replace(told, measurement=replace(told.measurement, pairs=(replace(measured, **changes), *rest)))

    for wrong, says in (
        (edited(told, probe_nonce="0" * 64), "not the one it committed to"),
        (edited(told, neutral_first=not pair.neutral_first), "coin does not follow"),
        (edited(told, segments=(two, one)), "coin's order"),
        (edited(told, segments=(one, replace(two, arm=one.arm))), "one arm"),
        (edited(told, reflector_nonce="1" * 64), "not written down"),
        (edited(told, segments=(replace(one, name_seen="other.example.com"), two)), "another name arrived"),
        (edited(told, segments=(replace(one, bytes=5_000_000), two)), "bytes to the reflector"),
        (reported(nonce="2" * 64), "another nonce than it signed"),
        (reported(app="netflix"), "different things of what it was"),
        (reported(segments=measured.segments[::-1]), "to the reflector and"),
        (replace(told, started=told.started[1:]), "its start was not written down"),
        (replace(told, started=told.started[1:], receipt=None), "nobody wrote down its start"),
    ):
        assert any(says in what for what in contradictions(wrong)), says


def test_a_forged_record_is_no_witness(tmp_path: Path) -> None:
    session(tmp_path / "r", lambda _: 8.0, 1)
    lines = (tmp_path / "r").read_bytes().splitlines()
    broken = json.loads(lines[1])
    broken["sig"] = "A" * 86
    (tmp_path / "r").write_bytes(b"\n".join([lines[0], json.dumps(broken).encode(), *lines[2:], b""]))
    with pytest.raises(ValueError, match="bad_signature"):
        read([tmp_path / "r"])


def noisy(rng: random.Random, *, app: float = 1.0, second: float = 1.0) -> Callable[[RunSegment], float]:
    """Rates that vary, with what the name or the place does to them."""
    return lambda step: (
        8 * rng.lognormvariate(0, 0.02) * (app if step.name == APP else 1) * (second if step.slot == 1 else 1)
    )


def judged(tmp_path: Path, rates: Callable[[RunSegment], float]) -> tuple[Share, dict[str, Shift]]:
    files = [tmp_path / f"r{number}" for number in range(2)]
    told = [session(file, rates, 150) for file in files]
    pairs = list(scored(corpus(read_files(files)).pairs))
    weights = {APP: [[500, 1200, 4]] * 3, TWIN: [[500, 1200, 4]] * 3}
    return share_of(pairs, "test"), rate_effects(pairs) | size_effects(told, weights)


def test_an_even_machinery_passes(tmp_path: Path) -> None:
    share, effects = judged(tmp_path, noisy(random.Random(1)))
    assert share.pairs == 300
    assert share.compared + share.ties == 300
    assert 0.4 < share.share < 0.6  # type: ignore[operator]
    assert set(effects) == {"order", "rate_by_name", "bytes", "hello_bytes", "certificate", "handshake_packets"}
    for effect in effects.values():
        assert effect.ok
        assert effect.low <= effect.percent <= effect.high


def test_a_name_that_costs_three_percent_is_found(tmp_path: Path) -> None:
    share, effects = judged(tmp_path, noisy(random.Random(2), app=0.97))
    assert not share.ok
    assert share.share is not None
    assert share.share > 0.8
    assert effects["rate_by_name"].percent == pytest.approx(-3, abs=0.6)
    assert not effects["rate_by_name"].ok
    assert not effects["bytes"].ok
    assert effects["order"].ok


def test_a_place_that_costs_three_percent_is_found_and_does_not_speak_against_the_app(tmp_path: Path) -> None:
    share, effects = judged(tmp_path, noisy(random.Random(3), second=0.97))
    assert effects["order"].percent == pytest.approx(3, abs=0.6)
    assert not effects["order"].ok
    assert effects["rate_by_name"].ok
    assert 0.4 < share.share < 0.6  # type: ignore[operator]


def test_a_larger_certificate_is_found(tmp_path: Path) -> None:
    told = session(tmp_path / "r", lambda _: 8.0, 4)
    weights = {APP: [[517, 1300, 5]], TWIN: [[517, 1200, 5]]}
    effects = size_effects([told], weights)
    assert effects["certificate"].percent == pytest.approx(100 / 12, abs=0.01)
    assert not effects["certificate"].ok
    assert effects["hello_bytes"].ok


def test_shares_and_intervals() -> None:
    """Wilson's interval of 40 in 100 (Newcombe, 1998, gives such to four places), and where the target lies."""
    assert wilson(40, 100) == pytest.approx((0.3094, 0.4980), abs=1e-4)
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == 1

    def share(wins: int, of: int) -> Share:
        return Share(of, of, 0, 0, 0, wins / of, *wilson(wins, of))

    assert share(220, ENOUGH).ok
    assert not share(221, ENOUGH).ok
    assert share(25, 40).ok
    assert not share(33, 40).ok
    assert not Share(0, 0, 0, 0, 0, None, None, None).ok
    assert mean_shift("x", [0.0] * 4) == Shift("x", 0.0, 0.0, 0.0, 4)
    one = median_shift("x", [0.02 * number for number in range(-50, 51)])
    assert (one.percent, one.of) == (0.0, 101)
    assert one.low == pytest.approx(-one.high, rel=0.5)
    assert one.low < -10


def test_the_answer_names_what_is_uneven() -> None:
    even = Share(400, 400, 0, 0, 0, 0.5, 0.45, 0.55)
    found = Nulls(
        driver="tun", probes=3, apps=("youtube",), seconds=1.0, test=even, placebo=replace(even, share=0.6),
        effects={"order": Shift("rate", 1.2, 1.1, 1.3, 9)}, contradictions=["pair 3: x"], void_reason=None,
    )  # fmt: skip
    assert found.wrong == ["placebo", "order", "contradictions"]
    document = json.loads(json.dumps(found.as_json()))
    assert document["ok"] is False
    assert document["effects"]["order"]["percent"] == 1.2
    assert table(found).count("NOT EVEN") == 2
    assert replace(found, placebo=even, effects={}, contradictions=[]).wrong == []


@pytest.mark.parametrize("wrong", [["--pairs", "0"], ["--segment-s", "0.01"], ["--driver", "dummynet"]])
def test_usage_errors_are_told_apart(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(main(["lab", "nulls", *wrong]))
    assert caught.value.code == 2
    assert wrong[0] in capsys.readouterr().err

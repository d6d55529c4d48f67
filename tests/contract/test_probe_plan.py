# SPDX-License-Identifier: EUPL-1.2
"""A profile that no probe was installed with travels in a signed plan and is measured; nobody else can send one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from probe.plan import PlanError, read_plan
from probe.profiles.model import Shelf
from probe.wire.codec import dumps
from probe.wire.envelope import from_line, open_record, seal, to_line
from probe.wire.records import Measurement, Plan, PlannedProfile, Receipt, Started
from probe.wire.signing import SeedSigner

COLLECTOR = SeedSigner(b"\x0c" * 32)
NOW = time.time_ns() // 1_000_000


def profile(app: str, **changes: object) -> PlannedProfile:
    """YouTube's profile under another id, as a plan delivers it."""
    document = json.loads(Shelf().document("youtube")) | {"id": app} | changes
    return PlannedProfile(id=app, document=dumps(document).decode())


def plan(*profiles: PlannedProfile, **changes: object) -> Plan:
    made = Plan(
        type="plan",
        v=1,
        version=7,
        issued_ms=NOW - 1000,
        expires_ms=NOW + 86_400_000,
        reflectors=(),
        nettests=(),
        weights=(),
        profiles=profiles,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def written(path: Path, made: Plan | Started, signer: SeedSigner = COLLECTOR) -> Path:
    path.write_bytes(to_line(seal(made, signer)))
    return path


def run(url: str, state: Path, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "evenlane.cli", "probe", "run", "differential", "--reflector", url, "--json"]
    argv += ["--state", str(state), "--progress", "none", "--pairs", "1", "--segment-s", "0.4", "--pace-mbps", "8"]
    return subprocess.run([*argv, *options], capture_output=True, text=True, timeout=60)


def test_an_app_of_the_plan_is_measured_and_the_record_names_the_plan(reflector, tmp_path: Path) -> None:
    names = ["edge1.cdn.brandnew-video.tv"]
    file = written(tmp_path / "plan.json", plan(profile("brandnew", names=names, version=3)))
    out = tmp_path / "run.jsonl"
    options = ("--plan", str(file), "--plan-key", COLLECTOR.key_id, "--app", "brandnew", "--out", str(out))
    done = run(reflector.url, tmp_path / "state", *options)
    assert done.returncode == 0, done.stderr
    measurement, receipt = (open_record(from_line(line)) for line in out.read_bytes().splitlines())
    assert isinstance(measurement, Measurement)
    assert isinstance(receipt, Receipt)
    assert measurement.plan == from_line(file.read_bytes()).digest
    [tested] = [pair for pair in receipt.pairs if pair.kind == "test"]
    assert tested.profile.startswith("brandnew@3:")
    assert names[0] in {segment.name_seen for segment in tested.segments}
    assert tested.outcome == "both"


def test_without_the_plan_nobody_knows_the_app(reflector, tmp_path: Path) -> None:
    done = run(reflector.url, tmp_path, "--app", "brandnew")
    assert done.returncode == 2
    assert "there is no app profile 'brandnew'" in done.stderr


@pytest.mark.parametrize(
    ("made", "key", "words"),
    [
        (plan(profile("brandnew")), SeedSigner(b"\x0d" * 32).key_id, "not by the key that you named"),
        (plan(profile("brandnew")), "short", "key id is not one"),
        (plan(expires_ms=NOW - 1), COLLECTOR.key_id, "has expired"),
        (plan(issued_ms=NOW + 3_600_000), COLLECTOR.key_id, "issued in the future"),
    ],
)
def test_a_plan_that_cannot_be_believed_is_one_sentence(tmp_path: Path, made: Plan, key: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        read_plan(written(tmp_path / "plan.json", made), key, NOW)


def test_a_changed_plan_and_what_is_no_plan(tmp_path: Path) -> None:
    file = written(tmp_path / "plan.json", plan(profile("brandnew")))
    file.write_bytes(file.read_bytes().replace(b'"sig":"', b'"sig":"A', 1)[:-3] + b'"}\n')
    with pytest.raises(PlanError, match="cannot be believed"):
        read_plan(file, COLLECTOR.key_id, NOW)
    golden = Path(__file__).parent / "golden" / "started.jsonl"
    with pytest.raises(PlanError, match="holds a started, not a plan"):
        read_plan(golden, from_line(golden.read_bytes()).key_id, NOW)
    with pytest.raises(PlanError, match="cannot be read"):
        read_plan(tmp_path / "none", COLLECTOR.key_id, NOW)


@pytest.mark.parametrize(
    ("delivered", "options", "words"),
    [
        (PlannedProfile(id="brandnew", document="{}"), (), "plan: profiles: brandnew"),
        (profile("brandnew"), ("--plan-key", ""), "go together"),
    ],
)
def test_a_wrong_profile_or_option_stops_the_run_before_it_begins(
    tmp_path: Path, delivered: PlannedProfile, options: tuple[str, ...], words: str
) -> None:
    file = written(tmp_path / "plan.json", plan(delivered))
    named = ("--plan", str(file)) + (() if options else ("--plan-key", COLLECTOR.key_id))
    done = run("https://127.0.0.1:1", tmp_path / "state", *named, "--app", "brandnew")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr

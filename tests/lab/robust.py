# SPDX-License-Identifier: EUPL-1.2
"""What the tests of hostile paths and of accidents share: run real probes, read both records, demand the truth."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab.drivers import refusal
from lab.run import verdict
from lab.stage import Stage, Subscriber
from lab.witnesses import Told, contradictions, read
from probe.wire.rate import rate_mbps
from probe.wire.records import ReceiptPair

PACE = 8.0
NEVER = {"corroborated", "replicated", "indication"}
"""States that speak against an operator; none of the operators here does anything to anybody."""


def need(driver: str) -> str:
    """Skip where a driver does not work here."""
    why = refusal(driver)  # type: ignore[arg-type]
    if why is not None:
        pytest.skip(f"the driver {driver} does not work here: {why}")
    return driver


class Probe:
    """A running `evenlane probe run`, with its progress."""

    def __init__(
        self, stage: Stage, subscriber: Subscriber, *, pairs: int = 2, segment_s: float = 0.5, direction: str = "down",
        name: str = "", **options: Any,
    ) -> None:  # fmt: skip
        self.out = stage.directory / f"out-{subscriber.operator.number}-{subscriber.index}{name}.jsonl"
        self.log = self.out.with_suffix(".log")
        self.pairs = pairs
        arguments = ["differential", "--app", "youtube", "--pairs", str(pairs), "--segment-s", str(segment_s)]
        arguments += ["--pace-mbps", str(PACE), "--direction", direction, "--progress", "json", "--json"]
        with self.log.open("wb") as errors:
            self.process = stage.run_probe(
                subscriber, [*arguments, "--out", str(self.out)], stdout=subprocess.PIPE, stderr=errors, **options
            )

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def wait_for_pairs(self, count: int, patience_s: float = 30.0) -> None:
        """Return when so many pairs are over."""
        deadline = time.monotonic() + patience_s
        while sum(event["event"] == "pair" for event in self.events()) < count:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def end(self, patience_s: float = 120.0) -> dict[str, Any]:
        """Wait for its end; what it printed."""
        printed, _ = self.process.communicate(timeout=patience_s)
        assert self.process.returncode in {0, 3}, self.log.read_text()
        assert "Traceback" not in self.log.read_text()
        document: dict[str, Any] = json.loads(printed) if printed else {}
        return document


@dataclass
class Ran:
    """What came of a run."""

    told: list[Told]
    cells: list[dict[str, Any]]
    documents: list[dict[str, Any]] = field(default_factory=list)
    path: dict[str, int] = field(default_factory=dict)
    void: str | None = None

    def pairs(self) -> Iterator[ReceiptPair]:
        for told in self.told:
            if told.receipt is not None:
                yield from told.receipt.pairs

    @property
    def outcomes(self) -> set[str]:
        return {pair.outcome for pair in self.pairs()}

    def rates(self) -> list[tuple[float, float]]:
        """The two rates of every complete pair of which neither end says that it was short of processor time."""
        found = []
        for told in self.told:
            for pair, measured in told.pairs():
                if pair.saturated or (measured is not None and measured.cpu_limited):
                    continue
                two = [rate_mbps(segment, pair.segment_s) for segment in pair.segments]
                if len(two) == 2 and two[0] is not None and two[1] is not None:
                    found.append((two[0], two[1]))
        return found

    def need_a_machine_with_time(self) -> None:
        """Skip what depends on rates where the emulation was late: what must hold of every run was checked before."""
        if self.void is not None:
            pytest.skip(f"void: {self.void}")


def judge(stage: Stage, files: list[Path], documents: list[dict[str, Any]] | None = None) -> Ran:
    """Read the records of a run and the product's verdict on them; demand what holds of every run."""
    files = [file for file in files if file.exists() and file.stat().st_size] + stage.records
    counted = [one.get("path", {}) for one in stage.snapshots().values()]
    ran = Ran(
        told=read(files),
        cells=verdict(files),
        documents=documents or [],
        path={key: sum(one[key] for one in counted) for key in counted[0]},
        void=stage.void_reason(),
    )
    for told in ran.told:
        assert contradictions(told) == []
    assert {cell["state"] for cell in ran.cells}.isdisjoint(NEVER), ran.cells
    return ran


def run_all(stage: Stage, **options: Any) -> Ran:
    """One probe at each subscriber, all at once."""
    homes = [subscriber for operator in stage.operators for subscriber in operator.subscribers]
    probes = [Probe(stage, subscriber, **options) for subscriber in homes]
    documents = [probe.end() for probe in probes]
    return judge(stage, [probe.out for probe in probes], documents)

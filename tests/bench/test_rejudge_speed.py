# SPDX-License-Identifier: EUPL-1.2
"""What judging an archive again costs, beside `json.loads` of the same lines; and what one more pair costs a cell.

Run by `make bench` (some minutes). Times are of processes, so that a busy machine shows in the wall clock alone; the
peer runs in the same minute on the same file.
"""

import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.judge import Ledger
from analysis.pairs import CellKey, Pair
from analysis.simulate import Line, stream
from analysis.synthetic import session_records
from analysis.synthetic_archive import line_of, records
from probe.wire.envelope import to_line
from probe.wire.records import Origin
from probe.wire.signing import SeedSigner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SIZES = (10_000, 100_000, 1_000_000)
MOST_WALL_S = 60
MOST_BYTES = 1_000_000_000
CORES = 2
MEASURED = """
import json, resource, sys, time
from evenlane.cli import main
if __name__ == "__main__":
    begin = time.perf_counter()
    code = main(["analysis", "rejudge", *sys.argv[2:]])
    took = time.perf_counter() - begin
    own, crew = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    told = {"code": code, "wall_s": took, "cpu_s": own.ru_utime + own.ru_stime + crew.ru_utime + crew.ru_stime}
    open(sys.argv[1], "w").write(json.dumps(told))
"""


def written(path, count, **size):
    """An archive of many cells, probes and days: lost, placebo, failed, concurrent, altered pairs among them."""
    with path.open("wb") as file:
        for record in records(count, random.Random(count), **size):
            file.write(line_of(record))
    return path


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    return {count: written(folder / f"{count}.jsonl", count) for count in SIZES}


def peer_s(path):
    """CPU seconds of `json.loads` of every line, in one process."""
    begin = time.process_time()
    with path.open("rb") as file:
        for line in file:
            json.loads(line)
    return time.process_time() - begin


def rejudged(folder, path, *options):
    """One run of the command in processes of its own: its figures, and the largest memory of all of them together."""
    script, out = folder / "measured.py", folder / "figures.json"
    script.write_text(MEASURED)
    with subprocess.Popen(
        [sys.executable, str(script), str(out), str(path), *options], stdout=subprocess.DEVNULL, cwd=Path.cwd()
    ) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            time.sleep(0.1)
    return json.loads(out.read_text()) | {"peak": peak}


def told(run):
    """A run's figures in words."""
    return f"{run['cpu_s']:.1f} s of CPU, {run['wall_s']:.1f} s on the clock, {run['peak'] / 1e6:.0f} MB"


def memory(pid):
    """Resident bytes of a process and its children (PSS, so that shared pages count once)."""
    total = 0
    for one in (pid, *children(pid)):
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
        except (OSError, ValueError):
            continue
        total += next((int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return total


def children(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            names = task.read_text().split()
        except OSError:
            continue
        for name in names:
            found += [int(name), *children(int(name))]
    return found


def exponent(costs):
    """Slope of log cost over log size, of the two largest sizes."""
    (small, a), (large, b) = sorted(costs.items())[-2:]
    return math.log(b / a) / math.log(large / small)


def test_a_million_pairs_again(archives, tmp_path):
    """At most 60 s on two cores and 1 GB, all processes together; cost linear in pairs."""
    peers, costs, walls, peaks = {}, {}, {}, {}
    for count, path in archives.items():
        peers[count] = peer_s(path)
        # Judged by one rule, beside a verdict that was given before; and beside another rule, which judges too.
        out = tmp_path / f"{count}.json"
        alone = rejudged(tmp_path, path, "--workers", "2", "--against", "2", "--rule", "2", "--out", str(out))
        given = rejudged(tmp_path, path, "--workers", "2", "--against", str(out))
        both = rejudged(tmp_path, path, "--workers", "2", "--against", "1")
        assert (alone["code"], given["code"]) == (0, 0)
        costs[count], walls[count], peaks[count] = given["cpu_s"], given["wall_s"], given["peak"]
        speed, ratio = count / given["cpu_s"], given["cpu_s"] / peers[count]
        print(f"\n{count} pairs, {path.stat().st_size / 1e6:.0f} MB: {told(given)}; {speed:.0f} pairs a CPU second, ")
        print(f"{ratio:.1f} times json.loads ({peers[count]:.1f} s); by two rules at once {told(both)}")
        assert both["peak"] < MOST_BYTES
    slope = exponent(costs)
    print(f"cost grows as pairs^{slope:.2f}")
    most = max(SIZES)
    assert peaks[most] < MOST_BYTES
    assert slope < 1.1
    # On two cores that nobody else uses the clock shows half of the CPU time and what one process does alone.
    assert costs[most] / CORES < MOST_WALL_S
    if os.getloadavg()[0] < CORES + 0.5:
        assert walls[most] < MOST_WALL_S
    assert costs[most] / peers[most] < 12


def test_any_number_of_processes_shares_the_work(archives, tmp_path):
    path = archives[100_000]
    costs = {n: rejudged(tmp_path, path, "--workers", str(n), "--against", "1") for n in (1, 2)}
    print(f"\n1 process {costs[1]['cpu_s']:.1f} s, 2 processes {costs[2]['cpu_s']:.1f} s of CPU together")
    assert costs[2]["cpu_s"] < 1.6 * costs[1]["cpu_s"] + 3


# One more pair

CELL = CellKey("operator", 64500, "youtube", "down", "fixed")
DAY_MS = 86_400_000
HELD = (1_000, 10_000, 100_000, 1_000_000)


def made(number, rng, started_ms=None):
    neutral_first = rng.random() < 0.5
    at = 1_790_000_000_000 + number * 10_000 if started_ms is None else started_ms
    return Pair(
        cell=CELL, kind="test", probe="p1", session=f"s{number}", number=1, started_ms=at, ended_ms=at + 5_000,
        neutral_first=neutral_first, first_mbps=10 * math.exp(rng.gauss(0, 0.3)), second_mbps=10.0, network="n1",
        edge=True, pace_mbps=12.0, segment_s=1.0,
    )  # fmt: skip


def test_one_more_pair_costs_its_cell_the_same_for_ever():
    """`Ledger.put` with 10³ to 10⁶ pairs of one probe in the cell: new ones, and ones that come late."""
    rng, ledger, number = random.Random(1), Ledger(), 0
    fresh, late = {}, {}
    for held in HELD:
        while number < held:
            number += 1
            ledger.put(made(number, rng))
        samples = {"fresh": [], "late": []}
        for extra in range(200):
            number += 1
            pair = made(number, rng)
            begin = time.perf_counter_ns()
            ledger.put(pair)
            samples["fresh"].append(time.perf_counter_ns() - begin)
            # Its receipt arrives now, though it started when the cell was young.
            back = made(10_000_000 + number, rng, 1_790_000_000_000 + rng.randrange(held // 4) * 10_000 + 7)
            begin = time.perf_counter_ns()
            ledger.put(replace(back, number=extra + 1))
            samples["late"].append(time.perf_counter_ns() - begin)
        fresh[held] = statistics.median(samples["fresh"]) / 1000
        late[held] = statistics.median(samples["late"]) / 1000
        print(f"\n{held} pairs held: {fresh[held]:.0f} µs for a new one, {late[held]:.0f} µs for a late one", end="")
    print(f"\ngrows as held^{exponent(fresh):.2f} (new), held^{exponent(late):.2f} (late)")
    assert fresh[HELD[-1]] < 3 * fresh[HELD[0]]
    assert late[HELD[-1]] < 3 * late[HELD[0]]


def test_memory_does_not_grow_with_pairs(tmp_path):
    """The same probes and days, ten times the pairs: what is held grows only by sizes of y that were not met before."""
    size = {"cells": 6, "probes": 6, "days": 20}
    files = [written(tmp_path / f"{count}.jsonl", count, **size) for count in (20_000, 200_000)]
    few, many = (rejudged(tmp_path, file, "--workers", "1")["peak"] for file in files)
    print(f"\n20,000 pairs {few / 1e6:.0f} MB, 200,000 pairs {many / 1e6:.0f} MB")
    assert many < 2.0 * few


def test_signed_records_again(tmp_path):
    """Receipts, started pairs and measurements: signatures cost more than all else. A figure, no promise."""
    rng, reflector, count = random.Random(3), SeedSigner(b"r" * 32), 6_000
    with (tmp_path / "records.jsonl").open("wb") as file:
        for number in range(count // 20):
            signer = SeedSigner((number % 30 + 1).to_bytes(32, "big"))
            origin = Origin(asn=64500, operator="Net", country="NL", network=f"{number % 30 + 1:032x}", edge=True)
            pairs = list(stream(Line(noise=0.3), rng, 20, probe=signer.key_id))
            ends = {"probe": signer.key_id, "reflector": reflector.key_id}
            receipt, measurement, started = session_records(pairs, **ends, rng=rng, origin=origin).sealed(
                signer, reflector
            )
            file.write(b"".join(to_line(one) for one in (receipt, measurement, *started)))
    found = rejudged(tmp_path, tmp_path / "records.jsonl")
    print(f"\n{count} signed pairs: {told(found)}; {count / found['cpu_s']:.0f} pairs a CPU second")
    assert found["code"] in (0, 1)

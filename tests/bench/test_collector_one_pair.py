# SPDX-License-Identifier: EUPL-1.2
"""What one more session costs a collector whose cell holds many pairs already: judged, written, published.

Run by `make bench`. CPU time of judging in this process; signing and taking in are left out.
"""

import math
import random
import statistics
import time

import pytest

from collector.config import Config
from collector.intake import admit
from collector.judge import Judge
from collector.rehearsal import PAIR_MS, Rehearsal, Truth, signer
from collector.store.sqlite import SqliteStore
from probe.wire.envelope import to_json
from probe.wire.records import Origin

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

START = 1_790_002_800_000
HELD = (1_000, 3_000, 10_000)
SESSION = 250
SAMPLES = 7


class Cell:
    """One cell with three probes, filled session by session."""

    def __init__(self, folder):
        self.rng = random.Random(6)
        self.reflector = signer(self.rng)
        self.rehearsal = Rehearsal(rng=self.rng, reflector=self.reflector)
        self.config = Config(reflectors=(self.reflector.key_id,))
        self.store, self.judge = SqliteStore(folder), Judge(self.config)
        self.probes = [signer(self.rng) for _ in range(3)]
        self.at_ms, self.held = START, 0

    def add(self, pairs, *, at_ms=None, probe=0):
        """One session, and the CPU seconds that judging it took."""
        if at_ms is None:
            at_ms = self.at_ms
            self.at_ms += SESSION * PAIR_MS + 60_000
        origin = Origin(asn=64500, operator="Net", country="NL", network=f"{probe + 1:032x}", edge=True)
        told = self.rehearsal.session(
            self.probes[probe], started_ms=at_ms, pairs=pairs, truth=Truth(slowdown=0.1, noise=0.3), origin=origin
        )
        rows = [
            admit(
                to_json(one),
                door="receipts" if one.key == self.reflector.public_key else "measurements",
                trusted=frozenset(self.config.reflectors),
                now_ms=self.at_ms + 3_600_000,
            )
            for one in told.all
        ]
        self.store.add(rows).result()
        begin = time.process_time()
        while self.store.write(lambda book: self.judge.step(book, self.at_ms + 3_600_000, 20)).result().left:
            pass
        self.held += pairs
        return time.process_time() - begin


def test_one_more_session_costs_the_same_however_many_pairs_the_cell_holds(tmp_path):
    cell, fresh, late = Cell(tmp_path), {}, {}
    for held in HELD:
        number = 0
        while cell.held < held:
            cell.add(SESSION, probe=number % 3)
            number += 1
        fresh[held] = statistics.median(cell.add(10) for _ in range(SAMPLES))
        # An hour before the newest pair: what came after it must be scored again, however much came before.
        gaps = [cell.at_ms - 5_400_000 - n * 100_000 for n in range(SAMPLES)]
        late[held] = statistics.median(cell.add(10, at_ms=at) for at in gaps)
        print(f"\n{held} pairs held: {fresh[held] * 1000:.0f} ms for ten new pairs, {late[held] * 1000:.0f} ms for ten "
              "that are an hour and a half late", end="")  # fmt: skip
    slopes = [math.log(c[HELD[-1]] / c[HELD[0]]) / math.log(HELD[-1] / HELD[0]) for c in (fresh, late)]
    print(f"\ngrows as held^{slopes[0]:.2f} (new), held^{slopes[1]:.2f} (late)")
    assert fresh[HELD[-1]] < 3 * fresh[HELD[0]]
    cell.store.close()

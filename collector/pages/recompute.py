# SPDX-License-Identifier: EUPL-1.2
"""Evidence again, from nothing but the published pairs: what the pages draw, and what anybody can check.

The curve of a case is drawn from the same pairs that its CSV holds, so that a reader who recomputes gets the
picture. `python -m collector.pages.recompute PAIRS.csv [--rule 1]` prints the last point for every effect.
Spec: spec/statistics.md, sections "A probe" and "Cell".
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from analysis.editions import RuleError, edition
from analysis.evidence import ProbeCounts, probe_evidence
from analysis.gates import Strength, strength
from analysis.opendata import cell_of, pair_of
from analysis.pairs import OrderHistory, Scored, score
from analysis.rules import RULES, Rules
from probe.wire.codec import WireError, from_dict
from probe.wire.records import Effect, PairRecord

MOST_POINTS: Final = 200
"""A picture needs no more points than this."""
_TEN: Final = math.log(10)
_NOTHING: Final = Strength(whole=0.0, without_one=0.0, without_two=0.0, coalition=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The evidence after the pair with this sequence number, as decimal logarithms of e-values."""

    sequence: int
    day: str
    whole: float
    """All networks."""
    decides: float
    """Without the strongest network: what a case is opened on."""


def scored(pair: PairRecord, rules: Rules = RULES) -> Scored:
    """What a published pair bets on, from its figures, its coin and the published midpoint m."""
    found = score(OrderHistory(rules), pair_of(pair, cell_of(pair), rules), midpoint=pair.midpoint or 0.0, rules=rules)
    return replace(found, day=date.fromisoformat(pair.day).toordinal(), stratum=pair.stratum)


def _strength(log_es: dict[str, float], networks: dict[str, str], rules: Rules) -> Strength:
    """The cell's evidence from its probes' (natural logarithms), grouped by network."""
    if not log_es:
        return _NOTHING
    probes = sorted(log_es)
    groups: dict[str, list[int]] = {}
    for index, probe in enumerate(probes):
        groups.setdefault(networks[probe], []).append(index)
    return strength([log_es[probe] for probe in probes], list(groups.values()), rules)


def judged(pairs: Iterable[PairRecord], effect: Effect, rules: Rules = RULES) -> Strength:
    """The strength of one effect over all pairs, as natural logarithms; nothing (0) without pairs."""
    counts: dict[str, ProbeCounts] = {}
    networks: dict[str, str] = {}
    for pair in pairs:
        if pair.kind == "test":
            counts.setdefault(pair.probe, ProbeCounts()).add(scored(pair, rules), rules)
            networks[pair.probe] = pair.network
    return _strength({probe: probe_evidence(of, effect, rules) for probe, of in counts.items()}, networks, rules)


@lru_cache(maxsize=32)
def curve(pairs: tuple[PairRecord, ...], effect: Effect, rules: Rules = RULES) -> tuple[Point, ...]:
    """The evidence after each pair, or after every so-manieth where they are many; `pairs` by sequence number."""
    counts: dict[str, ProbeCounts] = {}
    networks: dict[str, str] = {}
    log_es: dict[str, float] = {}
    changed: set[str] = set()
    found: list[Point] = []
    step = max(1, math.ceil(len(pairs) / MOST_POINTS))
    for number, pair in enumerate(pairs, start=1):
        if pair.kind == "test":
            counts.setdefault(pair.probe, ProbeCounts()).add(scored(pair, rules), rules)
            networks[pair.probe] = pair.network
            changed.add(pair.probe)
        if number % step and number != len(pairs):
            continue
        log_es.update({probe: probe_evidence(counts[probe], effect, rules) for probe in changed})
        changed.clear()
        now = _strength(log_es, networks, rules)
        found.append(
            Point(sequence=pair.sequence, day=pair.day, whole=now.whole / _TEN, decides=now.without_one / _TEN)
        )
    return tuple(found)


def read_csv(lines: Iterable[str]) -> list[PairRecord]:
    """Published pairs from the CSV of a case or a cell. Raises ValueError that names the line."""
    found = []
    for number, row in enumerate(csv.DictReader(lines), start=2):
        try:
            found.append(from_dict(PairRecord, {name: _value(name, text) for name, text in row.items() if name}))
        except (WireError, ValueError) as error:
            raise ValueError(f"line {number} is no published pair: {error}") from None
    return found


_WHOLE: Final = ("v", "sequence", "asn")
_NUMBERS: Final = (
    *("app_mbps", "neutral_mbps", "pace_mbps", "segment_s", "midpoint"),
    *("app_delay_ms", "neutral_delay_ms", "app_loss", "neutral_loss"),
)
_YES_NO: Final = ("neutral_first", "lost", "edge", "queued", "app_altered", "neutral_altered")


def _value(name: str, text: str | None) -> Any:
    if name == "flags":
        return text.split(";") if text else []
    if text is None or text == "":
        return None
    if name in _WHOLE:
        return int(text)
    if name in _NUMBERS:
        return float(text.removeprefix("'"))
    if name in _YES_NO:
        return text == "true"
    return text.removeprefix("'")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the strength that follows from a file of pairs, one JSON object an effect."""
    parser = argparse.ArgumentParser(prog="python -m collector.pages.recompute", description=__doc__)
    parser.add_argument("file", type=Path, help="pairs as CSV, as /v1/cases/ID?format=csv gives them")
    parser.add_argument("--rule", default=str(RULES.version), help="version of the rule, or a file with one")
    asked = parser.parse_args(arguments)
    file = asked.file
    try:
        rules = edition(asked.rule).rules
    except RuleError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            pairs = read_csv(lines)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{file} cannot be judged: {error}\n")
        return 3
    for effect in rules.effects:
        found = judged(pairs, effect, rules)
        logs = {"whole": found.whole, "without_one": found.without_one, "without_two": found.without_two}
        row = {f"log10_e_{name}": round(value / _TEN, 6) for name, value in logs.items()}
        told = {"effect": effect, **row, "smallest_coalition": found.coalition, "rule": rules.name}
        sys.stdout.write(json.dumps(told) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

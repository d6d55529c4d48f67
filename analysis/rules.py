# SPDX-License-Identifier: EUPL-1.2
"""The rule as versioned data: every threshold of a verdict in one frozen object with an id and a digest.

A verdict names the rule, its version and the digests of its inputs, so that old data can be judged again and a
changed threshold can never pass for the old one. Spec: spec/statistics.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from probe.wire.records import Effect

State = Literal[
    "insufficient",
    "no_indication",
    "inconclusive",
    "not_testable",
    "indication",
    "replicated",
    "corroborated",
]
STATE_CODES: Final[dict[State, int]] = {
    "not_testable": -1,
    "insufficient": 0,
    "no_indication": 1,
    "inconclusive": 2,
    "indication": 3,
    "replicated": 4,
    "corroborated": 5,
}
"""Integer codes for time series: higher is a stronger claim."""

EFFECTS: Final[tuple[Effect, ...]] = ("slowing", "blocking", "prioritising", "tampering")
"""Every effect that pairs can show. A rule looks for those it names in `Rules.effects`."""


def _since(version: int, default: Any) -> Any:
    """A field that earlier versions of the rule did not have: it is no part of their digests."""
    return field(default=default, metadata={"since": version})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Every number a verdict depends on. A new value is a new version. Logarithms are natural.

    A field added later is part of the digest of the versions that have it alone (`_since`), so that the name under
    which an old verdict was given stays what it was.
    """

    id: str = "evenlane-pairs"
    version: int = 2
    published: str = _since(2, "2026-11-22")
    """Date (ISO 8601) from which on its guarantee holds: what it says of older pairs is retrospective."""
    effects: tuple[Effect, ...] = _since(2, EFFECTS)
    """What it looks for."""
    concurrent: bool = _since(2, True)
    """Whether delay and loss of concurrent pairs are evidence."""

    clip: float = math.log(100)
    """A pair's log ratio is clipped here: beyond it the size is not measured."""
    order_window: int = 128
    """At most so many earlier pairs make the midpoint m, so that scoring one pair costs the same for ever."""

    any_threshold: float = math.log(1 / 0.8)
    material_shift: float = math.log(1 / 0.9)
    material_threshold: float = 0.1
    lambdas: tuple[float, ...] = (0.4, 0.6, 0.8, 0.95)
    first_day_weight: float = 0.8
    hour_weights: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """All hours, peak, rest."""
    peak_hours: tuple[int, int] = (18, 23)
    """From, until (exclusive), in the operator's local time."""

    interval_level: float = 0.05
    interval_lambdas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)

    prevalences: tuple[float, ...] = (0.05, 0.2, 0.5, 1.0)
    indication: float = 20.0
    alpha: float = 0.05
    """False discovery rate of the list of open cases, at any time one looks."""

    material_slowdown: float = 0.2
    """Below this a confidence sequence says `clear`; an open case ends when it is no longer reached."""
    clear_failure_share: float = 0.25
    clear_failure_guesses: tuple[float, ...] = (0.0, 0.02, 0.1)
    """Blocking is `clear` when the app alone fails in less than this share; the guesses are the bets against it."""
    enough_pairs: int = 12
    least_probes: int = 3
    most_lost_share: float = 0.1
    few_probes_share: float = 1 / 3
    visible_share: float = 0.7
    """A throttle at this share of the pace (30 % slower) is taken as the largest rate that is still seen."""
    end_evidence: float = 20.0

    delay_threshold_ms: float = _since(2, 10.0)
    """A pair bets on delay if the arms' medians differ by so much; below it a confidence sequence says `clear`."""
    delay_shift_ms: float = _since(2, 5.0)
    """A difference in delay up to this is immaterial: it cannot grow evidence."""
    delay_material_threshold_ms: float = _since(2, 5.0)
    delay_clip_ms: float = _since(2, 1000.0)
    """A pair's difference in delay is clipped here: beyond it the size is not measured."""
    loss_threshold: float = _since(2, 0.02)
    """The same three of the share of small packets that were never answered."""
    loss_shift: float = _since(2, 0.01)
    loss_material_threshold: float = _since(2, 0.01)
    witness_gates: bool = _since(2, True)
    """Whether captive portals, changed paths and a saturated reflector disqualify probes as witnesses."""
    most_flagged_share: float = _since(2, 0.5)
    """A probe with a flag on more than this share of its pairs is no witness for what the flag disqualifies."""
    one_cannot_veto: bool = _since(2, True)
    """Whether lost and placebo pairs are weighed without the network (the probe) that speaks loudest: else one home
    could keep every case of its operator shut."""

    def digest(self) -> str:
        """SHA-256 (hex) of the rule's canonical JSON."""
        known = {f.name for f in dataclasses.fields(self) if f.metadata.get("since", 1) <= self.version}
        values = {name: value for name, value in dataclasses.asdict(self).items() if name in known}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """Id, version and the first digits of the digest, as verdicts print it."""
        return f"{self.id}@{self.version}:{self.digest()[:16]}"


RULES: Final = Rules()
"""The rule in force: version 2."""
VERSION_1: Final = Rules(
    version=1,
    effects=("slowing", "blocking", "prioritising"),
    concurrent=False,
    witness_gates=False,
    one_cannot_veto=False,
)
"""The rule before it, to the digit: rates and failures of sequential pairs alone."""


def digest_of_inputs(digests: Iterable[str]) -> str:
    """One SHA-256 (hex) for a set of input digests: order and repetition do not change it."""
    return hashlib.sha256("\n".join(sorted(set(digests))).encode()).hexdigest()

# SPDX-License-Identifier: EUPL-1.2
"""A probe that has joined a collector and has a plan, without either: what lies in its state directory afterwards.

For tests of what a device does with an installed package. The collector cannot be reached (nothing listens on its
port); key, signatures and plan are real. Tests load it by its path: there is no package here to import from.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from probe.consent import VERSION
from probe.plan import SignedPlan, keep
from probe.state import State
from probe.wire.envelope import seal
from probe.wire.records import Plan, PlannedNettest, PlannedReflector
from probe.wire.signing import SeedSigner

DAY_MS = 86_400_000


def join(
    state: Path, reflector_url: str, reflector_key: str, *, segment_s: float = 0.5, pace_mbps: float = 4.0
) -> None:
    """Enrolment and plan below `state`, for one app and one pair a session."""
    collector, now_ms = SeedSigner(bytes(range(32))), time.time_ns() // 1_000_000
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    State(state).signer()  # makes the key
    joined = {"v": 1, "collector": "http://127.0.0.1:9", "key": collector.key_id, "consent": VERSION}
    (state / "enrolment.json").write_text(json.dumps(joined | {"enrolled_ms": now_ms - DAY_MS}))
    work = PlannedNettest(
        nettest="differential", apps=("youtube",), pairs=1, segment_s=segment_s, most_pace_mbps=pace_mbps
    )
    plan = Plan(
        type="plan",
        v=1,
        version=1,
        issued_ms=now_ms - DAY_MS,
        expires_ms=now_ms + DAY_MS,
        reflectors=(PlannedReflector(url=reflector_url, key=reflector_key),),
        nettests=(work,),
        weights=(),
    )
    keep(state / "plan.jsonl", SignedPlan(plan=plan, envelope=seal(plan, collector)))

# SPDX-License-Identifier: EUPL-1.2
"""What a turn says of itself, in a closed vocabulary: `turn.json`, and why a session was held back.

Spec: spec/probe.md, section "The turn".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from probe.wire.records import Portal

Outcome = Literal["measured", "synced", "waiting", "postponed", "failed"]
Reason = Literal[
    "", "not_due", "not_enrolled", "no_plan", "plan_expired", "clock", "quiet_hours", "metered", "household",
    "budget_day", "budget_month", "captive", "intercepted", "offline", "reflector", "disabled", "busy", "storage",
    "leaving",
]  # fmt: skip
MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS


@dataclass(frozen=True, slots=True)
class Held:
    """Why nothing is measured now, and when to look again."""

    reason: Reason
    detail: str
    again_ms: int
    outcome: Outcome = "waiting"


@dataclass(slots=True)
class Turn:
    """What `turn.json` says."""

    at_ms: int
    outcome: Outcome = "waiting"
    reason: Reason = ""
    detail: str = ""
    next_ms: int = 0
    problems: list[str] = field(default_factory=list)
    budget: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    collector: dict[str, Any] | None = None
    spool: dict[str, Any] | None = None
    portal: Portal | None = None
    last: dict[str, Any] | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {"v": 1, **{name: getattr(self, name) for name in Turn.__slots__}}

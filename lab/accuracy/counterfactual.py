# SPDX-License-Identifier: EUPL-1.2
"""What would have been claimed without one of the gates: each gate must have a row that it saves.

The product has no switch to turn a gate off, and needs none: gates on cells are names on an assessment, which are
taken off a copy; facts about pairs are cleared on copies of the pairs. spec/accuracy.md section 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, get_args

from analysis.cells import Assessment
from analysis.gates import Reason
from analysis.pairs import Flag, Pair

GATES: Final[tuple[str, ...]] = get_args(Reason)
FLAGS: Final[tuple[str, ...]] = get_args(Flag)
FACTS: Final = ("all_flags", "queued", "lost", "edge")
"""Besides gates and flags: all flags at once, "neither slot was queued", lost pairs, "not at the network's edge"."""
KNOWN: Final = tuple(dict.fromkeys((*GATES, *FLAGS, *FACTS)))


def lifted(assessments: Iterable[Assessment], gate: str) -> list[Assessment]:
    """The assessments as if one gate on cells did not exist."""
    return [replace(a, gates=tuple(name for name in a.gates if name != gate)) for a in assessments]


def changes_pairs(name: str) -> bool:
    """Whether leaving this out changes what pairs say, so that all must be judged again."""
    return name in FLAGS or name in FACTS or name == "busy_lines"


def cleared(pairs: Sequence[Pair], name: str) -> list[Pair]:
    """The pairs as if nobody had looked at this fact."""
    if name in FLAGS:
        return [replace(pair, flags=frozenset(flag for flag in pair.flags if flag != name)) for pair in pairs]
    if name == "queued":
        return [pair if pair.queued is None else replace(pair, queued=True) for pair in pairs]
    if name == "lost":
        return [pair for pair in pairs if not pair.lost]
    if name == "edge":
        return [replace(pair, edge=True, flags=frozenset()) for pair in pairs]
    return [replace(pair, flags=frozenset()) for pair in pairs]

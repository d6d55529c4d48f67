# SPDX-License-Identifier: EUPL-1.2
"""Pairs kept sorted by their end, so that one that comes late costs no more than one in time.

A list with `insort` would move everything behind the new entry. This one is cut into blocks of bounded length: an
entry finds its block by halving and moves only what stands behind it there; a block that grew too long is halved.
Spec: spec/statistics.md, section "A pair".
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Final

Entry = tuple[int, str, int, bool, float]
"""End (Unix ms), session, number, whether neutral came first, log ratio."""
Limit = tuple[int, str]

MOST: Final = 256
"""A block of more entries is halved."""


@dataclass(slots=True)
class Sorted:
    """A sorted sequence of entries. Adding costs O(log n) comparisons and moves at most MOST entries.

    Besides, at most once in MOST / 2 additions, the blocks behind a halved one move: n / MOST references.
    """

    blocks: list[list[Entry]] = field(default_factory=list)
    """Each is sorted, none is empty, and all of one comes before all of the next."""
    _firsts: list[Entry] = field(default_factory=list)
    """The smallest entry of each block."""

    def add(self, entry: Entry) -> None:
        """Put an entry in its place, behind equal ones."""
        if not self.blocks:
            self.blocks.append([entry])
            self._firsts.append(entry)
            return
        at = max(0, bisect.bisect_right(self._firsts, entry) - 1)
        block = self.blocks[at]
        bisect.insort(block, entry)
        self._firsts[at] = block[0]
        if len(block) > MOST:
            half = len(block) // 2
            self.blocks[at : at + 1] = [block[:half], block[half:]]
            self._firsts.insert(at + 1, block[half])

    def before(self, limit: Limit, most: int) -> list[Entry]:
        """The last `most` entries that are at most `limit`, in order. Reads at most `most` entries."""
        at = bisect.bisect_right(self._firsts, limit) - 1
        if at < 0:
            return []
        block = self.blocks[at]
        until = bisect.bisect_right(block, limit)
        found = block[max(0, until - most) : until]
        while len(found) < most and at > 0:
            at -= 1
            missing = most - len(found)
            found[:0] = self.blocks[at][-missing:]
        return found

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

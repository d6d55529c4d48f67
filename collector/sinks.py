# SPDX-License-Identifier: EUPL-1.2
"""What the outbox expects of the systems it delivers to, and the two ways in which they may fail.

In a module of its own so that a board can be pushed without the collector's extra. Spec: spec/series.md,
section "Delivery".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from collector.model import OutboxCase


class Unreachable(Exception):
    """The other system did not take it now; later it may. The message says why, without any secret."""


class Refused(Exception):
    """The other system will never take it; trying again would stop everything behind it."""


class PointSink(Protocol):
    """A time-series database."""

    def write(self, lines: Sequence[str]) -> None:
        """Write lines of the line protocol, times in ms. Raises Unreachable or Refused."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class CaseSink(Protocol):
    """A board that shows cases."""

    def tell(self, news: OutboxCase) -> None:
        """Show one event of a case's life; told twice, it is shown once. Raises Unreachable or Refused."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...

# SPDX-License-Identifier: EUPL-1.2
"""Logs without addresses: whatever a library puts into a message, what looks like an address is taken out.

Spec: spec/records.md, section "No addresses".
"""

from __future__ import annotations

import logging
from typing import Final

from probe.wire.scrub import scrub

LOG: Final = logging.getLogger("evenlane.reflector")


class ScrubbingFormatter(logging.Formatter):
    """Formats, then removes addresses, also from tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """One scrubbed text."""
        return scrub(super().format(record))


def configure(level: int) -> None:
    """Send every log of this process to stderr, scrubbed."""
    handler = logging.StreamHandler()
    handler.setFormatter(ScrubbingFormatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)

# SPDX-License-Identifier: EUPL-1.2
"""The collector's log: no line of it holds an address, whoever wrote the line.

Spec: spec/api.md, section "Privacy".
"""

from __future__ import annotations

import logging

from aiohttp.http_exceptions import HttpProcessingError

from probe.wire.scrub import scrub


class _Scrubbed(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
            return False  # a stranger's broken HTTP is no defect here, and must not fill the disk with tracebacks
        # Before any handler sees it, also one that this program did not set up; exceptions quote what they met.
        record.msg, record.args = scrub(record.getMessage()), None
        if record.exc_info:
            record.exc_text = scrub(logging.Formatter().formatException(record.exc_info))
        return True


def logger() -> logging.Logger:
    """The logger of everything the collector runs, aiohttp's server included."""
    log = logging.getLogger("evenlane.collector")
    if not any(isinstance(known, _Scrubbed) for known in log.filters):
        log.addFilter(_Scrubbed())
    return log


def to_stderr(level: int = logging.INFO) -> None:
    """Send the collector's log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logger()
    log.handlers = [handler]
    log.setLevel(level)
    log.propagate = False

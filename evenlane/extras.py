# SPDX-License-Identifier: EUPL-1.2
"""Errors that end a command with one sentence instead of a traceback, and the extras that commands need."""

from __future__ import annotations

import importlib
from types import ModuleType


class CannotRun(Exception):
    """The command could not run; the message is one sentence that says what to do. Exit code 3."""


class MissingExtra(Exception):
    """A command needs an optional dependency that is not installed."""

    def __init__(self, extra: str, module: str = "") -> None:
        self.extra = extra
        self.module = module
        what = f" ({module} is missing)" if module else ""
        super().__init__(f"this command needs an extra{what}: pip install 'evenlane[{extra}]'")


def load(module: str, *, extra: str) -> ModuleType:
    """Import one of our own modules; raise MissingExtra where a third-party import of it fails."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.split(".")[0] in {"probe", "analysis", "collector", "lab", "dashboards", "evenlane"}:
            raise
        raise MissingExtra(extra, missing) from error

# SPDX-License-Identifier: EUPL-1.2
"""Types of arguments that several commands take."""

from __future__ import annotations

import argparse


def port(text: str) -> int:
    """A TCP port; 0 lets the system choose one that is free."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)

# SPDX-License-Identifier: EUPL-1.2
"""The driver `tun`: each line is a TUN device in the subscriber's namespace, kernel TCP on both ends.

Preferred, because nothing is emulated but the operator: the kernel segments, checksums and paces as on a
real line, and hands packets over whole, since no offload is ever switched on for the devices. spec/lab.md
section 4.
"""

from __future__ import annotations

from lab.model import Family
from lab.namespaces import Namespace, Warden
from lab.network import LineEnd

NAME = "tun"


class TunLines:
    """Makes TUN lines."""

    name = NAME

    def __init__(self, warden: Warden) -> None:
        del warden  # a TUN device needs no namespace for its far end

    def line(self, near: Namespace, device: str, family: Family = 4) -> LineEnd:
        """A device in a namespace and the operator's end of it; it carries either family."""
        del family
        descriptor = near.tun(device)
        return LineEnd(descriptor, {"kind": "tun", "fd": descriptor})

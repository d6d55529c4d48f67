# SPDX-License-Identifier: EUPL-1.2
"""The driver `veth`: each line is a veth pair, read and written with packet sockets at the operator's end.

For machines that refuse /dev/net/tun but allow user namespaces. Offloads are switched off on both ends, or the
operator would see super-packets without checksums. A packet socket has no back-pressure: a burst that it
cannot hold is lost, and counted as `unread`. spec/lab.md section 4; packet(7), veth(4).
"""

from __future__ import annotations

import itertools

from lab.model import Family
from lab.namespaces import Namespace, Warden
from lab.network import LineEnd

NAME = "veth"


class VethLines:
    """Makes veth lines; the operators' ends share one namespace that has no addresses."""

    name = NAME

    def __init__(self, warden: Warden) -> None:
        self._middle = warden.namespace()
        self._numbers = itertools.count()

    def line(self, near: Namespace, device: str, family: Family = 4) -> LineEnd:
        """A veth end in a namespace and the operator's packet socket on the other."""
        descriptor, mac, far_mac = near.veth(device, self._middle, f"far{next(self._numbers)}", family=family)
        port = {"kind": "packet", "fd": descriptor, "mac": mac, "far_mac": far_mac, "family": family}
        return LineEnd(descriptor, port)

# SPDX-License-Identifier: EUPL-1.2
"""Was a transfer held back by this probe itself, its buffers or its window, rather than by the network?

Such a pair tells little, whichever arm it was: a label-blind gate asks for it. Spec: spec/records.md, `queue_limited`.
"""

from __future__ import annotations

import socket
from typing import Final

from probe.netio.dial import TcpInfo, receive_fill
from probe.protocol.probe_pair import QUEUE_LIMITED

_FULL: Final = 0.7
"""Of the receive buffer: the window that is left to the sender is nearly shut by then."""
_LOOK_S: Final = 0.02
_SHORTEST_S: Final = 0.1
"""A transfer that ended sooner is too short to say anything."""


class Fill:
    """Watches our receive buffer: a full one makes the sender wait for us, not for the network."""

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.full_s: float | None = 0.0
        """How long it was nearly full; None where the kernel does not say."""
        self.next_at = now
        self._sock = sock
        self._last = now

    def look(self, now: float) -> None:
        """Between two looks the buffer counts as it is at the later one."""
        fill = receive_fill(self._sock)
        if fill is None:
            self.full_s, self.next_at = None, float("inf")
        elif self.full_s is not None:
            self.full_s += now - self._last if fill > _FULL else 0.0
            self._last, self.next_at = now, now + _LOOK_S


def was_held_back(waited_s: float | None, lasted_s: float) -> bool | None:
    """Whether that was more than a tenth of the time; None where nothing is known."""
    return None if waited_s is None else waited_s > QUEUE_LIMITED * max(lasted_s, _SHORTEST_S)


def sender_waited_s(info: TcpInfo | None) -> float | None:
    """How long a sender waited for the peer's window or for room in its own buffer; None where it is not known."""
    return info.limited_ms / 1000 if info is not None and info.limited_ms is not None else None

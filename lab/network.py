# SPDX-License-Identifier: EUPL-1.2
"""An emulated internet of namespaces: one for the reflector's side, one for each subscriber, lines between.

Several operators stand around one internet; each is a process of its own (lab.forward) that serves all its
subscribers. There is no address translation, so a probe's own address is the one the reflector sees.
spec/lab.md section 4.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any, Final, Protocol

from lab.model import Scenario
from lab.namespaces import Namespace, Warden
from lab.processes import OperatorProcess
from lab.scenario import to_table

POOL: Final = ("192.0.2.10", "192.0.2.11")  # the reflector's addresses (TEST-NET-1, RFC 5737)
COLLECTOR: Final = "192.0.2.80"


@dataclass(frozen=True)
class LineEnd:
    """The operator's end of a line: an open descriptor and how lab.forward is to use it."""

    descriptor: int
    port: dict[str, Any]


class Lines(Protocol):
    """What tells the drivers tun and veth apart."""

    name: str

    def line(self, near: Namespace, device: str) -> LineEnd:
        """Make a line that ends in a namespace as this device."""


def subscriber_address(operator: int, subscriber: int) -> str:
    """The address plan: operator i has 198.18.i.0/24 (RFC 2544), its subscribers .11 and up."""
    return f"198.18.{operator + 1}.{subscriber + 11}"


def operator_prefix(operator: int) -> str:
    """The prefix all of an operator's subscribers are in."""
    return f"198.18.{operator + 1}.0/24"


class Network:
    """An internet and the operators around it."""

    def __init__(self, warden: Warden, lines: Lines) -> None:
        self._warden = warden
        self._lines = lines
        self._operators: list[OperatorProcess] = []
        self.internet = warden.namespace()
        self.internet.configure("lo", addresses=[*POOL, COLLECTOR])

    def add_operator(
        self, scenario: Scenario, subscribers: int, *, seed: str = "0", day_s: float = 12 * 3600.0
    ) -> tuple[OperatorProcess, list[Namespace]]:
        """Start an operator and give it subscribers; returns it and their namespaces."""
        number = len(self._operators)
        addresses = [subscriber_address(number, index) for index in range(subscribers)]
        ends: list[LineEnd] = []
        try:
            backbone = self._lines.line(self.internet, f"op{number}")
            ends.append(backbone)
            self.internet.configure(f"op{number}", routes=[(operator_prefix(number), POOL[0])])
            homes = []
            for address in addresses:
                home = self._warden.namespace()
                ends.append(self._lines.line(home, "line"))
                home.configure("line", addresses=[address], routes=[("0.0.0.0/0", address)])
                homes.append(home)
            config = {
                "scenario": to_table(scenario),
                "subscribers": [
                    {"address": address, "port": end.port} for address, end in zip(addresses, ends[1:], strict=True)
                ],
                "internet": backbone.port,
                "seed": seed,
                "day_s": day_s,
            }
            descriptors = [end.descriptor for end in ends]
            operator = OperatorProcess(self._warden, "lab.forward", config, descriptors=descriptors)
            self._operators.append(operator)
        finally:
            for end in ends:
                os.close(end.descriptor)
        return operator, homes

    def listen(self, port: int) -> socket.socket:
        """A listening socket on the internet's side for a server outside, such as the collector."""
        return self.internet.listen(COLLECTOR, port)

    def close(self) -> None:
        """End the operators; the namespaces go with the warden."""
        for operator in self._operators:
            operator.close()

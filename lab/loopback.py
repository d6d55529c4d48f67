# SPDX-License-Identifier: EUPL-1.2
"""The relay driver's world: loopback addresses instead of namespaces. spec/lab.md section 4.

Operator i listens on 127.(64+i).0.1 and its subscribers are 127.(64+i).1.11 and up; the reflector is at
127.63.0.1. All of 127.0.0.0/8 is this machine's on Linux, without any configuration.
"""

from __future__ import annotations

import socket
from typing import Final

from lab import relay
from lab.model import Scenario
from lab.namespaces import Warden
from lab.processes import OperatorProcess
from lab.scenario import ScenarioError, to_table

REFLECTOR: Final = "127.63.0.1"
COLLECTOR: Final = "127.0.0.1"


def operator_address(operator: int) -> str:
    """Where an operator's relay listens: what its subscribers take for the reflector."""
    return f"127.{64 + operator}.0.1"


def operator_prefix(operator: int) -> str:
    """The prefix all of an operator's subscribers are in."""
    return f"127.{64 + operator}.0.0/16"


def subscriber_address(operator: int, subscriber: int) -> str:
    """A subscriber's own address."""
    return f"127.{64 + operator}.1.{subscriber + 11}"


class Loopback:
    """Operators on loopback."""

    def __init__(self, warden: Warden) -> None:
        self._warden = warden
        self._operators: list[OperatorProcess] = []

    def add_operator(
        self, scenario: Scenario, subscribers: int, *, seed: str = "0", day_s: float = 12 * 3600.0
    ) -> tuple[OperatorProcess, list[str]]:
        """Start an operator; returns it and its subscribers' addresses. It listens once `carry` names ports."""
        why = relay.refusal(scenario)
        if why is not None:
            raise ScenarioError(f"{scenario.name}: {why}")
        number = len(self._operators)
        addresses = [subscriber_address(number, index) for index in range(subscribers)]
        config = {
            "scenario": to_table(scenario),
            "subscribers": addresses,
            "listen": operator_address(number),
            "onward": REFLECTOR,
            "seed": seed,
            "day_s": day_s,
        }
        operator = OperatorProcess(self._warden, "lab.relay", config)
        self._operators.append(operator)
        return operator, addresses

    def carry(self, ports: list[int]) -> None:
        """Let every operator carry connections to these ports of the reflector."""
        for operator in self._operators:
            operator.snapshot(listen=ports)

    def listen(self, port: int) -> socket.socket:
        """A listening socket for a server that the lab's programs upload to."""
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((COLLECTOR, port))
        made.listen(128)
        return made

    def close(self) -> None:
        """End the operators."""
        for operator in self._operators:
            operator.close()


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses on the reflector's loopback address now."""
    made = [socket.socket() for _ in range(count)]
    try:
        for one in made:
            one.bind((REFLECTOR, 0))
        return [one.getsockname()[1] for one in made]
    finally:
        for one in made:
            one.close()

# SPDX-License-Identifier: EUPL-1.2
"""An emulated internet of namespaces: one for the reflector's side, one for each subscriber, lines between.

Several operators stand around one internet; each is a process of its own (lab.forward) that serves all its
subscribers. Where a scenario asks for it, a home router or the operator translates addresses; elsewhere a
probe's own address is the one the reflector sees. spec/lab.md section 4.

    home --------------------- line - operator - line ------------ internet      nat = "none"
    home - cable - home router line - operator - line ------------ internet      nat = "home"
    home --------------------- line - operator - line CGN - cable - internet     nat = "cgnat"
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any, Final, Protocol

from lab.model import Family, Link, Scenario
from lab.namespaces import Namespace, Warden
from lab.processes import OperatorProcess
from lab.scenario import to_table

POOL: Final = ("192.0.2.10", "192.0.2.11")  # the reflector's addresses (TEST-NET-1, RFC 5737)
POOL6: Final = ("2001:db8:0:1::10", "2001:db8:0:1::11")  # the same in IPv6 (RFC 3849)
COLLECTOR: Final = "192.0.2.80"
_LAN: Final = ("192.168.1.1", "192.168.1.2")  # a home router's inner address and the home behind it


@dataclass(frozen=True)
class LineEnd:
    """The operator's end of a line: an open descriptor and how lab.forward is to use it."""

    descriptor: int
    port: dict[str, Any]


class Lines(Protocol):
    """What tells the drivers tun and veth apart."""

    name: str

    def line(self, near: Namespace, device: str, family: Family = 4) -> LineEnd:
        """Make a line that ends in a namespace as this device and carries packets of this family."""


def pool(family: Family) -> tuple[str, ...]:
    """The reflector's addresses that subscribers of this family reach."""
    return POOL6 if family == 6 else POOL


def subscriber_address(operator: int, subscriber: int, link: Link) -> str:
    """The address plan: what a subscriber's line has.

    Operator i has 198.18.i.0/24 (RFC 2544) with subscribers from .11 on; or 2001:db8:i00::/40 with a /48 each;
    behind a CGN its subscribers are in 100.64.i.0/24 (RFC 6598).
    """
    if link.family == 6:
        return f"2001:db8:{operator + 1:x}{subscriber + 17:02x}::11"
    return f"{'100.64' if link.nat == 'cgnat' else '198.18'}.{operator + 1}.{subscriber + 11}"


def operator_prefix(operator: int, link: Link) -> str:
    """The prefix in which the internet sees all of an operator's subscribers."""
    return f"2001:db8:{operator + 1:x}00::/40" if link.family == 6 else f"198.18.{operator + 1}.0/24"


class Network:
    """An internet and the operators around it."""

    def __init__(self, warden: Warden, lines: Lines) -> None:
        self._warden = warden
        self._lines = lines
        self._operators: list[OperatorProcess] = []
        self.internet = warden.namespace()
        self.internet.configure("lo", addresses=[*POOL, COLLECTOR])

    def offer_ipv6(self) -> None:
        """Give the reflector's side its IPv6 addresses."""
        self.internet.configure("lo", addresses=POOL6)

    def add_operator(
        self, scenario: Scenario, subscribers: int, *, seed: str = "0", day_s: float = 12 * 3600.0
    ) -> tuple[OperatorProcess, list[Namespace]]:
        """Start an operator and give it subscribers; returns it and their namespaces."""
        number, link = len(self._operators), scenario.link
        addresses = [subscriber_address(number, index, link) for index in range(subscribers)]
        ends: list[LineEnd] = []
        try:
            ends.append(self._backbone(number, link))
            homes = [self._home(address, link, ends) for address in addresses]
            config = {
                "scenario": to_table(scenario),
                "subscribers": [
                    {"address": address, "port": end.port} for address, end in zip(addresses, ends[1:], strict=True)
                ],
                "internet": ends[0].port,
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

    def _backbone(self, number: int, link: Link) -> LineEnd:
        """The operator's line to the internet; a carrier-grade NAT stands at its far end where there is one."""
        device, prefix, source = f"op{number}", operator_prefix(number, link), pool(link.family)[0]
        if link.nat != "cgnat":
            end = self._lines.line(self.internet, device, link.family)
            self.internet.configure(device, routes=[(prefix, source)])
            return end
        translator = self._warden.namespace()
        public = f"198.18.{number + 1}.1"
        self.internet.cable(device, translator, "out")
        self.internet.configure(device, routes=[(prefix, source)])
        translator.configure("out", addresses=[public], routes=[("0.0.0.0/0", public)])
        end = self._lines.line(translator, "in")
        translator.configure("in", routes=[(f"100.64.{number + 1}.0/24", "")])
        translator.masquerade("out")
        return end

    def _home(self, address: str, link: Link, ends: list[LineEnd]) -> Namespace:
        """A subscriber's home; the operator's end of his line is added to `ends`."""
        home = self._warden.namespace()
        default = "::/0" if link.family == 6 else "0.0.0.0/0"
        edge = home if link.nat != "home" else self._warden.namespace()
        ends.append(self._lines.line(edge, "line", link.family))
        edge.configure("line", addresses=[address], routes=[(default, address)])
        if edge is not home:
            inner, own = _LAN
            edge.cable("lan", home, "lan")
            edge.configure("lan", addresses=[f"{inner}/24"])
            home.configure("lan", addresses=[f"{own}/24"], routes=[(default, own, inner)])
            edge.masquerade("line")
        return home

    def listen(self, port: int) -> socket.socket:
        """A listening socket on the internet's side for a server outside, such as the collector."""
        return self.internet.listen(COLLECTOR, port)

    def close(self) -> None:
        """End the operators; the namespaces go with the warden."""
        for operator in self._operators:
            operator.close()

# SPDX-License-Identifier: EUPL-1.2
"""Who is measured: the operators register, and which probes count as one network.

A place in the register decides the operator's share of the error budget, so it is given once, in the order of
first appearance, and never changes. Pure; the judge writes what changed. Spec: spec/statistics.md, sections
"Weights" and "Networks".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from analysis.match import UNKNOWN_OPERATOR
from analysis.plan import ZONES
from collector.config import Config
from collector.model import OperatorView
from probe.wire.records import Origin

NO_NETWORK: Final = "0" * 16
"""What a reflector writes that has no key to hash with."""


class Register:
    """Operators by place. `changed` collects what has to be written."""

    def __init__(self, config: Config, operators: Iterable[OperatorView]) -> None:
        self._config = config
        self._by_place = {operator.place: operator for operator in operators}
        self._by_id = {operator.id: operator for operator in self._by_place.values()}
        self._by_asn = {asn: operator.place for operator in self._by_place.values() for asn in operator.asns}
        self.changed: list[OperatorView] = []
        self._configure()

    def _configure(self) -> None:
        """What people keep in the configuration wins over what was met, except for the place."""
        taken = {asn for entry in self._config.operators for asn in entry.asns}
        for operator in list(self._by_place.values()):
            left = tuple(asn for asn in operator.asns if asn not in taken)
            if left != operator.asns and operator.id not in {entry.id for entry in self._config.operators}:
                self._put(replace(operator, asns=left))
        for entry in self._config.operators:
            known = self._by_id.get(entry.id)
            found = OperatorView(
                id=entry.id,
                place=known.place if known else self._next(),
                brand=entry.brand or entry.id,
                asns=entry.asns,
                country=entry.country,
                timezone=self._zone(entry.id, entry.country),
                configured=True,
                cgnat=entry.cgnat,
            )
            if found != known:
                self._put(found)

    def _next(self) -> int:
        return max(self._by_place, default=0) + 1

    def _zone(self, operator: str, country: str | None) -> str:
        return self._known_zone(operator, country) or "UTC"

    def _known_zone(self, operator: str, country: str | None) -> str | None:
        return self._config.zone_of(operator, country) or ZONES.get(country or "") or self._config.timezone

    def zone_known(self, operator: OperatorView) -> bool:
        """Whether the operator's time zone was told, rather than assumed."""
        return self._known_zone(operator.id, operator.country) is not None

    def _put(self, operator: OperatorView) -> None:
        self._by_place[operator.place] = operator
        self._by_id[operator.id] = operator
        for asn in operator.asns:
            self._by_asn[asn] = operator.place
        self.changed.append(operator)

    def at(self, place: int) -> OperatorView:
        """The operator at a place."""
        return self._by_place[place]

    def place_of(self, operator: str) -> int:
        """The place of an operator that is in the register."""
        return self._by_id[operator].place

    def resolve(self, origin: Origin) -> OperatorView:
        """The operator of an origin; an unknown one is appended. The number decides before the name does."""
        if origin.asn is not None and origin.asn in self._by_asn:
            return self._by_place[self._by_asn[origin.asn]]
        name = origin.operator or (UNKNOWN_OPERATOR if origin.asn is None else f"AS{origin.asn}")
        known = self._by_id.get(name)
        if known is None or (known.country != origin.country and not known.configured):
            known = self._append(name, origin, taken=known is not None)
        elif origin.asn is not None:
            # The same name in the same country under another number: one operator with several.
            known = replace(known, asns=(*known.asns, origin.asn))
            self._put(known)
        return known

    def _append(self, name: str, origin: Origin, *, taken: bool) -> OperatorView:
        # Two operators of one name in two countries are two operators.
        unique = f"{name} ({origin.country or 'unknown'})"[:128] if taken else name
        if unique in self._by_id:
            return self._by_id[unique]
        operator = OperatorView(
            id=unique,
            place=self._next(),
            brand=name,
            asns=() if origin.asn is None else (origin.asn,),
            country=origin.country,
            timezone=self._zone(unique, origin.country),
            configured=False,
        )
        self._put(operator)
        return operator


class Networks:
    """Probes that ever shared a hash, in any month or family, are one network, named by its first probe."""

    def __init__(self, seen: Iterable[tuple[str, str]]) -> None:
        self._probes: dict[str, set[str]] = {}
        """By component."""
        self._component: dict[str, str] = {}
        self._of_hash: dict[str, str] = {}
        """Any one probe of each hash."""
        self._seen: set[tuple[str, str]] = set()
        for network, probe in seen:
            self.see(network, probe)

    def component(self, probe: str) -> str | None:
        """The probe's network; None where none is known."""
        return self._component.get(probe)

    def members(self, component: str) -> frozenset[str]:
        """Its probes."""
        return frozenset(self._probes[component])

    def see(self, network: str, probe: str) -> tuple[str, tuple[str, ...]] | None:
        """A probe was seen in a network (a keyed hash). What changed: the component, and those it swallowed."""
        if network == NO_NETWORK or (network, probe) in self._seen:
            return None
        self._seen.add((network, probe))
        other = self._of_hash.setdefault(network, probe)
        joined = {c for c in (self._component.get(probe), self._component.get(other)) if c is not None}
        if joined and self._component.get(probe) == self._component.get(other):
            return None
        members = {probe, other}.union(*(self._probes.pop(c) for c in joined))
        name = min(members)
        self._probes[name] = members
        self._component.update(dict.fromkeys(members, name))
        return name, tuple(sorted(joined - {name}))

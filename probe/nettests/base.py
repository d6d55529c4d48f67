# SPDX-License-Identifier: EUPL-1.2
"""What a nettest is: it says what it will cost, then runs against one reflector.

A nettest is an object in the registry, not a plug-in that is found by importing. Spec: spec/nettests/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

from probe.protocol.probe_role import ProbeSession
from probe.wire.messages import SessionRequest
from probe.wire.records import Design, Direction, PairKind, PairOutcome, PlannedProfile, Software

Directions = Literal["down", "up", "both"]


class OptionError(ValueError):
    """A nettest cannot be run with these options; the message is one sentence that says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run by hand or a plan may choose."""

    apps: tuple[str, ...] = ()
    """Empty means the default ones."""
    pairs: int = 3
    """Per app and direction."""
    direction: Directions = "down"
    pace_mbps: float | None = None
    """None: calibrate first. 0: unlimited, for benchmarks."""
    most_pace_mbps: float = 12.0
    segment_s: float = 4.0
    hotspot: bool = False
    """This line is a public hotspot: declared before any coin."""
    delivered: tuple[PlannedProfile, ...] = ()
    """Profiles of the plan, which take the place of the installed ones."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The most that a run will take, told before it begins."""

    bytes: int | None
    """Both directions together, headers included; None where the pace is unlimited."""
    seconds: float
    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One pair is over."""

    pair: int
    app: str
    direction: Direction
    kind: PairKind
    done: int
    of: int
    outcome: PairOutcome
    app_mbps: float | None
    """Rate over the last half of the segment as the reflector counted it; None where the segment failed."""
    neutral_mbps: float | None
    design: Design = "sequential"
    app_delay_ms: float | None = None
    """Concurrent design: median round-trip time of its small packets while the load ran, as the reflector saw it."""
    neutral_delay_ms: float | None = None
    app_loss: float | None = None
    """Share of its small packets that were never answered."""
    neutral_loss: float | None = None


class Tools(Protocol):
    """What the runner lends a nettest: the way to a reflector and back."""

    @property
    def probe_key(self) -> str:
        """This probe's key id."""
        ...

    @property
    def software(self) -> Software:
        """What runs here."""
        ...

    def open(self, request: SessionRequest) -> ProbeSession:
        """Ask for a session. It is refused or granted; the session's phase tells."""
        ...

    def calibrate(
        self, session: ProbeSession, *, name: str, alpn: tuple[str, ...], direction: Direction
    ) -> float | None:
        """Mbit/s that a short neutral transfer reached, also told to the session; None where it failed."""
        ...

    def drive(
        self,
        session: ProbeSession,
        *,
        alpn: Mapping[str, tuple[str, ...]],
        shapes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Carry out the planned pairs until the session is finished, reporting progress.

        Both by app: the protocols that TLS offers, and for the carrier `hello` which browser its ClientHello is like.
        """
        ...


class Nettest(Protocol):
    """One kind of measurement."""

    @property
    def id(self) -> str:
        """As records name it."""
        ...

    @property
    def title(self) -> str:
        """One line for people."""
        ...

    def cost(self, options: Options) -> Cost:
        """The most it will take. Raises OptionError, ProfileError."""
        ...

    def run(self, tools: Tools, options: Options) -> ProbeSession:
        """Run it; a network failure is in the session, never an exception."""
        ...

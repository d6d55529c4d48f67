# SPDX-License-Identifier: EUPL-1.2
"""What every store offers, so that intake, judge, API, pages and outbox do not know which one they talk to.

All methods are synchronous, thread-safe and short; a handler calls the reading ones through
`collector.app.in_thread`. Writing goes through one writer, which groups what waits into one durable commit.
Spec: spec/api.md, section "Durability".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from collector.model import (
    CaseDetail,
    CaseView,
    CellDetail,
    CellKey,
    CellView,
    OperatorView,
    OutboxRow,
)

Kind = Literal["measurement", "receipt", "started"]
Stored = Literal["accepted", "duplicate", "conflict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvelopeRow:
    """One verified envelope as the store keeps it: the bytes as signed and what finds them again."""

    kind: Kind
    ident: str
    """What makes it one for its signer: a measurement's id, a receipt's session, a started pair's session/pair."""
    signer: bytes
    digest: bytes
    """SHA-256 of the payload, 32 bytes."""
    session: str
    probe: str
    """Key id of the probe that the record is about."""
    reflector: str
    """Key id of the reflector that the record names or is signed by."""
    payload: bytes
    signature: bytes
    received_ms: int


class StoreError(Exception):
    """The store cannot be used; the message is one sentence that says what to do."""


class Reader(Protocol):
    """What pages and API read. Everything returned is public."""

    def cells(self) -> list[CellView]:
        """Every cell and effect, ordered by operator's place, app, direction, access and effect."""
        ...

    def cases(self) -> list[CaseView]:
        """Every case there ever was, the newest first."""
        ...

    def case(self, case_id: str) -> CaseDetail | None:
        """One case with its pairs and pictures."""
        ...

    def evidence(self, key: CellKey) -> CellDetail | None:
        """One cell and effect with its pairs and pictures, case or none. `key.asn` is ignored."""
        ...

    def operators(self) -> list[OperatorView]:
        """The register, by place."""
        ...


class Outbox(Protocol):
    """What the delivery to other systems needs."""

    def outbox_take(self, most: int) -> list[OutboxRow]:
        """The oldest rows that nobody has confirmed, at most `most`; they stay until `outbox_done`."""
        ...

    def outbox_done(self, ids: Sequence[int]) -> None:
        """Forget rows that have been delivered."""
        ...

    def outbox_size(self) -> int:
        """How many rows wait."""
        ...


class Store(Reader, Outbox, Protocol):
    """The whole of it."""

    def add(self, rows: Sequence[EnvelopeRow]) -> Future[list[Stored]]:
        """Keep envelopes; the future is done when they are durable, with one answer per row in order.

        accepted: new. duplicate: the same bytes are here already. conflict: other bytes are here under this ident,
        or this probe has told of this session before.
        """
        ...

    def write(self, work: Callable[[Any], Any]) -> Future[Any]:
        """Run `work(connection)` in the writer, in a transaction of its own; done when durable."""
        ...

    def check(self) -> None:
        """Raise StoreError unless the store can be read and written now."""
        ...

    def close(self) -> None:
        """Finish what waits, then let go of everything. Repeatable."""
        ...

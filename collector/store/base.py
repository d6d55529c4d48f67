# SPDX-License-Identifier: EUPL-1.2
"""What every store offers, so that intake, judge, API, pages and outbox do not know which one they talk to.

All methods are synchronous, thread-safe and short; a handler calls the reading ones through
`collector.app.in_thread`. Writing goes through one writer, which groups what waits into one durable commit.
Spec: spec/api.md, section "Durability".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from analysis.cases import Case
from analysis.pairs import Pair, Scored
from collector.members import Departed, Enrolled, Member, Token
from collector.model import (
    CaseDetail,
    CaseEvent,
    CaseView,
    CellDetail,
    CellKey,
    CellView,
    EvidencePoint,
    OperatorView,
    OutboxRow,
)
from probe.wire.records import Access, Direction, Effect, Origin, PairKind, SegmentEnd

Kind = Literal["measurement", "receipt", "started"]
Stored = Literal["accepted", "duplicate", "conflict", "session_measured", "left"]
T = TypeVar("T")


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


@dataclass(frozen=True, slots=True, order=True)
class Session:
    """One run of a nettest: what a receipt, its started pairs and a measurement have in common."""

    reflector: str
    session: str
    probe: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRow:
    """One cell: an operator (by its place in the register) × app × direction × access."""

    id: int
    operator: int
    app: str
    direction: Direction
    access: Access


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """One pair as it stands: facts, how its segments ended (in the order in which they ran), score."""

    reflector: str
    cell: int
    pair: Pair
    ends: tuple[SegmentEnd, ...] = ()
    scored: Scored | None = None
    """None only between being known and being scored, within one transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPair:
    """A pair of a probe that left: facts without key and signature, under a pseudonym."""

    pair: Pair
    """Its cell is of the day of leaving; judging asks the register again."""
    ends: tuple[SegmentEnd, ...]
    origin: Origin
    """What the register needs to name the operator, without the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSession:
    """What judging needs of a session of a probe that left."""

    pairs: tuple[KeptPair, ...]
    digests: tuple[str, ...]
    """SHA-256 (hex) of the payloads that told of it, and are gone: a case's history names its inputs by them."""
    networks: tuple[str, ...] = ()
    """Hashes in which the probe was seen, where the session had not been judged before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """One cell and effect as the selection of cases sees it (natural logarithms)."""

    cell: int
    effect: Effect
    log_e: float
    log_weight: float
    listed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseNumbers:
    """What a case's page tells beside its cell, as of its last judging."""

    smallest_coalition: int
    hypotheses: int
    threshold_log10_e: float
    closed: CellView | None = None
    """Of a closed case: its cell as it was then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRow:
    """A case as analysis keeps it (with its witnesses: private), where it belongs, and its numbers."""

    cell: int
    case: Case
    numbers: CaseNumbers


@dataclass(frozen=True, slots=True, kw_only=True)
class HourRow:
    """The cell and effect at the end of one hour: as drawn, and as shown."""

    cell: int
    effect: Effect
    point: EvidencePoint
    view: CellView


@dataclass(slots=True)
class Known:
    """What a judge must know before it begins: small, and loaded once."""

    operators: list[OperatorView] = field(default_factory=list)
    apps: list[str] = field(default_factory=list)
    """Apps outside the plan, in the order of their first appearance."""
    cells: list[CellRow] = field(default_factory=list)
    networks: list[tuple[str, str]] = field(default_factory=list)
    """Hash and probe."""
    hypotheses: list[Hypothesis] = field(default_factory=list)


class Roll(Protocol):
    """Who takes part, by which token, and who left lately; within one transaction."""

    def member(self, probe: str) -> Member | None:
        """A probe that takes part."""
        ...

    def put_member(self, member: Member) -> None:
        """Write an entry in place of what stood there."""
        ...

    def counts(self) -> Enrolled:
        """How many there are, and how many left so far."""
        ...

    def tokens(self) -> list[Token]:
        """Every token, the oldest first."""
        ...

    def token(self, ident: str) -> Token | None:
        """One token by its id."""
        ...

    def put_token(self, token: Token) -> None:
        """Write a token in place of what stood there."""
        ...

    def departed(self, probe: str) -> Departed | None:
        """What is known of a probe that left lately."""
        ...

    def strike(self, probe: str, departed: Departed, *, known: bool) -> None:
        """Take a probe off the roll and mark that it left; `known`: something was known of it."""
        ...

    def tidy(self, now_ms: int) -> None:
        """Forget pseudonyms and marks whose time is over."""
        ...

    def deleted_ms(self) -> int | None:
        """Since when something deleted may have left remains on disk (Unix ms); None: nothing has."""
        ...


class Book(Protocol):
    """What the judge reads and writes, all within the one transaction that it was handed for."""

    @property
    def roll(self) -> Roll:
        """Who takes part, in the same transaction."""
        ...

    def known(self) -> Known:
        """Everything that the judge keeps in memory between transactions."""
        ...

    def pending(self, most: int) -> list[Session]:
        """Sessions about which something new is known, the first to arrive first."""
        ...

    def settle(self, sessions: Iterable[Session]) -> None:
        """They have been judged."""
        ...

    def pend_all(self) -> None:
        """Judge every session again: forget pairs and states (not verdicts, cases, labels and places)."""
        ...

    def facts(self, session: Session) -> list[EnvelopeRow]:
        """What is known of a session, in the order of arrival."""
        ...

    def kept(self, session: Session) -> KeptSession | None:
        """What is kept of a session of a probe that left."""
        ...

    def sessions_of(self, probe: str) -> list[Session]:
        """Every session that a record tells of."""
        ...

    def is_pending(self, session: Session) -> bool:
        """Whether something new is known about a session."""
        ...

    def forget(self, probe: str, pseudonym: str, kept: Mapping[Session, KeptSession]) -> None:
        """Put a pseudonym in place of a probe's key everywhere, and `kept` in place of its records."""
        ...

    def digests(self, cell: int) -> list[str]:
        """SHA-256 (hex) of every payload that tells of a session with pairs in the cell."""
        ...

    def pairs_of(self, session: Session) -> list[PairRow]:
        """The session's pairs as they stand."""
        ...

    def stream(self, cell: int, kind: PairKind, probe: str, since_ms: int) -> list[PairRow]:
        """One probe's pairs in one cell that started at `since_ms` or later, by start."""
        ...

    def pairs_in(self, cell: int, since_ms: int = 0) -> list[PairRow]:
        """A cell's pairs that started at `since_ms` or later, by start."""
        ...

    def put_pair(self, row: PairRow) -> None:
        """Write a pair in place of what stood there."""
        ...

    def drop_pair(self, row: PairRow) -> None:
        """Forget a pair."""
        ...

    def add_operator(self, operator: OperatorView) -> None:
        """Write an entry of the register in place of what stood at its place."""
        ...

    def add_app(self, app: str) -> None:
        """Give an app outside the plan the next place."""
        ...

    def add_cell(self, operator: int, app: str, direction: Direction, access: Access) -> CellRow:
        """A new cell."""
        ...

    def add_network(self, network: str, probe: str) -> None:
        """This probe was seen in this network."""
        ...

    def put_component(self, component: str, probes: Iterable[str], gone: Iterable[str]) -> None:
        """These probes are one network, named `component`; those `gone` are part of it now: one label a cell."""
        ...

    def states(self, cell: int) -> list[tuple[PairKind, str, dict[str, Any]]]:
        """Kind, probe and stored state of each probe in a cell."""
        ...

    def put_state(self, cell: int, kind: PairKind, probe: str, state: dict[str, Any] | None) -> None:
        """Write a probe's state; None forgets it."""
        ...

    def extras(self, cell: int) -> dict[str, Any]:
        """The cell's counts for pictures."""
        ...

    def put_extras(self, cell: int, extras: dict[str, Any]) -> None:
        """Write them."""
        ...

    def cells_of(self, probes: Iterable[str]) -> list[int]:
        """Cells in which one of these probes has pairs."""
        ...

    def latest_ms(self, cell: int) -> int | None:
        """Start of the cell's newest test pair."""
        ...

    def label(self, cell: int, kind: Literal["p", "n"], subject: str) -> None:
        """See to it that the probe or network has a label in this cell: drawn at random, never changed."""
        ...

    def put_verdict(self, hypothesis: Hypothesis, view: CellView) -> None:
        """Write what is shown of a cell and effect, and what the selection needs of it."""
        ...

    def verdict(self, cell: int, effect: Effect) -> CellView | None:
        """What is shown of a cell and effect."""
        ...

    def drop_verdicts(self, cell: int, effects: Iterable[Effect] | None = None) -> None:
        """A cell without pairs shows nothing; an effect that the rule does not look for (`effects`) neither."""
        ...

    def keep_verdicts(self, rule: str, until_ms: int) -> None:
        """Keep what is shown of every cell and effect as what this edition of the rule said last."""
        ...

    def put_hours(self, rows: Iterable[HourRow], *, cell: int, since_ms: int) -> None:
        """Write hours in place of all that stood from `since_ms` on."""
        ...

    def cases_of(self, cell: int, effect: Effect) -> list[CaseRow]:
        """The cell's cases, the oldest first."""
        ...

    def put_case(self, row: CaseRow) -> None:
        """Write a case in place of what stood under its id; its events are added by `add_event`."""
        ...

    def add_event(self, case_id: str, event: CaseEvent, *, as_of_ms: int) -> None:
        """Add one line to a case's history; `as_of_ms` is the newest hour that had been judged."""
        ...

    def events(self, case_id: str) -> list[tuple[int, CaseEvent]]:
        """The case's history with the `as_of_ms` of each line, the oldest first."""
        ...

    def send(self, kind: Literal["point", "case"], topic: str, body: Any) -> None:
        """Put something into the outbox, in place of what waits there under the same topic."""
        ...

    def send_hours(self) -> None:
        """Put every hour that may be published into the outbox: a time-series store was added."""
        ...

    def note(self, name: str, value: str) -> None:
        """Remember one text under a name."""
        ...

    def noted(self, name: str) -> str | None:
        """What was remembered."""
        ...


class Store(Reader, Outbox, Protocol):
    """The whole of it."""

    def enrolled(self) -> Enrolled:
        """How many take part, and how many left."""
        ...

    def roll(self, work: Callable[[Roll], T]) -> Future[T]:
        """Run `work(roll)` in the writer, all of it or nothing; done when durable."""
        ...

    def add(self, rows: Sequence[EnvelopeRow]) -> Future[list[Stored]]:
        """Keep envelopes; the future is done when they are durable, with one answer per row in order.

        accepted: new. duplicate: the same bytes are here already. conflict: other bytes are here under this ident.
        session_measured: this probe has told of this session before.
        """
        ...

    def write(self, work: Callable[[Book], T]) -> Future[T]:
        """Run `work(book)` in the writer, all of it or nothing; done when durable."""
        ...

    def waiting(self) -> int:
        """How many sessions wait to be judged."""
        ...

    def scrub(self, most_bytes: int | None = None) -> bool:
        """See to it that what was deleted is nowhere on disk; False where that is still to be done.

        It takes time where the store is large; one larger than `most_bytes` is left alone.
        """
        ...

    def check(self) -> None:
        """Raise StoreError unless the store can be read and written now."""
        ...

    def close(self) -> None:
        """Finish what waits, then let go of everything. Repeatable."""
        ...

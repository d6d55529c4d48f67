# SPDX-License-Identifier: EUPL-1.2
"""What stays of a probe that leaves: its pairs as facts, under a pseudonym that leads to nobody.

The records themselves go, because each of them names the key; the pairs stay, because verdicts were made of them and
whoever could take pairs back after seeing their coins could decide what the rest says. Why it is done like this
stands in docs/adr/0013; what a volunteer is told, in spec/enrolment.md, section "Leaving".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from analysis.match import OperatorOf, operator_of
from collector.register import NO_NETWORK
from collector.store.base import EnvelopeRow, KeptPair, KeptSession
from collector.taking import Facts, read
from probe.wire.envelope import read_payload
from probe.wire.records import Measurement, Receipt, Started


def kept_of(rows: list[EnvelopeRow], operator: OperatorOf, pseudonym: str, *, judged: bool) -> KeptSession | None:
    """What is kept of a session; None where no reflector told of it, so that it has no pairs.

    `operator` names the operator of an origin as the register has it now: whether receipt and list of started pairs
    agree on it is settled here for good. Where the session was `judged`, its networks are known already.
    """
    facts = read(rows)
    pairs = tuple(_pairs(facts, operator, pseudonym))
    if not pairs:
        return None
    return KeptSession(
        pairs=pairs,
        digests=tuple(sorted(row.digest.hex() for row in rows)),
        networks=() if judged else tuple(sorted({origin.network for origin in facts.origins()})),
    )


def _pairs(facts: Facts, operator: OperatorOf, pseudonym: str) -> Iterator[KeptPair]:
    # The cell is that of the list of started pairs where there is one (analysis.match).
    origins = {started.pair: started.origin for started in facts.started}
    for pair, ends in facts.pairs(operator):
        origin = origins.get(pair.number) or next(facts.origins())
        yield KeptPair(
            pair=replace(pair, probe=pseudonym), ends=ends, origin=replace(origin, network=NO_NETWORK, edge=None)
        )


def joined(kept: KeptSession | None, late: EnvelopeRow, pseudonym: str) -> KeptSession | None:
    """A session of a probe that has left, with a reflector's record that came after it; None if nothing is new.

    Its pairs are lost, since the probe's own record is gone or will not be taken; but they count: else a probe could
    start pairs, see their coins, and leave before the reflector has told of those it does not like.
    """
    came = kept_of([late], operator_of, pseudonym, judged=False)
    if came is None or kept is None:
        return came
    known = {one.pair.number for one in kept.pairs}
    fresh = tuple(one for one in came.pairs if one.pair.number not in known)
    if not fresh:
        return None
    return replace(
        kept,
        pairs=(*kept.pairs, *fresh),
        digests=tuple(sorted({*kept.digests, *came.digests})),
        networks=tuple(sorted({*kept.networks, *came.networks})),
    )


def started_ms(row: EnvelopeRow) -> int:
    """When a record says that it began, by the clock of whoever signed it (Unix ms)."""
    record = read_payload(row.payload)
    if not isinstance(record, Receipt | Started | Measurement):
        raise TypeError(f"a {record.type} is no record of a session")
    return record.started_ms

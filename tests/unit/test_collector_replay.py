# SPDX-License-Identifier: EUPL-1.2
"""The past of a cell: taking the newest pairs back gives what stood before them, to the last integer."""

import random

from hypothesis import given
from hypothesis import strategies as st

from analysis.match import Session, pairs_of
from analysis.pairs import OrderHistory, local_slot, score
from collector.rehearsal import Rehearsal, Truth, signer
from collector.replay import HOUR_MS, Folded, Span, by_hour, hour_of, unfold
from collector.store.base import PairRow
from probe.wire.envelope import read_payload

START = 1_790_000_000_000 - 1_790_000_000_000 % HOUR_MS


def rows_of(seed, sessions):
    """Scored pairs of a few probes over some hours: lost, failed and placebo ones too, by start."""
    rng = random.Random(seed)
    rehearsal, probes = Rehearsal(rng=rng, reflector=signer(rng)), [signer(rng) for _ in range(3)]
    histories, found = {}, []
    for number in range(sessions):
        who = rng.randrange(3)
        told = rehearsal.session(
            probes[who],
            started_ms=START + rng.randrange(3) * 24 * HOUR_MS + rng.randrange(5 * HOUR_MS),
            pairs=3,
            placebo=1,
            unfinished=number % 2,
            truth=Truth(slowdown=0.3, noise=0.3, blocks=number % 5 == 0),
        )
        known = Session(receipt=read_payload(told.receipt.payload), measurement=read_payload(told.measurement.payload))
        for pair in pairs_of(known):
            history = histories.setdefault((who, pair.kind), OrderHistory())
            found.append(PairRow(reflector="r", cell=1, pair=pair, scored=score(history, pair), ends=()))
            history.add(pair)
    return sorted(found, key=lambda row: row.pair.order)


SINCE = (None, local_slot(START)[0] + 1)
"""All days, and those after the first one, as an episode after a closed case has them."""


def nothing():
    return Folded({since: Span(since) for since in SINCE})


def folded(rows):
    whole = nothing()
    for _ in by_hour(whole, rows):
        pass
    return whole


def plain(of):
    return {
        since: ({probe: state.to_dict() for probe, state in sorted(span.states.items())}, span.extras.to_dict())
        for since, span in of.spans.items()
    }


@given(st.integers(0, 10**6), st.integers(1, 12), st.data())
def test_what_is_unfolded_stood_before(seed, sessions, data):
    rows = rows_of(seed, sessions)
    whole = folded(rows)
    end = plain(whole)
    cut = data.draw(st.integers(0, len(rows)))
    before = unfold(whole.spans.values(), rows[cut:])
    assert plain(before) == plain(folded(rows[:cut]))
    assert before.changed == {row.pair.probe for row in rows[cut:] if row.pair.kind == "test"}
    # What it was taken from is as it was, also after the newest pairs were counted again.
    for _ in by_hour(before, rows[cut:]):
        pass
    assert plain(before) == plain(whole) == end


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(0, 60))
def test_hours_from_the_middle_on_are_those_from_the_beginning(seed, sessions, since):
    rows = rows_of(seed, sessions)
    first = START + since * HOUR_MS

    def hours(begin, of):
        return {at: plain(one) for at, one in by_hour(begin, of)}

    whole = folded(rows)
    newest = [row for row in rows if row.pair.started_ms >= first]
    from_the_middle = hours(unfold(whole.spans.values(), newest), newest)
    from_the_beginning = hours(nothing(), rows)
    assert from_the_middle == {at: told for at, told in from_the_beginning.items() if at >= first}
    assert all(at == hour_of(at) for at in from_the_middle)


def test_a_span_holds_the_pairs_of_its_days_alone():
    rows = rows_of(3, 12)
    whole, later = (folded(rows).spans[since] for since in SINCE)
    known = [row for row in rows if row.pair.kind == "test"]
    after = [row for row in known if row.scored.day >= SINCE[1]]
    assert 0 < len(after) < len(known)
    for span, held in ((whole, known), (later, after)):
        assert sum(sum(state.counts.pairs.values()) for state in span.states.values()) == len(held)


def test_what_was_never_touched_is_shared_and_not_copied():
    rows = rows_of(1, 9)
    whole = folded(rows)
    before = unfold(whole.spans.values(), rows[-1:])
    for since, span in whole.spans.items():
        untouched = set(span.states) - before.changed
        assert untouched
        assert all(before.spans[since].states[probe] is span.states[probe] for probe in untouched)

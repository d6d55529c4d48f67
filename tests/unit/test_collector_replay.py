# SPDX-License-Identifier: EUPL-1.2
"""The past of a cell: taking the newest pairs back gives what stood before them, to the last integer."""

import random

from hypothesis import given
from hypothesis import strategies as st

from analysis.match import Session, pairs_of
from analysis.pairs import OrderHistory, score
from analysis.probes import ProbeState
from collector.rehearsal import Rehearsal, Truth, signer
from collector.replay import HOUR_MS, Folded, by_hour, hour_of, unfold
from collector.store.base import PairRow
from collector.views import Extras
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
            started_ms=START + rng.randrange(5 * HOUR_MS),
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


def folded(rows):
    whole = Folded()
    for _ in by_hour(whole, rows):
        pass
    return whole


def plain(states, extras):
    return {probe: state.to_dict() for probe, state in sorted(states.items())}, extras.to_dict()


@given(st.integers(0, 10**6), st.integers(1, 12), st.data())
def test_what_is_unfolded_stood_before(seed, sessions, data):
    rows = rows_of(seed, sessions)
    whole = folded(rows)
    end = plain(whole.states, whole.extras)
    cut = data.draw(st.integers(0, len(rows)))
    before = unfold(whole.states, whole.extras, rows[cut:])
    expected = folded(rows[:cut])
    assert plain(before.states, before.extras) == plain(expected.states, expected.extras)
    assert before.changed == {row.pair.probe for row in rows[cut:] if row.pair.kind == "test"}
    # What it was taken from is as it was, also after the newest pairs were counted again.
    for _ in by_hour(before, rows[cut:]):
        pass
    assert plain(before.states, before.extras) == plain(whole.states, whole.extras) == end


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(0, 6))
def test_hours_from_the_middle_on_are_those_from_the_beginning(seed, sessions, since):
    rows = rows_of(seed, sessions)
    first = START + since * HOUR_MS

    def hours(begin, of):
        return {at: plain(one.states, one.extras) for at, one in by_hour(begin, of)}

    whole = folded(rows)
    newest = [row for row in rows if row.pair.started_ms >= first]
    from_the_middle = hours(unfold(whole.states, whole.extras, newest), newest)
    from_the_beginning = hours(Folded({}, Extras()), rows)
    assert from_the_middle == {at: told for at, told in from_the_beginning.items() if at >= first}
    assert all(at == hour_of(at) for at in from_the_middle)


def test_what_was_never_touched_is_shared_and_not_copied():
    rows = rows_of(1, 9)
    whole = folded(rows)
    newest = rows[-1:]
    before = unfold(whole.states, whole.extras, newest)
    untouched = set(whole.states) - before.changed
    assert untouched
    assert all(before.states[probe] is whole.states[probe] for probe in untouched)
    assert all(isinstance(state, ProbeState) for state in before.states.values())

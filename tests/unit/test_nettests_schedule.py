# SPDX-License-Identifier: EUPL-1.2
"""Order of the pairs, names, cost: everything the differential nettest fixes before a coin."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from probe.nettests.base import OptionError, Options
from probe.nettests.differential import Differential, Slot, planned, schedule
from probe.nettests.registry import NETTESTS, get
from probe.profiles.dress import dress
from probe.profiles.model import ProfileError, load, load_neutral
from probe.protocol.pacing import pair_bytes

APPS = ("youtube", "instagram", "signal")


def without_placebo(slots: list[Slot]) -> list[Slot]:
    return [slot for slot in slots if slot.kind == "test"]


def test_apps_rotate_pair_by_pair() -> None:
    slots = without_placebo(schedule(APPS, Options(pairs=4), Random(1)))
    assert [slot.app for slot in slots] == list(APPS) * 4
    both = without_placebo(schedule(APPS, Options(pairs=2, direction="both"), Random(1)))
    assert [(slot.direction, slot.app) for slot in both[:6]] == [(d, a) for d in ("down", "up") for a in APPS]
    assert len(both) == 12


@pytest.mark.parametrize("pairs", [1, 3, 10, 20])
def test_one_extra_pair_in_ten_is_a_placebo_wherever_it_falls(pairs: int) -> None:
    counts, places = [], Counter[int]()
    for seed in range(2000):
        slots = schedule(APPS, Options(pairs=pairs), Random(seed))
        assert len(without_placebo(slots)) == 3 * pairs
        placebo = [i for i, slot in enumerate(slots) if slot.kind == "placebo"]
        counts.append(len(placebo))
        places.update(placebo)
    expected = 3 * pairs / 10
    assert sum(counts) / len(counts) == pytest.approx(expected, rel=0.12)
    assert max(counts) - min(counts) <= 1
    assert len(places) >= min(10, 3 * pairs)  # no place is certain to be free of one


def test_the_names_of_a_session() -> None:
    profile = load("youtube")
    arms = dress(profile, load_neutral(), Random(2), Random(2).randbytes)
    app, control, placebo = arms.app.name, arms.control.name, arms.placebo.name
    assert app in profile.names
    assert len({app, control, placebo}) == 3
    assert len(app) == len(control) == len(placebo)

    test = planned(Slot("test", "youtube", "down"), profile, arms, pace=5.0, segment_s=1.0)
    assert (test.app_name, test.neutral_name, test.profile) == (app, control, profile.reference)
    assert (test.carrier, test.app_wire, test.neutral_wire) == ("tls", None, None)
    void = planned(Slot("placebo", "youtube", "down"), profile, arms, pace=5.0, segment_s=1.0)
    assert (void.app_name, void.neutral_name) == (placebo, control)


def test_sessions_draw_other_names() -> None:
    profile, pool = load("youtube"), load_neutral()
    drawn = [dress(profile, pool, Random(seed), Random(seed).randbytes) for seed in range(60)]
    assert {arms.app.name for arms in drawn} == set(profile.names)
    assert len({arms.control.name for arms in drawn}) > 40


def test_the_cost_is_told_before_and_is_an_upper_bound() -> None:
    nettest = Differential()
    for seed in range(200):
        options = Options(pairs=7, pace_mbps=5.0, segment_s=2.0)
        slots = schedule(APPS, options, Random(seed))
        cost = nettest.cost(options)
        assert cost.pairs >= len(slots)
        assert cost.bytes is not None
        assert cost.bytes >= len(slots) * pair_bytes(5.0, 2.0)
        assert cost.seconds >= len(slots) * 4.0
    calibrated = nettest.cost(Options(pairs=7, segment_s=2.0))
    assert calibrated.bytes is not None
    assert calibrated.bytes > nettest.cost(Options(pairs=7, segment_s=2.0, pace_mbps=12.0)).bytes  # type: ignore[operator]
    assert nettest.cost(Options(pace_mbps=0)).bytes is None


@pytest.mark.parametrize(
    "options",
    [
        Options(pairs=0),
        Options(pairs=513),
        Options(pairs=200),
        Options(segment_s=0.1),
        Options(segment_s=61.0),
        Options(segment_s=float("nan")),
        Options(pace_mbps=-1.0),
        Options(pace_mbps=0.05),
        Options(pace_mbps=float("nan")),
        Options(pace_mbps=1e9),
    ],
)
def test_options_that_cannot_be_run_are_refused_in_one_sentence(options: Options) -> None:
    with pytest.raises(OptionError) as caught:
        Differential().cost(options)
    assert "\n" not in str(caught.value)


def test_unknown_apps_and_nettests_are_refused_and_doubles_counted_once() -> None:
    with pytest.raises(ProfileError, match="yuotube"):
        Differential().cost(Options(apps=("yuotube",)))
    with pytest.raises(OptionError, match="known are differential"):
        get("diferential")
    once = Differential().cost(Options(apps=("youtube",), pairs=10))
    assert Differential().cost(Options(apps=("youtube", "youtube"), pairs=10)) == once


def test_the_registry_names_each_nettest_as_it_calls_itself() -> None:
    assert all(name == nettest.id for name, nettest in NETTESTS.items())

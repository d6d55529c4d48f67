# SPDX-License-Identifier: EUPL-1.2
"""Points: exactly the names of the schema, valid for every database, one per cell, effect and hour."""

from __future__ import annotations

import dataclasses
import math
import string
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector import series
from collector.model import CellKey, CellView, EvidencePoint, Interval, State

HOUR = 1_790_000_000_000 - 1_790_000_000_000 % series.HOUR_MS


def a_cell(**changes: object) -> CellView:
    key = CellKey(
        operator="Metro, Net = 1", asn=64500, app="youtube", direction="down", access="fixed", effect="slowing"
    )
    cell = CellView(
        key=key,
        country="NL",
        state="corroborated",
        e_value=1e6,
        log10_e=6.0,
        slowdown=Interval(estimate=0.5, low=0.4, high=0.6),
        app_mbps=Interval(estimate=2.0, low=1.9, high=2.1),
        neutral_mbps=Interval(estimate=4, low=3.9, high=4.1),
        pairs=36,
        lost_pairs=1,
        placebo_pairs=4,
        failed_app=0,
        failed_neutral=0,
        probes=3,
        slowed=3,
        clear=0,
        undecided=0,
        detectable_rate_mbps=4.2,
        detectable_burst_kb=500.0,
        reasons=(),
        case="0123456789",
        updated_ms=HOUR + 1234,
    )
    return dataclasses.replace(cell, **changes)  # type: ignore[arg-type]


def an_hour(**changes: object) -> EvidencePoint:
    point = EvidencePoint(
        bucket_ms=HOUR, pairs=36, log10_e=6.0, state="corroborated", slowdown=Interval(estimate=0.5, low=0.4, high=0.6)
    )
    return dataclasses.replace(point, **changes)  # type: ignore[arg-type]


def test_line_is_written_as_the_protocol_says() -> None:
    assert series.cell_point(a_cell(), an_hour()).line() == (
        r"evenlane_cell,access=fixed,app=youtube,asn=64500,country=NL,direction=down,effect=slowing,"
        r"operator=Metro\,\ Net\ \=\ 1 "
        "state=5i,log10_e=6.0,slowdown=0.5,slowdown_low=0.4,slowdown_high=0.6,app_mbps=2.0,neutral_mbps=4.0,"
        "pairs=36i,lost=1i,placebo=4i,failed_app=0i,failed_neutral=0i,probes=3i,slowed=3i,clear=0i,undecided=0i,"
        "altered_app=0i,altered_neutral=0i "
        f"{HOUR}"
    )


def test_time_is_the_start_of_the_hour_so_that_judging_again_rewrites_the_point() -> None:
    first = series.cell_point(a_cell(), an_hour(bucket_ms=HOUR + 1))
    again = series.cell_point(a_cell(updated_ms=HOUR + series.HOUR_MS * 9), an_hour(log10_e=2.0, state="indication"))
    assert first.time_ms == again.time_ms == HOUR
    assert first.tags == again.tags
    assert first.fields != again.fields


def test_no_tag_leads_to_a_probe() -> None:
    assert set(series.CELL_TAGS) == {"operator", "asn", "country", "app", "direction", "access", "effect"}


def test_every_state_has_a_code_of_its_own_and_a_look() -> None:
    assert set(series.STATE_CODES) == set(series.STATE_LOOKS) == set(get_args(State))
    assert len(set(series.STATE_CODES.values())) == len(series.STATE_CODES)
    assert len({look.colour for look in series.STATE_LOOKS.values()}) == len(series.STATE_LOOKS)


def test_what_is_not_known_is_absent_or_unknown_never_zero() -> None:
    cell = a_cell(country=None, app_mbps=None, neutral_mbps=None)
    cell = dataclasses.replace(cell, key=dataclasses.replace(cell.key, asn=None))
    point = series.cell_point(cell, an_hour(slowdown=None))
    assert dict(point.tags)["asn"] == dict(point.tags)["country"] == "unknown"
    assert not {"slowdown", "slowdown_low", "slowdown_high", "app_mbps", "neutral_mbps"} & set(dict(point.fields))
    assert series.problems(point) == ()


@pytest.mark.parametrize("log10_e", [-math.inf, -1e9, 1e9, math.inf])
def test_endless_evidence_is_written_within_limits(log10_e: float) -> None:
    point = series.cell_point(a_cell(), an_hour(log10_e=log10_e))
    assert abs(float(dict(point.fields)["log10_e"])) == series.LOG10_E_LIMIT
    assert series.problems(point) == ()


def test_an_interval_without_an_end_is_left_out() -> None:
    point = series.cell_point(a_cell(), an_hour(slowdown=Interval(estimate=0.1, low=-math.inf, high=0.4)))
    assert "slowdown" not in dict(point.fields)


def test_cells_below_three_probes_are_not_publishable() -> None:
    assert series.publishable(a_cell(probes=3))
    assert not series.publishable(a_cell(probes=2))


def broken(**changes: object) -> series.Point:
    return dataclasses.replace(series.cell_point(a_cell(), an_hour()), **changes)  # type: ignore[arg-type]


GOOD = series.cell_point(a_cell(), an_hour())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"measurement": "evenlane_sell"}, "measurement"),
        ({"tags": GOOD.tags[1:]}, "tags"),
        ({"tags": (*GOOD.tags[:-1], ("probe", "p1"))}, "tags"),
        ({"tags": (*GOOD.tags[:-1], ("operator", ""))}, "operator is empty"),
        ({"tags": (*GOOD.tags[:-1], ("operator", "a\nb"))}, "operator is empty"),
        ({"tags": (*GOOD.tags[:-1], ("operator", "a\\"))}, "operator is empty"),
        ({"fields": ()}, "no field"),
        ({"fields": (("slowdwn", 0.5),)}, "'slowdwn' is not in"),
        ({"fields": (("state", 5.0),)}, "float instead of int"),
        ({"fields": (("pairs", True),)}, "bool instead of int"),
        ({"fields": (("slowdown", 1),)}, "int instead of float"),
        ({"fields": (("slowdown", math.nan),)}, "finite"),
        ({"fields": (("pairs", 2**63),)}, "finite"),
        ({"fields": (("pairs", 1), ("pairs", 2))}, "twice"),
        ({"fields": (("state", 77),)}, "no meaning"),
        ({"time_ms": HOUR + 1}, "start of an hour"),
        ({"time_ms": 0}, "start of an hour"),
    ],
)
def test_a_point_that_a_database_would_misread_is_refused(changes: dict[str, object], complaint: str) -> None:
    assert series.problems(GOOD) == ()
    found = series.problems(broken(**changes))
    assert len(found) == 1
    assert complaint in found[0]


def test_a_text_is_refused_where_a_number_belongs() -> None:
    assert series.problems(broken(fields=(("slowdown", "0.5"),)))


@given(st.text(max_size=200), st.text(alphabet=string.printable + "\\,= \n\t", max_size=40))
def test_any_name_of_an_operator_gives_one_valid_line(anything: str, nasty: str) -> None:
    for name in (anything, nasty):
        cell = a_cell()
        point = series.cell_point(
            dataclasses.replace(cell, key=dataclasses.replace(cell.key, operator=name)), an_hour()
        )
        assert series.problems(point) == ()
        assert "\n" not in point.line()
        assert "\\" not in dict(point.tags)["operator"]

# SPDX-License-Identifier: EUPL-1.2
"""The three pictures: well-formed, true to the figures, told in words and as a table, safe with any name."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from collector.model import CellView, Interval
from collector.pages import palette, svg
from collector.pages.curve import Threshold, evidence
from collector.pages.example import altered, blocked, by_hour, cell, pairs, weighed
from collector.pages.figure import Figure
from collector.pages.language import LANGUAGES, words
from collector.pages.pictures import MOST_ROWS, MOST_SLOPES, lanes, slopes
from collector.pages.recompute import curve, judged
from collector.pages.render import static
from collector.series import STATE_LOOKS

SVG = "{http://www.w3.org/2000/svg}"
EN = words("en")


def bar(log10_e: float = 4.6) -> Threshold:
    return Threshold(log10_e=log10_e, label=EN("chart.threshold", t=EN.evidence(log10_e)), of_case=True)


def parsed(figure: Figure | None) -> ET.Element:
    assert figure is not None
    return ET.fromstring(str(figure.svg))  # noqa: S314 - our own output


def width(element: ET.Element) -> float:
    return float(element.attrib["width"].rstrip("%"))


def bars(figure: Figure | None) -> dict[str, float]:
    found = parsed(figure).iter(f"{SVG}rect")
    return {bar.attrib["class"].split()[1]: width(bar) for bar in found if bar.attrib["class"].startswith("lane ")}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_picture_has_title_description_and_a_table_that_fits(language: str) -> None:
    w, of = words(language), cell("heron", "youtube", "corroborated")
    for figure in (
        lanes(w, of),
        lanes(w, blocked("heron", "signal")),
        slopes(w, pairs(of), "youtube", "slowing"),
        evidence(w, pairs(of), "slowing", (), bar()),
        evidence(w, (), "slowing", by_hour(of, 24), bar()),
    ):
        root = parsed(figure)
        assert figure is not None
        assert root.attrib["role"] == "img"
        title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
        assert title is not None
        assert description is not None
        assert root.attrib["aria-labelledby"] == title.attrib["id"]
        assert title.text == figure.title
        assert description.text == figure.note
        assert figure.rows
        assert {len(row) for row in figure.rows} == {len(figure.head)}
        assert "{" not in str(figure.svg) + "".join(figure.head)


def test_lanes_are_on_one_scale() -> None:
    of = cell("heron", "youtube", "corroborated")
    found = bars(lanes(EN, of))
    assert of.app_mbps is not None
    assert of.neutral_mbps is not None
    assert found["lane-app"] / found["lane-neutral"] == pytest.approx(
        of.app_mbps.estimate / of.neutral_mbps.estimate, rel=0.01
    )


def test_even_treatment_gives_even_lanes() -> None:
    even = Interval(estimate=10, low=9, high=11)
    found = bars(lanes(EN, cell("heron", "youtube", "no_indication", app_mbps=even, neutral_mbps=even)))
    assert found["lane-app"] == found["lane-neutral"]


def test_lanes_of_blocking_show_the_share_that_worked() -> None:
    found = bars(lanes(EN, blocked("heron", "signal")))
    assert found["lane-app"] == pytest.approx(98 * 5 / 48, abs=0.01)
    assert found["lane-neutral"] == pytest.approx(98 * 46 / 48, abs=0.01)


@pytest.mark.parametrize(
    "of",
    [
        cell("h", "x", "insufficient", probes=2),
        cell("h", "x", "insufficient", app_mbps=None),
        blocked("h", "x", pairs=0, failed_app=0, failed_neutral=0),
    ],
)
def test_without_figures_to_show_there_are_no_lanes(of: CellView) -> None:
    assert lanes(EN, of) is None


def test_void_pairs_failed_in_both_lanes() -> None:
    """None of them worked, whichever name it had."""
    of = blocked("heron", "signal")
    assert of.void_pairs == 1
    assert of.neutral_first is not None
    plain = replace(of, neutral_first=replace(of.neutral_first, void=0))
    for lane in ("lane-app", "lane-neutral"):
        assert bars(lanes(EN, plain))[lane] - bars(lanes(EN, of))[lane] == pytest.approx(98 / 48, abs=0.01)


def test_what_arrived_altered_has_a_diamond_and_nothing_else_has() -> None:
    of = altered("heron", "steam")
    made = pairs(of)
    changed = sum(pair.app_altered for pair in made)
    figure = slopes(EN, made, "steam", "tampering")
    assert 30 < str(figure.svg).count('class="altered"') == changed
    assert f"In {changed} of 48 pairs only" in figure.title
    assert "diamond" in figure.note
    assert "Level lines" not in figure.note
    assert 'class="altered"' not in str(slopes(EN, made, "steam", "slowing").svg)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Signal", "Signal"),
        ("Signal (calls and messages)", "Signal"),
        ("YouTube (video) – QUIC", "YouTube (video) – QUIC"),
        ("A name of very many letters (and more)", "A name of very many l…"),
        ("(all of it stands in these brackets)", "(all of it stands in…"),
    ],
)
def test_a_label_goes_without_its_brackets_before_it_is_cut(name: str, label: str) -> None:
    assert svg.shorten(name) == label


def test_slopes_draw_one_line_a_pair_and_a_cross_a_failure() -> None:
    of = cell("heron", "youtube", "corroborated")
    root = parsed(slopes(EN, pairs(of), "youtube", "slowing"))
    lines = [e for e in root.iter(f"{SVG}line") if e.attrib["class"] == "pair"]
    assert len(lines) == 48
    assert all(float(line.attrib["y2"]) > float(line.attrib["y1"]) for line in lines), "a slower app lies lower"
    stopped = pairs(blocked("heron", "signal"))
    crosses = list(parsed(slopes(EN, stopped, "signal", "blocking")).iter(f"{SVG}path"))
    assert len(crosses) == sum(p.app_mbps is None and not p.lost for p in stopped)


def test_slopes_say_what_was_found_and_leave_lost_and_placebo_pairs_out() -> None:
    of = cell("heron", "youtube", "corroborated")
    assert slopes(EN, pairs(of), "youtube", "slowing").title == "In 48 of 48 pairs YouTube (video) was slower"
    assert slopes(EN, pairs(of), "youtube", "prioritising").title == "In 0 of 48 pairs YouTube (video) was faster"
    assert slopes(EN, (), "youtube", "slowing").title == EN("chart.pairs_finding_none")
    rows = slopes(EN, pairs(of), "youtube", "slowing").rows
    assert sum("two neutral names" in row[0] for row in rows) == 6
    assert sum(row[3] == "lost" for row in rows) == 2


def test_many_pairs_are_thinned_and_it_says_so() -> None:
    of = cell("heron", "youtube", "corroborated", pairs=2000, lost_pairs=0)
    figure = slopes(EN, pairs(of), "youtube", "slowing")
    assert len([e for e in parsed(figure).iter(f"{SVG}line") if e.attrib["class"] == "pair dense"]) == MOST_SLOPES
    assert "300 of" in figure.note
    assert len(figure.rows) == MOST_ROWS
    assert "100" in figure.more
    drawn = evidence(EN, pairs(of), "slowing", (), bar())
    assert drawn is not None
    assert len(drawn.rows) == MOST_ROWS
    assert drawn.more
    assert len(str(drawn.svg)) < 40_000


def test_evidence_is_drawn_without_the_strongest_network_and_says_since_when_it_has_passed() -> None:
    of = cell("heron", "youtube", "corroborated")
    made = pairs(of)
    points = curve(made, "slowing")
    passed, short = evidence(EN, made, "slowing", (), bar()), evidence(EN, made, "slowing", (), bar(9.5))
    assert passed is not None
    assert short is not None
    since = next(p.sequence for p in points if p.decides >= 4.6)
    assert since > next(p.sequence for p in points if p.whole >= 4.6), "leaving a network out costs pairs"
    assert f"above the threshold since pair {since}" in passed.title
    assert short.title.endswith("the threshold is 10⁹")
    strengths = (EN.evidence(points[-1].decides), EN.evidence(points[-1].whole))
    assert passed.rows[-1] == (EN.whole(points[-1].sequence), *strengths)
    assert strengths[0] in short.title
    assert strengths[1] not in passed.title
    thin, thick = list(parsed(passed).iter(f"{SVG}polyline"))
    assert (thin.attrib["class"], thick.attrib["class"]) == ("evidence whole", "evidence")
    ends = [float(line.attrib["points"].split(",")[-1]) for line in (thin, thick)]
    assert ends[0] < ends[1], "the line of all networks ends higher: y counts downwards"
    assert evidence(EN, (), "slowing", (), bar()) is None
    without = evidence(EN, made, "slowing", (), None)
    assert without is not None
    assert "threshold" not in without.note + str(without.svg)


def test_evidence_that_fell_below_its_threshold_says_so() -> None:
    of = cell("heron", "youtube", "replicated")
    fell = evidence(EN, pairs(of, until=24), "slowing", (), bar(1.3))
    assert fell is not None
    assert "was above the threshold of 19 and has fallen to" in fell.title


def test_evidence_goes_over_time_where_all_hours_tell_what_is_decided_on() -> None:
    of = weighed(cell("heron", "youtube", "corroborated"), pairs(cell("heron", "youtube", "corroborated")))
    hours = by_hour(of, 24)
    over_time = evidence(EN, pairs(of), "slowing", hours, bar())
    assert over_time is not None
    assert "since 12 December" in re.sub("\u00a0", " ", over_time.title)
    # Hours that an older version wrote know only the whole; then the pairs are drawn, which tell both.
    older = (replace(hours[0], log10_e_without_one=None), *hours[1:])
    over_pairs = evidence(EN, pairs(of), "slowing", older, bar())
    assert over_pairs is not None
    assert "since pair" in over_pairs.title


@pytest.mark.parametrize("log10_e", [-400.0, -3.0, 0.0, 1e4, float("-inf")])
def test_extreme_evidence_stays_inside_its_picture(log10_e: float) -> None:
    of = cell("heron", "youtube", "corroborated")
    hours = tuple(replace(h, log10_e=log10_e, log10_e_without_one=log10_e) for h in by_hour(of, 24))
    root = parsed(evidence(EN, (), "slowing", hours, bar()))
    lines = [e.attrib["points"] for e in root.iter(f"{SVG}polyline")]
    assert len(lines) == 2
    for line in lines:
        heights = [float(point.split(",")[1]) for point in line.split()]
        assert min(heights) >= 0
        assert max(heights) <= 194


def test_the_strength_shown_is_that_of_the_pairs_shown() -> None:
    of = cell("heron", "youtube", "corroborated")
    figure = evidence(EN, pairs(of), "slowing", (), bar())
    assert figure is not None
    found = judged(pairs(of), "slowing")
    assert figure.rows[-1][2] == EN.evidence(found.whole / 2.302585092994046)


def test_any_name_is_escaped() -> None:
    nasty = '"><script>alert(1)</script>&'
    figure = slopes(EN, pairs(cell("h", nasty, "corroborated")), nasty, "slowing")
    assert "<script" not in str(figure.svg)
    parsed(figure)


@pytest.mark.parametrize("high", [0.004, 0.9, 1.0, 9.7, 10.0, 123.0, 1e6])
def test_ticks_are_round_and_reach_the_top(high: float) -> None:
    marks = svg.ticks(high)
    assert marks[0] == 0
    assert marks[-1] >= high * (1 - 1e-9)
    assert 3 <= len(marks) <= 7
    assert f"{marks[1]:e}"[0] in "125"


def test_no_picture_needs_a_style_that_the_policy_refuses() -> None:
    of = cell("heron", "youtube", "corroborated")
    for figure in (
        lanes(EN, of),
        slopes(EN, pairs(of), "youtube", "slowing"),
        evidence(EN, pairs(of), "slowing", (), bar()),
    ):
        assert figure is not None
        assert " style=" not in str(figure.svg)


STYLE = static("evenlane.css").decode()


def test_the_style_sheet_has_the_colours_of_the_palette() -> None:
    root, dark = STYLE.split("@media (prefers-color-scheme: dark)")[0], STYLE.split("(prefers-color-scheme: dark)")[1]
    printed = STYLE.split("@media print")[1].split("html {")[0]
    for colours, text in ((palette.LIGHT, root), (palette.DARK, dark.split("* {")[0]), (palette.PRINT, printed)):
        assert dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", text)) == colours
    assert f"--on-state: {palette.INK}" in root
    for state, colour in palette.STATE_COLOURS.items():
        rule = re.search(rf"\.chip\.{state} \{{ background: (#[0-9a-f]{{6}})", STYLE)
        assert rule is not None
        assert rule[1] == colour
    ended = re.search(r"\.chip\.ended \{ background: (#\w+)", STYLE)
    assert ended is not None
    assert ended[1] == palette.half(palette.STATE_COLOURS["corroborated"])


THEMES = {"light": palette.LIGHT, "dark": palette.DARK, "print": palette.PRINT}


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES.keys())
def test_text_and_pictures_stand_out(theme: dict[str, str]) -> None:
    for name in palette.TEXTS:
        for ground in palette.GROUNDS:
            assert palette.contrast(theme[name], theme[ground]) >= 4.5, (name, ground)
    for name in palette.DRAWN:
        assert palette.contrast(theme[name], theme["ground"]) >= 3, name
    for name in ("app", "neutral", "ink"):
        assert palette.contrast(theme[name], theme["road"]) >= 3, name
    for colour in (*palette.STATE_COLOURS.values(), palette.half(palette.STATE_COLOURS["corroborated"])):
        assert palette.contrast(palette.INK, colour) >= 4.5


def test_states_can_be_told_apart_without_colour() -> None:
    looks = {(look.sign, EN(f"state.{state}")) for state, look in STATE_LOOKS.items()}
    assert len(looks) == len(STATE_LOOKS)
    assert ".chip.insufficient { background: #999999 repeating-linear-gradient" in STYLE, "hatched"
    assert ".chip.corroborated .sign { border: 2px solid" in STYLE, "in a frame"
    assert ".chip.not_testable { background: #ffffff; border-color" in STYLE, "outlined"


def test_contrast_is_that_of_the_guidelines() -> None:
    assert palette.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert palette.contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)

# SPDX-License-Identifier: EUPL-1.2
"""The sentence that a newspaper may print, and the sizes in it."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from typing import get_args

import pytest

from collector.model import CellView, Interval
from collector.pages.account import sure
from collector.pages.apps import app_name, titles
from collector.pages.example import NOW_MS, blocked, by_hour, case, cell, event, queued
from collector.pages.language import LANGUAGES, Language, words
from collector.pages.sentence import sentence, share_failed, short_size, size, spread, status_note
from probe.wire.records import Effect


def plain(text: str) -> str:
    return re.sub("[\u202f\u00a0]", " ", text)


SLOW = {
    "en": "On the path measured at Heron, YouTube (video) is slower by about 62 % (between 55 and 69 %), for 75 % of "
    "the probes, since 1 December 2026.",
    "nl": "Op het gemeten traject bij Heron is YouTube (video) ongeveer 62 % trager (tussen 55 en 69 %), bij 75 % van "
    "de meetpunten, sinds 1 december 2026.",
    "fr": "Sur le trajet mesuré chez Heron, YouTube (vidéo) est ralenti d’environ 62 % (entre 55 et 69 %), pour 75 % "
    "des sondes, depuis le 1er décembre 2026.",
    "de": "Auf der gemessenen Strecke bei Heron ist YouTube (Video) um etwa 62 % langsamer (zwischen 55 und 69 %), bei "
    "75 % der Messpunkte, seit dem 1. Dezember 2026.",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_slowing_is_said_exactly_as_agreed(language: Language) -> None:
    found = sentence(words(language), case("c", cell("heron", "youtube", "corroborated")), "Heron")
    assert plain(found) == SLOW[language]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("effect", get_args(Effect))
def test_every_sentence_has_size_interval_spread_and_date(language: Language, effect: Effect) -> None:
    of = blocked("heron", "signal") if effect == "blocking" else cell("heron", "signal", "corroborated", effect)
    text = plain(sentence(words(language), case("c", of), "Heron"))
    assert "Heron" in text
    assert "Signal" in text
    assert "75 %" in text
    assert "2026" in text
    assert text.endswith(".")
    if effect != "tampering":
        found = size(of)
        assert found is not None
        assert f"{round(found.estimate * 100)} %" in text
        assert plain(words(language).percents(found.low, found.high)[1]) in text


@pytest.mark.parametrize("language", LANGUAGES)
def test_hotspots_are_worded_as_hotspots(language: Language) -> None:
    of = cell("heron", "youtube", "replicated")
    of = replace(of, key=replace(of.key, access="hotspot"))
    assert sentence(words(language), case("c", of), "Heron").startswith(
        words(language)("sentence.hotspot", operator="Heron")
    )


def test_the_size_of_preference_is_counted_in_its_own_direction() -> None:
    found = size(cell("heron", "netflix", "corroborated", "prioritising"))
    assert found is not None
    assert (found.estimate, found.low, found.high) == (0.45, 0.3, 0.61)


def test_blocking_has_the_share_that_was_judged() -> None:
    of = blocked("heron", "signal")
    found = size(of)
    assert of.share is not None
    assert (found and (found.estimate, found.low, found.high)) == (of.share.estimate, of.share.low, of.share.high)
    # What an older version wrote has the counts alone: the app's failures where the other name did not fail alone.
    older = size(replace(of, share=None))
    assert older is not None
    assert older.estimate == pytest.approx(42 / 47)


@pytest.mark.parametrize("probes", [0, 1, 2])
def test_below_three_probes_there_is_no_figure(probes: int) -> None:
    for of in (cell("heron", "youtube", "indication", probes=probes), blocked("heron", "signal", probes=probes)):
        assert size(of) is None
        assert short_size(words("en"), of) is None


def test_an_interval_without_an_end_is_no_size() -> None:
    assert size(cell("h", "x", "corroborated", slowdown=Interval(estimate=0.5, low=-math.inf, high=0.9))) is None
    assert size(cell("h", "x", "corroborated", slowdown=None)) is None


def test_share_failed_is_exact_where_it_can_be_checked() -> None:
    # All of n fail: the lower end solves p^n = 1/(20(n+1)).
    found = share_failed(12, 12)
    assert found is not None
    assert found.low == pytest.approx((1 / (20 * 13)) ** (1 / 12), abs=1e-9)
    assert found.high == 1.0
    mirrored = share_failed(0, 12)
    assert mirrored is not None
    assert mirrored.high == pytest.approx(1 - found.low)
    assert share_failed(0, 0) is None
    assert share_failed(3, 2) is None


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_share_failed_covers_at_every_moment(share: float) -> None:
    """400 streams of 60 pairs, looked at after each: at most 5 % may ever leave the truth outside."""
    rng, ends, missed = random.Random(7), {}, 0
    for _ in range(400):
        failed, out = 0, False
        for of in range(1, 61):
            failed += rng.random() < share
            if (failed, of) not in ends:
                ends[failed, of] = share_failed(failed, of)
            found = ends[failed, of]
            assert found is not None
            out = out or not found.low <= share <= found.high
        missed += out
    assert missed <= 400 * 0.05


def test_spread_without_probes_is_nought() -> None:
    assert spread(cell("h", "x", "insufficient", probes=0, slowed=0)) == 0


def test_what_follows_the_sentence_tells_how_the_case_stands() -> None:
    w, of = words("en"), cell("heron", "youtube", "corroborated")
    open_ = case("c", of)
    assert status_note(w, open_) is None
    ended = replace(open_, status="ended", ended_ms=NOW_MS)
    assert "ended on 13" in plain(status_note(w, ended) or "")
    fallen = replace(open_, supported=False, history=(*open_.history, event("no_longer_supported", 2, 2.0)))
    assert "no longer supports this case as of 11 December" in plain(status_note(w, fallen) or "")
    for status in ("withdrawn", "corrected"):
        assert status in (status_note(w, replace(open_, status=status, history=())) or "")


PAST = {
    "en": "YouTube (video) was slower by about 62 % (between 55 and 69 %), from 1 December 2026 to 13 December 2026.",
    "nl": "was YouTube (video) ongeveer 62 % trager",
    "fr": "YouTube (vidéo) a été ralenti d’environ 62 %",
    "de": "war YouTube (Video) um etwa 62 % langsamer",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_ended_case_is_told_as_past_with_the_size_it_had(language: Language) -> None:
    even = cell("heron", "youtube", "no_indication")
    assert even.slowdown is not None
    then = by_hour(cell("heron", "youtube", "corroborated"), 3)
    then = (replace(then[0], slowdown=Interval(estimate=0.3, low=0.1, high=0.5)), *then[1:])
    later = replace(then[-1], bucket_ms=NOW_MS, state="no_indication", slowdown=even.slowdown)
    ended = case("c", even, status="ended", ended_ms=NOW_MS)
    assert PAST[language] in plain(sentence(words(language), ended, "Heron", (*then, later)))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("effect", get_args(Effect))
def test_a_case_without_support_claims_nothing_now(language: Language, effect: Effect) -> None:
    w, of = words(language), cell("heron", "youtube", "replicated", effect)
    fallen = case("c", of, supported=False)
    fallen = replace(fallen, history=(*fallen.history, event("no_longer_supported", 2, 2.0)))
    text = plain(sentence(w, fallen, "Heron"))
    claim = plain(w(f"claim.{effect}", app=app_name(w, "youtube"), operator="Heron"))
    assert claim in text
    assert plain(w.day("2026-12-11")) in text
    assert plain(w.day("2026-12-08")) in text
    assert "62 %" not in text
    for status in ("withdrawn", "corrected"):
        back = plain(sentence(w, replace(fallen, status=status), "Heron"))
        assert claim in back
        assert back != text


@pytest.mark.parametrize(
    ("app", "name"),
    [
        ("youtube", "YouTube (video)"),
        ("signal", "Signal (calls and messages)"),
        ("some-new_app", "Some new app"),
        ("x1", "X1"),
        ("an-app+quic", "An app – QUIC"),
        ("an-app+spin", "An app – spin"),
        ("+udp", "+udp"),
        ("", ""),
    ],
)
def test_apps_are_named_as_their_profile_names_them(app: str, name: str) -> None:
    assert app_name(words("en"), app) == name


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_bundled_profile_has_a_title_in_each_language(language: Language) -> None:
    assert len(titles()) > 5
    for app, title in titles().items():
        assert title[language]
        assert app_name(words(language), app) == title[language]


@pytest.mark.parametrize(
    ("of", "small"),
    [
        (cell("h", "x", "corroborated"), False),
        (cell("h", "x", "corroborated", slowdown=Interval(estimate=0.3, low=0.19, high=0.4)), True),
        (cell("h", "x", "corroborated", "prioritising"), False),
        (
            cell("h", "x", "corroborated", "prioritising", slowdown=Interval(estimate=-0.3, low=-0.4, high=-0.1)),
            True,
        ),
        (queued("h", "x"), False),
        (queued("h", "x", delay_ms=Interval(estimate=20.0, low=9.0, high=30.0)), True),
        (blocked("h", "x"), False),
    ],
)
def test_a_range_that_reaches_below_what_is_promised_says_so(of: CellView, small: bool) -> None:
    w = words("en")
    told = sure(w, case("c", of), ())
    assert (w("case.sure_small") in told) is small

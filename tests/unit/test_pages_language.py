# SPDX-License-Identifier: EUPL-1.2
"""Words and figures: complete in four languages, careful, and written as each language writes them."""

from __future__ import annotations

import re
import string
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.gates import Reason
from collector.model import CaseEvent, State
from collector.pages.language import LANGUAGES, MINUS, THIN, Language, choose, words
from probe.wire.records import Access, Direction, Effect

NBSP = "\u00a0"


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_says_everything_with_the_same_placeholders(language: Language) -> None:
    english, other = words("en").texts, words(language).texts
    assert set(other) == set(english)
    assert [k for k in english if placeholders(english[k]) != placeholders(other[k])] == []
    assert [k for k, text in other.items() if not text.strip()] == []
    assert {entry[0] for entry in words(language).entries} == {entry[0] for entry in words("en").entries}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_of_the_model_has_a_word_here(language: Language) -> None:
    w = words(language)
    wanted = {
        "state": get_args(State),
        "state_means": get_args(State),
        "effect": get_args(Effect),
        "effect_question": get_args(Effect),
        "sentence": get_args(Effect),
        "verb": get_args(Effect),
        "direction": get_args(Direction),
        "access": get_args(Access),
        "reason": get_args(Reason),
        "event": get_args(get_type_hints(CaseEvent)["what"]),
        "status": ("open", "ended", "withdrawn", "corrected", "not_supported"),
    }
    assert [f"{kind}.{name}" for kind, names in wanted.items() for name in names if not w.has(f"{kind}.{name}")] == []


AVOIDED = {
    "en": r"violat|\bguilty|\bproof|\bproves?\b|fast lane|\bAI\b|real-time|artificial",
    "nl": r"\bschuldig\b|schending|\bAI\b|realtime|in strijd met|bewezen",
    "fr": r"coupable|violation|\bIA\b|temps réel|preuve|prouv",
    "de": r"\bschuldig\b|Verstoß|\bKI\b|Echtzeit|Beweis|bewiesen",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_that_accuse_or_advertise_are_avoided(language: Language) -> None:
    texts = [*words(language).texts.values(), *(text for _, _, text in words(language).entries)]
    assert [text for text in texts if re.search(AVOIDED[language], text, re.IGNORECASE)] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_line_can_end_between_a_figure_and_its_sign(language: Language) -> None:
    w = words(language)
    assert [key for key, text in w.texts.items() if " %" in text] == []
    if language == "fr":
        assert [key for key, text in w.texts.items() if re.search(r" [:;?!»]|« ", text)] == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("effect", get_args(Effect))
def test_the_verb_of_the_regulation_stands_in_its_official_words(language: Language, effect: Effect) -> None:
    w = words(language)
    assert w(f"verb.{effect}") in w("case.law_quote")
    assert "2015/2120" in w("case.law_intro")


# The verbs of Art. 3(3), third subparagraph, as the Official Journal has them (OJ L 310, 26.11.2015).
OFFICIAL = {
    "en": "shall not block, slow down, alter, restrict, interfere with, degrade or discriminate between specific "
    "content, applications or services, or specific categories thereof",
    "nl": "het blokkeren, vertragen, wijzigen, beperken of degraderen van, interfereren met of discrimineren tussen "
    "specifieke inhoud, toepassingen of diensten, of specifieke categorieën daarvan",
    "fr": "s’abstiennent de bloquer, de ralentir, de modifier, de restreindre, de perturber, de dégrader ou de "
    "traiter de manière discriminatoire des contenus, des applications ou des services spécifiques",
    "de": "blockieren, verlangsamen, verändern, einschränken, stören, verschlechtern oder diskriminieren",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_regulation_is_quoted_not_paraphrased(language: Language) -> None:
    assert OFFICIAL[language] in words(language)("case.law_quote")


@pytest.mark.parametrize(
    ("asked", "accept", "expected"),
    [
        ("nl", "de", "nl"),
        (None, "de-AT,de;q=0.9,en;q=0.5", "de"),
        (None, "it, fr;q=0.8, en;q=0.9", "en"),
        (None, "it", "en"),
        (None, None, "en"),
        ("xx", "fr", "fr"),
        (None, "nl;q=0, fr;q=0.1", "fr"),
        (None, "nl;q=nonsense, de;q=0.1", "de"),
        (None, "FR-ca", "fr"),
        ("", "", "en"),
    ],
)
def test_the_language_is_the_readers(asked: str | None, accept: str | None, expected: str) -> None:
    assert choose(asked, accept) == expected


@given(st.text(max_size=60), st.text(max_size=300))
def test_any_wish_gives_a_language(asked: str, accept: str) -> None:
    assert choose(asked, accept) in LANGUAGES


def test_numbers_and_dates_are_written_as_each_language_writes_them() -> None:
    at = 1_790_000_000_000
    found = {
        language: (w.whole(12345), w.rate(3.14), w.day("2026-11-01"), w.moment(at))
        for language in LANGUAGES
        for w in [words(language)]
    }
    unit = f"{THIN}Mbit/s"
    assert found == {
        "en": ("12,345", f"3.1{unit}", f"1{NBSP}November{NBSP}2026", f"21{NBSP}September{NBSP}2026, 14:13 UTC"),
        "nl": ("12.345", f"3,1{unit}", f"1{NBSP}november{NBSP}2026", f"21{NBSP}september{NBSP}2026, 14:13 UTC"),
        "fr": (f"12{THIN}345", f"3,1{unit}", f"1er{NBSP}novembre{NBSP}2026", f"21{NBSP}septembre{NBSP}2026, 14:13 UTC"),
        "de": ("12.345", f"3,1{unit}", f"1.{NBSP}November{NBSP}2026", f"21.{NBSP}September{NBSP}2026, 14:13 UTC"),
    }


def test_a_day_that_is_none_is_shown_as_it_is() -> None:
    assert words("en").day("never") == "never"


@pytest.mark.parametrize(
    ("mbps", "expected"), [(0.423, "0.42"), (0.996, "1.0"), (3.14, "3.1"), (99.6, "100"), (1234.5, "1,234")]
)
def test_rates_have_about_three_digits(mbps: float, expected: str) -> None:
    assert words("en").rate(mbps) == f"{expected}{THIN}Mbit/s"


def test_intervals_are_rounded_outwards_and_nought_has_no_sign() -> None:
    w = words("en")
    assert w.percents(0.408, 0.6001) == ("40", f"61{THIN}%")
    assert w.percents(-0.041, 0.06) == (f"{MINUS}5", f"6{THIN}%")
    assert w.percents(-99.0, 0.5) == (f"<{THIN}{MINUS}100", f"50{THIN}%")
    assert w.percent(-0.004) == f"0{THIN}%"
    assert w.percent(0.305) == f"31{THIN}%"


@given(st.floats(-1, 1), st.floats(0, 0.5))
def test_a_shown_interval_holds_the_true_one(low: float, width: float) -> None:
    first, second = words("en").percents(low, low + width)
    shown = [float(text.replace(MINUS, "-").replace(f"{THIN}%", "")) / 100 for text in (first, second)]
    assert shown[0] <= low + 1e-9
    assert shown[1] >= low + width - 1e-9


@pytest.mark.parametrize(
    ("log10_e", "expected"),
    [
        (0.0, "1.0"),
        (-0.3, "0.5"),
        (-9, "< 0.01"),
        (1.30103, "20"),
        (3.6349, "4,300"),
        (7.4, "25,000,000"),
        (9.0, "10⁹"),
        (12.7, "10¹²"),
        (1e9, "10³⁰⁰"),
    ],
)
def test_evidence_is_rounded_down_and_turns_to_powers(log10_e: float, expected: str) -> None:
    assert words("en").evidence(log10_e) == expected


@given(st.floats(-2, 9))
def test_evidence_is_never_shown_larger_than_it_is(log10_e: float) -> None:
    text = words("en").evidence(log10_e).replace(",", "")
    if "<" not in text and "⁹" not in text:
        assert float(text) <= 10**log10_e * (1 + 1e-6) + 1e-6

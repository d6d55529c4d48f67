# SPDX-License-Identifier: EUPL-1.2
"""What a volunteer is told before agreeing, in four languages.

The texts have one version, the day on which they were written: an enrolment names it, so that it can be shown later
what a volunteer agreed to. Whoever changes a text gives all four a new version and tells collectors to ask for it
(Regulation (EU) 2016/679, Articles 7 and 13). Spec: spec/volunteer.md, section "Consent".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from probe.settings import Language

VERSION: Final = "2026-11-23"
LANGUAGES: Final[tuple[Language, ...]] = ("en", "nl", "fr", "de")
_UNITS: Final[dict[Language, tuple[str, str]]] = {
    "en": ("MB", "GB"),
    "nl": ("MB", "GB"),
    "fr": ("Mo", "Go"),
    "de": ("MB", "GB"),
}
_NO_BREAK: Final = "\u00a0"


def consent_text(language: Language, *, name: str, contact: str, daily_mb: int, monthly_mb: int) -> str:
    """The text of this version: who asks, and how many MB (10^6 bytes) it may take at most."""
    whole = Path(__file__).with_name(f"{language}.txt").read_text(encoding="utf-8")
    for place, told in (
        ("version", VERSION),
        ("daily", amount(language, daily_mb)),
        ("monthly", amount(language, monthly_mb)),
        # A stranger's words last, so that nothing within them is taken for a place.
        ("contact", contact.replace("{", "(").replace("}", ")")),
        ("name", name.replace("{", "(").replace("}", ")")),
    ):
        whole = whole.replace("{" + place + "}", told)
    return whole


def amount(language: Language, megabytes: int) -> str:
    """So many MB (10^6 bytes) as people read them: "5 GB", "0,5 Go"."""
    mega, giga = _UNITS[language]
    if megabytes < 1000:
        return f"{megabytes}{_NO_BREAK}{mega}"
    # Rounded up: what is promised here is a ceiling.
    number = f"{-(-megabytes // 100) / 10:g}"
    return f"{number if language == 'en' else number.replace('.', ',')}{_NO_BREAK}{giga}"


def language_of(environ: Mapping[str, str]) -> Language:
    """The terminal's language where we speak it, else English (POSIX, section 8.2: LC_ALL, LC_MESSAGES, LANG)."""
    told = next((environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environ.get(name)), "")
    short = told[:2].lower()
    return short if short in LANGUAGES else "en"

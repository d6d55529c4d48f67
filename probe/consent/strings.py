# SPDX-License-Identifier: EUPL-1.2
"""The sentences of joining and leaving, in four languages, as data (sentences.toml).

Spec: spec/volunteer.md, section "Consent".
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Final

from probe.settings import Language

YES: Final = frozenset({"y", "yes", "j", "ja", "o", "oui"})
NO: Final = frozenset({"n", "no", "nee", "nein", "non"})
"""Taken in every language: none of these words means yes in one and no in another."""


@cache
def sentences() -> dict[str, dict[str, str]]:
    """By key and language."""
    return tomllib.loads(Path(__file__).with_name("sentences.toml").read_text(encoding="utf-8"))


def say(key: str, language: Language, **places: str) -> str:
    """A sentence with its places filled; what is filled in is never taken for a place itself."""
    return sentences()[key][language].format(**places)

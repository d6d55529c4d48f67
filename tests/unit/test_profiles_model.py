# SPDX-License-Identifier: EUPL-1.2
"""App profiles: what is shipped is sound, and what is wrong is named by its path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from probe.profiles.model import (
    DEFAULT_APPS,
    LIBRARY,
    AppFile,
    NeutralPool,
    ProfileError,
    available,
    load,
    load_neutral,
    parse,
)

GOOD = (LIBRARY / "youtube.toml").read_text(encoding="utf-8")
GOOD_POOL = (LIBRARY / "neutral.toml").read_text(encoding="utf-8")


def test_the_default_apps_are_a_video_a_social_and_a_call_signalling_one() -> None:
    assert [load(app).kind for app in DEFAULT_APPS] == ["video", "social", "call_signalling"]


@pytest.mark.parametrize("app", available())
def test_every_shipped_profile_loads_and_says_where_its_facts_come_from(app: str) -> None:
    profile = load(app)
    assert profile.id == app
    assert re.fullmatch(rf"{app}@[0-9]+:[0-9a-f]{{16}}", profile.reference)
    assert len(profile.names) >= (3 if profile.carrier == "tls" else 0)
    assert all(source for source in profile.sources)
    # One component under one domain: a rule for the component's domain must meet every name that may be drawn.
    assert len({".".join(name.split(".")[-2:]) for name in profile.names}) <= 1


def test_no_neutral_domain_or_word_is_part_of_an_apps_name() -> None:
    pool = load_neutral()
    names = [name for app in available() for name in load(app).names]
    assert not [d for d in pool.domains for name in names if name.endswith(d)]
    apps = set(available())
    assert not apps & set(pool.words)


def test_the_digest_is_of_the_content_not_of_its_spelling() -> None:
    plain = parse(AppFile, GOOD, "x.toml")
    commented = parse(AppFile, "# another comment\n" + GOOD.replace("version = 1", "version   =   1"), "x.toml")
    changed = parse(AppFile, GOOD.replace("version = 1", "version = 2"), "x.toml")
    assert plain.digest == commented.digest != changed.digest
    assert len(plain.digest) == 64


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("version = 1", "version = 0", "version"),
        ("version = 1", 'version = "1"', "version"),
        ('kind = "video"', 'kind = "viedo"', "kind"),
        ('direction = "down"', 'direction = "sideways"', "direction"),
        ("pace_mbps = 8.0", "pace_mbps = -8.0", "pace_mbps"),
        ("pace_mbps = 8.0", "pace_mbps = nan", "pace_mbps"),
        ('alpn = ["h2", "http/1.1"]', "alpn = []", "alpn"),
        ('alpn = ["h2", "http/1.1"]', 'alpn = ["h2", "h2"]', "alpn"),
        ('alpn = ["h2", "http/1.1"]', 'alpn = "h2"', "alpn"),
        ('"rr1---sn-4g5e6nzz.googlevideo.com"', '"not a host name"', "names[0]"),
        ('"rr1---sn-4g5e6nzz.googlevideo.com"', '"youtube.com"', "names[0]"),
        ('fr = "YouTube (vidéo)"', "", "title.fr"),
        ('fr = "YouTube (vidéo)"', 'fr = "x"\nit = "x"', "title.it"),
        ('kind = "video"', 'kind = "video"\nnmaes = []', "nmaes"),
        ('kind = "video"', 'kind = "video"\ndigest = "0"', "digest"),
    ],
)
def test_a_wrong_key_is_named_by_its_path(old: str, new: str, path: str) -> None:
    assert old in GOOD
    with pytest.raises(ProfileError, match=rf"^file\.toml: {re.escape(path)}: "):
        parse(AppFile, GOOD.replace(old, new), "file.toml")


def test_what_is_no_toml_and_an_empty_pool_are_refused_in_one_sentence() -> None:
    with pytest.raises(ProfileError, match=r"^file\.toml: not TOML: "):
        parse(AppFile, "id = ", "file.toml")
    emptied = re.sub(r"words = \[.*?\n\]", "words = []", GOOD_POOL, flags=re.DOTALL)
    with pytest.raises(ProfileError, match=r"^neutral\.toml: words: must not be empty"):
        parse(NeutralPool, emptied, "neutral.toml")


def test_an_unknown_app_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ProfileError, match=r"'yuotube'; known are .*youtube"):
        load("yuotube")
    with pytest.raises(ProfileError, match="there is no app profile 'neutral'"):
        load("neutral")
    with pytest.raises(ProfileError, match=r"there is no app profile '\.\./"):
        load("../library/youtube")


def test_a_file_must_be_named_after_its_id(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(GOOD, encoding="utf-8")
    with pytest.raises(ProfileError, match=r"^other\.toml: id: "):
        load("other", tmp_path)

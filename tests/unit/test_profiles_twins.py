# SPDX-License-Identifier: EUPL-1.2
"""Neutral twins differ from an app's name in nothing but what they say."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest

from probe.profiles.model import ProfileError, available, load, load_neutral
from probe.profiles.twins import twins

POOL = load_neutral()
NAMES = [name for app in available() for name in load(app).names]


@pytest.mark.parametrize("name", NAMES)
def test_twins_have_the_names_length_labels_and_top_level(name: str) -> None:
    rng = Random(name)
    words = set(POOL.words)
    for _ in range(30):
        pair = twins(name, POOL, rng, count=2)
        assert pair[0] != pair[1]
        for twin in pair:
            assert len(twin) == len(name)
            assert twin.count(".") == name.count(".")
            assert twin.rpartition(".")[2] == name.rpartition(".")[2]
            host, domain = twin.rsplit(".", 2)[0], ".".join(twin.rsplit(".", 2)[1:])
            assert domain in POOL.domains
            assert set(host.replace(".", "-").split("-")) <= words


@pytest.mark.parametrize("name", NAMES)
def test_a_pool_offers_enough_names_that_no_operator_can_list_them_in_a_day(name: str) -> None:
    rng = Random(1)
    assert len({twins(name, POOL, rng)[0] for _ in range(400)}) >= 40


def test_another_top_level_is_taken_where_the_names_own_has_no_domain() -> None:
    (twin,) = twins("edge-media-12.example.be", POOL, Random(3))
    assert len(twin) == len("edge-media-12.example.be")


def test_a_name_that_cannot_be_matched_is_refused_in_one_sentence() -> None:
    with pytest.raises(ProfileError, match=r"cannot make 1 neutral names as long as 'a\.b\.co'"):
        twins("a.b.co", POOL, Random(1))
    poor = dataclasses.replace(POOL, words=("oak",), domains=("tulora.com",))
    with pytest.raises(ProfileError, match="cannot make 2 neutral names"):
        twins("abc.tulora.com", poor, Random(1), count=2)

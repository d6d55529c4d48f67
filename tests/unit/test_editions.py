# SPDX-License-Identifier: EUPL-1.2
"""Editions of the rule: what was published stays what it was, and a rule of one's own is complete and sound."""

import json
from dataclasses import replace

import pytest

from analysis.editions import CURRENT, PUBLISHED, RuleError, edition, fields, from_values, read, to_toml, to_values
from analysis.rules import RULES

DIGESTS = {
    1: "c2629c8a9046bb68b1e76db02404115430b377427013f5311d8de0211b5faba0",
    2: "d8488d6a7bd5bdbd7f9da604dfdb1e32435ac3a9d03060530d614399afd0f0a9",
}
"""For ever: verdicts were given under these names. A changed threshold is a new version; add its digest here."""


def test_published_editions_are_what_they_were():
    assert {version: one.digest for version, one in PUBLISHED.items()} == DIGESTS
    for version, one in PUBLISHED.items():
        assert one.rules.digest() == one.digest
        assert one.rules.version == version
        assert one.published.isoformat() == one.rules.published
    assert PUBLISHED[CURRENT].rules == RULES


def test_an_edition_by_its_version():
    assert edition("1") is PUBLISHED[1]
    with pytest.raises(RuleError, match="no version 7 of the rule; published are 1, 2"):
        edition("7")
    with pytest.raises(RuleError, match="no version 9999999999999"):
        edition("9999999999999")


def own(**changes):
    return to_values(RULES) | {"id": "mine", "version": CURRENT} | changes


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_a_rule_of_ones_own_from_a_file(tmp_path, suffix):
    file = tmp_path / f"rule{suffix}"
    rules = replace(RULES, id="mine", version=5, indication=100.0, published="2027-01-01")
    file.write_text(to_toml(rules) if suffix == ".toml" else json.dumps(to_values(rules)))
    found = edition(str(file))
    assert found.rules == rules
    assert found.digest == rules.digest() != RULES.digest()
    assert found.published.year == 2027


@pytest.mark.parametrize("version", PUBLISHED)
def test_a_published_edition_may_be_given_as_a_file_but_not_altered(version):
    values = to_values(PUBLISHED[version].rules)
    assert from_values(values) is PUBLISHED[version]
    for name, value in values.items():
        if isinstance(value, float) and name != "first_day_weight":
            with pytest.raises(RuleError, match="is published and says otherwise"):
                from_values(values | {name: value * 0.99})


def test_every_key_must_be_there_and_no_other():
    for name in fields():
        values = own()
        del values[name]
        # Without its version or id it is no published edition, and still lacks them.
        with pytest.raises(RuleError, match=f"the rule lacks {name}"):
            from_values(values)
    with pytest.raises(RuleError, match="no key indicaton"):
        from_values(own(indicaton=20))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"indication": "20"}, "indication must be a number"),
        ({"indication": True}, "indication must be a number"),
        ({"indication": float("nan")}, "indication must be a finite number"),
        ({"indication": 0.5}, "indication must be at least 1"),
        ({"least_probes": 2.5}, "least_probes must be a whole number"),
        ({"lambdas": 0.4}, "lambdas must be a list"),
        ({"lambdas": []}, "lambdas must have 1 to 64 items"),
        ({"lambdas": [0.4, 1.0]}, "lambdas must be between 0 and 1"),
        ({"hour_weights": [0.8, 0.2]}, "hour_weights must be a list of 3"),
        ({"hour_weights": [0.8, 0.2, 0.2]}, "hour_weights must be above 0 and sum to 1"),
        ({"peak_hours": [23, 18]}, "peak_hours must be two hours of a day"),
        ({"peak_hours": [0, 24]}, "peak_hours must be two hours of a day"),
        ({"effects": ["slowing", "lying"]}, "effects must be of slowing"),
        ({"effects": ["slowing", "slowing"]}, "effects must be different ones"),
        ({"published": "2026-13-01"}, "published must be a date"),
        ({"id": "Mine!"}, "id must be lower-case"),
        ({"id": RULES.id, "version": 99}, "has no version 99; use an id of your own"),
        ({"version": 1}, "version must be 2 or more"),
        ({"alpha": -0.05}, "alpha must be between 0 and 1"),
        ({"most_lost_share": -1.0}, "most_lost_share must be 0 or more"),
    ],
)
def test_numbers_with_which_evidence_would_be_none_are_refused(change, said):
    with pytest.raises(RuleError, match=said):
        from_values(own(**change))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", b"id = ", "is no TOML"),
        ("a.json", b"[1]", "must hold one table"),
        ("a.json", b"[" * 50_000, "is no JSON"),
        ("a.json", b"\xff", "is no JSON"),
        ("a.toml", b"#" * 200_000, "longer than 100000 bytes"),
        ("a.toml", b"x = 1", "a.toml: the rule has no key x"),
    ],
)
def test_files_that_are_no_rule(tmp_path, name, text, said):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(RuleError, match=said):
        read(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RuleError, match="cannot read the rule"):
        edition(str(tmp_path / "none.toml"))

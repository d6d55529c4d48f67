# SPDX-License-Identifier: EUPL-1.2
"""What version 1 of the rule found, to the last digit: both versions find it still wherever there are only rates.

The numbers were written down before version 2 existed. A change here is a new version, never an edit.
"""

import random
from dataclasses import replace

import pytest

from analysis.judge import Ledger
from analysis.rules import RULES, VERSION_1
from analysis.simulate import Line, stream

LINES = {
    "slow": Line(slowdown=0.3, noise=0.3, pairs_a_day=7),
    "even": Line(noise=0.6, boost=0.3, pairs_a_day=5),
    "fast": Line(slowdown=-0.6, noise=0.2),
    "blocked": Line(blocked=0.5, failing=0.1, noise=0.2, pairs_a_day=9),
    "heavy": Line(noise=0.3, heavy=True),
}
FOUND = {
    "slow": {
        "slowing": ("0x1.d738aea8b5c84p+3", "0x1.8e521d2c8e4d0p+2", "0x1.dd9c6a8867025p+0", 2, "replicated"),
        "blocking": ("-0x1.9162ee2dee7f6p-1", "-0x1.9162ee2dee7f6p-1", "-0x1.9162ee2dee7f6p-1", 0, "no_indication"),
        "prioritising": ("-0x1.1a1877001d46cp+0", "-0x1.1a1877001d46cp+0", "-0x1.1a1877001d46cp+0", 0, "no_indication"),
    },
    "even": {
        "slowing": ("-0x1.1b345ed34ff94p+0", "-0x1.1b345ed34ff94p+0", "-0x1.1b345ed34ff94p+0", 0, "inconclusive"),
        "blocking": ("-0x1.9be7f4ebec060p-1", "-0x1.9be7f4ebec060p-1", "-0x1.9be7f4ebec060p-1", 0, "no_indication"),
        "prioritising": ("-0x1.21401af3c743dp-1", "-0x1.b81681aa978ddp-1", "-0x1.b81681aa978ddp-1", 0, "inconclusive"),
    },
    "fast": {
        "slowing": ("-0x1.dd652e156b7e3p-1", "-0x1.dd652e156b7e3p-1", "-0x1.dd652e156b7e3p-1", 0, "no_indication"),
        "blocking": ("-0x1.70085e0f9e4a6p-1", "-0x1.70085e0f9e4a6p-1", "-0x1.70085e0f9e4a6p-1", 0, "no_indication"),
        "prioritising": ("0x1.55d8922175e64p+5", "0x1.e568511059485p+4", "0x1.2a5534edcfaa8p+4", 4, "replicated"),
    },
    "blocked": {
        "slowing": ("-0x1.09a24f4373406p+0", "-0x1.09a24f4373406p+0", "-0x1.09a24f4373406p+0", 0, "inconclusive"),
        "blocking": ("0x1.3391216c855b4p+4", "0x1.55f65553329e9p+3", "0x1.25848108d700dp+2", 3, "replicated"),
        "prioritising": ("-0x1.f7e3da000d0b5p-1", "-0x1.f7e3da000d0b5p-1", "-0x1.f7e3da000d0b5p-1", 0, "inconclusive"),
    },
    "heavy": {
        "slowing": ("-0x1.d9c170ec90f90p-1", "-0x1.d9c170ec90f90p-1", "-0x1.d9c170ec90f90p-1", 0, "inconclusive"),
        "blocking": ("-0x1.70085e0f9e4a6p-1", "-0x1.70085e0f9e4a6p-1", "-0x1.70085e0f9e4a6p-1", 0, "no_indication"),
        "prioritising": ("-0x1.dc49390a12080p-1", "-0x1.dc49390a12080p-1", "-0x1.dc49390a12080p-1", 0, "inconclusive"),
    },
}
"""log E of four probes together, without the strongest one, two networks; the coalition; the state."""


@pytest.mark.parametrize("rules", [RULES, VERSION_1], ids=["2", "1"])
@pytest.mark.parametrize("name", LINES)
def test_what_rates_and_failures_say_is_the_same_for_ever(name, rules):
    ledger = Ledger(rules=rules)
    for number in range(4):
        for pair in stream(LINES[name], random.Random(f"frozen/{name}/{number}"), 30, probe=f"p{number}"):
            ledger.put(replace(pair, lost=pair.session.endswith("-11")))
    found = {
        a.effect: (
            a.strength.whole.hex(),
            a.strength.without_one.hex(),
            a.strength.without_two.hex(),
            a.strength.coalition,
            a.base,
        )
        for a in ledger.assessments()
        if a.effect in FOUND[name]
    }
    assert found == FOUND[name]
    assert {a.effect for a in ledger.assessments()} == set(rules.effects)


def test_version_1_keeps_the_name_under_which_it_judged():
    assert VERSION_1.digest() == "c2629c8a9046bb68b1e76db02404115430b377427013f5311d8de0211b5faba0"
    assert VERSION_1.name == "evenlane-pairs@1:c2629c8a9046bb68"
    assert RULES.version == 2
    assert replace(RULES, delay_threshold_ms=11.0).digest() != RULES.digest()
    assert replace(VERSION_1, delay_threshold_ms=11.0).digest() == VERSION_1.digest()  # it has no such threshold

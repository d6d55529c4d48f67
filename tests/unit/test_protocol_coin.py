# SPDX-License-Identifier: EUPL-1.2
"""The coin: fair, bound by the commitment, and unknown to either side before both have spoken."""

from __future__ import annotations

import hashlib
import random

import pytest

from probe.protocol import coin

SESSION = "00112233445566778899aabbccddeeff"


def test_coin_is_the_last_bit_of_the_hash_in_the_spec() -> None:
    probe, reflector = bytes(range(32)), bytes(range(32, 64))
    for pair in (1, 2, 3, 511):
        raw = probe + reflector + bytes.fromhex(SESSION) + pair.to_bytes(4, "big")
        expected = int(hashlib.sha256(raw).hexdigest(), 16) % 2 == 1
        assert coin.neutral_first(probe, reflector, SESSION, pair) is expected
    # A golden value, so that a change of the formula cannot pass unseen.
    assert [coin.neutral_first(probe, reflector, SESSION, pair) for pair in range(1, 13)] == GOLDEN


GOLDEN = [True, True, True, False, False, False, True, False, True, True, False, True]


def test_commitment_is_sha256_and_binds() -> None:
    assert coin.commitment(b"\x00" * 32) == "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925"
    assert coin.commitment(b"\x01" + b"\x00" * 31) != coin.commitment(b"\x00" * 32)


@pytest.mark.parametrize("nonce", [b"", b"\x00" * 31, b"\x00" * 33])
def test_nonces_have_32_bytes(nonce: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        coin.commitment(nonce)
    with pytest.raises(ValueError, match="32 bytes"):
        coin.neutral_first(nonce, b"\x00" * 32, SESSION, 1)
    with pytest.raises(ValueError, match="32 bytes"):
        coin.neutral_first(b"\x00" * 32, nonce, SESSION, 1)


def _heads(flips: list[bool]) -> float:
    return sum(flips) / len(flips)


def test_coin_is_fair_whichever_side_is_random() -> None:
    rng = random.Random(7)
    n, bound = 4000, 4 * 0.5 / 4000**0.5  # four standard deviations
    fixed = bytes(32)
    for flips in (
        [coin.neutral_first(rng.randbytes(32), fixed, SESSION, 1) for _ in range(n)],
        [coin.neutral_first(fixed, rng.randbytes(32), SESSION, 1) for _ in range(n)],
        [coin.neutral_first(fixed, fixed, rng.randbytes(16).hex(), 1) for _ in range(n)],
        [coin.neutral_first(fixed, fixed, SESSION, 1 + pair) for pair in range(n)],
    ):
        assert abs(_heads(flips) - 0.5) < bound


def test_a_nonce_chosen_before_the_other_is_known_wins_nothing() -> None:
    """Grinding: the best of 64 own nonces against earlier reflector nonces is a fair coin against the next one."""
    rng = random.Random(11)
    wins, rounds = 0, 1500
    for pair in range(1, rounds + 1):
        seen = [rng.randbytes(32) for _ in range(4)]
        candidates = [rng.randbytes(32) for _ in range(64)]
        best = max(candidates, key=lambda mine: sum(coin.neutral_first(mine, one, SESSION, pair) for one in seen))
        wins += coin.neutral_first(best, rng.randbytes(32), SESSION, pair)
    assert abs(wins / rounds - 0.5) < 4 * 0.5 / rounds**0.5


def test_pairs_and_sessions_do_not_share_a_coin() -> None:
    rng = random.Random(5)
    a, b = rng.randbytes(32), rng.randbytes(32)
    over_pairs = {coin.neutral_first(a, b, SESSION, pair) for pair in range(1, 30)}
    over_sessions = {coin.neutral_first(a, b, rng.randbytes(16).hex(), 1) for _ in range(30)}
    assert over_pairs == over_sessions == {True, False}


def test_arms_in_order() -> None:
    assert coin.arms_in_order(True) == ("neutral", "app")
    assert coin.arms_in_order(False) == ("app", "neutral")

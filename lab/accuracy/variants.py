# SPDX-License-Identifier: EUPL-1.2
"""What liars do to their pairs, and what careless measuring would do: each a function on one probe's pairs.

*Attacks* leave the product's rule as it is and change what a dishonest home lets the product know. *Variants* are
mistakes that the product does not make (a gate that sees which arm is which), each beside its label-blind twin,
so that the study can show what the mistake costs. Nothing here is ever imported by the product.
Spec: spec/accuracy.md, section "Attacks and variants".
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from analysis.match import coin as coin_of
from analysis.pairs import OrderHistory, Pair, score
from lab.accuracy.noise import Coin

Change = Callable[[Iterable[Pair], random.Random], Iterator[Pair]]
POOR: Final = 0.9
"""A segment below this share of the median of all earlier segments is "poor"; in half of that it is "dead"."""

AGAIN: Final = 0.8
"""With this probability a second try succeeds."""


# -- attacks: a home that decides after it has seen the coin -----------------------------------------------------


def _foretold(pairs: Iterable[Pair], act: Callable[[Pair], Pair | None]) -> Iterator[Pair]:
    """Each pair whose coin is bad for the claim "slowing" becomes what `act` makes of it.

    The home knows the coin as soon as it has the reflector's nonce. It shapes its own line by *order* (which takes no
    knowledge of names), so it knows the sign of the pair's bet before a byte was sent.
    """
    history = OrderHistory()
    for pair in pairs:
        told = score(history, pair)
        kept = pair if told.y is None or told.y > 0 else act(pair)
        if kept is not None:
            history.add(kept)
            yield kept


def void(pairs: Iterable[Pair], rng: random.Random) -> Iterator[Pair]:
    """Lets both segments fail where it dislikes the coin: a void pair bets nothing."""
    del rng
    return _foretold(pairs, lambda pair: _failed(pair, first=True, second=True))


def fail_one(pairs: Iterable[Pair], rng: random.Random) -> Iterator[Pair]:
    """Lets one segment fail where it dislikes the coin, first or second in turn: such a pair bets on blocking alone."""
    return _foretold(pairs, lambda pair: _failed(pair, first=(one := rng.random() < 0.5), second=not one))


def _failed(pair: Pair, *, first: bool, second: bool) -> Pair:
    return replace(
        pair,
        first_failed=first,
        second_failed=second,
        first_mbps=None if first else pair.first_mbps,
        second_mbps=None if second else pair.second_mbps,
    )


def withhold(pairs: Iterable[Pair], rng: random.Random) -> Iterator[Pair]:
    """Never sends the measurements of pairs whose coin it dislikes: they stay lost."""
    del rng
    return _foretold(pairs, lambda pair: replace(pair, lost=True))


def abandon(pairs: Iterable[Pair], rng: random.Random) -> Iterator[Pair]:
    """Leaves as soon as it dislikes the coin: the pair is never finished, no receipt tells rates."""
    del rng
    return _foretold(
        pairs,
        lambda pair: replace(pair, lost=True, neutral_first=None, first_mbps=None, second_mbps=None, ended_ms=None),
    )


def replay(pairs: Iterable[Pair], rng: random.Random) -> Iterator[Pair]:
    """Sends the receipts of won pairs five times over: a pair is one number of one session, however often told."""
    del rng
    history = OrderHistory()
    for pair in pairs:
        told = score(history, pair)
        history.add(pair)
        for _ in range(5 if told.y is not None and told.y > 0 else 1):
            yield pair


def forge(pairs: Iterable[Pair], rng: random.Random) -> Iterator[Pair]:
    """Writes whatever it likes: what a probe and a reflector can do together, as no third party watches them."""
    del rng
    for pair in pairs:
        rates = (12.0, 4.0) if pair.neutral_first else (4.0, 12.0)
        yield replace(pair, first_mbps=rates[0], second_mbps=rates[1])


def two_lines(pairs: Iterable[Pair], rng: random.Random) -> Iterator[Pair]:
    """Sends pairs whose coin it dislikes through another operator, as if a pair's operator were told after its coin."""
    del rng
    other = "another-operator"
    history = OrderHistory()
    for pair in pairs:
        told = score(history, pair)
        if told.y is None or told.y > 0:
            history.add(pair)
            yield pair
        else:
            # In the other cell a session of its own, whose probe has its losses there.
            yield replace(pair, cell=replace(pair.cell, operator=other, asn=None))


def two_lines_lost(pairs: Iterable[Pair], rng: random.Random) -> Iterator[Pair]:
    """The same, where the pair is lost because the list of started pairs tells another operator."""
    del rng
    return _foretold(pairs, lambda pair: replace(pair, lost=True, neutral_first=None, ended_ms=None))


# -- coins ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Grinder:
    """A probe that tries nonces until the coin would put the neutral arm first.

    `reveal_first`: the reflector shows its nonce before the probe has committed to its own, which the product
    never does. Else the probe can only guess, and guesses that the reflector repeats itself.
    """

    rng: random.Random
    reveal_first: bool
    _session: bytes = b""
    _last: bytes = b""
    _pair: int = 0

    def __post_init__(self) -> None:
        self._session, self._last = self.rng.randbytes(16), self.rng.randbytes(32)

    def __call__(self) -> bool:
        """The coin of the next pair."""
        self._pair += 1
        theirs = self.rng.randbytes(32)
        guess = theirs if self.reveal_first else self._last
        own = self.rng.randbytes(32)
        while not coin_of(own, guess, self._session, self._pair):
            own = self.rng.randbytes(32)
        self._last = theirs
        return coin_of(own, theirs, self._session, self._pair)


COINS: Final[Mapping[str, Callable[[random.Random], Coin]]] = {
    "grind": lambda rng: Grinder(rng, reveal_first=False),
    "grind_after_reveal": lambda rng: Grinder(rng, reveal_first=True),
}


# -- variants: mistakes, each with its label-blind twin ---------------------------------------------------------


@dataclass(slots=True)
class _Usual:
    """The running median of all earlier segments, whichever arm they were."""

    seen: list[float] = field(default_factory=list)

    def add(self, pair: Pair) -> None:
        """Remember both segments."""
        for rate in (pair.first_mbps, pair.second_mbps):
            if rate is not None:
                bisect.insort(self.seen, rate)

    def poor(self, rate: float | None, share: float = POOR) -> bool:
        """Whether this rate is clearly below what is usual here."""
        return rate is not None and bool(self.seen) and rate < share * self.seen[len(self.seen) // 2]


def _arms(pair: Pair) -> tuple[float | None, float | None]:
    """Rates of (neutral, app)."""
    return (pair.first_mbps, pair.second_mbps) if pair.neutral_first else (pair.second_mbps, pair.first_mbps)


def _dropping(pairs: Iterable[Pair], *, blind: bool) -> Iterator[Pair]:
    usual = _Usual()
    for pair in pairs:
        neutral, app = _arms(pair)
        poor = usual.poor(neutral) or (blind and usual.poor(app))
        usual.add(pair)
        if not poor:
            yield pair


def _retrying(pairs: Iterable[Pair], rng: random.Random, *, blind: bool) -> Iterator[Pair]:
    """A failed segment is tried once more, which fails again in one case of five; it then runs as the other one did."""
    for pair in pairs:
        chances = (rng.random() < AGAIN, rng.random() < AGAIN)
        again = (blind or bool(pair.neutral_first), blind or not pair.neutral_first)
        first, second = (
            failed and not (retried and lucky)
            for failed, retried, lucky in zip((pair.first_failed, pair.second_failed), again, chances, strict=True)
        )
        usual = pair.first_mbps or pair.second_mbps or pair.pace_mbps
        rates = (pair.first_mbps or usual, pair.second_mbps or usual)
        yield _failed(replace(pair, first_mbps=rates[0], second_mbps=rates[1]), first=first, second=second)


def _timing_out(pairs: Iterable[Pair], *, blind: bool) -> Iterator[Pair]:
    """A segment far below what is usual is given up: it failed."""
    usual = _Usual()
    for pair in pairs:
        neutral, app = _arms(pair)
        dead = (blind and usual.poor(neutral, POOR / 2), usual.poor(app, POOR / 2))
        usual.add(pair)
        first, second = dead if pair.neutral_first else dead[::-1]
        yield _failed(pair, first=first or pair.first_failed, second=second or pair.second_failed)


def no_midpoint(pairs: Iterable[Pair], rng: random.Random) -> Iterator[Pair]:
    """Without m: no pair ever enters the order history (what a power boost then does to power)."""
    del rng
    for pair in pairs:
        yield replace(pair, ended_ms=None)


CHANGES: Final[Mapping[str, Change]] = {
    "void": void,
    "fail_one": fail_one,
    "withhold": withhold,
    "abandon": abandon,
    "replay": replay,
    "forge": forge,
    "two_lines": two_lines,
    "two_lines_lost": two_lines_lost,
    "drop_poor_neutral": lambda pairs, rng: _dropping(pairs, blind=False),
    "drop_poor_either": lambda pairs, rng: _dropping(pairs, blind=True),
    "retry_neutral": lambda pairs, rng: _retrying(pairs, rng, blind=False),
    "retry_either": lambda pairs, rng: _retrying(pairs, rng, blind=True),
    "time_out_app": lambda pairs, rng: _timing_out(pairs, blind=False),
    "time_out_either": lambda pairs, rng: _timing_out(pairs, blind=True),
    "no_midpoint": no_midpoint,
}
NAMES: Final = (*CHANGES, *COINS)


def changed(pairs: Iterable[Pair], name: str, rng: random.Random) -> Iterator[Pair]:
    """The pairs after an attack or a variant; one on coins has been at work before."""
    return iter(pairs) if name in COINS or not name else CHANGES[name](pairs, rng)

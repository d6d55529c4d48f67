# SPDX-License-Identifier: EUPL-1.2
"""Neutral twins: names that differ from an app's name in nothing but what they say.

A twin has the same length (so that every packet of the handshake has the same size), the same number of labels
and the same top-level domain, and is made of ordinary words: inspection engines call random letters "suspicious
DGA", which would put a second difference between the arms. Spec: spec/profiles.md, section "Neutral names".
"""

from __future__ import annotations

from random import Random

from probe.profiles.model import NeutralPool, ProfileError

_ATTEMPTS = 400


def twins(name: str, pool: NeutralPool, rng: Random, count: int = 1) -> tuple[str, ...]:
    """`count` different neutral names as long as `name`, with as many labels and, where possible, its TLD.

    Raises ProfileError where the pool cannot make them.
    """
    labels = name.count(".") - 1
    top = name.rpartition(".")[2]
    fitting = [domain for domain in pool.domains if len(name) - len(domain) - 1 >= _shortest(labels)]
    same_top = [domain for domain in fitting if domain.endswith(f".{top}")]
    domains = same_top or fitting
    by_length = _by_length(pool.words)
    found: list[str] = []
    for _ in range(_ATTEMPTS if domains else 0):
        domain = rng.choice(domains)
        host = _host(len(name) - len(domain) - 1, labels, by_length, rng)
        twin = f"{host}.{domain}"
        if host is not None and twin not in found:
            found.append(twin)
            if len(found) == count:
                return tuple(found)
    raise ProfileError(f"neutral.toml: domains: cannot make {count} neutral names as long as {name!r}")


def _shortest(labels: int) -> int:
    return labels * 3 - 1  # labels of two letters and the dots between them


def _by_length(words: tuple[str, ...]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for word in words:
        found.setdefault(len(word), []).append(word)
    return found


def _host(length: int, labels: int, by_length: dict[int, list[str]], rng: Random) -> str | None:
    """`labels` labels of words, `length` characters in all; None where this draw did not work out."""
    parts: list[str] = []
    for missing in range(labels - 1, 0, -1):
        # The labels nearest to the domain are short in real names: `xx`, `cdn`, `oca`.
        longest = min(5, length - 1 - _shortest(missing))
        short = [size for size in by_length if size <= longest]
        if not short:
            return None
        word = rng.choice(by_length[rng.choice(short)])
        parts.insert(0, word)
        length -= len(word) + 1
    first = _label(length, by_length, rng)
    return None if first is None else ".".join([first, *parts])


def _label(length: int, by_length: dict[int, list[str]], rng: Random) -> str | None:
    """Words joined by hyphens to exactly `length` characters."""
    words: list[str] = []
    while length > 0:
        # Either a word fills the rest exactly or it leaves room for a hyphen and one more.
        sizes = [size for size in by_length if size == length or length - size - 1 in by_length or size + 9 < length]
        if not sizes:
            return None
        word = rng.choice(by_length[rng.choice(sizes)])
        words.append(word)
        length -= len(word) + (1 if len(word) < length else 0)
    return "-".join(words)

# SPDX-License-Identifier: EUPL-1.2
"""A bad path does to packets what its shares say, whatever they carry, and the same again with the same seed."""

from __future__ import annotations

import random

import pytest

from lab.middlebox import INTERNET, Middlebox
from lab.model import Link
from lab.packets import transport_checksum, with_checksum
from lab.path import Path, path_of

HOME, SERVER = bytes([198, 18, 1, 11]), bytes([192, 0, 2, 10])
COUNT = 4000


def packet(number: int, size: int = 1000) -> bytes:
    """A correct TCP packet to the subscriber that carries its own number."""
    head = b"\x45\0" + size.to_bytes(2, "big") + bytes(5) + b"\x06\0\0" + SERVER + HOME
    tcp = b"\x01\xbb\x9c\x40" + number.to_bytes(4, "big") + bytes(4) + b"\x50\x10" + bytes(6)
    return with_checksum(head + tcp + number.to_bytes(4, "big") * ((size - 40) // 4))


def through(link: Link, seed: int = 1, size: int = 1000) -> tuple[list[tuple[float, int, bytes]], Path]:
    """One packet a millisecond: when each leaves, and what it has become."""
    path = path_of(link, random.Random(seed))
    assert path is not None
    left = []
    for number in range(COUNT):
        out = [(0, packet(number, size))]
        path.carry(out, 0, number / 1000)
        left += [(number / 1000, port, body) for port, body in out]
    out = []
    path.carry(out, 0, 1e9)
    return left + [(1e9, port, body) for port, body in out], path


def numbers(left: list[tuple[float, int, bytes]]) -> list[int]:
    return [int.from_bytes(body[24:28], "big") for _, _, body in left]


def test_a_good_path_costs_nothing() -> None:
    assert path_of(Link(loss=0.1, jitter_ms=3), random.Random(1)) is None


def test_a_black_hole_swallows_what_is_larger_and_nothing_else() -> None:
    assert through(Link(path_mtu=999))[0] == []
    assert numbers(through(Link(path_mtu=1000))[0]) == list(range(COUNT))


def test_held_packets_are_overtaken_by_those_behind_them() -> None:
    left, path = through(Link(reorder=0.1, reorder_ms=3.5))
    order = numbers(left)
    assert sorted(order) == list(range(COUNT))
    held = [number for place, number in enumerate(order) if number < max(order[: place + 1])]
    assert len(held) == pytest.approx(0.1 * COUNT, rel=0.25)
    assert path.counted["reordered"] >= len(held)
    when = {number: at for (at, _, _), number in zip(left, order, strict=True) if at < 1e9}
    assert {round((when[number] - number / 1000) * 1000) for number in held if number in when} == {4}


def test_duplicates_arrive_twice() -> None:
    left, path = through(Link(duplicate=0.05))
    assert len(left) - COUNT == path.counted["duplicated"] == pytest.approx(0.05 * COUNT, rel=0.25)
    assert set(numbers(left)) == set(range(COUNT))


def test_damage_has_a_wrong_checksum_or_hides_behind_a_right_one() -> None:
    for key, checksum_fits in (("corrupt", False), ("corrupt_payload", True)):
        left, path = through(Link(**{key: 0.1}))
        fault = "corrupted_payload" if checksum_fits else "corrupted"
        changed = [body for number, (_, _, body) in enumerate(left) if body != packet(number)]
        assert len(changed) == path.counted[fault] == pytest.approx(0.1 * COUNT, rel=0.25)
        for body in changed:
            assert (transport_checksum(body) == 0) is checksum_fits
            number = left.index(next(entry for entry in left if entry[2] is body))
            original = packet(number)
            assert sum((a ^ b).bit_count() for a, b in zip(body[40:], original[40:], strict=True)) <= 1
            assert body[:20] == original[:20]
            if checksum_fits:
                assert body[20:36] == original[20:36]


def test_the_same_seed_does_the_same() -> None:
    link = Link(reorder=0.1, duplicate=0.1, corrupt=0.1, corrupt_payload=0.1)
    assert through(link, 5)[0] == through(link, 5)[0]
    assert through(link, 5)[0] != through(link, 6)[0]


def test_the_operators_box_uses_it_both_ways_and_wakes_for_held_packets() -> None:
    link = Link(down_mbps=100, up_mbps=100, rtt_ms=2, reorder=1.0, reorder_ms=7, duplicate=1.0)
    box = Middlebox([HOME], link)
    box.from_internet(packet(1), 0.0)
    up = packet(2)
    box.from_subscriber(0, up[:12] + HOME + SERVER + up[20:], 0.0)
    out, now, seen = [], 0.0, []
    while True:
        due, upcoming = box.poll(now)
        out += due
        seen += [(round(now, 4), port) for port, _ in due]
        if upcoming is None:
            break
        assert upcoming > now
        now = upcoming
    assert sorted(port for port, _ in out) == [INTERNET, INTERNET, 0, 0]
    assert {when for when, _ in seen} == {0.0011, 0.0081}  # 1 ms and 80 us of line, then 7 ms for the held ones
    assert box.snapshot()["path"] == {
        "swallowed": 0, "reordered": 2, "duplicated": 2, "corrupted": 0, "corrupted_payload": 0,
    }  # fmt: skip


def test_another_address_reaches_the_same_subscriber() -> None:
    box = Middlebox([HOME], Link())
    moved = bytes([198, 18, 1, 200])
    to_moved = with_checksum(packet(1)[:16] + moved + packet(1)[20:])
    box.from_internet(to_moved, 0.0)
    assert box.stats.foreign == 1
    box.move(0, moved)
    box.from_internet(to_moved, 0.0)
    assert box.stats.packets["down"] == 1

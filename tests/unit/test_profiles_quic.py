# SPDX-License-Identifier: EUPL-1.2
"""QUIC Initials without a crypto library: RFC 9001 opens them, and the data is what the lab's program computes."""

from __future__ import annotations

from random import Random

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lab import quic_initials
from probe.profiles import quic
from probe.profiles.dress import dress
from probe.profiles.model import every, load, load_neutral

APPS = [app for app in every() if load(app).carrier == "quic"]


def lines() -> list[str]:
    content = quic.OPENINGS_FILE.read_text(encoding="ascii")
    return [line for line in content.splitlines() if not line.startswith("#")]


def test_the_data_is_what_the_program_computes() -> None:
    assert quic.OPENINGS_FILE.read_text(encoding="ascii") == quic_initials.content()
    assert len(set(lines())) == quic_initials.OPENINGS
    assert quic.OPENINGS_FILE.stat().st_size < 110_000  # the router's package has 1 MB for everything


def test_the_keys_are_those_of_the_standards_example() -> None:
    # RFC 9001, appendix A.1.
    key, iv, hp = quic_initials.client_keys(bytes.fromhex("8394c8f03e515708"))
    assert key.hex() == "1f369613dd76d5467730efcbe3b1a22d"
    assert iv.hex() == "fa044b2f42a3fd3b46fb255c"
    assert hp.hex() == "9f50449e04a0e810283a1e9933adedd2"


@pytest.mark.parametrize("sizes", [(0, 0), (16, 16), (19, 1165), (1, 15), (33, 100)])
def test_ghash_is_that_of_gcm(sizes: tuple[int, int]) -> None:
    rng = Random(str(sizes))
    key, nonce, aad, plain = (rng.randbytes(size) for size in (16, 12, *sizes))
    sealed = AESGCM(key).encrypt(nonce, plain, aad)
    hash_key = quic_initials._block(key, bytes(16))
    mask = quic_initials._block(key, nonce + b"\0\0\0\1")
    found = quic.ghash(hash_key, aad, sealed[:-16])
    assert bytes(one ^ other for one, other in zip(found, mask, strict=True)) == sealed[-16:]


@pytest.mark.parametrize("line", range(0, quic_initials.OPENINGS, 3))
def test_any_name_fits_any_opening(line: int) -> None:
    rng = Random(line)
    opening = quic.read_opening(lines()[line])
    assert opening.line() == lines()[line]
    for name in ("a.example.org", "rr1---sn-4g5e6nzz.googlevideo.com", "x" * 60 + "." + "y" * 60 + ".example.org"):
        datagram = quic.initial(opening, "quic", name, alpn=("h3",), random_bytes=rng.randbytes)
        assert len(datagram) == 1200
        frames = quic_initials.open_initial(datagram)
        crypto = frames.lstrip(b"\0")
        assert crypto[:2] == b"\x06\x00"
        assert crypto[4] == 1  # a ClientHello
        assert name.encode() in crypto
        broken = datagram[:600] + bytes([datagram[600] ^ 1]) + datagram[601:]
        with pytest.raises(InvalidTag):
            quic_initials.open_initial(broken)


@pytest.mark.parametrize("app", APPS)
def test_the_arms_differ_in_name_and_ids_alone(app: str) -> None:
    rng = Random(app)
    arms = dress(load(app), load_neutral(), rng, rng.randbytes)
    opened = {}
    for arm in (arms.app, arms.control, arms.placebo):
        frames = quic_initials.open_initial(arm.flight)
        assert frames.count(arm.name.encode()) == 1
        assert b"\x02h3" in frames
        opened[arm.name] = frames.index(arm.name.encode())
        # The server's packet and each later datagram have the connection id that the server chose.
        assert arm.answer[1:5] == b"\0\0\0\1"
        assert arm.answer[7:15] == arm.head[1:]
        assert arm.head[0] & 0xE0 == 0x40  # short header, fixed bit, no spin (RFC 9000, section 17.3.1)
    assert len(set(opened.values())) == 1  # the name stands at the same place
    ids = {arm.flight[6:14] for arm in (arms.app, arms.control, arms.placebo)}
    assert len(ids) == 3
    assert arms.app.name in load(app).names


def test_sessions_draw_other_openings() -> None:
    drawn = {opening.connection for seed in range(60) for opening in quic.openings(Random(seed), count=3)}
    assert len(drawn) > 50


def test_a_hello_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        quic.payload("chrome", "a.example.org", alpn=("h3",), random_bytes=Random(1).randbytes)

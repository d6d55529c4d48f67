# SPDX-License-Identifier: EUPL-1.2
"""First bytes are data: words become bytes, lengths are fixed, and the opaque arm is as long and says nothing."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.profiles import firstbytes
from probe.profiles.dress import ANNOUNCED, OPAQUE_LABELS, Arms, dress
from probe.profiles.model import Profile, every, load, load_neutral
from probe.profiles.schema import BytesCarrier

POOL = load_neutral()
PROFILES = {app: load(app) for app in every()}
BARE = [app for app, profile in PROFILES.items() if profile.bytes is not None]


def made(*words: str) -> bytes:
    return firstbytes.make(firstbytes.read(words), {}, Random(1).randbytes)


def dressed(app: str, seed: int = 1) -> Arms:
    rng = Random(seed)
    return dress(PROFILES[app], POOL, rng, rng.randbytes)


def test_words_become_bytes() -> None:
    assert made("hex 13 00ff", "text ab c", "line x: y", "line") == b"\x13\x00\xffab cx: y\r\n\r\n"
    twice = made("random 8 id", "hex 00", "again id")
    assert twice[:8] == twice[9:]
    letters = made("letters 300")
    assert letters.isalnum()
    assert letters.islower()
    assert set(Counter(letters).values()) <= set(range(1, 40))


def test_a_fingerprint_is_the_crc_of_what_stands_before_it() -> None:
    # RFC 8489, section 14.7.
    raw = made("hex 0001 0008 2112a442", "random 12", "fingerprint")
    assert raw[-8:-4] == bytes.fromhex("80280004")
    assert int.from_bytes(raw[-4:], "big") == zlib.crc32(raw[:-8]) ^ 0x5354554E


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("hex 1", "not hexadecimal"),
        ("hex zz", "not hexadecimal"),
        ("text é", "not ASCII"),
        ("random", "number of bytes"),
        ("random 0", "number of bytes"),
        ("random 1201", "number of bytes"),
        ("random ²", "number of bytes"),
        ("letters -4", "number of bytes"),
        ("again id", "names nothing"),
        ("bytes 4", "begins with none of"),
        ("", "begins with none of"),
    ],
)
def test_a_word_that_says_nothing_is_refused(word: str, why: str) -> None:
    with pytest.raises(firstbytes.WordError, match=why):
        firstbytes.read([word])
    with pytest.raises(firstbytes.WordError, match="second time"):
        firstbytes.read(["random 4 id", "random 4 id"])


words = st.one_of(
    st.binary(min_size=1, max_size=20).map(lambda raw: f"hex {raw.hex()}"),
    st.integers(1, 60).map(lambda count: f"random {count}"),
    st.integers(1, 60).map(lambda count: f"letters {count}"),
    st.just("fingerprint"),
    st.text("abc :/", max_size=20).map(lambda text: f"line {text}"),
)


@given(st.lists(words, max_size=8))
def test_the_length_follows_from_the_words_alone(drawn: list[str]) -> None:
    parts = firstbytes.read(drawn)
    assert len(firstbytes.make(parts, {}, os.urandom)) == firstbytes.size(parts)


@pytest.mark.parametrize("app", [app for app, profile in PROFILES.items() if profile.carrier in ANNOUNCED])
def test_all_arms_are_equally_long_and_different(app: str) -> None:
    arms = dressed(app)
    shown = (arms.app, arms.control, arms.placebo)
    lengths = {(len(arm.flight), len(arm.answer), len(arm.head)) for arm in shown}
    assert len(lengths) == 1
    assert len({arm.flight for arm in shown}) == len({arm.name for arm in shown}) == 3
    (flight, answer, head) = lengths.pop()
    assert 0 < flight <= 1200
    assert answer <= 512
    assert head <= 32
    assert bool(head) == (load(app).carrier != "stream")
    # What is random on the wire is drawn anew; a game's query is the same for everybody, its server's answer is not.
    again = dressed(app, seed=2).app
    assert (again.flight, again.answer) != (arms.app.flight, arms.app.answer)
    assert again.flight != arms.app.flight or app.startswith("source-engine")


@pytest.mark.parametrize("app", BARE)
def test_the_opaque_arm_is_noise_whose_first_byte_no_protocol_has(app: str) -> None:
    assert dressed(app).app.name == app
    first = Counter[int]()
    for seed in range(200):
        arms = dressed(app, seed)
        assert (arms.control.name, arms.placebo.name) == OPAQUE_LABELS
        for arm in (arms.control, arms.placebo):
            for part in (arm.flight, arm.answer, arm.head):
                first.update(part[:1])
                assert part[2:3] != b"\x04"
    stream = PROFILES[app].carrier == "stream"
    assert set(first) == set(range(0xE4, 0xEC) if stream else range(0x18, 0x20))  # spec/profiles.md, "First bytes"
    assert max(first.values()) < 3 * min(first.values())
    assert not [byte for byte in first if byte == 0x16 or 32 <= byte < 127]


def known_beginnings(profile: Profile) -> bytes:
    """The first bytes of the app's protocol; a live profile (sent in small packets) begins like any other."""
    return {
        "bittorrent": b"\x13BitTorrent protocol",
        "bittorrent+udp": b"d1:ad2:id20:",
        "openvpn": b"\x38",
        "openvpn+tcp": b"\x00\x2a\x38",
        "rtp": b"\x80\x80",
        "source-engine": b"\xff\xff\xff\xffTSource Engine Query\0",
        "sip": b"REGISTER sip:",
        "sip+tcp": b"REGISTER sip:",
        "stun": b"\x00\x01",
        "stun+tcp": b"\x00\x01",
        "wireguard": b"\x01\x00\x00\x00",
    }[profile.id.removesuffix("+live")]


@pytest.mark.parametrize("app", BARE)
def test_the_first_bytes_are_those_of_the_protocol(app: str) -> None:
    arm = dressed(app).app
    assert arm.flight.startswith(known_beginnings(load(app)))
    lengths = {"wireguard": (148, 92), "openvpn": (42, 54), "openvpn+tcp": (44, 56)}
    assert (len(arm.flight), len(arm.answer)) == lengths.get(app, (len(arm.flight), len(arm.answer)))


def test_answers_refer_to_what_was_asked() -> None:
    openvpn, tunnel, torrent, call = (dressed(app).app for app in ("openvpn", "wireguard", "bittorrent", "stun"))
    assert openvpn.flight[1:9] in openvpn.answer  # the client's session id, acknowledged
    assert tunnel.flight[4:8] == tunnel.answer[8:12] == tunnel.head[4:8]  # the initiator's index
    assert torrent.flight[28:48] == torrent.answer[28:48]  # info_hash
    assert call.flight[8:20] == call.answer[8:20]  # transaction id
    for part in (call.flight, call.answer):
        assert int.from_bytes(part[2:4], "big") == len(part) - 20


def test_a_message_over_tcp_has_its_length_before_it() -> None:
    arm = dressed("openvpn+tcp").app
    for part in (arm.flight, arm.answer):
        assert int.from_bytes(part[:2], "big") == len(part) - 2
    torrent = dressed("bittorrent").app.flight
    assert int.from_bytes(torrent[68:72], "big") == len(torrent) - 72  # BEP 10: the extension handshake


def test_words_are_kept_by_the_profile() -> None:
    assert isinstance(load("wireguard").bytes, BytesCarrier)

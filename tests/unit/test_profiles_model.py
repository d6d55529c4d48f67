# SPDX-License-Identifier: EUPL-1.2
"""App profiles: what is shipped is sound, and what is wrong is named by its path."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.profiles.dress import dress
from probe.profiles.model import (
    DEFAULT_APPS,
    LIBRARY,
    AppFile,
    NeutralPool,
    ProfileError,
    Shelf,
    available,
    every,
    load,
    load_neutral,
    parse,
    parse_document,
)
from probe.profiles.reading import document_of
from probe.wire.codec import dumps, from_dict
from probe.wire.records import PlannedProfile
from probe.wire.scrub import address_path, find_address

GOOD = (LIBRARY / "youtube.toml").read_text(encoding="utf-8")
GOOD_POOL = (LIBRARY / "neutral.toml").read_text(encoding="utf-8")


def test_the_default_apps_are_a_video_a_social_and_a_call_signalling_one() -> None:
    assert [load(app).kind for app in DEFAULT_APPS] == ["video", "social", "call_signalling"]


@pytest.mark.parametrize("app", every())
def test_every_shipped_profile_loads_and_says_where_its_facts_come_from(app: str) -> None:
    profile = load(app)
    assert profile.id == app
    assert re.fullmatch(rf"{re.escape(app)}@[0-9]+:[0-9a-f]{{16}}", profile.reference)
    assert len(profile.names) >= (3 if profile.carrier == "tls" else 0)
    assert all(source for source in profile.sources)
    # One component under one domain: a rule for the component's domain must meet every name that may be drawn.
    assert len({".".join(name.split(".")[-2:]) for name in profile.names}) <= 1


def test_no_neutral_domain_or_word_is_part_of_an_apps_name() -> None:
    pool = load_neutral()
    names = [name for app in every() for name in load(app).names]
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


def test_there_are_the_apps_that_people_ask_about() -> None:
    wanted = "youtube netflix disneyplus twitch tiktok vrtmax auvio spotify facebook instagram x whatsapp signal teams"
    named = {app for app in available() if load(app).carrier == "tls"}
    assert named >= {*wanted.split(), "zoom", "steam"}
    assert all(f"{app}+hello" in every() for app in named)
    live = {app for app in every() if load(app).live is not None}
    bare = {app for app in every() if load(app).bytes is not None}
    udp = {app for app in bare if load(app).carrier == "datagram"}
    assert udp - live == {"bittorrent+udp", "wireguard", "openvpn", "sip", "rtp", "stun", "source-engine"}
    assert live == {"rtp+live", "stun+live", "source-engine+live", "teams+live"}
    assert bare - udp == {"bittorrent", "openvpn+tcp", "sip+tcp", "stun+tcp"}
    assert {load(app).app for app in every() if load(app).carrier == "quic"} == {"youtube", "facebook", "instagram"}


def test_a_carrier_behind_the_id_is_a_profile_of_its_own() -> None:
    plain, quic = load("youtube"), load("youtube+quic")
    assert (quic.id, quic.app, quic.carrier, quic.alpn) == ("youtube+quic", "youtube", "quic", ("h3",))
    assert quic.names == plain.names
    assert quic.reference == f"youtube+quic@{plain.version}:{plain.digest[:16]}"
    assert len({getattr(quic.title, code) for code in ("en", "nl", "fr", "de")}) > 1
    assert quic.title.fr == "YouTube (vidéo), sur QUIC"
    assert set(plain.sources) < set(quic.sources)
    assert (load("bittorrent").carrier, load("bittorrent+udp").carrier) == ("stream", "datagram")
    with pytest.raises(ProfileError, match=r"'youtube\+udp'; known are youtube, youtube\+hello, youtube\+quic$"):
        load("youtube+udp")
    with pytest.raises(ProfileError, match="there is no app profile"):
        load("youtube+tls")


BARE = (LIBRARY / "wireguard.toml").read_text(encoding="utf-8")
STREAM = (LIBRARY / "bittorrent.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "old", "new", "path"),
    [
        (GOOD, 'shape = "chrome"', 'shape = "lynx"', "carriers.hello.shape"),
        (GOOD, 'shape = "chrome"', "", "carriers.hello.shape"),
        (GOOD, 'shape = "chrome"', 'shape = "chrome"\nnmaes = []', "carriers.hello.nmaes"),
        (GOOD, 'shape = "chrome"', 'shape = "chrome"\nnames = []', "carriers.hello.names"),
        (GOOD, 'shape = "chrome"', 'shape = "chrome"\nnames = ["a.b.be", "a.c.be"]', "carriers.hello.names"),
        (GOOD, 'shape = "chrome"', 'shape = "chrome"\nsources = ["a", "a"]', "carriers.hello.sources"),
        (GOOD, "[carriers.hello]", '[carriers.tls]\nshape = "chrome"\n[carriers.hello]', "carriers.tls.shape"),
        (GOOD, "[carriers.hello]", "[carriers.pigeon]", "carriers.pigeon"),
        (GOOD, 'kind = "video"', 'kind = "video"\ncarrier = "pigeon"', "carrier"),
        (GOOD, 'kind = "video"', 'kind = "video"\ncarrier = "stream"', "carriers.stream"),
        (GOOD, '"rr6---sn-25glenlz.googlevideo.com"', '"rr6.example.org"', "names"),
        (BARE, 'carrier = "datagram"', "", "names"),
        (BARE, 'carrier = "datagram"', 'carrier = "tls"\nnames = ["a.example.org"]', "alpn"),
        (BARE, '"hex 04000000"', '"hex 0400000"', "carriers.datagram.head"),
        (BARE, '"hex 04000000"', '"hex 04"\n, "random 31"', "carriers.datagram.head"),
        (BARE, '"random 48"', '"random 1101"', "carriers.datagram.flight"),
        (BARE, '"again client",\n  "random 32"', '"again clinet"', "carriers.datagram.answer"),
        (BARE, '"random 16",\n  "random 16"', '"random 480"', "carriers.datagram.answer"),
        (BARE, "[carriers.datagram]", "[carriers.datagram]\nshape = 'chrome'", "carriers.datagram.shape"),
        (BARE, "flight = [", "flihgt = [", "carriers.datagram.flihgt"),
        (BARE, '"hex 04000000",\n  "again client",\n  "hex 0000000000000000",', '"hex"', "carriers.datagram.head"),
        (STREAM, '"hex 13"', '"hex 16"', "carriers.stream.flight"),
        (STREAM, '"hex 13"', '"random 1"', "carriers.stream.flight"),
        (STREAM, '"hex 13"', '"text "', "carriers.stream.flight"),
    ],
)
def test_a_wrong_carrier_is_named_by_its_path(content: str, old: str, new: str, path: str) -> None:
    assert old in content
    with pytest.raises(ProfileError, match=rf"^file\.toml: {re.escape(path)}: ") as caught:
        parse(AppFile, content.replace(old, new), "file.toml")
    assert "\n" not in str(caught.value)


def test_a_datagram_needs_a_head_and_a_stream_has_none() -> None:
    headless = BARE[: BARE.index("head = [")]
    with pytest.raises(ProfileError, match=r"carriers\.datagram\.head: "):
        parse(AppFile, headless, "file.toml")
    with pytest.raises(ProfileError, match=r"carriers\.stream\.head: "):
        parse(AppFile, BARE.replace("datagram", "stream"), "file.toml")


# -- in a plan --------------------------------------------------------------------------------------------------------


def planned(content: str, name: str = "youtube") -> PlannedProfile:
    return PlannedProfile(id=name, document=document_of(content, f"{name}.toml"))


@pytest.mark.parametrize("app", [*available(), "neutral"])
def test_a_file_as_a_document_says_the_same_under_the_same_digest(app: str) -> None:
    document = Shelf().document(app)
    cls = NeutralPool if app == "neutral" else AppFile
    content = (LIBRARY / f"{app}.toml").read_text(encoding="utf-8")
    assert parse_document(cls, document, "plan") == parse(cls, content, "file")
    assert parse_document(cls, document, "plan").digest == hashlib.sha256(document.encode()).hexdigest()
    # A plan carries it: within its length, and nothing in it looks like an address.
    from_dict(PlannedProfile, {"id": app, "document": document})
    assert address_path(json.loads(document)) is None
    assert find_address(document) is None


def test_a_delivered_profile_takes_the_place_of_the_installed_one() -> None:
    newer = GOOD.replace("version = 1", "version = 2").replace("rr6---sn-25glenlz", "rr7---sn-25glenlz")
    fresh = GOOD.replace("youtube", "other").replace("YouTube", "Other")
    shelf = Shelf(delivered=[planned(newer), planned(fresh, "other")])
    assert shelf.load("youtube+quic").reference.startswith("youtube+quic@2:")
    assert "rr7---sn-25glenlz.googlevideo.com" in shelf.load("youtube").names
    assert {"other", "other+hello", "other+quic"} < set(shelf.every())
    assert shelf.load("netflix") == load("netflix")
    same = GOOD.replace("pace_mbps = 8.0", "pace_mbps = 9.0")
    assert Shelf(delivered=[planned(same)]).load("youtube").pace_mbps == 9.0
    words = GOOD_POOL.replace("version = 2", "version = 3").replace('"tavelo.com"', '"tavela.com"')
    assert "tavela.com" in Shelf(delivered=[planned(words, "neutral")]).neutral().domains
    arms = dress(shelf.load("other"), load_neutral(), Random(1), Random(1).randbytes)
    assert arms.app.name.endswith(".googlevideo.com")


def test_an_older_profile_than_the_installed_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "youtube.toml").write_text(GOOD.replace("version = 1", "version = 5"), encoding="utf-8")
    assert Shelf(tmp_path, [planned(GOOD.replace("version = 1", "version = 5"))]).load("youtube").version == 5
    with pytest.raises(ProfileError, match=r"^plan: profiles: youtube: version: 4 is older than the installed 5$"):
        Shelf(tmp_path, [planned(GOOD.replace("version = 1", "version = 4"))])


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 5),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=5),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@given(st.sampled_from(["youtube", "bittorrent", "wireguard", "neutral"]), st.data())
def test_no_document_breaks_the_reader(app: str, data: st.DataObject) -> None:
    document = json.loads(Shelf().document(app))
    place = document
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    try:
        shelf = Shelf(delivered=[PlannedProfile(id=app, document=dumps(document).decode("utf-8", "replace"))])
    except (ProfileError, UnicodeEncodeError):
        return
    for name in Shelf(delivered=()).every() if app == "neutral" else (app,):
        rng = Random(1)
        with contextlib.suppress(ProfileError):  # a pool may be too poor for a name
            dress(shelf.load(name), shelf.neutral(), rng, rng.randbytes)


def test_a_delivered_profile_is_checked_like_a_file() -> None:
    with pytest.raises(ProfileError, match=r"^plan: profiles: other: id: "):
        Shelf(delivered=[PlannedProfile(id="other", document=planned(GOOD).document)])
    with pytest.raises(ProfileError, match="is there twice"):
        Shelf(delivered=[planned(GOOD), planned(GOOD)])
    document = planned(GOOD).document
    for broken, why in (
        (document.replace('"direction":"down"', '"direction":"aside"'), "direction: "),
        (document.replace('"kind"', '"knid"'), "knid: unknown key"),
        (document.replace('":', '": ', 1), "is not canonical JSON"),
        (document[:-1], "not json"),
        ("[]", "is not canonical JSON"),
        ("\ud800", "youtube: "),
        ('{"a":1,"a":1}', "duplicate key"),
    ):
        with pytest.raises(ProfileError, match=why) as caught:
            Shelf(delivered=[PlannedProfile(id="youtube", document=broken)])
        assert str(caught.value).startswith("plan: profiles: youtube")
        assert "\n" not in str(caught.value)

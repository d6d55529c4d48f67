# SPDX-License-Identifier: EUPL-1.2
"""A plan is followed within limits that no plan can lift; everything else is one sentence, whatever the bytes are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.ask import Answer, read_answer
from probe.nettests.base import Options
from probe.nettests.differential import Differential
from probe.plan import (
    MOST_VALID_MS,
    Budgets,
    PlanError,
    SignedPlan,
    accept,
    budgets,
    ceiling,
    judge,
    keep,
    session_bytes,
    stored,
    usable,
)
from probe.settings import Settings
from probe.wire.codec import dumps, to_dict
from probe.wire.envelope import Envelope, decode, encode, seal, to_json, to_line
from probe.wire.records import Leave, Plan, PlannedNettest, PlannedReflector, Weight
from probe.wire.signing import SeedSigner

COLLECTOR = SeedSigner(b"\x0c" * 32)
REFLECTOR = SeedSigner(b"\x0e" * 32).key_id
PIN = "#sha256=" + "ab" * 32
NOW = 1_790_000_000_000
DAY_MS = 86_400_000
WORK = PlannedNettest(nettest="differential", apps=("youtube", "netflix"))
HALF = Weight(app="youtube", direction="down", access="fixed", effect="slowing", weight=0.5)


def plan(**changes: Any) -> Plan:
    made = Plan(
        type="plan",
        v=1,
        version=7,
        issued_ms=NOW - 1000,
        expires_ms=NOW + 14 * DAY_MS,
        reflectors=(PlannedReflector(url="https://r1.example:8443", key=REFLECTOR),),
        nettests=(WORK,),
        weights=(HALF, replace(HALF, effect="blocking")),
    )
    return replace(made, **changes)


def signed(made: Plan | None = None, signer: SeedSigner = COLLECTOR) -> SignedPlan:
    made = made or plan()
    return SignedPlan(plan=made, envelope=seal(made, signer))


def verdict(made: Plan, **known: Any) -> str:
    """The code with which a plan is refused; empty where it is followed."""
    try:
        followed = accept(seal(made, COLLECTOR), COLLECTOR.key_id, NOW, **known)
    except PlanError as error:
        assert str(error).isprintable()
        assert not str(error).endswith(".")
        return error.reason
    assert followed == made
    return ""


# -- what is followed, and what is not --------------------------------------------------------------------------


def test_a_good_plan_is_followed() -> None:
    assert verdict(plan()) == ""
    assert verdict(plan(reflectors=(), nettests=(), weights=())) == ""


@pytest.mark.parametrize(
    ("known", "code"),
    [
        ({}, ""),
        ({"known_version": 7}, ""),
        ({"known_version": 6, "known_digest": "00" * 32}, ""),
        ({"known_version": 7, "known_digest": seal(plan(), COLLECTOR).digest}, ""),
        ({"known_version": 7, "known_digest": "00" * 32}, "rolled_back"),
        ({"known_version": 8}, "rolled_back"),
        ({"known_version": 8, "known_digest": seal(plan(), COLLECTOR).digest}, "rolled_back"),
    ],
)
def test_versions_only_rise(known: dict[str, Any], code: str) -> None:
    assert verdict(plan(), **known) == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"issued_ms": NOW + 600_000}, ""),
        ({"issued_ms": NOW + 600_001}, "from_the_future"),
        ({"expires_ms": NOW + 1}, ""),
        ({"expires_ms": NOW}, "expired"),
        ({"issued_ms": NOW, "expires_ms": NOW + MOST_VALID_MS}, ""),
        ({"issued_ms": NOW, "expires_ms": NOW + MOST_VALID_MS + 1}, "absurd"),
        ({"daily_mb": 400}, ""),
        ({"daily_mb": 401}, "absurd"),
        ({"monthly_mb": 10_000}, ""),
        ({"monthly_mb": 10_001}, "absurd"),
        ({"hotspot_daily_mb": 401}, "absurd"),
        ({"hotspot_monthly_mb": 10_001}, "absurd"),
        ({"interval_s": 600}, ""),
        ({"interval_s": 599}, "unreadable"),
        ({"nettests": (replace(WORK, pairs=1),) * 64}, ""),
        ({"nettests": (replace(WORK, pairs=1),) * 65}, "unreadable"),
        ({"nettests": (replace(WORK, most_pace_mbps=50.0, segment_s=1.0),)}, ""),
        ({"nettests": (replace(WORK, most_pace_mbps=50.001, segment_s=1.0),)}, "absurd"),
        ({"nettests": (WORK, replace(WORK, pairs=512))}, "absurd"),
        ({"daily_mb": 56}, "absurd"),
        ({"daily_mb": 57}, ""),
        ({"daily_mb": 0}, ""),
        ({"weights": (replace(HALF, weight=1.0), replace(HALF, weight=1e-12))}, ""),
        ({"weights": (HALF, HALF, replace(HALF, weight=0.001))}, "absurd"),
        ({"weights": (replace(HALF, weight=0.1),) * 10}, ""),
    ],
)
def test_limits_hold_to_the_unit(changes: dict[str, Any], code: str) -> None:
    assert verdict(plan(**changes)) == code


@pytest.mark.parametrize(
    ("url", "portal", "is_good"),
    [
        ("https://r1.example", None, True),
        ("https://r1.example:8443" + PIN, "http://R1.example:8080/", True),
        ("https://198.51.100.7:443", None, False),  # reserved, so no public place
        ("https://9.9.9.9:443", "http://9.9.9.9", True),
        ("https://192.168.1.1:443", None, False),
        ("https://192.168.1.1:443" + PIN, None, True),
        ("https://127.0.0.1:443", None, False),
        ("https://[fe80::1]:443", None, False),
        ("https://router", None, False),
        ("https://router.lan", None, False),
        ("https://r1.example:0", None, False),
        ("https://r1.example:70000", None, False),
        ("https://r1.example#md5=00", None, False),
        ("https://user@r1.example", None, False),
        ("https://r1.example?x=1", None, False),
        ("https://r1.example", "http://victim.example/", False),
        ("https://r1.example", "http://r1.example:99999", False),
    ],
)
def test_no_plan_sends_a_probe_to_its_own_house_or_to_third_parties(
    url: str, portal: str | None, is_good: bool
) -> None:
    made = plan(reflectors=(PlannedReflector(url=url, key=REFLECTOR, portal=portal),))
    assert verdict(made) == ("" if is_good else "absurd")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"url": "http://r1.example"}, "unreadable"),
        ({"url": "https:// r1.example"}, "unreadable"),
        ({"key": "A" * 42}, "unreadable"),
        ({"key": "A" * 42 + "B"}, "absurd"),  # 43 characters that are no 32 bytes
        ({"portal": "https://r1.example"}, "unreadable"),
    ],
)
def test_a_reflector_needs_https_and_a_key(changes: dict[str, Any], code: str) -> None:
    assert verdict(plan(reflectors=(replace(plan().reflectors[0], **changes),))) == code


def test_another_signer_another_record_and_a_broken_signature() -> None:
    envelope = seal(plan(), COLLECTOR)
    other = SeedSigner(b"\x0d" * 32)
    leave = seal(Leave(type="leave", v=1, collector=COLLECTOR.key_id, at_ms=NOW), COLLECTOR)
    broken = Envelope(payload=envelope.payload + b" ", key=envelope.key, signature=envelope.signature)
    for it, key, code in (
        (envelope, other.key_id, "another_key"),
        (seal(plan(), other), COLLECTOR.key_id, "another_key"),
        (envelope, "no key", "another_key"),
        (leave, COLLECTOR.key_id, "not_a_plan"),
        (broken, COLLECTOR.key_id, "bad_signature"),
    ):
        with pytest.raises(PlanError) as refused:
            accept(it, key, NOW)
        assert refused.value.reason == code


# -- hostile plans: any change, any bytes -----------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def resealed(document: Any) -> Envelope:
    """Signed with the collector's own key, as a thief of it would."""
    payload = dumps(document)
    return Envelope(payload=payload, key=COLLECTOR.public_key, signature=COLLECTOR.sign(payload))


def within_limits(made: Plan) -> bool:
    return (
        made.daily_mb <= 400
        and made.monthly_mb <= 10_000
        and made.interval_s >= 600
        and len(made.nettests) <= 64
        and all(nettest.most_pace_mbps <= 50 for nettest in made.nettests)
        and all(reflector.url.startswith("https://") for reflector in made.reflectors)
        and made.issued_ms <= NOW + 600_000
        and NOW < made.expires_ms <= made.issued_ms + MOST_VALID_MS
        and made.version >= 5
    )


@given(st.data())
@settings(max_examples=150)
def test_any_value_in_any_place_is_within_the_limits_or_refused(data: st.DataObject) -> None:
    document = to_dict(plan())
    spot: Any = document
    for _ in range(data.draw(st.integers(0, 2))):
        inner = [key for key in spot if isinstance(spot[key], list) and spot[key]]
        if not inner:
            break
        spot = spot[data.draw(st.sampled_from(inner))][0]
        if not isinstance(spot, dict):
            spot = document
    spot[data.draw(st.sampled_from(sorted(spot)) | st.text(max_size=5))] = data.draw(JSON)
    try:
        made = accept(resealed(document), COLLECTOR.key_id, NOW, 5)
    except PlanError as error:
        assert str(error).isprintable()
        return
    assert within_limits(made)


@given(st.binary(max_size=300))
def test_any_signed_bytes_are_refused(raw: bytes) -> None:
    envelope = Envelope(payload=raw, key=COLLECTOR.public_key, signature=COLLECTOR.sign(raw))
    with pytest.raises(PlanError):
        accept(envelope, COLLECTOR.key_id, NOW)


@given(st.data())
@settings(max_examples=60)
def test_one_changed_bit_anywhere_is_refused(data: st.DataObject) -> None:
    whole = seal(plan(), COLLECTOR)
    part = data.draw(st.sampled_from(["payload", "key", "signature"]))
    raw = bytearray(getattr(whole, part))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(PlanError):
        accept(replace(whole, **{part: bytes(raw)}), COLLECTOR.key_id, NOW)


@given(st.integers(100, 599), st.binary(max_size=200) | JSON.map(dumps) | JSON.map(lambda v: dumps({"envelope": v})))
@settings(max_examples=150)
def test_any_answer_of_a_collector_is_data(status: int, body: bytes) -> None:
    found = judge(read_answer(status, body), collector_key=COLLECTOR.key_id, now_ms=NOW)
    assert found.status in {"failed", "refused", "none"}
    assert found.detail
    assert found.detail.isprintable()


@given(st.data())
@settings(max_examples=150)
def test_one_changed_byte_of_an_answer_changes_no_plan(data: st.DataObject) -> None:
    body = bytearray(dumps({"envelope": to_json(seal(plan(), COLLECTOR))}))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    found = judge(read_answer(200, bytes(body)), collector_key=COLLECTOR.key_id, now_ms=NOW)
    assert found.found is None or found.found.plan == plan()
    assert found.status in {"failed", "refused"} or found.found is not None


# -- answers of a collector -------------------------------------------------------------------------------------


def answered(made: SignedPlan) -> Answer:
    return Answer(status=200, plain={"envelope": to_json(made.envelope)})


def test_what_an_answer_means() -> None:
    known, newer = signed(), signed(plan(version=8))
    ask = {"collector_key": COLLECTOR.key_id, "now_ms": NOW}
    assert judge(answered(known), **ask).found == known
    assert judge(answered(known), **ask).status == "new"
    assert judge(answered(newer), **ask, known=known).found == newer
    assert judge(answered(known), **ask, known=known).status == "unchanged"
    assert judge(Answer(status=304), **ask, known=known).found == known
    assert judge(Answer(status=304), **ask).status == "failed"  # nothing to be unchanged
    assert judge(answered(known), **ask, known=newer).status == "refused"
    assert judge(answered(signed(plan(daily_mb=100))), **ask, known=known).status == "refused"
    assert judge(answered(signed(plan(expires_ms=NOW))), **ask, known=signed(plan(version=6))).status == "refused"
    assert judge(Answer(status=404, error="no_plan"), **ask).status == "none"
    assert judge(Answer(status=404, error="not_found", detail="x"), **ask).status == "refused"
    assert judge(Answer(status=201), **ask).status == "failed"
    assert judge(Answer(status=400, error="bad_query", detail="x"), **ask).status == "refused"
    waiting = judge(Answer(status=503, failure="http_error", detail="x", retry_after_s=40), **ask)
    assert (waiting.status, waiting.failure, waiting.retry_after_s) == ("failed", "http_error", 40)


@pytest.mark.parametrize(
    ("status", "body", "failure", "error"),
    [
        (200, b"[]", "http_error", ""),
        (200, b"\xff", "http_error", ""),
        (302, b"", "http_error", ""),
        (429, b'{"error":"slow_down"}', "http_error", "slow_down"),
        (500, b"<html>", "http_error", ""),
        (403, b'{"error":"bad_token","detail":"seen \\u202e at 192.0.2.1"}', None, "bad_token"),
        (403, b'{"error":{"a":1}}', None, "status_403"),
        (400, b"no", None, "status_400"),
    ],
)
def test_what_a_status_means(status: int, body: bytes, failure: str | None, error: str) -> None:
    answer = read_answer(status, body, 65_536, 7)
    assert (answer.failure, answer.error) == (failure, error)
    assert answer.detail
    assert answer.detail.isprintable()
    assert "192.0.2.1" not in answer.detail
    assert answer.retry_after_s == (7 if status in {429, 500} else None)


# -- files ------------------------------------------------------------------------------------------------------


def test_the_newest_plan_outlives_the_process_and_a_spoilt_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "plan.jsonl"
    assert stored(path, COLLECTOR.key_id) is None
    keep(path, signed())
    assert stored(path, COLLECTOR.key_id) == signed()
    assert stored(path, REFLECTOR) is None
    whole = path.read_bytes()
    for spoilt in (b"", whole[: len(whole) // 2], whole[:-30] + b"A" * 27 + b'"}\n', b"{}", b"\xff" * 3_000_000):
        path.write_bytes(spoilt)
        assert stored(path, COLLECTOR.key_id) is None
    path.write_bytes(to_line(seal(Leave(type="leave", v=1, collector=REFLECTOR, at_ms=NOW), COLLECTOR)))
    assert stored(path, COLLECTOR.key_id) is None


def test_an_expired_plan_is_still_known_but_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "plan.jsonl"
    keep(path, signed())
    found = stored(path, COLLECTOR.key_id)
    assert found is not None
    assert usable(found, COLLECTOR.key_id, NOW) == plan()
    with pytest.raises(PlanError, match="expired") as refused:
        usable(found, COLLECTOR.key_id, NOW + 15 * DAY_MS)
    assert refused.value.reason == "expired"


# -- bytes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["down", "both"])
@pytest.mark.parametrize("app", ["youtube", "teams+live"])
def test_no_session_costs_more_than_is_reckoned(direction: Any, app: str) -> None:
    work = replace(WORK, apps=(app,), direction=direction, pairs=5)
    options = Options(apps=work.apps, pairs=5, direction=direction, most_pace_mbps=12.0, segment_s=4.0)
    cost = Differential().cost(options).bytes
    assert cost is not None
    if app == "youtube":
        assert cost == session_bytes(work)
    else:
        assert 0.7 * session_bytes(work) < cost < session_bytes(work)


def test_what_was_agreed_to_is_never_exceeded() -> None:
    generous = plan(daily_mb=400, monthly_mb=10_000, hotspot_daily_mb=400, hotspot_monthly_mb=10_000)
    sparing = plan(daily_mb=20, monthly_mb=300, hotspot_daily_mb=3, hotspot_monthly_mb=40)
    nobody, hotspot = Settings(), Settings(hotspot=True)
    assert ceiling(nobody) == budgets(None, nobody) == budgets(generous, nobody) == Budgets(200, 5000)
    assert ceiling(hotspot) == budgets(None, hotspot) == budgets(generous, hotspot) == Budgets(30, 500)
    assert budgets(sparing, nobody) == Budgets(20, 300)
    assert budgets(sparing, hotspot) == Budgets(3, 40)
    more = Settings(daily_mb=350, monthly_mb=9000)
    assert budgets(generous, more) == Budgets(350, 9000)
    assert budgets(plan(), more) == Budgets(200, 5000)
    assert budgets(generous, Settings(daily_mb=10**6, monthly_mb=10**6)) == Budgets(400, 10_000)
    assert budgets(generous, Settings(daily_mb=0, monthly_mb=0)) == Budgets(0, 0)


def test_the_payload_survives_its_way_through_json() -> None:
    envelope = seal(plan(), COLLECTOR)
    assert decode(encode(envelope.payload), "payload") == envelope.payload

# SPDX-License-Identifier: EUPL-1.2
"""Whatever arrives: verified envelopes come out, or a rejection with a status and a stable reason. Never a crash."""

import dataclasses
import gzip
import json
import random
import re
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.intake import (
    MAX_AGE_MS,
    MAX_AHEAD_MS,
    EnvelopeRow,
    Rejection,
    Upload,
    admit,
    inflate,
    take_apart,
)
from collector.rehearsal import Rehearsal, signer
from probe.wire.codec import WireError, dumps, to_dict
from probe.wire.envelope import Envelope, read_payload, seal, to_json, to_line
from probe.wire.limits import MAX_BODY_BYTES

NOW = 1_790_000_000_000
RNG = random.Random(5)
REFLECTOR, PROBE, STRANGER = signer(RNG), signer(RNG), signer(RNG)
TRUSTED = frozenset({REFLECTOR.key_id})
TOLD = Rehearsal(rng=RNG, reflector=REFLECTOR).session(PROBE, started_ms=NOW - 60_000, pairs=2)
DOOR = {"measurement": "measurements", "receipt": "receipts", "started": "receipts"}
ENVELOPES = {"measurement": TOLD.measurement, "receipt": TOLD.receipt, "started": TOLD.started[0]}
SIGNERS = {"measurement": PROBE, "receipt": REFLECTOR, "started": REFLECTOR}
KINDS = sorted(ENVELOPES)


def take(envelope, kind, *, now_ms=NOW):
    value = envelope if isinstance(envelope, dict) else to_json(envelope)
    return admit(value, door=DOOR[kind], trusted=TRUSTED, now_ms=now_ms)


def signed(plain, key):
    """Any JSON value at all, signed: the codec is what must refuse it."""
    payload = plain if isinstance(plain, bytes) else dumps(plain)
    return Envelope(payload=payload, key=key.public_key, signature=key.sign(payload))


def changed(kind, **fields):
    return signed({**to_dict(read_payload(ENVELOPES[kind].payload)), **fields}, SIGNERS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_envelope_is_kept_as_it_was_signed(kind):
    row = take(ENVELOPES[kind], kind)
    assert isinstance(row, EnvelopeRow)
    assert (row.payload, row.signature) == (ENVELOPES[kind].payload, ENVELOPES[kind].signature)
    assert (row.kind, row.probe, row.reflector, row.received_ms) == (kind, PROBE.key_id, REFLECTOR.key_id, NOW)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_field_lives_on_in_the_bytes(kind):
    envelope = changed(kind, colour="green")
    row = take(envelope, kind)
    assert isinstance(row, EnvelopeRow)
    assert b'"colour":"green"' in row.payload


def refusal(kind, envelope, **more):
    found = take(envelope, kind, **more)
    assert isinstance(found, Rejection)
    return found.status, found.reason


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"v": 2}, (400, "unknown_version")),
        ({"v": True}, (400, "unknown_version")),
        ({"type": "opinion"}, (400, "unknown_type")),
        ({"type": "plan"}, (400, "wrong_door")),
        ({"session": "xyz"}, (400, "bad_pattern")),
        ({"session": None}, (400, "wrong_type")),
        ({"started_ms": NOW + MAX_AHEAD_MS + 1, "ended_ms": NOW + MAX_AHEAD_MS + 2}, (400, "future_dated")),
        ({"started_ms": NOW - MAX_AGE_MS - 1}, (400, "too_old")),
        ({"started_ms": 5}, (400, "out_of_range")),
        ({"started_ms": 1.5}, (400, "wrong_type")),
        ({"note": "seen from 192.0.2.7"}, (422, "address")),
        ({"deep": [{"er": ["fe80::1%eth0"]}]}, (422, "address")),
        ({"deep": {"02:00:5e:10:00:01": 1}}, (422, "address")),
        ({"nest": json.loads("[" * 11 + "]" * 11)}, None),
        ({"nest": json.loads("[" * 12 + "]" * 12)}, (400, "too_deep")),
        ({"big": 2**53}, (400, "number_too_large")),
        ({"pad": "x" * 1_500_000}, (413, "too_large")),
    ],
)
def test_each_fault_has_its_reason(kind, fields, expected):
    envelope = changed(kind, **fields)
    if expected is None:
        assert isinstance(take(envelope, kind), EnvelopeRow)
    else:
        assert refusal(kind, envelope) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_are_no_json_object_are_refused_by_what_is_wrong(kind):
    key = SIGNERS[kind]
    good = ENVELOPES[kind].payload
    for payload, expected in {
        b"\xff\xfe": "not_utf8",
        b"{": "not_json",
        b"[]": "not_an_object",
        good.replace(b'"v":1', b'"v":1,"v":1'): "duplicate_key",
        good.replace(b'"v":1', b'"v":1,"x":NaN'): "not_finite",
        good.replace(b'"v":1', b'"v":1,"x":-Infinity'): "not_finite",
        good.replace(b'"v":1', b'"v":1,"x":1e999'): "not_finite",
    }.items():
        assert refusal(kind, signed(payload, key)) == (400, expected)


@pytest.mark.parametrize("kind", ["measurement", "receipt"])
def test_a_session_cannot_end_before_it_starts_nor_have_a_pair_twice(kind):
    record = to_dict(read_payload(ENVELOPES[kind].payload))
    assert refusal(kind, changed(kind, ended_ms=record["started_ms"] - 1)) == (400, "ends_before_start")
    assert refusal(kind, changed(kind, pairs=[record["pairs"][0]] * 2)) == (400, "duplicate_pair")


def test_times_inside_a_receipt_are_checked_too():
    record = read_payload(TOLD.receipt.payload)
    segment = dataclasses.replace(record.pairs[0].segments[1], started_ms=NOW + MAX_AHEAD_MS + 1)
    pair = dataclasses.replace(record.pairs[0], segments=(record.pairs[0].segments[0], segment))
    found = take(seal(dataclasses.replace(record, pairs=(pair,)), REFLECTOR), "receipt")
    assert (found.reason, found.path) == ("future_dated", "pairs[0].segments[1].started_ms")


@pytest.mark.parametrize("kind", KINDS)
def test_a_signature_counts_only_over_exactly_these_bytes(kind):
    good = ENVELOPES[kind]
    spaced = dataclasses.replace(good, payload=good.payload + b" ")
    assert refusal(kind, spaced) == (401, "bad_signature")
    assert refusal(kind, dataclasses.replace(good, key=STRANGER.public_key)) == (401, "bad_signature")
    assert refusal(kind, dataclasses.replace(good, signature=bytes(64))) == (401, "bad_signature")


@pytest.mark.parametrize("kind", ["receipt", "started"])
def test_only_trusted_reflectors_are_believed(kind):
    envelope = signed(ENVELOPES[kind].payload, STRANGER)
    assert refusal(kind, envelope) == (403, "untrusted_reflector")


def test_each_door_takes_its_own():
    for kind, door in (("receipt", "measurements"), ("started", "measurements"), ("measurement", "receipts")):
        found = admit(to_json(ENVELOPES[kind]), door=door, trusted=TRUSTED, now_ms=NOW)
        assert (found.status, found.reason) == (400, "wrong_door")


def test_the_path_of_an_address_holds_none():
    found = take(changed("measurement", **{"192.0.2.7": 1}), "measurement")
    assert found.path == "[address]"
    assert found.id == read_payload(TOLD.measurement.payload).id


# Bodies


def test_the_three_forms_of_a_body():
    one, two = (to_json(e) for e in (TOLD.measurement, TOLD.receipt))
    assert take_apart(dumps(one), content_type="application/json") == Upload(single=True, items=(one,))
    batch = dumps({"envelopes": [one, two]})
    assert take_apart(batch, content_type="application/json") == Upload(single=False, items=(one, two))
    lines = to_line(TOLD.measurement) + b"\n\r\n" + to_line(TOLD.receipt)
    assert take_apart(lines, content_type="application/x-ndjson") == Upload(single=False, items=(one, two))
    packed = gzip.compress(batch)
    assert take_apart(packed, content_type="application/json", encoding="gzip") == Upload(
        single=False, items=(one, two)
    )


def test_one_bad_line_does_not_hold_up_the_others():
    found = take_apart(b"{]\n" + to_line(TOLD.measurement), content_type="application/x-ndjson")
    assert [isinstance(item, Rejection) for item in found.items] == [True, False]
    assert found.items[0].reason == "not_json"


@pytest.mark.parametrize(
    ("raw", "content_type", "encoding", "expected"),
    [
        (b"{}", "text/plain", "", (415, "unsupported_type")),
        (b"{}", "", "", (415, "unsupported_type")),
        (b"{}", "application/json", "br", (415, "unsupported_encoding")),
        (b"{}", "application/json", "gzip", (400, "bad_gzip")),
        (gzip.compress(b"{}", mtime=0)[:-3], "application/json", "gzip", (400, "bad_gzip")),
        (gzip.compress(b"{}", mtime=0) + b"tail", "application/json", "gzip", (400, "bad_gzip")),
        (b"", "application/json", "", (400, "not_json")),
        (b"\n\n", "application/x-ndjson", "", (400, "empty")),
        (b'{"envelopes": []}', "application/json", "", (400, "empty")),
        (b'{"envelopes": 3}', "application/json", "", (400, "wrong_type")),
        (b'{"envelopes": [' + b"1," * 100 + b"1]}", "application/json", "", (413, "too_many")),
        (b"1\n" * 101, "application/x-ndjson", "", (413, "too_many")),
        (b" " * (MAX_BODY_BYTES + 1), "application/json", "", (413, "too_large")),
    ],
)
def test_bodies_that_cannot_be_taken_apart(raw, content_type, encoding, expected):
    found = take_apart(raw, content_type=content_type, encoding=encoding)
    assert isinstance(found, Rejection)
    assert (found.status, found.reason) == expected


def test_a_bomb_is_stopped_while_it_inflates():
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(bomb.compress(b"\0" * 2**24) for _ in range(16)) + bomb.flush()  # 256 MB in 260 kB
    tracemalloc.start()
    with pytest.raises(WireError, match="too large"):
        inflate(packed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * MAX_BODY_BYTES
    assert inflate(gzip.compress(b"a" * 100), longest=100) == b"a" * 100


# Hostile input


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def well_formed(found):
    return isinstance(found, EnvelopeRow) or (
        isinstance(found, Rejection)
        and found.status in {400, 401, 403, 413, 415, 422}
        and re.fullmatch(r"[a-z0-9_]+", found.reason) is not None
    )


@given(
    raw=st.binary(max_size=300) | JSON.map(lambda v: json.dumps(v).encode()),
    content_type=st.sampled_from(["application/json", "application/x-ndjson", "text/html"]),
    encoding=st.sampled_from(["", "gzip", "identity", "deflate"]),
    packed=st.booleans(),
)
def test_any_body_is_answered(raw, content_type, encoding, packed):
    found = take_apart(gzip.compress(raw) if packed else raw, content_type=content_type, encoding=encoding)
    if isinstance(found, Rejection):
        assert well_formed(found)
        return
    for item in found.items:
        answer = admit(item, door="measurements", trusted=TRUSTED, now_ms=NOW)
        assert isinstance(answer, Rejection)
        assert well_formed(answer)


def paths(value, here=()):
    yield here
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from paths(value[key], (*here, key))


@settings(max_examples=300)
@given(data=st.data())
def test_any_value_anywhere_in_a_signed_record_is_kept_or_refused(data):
    """A signature over nonsense does not make it sense: each field is put to the test in turn."""
    kind = data.draw(st.sampled_from(KINDS))
    plain = to_dict(read_payload(ENVELOPES[kind].payload))
    path = data.draw(st.sampled_from([path for path in paths(plain) if path]))
    inner = plain
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = data.draw(JSON)
    try:
        payload = json.dumps(plain).encode()  # NaN and Infinity included, as a careless client would
    except UnicodeEncodeError:
        return
    found = take(signed(payload, SIGNERS[kind]), kind)
    assert well_formed(found)
    if isinstance(found, EnvelopeRow):
        assert found.payload == payload


@given(noise=st.binary(min_size=1, max_size=40), at=st.integers(0, 10_000), kind=st.sampled_from(KINDS))
def test_a_changed_byte_is_never_believed(noise, at, kind):
    payload = bytearray(ENVELOPES[kind].payload)
    at %= len(payload)
    payload[at : at + len(noise)] = noise
    envelope = dataclasses.replace(ENVELOPES[kind], payload=bytes(payload))
    if envelope.payload != ENVELOPES[kind].payload:
        assert refusal(kind, envelope)[0] in {401, 413}


def test_every_reason_is_in_the_specification():
    spec = Path(__file__).parents[2].joinpath("spec/api.md").read_text()
    table = spec[spec.index("## Refusals") :]
    source = Path(__file__).parents[2]
    codes = set()
    for name in ("collector/intake.py", "probe/wire/codec.py", "probe/wire/envelope.py", "probe/wire/signing.py"):
        codes |= set(re.findall(r'WireError\(\s*"([a-z0-9_]+)"', (source / name).read_text()))
        codes |= set(re.findall(r'reason="([a-z0-9_]+)"', (source / name).read_text()))
    for file in (source / "collector/api").glob("*.py"):
        codes |= set(re.findall(r'(?:problem\(\s*\d+,\s*|reason=)"([a-z0-9_]+)"', file.read_text()))
    assert len(codes) > 20
    assert {code for code in codes if f"`{code}`" not in table} == set()

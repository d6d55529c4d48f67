# SPDX-License-Identifier: EUPL-1.2
"""The contract holds: golden bytes, schema and code agree; unknown fields live; hostile input gets a reason."""

import dataclasses
import hashlib
import json
import tracemalloc
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.wire import envelope, schema
from probe.wire.codec import WireError, dumps, from_dict, loads, to_dict
from probe.wire.records import (
    RECORD_TYPES,
    Enrolment,
    Environment,
    Leave,
    MeasuredPair,
    MeasuredSegment,
    Measurement,
    Origin,
    Plan,
    PlannedNettest,
    PlannedReflector,
    Receipt,
    ReceiptPair,
    Segment,
    Software,
    Started,
    Weight,
)
from probe.wire.signing import SeedSigner

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
PROBE = SeedSigner(hashlib.sha256(b"golden probe").digest(), "python")
REFLECTOR = SeedSigner(hashlib.sha256(b"golden reflector").digest(), "python")
COLLECTOR = SeedSigner(hashlib.sha256(b"golden collector").digest(), "python")
T0 = 1_790_000_000_000
ORIGIN = Origin(asn=64496, operator="Lane Telecom", country="BE", network="ab" * 8, edge=True)


def examples():
    nonce = hashlib.sha256(b"nonce").hexdigest()
    commit = hashlib.sha256(bytes.fromhex(nonce)).hexdigest()
    done = Segment(
        arm="neutral",
        end="complete",
        name_seen="media.harbourlight.org",
        started_ms=T0 + 50,
        duration_ms=1000,
        bytes=1_500_000,
        bins_ms=tuple(range(100, 1001, 100)),
        bins_bytes=(150_000,) * 10,
        rtt_min_ms=20.0,
        rtt_ms=20.5,
        retransmits=0,
        rwnd_limited_ms=0,
        congestion="cubic",
        paced=True,
    )
    broken = Segment(arm="app", end="reset", name_seen="rr3---sn-5hne6nzs.googlevideo.com", started_ms=T0 + 1400)
    pair = ReceiptPair(
        pair=1,
        kind="test",
        app="youtube",
        profile="youtube@1:0011223344556677",
        direction="down",
        pace_mbps=12.0,
        segment_s=1.0,
        started_ms=T0,
        commit=commit,
        reflector_nonce=nonce,
        endpoint=0,
        outcome="one_failed",
        probe_nonce=nonce,
        neutral_first=True,
        segments=(done, broken),
    )
    session = "0f" * 16
    measured = MeasuredPair(
        pair=1,
        kind="test",
        app="youtube",
        direction="down",
        nonce=nonce,
        segments=(
            MeasuredSegment(arm="neutral", name="media.harbourlight.org", bytes=1_490_000, duration_ms=1003),
            MeasuredSegment(arm="app", name="rr3---sn-5hne6nzs.googlevideo.com", failure="connection_reset"),
        ),
    )
    return {
        "receipt": (
            Receipt(
                type="receipt",
                v=1,
                session=session,
                probe=PROBE.key_id,
                nettest="differential",
                started_ms=T0 - 100,
                ended_ms=T0 + 3000,
                end="closed",
                origin=ORIGIN,
                pairs=(pair,),
                software=Software(version="0.1.0"),
            ),
            REFLECTOR,
        ),
        "started": (
            Started(
                type="started",
                v=1,
                session=session,
                probe=PROBE.key_id,
                nettest="differential",
                pair=1,
                kind="test",
                app="youtube",
                direction="down",
                started_ms=T0,
                commit=commit,
                reflector_nonce=nonce,
                origin=ORIGIN,
            ),
            REFLECTOR,
        ),
        "measurement": (
            Measurement(
                type="measurement",
                v=1,
                id="1e" * 16,
                session=session,
                sequence=7,
                reflector=REFLECTOR.key_id,
                nettest="differential",
                started_ms=T0 - 90,
                ended_ms=T0 + 3100,
                environment=Environment(position="edge", wifi=False, load=0.25),
                pairs=(measured,),
                software=Software(version="0.1.0", python="3.11.7", tls="OpenSSL 3.0.17"),
            ),
            PROBE,
        ),
        "plan": (
            Plan(
                type="plan",
                v=1,
                version=3,
                issued_ms=T0,
                expires_ms=T0 + 86_400_000,
                reflectors=(PlannedReflector(url="https://reflector.example:8443", key=REFLECTOR.key_id),),
                nettests=(PlannedNettest(nettest="differential", apps=("youtube",)),),
                weights=(Weight(app="youtube", direction="down", access="fixed", effect="slowing", weight=0.5),),
            ),
            COLLECTOR,
        ),
        "enrolment": (
            Enrolment(
                type="enrolment",
                v=1,
                collector=COLLECTOR.key_id,
                at_ms=T0,
                consent="2026-11-23",
                language="nl",
                token="r8sQ2c",
                declared_position="router",
                brand="Lane Telecom",
                tariff="Street 100",
                contract_down_mbps=100.0,
                opt_in_filters=False,
            ),
            PROBE,
        ),
        "leave": (Leave(type="leave", v=1, collector=COLLECTOR.key_id, at_ms=T0 + 1), PROBE),
    }


@pytest.mark.parametrize("name", sorted(RECORD_TYPES))
def test_golden_bytes_do_not_change(name):
    """What was signed once must verify and read for ever; regenerate only when a field was ADDED to examples."""
    record, signer = examples()[name]
    golden = (GOLDEN / f"{name}.jsonl").read_bytes()
    assert envelope.to_line(envelope.seal(record, signer)) == golden
    assert envelope.open_record(envelope.from_line(golden)) == record


@pytest.mark.parametrize("name", ["measurement", "plan", "receipt", "started"])
def test_records_signed_before_a_field_was_added_still_verify_and_read(name):
    """These bytes were signed before the carriers came; what they lack takes its default. Never regenerate them."""
    record, _ = examples()[name]
    old = (GOLDEN / "2026-11" / f"{name}.jsonl").read_bytes()
    assert b"carrier" not in envelope.from_line(old).payload
    assert envelope.open_record(envelope.from_line(old)) == record


@pytest.mark.parametrize("name", sorted(RECORD_TYPES))
def test_schema_accepts_the_examples_and_refuses_each_missing_field(name):
    record, _ = examples()[name]
    document = schema.schema_of(RECORD_TYPES[name], name)
    plain = to_dict(record)
    jsonschema.Draft202012Validator(document).validate(plain)
    for field in document["required"]:
        broken = {key: value for key, value in plain.items() if key != field}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(document).validate(broken)
        with pytest.raises(WireError):
            from_dict(RECORD_TYPES[name], broken)


def test_committed_schemas_are_the_generated_ones():
    generated = schema.documents()
    committed = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "spec/schema").glob("*.json")}
    assert committed == generated, "run: python -m probe.wire.schema spec/schema"


@pytest.mark.parametrize("name", sorted(RECORD_TYPES))
def test_every_field_stands_in_the_prose(name):
    """spec/records.md names each field of each record."""
    prose = (ROOT / "spec/records.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(RECORD_TYPES[name]):
        assert f"`{field.name}`" in prose, f"{name}.{field.name} is not described in spec/records.md"


def test_unknown_fields_are_ignored_but_stay_signed():
    record, signer = examples()["started"]
    plain = to_dict(record) | {"from_the_future": {"x": [1, 2]}}
    payload = dumps(plain)
    sealed = envelope.Envelope(payload=payload, key=signer.public_key, signature=signer.sign(payload))
    back = envelope.from_line(envelope.to_line(sealed))
    assert envelope.open_record(back) == record
    assert b"from_the_future" in back.payload


def test_one_changed_bit_breaks_the_signature():
    record, signer = examples()["started"]
    sealed = envelope.seal(record, signer)
    payload = bytearray(sealed.payload)
    payload[len(payload) // 2] ^= 1
    with pytest.raises(WireError, match="bad signature"):
        envelope.open_record(dataclasses.replace(sealed, payload=bytes(payload)))


@pytest.mark.parametrize(
    ("change", "reason", "path"),
    [
        ({"v": 2}, "unknown_version", "v"),
        ({"type": "verdict"}, "unknown_type", "type"),
        ({"type": ["started"]}, "unknown_type", "type"),
        ({"pair": 0}, "out_of_range", "pair"),
        ({"pair": True}, "wrong_type", "pair"),
        ({"pair": 1.0}, "wrong_type", "pair"),
        ({"session": "0g" * 16}, "bad_pattern", "session"),
        ({"app": "You Tube"}, "bad_pattern", "app"),
        ({"direction": "sideways"}, "not_allowed", "direction"),
        ({"started_ms": 5_000_000_000_000}, "out_of_range", "started_ms"),
        ({"origin": []}, "not_an_object", "origin"),
        ({"origin": {"asn": -1}}, "out_of_range", "origin.asn"),
        ({"origin": {"operator": "a\nb"}}, "bad_pattern", "origin.operator"),
    ],
)
def test_a_wrong_field_is_named(change, reason, path):
    record, _ = examples()["started"]
    with pytest.raises(WireError) as caught:
        envelope.read_payload(dumps(to_dict(record) | change))
    assert (caught.value.reason, caught.value.path) == (reason, path)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a":NaN}', "not_finite"),
        (b'{"a":-Infinity}', "not_finite"),
        (b'{"a":1e999}', "not_finite"),
        (b'{"a":1,"a":2}', "duplicate_key"),
        (b'{"a":99999999999999999999}', "number_too_large"),
        (b"[" * 13 + b"]" * 13, "too_deep"),
        (b"[" * 100_000, "too_deep"),
        (b'{"a":', "not_json"),
        (b"\xff", "not_utf8"),
        (b"", "not_json"),
        (b" " * 2_000_000, "too_large"),
        (b'"' + b'\\"' * 700_000, "not_json"),  # an open string of escaped quotes: quadratic for a careless scanner
    ],
)
def test_hostile_json_gets_a_reason(raw, reason):
    with pytest.raises(WireError) as caught:
        loads(raw)
    assert caught.value.reason == reason


def test_a_long_string_costs_little_memory():
    long = b'{"a":"' + b"x" * 1_400_000 + b'"}'
    tracemalloc.start()
    loads(long)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * len(long)


def test_depth_counts_brackets_not_strings():
    assert loads(json.dumps({"a": "[" * 50}).encode()) == {"a": "[" * 50}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.sampled_from(sorted(RECORD_TYPES)), st.data())
def test_any_field_may_hold_anything(name, data):
    """Whatever stands in a field, reading gives a record or a WireError, never another exception."""
    record, _ = examples()[name]
    plain = to_dict(record)
    plain[data.draw(st.sampled_from(sorted(plain)))] = data.draw(_JSON)
    try:
        from_dict(RECORD_TYPES[name], plain)
    except WireError as error:
        assert error.reason


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_reason(raw):
    with pytest.raises(WireError):
        envelope.from_line(raw)


if __name__ == "__main__":  # writes the golden files anew; a diff must show additions only
    for title, (golden_record, golden_signer) in examples().items():
        (GOLDEN / f"{title}.jsonl").write_bytes(envelope.to_line(envelope.seal(golden_record, golden_signer)))

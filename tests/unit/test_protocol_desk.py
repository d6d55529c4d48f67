# SPDX-License-Identifier: EUPL-1.2
"""Whatever a stranger sends on the control channel is answered with a reason, and changes nothing."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.protocol.memory import MemoryReflector, VirtualClock
from probe.protocol.session import decode_hello, decode_message, encode_hello, is_line_quiet, outcome_of
from probe.wire.codec import WireError
from probe.wire.messages import DATA_HELLO_BYTES, DataHello, Problem, SessionGrant
from probe.wire.signing import SeedSigner

NOW = 1_800_000_000_000
KEY = SeedSigner(b"\x01" * 32, "cryptography").key_id
OPENING: dict[str, Any] = {
    "v": 1,
    "probe": KEY,
    "nettest": "differential",
    "pairs": 3,
    "segment_s": 1,
    "pace_mbps": 8,
}
COMMIT: dict[str, Any] = {
    "pair": 1,
    "commit": "0" * 64,
    "kind": "test",
    "app": "youtube",
    "profile": "p",
    "direction": "down",
    "pace_mbps": 8,
    "segment_s": 1,
    "app_name": "a.net",
    "neutral_name": "b.net",
}


def reflector() -> MemoryReflector:
    return MemoryReflector(
        signer=SeedSigner(b"\x02" * 32, "cryptography"),
        clock=VirtualClock(NOW),
        random_bytes=random.Random(1).randbytes,
    )


def opened() -> tuple[MemoryReflector, SessionGrant]:
    there = reflector()
    found = there.request("POST", "/v1/sessions", json.dumps(OPENING).encode())
    return there, decode_message(SessionGrant, found.body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@given(body=st.binary(max_size=300) | json_values.map(lambda v: json.dumps(v).encode()))
def test_bodies_that_are_no_message_are_refused(body: bytes) -> None:
    there, grant = opened()
    base = f"/v1/sessions/{grant.session}"
    for path in ("/v1/sessions", f"{base}/pairs", f"{base}/pairs/1/reveal", f"{base}/pairs/1/finish", f"{base}/close"):
        found = there.request("POST", path, body, grant.token)
        assert found.status == 400
        problem = decode_message(Problem, found.body)
        assert problem.error == found.error
    assert not there.started
    assert not there.receipts
    assert there.booking.sessions_open == 1


@given(
    field=st.sampled_from(sorted(OPENING)),
    value=json_values | st.sampled_from([-1, 0, 1e308, 2**60, "x" * 5000, "\x00", "\ud800"]),
)
def test_one_bad_field_of_an_opening(field: str, value: Any) -> None:
    there = reflector()
    body = json.dumps({**OPENING, field: value}).encode()
    found = there.request("POST", "/v1/sessions", body)
    if found.status == 201:
        grant = decode_message(SessionGrant, found.body)
        assert 1 <= grant.pairs <= 512
    else:
        problem = decode_message(Problem, found.body)
        assert found.status == 400
        assert problem.path.startswith(field) or problem.error in {
            "not_finite",
            "number_too_large",
            "not_granted",
            "address",
            "duplicate_key",
            "not_utf8",
            "too_deep",
        }
        assert there.booking.sessions_open == 0


@given(
    field=st.sampled_from(sorted(COMMIT)),
    value=json_values | st.sampled_from([-1, 0, 1e308, 2**60, "x" * 5000, "\x00", "127.0.0.1", "fe80::1"]),
)
def test_one_bad_field_of_a_commitment(field: str, value: Any) -> None:
    there, grant = opened()
    body = json.dumps({**COMMIT, field: value}).encode()
    found = there.request("POST", f"/v1/sessions/{grant.session}/pairs", body, grant.token)
    assert found.status in {200, 400, 409}
    assert len(there.started) == (1 if found.status == 200 else 0)
    there.stop()
    (envelope,) = there.receipts.values()
    assert envelope.is_valid()


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/v1/sessions", 405, "method_not_allowed"),
        ("PUT", "/v1/sessions/" + "0" * 32 + "/close", 405, "method_not_allowed"),
        ("POST", "/v1/sessions/", 404, "not_found"),
        ("POST", "/v1/sessions/xyz/pairs", 404, "not_found"),
        ("POST", "/v1/sessions/" + "0" * 32 + "/pairs/0/reveal", 404, "not_found"),
        ("POST", "/v1/sessions/" + "0" * 32 + "/pairs/1000/reveal", 404, "not_found"),
        ("POST", "/v1/sessions/" + "0" * 32 + "/pairs/١/reveal", 404, "not_found"),
        ("POST", "/v1/sessions/" + "0" * 32 + "/pairs\n", 404, "not_found"),
        ("POST", "/v1/sessions/" + "0" * 32 + "/pairs", 404, "unknown_session"),
        ("POST", "/", 404, "not_found"),
    ],
)
def test_paths(method: str, path: str, status: int, error: str) -> None:
    found = reflector().request(method, path, b"{}")
    assert (found.status, found.error) == (status, error)


def test_too_large_a_body_is_413() -> None:
    there, grant = opened()
    body = json.dumps({**COMMIT, "extra": "x" * 70_000}).encode()
    found = there.request("POST", f"/v1/sessions/{grant.session}/pairs", body, grant.token)
    assert (found.status, found.error) == (413, "too_large")


HELLO = DataHello(v=1, ticket="ab" * 16, purpose="segment", direction="down", address="2001:db8::1")


def test_hellos_have_512_bytes_and_come_back() -> None:
    raw = encode_hello(HELLO)
    assert len(raw) == DATA_HELLO_BYTES == 512
    assert decode_hello(raw) == HELLO
    longest = DataHello(
        v=1,
        ticket="ab" * 16,
        purpose="calibration",
        direction="down",
        address="x" * 64,
        token="cd" * 32,
        duration_s=1.0,
    )
    assert decode_hello(encode_hello(longest)) == longest


@given(raw=st.binary(max_size=600) | st.binary(min_size=512, max_size=512))
def test_other_bytes_are_no_hello(raw: bytes) -> None:
    with pytest.raises(WireError):
        decode_hello(raw)


@given(at=st.integers(0, 511), value=st.integers(0, 255))
def test_a_changed_hello_is_refused_or_still_a_hello(at: int, value: int) -> None:
    raw = bytearray(encode_hello(HELLO))
    raw[at] = value
    try:
        found = decode_hello(bytes(raw))
    except WireError:
        return
    assert isinstance(found, DataHello)


def test_guard_and_outcome_rules() -> None:
    assert is_line_quiet(30.0, 20.0)
    assert not is_line_quiet(30.1, 20.0)
    assert outcome_of(["complete", "complete"]) == "both"
    assert outcome_of(["complete"]) == "unfinished"
    assert outcome_of(["control_lost", "complete"]) == "unfinished"
    assert outcome_of(["mismatch", "reset"]) == "both_failed"

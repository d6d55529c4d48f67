# SPDX-License-Identifier: EUPL-1.2
"""Targets: the contract's own readers (probe/wire, the messages of probe/protocol). Spec: spec/records.md."""

from __future__ import annotations

import inspect
import json
from typing import Any

from fuzz_registry import golden_lines, target

from probe.protocol.session import decode_hello, encode_hello
from probe.wire import messages
from probe.wire.codec import WireError, dumps, from_dict, loads, to_dict
from probe.wire.envelope import encode, from_line, open_record, read_payload, to_line
from probe.wire.messages import DataHello
from probe.wire.records import RECORD_TYPES, PairRecord
from probe.wire.scrub import REPLACEMENT, address_path, find_address, scrub
from probe.wire.signing import key_bytes, verify

KINDS: list[type[Any]] = [
    *RECORD_TYPES.values(),
    PairRecord,
    *(
        kind
        for _, kind in sorted(inspect.getmembers(messages, inspect.isclass))
        if kind.__module__ == messages.__name__
    ),
]
"""Everything that travels; the first byte of an input chooses one."""


def payloads() -> list[bytes]:
    """What the golden lines sign."""
    return [from_line(line).payload for line in golden_lines()]


def has_surrogate(value: Any) -> bool:
    """Whether a lone surrogate stands anywhere in plain JSON values: JSON can write one, UTF-8 cannot."""
    return any("\ud800" <= char <= "\udfff" for char in json.dumps(value, ensure_ascii=False))


@target(
    seeds=lambda: [*payloads(), b'{"a":[1,2.5,"\\u00e9",null,true]}', b'"\\ud800"', b"[[[[[[[[[[[[1]]]]]]]]]]]]"],
    examples=150,
)
def fuzz_json(data: bytes) -> None:
    """`loads` refuses with WireError or gives what `dumps` writes in one canonical way."""
    try:
        value = loads(data)
    except WireError as error:
        assert error.reason
        return
    if has_surrogate(value):
        return
    once = dumps(value)
    again = loads(once, longest=8 * len(data) + 64)
    assert again == value
    assert dumps(again) == once


def record_seeds() -> list[bytes]:
    """Golden payloads under the number of their kind; each message's smallest sketch."""
    kinds = list(RECORD_TYPES)
    found = [bytes([kinds.index(json.loads(raw)["type"])]) + raw for raw in payloads()]
    nonce, session = "0f" * 32, "0f" * 16
    sketch = {
        "v": 1, "session": session, "token": nonce, "ticket": session, "nonce": nonce, "commit": nonce, "pair": 1,
        "kind": "test", "app": "youtube", "profile": "youtube@1", "direction": "down", "pace_mbps": 1.5, "segment_s": 1,
        "app_name": "a.example.org", "neutral_name": "b.example.org", "endpoint": 0,
        "endpoints": [{"host": None, "port": 443}],
        "probe": "A" * 43, "reflector": "A" * 43, "nettest": "differential", "pairs": 3, "data_certificate": nonce,
        "most_pace_mbps": 12.0, "idle_timeout_s": 60, "clock_ms": 1, "neutral_first": True, "arms": ["app", "neutral"],
        "tickets": [session, session], "purpose": "segment",
        "segments": [{"started": True, "bytes": 1, "duration_ms": 1}],
        "reason": "done", "error": "busy", "host": None, "port": 443, "started": True, "bytes": 1, "duration_ms": 1,
        "outcome": "both",
    }  # fmt: skip
    return found + [bytes([number]) + dumps(sketch) for number in range(len(kinds), len(KINDS))]


@target(seeds=record_seeds, examples=200)
def fuzz_record(data: bytes) -> None:
    """Reading any record or message gives WireError or a record that is read again as itself."""
    kind = KINDS[data[0] % len(KINDS)] if data else KINDS[0]
    try:
        record = from_dict(kind, loads(data[1:]))
    except WireError as error:
        assert error.reason
        assert len(error.path) < 256, "a path is made of our names, not of the sender's"
        return
    assert from_dict(kind, loads(dumps(to_dict(record)))) == record


@target(seeds=golden_lines, examples=100)
def fuzz_envelope(data: bytes) -> None:
    """A line is refused with WireError, or is written again as the same envelope; what opens has a good signature."""
    try:
        envelope = from_line(data)
    except WireError as error:
        assert error.reason
        return
    assert from_line(to_line(envelope)) == envelope
    assert key_bytes(envelope.key_id) == envelope.key
    try:
        open_record(envelope)
    except WireError:
        return
    assert verify(envelope.key, envelope.payload, envelope.signature, "python")


@target(seeds=payloads, examples=100)
def fuzz_payload(data: bytes) -> None:
    """A payload under a good signature is still a stranger's: WireError or a record."""
    try:
        record = read_payload(data)
    except WireError:
        return
    assert RECORD_TYPES[record.type] is type(record)


@target(seeds=lambda: [b"A" * 43, encode(bytes(range(32))).encode(), b"=" * 43, b"A" * 42 + b"B"])
def fuzz_key_id(data: bytes) -> None:
    """A key id is refused or is the only spelling of its 32 bytes."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        raw = key_bytes(text)
    except WireError as error:
        assert error.reason == "bad_key"
        return
    assert len(raw) == 32
    assert encode(raw) == text


def hello_seeds() -> list[bytes]:
    """Both purposes."""
    session = "0f" * 16
    return [
        encode_hello(DataHello(v=1, ticket=session, purpose="segment", direction="down", address="192.0.2.1")),
        encode_hello(
            DataHello(v=1, ticket=session, purpose="calibration", direction="up", token="1e" * 32, duration_s=1)
        ),
    ]


@target(seeds=hello_seeds, most=600, examples=120)
def fuzz_hello(data: bytes) -> None:
    """The head of a data connection: WireError, or a hello that is written and read as itself."""
    try:
        hello = decode_hello(data)
    except WireError as error:
        assert error.reason
        return
    try:
        assert decode_hello(encode_hello(hello)) == hello
    except ValueError as error:
        assert "512" in str(error), error


ADDRESSES = [
    "192.0.2.1", "198.51.100.254", "2001:db8::1", "fe80::1", "::ffff:192.0.2.1", "2001:db8:0:1:2:3:4:5",
    "00:1b:44:11:3a:b7", "00-1B-44-11-3A-B7",
]  # fmt: skip
"""Any of these must never get through, whatever stands around it."""


@target(
    seeds=lambda: [
        b"connect to 192.0.2.1:443 failed", b"peer [2001:db8::1]:443, then 00:1b:44:11:3a:b7",
        b"12:34:56.789 1.2.3 v1.2.3.4.5",
        b'{"a":["192.0.2.1",{"2001:db8::1":1}]}',
    ],
    examples=150,
)  # fmt: skip
def fuzz_scrub(data: bytes) -> None:
    """Nothing that `find_address` finds is left, a second time changes nothing, and keys of JSON are looked at too."""
    text = data.decode("utf-8", "replace")
    clean = scrub(text)
    assert find_address(clean) is None
    assert scrub(clean) == clean
    assert (clean == text) == (find_address(text) is None)
    where = address_path({"a": [text], "b": 1})
    assert (where is None) == (find_address(text) is None)
    for address in ADDRESSES:
        assert address not in scrub(f"peer:{address}: refused by {address}, ...{address}")
        assert address not in scrub(f"from {address} to ({address}) [{address}] {text}".replace(text, REPLACEMENT))

# SPDX-License-Identifier: EUPL-1.2
"""What is read quickly is read as with care: every short cut of the codec against the long way beside it."""

import copy
import dataclasses
import json
import random
import re
from typing import Annotated, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from collector.intake import may_hold_address
from collector.rehearsal import Rehearsal, signer
from probe.wire import codec, envelope, messages, quick, records
from probe.wire.codec import WireError, dumps, fields_of, from_dict
from probe.wire.limits import MAX_DEPTH, MAX_INT
from probe.wire.scrub import address_path, find_address

RNG = random.Random(4)
TOLD = Rehearsal(rng=RNG, reflector=signer(RNG)).session(signer(RNG), started_ms=1_790_000_000_000, pairs=2)
EXAMPLES = {
    records.Measurement: json.loads(TOLD.measurement.payload),
    records.Receipt: json.loads(TOLD.receipt.payload),
    records.Started: json.loads(TOLD.started[0].payload),
    records.Plan: {
        "type": "plan", "v": 1, "version": 3, "issued_ms": 1_790_000_000_000, "expires_ms": 1_790_000_900_000,
        "reflectors": [{"url": "https://reflector.example:8443", "key": "A" * 43}],
        "nettests": [{"nettest": "differential", "apps": ["youtube", "signal"]}],
        "weights": [{"app": "*", "direction": "up", "access": "mobile", "effect": "slowing", "weight": 1}],
    },
    messages.PairOrder: {"pair": 1, "neutral_first": True, "arms": ["app", "neutral"], "tickets": ["ab" * 16] * 2},
    messages.Endpoint: {"host": None, "port": 443},
}  # fmt: skip
CLASSES = sorted(EXAMPLES, key=lambda cls: cls.__name__)


def with_care(cls, value):
    """The result, or reason and path."""
    try:
        return codec._with_care(cls, value, "")
    except WireError as error:
        return error.reason, error.path, error.detail


@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_right_is_never_in_doubt(cls):
    """Otherwise all of it would be read twice."""
    assert quick.reader(cls)(EXAMPLES[cls]) == with_care(cls, EXAMPLES[cls])


def places(value, path=()):
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


ANYTHING = st.one_of(
    st.sampled_from([
        None, True, False, 0, 1, -1, 1.0, 0.5, 10**18, MAX_INT, MAX_INT + 1, 1e300, float("nan"), "", "app", "x" * 300,
        "a\nb", "a\u00a0b", "\ud800", "neutral", "ab" * 16, "ab" * 32, "٣" * 16, [], {}, [[]], [1, "a"], [1.0], [True],
        ["app", "app", "app"], ["a\x00"],
    ]),
    st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(-5, 2**54), max_size=4),
)  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(CLASSES), st.data())
def test_a_quick_reader_accepts_only_what_is_accepted_with_care(cls, data):
    value = copy.deepcopy(EXAMPLES[cls])
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([found for found in places(value) if found]))
        parent = value
        for step in path[:-1]:
            parent = parent[step]
        if data.draw(st.integers(0, 3)) == 0:
            del parent[path[-1]]
        elif data.draw(st.integers(0, 5)) == 0 and isinstance(parent, dict):
            parent["from_the_future"] = copy.deepcopy(data.draw(ANYTHING))
        else:
            parent[path[-1]] = copy.deepcopy(data.draw(ANYTHING))
    careful = with_care(cls, value)
    try:
        read = quick.reader(cls)(value)
    except quick.Doubt:
        pass
    else:
        assert read == careful
        # 1 == 1.0 == True: the types must be the same too.
        assert repr(read) == repr(careful)
    codec._readings[cls] = codec.QUICK_AFTER
    try:
        answer = from_dict(cls, value)
    except WireError as error:
        answer = error.reason, error.path, error.detail
    assert repr(answer) == repr(careful)


@given(ANYTHING)
def test_what_is_no_object_is_named_as_ever(value):
    if not isinstance(value, dict):
        codec._readings[records.Started] = codec.QUICK_AFTER
        with pytest.raises(WireError, match="here: not an object"):
            from_dict(records.Started, value, "here")


@pytest.mark.parametrize(
    ("pattern", "printable"),
    [
        (codec.SLUG, True), (codec.HEX_32, True), (codec.KEY_ID, True), (codec.SLUG + r"|\*", True),
        (r"\d{4}-\d", True),
        (r"[^a]", False), (r".*", False), (r"\s", False), (r"\D", False), (r"[\x00-z]", False), ("[\x00-z]", False),
        (r"[a-\W]", False), (r"[]a]", False), (r"[[-a][^b]", False), ("[ -\uffff]", False),
    ],
)  # fmt: skip
def test_a_pattern_that_names_its_characters_lets_no_control_character_in(pattern, printable):
    assert quick.is_printable(pattern) is printable


def every_pattern():
    for module in (records, messages):
        for cls in vars(module).values():
            if isinstance(cls, type) and hasattr(cls, "__dataclass_fields__"):
                yield from (bounds.pattern for _, _, bounds, _ in fields_of(cls) if bounds.pattern)


@pytest.mark.parametrize("pattern", sorted(set(every_pattern())))
def test_no_control_character_fits_a_printable_pattern(pattern):
    if quick.is_printable(pattern):
        for code in [*range(32), 0xD800, 0xDFFF]:
            for text in (chr(code), "a" + chr(code), "a" * 31 + chr(code), "0" * 42 + chr(code)):
                assert re.fullmatch(pattern, text) is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Odd:
    """What no record is: each of these is for careful reading alone."""

    table: dict | None = None
    mixed: Annotated[int | str | None, codec.bounded(low=0)] = None
    endless: tuple[int, ...] = ()
    made: Annotated[tuple[int, ...], codec.items(most=2)] = dataclasses.field(default_factory=tuple)
    choice: Literal[1, "one"] = 1


@pytest.mark.parametrize("value", [{}, {"table": {"a": 1}}, {"choice": "one"}, {"made": [1]}])
def test_a_class_beyond_the_quick_reader_is_read_with_care(value):
    with pytest.raises(quick.Doubt):
        quick.reader(Odd)(value)
    codec._readings[Odd] = codec.QUICK_AFTER
    assert from_dict(Odd, value) == codec._with_care(Odd, value, "")


def depth_with_care(text):
    try:
        codec._check_depth(text)
    except WireError:
        return False
    return True


OPEN, SHUT = "{[{[{[{", "}]}]}]}"


@settings(max_examples=1500)
@given(st.text(alphabet='"\\[]{},:1a', max_size=60))
@example('"["' + "[" * 13)
@example('["' + '"]["' * 13)
@example("{" * 12 + "}" * 12)
@example("[{" * 6 + "}]" * 6)
@example("[" * 13 + "]" * 13)
@example("{[" * 6 + "{}" + "]}" * 6)
@example(f'{OPEN}"\\"{SHUT}\\""{OPEN}{SHUT}"\\"{OPEN}\\""{SHUT}')
@example('"\\"' + "[" * 13 + "]" * 13 + '"')
def test_plainly_shallow_is_shallow(text):
    if codec._is_shallow(text.encode()):
        assert depth_with_care(text)


def test_records_are_plainly_shallow_and_the_limit_is_exact():
    assert all(codec._is_shallow(dumps(example)) for example in EXAMPLES.values())
    for brackets in ("[]", "{}"):
        assert codec._is_shallow((brackets[0] * 6 + brackets[1] * 6).encode())
    assert depth_with_care("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert not depth_with_care("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


@settings(max_examples=1500)
@given(st.text(alphabet="0aF:.-+ %g", max_size=24))
@example("192.0.2.7")
@example("1:2:3:4:5:6:192.0.2.7")
@example("02-00-5e-10-00-01")
@example("02:00-5e:10-00:01")
@example("seen from ::ffff:1.2.3.4%eth0")
def test_no_address_escapes_the_quick_look(text):
    for value in ({"deep": [{"er": text, "n": -1.5}]}, {text: 5}, {"a": text, "b": [1, -2, text]}):
        if address_path(value) is not None:
            assert may_hold_address(dumps(value))
            assert may_hold_address(json.dumps(value, indent=1).encode())
    if find_address(text):
        escaped = b'{"a":"' + "".join(f"\\u{ord(c):04x}" for c in text).encode() + b'"}'
        assert may_hold_address(escaped)


def test_records_need_no_long_look_for_addresses():
    for told in TOLD.all:
        assert not may_hold_address(told.payload)


@given(st.binary(max_size=70))
def test_base64_is_undone_as_with_care(raw):
    assert envelope.decode(envelope.encode(raw), "payload") == raw


@settings(max_examples=1000)
@given(st.text(alphabet="AQgw_-+/=\n é", max_size=11))
def test_base64_of_a_stranger_is_judged_as_with_care(text):
    def told(decode):
        try:
            return decode(text, "payload")
        except WireError as error:
            return error.reason, error.path, error.detail

    assert told(envelope.decode) == told(envelope._decode_with_care)

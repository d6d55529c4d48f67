# SPDX-License-Identifier: EUPL-1.2
"""Addresses are found wherever they hide; versions, times and names are not taken for one."""

import ipaddress
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.wire.scrub import address_path, find_address, scrub


@pytest.mark.parametrize(
    "text",
    ["192.0.2.7", "from 192.0.2.7:443!", "[2001:db8::1]:443", "fe80::1%eth0", "::ffff:192.0.2.1", "00:53:00:aa:bb:cc"],
)
def test_addresses_are_found(text):
    assert find_address(text)
    assert find_address(scrub(text)) is None


@pytest.mark.parametrize(
    "text", ["", "3.0.17", "12:34:56", "2026-11-22T10:11:12", "999.1.2.3", "std::move", "1.2.3.4.5"]
)
def test_other_things_are_not(text):
    assert find_address(text) is None
    assert scrub(text) == text


@given(
    st.ip_addresses(), st.sampled_from(["", " ", "[", "(", "to=", "'"]), st.sampled_from(["", " ", "]", ")", "'", ","])
)
def test_every_address_is_found_in_any_bracket(address, before, after):
    if address == ipaddress.ip_address("::"):
        return
    assert find_address(f"{before}{address}{after}") is not None


@pytest.mark.parametrize("address", ["2001:db8::1", "192.0.2.1", "::ffff:192.0.2.1", "fe80::abcd:1"])
@pytest.mark.parametrize("before", ["", "peer:", "...", "x.", "addr=", "[", "_"])
@pytest.mark.parametrize("after", ["", ": refused", ":", ".", "...", "]:443", "%eth0", ":port", "_"])
def test_words_and_punctuation_that_touch_an_address_do_not_hide_it(before, address, after):
    if ":" not in address and after == ":port":
        assert address not in scrub(f"{before}{address}{after}")
    else:
        assert address.split("::")[-1] not in scrub(f"{before}{address}{after}")


@pytest.mark.parametrize(
    "text",
    [":" * 1_400_000 + "g", "1:" * 700_000, "f" * 1_400_000, "1." * 700_000, ("f" * 63 + ":") * 20_000, "-:" * 700_000],
    ids=lambda text: text[:3],
)
def test_megabytes_of_anything_take_no_time(text):
    """A stranger signs what he likes: an upload of colons would stop a search that goes back."""
    start = time.process_time()
    scrub(text)
    assert time.process_time() - start < 5


def test_the_path_says_where():
    assert address_path({"a": [{"b": "x"}, {"b": "192.0.2.1"}]}) == "a[1].b"
    assert address_path({"192.0.2.1": 1}) == "192.0.2.1"
    assert address_path({"a": [1, None, True, 2.5, "ok"]}) is None

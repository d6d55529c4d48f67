# SPDX-License-Identifier: EUPL-1.2
"""Limits count networks, not addresses, and keep neither."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.limits import MOST_CLIENTS, RateLimit, client_of, network_of

KEY = b"k" * 32


def test_a_bucket_empties_and_fills_again():
    limit = RateLimit(60, KEY)
    assert [limit.take("192.0.2.1", 0.0) for _ in range(60)] == [0.0] * 60
    assert limit.take("192.0.2.1", 0.0) == pytest.approx(1.0)
    assert limit.take("192.0.2.2", 0.0) == 0.0
    assert limit.take("192.0.2.1", 0.5) == pytest.approx(0.5)
    assert limit.take("192.0.2.1", 1.0) == 0.0
    assert limit.take("192.0.2.1", 1.0) > 0


def test_none_means_no_limit():
    limit = RateLimit(0, KEY)
    assert {limit.take("192.0.2.1", 0.0) for _ in range(1000)} == {0.0}


@given(st.lists(st.floats(0, 600), max_size=200))
def test_never_more_than_the_burst_and_the_rate(times):
    limit = RateLimit(30, KEY)
    taken = sum(limit.take("192.0.2.1", at) == 0 for at in sorted(times))
    assert taken <= 30 + max(times, default=0) * 0.5 + 1


def test_a_network_is_a_32_or_a_48():
    assert network_of("2001:db8:1:2::3") == network_of("2001:db8:1:ffff::1")
    assert network_of("2001:db8:1::1") != network_of("2001:db8:2::1")
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") != network_of("192.0.2.2")
    assert network_of("fe80::1%eth0") == network_of("fe80::1")
    assert network_of(None) == network_of("/run/socket") == ""


def test_what_is_kept_in_memory_is_bounded_and_holds_no_address():
    limit = RateLimit(1, KEY)
    for number in range(MOST_CLIENTS + 50):
        limit.take(str(ipaddress.ip_address(number)), 0.0)
    assert len(limit._buckets) == MOST_CLIENTS
    assert all(len(name) == 16 for name in limit._buckets)
    assert limit.take(str(ipaddress.ip_address(MOST_CLIENTS + 49)), 0.0) > 0


PROXIES = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", None, "192.0.2.1"),
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),  # nobody's word but a proxy's counts
        ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.5, 198.51.100.7, 10.0.0.9", "198.51.100.7"),  # the first is the client's own claim
        ("2001:db8::1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "nonsense", "nonsense"),
        (None, "198.51.100.7", None),
    ],
)
def test_a_forwarded_address_is_believed_as_far_as_trusted_proxies_wrote_it(peer, forwarded, client):
    assert client_of(peer, forwarded, PROXIES) == client

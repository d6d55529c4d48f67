# SPDX-License-Identifier: EUPL-1.2
"""Addresses, pins and guard gaps."""

from __future__ import annotations

import time

import pytest

from probe.netio.control import ControlChannel, ControlFailed, UrlError, is_house_name, parse_url
from probe.netio.dial import Dialer

PIN = "ab" * 32


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "pin"),
    [
        ("https://127.0.0.1:8443", "127.0.0.1", 8443, "", None),
        ("https://127.0.0.1:8443/", "127.0.0.1", 8443, "", None),
        (f"https://[2001:db8::1]:9#sha256={PIN.upper()}", "2001:db8::1", 9, "", PIN),
        ("https://reflector.example/base/", "reflector.example", 443, "/base", None),
    ],
)
def test_addresses_are_taken_apart(url: str, host: str, port: int, path: str, pin: str | None) -> None:
    parsed = parse_url(url)
    assert (parsed.host, parsed.port, parsed.path, parsed.pin) == (host, port, path, pin)


def test_the_host_header_brackets_ipv6() -> None:
    assert parse_url("https://[::1]:9").authority == "[::1]:9"
    assert parse_url("https://h:9").authority == "h:9"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1",
        "127.0.0.1:8443",
        "https://",
        "https://a b:1",
        "https://user@host:1",
        "https://h:99999",
        "https://h:0",
        "https://h:1#sha256=abc",
        f"https://h:1#sha1={PIN}",
        "https://h:1/x?y=z",
        "",
    ],
)
def test_what_is_no_address_is_refused_in_one_sentence(url: str) -> None:
    with pytest.raises(UrlError) as caught:
        parse_url(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "at_home"),
    [
        ("127.0.0.1", True),
        ("192.168.1.1", True),
        ("198.18.0.5", True),
        ("::1", True),
        ("fd00::5", True),
        ("reflector", True),
        ("box.lan", True),
        ("localhost", True),
        ("8.8.8.8", False),
        ("2600::1", False),
        ("reflector.example.org", False),
    ],
)
def test_only_names_of_the_house_may_show_any_certificate(host: str, at_home: bool) -> None:
    assert is_house_name(host) is at_home


def test_a_refused_port_is_a_named_failure() -> None:
    channel = ControlChannel(Dialer(), parse_url("https://127.0.0.1:1"))
    with pytest.raises(ControlFailed) as caught:
        channel.request("POST", "/v1/sessions", body=b"{}", token=None, timeout_s=1)
    assert caught.value.failure == "connection_refused"
    assert "127.0.0.1" not in str(caught.value)


def test_a_name_that_does_not_resolve_is_a_named_failure() -> None:
    channel = ControlChannel(Dialer(), parse_url("https://no-such-host.invalid:1"))
    with pytest.raises(ControlFailed) as caught:
        channel.ping()
    assert caught.value.failure in {"dns_failed", "out_of_time"}


def test_a_guard_gap_without_a_channel_lasts_its_limit() -> None:
    channel = ControlChannel(Dialer(), parse_url("https://127.0.0.1:1"))
    start = time.monotonic()
    assert 95 <= channel.guard(100) <= 200
    assert time.monotonic() - start < 0.3

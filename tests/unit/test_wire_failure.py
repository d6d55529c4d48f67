# SPDX-License-Identifier: EUPL-1.2
"""Each network exception has one name of the closed vocabulary."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from probe.wire.failure import FAILURES, classify


@pytest.mark.parametrize(
    ("error", "during", "name"),
    [
        (ssl.SSLError(1, "bad record mac"), "tls", "tls_failed"),
        (ssl.SSLError(1, "bad record mac"), "transfer", "tls_failed"),
        (ssl.SSLCertVerificationError(1, "self-signed"), "control", "tls_failed"),
        (ssl.SSLEOFError(8, "unexpected eof"), "tls", "connection_reset"),
        (ssl.SSLEOFError(8, "unexpected eof"), "transfer", "end_of_stream"),
        (ssl.SSLZeroReturnError(6, "closed"), "control", "end_of_stream"),
        (PermissionError(errno.EPERM, "not permitted"), "connect", "not_permitted"),
        (PermissionError(errno.EACCES, "firewall"), "connect", "not_permitted"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "connect", "connection_refused"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "transfer", "connection_reset"),
        (BrokenPipeError(errno.EPIPE, "pipe"), "transfer", "connection_reset"),
        (OSError(errno.ENETUNREACH, "no route"), "connect", "network_unreachable"),
        (OSError(errno.EHOSTUNREACH, "no route"), "connect", "host_unreachable"),
        (socket.gaierror(-2, "unknown name"), "connect", "dns_failed"),
        (TimeoutError(), "connect", "connect_timeout"),
        (TimeoutError(), "tls", "tls_timeout"),
        (TimeoutError(), "transfer", "stalled"),
        (TimeoutError(), "control", "out_of_time"),
        (EOFError(), "transfer", "end_of_stream"),
        (OSError(errno.EIO, "disk"), "transfer", "unknown_failure"),
    ],
)
def test_exceptions_have_names(error, during, name):
    assert classify(error, during=during) == name
    assert name in FAILURES

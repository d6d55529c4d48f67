# SPDX-License-Identifier: EUPL-1.2
"""The closed vocabulary of what can go wrong on the network, and the one function that names it.

A network failure is data: it travels in a record and never stops a measurement. Spec: spec/failures.md.
"""

from __future__ import annotations

import errno
import socket
from typing import Final, Literal, get_args

Failure = Literal[
    "dns_failed",
    "connection_refused",
    "connection_reset",
    "connection_aborted",
    "connect_timeout",
    "network_unreachable",
    "host_unreachable",
    "tls_failed",
    "tls_timeout",
    "tls_wrong_certificate",
    "altered_bytes",
    "end_of_stream",
    "stalled",
    "http_error",
    "refused_by_peer",
    "out_of_time",
    "out_of_budget",
    "not_permitted",
    "unknown_failure",
]
FAILURES: Final[frozenset[str]] = frozenset(get_args(Failure))
ALTERING: Final[frozenset[Failure]] = frozenset({"tls_wrong_certificate", "altered_bytes"})
"""Something did arrive, and it was not what the peer is bound to send: not a mere failure."""

_CHECKS: Final = ("BAD_RECORD_MAC", "DECRYPTION_FAILED", "DECRYPT_ERROR", "DIGEST_CHECK_FAILED", "BAD_SIGNATURE")
"""In what OpenSSL calls a check that failed (RFC 8446, section 6.2), found here or told by the peer in an alert. Keys
follow from the whole handshake, so that bytes changed in a hello show in this way too."""
_FRAMING: Final = (
    "BAD_RECORD_TYPE",
    "WRONG_VERSION_NUMBER",
    "LENGTH_TOO_LONG",
    "BAD_LENGTH",
    "UNEXPECTED_MESSAGE",
    "UNEXPECTED_RECORD",
    "RECORD_TOO_SMALL",
    "RECORD_OVERFLOW",
    "DECODE_ERROR",
    "PROTOCOL_VERSION",
    "HTTP_REQUEST",
)
"""Behind a finished handshake the headers of records are never wrong by themselves. In the handshake they are what a
server of another kind answers, which says nothing of a box on the way: `tls_failed`."""

_BY_ERRNO: Final[dict[int, Failure]] = {
    errno.ECONNREFUSED: "connection_refused",
    errno.ECONNRESET: "connection_reset",
    errno.EPIPE: "connection_reset",
    errno.ECONNABORTED: "connection_aborted",
    errno.ETIMEDOUT: "connect_timeout",
    errno.ENETUNREACH: "network_unreachable",
    errno.ENETDOWN: "network_unreachable",
    errno.EHOSTUNREACH: "host_unreachable",
    errno.EHOSTDOWN: "host_unreachable",
    errno.EACCES: "not_permitted",
    errno.EPERM: "not_permitted",
}


def classify(error: BaseException, *, during: Literal["connect", "tls", "transfer", "control"]) -> Failure:
    """Name a network exception. Only the kind is kept: messages may hold addresses.

    `during` decides what a time-out or an end of stream means.
    """
    if isinstance(error, socket.gaierror):
        return "dns_failed"
    if isinstance(error, TimeoutError):
        return {
            "connect": "connect_timeout",
            "tls": "tls_timeout",
            "transfer": "stalled",
            "control": "out_of_time",
        }[during]  # type: ignore[return-value]
    # Before the numbers: an SSLError's errno is OpenSSL's own code, and its 1 is EPERM here.
    # ssl is not imported here: the idle agent must not load it.
    if any(base.__name__ == "SSLError" for base in type(error).__mro__):
        if any(base.__name__ in {"SSLEOFError", "SSLZeroReturnError"} for base in type(error).__mro__):
            return "connection_reset" if during == "tls" else "end_of_stream"
        return "altered_bytes" if _fails_a_check(error, has_shaken=during == "transfer") else "tls_failed"
    known = _BY_ERRNO.get(getattr(error, "errno", None) or 0)
    if known is not None:
        return known
    if isinstance(error, EOFError):
        return "end_of_stream"
    return "unknown_failure"


def _fails_a_check(error: BaseException, *, has_shaken: bool) -> bool:
    """Whether an SSLError says that bytes are not those that were sent."""
    said = f"{getattr(error, 'reason', None) or ''} {error}".upper()
    said = "".join(letter if letter.isalnum() else "_" for letter in said)
    return any(sign in said for sign in (*_CHECKS, *(_FRAMING if has_shaken else ())))

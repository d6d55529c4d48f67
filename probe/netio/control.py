# SPDX-License-Identifier: EUPL-1.2
"""The control channel: one HTTPS connection kept open, whose certificate is pinned or checked.

With a pin the certificate's digest decides. Without one a private address may show any certificate (a lab, a
house, a compose file) and a public one needs what the system's authorities accept. Spec: spec/protocol.md.
"""

from __future__ import annotations

import re
import ssl
import time
from dataclasses import dataclass
from typing import Final, Literal

from probe.netio.dial import Dialer, WrongCertificate, certificate_digest, is_public
from probe.netio.http import HttpConnection, HttpError, Response
from probe.protocol.session import CONNECT_TIMEOUT_S, TLS_TIMEOUT_S, is_line_quiet
from probe.wire.failure import Failure, classify
from probe.wire.limits import MAX_ENVELOPE_BYTES

_URL: Final = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?(/[^#\s?]*)?(?:#(.*))?")
_PIN: Final = re.compile(r"sha256=([0-9a-fA-F]{64})")
_PING_S: Final = 5.0
_HOUSE_SUFFIXES: Final = (".localhost", ".local", ".lan", ".internal", ".test", ".home.arpa")
"""Names that no public server answers for (RFC 6761, RFC 6762, RFC 8375)."""


class UrlError(ValueError):
    """An address cannot be used; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Url:
    """`https://HOST:PORT/path#sha256=PIN`, taken apart."""

    scheme: str
    host: str
    port: int
    path: str
    pin: str | None

    @property
    def authority(self) -> str:
        """For the Host header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_url(url: str, *, schemes: tuple[str, ...] = ("https",)) -> Url:
    """Take an address apart. Raises UrlError."""
    match = _URL.fullmatch(url)
    if match is None or match[1] not in schemes:
        raise UrlError(f"{url!r} is not an address like {schemes[0]}://HOST:PORT")
    pin = None
    if match[5] is not None:
        pinned = _PIN.fullmatch(match[5])
        if pinned is None or match[1] != "https":
            raise UrlError("what follows # must be sha256= and the 64 hex digits that the reflector printed")
        pin = pinned[1].lower()
    port = int(match[3] or (443 if match[1] == "https" else 80))
    if not 1 <= port <= 65535:
        raise UrlError(f"{port} is not a port")
    return Url(match[1], match[2].strip("[]"), port, (match[4] or "").rstrip("/"), pin)


def open_https(dialer: Dialer, url: Url, *, connect_s: float = CONNECT_TIMEOUT_S) -> HttpConnection:
    """A connection whose peer is who the URL says. Raises OSError, WrongCertificate."""
    sock = dialer.connect(url.host, url.port, connect_s)
    if url.scheme == "http":
        return HttpConnection(sock, url.authority)
    peer = str(sock.getpeername()[0]).partition("%")[0]
    authorities = url.pin is None and (is_public(peer) or not is_house_name(url.host))
    context = ssl.create_default_context() if authorities else _unverified()
    context.set_alpn_protocols(["http/1.1"])
    sock.settimeout(TLS_TIMEOUT_S)
    try:
        wrapped = context.wrap_socket(sock, server_hostname=url.host.encode("ascii"))
    except ssl.SSLCertVerificationError as error:
        sock.close()
        raise WrongCertificate(
            f"no authority vouches for its certificate ({error.verify_message}); add the #sha256= pin that it printed"
        ) from None
    except BaseException:
        sock.close()
        raise
    if url.pin is not None and certificate_digest(wrapped) != url.pin:
        wrapped.close()
        raise WrongCertificate("the certificate is not the one that #sha256= names")
    return HttpConnection(wrapped, url.authority)


def is_house_name(host: str) -> bool:
    """Whether a private address behind this name is no surprise: such a literal, a bare name, a special-use suffix.

    A public name that resolves to a private address may be somebody's forged answer: authorities decide there.
    """
    if ":" in host or host.replace(".", "").isdigit():
        return not is_public(host)
    return "." not in host or host.lower().endswith(_HOUSE_SUFFIXES)


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


Answerer = Literal["itself", "another", "anybody", "nobody"]
"""itself: known by its pin or by an authority. anybody: no pin and a private address, so any certificate would do."""


def who_answers(dialer: Dialer, url: Url, *, connect_s: float = CONNECT_TIMEOUT_S) -> Answerer:
    """Who answers a new HTTPS connection. Nothing is asked of whoever it is."""
    try:
        open_https(dialer, url, connect_s=connect_s).close()
    except WrongCertificate:
        return "another"
    except OSError as error:
        # A page where TLS should be is an answer; a reset, silence or bytes changed on the way are none.
        return "another" if classify(error, during="tls") == "tls_failed" else "nobody"
    return "anybody" if url.pin is None and is_house_name(url.host) else "itself"


class ControlFailed(Exception):
    """A request got no answer; `failure` says why in the closed vocabulary, the message in words."""

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(detail)
        self.failure: Failure = failure


class ControlChannel:
    """The requests of one session. A lost connection is opened again by the next request."""

    def __init__(self, dialer: Dialer, url: Url) -> None:
        self._dialer = dialer
        self._url = url
        self._connection: HttpConnection | None = None
        self.smallest_ping_ms: float | None = None

    @property
    def host(self) -> str:
        """Where the data connections go unless the reflector names other addresses."""
        return self._url.host

    def addresses(self) -> tuple[str, str]:
        """Our own and the reflector's address of the open connection, without port and scope; empty without one."""
        return self._connection.addresses if self._connection else ("", "")

    def request(self, method: str, path: str, *, body: bytes, token: str | None, timeout_s: float) -> Response:
        """Raises ControlFailed."""
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            return self._connected().request(
                method, self._url.path + path, body=body, headers=headers, timeout_s=timeout_s, most=MAX_ENVELOPE_BYTES
            )
        except (OSError, EOFError, HttpError, WrongCertificate) as error:
            raise self._failed(error) from None
        finally:
            self._drop_if_closed()

    def ping(self, timeout_s: float = _PING_S) -> float | None:
        """Round-trip time in ms of a request that does nothing; None where it took longer than `timeout_s`.

        Raises ControlFailed where the channel is gone.
        """
        try:
            connection = self._connected()
            start = time.monotonic()
            came = connection.begin("GET", f"{self._url.path}/v1/ping", timeout_s=timeout_s)
        except (OSError, EOFError, HttpError, WrongCertificate) as error:
            raise self._failed(error) from None
        finally:
            self._drop_if_closed()
        if not came:
            return None
        took = (time.monotonic() - start) * 1000
        self.smallest_ping_ms = took if self.smallest_ping_ms is None else min(took, self.smallest_ping_ms)
        return took

    def is_impersonated(self) -> bool | None:
        """Whether somebody else answers a new connection to the reflector's own name, as a captive portal does.

        None where nobody answers, which says nothing. Asked under no arm's name, so it cannot tell the arms apart.
        """
        return {"itself": False, "another": True, "anybody": None, "nobody": None}[who_answers(self._dialer, self._url)]

    def guard(self, limit_ms: int) -> int:
        """Wait until a ping says that the line is quiet, at most `limit_ms`; returns how long that took in ms.

        A lost channel ends the gap at its limit: the next request will find out and say so.
        """
        start = time.monotonic()
        while (left := limit_ms / 1000 - (time.monotonic() - start)) > 0:
            try:
                took = self.ping(left)
            except ControlFailed:
                time.sleep(max(0.0, limit_ms / 1000 - (time.monotonic() - start)))
                break
            if took is not None and self.smallest_ping_ms is not None and is_line_quiet(took, self.smallest_ping_ms):
                break
        return round((time.monotonic() - start) * 1000)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> HttpConnection:
        if self._connection is None:
            self._connection = open_https(self._dialer, self._url)
        return self._connection

    def _drop_if_closed(self) -> None:
        if self._connection is not None and self._connection.closed_by_peer:
            self.close()

    def _failed(self, error: Exception) -> ControlFailed:
        connected = self._connection is not None
        self.close()
        if isinstance(error, WrongCertificate):
            return ControlFailed("tls_wrong_certificate", str(error))
        if isinstance(error, HttpError):
            return ControlFailed("http_error", str(error))
        failure = classify(error, during="control" if connected else "connect")
        return ControlFailed(failure, failure.replace("_", " "))

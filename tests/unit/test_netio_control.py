# SPDX-License-Identifier: EUPL-1.2
"""Addresses, pins and guard gaps."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

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


@pytest.mark.serial
def test_a_guard_gap_without_a_channel_lasts_its_limit() -> None:
    channel = ControlChannel(Dialer(), parse_url("https://127.0.0.1:1"))
    start = time.monotonic()
    assert 95 <= channel.guard(100) <= 200
    assert time.monotonic() - start < 0.3


# -- who answers in the reflector's place ---------------------------------------------------------------------------


class Portal:
    """Accepts connections and treats each in one way."""

    def __init__(self, treat: Callable[[socket.socket], None]) -> None:
        self._treat = treat
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), sock:
                self._treat(sock)

    def __enter__(self) -> Portal:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


def page(sock: socket.socket) -> None:
    sock.recv(4096)
    sock.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n")
    sock.recv(4096)


def cut(sock: socket.socket) -> None:
    sock.recv(10)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))


def impersonated(port: int, pin: str = "0" * 64) -> bool | None:
    return ControlChannel(Dialer(), parse_url(f"https://127.0.0.1:{port}#sha256={pin}")).is_impersonated()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "reflector")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    made = builder.sign(key, hashes.SHA256())
    pem = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context, made.fingerprint(hashes.SHA256()).hex()


def test_a_portal_is_known_by_its_certificate_or_its_page(own: tuple[ssl.SSLContext, str]) -> None:
    context, pin = own

    def tls(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as wrapped:
            wrapped.recv(1)

    with Portal(tls) as there:
        assert impersonated(there.port, pin) is False
        assert impersonated(there.port, "0" * 64) is True
        unpinned = ControlChannel(Dialer(), parse_url(f"https://127.0.0.1:{there.port}"))
        assert unpinned.is_impersonated() is None, "where any certificate will do none can be another's"
    with Portal(page) as there:
        assert impersonated(there.port) is True


def test_who_does_not_answer_is_no_portal() -> None:
    assert impersonated(1) is None
    with Portal(cut) as there:
        assert impersonated(there.port) is None

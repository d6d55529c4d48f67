# SPDX-License-Identifier: EUPL-1.2
"""Each network exception has one name of the closed vocabulary."""

from __future__ import annotations

import datetime
import errno
import socket
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from probe.wire.failure import ALTERING, FAILURES, classify


@pytest.mark.parametrize(
    ("error", "during", "name"),
    [
        (ssl.SSLError(1, "bad record mac"), "tls", "altered_bytes"),
        (ssl.SSLError(1, "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC] (_ssl.c:2580)"), "transfer", "altered_bytes"),
        (ssl.SSLError(1, "[SSL: SSLV3_ALERT_BAD_RECORD_MAC] alert"), "transfer", "altered_bytes"),
        (ssl.SSLError(1, "ssl/tls alert decrypt error"), "tls", "altered_bytes"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]"), "tls", "tls_failed"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]"), "transfer", "altered_bytes"),
        (ssl.SSLError(1, "[SSL: SSLV3_ALERT_HANDSHAKE_FAILURE]"), "tls", "tls_failed"),
        (ssl.SSLError(1, "[SSL] internal error"), "transfer", "tls_failed"),
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


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    pem = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(private + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(pem)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    for one in (server, client):
        one.minimum_version = ssl.TLSVersion.TLSv1_3
    server.num_tickets = 0
    return client, server


class Line:
    """Two real TLS ends without a network; `change` sees what the server sends."""

    def __init__(self, contexts, change=lambda raw: raw):
        bios = [ssl.MemoryBIO() for _ in range(4)]
        self.change = change
        self.to_client, self.from_client, self.to_server, self.from_server = bios
        self.client = contexts[0].wrap_bio(bios[0], bios[1], server_hostname="example.org")
        self.server = contexts[1].wrap_bio(bios[2], bios[3], server_side=True)

    def carry(self):
        self.to_server.write(self.from_client.read())
        self.to_client.write(self.change(self.from_server.read()))

    def read_all(self):
        while True:
            self.client.read(65_536)

    def shake(self):
        """The client's error, or None."""
        for _ in range(3):
            for end in (self.client, self.server):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError as error:
                    return error
                self.carry()
        return None


def flipped(raw, at):
    return raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :] if at < len(raw) else raw


@pytest.mark.parametrize("at", [*range(12), 100, 8000, 16_400])
def test_whatever_byte_of_a_record_is_changed_real_tls_says_so_and_the_peer_hears_of_it(contexts, at):
    line = Line(contexts)
    assert line.shake() is None
    line.server.write(bytes(16_384))
    line.server.write(bytes(16_384))
    line.change = lambda raw: flipped(raw, at)
    line.carry()
    with pytest.raises(ssl.SSLError) as here:
        line.read_all()
    assert classify(here.value, during="transfer") == "altered_bytes"
    line.to_server.write(line.from_client.read())
    with pytest.raises(ssl.SSLError) as there:
        line.server.read(1)
    assert classify(there.value, during="transfer") == "altered_bytes"


def test_a_changed_certificate_or_signature_is_altered_and_a_refusing_server_is_not(contexts):
    found = Line(contexts, change=lambda raw: flipped(raw, 400)).shake()
    assert classify(found, during="tls") == "altered_bytes"
    for answer in (b"\x15\x03\x03\x00\x02\x02\x28", b"HTTP/1.1 403 Forbidden\r\n\r\n"):
        refused = Line(contexts, change=lambda raw, answer=answer: answer if raw else raw).shake()
        assert classify(refused, during="tls") == "tls_failed"


def test_a_cut_connection_is_not_altered(contexts):
    line = Line(contexts)
    assert line.shake() is None
    line.server.write(bytes(16_384))
    line.change = lambda raw: raw[:5000]
    line.carry()
    line.to_client.write_eof()
    with pytest.raises(ssl.SSLError) as cut:
        line.client.read(65_536)
    assert classify(cut.value, during="transfer") == "end_of_stream"


def test_what_is_altering_is_in_the_vocabulary():
    assert ALTERING < FAILURES

# SPDX-License-Identifier: EUPL-1.2
"""What a reflector keeps under --state: its signing key, its two certificates, the month's network key.

A signing key is replaced in two steps, because the collector and the plan must know the new one before it signs:
`prepare_key` makes it and tells its id, `use_next_key` takes it into use. Private files have mode 0600 and are written
beside and renamed, so that a power cut leaves old or new, never half.
Spec: spec/records.md, section "Keys"; spec/protocol.md, sections "Control channel", "Origin" and "Renewal".
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import secrets
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from probe.wire.signing import SeedSigner, load_or_create

SIGNING_KEY: Final = "key"
NEXT_KEY: Final = "key.next"
CertificateKind = Literal["ec", "rsa"]
_YEARS: Final = 20
"""Certificates are known by their digest; an expiry would only break pins."""


def write_private(path: Path, content: bytes, *, durably: bool = True) -> None:
    """Replace a file at once, mode 0600; `durably` also against a power cut."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        if durably:
            os.fsync(file.fileno())
    beside.replace(path)
    if durably:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make what was renamed in a directory last."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate with its key, in one PEM file."""

    path: Path
    digest: str
    """SHA-256 of the DER, hex: the pin."""


def load_or_make_certificate(path: Path, name: str, kind: CertificateKind = "ec") -> Certificate:
    """The certificate in `path`, made there if it is missing.

    `rsa` for the data port: each of its signatures has 256 bytes, so that the server's handshake has the same number
    of bytes in every connection, whatever its name; those of an elliptic curve vary by a byte or two.

    Raises ValueError where the file holds anything else, OSError where it cannot be read or written.
    """
    if not path.exists():
        write_private(path, _make_certificate(name, kind))
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a certificate with its key; move it away to get a new one") from error
    except ssl.SSLError as error:
        raise ValueError(f"{path} is not a certificate with its key; move it away to get a new one") from error
    return Certificate(path, hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest())


def _make_certificate(name: str, kind: CertificateKind) -> bytes:
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    key = ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # probes' clocks are off at boot
        .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_signer(path: Path) -> SeedSigner:
    """The signing key in `path`, made there if it is missing.

    Raises ValueError where the file holds anything else, OSError where it cannot be read or written.
    """
    try:
        return load_or_create(path)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a key file (64 hex characters); move it away to get a new key") from None


def prepare_key(state: Path) -> str:
    """Make the next signing key, unless there is one already; its id."""
    return load_signer(state / NEXT_KEY).key_id


def use_next_key(state: Path) -> str:
    """Sign with the next key (made now if there is none) from the next start or SIGHUP on; its id.

    The old key is gone then: a reflector that runs keeps it in memory for the sessions that are open.
    """
    key_id = prepare_key(state)
    (state / NEXT_KEY).replace(state / SIGNING_KEY)
    sync_directory(state)
    return key_id


class NetworkKey:
    """The key of the month that networks are hashed with. The month before's is overwritten when it turns.

    A collector that gives all its reflectors one key does so in its answers (`adopt`).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # the data port's thread asks too
        self._month = ""
        self._key = b""
        self._read()

    def of(self, now_ms: int) -> bytes:
        """The key for the month (UTC) of `now_ms`; a new one is drawn and the old one destroyed when it begins."""
        month = month_of(now_ms)
        with self._lock:
            if month != self._month:
                self._keep(month, secrets.token_bytes(32))
            return self._key

    def adopt(self, month: str, key: bytes, now_ms: int) -> bool:
        """Take a key given by the collector; one of another month, or of another size, is not taken."""
        if month != month_of(now_ms) or len(key) != 32:
            return False
        with self._lock:
            if (month, key) != (self._month, self._key):
                self._keep(month, key)
        return True

    def _read(self) -> None:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            month, key = str(content["month"]), bytes.fromhex(content["key"])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self._path} is not a network key; move it away to get a new one") from None
        self._month, self._key = month, key

    def _keep(self, month: str, key: bytes) -> None:
        content = json.dumps({"month": month, "key": key.hex()}).encode() + b"\n"
        if self._path.exists():
            # Over the old bytes first: on most file systems the same blocks.
            with self._path.open("r+b") as file:
                file.write(b"\0" * len(content))
                file.flush()
                os.fsync(file.fileno())
        write_private(self._path, content)
        self._month, self._key = month, key


def month_of(now_ms: int) -> str:
    """The month of a time, UTC: 2026-07."""
    return datetime.datetime.fromtimestamp(now_ms / 1000, datetime.UTC).strftime("%Y-%m")

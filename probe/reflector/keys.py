# SPDX-License-Identifier: EUPL-1.2
"""What a reflector keeps under --state: its signing key, its two certificates, the month's network key.

Private files have mode 0600 and are written beside and renamed, so that a power cut leaves old or new, never half.
Spec: spec/records.md, section "Keys"; spec/protocol.md, sections "Control channel" and "Origin".
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import secrets
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_YEARS: Final = 20
"""Certificates are known by their digest; an expiry would only break pins."""


def write_private(path: Path, content: bytes) -> None:
    """Replace a file at once, mode 0600."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate with its key, in one PEM file."""

    path: Path
    digest: str
    """SHA-256 of the DER, hex: the pin."""


def load_or_make_certificate(path: Path, name: str) -> Certificate:
    """The certificate in `path`, made there if it is missing.

    Raises ValueError where the file holds anything else, OSError where it cannot be read or written.
    """
    if not path.exists():
        write_private(path, _make_certificate(name))
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a certificate with its key; move it away to get a new one") from error
    except ssl.SSLError as error:
        raise ValueError(f"{path} is not a certificate with its key; move it away to get a new one") from error
    return Certificate(path, hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest())


def _make_certificate(name: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
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


class NetworkKey:
    """The key of the month that networks are hashed with. The month before's is overwritten when it turns.

    A collector that gives all its reflectors one key does so in its answers (`adopt`).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._month = ""
        self._key = b""
        self._read()

    def of(self, now_ms: int) -> bytes:
        """The key for the month (UTC) of `now_ms`; a new one is drawn and the old one destroyed when it begins."""
        month = month_of(now_ms)
        if month != self._month:
            self._keep(month, secrets.token_bytes(32))
        return self._key

    def adopt(self, month: str, key: bytes, now_ms: int) -> bool:
        """Take a key given by the collector; one of another month, or of another size, is not taken."""
        if month != month_of(now_ms) or len(key) != 32:
            return False
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

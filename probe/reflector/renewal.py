# SPDX-License-Identifier: EUPL-1.2
"""New keys and certificates in a reflector that runs, without harm to the sessions that are open.

A session's records are signed with the key its grant named. The data port's certificate was told to every session at
its start, and a TLS handshake does not say whose it is: a new one is served from the first moment without a session.
Spec: spec/protocol.md, section "Renewal".
"""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from typing import Any, Final

from probe.protocol.accounts import Refusal, refuse
from probe.protocol.booking import Booking
from probe.reflector.data import Contexts
from probe.reflector.keys import (
    SIGNING_KEY,
    Certificate,
    load_or_make_certificate,
    load_signer,
    write_private,
)
from probe.reflector.logs import LOG
from probe.reflector.receipts import Receipts

DRAIN_AFTER_MS: Final = 600_000
"""A reflector that was never empty for so long opens no more sessions until it is, and takes the certificate then."""
_RETRY_AFTER_S: Final = 60
_DATA: Final = "data.pem"
_DATA_IN_USE: Final = "data.in-use.pem"


def load_control_certificate(state: Path) -> Certificate:
    """The control port's. Raises ValueError, OSError."""
    return load_or_make_certificate(state / "control.pem", "reflector.invalid")


def load_data_certificate(state: Path) -> Certificate:
    """The data port's. Raises ValueError, OSError."""
    return load_or_make_certificate(state / _DATA, "data.invalid", kind="rsa")


class DataContexts(Contexts):
    """TLS contexts that can be exchanged, from a copy of the certificate that nobody changes meanwhile."""

    def __init__(self, state: Path) -> None:
        self._in_use = state / _DATA_IN_USE
        self._copy(state / _DATA)
        super().__init__(self._in_use)

    def renew(self, certificate: Certificate) -> None:
        """Serve this certificate from now on."""
        self._copy(certificate.path)
        self._made = Contexts(self._in_use)._made

    def _copy(self, path: Path) -> None:
        write_private(self._in_use, path.read_bytes())


class Renewal:
    """Reads everything again when told to (SIGHUP), and changes over as soon as that harms nobody."""

    def __init__(
        self,
        *,
        state: Path,
        booking: Booking,
        lock: threading.Lock,
        receipts: Receipts,
        contexts: DataContexts,
        control_context: ssl.SSLContext,
        health: dict[str, Any],
    ) -> None:
        self._state = state
        self._booking = booking
        self._lock = lock
        self._receipts = receipts
        self._contexts = contexts
        self._control_context = control_context
        self._health = health
        self._pending: Certificate | None = None
        self._pending_since_ms = 0

    def reload(self, now_ms: int) -> None:
        """Read keys and certificates. What cannot be read is told in the log, and the old one stays."""
        for read in (self._reload_key, self._reload_control, lambda: self._reload_data(now_ms)):
            try:
                read()
            except (ValueError, ssl.SSLError) as error:
                LOG.error("%s; the old one stays in use", error)
            except OSError as error:
                LOG.error("%s cannot be read (%s); the old one stays in use", error.filename, error.strerror)
        self.tick(now_ms)

    def tick(self, now_ms: int) -> Refusal | None:
        """Change over where nobody is in the way; why no session may be opened until then, if it has taken long."""
        with self._lock:
            if self._pending is None:
                return None
            if not self._booking.sessions_open:
                pending, self._pending = self._pending, None
                self._contexts.renew(pending)
                self._booking.renew(data_certificate=pending.digest)
                LOG.warning("the data port serves its new certificate")
                return None
        if now_ms - self._pending_since_ms < DRAIN_AFTER_MS:
            return None
        return refuse(503, "busy", "this reflector is about to change its certificate", _RETRY_AFTER_S)

    def _reload_key(self) -> None:
        signer = load_signer(self._state / SIGNING_KEY)
        if signer.key_id == self._booking.identity.key_id:
            return
        self._receipts.add(signer)
        with self._lock:
            self._booking.renew(key_id=signer.key_id)
        self._health["key"] = signer.key_id
        LOG.warning("new sessions are signed with the key %s", signer.key_id)

    def _reload_control(self) -> None:
        self._control_context.load_cert_chain(load_control_certificate(self._state).path)

    def _reload_data(self, now_ms: int) -> None:
        certificate = load_data_certificate(self._state)
        if certificate.digest == self._booking.identity.data_certificate:
            self._pending = None
        elif self._pending is None or self._pending.digest != certificate.digest:
            self._pending, self._pending_since_ms = certificate, now_ms

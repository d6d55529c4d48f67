# SPDX-License-Identifier: EUPL-1.2
"""Ed25519 signers behind one small interface: cryptography or PyNaCl where present, else plain Python.

All three give the same bytes (RFC 8032 is deterministic), so a key file moves between machines, and the same verdict
on every signature, a forger's too: else a record would count at one collector and not at another.
Spec: spec/records.md, section "Keys".
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

from probe.wire import ed25519
from probe.wire.codec import WireError

Backend = Literal["cryptography", "pynacl", "python"]


class Signer(Protocol):
    """Signs bytes with one Ed25519 key."""

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
        ...

    @property
    def key_id(self) -> str:
        """The public key in base64url without padding: 43 characters."""
        ...

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        ...


class SeedSigner:
    """A signer from a 32-byte seed, on the backend asked for or the best one present."""

    def __init__(self, seed: bytes, backend: Backend | None = None) -> None:
        if len(seed) != 32:
            raise ValueError("an Ed25519 seed has 32 bytes")
        self._seed = seed
        self.backend: Backend = backend or best_backend()
        self._native: Any = None
        self._public: bytes
        if self.backend == "cryptography":
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

            self._native = Ed25519PrivateKey.from_private_bytes(seed)
            self._public = bytes(self._native.public_key().public_bytes_raw())
        elif self.backend == "pynacl":
            from nacl.signing import SigningKey  # noqa: PLC0415

            self._native = SigningKey(seed)
            self._public = bytes(self._native.verify_key)
        else:
            self._public = ed25519.public_key(seed)

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
        return self._public

    @property
    def key_id(self) -> str:
        """43 characters of base64url."""
        return base64.urlsafe_b64encode(self._public).rstrip(b"=").decode()

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        if self.backend == "cryptography":
            return bytes(self._native.sign(message))
        if self.backend == "pynacl":
            return bytes(self._native.sign(message).signature)
        return ed25519.sign(self._seed, message, self._public)

    def __repr__(self) -> str:
        return f"SeedSigner({self.key_id}, {self.backend})"  # never the seed


_preferred: list[Backend] = []


def prefer(backend: Backend) -> None:
    """Use this backend in this process wherever none is named. A short-lived probe prefers plain Python: it signs
    once a session, and a compiled library would cost it 7 MB of memory."""
    _preferred[:] = [backend]


def best_backend() -> Backend:
    """The backend preferred in this process, else the fastest that can be imported here."""
    return _preferred[0] if _preferred else _fastest()


@cache
def _fastest() -> Backend:
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401, PLC0415
    except ImportError:
        pass
    else:
        return "cryptography"
    try:
        import nacl.signing  # noqa: F401, PLC0415
    except ImportError:
        return "python"
    return "pynacl"


def verify(public_key: bytes, message: bytes, signature: bytes, backend: Backend | None = None) -> bool:
    """Whether `signature` (64 bytes) is that of `public_key` (32 bytes) over `message`."""
    if not ed25519.is_canonical(public_key, signature):
        return False
    backend = backend or best_backend()
    if backend == "cryptography":
        return _verify_cryptography(public_key, message, signature)
    if backend == "pynacl":
        return _verify_pynacl(public_key, message, signature)
    return ed25519.verify(public_key, message, signature)


def _verify_cryptography(public_key: bytes, message: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _verify_pynacl(public_key: bytes, message: bytes, signature: bytes) -> bool:
    from nacl import bindings  # noqa: PLC0415
    from nacl.exceptions import CryptoError  # noqa: PLC0415

    try:
        bindings.crypto_sign_open(signature + message, public_key)
    except (CryptoError, ValueError):
        return False
    # Some versions of libsodium multiply the equation by the cofactor and so accept more than the others do; for
    # points of prime order that makes no difference. Only a forger's are not, so the slow path stays rare.
    if bindings.has_crypto_core_ed25519 and all(
        bindings.crypto_core_ed25519_is_valid_point(point) for point in (public_key, signature[:32])
    ):
        return True
    return ed25519.verify(public_key, message, signature)


def key_bytes(key_id: str) -> bytes:
    """The 32 bytes of a key id. Raises WireError bad_key."""
    try:
        raw = base64.b64decode(key_id + "=" * (-len(key_id) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise WireError("bad_key", "key") from None
    if len(raw) != 32 or base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != key_id:
        raise WireError("bad_key", "key")
    return raw


def load_or_create(path: Path) -> SeedSigner:
    """The signer whose seed stands in `path` (64 hex characters, mode 0600); made there if it is missing.

    Raises ValueError where the file holds anything else, OSError where it cannot be read or written.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return _create(path)
    try:
        seed = bytes.fromhex(content.decode("ascii"))
        return SeedSigner(seed)
    except ValueError:
        raise ValueError(f"{path} is not a key file (64 hex characters); move it away to get a new key") from None


def _create(path: Path) -> SeedSigner:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    seed = secrets.token_bytes(32)
    # Written beside and renamed, so that a power cut leaves either no key or a whole one.
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(seed.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(beside, path)  # fails if another process was first: then its key is the key
    except FileExistsError:
        return load_or_create(path)
    finally:
        beside.unlink()
    return SeedSigner(seed)

# SPDX-License-Identifier: EUPL-1.2
"""The collector's own key: plans are signed with it, and enrolments name it, so that they are worth nothing elsewhere.

It stands in the data directory (made at the first start, mode 0600) or where the configuration says; whoever moves a
collector takes it along, because probes refuse plans of another key. Spec: spec/enrolment.md, section "The collector".
"""

from __future__ import annotations

import hashlib
import hmac
import stat
from pathlib import Path
from typing import Final

from collector.config import Config, ConfigError
from probe.wire.signing import SeedSigner, load_or_create

FILE: Final = "key"
OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class Identity:
    """A signer, and secrets that follow from it."""

    def __init__(self, signer: SeedSigner) -> None:
        self.signer = signer
        # Ed25519 signatures are deterministic (RFC 8032), so the secret is the same after each start.
        self._secret = hashlib.sha256(signer.sign(b"evenlane collector: shares of a plan")).digest()

    @property
    def key_id(self) -> str:
        """43 characters of base64url."""
        return self.signer.key_id

    def draw(self, *about: str) -> float:
        """A number from 0 to 1 (exclusive) that nobody without the key can tell, always the same for the same texts."""
        told = "\n".join(about).encode()
        return int.from_bytes(hmac.digest(self._secret, told, "sha256")[:6], "big") / 2**48


def path_of(config: Config) -> Path:
    """Where the key stands, or will."""
    return config.key_file or config.data / FILE


def load(config: Config) -> Identity:
    """The collector's key; made where none was and the configuration names no file. Raises ConfigError."""
    path = path_of(config)
    if config.key_file is not None and not path.exists():
        # Not made here: a mistyped name would give a collector that none of its probes believes.
        raise ConfigError("the configuration", [f"key_file names {path}, which does not exist: copy the key there"])
    try:
        return Identity(load_or_create(path))
    except ValueError as error:
        raise ConfigError("the collector's key", [str(error)]) from None
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise ConfigError("the collector's key", [f"{path} cannot be used ({reason})"]) from None


def told(config: Config) -> tuple[str | None, str]:
    """Key id (None: not made yet) and a sentence for people; changes nothing. Raises ConfigError as `load` does."""
    path = path_of(config)
    if config.key_file is None and not path.exists():
        return None, f"key: none yet, made at the first start ({path})"
    key_id = load(config).key_id
    if path.stat().st_mode & OTHERS:
        return key_id, f"key {key_id}, but {path} can be read by other users: chmod 600 {path}"
    return key_id, f"key {key_id} ({path})"

# SPDX-License-Identifier: EUPL-1.2
"""What is kept of those who take part, of invitations, and of those who left lately. Private: none of it is published.

Spec: spec/enrolment.md, section "What is kept".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A probe that takes part. Of what its volunteer told only this is kept: the rest comes with each measurement."""

    probe: str
    at_ms: int
    """As signed, by the probe's clock; `enrolled_ms` by the collector's."""
    enrolled_ms: int
    consent: str
    language: str
    hotspot: bool
    token: str | None = None
    """Id of the token by which it became vetted."""
    vetted_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An invitation of an organiser who knows the volunteers. The secret itself is kept nowhere."""

    id: str
    digest: bytes
    label: str
    uses: int
    used: int = 0
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None

    def state(self, now_ms: int) -> Literal["good", "revoked", "expired", "used up"]:
        """Whether it may still be used, and why not."""
        if self.revoked_ms is not None:
            return "revoked"
        if self.expires_ms is not None and now_ms >= self.expires_ms:
            return "expired"
        return "used up" if self.used >= self.uses else "good"


@dataclass(frozen=True, slots=True, kw_only=True)
class Departed:
    """A probe that left lately. Times as in `Member`; `pseudonym` None once a day has passed."""

    at_ms: int
    left_ms: int
    pseudonym: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """How many probes take part, how many of them by a token, and how many ever left."""

    enrolled: int
    vetted: int
    left: int

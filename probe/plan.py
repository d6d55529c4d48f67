# SPDX-License-Identifier: EUPL-1.2
"""Reading a collector's signed plan from a file: whose it is, whether it is valid now, what it delivers.

Here it lends a run by hand its app profiles; the agent follows all of it. Spec: spec/records.md, section "Plan".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from probe.wire.codec import WireError
from probe.wire.envelope import from_line, open_record
from probe.wire.limits import MAX_ENVELOPE_BYTES
from probe.wire.records import PlannedProfile
from probe.wire.signing import key_bytes

_CLOCKS_DIFFER_MS: Final = 600_000
"""A plan may have been issued so far ahead of our clock."""


class PlanError(ValueError):
    """The plan cannot be followed; the message is one sentence that says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedPlan:
    """A plan that was verified."""

    profiles: tuple[PlannedProfile, ...]
    digest: str
    """SHA-256 of the payload, as measurements name it."""


def read_plan(path: Path, key: str, now_ms: int) -> SignedPlan:
    """The plan in a file of one envelope, signed by the key id `key`. Raises PlanError."""
    try:
        with path.open("rb") as file:
            line = file.read(MAX_ENVELOPE_BYTES + 2)
    except OSError as error:
        raise PlanError(f"the plan {path} cannot be read ({error.strerror})") from None
    try:
        key_bytes(key)
        envelope = from_line(line)
        if envelope.key_id != key:
            raise PlanError(f"the plan {path} is signed by {envelope.key_id}, not by the key that you named")
        plan = open_record(envelope)
    except WireError as error:
        reason = "the key id is not one" if error.reason == "bad_key" else str(error)
        raise PlanError(f"the plan {path} cannot be believed: {reason}") from None
    if plan.type != "plan":
        raise PlanError(f"{path} holds a {plan.type}, not a plan")
    if plan.issued_ms > now_ms + _CLOCKS_DIFFER_MS:
        raise PlanError(f"the plan {path} was issued in the future: set this machine's clock")
    if plan.expires_ms <= now_ms:
        raise PlanError(f"the plan {path} has expired: fetch the newest one")
    return SignedPlan(profiles=plan.profiles, digest=envelope.digest)

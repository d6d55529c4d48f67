# SPDX-License-Identifier: EUPL-1.2
"""The collector's signed plan at the probe's end: whether it may be followed, how it is fetched and kept.

A plan tells thousands of strangers' devices where to connect and how much to send. Whoever steals the key that signs
plans must not hold a weapon, so beside the signature there are limits of our own, which no plan can lift:

- at most 400 MB a day and 10 000 MB a month: twice what is usual, and less than a household notices;
- at most 64 nettests, 600 s between runs or more (the record's own bounds): a probe is no tool for a burst;
- at most 50 Mbit/s: many probes together still are no flood, and a home line still has room;
- one app's session costs no more than a day's budget: else it would never run, or a slip of the pen eats a month;
- reflectors by https and with a key alone; one that stands in a house (a private address, a bare name) only with the
  digest of its certificate, so that no plan makes a probe talk to its own home's devices; the portal's page only on the
  reflector's own host, so that no plan sends plain requests to third parties;
- valid for at most 400 days, so that a plan which was lost does not rule for ever;
- weights sum to at most 1, else the promise about false alarms would not hold (spec/statistics.md).

A refused plan never takes the place of a good one, and an expired one is followed no longer.
Spec: spec/volunteer.md, section "Plans that a probe follows"; spec/records.md, section "Plan".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from probe.ask import Answer, ask, words
from probe.netio.control import Url, UrlError, is_house_name, parse_url
from probe.netio.dial import Dialer
from probe.protocol.pacing import SHARE_OF_LINE, pair_bytes, segment_bytes
from probe.protocol.session import MOST_CALIBRATION_S, MOST_CALIBRATIONS
from probe.settings import Settings
from probe.wire.codec import WireError
from probe.wire.envelope import Envelope, from_json, from_line, open_record, to_line
from probe.wire.failure import Failure
from probe.wire.limits import MAX_ENVELOPE_BYTES
from probe.wire.records import Plan, PlannedNettest, PlannedProfile, PlannedReflector
from probe.wire.signing import key_bytes

MOST_DAILY_MB: Final = 400
MOST_MONTHLY_MB: Final = 10_000
MOST_PACE_MBPS: Final = 50.0
MOST_VALID_MS: Final = 400 * 86_400_000
DEFAULT_DAILY_MB: Final = 200
DEFAULT_MONTHLY_MB: Final = 5000
HOTSPOT_DAILY_MB: Final = 30
HOTSPOT_MONTHLY_MB: Final = 500
_CLOCKS_DIFFER_MS: Final = 600_000
"""A plan may have been issued so far ahead of our clock."""
_PLACEBO_SHARE: Final = 10
"""One extra pair in so many (probe/nettests/differential.py)."""

Reason = Literal[
    "unreadable", "bad_signature", "another_key", "not_a_plan", "rolled_back", "from_the_future", "expired", "absurd"
]


class PlanError(ValueError):
    """The plan cannot be followed; the message is one sentence that says why, `reason` a stable code."""

    def __init__(self, message: str, reason: Reason = "absurd") -> None:
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedPlan:
    """A plan that was verified, with the bytes that say so."""

    plan: Plan
    envelope: Envelope

    @property
    def digest(self) -> str:
        """SHA-256 of the payload, as measurements name it."""
        return self.envelope.digest

    @property
    def profiles(self) -> tuple[PlannedProfile, ...]:
        """App profiles that it delivers."""
        return self.plan.profiles


# -- whether it may be followed (pure) --------------------------------------------------------------------------


def accept(
    envelope: Envelope, key_id: str, now_ms: int, known_version: int = 0, known_digest: str | None = None
) -> Plan:
    """The plan in an envelope, where it may be followed now. Raises PlanError, and nothing else.

    `key_id` is the collector's; `known_version` and `known_digest` are those of the newest plan that was accepted: a
    lower version is refused, and so is the same version with other bytes.
    """
    plan = _verified(envelope, key_id)
    if plan.version < known_version:
        raise PlanError(f"version {plan.version} is older than {known_version}, which is known already", "rolled_back")
    if plan.version == known_version and known_digest not in {None, envelope.digest}:
        raise PlanError(f"there are two plans of version {plan.version}: another needs a new number", "rolled_back")
    _check_time(plan, now_ms)
    _check_sense(plan)
    return plan


def _verified(envelope: Envelope, key_id: str) -> Plan:
    """The record, whose signature is good; says nothing of what stands in it."""
    try:
        key_bytes(key_id)
    except WireError:
        raise PlanError("the collector's key id is not one", "another_key") from None
    if envelope.key_id != key_id:
        raise PlanError(f"it is signed by {envelope.key_id}, not by the key that you named", "another_key")
    try:
        record = open_record(envelope)
    except WireError as error:
        code: Reason = "bad_signature" if error.reason == "bad_signature" else "unreadable"
        raise PlanError(f"it cannot be believed: {error}", code) from None
    if not isinstance(record, Plan):
        raise PlanError(f"it holds a {record.type}, not a plan", "not_a_plan")
    return record


def _check_time(plan: Plan, now_ms: int) -> None:
    if plan.issued_ms > now_ms + _CLOCKS_DIFFER_MS:
        raise PlanError("it was issued in the future: set this machine's clock", "from_the_future")
    if plan.expires_ms <= now_ms:
        raise PlanError("it has expired: fetch the newest one", "expired")
    if plan.expires_ms - plan.issued_ms > MOST_VALID_MS:
        raise PlanError(f"it is valid for more than {MOST_VALID_MS // 86_400_000} days")


def _check_sense(plan: Plan) -> None:
    for name, most in (
        ("daily_mb", MOST_DAILY_MB),
        ("monthly_mb", MOST_MONTHLY_MB),
        ("hotspot_daily_mb", MOST_DAILY_MB),
        ("hotspot_monthly_mb", MOST_MONTHLY_MB),
    ):
        told = getattr(plan, name)
        if told > most:
            raise PlanError(f"{name} is {told}, and no probe spends more than {most}")
    total = math.fsum(weight.weight for weight in plan.weights)
    if total > 1 + 1e-9:
        raise PlanError(f"its weights sum to {total:.6g}, which is more than 1")
    for place, nettest in enumerate(plan.nettests):
        _check_nettest(f"nettests[{place}]", nettest, plan.daily_mb)
    for place, reflector in enumerate(plan.reflectors):
        _check_reflector(f"reflectors[{place}]", reflector)


def _check_nettest(path: str, nettest: PlannedNettest, daily_mb: int) -> None:
    if nettest.most_pace_mbps > MOST_PACE_MBPS:
        raise PlanError(f"{path} wants {nettest.most_pace_mbps:g} Mbit/s, and no probe sends above {MOST_PACE_MBPS:g}")
    cost = session_bytes(nettest)
    # A budget of nothing is how a collector lets its probes rest.
    if daily_mb and cost > daily_mb * 1_000_000:
        raise PlanError(f"{path} costs {cost / 1e6:.0f} MB a session, more than the {daily_mb} MB of a day")


def _check_reflector(path: str, reflector: PlannedReflector) -> None:
    try:
        url = parse_url(reflector.url)
    except UrlError:
        raise PlanError(f"{path} has no usable https address") from None
    try:
        key_bytes(reflector.key)
    except WireError:
        raise PlanError(f"{path} has no usable key") from None
    if url.pin is None and is_house_name(url.host):
        raise PlanError(f"{path} stands in a house and has no #sha256= pin of its certificate")
    if reflector.portal is None:
        return
    try:
        portal = parse_url(reflector.portal, schemes=("http",))
    except UrlError:
        raise PlanError(f"{path} has no usable address of its portal page") from None
    if portal.host.lower() != url.host.lower():
        raise PlanError(f"{path} has its portal page on another host than its own")


def session_bytes(nettest: PlannedNettest, apps: int = 1) -> int:
    """Most bytes that a session of this line of work takes with so many of its apps, calibration and placebo pairs
    included.

    Reckoned for pairs whose two segments follow each other; at any usual pace the concurrent ones cost less.
    """
    ways = 2 if nettest.direction == "both" else 1
    tests = nettest.pairs * ways * apps
    pairs = tests + -(-tests // _PLACEBO_SHARE)
    calibrations = MOST_CALIBRATIONS * ways
    return pairs * pair_bytes(nettest.most_pace_mbps, nettest.segment_s) + calibrations * segment_bytes(
        nettest.most_pace_mbps / SHARE_OF_LINE, MOST_CALIBRATION_S
    )


@dataclass(frozen=True, slots=True)
class Budgets:
    """What may be spent, in MB (10^6 bytes), both directions together."""

    daily_mb: int
    monthly_mb: int


def ceiling(settings: Settings) -> Budgets:
    """What the owner agreed to: told in the settings, else what the consent text said (5 GB a month, 200 MB a day).

    A plan can lower it and never raise it, because nobody agreed to more.
    """
    usual = (DEFAULT_DAILY_MB, DEFAULT_MONTHLY_MB)
    if settings.stands_at_hotspot:
        usual = (HOTSPOT_DAILY_MB, HOTSPOT_MONTHLY_MB)
    daily = usual[0] if settings.daily_mb is None else settings.daily_mb
    monthly = usual[1] if settings.monthly_mb is None else settings.monthly_mb
    return Budgets(min(daily, MOST_DAILY_MB), min(monthly, MOST_MONTHLY_MB))


def budgets(plan: Plan | None, settings: Settings) -> Budgets:
    """What may be spent: the lower of the plan and of what the owner agreed to."""
    most = ceiling(settings)
    if plan is None:
        return most
    if settings.stands_at_hotspot:
        return Budgets(min(plan.hotspot_daily_mb, most.daily_mb), min(plan.hotspot_monthly_mb, most.monthly_mb))
    return Budgets(min(plan.daily_mb, most.daily_mb), min(plan.monthly_mb, most.monthly_mb))


# -- files ------------------------------------------------------------------------------------------------------


def read_plan(path: Path, key: str, now_ms: int) -> SignedPlan:
    """The plan in a file of one envelope, signed by the key id `key`, for a run by hand. Raises PlanError."""
    envelope = _envelope_in(path)
    try:
        plan = accept(envelope, key, now_ms)
    except PlanError as error:
        raise PlanError(f"the plan {path} cannot be followed: {error}", error.reason) from None
    return SignedPlan(plan=plan, envelope=envelope)


def stored(path: Path, key: str) -> SignedPlan | None:
    """The newest plan that was accepted before; None where there is none or its file was spoilt.

    It may have expired, or this machine's clock may be wrong: `usable` says whether it may be followed.
    """
    if not path.exists():
        return None
    try:
        envelope = _envelope_in(path)
        return SignedPlan(plan=_verified(envelope, key), envelope=envelope)
    except PlanError:
        return None


def usable(found: SignedPlan, key: str, now_ms: int) -> Plan:
    """The stored plan where it may be followed now. Raises PlanError."""
    return accept(found.envelope, key, now_ms)


def keep(path: Path, found: SignedPlan) -> None:
    """Write an accepted plan; the caller does so only where it is another one, to spare the flash. Raises OSError."""
    from probe.state import write_whole  # noqa: PLC0415  (costs memory, and writing is rare)

    write_whole(path, to_line(found.envelope))


def _envelope_in(path: Path) -> Envelope:
    try:
        with path.open("rb") as file:
            line = file.read(MAX_ENVELOPE_BYTES + 2)
    except OSError as error:
        raise PlanError(f"the plan {path} cannot be read ({error.strerror})", "unreadable") from None
    try:
        return from_line(line)
    except WireError as error:
        raise PlanError(f"the plan {path} cannot be believed: {error}", "unreadable") from None


# -- fetching ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What became of asking for the plan."""

    status: Literal["new", "unchanged", "none", "refused", "failed"]
    """new: `found` is to be kept. unchanged: the known one is the newest. none: there is no plan for this probe yet.
    refused: what came may not be followed, or the collector refuses us. failed: ask again later."""
    found: SignedPlan | None = None
    failure: Failure | None = None
    detail: str = ""
    """One sentence, empty where all is well."""
    retry_after_s: int | None = None


def fetch(
    url: Url,
    *,
    probe: str,
    collector_key: str,
    now_ms: int,
    known: SignedPlan | None = None,
    dialer: Dialer | None = None,
) -> Fetched:
    """Ask for this probe's plan and judge it. Writes nothing, and raises nothing that a peer could cause."""
    headers = {"If-None-Match": f'"{known.digest}"'} if known else {}
    answer = ask(url, f"/v1/plan?probe={probe}", headers=headers, most=MAX_ENVELOPE_BYTES + 1024, dialer=dialer)
    return judge(answer, collector_key=collector_key, now_ms=now_ms, known=known)


def judge(answer: Answer, *, collector_key: str, now_ms: int, known: SignedPlan | None = None) -> Fetched:
    """What a collector's answer to the question for a plan means; pure."""
    if answer.failure is not None:
        return Fetched(
            status="failed", failure=answer.failure, detail=answer.detail, retry_after_s=answer.retry_after_s
        )
    if answer.status == 304 and known is not None:
        return Fetched(status="unchanged", found=known)
    if answer.status == 404 and answer.error == "no_plan":
        return Fetched(status="none", detail="the collector has no plan for this probe yet")
    if answer.status == 200:
        return _weigh(answer.plain.get("envelope"), collector_key, now_ms, known)
    if answer.status < 400:
        return Fetched(status="failed", failure="http_error", detail="the collector's answer cannot be read")
    return Fetched(status="refused", detail=answer.detail)


def _weigh(told: object, collector_key: str, now_ms: int, known: SignedPlan | None) -> Fetched:
    version, digest = (known.plan.version, known.digest) if known else (0, None)
    try:
        envelope = from_json(told)
        plan = accept(envelope, collector_key, now_ms, version, digest)
    except WireError as error:
        return Fetched(status="refused", detail=f"the collector's plan cannot be read: {words(error)}")
    except PlanError as error:
        return Fetched(status="refused", detail=f"the collector's plan is not followed: {words(error)}")
    if envelope.digest == digest:
        return Fetched(status="unchanged", found=known)
    return Fetched(status="new", found=SignedPlan(plan=plan, envelope=envelope))

# SPDX-License-Identifier: EUPL-1.2
"""The probe's smaller commands: what it can measure, how it stands, what waits, what this machine can do."""

from __future__ import annotations

import math
import random
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from probe.handover import SpoolSent, sync_spool
from probe.netio.control import Url
from probe.nettests.registry import NETTESTS
from probe.profiles.model import DEFAULT_APPS, ProfileError, Shelf, available, every, load, load_neutral
from probe.state import State, StateError
from probe.wire.limits import MIN_TIME_MS

# -- list -------------------------------------------------------------------------------------------------------


def catalogue() -> dict[str, Any]:
    """Nettests and apps, each app by every carrier that it can be sent by."""
    apps = []
    for name in every():
        profile = load(name)
        titles = profile.title
        apps.append(
            {
                "id": profile.id,
                "reference": profile.reference,
                "kind": profile.kind,
                "component": profile.component,
                "title": {"en": titles.en, "nl": titles.nl, "fr": titles.fr, "de": titles.de},
                "direction": profile.direction,
                "carrier": profile.carrier,
                "pace_mbps": profile.pace_mbps,
                "design": profile.design,
                "packet_bytes": profile.live.packet_bytes if profile.live else None,
                "interval_ms": profile.live.interval_ms if profile.live else None,
                "alpn": list(profile.alpn),
                "names": list(profile.names),
                "ndpi": profile.ndpi,
                "sources": list(profile.sources),
                "default": profile.id in DEFAULT_APPS,
            }
        )
    nettests = [{"id": nettest.id, "title": nettest.title} for nettest in NETTESTS.values()]
    return {"nettests": nettests, "apps": apps, "neutral": load_neutral().reference}


def catalogue_lines(found: dict[str, Any]) -> list[str]:
    """For people."""
    lines = ["nettests"]
    lines += [f"  {nettest['id']:<14} {nettest['title']}" for nettest in found["nettests"]]
    lines.append("apps (* measured unless others are named): carrier, direction and pace of one user, component")
    for app in found["apps"]:
        small = app["packet_bytes"]
        pace = f"{small} B/{app['interval_ms']} ms" if small else f"{app['pace_mbps']:g} Mbit/s"
        facts = f"{app['carrier']:<8}  {app['direction']:<4}  {pace:<11}"
        lines.append(f"{'*' if app['default'] else ' ':>2}{app['id']:<18}  {facts}  {app['component']}")
    return lines


def document(app: str) -> str:
    """A profile as a plan delivers it. Raises ProfileError."""
    return Shelf().document(app)


# -- status -----------------------------------------------------------------------------------------------------


def status(state: State) -> dict[str, Any]:
    """Key, sessions, last run, spool. Makes nothing."""
    key = state.known_key()
    entries = state.spool.entries()
    return {
        "state": str(state.directory),
        "run": str(state.run),
        "key": key,
        "sessions": state.sessions(),
        "last": state.last(),
        "spool": {"sessions": len(entries), "bytes": sum(entry.size for entry in entries)},
    }


def status_lines(found: dict[str, Any]) -> list[str]:
    """For people."""
    lines = [
        f"state directory  {found['state']}",
        f"key              {found['key'] or 'none yet: made by the first run'}",
    ]
    lines.append(f"sessions         {found['sessions']}")
    last = found["last"]
    if last:
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(last["ended_ms"] / 1000))
        ending = f", ended early ({last['failure']})" if last["failure"] else ""
        lines.append(f"last run         {day}, {last['pairs']['finished']} pairs{ending}")
    lines.append(f"spool            {found['spool']['sessions']} sessions, {found['spool']['bytes']} bytes")
    return lines


# -- spool ------------------------------------------------------------------------------------------------------


def send_spool(state: State, collector: Url) -> SpoolSent:
    """Send what waits, oldest first; stops at the first failure that may pass. A person asked: no pause is kept."""
    return sync_spool(state, collector, time.time_ns() // 1_000_000, random.Random(), is_asked=True, most_s=math.inf)


def spool_report(state: State, sent: SpoolSent | None) -> dict[str, Any]:
    """What still waits, and what was sent."""
    entries = state.spool.entries()
    report: dict[str, Any] = {
        "directory": str(state.spool.directory),
        "sessions": [entry.name for entry in entries],
        "bytes": sum(entry.size for entry in entries),
        "sent": None,
    }
    if sent is not None:
        report["sent"] = {
            "accepted": sent.accepted,
            "duplicates": sent.duplicates,
            "rejected": list(sent.rejected),
            "failure": sent.failure,
        }
    return report


def spool_lines(report: dict[str, Any]) -> list[str]:
    """For people."""
    lines = []
    sent = report["sent"]
    if sent is not None:
        lines.append(
            f"sent: {sent['accepted']} accepted, {sent['duplicates']} known already, {len(sent['rejected'])} refused"
        )
    lines.append(f"waiting in {report['directory']}: {len(report['sessions'])} sessions, {report['bytes']} bytes")
    return lines + [f"  {name}" for name in report["sessions"]]


# -- doctor -----------------------------------------------------------------------------------------------------


def doctor_report(state: State, reflector: str | None, bind: str | None) -> dict[str, Any]:
    """Every check with its finding; `ok` is false where one that matters failed."""
    checks: list[dict[str, Any]] = []
    for name, check in (
        ("python", _check_python),
        ("tls", _check_tls),
        ("clock", _check_clock),
        ("profiles", _check_profiles),
        ("state", lambda: _check_state(state)),
        ("sender", _check_sender),
        ("congestion", _check_congestion),
    ):
        checks.append(_checked(name, check))
    if reflector is not None:
        checks.append(_checked("reflector", lambda: _check_reflector(reflector, bind)))
    return {"ok": all(check["ok"] for check in checks), "checks": checks}


def _checked(name: str, check: Callable[[], tuple[bool, str]]) -> dict[str, Any]:
    ok, finding = check()
    return {"check": name, "ok": ok, "finding": finding}


def doctor_lines(report: dict[str, Any]) -> list[str]:
    """For people."""
    lines = [f"{'ok ' if check['ok'] else 'BAD'} {check['check']:<11} {check['finding']}" for check in report["checks"]]
    return [*lines, "this machine can measure" if report["ok"] else "what is marked BAD must be mended first"]


def _check_python() -> tuple[bool, str]:
    return sys.version_info >= (3, 11), ".".join(str(part) for part in sys.version_info[:3])


def _check_tls() -> tuple[bool, str]:
    try:
        import ssl
    except ImportError:
        return False, "the ssl module is missing: install your system's package of it (OpenWrt: python3-openssl)"
    return ssl.HAS_TLSv1_3, ssl.OPENSSL_VERSION + ("" if ssl.HAS_TLSv1_3 else ", without TLS 1.3")


def _check_clock() -> tuple[bool, str]:
    now = time.time() * 1000
    text = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return now > MIN_TIME_MS, text if now > MIN_TIME_MS else f"{text}: the clock was never set"


def _check_profiles() -> tuple[bool, str]:
    try:
        names = [load(name).id for name in every()]
        load_neutral()
    except (ProfileError, OSError) as error:
        return False, str(error)
    return bool(names), f"{len(available())} apps, {len(names)} profiles"


def _check_state(state: State) -> tuple[bool, str]:
    try:
        state.prepare()
        signer = state.signer()
    except StateError as error:
        return False, str(error)
    return True, f"{state.directory}, key {signer.key_id}"


def _check_sender() -> tuple[bool, str]:
    from probe.netio.dial import prepare_sender

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        options = prepare_sender(sock, 1.0)
    # Without kernel pacing uploads are paced by sleeping, which is coarser but measures.
    return True, "the kernel paces" if options.paced else "no kernel pacing: uploads are paced by sleeping"


def _check_congestion() -> tuple[bool, str]:
    from probe.netio.dial import prepare_sender

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        granted = prepare_sender(sock, 0).congestion
    if granted not in {"cubic", "reno", None}:
        return False, f"{granted}: neither cubic nor reno may be chosen here, so an upload would run into the next one"
    return True, granted or "the kernel does not tell"


def _check_reflector(reflector: str, bind: str | None) -> tuple[bool, str]:
    from probe.netio.control import ControlChannel, ControlFailed, UrlError, parse_url
    from probe.netio.dial import Dialer

    try:
        channel = ControlChannel(Dialer(bind), parse_url(reflector))
        took = [channel.ping(5.0) for _ in range(3)]
    except UrlError as error:
        return False, str(error)
    except ControlFailed as error:
        return False, f"cannot be reached ({error})"
    channel.close()
    if channel.smallest_ping_ms is None or None in took:
        return False, "answers too slowly"
    return True, f"answers in {channel.smallest_ping_ms:.1f} ms"

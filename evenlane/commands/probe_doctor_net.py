# SPDX-License-Identifier: EUPL-1.2
"""What the doctor asks of the network: names, clocks, collector, door, ports, and who else uses the line.

Answers come from strangers and may be slow: each question has a deadline, and what is told of an answer is made fit to
be shown. Spec: spec/probe.md, section "Seeing it".
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from probe.ask import ask
from probe.enrol import EnrolError, check_about, read_about
from probe.environment import is_metered, observe
from probe.household import find
from probe.line import Line, line_of
from probe.netio.control import ControlChannel, ControlFailed, Url, UrlError, open_https, parse_url
from probe.netio.dial import Dialer, WrongCertificate
from probe.netio.http import HttpError
from probe.portal import door_of, has_address, look

if TYPE_CHECKING:
    from evenlane.commands.probe_doctor import Subject
    from evenlane.commands.probe_doctor_here import Finding

DATA_PORT: Final = 443
"""Of a reflector in production; others tell theirs within a session alone."""
_TIMEOUT_S: Final = 5.0
_CLOCKS_MS: Final = 60_000
"""Further apart is worth a word; what is refused is said by `check_about`."""
_PINGS: Final = 3


def checks_of_the_network(subject: Subject) -> Iterator[tuple[str, Finding]]:
    """One after the other; those that have nothing to ask are left out."""
    yield "dns", _dns(subject)
    if subject.joined() is not None:
        yield "collector", _collector(subject)
    reflector, source = _reflector(subject)
    if isinstance(reflector, str):
        yield "reflector", ("bad", reflector)
        return
    if source == "plan":
        yield "portal", _portal(subject)
    if reflector is None:
        return
    seen = _reach(reflector, subject)
    yield "reflector", seen.finding
    if seen.local:
        yield "ports", _ports(reflector, subject.bind)
        line = line_of(seen.local)
        yield "line", _line(subject, seen, line)
        yield "household", _household(subject, seen, line)


def _reflector(subject: Subject) -> tuple[Url | str | None, str]:
    """The one that was named, else the plan's first; a sentence where it cannot be used."""
    if subject.reflector is not None:
        try:
            return parse_url(subject.reflector), "option"
        except UrlError as error:
            return str(error), "option"
    plan = subject.plan()
    if plan is None or not plan.plan.reflectors:
        return None, ""
    return parse_url(plan.plan.reflectors[0].url), "plan"


# -- names ------------------------------------------------------------------------------------------------------


def _dns(subject: Subject) -> Finding:
    """Names that exist have an address; one that cannot exist (RFC 2606) must have none."""
    joined, reflector = subject.joined(), _reflector(subject)[0]
    hosts = [joined.url.host] if joined else []
    hosts += [reflector.host] if isinstance(reflector, Url) else []
    names = [host for host in dict.fromkeys(hosts) if not _is_literal(host)]
    unknown = [host for host in names if not has_address(host)]
    if unknown:
        return "bad", f"no address for {', '.join(unknown)}: does this device have internet, and a name server?"
    if has_address(f"evenlane-{secrets.token_hex(8)}.invalid."):
        return (
            "bad",
            "a name that cannot exist was given an address: somebody answers for the name servers (a login page, a "
            "filter, or the operator); log in, or use another name server",
        )
    known = f"{', '.join(names)} found, and " if names else ""
    return "ok", f"{known}a name that cannot exist has no address"


def _is_literal(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


# -- collector --------------------------------------------------------------------------------------------------


def _collector(subject: Subject) -> Finding:
    """Is it there, is it the one, is our consent text recent enough, do our clocks agree?"""
    joined = subject.joined()
    assert joined is not None  # noqa: S101  (asked by the caller)
    answer = ask(joined.url, "/v1/about", timeout_s=10.0, dialer=Dialer(subject.bind))
    if answer.failure is not None:
        # It may be gone for a month: what is measured waits.
        return "warn", f"{answer.detail}; what is measured waits here until it is back"
    now_ms = time.time_ns() // 1_000_000
    try:
        found = read_about(answer, joined.url.authority)
        check_about(found, expected_key=joined.key, now_ms=now_ms)
    except EnrolError as error:
        return "bad", str(error)
    apart_ms = abs(found.time_ms - now_ms)
    if apart_ms > _CLOCKS_MS:
        return "warn", f"{found.name} answers; its clock and ours are {apart_ms / 1000:.0f} s apart: switch on NTP"
    return "ok", f"{found.name} answers, and our clocks agree within {apart_ms / 1000:.1f} s"


# -- reflector --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reached:
    finding: Finding
    local: str = ""
    peer: str = ""


def _reach(url: Url, subject: Subject) -> _Reached:
    channel = ControlChannel(Dialer(subject.bind), url)
    try:
        took = [channel.ping(_TIMEOUT_S) for _ in range(_PINGS)]
        local, peer = channel.addresses()
    except ControlFailed as error:
        return _Reached(("bad", f"cannot be reached ({error}): is the address right, and does a firewall allow it?"))
    finally:
        channel.close()
    if channel.smallest_ping_ms is None or None in took:
        return _Reached(("bad", "answers too slowly: try again when nobody uses the line"), local, peer)
    text = f"answers in {channel.smallest_ping_ms:.1f} ms"
    apart_s = _clock_apart_s(url, subject.bind)
    if apart_s is not None and apart_s * 1000 > _CLOCKS_MS:
        return _Reached(("warn", f"{text}; its clock and ours are {apart_s:.0f} s apart: switch on NTP"), local, peer)
    return _Reached(("ok", text), local, peer)


def _clock_apart_s(url: Url, bind: str | None) -> float | None:
    """Seconds between our clock and the reflector's, by its answer's Date (RFC 9110, 6.6.1), which has whole ones."""
    from probe.backoff import http_date_ms

    try:
        connection = open_https(Dialer(bind), url)
        try:
            answer = connection.request("GET", f"{url.path}/v1/ping", timeout_s=_TIMEOUT_S)
        finally:
            connection.close()
    except (OSError, EOFError, HttpError, WrongCertificate):
        return None
    told_ms = http_date_ms(answer.headers.get("date", "").strip()[:40])
    return None if told_ms is None else max(0.0, abs(time.time() - told_ms / 1000) - 1)


def _ports(url: Url, bind: str | None) -> Finding:
    """Can data connections leave? TCP is opened and closed; over UDP nobody answers outside of a session."""
    port = DATA_PORT
    try:
        Dialer(bind).connect(url.host, port, _TIMEOUT_S).close()
        tcp = ""
    except OSError as error:
        tcp = "refused" if isinstance(error, ConnectionRefusedError) else "no answer"
    udp = _udp(url.host, port)
    if tcp or udp:
        told = ", ".join(f"{name} {port}: {why}" for name, why in (("TCP", tcp), ("UDP", udp)) if why)
        return (
            "warn",
            f"{told}; no matter where this reflector's data port is another one, else a firewall stands in between",
        )
    return "ok", f"TCP {port} is open, UDP {port} is not refused"


def _udp(host: str, port: int) -> str:
    """Empty, or why nothing can be sent: a refusal comes back as ICMP within a moment."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, proto) as sock:
            sock.settimeout(0.5)
            sock.connect(address)
            sock.send(b"\0")
            sock.recv(1)
    except TimeoutError:
        return ""
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "cannot be sent"
    return ""


# -- what is in between, and who else is there ----------------------------------------------------------------------


def _portal(subject: Subject) -> Finding:
    plan = subject.plan()
    assert plan is not None  # noqa: S101  (asked by the caller)
    seen = look(door_of(plan.plan.reflectors[0]), bind=subject.bind)
    if seen.state == "open":
        return "ok", f"open: {seen.why}"
    if seen.allows(hotspot=subject.settings.stands_at_hotspot):
        return "warn", f"{seen.why}, so a login page could not be told from the reflector; at home that hinders nothing"
    todo = {
        "captive": "log in with a browser on this network",
        "intercepted": "look for a filter, a proxy or a virus scanner, and except this device",
        "offline": "is there internet at all?",
    }
    return (
        "bad",
        f"{seen.state or 'not proven open'}: {seen.why}; {todo.get(seen.state or '', 'ask who runs the hotspot')}",
    )


def _line(subject: Subject, seen: _Reached, line: Line | None) -> Finding:
    """What would be blamed on the operator and is not his."""
    found = observe(seen.local, seen.peer, line, declared=subject.settings)
    if is_metered(line, subject.settings):
        return "warn", "this line is paid by volume, so nothing is measured; if that is wrong, set metered to no"
    remarks = []
    if found.vpn:
        remarks.append("a VPN carries this line, so it is measured instead of the operator: switch it off")
    if found.sqm:
        remarks.append("this device shapes the line (SQM), which results will say")
    if found.position == "wifi":
        remarks.append("connected by Wi-Fi: a cable gives steadier results")
    return ("warn", "; ".join(remarks)) if remarks else ("ok", f"position: {found.position.replace('_', ' ')}")


def _household(subject: Subject, seen: _Reached, line: Line | None) -> Finding:
    found = find(observe(seen.local, seen.peer, line, declared=subject.settings), seen.local, line)
    if found.source == "router":
        return "ok", "this device counts the household's traffic itself"
    if found.source == "igd":
        return "ok", "the router tells how much passes (UPnP)"
    return "ok", "the router does not tell how much passes; a busy line is known by its round-trip time, less surely"

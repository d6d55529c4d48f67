# SPDX-License-Identifier: EUPL-1.2
"""What stands between this device and the internet: an open door, a captive portal, nothing, or somebody else.

A page that the reflector signs over a fresh nonce comes through unharmed only where nobody is in between. It is asked
for before, during and after a session. Nobody logs in by himself, no redirect is followed, and the owner's own
program is run only where the settings name it. Spec: spec/probe.md, section "Portal".
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from probe.capport import announced
from probe.line import Line, line_outwards
from probe.netio.control import Answerer, Url, parse_url, who_answers
from probe.netio.dial import Dialer
from probe.netio.oneshot import Reply, fetch, request_head
from probe.wire.codec import WireError
from probe.wire.portal import MOST_PAGE_BYTES, NONCE_BYTES, path_of, read_page, signed_bytes
from probe.wire.records import Environment, PlannedReflector, Portal
from probe.wire.signing import key_bytes, verify

_TIMEOUT_S: Final = 3.0
_NAME_S: Final = 3.0
_HOOK_S: Final = 60.0
_WORSE: Final[tuple[Portal, ...]] = ("open", "offline", "intercepted", "captive")
_REDIRECTS: Final = range(300, 400)
_WANTS_LOGIN: Final = 511
"""Network Authentication Required (RFC 6585, section 6)."""
_BUSY: Final = frozenset({429, 502, 503, 504})
"""A reflector that has no time says nothing of the door."""
Seen = Literal["signed", "forged", "login", "error", "foreign", "absent"]
Resolves = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Door:
    """A reflector as its door is looked at."""

    page: Url | None
    """Base of its plain-HTTP page; None where the plan names none."""
    control: Url
    key: str
    """Its key id."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen."""

    state: Portal | None
    """None: somebody answers as he should, but that nobody is in between is not proven."""
    why: str
    """For people: one sentence without address, name of a network, or anything that a portal said."""
    is_reached: bool = False
    """The reflector itself answers over TLS, shown by its pin or an authority, whatever became of the plain page."""

    def allows(self, *, hotspot: bool) -> bool:
        """Whether to measure. At a hotspot openness is proven first. At home it is enough to reach the reflector:
        an operator that rewrites plain pages or answers for names that nobody has would else silence all its customers'
        probes, and what it does to the arms is just what pairs tell.
        """
        return self.state == "open" or (not hotspot and (self.state is None or self.is_reached))


def door_of(reflector: PlannedReflector) -> Door:
    """From the plan's entry. Raises UrlError."""
    page = parse_url(reflector.portal, schemes=("http",)) if reflector.portal else None
    return Door(page, parse_url(reflector.url), reflector.key)


def look(
    door: Door,
    *,
    bind: str | None = None,
    line: Line | None = None,
    resolves: Resolves | None = None,
    announces: Callable[[Dialer, Line | None], bool | None] = announced,
) -> Look:
    """Look at the door: the signed page, the reflector's certificate, a name that nobody has, RFC 8908. About 3 s.

    Sends a few kB at most and raises nothing. `line` is whose lease is read: unless given the one that leads outwards.
    `resolves` tells whether a name has an address.
    """
    dialer = Dialer(bind)
    try:
        key_bytes(door.key)
    except WireError:
        return Look(None, "the plan names no usable key of the reflector, so its page cannot be checked")
    if announces(dialer, line or line_outwards(bind)):
        is_reached = who_answers(dialer, door.control, connect_s=_TIMEOUT_S) == "itself"
        return Look("captive", "the network itself says that one has to log in (RFC 8908)", is_reached)
    found = glance(door, bind=bind)
    if found.state in {"open", None} and (resolves or has_address)(_nobodys_name()):
        why = "a name that nobody has was given an address: somebody answers for the name servers"
        return Look("intercepted", why, found.is_reached)
    return found


def glance(door: Door, *, bind: str | None = None) -> Look:
    """The page and the certificate alone: for between two pairs."""
    dialer = Dialer(bind)
    page = _see_page(dialer, door)
    behind = who_answers(dialer, door.control, connect_s=_TIMEOUT_S)
    return replace(_TABLE[page][behind], is_reached=behind == "itself")


def worst(*states: Portal | None) -> Portal | None:
    """Of several looks, what weighs most: captive, intercepted, offline, open; None where nobody looked."""
    return max((state for state in states if state is not None), key=_WORSE.index, default=None)


def run_login_hook(program: str, *, timeout_s: float = _HOOK_S) -> bool:
    """Run the owner's own program for a portal; whether it ended well within the time.

    It gets no argument, no input and a bare environment: nothing of the probe's secrets or settings. What it prints is
    thrown away. It and its children are ended when the time is over.
    """
    import signal  # noqa: PLC0415
    import subprocess  # noqa: PLC0415 (memory: only where there is such a program)

    if not os.path.isabs(program):
        return False
    try:
        running = subprocess.Popen(  # noqa: S603  (the owner's own program: running it is what he asked for)
            [program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C"},
            start_new_session=True,
        )
    except OSError:
        return False
    try:
        return running.wait(timeout_s) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):  # it left nobody behind
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def has_address(name: str) -> bool:
    """Whether the system's name servers give a name an address within 3 s."""
    found: list[bool] = []

    def ask() -> None:
        try:
            found.append(bool(socket.getaddrinfo(name.encode("ascii"), None)))
        except OSError:
            found.append(False)

    # The system's resolver knows no deadline of ours: it is left behind where it takes too long.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_NAME_S)
    return bool(found and found[0])


def with_portal(environment: Environment, *states: Portal | None) -> Environment:
    """The environment with the worst that was seen so far."""
    return replace(environment, portal=worst(environment.portal, *states))


def _nobodys_name() -> str:
    # Absolute, so that no search domain is added; below a real top level, because resolvers answer for invalid ones
    # themselves (RFC 6761); it says who asks.
    return f"evenlane-{secrets.token_hex(8)}.com."


def _see_page(dialer: Dialer, door: Door) -> Seen:
    """`absent` (nothing came or a server without time), `signed`, `forged`, `login`, `error` or `foreign`."""
    if door.page is None:
        return "absent"
    nonce = secrets.token_bytes(NONCE_BYTES)
    path = door.page.path + path_of(nonce)
    head = request_head("GET", path, door.page.authority, {"Accept": "text/plain", "Cache-Control": "no-cache"})
    reply = fetch(
        dialer, door.page.host, door.page.port, head, connect_s=_TIMEOUT_S, timeout_s=_TIMEOUT_S, most=MOST_PAGE_BYTES
    )
    return "absent" if reply is None else judge_page(reply, nonce, key_bytes(door.key))


def judge_page(reply: Reply, nonce: bytes, public_key: bytes) -> Seen:
    """What an answer to the question for the page is; see `_see_page`."""
    if reply.status is None:
        return "foreign"
    if reply.status in _REDIRECTS or reply.status == _WANTS_LOGIN:
        return "login"
    if reply.status in _BUSY:
        return "absent"
    if reply.status >= 400:
        return "error"
    page = read_page(reply.body) if reply.status == 200 else None
    if page is None:
        return "foreign"
    signed = page[0] == nonce and verify(public_key, signed_bytes(nonce), page[1])
    return "signed" if signed else "forged"


_OPEN: Final = Look("open", "the reflector's signed page came as it was sent")
_LOGIN: Final = Look("captive", "a login page was sent in place of the reflector's own")
_REPLACED: Final = Look("captive", "somebody answers in place of the reflector")
_FORGED: Final = Look("intercepted", "the reflector's page came with a signature that is not the reflector's")
_NOT_ITSELF: Final = Look("intercepted", "somebody else's certificate was shown in place of the reflector's")
_REWRITTEN: Final = Look("intercepted", "somebody else's page came, though the reflector itself can be reached")
_UNPROVEN: Final = Look(None, "the reflector answers over TLS, but its plain page cannot be had")
_OFFLINE: Final = Look("offline", "the reflector does not answer")
_TABLE: Final[dict[Seen, dict[Answerer, Look]]] = {
    "signed": {"itself": _OPEN, "anybody": _OPEN, "another": _NOT_ITSELF, "nobody": _OPEN},
    "login": dict.fromkeys(("itself", "anybody", "another", "nobody"), _LOGIN),
    "forged": dict.fromkeys(("itself", "anybody", "another", "nobody"), _FORGED),
    "foreign": {"itself": _REWRITTEN, "anybody": _REPLACED, "another": _REPLACED, "nobody": _REPLACED},
    "error": {"itself": _UNPROVEN, "anybody": _UNPROVEN, "another": _REPLACED, "nobody": _REPLACED},
    "absent": {"itself": _UNPROVEN, "anybody": _UNPROVEN, "another": _NOT_ITSELF, "nobody": _OFFLINE},
}
"""By what came in place of the page, and who answers over TLS. spec/probe.md says why."""

# SPDX-License-Identifier: EUPL-1.2
"""What a probe makes of a door: a real reflector's page, real imitations of portals, over real sockets of loopback."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import re
import secrets
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from probe import capport
from probe.household import Household
from probe.line import line_outwards
from probe.netio.dial import Dialer
from probe.netio.oneshot import Reply, fetch, request_head
from probe.nettests.base import Options
from probe.portal import Door, Look, door_of, glance, look
from probe.reflector.keys import load_or_make_certificate
from probe.reflector.portal import BURST_PER_PREFIX, MOST_CONNECTIONS_PER_PREFIX
from probe.runner import Ran, request_of, run
from probe.settings import Settings
from probe.shell import Surroundings
from probe.wire.portal import page_of, read_page, signed_bytes
from probe.wire.records import PlannedReflector, Portal
from probe.wire.signing import SeedSigner, key_bytes, verify

_spec = importlib.util.spec_from_file_location("reflector_client", Path(__file__).with_name("reflector_client.py"))
assert _spec is not None
assert _spec.loader is not None
c = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("reflector_client", c)
_spec.loader.exec_module(c)

Answering = Callable[[bytes], bytes | None]
HTML = b"<html><body>Welcome to the library. <a href=/login>Log in</a></body></html>"


def http_answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close"])
    return head.encode() + b"\r\n\r\n" + body


@contextlib.contextmanager
def server(answer: Answering, context: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers each connection's first request with these bytes; its port and what it was asked."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), sock:
                sock.settimeout(5)
                talking = context.wrap_socket(sock, server_side=True) if context else sock
                asked.append(talking.recv(65536))
                said = answer(asked[-1])
                if said is not None:
                    talking.sendall(said)
                talking.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def reflector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with c.running(tmp_path_factory.mktemp("state"), portal_port=0) as announcement:
        yield announcement


@pytest.fixture
def door(reflector: Any) -> Door:
    planned = PlannedReflector(
        url=f"{reflector.url}#sha256={reflector.pin}",
        key=reflector.key,
        portal=f"http://127.0.0.1:{reflector.portal_port}",
    )
    return door_of(planned)


def seen(door: Door, **more: Any) -> Look:
    """With name servers that tell the truth: nobody has such a name. A stand-in: tests must not ask the world's."""
    more.setdefault("resolves", lambda _: False)
    return look(door, **more)


def through(door: Door, port: int) -> Door:
    """The door as it is where port 80 leads elsewhere."""
    assert door.page is not None
    return replace(door, page=replace(door.page, port=port))


def shut(door: Door) -> Door:
    """The door where nothing else gets through: HTTPS is dropped."""
    return replace(door, control=replace(door.control, port=closed_port()))


# -- open ---------------------------------------------------------------------------------------------------------


def test_a_page_that_comes_as_it_was_signed_is_an_open_door(door: Door) -> None:
    assert seen(door).state == glance(door).state == "open"
    assert seen(door).allows(hotspot=True)


def test_the_page_is_signed_for_its_nonce_alone_and_for_nothing_else(reflector: Any) -> None:
    pages = []
    for nonce in (secrets.token_bytes(16), secrets.token_bytes(16)):
        client = http.client.HTTPConnection("127.0.0.1", reflector.portal_port, timeout=10)
        client.request("GET", f"/portal/{nonce.hex()}")
        answer = client.getresponse()
        assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store, no-transform")
        page = read_page(answer.read())
        assert page is not None
        assert page[0] == nonce
        assert verify(key_bytes(reflector.key), signed_bytes(nonce), page[1])
        assert not verify(key_bytes(reflector.key), nonce, page[1])
        pages.append(page)
    assert pages[0][1] != pages[1][1]


def test_each_look_has_a_nonce_of_its_own(door: Door) -> None:
    with server(lambda _: http_answer("302 Found", b"", "Location: http://login.example/")) as (port, asked):
        for _ in range(3):
            seen(through(door, port))
    nonces = [re.fullmatch(rb"GET /portal/([0-9a-f]{32}) HTTP/1\.1\r\n.*", one, re.DOTALL) for one in asked]
    assert len({one[1] for one in nonces if one}) == 3


# -- captive ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        http_answer("302 Found", b"", "Location: http://login.example/?next=x"),
        http_answer("307 Temporary Redirect", HTML, "Location: http://127.0.0.1:9/"),
        http_answer("511 Network Authentication Required", HTML),
        b"HTTP/1.0 302 Moved\nLocation: http://login.example/\n\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://login.exa",
    ],
)
@pytest.mark.parametrize("lets_tls_pass", [True, False])
def test_a_login_page_is_a_captive_portal_whatever_else_passes(door: Door, said: bytes, lets_tls_pass: bool) -> None:
    with server(lambda _: said) as (port, asked):
        found = seen(through(door if lets_tls_pass else shut(door), port))
    assert found.state == "captive"
    assert not found.allows(hotspot=True)
    assert found.allows(hotspot=False) == lets_tls_pass, "at home nobody silences a probe by rewriting plain pages"
    assert len(asked) == 1, "no redirect is followed, nobody logs in"


@pytest.mark.parametrize(
    "said",
    [
        http_answer("200 OK", HTML),
        b"HTTP/1.0 200 OK\r\n\r\n" + HTML,
        http_answer("404 Not Found", HTML),
        b"\x00\x01garbage",
        http_answer("200 OK", b"A" * 100_000),
        http_answer("200 OK", b""),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 999999999 \xff\xff\r\n\r\n",
    ],
)
def test_another_page_where_nothing_else_gets_through_is_a_captive_portal(door: Door, said: bytes) -> None:
    with server(lambda _: said) as (port, _):
        assert seen(through(shut(door), port)).state == "captive"


def test_a_portal_that_answers_tls_as_well_is_one(door: Door, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(load_or_make_certificate(tmp_path / "portal.pem", "login.example").path)
    with server(lambda _: HTML, context) as (tls, _), server(lambda _: http_answer("200 OK", HTML)) as (port, _):
        found = seen(replace(through(door, port), control=replace(door.control, port=tls)))
    assert found.state == "captive"


# -- intercepted --------------------------------------------------------------------------------------------------


def test_a_page_that_another_key_signed_is_interception(door: Door) -> None:
    other = SeedSigner(bytes(32))

    def forge(request: bytes) -> bytes:
        nonce = bytes.fromhex(request.split(b"/portal/")[1][:32].decode())
        return http_answer("200 OK", page_of(nonce, other.sign(signed_bytes(nonce))))

    with server(forge) as (port, _):
        assert seen(through(door, port)).state == "intercepted"


def test_a_page_that_was_kept_from_before_is_interception(door: Door, reflector: Any) -> None:
    client = http.client.HTTPConnection("127.0.0.1", reflector.portal_port, timeout=10)
    client.request("GET", f"/portal/{secrets.token_hex(16)}")
    kept = client.getresponse().read()
    with server(lambda _: http_answer("200 OK", kept)) as (port, _):
        assert seen(through(door, port)).state == "intercepted"


def test_a_proxy_that_rewrites_the_page_is_interception_though_tls_passes(door: Door, reflector: Any) -> None:
    def rewrite(request: bytes) -> bytes:
        client = http.client.HTTPConnection("127.0.0.1", reflector.portal_port, timeout=10)
        client.request("GET", request.split(b" ")[1].decode())
        return http_answer("200 OK", b"<script src=//ads.example/></script>" + client.getresponse().read())

    with server(rewrite) as (port, _):
        assert seen(through(door, port)).state == "intercepted"
        assert seen(shut(through(door, port))).state == "captive", "nobody can tell it from a login page then"


def test_somebody_elses_certificate_is_interception(door: Door, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(load_or_make_certificate(tmp_path / "other.pem", "other.example").path)
    with server(lambda _: HTML, context) as (tls, _):
        broken_open = replace(door, control=replace(door.control, port=tls))
        assert seen(broken_open).state == "intercepted", "the page alone passes"
        assert seen(replace(broken_open, page=None)).state == "intercepted"


def test_name_servers_that_give_every_name_an_address_are_interception(door: Door) -> None:
    asked: list[str] = []

    def everything(name: str) -> bool:
        asked.append(name)
        return True

    assert seen(door, resolves=everything).state == "intercepted"
    assert seen(replace(door, page=None), resolves=everything).state == "intercepted"
    assert len(set(asked)) == 2
    assert all(re.fullmatch(r"evenlane-[0-9a-f]{16}\.com\.", name) for name in asked), "absolute, and nobody's"


# -- offline and not proven ---------------------------------------------------------------------------------------


def test_where_nobody_answers_there_is_no_way_out(door: Door) -> None:
    found = seen(shut(through(door, closed_port())))
    assert (found.state, found.allows(hotspot=False)) == ("offline", False)


@pytest.mark.parametrize("said", [None, http_answer("503 Busy"), http_answer("429 Too Many"), http_answer("404 No")])
def test_a_page_that_cannot_be_had_beside_a_reflector_that_can_proves_nothing(door: Door, said: bytes | None) -> None:
    with server(lambda _: said) as (port, _):
        found = seen(through(door, port))
    assert found.state is None
    assert found.allows(hotspot=False), "at home that hinders nobody"
    assert not found.allows(hotspot=True)


def test_a_plan_without_a_page_or_with_a_broken_key_proves_nothing(door: Door) -> None:
    assert seen(replace(door, page=None)).state is None
    assert seen(replace(door, key="no key at all")).state is None


@pytest.mark.serial
def test_one_who_answers_a_byte_at_a_time_holds_nobody_up(door: Door) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        with contextlib.suppress(OSError):
            sock, _ = listener.accept()
            while True:
                sock.sendall(b"H")
                time.sleep(0.1)

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    begun = time.monotonic()
    found = seen(shut(through(door, listener.getsockname()[1])))
    assert time.monotonic() - begun < 10
    assert found.state == "captive"
    listener.close()
    thread.join(10)


def asked_once(said: bytes, most: int = 1000) -> Reply | None:
    with server(lambda _: said) as (port, _):
        head = request_head("GET", "/", "x", {})
        return fetch(Dialer(), "127.0.0.1", port, head, connect_s=5, timeout_s=5, most=most)


def test_no_more_is_read_than_allowed() -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    for said in (head + b"x" * 5_000_000, http_answer("200 OK", b"x" * 5_000_000)):
        reply = asked_once(said)
        assert reply is not None
        assert (reply.status, reply.is_whole) == (200, False)
        assert 800 < len(reply.body) < 1000
    exact = asked_once(head + b"x" * 5000, most=len(head) + 7)
    assert exact is not None
    assert exact.body == b"x" * 7
    garbage = asked_once(b"x" * 5000)
    assert garbage is not None
    assert (garbage.status, len(garbage.body)) == (None, 1000)


def test_what_ends_as_it_says_is_whole() -> None:
    whole = asked_once(http_answer("200 OK", b"hello", "X-A: 1") + b"and more")
    assert whole == Reply(200, {"x-a": "1", "content-length": "5", "connection": "close"}, b"hello", is_whole=True)
    assert asked_once(b"HTTP/1.0 404 No\r\n\r\nbye") == Reply(404, {}, b"bye", is_whole=True)
    assert asked_once(b"") is None


# -- RFC 8908 and 8910 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("captive", "state"), [(True, "captive"), (False, "open"), ("yes", "open"), (None, "open")])
def test_what_the_network_says_of_itself_is_believed_where_it_says_captive(
    door: Door, tmp_path: Path, captive: Any, state: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(load_or_make_certificate(tmp_path / "api.pem", "api.example").path)
    body = json.dumps({"captive": captive, "user-portal-url": "https://login.example/"}).encode()
    said = http_answer("200 OK", body, "Content-Type: application/captive+json")
    with server(lambda _: said, context) as (port, asked):
        uri = f"https://127.0.0.1:{port}/capport/api?session=1"
        found = seen(door, announces=lambda dialer, _: capport.ask(dialer, uri))
    assert found.state == state
    assert [one.split(b"\r\n")[0] for one in asked] == [b"GET /capport/api?session=1 HTTP/1.1"]
    assert b"accept: application/captive+json" in asked[0].lower()


@pytest.mark.parametrize(
    "said",
    [
        http_answer("200 OK", b'{"captive": true}', "Content-Type: text/html"),
        http_answer("302 Found", b"", "Location: https://127.0.0.1:1/"),
        http_answer("500 Oops", b'{"captive": true}', "Content-Type: application/captive+json"),
        http_answer("200 OK", b'{"captive": true', "Content-Type: application/captive+json"),
        http_answer("200 OK", b"[" * 4000, "Content-Type: application/captive+json"),
        http_answer("200 OK", b'{"captive": true}' + b" " * 5000, "Content-Type: application/captive+json"),
        b"nonsense",
    ],
)
def test_an_api_that_is_none_says_nothing(tmp_path: Path, said: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(load_or_make_certificate(tmp_path / "api.pem", "api.example").path)
    with server(lambda _: said, context) as (port, _):
        assert capport.ask(Dialer(), f"https://127.0.0.1:{port}/") is None


def test_without_a_line_the_one_that_leads_outwards_is_asked(door: Door) -> None:
    asked: list[object] = []
    seen(door, announces=lambda _, line: asked.append(line))
    assert asked == [line_outwards()]


def test_an_api_address_that_is_not_https_is_never_asked() -> None:
    with server(lambda _: http_answer("200 OK")) as (port, asked):
        for uri in (
            f"http://127.0.0.1:{port}/",
            f"https://u@127.0.0.1:{port}/",
            "https://127.0.0.1:0/",
            "ftp://x/",
            "",
        ):
            assert capport.ask(Dialer(), uri) is None
    assert asked == []


# -- a session ------------------------------------------------------------------------------------------------------


def session(door: Door, state: Path, before: Portal, **more: Any) -> Ran:
    control = door.control
    request = request_of(
        "differential",
        Options(apps=("youtube",), pairs=1, segment_s=0.2, pace_mbps=4.0),
        reflector=f"https://{control.authority}#sha256={control.pin}",
        state=state,
    )
    told = Settings(brand="Proximity", declared_position="behind_router")
    return run(replace(request, around=Surroundings(declared=told, door=door, portal=before, **more)))


def test_a_session_tells_what_the_door_was_like_before_and_after(door: Door, tmp_path: Path) -> None:
    quiet = session(door, tmp_path / "a", "open").measurement.environment
    assert (quiet.portal, quiet.changed, quiet.household_source) == ("open", (), None)
    assert (quiet.brand, quiet.declared_position, quiet.family) == ("Proximity", "behind_router", 4)
    with server(lambda _: http_answer("302 Found", b"", "Location: http://login.example/")) as (port, asked):
        shut_meanwhile = session(through(door, port), tmp_path / "b", "open").measurement
    assert shut_meanwhile.environment.portal == "captive"
    assert len(asked) == 1, "once, when it was over: no pair failed"
    assert {pair.captive for pair in shut_meanwhile.pairs} == {False}
    before = session(door, tmp_path / "c", "captive").measurement.environment
    assert before.portal == "captive", "the worst counts"


def test_a_session_tells_who_counted_the_household(door: Door, tmp_path: Path) -> None:
    counted = iter(range(0, 10**12, 10**9))
    house = Household("igd", lambda: next(counted))
    measured = session(door, tmp_path, "open", household=house).measurement
    assert measured.environment.household_source == "igd"
    assert {(pair.household_kb or 0) // 10**6 for pair in measured.pairs} <= {1, 2}


# -- the reflector's side -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", 404),
        (b"GET /portal/" + b"A" * 32 + b" HTTP/1.1", 404),
        (b"GET /portal/" + b"a" * 33 + b" HTTP/1.1", 404),
        (b"HEAD /portal/" + b"a" * 32 + b" HTTP/1.1", 404),
        (b"POST /portal/" + b"a" * 32 + b" HTTP/1.1", 404),
        (b"GET http://other/portal/" + b"a" * 32 + b" HTTP/1.1", 404),
        (b"GET /portal/" + b"a" * 32 + b" HTTP/3.0", 400),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"x" * 5000, 400),
    ],
)
def test_whatever_else_is_asked_gets_no_signature(reflector: Any, request_line: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", reflector.portal_port), timeout=10) as sock:
        sock.sendall(request_line + b"\r\nHost: x\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(4096):
                answer += piece
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"evenlane-portal" not in answer


def test_a_head_without_an_end_is_not_waited_for(reflector: Any) -> None:
    with socket.create_connection(("127.0.0.1", reflector.portal_port), timeout=10) as sock:
        sock.sendall(b"GET /" + b"a" * 5000)
        assert sock.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_a_network_that_asks_too_much_is_told_to_wait_and_others_are_served(tmp_path: Path) -> None:
    with c.running(tmp_path, portal_port=0) as announcement:
        statuses = []
        for _ in range(int(BURST_PER_PREFIX) + 20):
            client = http.client.HTTPConnection("127.0.0.1", announcement.portal_port, timeout=10)
            client.request("GET", f"/portal/{secrets.token_hex(16)}")
            answer = client.getresponse()
            statuses.append(answer.status)
            client.close()
            if answer.status == 429:
                assert answer.headers["Retry-After"] == "30"
                break
        assert statuses[-1] == 429
        assert statuses[: int(BURST_PER_PREFIX)] == [200] * int(BURST_PER_PREFIX)
        door = door_of(
            PlannedReflector(
                url=f"{announcement.url}#sha256={announcement.pin}",
                key=announcement.key,
                portal=f"http://127.0.0.1:{announcement.portal_port}",
            )
        )
        assert glance(door).state is None, "a reflector that has no time is no portal"
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".pem")
    assert b"127.0.0.1" not in kept


def test_silent_connections_do_not_shut_the_page_for_others_for_long(tmp_path: Path) -> None:
    with c.running(tmp_path, portal_port=0) as announcement, contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", announcement.portal_port), timeout=20))
            for _ in range(MOST_CONNECTIONS_PER_PREFIX + 1)
        ]
        silent[-1].settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            assert silent[-1].recv(1) == b"", "one too many is refused"
        silent[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            silent[0].recv(1)  # at once, while the others still have their time
        silent[0].settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            assert silent[0].recv(1) == b"", "and the others are dropped when their time is over"
        client = http.client.HTTPConnection("127.0.0.1", announcement.portal_port, timeout=10)
        client.request("GET", f"/portal/{secrets.token_hex(16)}")
        assert client.getresponse().status == 200


def test_without_the_option_there_is_no_page(tmp_path: Path) -> None:
    with c.running(tmp_path) as announcement:
        assert announcement.portal_port is None

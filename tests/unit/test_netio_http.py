# SPDX-License-Identifier: EUPL-1.2
"""The small HTTP client against a peer that says exactly what a test wants it to say."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from probe.netio.http import MAX_HEAD_BYTES, HttpConnection, HttpError


class Peer:
    """The other end of a socket pair: `heard` is what the client sent, `say` what it gets."""

    def __init__(self) -> None:
        own, self._sock = socket.socketpair()
        self.connection = HttpConnection(own, "host:1")

    def say(self, *parts: bytes, pause_s: float = 0.0) -> None:
        def speak() -> None:
            for part in parts:
                time.sleep(pause_s)
                with contextlib.suppress(OSError):  # the test may be over
                    self._sock.sendall(part)

        threading.Thread(target=speak, daemon=True).start()

    def heard(self) -> bytes:
        return self._sock.recv(1 << 16)

    def hang_up(self) -> None:
        self._sock.close()

    def ask(self, timeout_s: float = 2.0, most: int = 1000) -> tuple[int, bytes]:
        answer = self.connection.request("GET", "/x", timeout_s=timeout_s, most=most)
        return answer.status, answer.body


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.connection.close()
    made.hang_up()


def test_a_request_is_one_message_with_its_length_and_headers(peer: Peer) -> None:
    peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Y: z\r\n\r\nok")
    answer = peer.connection.request("POST", "/v1/x", body=b"{}", headers={"A": "b"}, timeout_s=2)
    assert peer.heard() == b"POST /v1/x HTTP/1.1\r\nHost: host:1\r\nA: b\r\nContent-Length: 2\r\n\r\n{}"
    assert (answer.status, answer.body, answer.headers["x-y"]) == (200, b"ok", "z")


def test_answers_in_pieces_in_chunks_without_body_and_after_an_interim_one(peer: Peer) -> None:
    peer.say(b"HTTP/1.1 20", b"0 OK\r\nContent-Le", b"ngth: 5\r\n\r\nhe", b"llo", pause_s=0.02)
    assert peer.ask() == (200, b"hello")
    peer.say(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n10\r\n0123456789abcdef\r\n"
        b"0\r\nT: u\r\n\r\n"
    )
    assert peer.ask() == (200, b"abc0123456789abcdef")
    peer.say(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert peer.ask() == (204, b"")
    peer.say(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
    assert peer.ask() == (201, b"")


def test_retry_after_is_read_only_as_seconds(peer: Peer) -> None:
    for value, expected in ((b"30", 30), (b"Fri, 31 Dec 1999 23:59:59 GMT", None), (b"9" * 30, None)):
        peer.say(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\nRetry-After: " + value + b"\r\n\r\n")
        assert peer.connection.request("GET", "/", timeout_s=2).retry_after_s == expected


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\naXX",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * (MAX_HEAD_BYTES + 20_000),
    ],
)
def test_what_is_not_http_is_refused(peer: Peer, answer: bytes) -> None:
    peer.say(answer)
    with pytest.raises(HttpError):
        peer.ask()


@pytest.mark.serial
def test_the_deadline_covers_the_whole_answer_however_it_trickles(peer: Peer) -> None:
    peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", *[b"x"] * 100, pause_s=0.05)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        peer.ask(timeout_s=0.3)
    assert time.monotonic() - start < 0.6


def test_a_peer_that_hangs_up_is_an_end_of_stream(peer: Peer) -> None:
    peer.hang_up()
    with pytest.raises((EOFError, OSError)):
        peer.ask()


def test_a_ping_that_came_late_is_read_by_the_next_request(peer: Peer) -> None:
    assert not peer.connection.begin("GET", "/v1/ping", timeout_s=0.05)
    assert not peer.connection.begin("GET", "/v1/ping", timeout_s=0.05)
    pong = b"HTTP/1.1 204 No Content\r\n\r\n"
    peer.say(pong + pong + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine")
    assert peer.ask() == (200, b"mine")
    peer.say(pong)
    assert peer.connection.begin("GET", "/v1/ping", timeout_s=1.0)


def test_a_ping_whose_answer_stops_half_way_ends_the_connection(peer: Peer) -> None:
    peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
    with pytest.raises(HttpError):
        peer.connection.begin("GET", "/v1/ping", timeout_s=0.2)

# SPDX-License-Identifier: EUPL-1.2
"""A small blocking client of the session protocol, written apart from the probe's own shells.

Tests load it by its path: there is no package here to import from.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import http.client
import json
import secrets
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from probe.reflector.server import Announcement, Config, Reflector
from probe.wire.envelope import from_line, open_record
from probe.wire.records import Receipt, Segment, Started

KEY = "A" * 43
APP, NEUTRAL = "video.example.net", "meadow.example.org"


def undisturbed(check: Callable[..., None]) -> Callable[..., None]:
    """For what measures rates and times: runs alone, and where others use the machine, one of three tries must do."""

    @functools.wraps(check)
    def tried(*arguments: Any, **named: Any) -> None:
        for _ in range(2):
            with suppress(AssertionError):
                return check(*arguments, **named)
        return check(*arguments, **named)

    return pytest.mark.serial(tried)


@contextmanager
def running(state: Path, **more: Any) -> Iterator[Announcement]:
    """A reflector in a thread of this process, on free ports of loopback."""
    config = Config(**{"control_port": 0, "data_port": 0, "state": state, "version": "test", **more})
    ready: list[Announcement | BaseException] = []
    up, down = threading.Event(), threading.Event()

    async def serve() -> None:
        reflector = Reflector(config)
        try:
            ready.append(await reflector.start())
            up.set()
            await asyncio.to_thread(down.wait)
        except BaseException as error:  # handed to the test below
            ready.append(error)
            raise
        finally:
            await reflector.stop()
            up.set()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert up.wait(20)
    assert isinstance(ready[0], Announcement), ready[0]
    try:
        yield ready[0]
    finally:
        down.set()
        thread.join(20)
        assert not thread.is_alive()


@dataclass
class Answer:
    status: int
    body: Any
    headers: dict[str, str]


class Control:
    """The control channel, one connection."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        self.http = http.client.HTTPSConnection(host, port, timeout=10, context=self.context)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        self.http.request(method, path, body=body, headers=headers or {})
        response = self.http.getresponse()
        raw = response.read()
        try:
            parsed: Any = json.loads(raw) if raw else None
        except ValueError:
            parsed = raw
        return Answer(response.status, parsed, {k.lower(): v for k, v in response.getheaders()})

    def post(self, path: str, value: Any, token: str = "") -> Answer:
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return self.ask("POST", path, json.dumps(value).encode(), headers)

    def close(self) -> None:
        self.http.close()


def hello(ticket: str, direction: str = "down", **more: Any) -> bytes:
    value = {"v": 1, "ticket": ticket, "purpose": "segment", "direction": direction, **more}
    return (json.dumps(value) + "\n").encode().ljust(512, b" ")


def connect(port: int, host: str = "127.0.0.1", segment_bytes: int = 1448) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment_bytes)
    sock.settimeout(10)
    sock.connect((host, port))
    return sock


def tls(sock: socket.socket, name: str | None, alpn: tuple[str, ...] = ("h2",)) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context.wrap_socket(sock, server_hostname=name)


def received(sock: socket.socket) -> int:
    """Bytes that the kernel received on this connection."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("=Q", raw, 128)[0])


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# -- carriers without TLS, written from spec/carriers.md alone -------------------------------------------------------

SERVER_FLIGHT = 127 + 6 + (5 + 38) + (5 + 2838) + (5 + 97) + (5 + 53)
FLIGHTS = {"app": b"\x13BitTorrent protocol" + bytes(8) + b"i" * 20 + b"-XX1000-" + b"p" * 12}
FLIGHTS["opaque"] = b"\xd9" + bytes(255 - byte for byte in FLIGHTS["app"][1:])
ANSWERS = {arm: bytes(reversed(flight)) for arm, flight in FLIGHTS.items()}


def sealed(raw: bytes) -> bytes:
    salt = secrets.token_bytes(16)
    mask = hashlib.shake_256(salt).digest(len(raw))
    return salt + bytes(a ^ b for a, b in zip(raw, mask, strict=True))


def record(body: bytes) -> bytes:
    return b"\x17\x03\x03" + struct.pack("!H", len(body)) + body


def finish_of(raw: bytes) -> bytes:
    """What ends the shape of a handshake: ChangeCipherSpec, a Finished's size, the hello."""
    return bytes.fromhex("140303000101") + record(secrets.token_bytes(53)) + record(sealed(raw))


def client_hello(name: str, session_id: bytes, alpn: tuple[str, ...] = ("h2",)) -> bytes:
    """OpenSSL's own, with this session id."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(alpn))
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    raw = outgoing.read()
    assert raw[43] == 32
    return raw[:44] + session_id + raw[76:]


def exactly(sock: socket.socket, count: int) -> bytes:
    """So many bytes, or what came until the end."""
    got = b""
    with suppress(ConnectionResetError):
        while len(got) < count and (piece := sock.recv(count - len(got))):
            got += piece
    return got


def announced(arm: str) -> dict[str, Any]:
    flight = FLIGHTS[arm]
    return {
        "flight": hashlib.sha256(flight).hexdigest(),
        "flight_bytes": len(flight),
        "answer": ANSWERS[arm].hex(),
    }


STREAM = {"carrier": "stream", "app_bytes": announced("app"), "neutral_bytes": announced("opaque")}
"""What a commitment of the carrier `stream` says more."""


@dataclass
class Got:
    """What the client saw of a segment."""

    bytes: int = 0
    seconds: float = 0.0
    end: str = ""
    bins: list[int] = field(default_factory=list)


def take(sock: socket.socket, until_s: float = 60.0) -> Got:
    """Read until it ends."""
    got, start = Got(), time.monotonic()
    buffer = bytearray(256 * 1024)
    try:
        while True:
            if time.monotonic() - start > until_s:
                got.end = "enough"
                break
            count = sock.recv_into(buffer)
            if not count:
                got.end = "closed"
                break
            got.bytes += count
    except ConnectionResetError:
        got.end = "reset"
    except TimeoutError:
        got.end = "timeout"
    except ssl.SSLError as error:
        got.end = ending(sock, type(error).__name__)
    if got.end == "closed":
        got.end = ending(sock, "closed")
    got.seconds = time.monotonic() - start
    return got


def ending(sock: socket.socket, otherwise: str) -> str:
    """Python's ssl may hide a reset behind an end of stream; but then there is no peer any more."""
    try:
        sock.getpeername()
    except OSError:
        return "reset"
    return otherwise


def give(sock: socket.socket, mbps: float, most_s: float) -> Got:
    """Send at about this rate until it ends."""
    got, start = Got(), time.monotonic()
    piece = secrets.token_bytes(8 * 1024)
    try:
        while (spent := time.monotonic() - start) < most_s:
            if got.bytes * 8 / 1e6 > mbps * spent + 0.1:
                time.sleep(0.002)
                continue
            sock.sendall(piece)
            got.bytes += len(piece)
        got.end = "sent"
    except (ConnectionResetError, BrokenPipeError):
        got.end = "reset"
    except ssl.SSLError as error:
        got.end = ending(sock, type(error).__name__)
    got.seconds = time.monotonic() - start
    return got


class Session:
    """One session against a running reflector."""

    def __init__(self, there: Announcement, **wish: Any) -> None:
        self.there = there
        self.control = Control(there.control_port)
        fields = {"v": 1, "probe": KEY, "nettest": "differential", "pairs": 9, "segment_s": 4, "pace_mbps": 100}
        self.granted = self.control.post("/v1/sessions", {**fields, **wish})
        assert self.granted.status == 201, self.granted
        self.id, self.token = self.granted.body["session"], self.granted.body["token"]
        self.nonce = b""
        self.order: dict[str, Any] = {}

    def post(self, path: str, value: Any) -> Answer:
        return self.control.post(f"/v1/sessions/{self.id}{path}", value, self.token)

    def commit(self, pair: int = 1, **other: Any) -> Answer:
        self.nonce = secrets.token_bytes(32)
        fields = {
            "pair": pair,
            "commit": hashlib.sha256(self.nonce).hexdigest(),
            "kind": "test",
            "app": "video",
            "profile": "video@1:0",
            "direction": "down",
            "pace_mbps": 8,
            "segment_s": 0.5,
            "app_name": APP,
            "neutral_name": NEUTRAL,
        }
        return self.post("/pairs", {**fields, **other})

    def begin(self, pair: int = 1, **other: Any) -> list[tuple[str, str]]:
        """Commit and reveal; ticket and name of both segments in their order."""
        answer = self.commit(pair, **other)
        assert answer.status == 200, answer
        answer = self.post(f"/pairs/{pair}/reveal", {"nonce": self.nonce.hex()})
        assert answer.status == 200, answer
        self.order = answer.body
        names = {"app": APP, "neutral": NEUTRAL, "opaque": "opaque"}
        return [(t, names[arm]) for t, arm in zip(answer.body["tickets"], answer.body["arms"], strict=True)]

    def open(self, ticket: str, name: str | None, direction: str = "down", **more: Any) -> ssl.SSLSocket:
        sock = tls(connect(self.there.data_port), name)
        sock.sendall(hello(ticket, direction, **more))
        return sock

    def open_hello(self, ticket: str, name: str, direction: str = "down") -> socket.socket:
        sock = connect(self.there.data_port)
        sock.sendall(client_hello(name, bytes.fromhex(ticket) + secrets.token_bytes(16)))
        assert len(exactly(sock, SERVER_FLIGHT)) == SERVER_FLIGHT
        sock.sendall(finish_of(hello(ticket, direction)))
        return sock

    def open_stream(self, ticket: str, name: str, direction: str = "down") -> socket.socket:
        arm = "opaque" if name == "opaque" else "app"
        sock = connect(self.there.data_port)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(FLIGHTS[arm])
        sock.sendall(secrets.token_bytes(1200 - len(FLIGHTS[arm])) + sealed(hello(ticket, direction)))
        assert exactly(sock, len(ANSWERS[arm])) == ANSWERS[arm]
        return sock

    def down(self, ticket: str, name: str, **more: Any) -> Got:
        with self.open(ticket, name, **more) as sock:
            return take(sock)

    def up(self, ticket: str, name: str, mbps: float, most_s: float) -> Got:
        with self.open(ticket, name, "up") as sock:
            return give(sock, mbps, most_s)

    def finish(self, pair: int = 1) -> Any:
        report = {"started": True, "bytes": 0, "duration_ms": 0}
        answer = self.post(f"/pairs/{pair}/finish", {"segments": [report, report]})
        assert answer.status == 200, answer
        return answer.body

    def close(self) -> Receipt:
        answer = self.post("/close", {"reason": "done"})
        assert answer.status == 200, answer
        record = open_record(from_line(json.dumps(answer.body).encode()))
        assert isinstance(record, Receipt)
        self.control.close()
        return record

    def one_pair(self, **other: Any) -> tuple[list[Got], list[Segment]]:
        """A whole session of one pair down."""
        seen = [self.down(ticket, name) for ticket, name in self.begin(**other)]
        self.finish()
        return seen, list(self.close().pairs[0].segments)


def receipts_in(state: Path) -> list[Receipt]:
    records = [open_record(from_line(line)) for line in (state / "receipts.jsonl").read_bytes().splitlines()]
    assert all(isinstance(record, Receipt) for record in records)
    return [record for record in records if isinstance(record, Receipt)]


def started_in(state: Path) -> list[Started]:
    records = [open_record(from_line(line)) for line in (state / "started.jsonl").read_bytes().splitlines()]
    return [record for record in records if isinstance(record, Started)]


def metric(there: Announcement, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    control = Control(there.control_port)
    text = control.ask("GET", "/metrics").body.decode()
    control.close()
    total = 0.0
    for line in text.splitlines():
        head, _, value = line.rpartition(" ")
        if head.partition("{")[0] == f"evenlane_reflector_{name}" and all(
            f'{k}="{v}"' in head for k, v in labels.items()
        ):
            total += float(value)
    return total


def wait_for(what: Any, seconds: float = 5.0) -> Any:
    """Ask until the answer is true."""
    end = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def is_closed_by_peer(sock: socket.socket, within_s: float) -> float | None:
    """Seconds until the peer ended the connection; None where it did not in time. Nothing may be received."""
    start = time.monotonic()
    sock.settimeout(within_s)
    with suppress(ConnectionResetError):
        try:
            assert sock.recv(1) == b"", "bytes before a valid hello"
        except TimeoutError:
            return None
    return time.monotonic() - start

# SPDX-License-Identifier: EUPL-1.2
"""Targets: what probe and reflector read from their peers. Spec: spec/protocol.md."""

from __future__ import annotations

import ipaddress
import json
import random
import socket
from contextlib import closing, suppress

from fuzz_registry import target

from probe.netio.control import UrlError, parse_url
from probe.netio.http import HttpConnection, HttpError, Response
from probe.protocol.memory import MemoryReflector, VirtualClock
from probe.protocol.session import decode_message
from probe.reflector.origin import parse_address, prefix_of
from probe.reflector.pool import Pool, split_host
from probe.wire.codec import WireError
from probe.wire.envelope import open_record
from probe.wire.messages import Problem, SessionGrant
from probe.wire.signing import SeedSigner

MOST_BODY = 2000


def _ask(data: bytes, piece: int) -> Response | type[BaseException]:
    """The answer to one request when `data` arrives in pieces of so many bytes, then the end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with closing(ours), closing(theirs):
        pieces = [data[at : at + piece] for at in range(0, len(data), piece)][:200]
        for one in pieces:
            theirs.send(one)
        theirs.shutdown(socket.SHUT_WR)
        try:
            return HttpConnection(ours, "peer.example:443").request("GET", "/", timeout_s=5, most=MOST_BODY)
        except (HttpError, EOFError) as error:
            return type(error)


@target(
    seeds=lambda: [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nRetry-After: 30\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: u\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
    ],
    most=2000,
    examples=120,
)
def fuzz_http(data: bytes) -> None:
    """An answer is read, or refused with HttpError, or ends with the stream; alike however its bytes arrive."""
    whole = _ask(data, max(1, len(data)))
    if isinstance(whole, Response):
        assert 200 <= whole.status <= 999
        assert len(whole.body) <= MOST_BODY
        assert whole.retry_after_s is None or whole.retry_after_s >= 0
    assert _ask(data, max(1, len(data) // 150 + 1)) == whole


@target(
    seeds=lambda: [
        b"https://reflector.example:8443#sha256=" + b"0f" * 32,
        b"https://[2001:db8::1]:443/base/",
        b"https://192.0.2.1",
        b"http://127.0.0.1:8080/a?b",
    ],
    most=300,
)
def fuzz_url(data: bytes) -> None:
    """An address is refused with UrlError or can be written into a Host header."""
    try:
        url = parse_url(data.decode("utf-8", "replace"), schemes=("https", "http"))
    except UrlError:
        return
    assert 1 <= url.port <= 65535
    assert url.pin is None or len(bytes.fromhex(url.pin)) == 32
    url.authority.encode("ascii")
    assert not set(url.authority + url.path) & set("\r\n\t ")


SIGNER = SeedSigner(b"\x02" * 32, "cryptography")
NOW = 1_800_000_000_000
PROBLEMS = {400, 401, 403, 404, 405, 409, 413, 422, 429, 503}
OPENING = {
    "v": 1,
    "probe": SeedSigner(b"\1" * 32).key_id,
    "nettest": "differential",
    "pairs": 3,
    "segment_s": 1,
    "pace_mbps": 8,
}
COMMIT = {
    "pair": 1, "commit": "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925", "kind": "test",
    "app": "youtube", "profile": "p", "direction": "down", "pace_mbps": 8, "segment_s": 1, "app_name": "a.example.net",
    "neutral_name": "b.example.net",
}  # fmt: skip
"""Committed to 32 zero bytes."""


def conversations() -> list[bytes]:
    """Lines of `method path body`; S stands for the open session, T for a ticket."""

    def told(*lines: tuple[str, object]) -> bytes:
        return b"\n".join(f"POST {path} {json.dumps(body)}".encode() for path, body in lines)

    segment = {"started": True, "bytes": 1, "duration_ms": 1}
    reveal, finish = ("S/pairs/1/reveal", {"nonce": "00" * 32}), ("S/pairs/1/finish", {"segments": [segment, segment]})
    return [
        told(("/v1/sessions", OPENING)),
        told(("S/pairs", COMMIT), reveal, finish, ("S/close", {"reason": "done"}), ("S/close", {"reason": "done"})),
        told(("S/pairs", COMMIT), ("S/pairs", COMMIT), ("S/pairs/1/reveal", {"nonce": "01" * 32})),
        told(reveal, finish, ("S/pairs/999/finish", {"segments": []})),
        b'HELLO a.example.net {"v":1,"ticket":"T","purpose":"segment","direction":"down"}',
        told(("S/pairs", COMMIT), reveal)
        + b'\nHELLO a.example.net {"v":1,"ticket":"T","purpose":"segment","direction":"down"}',
        b"GET /v1/sessions {}\nPOST /v1/sessions/../x {}\nPOST S/pairs/0/reveal {}",
    ]


@target(seeds=conversations, examples=100)
def fuzz_desk(data: bytes) -> None:
    """Whatever is sent on the control channel, in whatever order: an answer, or a Problem with a known status; one
    receipt a session, and every started pair is in it."""
    there = MemoryReflector(signer=SIGNER, clock=VirtualClock(NOW), random_bytes=random.Random(1).randbytes)
    grant = decode_message(SessionGrant, there.request("POST", "/v1/sessions", json.dumps(OPENING).encode()).body)
    base, tickets = f"/v1/sessions/{grant.session}".encode(), [b"0" * 32]
    for line in data.split(b"\n")[:40]:
        verb, _, rest = line.partition(b" ")
        path, _, body = rest.partition(b" ")
        there.clock.advance(len(line))
        if verb == b"HELLO":
            raw = body.replace(b'"T"', b'"' + tickets[-1] + b'"') + b"\n"
            with suppress(WireError):
                there.connect(raw.ljust(512, b" "), path.decode("latin-1") or None)
            continue
        path = base + path[1:] if path.startswith(b"S") else path
        found = there.request(verb.decode("latin-1"), path.decode("latin-1"), body, grant.token)
        if found.status in {200, 201}:
            if b'"tickets"' in found.body:
                tickets.append(json.loads(found.body)["tickets"][0].encode())
            continue
        assert found.status in PROBLEMS, found.status
        assert decode_message(Problem, found.body).error == found.error
    there.tick()
    there.stop()
    assert len(there.receipts) == there.booking.sessions_started
    witnessed = {(name, pair.pair) for name, sealed in there.receipts.items() for pair in open_record(sealed).pairs}
    assert {(one.session, one.pair) for one in map(open_record, there.started)} <= witnessed


@target(seeds=lambda: [b"127.0.0.1:8443", b"[::1]:8443", b"reflector.example", b"[::1]", b":0", b"a:99999"], most=300)
def fuzz_host_header(data: bytes) -> None:
    """A Host header never fails, and endpoints are ours whatever it says."""
    text = data.decode("utf-8", "surrogateescape")
    host, port = split_host(text)
    assert 0 <= port <= 99999
    assert isinstance(host, str)
    pool = Pool(hosts=("127.0.0.1", "::1"), control_port=8443, data_port=443)
    assert {end.host for end in pool.seen_from(host_header=text, local_address="127.0.0.1")} <= {
        None,
        "127.0.0.1",
        "::1",
    }


@target(seeds=lambda: [b"192.0.2.1", b"fe80::1%eth0", b"::ffff:192.0.2.1", b"2001:db8::1", b"%", b"::"], most=100)
def fuzz_address(data: bytes) -> None:
    """What a kernel or a probe calls an address: ValueError, or a network that holds it."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert address in ipaddress.ip_network(prefix_of(address))

# SPDX-License-Identifier: EUPL-1.2
"""Targets: the carriers that are not TLS, over TCP and over UDP, on both sides. Spec: spec/carriers.md.

A stranger may hold a good ticket, so datagrams are sealed as he would seal them and carry any numbers he likes.
"""

from __future__ import annotations

import random
import socket
import ssl
import struct
from contextlib import closing, suppress
from dataclasses import fields, replace

from fuzz_hello_oracle import hellos, server
from fuzz_registry import target

from probe.profiles import browser, firstbytes
from probe.profiles.model import LIBRARY, ProfileError, Shelf
from probe.profiles.reading import document_of
from probe.protocol import sealed
from probe.protocol.accounts import Awaited, Counted, Job, NoJob
from probe.protocol.datagram import (
    COOKIE_BYTES,
    DATAGRAM_BYTES,
    OPENING_BYTES,
    Codec,
    Packet,
    opening,
    read_opening,
)
from probe.protocol.datagram_door import MOST_AMPLIFICATION, Door
from probe.protocol.datagram_flow import POOL_BYTES, Filler
from probe.protocol.datagram_probe import ProbeFlow
from probe.protocol.datagram_rate import MOST_MBPS, SILENCE_S
from probe.protocol.datagram_reflector import flow_for
from probe.protocol.session import decode_hello, encode_hello
from probe.protocol.steps import RunSegment, WireBytes
from probe.reflector.opening import NotOpened, recognise
from probe.wire.codec import WireError, dumps, from_dict, loads, to_dict
from probe.wire.limits import MAX_ANSWER
from probe.wire.messages import DataHello, Endpoint
from probe.wire.records import Carrier, PlannedProfile, Segment

TICKET = "0f" * 16
HEAD = b"\x80\x60"
HELLO = encode_hello(DataHello(v=1, ticket=TICKET, purpose="segment", direction="down"))
POOL = memoryview(random.Random(1).randbytes(POOL_BYTES + DATAGRAM_BYTES))
NUMBERS = struct.Struct(">B3xIIIIIII")
T0 = 1_790_000_000_000


def fixed(count: int) -> bytes:
    """Bytes for whoever wants random ones."""
    return bytes(count)


@target(
    seeds=lambda: [b"\1" + bytes(COOKIE_BYTES) + HELLO, b"\0" + opening(HEAD, HELLO, fixed), b"\1" + b"c" * 16 + HELLO],
    most=1300,
    examples=80,
)
def fuzz_opening(data: bytes) -> None:
    """A datagram before the cookie is a hello that can be read, or None."""
    raw = HEAD + sealed.seal(data[1:], fixed) if data[:1] == b"\1" else data[1:]
    found = read_opening(raw)
    if found is not None:
        assert len(raw) == len(found.head) + OPENING_BYTES
        assert found.head == raw[: len(found.head)]
        again = read_opening(opening(found.head, encode_hello(found.hello), fixed, found.cookie))
        assert again == found


@target(seeds=lambda: [Codec(TICKET, "probe", HEAD).seal(Packet(1, 2, 3), POOL[:96]), HEAD + bytes(94)], most=1300)
def fuzz_packet(data: bytes) -> None:
    """Nobody who has not the ticket makes a datagram that counts, and its holder's is read as it was made."""
    reader, writer = Codec(TICKET, "reflector", HEAD), Codec(TICKET, "probe", HEAD)
    found = reader.open(data)
    if found is not None:
        assert writer.seal(found, memoryview(data))[: len(HEAD) + 40] == data[: len(HEAD) + 40]
    assert writer.open(data) is None, "one's own datagrams come back as the other's"
    if len(data) >= NUMBERS.size:
        made = Packet(*NUMBERS.unpack(data[: NUMBERS.size]))
        assert reader.open(writer.seal(made, POOL[:96])) == made
        assert Codec("1e" * 16, "reflector", HEAD).open(writer.seal(made, POOL[:96])) is None


class _Desk:
    """A booking of one ticket."""

    def __init__(self) -> None:
        self.used = 0

    def awaited(self, ticket: str) -> Awaited | None:
        """Good until it is used."""
        if ticket != TICKET:
            return None
        return Awaited(carrier="datagram", is_waiting=not self.used, answer=b"a" * MAX_ANSWER, head=HEAD)

    def awaited_flight(self, flight: str) -> Awaited | None:
        """Every other flight is awaited, as far as a stranger can tell."""
        return self.awaited(TICKET) if int(flight[-1], 16) % 2 else None

    def open(self, hello: DataHello, carrier: Carrier, flight: str) -> Job | NoJob:
        """Once."""
        self.used += 1
        return job(hello.direction)


def job(direction: str) -> Job:
    """What a good ticket may do."""
    return Job(
        session="s", ticket=TICKET, direction=direction, pace_mbps=2.0, duration_s=0.4, carrier="datagram", head=HEAD
    )  # type: ignore[arg-type]


@target(
    seeds=lambda: [b"\x01flight\n\x02\n\x02\n\x03", b"\x11a\n\x22\n\x13\n\x12", b"\x01\n\x02\n" * 9],
    most=600,
    examples=80,
)
def fuzz_door(data: bytes) -> None:
    """Whatever knocks from wherever: before a cookie comes back nobody gets more than three times what he sent, a
    ticket opens once, and memory is bounded."""
    desk = _Desk()
    door = Door(desk, b"secret", Filler(POOL), most=8, per_prefix=4)
    got: dict[bytes, int] = {}
    sent: dict[bytes, int] = {}
    cookies: dict[bytes, bytes] = {}
    now = 0.0
    for line in data.split(b"\n")[:60]:
        verb, flow = (line[0] & 15, bytes([line[0] >> 4])) if line else (0, b"\0")
        raw = line[1:]
        if verb == 2:
            raw = opening(HEAD, HELLO, fixed)
        elif verb == 3:
            raw = opening(HEAD, HELLO, fixed, cookies.get(flow, line[1:17].ljust(16, b"x")))
        now += len(line) / 100
        got[flow] = got.get(flow, 0) + len(raw)
        entered = door.take(flow, lambda flow=flow: str(flow[0] % 3), raw, now)
        sent[flow] = sent.get(flow, 0) + sum(map(len, entered.send))
        assert sent[flow] <= MOST_AMPLIFICATION * got[flow]
        assert (entered.job is not None) == (entered.verdict == "opened")
        for one in entered.send:
            packet = Codec(TICKET, "probe", HEAD).open(one)
            if packet is not None:
                cookies[flow] = packet.cookie
        assert len(door) <= 8
    assert desk.used <= 1


def events(kinds: str) -> list[bytes]:
    """Datagrams of honest numbers: how much later (a byte, 4 ms each), then a header."""
    lines = {"down": [], "up": []}
    for n in range(1, 14):
        lines["down"].append(bytes([13]) + NUMBERS.pack(2, n, n * 52_000, n * 50_000, 1000, n * 5, n * 5, n * 6000))
        lines["up"].append(bytes([1]) + NUMBERS.pack(1, n, n * 4000, 0, 0, 0, 0, 0))
    end = bytes([1]) + NUMBERS.pack(4, 1, 0, 0, 0, 0, 0, 0)
    return [b"".join(lines[kinds]), b"".join(lines[kinds][:5]) + end, b"".join(reversed(lines[kinds]))]


def timed(data: bytes, role: str):  # type: ignore[no-untyped-def]
    """Seconds and a sealed datagram for each 33 bytes."""
    codec, now = Codec(TICKET, role, HEAD), 10.0  # type: ignore[arg-type]
    for at in range(0, min(len(data), 3300) - NUMBERS.size, NUMBERS.size + 1):
        now += data[at] * 0.004
        packet = Packet(*NUMBERS.unpack(data[at + 1 : at + 1 + NUMBERS.size]))
        yield now, codec.seal(packet, POOL[: DATAGRAM_BYTES if packet.kind == 1 else 96])


def storable(counted: Counted) -> None:
    """An account fits into the segment of a receipt: what cannot be read again would lose the whole receipt."""
    names = {field.name for field in fields(Segment)} & {field.name for field in fields(Counted)}
    segment = replace(Segment(arm="app", end=counted.end), **{name: getattr(counted, name) for name in names})
    assert from_dict(Segment, loads(dumps(to_dict(segment)))) == segment


def _reflector(direction: str, data: bytes) -> None:
    flow = flow_for(job(direction), Codec(TICKET, "reflector", HEAD), Filler(POOL), 10.0, T0)
    out, last = 0, 10.0
    for now, raw in timed(data, "probe"):
        flow.receive(raw, now)
        sent = flow.poll(now)
        out += sum(map(len, sent))
        assert len(sent) < 200
        if flow.counted is None:
            assert flow.wake_at > 9.0
        last = now
    assert out <= MOST_MBPS * 1e6 / 8 * (last - 10.0 + 0.1)
    for step in range(1, 400):
        flow.poll(last + step * 0.01)
        if flow.is_over:
            break
    assert flow.is_over, "a segment never ends"
    assert step * 0.01 <= max(SILENCE_S, 3.0) + 0.7
    assert flow.counted is not None
    storable(flow.counted)


@target(seeds=lambda: events("down"), most=3300, examples=60)
def fuzz_flow_down(data: bytes) -> None:
    """A probe with a good ticket reports any numbers: the reflector stops in time and its receipt can be read."""
    _reflector("down", data)


@target(seeds=lambda: events("up"), most=3300, examples=60)
def fuzz_flow_up(data: bytes) -> None:
    """A probe with a good ticket sends any headers: the account can be read, and the segment ends."""
    _reflector("up", data)


def challenges() -> list[bytes]:
    """A reflector's first word before each story."""
    first = bytes([1]) + NUMBERS.pack(3, 1, 0, 1, 2, 3, 4, 0)
    return [b"\0" + first + one for one in events("up")] + [b"\1" + first + one for one in events("down")]


@target(seeds=challenges, most=3300, examples=60)
def fuzz_flow_probe(data: bytes) -> None:
    """A reflector says anything: the probe's segment ends in time, with counts or a failure of the vocabulary."""
    direction = "down" if data[:1] == b"\0" else "up"
    step = RunSegment(
        pair=1, slot=0, endpoint=Endpoint(host=None, port=443), name="", ticket=TICKET, certificate="", app="a",
        profile="p", direction=direction, pace_mbps=2.0, segment_s=0.4, carrier="datagram",
        wire=WireBytes(flight=b"f" * 100, answer=b"", head=HEAD),
    )  # fmt: skip
    flow = ProbeFlow(step, HELLO, Filler(POOL), fixed, 10.0)
    flow.poll(10.0)
    last = 10.0
    for now, raw in timed(data[1:], "reflector"):
        flow.receive(raw, now)
        assert len(flow.poll(now)) < 200
        last = now
    for number in range(1, 1000):
        flow.poll(last + number * 0.01)
        if flow.is_over:
            break
    assert flow.is_over, "a segment never ends"
    assert flow.moved >= 0
    assert flow.rtt_min_s is None or flow.rtt_min_s >= 0


@target(
    seeds=lambda: [
        b"\0" + sealed.client_finish(HELLO, fixed),
        b"\1" + HELLO,
        b"\2" + sealed.server_flight(b"s" * 32, fixed),
        b"\0" + b"s" * 20,
    ],
    most=4200,
)
def fuzz_finish(data: bytes) -> None:
    """What stands for the end of a handshake: WireError or a hello; and only the one shape is a server's flight."""
    kind, raw = data[:1], data[1:]
    if kind == b"\1":
        raw = sealed.client_finish(raw[:512].ljust(512, b" "), fixed)
    with suppress(WireError):
        decode_hello(sealed.hello_in_finish(raw))
    if sealed.is_server_flight(raw, b"s" * 32):
        assert len(raw) == sealed.SERVER_FLIGHT_BYTES
    shown = sealed.shown_ticket(raw[:32])
    assert (shown is None) == (len(raw) < 32)


@target(
    seeds=lambda: [
        b"hex 16fe",
        b"text GET /\nrandom 8 id\nagain id",
        b"letters 4\nline Host: x\nfingerprint",
        b"random 9\xb2",
    ],
    most=600,
)
def fuzz_first_bytes(data: bytes) -> None:
    """Words for first bytes are refused with WordError, or make as many bytes as they say."""
    try:
        parts = firstbytes.read(data.decode("utf-8", "replace").split("\n"))
    except firstbytes.WordError:
        return
    if firstbytes.size(parts) < 100_000:
        assert len(firstbytes.make(parts, {}, random.Random(1).randbytes)) == firstbytes.size(parts)


def delivered() -> list[bytes]:
    """The installed files as a plan would bring them."""
    paths = sorted(LIBRARY.glob("*.toml"))
    return [document_of(path.read_text(encoding="utf-8"), path.name).encode() for path in paths]


@target(seeds=delivered, most=6000, examples=50)
def fuzz_delivered_profile(data: bytes) -> None:
    """A plan's profile is refused with ProfileError, or loads."""
    with suppress(WireError, ValueError):
        plain = loads(data)
        name = plain.get("id") if isinstance(plain, dict) else None
        planned = PlannedProfile(id=name if isinstance(name, str) else "x", document=data.decode())
        try:
            shelf = Shelf(delivered=[planned])
        except ProfileError:
            return
        found = shelf.neutral() if planned.id == "neutral" else shelf.load(planned.id)
        assert found.id == planned.id


class _Host:
    """What an opening asks of the data port: one waiting ticket."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier: Carrier = carrier

    def context_for(self, protocols: tuple[bytes, ...]) -> ssl.SSLContext:
        """Any."""
        return server()

    def awaited(self, ticket: str) -> Awaited | None:
        """Ours."""
        return Awaited(carrier=self._carrier, is_waiting=True, flight_bytes=20) if ticket == TICKET else None


def first_bytes_of_connections() -> list[bytes]:
    """Carrier in the first byte: TLS, a browser's hello that shows the ticket and what ends it, a stream."""
    shown = browser.client_hello(
        sorted(browser.shapes())[0], "a.example.org", alpn=("h2",), session_id=sealed.session_id(TICKET, fixed),
        random_bytes=fixed,
    )  # fmt: skip
    flight = b"\x13BitTorrent protocol"
    return [
        *(b"\0" + one for one in hellos()),
        b"\0" + shown + sealed.client_finish(HELLO, fixed),
        b"\0" + shown,
        b"\1" + flight + sealed.behind_flight(len(flight), HELLO, fixed),
    ]


@target(seeds=first_bytes_of_connections, most=4000, examples=80)
def fuzz_data_port(data: bytes) -> None:
    """Whatever comes first over TCP: a greeting for the ticket that waits, a wish for more bytes, or the end."""
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        ours.setblocking(False)
        theirs.sendall(data[1:])
        theirs.shutdown(socket.SHUT_WR)
        opened = ours
        try:
            way = recognise(ours, _Host("stream" if data[:1] == b"\1" else "hello"))
            if way is None:
                return
            opened = way.sock
            greeting = way.advance()
        except (NotOpened, OSError):  # ssl's wishes and BlockingIOError are OSError
            return
        finally:
            opened.close()
    assert greeting.hello.purpose == "segment" or greeting.carrier == "tls"
    assert greeting.carrier != "hello" or greeting.hello.ticket == TICKET
    assert (greeting.flight is not None) == (greeting.carrier == "stream")
    assert greeting.name is None or greeting.name.isascii()

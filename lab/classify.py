# SPDX-License-Identifier: EUPL-1.2
"""What an operator's traffic classifier can learn from a flow's first bytes, without any I/O.

A real DPI engine reassembles TCP, because a ClientHello may be split over segments and over TLS records,
arrive out of order and be retransmitted. So does this one: `FlowFacts` collects what is known of one flow and
says when nothing more can be learned. Matching names and payload classes against a rule is here too.
spec/lab.md section 2; RFC 8446 section 4 and 5.1 (TLS), RFC 6066 section 3 (SNI), RFC 9112 (HTTP),
RFC 1035 (DNS), RFC 3261 (SIP), RFC 3550 and RFC 4571 (RTP), RFC 8489 (STUN), BEP 3 and BEP 29 (BitTorrent); for
OpenVPN its protocol overview (doc_protocol_overview.h); lab.quic reads QUIC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from lab.quic import InitialReader, NotInitial

Direction = Literal["down", "up"]
PAYLOADS: Final = ("bittorrent", "wireguard", "openvpn", "sip", "rtp", "stun", "quic", "dtls", "opaque")
TCP: Final = 6
UDP: Final = 17
MAX_STREAM: Final = 20_000  # bytes of a flow's start that are looked at, larger than any real ClientHello
MAX_PENDING: Final = 32  # out-of-order segments kept for one flow

_SEQ_MASK: Final = 0xFFFFFFFF
_HTTP_METHODS: Final = (
    b"GET ", b"POST ", b"HEAD ", b"PUT ", b"DELETE ", b"OPTIONS ", b"CONNECT ", b"PATCH ", b"TRACE ",
)  # fmt: skip
_SIP_STARTS: Final = (
    b"INVITE ", b"REGISTER ", b"ACK ", b"BYE ", b"CANCEL ", b"SUBSCRIBE ", b"NOTIFY ", b"MESSAGE ", b"SIP/2.0 ",
)  # fmt: skip


class Incomplete(Exception):
    """More bytes are needed before anything can be said."""


class _Reader:
    """Reads length-prefixed fields; raises Incomplete at the end of what has arrived."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise Incomplete
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> _Reader:
        """A field whose length stands before it in `size` bytes."""
        return _Reader(self.take(self.number(size)))

    @property
    def empty(self) -> bool:
        return self.at >= len(self.data)


def client_hello(stream: bytes) -> bytes:
    """The body of the ClientHello at the start of a TLS stream, joined from however many records carry it.

    Raises Incomplete while bytes are missing and ValueError where the stream is not a TLS handshake.
    """
    reader = _Reader(stream)
    handshake = bytearray()
    while True:
        head = stream[reader.at : reader.at + 2]
        if head[:1] not in (b"", b"\x16") or head[1:] not in (b"", b"\x03"):
            raise ValueError("not a TLS handshake record")
        reader.take(3)
        handshake += reader.vector(2).data
        if handshake and handshake[0] != 1:
            raise ValueError("not a ClientHello")
        if len(handshake) >= 4:
            length = int.from_bytes(handshake[1:4], "big")
            if len(handshake) >= 4 + length:
                return bytes(handshake[4 : 4 + length])


def server_name(hello: bytes) -> str | None:
    """The host name in a ClientHello's server_name extension, in lower case; None where there is none."""
    reader = _Reader(hello)
    try:
        reader.take(2 + 32)
        reader.vector(1)  # session id
        reader.vector(2)  # cipher suites
        reader.vector(1)  # compression methods
        if reader.empty:
            return None
        extensions = reader.vector(2)
        while not extensions.empty:
            kind = extensions.number(2)
            body = extensions.vector(2)
            if kind == 0:
                names = body.vector(2)
                while not names.empty:
                    name_kind = names.number(1)
                    name = names.vector(2).data
                    if name_kind == 0:
                        return _host(name)
    except Incomplete:
        return None
    return None


def http_host(stream: bytes) -> str | None:
    """The Host of an HTTP/1 request, without port; raises Incomplete until its header is complete."""
    head, end, _ = stream.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n")[1:] if end else head.split(b"\r\n")[1:-1]:
        key, colon, value = line.partition(b":")
        if colon and key.strip().lower() == b"host":
            return _host(value.strip().rsplit(b":", 1)[0] if value.count(b":") == 1 else value.strip())
    if not end:
        raise Incomplete
    return None


def dns_question(message: bytes) -> str | None:
    """The first question's name in a DNS query or answer, None where the message is not one."""
    if len(message) < 17 or int.from_bytes(message[4:6], "big") < 1:
        return None
    labels: list[bytes] = []
    reader = _Reader(message)
    reader.at = 12
    try:
        while size := reader.number(1):
            if size > 63 or len(labels) > 127:
                return None
            labels.append(reader.take(size))
        reader.take(4)
    except Incomplete:
        return None
    return _host(b".".join(labels))


def _host(raw: bytes) -> str:
    return raw.decode("ascii", "replace").lower().rstrip(".")


_FRAMED: Final = 14  # bytes that tell what a message with its length before it is: OpenVPN's shortest reset


def stream_class(stream: bytes) -> str:
    """The class of a TCP stream by its first bytes: tls, http, bittorrent, sip, stun, openvpn, rtp or opaque.

    Raises Incomplete where the bytes so far are the beginning of more than one class.
    """
    for starts, name in (
        ((b"\x16\x03",), "tls"),
        (_HTTP_METHODS, "http"),
        ((b"\x13BitTorrent protocol",), "bittorrent"),
        (_SIP_STARTS, "sip"),
    ):
        for start in starts:
            if stream.startswith(start):
                return name
    beginnings = (b"\x16\x03", b"\x13BitTorrent protocol", *_HTTP_METHODS, *_SIP_STARTS)
    if any(start.startswith(stream) for start in beginnings):
        raise Incomplete
    return _framed_class(stream)


def _framed_class(stream: bytes) -> str:
    """The class of a stream of binary messages: STUN has a header of its own, the others a length of two bytes."""
    if len(stream) < 3:
        raise Incomplete
    if stream[0] < 2 and _STUN_COOKIE.startswith(stream[4:8]) and len(stream) < 20:
        raise Incomplete
    if _is_stun(stream):
        return "stun"
    size = int.from_bytes(stream[:2], "big")
    if stream[2] in _OPENVPN_RESETS and size >= _FRAMED:
        return "openvpn"
    if stream[2] & 0xC0 == 0x80 and len(stream) < 4:
        raise Incomplete
    if stream[2] & 0xC0 == 0x80 and size >= 12 and _is_media(stream[3]):
        return "rtp"
    return "opaque"


_STUN_COOKIE: Final = b"\x21\x12\xa4\x42"
_OPENVPN_RESETS: Final = (0x38, 0x50)  # P_CONTROL_HARD_RESET_CLIENT_V2 and _V3, key id 0


def _is_stun(message: bytes) -> bool:
    return len(message) >= 20 and message[0] < 2 and message[4:8] == _STUN_COOKIE


def _is_media(second: int) -> bool:
    """Whether the second byte of an RTP packet names audio, video or a dynamic payload type (RFC 3551)."""
    return second & 0x7F <= 34 or 96 <= second & 0x7F < 127


def datagram_class(payload: bytes) -> str:  # noqa: PLR0911  (one return a class)
    """The class of a UDP flow by one datagram, one of PAYLOADS.

    Heuristics of one datagram, as coarse as those of cheap engines: RTP is version 2 with an audio, video or
    dynamic payload type in no packet shorter than its header, OpenVPN a client's reset of plausible length.
    """
    size = len(payload)
    if not size:
        return "opaque"
    first = payload[0]
    if payload[1:4] == b"\0\0\0" and (first, size) in {(1, 148), (2, 92), (3, 64)}:
        return "wireguard"
    utp_syn = first == 0x41 and 20 <= size < 64 and payload[1] <= 2
    if utp_syn or payload.startswith((b"d1:ad2:id20:", b"d1:rd2:id20:")):
        return "bittorrent"
    if payload.startswith(_SIP_STARTS):
        return "sip"
    if _is_stun(payload):
        return "stun"
    if 20 <= first <= 63 and payload[1:2] == b"\xfe":
        return "dtls"
    if first & 0xC0 == 0xC0 and size >= 1200:
        return "quic"
    if first & 0xC0 == 0x80 and size >= 12 and _is_media(payload[1]):
        return "rtp"
    return "openvpn" if first in _OPENVPN_RESETS and _FRAMED <= size <= 600 else "opaque"


def name_matches(pattern: str, name: str) -> bool:
    """Whether a host name fits a pattern: exact, or with `*` for any run of characters, dots included."""
    pattern, name = pattern.lower().rstrip("."), name.lower().rstrip(".")
    head, *rest = pattern.split("*")
    if not rest:
        return pattern == name
    *middle, tail = rest
    if not name.startswith(head) or len(name) < sum(map(len, (head, *rest))) or not name.endswith(tail):
        return False
    at, end = len(head), len(name) - len(tail)
    for piece in middle:
        found = name.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    # "*.example.org" needs something in the star's place; ".example.org" is no host name
    return len(name) > len(head) + len(tail) or bool(middle)


@dataclass
class FlowFacts:
    """What is known of one flow. Facts only grow; `complete` says that no packet can add to them."""

    proto: int
    server_port: int
    sni: str | None = None
    http_host: str | None = None
    dns: str | None = None
    quic_sni: str | None = None
    payload: str | None = None
    established: bool = False
    complete: bool = False
    split: bool | None = None
    """Whether the ClientHello (or what else told the class) came in more than one packet; None: not known yet."""
    _pieces: int = 0
    _stream: bytearray = field(default_factory=bytearray)
    _next: int | None = None
    _pending: dict[int, bytes] = field(default_factory=dict)
    _quic: InitialReader | None = None

    def syn(self, sequence: int) -> None:
        """The client opened the connection: its stream begins after this sequence number."""
        self._next = (sequence + 1) & _SEQ_MASK

    def client_segment(self, sequence: int, payload: bytes) -> bool:
        """Take a TCP segment of the client's stream; True when a fact was learned."""
        if self.complete or not payload:
            return False
        if self._next is None:  # the flow began before we watched: take what comes first for its beginning
            self._next = sequence
        ahead = (sequence - self._next) & _SEQ_MASK
        if 0 < ahead < 0x80000000 and (len(self._pending) >= MAX_PENDING or ahead > MAX_STREAM):
            return False  # a flood of out-of-order segments must not cost memory
        self._pending[sequence] = max(self._pending.get(sequence, b""), payload, key=len)
        return self._join() and self._learn()

    def _join(self) -> bool:
        """Append every pending segment that continues the stream; True when the stream grew."""
        grew, moved = False, True
        while moved:
            moved = False
            for sequence in list(self._pending):
                assert self._next is not None  # noqa: S101  (set by the caller; narrows the type)
                ahead = (sequence - self._next) & _SEQ_MASK
                if ahead and ahead < 0x80000000:
                    continue
                piece = self._pending.pop(sequence)[(self._next - sequence) & _SEQ_MASK :]
                if piece:
                    self._pieces += 1
                    self._stream += piece
                    self._next = (self._next + len(piece)) & _SEQ_MASK
                    grew = moved = True
        return grew

    def _learn(self) -> bool:
        """Classify the stream so far; True when a fact was learned."""
        stream = bytes(self._stream[:MAX_STREAM])
        before = (self.payload, self.sni, self.http_host)
        try:
            if self.payload is None:
                self.payload = stream_class(stream)
            if self.payload == "tls":
                self.sni = server_name(client_hello(stream))
            elif self.payload == "http":
                self.http_host = http_host(stream)
            self._finish()
        except Incomplete:
            if len(stream) >= MAX_STREAM:
                self._finish()
        except ValueError:
            self._finish()
        return self.complete or before != (self.payload, self.sni, self.http_host)

    def datagram(self, payload: bytes, direction: Direction) -> bool:
        """Take a UDP payload; True when a fact was learned. One datagram decides, the names of DNS and QUIC apart.

        `direction` is "up" for what the client sends.
        """
        if self.complete:
            return False
        if self.server_port == 53:
            if direction == "up":
                name = dns_question(payload)
                learned = name != self.dns
                self.dns = name
                return learned
            return False
        if self._quic is None:
            self.payload = datagram_class(payload)
            if self.payload != "quic" or direction != "up":
                self._finish()
                return True
            self._quic = InitialReader()
            self._read_initial(self._quic, payload)
            return True
        return direction == "up" and self._read_initial(self._quic, payload)

    def _read_initial(self, reader: InitialReader, payload: bytes) -> bool:
        """Look for the hello in a client's QUIC datagram; True when its name was learned."""
        self._pieces += 1
        try:
            hello = reader.add(payload)
        except NotInitial:
            self._finish()
            return True
        if hello is not None:
            self.quic_sni = server_name(hello)
        if hello is not None or reader.is_exhausted:
            self._finish()
        return self.complete

    def _finish(self) -> None:
        self.complete = True
        self.split = self._pieces > 1
        self._stream.clear()
        self._pending.clear()
        self._quic = None


@dataclass(frozen=True)
class Match:
    """Which flows a rule means; all given keys must hold, None means "any"."""

    sni: tuple[str, ...] | None = None
    http_host: tuple[str, ...] | None = None
    dns: tuple[str, ...] | None = None
    quic_sni: tuple[str, ...] | None = None
    proto: Literal["tcp", "udp"] | None = None
    port: tuple[tuple[int, int], ...] | None = None
    payload: tuple[str, ...] | None = None
    direction: Direction | None = None
    established_only: bool = False
    split: bool | None = None
    """True: only flows whose ClientHello came in several packets; False: only those where one packet held it, which
    is all that an engine sees that does not reassemble."""

    def fits(self, facts: FlowFacts) -> bool:
        """Whether the facts so far satisfy every key (the direction is asked per packet, not here)."""
        for patterns, name in (
            (self.sni, facts.sni),
            (self.http_host, facts.http_host),
            (self.dns, facts.dns),
            (self.quic_sni, facts.quic_sni),
        ):
            if patterns is not None and (name is None or not any(name_matches(p, name) for p in patterns)):
                return False
        if self.proto is not None and facts.proto != {"tcp": TCP, "udp": UDP}[self.proto]:
            return False
        if self.port is not None and not any(low <= facts.server_port <= high for low, high in self.port):
            return False
        if self.payload is not None and facts.payload not in self.payload:
            return False
        if self.split is not None and facts.split is not self.split:
            return False
        return facts.established or not self.established_only

    @property
    def host_names(self) -> tuple[str, ...]:
        """Every name pattern of the match, whatever carries it."""
        return (self.sni or ()) + (self.http_host or ()) + (self.dns or ()) + (self.quic_sni or ())

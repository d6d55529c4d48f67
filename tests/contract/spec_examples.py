# SPDX-License-Identifier: EUPL-1.2
"""Writes spec/examples.md: everything that travels, byte by byte, from a session that both roles really played.

Everything is drawn from a fixed seed, so the page is the same on every machine. A stranger's implementation that is
given the same nonces must come to the same bytes. Run it to write the page anew; test_spec_examples.py compares.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from probe.protocol import coin
from probe.protocol.memory import MemoryReflector, VirtualClock, even_transfer
from probe.protocol.probe_role import ProbeSession
from probe.protocol.steps import AwaitPlan, Finished, Guard, PlannedPair, RunSegment, Send, Wait
from probe.reflector.origin import network_hash
from probe.wire.codec import dumps, to_dict
from probe.wire.envelope import Envelope, from_line, open_record, seal, to_line
from probe.wire.messages import DATA_HELLO_BYTES, Problem, SessionRequest
from probe.wire.rate import rate_mbps
from probe.wire.records import Environment, Origin, Receipt, Software
from probe.wire.signing import SeedSigner

PAGE = Path(__file__).parents[2] / "spec" / "examples.md"
T0 = 1_790_000_000_000
NETWORK_KEY = hashlib.sha256(b"example: the month's network key").digest()
ADDRESS = "203.0.113.7"
PROBE = SeedSigner(hashlib.sha256(b"example: probe").digest(), "python")
REFLECTOR = SeedSigner(hashlib.sha256(b"example: reflector").digest(), "python")
PAIR = PlannedPair(
    kind="test",
    app="youtube",
    profile="youtube@1:0011223344556677",
    direction="down",
    pace_mbps=8.0,
    segment_s=0.4,
    app_name="rr3---sn-5hne6nzs.googlevideo.com",
    neutral_name="media4.cedar-lake.harbourlight.com",
)


def draws(seed: str) -> Callable[[int], bytes]:
    """Random bytes of a fixed seed: SHAKE-256 of it, read piece by piece."""

    def pieces() -> Iterator[bytes]:
        for number in range(1000):
            yield hashlib.shake_256(f"example: {seed} {number}".encode()).digest(64)

    source = pieces()
    return lambda count: next(source)[:count]


class Conversation:
    """One session of one pair, and what went over the control channel meanwhile."""

    def __init__(self) -> None:
        self.clock = VirtualClock(T0)
        self.reflector = MemoryReflector(
            signer=REFLECTOR,
            clock=self.clock,
            random_bytes=draws("reflector"),
            origin=Origin(
                asn=64500,
                operator="Linden",
                country="BE",
                network=network_hash(ipaddress.ip_address(ADDRESS), NETWORK_KEY),
                edge=True,
            ),
        )
        request = SessionRequest(
            v=1,
            probe=PROBE.key_id,
            nettest="differential",
            pairs=1,
            segment_s=PAIR.segment_s,
            pace_mbps=8.0,
            software=Software(version="0.1.0"),
        )
        self.session = ProbeSession(request, random_bytes=draws("probe"))
        self.said: list[tuple[str, int, bytes]] = []
        self.hellos: list[bytes] = []
        self._play()

    def _play(self) -> None:
        transfer = even_transfer(lambda step: 8.0 if step.slot else 7.6)
        while not isinstance(step := self.session.next(self.clock.now_ms), Finished):
            if isinstance(step, AwaitPlan):
                self.session.plan([PAIR])
            elif isinstance(step, Wait):
                self.clock.advance(step.ms)
            elif isinstance(step, RunSegment):
                self.hellos.append(step.hello(ADDRESS))
                self.session.segment_ended(transfer(step, self.reflector), self.clock.now_ms)
            elif isinstance(step, Guard):
                self.clock.advance(20)
                self.session.guard_ended(20, self.clock.now_ms)
            else:
                self._send(step)

    def _send(self, step: Send) -> None:
        answer = self.reflector.request(step.method, step.path, step.body, step.token or "")
        head = f"{step.method} {step.path} HTTP/1.1\r\nContent-Type: application/json\r\n"
        if step.token:
            head += f"Authorization: Bearer {step.token}\r\n"
        head += f"Content-Length: {len(step.body)}\r\n\r\n"
        self.said.append((head + step.body.decode(), answer.status, answer.body))
        self.clock.advance(10)
        self.session.answered(answer.status, answer.body, self.clock.now_ms)

    @property
    def receipt(self) -> Envelope:
        """The reflector's envelope."""
        assert self.session.receipt is not None
        return self.session.receipt

    def measurement(self) -> Envelope:
        """The probe's envelope."""
        record = self.session.measurement(
            record_id=draws("record")(16).hex(), sequence=41, environment=Environment(position="edge")
        )
        return seal(record, PROBE)


def hexdump(raw: bytes) -> str:
    """Sixteen bytes a line."""
    lines = []
    for at in range(0, len(raw), 16):
        piece = raw[at : at + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        lines.append(f"{at:04x}  {piece.hex(' '):47}  {shown}")
    return "\n".join(lines)


def block(text: str, kind: str = "") -> str:
    """A fenced block."""
    return f"```{kind}\n{text.rstrip()}\n```\n"


def envelope_text(envelope: Envelope) -> str:
    """The payload, the two other parts, and the line as it travels."""
    seed = PROBE if envelope.key == PROBE.public_key else REFLECTOR
    return (
        f"Payload, {len(envelope.payload)} bytes, exactly as signed (SHA-256 `{envelope.digest}`):\n\n"
        + block(envelope.payload.decode(), "json")
        + f"\nSigned by `{seed.key_id}`: `{envelope.signature.hex()}`\n\n"
        + block(to_line(envelope).decode(), "json")
    )


def control(talk: Conversation) -> str:
    """The control channel."""
    shown = []
    for request, status, body in talk.said:
        answer = "(the receipt, below)" if b"payload" in body else body.decode()
        shown.append(f"{request.replace(chr(13), '')}\n\n→ {status}\n{answer}")
    refusal = dumps(to_dict(Problem(error="quota", detail="too many sessions are open from this network")))
    return (
        "## The control channel\n\nHeader lines end with CR LF; `Host` and other usual headers are left out.\n\n"
        + "\n".join(block(text, "http") for text in shown)
        + "\nA refusal (429, `Retry-After: 30`):\n\n"
        + block(refusal.decode(), "json")
    )


def the_coin(talk: Conversation) -> str:
    """How the coin comes about."""
    receipt = open_record(talk.receipt)
    assert isinstance(receipt, Receipt)
    pair = receipt.pairs[0]
    assert pair.probe_nonce is not None
    nonces = (bytes.fromhex(pair.probe_nonce), bytes.fromhex(pair.reflector_nonce))
    hashed = b"".join(nonces) + bytes.fromhex(receipt.session) + pair.pair.to_bytes(4, "big")
    digest = hashlib.sha256(hashed).hexdigest()
    first = coin.neutral_first(*nonces, receipt.session, pair.pair)
    assert first == bool(int(digest[-1], 16) & 1) == pair.neutral_first
    return "## The coin\n\n" + block(
        f"probe nonce       {pair.probe_nonce}\n"
        f"its SHA-256       {pair.commit}   (the commitment)\n"
        f"reflector nonce   {pair.reflector_nonce}\n"
        f"session           {receipt.session}\n"
        f"pair              {pair.pair.to_bytes(4, 'big').hex()}\n"
        f"SHA-256 of all    {digest}\n"
        f"lowest bit        {int(first)}: {'neutral' if first else 'app'} first"
    )


def the_hello(talk: Conversation) -> str:
    """The first bytes inside TLS."""
    raw = talk.hellos[0]
    assert len(raw) == DATA_HELLO_BYTES
    shown = hexdump(raw).splitlines()
    return (
        f"## The data connection's hello\n\nOf the first segment, {len(raw)} bytes; the lines left out are blanks "
        "(20) as well.\n\n" + block("\n".join([*shown[:13], "…", shown[-1]]))
    )


def the_rate(talk: Conversation) -> str:
    """A rate worked out."""
    receipt = open_record(talk.receipt)
    assert isinstance(receipt, Receipt)
    pair = receipt.pairs[0]
    segment = pair.segments[0]
    bins = [f"{at:>5} ms  {count} bytes" for at, count in zip(segment.bins_ms, segment.bins_bytes, strict=True)]
    rate = rate_mbps(segment, pair.segment_s)
    return (
        f"## A rate\n\nThe first segment lasted {pair.segment_s:g} s; what was moved after its first half counts:\n\n"
        + block("\n".join(bins))
        + f"\nRate: {rate!r} Mbit/s.\n"
    )


def the_origin() -> str:
    """A network's hash."""
    found = network_hash(ipaddress.ip_address(ADDRESS), NETWORK_KEY)
    six = network_hash(ipaddress.ip_address("2001:db8:7:9::1"), NETWORK_KEY)
    return "## A network\n\nThe first 32 hexadecimal digits of HMAC-SHA-256 under the month's key:\n\n" + block(
        f"key                      {NETWORK_KEY.hex()}\n"
        f"203.0.113.7/32           {found}\n"
        f"2001:db8:7::/48          {six}"
    )


def page() -> str:
    """The whole page."""
    talk = Conversation()
    measurement = talk.measurement()
    upload = dumps({"envelopes": [json.loads(to_line(measurement))]})
    parts = [
        "# Examples, byte by byte\n\nWritten by `tests/contract/spec_examples.py` from one session of one pair that "
        "both roles played in virtual time, with everything random drawn from fixed seeds; a test compares. The seeds "
        "of the keys are SHA-256 of `example: probe` and `example: reflector`. `sh spec/verify-envelope.sh FILE` "
        "checks the envelopes without evenlane.\n",
        control(talk),
        the_coin(talk),
        the_hello(talk),
        *(f"## {title}\n\n{envelope_text(envelope)}" for title, envelope in (
            ("The started pair", talk.reflector.started[0]),
            ("The receipt", talk.receipt),
            ("The measurement", measurement),
        )),
        the_rate(talk),
        the_origin(),
        "## An upload\n\n`POST /v1/measurements`, `Content-Type: application/json`: "
        f"`{{\"envelopes\":[…]}}` around the measurement's envelope above, {len(upload)} bytes, SHA-256 "
        f"`{hashlib.sha256(upload).hexdigest()}`. The answer, 200:\n\n"
        + block(
            dumps(
                {"results": [{"id": json.loads(measurement.payload)["id"], "reason": "", "status": "accepted"}]}
            ).decode(),
            "json",
        ),
    ]  # fmt: skip
    return "\n".join(parts)


def envelopes() -> list[Envelope]:
    """Every envelope on the page."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith('{"evenlane"')]
    return [from_line(line.encode()) for line in lines]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

# SPDX-License-Identifier: EUPL-1.2
"""The emulated operator does what its rules say, to the flows they mean, and nothing to the others."""

from __future__ import annotations

import random
import socket
import ssl
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.classify import Match
from lab.middlebox import INTERNET, Middlebox
from lab.model import CrossTraffic, Link, Rule
from lab.packets import ACK, RST, SYN, checksum, datagram, segment, transport_checksum

APP, NEUTRAL = "rr1---sn-4g5e6nzz.googlevideo.com", "a2---media-cache01.example.org"
SERVER = socket.inet_aton("192.0.2.10")
HOMES = [socket.inet_aton(f"198.18.1.{11 + i}") for i in range(10)]
FAST = Link(down_mbps=100, up_mbps=100, rtt_ms=20, buffer_ms=100)
VIDEO = Match(sni=("*.googlevideo.com",))
PAYLOAD = 1460


def hello(name: str) -> bytes:
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


HELLO = {name: hello(name) for name in (APP, NEUTRAL)}


def packet(source: bytes, to: bytes, ports: tuple[int, int], body: bytes, proto: int = 6) -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 24 + len(body), 7, 0x4000, 64, proto, 0, source, to)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + struct.pack("!HH", *ports) + body


class Conversation:
    """One TCP connection of a subscriber, as bytes on the wire, with a clock of its own."""

    ports = 40_000

    def __init__(self, box: Middlebox, home: int = 0, *, port: int = 443, now: float = 0.0) -> None:
        Conversation.ports += 1
        self.box, self.home, self.now = box, home, now
        self.client_port, self.port = Conversation.ports, port
        self.isn = random.Random(self.client_port).getrandbits(32)
        self.sent, self.received = (self.isn + 1) % 2**32, 5001

    def tcp(self, way: str, sequence: int, ack: int, flags: int, payload: bytes = b"") -> bytes:
        ends = (HOMES[self.home], SERVER, (self.client_port, self.port))
        if way == "down":
            ends = (SERVER, HOMES[self.home], (self.port, self.client_port))
        fields = struct.pack("!IIBBHHH", sequence, ack, 0x50, flags, 500, 0, 0)
        whole = packet(*ends, fields + payload)
        return whole[:36] + struct.pack("!H", transport_checksum(whole)) + whole[38:]

    def up(self, flags: int = ACK, payload: bytes = b"", sequence: int | None = None) -> None:
        at = self.sent if sequence is None else sequence
        self.box.from_subscriber(self.home, self.tcp("up", at, self.received, flags, payload), self.now)
        if sequence is None:
            self.sent = (self.sent + len(payload)) % 2**32

    def down(self, size: int = PAYLOAD, flags: int = ACK) -> None:
        self.box.from_internet(self.tcp("down", self.received, self.sent, flags, bytes(size)), self.now)
        self.received = (self.received + size) % 2**32

    def open(self) -> Conversation:
        self.box.from_subscriber(self.home, self.tcp("up", self.isn, 0, SYN), self.now)
        self.box.from_internet(self.tcp("down", 5000, self.sent, SYN | ACK), self.now)
        self.up()
        return self

    def say_hello(self, name: str) -> Conversation:
        self.up(payload=HELLO[name])
        return self

    def stream(self, seconds: float, mbps: float) -> list[tuple[float, bytes]]:
        """Send down at a rate and return what arrives at home, with times."""
        gap = (PAYLOAD + 40) * 8 / (mbps * 1e6)
        end, arrived = self.now + seconds, []
        while self.now < end:
            self.down()
            self.now += gap
            arrived += [(self.now, body) for port, body in self.box.poll(self.now)[0] if port == self.home]
        return arrived + [(when, body) for when, port, body in drain(self.box, self.now) if port == self.home]


def drain(box: Middlebox, now: float, seconds: float = 10.0) -> list[tuple[float, int, bytes]]:
    """Everything that still leaves, each at its time."""
    out, end = [], now + seconds
    while now <= end:
        due, upcoming = box.poll(now)
        out += [(now, port, body) for port, body in due]
        if upcoming is None:
            break
        now = max(upcoming, now)
    return out


def box_with(*rules: Rule, link: Link = FAST, homes: int = 1, **options: object) -> Middlebox:
    return Middlebox(HOMES[:homes], link, rules, **options)  # type: ignore[arg-type]


def rate(arrived: list[tuple[float, bytes]], after: float, until: float) -> float:
    return sum(len(body) for when, body in arrived if after <= when < until) * 8 / (until - after) / 1e6


def test_a_neutral_operator_changes_no_byte_and_adds_half_the_rtt_each_way() -> None:
    box = box_with()
    line = Conversation(box)
    whole = line.tcp("up", 1, 2, ACK, b"abc")
    box.from_subscriber(0, whole, 1.0)
    [(when, port, body)] = drain(box, 1.0)
    assert (port, body) == (INTERNET, whole)
    assert when == pytest.approx(1.010, abs=0.001)
    whole = line.tcp("down", 1, 2, ACK, b"abc")
    box.from_internet(whole, 2.0)
    assert [(port, body) for _, port, body in drain(box, 2.0)] == [(0, whole)]


@pytest.mark.parametrize("action", ["police", "shape"])
def test_only_the_named_flow_is_slowed_and_to_the_rate(action: str) -> None:
    box = box_with(Rule(VIDEO, action, down_mbps=1.5, burst_kb=30))  # type: ignore[arg-type]
    app = Conversation(box).open().say_hello(APP)
    arrived = app.stream(4.0, 10)
    assert rate(arrived, 1.0, 4.0) == pytest.approx(1.5, rel=0.03)
    neutral = Conversation(box, now=20.0).open().say_hello(NEUTRAL)
    assert rate(neutral.stream(2.0, 10), 20.5, 22.0) == pytest.approx(10, rel=0.03)


def test_a_policer_adds_no_delay_and_a_shaper_a_full_queue() -> None:
    delays = {}
    for action in ("police", "shape"):
        box = box_with(Rule(VIDEO, action, down_mbps=1.5, burst_kb=3, buffer_ms=150))  # type: ignore[arg-type]
        line = Conversation(box).open().say_hello(APP)
        sent: dict[int, float] = {}
        worst = 0.0
        for _ in range(400):
            sent[line.received] = line.now
            line.down()
            line.now += 0.002
            for port, body in box.poll(line.now)[0]:
                if port == 0 and len(body) > 1000:
                    worst = max(worst, line.now - sent[segment(body).sequence])
        delays[action] = worst
    assert delays["police"] < 0.015
    assert 0.150 < delays["shape"] < 0.180


def test_the_name_is_found_in_a_hello_of_many_segments_out_of_order() -> None:
    box = box_with(Rule(VIDEO, "block"))
    line = Conversation(box).open()
    whole, start = HELLO[APP], line.sent
    for at in reversed(range(0, len(whole), 90)):
        line.up(payload=whole[at : at + 90], sequence=(start + at) % 2**32)
    assert box.snapshot()["treated"] == {"block": 1}
    line.down()
    assert [out for out in drain(box, 0.0) if out[1] == 0 and len(out[2]) > 100] == []


def test_block_is_silence_from_the_hello_on_and_a_new_connection_begins_afresh() -> None:
    box = box_with(Rule(VIDEO, "block"))
    line = Conversation(box).open()
    handshake = drain(box, 0.0)
    assert len(handshake) == 3
    line.say_hello(APP)
    line.up(payload=b"more")
    line.down()
    assert drain(box, line.now) == []
    line.isn = (line.isn + 77_777) % 2**32
    line.sent = (line.isn + 1) % 2**32
    line.open()
    assert len(drain(box, line.now)) == 3, "the same ports, another connection"
    line.say_hello(NEUTRAL)
    assert len(drain(box, line.now)) == 1


def test_reset_ends_both_sides_with_the_numbers_they_wait_for() -> None:
    box = box_with(Rule(VIDEO, "reset"))
    line = Conversation(box).open()
    drain(box, 0.0)
    expected_by_server, expected_by_client = line.sent, line.received
    line.say_hello(APP)
    out = {port: segment(body) for _, port, body in drain(box, line.now)}
    assert set(out) == {0, INTERNET}
    assert out[INTERNET].sequence == expected_by_server
    assert out[0].sequence == expected_by_client
    assert all(tcp.flags & RST for tcp in out.values())


def test_a_flow_that_was_reset_answers_later_packets_with_valid_resets() -> None:
    box = box_with(Rule(VIDEO, "reset"))
    line = Conversation(box).open().say_hello(APP)
    drain(box, 0.0)
    line.received += 3000  # data that was under way when the reset was sent
    line.up()
    [(_, port, body)] = drain(box, line.now)
    assert (port, segment(body).sequence) == (0, line.received)
    line.up(flags=RST)
    assert drain(box, line.now) == [], "a reset is never answered"


def test_the_first_rule_that_matches_applies() -> None:
    port443 = Match(port=((443, 443),))
    box = box_with(Rule(VIDEO, "police", down_mbps=1.0), Rule(port443, "police", down_mbps=4.0))
    app = Conversation(box).open().say_hello(APP).stream(3.0, 10)
    other = Conversation(box, now=30.0).open().say_hello(NEUTRAL).stream(3.0, 10)
    assert rate(app, 1.0, 3.0) == pytest.approx(1.0, rel=0.05)
    assert rate(other, 31.0, 33.0) == pytest.approx(4.0, rel=0.05)
    reverse = box_with(Rule(port443, "police", down_mbps=4.0), Rule(VIDEO, "police", down_mbps=1.0))
    app = Conversation(reverse).open().say_hello(APP).stream(3.0, 10)
    assert rate(app, 1.0, 3.0) == pytest.approx(4.0, rel=0.05)


def test_a_rule_keeps_to_its_direction() -> None:
    box = box_with(Rule(Match(direction="up", proto="tcp"), "drop", loss=1.0))
    line = Conversation(box)
    line.up(payload=b"x")
    assert drain(box, 0.0) == []
    line.down()
    assert len(drain(box, 0.0)) == 1


def test_established_only_needs_a_whole_handshake() -> None:
    rule = Rule(Match(sni=("*.googlevideo.com",), established_only=True), "block")
    box = box_with(rule)
    Conversation(box).say_hello(APP)
    assert box.snapshot()["treated"] == {}
    Conversation(box).open().say_hello(APP)
    assert box.snapshot()["treated"] == {"block": 1}
    box = box_with(Rule(Match(port=((443, 443),), established_only=True), "block"))
    Conversation(box).open()
    assert box.snapshot()["treated"] == {"block": 1}, "the handshake's last packet is the first to match"


def test_hours_follow_the_local_time_also_past_midnight() -> None:
    evening = Rule(VIDEO, "block", hours=(18, 23))
    for hour, blocked in ((17.99, False), (18.0, True), (22.99, True), (23.0, False)):
        box = box_with(evening, day_s=hour * 3600, start=50.0)
        Conversation(box, now=50.0).open().say_hello(APP)
        assert box.snapshot()["treated"] == ({"block": 1} if blocked else {}), hour
    night = Rule(VIDEO, "block", hours=(22, 2))
    assert [night.active_at(hour) for hour in (21.9, 22, 23.9, 0, 1.9, 2, 12)] == [
        False, True, True, True, True, False, False,
    ]  # fmt: skip


def test_a_running_flow_is_treated_when_its_hour_comes() -> None:
    box = box_with(Rule(VIDEO, "police", down_mbps=1.0, burst_kb=3, hours=(18, 23)), day_s=18 * 3600 - 3.0)
    arrived = Conversation(box).open().say_hello(APP).stream(6.0, 10)
    assert rate(arrived, 1.0, 2.9) == pytest.approx(10, rel=0.03)
    assert rate(arrived, 3.5, 5.9) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(("share", "treated"), [(0.0, 0), (0.05, 1), (0.5, 5), (1.0, 10)])
def test_share_is_of_the_subscribers(share: float, treated: int) -> None:
    box = box_with(Rule(VIDEO, "block", share=share), homes=10)
    for home in range(10):
        Conversation(box, home).open().say_hello(APP)
    assert box.snapshot()["treated"].get("block", 0) == treated  # type: ignore[attr-defined]


def test_after_kb_waits_for_the_bytes_of_each_flow() -> None:
    box = box_with(Rule(VIDEO, "police", down_mbps=1.0, burst_kb=3, after_kb=1000))
    for begin in (0.0, 100.0):
        arrived = Conversation(box, now=begin).open().say_hello(APP).stream(3.0, 10)
        fast = sum(len(body) for _, body in arrived if len(body) > 1000)
        assert fast == pytest.approx(1_030_000 + (3.0 - 0.82) * 1e6 / 8, rel=0.03)


def test_linger_holds_the_whole_line_and_ends() -> None:
    box = box_with(Rule(VIDEO, "police", down_mbps=1.0, burst_kb=3, linger_s=5.0), homes=2)
    Conversation(box).open().say_hello(APP).stream(1.0, 10)
    during = Conversation(box, now=2.0).open().say_hello(NEUTRAL).stream(2.0, 10)
    neighbour = Conversation(box, 1, now=2.0).open().say_hello(NEUTRAL).stream(2.0, 10)
    after = Conversation(box, now=20.0).open().say_hello(NEUTRAL).stream(2.0, 10)
    assert rate(during, 2.5, 4.0) == pytest.approx(1.0, rel=0.1)
    assert rate(neighbour, 2.5, 4.0) == pytest.approx(10, rel=0.03)
    assert rate(after, 20.5, 22.0) == pytest.approx(10, rel=0.03)


def test_state_is_kept_per_subscriber() -> None:
    box = box_with(Rule(VIDEO, "police", down_mbps=1.5, burst_kb=3), homes=2)
    lines = [Conversation(box, home).open().say_hello(APP) for home in (0, 1)]
    got = [0, 0]
    for step in range(3000):
        for line in lines:
            line.now = step * 0.001
            line.down()
        for port, body in box.poll(step * 0.001)[0]:
            if port >= 0:
                got[port] += len(body)
    for octets in got:
        assert octets * 8 / 3 / 1e6 == pytest.approx(1.5, rel=0.05)


def test_delay_and_drop_and_deprioritise() -> None:
    box = box_with(Rule(VIDEO, "delay", delay_ms=80))
    line = Conversation(box).open().say_hello(APP)
    drain(box, 0.0)
    line.now = 1.0
    line.down()
    [(when, _, _)] = drain(box, 1.0)
    assert when == pytest.approx(1.0 + 0.080 + 0.010, abs=0.001)

    box = box_with(Rule(VIDEO, "drop", loss=0.3))
    arrived = Conversation(box).open().say_hello(APP).stream(10.0, 10)
    assert sum(len(body) > 1000 for _, body in arrived) / (10e7 / 12000) == pytest.approx(0.7, abs=0.02)

    box = box_with(Rule(VIDEO, "deprioritise"), link=Link(down_mbps=8, rtt_ms=2))
    app, other = Conversation(box).open().say_hello(APP), Conversation(box).open().say_hello(NEUTRAL)
    got = {app.client_port: 0, other.client_port: 0}
    for step in range(3000):
        for line in (app, other):
            line.now = step * 0.002
            line.down()
        for port, body in box.poll(step * 0.002)[0]:
            if port == 0:
                got[struct.unpack("!H", body[22:24])[0]] += len(body)
    assert got[other.client_port] * 8 / 6 / 1e6 == pytest.approx(6.0, rel=0.05)
    assert got[app.client_port] * 8 / 6 / 1e6 == pytest.approx(2.0, rel=0.1)


def test_dscp_option_and_dns_rules_change_packets_correctly() -> None:
    box = box_with(Rule(Match(port=((443, 443),)), "dscp", dscp=8))
    Conversation(box).open()
    for _, _, body in drain(box, 0.0):
        assert body[1] >> 2 == 8
        assert checksum(body[:20]) == 0

    box = box_with(Rule(Match(dns=("*.googlevideo.com",)), "dns", answer="nxdomain"))
    for name, blocked in ((b"\3www\x0bgooglevideo\3com\0", True), (b"\3www\7example\3org\0", False)):
        question = b"\0\1\1\0\0\1\0\0\0\0\0\0" + name + b"\0\1\0\1"
        body = struct.pack("!HH", 8 + len(question), 0) + question
        box.from_subscriber(0, packet(HOMES[0], SERVER, (5353, 53), body, 17), 1.0)
        [(_, port, answer)] = drain(box, 1.0)
        assert port == (0 if blocked else INTERNET)
        if blocked:
            assert datagram(answer)[3] & 15 == 3


def test_strangers_are_not_carried() -> None:
    box = box_with()
    box.from_internet(packet(SERVER, socket.inet_aton("198.18.9.9"), (1, 2), bytes(16)), 0.0)
    box.from_subscriber(0, packet(HOMES[1], SERVER, (1, 2), bytes(16)), 0.0)
    box.from_subscriber(0, b"\x60" + bytes(60), 0.0)
    assert box.snapshot()["foreign"] == 3
    assert drain(box, 0.0) == []


def test_the_same_seed_gives_the_same_run() -> None:
    def run(seed: str) -> list[tuple[float, bytes]]:
        box = Middlebox(HOMES[:1], Link(down_mbps=8, loss=0.02, jitter_ms=3), (), CrossTraffic("onoff", 6.0), seed=seed)
        return Conversation(box).stream(3.0, 6)

    Conversation.ports = 50_000
    first = run("a")
    Conversation.ports = 50_000
    again = run("a")
    Conversation.ports = 50_000
    assert first == again
    assert first != run("b")


def test_lateness_is_reported() -> None:
    box = box_with()
    line = Conversation(box)
    for _ in range(100):
        line.down(100)
    box.poll(0.110)
    late = box.snapshot()["late_ms"]
    assert late["p99"] == pytest.approx(100, abs=2)  # type: ignore[index]


@settings(max_examples=150)
@given(st.lists(st.binary(min_size=20, max_size=120), max_size=20), st.sampled_from(["reset", "police", "dns", "dscp"]))
def test_no_packet_can_break_the_box(packets: list[bytes], action: str) -> None:
    extra = {"police": {"down_mbps": 1.0}, "dns": {"answer": "refused"}}.get(action, {})
    box = box_with(Rule(Match(), action, **extra))  # type: ignore[arg-type]
    for body in packets:
        box.from_internet(body, 0.0)
        for start in (b"\x45", b"\x46", b"\x60"):
            for proto in (b"\x06", b"\x11", b"\x01"):
                whole = start + body[1:9] + proto + body[10:12] + HOMES[0] + SERVER + body[20:]
                box.from_subscriber(0, whole, 0.0)
                box.from_internet(whole[:12] + SERVER + HOMES[0] + whole[20:], 0.0)
    drain(box, 0.0)


def parts(whole: bytes, size: int) -> list[bytes]:
    return [whole[at : at + size] for at in range(0, len(whole), size)]


def test_alter_changes_one_byte_of_a_share_of_the_packets_and_the_checksum_fits() -> None:
    rule = Rule(Match(sni=("*.googlevideo.com",), direction="down"), "alter", packets=0.25, after_kb=30)
    box = box_with(rule)
    app = Conversation(box).open().say_hello(APP)
    arrived = [body for _, body in app.stream(4.0, 10) if len(body) > 1000]
    wrong = [sum(byte != 0 for byte in segment(body).payload) for body in arrived]
    early = 30_000 // PAYLOAD
    assert not any(wrong[: early - 1]), "the handshake and the first kilobytes come through as they are"
    assert set(wrong) == {0, 1}, "one byte of a packet"
    assert sum(wrong) / len(wrong[early:]) == pytest.approx(0.25, abs=0.03)
    for body in arrived:  # the field stands in the sum itself: what is right gives nothing
        assert transport_checksum(body) == 0
    assert box.snapshot()["treated"] == {"alter": sum(wrong)}
    app.up(payload=bytes(100))
    [up] = [body for _, port, body in drain(box, app.now) if port == INTERNET and len(body) > 100]
    assert segment(up).payload == bytes(100), "the other direction is left alone"
    neutral = Conversation(box, now=20.0).open().say_hello(NEUTRAL)
    assert not any(any(segment(body).payload) for _, body in neutral.stream(2.0, 10))


def test_a_share_of_the_flows_is_drawn_by_their_addresses_and_ports() -> None:
    def treated(seed: str) -> list[bool]:
        box, found = box_with(Rule(VIDEO, "block", flows=0.5), seed=seed), []
        Conversation.ports = 40_000  # the same ports each time
        for number in range(400):
            before = box.snapshot()["treated"].get("block", 0)  # type: ignore[attr-defined]
            Conversation(box, now=number / 10).open().say_hello(APP)
            found.append(box.snapshot()["treated"].get("block", 0) > before)  # type: ignore[attr-defined]
        return found

    first = treated("a")
    assert sum(first) / 400 == pytest.approx(0.5, abs=0.08)
    assert treated("a") == first
    assert treated("b") != first


def test_a_flow_that_is_not_drawn_goes_on_to_the_next_rule() -> None:
    box = box_with(Rule(VIDEO, "block", flows=0.5), Rule(VIDEO, "reset"))
    for number in range(60):
        Conversation(box, now=number / 10).open().say_hello(APP)
    counts = box.snapshot()["treated"]
    assert counts["block"] + counts["reset"] == 60  # type: ignore[index]
    assert 15 < counts["block"] < 45  # type: ignore[index]


def test_pass_keeps_the_rules_behind_it_away() -> None:
    everything = Match()
    box = box_with(Rule(VIDEO, "pass"), Rule(everything, "shape", down_mbps=2.0, burst_kb=3))
    favoured = Conversation(box).open().say_hello(APP).stream(3.0, 10)
    other = Conversation(box, now=30.0).open().say_hello(NEUTRAL).stream(3.0, 10)
    assert rate(favoured, 1.0, 3.0) == pytest.approx(10, rel=0.03)
    assert rate(other, 31.0, 33.0) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("split", [True, False])
def test_an_engine_may_see_whole_hellos_only_or_split_ones_only(split: bool) -> None:
    rule = Rule(Match(sni=("*.googlevideo.com",), split=split), "block")
    for pieces in (1, 2):
        box = box_with(rule)
        line = Conversation(box).open()
        for piece in parts(HELLO[APP], -(-len(HELLO[APP]) // pieces)):
            line.up(payload=piece)
        assert box.snapshot()["treated"] == ({"block": 1} if split == (pieces == 2) else {}), pieces


def test_a_hello_that_is_sent_again_is_not_split() -> None:
    box = box_with(Rule(Match(sni=("*.googlevideo.com",), split=True), "block"))
    line = Conversation(box).open()
    start = line.sent
    line.up(payload=HELLO[APP], sequence=start)
    line.up(payload=HELLO[APP], sequence=start)
    assert box.snapshot()["treated"] == {}


def test_a_reset_only_in_the_middle_of_a_flow() -> None:
    box = box_with(Rule(VIDEO, "reset", after_kb=300))
    arrived = [body for _, body in Conversation(box).open().say_hello(APP).stream(2.0, 10)]
    whole = [body for body in arrived if len(body) > 1000]
    assert sum(len(segment(body).payload) for body in whole) == pytest.approx(300_000, abs=3 * PAYLOAD)
    assert segment(arrived[-1]).flags & RST

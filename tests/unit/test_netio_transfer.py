# SPDX-License-Identifier: EUPL-1.2
"""One segment against a peer that behaves in each of the ways a network can make it behave."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from probe.netio.dial import Dialer
from probe.netio.transfer import Transfers
from probe.protocol import sealed
from probe.protocol.steps import Calibrate, RunSegment, SegmentFacts, WireBytes
from probe.wire.messages import Endpoint

SEGMENT_S = 0.4
ALPN = ("h2", "http/1.1")
Behaviour = Callable[[ssl.SSLSocket], None]


class DataPort:
    """A TLS listener that accepts connections one after another; each meets the behaviour set for it."""

    def __init__(self, pem: Path, digest: str) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(pem)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.num_tickets = 0
        self.context.set_alpn_protocols(["h2"])
        self.names: list[str] = []
        self.context.sni_callback = lambda _sock, name, _context: self.names.append(name)  # type: ignore[func-returns-value]
        self.digest = digest
        self.hellos: list[dict[str, object]] = []
        self.alpn: list[str | None] = []
        self.behaviour: Behaviour = reset_at(SEGMENT_S)
        self.before_tls: Callable[[socket.socket], bool] = lambda _: True
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), plain:
                if not self.before_tls(plain):
                    continue
                with self.context.wrap_socket(plain, server_side=True) as sock:
                    self.alpn.append(sock.selected_alpn_protocol())
                    raw = b""
                    while len(raw) < 512:
                        got = sock.recv(512 - len(raw))
                        if not got:
                            raise ConnectionResetError
                        raw += got
                    self.hellos.append(json.loads(raw))
                    self.behaviour(sock)

    def close(self) -> None:
        self.listener.close()
        self._thread.join(5)

    def step(self, direction: str = "down", pace: float = 0.0) -> RunSegment:
        return RunSegment(
            pair=1,
            slot=0,
            endpoint=Endpoint(host=None, port=self.port),
            name="rr1---sn-4g5e6nzz.googlevideo.com",
            ticket="ab" * 16,
            certificate=self.digest,
            app="youtube",
            profile="youtube@1:0",
            direction=direction,  # type: ignore[arg-type]
            pace_mbps=pace,
            segment_s=SEGMENT_S,
            connect_timeout_s=0.5,
            tls_timeout_s=0.5,
        )


def hard_reset(sock: ssl.SSLSocket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.socket(fileno=sock.detach()).close()


def reset_at(seconds: float, chunk: int = 16_384, pause_s: float = 0.0) -> Behaviour:
    def behave(sock: ssl.SSLSocket) -> None:
        end = time.monotonic() + seconds
        sock.settimeout(0.05)
        while time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                sock.sendall(bytes(chunk))
            time.sleep(pause_s)
        hard_reset(sock)

    return behave


def read_until(seconds: float) -> Behaviour:
    def behave(sock: ssl.SSLSocket) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                if not sock.recv(1 << 16):
                    return
            except TimeoutError:
                break
        hard_reset(sock)

    return behave


def silent(seconds: float, end: Callable[[ssl.SSLSocket], None] = hard_reset) -> Behaviour:
    def behave(sock: ssl.SSLSocket) -> None:
        time.sleep(seconds)
        end(sock)

    return behave


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataPort]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "reflector")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    certificate = builder.sign(key, hashes.SHA256())
    pem = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    digest = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()
    made = DataPort(pem, digest)
    yield made
    made.close()


@pytest.fixture
def transfers(port: DataPort) -> Transfers:
    port.behaviour, port.before_tls = reset_at(SEGMENT_S), lambda _: True
    port.names.clear()
    port.hellos.clear()
    return Transfers(Dialer(), "127.0.0.1")


def test_down_reads_until_the_reset_and_says_what_it_saw(port: DataPort, transfers: Transfers) -> None:
    facts = transfers.run_segment(port.step(), ALPN)
    assert facts.hello_sent
    assert facts.failure is None
    assert facts.bytes > 1_000_000
    assert SEGMENT_S * 1000 <= facts.duration_ms < SEGMENT_S * 1000 + 300
    assert facts.connect_ms is not None
    assert facts.tls_ms is not None
    assert facts.rtt_min_ms is not None
    assert port.names == ["rr1---sn-4g5e6nzz.googlevideo.com"]
    assert port.alpn[-1] == "h2"
    assert port.hellos[-1]["address"] == "127.0.0.1"
    assert port.hellos[-1]["purpose"] == "segment"


@pytest.mark.parametrize(
    ("behaviour", "failure"),
    [
        (silent(0.1), "connection_reset"),
        (reset_at(SEGMENT_S / 2), "connection_reset"),
        (silent(0.1, lambda sock: sock.unwrap()), "end_of_stream"),
        (silent(SEGMENT_S + 0.01), None),
    ],
)
def test_an_end_before_its_time_is_a_failure_and_one_at_its_time_is_not(
    port: DataPort, transfers: Transfers, behaviour: Behaviour, failure: str | None
) -> None:
    port.behaviour = behaviour
    assert transfers.run_segment(port.step(), ALPN).failure == failure


def test_a_lost_reset_is_not_waited_for_once_the_peers_clock_is_over(port: DataPort, transfers: Transfers) -> None:
    def forget_to_reset(sock: ssl.SSLSocket) -> None:
        end = time.monotonic() + SEGMENT_S
        while time.monotonic() < end:
            sock.sendall(bytes(1000))
            time.sleep(0.02)
        with contextlib.suppress(OSError):
            sock.recv(1)

    port.behaviour = forget_to_reset
    facts = transfers.run_segment(port.step(), ALPN)
    assert facts.failure is None
    assert SEGMENT_S * 1000 <= facts.duration_ms < SEGMENT_S * 1000 + 500


def test_no_byte_at_all_is_stalled_after_the_time_out(port: DataPort, transfers: Transfers) -> None:
    def swallow(sock: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError):
            sock.recv(1)

    port.behaviour = swallow
    facts = transfers.run_segment(port.step(), ALPN)
    assert facts.failure == "stalled"
    assert facts.hello_sent
    assert facts.duration_ms >= (SEGMENT_S + 2) * 1000 - 50


def test_up_sends_until_the_peers_reset(port: DataPort, transfers: Transfers) -> None:
    port.behaviour = read_until(SEGMENT_S)
    facts = transfers.run_segment(port.step("up"), ALPN)
    assert facts.failure is None
    assert facts.bytes > 1_000_000
    assert facts.paced is False
    assert facts.congestion in {"cubic", "reno"}
    assert SEGMENT_S * 1000 <= facts.duration_ms < SEGMENT_S * 1000 + 300


@pytest.mark.serial
def test_up_is_paced_by_the_kernel_within_five_percent(port: DataPort, transfers: Transfers) -> None:
    arrived: list[int] = []

    def count(sock: ssl.SSLSocket) -> None:
        read_until(SEGMENT_S / 2)  # what is measured is the second half, as for a rate
        end = time.monotonic() + SEGMENT_S
        half = time.monotonic() + SEGMENT_S / 2
        moved = 0
        while (now := time.monotonic()) < end:
            sock.settimeout(end - now)
            with contextlib.suppress(TimeoutError):
                got = len(sock.recv(1 << 16))
                moved += got if time.monotonic() >= half else 0
        arrived.append(moved)
        hard_reset(sock)

    port.behaviour = count
    facts = transfers.run_segment(port.step("up", pace=40.0), ALPN)
    assert facts.paced is True
    assert arrived[-1] * 8 / (SEGMENT_S / 2) / 1e6 == pytest.approx(40, rel=0.1)


@pytest.mark.serial
def test_up_is_paced_by_sleeping_where_the_kernel_does_not(
    port: DataPort, transfers: Transfers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probe.netio.dial.SO_MAX_PACING_RATE", 9999)
    port.behaviour = read_until(SEGMENT_S)
    facts = transfers.run_segment(port.step("up", pace=20.0), ALPN)
    assert facts.paced is False
    assert facts.bytes * 8 / (facts.duration_ms / 1000) / 1e6 == pytest.approx(20, rel=0.1)


def test_up_against_a_reset_before_its_time(port: DataPort, transfers: Transfers) -> None:
    port.behaviour = read_until(SEGMENT_S / 3)
    assert transfers.run_segment(port.step("up"), ALPN).failure == "connection_reset"


def test_what_fails_before_the_hello_is_a_fact_too(port: DataPort, transfers: Transfers) -> None:
    refused = transfers.run_segment(replace(port.step(), endpoint=Endpoint(host=None, port=1)), ALPN)
    assert (refused.failure, refused.hello_sent, refused.connect_ms) == ("connection_refused", False, None)

    wrong = transfers.run_segment(replace(port.step(), certificate="0" * 64), ALPN)
    assert (wrong.failure, wrong.hello_sent) == ("tls_wrong_certificate", False)

    def rst(plain: socket.socket) -> bool:
        plain.recv(100)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    port.before_tls = rst
    torn = transfers.run_segment(port.step(), ALPN)
    assert (torn.failure, torn.hello_sent) == ("connection_reset", False)

    def mute(plain: socket.socket) -> bool:
        plain.settimeout(5)
        while plain.recv(4096):
            pass
        return False

    port.before_tls = mute
    start = time.monotonic()
    blackhole = transfers.run_segment(port.step(), ALPN)
    assert (blackhole.failure, blackhole.hello_sent) == ("tls_timeout", False)
    assert time.monotonic() - start < 1.5


def test_a_connect_time_out_is_named(transfers: Transfers, port: DataPort) -> None:
    # A listener whose queue is full answers no more handshakes.
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        step = replace(port.step(), endpoint=Endpoint(host=None, port=full.getsockname()[1]), connect_timeout_s=0.3)
        assert transfers.run_segment(step, ALPN).failure == "connect_timeout"


def test_an_address_that_does_not_answer_leaves_time_for_the_next_which_is_then_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as full, socket.create_server(("127.0.0.1", 0)) as good, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", sock.getsockname()) for sock in (full, good)]
        asked: list[object] = []

        def resolve(*arguments: object) -> list[object]:
            asked.append(arguments)
            return list(entries)

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        dialer = Dialer()
        for _ in range(2):
            with dialer.connect("reflector", 1, 0.6) as sock:
                assert sock.getpeername() == good.getsockname()
        assert len(asked) == 1


def test_both_segments_of_a_pair_and_the_bind_address(port: DataPort) -> None:
    transfers = Transfers(Dialer(bind="127.0.0.9"), "127.0.0.1")
    port.behaviour = reset_at(SEGMENT_S)
    assert transfers.run_segment(port.step(), ALPN).failure is None
    assert port.hellos[-1]["address"] == "127.0.0.9"


def test_household_traffic_is_the_counter_minus_our_own(port: DataPort) -> None:
    counts = iter([1_000_000, 1_000_000 + 7_000_000])
    transfers = Transfers(Dialer(), "127.0.0.1", counter=lambda: next(counts))
    port.behaviour = reset_at(SEGMENT_S, chunk=10_000, pause_s=0.01)
    facts = transfers.run_segment(port.step(), ALPN)
    assert facts.household_kb is not None
    assert facts.household_kb == pytest.approx(7000 - facts.bytes / 1000, rel=0.05)
    assert Transfers(Dialer(), "h").run_segment(port.step(), ALPN).household_kb is None


def calibration(port: DataPort, direction: str) -> Calibrate:
    return Calibrate(
        endpoint=Endpoint(host=None, port=port.port),
        name="desert-coral-sun-on.ambermoor.com",
        certificate=port.digest,
        session="cd" * 16,
        token="ef" * 32,
        direction=direction,  # type: ignore[arg-type]
        duration_s=0.6,
        most_mbps=20.0,
    )


@pytest.mark.serial
def test_calibration_finds_the_rate_of_either_direction(port: DataPort, transfers: Transfers) -> None:
    port.behaviour = reset_at(0.6, chunk=12_500, pause_s=0.01)  # a little under 10 Mbit/s
    down = transfers.calibrate(calibration(port, "down"), ALPN)
    assert down == pytest.approx(9.5, rel=0.2)
    assert port.hellos[-1]["purpose"] == "calibration"
    port.behaviour = read_until(0.8)
    up = transfers.calibrate(calibration(port, "up"), ALPN)
    assert up == pytest.approx(20, rel=0.15)


def test_a_calibration_that_breaks_off_says_nothing(port: DataPort, transfers: Transfers) -> None:
    port.behaviour = reset_at(0.1)
    assert transfers.calibrate(calibration(port, "down"), ALPN) is None
    port.behaviour = silent(0.05)
    assert transfers.calibrate(calibration(port, "up"), ALPN) is None
    assert transfers.calibrate(replace(calibration(port, "down"), endpoint=Endpoint(host=None, port=1)), ALPN) is None


def test_payload_up_is_not_compressible(port: DataPort, transfers: Transfers) -> None:
    import zlib

    got: list[bytes] = []

    def keep(sock: ssl.SSLSocket) -> None:
        got.append(sock.recv(16_384))
        read_until(SEGMENT_S)(sock)

    port.behaviour = keep
    transfers.run_segment(port.step("up"), ALPN)
    assert len(zlib.compress(got[0])) > len(got[0]) * 0.99
    assert os.urandom(4) != got[0][:4]


# -- carriers without TLS -----------------------------------------------------------------------------------------

FLIGHT, SHORT_ANSWER = b"\x13flight", b"answer"
SESSION_AT = slice(44, 76)


class PlainPort:
    """A listener without TLS that meets one connection with the given behaviour and keeps what it was sent."""

    def __init__(self, behave: Callable[[socket.socket], None]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.behave = behave
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        sock, _ = self.listener.accept()
        with sock, contextlib.suppress(OSError):
            sock.settimeout(5)
            self.behave(sock)

    def run(self, carrier: str, direction: str = "down", answer: bytes = SHORT_ANSWER) -> SegmentFacts:
        step = RunSegment(
            pair=1,
            slot=0,
            endpoint=Endpoint(host=None, port=self.listener.getsockname()[1]),
            name="video.example.net",
            ticket="ab" * 16,
            certificate="0" * 64,
            app="app",
            profile="app@1:0",
            direction=direction,  # type: ignore[arg-type]
            pace_mbps=0,
            segment_s=SEGMENT_S,
            carrier=carrier,  # type: ignore[arg-type]
            wire=WireBytes(flight=FLIGHT, answer=answer) if carrier == "stream" else None,
            connect_timeout_s=0.5,
            tls_timeout_s=0.3,
        )
        facts = Transfers(Dialer(), "127.0.0.1").run_segment(step, (), toy_hello)
        self.thread.join(10)
        self.listener.close()
        return facts


def toy_hello(name: str, session_id: bytes) -> bytes:
    """Not a real ClientHello: the peers of these tests look at the session id alone."""
    return bytes(44) + session_id + name.encode()


def taken(sock: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        piece = sock.recv(count - len(got))
        assert piece
        got += piece
    return got


def plain_reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


HELLO_BYTES = 76 + len("video.example.net")


@pytest.mark.parametrize(
    ("flight_of", "failure"),
    [
        (lambda sent: sealed.server_flight(bytes(32), os.urandom), "tls_failed"),  # of another session
        (lambda sent: b"\x15\x03\x03\x00\x02\x02\x28", "tls_failed"),  # an alert
        (lambda sent: b"HTTP/1.1 403 Forbidden\r\n\r\n", "tls_failed"),  # a block page
        (lambda sent: sealed.server_flight(sent, os.urandom)[:2000], "connection_reset"),  # cut
        (lambda sent: b"", "connection_reset"),
    ],
)
def test_another_answer_to_a_browser_shaped_hello_fails_as_tls_would(
    flight_of: Callable[[bytes], bytes], failure: str
) -> None:
    def behave(sock: socket.socket) -> None:
        sock.sendall(flight_of(taken(sock, HELLO_BYTES)[SESSION_AT]))

    facts = PlainPort(behave).run("hello")
    assert (facts.failure, facts.hello_sent, facts.tls_ms) == (failure, False, None)


def test_silence_after_a_browser_shaped_hello_is_a_time_out() -> None:
    def behave(sock: socket.socket) -> None:
        taken(sock, HELLO_BYTES)
        sock.recv(1)

    start = time.monotonic()
    assert PlainPort(behave).run("hello").failure == "tls_timeout"
    assert time.monotonic() - start < 1.5


def test_nothing_follows_a_browser_shaped_hello_before_the_servers_flight() -> None:
    early: list[bytes] = []

    def behave(sock: socket.socket) -> None:
        sent = taken(sock, HELLO_BYTES)[SESSION_AT]
        assert sent.startswith(bytes.fromhex("ab" * 16))
        sock.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            early.append(sock.recv(1))
        sock.settimeout(5)
        sock.sendall(sealed.server_flight(sent, os.urandom))
        early.append(sealed.hello_in_finish(taken(sock, sealed.CLIENT_FINISH_BYTES)))
        end = time.monotonic() + SEGMENT_S
        while time.monotonic() < end:
            sock.sendall(bytes(1000))
            time.sleep(0.01)
        plain_reset(sock)

    facts = PlainPort(behave).run("hello")
    assert (facts.failure, facts.hello_sent) == (None, True)
    assert facts.bytes > 10_000
    [hello] = early
    assert json.loads(hello)["ticket"] == "ab" * 16


def test_a_hello_needs_its_maker(transfers: Transfers, port: DataPort) -> None:
    with pytest.raises(ValueError, match="ClientHello"):
        transfers.run_segment(replace(port.step(), carrier="hello"), ALPN)


@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_streams_answer_is_waited_for_and_not_counted(direction: str) -> None:
    seen: list[float] = []

    def behave(sock: socket.socket) -> None:
        assert taken(sock, 1728).startswith(FLIGHT)
        sock.settimeout(0.15)
        with contextlib.suppress(TimeoutError):
            seen.append(len(sock.recv(1)))  # payload before the answer
        sock.settimeout(5)
        sock.sendall(SHORT_ANSWER)
        if direction == "down":
            sock.sendall(bytes(5000))
            time.sleep(SEGMENT_S)
        else:
            end = time.monotonic() + SEGMENT_S  # the reflector's clock starts with the first payload byte
            while time.monotonic() < end:
                sock.recv(1 << 16)
        plain_reset(sock)

    facts = PlainPort(behave).run("stream", direction)
    assert (facts.failure, facts.hello_sent, facts.tls_ms) == (None, True, None)
    assert seen == []
    assert facts.bytes == 5000 if direction == "down" else facts.bytes > 100_000
    assert facts.duration_ms == pytest.approx(1000 * (SEGMENT_S + 0.15), abs=200)


@pytest.mark.parametrize(
    ("end", "failure"),
    [
        (plain_reset, "connection_reset"),
        (lambda sock: sock.shutdown(socket.SHUT_WR), "end_of_stream"),
        (lambda sock: sock.recv(1), "stalled"),
    ],
)
def test_a_stream_without_its_whole_answer_is_a_failure(end: Callable[[socket.socket], object], failure: str) -> None:
    def behave(sock: socket.socket) -> None:
        taken(sock, 1728)
        sock.sendall(SHORT_ANSWER[:-1])
        time.sleep(0.05)
        end(sock)
        with contextlib.suppress(OSError):
            sock.recv(1)

    facts = PlainPort(behave).run("stream")
    assert (facts.failure, facts.hello_sent, facts.bytes) == (failure, True, 0)


def test_a_stream_without_an_answer_begins_at_once() -> None:
    def behave(sock: socket.socket) -> None:
        taken(sock, 1728)
        sock.sendall(bytes(7000))
        time.sleep(SEGMENT_S)
        plain_reset(sock)

    facts = PlainPort(behave).run("stream", answer=b"")
    assert (facts.failure, facts.bytes) == (None, 7000)

# SPDX-License-Identifier: EUPL-1.2
"""The probe's UDP socket: where it goes, where it comes from, what its errors are called."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from probe.netio.datagram import run_datagrams
from probe.netio.dial import Dialer
from probe.netio.transfer import Transfers
from probe.protocol.datagram import OPENING_BYTES, read_opening
from probe.protocol.datagram_flow import POOL_BYTES
from probe.protocol.steps import RunSegment, WireBytes
from probe.wire.messages import Endpoint

WIRE = WireBytes(flight=b"\x01\0\0\0" + bytes(144), head=b"\x04\0\0\0")
POOL = memoryview(bytes(range(256)) * (POOL_BYTES // 256))


class Listener:
    """Keeps what comes and answers nothing."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.heard: list[tuple[bytes, tuple[str, int]]] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            raw, peer = self.sock.recvfrom(2048)
            if raw == b"stop":
                return
            self.heard.append((raw, peer))

    def close(self) -> None:
        self.sock.sendto(b"stop", self.sock.getsockname())
        self._thread.join(5)
        self.sock.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.close()


def step(port: int, seconds: float = 0.6) -> RunSegment:
    return RunSegment(
        pair=1,
        slot=0,
        endpoint=Endpoint(host=None, port=port),
        name="wireguard",
        ticket="ab" * 16,
        certificate="0" * 64,
        app="wireguard",
        profile="wireguard@1:0",
        direction="down",
        pace_mbps=8.0,
        segment_s=0.4,
        carrier="datagram",
        wire=WIRE,
        connect_timeout_s=seconds,
    )


def test_the_flight_is_first_and_each_segment_has_a_port_of_its_own(listener: Listener) -> None:
    dialer = Dialer(bind="127.0.0.9")
    for _ in range(2):
        found = run_datagrams(dialer, "127.0.0.1", step(listener.port), POOL)
        assert (found.facts.failure, found.facts.hello_sent) == ("connect_timeout", True)
        assert found.wire_bytes == 3 * (len(WIRE.flight) + 28 + len(WIRE.head) + OPENING_BYTES + 28)
    peers = list(dict.fromkeys(peer for _, peer in listener.heard))
    assert [peer[0] for peer in peers] == ["127.0.0.9"] * 2
    for peer in peers:
        heard = [raw for raw, who in listener.heard if who == peer]
        assert heard[::2] == [WIRE.flight] * 3
        openings = [read_opening(raw) for raw in heard[1::2]]
        assert len(set(heard[1::2])) == 3  # a salt of its own each time
        for opening in openings:
            assert opening is not None
            assert opening.hello.address == "127.0.0.9"
            assert not opening.has_cookie


def test_errors_of_the_socket_are_facts(listener: Listener) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    refused = run_datagrams(Dialer(), "127.0.0.1", step(port), POOL).facts
    assert (refused.failure, refused.hello_sent) == ("connection_refused", True)
    nowhere = run_datagrams(Dialer(), "no-such-host.invalid", step(port), POOL).facts
    assert (nowhere.failure, nowhere.hello_sent) == ("dns_failed", False)
    unbound = run_datagrams(Dialer(bind="192.0.2.77"), "127.0.0.1", step(port), POOL).facts
    assert (unbound.failure, unbound.hello_sent) == ("unknown_failure", False)


def test_datagrams_go_where_tcp_went(monkeypatch: pytest.MonkeyPatch, listener: Listener) -> None:
    with socket.create_server(("127.0.0.1", 0)) as good:
        entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", good.getsockname()[1]))]
        asked = []

        def resolve(*arguments: object) -> list[object]:
            asked.append(arguments)
            return list(entries)

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        dialer = Dialer()
        dialer.connect("reflector", good.getsockname()[1], 1.0).close()
        with dialer.connect_datagrams("reflector", listener.port) as sock:
            assert sock.getpeername() == ("127.0.0.1", listener.port)
        assert len(asked) == 1


def test_household_traffic_is_the_counter_minus_our_own(listener: Listener) -> None:
    counts = iter([1_000_000, 1_000_000 + 9_000])
    transfers = Transfers(Dialer(), "127.0.0.1", counter=lambda: next(counts))
    facts = transfers.run_segment(step(listener.port, 0.1), ())
    own = len(WIRE.flight) + len(WIRE.head) + OPENING_BYTES + 2 * 28
    assert facts.household_kb == (9_000 - own) // 1000
    assert facts.cpu_limited is False


def test_an_arm_without_bytes_is_a_bug(listener: Listener) -> None:
    with pytest.raises(ValueError, match="needs the bytes of its arm"):
        run_datagrams(Dialer(), "127.0.0.1", replace(step(listener.port), wire=None), POOL)

# SPDX-License-Identifier: EUPL-1.2
"""ClientHello, kernel counters, accounts, journals, pool, logs: the reflector's small parts."""

from __future__ import annotations

import errno
import logging
import os
import random
import socket
import ssl
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.protocol.accounts import Limits
from probe.protocol.booking import Booking, Identity
from probe.reflector import account, clienthello, tcpinfo
from probe.reflector.account import Account
from probe.reflector.clienthello import ClientHello, NoClientHello, peek
from probe.reflector.keys import load_or_make_certificate, load_signer
from probe.reflector.listen import why_not_listening
from probe.reflector.logs import ScrubbingFormatter
from probe.reflector.pool import Pool, split_host, url_host
from probe.reflector.receipts import Journal, Receipts
from probe.reflector.renewal import DRAIN_AFTER_MS, DataContexts, Renewal, load_data_certificate
from probe.wire.messages import Endpoint, SessionRequest
from probe.wire.records import Origin

# -- ClientHello --------------------------------------------------------------------------------------------------


def client_hello(name: str | None, alpn: list[str]) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("name", ["video.example.net", None])
@pytest.mark.parametrize("alpn", [["h2", "http/1.1"], ["http/1.1"], []])
def test_reads_what_openssl_writes(name: str | None, alpn: list[str]) -> None:
    raw = client_hello(name, alpn)
    expected = ClientHello(name.encode() if name else None, tuple(p.encode() for p in alpn))
    assert peek(raw) == peek(raw + b"more") == expected
    for cut in range(len(raw)):
        wanted = peek(raw[:cut])
        assert isinstance(wanted, int)
        assert cut < wanted <= len(raw)


@given(size=st.integers(1, 400))
def test_reads_it_over_several_records(size: int) -> None:
    raw = client_hello("video.example.net", ["h2"])
    inner = raw[5:]
    pieces = [inner[i : i + size] for i in range(0, len(inner), size)]
    split = b"".join(b"\x16\x03\x01" + len(p).to_bytes(2, "big") + p for p in pieces)
    if len(split) <= clienthello.LONGEST:
        assert peek(split) == ClientHello(b"video.example.net", (b"h2",))


@given(raw=st.binary(max_size=300) | st.binary(max_size=100).map(lambda b: b"\x16\x03\x01\x00\x64\x01\x00\x00\x60" + b))
def test_other_bytes_never_surprise(raw: bytes) -> None:
    try:
        found = peek(raw)
    except NoClientHello:
        return
    assert isinstance(found, int | ClientHello)


@given(at=st.integers(0, 516), value=st.integers(0, 255))
def test_damaged_hellos_never_surprise(at: int, value: int) -> None:
    raw = bytearray(client_hello("video.example.net", ["h2"]))
    raw[at % len(raw)] = value
    with suppress(NoClientHello):
        found = peek(bytes(raw))
        assert isinstance(found, int | ClientHello)


def test_endless_hellos_are_refused() -> None:
    with pytest.raises(NoClientHello):
        peek(b"\x16\x03\x01\x40\x01" + b"\x01\x00\x40\x01")
    with pytest.raises(NoClientHello):
        peek(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff")


# -- kernel counters ----------------------------------------------------------------------------------------------


def test_only_returned_fields_are_decoded() -> None:
    raw = bytearray(248)
    struct.pack_into("=I", raw, 68, 12_500)
    struct.pack_into("=I", raw, 100, 7)
    struct.pack_into("=QQ", raw, 120, 5000, 600)
    struct.pack_into("=I", raw, 148, 9_000)
    struct.pack_into("=Q", raw, 176, 250_000)
    full = tcpinfo.decode(bytes(raw))
    assert full == tcpinfo.TcpInfo(5000, 600, 12.5, 9.0, 7, 250)
    assert tcpinfo.decode(bytes(raw[:160])) == tcpinfo.TcpInfo(5000, 600, 12.5, 9.0, 7, None)
    assert tcpinfo.decode(bytes(raw[:140])) == tcpinfo.TcpInfo(5000, 600, 12.5, None, 7, None)
    assert tcpinfo.decode(bytes(raw[:104])) is None
    struct.pack_into("=I", raw, 148, 2**32 - 1)
    unknown = tcpinfo.decode(bytes(raw))
    assert unknown is not None
    assert unknown.rtt_min_ms is None


def test_the_kernel_counts_what_was_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as a:
        b, _ = listener.accept()
        with b:
            before = tcpinfo.read(b)
            a.sendall(b"x" * 1000)
            assert tcpinfo.unread_bytes(b) == 1000
            after = tcpinfo.read(b)
    if before is None or after is None:
        pytest.skip("this kernel has no TCP_INFO with byte counters")
    assert after.bytes_received - before.bytes_received == 1000


class Counters:
    """Stands in for a socket: gives the counters that a test sets."""

    def __init__(self) -> None:
        self.info: tcpinfo.TcpInfo | None = tcpinfo.TcpInfo(100, 50, 10.0, 8.0, 1, 0)

    def set(self, acked: int, received: int = 50, rtt: float = 10.0, lost: int = 1) -> None:
        self.info = tcpinfo.TcpInfo(acked, received, rtt, 8.0, lost, 5)


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Counters:
    found = Counters()
    monkeypatch.setattr(account.tcpinfo, "read", lambda sock: found.info)
    return found


def test_bins_are_differences_at_their_true_times(counters: Counters) -> None:
    segment = Account(None, "down", now=5.0, started_ms=1, congestion="cubic", paced=True)  # type: ignore[arg-type]
    for at, acked, rtt in ((5.1, 600, 10.0), (5.2337, 600, 12.0), (5.3, 1600, 30.0)):
        counters.set(acked, rtt=rtt)
        segment.read(at)
    counters.set(1700, lost=4)
    counted = segment.close("complete", 5.4, saturated=False)
    assert counted.bins_ms == (100, 234, 300, 400)
    assert counted.bins_bytes == (500, 0, 1000, 100)
    assert (counted.bytes, counted.duration_ms, counted.retransmits, counted.rwnd_limited_ms) == (1600, 400, 3, 5)
    assert (counted.rtt_ms, counted.rtt_min_ms, counted.congestion, counted.paced) == (11.0, 8.0, "cubic", True)


def test_a_reading_at_the_same_millisecond_adds_to_the_bin(counters: Counters) -> None:
    segment = Account(None, "down", now=5.0, started_ms=1)  # type: ignore[arg-type]
    counters.set(600)
    segment.read(5.1)
    counters.set(650)
    counted = segment.close("complete", 5.1001, saturated=True)
    assert (counted.bins_ms, counted.bins_bytes, counted.saturated) == ((100,), (550,), True)


def test_up_counts_from_the_hello_and_restarts_its_clock(counters: Counters) -> None:
    segment = Account(None, "up", now=5.0, started_ms=1, baseline=40)  # type: ignore[arg-type]
    counters.set(0, received=40)
    segment.read(5.1)
    segment.restart(5.15, 9)
    counters.set(0, received=340)
    counted = segment.close("complete", 5.25, saturated=False)
    assert (counted.bins_ms, counted.bins_bytes, counted.started_ms) == ((100,), (300,), 9)
    assert (counted.rtt_ms, counted.retransmits, counted.rwnd_limited_ms) == (None, None, None)


def test_a_socket_that_is_gone_keeps_its_last_reading(counters: Counters) -> None:
    segment = Account(None, "down", now=5.0, started_ms=1)  # type: ignore[arg-type]
    counters.set(600)
    segment.read(5.1)
    counters.info = None
    counted = segment.close("reset", 5.2, saturated=False)
    assert (counted.bytes, counted.bins_ms, counted.end) == (500, (100,), "reset")


# -- journals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [b"", b"x", b'{"half', b"y" * 200_000])
def test_a_torn_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "started.jsonl"
    whole = b"one\n" + b"z" * 70_000 + b"\n"
    path.write_bytes(whole + torn)
    journal = Journal(path)
    assert path.read_bytes() == whole
    journal.append(b"three\n")
    assert path.read_bytes() == whole + b"three\n"
    assert journal.size == len(whole) + 6
    journal.close()


def test_a_journal_with_nothing_whole_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "started.jsonl"
    path.write_bytes(b"q" * 100_000)
    journal = Journal(path)
    assert path.read_bytes() == b""
    journal.close()
    assert path.stat().st_mode & 0o777 in {0o600, 0o644}


def test_a_failed_write_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "started.jsonl"
    journal = Journal(path)
    journal.append(b"one\n")
    real = os.write
    calls: list[int] = []

    def failing(file: int, data: Any) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data[:3])

    monkeypatch.setattr(os, "write", failing)
    with pytest.raises(OSError, match="No space"):
        journal.append(b"second line\n")
    monkeypatch.undo()
    assert path.read_bytes() == b"one\n"
    journal.append(b"third\n")
    assert path.read_bytes() == b"one\nthird\n"
    journal.close()


def test_what_was_appended_is_flushed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: (flushed.append(os.fstat(file).st_size), real(file)))
    journal = Journal(tmp_path / "started.jsonl")
    journal.sync()
    journal.append(b"one\n")
    journal.sync()
    journal.sync()
    journal.append(b"two\n")
    journal.put_aside()
    journal.sync()
    assert flushed == [4, 8]
    journal.append(b"three\n")
    assert [(path.name, size) for path, size in journal.files.items()] == [
        ("started-000001.jsonl", 8),
        ("started.jsonl", 6),
    ]
    assert journal.bytes_kept == 14
    journal.close()
    again = Journal(tmp_path / "started.jsonl")
    assert again.files == journal.files
    assert again.next_aside().name == "started-000002.jsonl"
    again.close()


def test_a_journal_that_cannot_be_put_aside_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "started.jsonl")
    journal.append(b"one\n")

    def failing(*_: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(OSError, match="Too many"):
        journal.put_aside()
    monkeypatch.undo()
    journal.append(b"two\n")
    assert (tmp_path / "started.jsonl").read_bytes() == b"one\ntwo\n"
    assert list(journal.files) == [tmp_path / "started.jsonl"]
    journal.close()


# -- renewal ------------------------------------------------------------------------------------------------------


def test_a_reflector_that_is_never_empty_closes_its_door_for_a_new_certificate(tmp_path: Path) -> None:
    rng, now = random.Random(1), 1_800_000_000_000
    signer, old = load_signer(tmp_path / "key"), load_data_certificate(tmp_path)
    booking = Booking(
        identity=Identity(key_id=signer.key_id, data_certificate=old.digest),
        limits=Limits(),
        random_bytes=rng.randbytes,
    )
    receipts, contexts = Receipts(tmp_path, signer), DataContexts(tmp_path)
    renewal = Renewal(
        state=tmp_path,
        booking=booking,
        lock=threading.Lock(),
        receipts=receipts,
        contexts=contexts,
        control_context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        health={},
    )
    wish = SessionRequest(v=1, probe=signer.key_id, nettest="x", pairs=1, segment_s=1, pace_mbps=1)
    booking.open(wish, prefix="p", origin=Origin(), endpoints=(Endpoint(host=None, port=1),), now_ms=now)
    (tmp_path / "data.pem").unlink()
    renewal.reload(now)
    new = load_data_certificate(tmp_path)
    assert renewal.tick(now + DRAIN_AFTER_MS - 1) is None
    assert booking.identity.data_certificate == old.digest
    refusal = renewal.tick(now + DRAIN_AFTER_MS)
    assert refusal is not None
    assert (refusal.status, refusal.problem.error) == (503, "busy")
    renewal.reload(now + DRAIN_AFTER_MS)  # asked again, it does not wait anew
    assert renewal.tick(now + DRAIN_AFTER_MS) is not None
    before = contexts.find((b"h2",))
    booking.stop(now + DRAIN_AFTER_MS)
    assert renewal.tick(now + DRAIN_AFTER_MS + 1) is None
    assert booking.identity.data_certificate == new.digest != old.digest
    assert contexts.find((b"h2",)) is not before
    receipts.close()


# -- the rest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("a.example:8443", ("a.example", 8443)),
        ("127.0.0.1", ("127.0.0.1", 443)),
        ("[::1]:8443", ("::1", 8443)),
        ("[::1]", ("::1", 443)),
        ("", ("", 443)),
        ("a:x", ("a", 0)),
        ("a:999999", ("a", 0)),
    ],
)
def test_host_headers(header: str, found: tuple[str, int]) -> None:
    assert split_host(header) == found


def test_pool_as_seen_from() -> None:
    pool = Pool(("192.0.2.1", "2001:db8::1", "192.0.2.2", "0.0.0.0", "2001:db8::2"), 8443, 8444)

    def hosts(header: str, arrived: str) -> list[str | None]:
        found = pool.seen_from(host_header=header, local_address=arrived)
        assert {endpoint.port for endpoint in found} == {8444}
        return [endpoint.host for endpoint in found]

    assert hosts("192.0.2.1:8443", "192.0.2.1") == ["192.0.2.1", "192.0.2.2", None]
    assert hosts("192.0.2.1:8443", "::ffff:192.0.2.1") == ["192.0.2.1", "192.0.2.2", None]
    assert hosts("[2001:DB8:0::1]:8443", "2001:db8::1") == ["2001:db8::1", "2001:db8::2"]
    for header, arrived in (
        ("192.0.2.9:8443", "192.0.2.1"),  # another address: something in front of us translates
        ("192.0.2.2:8443", "192.0.2.1"),
        ("192.0.2.1:8443", "10.0.0.1"),
        ("192.0.2.1:443", "192.0.2.1"),
        ("reflector.example:8443", "192.0.2.1"),  # a name for an address that is not the internet's
    ):
        assert hosts(header, arrived) == [None]


def test_a_name_for_an_address_of_the_internet_gets_the_pool() -> None:
    pool = Pool(("9.9.9.9", "149.112.112.112", "2620:fe::fe"), 443, 8444)
    found = pool.seen_from(host_header="reflector.example", local_address="9.9.9.9")
    assert [endpoint.host for endpoint in found] == ["9.9.9.9", "149.112.112.112"]
    found = pool.seen_from(host_header="reflector.example", local_address="2620:fe::fe")
    assert [endpoint.host for endpoint in found] == ["2620:fe::fe"]
    private = Pool(("10.0.0.5",), 443, 8444)
    assert private.seen_from(host_header="reflector.example", local_address="10.0.0.5")[0].host is None


def test_urls() -> None:
    assert [url_host([h]) for h in ("0.0.0.0", "::", "::1", "a.example")] == [
        "127.0.0.1",
        "[::1]",
        "[::1]",
        "a.example",
    ]


def test_logs_have_no_address() -> None:
    formatter = ScrubbingFormatter("%(message)s")
    try:
        raise OSError("cannot reach 192.0.2.1")
    except OSError:
        import sys

        record = logging.LogRecord("x", 40, "f", 1, "peer %s", ("2001:db8::7",), sys.exc_info())
    text = formatter.format(record)
    assert "192.0.2.1" not in text
    assert "2001" not in text
    assert "OSError" in text


def test_listening_errors_say_what_to_do() -> None:
    assert "above 1023" in why_not_listening("h", 443, PermissionError(errno.EACCES, "x"))
    assert "taken" in why_not_listening("h", 443, OSError(errno.EADDRINUSE, "x"))
    assert "not an address" in why_not_listening("h", 443, socket.gaierror(1, "x"))
    assert "odd" in why_not_listening("h", 443, OSError(errno.EINVAL, "odd"))


def test_certificates_are_equal_in_size_kept_and_private(tmp_path: Path) -> None:
    made = load_or_make_certificate(tmp_path / "data.pem", "data.invalid")
    assert load_or_make_certificate(tmp_path / "data.pem", "data.invalid") == made
    assert (tmp_path / "data.pem").stat().st_mode & 0o777 == 0o600
    (tmp_path / "bad.pem").write_text((tmp_path / "data.pem").read_text().partition("-----BEGIN PRIVATE")[0])
    with pytest.raises(ValueError, match="move it away"):
        load_or_make_certificate(tmp_path / "bad.pem", "x")


def test_default_limits_leave_room_for_neighbours() -> None:
    limits = Limits()
    assert limits.sessions_per_prefix >= 32
    assert limits.sessions > limits.sessions_per_prefix

# SPDX-License-Identifier: EUPL-1.2
"""Browser-shaped ClientHellos: servers take them, fingerprints are the browsers' own, names change nothing else."""

from __future__ import annotations

import hashlib
import ssl
import subprocess
from collections.abc import Callable
from random import Random

import pytest

from probe.profiles.browser import client_hello, hello_message, shapes
from probe.profiles.model import every, load, load_neutral
from probe.profiles.twins import twins
from probe.reflector.clienthello import ClientHello, peek

ALPN = ("h2", "http/1.1")
JA4 = {
    "chrome": "t13d1516h2_8daaf6152771_d8a2da3f94cd",  # Chrome 133 and later
    "firefox": "t13d1717h2_5b57614c22b0_3cbfd9057e0d",  # Firefox 135 and later
}
"""As fingerprint collections publish them."""


def hello(shape: str, name: str = "video.example.org", seed: int = 1, alpn: tuple[str, ...] = ALPN) -> bytes:
    draw: Callable[[int], bytes] = Random(seed).randbytes
    return client_hello(shape, name, alpn=alpn, session_id=bytes(range(32)), random_bytes=draw)


def extensions(raw: bytes) -> list[tuple[int, bytes]]:
    """Of a ClientHello in one record, in order."""
    at = 5 + 4 + 2 + 32
    at += 1 + raw[at]
    at += 2 + int.from_bytes(raw[at : at + 2], "big")
    at += 1 + raw[at] + 2
    found = []
    while at < len(raw):
        kind, size = int.from_bytes(raw[at : at + 2], "big"), int.from_bytes(raw[at + 2 : at + 4], "big")
        found.append((kind, raw[at + 4 : at + 4 + size]))
        at += 4 + size
    assert at == len(raw)
    return found


def ciphers(raw: bytes) -> list[int]:
    at = 5 + 4 + 2 + 32
    at += 1 + raw[at]
    size = int.from_bytes(raw[at : at + 2], "big")
    return [int.from_bytes(raw[i : i + 2], "big") for i in range(at + 2, at + 2 + size, 2)]


def is_grease(value: int) -> bool:
    return value & 0x0F0F == 0x0A0A and value >> 8 == value & 0xFF


def ja4(raw: bytes) -> str:
    """FoxIO's JA4, of a hello over TCP."""
    suites = [f"{value:04x}" for value in ciphers(raw) if not is_grease(value)]
    kinds = [(kind, body) for kind, body in extensions(raw) if not is_grease(kind)]
    rest = sorted(f"{kind:04x}" for kind, _ in kinds if kind not in {0, 16})
    algorithms = dict(kinds)[13][2:].hex(",", 2)
    alpn = dict(kinds)[16][3 : 3 + dict(kinds)[16][2]].decode()
    head = f"t13d{len(suites):02d}{len(kinds):02d}{alpn[0]}{alpn[-1]}"
    hashes = (",".join(sorted(suites)), ",".join(rest) + "_" + algorithms)
    return "_".join([head, *(hashlib.sha256(text.encode()).hexdigest()[:12] for text in hashes)])


def ja3(raw: bytes) -> str:
    """Salesforce's JA3 without version, groups and formats: the orders that it depends on."""
    kinds = [kind for kind, _ in extensions(raw) if not is_grease(kind)]
    return f"{[value for value in ciphers(raw) if not is_grease(value)]} {kinds}"


@pytest.mark.parametrize("shape", sorted(JA4))
def test_the_fingerprint_is_the_browsers(shape: str) -> None:
    assert ja4(hello(shape)) == JA4[shape]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    home = tmp_path_factory.mktemp("tls")
    key, certificate = home / "key.pem", home / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=reflector"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h3", *ALPN])
    return context


@pytest.mark.parametrize("shape", sorted(shapes()))
def test_a_real_server_answers_with_a_server_hello(shape: str, server: ssl.SSLContext) -> None:
    for seed in range(20):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        connection = server.wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(hello(shape, seed=seed))
        with pytest.raises(ssl.SSLWantReadError):
            connection.do_handshake()
        answer = outgoing.read()
        assert (answer[:2], answer[5]) == (b"\x16\x03", 2)
        assert b"\x00\x2b\x00\x02\x03\x04" in answer  # supported_versions: TLS 1.3
        assert b"reflector" not in answer  # encrypted already: the key share was taken


@pytest.mark.parametrize("shape", sorted(shapes()))
def test_names_of_one_length_give_hellos_that_differ_in_the_name_alone(shape: str) -> None:
    name = "rr1---sn-4g5e6nzz.googlevideo.com"
    (twin,) = twins(name, load_neutral(), Random(3))
    mine, other = hello(shape, name), hello(shape, twin)
    assert mine != other
    assert mine.replace(name.encode(), twin.encode()) == other
    drawn = [hello(shape, name, seed=seed) for seed in range(60)]
    assert len({ja3(raw) for raw in drawn}) == len({len(raw) for raw in drawn}) == 1
    assert len({raw[11:43] for raw in drawn}) == 60


@pytest.mark.parametrize("shape", sorted(shapes()))
def test_what_is_said_can_be_read(shape: str) -> None:
    raw = hello(shape, alpn=("h3",))
    found = peek(raw)
    assert isinstance(found, ClientHello)
    assert (found.server_name, found.protocols) == (b"video.example.org", (b"h3",))
    assert raw[44 : 44 + 32] == bytes(range(32))
    assert len({kind for kind, _ in extensions(raw)}) == len(extensions(raw))


def test_grease_is_drawn_and_never_stands_twice() -> None:
    seen = set()
    for seed in range(300):
        drawn = [kind for kind, _ in extensions(hello("chrome", seed=seed)) if is_grease(kind)]
        assert len(set(drawn)) == 2
        seen.update(drawn)
    assert len(seen) == 16
    assert not [kind for kind, _ in extensions(hello("firefox")) if is_grease(kind)]


@pytest.mark.parametrize("seed", range(6))
def test_keys_are_keys(seed: int) -> None:
    shares = dict(extensions(hello("firefox", seed=seed)))[0x33]
    groups, at = {}, 2
    while at < len(shares):
        group, size = int.from_bytes(shares[at : at + 2], "big"), int.from_bytes(shares[at + 2 : at + 4], "big")
        groups[group] = shares[at + 4 : at + 4 + size]
        at += 4 + size
    assert {group: len(key) for group, key in groups.items()} == {0x11EC: 1216, 0x1D: 32, 0x17: 65}
    assert max(groups[0x1D][31], groups[0x11EC][-1]) < 128  # RFC 7748, section 5: the highest bit says nothing
    packed = int.from_bytes(groups[0x11EC][:1152], "little")
    assert all((packed >> 12 * place) & 0xFFF < 3329 for place in range(768))  # FIPS 203, section 7.2
    prime = 2**256 - 2**224 + 2**192 + 2**96 - 1
    x, y = int.from_bytes(groups[0x17][1:33], "big"), int.from_bytes(groups[0x17][33:], "big")
    b = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
    assert (groups[0x17][0], (y * y - x**3 + 3 * x - b) % prime) == (4, 0)


def test_wrong_uses_are_bugs_that_speak() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        client_hello("chrome", "a.example.org", alpn=ALPN, session_id=b"", random_bytes=Random(1).randbytes)
    with pytest.raises(KeyError):
        hello_message("lynx", "a.example.org", alpn=ALPN, session_id=b"", random_bytes=Random(1).randbytes)


def test_every_shape_that_profiles_name_is_there_and_used() -> None:
    assert {load(app).shape for app in every()} - {None} == set(shapes())

# SPDX-License-Identifier: EUPL-1.2
"""Target: the ClientHello as the reflector, the emulated operator and OpenSSL see it.

Three readers that know nothing of each other. Where OpenSSL takes a hello's name, the others must not see another one:
a session must not be accounted under a name that TLS did not see. Spec: spec/protocol.md, "Data connection".
"""

from __future__ import annotations

import contextlib
import ssl
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from fuzz_registry import target

from lab.classify import Incomplete, client_hello, server_name
from probe.reflector.clienthello import LONGEST, ClientHello, NoClientHello, peek


@cache
def server() -> ssl.SSLContext:
    """A server that tells which name it was asked for; its certificate is never looked at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder, "key"), Path(folder, "certificate")
        argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        argv += ["-subj", "/CN=fuzz.example", "-keyout", str(key), "-out", str(certificate), "-days", "2"]
        subprocess.run(argv, check=True, capture_output=True)
        context.load_cert_chain(certificate, key)
    return context


def name_by_openssl(stream: bytes) -> str | None:
    """The server name that OpenSSL reads; None where there is none or it refuses the hello."""
    seen: list[str | None] = []

    def asked(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> int:
        seen.append(name)
        return ssl.ALERT_DESCRIPTION_USER_CANCELLED  # enough was seen: no handshake is computed

    context = server()
    context.sni_callback = asked
    incoming = ssl.MemoryBIO()
    incoming.write(stream)
    with contextlib.suppress(ssl.SSLError, OSError):
        context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True).do_handshake()
    return seen[0] if seen else None


def hello(name: str | None, *protocols: str, versions: tuple[ssl.TLSVersion, ssl.TLSVersion] | None = None) -> bytes:
    """What OpenSSL's client says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(list(protocols))
    if versions:
        context.minimum_version, context.maximum_version = versions
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def split(stream: bytes, *cuts: int) -> bytes:
    """The same handshake message over several records."""
    head, body = stream[:3], stream[5:]
    ends = [*cuts, len(body)]
    starts = [0, *cuts]
    return b"".join(head + (b - a).to_bytes(2, "big") + body[a:b] for a, b in zip(starts, ends, strict=True))


def hellos() -> list[bytes]:
    """Versions, protocols, long and no names, one message in several records, followed by more."""
    new, old = ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2
    plain = hello("rr1---sn-4g5e6nzz.googlevideo.com", "h2", "http/1.1", versions=(new, new))
    return [
        plain,
        hello("media.harbourlight.org", "http/1.1"),
        hello("a.example", versions=(old, old)),
        hello(None),
        hello(".".join(["a" * 60] * 4), "h3"),
        split(plain, 1, 3, 40, 100),
        plain + b"\x14\x03\x03\x00\x01\x01",
        plain[:200],
        b"\x16\x03\x01\x00\x00",
    ]


@target(seeds=hellos, examples=120)
def fuzz_clienthello(data: bytes) -> None:
    """`peek` never fails otherwise than with NoClientHello, asks for more only beyond what it has, says the same
    however the bytes arrive, and agrees with OpenSSL and with the emulated operator."""
    try:
        seen: ClientHello | int | None = peek(data)
    except NoClientHello:
        seen = None
    if isinstance(seen, int):
        assert len(data) < seen <= LONGEST
    for cut in {len(data) // 3, len(data) - 1, 5} & set(range(len(data))):
        try:
            early = peek(data[:cut])
        except NoClientHello:
            assert seen is None, "refused early, taken later"
            continue
        assert early == seen or (isinstance(early, int) and early > cut)
    told = name_by_openssl(data)
    if isinstance(seen, ClientHello):
        _agree(data, seen, told)
    else:
        assert told is None, f"TLS takes this hello for {told!r} and the reflector does not"


def _agree(data: bytes, seen: ClientHello, told: str | None) -> None:
    ours = None if seen.server_name is None else seen.server_name.decode("ascii", "replace")
    if told is not None:
        assert ours == told
    try:
        operators = server_name(client_hello(data))
    except (Incomplete, ValueError):
        return
    if told is not None:
        assert operators == told.lower().rstrip(".")

# SPDX-License-Identifier: EUPL-1.2
"""How large a TLS handshake with a reflector is under each name: `python -m lab.flight HOST PORT BIND|-`.

One JSON line on stdin, `{"names": [[name, [alpn, ...]], ...], "times": N}`; one on stdout, for each name a list of
`[hello bytes, server flight bytes, data segments both ways]`. A name whose handshake weighs more than another's
would be a difference that no operator made. spec/lab.md section 6; RFC 8446 section 2; tcp(7), TCP_INFO.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import sys
from collections.abc import Sequence

TIMEOUT_S = 5.0
_INFO_BYTES = 160  # up to tcpi_data_segs_out, Linux 4.6


def weigh(address: tuple[str, int], bind: str | None, name: str, alpn: Sequence[str]) -> list[int] | None:
    """Bytes and segments of one handshake as the product's probe makes it; None where it failed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only sizes matter here
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    hello = flight = 0
    try:
        with socket.create_connection(address, TIMEOUT_S, (bind, 0) if bind else None) as made:
            while True:
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    sent = outgoing.read()
                    hello += len(sent)
                    made.sendall(sent)
                    came = made.recv(65536)
                    if not came:
                        return None
                    flight += len(came)
                    incoming.write(came)
                else:
                    return [hello, flight, _segments(made)]
    except OSError:
        return None


def _segments(made: socket.socket) -> int:
    """Data segments sent and received so far; the last flight is not sent yet."""
    raw = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    return sum(struct.unpack_from("=II", raw, 152)) if len(raw) >= _INFO_BYTES else 0


def main() -> None:
    """Weigh every name so many times, in turn, so that a drift meets all of them."""
    host, port, bind = sys.argv[1:]
    asked = json.loads(sys.stdin.readline())
    found: list[list[list[int]]] = [[] for _ in asked["names"]]
    for _ in range(asked["times"]):
        for index, (name, alpn) in enumerate(asked["names"]):
            weight = weigh((host, int(port)), None if bind == "-" else bind, name, alpn)
            if weight is not None:
                found[index].append(weight)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

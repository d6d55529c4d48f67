# SPDX-License-Identifier: EUPL-1.2
"""A small home router that speaks UPnP: SSDP, a description, two counters. Written apart from the probe's client.

python igd_server.py ADDRESS DEVICE      serves in this network namespace until it is killed, counting DEVICE
"""

from __future__ import annotations

import contextlib
import http.server
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

SERVICE = "urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1"
DESCRIPTION = """<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor></specVersion>
<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><friendlyName>box</friendlyName>
<serviceList><service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType>
<controlURL>/ctl/L3F</controlURL></service></serviceList>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><serviceList>
<service><serviceType>{service}</serviceType><serviceId>urn:upnp-org:serviceId:WANCommonIFC1</serviceId>
<controlURL>{control}</controlURL><eventSubURL>/evt</eventSubURL><SCPDURL>/WANCfg.xml</SCPDURL></service>
</serviceList></device></deviceList></device></root>
"""
ANSWER = """<?xml version="1.0"?>
<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"
 s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>
<u:{action}Response xmlns:u="{service}"><New{what}>{value}</New{what}></u:{action}Response></s:Body></s:Envelope>
"""


class Router:
    """Serves one address. `counters()` gives bytes sent and received; they wrap at 32 bits as the standard's do."""

    def __init__(
        self,
        address: str,
        counters: Callable[[], tuple[int, int]],
        *,
        group: tuple[str, int] | None = None,
        control: str = "/ctl/CmnIfCfg",
        description: str = DESCRIPTION,
        location: str | None = None,
        wraps: bool = True,
    ) -> None:
        self.asked: list[str] = []
        router = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                router.asked.append(f"GET {self.path}")
                self._say(description.format(service=SERVICE, control=control))

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                action = re.fullmatch(
                    rf'"{re.escape(SERVICE)}#GetTotalBytes(Sent|Received)"', self.headers["SOAPAction"]
                )
                router.asked.append(f"POST {self.path}")
                if action is None or self.path != "/ctl/CmnIfCfg":
                    self.send_error(500)
                    return
                value = counters()[action[1] == "Received"]
                what = f"TotalBytes{action[1]}"
                value = value % 2**32 if wraps else value
                self._say(ANSWER.format(action=f"Get{what}", service=SERVICE, what=what, value=value))

            def _say(self, text: str) -> None:
                body = text.encode()
                self.send_response(200)
                self.send_header("Content-Type", 'text/xml; charset="utf-8"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer((address, 0), Handler)
        self.port = self._http.server_address[1]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if group is None:
            self._udp.bind((address, 0))
        else:
            self._udp.bind(group)
            request = struct.pack("4s4s", socket.inet_aton(group[0]), socket.inet_aton(address))
            self._udp.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        self.udp_address = self._udp.getsockname()
        self._location = location or f"http://{address}:{self.port}/rootDesc.xml"
        # Answers leave from our own address, also where the questions come to a group's.
        self._answers = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._answers.bind((address, 0))
        for serve in (self._http.serve_forever, self._answer):
            threading.Thread(target=serve, daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                question, who = self._udp.recvfrom(2048)
            except OSError:
                return
            self.asked.append("SSDP")
            if question.startswith(b"M-SEARCH * HTTP/1.1\r\n") and b'MAN: "ssdp:discover"' in question:
                target = question.split(b"ST: ")[1].split(b"\r\n")[0].decode()
                answer = f"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: {target}\r\nEXT:\r\n"
                answer += f"LOCATION: {self._location}\r\nSERVER: test UPnP/1.1\r\nUSN: uuid:1::{target}\r\n\r\n"
                with contextlib.suppress(OSError):
                    self._answers.sendto(answer.encode(), who)

    def close(self) -> None:
        """Stop serving."""
        self._http.shutdown()
        self._http.server_close()
        self._udp.close()
        self._answers.close()


def device_counters(device: str) -> tuple[int, int]:
    """Bytes that left and reached an interface of this namespace."""
    with open("/proc/self/net/dev", encoding="ascii") as table:
        for row in table:
            name, colon, numbers = row.partition(":")
            if colon and name.strip() == device:
                return int(numbers.split()[8]), int(numbers.split()[0])
    raise ValueError(f"there is no interface {device}")


if __name__ == "__main__":
    served = Router(sys.argv[1], lambda: device_counters(sys.argv[2]), group=("239.255.255.250", 1900))
    print("ready", flush=True)
    threading.Event().wait()

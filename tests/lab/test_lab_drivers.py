# SPDX-License-Identifier: EUPL-1.2
"""Real kernel TCP through an emulated operator, under each driver: what a rule says is what happens."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lab.classify import Match
from lab.drivers import NoDriver, choose_driver, refusal
from lab.loopback import free_ports
from lab.model import Link, Rule, Scenario
from lab.namespaces import Warden, module_environment
from lab.network import POOL
from lab.processes import void_reason
from lab.scenario import ScenarioError
from lab.stage import Stage, Subscriber

pytestmark = pytest.mark.lab

APP, NEUTRAL = "rr1---sn-4g5e6nzz.googlevideo.com", "a2---media-cache01.example.org"
VIDEO = Match(sni=("*.googlevideo.com",))
LINE = Link(down_mbps=20, up_mbps=20, rtt_ms=30, buffer_ms=100)

SERVER = """
import socket, sys, threading, time
listener = socket.socket(); listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((sys.argv[1], int(sys.argv[2]))); listener.listen(64); print("ready", flush=True)
def serve(made):
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic" if CUBIC else b"reno")
    try:
        hello = made.recv(65536)
        while hello and (len(hello) < 5 or len(hello) < 5 + int.from_bytes(hello[3:5], "big")):
            more = made.recv(65536)
            if not more:
                return
            hello += more
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            made.sendall(bytes(16384))
    except OSError:
        pass
    made.close()
CUBIC = sys.argv[3] == "cubic"
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""

CLIENT = """
import json, socket, ssl, sys, time
host, port, bind, name = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
memory = ssl.MemoryBIO()
try: ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), memory, server_hostname=name).do_handshake()
except ssl.SSLWantReadError: pass
result, rtts = {"end": "complete", "bytes": 0, "late": 0}, []
for _ in range(4):
    made = socket.socket(); made.settimeout(3)
    if bind != "-": made.bind((bind, 0))
    begin = time.monotonic(); made.connect((host, port)); rtts.append((time.monotonic() - begin) * 1e3)
result["rtt_ms"] = min(rtts)
result["congestion"] = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\\0").decode()
begin = time.monotonic()
try:
    hello = memory.read()
    for at in range(0, len(hello), 100): made.sendall(hello[at:at + 100])
    while time.monotonic() < begin + 2:
        data = made.recv(65536)
        if not data: break
        result["bytes"] += len(data); result["late"] += len(data) * (time.monotonic() > begin + 1)
except ConnectionResetError: result["end"] = "reset"
except TimeoutError: result["end"] = "timeout"
result["seconds"] = time.monotonic() - begin
print(json.dumps(result))
"""


def drivers() -> list[str]:
    return ["tun", "veth", "relay"]


@pytest.fixture(params=drivers())
def driver(request: pytest.FixtureRequest) -> str:
    why = refusal(request.param)
    if why is not None:
        pytest.skip(f"the driver {request.param} does not work here: {why}")
    return str(request.param)


MARK = "EVENLANE_LAB_TEST"


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No device and no process may survive a test, and so no namespace: nothing else holds one."""
    links, mark = os.listdir("/sys/class/net"), secrets.token_hex(8)
    monkeypatch.setenv(MARK, mark)
    yield
    assert os.listdir("/sys/class/net") == links
    deadline = time.monotonic() + 5
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert marked(mark) == []


def marked(mark: str) -> list[bytes]:
    """Command lines of the processes whose environment bears the mark: all that a test's stage started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            with contextlib.suppress(OSError):
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes())
    return found


class Bench:
    """A stage with a plain TCP server on the internet's side."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.port = free_ports(1)[0] if stage.driver == "relay" else 443
        argv = [sys.executable, "-c", SERVER, stage.server_address, str(self.port)]
        argv.append("reno" if stage.driver == "relay" else "cubic")
        server = stage.start(argv, stdout=subprocess.PIPE)
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        stage.carry([self.port])

    def fetch(self, subscriber: Subscriber, name: str) -> subprocess.Popen[bytes]:
        address = self.stage.address_for(subscriber.operator)
        bind = subscriber.address if self.stage.driver == "relay" else "-"
        argv = [sys.executable, "-c", CLIENT, address, str(self.port), bind, name]
        return self.stage.start(argv, subscriber, stdout=subprocess.PIPE)


def result(process: subprocess.Popen[bytes]) -> dict[str, float]:
    out, _ = process.communicate(timeout=20)
    answer: dict[str, float] = json.loads(out)
    return answer


def run(driver: str, rules: Sequence[Rule], names: Sequence[str], link: Link = LINE) -> list[dict[str, float]]:
    """Fetch under each name, one after the other."""
    with Stage([Scenario("x", link, rules=tuple(rules))], driver=driver, subscribers=1) as stage:
        bench = Bench(stage)
        found = [result(bench.fetch(stage.operators[0].subscribers[0], name)) for name in names]
        if why := stage.void_reason():
            pytest.skip(f"void: {why}")
    return found


def mbps(found: dict[str, float]) -> float:
    return found["late"] * 8 / 1e6 / (found["seconds"] - 1)


def test_a_neutral_line_has_its_rate_and_its_rtt(driver: str) -> None:
    for found in run(driver, [], [APP, NEUTRAL]):
        assert found["end"] == "complete"
        # 1448 of 1500 bytes are payload; the relay counts payload alone
        assert mbps(found) == pytest.approx(20 if driver == "relay" else 20 * 1448 / 1500, rel=0.1)
        if driver != "relay":
            assert found["rtt_ms"] == pytest.approx(30, abs=4)
            assert found["congestion"] == "cubic"


def test_policing_at_1_5_mbit_is_measured_as_such(driver: str) -> None:
    rule = Rule(VIDEO, "police", down_mbps=1.5, burst_kb=64)
    if driver == "relay":
        with pytest.raises(ScenarioError, match=r"rule\[0\]\.action: the relay driver cannot police"):
            run(driver, [rule], [APP])
        return
    app, neutral = run(driver, [rule], [APP, NEUTRAL])
    assert mbps(app) == pytest.approx(1.5 * 1448 / 1500, rel=0.2)
    assert mbps(neutral) == pytest.approx(20 * 1448 / 1500, rel=0.1)


def test_shaping_is_measured_as_such(driver: str) -> None:
    app, neutral = run(driver, [Rule(VIDEO, "shape", down_mbps=2, burst_kb=16)], [APP, NEUTRAL])
    assert mbps(app) == pytest.approx(2, rel=0.15)
    assert mbps(neutral) == pytest.approx(20, rel=0.1)


def test_a_reset_is_one_for_both_ends(driver: str) -> None:
    app, neutral = run(driver, [Rule(VIDEO, "reset")], [APP, NEUTRAL])
    assert (app["end"], app["bytes"], neutral["end"]) == ("reset", 0, "complete")
    assert app["seconds"] < 0.5


def test_a_block_is_silence(driver: str) -> None:
    app, neutral = run(driver, [Rule(VIDEO, "block")], [APP, NEUTRAL])
    assert (app["end"], app["bytes"], neutral["end"]) == ("timeout", 0, "complete")
    assert app["seconds"] >= 2.9


HTTP_SERVER = """
import hashlib, socket, sys
listener = socket.socket(); listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((sys.argv[1], 80)); listener.listen(4); print("ready", flush=True)
made, _ = listener.accept()
got = b""
while b"\\r\\n\\r\\n" not in got: got += made.recv(65536)
head, _, body = got.partition(b"\\r\\n\\r\\n")
while len(body) < 300000: body += made.recv(65536)
made.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n" + head + hashlib.sha256(body).hexdigest().encode()); made.close()
"""

HTTP_CLIENT = """
import random, socket, sys
made = socket.create_connection((sys.argv[1], 80), 5); made.settimeout(15)
body = random.Random(1).randbytes(300000)
made.sendall(b"POST / HTTP/1.1\\r\\nHost: www.example.org\\r\\nContent-Length: 300000\\r\\n\\r\\n" + body)
got = b""
while data := made.recv(65536): got += data
sys.stdout.write(got.decode())
"""


@pytest.mark.parametrize("driver", ["tun", "veth"])
def test_a_marked_request_goes_through_on_a_lossy_line(driver: str) -> None:
    """Shifted numbers, retransmissions and SACK blocks: the kernels on both ends must not notice the insertion."""
    if why := refusal(driver):  # type: ignore[arg-type]
        pytest.skip(f"the driver {driver} does not work here: {why}")
    rule = Rule(Match(http_host=("*.example.org",)), "http_header", header="X-Subscriber: 4711")
    link = Link(down_mbps=20, up_mbps=20, rtt_ms=10, loss=0.02)
    with Stage([Scenario("x", link, rules=(rule,))], driver=driver, subscribers=1) as stage:
        server = stage.start([sys.executable, "-c", HTTP_SERVER, POOL[0]], stdout=subprocess.PIPE)
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        home = stage.operators[0].subscribers[0]
        client = stage.start([sys.executable, "-c", HTTP_CLIENT, POOL[0]], home, stdout=subprocess.PIPE)
        answer = client.communicate(timeout=40)[0].decode()
        counted = stage.snapshots()["x"]
    body = random.Random(1).randbytes(300_000)
    lines = answer.split("\r\n")
    assert "X-Subscriber: 4711" in lines
    assert answer.endswith(hashlib.sha256(body).hexdigest())
    assert counted["treated"] == {"http_header": 1}
    assert counted["link_lost"] > 0


def test_several_operators_and_subscribers_at_once(driver: str) -> None:
    scenarios = [
        Scenario("fair", LINE),
        Scenario("slow", LINE, rules=(Rule(VIDEO, "shape", down_mbps=2, burst_kb=16),)),
        Scenario("cut", LINE, rules=(Rule(VIDEO, "reset"),)),
    ]
    with Stage(scenarios, driver=driver, subscribers=2) as stage:
        bench = Bench(stage)
        running = {
            (operator.name, one.index): bench.fetch(one, APP)
            for operator in stage.operators
            for one in operator.subscribers
        }
        found = {key: result(process) for key, process in running.items()}
        rows = stage.asn_db.read_text().splitlines()
    assert len(rows) == 4
    assert rows[1].endswith(",64496,ZZ,fair,fixed")
    for index in (0, 1):
        assert mbps(found["fair", index]) == pytest.approx(20, rel=0.12)
        assert mbps(found["slow", index]) == pytest.approx(2, rel=0.2)
        assert found["cut", index]["end"] == "reset"


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_survives_the_death_of_the_stage(driver: str, kind: signal.Signals) -> None:
    code = (
        "import signal, sys, subprocess, time\n"
        "from lab.model import Link, Scenario\n"
        "from lab.stage import Stage\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored below a shell's background job
        f"with Stage([Scenario('x')], driver={driver!r}, subscribers=2) as stage:\n"
        "    stage.start([sys.executable, '-c', 'import time; time.sleep(600)'], stage.operators[0].subscribers[0])\n"
        "    print(stage.directory, flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=module_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    directory = Path(process.stdout.readline().decode().strip())
    assert directory.is_dir()
    process.send_signal(kind)
    process.wait(15)
    process.stdout.close()
    deadline = time.monotonic() + 5
    while directory.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not directory.exists()


def test_an_outside_server_listens_inside(driver: str) -> None:
    with Stage([Scenario("x", LINE)], driver=driver, subscribers=1) as stage:
        listener, url = stage.collector_socket(18_080)
        host, port = url.removeprefix("http://").split(":")
        code = f"import socket; s = socket.create_connection(({host!r}, {port}), 5); s.sendall(b'hi')"
        client = stage.start([sys.executable, "-c", code], stage.operators[0].subscribers[0])
        listener.settimeout(10)
        made, peer = listener.accept()
        assert made.recv(10) == b"hi"
        if driver != "relay":
            assert peer[0] == stage.operators[0].subscribers[0].address
        made.close()
        listener.close()
        client.wait(10)


def test_namespaces_know_their_addresses_and_metrics_are_not_kept() -> None:
    if refusal("tun") and refusal("veth"):
        pytest.skip("no namespaces here")
    with Warden() as warden:
        space = warden.namespace()
        space.configure("lo", addresses=POOL)
        with space.listen(POOL[1], 443) as listener:
            assert listener.getsockname() == (POOL[1], 443)
        code = "print(open('/proc/sys/net/ipv4/tcp_no_metrics_save').read().strip())"
        made = space.popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert made.communicate(timeout=10)[0] == b"1\n"
        with pytest.raises(OSError, match="no-such"):
            space.configure("no-such", addresses=["192.0.2.1"])
        with pytest.raises(OSError, match="assign"):
            space.listen("203.0.113.1", 80)


def test_an_unknown_driver_is_refused_and_one_is_found() -> None:
    with pytest.raises(NoDriver, match="choose one of tun, veth, relay"):
        choose_driver("dummynet")
    assert choose_driver() in drivers()


def test_a_late_operator_voids_its_run() -> None:
    counted = {"late_ms": {"p99": 3.0}, "processor_wait_s": 0.1, "seconds": 10, "packets": {"down": 5000, "up": 5000}}
    assert void_reason("x", counted) is None
    assert "late by 40 ms" in str(void_reason("x", {**counted, "late_ms": {"p99": 40.0}}))
    assert "50%" in str(void_reason("x", {**counted, "processor_wait_s": 5}))
    assert "lost 60 of 10000" in str(void_reason("x", {**counted, "unread": 60}))
    assert "ended early" in str(void_reason("x", {}))

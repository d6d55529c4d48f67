# SPDX-License-Identifier: EUPL-1.2
"""The driver `relay`: an operator on loopback that terminates TCP, for machines that allow nothing else.

It needs no privilege and no namespace. It listens on an address of the operator's and connects onward from
the subscriber's own, so the reflector still sees everybody apart. What it cannot do on a byte stream it
refuses by name: it shapes, blocks and resets, and carries TCP alone. It paces its reading, so the sender is
held back by its peer's window and not by loss; hence it never counts in the accuracy study.
spec/lab.md section 4.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from lab.classify import TCP, Direction, FlowFacts
from lab.forward import processor_wait_s
from lab.links import LinkQueue, TokenBucket, cross_load
from lab.model import Link, Rule, Scenario, affected
from lab.scenario import from_table
from lab.subscriber import LATENESS_BINS, Stats

NAME: Final = "relay"
ACTIONS: Final = ("shape", "block", "reset")
CHUNK: Final = 8192
MAX_CHUNKS: Final = 128  # under way in one direction of one connection
_WINDOW: Final = 32_768  # receive buffer asked for; the kernel doubles it: what may wait unseen in it
_MSS: Final = 1448  # loopback's own would be 64 kB, more than the window


def refusal(scenario: Scenario) -> str | None:
    """Why this driver cannot emulate a scenario, None where it can."""
    usual = Link()
    for key in ("family", "nat", "path_mtu", "reorder", "duplicate", "corrupt", "corrupt_payload", "vary"):
        if getattr(scenario.link, key) != getattr(usual, key):
            return f"link.{key}: the relay driver carries bytes, not packets; use the driver tun or veth"
    for index, rule in enumerate(scenario.rules):
        if rule.action not in ACTIONS:
            return (
                f"rule[{index}].action: the relay driver cannot {rule.action}, it can only "
                f"{', '.join(ACTIONS)}; use the driver tun or veth"
            )
        if rule.flows < 1 or rule.match.split is not None:
            key = "flows" if rule.flows < 1 else "match.split"
            return f"rule[{index}].{key}: the relay driver sees bytes, not packets; use the driver tun or veth"
        if rule.match.proto == "udp" or rule.match.dns is not None or rule.match.quic_sni is not None:
            return f"rule[{index}].match: the relay driver carries TCP alone; use the driver tun or veth"
    return None


def notes(scenario: Scenario) -> list[str]:
    """What of a scenario this driver leaves out without changing its truth."""
    link = scenario.link
    ignored = [name for name, value in (("loss", link.loss), ("jitter_ms", link.jitter_ms)) if value]
    return [f"the relay driver does not emulate link.{name}" for name in ignored]


class _Limiter:
    """One shaping, blocking or resetting rule at one subscriber."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.lingers_until = float("-inf")
        self.bucket: dict[Direction, TokenBucket] = {}
        if rule.down_mbps is not None:
            self.bucket["down"] = TokenBucket(rule.down_mbps * 1e6, rule.burst_kb * 1e3)
        if rule.up_mbps is not None:
            self.bucket["up"] = TokenBucket(rule.up_mbps * 1e6, rule.burst_kb * 1e3)


class _Line:
    """A subscriber's access line: its two directions and the rules that may touch it."""

    def __init__(self, scenario: Scenario, index: int, subscribers: int, seed: str) -> None:
        link, cross = scenario.link, scenario.cross_traffic
        self.buffer_s = link.buffer_ms / 1e3
        self.ways: dict[Direction, LinkQueue] = {}
        loads = (cross.down_mbps, cross.up_mbps) if cross else (0.0, 0.0)
        way: Direction
        for way, mbps, load in (("down", link.down_mbps, loads[0]), ("up", link.up_mbps, loads[1])):
            self.ways[way] = LinkQueue(
                mbps=mbps,
                buffer_ms=link.buffer_ms,
                delay_ms=link.rtt_ms / 2,
                rng=random.Random(f"{seed}/{index}/{way}"),
                cross=cross_load(cross, load, random.Random(f"{seed}/{index}/{way}/cross")),
            )
        self.rules: list[_Limiter] = []
        for number, rule in enumerate(scenario.rules):
            chosen = list(range(subscribers))
            random.Random(f"{seed}/share/{number}").shuffle(chosen)
            if index in chosen[: affected(rule.share, subscribers)]:
                self.rules.append(_Limiter(rule))


@dataclass(eq=False)
class _Pipe:
    """One direction of a connection: read paced, handed on after the line's delay."""

    way: Direction
    source: socket.socket
    sink: socket.socket
    queue: deque[tuple[float, bytes]] = field(default_factory=deque)
    ready_at: float = 0.0
    reading: bool = False
    ended: bool = False
    shut: bool = False
    offset: int = 0


@dataclass(eq=False)
class _Connection:
    """A client's connection and ours to the reflector."""

    line: _Line
    facts: FlowFacts
    up: _Pipe
    down: _Pipe
    moved: int = 0
    dead: Literal["", "block"] = ""

    @property
    def pipes(self) -> tuple[_Pipe, _Pipe]:
        return self.up, self.down


class Relay:
    """One operator: listening sockets, connections, an event loop."""

    def __init__(
        self, scenario: Scenario, subscribers: list[str], *, listen: str, onward: str, seed: str, day_s: float
    ) -> None:
        self._lines = {
            address: _Line(scenario, index, len(subscribers), seed) for index, address in enumerate(subscribers)
        }
        self._address, self._onward = listen, onward
        self._epoll = select.epoll()
        self._listeners: dict[int, socket.socket] = {}
        self._sockets: dict[int, tuple[_Connection, _Pipe]] = {}
        self._connections: set[_Connection] = set()
        self._day_offset = day_s - time.monotonic()
        self._began, self._wait, self._cpu = time.monotonic(), processor_wait_s(), time.process_time()
        self.stats = Stats()

    def listen(self, port: int) -> None:
        """Take connections for this port, which go on to the same port at the reflector."""
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _prepare(made)
        made.bind((self._address, port))
        made.listen(128)
        self._listeners[made.fileno()] = made
        self._epoll.register(made.fileno(), select.EPOLLIN)

    def run(self, control: int) -> None:
        """Serve until the control descriptor ends; each JSON line there is a request."""
        self._epoll.register(control, select.EPOLLIN)
        while True:
            due = self._advance(time.monotonic())
            pause = -1 if due is None else max(0.0, due - time.monotonic())
            for descriptor, events in self._epoll.poll(pause):
                if descriptor == control:
                    if not self._control(os.read(control, 65536)):
                        return
                elif descriptor in self._listeners:
                    self._accept(self._listeners[descriptor])
                elif descriptor in self._sockets:
                    self._on_socket(descriptor, events)

    def _control(self, data: bytes) -> bool:
        for line in data.splitlines():
            request = json.loads(line)
            for port in request.get("listen", ()):
                self.listen(port)
            os.write(1, json.dumps(self.snapshot()).encode() + b"\n")
        return bool(data)

    def snapshot(self) -> dict[str, object]:
        """Counters so far, as lab.forward gives them."""
        return {
            "bytes": dict(self.stats.octets),
            "treated": dict(self.stats.treated),
            "foreign": self.stats.foreign,
            "late_ms": {"p50": self.stats.late_ms(0.5), "p99": self.stats.late_ms(0.99)},
            "seconds": round(time.monotonic() - self._began, 3),
            "cpu_s": round(time.process_time() - self._cpu, 3),
            "processor_wait_s": round(processor_wait_s() - self._wait, 3),
        }

    def _accept(self, listener: socket.socket) -> None:
        client, (address, _) = listener.accept()
        line = self._lines.get(address)
        if line is None:
            self.stats.foreign += 1
            client.close()
            return
        server = socket.socket()
        _prepare(server)
        server.bind((address, 0))
        port = listener.getsockname()[1]
        with contextlib.suppress(BlockingIOError):
            server.connect((self._onward, port))
        client.setblocking(False)
        connection = _Connection(
            line, FlowFacts(proto=TCP, server_port=port), _Pipe("up", client, server), _Pipe("down", server, client)
        )
        connection.facts.established = True
        connection.facts.syn(0xFFFFFFFF)
        self._connections.add(connection)
        for pipe in connection.pipes:
            self._sockets[pipe.source.fileno()] = (connection, pipe)
            self._epoll.register(pipe.source.fileno(), 0)

    def _on_socket(self, descriptor: int, events: int) -> None:
        connection, pipe = self._sockets[descriptor]
        if pipe.source.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._end(connection, reset=True)
        elif connection.dead and pipe is connection.down:
            self._epoll.unregister(descriptor)  # the client is to hear nothing, not even the reflector's end
        elif connection.dead:
            self._end(connection, reset=False)
        elif events & select.EPOLLIN:
            self._read(connection, pipe)
        elif events & select.EPOLLHUP:
            self._end(connection, reset=False)

    def _read(self, connection: _Connection, pipe: _Pipe) -> None:
        """Take one chunk from a source and reckon when it comes out of the line."""
        now = time.monotonic()
        way, link = pipe.way, connection.line.ways[pipe.way]
        try:
            data = pipe.source.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._end(connection, reset=True)
            return
        if not data:
            pipe.ended = True
            self._watch(pipe, reading=False)
            return
        self.stats.octets[way] += len(data)
        connection.moved += len(data)
        if way == "up":
            connection.facts.client_segment(pipe.offset, data)
            pipe.offset += len(data)
        limiter = self._limiter(connection, way, now)
        wait = 0.0
        if limiter is not None:
            action = limiter.rule.action
            self.stats.treated[action] = self.stats.treated.get(action, 0) + 1
            if action == "reset":
                self._end(connection, reset=True)
                return
            if action == "block":
                self._silence(connection)
                return
            bucket = limiter.bucket.get(way)
            wait = (bucket.delay(len(data), now, float("inf")) or 0.0) if bucket else 0.0
        release = link.carry(len(data), now)
        pipe.queue.append((max(release or link.busy, now + wait), data))
        pipe.ready_at = max(now + wait, link.busy - min(0.005, connection.line.buffer_s))
        self._watch(pipe, reading=False)

    def _limiter(self, connection: _Connection, way: Direction, now: float) -> _Limiter | None:
        """The first rule that matches the connection, or one that still lingers on its line."""
        hour = (now + self._day_offset) % 86400 / 3600
        rules = connection.line.rules
        for limiter in rules:
            rule = limiter.rule
            match = rule.match
            if rule.active_at(hour) and match.direction in {None, way} and match.fits(connection.facts):
                if connection.moved < rule.after_kb * 1e3:
                    break
                limiter.lingers_until = now + rule.linger_s if rule.linger_s else float("-inf")
                return limiter
        return next((limiter for limiter in rules if now < limiter.lingers_until), None)

    def _silence(self, connection: _Connection) -> None:
        """Blocked: nothing is read or handed on any more; both ends are left to their own patience."""
        connection.dead = "block"
        for pipe in connection.pipes:
            pipe.queue.clear()
            self._epoll.modify(pipe.source.fileno(), select.EPOLLRDHUP)

    def _watch(self, pipe: _Pipe, *, reading: bool) -> None:
        pipe.reading = reading
        with contextlib.suppress(FileNotFoundError):
            self._epoll.modify(pipe.source.fileno(), select.EPOLLIN if reading else 0)

    def _advance(self, now: float) -> float | None:
        """Hand on what is due, allow reading again where the pace does; when to look again."""
        due = float("inf")
        for connection in list(self._connections):
            if connection.dead:
                continue
            for pipe in connection.pipes:
                if pipe.queue and pipe.queue[0][0] <= now and not self._hand_on(connection, pipe, now):
                    break
                if pipe.ended and not pipe.queue and not pipe.shut:
                    pipe.shut = True
                    with contextlib.suppress(OSError):
                        pipe.sink.shutdown(socket.SHUT_WR)
                if not (pipe.reading or pipe.ended) and pipe.ready_at <= now and len(pipe.queue) < MAX_CHUNKS:
                    self._watch(pipe, reading=True)
                waiting = pipe.queue[0][0] if pipe.queue else float("inf")
                blocked = not (pipe.reading or pipe.ended)
                due = min(due, max(waiting, now + 0.0002), pipe.ready_at if blocked else due)
            else:
                if connection.up.shut and connection.down.shut:
                    self._end(connection, reset=False)
        return None if due == float("inf") else due

    def _hand_on(self, connection: _Connection, pipe: _Pipe, now: float) -> bool:
        """Write what has come through the line; False where the connection ended over it."""
        late = min(int((now - pipe.queue[0][0]) * 1e4), LATENESS_BINS - 1)
        while pipe.queue and pipe.queue[0][0] <= now:
            release, data = pipe.queue.popleft()
            try:
                sent = pipe.sink.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._end(connection, reset=True)
                return False
            if sent < len(data):  # the receiver is slow, or still connecting
                pipe.queue.appendleft((max(release, now + 0.002), data[sent:]))
                break
            self.stats.lateness[late] += 1
        return True

    def _end(self, connection: _Connection, *, reset: bool) -> None:
        """Close both sides, with resets where the connection did not end in order."""
        self._connections.discard(connection)
        for pipe in connection.pipes:
            self._sockets.pop(pipe.source.fileno(), None)
            if reset:
                with contextlib.suppress(OSError):
                    pipe.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            pipe.source.close()


def _prepare(made: socket.socket) -> None:
    """Small buffers, set before the handshake, so that little waits where nobody counts it."""
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WINDOW)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _WINDOW)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _MSS)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def main() -> None:
    """Run one operator as its configuration says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    relay = Relay(
        from_table(config["scenario"]),
        config["subscribers"],
        listen=config["listen"],
        onward=config["onward"],
        seed=config["seed"],
        day_s=config["day_s"],
    )
    os.write(1, b"ready\n")
    relay.run(0)


if __name__ == "__main__":
    main()

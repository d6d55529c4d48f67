# SPDX-License-Identifier: EUPL-1.2
"""A stage for whole runs: operators and their subscribers around one real reflector, under any driver.

    with Stage([load("a.toml"), load("b.toml")], subscribers=3) as stage:
        stage.start_reflector()
        run = stage.run_probe(stage.operators[0].subscribers[1], ["differential", "--app", "youtube"])

The programs are the product's own, started as subprocesses; only the network between them is emulated. On
leaving, also by an exception or a signal, every process is ended and nothing of the network remains.
spec/lab.md section 4.
"""

from __future__ import annotations

import contextlib
import csv
import json
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

from lab import loopback, network, relay
from lab.drivers import DriverName, choose_driver, lines
from lab.model import Scenario
from lab.namespaces import Namespace, Warden, end_processes, module_command, module_environment
from lab.processes import OperatorProcess, void_reason

FIRST_ASN: Final = 64496  # 64496 to 64511 are for documentation (RFC 5398)
MAX_OPERATORS: Final = 16
CONTROL_PORT, DATA_PORT = 8443, 443
FREE_PLACES: Final = 238  # the address plan's last place; subscribers that move take them from there downwards
COUNTRY: Final = "ZZ"
REFLECTOR_START_S: Final = 30.0


class StageError(Exception):
    """A program of the run did not start; the message says which and shows its last words."""


@dataclass(frozen=True)
class Subscriber:
    """One emulated home."""

    operator: Operator
    index: int
    address: str
    home: Namespace | None
    state: Path


@dataclass
class Operator:
    """One emulated operator on the stage."""

    number: int
    scenario: Scenario
    prefix: str
    process: OperatorProcess
    subscribers: list[Subscriber] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As it stands in the reflector's table, and so in every verdict."""
        return self.scenario.name

    @property
    def asn(self) -> int:
        """Its number, one of those for documentation."""
        return FIRST_ASN + self.number


class Stage:
    """Operators, subscribers, a reflector. Use it as a context manager."""

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        *,
        driver: str | None = None,
        subscribers: int = 3,
        seed: str = "0",
        day_s: float = 12 * 3600.0,
        directory: Path | None = None,
    ) -> None:
        if len(scenarios) > MAX_OPERATORS:
            raise StageError(f"at most {MAX_OPERATORS} operators fit on one stage, not {len(scenarios)}")
        self.driver: DriverName = choose_driver(driver)
        self._scenarios, self._count = tuple(scenarios), subscribers
        self._seed, self._day_s, self._given = seed, day_s, directory
        self._undo = contextlib.ExitStack()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._control_port = self._data_port = 0
        self._pin = ""
        self._ports: list[int] = []
        self.reflector: subprocess.Popen[bytes] | None = None
        self.operators: list[Operator] = []
        self.reflector_key = ""

    def __enter__(self) -> Self:
        try:
            self._undo.enter_context(_signals_as_exit())
            self._warden = self._undo.enter_context(Warden(namespaces=self.driver != "relay"))
            if self._given is None:
                self.directory = Path(tempfile.mkdtemp(prefix="evenlane-lab-"))
                self._warden.discard(self.directory)
            else:
                self.directory = self._given
                self.directory.mkdir(parents=True, exist_ok=True)
            if self.driver == "relay":
                self._world: network.Network | loopback.Loopback = loopback.Loopback(self._warden)
            else:
                self._world = network.Network(self._warden, lines(self.driver, self._warden))
                if self._has_ipv6:
                    self._world.offer_ipv6()
            self._undo.callback(self._world.close)
            self._undo.callback(lambda: end_processes(self._processes))
            for number, scenario in enumerate(self._scenarios):
                self._add(number, scenario)
            self._write_asn_db()
        except OSError as error:
            self._undo.close()
            raise StageError(f"the emulated network could not be built: {error.strerror or error}") from error
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    @property
    def notes(self) -> list[str]:
        """What the driver leaves out of the scenarios."""
        if self.driver != "relay":
            return []
        return [f"{one.name}: {note}" for one in self._scenarios for note in relay.notes(one)]

    @property
    def _has_ipv6(self) -> bool:
        return any(scenario.link.family == 6 for scenario in self._scenarios)

    @property
    def asn_db(self) -> Path:
        """The table of prefixes for the reflector's --asn-db."""
        return self.directory / "asn.csv"

    @property
    def reflector_state(self) -> Path:
        """Where the reflector writes receipts.jsonl and started.jsonl."""
        return self.directory / "reflector"

    @property
    def records(self) -> list[Path]:
        """The reflector's records so far."""
        files = [self.reflector_state / name for name in ("receipts.jsonl", "started.jsonl")]
        return [file for file in files if file.exists()]

    def _add(self, number: int, scenario: Scenario) -> None:
        seed = f"{self._seed}/{number}"
        homes: Sequence[Namespace | None]
        if isinstance(self._world, loopback.Loopback):
            process, addresses = self._world.add_operator(scenario, self._count, seed=seed, day_s=self._day_s)
            prefix, homes = loopback.operator_prefix(number), [None] * self._count
        else:
            process, homes = self._world.add_operator(scenario, self._count, seed=seed, day_s=self._day_s)
            prefix = network.operator_prefix(number, scenario.link)
            addresses = [network.subscriber_address(number, index, scenario.link) for index in range(self._count)]
        operator = Operator(number, scenario, prefix, process)
        for index, (address, home) in enumerate(zip(addresses, homes, strict=True)):
            state = self.directory / "probes" / f"{number}-{index}"
            operator.subscribers.append(Subscriber(operator, index, address, home, state))
        self.operators.append(operator)

    def _write_asn_db(self) -> None:
        with self.asn_db.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("prefix", "asn", "country", "operator", "access"))
            table.writerows((one.prefix, one.asn, COUNTRY, one.name, "fixed") for one in self.operators)

    def collector_socket(self, port: int) -> tuple[socket.socket, str]:
        """A listening socket that probes and reflector reach, and the URL they are to use (plain HTTP)."""
        listener = self._world.listen(port)
        host, actual = listener.getsockname()
        return listener, f"http://{host}:{actual}"

    def start_reflector(self, *options: str) -> None:
        """Start the real reflector on the internet's side; returns when it serves. `options` are added as given.

        One that was killed can be started again: it has the same keys and addresses as before.
        """
        if isinstance(self._world, loopback.Loopback):
            self._ports = self._ports or loopback.free_ports(2)
            hosts, ports = [loopback.REFLECTOR], self._ports
        else:
            families = dict.fromkeys(scenario.link.family for scenario in self._scenarios)
            hosts = [host for family in families for host in network.pool(family)] or list(network.POOL)
            ports = [CONTROL_PORT, DATA_PORT]
        argv = module_command("evenlane.cli", "reflector", *(word for host in hosts for word in ("--host", host)))
        argv += ["--control-port", str(ports[0]), "--data-port", str(ports[1]), "--json"]
        argv += ["--state", str(self.reflector_state), "--asn-db", str(self.asn_db), *options]
        self.reflector_state.mkdir(parents=True, exist_ok=True)
        log = self.reflector_state / "log"
        with log.open("ab") as errors:
            process = self.start(argv, None, stdout=subprocess.PIPE, stderr=errors)
        self.reflector = process
        started = _first_line(process)
        if not started:
            raise StageError(f"the reflector did not start: {_tail(log)}")
        answer: dict[str, Any] = json.loads(started)
        self.reflector_key = str(answer.get("key", ""))
        self._pin = f"#sha256={answer['pin']}"
        self._control_port, self._data_port = ports
        self.carry(ports)

    @property
    def server_address(self) -> str:
        """Where a server on the internet's side is to listen."""
        return loopback.REFLECTOR if self.driver == "relay" else network.POOL[0]

    def address_for(self, operator: Operator) -> str:
        """The address under which an operator's subscribers reach such a server."""
        if self.driver == "relay":
            return loopback.operator_address(operator.number)
        return network.pool(operator.scenario.link.family)[0]

    def carry(self, ports: Sequence[int]) -> None:
        """Let subscribers reach these TCP ports; only the relay has to be told."""
        if isinstance(self._world, loopback.Loopback):
            self._world.carry(list(ports))

    def reflector_url(self, operator: Operator) -> str:
        """The reflector as this operator's subscribers reach it."""
        address = self.address_for(operator)
        host = f"[{address}]" if ":" in address else address
        return f"https://{host}:{self._control_port}{self._pin}"

    def run_probe(self, subscriber: Subscriber, arguments: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start `evenlane probe run ARGUMENTS` at a subscriber's; reflector and state are filled in."""
        argv = module_command("evenlane.cli", "probe", "run", *arguments)
        argv += ["--reflector", self.reflector_url(subscriber.operator), "--state", str(subscriber.state)]
        if subscriber.home is None:
            argv += ["--bind", subscriber.address]
        return self.start(argv, subscriber, **options)

    def start(
        self, argv: Sequence[str], subscriber: Subscriber | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start a program at a subscriber's, or on the internet's side; it ends with the stage at the latest."""
        options.setdefault("env", module_environment())
        options.setdefault("stdin", subprocess.DEVNULL)
        if isinstance(self._world, network.Network):
            home = self._world.internet if subscriber is None else subscriber.home
            assert home is not None  # noqa: S101  (every subscriber of a namespace driver has one)
            process = home.popen(argv, **options)
        else:
            options.setdefault("start_new_session", True)
            process = self._warden.adopt(subprocess.Popen(argv, **options))
        self._processes.append(process)
        return process

    def data_address(self, operator: Operator) -> tuple[str, int]:
        """Where this operator's subscribers find the reflector's data port."""
        return self.address_for(operator), self._data_port

    def internet_sysctl(self, key: str, value: str) -> None:
        """Write a setting below /proc/sys/net on the reflector's side; the relay has no side of its own."""
        if not isinstance(self._world, network.Network):
            raise StageError("the relay driver has no network namespace whose settings could be changed")
        self._world.internet.sysctl(key, value)

    def move(self, subscriber: Subscriber) -> Subscriber:
        """The subscriber's line gets another address, as after a reconnection; the old one is gone at once."""
        if subscriber.home is None or subscriber.operator.scenario.link.nat == "home":
            raise StageError("only a subscriber whose own namespace ends the line can get another address")
        link = subscriber.operator.scenario.link
        address = network.subscriber_address(subscriber.operator.number, FREE_PLACES - subscriber.index, link)
        subscriber.operator.process.snapshot(move=[[subscriber.index, address]])
        subscriber.home.drop_address("line", subscriber.address)
        default = "::/0" if link.family == 6 else "0.0.0.0/0"
        subscriber.home.configure("line", addresses=[address], routes=[(default, address)])
        return replace(subscriber, address=address)

    def snapshots(self) -> dict[str, dict[str, Any]]:
        """Each operator's counters so far."""
        return {operator.name: operator.process.snapshot() for operator in self.operators}

    def void_reason(self) -> str | None:
        """Why what was measured so far says nothing, None where the machine kept up."""
        reasons = [void_reason(name, counted) for name, counted in self.snapshots().items()]
        return next((reason for reason in reasons if reason), None)


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    """The first line a program prints; empty where it ends, or says nothing for too long and is ended."""
    assert process.stdout is not None  # noqa: S101  (it is a pipe)
    timer = threading.Timer(REFLECTOR_START_S, process.kill)
    timer.start()
    try:
        return process.stdout.readline()
    finally:
        timer.cancel()


def _tail(log: Path) -> str:
    """The last line of a log."""
    words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return words[-1] if words else "it said nothing"


@contextlib.contextmanager
def _signals_as_exit() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that `with` blocks undo what they did (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

# SPDX-License-Identifier: EUPL-1.2
"""A whole reflector: composes control port, data port, records and delivery; starts and stops them in order.

Spec: spec/protocol.md.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import platform
import secrets
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from probe.protocol.accounts import Limits
from probe.protocol.booking import Booking, Identity
from probe.reflector.control import Control, ControlParts
from probe.reflector.data import Contexts, DataLimits, DataPlane, open_listener
from probe.reflector.delivery import Delivery
from probe.reflector.keys import Certificate, NetworkKey, load_or_make_certificate
from probe.reflector.metrics import Metrics
from probe.reflector.origin import Address, Origins, Table, TableError, read_table
from probe.reflector.pool import Pool, url_host
from probe.reflector.receipts import Receipts
from probe.reflector.witness import Witness
from probe.wire.records import Origin, Software
from probe.wire.signing import load_or_create

CONTROL_PORT: Final = 8443
DATA_PORT: Final = 8444
_SWITCH_S: Final = 0.0005
"""How long one thread may keep the interpreter: pings must not wait 5 ms for the data thread."""
_FREE_PORT_TRIES: Final = 20
_LAST_DELIVERY_S: Final = 3.0
"""What is not delivered in this time at the end is delivered after the next start."""


class ReflectorError(Exception):
    """The reflector cannot start; the message is one sentence that says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What an operator of a reflector decides."""

    hosts: tuple[str, ...] = ("127.0.0.1",)
    control_port: int = CONTROL_PORT
    """0 picks a free one."""
    data_port: int = DATA_PORT
    state: Path
    asn_tables: tuple[Path, ...] = ()
    collector: str | None = None
    limits: Limits = field(default_factory=Limits)
    data_limits: DataLimits = field(default_factory=DataLimits)
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What somebody must know to use this reflector."""

    url: str
    pin: str
    key: str
    control_port: int
    data_port: int


class Reflector:
    """One reflector. `start`, then `stop`; or `run` until a signal comes."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock_file: IO[bytes] | None = None
        self._data: DataPlane | None = None
        self._control: Control | None = None
        self._delivery: Delivery | None = None
        self._delivering: asyncio.Task[None] | None = None
        self._receipts: Receipts | None = None
        self._booking: Booking | None = None
        self._witness: Witness | None = None
        self._metrics = Metrics()
        self._booking_lock = threading.Lock()
        self._died = asyncio.Event()

    async def start(self) -> Announcement:
        """Serve. Raises ReflectorError where that is not possible."""
        config = self._config
        state = self._prepare_state(config.state)
        try:
            signer = load_or_create(state / "key")
            control_certificate = load_or_make_certificate(state / "control.pem", "reflector.invalid")
            data_certificate = load_or_make_certificate(state / "data.pem", "data.invalid")
            network_key = NetworkKey(state / "network.key")
            self._receipts = Receipts(state, signer)
        except ValueError as error:
            raise ReflectorError(str(error)) from None
        except OSError as error:
            raise ReflectorError(f"{error.filename or state} cannot be used ({error.strerror})") from None
        origins = Origins(_read_tables(config.asn_tables))

        def origin_of(address: Address, told: str | None) -> Origin:
            return origins.find(address, network_key.of(self._metrics.now_ms()), told)

        control_listeners, data_listeners = _listen(config)
        pool = Pool(config.hosts, control_listeners[0].getsockname()[1], data_listeners[0].getsockname()[1])
        self._booking = Booking(
            identity=Identity(
                key_id=signer.key_id, data_certificate=data_certificate.digest, software=_software(config.version)
            ),
            limits=config.limits,
            random_bytes=secrets.token_bytes,
        )
        self._witness = Witness(self._receipts, self._metrics)
        loop = asyncio.get_running_loop()

        def died() -> None:
            loop.call_soon_threadsafe(self._died.set)

        self._data = DataPlane(
            listeners=data_listeners,
            contexts=Contexts(data_certificate.path),
            booking=self._booking,
            lock=self._booking_lock,
            origin_of=origin_of,
            metrics=self._metrics,
            on_death=died,
            limits=config.data_limits,
        )
        self._control = Control(
            ControlParts(
                booking=self._booking,
                lock=self._booking_lock,
                data=self._data,
                witness=self._witness,
                pool=pool,
                metrics=self._metrics,
                origin_of=origin_of,
                health={"version": config.version, "key": signer.key_id},
            )
        )
        sys.setswitchinterval(_SWITCH_S)
        self._data.start()
        await self._control.start(control_listeners, _control_context(control_certificate))
        if config.collector:
            self._delivery = Delivery(
                collector=config.collector,
                state=state,
                journals=(self._receipts.started, self._receipts.receipts),
                metrics=self._metrics,
                network_key=network_key,
            )
            self._delivering = asyncio.create_task(self._delivery.run())
        return Announcement(
            url=f"https://{url_host(config.hosts)}:{pool.control_port}",
            pin=control_certificate.digest,
            key=signer.key_id,
            control_port=pool.control_port,
            data_port=pool.data_port,
        )

    async def stop(self) -> None:
        """End open sessions with a receipt and stop serving. Safe to call after a failed start."""
        if self._booking is not None and self._witness is not None:
            with self._booking_lock:
                ended = self._booking.stop(self._metrics.now_ms())
            self._witness.catch_up(ended)
        if self._control is not None:
            await self._control.stop()
        if self._data is not None:
            await asyncio.to_thread(self._data.stop)
        if self._delivery is not None and self._delivering is not None:
            self._delivering.cancel()
            await asyncio.wait([self._delivering])
            await self._delivery.flush(_LAST_DELIVERY_S)
        if self._receipts is not None:
            self._receipts.close()
        if self._lock_file is not None:
            self._lock_file.close()

    async def run(self, announce: Callable[[Announcement], None]) -> None:
        """Serve until SIGINT or SIGTERM. Raises ReflectorError, also where the data port died of a defect."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        try:
            announce(await self.start())
            waiting = [asyncio.create_task(stop.wait()), asyncio.create_task(self._died.wait())]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
        finally:
            await self.stop()
        if self._died.is_set():
            raise ReflectorError("the data port stopped working; the error above says why, please report it")

    def _prepare_state(self, state: Path) -> Path:
        try:
            state.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_file = (state / "lock").open("ab")
        except OSError as error:
            raise ReflectorError(
                f"{state} cannot be used for --state ({error.strerror}); name a directory that you may write to"
            ) from None
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ReflectorError(f"another reflector uses {state}; give this one its own --state") from None
        return state


def _read_tables(paths: Sequence[Path]) -> list[Table]:
    try:
        return [read_table(path) for path in paths]
    except TableError as error:
        raise ReflectorError(str(error)) from None
    except OSError as error:
        raise ReflectorError(f"the table {error.filename} cannot be read ({error.strerror}): see --asn-db") from None


def _listen(config: Config) -> tuple[list[socket.socket], list[socket.socket]]:
    opened: list[socket.socket] = []
    try:
        control = _listen_on_all(config.hosts, config.control_port, opened)
        data = _listen_on_all(config.hosts, config.data_port, opened)
    except ReflectorError:
        for listener in opened:
            listener.close()
        raise
    return control, data


def _listen_on_all(hosts: Sequence[str], port: int, opened: list[socket.socket]) -> list[socket.socket]:
    """One listener a host, all on one port; a free one is looked for until every host has it."""
    tries = _FREE_PORT_TRIES if port == 0 and len(hosts) > 1 else 1
    while True:
        tries -= 1
        listeners: list[socket.socket] = []
        host = ""
        try:
            for host in hosts:
                taken = listeners[0].getsockname()[1] if listeners else port
                listeners.append(open_listener(host, taken))
        except OSError as error:
            for listener in listeners:
                listener.close()
            if tries > 0:
                continue
            raise ReflectorError(_why_not_listening(host, port, error)) from None
        opened += listeners
        return listeners


def _why_not_listening(host: str, port: int, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"--host {host} is not an address of this machine"
    if isinstance(error, PermissionError):
        return f"port {port} needs more rights than this user has; choose one above 1023"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken; choose another with --control-port or --data-port"
    return f"cannot listen on port {port} of {host} ({error.strerror})"


def _control_context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate.path)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _software(version: str) -> Software:
    return Software(
        version=version[:64],
        python=platform.python_version()[:32],
        tls=ssl.OPENSSL_VERSION[:64],
        kernel=platform.release()[:64],
    )


def announce_line(found: Announcement) -> str:
    """The one line that a reflector prints when it is ready."""
    return f"{found.url}#sha256={found.pin}"

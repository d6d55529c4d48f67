# SPDX-License-Identifier: EUPL-1.2
"""A whole reflector: composes control port, data port, records and delivery; starts and stops them in order.

Spec: spec/protocol.md.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import platform
import secrets
import signal
import ssl
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from probe.protocol.accounts import RETRY_AFTER_S, Refusal, refuse
from probe.protocol.booking import Booking, Identity
from probe.protocol.datagram import UDP_CARRIERS
from probe.reflector.clock import SteadyClock
from probe.reflector.config import (
    Announcement,
    Config,
    Opened,
    ReflectorError,
    allow_files,
    announce_line,
    default_limits,
    open_state,
    read_tables,
)
from probe.reflector.control import Control, ControlParts
from probe.reflector.data import DataPlane
from probe.reflector.datagrams import DatagramPlane
from probe.reflector.delivery import Delivery
from probe.reflector.keys import Certificate
from probe.reflector.listen import CannotListen, handed_over, listen
from probe.reflector.logs import LOG
from probe.reflector.metrics import Metrics
from probe.reflector.opening import CARRIERS
from probe.reflector.origin import Address, Origins
from probe.reflector.pool import Pool, url_host
from probe.reflector.portal import PortalPage, portal_listeners
from probe.reflector.receipts import Receipts
from probe.reflector.renewal import Renewal
from probe.reflector.udp import adopt_ports, open_ports
from probe.reflector.witness import Witness
from probe.wire.records import Origin, Software

__all__ = ["Announcement", "Config", "Reflector", "ReflectorError", "announce_line", "default_limits"]

_SWITCH_S: Final = 0.0005
"""How long one thread may keep the interpreter: pings must not wait 5 ms for the data thread."""
_HOUSEKEEPING_S: Final = 1.0
_LAST_DELIVERY_S: Final = 3.0
"""What is not delivered in this time at the end is delivered after the next start."""


class Reflector:
    """One reflector. `start`, then `stop`; or `run` until a signal comes."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock_file: IO[bytes] | None = None
        self._data: DataPlane | None = None
        self._control: Control | None = None
        self._portal: PortalPage | None = None
        self._delivery: Delivery | None = None
        self._renewal: Renewal | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._was_full = False
        self._receipts: Receipts | None = None
        self._datagrams: DatagramPlane | None = None
        self._booking: Booking | None = None
        self._witness: Witness | None = None
        self._clock = SteadyClock()
        self._metrics = Metrics(self._clock.ms)
        self._booking_lock = threading.Lock()
        self._died = asyncio.Event()

    async def start(self) -> Announcement:
        """Serve. Raises ReflectorError where that is not possible."""
        config = self._config
        opened = open_state(self._prepare_state(config.state))
        self._receipts = opened.receipts
        origins = Origins(read_tables(config.asn_tables))

        def origin_of(address: Address, told: str | None) -> Origin:
            return origins.find(address, opened.network_key.of(self._metrics.now_ms()), told)

        try:
            handed = handed_over(os.environ, os.getpid())
            control_listeners, data_listeners = listen(config.hosts, config.control_port, config.data_port, handed)
            portal = handed.portal
            if not portal and config.portal_port is not None:
                portal = portal_listeners(config.hosts, config.portal_port)
        except CannotListen as error:
            raise ReflectorError(str(error)) from None
        udp_ports = adopt_ports(handed.data_udp) or open_ports(data_listeners)
        pool = Pool(config.hosts, control_listeners[0].getsockname()[1], data_listeners[0].getsockname()[1])
        identity = Identity(
            key_id=opened.signer.key_id,
            data_certificate=opened.data_certificate.digest,
            software=_software(config.version),
            carriers=CARRIERS + (UDP_CARRIERS if udp_ports else ()),
        )
        self._booking = Booking(identity=identity, limits=config.limits, random_bytes=secrets.token_bytes)
        self._metrics.capacity.set(config.limits.capacity_mbps)
        self._witness = Witness(self._receipts, self._metrics)
        loop = asyncio.get_running_loop()

        def died() -> None:
            loop.call_soon_threadsafe(self._died.set)

        self._datagrams = DatagramPlane(
            ports=udp_ports,
            booking=self._booking,
            lock=self._booking_lock,
            origin_of=origin_of,
            metrics=self._metrics,
            on_death=died,
            limits=config.datagram_limits,
        )
        self._data = DataPlane(
            listeners=data_listeners,
            contexts=opened.contexts,
            booking=self._booking,
            lock=self._booking_lock,
            origin_of=origin_of,
            metrics=self._metrics,
            on_death=died,
            on_begin=self._datagrams.begin,
            limits=config.data_limits,
        )
        health = {"version": config.version, "key": opened.signer.key_id}
        self._control = Control(
            ControlParts(
                booking=self._booking,
                lock=self._booking_lock,
                data=self._data,
                datagrams=self._datagrams,
                witness=self._witness,
                pool=pool,
                metrics=self._metrics,
                origin_of=origin_of,
                health=health,
            )
        )
        context = _control_context(opened.control_certificate)
        self._renewal = Renewal(
            state=config.state,
            booking=self._booking,
            lock=self._booking_lock,
            receipts=self._receipts,
            contexts=opened.contexts,
            control_context=context,
            health=health,
        )
        sys.setswitchinterval(_SWITCH_S)
        self._data.start()
        self._datagrams.start()
        await self._control.start(control_listeners, context)
        self._portal = PortalPage(self._sign)
        await self._portal.start(portal)
        self._begin_tasks(opened)
        return Announcement(
            url=f"https://{url_host(config.hosts)}:{pool.control_port}",
            pin=opened.control_certificate.digest,
            key=opened.signer.key_id,
            control_port=pool.control_port,
            data_port=pool.data_port,
            portal_port=portal[0].getsockname()[1] if portal else None,
        )

    def _sign(self, message: bytes) -> bytes:
        """With the key that new sessions are signed with."""
        if self._receipts is None or self._booking is None:
            raise AssertionError("started in order")
        return self._receipts.sign(self._booking.identity.key_id, message)

    def _begin_tasks(self, opened: Opened) -> None:
        self._tasks.append(asyncio.create_task(self._keep_house()))
        if not self._config.collector:
            return
        self._delivery = Delivery(
            collector=self._config.collector,
            state=self._config.state,
            journals=opened.receipts.journals,
            metrics=self._metrics,
            network_key=opened.network_key,
            aside_bytes=self._config.aside_bytes,
        )
        self._tasks.append(asyncio.create_task(self._delivery.run()))

    def reload(self) -> None:
        """Read keys and certificates again. Sessions that are open keep theirs."""
        if self._renewal is not None:
            self._renewal.reload(self._metrics.now_ms())

    async def _keep_house(self) -> None:
        """Once a second: flush the journals, change certificates, and see whether there is room for more records."""
        receipts, booking, renewal = self._receipts, self._booking, self._renewal
        if receipts is None or booking is None or renewal is None:
            raise AssertionError("started in order")
        while True:
            await asyncio.sleep(_HOUSEKEEPING_S)
            try:
                await asyncio.to_thread(receipts.sync)
                refusal = renewal.tick(self._metrics.now_ms()) or self._full(receipts.bytes_kept)
            except OSError as error:
                self._metrics.write_errors.inc()
                LOG.error("what is under --state cannot be written (%s); repair the disk", error.strerror)
                refusal = refuse(503, "busy", "this reflector cannot write its records", RETRY_AFTER_S)
            with self._booking_lock:
                booking.close_for(refusal)
                self._clock.settle(is_idle=booking.sessions_open == 0)

    def _full(self, kept: int) -> Refusal | None:
        """No session is opened whose records could not be kept; those that are kept wait for their collector."""
        self._metrics.journal_bytes.set(kept)
        most = self._config.journal_bytes
        if not most or kept < most:
            self._was_full = False
            return None
        if not self._was_full:
            self._was_full = True
            LOG.error(
                "%d MB of records are kept: no more sessions. Make the collector reachable (--collector), move the "
                "journals away while the reflector is stopped, or raise --journal-mb",
                kept // 1_000_000,
            )
        return refuse(503, "busy", "this reflector has no room for more records", RETRY_AFTER_S)

    async def stop(self) -> None:
        """End open sessions with a receipt and stop serving. Safe to call after a failed start."""
        if self._booking is not None and self._witness is not None:
            with self._booking_lock:
                ended = self._booking.stop(self._metrics.now_ms())
            self._witness.catch_up(ended)
        if self._portal is not None:
            self._portal.stop()
        if self._control is not None:
            await self._control.stop()
        if self._data is not None:
            await asyncio.to_thread(self._data.stop)
        if self._datagrams is not None:
            await asyncio.to_thread(self._datagrams.stop)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._delivery is not None:
            await self._delivery.flush(_LAST_DELIVERY_S)
        if self._receipts is not None:
            self._receipts.close()
        if self._lock_file is not None:
            self._lock_file.close()

    async def run(self, announce: Callable[[Announcement], None]) -> None:
        """Serve until SIGINT or SIGTERM; SIGHUP reads keys and certificates again.

        Raises ReflectorError, also where the data port died of a defect.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        allow_files()
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

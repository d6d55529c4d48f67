# SPDX-License-Identifier: EUPL-1.2
"""One run by hand: environment, session, signature, file, upload.

The machine in probe/protocol decides, this carries out. What was measured is signed and kept whatever happened
on the way. Spec: spec/protocol.md, spec/records.md.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from probe.netio.control import Url, UrlError, parse_url
from probe.nettests.base import Cost, Nettest, Options, Progress
from probe.nettests.registry import get
from probe.protocol.probe_role import ProbeSession
from probe.shell import Shell, Surroundings, software
from probe.state import State, StateError, write_whole
from probe.upload import Uploaded, collector_url, upload
from probe.wire.envelope import Envelope, seal, to_line
from probe.wire.records import Measurement


class RunError(Exception):
    """The run did not take place; the message is one sentence that says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to run, checked before anything is sent."""

    nettest: Nettest
    options: Options
    reflector: Url
    state: State
    out: Path | None = None
    collector: Url | None = None
    keep: bool = False
    """Keep the records in the spool: somebody uploads them later."""
    bind: str | None = None
    plan: str | None = None
    """SHA-256 of the plan that the profiles come from."""
    version: str = "0"
    reflector_key: str | None = None
    """Key id that the reflector must have; None for a run by hand, which names it by its certificate."""
    around: Surroundings | None = None
    """What a turn knows already; None for a run by hand."""
    has_lock: bool = False
    """The caller is within `state.exclusive()`."""

    @property
    def cost(self) -> Cost:
        """The most it will take."""
        return self.nettest.cost(self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What came of it."""

    session: ProbeSession
    measurement: Measurement
    envelopes: tuple[Envelope, ...]
    """The measurement's, then the receipt's where one was given."""
    segment_s: float
    paces: Mapping[int, float]
    """Mbit/s that each pair was run at, by its number; 0 means unlimited."""
    uploaded: Uploaded | None = None
    spooled: bool = False
    dropped: int = 0
    """Older sessions that had to leave the spool."""


def request_of(
    nettest: str,
    options: Options,
    *,
    reflector: str,
    state: Path,
    run: Path | None = None,
    out: Path | None = None,
    collector: str | None = None,
    keep: bool = False,
    bind: str | None = None,
    plan: str | None = None,
    version: str = "0",
) -> Request:
    """Check everything that can be checked at home. Raises OptionError, ProfileError, UrlError."""
    request = Request(
        nettest=get(nettest),
        options=options,
        reflector=parse_url(reflector),
        state=State(state, run),
        out=out,
        collector=collector_url(collector) if collector else None,
        keep=keep,
        bind=bind,
        plan=plan,
        version=version,
    )
    if bind is not None and not _is_address(bind):
        raise UrlError(f"{bind!r} is not an address of this machine to connect from")
    _ = request.cost
    return request


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def run(
    request: Request,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Ran:
    """Measure, sign, write, upload. Raises RunError where no session came about, StateError."""
    state = request.state
    state.prepare()
    if request.out is not None:
        _check_writable(request.out)
    with nullcontext() if request.has_lock else state.exclusive():
        signer = state.signer()
        shell = Shell(
            request.reflector,
            bind=request.bind,
            key_id=signer.key_id,
            software=software(request.version),
            segment_s=request.options.segment_s,
            on_progress=on_progress,
            should_stop=should_stop,
            surroundings=request.around,
            expected_reflector=request.reflector_key,
        )
        try:
            session = request.nettest.run(shell, request.options)
        finally:
            shell.close()
        if session.grant is None:
            raise RunError(_refusal(request, session, shell.last_error))
        measurement = session.measurement(
            record_id=secrets.token_hex(16),
            sequence=state.next_sequence(),
            environment=replace(shell.environment, hotspot=request.options.hotspot),
            software=shell.software,
            plan=request.plan,
        )
        sealed = seal(measurement, signer)
        ran = Ran(
            session=session,
            measurement=measurement,
            envelopes=(sealed,) if session.receipt is None else (sealed, session.receipt),
            segment_s=request.options.segment_s,
            paces=shell.paces,
        )
        return _hand_over(request, ran)


def _hand_over(request: Request, ran: Ran) -> Ran:
    envelopes = list(ran.envelopes)
    if request.out is not None:
        try:
            write_whole(request.out, b"".join(to_line(envelope) for envelope in envelopes))
        except OSError as error:
            _spool(request, ran)
            raise RunError(
                f"{request.out} could not be written ({error.strerror}); the records are in the spool instead"
            ) from None
    if request.collector is None:
        return replace(ran, spooled=True, dropped=_spool(request, ran)) if request.keep else ran
    dropped, trouble = 0, None
    try:
        dropped = _spool(request, ran)  # before it is sent, so that a kill during the upload loses nothing
    except StateError as error:
        trouble = error
    uploaded = send(request.collector, envelopes)
    if uploaded.is_done:
        _unspool(request, ran)
        return replace(ran, uploaded=uploaded, dropped=dropped)
    if trouble is not None:
        raise trouble
    return replace(ran, uploaded=uploaded, spooled=True, dropped=dropped)


def _spool(request: Request, ran: Ran) -> int:
    spool = request.state.spool
    try:
        return spool.put(ran.measurement.sequence, ran.measurement.session, list(ran.envelopes))
    except OSError as error:
        raise StateError(
            f"the spool {spool.directory} cannot be written ({error.strerror}): this run is lost"
        ) from None


def _unspool(request: Request, ran: Ran) -> None:
    spool = request.state.spool
    for entry in spool.entries():
        if entry.name.endswith(f"-{ran.measurement.session}"):
            with contextlib.suppress(OSError):  # it goes again next time, and is a duplicate then
                spool.remove(entry)


def send(collector: Url, envelopes: list[Envelope]) -> Uploaded:
    """Upload one session's records: the measurement, and the receipt in case the reflector's own copy got lost."""
    uploaded = upload(collector, envelopes[:1])
    if uploaded.is_done and envelopes[1:]:
        # The reflector reports by itself; that this copy arrives or is refused changes nothing for us.
        upload(collector, envelopes[1:], door="receipts")
    return uploaded


def _check_writable(out: Path) -> None:
    directory = out.parent
    if out.is_dir() or not directory.is_dir() or not os.access(directory, os.W_OK):
        raise RunError(f"{out} cannot be written: name a file in a directory that exists and is yours")


def _refusal(request: Request, session: ProbeSession, detail: str) -> str:
    where = f"the reflector at {request.reflector.authority}"
    if session.complaint:
        return f"{where} did not open a session: {session.complaint}"
    if session.failure == "tls_wrong_certificate":
        return f"{where} is not the one you named: {detail}"
    return f"{where} cannot be reached ({detail or session.failure}); is it running, and is the port right?"

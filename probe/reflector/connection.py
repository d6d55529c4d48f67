# SPDX-License-Identifier: EUPL-1.2
"""One data connection, from its first byte to the reset, on a socket that never blocks.

No byte of payload leaves before `opening` read a valid hello and the booking gave a job for it. Everything here
happens the same way for every name and every first byte. Spec: spec/protocol.md, section "Data connection".
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import replace
from typing import Final, Literal, Protocol

from probe.netio.dial import NOTSENT_BYTES, prepare_sender, reset
from probe.protocol.accounts import Awaited, Counted, Job, NoJob
from probe.protocol.datagram_flow import Filler
from probe.protocol.payload import KNOWN, Check, payload
from probe.protocol.session import BIN_MS, HELLO_WAIT_S
from probe.reflector import tcpinfo
from probe.reflector.account import Account
from probe.reflector.echo import EchoConnection, PeerEnded
from probe.reflector.opening import Ending, Greeting, NotOpened, Opening, recognise
from probe.reflector.origin import Address
from probe.wire.failure import classify
from probe.wire.records import SegmentEnd

PIECE_BYTES: Final = 16 * 1024
"""What is sent or read at a time: the content of one TLS record."""
_TURN_PIECES: Final = 16
"""Most pieces in one turn, so that a fast connection does not starve forty-nine others."""
_READ: Final = 1
_WRITE: Final = 2


class Host(Protocol):
    """What a connection needs of the loop it runs in."""

    def noise(self) -> tuple[memoryview, int]:
        """What to send over and over inside TLS, and where to begin in it."""
        ...

    scratch: memoryview
    """Where received bytes go and are forgotten."""
    filler: Filler
    """What small packets are filled from."""

    def context_for(self, protocols: tuple[bytes, ...]) -> ssl.SSLContext:
        """The TLS context that selects the first of these application protocols."""
        ...

    def watch(self, connection: Connection, events: int) -> None:
        """Call `connection.ready` on these events (1 read, 2 write); 0 stops."""
        ...

    def wake(self, connection: Connection, at: float) -> None:
        """Call `connection.tick` at this time, instead of an earlier wish."""
        ...

    def awaited(self, ticket: str) -> Awaited | None:
        """Ask the booking what a ticket is good for."""
        ...

    def opened(self, greeting: Greeting, address: Address) -> Job | NoJob:
        """Ask the booking."""
        ...

    def begin(self, tickets: tuple[str, ...], at: float) -> None:
        """The clock of these slots starts."""
        ...

    def ended(self, job: Job, counted: Counted) -> None:
        """Tell the booking, before the reset."""
        ...

    def grown_up(self, connection: Connection) -> None:
        """The connection has shown a valid hello."""
        ...

    def closed(self, connection: Connection, how: Ending) -> None:
        """The connection is over."""
        ...

    def unix_ms(self) -> int:
        """Wall clock."""
        ...

    def effort(self) -> tuple[float, float]:
        """Seconds of CPU that the loop has used, and seconds by which it was late, since its start."""
        ...


class Connection:
    """A data connection. `ready` and `tick` are called by the loop; times are seconds of its monotonic clock."""

    def __init__(self, host: Host, sock: socket.socket, address: Address, now: float) -> None:
        self.fd = sock.fileno()
        """The descriptor stays the same when TLS is put on top."""
        self.address = address
        self._sock = sock
        self._opening: Opening | None = None
        self.is_young = True
        """No valid hello yet."""
        self.job: Job | None = None
        self.wake_at = 0.0
        self._host = host
        self._deadline = now + HELLO_WAIT_S
        self._step: Literal["opening", "waiting", "sending", "receiving", "echoing", "closed"] = "opening"
        self._account: Account | None = None
        self._slot: EchoConnection | None = None
        """Of a concurrent pair: small packets instead of a transfer."""
        self._starts = now
        """When a load's transfer begins."""
        self._ends = 0.0
        self._bins = 0
        self._answer = memoryview(b"")
        self._payload = memoryview(b"")
        self._offset = 0
        self._user_pace = 0.0
        self._has_payload = False
        self._check: Check | None = None
        self._effort = (0.0, 0.0)
        host.watch(self, _READ)
        host.wake(self, self._deadline)

    # -- what the loop calls ------------------------------------------------------------------------------------

    def ready(self, events: int, now: float) -> None:
        """The socket can be read (1) or written (2)."""
        try:
            if self._step == "opening":
                self._open(now)
            elif self._step == "sending":
                self._exchange(events, now)
            elif self._step == "receiving":
                self._receive(now)
            elif self._step == "echoing":
                self._echo(now)
            elif self._step == "waiting":
                self._wait(now)
        except NotOpened as found:
            self._close(found.how)
        except PeerEnded:
            self._finish("aborted", "broken", now)
        except BlockingIOError:
            self._host.watch(self, _READ | _WRITE if self._is_writing else _READ)
        except ssl.SSLWantReadError:
            self._host.watch(self, _READ)
        except ssl.SSLWantWriteError:
            self._host.watch(self, _READ | _WRITE)
        except OSError as error:
            self._fail(error, now)

    def tick(self, now: float) -> None:
        """A time that was asked for has come."""
        if self._step in {"echoing", "waiting"}:
            self.wake_at = 0.0  # this wish is used up
            self.ready(0, now)
            return
        if self._account is None:
            if now >= self._deadline:
                self._close("too_slow")
            return
        if now >= self._ends:
            self._finish("complete", "done", now)
            return
        while self._bin_time() <= now:
            self._bins += 1
        self._account.read(now)
        self._host.wake(self, min(self._bin_time(), self._ends))
        if self._user_pace:
            self._host.watch(self, _READ | _WRITE)

    def begin(self, at: float) -> None:
        """A slot's clock starts."""
        if self._slot is not None:
            self._slot.begin(at)
            self._host.wake(self, self._slot.wake_at)

    def stop(self, now: float) -> None:
        """End it now, whatever it does: the pair was finished, or the reflector stops."""
        if self.job is not None:
            self._finish("aborted", "stopped", now)
        else:
            self._close("stopped")

    # -- before the hello ---------------------------------------------------------------------------------------

    def _open(self, now: float) -> None:
        if self._opening is None:
            self._opening = recognise(self._sock, self._host)
            if self._opening is None:
                return
            self._sock = self._opening.sock
        greeting = self._opening.advance()
        job = self._host.opened(greeting, self.address)
        if isinstance(job, NoJob):
            self._close("refused")
            return
        self.job, self.is_young = job, False
        self._host.grown_up(self)
        self._begin(job, now)

    @property
    def _is_writing(self) -> bool:
        """Whether the plain socket that would have blocked was written to, not read from."""
        if self._step == "opening":
            return self._opening is not None and self._opening.is_writing
        return self._step == "sending" or bool(self._answer)

    # -- the segment --------------------------------------------------------------------------------------------

    def _begin(self, job: Job, now: float) -> None:
        self._effort = self._host.effort()
        if job.echo is not None:
            self._slot = EchoConnection(self._sock, job, job.echo, self._host.filler, self._host.unix_ms())
            self._step = "echoing"
            self._echo(now)
        elif job.begins:
            self._step, self._starts = "waiting", now + job.after_s
            self._host.watch(self, _READ)
            self._host.wake(self, self._starts)
            self._host.begin(job.begins, now)
        else:
            self._answer = memoryview(job.answer)
            self._transfer(job, now)

    def _echo(self, now: float) -> None:
        """A slot of a concurrent pair: take echoes, send what is due."""
        if self._slot is None:
            raise AssertionError("only a slot echoes")
        end = self._slot.advance()
        if end is not None:
            self._finish(end, "done" if end == "complete" else "too_slow", now)
            return
        self._host.watch(self, _READ | _WRITE if self._slot.wants_write else _READ)
        if self._slot.wake_at != self.wake_at:
            self._host.wake(self, self._slot.wake_at)

    def _wait(self, now: float) -> None:
        """A load before its time: what its peer says is thrown away, and its end is noticed."""
        if self.job is None:
            raise AssertionError("only a load waits")
        if now < self._starts:
            if not self._sock.recv_into(self._host.scratch):
                raise PeerEnded
            return
        # Up, this byte says when to begin.
        self._answer = memoryview(b"\0" if self.job.direction == "up" else b"")
        self._transfer(self.job, now)

    def _transfer(self, job: Job, now: float) -> None:
        if job.direction == "down":
            options = prepare_sender(self._sock, job.pace_mbps)
            self._user_pace = job.pace_mbps * 1e6 / 8 if job.pace_mbps and not options.paced else 0.0
            if job.carrier in KNOWN:
                self._payload = memoryview(payload(job.carrier, job.ticket))
            else:
                self._payload, self._offset = self._host.noise()
            self._start_clock(now, None, congestion=options.congestion, paced=options.paced)
            self._step = "sending"
            self._host.watch(self, _READ | _WRITE)
            self._send(now)
        else:
            # What the kernel received beyond the hello is payload already.
            info = tcpinfo.read(self._sock)
            ahead = tcpinfo.unread_bytes(self._sock) + (
                self._sock.pending() if isinstance(self._sock, ssl.SSLSocket) else 0
            )
            self._start_clock(now, info.bytes_received - ahead if info else None)
            self._step = "receiving"
            if job.carrier in KNOWN:
                self._check = Check(job.carrier, job.ticket)
            self._host.watch(self, _READ)
            self._receive(now)

    def _start_clock(
        self, now: float, baseline: int | None, congestion: str | None = None, paced: bool | None = None
    ) -> None:
        if self.job is None:
            raise AssertionError("a clock runs for a job")
        self._account = Account(
            self._sock,
            self.job.direction,
            now=now,
            started_ms=self._host.unix_ms(),
            baseline=baseline,
            congestion=congestion,
            paced=paced,
        )
        self._ends = now + self.job.duration_s
        self._bins = 1
        self._host.wake(self, min(self._bin_time(), self._ends))

    def _bin_time(self) -> float:
        return (self._account.started if self._account else 0.0) + self._bins * BIN_MS / 1000

    def _exchange(self, events: int, now: float) -> None:
        if events & _READ:
            self._drain(now)
        if events & _WRITE and self._account is not None:
            self._send(now)

    def _send(self, now: float) -> None:
        account, payload = self._counting, self._payload
        self._send_answer()
        for _ in range(_TURN_PIECES):
            if self._user_pace and account.app_bytes > (now - account.started) * self._user_pace + NOTSENT_BYTES:
                self._host.watch(self, _READ)  # the next bin's tick goes on; 64 kB last about that long
                return
            piece = payload[self._offset : self._offset + PIECE_BYTES]
            sent = self._sock.send(piece)
            account.app_bytes += sent
            self._offset = (self._offset + sent) % len(payload)

    def _send_answer(self) -> None:
        while self._answer:
            self._answer = self._answer[self._sock.send(self._answer) :]

    def _drain(self, now: float) -> None:
        """A sender's peer says nothing; what it says anyway is thrown away, and its end is noticed."""
        try:
            if not self._sock.recv_into(self._host.scratch):
                self._finish("aborted", "broken", now)
        except (ssl.SSLWantReadError, BlockingIOError):
            pass

    def _receive(self, now: float) -> None:
        self._send_answer()
        for _ in range(_TURN_PIECES):
            got = self._sock.recv_into(self._host.scratch)
            if not got:
                self._finish("aborted", "broken", now)
                return
            if not self._has_payload:
                self._has_payload = True
                self._restart_clock(now)
            self._counting.app_bytes += got
            if self._check is not None:
                self._check.take(self._host.scratch[:got])

    def _restart_clock(self, now: float) -> None:
        """Up: the clock starts with the first payload byte, the counter where the hello ended."""
        if self.job is None:
            raise AssertionError("a clock runs for a job")
        if self.job.begins:
            return  # a load has the pair's clock
        self._counting.restart(now, self._host.unix_ms())
        self._ends = now + self.job.duration_s
        self._bins = 1
        self._host.wake(self, min(self._bin_time(), self._ends))

    # -- the end ------------------------------------------------------------------------------------------------

    def _fail(self, error: OSError, now: float) -> None:
        if self.job is None:
            self._close("gone" if not isinstance(error, ssl.SSLError) else "no_tls")
        else:
            altered = classify(error, during="transfer") == "altered_bytes"
            self._finish("reset" if _was_reset(self._sock, error) else "aborted", "broken", now, altered=altered)

    def _finish(self, end: SegmentEnd, how: Ending, now: float, *, altered: bool = False) -> None:
        if self.job is None:
            raise AssertionError("only a segment is finished")
        counted = self._closed_account(end, now)
        if altered or (self._check is not None and self._check.is_altered):
            counted = replace(counted, altered=True)
        # Told before the reset: whoever sees the reset can rely on the account.
        self._host.ended(self.job, counted)
        self._close(how)

    def _closed_account(self, end: SegmentEnd, now: float) -> Counted:
        account, self._account = self._account, None
        if self._slot is not None:
            return self._slot.close(end, now, saturated=self._was_saturated(self._slot.started, now))
        if account is None:
            return Counted(end=end)  # a load that ended before its transfer began
        return account.close(end, now, saturated=self._was_saturated(account.started, now))

    def _was_saturated(self, started: float, now: float) -> bool:
        spent = max(now - started, 0.1)
        cpu, late = (after - before for after, before in zip(self._host.effort(), self._effort, strict=True))
        return cpu > 0.9 * spent or late > 0.05 * spent

    def _close(self, how: Ending) -> None:
        self._step = "closed"
        self._host.closed(self, how)
        reset(self._sock)

    @property
    def _counting(self) -> Account:
        if self._account is None:
            raise AssertionError("no account yet")
        return self._account


def _was_reset(sock: socket.socket, error: OSError) -> bool:
    """Whether the peer reset the connection, as opposed to ending it or sending nonsense.

    Python's ssl may report a reset as an unexpected end of the stream; a connection that was reset has no peer
    any more, one that the peer merely closed still has.
    """
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return True
    if not isinstance(error, ssl.SSLEOFError | ssl.SSLSyscallError):
        return False
    try:
        sock.getpeername()
    except OSError:
        return True
    return False

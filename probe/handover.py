# SPDX-License-Identifier: EUPL-1.2
"""Empties the spool into the collector: several sessions a request, each removed only after its own answer.

A kill between answer and removal sends a session again, which is a duplicate there and nothing worse. An answer that
cannot be read removes nothing. Spec: spec/probe.md, section "Uploads".
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from probe.backoff import load, save, waits_until_ms
from probe.netio.control import Url
from probe.netio.dial import Dialer
from probe.spool import Entry
from probe.state import State, StateError
from probe.upload import Uploaded, upload
from probe.wire.envelope import Envelope
from probe.wire.failure import Failure
from probe.wire.limits import MAX_BATCH

_BATCH_BYTES: Final = 512 * 1024
_BATCH: Final = 50
"""A request's most, far below what a collector takes: a router holds it several times over in memory."""
_MOST_S: Final = 120.0
"""How long the spool is sent in one go; the rest goes next time."""

_Batch = list[tuple[Entry, list[Envelope]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolSent:
    """What became of the spool."""

    sessions: int = 0
    """Have left it: acknowledged, or refused for good."""
    accepted: int = 0
    duplicates: int = 0
    rejected: tuple[str, ...] = ()
    """Stable codes, one a session that will never be taken."""
    damaged: int = 0
    """Files that could not be read and were set aside."""
    sent_bytes: int = 0
    """Of all request bodies, compressed."""
    left: int = 0
    """Sessions that still wait."""
    failure: Failure | None = None
    """Why the rest was not sent; None where nothing stood in the way or a pause still lasts."""
    detail: str = ""
    waiting_until_ms: int | None = None
    """Not to be tried before."""


def sync_spool(
    state: State,
    url: Url,
    now_ms: int,
    rng: random.Random,
    *,
    dialer: Dialer | None = None,
    is_asked: bool = False,
    most_s: float = _MOST_S,
) -> SpoolSent:
    """Send what waits, oldest first, until the first failure that may pass; keeps how the collector stands.

    While a pause lasts nothing is sent, unless a person asked for it (`is_asked`). Raises StateError where a session
    that was answered for cannot be removed.
    """
    sending = _Sending(state, url, now_ms, rng, dialer)
    waiting_ms = None if is_asked else waits_until_ms(sending.standing.pause, now_ms)
    if waiting_ms is not None:
        left = len(state.spool.entries())
        return SpoolSent(left=left, waiting_until_ms=waiting_ms, detail=sending.standing.detail)
    return sending.run(most_s)


def collector_name(url: Url) -> str:
    """What a standing names its collector by."""
    return f"{url.authority}{url.path}"


class _Sending:
    """One go."""

    def __init__(self, state: State, url: Url, now_ms: int, rng: random.Random, dialer: Dialer | None) -> None:
        self._state = state
        self._spool = state.spool
        self._url = url
        self._began_ms = now_ms
        self._began_s = time.monotonic()
        self._rng = rng
        self._dialer = dialer
        self._sent = SpoolSent()
        self._most = _BATCH
        self.standing = load(state.run).of(collector_name(url))

    def run(self, most_s: float) -> SpoolSent:
        damaged = self._spool.counts().damaged
        entries = self._spool.entries()
        while entries and self._sent.failure is None and time.monotonic() - self._began_s < most_s:
            batch = self._batch(entries)
            if batch and not self._send(batch):
                entries = [entry for entry, _ in batch] + entries
        return replace(
            self._sent,
            damaged=self._spool.counts().damaged - damaged,
            left=len(self._spool.entries()),
            waiting_until_ms=waits_until_ms(self.standing.pause, self._now_ms()),
        )

    def _batch(self, entries: list[Entry]) -> _Batch:
        """Take the oldest sessions off the list, as many as fit one request."""
        batch: _Batch = []
        size = 0
        while entries and len(batch) < self._most and (not batch or size + entries[0].size <= _BATCH_BYTES):
            entry = entries.pop(0)
            envelopes = self._spool.take(entry)
            if envelopes:
                batch.append((entry, envelopes))
                size += entry.size
        return batch

    def _send(self, batch: _Batch) -> bool:
        """One request; False where the same sessions must go again in smaller ones."""
        done = upload(self._url, [envelopes[0] for _, envelopes in batch], dialer=self._dialer)
        self._add(sent_bytes=done.sent_bytes)
        if (
            done.rejected and not done.fates
        ):  # the whole body was refused: which record is to blame shows in smaller ones
            if len(batch) > 1:
                self._most = len(batch) // 2
                return False
            done.fates, self._most = ("refused",), _BATCH
        self._note(batch, done)
        self._let_go([one for one, fate in zip(batch, done.fates, strict=False) if fate != "later"])
        return True

    def _note(self, batch: _Batch, done: Uploaded) -> None:
        """Sums and standing after an answer, or the lack of one."""
        self._add(accepted=done.accepted, duplicates=done.duplicates)
        rejected = (*self._sent.rejected, *done.rejected)
        detail = done.detail if done.failure or done.rejected else self._sent.detail
        self._sent = replace(self._sent, rejected=rejected, failure=done.failure, detail=detail)
        now_ms, standing = self._now_ms(), self.standing
        if done.fates:
            standing = standing.answered(now_ms)
        if "kept" in done.fates:
            standing = replace(standing, uploaded_ms=now_ms)
        refused = [entry.name for (entry, _), fate in zip(batch, done.fates, strict=False) if fate == "refused"]
        if refused:
            total = standing.refused + len(refused)
            standing = replace(standing, refused=total, refused_reason=done.rejected[-1], refused_name=refused[-1])
        if done.failure is not None:
            why = {"failure": done.failure, "detail": done.detail}
            standing = standing.failed(now_ms, self._rng, asked_ms=done.retry_after_ms, **why)
        self.standing = standing
        # On a disk where not even this can be kept the next turn asks again, which is bearable.
        with contextlib.suppress(OSError):
            save(self._state.run, standing, durable=False)

    def _let_go(self, settled: _Batch) -> None:
        """Forget the sessions that were answered for, after their receipts went through the other door."""
        for receipts in _chunks([receipt for _, envelopes in settled for receipt in envelopes[1:]]):
            # The reflector reports by itself; that this copy arrives or is refused changes nothing for us.
            copy = upload(self._url, receipts, door="receipts", dialer=self._dialer)
            self._add(sent_bytes=copy.sent_bytes)
            if copy.failure is not None:
                break
        try:
            for entry, _ in settled:
                self._spool.remove(entry)
        except OSError as error:
            raise StateError(
                f"the spool {self._spool.directory} cannot be written ({error.strerror}): what was sent will be sent "
                f"again; see to its permissions"
            ) from None
        self._add(sessions=len(settled))

    def _add(self, **counts: int) -> None:
        self._sent = replace(self._sent, **{name: getattr(self._sent, name) + n for name, n in counts.items()})

    def _now_ms(self) -> int:
        return self._began_ms + round((time.monotonic() - self._began_s) * 1000)


def _chunks(envelopes: list[Envelope]) -> Iterator[list[Envelope]]:
    for start in range(0, len(envelopes), MAX_BATCH):
        yield envelopes[start : start + MAX_BATCH]

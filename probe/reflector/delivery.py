# SPDX-License-Identifier: EUPL-1.2
"""Brings started pairs and receipts to the collector, by themselves and as late as it takes.

The journals are the queue and a cursor file remembers how far they were taken. A kill or a power cut at any moment
makes a record go twice at worst, and the collector knows it by its digest; no record is ever passed over. A
measurement never waits for this. Spec: spec/api.md, section "Uploads"; spec/protocol.md, section "Journals".
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp

from probe.reflector.keys import NetworkKey, write_private
from probe.reflector.logs import LOG
from probe.reflector.metrics import Metrics
from probe.reflector.receipts import ASIDE_BYTES, Journal
from probe.wire.codec import WireError, dumps, loads
from probe.wire.limits import MAX_BATCH, MAX_BODY_BYTES, MAX_ENVELOPE_BYTES

IDLE_S: Final = 1.0
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 300.0
REJECTED: Final = "rejected.jsonl"
"""Records that the collector will never take, for a person to look at."""
_REQUEST_S: Final = 30.0
_PATIENT: Final = frozenset({401, 403, 404, 405, 408, 429})
"""Statuses that say that the collector or its configuration is not ready, not that a record is bad."""
_PATIENT_REASONS: Final = frozenset({"untrusted_reflector"})
_MOST_BATCH_BYTES: Final = MAX_BODY_BYTES - 4096
Verdict = Literal["taken", "too_much", "trouble"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole lines of one journal."""

    lines: tuple[bytes, ...]
    end: int
    """Offset behind the last of them."""

    def body(self) -> bytes:
        """The body of its upload."""
        return gzip.compress(b'{"envelopes":[' + b",".join(self.lines) + b"]}", compresslevel=6)


def next_batch(path: Path, offset: int, most: int = MAX_BATCH) -> Batch | None:
    """The next whole lines from `offset` on, within the collector's limits; None where there are none."""
    lines: list[bytes] = []
    total, end = 0, offset
    with path.open("rb") as file:
        file.seek(offset)
        while len(lines) < most:
            line = file.readline(MAX_ENVELOPE_BYTES + 1)
            if not line.endswith(b"\n") or total + len(line) > _MOST_BATCH_BYTES:
                break
            lines.append(line.strip())
            total += len(line) + 1
            end += len(line)
    return Batch(tuple(lines), end) if lines else None


class Delivery:
    """Delivers two journals in turn. Run `run` as a task; cancel it to stop."""

    def __init__(
        self,
        *,
        collector: str,
        state: Path,
        journals: tuple[Journal, ...],
        metrics: Metrics,
        network_key: NetworkKey,
        first_pause_s: float = FIRST_PAUSE_S,
        aside_bytes: int = ASIDE_BYTES,
    ) -> None:
        self._url = collector.rstrip("/") + "/v1/receipts"
        self._cursor_path = state / "delivery.json"
        self._rejected_path = state / REJECTED
        self._journals = journals
        self._metrics = metrics
        self._network_key = network_key
        self._first_pause_s = first_pause_s
        self._aside_bytes = aside_bytes
        self._cursor = self._read_cursor()
        self._most = MAX_BATCH
        self._retry_after_s = 0.0

    async def run(self) -> None:
        """Deliver for ever; every trouble is waited out with growing pauses."""
        pause_s = self._first_pause_s
        timeout = aiohttp.ClientTimeout(total=_REQUEST_S)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            while True:
                try:
                    done = await self.once(http)
                except OSError as error:
                    LOG.error("records cannot be read or noted under --state (%s); trying again", error.strerror)
                    done = "trouble"
                if done == "trouble":
                    self._metrics.delivery_retries.inc()
                    # Drawn at random, so that many reflectors do not come back at once.
                    await asyncio.sleep(max(self._retry_after_s, pause_s * random.uniform(0.5, 1.0)))
                    pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                else:
                    pause_s = self._first_pause_s
                    if done == "nothing":
                        await asyncio.sleep(IDLE_S)

    async def flush(self, within_s: float) -> None:
        """Deliver what waits, once, before stopping; what does not get through stays for the next start."""
        timeout = aiohttp.ClientTimeout(total=within_s)
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(within_s), aiohttp.ClientSession(timeout=timeout) as http:
                while await self.once(http) == "delivered":
                    pass

    async def once(self, http: aiohttp.ClientSession) -> Literal["delivered", "nothing", "trouble"]:
        """Deliver one batch. Raises OSError where the disk fails: nothing has been passed over then."""
        self._retry_after_s = 0.0
        self._tidy()
        self._tell_backlog()
        for path, offset in self._waiting():
            # Beside the event loop: reading and packing 8 MB would make a control ping late.
            batch = await asyncio.to_thread(next_batch, path, offset, self._most)
            if batch is None:
                batch = await asyncio.to_thread(_unreadable, path, offset)
                self._keep_rejected(batch.lines)
                verdict: Verdict = "taken"
            else:
                verdict = await self._post(http, batch)
            if verdict == "trouble":
                return "trouble"
            if verdict == "too_much":
                self._most = max(1, self._most // 2)
                return "delivered"
            self._most = MAX_BATCH
            self._cursor[path.name] = batch.end
            self._write_cursor()
            self._tell_backlog()
            return "delivered"
        return "nothing"

    # -- the journals -------------------------------------------------------------------------------------------

    def _waiting(self) -> Iterator[tuple[Path, int]]:
        for journal in self._journals:
            for path, size in journal.files.items():
                offset = self._cursor.get(path.name, 0)
                if offset < size:
                    yield path, offset

    def _tidy(self) -> None:
        """Put a large journal aside, and delete what was put aside and is delivered to its last line.

        The cursor is written first each time: whatever is interrupted then makes lines go twice, never pass unsent.
        """
        for journal in self._journals:
            if journal.size >= self._aside_bytes:
                self._cursor[journal.next_aside().name] = self._cursor.pop(journal.path.name, 0)
                self._write_cursor()
                journal.put_aside()
            for path, size in journal.files.items():
                if path != journal.path and self._cursor.get(path.name, 0) >= size:
                    del self._cursor[path.name]
                    self._write_cursor()
                    journal.drop(path)

    def _keep_rejected(self, lines: tuple[bytes, ...]) -> None:
        """What will never be taken outlives the journal that it stood in. Raises OSError."""
        with self._rejected_path.open("ab") as file:
            file.writelines(line + b"\n" for line in lines)
        self._metrics.delivered.labels(status="rejected").inc(len(lines))

    def _tell_backlog(self) -> None:
        waiting = sum(
            max(0, size - self._cursor.get(path.name, 0))
            for journal in self._journals
            for path, size in journal.files.items()
        )
        self._metrics.delivery_backlog.set(waiting)

    def _read_cursor(self) -> dict[str, int]:
        try:
            found = json.loads(self._cursor_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(v, int) and v >= 0 for v in found.values()):
            # Delivering again is harmless (the collector knows duplicates); losing a record is not.
            LOG.warning("%s cannot be read; everything is delivered again", self._cursor_path.name)
            return {}
        sizes = {path.name: size for journal in self._journals for path, size in journal.files.items()}
        return {name: offset for name, offset in found.items() if offset <= sizes.get(name, -1)}

    def _write_cursor(self) -> None:
        # Not flushed to the disk: an old or an empty cursor only makes records go twice.
        write_private(self._cursor_path, dumps(self._cursor), durably=False)

    # -- the collector ------------------------------------------------------------------------------------------

    async def _post(self, http: aiohttp.ClientSession, batch: Batch) -> Verdict:
        body = await asyncio.to_thread(batch.body)
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        try:
            async with http.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                status, answer = response.status, await _read_all(response)
                retry_after = response.headers.get("Retry-After", "")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            LOG.info("the collector cannot be reached (%s); trying again", type(error).__name__)
            return "trouble"
        if status == 200:
            return self._read_answer(answer, batch.lines)
        if status >= 500 or status in _PATIENT or status < 400:
            self._retry_after_s = (
                min(float(retry_after), LONGEST_PAUSE_S) if retry_after.isascii() and retry_after.isdigit() else 0.0
            )
            LOG.info("the collector answered with status %d; trying again", status)
            return "trouble"
        if len(batch.lines) > 1:
            return "too_much"  # halve it until the record that it does not take stands alone
        LOG.warning("the collector refused a record with status %d; it is kept in %s", status, REJECTED)
        self._keep_rejected(batch.lines)
        return "taken"

    def _read_answer(self, answer: bytes, lines: tuple[bytes, ...]) -> Literal["taken", "trouble"]:
        try:
            value = loads(answer, longest=MAX_BODY_BYTES)
            results = value["results"]
            found = [(str(one["status"]), str(one.get("reason", ""))) for one in results]
        except (WireError, KeyError, TypeError, AttributeError):
            LOG.warning("the collector's answer cannot be read; trying again")
            return "trouble"
        if len(found) != len(lines):
            LOG.warning("the collector answered for %d records of %d; trying again", len(found), len(lines))
            return "trouble"
        if any(reason in _PATIENT_REASONS for _, reason in found):
            LOG.warning("the collector does not trust this reflector's key yet; trying again")
            return "trouble"
        for line, (status, reason) in zip(lines, found, strict=True):
            if status in {"accepted", "duplicate"}:
                self._metrics.delivered.labels(status=status).inc()
            else:
                LOG.warning("the collector rejected a record (%s); it is kept in %s", reason[:64], REJECTED)
                self._keep_rejected((line,))
        self._adopt_key(value.get("network_key"))
        return "taken"

    def _adopt_key(self, given: Any) -> None:
        """A collector may give all its reflectors one network key a month: {"month": "2026-07", "key": HEX}."""
        if not isinstance(given, dict):
            return
        month, key = given.get("month"), given.get("key")
        if isinstance(month, str) and isinstance(key, str):
            try:
                self._network_key.adopt(month, bytes.fromhex(key), self._metrics.now_ms())
            except ValueError:
                LOG.warning("the collector gave a network key that is none")


async def _read_all(response: aiohttp.ClientResponse) -> bytes:
    """The answer's body; what is beyond any answer's size is left, and then cannot be read as one."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            break
    return bytes(body)


def _unreadable(path: Path, offset: int) -> Batch:
    """The line at `offset`, which is longer than any envelope: a disk that lost something, never our own writing."""
    with path.open("rb") as file:
        file.seek(offset)
        line = file.readline()
    return Batch((line.rstrip(b"\n"),), offset + len(line))

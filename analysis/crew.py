# SPDX-License-Identifier: EUPL-1.2
"""Several processes that count an archive's pairs together: each reads all files and counts some probes.

The only module of this room that starts processes. How many there are changes nothing in what is found: each probe's
pairs are counted by one of them, in their order. Spec: spec/rejudge.md, section "Speed".
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final, Literal, cast

from analysis.archive import ArchiveError
from analysis.editions import Edition
from analysis.opendata import LineError, Share
from analysis.rejudge import Export, Tally, count

Told = Callable[[float], None]
"""Is told now and then which share of the work is done, 0 to 1."""
EVERY_S: Final = 0.5
Message = tuple[Literal["progress", "done", "refused"], Any]


def counted(paths: Sequence[Path], editions: Sequence[Edition], workers: int, told: Told | None = None) -> Tally:
    """Count the published pairs of all files. Raises ArchiveError: of several defects the first in the files."""
    exports = _alone(paths, editions, told) if workers <= 1 else _together(paths, editions, workers, told)
    tally = Tally(editions)
    for path, export in zip(paths, exports, strict=True):
        tally.join(export, path)
    return tally


def _alone(paths: Sequence[Path], editions: Sequence[Edition], told: Told | None) -> list[Export]:
    meter = _Meter(paths, told)
    return [count(path, number, editions, Share(), meter.of(number)) for number, path in enumerate(paths)]


class _Meter:
    """Turns bytes read into a share of all files, told at most twice a second."""

    def __init__(self, paths: Sequence[Path], told: Told | None) -> None:
        sizes = [path.stat().st_size if path.exists() else 0 for path in paths]
        self._before = [sum(sizes[:number]) for number in range(len(sizes))]
        self._all = max(1, sum(sizes))
        self._told, self._next = told, time.monotonic() + EVERY_S

    def of(self, number: int) -> Callable[[int], None]:
        """For the bytes of one file."""

        def progress(done: int) -> None:
            if self._told is not None and time.monotonic() >= self._next:
                self._next = time.monotonic() + EVERY_S
                self._told(min(1.0, (self._before[number] + done) / self._all))

        return progress


def _together(paths: Sequence[Path], editions: Sequence[Edition], workers: int, told: Told | None) -> list[Export]:
    # Spawned, never forked: whoever calls may have threads.
    context = multiprocessing.get_context("spawn")
    crew = []
    try:
        for index in range(workers):
            mine, theirs = context.Pipe(duplex=False)
            worker = context.Process(target=_work, args=(theirs, paths, editions, Share(index, workers)), daemon=True)
            worker.start()
            theirs.close()
            crew.append((worker, mine))
        answers = _answers([mine for _, mine in crew], told)
    finally:
        for worker, mine in crew:
            worker.terminate()
            worker.join()
            mine.close()
    refusals = [body for kind, body in answers if kind == "refused"]
    if refusals:
        raise ArchiveError(min(refusals)[2])
    merged: list[Export] = [{} for _ in paths]
    for _, exports in answers:
        for whole, part in zip(merged, exports, strict=True):
            whole.update(part)
    return merged


def _answers(pipes: Sequence[Connection], told: Told | None) -> list[Message]:
    """What each worker has found, in their order."""
    found: dict[Connection, Message] = {}
    shares = dict.fromkeys(pipes, 0.0)
    while len(found) < len(pipes):
        for ready in wait([pipe for pipe in pipes if pipe not in found]):
            pipe = cast("Connection", ready)
            try:
                kind, body = pipe.recv()
            except EOFError:
                raise ArchiveError("a process that judged came to an end; try again with fewer --workers") from None
            if kind == "progress":
                shares[pipe] = body
                if told is not None:
                    told(min(shares.values()))
            else:
                found[pipe] = (kind, body)
    return [found[pipe] for pipe in pipes]


def _work(pipe: Connection, paths: Sequence[Path], editions: Sequence[Edition], share: Share) -> None:
    """A worker's life."""
    meter = _Meter(paths, lambda done: pipe.send(("progress", done)))
    exports: list[Export] = []
    for number, path in enumerate(paths):
        try:
            exports.append(count(path, number, editions, share, meter.of(number)))
        except ArchiveError as error:
            line = error.number if isinstance(error, LineError) else math.inf
            pipe.send(("refused", (number, line, str(error))))
            return
    pipe.send(("done", exports))

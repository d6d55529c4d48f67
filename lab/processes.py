# SPDX-License-Identifier: EUPL-1.2
"""The processes of the lab, as seen by who starts them. spec/lab.md section 4."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from lab.namespaces import Warden, module_command, module_environment


class OperatorProcess:
    """A running operator (lab.forward or lab.relay): JSON lines in, JSON lines out."""

    def __init__(
        self, warden: Warden, module: str, config: Mapping[str, Any], *, descriptors: Sequence[int] = ()
    ) -> None:
        self._process = subprocess.Popen(
            module_command(module),
            env=module_environment(),
            pass_fds=descriptors,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        warden.adopt(self._process)
        self._say(config)
        if self._hear() != b"ready\n":
            self.close()
            raise OSError("an emulated operator ended before it was ready; its own message is above")

    def _say(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None  # noqa: S101  (it is a pipe)
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def _hear(self) -> bytes:
        assert self._process.stdout is not None  # noqa: S101  (it is a pipe)
        return self._process.stdout.readline()

    def snapshot(self, **request: Any) -> dict[str, Any]:
        """Carry out a request (none: nothing) and give the counters; empty where the process has ended."""
        try:
            self._say(request)
            line = self._hear()
        except (BrokenPipeError, ValueError):
            return {}
        answer: dict[str, Any] = json.loads(line) if line else {}
        return answer

    def close(self) -> None:
        """End it: the end of its input is the sign."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


LATE_MS = 25.0
WAIT_SHARE = 0.3
LOST_SHARE = 0.001


def void_reason(name: str, counted: Mapping[str, Any]) -> str | None:
    """Why a run through this operator says nothing about rules: the machine was too busy to emulate it.

    Void is a middlebox that hands over one packet in a hundred more than LATE_MS late (a stall longer than the
    round trip of a usual line), waits for a processor more than WAIT_SHARE of the time, or loses more than
    LOST_SHARE of the packets without having decided to.
    """
    if not counted:
        return f"the emulated operator {name} ended early"
    late = float(counted["late_ms"]["p99"])
    if late > LATE_MS:
        return f"{name} was late by {late:g} ms for one packet in a hundred"
    waited = float(counted["processor_wait_s"]) / max(float(counted["seconds"]), 1.0)
    if waited > WAIT_SHARE:
        return f"{name} waited for a processor {waited:.0%} of the time"
    packets = sum(counted.get("packets", {}).values())
    lost = counted.get("unread", 0) + counted.get("unwritten", 0)
    if lost > LOST_SHARE * packets:
        return f"{name} lost {lost} of {packets} packets that no rule meant to lose"
    return None

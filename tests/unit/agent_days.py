# SPDX-License-Identifier: EUPL-1.2
"""Days of a probe's life in seconds: the real turn, schedule, ledger, spool, plan, upload and session machine on real
files, in virtual time, with faults.

Simulated, and only this: the clocks; the collector behind the connection (`open_https`), which remembers; the network,
which comes and goes; the reflector and the line, as the repository's own in-memory reflector (probe/protocol/memory.py)
with signed receipts; the door and the household. A kill is an exception that nothing of the probe's catches, raised
at a random one of its file operations and requests: what it had in memory is gone, what it wrote is there. (Unlike
with a real SIGKILL, `finally` clauses run; tests/contract/test_agent_life.py kills real processes.)
"""

from __future__ import annotations

import datetime
import errno
import json
import random
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from probe import ask, files, runner, upload
from probe.enrol import Enrolled, Left, renew_plan
from probe.handover import SpoolSent, sync_spool
from probe.ledger import Clock
from probe.netio.http import HttpError, Response
from probe.nettests.base import Cost, Options, Tools
from probe.nettests.differential import Differential, Slot, planned, schedule
from probe.plan import Fetched
from probe.portal import Door, Look
from probe.profiles.dress import dress
from probe.profiles.model import Shelf
from probe.protocol.memory import MemoryReflector, VirtualClock, drive, even_transfer
from probe.protocol.pacing import FRAMING
from probe.protocol.probe_role import ProbeSession
from probe.runner import Ran, Request
from probe.settings import Settings
from probe.state import State
from probe.told import Turn
from probe.turn import Asked, take_turn
from probe.wire.envelope import Envelope, from_json, open_record, seal, to_json
from probe.wire.messages import SessionRequest
from probe.wire.records import Measurement, Plan, PlannedNettest, PlannedReflector
from probe.wire.signing import SeedSigner
from probe.world import Neighbours

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
START_MS = 1_796_083_200_000  # 2026-12-01 00:00 UTC
COLLECTOR, OTHER = SeedSigner(b"\x11" * 32), SeedSigner(b"\x12" * 32)
REFLECTORS = (SeedSigner(b"\x21" * 32), SeedSigner(b"\x22" * 32))
URL = "https://collector.example"


class Killed(BaseException):
    """kill -9: nothing of the probe's catches it."""


@dataclass
class Faults:
    """How bad the world is."""

    offline: float = 0.2
    kills_per_turn: float = 0.4
    reboots_per_day: float = 0.3
    jumps_per_day: float = 0.5
    collector_errors: float = 0.3
    full_per_day: float = 0.5
    busy: float = 0.15


@dataclass
class Collector:
    """Remembers what it acknowledged."""

    days: Days
    records: dict[str, str] = field(default_factory=dict)
    """Digest by record id."""
    sessions: dict[str, str] = field(default_factory=dict)
    sequences: list[int] = field(default_factory=list)
    requests: int = 0
    doubled: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, body: bytes | None) -> Response:
        rng = self.days.rng
        self.requests += 1
        self.days.step()
        if self.days.is_offline:
            self.days.advance(rng.choice((10, 3000, 30_000)))
            raise rng.choice((ConnectionRefusedError(111, "x"), TimeoutError("x"), OSError(errno.ENETUNREACH, "x")))
        self.days.advance(rng.randrange(20, 400))
        kind = rng.random() / self.days.faults.collector_errors if self.days.faults.collector_errors else 9.0
        if kind < 0.7:
            return self._fail(kind / 0.7)
        answer = self._serve(method, path, body)
        self.days.step()
        if kind < 0.85:  # it is kept there, and the answer is lost
            raise EOFError
        if kind < 1.0:
            return replace(answer, body=answer.body[: len(answer.body) // 2])
        return answer

    def _fail(self, kind: float) -> Response:
        if kind < 0.2:
            return Response(500, {}, b'{"error": "internal"}')
        if kind < 0.4:
            return Response(503, {"retry-after": "900"}, b'{"error": "busy"}')
        if kind < 0.6:
            return Response(429, {"retry-after": "120"}, b'{"error": "slow_down"}')
        if kind < 0.7:
            return Response(200, {}, b"<html>welcome to the hotel</html>")
        if kind < 0.8:
            return Response(403, {}, b"<html>forbidden</html>")
        if kind < 0.9:
            raise HttpError("a status line that is none")
        self.days.advance(30_000)
        raise TimeoutError("x")

    def _serve(self, method: str, path: str, body: bytes | None) -> Response:
        if path.startswith("/v1/plan"):
            return Response(200, {}, json.dumps({"envelope": to_json(self.days.offered_plan())}).encode())
        if path.endswith("/receipts"):
            return Response(200, {}, b'{"results": []}')
        assert path.endswith("/measurements")
        assert body is not None
        plain = json.loads(zlib.decompress(body, 16 + zlib.MAX_WBITS))
        results = [self._take(from_json(one)) for one in plain["envelopes"]]
        return Response(200, {}, json.dumps({"results": results}).encode())

    def _take(self, envelope: Envelope) -> dict[str, Any]:
        record = open_record(envelope)
        assert isinstance(record, Measurement)
        known = self.records.get(record.id)
        if known is None:
            if record.session in self.sessions:
                self.doubled.append(record.session)
            self.records[record.id] = envelope.digest
            self.sessions[record.session] = record.id
            self.sequences.append(record.sequence)
            return {"status": "accepted", "id": record.id}
        if known != envelope.digest:
            self.doubled.append(record.id)
        return {"status": "duplicate", "id": record.id}


class _Connection:
    """What `open_https` gives."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def request(self, method: str, path: str, *, body: bytes | None = None, **_: Any) -> Response:
        return self._collector.answer(method, path, body)

    def close(self) -> None:
        pass


class _Line:
    """The differential nettest without sockets: the real session machine against the in-memory reflector."""

    id, title = Differential.id, Differential.title

    def __init__(self, days: Days) -> None:
        self.days = days

    def cost(self, options: Options) -> Cost:
        return Differential().cost(options)

    def run(self, tools: Tools, options: Options) -> ProbeSession:
        days, rng = self.days, self.days.rng
        request = SessionRequest(
            v=1, probe=tools.probe_key, nettest=self.id, pairs=64, segment_s=options.segment_s, pace_mbps=12.0
        )
        session = ProbeSession(request, random_bytes=rng.randbytes)
        clock = VirtualClock(days.wall_ms)
        if days.is_offline or rng.random() < 0.05:
            session.next(clock.now_ms)
            session.control_failed("unreachable", clock.now_ms)
            return session
        there = MemoryReflector(signer=rng.choice(REFLECTORS), clock=clock, random_bytes=rng.randbytes)
        apps = tuple(dict.fromkeys(options.apps))
        slots: list[Slot] = schedule(apps, options, rng)
        shelf, pace = Shelf(), min(rng.choice((2.0, 6.0, 12.0)), options.most_pace_mbps)
        profiles = {app: shelf.load(app) for app in apps}
        arms = {app: dress(one, shelf.neutral(), rng, rng.randbytes) for app, one in profiles.items()}
        plan = [planned(s, profiles[s.app], arms[s.app], pace=pace, segment_s=options.segment_s) for s in slots]
        moved = 0

        def rate(step: Any) -> float:
            nonlocal moved
            days.step()
            slow = days.slowed == step.app and step.name == arms[step.app].app.name
            mbps = pace * (0.4 if slow else rng.uniform(0.85, 1.0))
            count = round(mbps * 1e6 / 8 * options.segment_s * FRAMING)
            days.line_bytes(count)
            moved += count
            return mbps

        begun = clock.now_ms
        drive(session, there, plan, even_transfer(rate))
        days.advance(clock.now_ms - begun)
        return session


class Days:
    """One probe's life."""

    def __init__(self, directory: Path, seed: int, faults: Faults, **plan: Any) -> None:
        self.rng = random.Random(seed)
        self.faults = faults
        self.wall_ms = START_MS
        self.true_ms = START_MS
        self.boot_ms = 5 * HOUR_MS
        self.boots = 0
        self.seen_ms = START_MS
        self.directory, self.run_dir = directory / "state", directory / "run"
        self.settings_file = self.directory / "settings.json"
        self.collector = Collector(self)
        self.plan_facts = plan
        self.plan_version = 1
        self.is_offline = False
        self.is_full = False
        self.skewed_days: set[str] = set()
        self.slowed = ""
        self.kill_in = -1
        self.by_day: Counter[str] = Counter()
        self.kept_ids: set[str] = set()
        self.lost_ids: set[str] = set()
        self.reasons: Counter[str] = Counter()
        self.measured_ms: list[int] = []
        self.begun = self.turns = self.kills = self.reboots = self.durable_writes = 0
        self.directory.mkdir(parents=True)
        self.state = State(self.directory, self.run_dir)
        self.state.prepare()
        self.signer = self.state.signer()
        joined = {"v": 1, "collector": URL, "key": COLLECTOR.key_id, "enrolled_ms": START_MS}
        (self.directory / "enrolment.json").write_text(json.dumps(joined))

    # -- the world ----------------------------------------------------------------------------------------------

    def advance(self, ms: int) -> None:
        """Let time pass on all clocks."""
        self.wall_ms += ms
        self.true_ms += ms
        self.boot_ms += ms

    def line_bytes(self, count: int) -> None:
        """Moved on the household's line, by the true day."""
        self.by_day[day_of(self.true_ms)] += count

    def step(self) -> None:
        """One operation of the probe's: here it may die."""
        if self.kill_in > 0:
            self.kill_in -= 1
            if self.kill_in == 0:
                self.kill_in = -1
                raise Killed

    def offered_plan(self) -> Envelope:
        """Mostly the current plan; sometimes one that must not be followed."""
        kind = self.rng.random()
        version, signer = self.plan_version, COLLECTOR
        if kind < 0.05:
            signer = OTHER
        elif kind < 0.1:
            version = max(1, version - 1)
        elif kind < 0.15:
            self.plan_version = version = version + 1
        plan = Plan(
            type="plan",
            v=1,
            version=version,
            issued_ms=START_MS + version,
            expires_ms=START_MS + 60 * DAY_MS,
            reflectors=tuple(
                PlannedReflector(url=f"https://r{i}.example:8443", key=one.key_id) for i, one in enumerate(REFLECTORS)
            ),
            nettests=(PlannedNettest(nettest="differential", apps=("youtube", "signal", "instagram"), pairs=2),),
            weights=(),
            **self.plan_facts,
        )
        sealed = seal(plan, signer)
        if 0.15 < kind < 0.2:
            sealed = replace(sealed, signature=bytes(64))
        return sealed

    # -- probe.world.World --------------------------------------------------------------------------------------

    def clock(self) -> Clock:
        at = datetime.datetime.fromtimestamp(self.wall_ms / 1000, datetime.UTC)
        midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
        month = (midnight.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)
        return Clock(
            now_ms=self.wall_ms,
            day=(at.year * 100 + at.month) * 100 + at.day,
            midnight_ms=round(midnight.timestamp() * 1000),
            next_day_ms=round(midnight.timestamp() * 1000) + DAY_MS,
            next_month_ms=round(month.timestamp() * 1000),
            boot=f"boot{self.boots}",
            boot_ms=self.boot_ms,
        )

    def minute_of(self, wall_ms: int) -> float:
        return wall_ms / 60_000 % 1440

    def free_bytes(self, directory: Path) -> int:
        return 0 if self.is_full else 10**9

    def leave(self, state: State, now_ms: int) -> Left:
        raise AssertionError("nobody leaves here")

    def renew_plan(self, state: State, kept: Enrolled, probe: str, now_ms: int) -> Fetched:
        return renew_plan(state, kept, probe=probe, now_ms=now_ms)

    def sync_spool(self, state: State, kept: Enrolled, now_ms: int) -> SpoolSent:
        return sync_spool(state, kept.url, now_ms, self.rng)

    def is_metered(self, settings: Settings, reflector: PlannedReflector) -> bool | None:
        return None

    def look(self, door: Door, settings: Settings) -> Look:
        self.advance(500)
        if self.is_offline and self.rng.random() < 0.9:
            return Look("offline", "the reflector does not answer")
        return Look(self.rng.choices(("open", None, "captive"), (90, 8, 2))[0], "somebody answers")  # type: ignore[arg-type]

    def log_in(self, program: str) -> bool:
        raise AssertionError("there is no such program")

    def neighbours(self, reflector: PlannedReflector, settings: Settings, smallest_ms: float | None) -> Neighbours:
        self.advance(5000)
        return Neighbours(self.rng.random() < self.faults.busy, 20.0)

    def measure(self, request: Request, on_progress: Any, should_stop: Any) -> Ran:
        self.begun += 1
        self.step()
        ran = runner.run(replace(request, nettest=_Line(self)), on_progress=on_progress, should_stop=should_stop)
        self.kept_ids.add(ran.measurement.id)
        self.measured_ms.append(self.true_ms)
        self.step()
        return ran

    # -- living -------------------------------------------------------------------------------------------------

    def live(self, days: float) -> None:
        """Turn after turn, as the agent makes them (probe/agent.py), while the world is as bad as it is."""
        end = self.true_ms + round(days * DAY_MS)
        crashes, network_until = 0, 0
        with self._edges():
            while self.true_ms < end:
                network_until = self._weather(network_until)
                pause_ms = self._turn()
                crashes = crashes + 1 if pause_ms is None else 0
                if pause_ms is None:
                    pause_ms = min(3600, 60 * 2 ** (crashes - 1)) * 1000
                # The agent itself is killed every hour too, and begins with a turn when it is started again.
                self.advance(max(15_000, min(pause_ms, HOUR_MS)))

    def once(self, **asked: Any) -> Turn:
        """One turn, for tests that look at it."""
        with self._edges():
            turn, _ = take_turn(State(self.directory, self.run_dir), self, Asked(settings=self.settings_file, **asked))
        return turn

    def _turn(self) -> int | None:
        self.turns += 1
        try:
            turn, _ = take_turn(State(self.directory, self.run_dir), self, Asked(settings=self.settings_file))
        except Killed:
            self.kills += 1
            return None
        finally:
            self.kill_in = -1
        self.reasons[turn.reason or turn.outcome] += 1
        self._check(turn)
        return turn.next_ms - self.wall_ms

    def _check(self, turn: Turn) -> None:
        assert turn.reason == "storage" or turn.next_ms > turn.at_ms
        assert turn.next_ms - self.wall_ms <= 7 * HOUR_MS, turn
        if turn.budget is not None:
            assert turn.budget["day_mb"] >= 0
        json.dumps(turn.plain())

    def _weather(self, network_until: int) -> int:
        """What may happen between two turns."""
        rng, faults = self.rng, self.faults
        days = (self.true_ms - self.seen_ms) / DAY_MS
        self.seen_ms = self.true_ms
        if self.true_ms >= network_until:
            self.is_offline = rng.random() < faults.offline
            network_until = self.true_ms + round(rng.expovariate(1) * 3 * HOUR_MS)
        self.is_full = rng.random() < faults.full_per_day * days
        self.slowed = rng.choice(("", "youtube"))
        if rng.random() < faults.reboots_per_day * days:
            self._reboot()
        if rng.random() < faults.jumps_per_day * days:
            self.wall_ms = self.true_ms + rng.choice((-3 * DAY_MS, -5 * HOUR_MS, HOUR_MS, 9 * HOUR_MS, 40 * DAY_MS))
        elif self.wall_ms != self.true_ms and rng.random() < 0.3:
            self.wall_ms = self.true_ms
        if self.wall_ms != self.true_ms:
            self.skewed_days |= {day_of(self.true_ms), day_of(self.wall_ms)}
        if rng.random() < faults.kills_per_turn:
            self.kill_in = rng.randrange(1, 25)
        return network_until

    def _reboot(self) -> None:
        self.reboots += 1
        self.lost_ids |= self._spooled()
        shutil.rmtree(self.run_dir, ignore_errors=True)
        self.boots += 1
        self.boot_ms = 30_000
        if self.rng.random() < 0.3:
            self.wall_ms = 1000  # a device without a battery: 1970 until its time server answers

    def _spooled(self) -> set[str]:
        found = set()
        for entry in State(self.directory, self.run_dir).spool.entries():
            for envelope in entry.envelopes()[:1]:
                record = open_record(envelope)
                assert isinstance(record, Measurement)
                found.add(record.id)
        return found

    @contextmanager
    def _edges(self) -> Iterator[None]:
        """Put the simulated network and disk under the real code."""
        real = (upload.open_https, ask.open_https, files.write_whole)

        def connect(*_: Any, **__: Any) -> _Connection:
            return _Connection(self.collector)

        def write(path: Path, content: bytes, *, durable: bool = True) -> None:
            self.step()
            is_ram = path.is_relative_to(self.run_dir)
            self.durable_writes += not is_ram
            if self.is_full and is_ram:
                raise OSError(errno.ENOSPC, "No space left on device")
            real[2](path, content, durable=False)  # nothing loses power here
            self.step()

        places: list[tuple[Any, str, Any]] = [(upload, "open_https", connect), (ask, "open_https", connect)]
        import probe.budget
        import probe.enrol
        import probe.spool
        import probe.state

        for module in (files, probe.state, probe.spool, probe.budget, probe.enrol):
            if getattr(module, "write_whole", None) is real[2]:
                places.append((module, "write_whole", write))
        before = [(module, name, getattr(module, name)) for module, name, _ in places]
        for module, name, new in places:
            setattr(module, name, new)
        try:
            yield
        finally:
            for module, name, old in before:
                setattr(module, name, old)

    # -- what must hold -----------------------------------------------------------------------------------------

    def check_records(self) -> None:
        """No record lost that was kept, none twice, no number used twice."""
        there = set(self.collector.records)
        assert not self.collector.doubled
        waiting = self._spooled()
        dropped = State(self.directory, self.run_dir).spool.counts()
        missing = self.kept_ids - there - waiting - self.lost_ids
        assert len(missing) <= dropped.dropped + dropped.damaged, missing
        assert len(set(self.collector.sequences)) == len(self.collector.sequences)

    def months(self) -> Counter[str]:
        """Bytes by month."""
        sums: Counter[str] = Counter()
        for day, count in self.by_day.items():
            sums[day[:7]] += count
        return sums


def day_of(ms: int) -> str:
    """The day in UTC."""
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).date().isoformat()

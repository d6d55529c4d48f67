# SPDX-License-Identifier: EUPL-1.2
"""`evenlane lab nulls`: the A/A check of the whole machinery over an operator that does nothing to anybody.

Test pairs of several apps and as many placebo pairs run through real sockets; then it is asked whether the app came
out slower more often than not, whether the segment's place, the arm's bytes or the certificate's size leave a
trace, and whether both witnesses tell the same story. spec/lab.md section 6; measurement.md; Wilson (1927).
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from analysis.pairs import OrderHistory, Pair, score
from analysis.sources import corpus, read_files
from lab.drivers import DriverName, choose_driver
from lab.model import Link, Scenario
from lab.namespaces import module_command
from lab.run import POLL_S, PROGRESS_S, last_words, say
from lab.stage import Stage, StageError, Subscriber
from lab.witnesses import Told, contradictions, read
from probe.profiles import model as profiles

APPS: Final = ("youtube", "netflix", "instagram", "signal")
LINE: Final = Link(down_mbps=20, up_mbps=10, rtt_ms=10, buffer_ms=100)
PACE_MBPS: Final = 8.0
ENOUGH: Final = 400
"""From so many pairs on the share itself must lie within EVEN; below, its interval must reach into it."""
EVEN: Final = (0.45, 0.55)
MOST_PERCENT: Final = 1.0
WEIGHINGS: Final = 5
_Z: Final = 1.959963985
_PAIR_S: Final = 0.5  # set-up, control messages and guard gaps of a pair
_BOOT_S: Final = 20.0


@dataclass(frozen=True)
class Share:
    """How often the app came out slower; a pair without any difference counts for neither side."""

    pairs: int
    compared: int
    ties: int
    failed: int
    lost: int
    share: float | None
    low: float | None
    high: float | None

    @property
    def ok(self) -> bool:
        """Whether this is what a fair coin gives."""
        if self.share is None or self.low is None or self.high is None:
            return False
        if self.compared >= ENOUGH:
            return EVEN[0] <= self.share <= EVEN[1]
        return self.low <= EVEN[1] and self.high >= EVEN[0]


@dataclass(frozen=True)
class Shift:
    """A relative difference in percent with its 95 % interval; `ok`: not above 1 % for all we know."""

    what: str
    percent: float
    low: float
    high: float
    of: int

    @property
    def ok(self) -> bool:
        """Whether the best guess lies within the target."""
        return abs(self.percent) <= MOST_PERCENT


@dataclass(frozen=True)
class Nulls:
    """What the check found on one driver."""

    driver: DriverName
    probes: int
    apps: tuple[str, ...]
    seconds: float
    test: Share
    placebo: Share
    effects: dict[str, Shift]
    contradictions: list[str]
    void_reason: str | None
    notes: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """What is not as it should be, by name."""
        found = [name for name, share in (("test", self.test), ("placebo", self.placebo)) if not share.ok]
        found += [name for name, effect in self.effects.items() if not effect.ok]
        return found + (["contradictions"] if self.contradictions else [])

    def as_json(self) -> dict[str, Any]:
        """The document of `--json`."""
        return {**asdict(self), "wrong": self.wrong, "ok": not self.wrong}


def wilson(wins: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    middle = (wins + _Z**2 / 2) / (of + _Z**2)
    half = _Z / (of + _Z**2) * math.sqrt(wins * (of - wins) / of + _Z**2 / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def median_shift(what: str, logs: Sequence[float]) -> Shift:
    """The median of log ratios as a percentage; the interval stands between two of them (sign test, 95 %)."""
    ranked = sorted(logs)
    reach = _Z * math.sqrt(len(ranked)) / 2
    low = ranked[max(0, math.floor(len(ranked) / 2 - reach))]
    high = ranked[min(len(ranked) - 1, math.ceil(len(ranked) / 2 + reach) - 1)]
    return Shift(what, _percent(statistics.median(ranked)), _percent(low), _percent(max(low, high)), len(ranked))


def mean_shift(what: str, logs: Sequence[float]) -> Shift:
    """The mean of log ratios as a percentage, for counts that hardly vary (normal interval, 95 %)."""
    middle = statistics.fmean(logs)
    half = _Z * statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else 0.0
    return Shift(what, _percent(middle), _percent(middle - half), _percent(middle + half), len(logs))


def _percent(log_ratio: float) -> float:
    return round(math.expm1(log_ratio) * 100, 4)


# -- judging -----------------------------------------------------------------------------------------------------


def scored(pairs: Iterable[Pair]) -> Iterator[tuple[Pair, float | None]]:
    """Every pair with its y, as the analysis scores it: order history by cell, kind and probe."""
    histories: dict[Any, OrderHistory] = defaultdict(OrderHistory)
    for pair in pairs:
        history = histories[pair.cell, pair.kind, pair.probe]
        yield pair, score(history, pair).y
        history.add(pair)


def share_of(pairs: Sequence[tuple[Pair, float | None]], kind: str) -> Share:
    """How often y was above 0 among the pairs of a kind."""
    chosen = [(pair, y) for pair, y in pairs if pair.kind == kind]
    ys = [y for _, y in chosen if y is not None]
    wins, losses = sum(y > 0 for y in ys), sum(y < 0 for y in ys)
    compared = wins + losses
    low, high = wilson(wins, compared) if compared else (None, None)
    return Share(
        pairs=len(chosen),
        compared=compared,
        ties=len(ys) - compared,
        failed=sum((pair.first_failed or pair.second_failed) and not pair.lost for pair, _ in chosen),
        lost=sum(pair.lost for pair, _ in chosen),
        share=wins / compared if compared else None,
        low=low,
        high=high,
    )


def rate_effects(pairs: Iterable[tuple[Pair, float | None]]) -> dict[str, Shift]:
    """What the segment's place does to the rate, and what the arm's name does once the place is allowed for."""
    order, name = [], []
    for pair, y in pairs:
        ratio = pair.log_ratio()
        if ratio is not None and y is not None:
            order.append(ratio)
            if pair.kind == "test":
                name.append(-y)
    effects = {}
    if order:
        effects["order"] = median_shift("rate of the first segment against the second", order)
    if name:
        effects["rate_by_name"] = median_shift("rate of the app arm against its twin", name)
    return effects


def size_effects(told: Iterable[Told], weights: dict[str, list[list[int]]]) -> dict[str, Shift]:
    """What the arm's name does to the bytes of its segments and to the size of its handshake."""
    totals: list[float] = []
    handshakes: list[tuple[str, str]] = []
    for one in told:
        for pair, measured in one.pairs():
            by_arm = {segment.arm: segment for segment in pair.segments if segment.end == "complete"}
            names = {segment.arm: segment.name for segment in measured.segments} if measured else {}
            control = next((arm for arm in by_arm if arm != "app"), None)
            if pair.kind != "test" or control is None or "app" not in by_arm:
                continue
            if by_arm["app"].bytes and by_arm[control].bytes:
                totals.append(math.log(by_arm["app"].bytes / by_arm[control].bytes))
            if "app" in names and control in names:
                handshakes.append((names["app"], names[control]))
    effects = {"bytes": median_shift("bytes of the app segment against its twin's", totals)} if totals else {}
    for index, (key, what) in enumerate(
        (
            ("hello_bytes", "what the probe sends to open TLS, app name against twin"),
            ("certificate", "the reflector's flight with its certificate, app name against twin"),
            ("handshake_packets", "data segments of a handshake, app name against twin"),
        )
    ):
        mean = {name: statistics.fmean(w[index] for w in found) for name, found in weights.items() if found}
        logs = [math.log(mean[app] / mean[twin]) for app, twin in handshakes if mean.get(app) and mean.get(twin)]
        if logs:
            effects[key] = mean_shift(what, logs)
    return effects


# -- measuring ---------------------------------------------------------------------------------------------------


def run(pairs: int, *, probes: int, segment_s: float, driver: str | None, seed: str = "nulls") -> Nulls:
    """Measure at least so many null pairs on one driver, and judge. Raises NoDriver, StageError."""
    began, chosen = time.monotonic(), choose_driver(driver)
    apps = tuple(app for app in APPS if app in profiles.available()) or profiles.DEFAULT_APPS
    each = math.ceil(pairs / (probes * len(apps)))
    say(
        f"null pairs: driver {chosen}, {probes} probes in parallel, {each * probes * len(apps)} pairs of "
        f"{segment_s:g} s of {', '.join(apps)}, and as many placebo pairs"
    )
    with Stage([Scenario("even", LINE)], driver=chosen, subscribers=probes, seed=seed) as stage:
        stage.start_reflector()
        outs = _measure(stage, apps, each, segment_s)
        told = read([*outs, *stage.records])
        weights = _weigh(stage, told, apps)
        judged = list(scored(corpus(read_files([*outs, *stage.records])).pairs))
        void = stage.void_reason()
    return Nulls(
        driver=chosen,
        probes=probes,
        apps=apps,
        seconds=round(time.monotonic() - began, 1),
        test=share_of(judged, "test"),
        placebo=share_of(judged, "placebo"),
        effects=rate_effects(judged) | size_effects(told, weights),
        contradictions=[what for one in told for what in contradictions(one)],
        void_reason=void,
        notes=[] if chosen != "relay" else ["the relay driver never counts in the accuracy study"],
    )


def _measure(stage: Stage, apps: Sequence[str], each: int, segment_s: float) -> list[Path]:
    """Run all probes at once; returns the files of their records."""
    running = [_start(stage, one, apps, each, segment_s) for one in stage.operators[0].subscribers]
    of = 2 * each * len(apps) * len(running)
    deadline = time.monotonic() + _BOOT_S + 4 * each * len(apps) * 2 * (2 * segment_s + _PAIR_S)
    shown = time.monotonic()
    while any(process.poll() is None for process, _ in running):
        if time.monotonic() > deadline:
            raise StageError(f"a probe did not end; its last words: {last_words([out for _, out in running])}")
        if time.monotonic() - shown >= PROGRESS_S:
            shown = time.monotonic()
            say(f"  {sum(_done(_log(out)) for _, out in running)} of {of} pairs")
        time.sleep(POLL_S)
    for process, out in running:
        if process.returncode:
            raise StageError(f"a probe ended with exit code {process.returncode}: {last_words([_log(out)])}")
    return [out for _, out in running]


def _log(out: Path) -> Path:
    return out.with_suffix(".log")


def _start(
    stage: Stage, subscriber: Subscriber, apps: Sequence[str], each: int, segment_s: float
) -> tuple[subprocess.Popen[bytes], Path]:
    out = stage.directory / f"null-{subscriber.index}.jsonl"
    argv = module_command("lab.placebo", "--reflector", stage.reflector_url(subscriber.operator))
    argv += ["--state", str(subscriber.state), "--out", str(out), "--pairs", str(each)]
    argv += [word for app in apps for word in ("--app", app)]
    argv += ["--segment-s", str(segment_s), "--pace-mbps", str(PACE_MBPS)]
    if subscriber.home is None:
        argv += ["--bind", subscriber.address]
    with _log(out).open("wb") as errors:
        return stage.start(argv, subscriber, stdout=subprocess.DEVNULL, stderr=errors), out


def _done(log: Path) -> int:
    lines = [line for line in log.read_bytes().splitlines() if line.startswith(b"{")]
    return int(json.loads(lines[-1])["done"]) if lines and lines[-1].endswith(b"}") else 0


def _weigh(stage: Stage, told: Sequence[Told], apps: Sequence[str]) -> dict[str, list[list[int]]]:
    """Handshakes of every name that was measured, from the first subscriber's place."""
    alpn = {app: list(profiles.load(app).alpn) for app in apps}
    names = {
        segment.name: alpn[pair.app]
        for one in told
        if one.measurement is not None
        for pair in one.measurement.pairs
        for segment in pair.segments
    }
    subscriber = stage.operators[0].subscribers[0]
    host, port = stage.data_address(subscriber.operator)
    argv = module_command("lab.flight", host, str(port), subscriber.address if subscriber.home is None else "-")
    process = stage.start(argv, subscriber, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    asked = {"names": list(names.items()), "times": WEIGHINGS}
    answer, _ = process.communicate(json.dumps(asked).encode() + b"\n")
    if process.returncode:
        raise StageError("the sizes of the handshakes could not be measured; the error is above")
    return dict(zip(names, json.loads(answer), strict=True))


def table(found: Nulls) -> str:
    """The result for people."""
    lines = [f"driver {found.driver}, {found.probes} probes, {found.seconds:.0f} s"]
    for name, share in (("test pairs", found.test), ("placebo pairs", found.placebo)):
        if share.share is None:
            lines.append(f"  {name:<18} none could be compared")
            continue
        lines.append(
            f"  {name:<18} {share.pairs} pairs, app slower in {share.share:.1%} ({share.low:.1%} to {share.high:.1%}) "
            f"of {share.compared}; {share.ties} ties, {share.failed} failed, {share.lost} lost{_mark(share.ok)}"
        )
    for key, effect in found.effects.items():
        size = f"{effect.percent:+.3f} % ({effect.low:+.3f} to {effect.high:+.3f})"
        lines.append(f"  {key:<18} {size:<34} {effect.what}, of {effect.of}{_mark(effect.ok)}")
    lines += [f"  contradiction: {what}" for what in found.contradictions]
    lines += [f"  void: {found.void_reason}"] if found.void_reason else []
    return "\n".join([*lines, *(f"  note: {note}" for note in found.notes)])


def _mark(ok: bool) -> str:
    return "" if ok else "  <- NOT EVEN"

# SPDX-License-Identifier: EUPL-1.2
"""`evenlane lab run`: does the product find what a scenario says is true, and nothing else?

Real probes measure through an emulated operator against a real reflector; the analysis room judges the
signed records; the effects of corroborated cells are compared with the scenario's truth. spec/lab.md
section 5.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from lab import relay
from lab.classify import Match, name_matches
from lab.drivers import DriverName, choose_driver
from lab.model import Rule, Scenario
from lab.namespaces import module_command, module_environment
from lab.scenario import ScenarioError, load
from lab.stage import Stage, StageError
from probe.profiles import model as profiles

BUNDLED: Final = Path(__file__).with_name("scenarios")
LATENCY_ACTIONS: Final = frozenset({"delay", "drop", "deprioritise"})
"""What a rule can do to an app without touching the rate that two transfers one after the other would compare."""
POLL_S: Final = 0.5
PROGRESS_S: Final = 5.0


@dataclass(frozen=True)
class Plan:
    """How much is measured: the options of `evenlane lab run`."""

    probes: int = 3
    pairs: int = 12
    segment_s: float = 1.0
    direction: str = "down"
    driver: str | None = None
    now: datetime | None = None
    pace_mbps: float | None = None
    """None: the probe calibrates."""

    def hour_for(self, scenario: Scenario) -> float:
        """The emulated local time of day (0 to 24) at which a run begins.

        Without `now` it follows from the scenario, so that a run gives the same whenever it is started: inside
        a rule's hours where something should be found, outside all of them where nothing should.
        """
        if self.now is not None:
            return self.now.hour + self.now.minute / 60 + self.now.second / 3600
        timed = [rule for rule in scenario.rules if rule.hours is not None]
        for half_hour in range(24, 72):  # from noon on, once round the clock
            hour = half_hour / 2 % 24 + 0.25
            active = [rule.active_at(hour) for rule in timed]
            if all(active) if scenario.expect else not any(active):
                return hour
        return 12.25

    def patience_s(self, apps: int) -> float:
        """When a probe that has not ended never will: every transfer failing at its slowest, and a start."""
        directions = 2 if self.direction == "both" else 1
        return 60 + (self.pairs * 1.1 + 2) * apps * directions * 2 * (self.segment_s + 10)


@dataclass(frozen=True)
class Outcome:
    """What one scenario's run found."""

    name: str
    driver: str
    expected: list[str]
    found: list[str]
    cells: list[dict[str, Any]]
    seconds: float
    void_reason: str | None
    apps: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether exactly the truth was found."""
        return self.found == self.expected

    def as_json(self) -> dict[str, Any]:
        """The scenario's row of `--json`."""
        return {**vars(self), "ok": self.ok}


def find(name: str) -> Path:
    """The file of that path, else the bundled scenario of that name."""
    path = Path(name)
    bundled = BUNDLED / f"{name}.toml"
    return bundled if not path.exists() and bundled.exists() else path


def load_all(names: Sequence[str]) -> list[Scenario]:
    """Read every scenario before any is run; raises ScenarioError."""
    scenarios = [load(find(name)) for name in names]
    known = set(profiles.every())
    for scenario in scenarios:
        unknown = sorted({app for app, _ in scenario.expect} - known)
        if unknown:
            choices = ", ".join(sorted(known))
            raise ScenarioError(
                f"{scenario.name}: expect.effects: there is no profile of an app {unknown[0]}; known are {choices}"
            )
    return scenarios


def apps_of(scenario: Scenario) -> list[str]:
    """What to measure: apps the truth names or a rule is about, else the three default apps."""
    apps = {app for app, _ in scenario.expect}
    named = [rule for rule in scenario.rules if rule.match.host_names or rule.match.payload]
    shelf = [profiles.load(app) for app in profiles.every()] if named else []
    for rule in named:
        meant = [profile for profile in shelf if _is_about(rule.match, profile)]
        apps |= {profile.id for profile in _shown_by(rule, meant) if not _is_told(profile, rule, apps)}
    return sorted(apps) or list(profiles.DEFAULT_APPS)


def _shown_by(rule: Rule, meant: Sequence[profiles.Profile]) -> list[profiles.Profile]:
    """Of the profiles that a rule means, those that can show what it does: delay and loss need small packets."""
    live = [profile for profile in meant if profile.live is not None]
    if rule.action in LATENCY_ACTIONS and live:
        return live
    return [profile for profile in meant if profile.live is None]


def _is_told(profile: profiles.Profile, rule: Rule, apps: set[str]) -> bool:
    """Whether the truth names this app for a rule about delay or loss already, by whichever of its profiles."""
    return rule.action in LATENCY_ACTIONS and any(app.partition("+")[0] == profile.app for app in apps)


def _is_about(match: Match, profile: profiles.Profile) -> bool:
    """Whether a rule means this profile's traffic; browser-shaped variants are measured where the truth names them."""
    transport = "udp" if profile.carrier in {"quic", "datagram"} else "tcp"
    if match.proto not in {None, transport}:
        return False
    if profile.carrier in {"stream", "datagram"}:
        return profile.id.partition("+")[0] in (match.payload or ())
    named = {"quic": match.quic_sni or (), "tls": (match.sni or ()) + (match.http_host or ()) + (match.dns or ())}
    patterns = named.get(profile.carrier, ())
    return any(name_matches(pattern, name) for pattern in patterns for name in profile.names)


def run_all(scenarios: Sequence[Scenario], plan: Plan) -> list[Outcome]:
    """Run scenarios one after the other; raises NoDriver, ScenarioError or StageError."""
    driver = choose_driver(plan.driver)
    if driver == "relay":
        for scenario in scenarios:
            if why := relay.refusal(scenario):
                raise ScenarioError(f"{scenario.name}: {why}")
    return [run_one(scenario, plan, driver) for scenario in scenarios]


def run_one(scenario: Scenario, plan: Plan, driver: DriverName) -> Outcome:
    """Measure one emulated operator and judge what was recorded."""
    apps, began = apps_of(scenario), time.monotonic()
    hour = plan.hour_for(scenario)
    say(
        f"{scenario.name}: driver {driver}, {plan.probes} probes in parallel, {plan.pairs} pairs of "
        f"{plan.segment_s:g} s, {plan.direction}, of each of {', '.join(apps)}"
    )
    if any(rule.hours for rule in scenario.rules):
        say(f"  emulated local time {int(hour):02}:{int(hour % 1 * 60):02} (--now changes it)")
    with Stage([scenario], driver=driver, subscribers=plan.probes, day_s=hour * 3600) as stage:
        stage.start_reflector()
        outs = measure(stage, plan, apps)
        cells = verdict(outs + stage.records)
        void = stage.void_reason()
        notes = stage.notes
    return Outcome(
        name=scenario.name,
        driver=driver,
        expected=scenario.expected,
        found=accused(cells),
        cells=cells,
        seconds=round(time.monotonic() - began, 1),
        void_reason=void,
        apps=apps,
        notes=notes,
    )


def accused(cells: Sequence[dict[str, Any]]) -> list[str]:
    """The effects a case would be opened for: those of corroborated cells."""
    return sorted({f"{cell['app']}:{cell['effect']}" for cell in cells if cell["state"] == "corroborated"})


def measure(stage: Stage, plan: Plan, apps: Sequence[str]) -> list[Path]:
    """Run all of the first operator's probes at once; returns the files of their records."""
    arguments = ["differential", *(word for app in apps for word in ("--app", app))]
    arguments += ["--pairs", str(plan.pairs), "--segment-s", str(plan.segment_s), "--direction", plan.direction]
    arguments += ["--progress", "json"]
    arguments += ["--pace-mbps", str(plan.pace_mbps)] if plan.pace_mbps is not None else []
    outs, logs, running = [], [], []
    for subscriber in stage.operators[0].subscribers:
        outs.append(stage.directory / f"out-{subscriber.index}.jsonl")
        logs.append(stage.directory / f"probe-{subscriber.index}.log")
        with logs[-1].open("wb") as errors:
            running.append(
                stage.run_probe(
                    subscriber, [*arguments, "--out", str(outs[-1])], stdout=subprocess.DEVNULL, stderr=errors
                )
            )
    deadline, shown = time.monotonic() + plan.patience_s(len(apps)), time.monotonic()
    while any(process.poll() is None for process in running):
        if time.monotonic() > deadline:
            raise StageError(
                f"a probe did not end in {plan.patience_s(len(apps)):.0f} s; its last words: {last_words(logs)}"
            )
        if time.monotonic() - shown >= PROGRESS_S:
            shown = time.monotonic()
            done = [_progress(log) for log in logs]
            say(f"  {sum(d for d, _ in done)} of {sum(o for _, o in done)} pairs")
        time.sleep(POLL_S)
    for process, log in zip(running, logs, strict=True):
        if process.returncode:
            raise StageError(f"a probe ended with exit code {process.returncode}: {last_words([log])}")
    return outs


def _progress(log: Path) -> tuple[int, int]:
    """Pairs done and planned by the last progress line of a probe."""
    done, of = 0, 0
    for line in log.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if event.get("event") == "start":
                of = int(event["pairs"])
            elif event.get("event") == "pair":
                done, of = int(event["done"]), int(event["of"])
    return done, of


def last_words(logs: Sequence[Path]) -> str:
    """The last line of several logs."""
    lines = [line for log in logs for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1] if lines else "none"


def verdict(files: Sequence[Path]) -> list[dict[str, Any]]:
    """The cells as the product's own command judges them from the files."""
    argv = module_command("evenlane.cli", "analysis", "verdict", "--json", *(str(file) for file in files))
    judged = subprocess.run(argv, env=module_environment(), capture_output=True, check=False)
    if judged.returncode:
        words = judged.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        raise StageError(f"the records could not be judged: {words[-1]}")
    cells: list[dict[str, Any]] = json.loads(judged.stdout)["cells"]
    return cells


def table(outcomes: Sequence[Outcome]) -> str:
    """Truth against verdict, and of each cell what speaks most."""
    lines = [f"{'scenario':<28} {'driver':<6} {'truth':<24} {'found':<24}"]
    for one in outcomes:
        mark = "ok" if one.ok else "DIFFERS"
        truth, found = ", ".join(one.expected) or "none", ", ".join(one.found) or "none"
        lines.append(f"{one.name:<28} {one.driver:<6} {truth:<24} {found:<24} {mark} ({one.seconds:.0f} s)")
        lines += [f"  {_cell_line(cell)}" for cell in one.cells if _speaks(cell, one)]
        lines += [f"  note: {note}" for note in one.notes]
        if one.void_reason:
            lines.append(f"  void: {one.void_reason}")
    return "\n".join(lines)


def _speaks(cell: dict[str, Any], outcome: Outcome) -> bool:
    """Slowing is shown of every app, another effect where there is evidence of it or it was expected."""
    key = f"{cell['app']}:{cell['effect']}"
    return cell["effect"] == "slowing" or key in outcome.expected or key in outcome.found or cell["e_value"] >= 20


def _cell_line(cell: dict[str, Any]) -> str:
    size = cell["slowdown"] or {}
    edges = [size.get(key) for key in ("estimate", "low", "high")]
    estimate, low, high = ("?" if edge is None else f"{edge:+.0%}" for edge in edges)
    slower = "no rates" if edges[0] is None else f"{estimate} ({low} to {high})"
    what = f"{cell['app']} {cell['direction']} {cell['effect']}"
    reasons = f" [{', '.join(cell['reasons'])}]" if cell["reasons"] else ""
    state = cell["state"].replace("_", " ")
    return f"{what:<28} {slower:<26} E = {cell['e_value']:<9.3g} {cell['pairs']} pairs: {state}{reasons}"


def say(words: str) -> None:
    """Progress goes to standard error."""
    print(words, file=sys.stderr, flush=True)

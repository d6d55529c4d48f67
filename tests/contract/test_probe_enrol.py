# SPDX-License-Identifier: EUPL-1.2
"""Joining and leaving as a volunteer does it: the real command against a real collector, on a terminal and without."""

from __future__ import annotations

import codecs
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from collector.config import Config
from collector.identity import Identity
from collector.identity import load as load_identity
from collector.plans import Shelf
from probe.consent import VERSION
from probe.wire.records import Plan, PlannedNettest, PlannedReflector
from probe.wire.signing import SeedSigner

PROBE = [sys.executable, "-m", "evenlane.cli", "probe"]
QUIET = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
DAY_MS = 86_400_000


class Site:
    """`evenlane collector serve` as its own process, whose plans this test signs as its command line would."""

    def __init__(self, directory: Path, *lines: str) -> None:
        self.directory = directory
        config = directory / "collector.toml"
        config.write_text("\n".join(lines))
        self.data = directory / "data"
        argv = [sys.executable, "-m", "evenlane.cli", "collector", "serve", "--port", "0", "--json"]
        self.log = (directory / "log").open("w")
        self.process = subprocess.Popen(
            [*argv, "--data", str(self.data), "--config", str(config)],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (directory / "log").read_text()
        self.url = json.loads(line)["url"]

    @property
    def identity(self) -> Identity:
        return load_identity(Config(data=self.data))

    def sign(self, version: int, **changes: Any) -> Plan:
        now_ms = time.time_ns() // 1_000_000
        made = Plan(
            type="plan",
            v=1,
            version=version,
            issued_ms=now_ms - 1000,
            expires_ms=now_ms + 14 * DAY_MS,
            reflectors=(PlannedReflector(url="https://r1.example:8443", key=SeedSigner(b"\x0e" * 32).key_id),),
            nettests=(PlannedNettest(nettest="differential", apps=("youtube",)),),
            weights=(),
            daily_mb=150,
        )
        made = replace(made, **changes)
        Shelf(self.data, self.identity).sign(made, 1.0)
        return made

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    running = Site(tmp_path_factory.mktemp("site"), 'name = "Open Measuring Net"', 'contact = "mail@net.example"')
    running.sign(3)
    yield running
    running.close()


def probe(*options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROBE, *options],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env=QUIET | {"LC_ALL": "C.UTF-8"} | environ,
    )


def enrol(site: Site, state: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return probe("enrol", "--collector", site.url, "--state", str(state), *options, **environ)


def kept(state: Path) -> set[str]:
    """Names of everything in a state directory, but for the lock, which is empty."""
    return {str(path.relative_to(state)) for path in state.rglob("*") if path.is_file()} - {"lock"}


# -- without a terminal -----------------------------------------------------------------------------------------


def test_joining_and_renewing_with_options_alone(site: Site, tmp_path: Path) -> None:
    state = tmp_path / "state"
    answers = ("--brand", "Example", "--contract-down-mbps", "100", "--declared-position", "router")
    done = enrol(site, state, "--yes", VERSION, *answers, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == "enrolled"
    assert told["vetted"] is False
    assert told["collector"] == {"url": site.url, "name": "Open Measuring Net", "key": site.identity.key_id}
    assert (told["plan_status"], told["plan"]["version"]) == ("new", 3)
    assert told["budget"] == {"daily_mb": 150, "monthly_mb": 5000}
    assert kept(state) == {"key", "life", "next", "enrolment.json", "plan.jsonl", "settings.json"}
    enrolment = json.loads((state / "enrolment.json").read_text())
    assert {key: enrolment[key] for key in ("v", "collector", "key", "name", "consent", "language")} == {
        "v": 1,
        "collector": site.url,
        "key": site.identity.key_id,
        "name": "Open Measuring Net",
        "consent": VERSION,
        "language": "en",
    }
    settings = json.loads((state / "settings.json").read_text())
    assert settings == {
        "collector": site.url,
        "brand": "Example",
        "contract_down_mbps": 100.0,
        "declared_position": "router",
        "language": "en",
    }
    before = {name: (state / name).stat().st_mtime_ns for name in ("key", "plan.jsonl", "settings.json")}

    # The same again writes nothing on flash but the renewed enrolment; another answer changes that answer alone.
    again = enrol(site, state, "--yes", VERSION, "--json")
    assert json.loads(again.stdout) == told | {"status": "known", "plan_status": "unchanged"}
    assert before == {name: (state / name).stat().st_mtime_ns for name in before}
    renewed = enrol(site, state, "--yes", VERSION, "--brand", "", "--tariff", "L", "--daily-mb", "90")
    assert "up to date" in renewed.stdout
    assert "at most 90\u00a0MB a day" in renewed.stdout
    settings = json.loads((state / "settings.json").read_text())
    assert settings == {
        "collector": site.url,
        "tariff": "L",
        "daily_mb": 90,
        "contract_down_mbps": 100.0,
        "declared_position": "router",
        "language": "en",
    }


def test_answers_from_a_file_that_somebody_else_writes(site: Site, tmp_path: Path) -> None:
    """As an OpenWrt init script does it: every value a text, and the file stays as it is."""
    rendered = tmp_path / "uci.json"
    rendered.write_text(json.dumps({"collector": site.url, "brand": "Example", "hotspot": "1", "speed": "9"}))
    before = rendered.read_bytes()
    state = tmp_path / "state"
    done = probe("enrol", "--settings", str(rendered), "--state", str(state), "--yes", VERSION, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["budget"] == {"daily_mb": 30, "monthly_mb": 500}
    assert len(told["problems"]) == 1
    assert told["problems"][0].startswith("speed is not a setting")
    assert "speed is not a setting" in done.stderr
    assert rendered.read_bytes() == before
    assert kept(state) == {"key", "life", "next", "enrolment.json", "plan.jsonl"}


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ((), 2, f"agree to it with --yes {VERSION}"),
        (("--yes", "2020-01-01"), 2, f"this program has the consent text of {VERSION}, not of '2020-01-01'"),
        (("--yes", VERSION, "--token", "a b"), 2, "--token must be as it was given to you"),
        (("--yes", VERSION, "--contract-up-mbps", "fast"), 2, "--contract-up-mbps must be a speed in Mbit/s"),
        (("--yes", VERSION, "--collector-key", "A" * 43), 3, "this is not the collector that you named"),
        (("--yes", VERSION, "--token", "0123abcd-nobody"), 3, "the collector does not take this token"),
    ],
)
def test_what_keeps_a_device_from_joining_is_one_sentence(
    site: Site, tmp_path: Path, options: tuple[str, ...], code: int, words: str
) -> None:
    done = enrol(site, tmp_path / "state", *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert words in done.stderr
    assert "enrolment.json" not in kept(tmp_path / "state")


@pytest.mark.parametrize(
    ("collector", "code", "words"),
    [
        ("http://collector.example", 2, "would travel unencrypted"),
        ("https://a.example/" + "a" * 500, 2, "longer than 512 characters"),
        ("http://127.0.0.1:1", 3, "cannot be reached (connection refused)"),
    ],
)
def test_a_collector_that_is_none(tmp_path: Path, collector: str, code: int, words: str) -> None:
    done = probe("enrol", "--collector", collector, "--state", str(tmp_path / "state"), "--yes", VERSION)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert words in done.stderr
    assert not (tmp_path / "state").exists()
    nobody = probe("enrol", "--state", str(tmp_path / "state"), "--yes", VERSION)
    assert (nobody.returncode, nobody.stderr) == (2, "evenlane: name the collector with --collector URL\n")


def test_the_text_is_shown_without_anything_being_sent(site: Site, tmp_path: Path) -> None:
    state = tmp_path / "state"
    shown = enrol(site, state, "--show", "--json", "--language", "fr", "--monthly-mb", "1500")
    told = json.loads(shown.stdout)
    assert (told["consent"], told["language"]) == (VERSION, "fr")
    assert "Open Measuring Net" in told["text"]
    assert "1,5\u00a0Go par mois et 200\u00a0Mo par jour" in told["text"]
    plain = enrol(site, state, "--show", LC_ALL="de_AT.UTF-8")
    assert "WER FRAGT" in plain.stdout
    assert max(len(line) for line in plain.stdout.splitlines()) <= 72
    assert not state.exists()


# -- leaving ----------------------------------------------------------------------------------------------------


def test_leaving_erases_there_and_here(site: Site, tmp_path: Path) -> None:
    state = tmp_path / "state"
    key = json.loads(enrol(site, state, "--yes", VERSION, "--brand", "Example", "--json").stdout)["probe"]
    # A turn within quiet hours, so that it leaves everything that a turn leaves and measures nothing.
    (state / "settings.json").write_text('{"quiet_hours": "00:00-24:00"}')
    turned = probe("once", "--state", str(state), "--json")
    assert json.loads(turned.stdout)["reason"] == "quiet_hours", turned.stderr
    assert {"turn.json", "schedule.json"} <= kept(state)
    for name in ("budget.json", "last.json", "spool/000000000001-a.jsonl", "spool/bad/half.jsonl"):
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).write_text("x")
    asked = probe("leave", "--state", str(state))
    assert (asked.returncode, asked.stderr) == (2, "evenlane: nobody can be asked here: say --yes\n")
    done = probe("leave", "--state", str(state), "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"status": "left", "detail": ""}
    assert kept(state) == {"settings.json"}
    again = probe("leave", "--state", str(state), "--yes", "--json")
    assert (again.returncode, json.loads(again.stdout)["status"]) == (0, "not_enrolled")
    rejoined = json.loads(enrol(site, state, "--yes", VERSION, "--json").stdout)
    assert rejoined["status"] == "enrolled"
    assert rejoined["probe"] != key  # nobody can link the two


def test_a_collector_that_cannot_be_told_is_told_later(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    site = Site(first)
    state = tmp_path / "state"
    try:
        assert enrol(site, state, "--yes", VERSION).returncode == 0
    finally:
        site.close()
    done = probe("leave", "--state", str(state), "--yes", LC_ALL="nl_BE.UTF-8")
    assert done.returncode == 3
    assert "could not be told yet" in " ".join(done.stdout.split())  # the language of joining, not of this terminal
    assert "leaving.json" in kept(state)
    assert "key" in kept(state)
    refused = enrol(site, state, "--yes", VERSION)
    assert refused.returncode == 3
    here = probe("leave", "--here-only", "--yes", "--state", str(state), "--json")
    assert (here.returncode, json.loads(here.stdout)["status"]) == (0, "left_here")
    assert kept(state) == {"settings.json"}


def test_two_collectors_never_know_one_key(site: Site, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    other = Site(second, 'enrolment = "token"')
    state = tmp_path / "state"
    try:
        key = json.loads(enrol(site, state, "--yes", VERSION, "--json").stdout)["probe"]
        refused = enrol(other, state, "--yes", VERSION)
        assert refused.returncode == 3
        assert "this device works for Open Measuring Net" in refused.stderr
        untaken = enrol(other, state, "--yes", VERSION, "--again")
        assert untaken.returncode == 3
        assert "takes only volunteers with a token" in untaken.stderr
        assert json.loads((state / "enrolment.json").read_text())["collector"] == site.url
    finally:
        other.close()
    third = tmp_path / "third"
    third.mkdir()
    open_one = Site(third)
    try:
        moved = json.loads(enrol(open_one, state, "--yes", VERSION, "--again", "--json").stdout)
        assert moved["collector"]["key"] == open_one.identity.key_id
        assert moved["probe"] != key
        assert (moved["plan"], moved["plan_status"]) == (None, "none")
        assert "plan.jsonl" not in kept(state)
    finally:
        open_one.close()


# -- on a terminal ----------------------------------------------------------------------------------------------


class Terminal:
    """The command on a pseudo-terminal: what it says is read, and answers are typed."""

    def __init__(self, *options: str, language: str) -> None:
        self.text = ""
        self._letters = codecs.getincrementaldecoder("utf-8")("replace")
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            os.execve(PROBE[0], [*PROBE, *options], QUIET | {"LANG": f"{language}.UTF-8"})  # noqa: S606

    def expect(self, words: str) -> None:
        """Read until these words have come; what came before is past."""
        deadline = time.monotonic() + 60
        while words not in self.flat:
            left = deadline - time.monotonic()
            assert left > 0, f"{words!r} did not come after:\n{self.text[-2000:]}"
            assert self._read(left), f"the command ended before {words!r}:\n{self.text[-2000:]}"
        self.text = self.flat.split(words, 1)[1]

    def answer(self, question: str, words: str) -> None:
        """Wait for a question, then type a line."""
        self.expect(question)
        self.expect(">")
        os.write(self.handle, words.encode(errors="surrogateescape") + b"\n")

    @property
    def flat(self) -> str:
        """Without line breaks, which depend on the width."""
        return re.sub(r"\s+", " ", self.text)

    def _read(self, timeout_s: float) -> bool:
        ready, _, _ = select.select([self.handle], [], [], timeout_s)
        try:
            chunk = os.read(self.handle, 65_536) if ready else b""
        except OSError:  # Linux's way of telling the end of a pseudo-terminal
            chunk = b""
        self.text += self._letters.decode(chunk)
        return bool(chunk)

    def end(self) -> int:
        while self._read(60):
            pass
        os.close(self.handle)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_conversation_in_dutch(site: Site, tmp_path: Path) -> None:
    state = tmp_path / "state"
    talk = Terminal("enrol", "--collector", site.url, "--state", str(state), language="nl_BE")
    talk.expect("Open Measuring Net wil weten of internetaanbieders")
    talk.expect("hoogstens 5 GB per maand en 200 MB per dag")
    talk.answer("Gaat u akkoord? (ja of nee)", "misschien")
    talk.answer("Antwoord ja of nee", "ja")
    talk.answer("Waar staat dit toestel?", "4")
    talk.answer("Antwoord 1, 2 of 3", "2")
    talk.answer("Welke aanbieder staat op de rekening?", "Voorbeeld Telecom")
    talk.answer("Hoe heet het abonnement?", "")
    talk.answer("downloaden, in Mbit/s?", "12,5")
    talk.answer("uploaden, in Mbit/s?", "")
    talk.answer("Vroeg u zelf om een filter", "nee")
    talk.answer("Wanneer mag er niet gemeten worden", "22:30-07:00")
    talk.answer("Hoeveel gegevens per maand hoogstens, in GB?", "0,5")
    talk.expect("dit toestel doet nu mee met Open Measuring Net")
    talk.expect("hoogstens 150 MB per dag en 500 MB per maand")
    talk.expect("evenlane probe leave")
    assert talk.end() == 0
    assert json.loads((state / "settings.json").read_text()) == {
        "collector": site.url,
        "brand": "Voorbeeld Telecom",
        "contract_down_mbps": 12.5,
        "declared_position": "behind_router",
        "language": "nl",
        "monthly_mb": 500,
        "opt_in_filters": False,
        "quiet_hours": ["22:30-07:00"],
    }
    # Once more: what was told stands there, Enter keeps it, - takes it back.
    talk = Terminal("enrol", "--state", str(state), language="nl_BE")
    talk.answer("Gaat u akkoord?", "J")
    talk.expect("behoudt Enter het")
    for question, words in (
        ("[2]", "1"),
        ("[Voorbeeld Telecom]", "-"),
        ("abonnement", "Basis"),
        ("[12.5]", ""),
        ("uploaden", ""),
        ("[nee]", ""),
        ("[22:30-07:00]", "-"),
        ("[0.5]", ""),
    ):
        talk.answer(question, words)
    talk.expect("bijgewerkt")
    assert talk.end() == 0
    assert json.loads((state / "settings.json").read_text()) == {
        "collector": site.url,
        "tariff": "Basis",
        "contract_down_mbps": 12.5,
        "declared_position": "router",
        "language": "nl",
        "monthly_mb": 500,
        "opt_in_filters": False,
    }
    talk = Terminal("leave", "--state", str(state), language="en_GB")
    talk.answer("Open Measuring Net verlaten?", "nee")
    talk.expect("Er werd niets gewijzigd.")
    assert talk.end() == 1
    talk = Terminal("leave", "--state", str(state), "--language", "de", language="en_GB")
    talk.answer("Open Measuring Net verlassen?", "ja")
    talk.expect("Erledigt: Open Measuring Net hat gelöscht")
    assert talk.end() == 0


def test_who_does_not_agree_leaves_no_trace(site: Site, tmp_path: Path) -> None:
    state = tmp_path / "state"
    talk = Terminal("enrol", "--collector", site.url, "--state", str(state), language="fr_BE")
    talk.answer("Êtes-vous d’accord ?", "non")
    talk.expect("Rien n’a été envoyé ni conservé.")
    assert talk.end() == 1
    # A hotspot needs its owner's consent besides; and who hangs up has agreed to nothing.
    talk = Terminal("enrol", "--collector", site.url, "--state", str(state), language="de_BE")
    talk.answer("Sind Sie einverstanden?", "ja")
    talk.answer("Wo steht dieses Gerät?", "3")
    talk.answer("Ist der Betreiber des Hotspots einverstanden?", "nein")
    talk.expect("Es wurde nichts gesendet")
    assert talk.end() == 1
    talk = Terminal("enrol", "--collector", site.url, "--state", str(state), language="en_IE")
    talk.answer("Do you agree?", "\udcff\udcfe")  # a terminal of another alphabet
    talk.answer("Please answer yes or no.", "y" * 3000)
    talk.answer("Please answer yes or no.", "yes")
    talk.answer("Where does this device stand?", "\x04")
    talk.expect("Nothing was sent")
    assert talk.end() == 1
    assert not state.exists()

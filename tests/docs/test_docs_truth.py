# SPDX-License-Identifier: EUPL-1.2
"""Documents tell the truth: what README names exists, links lead somewhere, the text speaks of the product alone."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
SOURCES = [name for name in TRACKED if name.endswith((".py", ".sh")) or name in {"Makefile", ".ci/run"}]
MARKDOWN = [name for name in TRACKED if name.endswith(".md")]


def run(*argv):
    return subprocess.run(
        [sys.executable, "-m", "evenlane.cli", *argv], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def documented_commands():
    rows = re.findall(r"^\| `evenlane ([^`]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) >= 9
    return rows


@pytest.mark.parametrize("row", documented_commands())
def test_every_command_of_the_readme_has_help(row):
    words = [word for word in shlex.split(row) if re.fullmatch(r"[a-z]+", word)]
    # `probe run differential`: the last word is an argument of the command before it.
    for take in (words, words[:-1]):
        shown = run(*take, "--help")
        if shown.returncode == 0:
            break
    assert shown.returncode == 0, shown.stderr
    assert "usage: evenlane" in shown.stdout
    for option in re.findall(r"--[a-z-]+", row):
        assert option in shown.stdout


@pytest.mark.parametrize("target", ["setup", "demo", "test", "check", "bench", "fuzz"])
def test_every_make_target_of_the_documents_exists(target):
    shown = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr


def test_the_two_commands_of_the_readme_are_make_demo_and_make_test():
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert [block.strip() for block in blocks] == ["make demo", "make test"]


@pytest.mark.parametrize("name", MARKDOWN)
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (ROOT / name).parent.joinpath(target).exists(), f"{name} links to {target}"


@pytest.mark.parametrize("name", MARKDOWN)
def test_files_named_in_documents_exist(name):
    text = (ROOT / name).read_text()
    rooms = "probe|analysis|collector|lab|dashboards|evenlane|deploy|spec|docs|tests"
    if name in {"docs/architecture.md", "CHANGELOG.md"}:
        return  # a plan and a history: they may name what is not there yet, or no more
    for target in re.findall(rf"`((?:{rooms})/[A-Za-z0-9_/.-]+)`", text):
        if not re.search(r"\b[A-Z]{2,}\.", target):  # `library/ID.toml` stands for many
            assert (ROOT / target).exists(), f"{name} names {target}"


@pytest.mark.parametrize(
    "name", [name for name in TRACKED if name.endswith((".py", ".sh")) or name in {"Makefile", ".ci/run"}]
)
def test_every_source_file_names_its_licence(name):
    head = (ROOT / name).read_text(encoding="utf-8")[:300]
    expected = "EUPL-1.2 OR GPL-2.0-or-later" if name.startswith("probe/packet") else "EUPL-1.2"
    assert f"SPDX-License-Identifier: {expected}" in head


def test_the_licence_is_the_whole_text():
    text = (ROOT / "LICENSE").read_text()
    assert "EUROPEAN UNION PUBLIC LICENCE v. 1.2" in text
    assert len(text) > 12_000


def test_the_base_install_has_no_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == []
    assert set(project["optional-dependencies"]) == {
        "reflector", "collector", "influx", "grafana", "lab", "report", "packet", "dev",
    }  # fmt: skip


def test_exit_codes_mean_something():
    assert run("--version").returncode == 0
    assert run().returncode == 2
    assert run("nonsense").returncode == 2


def test_every_test_of_the_threat_model_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "threat-model.md").read_text()))
    assert len(named) > 30
    written = "".join(
        (ROOT / name).read_text() for name in TRACKED if name.startswith("tests/") and name.endswith(".py")
    )
    assert not {name for name in named if f"def {name}(" not in written}

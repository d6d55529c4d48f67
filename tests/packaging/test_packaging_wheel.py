# SPDX-License-Identifier: EUPL-1.2
"""The wheel without extras is the probe: it measures, outside the checkout, with the standard library alone."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.packaging


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    # --no-isolation: the build backend is in the developer's extra, so no network is needed here.
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("evenlane-*.whl")
    return built


@pytest.fixture(scope="module")
def thin(wheel, tmp_path_factory):
    """An environment with the wheel and nothing else; gives a function that runs its `evenlane`."""
    home = tmp_path_factory.mktemp("thin")
    venv.create(home / "venv", with_pip=True)
    python = home / "venv/bin/python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", wheel],
        check=True,
    )
    clean = {"PATH": os.environ["PATH"], "HOME": str(home)}

    def run(*argv, **options):
        options = {"capture_output": True, "text": True, "timeout": 120} | options
        return subprocess.run([home / "venv/bin/evenlane", *argv], cwd=home, env=clean, **options)

    run.python = python
    run.home = home
    run.env = clean
    return run


def test_the_wheel_holds_the_rooms_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"probe", "analysis", "collector", "lab", "dashboards", "evenlane"}
    assert any(name.startswith("probe/profiles/library/") and name.endswith(".toml") for name in names)
    assert any(name.startswith("lab/scenarios/") and name.endswith(".toml") for name in names)
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]


def test_it_measures_with_the_standard_library_alone(thin, reflector):
    out = thin.home / "out.jsonl"
    done = thin(
        *["probe", "run", "differential", "--reflector", reflector.url, "--app", "youtube", "--pairs", "2"],
        *["--segment-s", "0.5", "--pace-mbps", "4", "--state", str(thin.home / "state"), "--out", str(out), "--json"],
    )
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    lines = out.read_text().splitlines()
    kinds = [json.loads(_payload(line))["type"] for line in lines]
    assert sorted(kinds) == ["measurement", "receipt"]
    measurement = json.loads(_payload(lines[kinds.index("measurement")]))
    assert len([pair for pair in measurement["pairs"] if pair["kind"] == "test"]) == 2
    verdict = thin("analysis", "verdict", str(out), "--json")
    assert verdict.returncode == 0, verdict.stderr
    assert {cell["app"] for cell in json.loads(verdict.stdout)["cells"]} == {"youtube"}


def test_it_loads_nothing_but_the_standard_library(thin):
    code = (
        "import sys, evenlane.cli, probe.runner, probe.nettests.registry, probe.upload\n"
        "bad = {m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)"
        " - {'probe', 'evenlane', '__main__', '__mp_main__', 'sitecustomize', 'usercustomize'}\n"
        "bad = {m for m in bad if not m.startswith(('_', 'encodings'))}\n"
        "print(sorted(bad))"
    )
    done = subprocess.run([thin.python, "-c", code], cwd=thin.home, env=thin.env, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("argv", "extra"),
    [(["reflector"], "reflector"), (["collector", "serve"], "collector"), (["demo", "--exit"], "lab")],
)
def test_a_missing_extra_is_one_sentence(thin, argv, extra):
    done = thin(*argv)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"evenlane[{extra}]" in done.stderr


def test_as_pipx_installs_it(thin):
    """An environment of its own, and one link to the command on the path: it finds its files, the agent's too."""
    link = thin.home / ".local/bin/evenlane"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(thin.home / "venv/bin/evenlane")
    environ = thin.env | {"PATH": f"{link.parent}:{thin.env['PATH']}"}
    done = subprocess.run(["evenlane", "probe", "--help"], env=environ, cwd=thin.home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "enrol" in done.stdout
    state = thin.home / "pipx-state"
    agent = subprocess.Popen(
        ["evenlane", "probe", "agent", "--state", str(state)],
        env=environ,
        cwd=thin.home,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "evenlane probe enrol" in agent.stderr.readline()  # of its first turn
        assert agent.poll() is None
    finally:
        agent.terminate()
        agent.wait(60)
        agent.stderr.close()


def _payload(line):
    import base64

    payload = json.loads(line)["payload"]
    return base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))

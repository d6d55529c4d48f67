# SPDX-License-Identifier: EUPL-1.2
"""The images and the compose file of a reflector, as far as they can be looked at without a Docker engine."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy/docker"


def options(*command):
    """The options of a command of ours."""
    argv = [sys.executable, "-m", "evenlane.cli", *command, "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"--[a-z][a-z-]+", done.stdout))


def instructions(path):
    """The instructions of a Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    return [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.probe"])
def test_an_image_copies_what_exists_and_runs_without_rights(name):
    found = instructions(DOCKER / name)
    for word, rest in found:
        if word == "COPY" and not rest.startswith("--from"):
            assert [part for part in rest.split()[:-1] if not (ROOT / part).exists()] == []
        if word == "FROM":
            assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-bookworm(?: AS build)?", rest), "pinned to a version"
    last = [rest for word, rest in found if word == "USER"][-1]
    assert last == "evenlane"
    copied = {rest.split()[0] for word, rest in found if word == "COPY"}
    import tomllib

    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    assert set(built) <= copied, "the wheel needs every room"


def test_the_probes_command_and_those_in_its_comments_exist():
    path = DOCKER / "Dockerfile.probe"
    found = dict(instructions(path))
    assert found["ENTRYPOINT"] == '["evenlane", "probe"]'
    argv = yaml.safe_load(found["CMD"])
    assert {part for part in argv if part.startswith("--")} <= options("probe", argv[0])
    told = re.search(r"(enrol --collector.*)$", path.read_text(), re.MULTILINE)[1]
    assert set(re.findall(r"--[a-z-]+", told)) <= options("probe", "enrol")


def test_the_reflectors_service():
    document = yaml.safe_load((DOCKER / "reflector.compose.yaml").read_text(encoding="utf-8"))
    (service,) = document["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    uid = re.search(r"--uid (\d+)", (DOCKER / "Dockerfile").read_text())[1]
    assert service["user"] == uid
    assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DOCKER / "Dockerfile"
    command = service["command"]
    assert command[0] == "reflector"
    assert {part for part in command if part.startswith("--")} <= options("reflector")
    mounts = {volume.partition(":")[2] for volume in service["volumes"]}
    state = Path(command[command.index("--state") + 1])
    assert mounts & {str(parent) for parent in state.parents}
    assert {volume.partition(":")[0] for volume in service["volumes"]} == set(document["volumes"])
    check = service["healthcheck"]["test"]
    assert check[:3] == ["CMD", "python", "-c"]
    compile(check[3], "healthcheck", "exec")


def test_the_readmes_commands_name_what_is_there():
    text = (DOCKER / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"[\w.]+\.compose\.yaml|Dockerfile\.\w+", text):
        assert (DOCKER / name).exists(), name
    assert "Both untried in containers" in text


def test_the_health_check_is_answered_by_a_real_reflector(reflector):
    document = yaml.safe_load((DOCKER / "reflector.compose.yaml").read_text(encoding="utf-8"))
    code = document["services"]["reflector"]["healthcheck"]["test"][3]
    port = re.search(r":(\d+)#", reflector.url)[1]
    code = code.replace("8443", port)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_compose_itself_accepts_the_file():
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, timeout=60).returncode:
        pytest.skip("docker compose is not on this machine")
    argv = shlex.split(f"{docker} compose -f {DOCKER / 'reflector.compose.yaml'} config -q")
    environ = os.environ | {"EVENLANE_COLLECTOR": "https://collector.example.org"}
    done = subprocess.run(argv, capture_output=True, text=True, env=environ, timeout=60)
    assert done.returncode == 0, done.stderr
    missing = subprocess.run(argv, capture_output=True, text=True, env=os.environ, timeout=60)
    assert "EVENLANE_COLLECTOR" in missing.stderr

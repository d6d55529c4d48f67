# SPDX-License-Identifier: EUPL-1.2
"""The Docker files as far as they can be checked without Docker; no test starts a container."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from collector.config import from_dict
from dashboards.parts import INFLUX, PROMETHEUS
from evenlane.cli import build_parser

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def test_the_services_are_those_that_belong_together() -> None:
    assert set(SERVICES) == {"collector", "reflector", "influxdb", "grafana", "prometheus"}


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_pinned_watched_and_restarted(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"]), "an image without its full version moves"
    assert service["restart"] == "unless-stopped"
    check = service["healthcheck"]
    assert check["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)


def test_what_depends_waits_until_the_other_is_healthy() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES, name
            assert how == {"condition": "service_healthy"}


def test_our_own_containers_may_do_little() -> None:
    for name in ("collector", "reflector"):
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]


def test_only_loopback_is_published() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_no_secret_is_committed() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if "PASSWORD" in name or "TOKEN" in name:
                assert re.fullmatch(r"\$\{[A-Z_]+:\?run \./make-env first\}", value), name
    assert COMPOSE["secrets"] == {"influx_token": {"environment": "INFLUXDB_TOKEN"}}
    assert (DOCKER / ".gitignore").read_text().split() == [".env"]
    tracked = subprocess.run(
        ["git", "ls-files", "deploy/docker"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ".env" not in {Path(line).name for line in tracked.stdout.splitlines()}


def test_make_env_writes_every_name_that_is_asked_for_and_never_twice(tmp_path: Path) -> None:
    script = tmp_path / "make-env"
    script.write_bytes((DOCKER / "make-env").read_bytes())
    assert subprocess.run(["sh", str(script)], check=False, capture_output=True).returncode == 0
    written = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines())
    asked = set(re.findall(r"\$\{([A-Z_]+):\?", (DOCKER / "compose.yaml").read_text())) | {"INFLUXDB_TOKEN"}
    assert set(written) == asked
    assert written["INFLUXDB_TOKEN"] == f"collector:{written['INFLUXDB_WRITE_PASSWORD']}"
    assert len({value for name, value in written.items() if name != "INFLUXDB_TOKEN"}) == 4
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    assert subprocess.run(["sh", str(script)], check=False, capture_output=True).returncode == 1


def test_the_token_is_that_of_the_user_who_may_write() -> None:
    assert SERVICES["influxdb"]["environment"]["INFLUXDB_WRITE_USER"] == "collector"


def test_the_collectors_configuration_is_one_it_takes(tmp_path: Path) -> None:
    table = tomllib.loads((DOCKER / "collector.toml").read_text())
    assert table["influx"]["token_file"] == "/run/secrets/influx_token"
    (tmp_path / "token").write_text("collector:x\n")
    table["influx"]["token_file"] = "token"
    config = from_dict(table, where=tmp_path)
    assert config.influx is not None
    assert config.influx.token == "collector:x"
    assert config.influx.bucket == f"{SERVICES['influxdb']['environment']['INFLUXDB_DB']}/autogen"


def test_the_configuration_offered_in_comments_is_taken_too(tmp_path: Path) -> None:
    text = (DOCKER / "collector.toml").read_text()
    offered = text[text.index("# [grafana]") :].replace("# ", "").replace("/run/secrets/grafana_token", "token")
    (tmp_path / "token").write_text("x")
    assert from_dict(tomllib.loads(offered), where=tmp_path).grafana is not None


@pytest.mark.parametrize("name", ["collector", "reflector"])
def test_the_command_lines_are_understood(name: str) -> None:
    command = [str(part) for part in SERVICES[name]["command"]]
    args = build_parser(name).parse_args(command)
    assert args.command == name


def test_what_is_mounted_is_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]


def test_grafana_finds_the_data_sources_that_the_boards_name() -> None:
    file = DOCKER / "grafana/provisioning/datasources/evenlane.yaml"
    sources = {s["uid"]: s for s in yaml.safe_load(file.read_text())["datasources"]}
    assert {(s["uid"], s["type"]) for s in sources.values()} == {
        (INFLUX["uid"], INFLUX["type"]),
        (PROMETHEUS["uid"], PROMETHEUS["type"]),
    }
    influx = sources[INFLUX["uid"]]
    assert influx["jsonData"]["dbName"] == SERVICES["influxdb"]["environment"]["INFLUXDB_DB"]
    assert influx["jsonData"]["version"] == "InfluxQL"
    assert influx["user"] == SERVICES["influxdb"]["environment"]["INFLUXDB_READ_USER"]
    assert influx["secureJsonData"]["password"].lstrip("$") in SERVICES["grafana"]["environment"]
    for source in sources.values():
        assert re.fullmatch(r"http://(influxdb:8086|prometheus:9090)", source["url"])


def test_grafana_finds_the_boards() -> None:
    file = DOCKER / "grafana/provisioning/dashboards/evenlane.yaml"
    (provider,) = yaml.safe_load(file.read_text())["providers"]
    path = provider["options"]["path"]
    mounted = [v for v in SERVICES["grafana"]["volumes"] if v.split(":")[1] == path]
    assert mounted == [f"../../dashboards/generated:{path}:ro"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / "dashboards/generated" / Path(home).name).exists()


def test_prometheus_looks_where_metrics_are() -> None:
    jobs = {j["job_name"]: j for j in yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]}
    assert jobs["collector"]["static_configs"][0]["targets"] == ["collector:8080"]
    assert jobs["reflector"]["scheme"] == "https"
    assert jobs["reflector"]["static_configs"][0]["targets"] == ["host.docker.internal:8443"]
    assert SERVICES["prometheus"]["extra_hosts"] == ["host.docker.internal:host-gateway"]


def test_the_image_installs_extras_that_exist_and_runs_as_nobody_special() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = whole["project"]
    extras = re.search(r"'\.\[([a-z,]+)\]'", text)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])
    assert {"collector", "reflector", "influx", "grafana"} <= set(extras[1].split(","))
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["python:3.12.8-slim-bookworm"] * 2
    assert "USER evenlane" in text
    copied = re.findall(r"^COPY ([^-\s]\S*) \./", text, re.MULTILINE)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    assert set(packages) <= set(copied)
    assert SERVICES["collector"]["image"] == f"evenlane:{project['version']}"


def test_the_readme_says_what_was_not_tried() -> None:
    assert "**Untried as a whole.**" in (DOCKER / "README.md").read_text()

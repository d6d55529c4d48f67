# SPDX-License-Identifier: EUPL-1.2
"""A configuration is right as a whole or refused, every wrong key by its path; the command says it in a sentence."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from collector.config import Config, ConfigError, from_dict, load
from evenlane.cli import main

KEY = "A" * 43
SPEC = Path(__file__).parents[2] / "spec/api.md"


def problems(value):
    with pytest.raises(ConfigError) as caught:
        from_dict(value)
    return caught.value.problems


def test_nothing_at_all_is_a_good_configuration():
    assert from_dict({}) == Config(data=Path("collector-data"))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"dta": "x"}, "dta is not a key that is known here"),
        ({"port": 70000}, "port must be a whole number from 0 to 65535"),
        ({"port": True}, "port must be a whole number"),
        ({"host": ""}, "host must be a text"),
        ({"reflectors": "x"}, "reflectors must be a list"),
        ({"reflectors": [KEY, "short"]}, "reflectors[1] is not a key id"),
        ({"publish": "review"}, 'publish must be "auto"'),
        ({"public_url": "ftp://x"}, "public_url must begin with http"),
        ({"trusted_proxies": ["10.0.0.0/8", "x"]}, "trusted_proxies[1] is not an address or a network"),
        ({"timezone": "Europe/Nowhere"}, "timezone is not a time zone"),
        ({"timezone": "../etc/passwd"}, "timezone is not a time zone"),
        ({"timezones": {"nl": "UTC"}}, "timezones.nl is not a country code"),
        ({"timezones": {"NL": "x"}}, "timezones.NL is not a time zone"),
        ({"timezones": 3}, "timezones must be a table"),
        ({"operators": {"id": "x"}}, "operators must be tables, [[operators]]"),
        ({"operators": [{"brand": "x"}]}, "operators[0].id is missing"),
        ({"operators": [{"id": "x", "asns": [-1]}]}, "operators[0].asns[0] must be a whole number"),
        ({"operators": [{"id": "x"}, {"id": "x"}]}, "operators[1].id is used twice"),
        ({"operators": [{"id": "x", "asns": [1]}, {"id": "y", "asns": [1]}]}, "operators[1].asns has 1"),
        ({"operators": [{"id": "x", "country": "Netherlands"}]}, "operators[0].country is not a country code"),
        ({"operators": [{"id": "x", "cgnat": 1}]}, "operators[0].cgnat must be true or false"),
        ({"operators": [{"id": "x", "colour": 1}]}, "operators[0].colour is not a key"),
        ({"influx": {"url": "http://x", "org": "o", "bucket": "b"}}, "influx.token must be given"),
        ({"influx": {"token": "t", "org": "o", "bucket": "b"}}, "influx.url is missing"),
        ({"grafana": {"url": "http://x", "token": "t", "token_file": "f"}}, "grafana.token must be given"),
        ({"grafana": {"url": "http://x", "token_file": "/nowhere/f"}}, "grafana.token_file cannot be read"),
    ],
)
def test_a_wrong_key_is_named_by_its_path(value, problem):
    (found,) = problems(value)
    assert found.startswith(problem)


def test_all_problems_are_told_at_once():
    assert len(problems({"port": "x", "colour": 1, "operators": [{"id": 3, "asns": 4}]})) == 4


def test_the_example_of_the_specification_is_good_but_for_its_placeholders(tmp_path):
    text = SPEC.read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text[text.index("## Configuration") :], re.DOTALL)
    example = example.replace('["KEY-ID", "…"]', f'["{KEY}"]').replace("https://…", "https://collector.example")
    (tmp_path / "influx.token").write_text("secret-i\n")
    (tmp_path / "grafana.token").write_text("secret-g\n")
    (tmp_path / "c.toml").write_text(example)
    config = load(tmp_path / "c.toml")
    assert config.data == tmp_path / "collector-data"
    assert (config.influx.token, config.grafana.token) == ("secret-i", "secret-g")
    assert config.zone_of("example", None) == "Europe/Amsterdam"
    assert config.zone_of("other", "PT") == "Atlantic/Azores"
    assert config.zone_of("other", "FR") is None
    assert "secret" not in repr(config)
    # Every key there is stands in the example.
    named = set(re.findall(r"^(\w+) = |^\[+(\w+)\]+", example, re.MULTILINE))
    told = {name for pair in named for name in pair if name}
    assert set(Config.__dataclass_fields__) <= told


@pytest.mark.parametrize("content", [b"port = ", b"\xff", None])
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, content):
    path = tmp_path / "c.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"c\.toml is wrong: it "):
        load(path)


# The command


def collector(capsys, *argv):
    code = main(["collector", *map(str, argv)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_check_changes_nothing(tmp_path, capsys):
    data = tmp_path / "data"
    code, out, _ = collector(capsys, "check", "--data", data, "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["ok"], told["state"], told["listen"]) == (True, "new", "127.0.0.1:8080")
    assert not data.exists()


def test_a_bad_configuration_is_exit_3_and_a_sentence(tmp_path, capsys):
    path = tmp_path / "c.toml"
    path.write_text("prot = 1\n")
    for action in ("check", "serve"):
        code, out, err = collector(capsys, action, "--config", path)
        assert (code, out) == (3, "")
        assert err == f"evenlane: {path} is wrong: prot is not a key that is known here\n"


def test_a_directory_that_is_none_is_exit_3(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for action in ("check", "serve"):
        code, _, err = collector(capsys, action, "--data", tmp_path / "file", "--port", 0)
        assert code == 3
        assert err.count("\n") == 1
        assert "cannot be written" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_exit_3(tmp_path, capsys):
    tmp_path.chmod(0o500)
    code, _, err = collector(capsys, "serve", "--data", tmp_path / "data", "--port", 0)
    tmp_path.chmod(0o700)
    assert code == 3
    assert "permission denied" in err


def test_data_of_a_newer_version_is_refused(tmp_path, capsys):
    import sqlite3

    with sqlite3.connect(tmp_path / "collector.sqlite3") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    for action in ("check", "serve"):
        code, _, err = collector(capsys, action, "--data", tmp_path, "--port", 0)
        assert code == 3
        assert "use a newer evenlane" in err


def test_a_file_that_is_no_store_is_refused(tmp_path, capsys):
    (tmp_path / "collector.sqlite3").write_bytes(b"not a database, but long enough to look at" * 40)
    code, _, err = collector(capsys, "serve", "--data", tmp_path, "--port", 0)
    assert code == 3
    assert "cannot be used" in err


def test_a_port_in_use_is_exit_3_and_leaves_no_lock(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for _ in range(2):
            code, _, err = collector(capsys, "serve", "--data", tmp_path / "data", "--port", port)
            assert code == 3
            assert f"port {port} is in use by another program: choose another with --port" in err


def test_an_unknown_host_is_exit_3(tmp_path, capsys):
    code, _, err = collector(capsys, "serve", "--data", tmp_path, "--port", 0, "--host", "no.such.host.invalid")
    assert code == 3
    assert "--host" in err


def test_usage_is_exit_2(capsys):
    for argv in (["fly"], ["--port", "99999"], ["--port", "x"]):
        with pytest.raises(SystemExit) as caught:
            collector(capsys, *argv)
        assert caught.value.code == 2


def test_without_its_extra_the_command_says_which_to_install(tmp_path):
    """A machine with the base install alone: aiohttp cannot be imported."""
    (tmp_path / "aiohttp.py").write_text("raise ModuleNotFoundError(\"No module named 'aiohttp'\", name='aiohttp')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    argv = [sys.executable, "-m", "evenlane.cli", "collector", "check"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 3
    assert "pip install 'evenlane[collector]'" in done.stderr


def test_a_sink_without_its_extra_says_which_to_install(tmp_path):
    for name, module in (("influx", "influxdb_client"), ("grafana", "grafana_api")):
        (tmp_path / module).mkdir()
        text = f"raise ModuleNotFoundError(\"No module named '{module}'\", name='{module}')"
        (tmp_path / module / "__init__.py").write_text(text)
        config = tmp_path / "c.toml"
        more = '\norg = "o"\nbucket = "b"' if name == "influx" else ""
        config.write_text(f'[{name}]\nurl = "http://127.0.0.1:1"\ntoken = "t"{more}\n')
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        argv = [sys.executable, "-m", "evenlane.cli", "collector", "--config", str(config), "--port", "0"]
        argv += ["--data", str(tmp_path / "data")]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 3, done.stderr
        assert f"evenlane[{name}]" in done.stderr

# SPDX-License-Identifier: EUPL-1.2
"""Scenario files are read strictly: what is not understood is refused by its path."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import lab.model
from lab.model import Link, affected
from lab.scenario import ScenarioError, from_table, load, to_table
from probe.profiles.model import every

LIBRARY = sorted(Path(lab.model.__file__).with_name("scenarios").glob("*.toml"))
RULE = 'name = "x"\n[[rule]]\nmatch = {{ {match} }}\naction = "{action}"\n{rest}'


def parse(text: str) -> object:
    return from_table(tomllib.loads(text))


def rule(match: str = 'sni = "*.example.org"', action: str = "block", rest: str = "") -> str:
    return RULE.format(match=match, action=action, rest=rest)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[link]", "name: is missing"),
        ('name = "x\\ny"', "name: must be printable"),
        ('name = "x"\n[lnk]', "lnk: unknown key; did you mean link?"),
        ('name = "x"\n[link]\ndown = 3', "link.down: unknown key; did you mean down_mbps?"),
        ('name = "x"\n[link]\ndown_mbps = "3"', "link.down_mbps: must be a number"),
        ('name = "x"\n[link]\ndown_mbps = true', "link.down_mbps: must be a number"),
        ('name = "x"\n[link]\nrtt_ms = nan', "link.rtt_ms: must be a number"),
        ('name = "x"\n[link]\nloss = 1.5', "link.loss: must be between 0 and 1"),
        ('name = "x"\nlink = 3', "link: must be a table"),
        ('name = "x"\nrule = 3', "rule: must be an array of tables"),
        ('name = "x"\n[cross_traffic]\npattern = "bursty"\ndown_mbps = 1', "cross_traffic.pattern: must be one of"),
        ('name = "x"\n[cross_traffic]\npattern = "web"', "cross_traffic.down_mbps: is missing"),
        ('name = "x"\n[expect]\neffects = ["a:slow"]', "expect.effects[0]: the effect must be one of"),
        ('name = "x"\n[expect]\neffects = ["slowing"]', 'expect.effects[0]: must read "app:effect"'),
        (rule(match='snl = "a"'), "rule[0].match.snl: unknown key; did you mean sni?"),
        (rule(match='split = "yes"'), "rule[0].match.split: must be true or false"),
        (rule(action="alter"), "rule[0].packets: is missing; the action alter needs it"),
        (rule(action="alter", rest="packets = 2"), "rule[0].packets: must be between 0 and 1"),
        (rule(rest="packets = 0.1"), "rule[0].packets: has no meaning for the action block"),
        (rule(rest="flows = 50"), "rule[0].flows: must be between 0 and 1"),
        ('name = "x"\n[link]\nloss_burst = 0.5', "link.loss_burst: must be between 1 and 1000"),
        ('name = "x"\n[link]\nvary = 1', "link.vary: must be between 0 and 0.99"),
        (rule(match="sni = 3"), "rule[0].match.sni: must be a text or an array"),
        (rule(match='payload = "torrent"'), "rule[0].match.payload: must be one of"),
        (rule(match="port = 0"), "rule[0].match.port: must lie between"),
        (rule(match='port = "x"'), "rule[0].match.port: must be a port or a range"),
        (rule(match='quic_sni = "a", proto = "tcp"'), "rule[0].match.proto: QUIC travels over UDP"),
        ('name = "x"\n[link]\nfamily = 5', "link.family: must be 4 or 6"),
        ('name = "x"\n[link]\nfamily = [6]', "link.family: must be 4 or 6"),
        ('name = "x"\n[link]\nnat = "full"', "link.nat: must be one of none, home, cgnat"),
        ('name = "x"\n[link]\nnat = "home"\nfamily = 6', "link.nat: does not go with family 6"),
        ('name = "x"\n[link]\npath_mtu = 500', "link.path_mtu: must be 0 (no black hole) or a whole number from 576"),
        ('name = "x"\n[link]\nfamily = 6\npath_mtu = 1200', "from 1280 to 1500, not 1200"),
        ('name = "x"\n[link]\npath_mtu = 1300.5', "link.path_mtu: must be 0"),
        ('name = "x"\n[link]\nreorder = -1', "link.reorder: must be between 0 and 1"),
        ('name = "x"\n[link]\nduplicates = 0.1', "link.duplicates: unknown key; did you mean duplicate?"),
        ('name = "x"\n[link]\ncorrupt_payload = "a"', "link.corrupt_payload: must be a number"),
        (rule(match='direction = "left"'), "rule[0].match.direction: must be one of"),
        (rule(action="throttle"), "rule[0].action: must be one of"),
        (rule(action="polic"), "did you mean police?"),
        (rule(action="http_header"), "rule[0].header: is missing"),
        (rule(action="http_header", rest='header = "no"'), 'rule[0].header: must read "Name: value"'),
        (rule(action="http_header", rest='header = "X: y\\r\\nZ: w"'), 'rule[0].header: must read "Name: value"'),
        (rule(match='proto = "udp"', action="http_header", rest='header = "X: y"'), "exists for TCP only"),
        (rule(action="police"), "rule[0].down_mbps: is missing"),
        (rule(action="delay"), "rule[0].delay_ms: is missing"),
        (rule(rest="down_mbps = 3"), "rule[0].down_mbps: has no meaning for the action block"),
        (rule(rest="hours = [18]"), "rule[0].hours: must be two hours"),
        (rule(rest="hours = [18, 25]"), "rule[0].hours.to: must be between 0 and 24"),
        (rule(rest="hours = [18, 18]"), "rule[0].hours: begin and end at the same time"),
        (rule(rest="share = 2"), "rule[0].share: must be between 0 and 1"),
        (rule(rest="shar = 1"), "rule[0].shar: unknown key; did you mean share?"),
        (rule(match='proto = "udp"', action="reset"), "rule[0].match.proto: the action reset exists for TCP only"),
        (rule(action="dns", rest='answer = "x"'), "rule[0].answer: must be nxdomain, refused or an IP address"),
        (rule(action="strip_option", rest='option = "x"'), "rule[0].option: must be one of"),
    ],
)
def test_what_is_not_understood_is_refused_by_its_path(text: str, says: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_documented_example_is_read() -> None:
    scenario = from_table(
        tomllib.loads("""
name = "video-policed-by-name"
[link]
down_mbps = 50
up_mbps = 10
rtt_ms = 20
buffer_ms = 100
loss = 0.0
jitter_ms = 0
[cross_traffic]
pattern = "onoff"
down_mbps = 20
[[rule]]
match = { sni = "*.googlevideo.com" }
action = "police"
down_mbps = 1.5
burst_kb = 256
after_kb = 0
linger_s = 0
hours = [18, 23]
share = 1.0
[expect]
effects = ["youtube:slowing"]
""")
    )
    assert scenario.link == Link(50, 10, 20, 100, 0, 0)
    assert scenario.rules[0].match.sni == ("*.googlevideo.com",)
    assert scenario.rules[0].hours == (18, 23)
    assert scenario.expected == ["youtube:slowing"]


def test_a_scenario_survives_its_way_to_another_process() -> None:
    for text in (
        rule(match='sni = ["a.org", "*.b.org"], port = [443, "6881-6889"], proto = "tcp", established_only = true'),
        rule(action="police", rest="down_mbps = 1.5\nup_mbps = 2\nburst_kb = 64\nhours = [22, 2]\nshare = 0.3"),
        rule(action="shape", rest="up_mbps = 2\nbuffer_ms = 70\nafter_kb = 3\nlinger_s = 4"),
        rule(match='dns = "*"', action="dns", rest='answer = "192.0.2.1"'),
        rule(match='dns = "*"', action="dns", rest='answer = "2001:db8::1"'),
        rule(match='quic_sni = "*.example.org", payload = ["stun", "openvpn"]'),
        'name = "x"\n[link]\nfamily = 6\npath_mtu = 1280\nreorder = 0.1\nreorder_ms = 3\nduplicate = 0.2',
        'name = "x"\n[link]\nnat = "cgnat"\ncorrupt = 0.1\ncorrupt_payload = 0.2',
        rule(match="", action="dscp", rest="dscp = 46"),
        rule(match='direction = "down", split = false', action="alter", rest="packets = 0.01\nafter_kb = 50"),
        rule(match="split = true", action="pass", rest="flows = 0.5"),
        'name = "x"\n[link]\nloss = 0.07\nloss_burst = 6\nvary = 0.6\nvary_s = 2',
        rule(match='http_host = "*"', action="http_header", rest='header = "X-Subscriber: 17"'),
        'name = "x"\n[cross_traffic]\npattern = "web"\nup_mbps = 3\n[expect]\neffects = ["a:blocking", "b:slowing"]',
    ):
        scenario = from_table(tomllib.loads(text))
        assert from_table(to_table(scenario)) == scenario


def test_files_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="cannot be read"):
        load(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("name = ")
    with pytest.raises(ScenarioError, match="not valid TOML"):
        load(bad)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(ScenarioError, match="not valid TOML"):
        load(bad)
    bad.write_text('name = "x"\n[lnk]')
    with pytest.raises(ScenarioError, match=r"bad\.toml: lnk: unknown key"):
        load(bad)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_every_scenario_of_the_library_is_valid_and_true_to_itself(path: Path) -> None:
    scenario = load(path)
    assert scenario.name == path.stem
    assert {app for app, _ in scenario.expect} <= set(every())
    if path.stem.startswith("neutral"):
        assert not scenario.expect
    else:
        assert scenario.expect


def test_a_share_names_whole_subscribers() -> None:
    assert [affected(share, 3) for share in (0, 0.05, 0.4, 0.5, 0.9, 1)] == [0, 1, 1, 2, 3, 3]


# Every row of the accuracy study that an operator brings about is a scenario: link, household and rules say it all.
ROWS = {
    "policing by name, small bucket": rule(action="police", rest="down_mbps = 1.5\nburst_kb = 32"),
    "policing by name, large bucket": rule(action="police", rest="down_mbps = 1.5\nburst_kb = 4000"),
    "shaping by name": rule(action="shape", rest="down_mbps = 2\nburst_kb = 32"),
    "after N bytes": rule(action="police", rest="down_mbps = 1.5\nafter_kb = 1000"),
    "peak hours only": rule(action="police", rest="down_mbps = 1.5\nhours = [18, 23]"),
    "one direction": rule(action="police", rest="up_mbps = 1.5"),
    "by port": rule(match="port = [443, 853]", action="police", rest="down_mbps = 1.5"),
    "by opaqueness": rule(match='payload = "opaque"', action="police", rest="down_mbps = 1.5"),
    "split ClientHello": rule(match='sni = "*.example.org", split = true', action="police", rest="down_mbps = 1.5"),
    "an engine that a split hides from": rule(match='sni = "*", split = false', action="block"),
    "prioritisation": rule(action="pass") + '[[rule]]\nmatch = {}\naction = "shape"\ndown_mbps = 3',
    "delay only": rule(action="delay", rest="delay_ms = 40"),
    "loss only": rule(action="drop", rest="loss = 0.05"),
    "a share of the subscribers": rule(action="police", rest="down_mbps = 1.5\nshare = 0.05"),
    "residual throttling": rule(action="police", rest="down_mbps = 1.5\nlinger_s = 60"),
    "blocking by reset": rule(action="reset"),
    "blocking by reset in the middle": rule(action="reset", rest="after_kb = 200"),
    "blocking by silence": rule(action="block"),
    "blocking of half the connections": rule(action="block", rest="flows = 0.5"),
    "tampering": rule(match='sni = "*", direction = "down"', action="alter", rest="packets = 0.01\nafter_kb = 60"),
    "bufferbloat": 'name = "x"\n[link]\nbuffer_ms = 500',
    "jitter": 'name = "x"\n[link]\njitter_ms = 30',
    "lossy Wi-Fi": 'name = "x"\n[link]\nloss = 0.03\nloss_burst = 5',
    "a rate that varies": 'name = "x"\n[link]\nvary = 0.6\nvary_s = 0.5',
    "power boost": rule(match="", action="shape", rest="down_mbps = 10\nburst_kb = 4000"),
    "2 Mbit/s": 'name = "x"\n[link]\ndown_mbps = 2\nup_mbps = 0.5',
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_study_can_be_written_down(row: str) -> None:
    scenario = from_table(tomllib.loads(ROWS[row]))
    assert from_table(to_table(scenario)) == scenario
    assert scenario.rules or scenario.link != Link()

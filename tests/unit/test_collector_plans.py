# SPDX-License-Identifier: EUPL-1.2
"""Plans from the file that people write to what probes are given (spec/enrolment.md, "Plans"), and tokens."""

import dataclasses
import json
import os
import random
import shutil
import time
import tomllib
from pathlib import Path

import pytest

from collector.config import Config, ConfigError
from collector.drafts import Cost, against, cost, read
from collector.enrolment import new_token
from collector.identity import Identity, load
from collector.invitations import on_roll
from collector.plans import PlansError, Shelf, Shelved, choose, former_of
from collector.store.sqlite import SqliteStore
from evenlane.cli import main
from probe.plan import accept
from probe.wire.envelope import seal
from probe.wire.records import Plan, PlannedNettest
from probe.wire.signing import SeedSigner

NOW = 1_790_002_800_000
DAY_MS = 86_400_000
REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "deploy" / "plan.example.toml"
SIGNER = SeedSigner(bytes(range(32)))
IDENTITY = Identity(SIGNER)


def plan(version=1, *, now_ms=NOW, days=14, **options):
    return Plan(
        type="plan",
        v=1,
        version=version,
        issued_ms=now_ms,
        expires_ms=now_ms + days * DAY_MS,
        reflectors=(),
        nettests=(PlannedNettest(nettest="differential"),),
        weights=(),
        **options,
    )


def shelved(version, share=1.0, **options):
    made = plan(version, **options)
    return Shelved(plan=made, envelope=seal(made, SIGNER), share=share)


@pytest.fixture
def site(tmp_path):
    """A directory and a configuration that trusts the example's reflector; the command line on both."""
    key = tomllib.loads(EXAMPLE.read_text())["reflectors"][0]["key"]
    (tmp_path / "collector.toml").write_text(f'data = "data"\nreflectors = ["{key}"]\n')
    return tmp_path


@pytest.fixture
def told(site, capsys):
    """Run a command; its exit code and its JSON."""

    def run(*words):
        capsys.readouterr()
        try:
            code = main(["collector", *map(str, words), "--config", str(site / "collector.toml"), "--json"])
        except SystemExit as error:  # of argparse
            return error.code, None
        out = capsys.readouterr().out
        return code, json.loads(out) if out else None

    return run


# The file that people write


def test_the_example_is_good_and_probes_accept_what_is_signed_of_it(told, site):
    code, found = told("plan", "check", EXAMPLE)
    assert (code, found["problems"]) == (0, [])
    assert 0 < found["cost"]["session_mb"] <= 200
    assert found["cost"]["monthly_mb"] <= 5000
    assert not (site / "data").exists()  # looking changes nothing
    code, signed = told("plan", "sign", EXAMPLE)
    assert (code, signed["version"], signed["share"]) == (0, 1, 0.1)
    config = Config(data=site / "data")
    (one,) = Shelf(config.data, load(config)).all()
    record = accept(one.envelope, load(config).key_id, one.plan.issued_ms)
    assert record.expires_ms - record.issued_ms == 14 * DAY_MS


WRONG = """
versoin = 3
valid_days = 31
daily_mb = "many"
interval_s = 5
[[reflectors]]
url = "http://reflector.example"
key = "short"
[[nettests]]
nettest = "differential"
pairs = 0
direction = "sideways"
speed = 3
[[nettests]]
apps = ["youtube"]
[[weights]]
app = "*"
direction = "down"
access = "fixed"
effect = "slowing"
weight = 0.7
[[weights]]
app = "*"
direction = "down"
access = "fixed"
effect = "slowing"
weight = 0.4
[[profiles]]
path = "x"
"""


def test_every_problem_is_told_at_once_by_its_path():
    problems = read(WRONG).problems
    for path in (
        "version is missing",
        "versoin is not",
        "valid_days must be a whole number from 1 to 30",
        "daily_mb must be a whole number",
        "interval_s must be from 600 to",
        "reflectors[0].url",
        "reflectors[0].key",
        "nettests[0].pairs must be from 1 to",
        "nettests[0].direction must be one of down, up, both",
        "nettests[0].speed is not a key",
        "nettests[1].nettest is missing",
        "weights sum to 1.1",
        "weights[1] is there twice",
        "profiles[0].file must name a file",
        "profiles[0].path is not a key",
    ):
        assert any(problem.startswith(path) for problem in problems), path
    assert len(problems) == 15


@pytest.mark.parametrize("content", ["version = ", "version = 1\nreflectors = 3", "reflectors = [1]", "version = true"])
def test_what_is_no_plan_is_told_and_nothing_breaks(content):
    assert read(content).problems


@pytest.mark.parametrize("days", [1, 30])
def test_days_of_validity_have_two_ends(days):
    assert read(f"version = 1\nvalid_days = {days}").problems == ()
    for wrong in (0, 31, -1, "true", 1.5, '"14"'):
        assert read(f"version = 1\nvalid_days = {wrong}").problems


def edited(site, *changes):
    content = EXAMPLE.read_text()
    for old, new in changes:
        assert old in content
        content = content.replace(old, new)
    path = site / "plan.toml"
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"signal"]', '"signal", "tubeyou"]', "nettests[0].apps: there is no app profile 'tubeyou'"),
        ('nettest = "differential"', 'nettest = "diffrential"', "nettests[0].nettest: there is no nettest"),
        ("B9fnf6zS", "C9fnf6zS", "reflectors[0].key is not in this collector's configuration"),
        ("daily_mb = 200 ", "daily_mb = 20 ", "daily_mb is 20, and one session may take"),
        ("interval_s = 28800", "interval_s = 7200", "monthly_mb is 5000, and the sessions may take"),
        ("net:80", "org:80", "probes would refuse it"),
        ("pairs = 2", "pairs = 400", "daily_mb is 200, and one session may take"),
    ],
)
def test_what_only_the_whole_tells_is_a_problem_too(told, site, old, new, problem):
    code, found = told("plan", "check", edited(site, (old, new)))
    assert code == 1
    assert any(one.startswith(problem) for one in found["problems"]), found["problems"]
    assert told("plan", "sign", site / "plan.toml")[0] == 1
    assert told("plan", "list")[1]["plans"] == []


def test_profiles_are_read_beside_the_file(told, site):
    library = REPOSITORY / "probe" / "profiles" / "library"
    path = edited(site, ("# [[profiles]]", "[[profiles]]"), ('# file = "youtube.toml"', 'file = "youtube.toml"'))
    assert told("plan", "check", path)[1]["problems"] == ["profiles[0].file cannot be read (no such file or directory)"]
    shutil.copy(library / "youtube.toml", site)
    assert told("plan", "check", path)[0] == 0
    (site / "youtube.toml").write_text('id = "youtube"\n')
    assert told("plan", "check", path)[1]["problems"][0].startswith("profiles[0].file is no app profile")


def test_the_cost_is_reckoned_from_sessions_and_their_interval():
    nettests = (PlannedNettest(nettest="a", apps=("x", "y", "z")), PlannedNettest(nettest="b", apps=("x",)))
    sizes = {"a": 10_000_000, "b": 50_000_000}
    found = cost(nettests, 21_600, lambda nettest: sizes[nettest.nettest])
    assert found == Cost(session_mb=50.0, daily_mb=80.0, monthly_mb=2400.0)  # (3·10 + 50)/4 = 20 MB, four times a day
    assert against(plan(daily_mb=80, monthly_mb=2400), found=found, trusted=(), newest=0) == []
    assert len(against(plan(daily_mb=79, monthly_mb=2399), found=found, trusted=(), newest=0)) == 2
    assert against(plan(daily_mb=0, monthly_mb=0), found=found, trusted=(), newest=0) == []  # probes rest


# Signing and rolling out


def test_versions_only_rise(told, site):
    assert told("plan", "sign", EXAMPLE)[0] == 0
    code, found = told("plan", "sign", EXAMPLE)
    assert code == 1
    assert found["problems"][0].startswith("version must be higher than 1")
    assert told("plan", "sign", edited(site, ("version = 1 ", "version = 7 ")), "--share", "0")[0] == 0
    assert told("plan", "check", edited(site, ("version = 1 ", "version = 6 ")))[0] == 1


def test_a_share_only_grows_and_withdrawing_goes_on_to_a_new_version(told, site):
    told("plan", "sign", EXAMPLE, "--share", "1")
    told("plan", "sign", edited(site, ("version = 1 ", "version = 2 "), ("pairs = 2", "pairs = 1")), "--share", "0.5")
    assert told("plan", "share", 2, 0.8)[1]["share"] == 0.8
    assert told("plan", "share", 2, 0.7)[0] == 3
    code, found = told("plan", "withdraw", 2)
    assert (code, found["withdrawn"]["state"], found["instead"]["version"]) == (0, "withdrawn", 3)
    shelf = Shelf(site / "data", load(Config(data=site / "data")))
    first, bad, again = shelf.all()
    assert (bad.share, again.share) == (0.0, 1.0)
    same = {"version": 1, "issued_ms": first.plan.issued_ms, "expires_ms": first.plan.expires_ms}
    assert dataclasses.replace(again.plan, **same) == first.plan
    assert again.plan.expires_ms - again.plan.issued_ms == 14 * DAY_MS
    assert shelf.for_probe("A" * 43, again.plan.issued_ms).version == 3
    assert told("plan", "share", 2, 1)[0] == 3  # it stays withdrawn
    assert told("plan", "withdraw", 9)[0] == 3


def test_withdrawing_the_only_plan_or_an_old_one_makes_no_other(told, site):
    told("plan", "sign", EXAMPLE)
    assert told("plan", "withdraw", 1)[1]["instead"] is None
    assert [one["version"] for one in told("plan", "list")[1]["plans"]] == [1]
    for version in (2, 3):
        told("plan", "sign", edited(site, ("version = 1 ", f"version = {version} ")), "--share", "1")
    assert told("plan", "withdraw", 2)[1]["instead"] is None  # the third holds for all


def test_a_newer_one_that_only_some_have_does_not_stand_in(told, site):
    for version, share in ((1, 1), (2, 1), (3, 0.5)):
        told("plan", "sign", edited(site, ("version = 1 ", f"version = {version} ")), "--share", share)
    assert told("plan", "withdraw", 2)[1]["instead"]["version"] == 4


def test_the_shelf_itself_refuses_an_old_version(tmp_path):
    shelf = Shelf(tmp_path, IDENTITY)
    shelf.sign(plan(2), 0.5)
    for version in (1, 2):
        with pytest.raises(PlansError, match="not higher than 2"):
            shelf.sign(plan(version), 1.0)
    assert [(one.version, one.share) for one in shelf.all()] == [(2, 0.5)]


def test_what_held_before_is_what_all_had():
    assert former_of([]) is None
    assert former_of([shelved(1), shelved(2, 0.3)]).version == 1
    assert former_of([shelved(1, 0.2), shelved(2, 0.3)]).version == 2


def test_a_probe_keeps_its_side_and_sides_differ_between_versions():
    rng = random.Random(4)
    probes = [SeedSigner(rng.randbytes(32), "python").key_id for _ in range(40)]
    sides = []
    for version in (1, 2):
        inside = {p for p in probes if choose([shelved(version, 0.5)], IDENTITY, p, NOW)}
        assert inside == {p for p in probes if choose([shelved(version, 0.5)], Identity(SIGNER), p, NOW + 5)}
        assert 8 <= len(inside) <= 32
        assert inside <= {p for p in probes if choose([shelved(version, 0.7)], IDENTITY, p, NOW)}
        sides.append(inside)
    assert sides[0] != sides[1]
    other = Identity(SeedSigner(bytes(32)))
    assert {p for p in probes if choose([shelved(1, 0.5)], other, p, NOW)} != sides[0]  # nobody can reckon it


def test_the_newest_that_has_not_expired_is_chosen():
    found = [shelved(1, days=30), shelved(2, days=1), shelved(3, 0.0)]
    assert choose(found, IDENTITY, "p", NOW).version == 2
    assert choose(found, IDENTITY, "p", NOW + DAY_MS).version == 1
    assert choose(found, IDENTITY, "p", NOW + 30 * DAY_MS) is None


def test_a_file_that_appears_in_the_same_tick_is_seen(tmp_path):
    shelf, tick = Shelf(tmp_path, IDENTITY), time.time_ns()
    assert shelf.all() == ()
    for version in range(1, 5):
        Shelf(tmp_path, IDENTITY).sign(plan(version), 1.0)
        os.utime(tmp_path / "plans", ns=(tick, tick))
        assert shelf.all()[-1].version == version


@pytest.mark.parametrize(
    "words", [("share", "0", "1"), ("share", "x", "1"), ("share", "1", "1.1"), ("share", "1", "nan")]
)
def test_wrong_words_are_usage(told, words):
    assert told("plan", *words)[0] == 2


# The key


def test_a_key_file_that_is_missing_or_broken_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"key_file names .* does not exist"):
        load(Config(data=tmp_path, key_file=tmp_path / "gone"))
    (tmp_path / "broken").write_text("no key")
    with pytest.raises(ConfigError, match="is not a key file"):
        load(Config(data=tmp_path, key_file=tmp_path / "broken"))
    (tmp_path / "mine").write_text(bytes(range(32)).hex())
    assert load(Config(data=tmp_path, key_file=tmp_path / "mine")).key_id == SIGNER.key_id
    assert not (tmp_path / "key").exists()


def test_check_tells_the_key_and_who_may_read_it(told, site, capsys):
    assert told("check")[1]["key"] is None
    key = load(Config(data=site / "data")).key_id
    assert told("check")[1]["key"] == key
    (site / "data" / "key").chmod(0o644)
    assert main(["collector", "check", "--config", str(site / "collector.toml")]) == 0
    assert "can be read by other users: chmod 600" in capsys.readouterr().out


def test_options_before_and_after_the_action_are_one(site, capsys):
    for words in (["--data", str(site / "x"), "check", "--json"], ["check", "--json", "--data", str(site / "x")]):
        assert main(["collector", *words]) == 0
        assert json.loads(capsys.readouterr().out)["data"] == str(site / "x")


# Tokens


def test_a_token_is_made_while_a_collector_runs(told, site):
    store = SqliteStore(site / "data")  # holds the lock, as a running collector does
    try:
        code, made = told("token", "new", "--label", "library", "--uses", "3", "--expires", "30")
        assert code == 0
        ident = made["id"]
        assert made["token"].startswith(f"{ident}-")
        token = store.roll(lambda roll: roll.token(ident)).result()
        assert (token.uses, token.label, token.expires_ms - token.created_ms) == (3, "library", 30 * DAY_MS)
        assert told("token", "revoke", ident)[1]["state"] == "revoked"
        assert store.roll(lambda roll: roll.token(ident)).result().revoked_ms is not None
    finally:
        store.close()
    listed = told("token", "list")[1]["tokens"]
    assert [(one["id"], one["state"], one["used"]) for one in listed] == [(ident, "revoked", 0)]
    assert made["token"] not in json.dumps(listed)


def test_a_token_is_made_before_the_first_start(told, site):
    assert told("token", "new", "--label", "x")[0] == 0
    assert len(on_roll(site / "data", lambda roll: roll.tokens())) == 1
    assert told("token", "revoke", "nobody")[0] == 3


@pytest.mark.parametrize(
    "words",
    [
        ("new",),
        ("new", "--label", ""),
        ("new", "--label", "x", "--uses", "0"),
        ("new", "--label", "x", "--expires", "-1"),
    ],
)
def test_a_wrong_token_command_is_usage(told, words):
    assert told("token", *words)[0] == 2


def test_the_states_of_a_token_end_exactly_when_they_say():
    _, token = new_token("x", drawn=bytes(36), uses=2, days=1, now_ms=NOW)
    assert token.state(NOW + DAY_MS - 1) == "good"
    assert token.state(NOW + DAY_MS) == "expired"
    assert dataclasses.replace(token, used=1).state(NOW) == "good"
    assert dataclasses.replace(token, used=2).state(NOW) == "used up"
    assert dataclasses.replace(token, revoked_ms=NOW).state(NOW) == "revoked"

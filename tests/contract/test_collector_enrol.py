# SPDX-License-Identifier: EUPL-1.2
"""The doors for those who take part, as probes meet them (spec/enrolment.md)."""

import dataclasses
import gzip
import importlib.util
import json
import re
from pathlib import Path

import pytest

from collector.enrolment import CONSENT, MAX_WISH_AGE_MS, MAX_WISH_BYTES
from collector.keys import STORE
from collector.plans import Shelf
from collector.rehearsal import signer
from probe.consent import VERSION as CONSENT_TEXT
from probe.wire.envelope import from_json, open_record, seal, to_json, to_line
from probe.wire.records import Leave

_spec = importlib.util.spec_from_file_location("enrol_site", Path(__file__).with_name("enrol_site.py"))
enrol_site = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(enrol_site)
running, NOW, DAY_MS = enrol_site.running, enrol_site.NOW, enrol_site.DAY_MS


@pytest.fixture
async def site(tmp_path):
    async with running(tmp_path / "data", uploads_per_minute=0) as found:
        yield found


async def test_the_collector_says_who_it_is(site):
    async with site.client.get("/v1/about") as answer:
        told = await answer.json()
    assert told == {
        "v": 1,
        "name": "Measuring Club",
        "contact": "club@example.org",
        "key": site.identity.key_id,
        "consent": CONSENT,
        "enrolment": "open",
        "time_ms": NOW,
    }


async def test_the_key_is_made_once_and_nobody_else_reads_it(tmp_path):
    keys = []
    for _ in range(2):
        async with running(tmp_path / "data") as site:
            keys.append(site.identity.key_id)
    assert keys[0] == keys[1]
    assert (tmp_path / "data" / "key").stat().st_mode & 0o777 == 0o600


async def test_a_probe_enrols_once_and_is_known_from_then_on(site):
    assert await site.enrol() == (201, {"status": "enrolled", "vetted": False})
    assert await site.enrol() == (200, {"status": "known", "vetted": False})
    assert site.app[STORE].enrolled().enrolled == 1


def test_the_text_that_probes_have_is_new_enough_for_the_collector():
    assert CONSENT <= CONSENT_TEXT


async def test_json_lines_and_gzip_are_read_too(site):
    line = to_line(site.wish())
    assert (await site.post("enrol", line, "application/x-ndjson"))[0] == 201
    packed = gzip.compress(json.dumps(to_json(site.wish())).encode())
    assert (await site.post("enrol", packed, **{"Content-Encoding": "gzip"}))[0] == 200
    assert (await site.post("enrol", line * 2, "application/x-ndjson"))[1]["error"] == "too_many"


@pytest.mark.parametrize(
    ("told", "status", "error"),
    [
        ({"collector": "A" * 43}, 400, "wrong_collector"),
        ({"at_ms": NOW + 600_001}, 400, "future_dated"),
        ({"at_ms": NOW - MAX_WISH_AGE_MS - 1}, 400, "too_old"),
        ({"consent": "2026-11-22"}, 409, "old_consent"),
        ({"token": "0000abcd-nobody-gave-this"}, 403, "bad_token"),
        ({"tariff": "my line 192.0.2.7"}, 422, "address"),
    ],
)
async def test_refusals_of_an_enrolment(site, told, status, error):
    found, answer = await site.enrol(**told)
    assert (found, answer["error"]) == (status, error)
    assert site.app[STORE].enrolled().enrolled == 0


@pytest.mark.parametrize(
    "told", [{"at_ms": NOW + 600_000}, {"at_ms": NOW - MAX_WISH_AGE_MS}, {"consent": "2027-01-01"}]
)
async def test_what_is_just_within_the_limits_is_taken(site, told):
    assert (await site.enrol(**told))[0] == 201


async def test_hostile_bodies_are_refused_by_name(site):
    forged = dataclasses.replace(site.wish(), key=signer(site.rng).public_key)
    leave, wish = site.wish(of=Leave), site.wish()
    cut = json.dumps(to_json(wish)).encode()[:-9]
    versioned = seal(Leave(type="leave", v=1, collector="A" * 43, at_ms=NOW), site.probe)
    for body, status, error in (
        (forged, 401, "bad_signature"),
        (leave, 400, "wrong_door"),
        (versioned, 400, "wrong_door"),
        (cut, 400, "not_json"),
        (b"[]", 400, "not_an_object"),
        (b"", 400, "not_json"),
        (b"x" * (MAX_WISH_BYTES + 1), 413, "too_large"),
        (b"{" * 60_000, 400, "too_deep"),
    ):
        found, answer = await site.post("enrol", body)
        assert (found, answer["error"]) == (status, error), body[:40] if isinstance(body, bytes) else body
    bomb = gzip.compress(b" " * (MAX_WISH_BYTES + 1))
    assert (await site.post("enrol", bomb, **{"Content-Encoding": "gzip"}))[1]["error"] == "too_large"
    assert (await site.post("enrol", b"x", "text/plain"))[1]["error"] == "unsupported_type"


async def test_a_token_makes_vetted_as_often_as_it_says_and_no_more(site):
    token, others = site.token(uses=2), [signer(site.rng) for _ in range(3)]
    assert await site.enrol(token=token) == (201, {"status": "enrolled", "vetted": True})
    assert await site.enrol(token=token) == (200, {"status": "known", "vetted": True})  # costs no use
    assert (await site.enrol(others[0], token=token))[1]["vetted"] is True
    status, answer = await site.enrol(others[1], token=token)
    assert (status, answer["error"]) == (403, "bad_token")
    assert "used up" in answer["detail"]
    assert (await site.enrol(others[1]))[1] == {"status": "enrolled", "vetted": False}
    assert (await site.enrol(others[1], token=site.token()))[1] == {"status": "known", "vetted": True}
    counts = site.app[STORE].enrolled()
    assert (counts.enrolled, counts.vetted) == (3, 3)


async def test_an_expired_a_revoked_and_a_mistyped_token_are_bad(site):
    token = site.token(days=1)
    site.clock[0] += DAY_MS
    assert "expired" in (await site.enrol(token=token))[1]["detail"]
    token = site.token()
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    status, answer = await site.enrol(token=wrong)
    assert (status, answer["error"]) == (403, "bad_token")
    assert "no such token" in answer["detail"]
    for other in (
        token[:8],
        token[:9],
        token[:8] + "0" + token[8:],
        "x" + token,
        token.replace("-", "_", 1),
        token + "-" + token,
    ):
        assert (await site.enrol(token=other))[0] == 403, other

    def revoke(roll):
        roll.put_token(dataclasses.replace(roll.token(token[:8]), revoked_ms=1))

    site.app[STORE].roll(revoke).result()
    assert "revoked" in (await site.enrol(token=token))[1]["detail"]


async def test_the_secret_of_a_token_is_nowhere_on_disk(site, tmp_path):
    token = site.token()
    await site.enrol(token=token)
    secret = token[9:].encode()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()]


async def test_what_a_volunteer_told_is_not_kept_where_nobody_needs_it(site, tmp_path):
    await site.enrol(brand="Lane Telecom", tariff="Street 100")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"Street 100" in path.read_bytes()]


async def test_by_token_alone_and_closed(tmp_path):
    async with running(tmp_path / "one", enrolment="token") as site:
        assert (await site.enrol())[1]["error"] == "token_required"
        assert (await site.enrol(token=site.token()))[0] == 201
        assert (await site.enrol())[0] == 200  # it is known
    async with running(tmp_path / "two", enrolment="closed") as site:
        assert (await site.enrol(token=site.token()))[1]["error"] == "closed"
        assert site.app[STORE].roll(lambda roll: roll.tokens()[0].used).result() == 0


async def test_the_newest_of_what_a_probe_signed_counts_in_any_order(site):
    for at_ms, language in ((NOW - 5, "nl"), (NOW, "fr"), (NOW - 9, "de")):
        await site.enrol(at_ms=at_ms, language=language)
    member = site.app[STORE].roll(lambda roll: roll.member(site.probe.key_id)).result()
    assert (member.at_ms, member.language) == (NOW, "fr")


async def test_too_many_requests_are_asked_to_wait(tmp_path):
    async with running(tmp_path / "data", uploads_per_minute=2) as site:
        assert [(await site.enrol())[0] for _ in range(3)] == [201, 200, 429]


# Plans


async def test_no_plan_then_one_then_unchanged(site):
    assert (await site.plan())[0] == 404
    assert (await site.plan())[2]["error"] == "no_plan"
    Shelf(site.data, site.identity).sign(site.plan_of(3), 1.0)  # by another process, as it were
    status, headers, told = await site.plan()
    assert status == 200
    envelope = from_json(told["envelope"])
    assert envelope.key_id == site.identity.key_id
    assert open_record(envelope).version == 3
    assert headers["ETag"] == f'"{envelope.digest}"'
    status, headers, told = await site.plan(**{"If-None-Match": headers["ETag"]})
    assert (status, told) == (304, None)
    assert headers["ETag"] == f'"{envelope.digest}"'
    assert (await site.plan(**{"If-None-Match": '"other"'}))[0] == 200


async def test_an_expired_plan_is_given_to_nobody(site):
    Shelf(site.data, site.identity).sign(site.plan_of(1), 1.0)
    site.clock[0] += 14 * DAY_MS - 1
    assert (await site.plan())[0] == 200
    site.clock[0] += 1
    assert (await site.plan())[0] == 404


@pytest.mark.parametrize(
    "query", ["", "?probe=", "?probe=short", "?probe=" + "A" * 42 + "B", "?probe={0}&probe={0}", "?probe={0}&more=1"]
)
async def test_a_plan_is_for_one_key(site, query):
    async with site.client.get("/v1/plan" + query.format(site.probe.key_id)) as answer:
        assert (answer.status, (await answer.json(content_type=None))["error"]) == (400, "bad_query")


async def test_a_share_gets_the_new_plan_and_keeps_it_and_the_rest_follows(site):
    shelf = Shelf(site.data, site.identity)
    shelf.sign(site.plan_of(1), 1.0)
    shelf.sign(site.plan_of(2), 0.3)
    probes = [signer(site.rng).key_id for _ in range(60)]

    async def versions():
        return [open_record(from_json((await site.plan(probe))[2]["envelope"])).version for probe in probes]

    first = await versions()
    assert 5 <= first.count(2) <= 35
    assert await versions() == first
    shelf.set_share(2, 0.6)
    wider = await versions()
    assert all(after >= before for before, after in zip(first, wider, strict=True))
    assert wider.count(2) > first.count(2)
    shelf.set_share(2, 1.0)
    assert set(await versions()) == {2}


async def test_a_broken_plan_is_left_aside_and_the_rest_is_given(site):
    data = site.data
    shelf = Shelf(data, site.identity)
    shelf.sign(site.plan_of(1), 1.0)
    for version, content in ((2, b"garbage\n"), (3, b""), (4, (data / "plans" / "1.jsonl").read_bytes())):
        (data / "plans" / f"{version}.jsonl").write_bytes(content)
        (data / "plans" / f"{version}.share").write_text('{"share": 1.0, "withdrawn": false}')
    stranger = seal(site.plan_of(5), site.probe)
    (data / "plans" / "5.jsonl").write_bytes(to_line(stranger))
    (data / "plans" / "5.share").write_text('{"share": 1.0, "withdrawn": false}')
    status, _, told = await site.plan()
    assert status == 200
    assert open_record(from_json(told["envelope"])).version == 1
    other = Shelf(data, site.identity)
    other.all()
    assert [re.match(r"\d\.jsonl is left aside", problem) is not None for problem in other.problems] == [True] * 4

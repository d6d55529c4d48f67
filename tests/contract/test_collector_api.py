# SPDX-License-Identifier: EUPL-1.2
"""The collector over HTTP, as probes, reflectors and readers meet it (spec/api.md)."""

import asyncio
import csv
import dataclasses
import gzip
import io
import json
import logging
import random
import re
import socket
import struct
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.app import create_app
from collector.config import Config
from collector.keys import IN_FLIGHT, METRICS, STORE, WORKER
from collector.rehearsal import Rehearsal, Truth, signer
from collector.store.base import StoreError
from collector.store.sqlite import SqliteStore
from probe.wire.codec import from_dict
from probe.wire.envelope import read_payload, seal, to_json, to_line
from probe.wire.records import Origin, PairRecord

START = 1_790_002_800_000
NOW = START + 3_600_000
JSON = {"Content-Type": "application/json"}


class Site:
    """One running collector, its people and an HTTP client."""

    def __init__(self, client, app, seed=3):
        self.client, self.app, self.store = client, app, app[STORE]
        rng = random.Random(seed)
        self.reflector = signer(rng)
        self.probes = [signer(rng) for _ in range(3)]
        self.rehearsal = Rehearsal(rng=rng, reflector=self.reflector)

    def session(self, who=0, **options):
        origin = Origin(asn=64500, operator="=Example Net", country="NL", network=f"{who + 1:032x}", edge=True)
        return self.rehearsal.session(
            self.probes[who], **{"started_ms": START, "pairs": 8, "origin": origin, **options}
        )

    async def post(self, door, body, **headers):
        """Status and JSON of an upload."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        async with self.client.post(f"/v1/{door}", data=body, headers=sent) as answer:
            kind = "application/json" if answer.status < 300 else "application/problem+json"
            assert answer.content_type == kind
            return answer.status, await answer.json(content_type=None)

    async def get(self, path, **headers):
        async with self.client.get(path, headers=headers) as answer:
            return answer.status, answer.headers, await answer.text()

    async def tell(self, *sessions):
        """Upload sessions and wait for the verdict."""
        for told in sessions:
            for door, envelopes in (("receipts", (*told.started, told.receipt)), ("measurements", (told.measurement,))):
                status, answer = await self.post(door, {"envelopes": [to_json(e) for e in envelopes]})
                assert status == 200
                assert {result["status"] for result in answer["results"]} == {"accepted"}
        await self.app[WORKER].judged()

    async def caught(self):
        await self.tell(*(self.session(who, pairs=12, truth=Truth(slowdown=0.5, noise=0.12)) for who in range(3)))

    def counted(self):
        """Envelopes received, and what became of them."""
        registry = self.app[METRICS].registry
        results = {}
        for family in registry.collect():
            for sample in family.samples:
                if sample.name == "evenlane_collector_records_total":
                    result = sample.labels["result"]
                    results[result] = results.get(result, 0) + sample.value
        return registry.get_sample_value("evenlane_collector_received_total"), results


@pytest.fixture
async def site(tmp_path, aiohttp_client):
    reflector = signer(random.Random(3))
    config = Config(data=tmp_path / "data", reflectors=(reflector.key_id,), uploads_per_minute=0)
    app = create_app(config, clock_ms=lambda: NOW)
    return Site(await aiohttp_client(app), app)


async def test_one_envelope_answers_by_its_status(site):
    told = site.session()
    ident = read_payload(told.measurement.payload).id
    body = to_json(told.measurement)
    assert await site.post("measurements", body) == (201, {"status": "accepted", "reason": "", "id": ident})
    assert await site.post("measurements", body) == (200, {"status": "duplicate", "reason": "", "id": ident})
    assert (await site.post("receipts", to_json(told.receipt)))[0] == 201
    session = read_payload(told.receipt.payload).session
    status, answer = await site.post("receipts", to_json(told.started[1]))
    assert (status, answer["id"]) == (201, f"{session}/2")


async def test_other_bytes_under_the_same_id_are_a_conflict(site):
    told = site.session()
    record = read_payload(told.measurement.payload)
    await site.post("measurements", to_json(told.measurement))
    other = seal(dataclasses.replace(record, sequence=99), site.probes[0])
    status, answer = await site.post("measurements", to_json(other))
    assert (status, answer["error"]) == (409, "conflict")
    again = seal(dataclasses.replace(record, id="0" * 32), site.probes[0])
    status, answer = await site.post("measurements", to_json(again))
    assert (status, answer["error"]) == (409, "session_measured")
    # Somebody else may use the same id: it is one among his own records.
    foreign = seal(record, site.probes[1])
    assert (await site.post("measurements", to_json(foreign)))[0] == 201


async def test_a_replayed_record_is_stored_once_and_counted_once(site):
    told = site.session()
    for _ in range(3):
        await site.post("measurements", to_json(told.measurement))
        for envelope in (*told.started, told.receipt):
            await site.post("receipts", to_json(envelope))
    await site.app[WORKER].judged()
    _, _, text = await site.get("/v1/cells?effect=slowing")
    assert json.loads(text)["cells"][0]["pairs"] == 8


async def test_a_batch_answers_for_each_in_order(site):
    told = site.session()
    stranger = seal(read_payload(told.receipt.payload), site.probes[2])
    envelopes = [told.receipt, stranger, told.receipt, told.measurement]
    batch = json.dumps({"envelopes": [*(to_json(e) for e in envelopes), {"evenlane": 1}]}).encode()
    for body, headers in (
        (batch, {}),
        (gzip.compress(batch), {"Content_Encoding": "gzip"}),
        (b"".join(to_line(e) for e in envelopes) + b"{}\n", {"Content_Type": "application/x-ndjson"}),
    ):
        status, answer = await site.post("receipts", body, **headers)
        assert status == 200
        results = answer["results"]
        assert [r["status"] for r in results[1:]] == ["rejected", "duplicate", "rejected", "rejected"]
        assert [r["reason"] for r in results] == ["", "untrusted_reflector", "", "wrong_door", "missing"]
        assert [r.get("http") for r in results] == [None, 403, None, 400, 400]
        assert results[4]["id"] is None


async def test_a_hundred_and_one_are_too_many_and_nothing_of_them_is_kept(site):
    line = to_line(site.session().measurement)
    status, answer = await site.post("measurements", line * 101, Content_Type="application/x-ndjson")
    assert (status, answer["error"]) == (413, "too_many")
    assert stored(site) == 0


def stored(site):
    return site.store.write(lambda book: book._db.execute("SELECT count(*) FROM envelope").fetchone()[0]).result()


async def test_a_body_that_grows_too_large_is_cut_off(site):
    async def endless():
        for _ in range(200):
            yield b" " * 65536

    async with site.client.post("/v1/measurements", data=endless(), headers=JSON) as answer:
        assert answer.status == 413
        assert (await answer.json(content_type=None))["error"] == "too_large"
    bomb = gzip.compress(b" " * 200_000_000)
    status, answer = await site.post("measurements", bomb, Content_Encoding="gzip")
    assert (status, answer["error"]) == (413, "too_large")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_hostile_uploads_get_4xx_with_a_reason_and_leave_nothing(tmp_path_factory, data):
    """Wrongly signed, future-dated, address-bearing, truncated, nested, not JSON at all: over the real wire."""

    async def attack():
        from aiohttp.test_utils import TestClient, TestServer

        reflector = signer(random.Random(3))
        config = Config(data=tmp_path_factory.mktemp("site"), reflectors=(reflector.key_id,), uploads_per_minute=0)
        app = create_app(config, clock_ms=lambda: NOW)
        async with TestClient(TestServer(app)) as client:
            site = Site(client, app)
            for _ in range(12):
                door, body, headers = data.draw(attacks(site))
                status, answer = await site.post(door, body, **headers)
                for result in answer["results"] if status == 200 else [{"http": status, "reason": answer["error"]}]:
                    assert 400 <= result["http"] < 500
                    assert re.fullmatch("[a-z0-9_]+", result["reason"])
            assert stored(site) == 0
            received, results = site.counted()
            assert results == {"refused": received}
            assert (await site.get("/healthz"))[0] == 200

    asyncio.run(attack())


@st.composite
def attacks(draw, site):
    """Something that no collector may take: door, body, headers."""
    told = site.session(pairs=1)
    envelope = draw(st.sampled_from([told.measurement, told.receipt, told.started[0]]))
    key = site.probes[0] if envelope is told.measurement else site.reflector
    door = "measurements" if envelope is told.measurement else "receipts"
    record = read_payload(envelope.payload)
    good = to_json(envelope)
    kind = draw(st.sampled_from(["sig", "future", "address", "cut", "version", "nest", "nan", "noise", "door", "list"]))
    headers = {}
    body = json.dumps(good).encode()
    if kind == "sig":
        at = draw(st.integers(0, 85))
        swapped = "A" if good["sig"][at] != "A" else "Q"
        body = json.dumps({**good, "sig": good["sig"][:at] + swapped + good["sig"][at + 1 :]}).encode()
    elif kind == "future":
        ahead = NOW + draw(st.integers(600_001, 10**12))
        later = {name: ahead for name in ("started_ms", "ended_ms") if hasattr(record, name)}
        body = json.dumps(to_json(seal(dataclasses.replace(record, **later), key))).encode()
    elif kind == "address":
        address = draw(st.ip_addresses().map(str).filter(lambda a: a != "::"))
        plain = {**json.loads(envelope.payload), draw(st.sampled_from(["x", "software_note"])): f"via {address} "}
        body = resigned(plain, key)
    elif kind == "version":
        body = resigned({**json.loads(envelope.payload), "v": draw(st.integers(2, 99))}, key)
    elif kind == "nest":
        body = b"[" * draw(st.integers(13, 50_000))
    elif kind == "nan":
        payload = envelope.payload[:-1] + draw(st.sampled_from([b',"x":NaN}', b',"x":1e9999}', b',"v":1}']))
        body = resigned(payload, key)
    elif kind == "cut":
        body = body[: draw(st.integers(0, len(body) - 1))]
    elif kind == "noise":
        body = draw(st.binary(max_size=200))
        headers = draw(st.sampled_from([{}, {"Content_Encoding": "gzip"}, {"Content_Type": "application/x-ndjson"}]))
    elif kind == "door":
        door = "receipts" if door == "measurements" else "measurements"
    else:
        items = draw(
            st.lists(st.sampled_from([None, 1, "x", [], {}, {**good, "evenlane": 2}, {**good, "key": "A" * 43}]))
        )
        body = json.dumps({"envelopes": items}).encode()
    return door, body, headers


def resigned(plain, key):
    from probe.wire.envelope import Envelope

    payload = plain if isinstance(plain, bytes) else json.dumps(plain).encode()
    return json.dumps(to_json(Envelope(payload=payload, key=key.public_key, signature=key.sign(payload)))).encode()


async def test_the_counters_add_up(site):
    told = site.session()
    await site.post("measurements", to_json(told.measurement))
    await site.post("measurements", to_json(told.measurement))
    await site.post("measurements", to_json(told.receipt))
    await site.post("measurements", b"{")
    lines = b"".join(to_line(e) for e in (told.receipt, told.receipt, told.measurement)) + b"nonsense\n"
    await site.post("receipts", lines, Content_Type="application/x-ndjson")
    received, results = site.counted()
    assert (received, results) == (8, {"stored": 2, "repeated": 2, "refused": 4})
    _, headers, text = await site.get("/metrics")
    assert headers["Content-Type"].startswith("text/plain")
    assert 'evenlane_collector_records_total{result="stored",type="receipt"} 1.0' in text
    await site.app[WORKER].judged()
    assert 'evenlane_collector_pairs_total{kind="test"} 8.0' in (await site.get("/metrics"))[2]


async def test_a_store_that_cannot_be_written_is_a_503_and_counted(site, monkeypatch):
    def full(rows):
        raise StoreError("the disk is full")

    monkeypatch.setattr(site.store, "add", full)
    status, answer = await site.post("measurements", to_json(site.session().measurement))
    assert (status, answer["error"]) == (503, "store_unavailable")
    assert site.counted() == (1, {"failed": 1})


@pytest.mark.serial
async def test_a_verdict_follows_within_a_second(site):
    told = [site.session(who, pairs=12, truth=Truth(slowdown=0.5)) for who in range(3)]
    began = time.monotonic()
    await site.tell(*told)
    assert time.monotonic() - began < 3  # three uploads and their verdicts, on a busy machine
    _, _, text = await site.get("/v1/cases")
    assert len(json.loads(text)["cases"]) == 1


async def test_cells_are_rows_of_the_verdict_and_more(site):
    await site.caught()
    _, headers, text = await site.get("/v1/cells?effect=slowing&state=corroborated&state=replicated")
    assert headers["Access-Control-Allow-Origin"] == "*"
    (row,) = json.loads(text)["cells"]
    assert row["operator"] == "=Example Net"
    assert row["state"] == "corroborated"
    assert row["slowdown"]["low"] < 0.5 < row["slowdown"]["high"]
    assert (row["pairs"], row["lost_pairs"], row["probes"]) == (36, 0, 3)
    assert row["prevalence"] == {"slowed": 3, "clear": 0, "undecided": 0}
    assert set(row["detectable"]) == {"rate_mbps", "burst_kb", "delay_ms", "loss"}
    assert json.loads((await site.get("/v1/cells?app=netflix"))[2]) == {"cells": []}


async def test_the_row_has_the_members_of_the_verdict_on_files(site):
    from analysis.judge import judge
    from analysis.simulate import Line, stream

    await site.caught()
    (verdict, *_) = judge(stream(Line(), random.Random(1), 3))
    row = json.loads((await site.get("/v1/cells"))[2])["cells"][0]
    assert set(verdict.row()) <= set(row)


async def test_cells_as_csv(site):
    await site.caught()
    for path, headers in (("/v1/cells?format=csv", {}), ("/v1/cells", {"Accept": "text/csv"})):
        _, answered, text = await site.get(path, **headers)
        assert answered["Content-Type"] == "text/csv; charset=utf-8"
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [row["effect"] for row in rows] == ["blocking", "prioritising", "slowing", "tampering"]
        assert rows[2]["operator"] == "'=Example Net"
        assert float(rows[2]["slowdown_estimate"]) == pytest.approx(0.5, abs=0.1)
        assert rows[2]["state"] == "corroborated"


async def test_a_case_can_be_recomputed_from_what_is_published(site):
    """Pairs as published, in labels alone, give the cell's evidence again."""
    from analysis.evidence import ProbeCounts, probe_evidence
    from analysis.gates import strength
    from analysis.pairs import CellKey, OrderHistory, Pair, score

    await site.caught()
    case = json.loads((await site.get("/v1/cases"))[2])["cases"][0]
    detail = json.loads((await site.get(f"/v1/cases/{case['id']}"))[2])
    pairs = [from_dict(PairRecord, pair) for pair in detail["pairs"]]
    counts, networks = {}, {}
    for pair in pairs:
        first, second = (pair.neutral_mbps, pair.app_mbps) if pair.neutral_first else (pair.app_mbps, pair.neutral_mbps)
        again = Pair(
            cell=CellKey(pair.operator, pair.asn, pair.app, pair.direction, pair.access),
            kind=pair.kind,
            probe=pair.probe,
            session="",
            number=pair.sequence,
            started_ms=START,
            neutral_first=pair.neutral_first,
            first_mbps=first,
            second_mbps=second,
            lost=pair.lost,
        )
        counts.setdefault(pair.probe, ProbeCounts()).add(score(OrderHistory(), again, midpoint=pair.midpoint))
        networks.setdefault(pair.network, set()).add(pair.probe)
    probes = sorted(counts)
    log_es = [probe_evidence(counts[probe], "slowing") for probe in probes]
    groups = [[probes.index(probe) for probe in members] for members in networks.values()]
    again = strength(log_es, groups)
    assert again.whole / 2.302585 == pytest.approx(case["cell"]["log10_e"], abs=1e-4)
    # What cases are decided on stands beside it wherever the evidence is told.
    last = detail["evidence_by_pair"][-1]
    for told in (case["cell"], last):
        assert again.without_one / 2.302585 == pytest.approx(told["log10_e_without_one"], abs=1e-4)
    assert all(line["log10_e_without_one"] < line["log10_e"] for line in detail["history"])


async def test_a_case_as_csv_is_its_pairs(site):
    await site.caught()
    case = json.loads((await site.get("/v1/cases?status=open"))[2])["cases"][0]
    _, headers, text = await site.get(f"/v1/cases/{case['id']}?format=csv")
    assert headers["Content-Type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 36
    assert rows[0]["lost"] == "false"
    assert len({row["probe"] for row in rows}) == 3


async def test_the_evidence_of_a_cell_without_a_case(site):
    await site.tell(*(site.session(who) for who in range(3)))
    query = "operator==Example Net&app=youtube&direction=down&access=fixed&effect=slowing"
    status, _, text = await site.get(f"/v1/evidence?{query}")
    assert status == 200
    found = json.loads(text)
    assert len(found["pairs"]) == 24
    assert found["evidence_by_pair"][-1]["sequence"] == 24
    assert (await site.get(f"/v1/evidence?{query.replace('youtube', 'netflix')}"))[0] == 404


async def test_nothing_public_leads_to_a_probe(site):
    await site.caught()
    paths = ["/v1/cells", "/v1/cases", "/v1/operators", "/metrics", "/healthz"]
    paths.append(f"/v1/cases/{json.loads((await site.get('/v1/cases'))[2])['cases'][0]['id']}")
    for path in paths:
        _, _, text = await site.get(path)
        assert not any(probe.key_id in text for probe in site.probes)
        assert "0" * 31 not in text  # the networks' hashes


@pytest.mark.parametrize(
    ("path", "status", "error", "where"),
    [
        ("/v1/cells?colour=red", 400, "bad_query", "colour"),
        ("/v1/cells?state=guilty", 400, "bad_query", "state"),
        ("/v1/cells?format=xml", 400, "bad_query", "format"),
        ("/v1/cases?status=closed", 400, "bad_query", "status"),
        ("/v1/evidence?app=youtube", 400, "bad_query", "operator"),
        ("/v1/cases/0123456789ab", 404, "not_found", ""),
        ("/v1/nothing", 405, "method_not_allowed", ""),
        ("/nothing", 404, "not_found", ""),
    ],
)
async def test_what_cannot_be_read_is_a_problem_with_a_code(site, path, status, error, where):
    answered, headers, text = await site.get(path)
    problem = json.loads(text)
    assert headers["Content-Type"].startswith("application/problem+json")
    assert (answered, problem["status"], problem["error"], problem.get("path", "")) == (status, status, error, where)


async def test_readers_may_come_from_any_page_and_ask_only_what_changed(site):
    await site.caught()
    async with site.client.options("/v1/cells") as answer:
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (204, "*")
    _, headers, _ = await site.get("/v1/cells")
    status, _, text = await site.get("/v1/cells", **{"If-None-Match": headers["ETag"]})
    assert (status, text) == (304, "")
    await site.tell(site.session(0, started_ms=START + 100_000))
    assert (await site.get("/v1/cells", **{"If-None-Match": headers["ETag"]}))[0] == 200


async def test_uploads_are_limited_per_network_and_reading_is_not(tmp_path, aiohttp_client):
    app = create_app(Config(data=tmp_path, uploads_per_minute=3), clock_ms=lambda: NOW)
    site = Site(await aiohttp_client(app), app)
    statuses = [(await site.post("measurements", to_json(site.session(pairs=1).measurement)))[0] for _ in range(4)]
    assert statuses == [201, 201, 201, 429]
    async with site.client.post("/v1/measurements", data=b"{}", headers=JSON) as answer:
        assert 1 <= int(answer.headers["Retry-After"]) <= 20
    assert (await site.get("/v1/cells"))[0] == 200


async def test_many_large_bodies_at_once_are_asked_to_come_back(site):
    site.app[IN_FLIGHT]._most = 300_000
    done = asyncio.Event()

    async def slow():
        yield b" " * 200_000
        await done.wait()

    first = asyncio.create_task(site.client.post("/v1/measurements", data=slow(), headers=JSON))
    for _ in range(500):
        if site.app[IN_FLIGHT].bytes >= 200_000:
            break
        await asyncio.sleep(0.01)
    async with site.client.post("/v1/measurements", data=b" " * 200_000, headers=JSON) as answer:
        assert (answer.status, (await answer.json(content_type=None))["error"]) == (503, "busy")
        assert answer.headers["Retry-After"]
    done.set()
    async with await first as answer:
        assert answer.status == 400
    assert site.app[IN_FLIGHT].bytes == 0
    assert site.counted() == (2, {"failed": 1, "refused": 1})


async def test_ready_says_whether_an_upload_would_be_kept(site):
    assert (await site.get("/readyz"))[0] == 200
    site.store.close()
    status, _, text = await site.get("/readyz")
    assert (status, json.loads(text)["error"]) == (503, "store_unavailable")


async def test_no_address_reaches_the_log(site, monkeypatch, caplog):
    def broken():
        raise ValueError("it came from 192.0.2.99")

    monkeypatch.setattr(site.store, "cells", broken)
    with caplog.at_level(logging.DEBUG):
        status, _, text = await site.get("/v1/cells")
    assert (status, json.loads(text)["error"]) == (500, "internal")
    written = "\n".join(logging.Formatter().format(record) for record in caplog.records if "evenlane" in record.name)
    assert "a request failed" in written
    assert "192.0.2.99" not in written
    assert "127.0.0.1" not in written


@pytest.mark.parametrize("how", ["reset", "end", "bad_chunk"])
async def test_an_uploader_that_dies_in_the_middle_is_no_defect_of_ours(site, caplog, how):
    head = "POST /v1/measurements HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += "Transfer-Encoding: chunked\r\n\r\nzz\r\n" if how == "bad_chunk" else "Content-Length: 5000\r\n\r\n{"
    with caplog.at_level(logging.INFO):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.client.port)
        writer.write(head.encode())
        await writer.drain()
        await asyncio.sleep(0.1)
        if how == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        elif how == "end":
            writer.write_eof()
        await asyncio.wait([asyncio.create_task(reader.read())], timeout=1)
        writer.close()
        assert (await site.get("/healthz"))[0] == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
    assert site.app[IN_FLIGHT].bytes == 0


async def test_a_session_that_cannot_be_judged_holds_up_nobody(tmp_path, aiohttp_client, monkeypatch):
    from analysis import match

    reflector = signer(random.Random(3))
    app = create_app(Config(data=tmp_path, reflectors=(reflector.key_id,)), clock_ms=lambda: NOW)
    site = Site(await aiohttp_client(app), app)
    poison, good = site.session(0), site.session(1)
    bad = read_payload(poison.receipt.payload).session
    real = match.pairs_of

    def pairs_of(session, operator):
        if (session.receipt or session.measurement or session.started[0]).session == bad:
            raise ZeroDivisionError("a defect")
        return real(session, operator)

    monkeypatch.setattr(match, "pairs_of", pairs_of)
    await site.tell(poison, good)
    assert app[METRICS].registry.get_sample_value("evenlane_collector_sessions_set_aside_total") >= 1
    (row,) = json.loads((await site.get("/v1/cells?effect=slowing"))[2])["cells"]
    assert (row["pairs"], row["lost_pairs"]) == (8, 0)


async def test_what_was_stored_before_a_restart_is_judged_after_it(tmp_path, aiohttp_client):
    reflector = signer(random.Random(3))
    config = Config(data=tmp_path, reflectors=(reflector.key_id,))
    store = SqliteStore(tmp_path)
    site = Site(None, {STORE: store})
    from collector import intake

    rows = [
        intake.admit(
            to_json(e),
            door="measurements" if e.key != reflector.public_key else "receipts",
            trusted=frozenset(config.reflectors),
            now_ms=NOW,
        )
        for who in range(3)
        for e in site.session(who).all
    ]
    store.add(rows).result()
    store.close()
    app = create_app(config, clock_ms=lambda: NOW)
    again = Site(await aiohttp_client(app), app)
    await app[WORKER].judged()
    (row,) = json.loads((await again.get("/v1/cells?effect=slowing"))[2])["cells"]
    assert row["pairs"] == 24
